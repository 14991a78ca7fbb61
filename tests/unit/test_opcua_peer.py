"""The process that talks OPC UA: what it does with a request that comes too late."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

from edgeqc.plc.opcua_peer import _serve
from edgeqc.records import NS_PER_S


async def test_nothing_is_begun_whose_time_is_over() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    begun: list[int] = []

    async def handle(request: dict[str, Any]) -> dict[str, Any]:
        begun.append(request["n"])
        return {}

    theirs.setblocking(False)
    serving = asyncio.create_task(_serve(theirs, "press", handle))
    answers = []
    with ours, theirs:
        for number, left_s in ((1, -0.001), (2, 60)):
            ours.send(json.dumps({"n": number, "until_ns": time.monotonic_ns() + int(left_s * NS_PER_S)}).encode())
            answers.append(json.loads(await asyncio.to_thread(ours.recv, 4096)))
        ours.shutdown(socket.SHUT_RDWR)
        await serving
    assert begun == [2]
    assert [answer["n"] for answer in answers] == [1, 2]
    assert answers[0]["timeout"]
    assert "error" not in answers[1]
