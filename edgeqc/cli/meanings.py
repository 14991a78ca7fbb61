"""How the meanings of registers and nodes are shown: tables for people, plain data for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeqc.cli.console import show, talk, tell
from edgeqc.core.datatype import WordOrder, width
from edgeqc.core.interpret import Match, Reading, believable, bits, matches, readings, texts, word

if TYPE_CHECKING:
    from edgeqc.cli.probe_opcua import NodeReport

MATCHES: Final = 12
"""Shown at most."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the one who probes knows already."""

    value: float | None
    tolerance: float | None

    def matches(self, data: bytes, address: int) -> list[Match]:
        """The meanings that give it; none where nothing is known."""
        return [] if self.value is None else matches(data, address, self.value, tolerance=self.tolerance)[:MATCHES]


def show_node(report: NodeReport, known: Known) -> None:
    """What is behind a node's value, and below it."""
    if report.children:
        tell(f"\nbelow {report.by_uri}:")
        show(("node", "name", "class"), [[each["node"], each["name"], each["class"]] for each in report.children])
    if report.registers:
        tell(f"\n{report.name} as registers:")
        show_registers(report.registers, 0, [])
        show_matches(known, known.matches(report.registers, 0))
    elif known.value is not None and isinstance(report.value, int | float) and report.value:
        tell(f"{report.name}: {known.value:g} is {known.value / report.value:g} times its value (scale)")


def show_registers(data: bytes, address: int, refused: list[int]) -> None:
    """Register by register, then what they give together."""
    rows = []
    for place in range(len(data) // 2):
        raw = word(data, place)
        number = int.from_bytes(raw, "big")
        gone = address + place in refused
        rows.append(
            ["refused" if gone else ""] * 6
            if gone
            else [
                f"0x{number:04X}",
                str(number),
                str(int.from_bytes(raw, "big", signed=True)),
                str(int.from_bytes(raw, "little")),
                " ".join(map(str, bits(raw))) or "-",
                _printable(raw),
            ]
        )
        rows[-1].insert(0, str(address + place))
    show(("register", "hex", "uint16", "int16", "bytes swapped", "bits on", "text"), rows)
    wide = [
        reading
        for reading in readings(data, address)
        if len(reading.values) > _NARROW and _worth_showing(reading, refused)
    ]
    if wide:
        tell("")
        wide.sort(key=lambda reading: reading.address)
        show(("register", "type", *(str(order) for order in WordOrder)), [_wide_row(reading) for reading in wide])
    for at, order, found in texts(data, address):
        tell(f"text from {at} on, {order}: {found}")


def _worth_showing(reading: Reading, refused: list[int]) -> bool:
    """Not what has registers that aren't there; of four registers only what a machine could show in some order."""
    size = width(reading.type)
    if any(reading.address <= address < reading.address + size for address in refused):
        return False
    return size <= _NARROW or any(believable(value) for value in reading.values.values())


def _wide_row(reading: Reading) -> list[str]:
    """What no machine would show is in brackets."""
    cells = (text(value) if believable(value) else f"({text(value)})" for value in reading.values.values())
    return [str(reading.address), str(reading.type), *cells]


def show_matches(known: Known, matching: list[Match]) -> None:
    """Say which meanings give the known value, as the configuration writes them."""
    if known.value is None:
        return
    if not matching:
        talk(f"Nothing here gives {known.value:g}: another register, another --table, or a scale of its own?")
        return
    tell(f"\n{known.value:g} is given by:")
    for match in matching:
        scale = "" if match.scale == 1 else f", scale: {match.scale:g}"
        order = "" if match.order is WordOrder.ABCD else f", word_order: {match.order}"
        tell(f"  {{register: {match.address}, type: {match.type}{order}{scale}}}    # {match.value:g}")


def plain(data: bytes, address: int, matching: list[Match]) -> dict[str, Any]:
    """Give registers, their meanings and the matches as JSON has them."""
    return {
        "address": address,
        "registers": [int.from_bytes(word(data, place), "big") for place in range(len(data) // 2)],
        "readings": [
            {
                "register": reading.address,
                "type": str(reading.type),
                "values": {str(order): value for order, value in reading.values.items()},
            }
            for reading in readings(data, address)
        ],
        "matches": [
            {
                "register": match.address,
                "type": str(match.type),
                "word_order": str(match.order),
                "scale": match.scale,
                "value": match.value,
            }
            for match in matching
        ],
    }


_NARROW: Final = 2
"""Orders that one register can have; registers of a 32-bit value."""
_SHOWN: Final = 16
_SMALL: Final = 32


def text(value: Any) -> str:
    """As a table has room for it."""
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.7g}"
        case list():
            more = f", ... {len(value)} in all" if len(value) > _SHOWN else ""
            return f"[{', '.join(text(each) for each in value[:_SHOWN])}{more}]"
        case bytes():
            return value[:_SMALL].hex(" ") + (" ..." if len(value) > _SMALL else "")
        case _:
            return str(value)


def _printable(raw: bytes) -> str:
    text = raw.decode("latin-1")
    return text if text.isascii() and text.isprintable() else ""
