"""What Modbus holding registers mean, and which of them to read together. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeqc.settings import TagSettings

MAX_REGISTERS: Final = 125
"""Per read (MODBUS Application Protocol 1.1b3, 6.3)."""
GAP_REGISTERS: Final = 16
"""Unwanted registers worth reading rather than asking twice: 32 bytes against a round trip."""

_LAYOUTS: Final = {
    "uint16": struct.Struct(">H"),
    "int16": struct.Struct(">h"),
    "uint32": struct.Struct(">I"),
    "int32": struct.Struct(">i"),
    "float32": struct.Struct(">f"),
    "float64": struct.Struct(">d"),
    "bool": struct.Struct(">H"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One request: registers `address` to `address + count - 1`, and the tags in them by place in the configuration."""

    address: int
    count: int
    places: tuple[int, ...]


def width(tag_type: str) -> int:
    """How many registers a value of this type takes."""
    return _LAYOUTS[tag_type].size // 2


def decode(data: bytes, tag_type: str, word_order: str) -> float:
    """Give the number in `data`: its registers as they came, two bytes each, high byte first.

    ABCD is as Modbus says (high byte, high word first); CDAB has the low word first, BADC the bytes of each word
    swapped, DCBA both. With four registers the words are reversed as a whole. bool: not 0.
    """
    value: float = _LAYOUTS[tag_type].unpack(_ordered(data, word_order))[0]
    return float(value != 0) if tag_type == "bool" else value


def encode(value: float, tag_type: str, word_order: str) -> bytes:
    """Give the registers that `decode` reads as `value`."""
    layout = _LAYOUTS[tag_type]
    number = value if tag_type.startswith("float") else int(value)
    return _ordered(layout.pack(number), word_order)


def plan_reads(tags: Sequence[TagSettings], gap_registers: int = GAP_REGISTERS) -> list[Read]:
    """Cover all tags with few requests: neighbours together, over gaps of up to `gap_registers`."""
    places = sorted(range(len(tags)), key=lambda place: _start(tags[place]))
    reads: list[Read] = []
    for place in places:
        start = _start(tags[place])
        end = start + width(tags[place].type)
        last = reads[-1] if reads else None
        if last is not None and start <= last.address + last.count + gap_registers:
            count = max(last.address + last.count, end) - last.address
            if count <= MAX_REGISTERS:
                reads[-1] = Read(address=last.address, count=count, places=(*last.places, place))
                continue
        reads.append(Read(address=start, count=end - start, places=(place,)))
    return reads


def split_read(read: Read, tags: Sequence[TagSettings]) -> list[Read]:
    """Give two smaller requests for one that the peer refuses; empty where it is down to one tag."""
    if len(read.places) == 1:
        return []
    half = len(read.places) // 2
    return [_around(read.places[:half], tags), _around(read.places[half:], tags)]


def _around(places: tuple[int, ...], tags: Sequence[TagSettings]) -> Read:
    start = min(_start(tags[place]) for place in places)
    end = max(_start(tags[place]) + width(tags[place].type) for place in places)
    return Read(address=start, count=end - start, places=places)


def _start(tag: TagSettings) -> int:
    if tag.register_address is None:
        raise ValueError(f"tag {tag.name} has no register")
    return tag.register_address


def _ordered(data: bytes, word_order: str) -> bytes:
    """Turn registers of any order into ABCD; its own inverse."""
    match word_order:
        case "ABCD":
            return data
        case "DCBA":
            return data[::-1]
        case "BADC":
            return b"".join(data[at : at + 2][::-1] for at in range(0, len(data), 2))
        case "CDAB":
            return b"".join(data[at : at + 2] for at in range(len(data) - 2, -1, -2))
        case _:
            raise ValueError(f"word order {word_order}")
