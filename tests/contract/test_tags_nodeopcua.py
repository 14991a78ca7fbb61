"""OPC UA tags from an independent server: node-opcua, installed by npm into a folder of the test run."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from edgeqc.plc.opcua_session import server_certificate
from edgeqc.records import Quality
from edgeqc.settings import OpcuaEndpoint, OpcuaTagSource
from edgeqc.sim.nodeopcua import NodeOpcua
from edgeqc.sim.tagsink import TagRecorder
from edgeqc.tags import open_source

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
TAGS = 1000


@pytest.fixture
def server(tmp_path: Path):
    with NodeOpcua(tmp_path, tags=TAGS) as running:
        yield running


async def test_a_thousand_encrypted_tags_lose_no_sample(server, tmp_path: Path):
    url, namespace = server.url, server.namespace
    shown = await server_certificate(OpcuaEndpoint.model_validate({"url": url}), peer="line", timeout_s=10)
    (tmp_path / "server.der").write_bytes(shown)
    settings = OpcuaTagSource.model_validate(
        {
            "name": "line",
            "type": "opcua",
            "url": url,
            "stale_ms": 10_000,  # a starved server is slow here, not lost
            "server_certificate": tmp_path / "server.der",
            "user": "edge",
            "password": "s3cret",
            "tags": [
                *({"name": f"t{index}", "node": f"{namespace};s=Tag{index}"} for index in range(TAGS)),
                {"name": "gone", "node": f"{namespace};s=NoSuchTag"},
            ],
        }
    )
    sink = TagRecorder([tag.name for tag in settings.tags])
    task = asyncio.create_task(open_source(settings, sink=sink, state_dir=tmp_path).run())
    end = time.monotonic() + 60
    while sink.samples < 5 * TAGS:
        assert time.monotonic() < end, sink.reasons
        await asyncio.sleep(0.05)  # polls the condition
    us, peer = psutil.Process(), psutil.Process(server.pid)
    busy = [sum(who.cpu_times()[:2]) for who in (us, peer)]
    began, samples = time.monotonic(), sink.samples
    await asyncio.sleep(30)  # the measurement
    elapsed = time.monotonic() - began
    ours, theirs = (
        100 * (sum(who.cpu_times()[:2]) - before) / elapsed for who, before in zip((us, peer), busy, strict=True)
    )
    rate = (sink.samples - samples) / elapsed
    print(  # noqa: T201 - shown by pytest -s
        f"{rate:.0f} samples/s, client {ours:.1f} % of a core, server {theirs:.1f} %, {sink.jumps} jumps"
    )
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sink.values[TAGS].quality is Quality.BAD
    assert sink.reasons == []
    assert sink.jumps == 0
    assert rate > TAGS  # a shared machine may slow the server; it loses no sample for that, and none waits
    assert time.time() - sink.values[0].source_ts < 10
