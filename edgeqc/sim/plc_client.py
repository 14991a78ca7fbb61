"""The simulated PLC as a Modbus client: it writes the daemon's trigger block, and polls its result block in each cycle."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from edgeqc.plc.registers import RESULT_REGISTERS, ResultImage, TriggerImage, pack_trigger, unpack_result

TRIGGER_AT: Final = 0
RESULT_AT: Final = 100
CYCLE_S: Final = 0.005
"""A PLC's I/O cycle."""
_TIMEOUT_S: Final = 0.5
_AGAIN_S: Final = 0.1


class ModbusClientPlc:
    """Tells each new result block at the moment it was fetched."""

    def __init__(self, on_write: Callable[[ResultImage, int], None]) -> None:
        """`on_write` gets a block that is not the one before it, and the monotonic time in ns."""
        self._on_write = on_write
        self._client: AsyncModbusTcpClient | None = None
        self._says: list[int] = []
        self._silent = False
        self._seen: ResultImage | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, port: int, says: TriggerImage) -> None:
        """Begin to poll 127.0.0.1; the daemon may come later."""
        self._says = _packed(says)
        self._client = AsyncModbusTcpClient(
            "127.0.0.1", port=port, timeout=_TIMEOUT_S, retries=0, reconnect_delay=0, name="plc"
        )
        self._task = asyncio.create_task(self._poll(self._client), name="plc polls")

    async def show(self, says: TriggerImage) -> None:
        """Put this into the trigger block."""
        self._says = _packed(says)
        if self._client is not None and self._client.connected:
            with contextlib.suppress(ModbusException):  # the next cycle finds out
                await self._client.write_registers(TRIGGER_AT, self._says)

    async def refuse(self, on: bool) -> None:
        """Fetch no results, or go on with it."""
        self._silent = on

    async def stop(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._client is not None:
            self._client.close()

    async def _poll(self, client: AsyncModbusTcpClient) -> None:
        while True:
            try:
                if not client.connected:
                    if not await client.connect():
                        await asyncio.sleep(_AGAIN_S)
                        continue
                    await client.write_registers(TRIGGER_AT, self._says)
                if not self._silent:
                    await self._fetch(client)
            except ModbusException:
                client.close()
                await asyncio.sleep(_AGAIN_S)
            await asyncio.sleep(CYCLE_S)

    async def _fetch(self, client: AsyncModbusTcpClient) -> None:
        reply = await client.read_holding_registers(RESULT_AT, count=RESULT_REGISTERS)
        now_ns = time.monotonic_ns()
        if reply.isError():
            return
        image = unpack_result(reply.registers)
        if image != self._seen:
            self._seen = image
            self._on_write(image, now_ns)


def _packed(says: TriggerImage) -> list[int]:
    return pack_trigger(says.counter, says.part_id, ack=says.ack, heartbeat=says.heartbeat, recipe=says.recipe)
