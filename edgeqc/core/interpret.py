"""All that some registers could mean, side by side, and which of it fits a value that is known. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edgeqc.core.datatype import REGISTER_BITS, DataType, Value, WordOrder, decode, width

SCALES: Final = (1.0, 0.1, 0.01, 0.001, 10.0, 100.0)
"""What PLCs multiply a whole number with, most usual first."""
STRING_CHARS: Final = 16
_TOLERANCE: Final = 0.005
"""Share of the known value: it is read off a panel, while the machine moves."""
_BELIEVABLE: Final = (1e-6, 1e9)
"""A measured value of a machine, as to its size; what else a float shows is most likely another type."""

WIDE_TYPES: Final = (
    DataType.FLOAT32,
    DataType.INT32,
    DataType.UINT32,
    DataType.FLOAT64,
    DataType.INT64,
    DataType.UINT64,
)
"""Types of two registers and more, in the order in which they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One meaning: this type, from this register on, in these orders."""

    address: int
    type: DataType
    values: dict[WordOrder, Value]
    """By order; orders that cannot differ are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A meaning that gives the known value."""

    address: int
    type: DataType
    order: WordOrder
    scale: float
    value: float
    """Scaled."""


def word(data: bytes, place: int) -> bytes:
    """One register."""
    return data[2 * place : 2 * place + 2]


def readings(data: bytes, address: int) -> Iterator[Reading]:
    """Everything that the registers from `address` on could mean: one by one, in twos and fours, and as text."""
    count = len(data) // 2
    for place in range(count):
        for kind in (DataType.UINT16, DataType.INT16):
            yield Reading(address=address + place, type=kind, values=_in_orders(word(data, place), kind, _BYTE_ORDERS))
    for kind in WIDE_TYPES:
        size = width(kind)
        for place in range(count - size + 1):
            raw = data[2 * place : 2 * (place + size)]
            yield Reading(address=address + place, type=kind, values=_in_orders(raw, kind, tuple(WordOrder)))
    yield Reading(address=address, type=DataType.STRING, values=_in_orders(data, DataType.STRING, _BYTE_ORDERS))


def texts(data: bytes, address: int) -> Iterator[tuple[int, WordOrder, str]]:
    """Runs of at least four printable characters: register in which each begins, order, text."""
    for order in _BYTE_ORDERS:
        ordered = data if order is WordOrder.ABCD else b"".join(word(data, at)[::-1] for at in range(len(data) // 2))
        for run in _PRINTABLE.finditer(ordered):
            yield address + run.start() // 2, order, run.group().decode("ascii").rstrip()


def bits(data: bytes) -> list[int]:
    """Which bits of one register are on, 0 is the lowest."""
    return [bit for bit in range(REGISTER_BITS) if decode(data, DataType.BOOL, bit=bit)]


def believable(value: Value) -> bool:
    """Could a machine show this? Whole numbers always; a float of a sensible size; a text of letters and figures."""
    match value:
        case bool():
            return True
        case float():
            return value == 0 or (math.isfinite(value) and _BELIEVABLE[0] <= abs(value) <= _BELIEVABLE[1])
        case int():
            return abs(value) <= _BELIEVABLE[1]
        case _:
            return bool(value) and value.isascii() and value.isprintable()


def matches(data: bytes, address: int, known: float, *, tolerance: float | None = None) -> list[Match]:
    """The meanings that give `known` within `tolerance` (null: 0.5 % of it), the simplest first.

    Whole numbers are tried at each of SCALES too.
    """
    near = abs(known) * _TOLERANCE if tolerance is None else tolerance
    found: list[tuple[tuple[float, int, int], Match]] = []
    for reading in readings(data, address):
        if reading.type is DataType.STRING:
            continue
        for rank, (order, value) in enumerate(reading.values.items()):
            number = float(value)
            scales = (1.0,) if isinstance(value, float) else SCALES
            for place, scale in enumerate(scales):
                if math.isfinite(number) and abs(number * scale - known) <= near + _ROUNDING * abs(known):
                    match = Match(
                        address=reading.address, type=reading.type, order=order, scale=scale, value=number * scale
                    )
                    off = abs(number * scale - known)
                    found.append(((round(off, 6), place, rank), match))
    return [match for _, match in sorted(found, key=lambda pair: pair[0])]


_ROUNDING: Final = 1e-6
"""A float32 holds 7 digits."""
_PRINTABLE: Final = re.compile(rb"[\x21-\x7e][\x20-\x7e]{3,}")
_BYTE_ORDERS: Final = (WordOrder.ABCD, WordOrder.BADC)
"""Those that differ within one register."""


def _in_orders(data: bytes, kind: DataType, orders: tuple[WordOrder, ...]) -> dict[WordOrder, Value]:
    return {order: decode(data, kind, order) for order in orders}
