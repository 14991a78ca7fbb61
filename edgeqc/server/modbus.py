"""What SCADA reads over Modbus: the whole map in one piece of memory, made anew at each look."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from edgeqc.plc.modbus_server import ILLEGAL_ADDRESS, ILLEGAL_VALUE, ModbusServer, Refusal
from edgeqc.records import NS_PER_MS
from edgeqc.server.picture import Picture
from edgeqc.server.registers import box_fields, image, registers, station_fields
from edgeqc.settings import Command, ModbusServerSettings

LONGEST_MS: Final = 0xFFFF
"""What the watchdog's age says where it is longer, or the watchdog was never written."""


class RegisterBank:
    """The registers. A request sees them as they were at one look, so no value is ever torn."""

    def __init__(
        self, settings: ModbusServerSettings, *, version: str, config_digest: str, reset: Callable[[], bool]
    ) -> None:
        """`reset` begins the counters anew; False where that failed."""
        self._looks = 0
        self._box = box_fields(version=version, config_digest=config_digest, heartbeat=lambda: self._looks)
        self._station = station_fields()
        at = {field.name: field.at for field in self._box}
        self._watchdog_at, self._age_at = at["watchdog"], at["watchdog_age_ms"]
        self._writable = {
            field.at: field.writable for field in self._box if field.writable and field.writable in settings.writable
        }
        self._reset = reset
        self._memory = bytearray()
        self._size = 0
        self._watchdog = b"\0\0"
        self._watchdog_ns = 0

    def show(self, picture: Picture) -> None:
        """From now on this is what clients read."""
        self._looks += 1
        self._size = registers(len(picture.stations))
        memory = image(picture, self._box, self._station)
        self._put_watchdog(memory)
        self._memory = memory

    def read(self, address: int, count: int) -> bytes | Refusal:
        """See Bank."""
        if address + count > self._size:
            return ILLEGAL_ADDRESS
        if address <= self._age_at < address + count:
            self._put_watchdog(self._memory)  # an age is only true when it is read
        return bytes(self._memory[2 * address : 2 * (address + count)])

    def write(self, address: int, data: bytes) -> Refusal | None:
        """See Bank. Only the registers that the configuration names, one by one or together."""
        commands = [self._writable.get(address + place) for place in range(len(data) // 2)]
        if None in commands:
            return ILLEGAL_ADDRESS
        for place, command in enumerate(commands):
            value = data[2 * place : 2 * place + 2]
            if command is Command.WATCHDOG:
                self._watchdog, self._watchdog_ns = value, time.monotonic_ns()
                self._put_watchdog(self._memory)
            elif value != b"\0\1" or not self._reset():
                return ILLEGAL_VALUE
        return None

    def sent(self) -> None:
        """See Bank; nobody waits for that here."""

    def unsent(self) -> None:
        """See Bank."""

    def _put_watchdog(self, memory: bytearray) -> None:
        age_ms = (time.monotonic_ns() - self._watchdog_ns) // NS_PER_MS if self._watchdog_ns else LONGEST_MS
        memory[2 * self._watchdog_at : 2 * self._watchdog_at + 2] = self._watchdog
        memory[2 * self._age_at : 2 * self._age_at + 2] = min(age_ms, LONGEST_MS).to_bytes(2, "big")


def open_server(
    settings: ModbusServerSettings, bank: RegisterBank, *, on_event: Callable[[str, str, str], None]
) -> ModbusServer:
    """Listen for SCADA. PeerError where the port cannot be had."""
    return ModbusServer(settings, settings.port, bank, unit=1, on_event=on_event)
