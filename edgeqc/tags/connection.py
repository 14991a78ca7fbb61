"""The life of a source's connections: one after the other, each fresh, with pauses that grow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from edgeqc.core.backoff import Backoff
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.ports import TagSink

LONGEST_PAUSE_S: Final = 1.4
"""A server that is back is found within this, its jitter and a connect: 2 s; a PLC bears such attempts for ever."""
_PAUSES: Final = Backoff(first_s=0.2, most_s=LONGEST_PAUSE_S)


async def keep_connected(source: str, sink: TagSink, serve: Callable[[], Awaitable[None]]) -> None:
    """Call `serve` again and again until cancelled; tell `sink` why each connection ended.

    `serve` connects, says `sink.back(source)`, feeds values and ends by raising: PeerError where it can.
    """
    failures = 0
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
        failures = 1 if loop.time() - began > LONGEST_PAUSE_S else failures + 1
        await asyncio.sleep(_PAUSES.delay_s(failures, random.random()))  # noqa: S311 - not for security
