"""The rest that a Modbus device gets between two requests, whichever sources ask: a weak PLC, a serial line behind a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from edgeqc.settings import ModbusTagSource


class Pace:
    """One device's requests, one at a time, each begun `gap_ms` behind the end of the last. For one loop."""

    def __init__(self, gap_ms: float) -> None:
        """With 0 nobody waits for anybody."""
        self._gap_s = gap_ms / 1000
        self._lock = asyncio.Lock()
        self._free_s = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """For the length of one request: begins when the device has rested."""
        if not self._gap_s:
            yield
            return
        loop = asyncio.get_running_loop()
        async with self._lock:
            await asyncio.sleep(max(0.0, self._free_s - loop.time()))
            try:
                yield
            finally:
                self._free_s = loop.time() + self._gap_s


def paces(sources: Iterable[ModbusTagSource]) -> dict[str, Pace]:
    """Each source's by its name; those at the same device share one, with the longest rest that any of them asks for."""
    sources = list(sources)
    gaps_ms: dict[str, float] = {}
    for source in sources:
        gaps_ms[source.device] = max(source.gap_ms, gaps_ms.get(source.device, 0.0))
    by_device = {device: Pace(gap_ms) for device, gap_ms in gaps_ms.items()}
    return {source.name: by_device[source.device] for source in sources}
