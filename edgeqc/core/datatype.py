"""What Modbus registers mean: numbers, bits and strings, in the orders that plants have them. Pure.

Registers come and go as bytes, two each, high byte first, as Modbus carries them. The PLC link, the tags, the servers
and `edgeqc plc probe` all read by these rules.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final

Value = bool | int | float | str


class DataType(StrEnum):
    """How many registers a value takes, and what they are."""

    BOOL = "bool"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"
    UINT32 = "uint32"
    INT64 = "int64"
    UINT64 = "uint64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    STRING = "string"


class WordOrder(StrEnum):
    """Which byte is where, for a 32-bit value whose most significant byte is A.

    Vendors' names for these do not agree with each other: find the right one by a known value (`edgeqc plc probe`).
    """

    ABCD = "ABCD"
    """As Modbus says: high byte first, high word first."""
    CDAB = "CDAB"
    """Low word first."""
    BADC = "BADC"
    """The bytes of each word swapped."""
    DCBA = "DCBA"
    """Both."""


REGISTER_BITS: Final = 16


def width(data_type: str, *, chars: int = 0) -> int:
    """How many registers one value takes; a string of `chars` characters has two to a register."""
    return (chars + 1) // 2 if data_type == DataType.STRING else _LAYOUTS[data_type].size // 2


def decode(data: bytes, data_type: str, word_order: str = WordOrder.ABCD, *, bit: int | None = None) -> Value:
    """Give the value in `data`, which is as long as the type's width. ValueError, struct.error where it is not.

    With four registers the words are reversed as a whole. A bool is true where any bit is set, or `bit` where one is
    named (0 = lowest, 15 = highest). A string ends at its first NUL, loses blanks at its end, and is Latin-1; only the
    order of the bytes in a register matters for it.
    """
    match data_type:
        case DataType.STRING:
            return _bytes_ordered(data, word_order).split(b"\0", 1)[0].decode("latin-1").rstrip(" ")
        case DataType.BOOL:
            (word,) = _LAYOUTS[DataType.UINT16].unpack(_ordered(data, word_order))
            return bool(word if bit is None else word >> bit & 1)
        case _:
            number: int | float = _LAYOUTS[data_type].unpack(_ordered(data, word_order))[0]
            return number


def decode_array(data: bytes, data_type: str, word_order: str = WordOrder.ABCD) -> list[Value]:
    """Give the values that stand one behind the other in `data`; a bool is a bit here, the lowest of each register first.

    What is left over at the end, too short for a value, is left out.
    """
    if data_type == DataType.BOOL:
        return [
            decode(data[at : at + 2], data_type, word_order, bit=bit)
            for at in range(0, len(data) - 1, 2)
            for bit in range(REGISTER_BITS)
        ]
    size = _LAYOUTS[data_type].size
    return [decode(data[at : at + size], data_type, word_order) for at in range(0, len(data) - size + 1, size)]


def encode(
    value: Value, data_type: str, word_order: str = WordOrder.ABCD, *, bit: int | None = None, chars: int = 0
) -> bytes:
    """Give the registers that `decode` reads as `value`; struct.error where it does not fit the type.

    A string is cut at `chars` and padded with NUL to whole registers.
    """
    match data_type:
        case DataType.STRING:
            raw = str(value).encode("latin-1", "replace")[:chars]
            return _bytes_ordered(raw.ljust(2 * width(data_type, chars=chars), b"\0"), word_order)
        case DataType.BOOL:
            return _ordered(_LAYOUTS[DataType.UINT16].pack(bool(value) << (bit or 0)), word_order)
        case DataType.FLOAT32 | DataType.FLOAT64:
            return _ordered(_LAYOUTS[data_type].pack(value), word_order)
        case _:
            return _ordered(_LAYOUTS[data_type].pack(int(value)), word_order)


_LAYOUTS: Final[dict[str, struct.Struct]] = {
    DataType.BOOL: struct.Struct(">H"),
    DataType.INT16: struct.Struct(">h"),
    DataType.UINT16: struct.Struct(">H"),
    DataType.INT32: struct.Struct(">i"),
    DataType.UINT32: struct.Struct(">I"),
    DataType.INT64: struct.Struct(">q"),
    DataType.UINT64: struct.Struct(">Q"),
    DataType.FLOAT32: struct.Struct(">f"),
    DataType.FLOAT64: struct.Struct(">d"),
}


def _ordered(data: bytes, word_order: str) -> bytes:
    """Turn registers of any order into ABCD; its own inverse."""
    match word_order:
        case WordOrder.ABCD:
            return data
        case WordOrder.DCBA:
            return data[::-1]
        case WordOrder.BADC:
            return b"".join(data[at : at + 2][::-1] for at in range(0, len(data), 2))
        case WordOrder.CDAB:
            return b"".join(data[at : at + 2] for at in range(len(data) - 2, -1, -2))
        case _:
            raise ValueError(f"word order {word_order}")


def _bytes_ordered(data: bytes, word_order: str) -> bytes:
    """Swap the bytes of each register where the order says so; the words stay where they are."""
    swapped = word_order in {WordOrder.BADC, WordOrder.DCBA}
    return _ordered(data, WordOrder.BADC if swapped else WordOrder.ABCD)
