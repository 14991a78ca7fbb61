"""The life of a source's connections: one after the other, each fresh, with pauses that grow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.ports import TagSink

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
"""A server that is back is found within this and a connect; a PLC bears one attempt in 2 s for ever."""
_JITTER: Final = 0.2
"""Share of the pause: many boxes that lose one server must not come back in step."""


async def keep_connected(source: str, sink: TagSink, serve: Callable[[], Awaitable[None]]) -> None:
    """Call `serve` again and again until cancelled; tell `sink` why each connection ended.

    `serve` connects, says `sink.back(source)`, feeds values and ends by raising: PeerError where it can.
    """
    pause_s = FIRST_PAUSE_S
    loop = asyncio.get_running_loop()
    while True:
        began, hung = loop.time(), False
        try:
            await serve()
            reason = "the source ended"
        except PeerError as exc:
            reason, hung = exc.reason, isinstance(exc, PeerTimeoutError)
        except Exception as exc:  # noqa: BLE001 - root of the source's task: a peer's odd bytes must not end the others
            reason = f"{type(exc).__name__}: {exc}"
        sink.lost(source, reason[:255], hung=hung)
        if loop.time() - began > LONGEST_PAUSE_S:
            pause_s = FIRST_PAUSE_S
        await asyncio.sleep(pause_s * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - not for security
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
