"""Which Modbus registers to read together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_REGISTERS: Final = 125
"""Per read (MODBUS Application Protocol 1.1b3, 6.3)."""
GAP_REGISTERS: Final = 16
"""Unwanted registers worth reading rather than asking twice: 32 bytes against a round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Registers `address` to `address + count - 1` that belong to one value."""

    address: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One request: registers `address` to `address + count - 1`, and the spans in them by place in what was planned."""

    address: int
    count: int
    places: tuple[int, ...]


def plan_reads(spans: Sequence[Span], gap_registers: int = GAP_REGISTERS) -> list[Read]:
    """Cover all spans with few requests: neighbours together, over gaps of up to `gap_registers`."""
    reads: list[Read] = []
    for place in sorted(range(len(spans)), key=lambda place: spans[place].address):
        start = spans[place].address
        end = start + spans[place].count
        last = reads[-1] if reads else None
        if last is not None and start <= last.address + last.count + gap_registers:
            count = max(last.address + last.count, end) - last.address
            if count <= MAX_REGISTERS:
                reads[-1] = Read(address=last.address, count=count, places=(*last.places, place))
                continue
        reads.append(Read(address=start, count=end - start, places=(place,)))
    return reads


def split_read(read: Read, spans: Sequence[Span]) -> list[Read]:
    """Give two smaller requests for one that the peer refuses; empty where it is down to one span."""
    if len(read.places) == 1:
        return []
    half = len(read.places) // 2
    return [_around(read.places[:half], spans), _around(read.places[half:], spans)]


def _around(places: tuple[int, ...], spans: Sequence[Span]) -> Read:
    start = min(spans[place].address for place in places)
    end = max(spans[place].address + spans[place].count for place in places)
    return Read(address=start, count=end - start, places=places)
