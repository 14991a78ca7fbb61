"""The simulated PLC's Modbus TCP server: pymodbus, with the two blocks of edgeqc.plc.registers."""

from __future__ import annotations

import time
from collections.abc import Callable

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edgeqc.plc.registers import (
    RECIPE_REGISTERS,
    RESULT_REGISTERS,
    ResultImage,
    pack_trigger,
    unpack_result,
)

REGISTERS = 200
"""All that there are; the next address is refused."""
TRIGGER_AT = 0
RESULT_AT = 100


class ModbusPlc:
    """Holds the blocks; tells each result write at the moment it arrives."""

    def __init__(self, on_write: Callable[[ResultImage, int], None]) -> None:
        """`on_write` gets the block and the monotonic time in ns, before the daemon gets its acknowledgement."""
        self._on_write = on_write
        self._trigger = pack_trigger(0, "")
        self._refusing = False
        self._server: ModbusTcpServer | None = None

    async def start(self, port: int, counter: int) -> None:
        """Serve on 127.0.0.1, the trigger counter standing there; clients can connect when it returns."""
        self._trigger = pack_trigger(counter, "")
        block = SimData(0, values=[0] * REGISTERS, datatype=DataType.REGISTERS)
        device = SimDevice(1, simdata=[block], action=self._access)
        self._server = ModbusTcpServer(device, address=("127.0.0.1", port))
        await self._server.serve_forever(background=True)

    async def raise_trigger(self, counter: int, part_id: str) -> None:
        """Show a new part."""
        self._trigger = pack_trigger(counter, part_id)

    async def refuse(self, on: bool) -> None:
        """Answer result writes with exception 6 (busy), or take them again."""
        self._refusing = on

    async def stop(self) -> None:
        """Hang up."""
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]

    async def _access(
        self,
        _function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        written: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """Every request passes here, before its values are stored or answered."""
        now_ns = time.monotonic_ns()
        if written is None:
            first = TRIGGER_AT - start
            registers[first : first + RECIPE_REGISTERS] = self._trigger
            return None
        if self._refusing:
            return ExcCodes.DEVICE_BUSY
        if address <= RESULT_AT and address + count >= RESULT_AT + RESULT_REGISTERS:
            first = RESULT_AT - address
            self._on_write(unpack_result([int(word) for word in written[first : first + RESULT_REGISTERS]]), now_ns)
        return None
