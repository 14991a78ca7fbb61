"""OPC UA tags from an independent server: node-opcua, with SignAndEncrypt, user and password."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from edgeqc.plc.opcua_session import server_certificate
from edgeqc.records import Quality
from edgeqc.settings import OpcuaEndpoint, OpcuaTagSource
from edgeqc.sim.nodeopcua import INSTALLED, NodeOpcua
from edgeqc.sim.tagsink import TagRecorder
from edgeqc.tags import open_source

pytestmark = pytest.mark.timeout(180)
TAGS = 1000


@pytest.fixture
def server():
    if not (INSTALLED / "node_modules").is_dir() or shutil.which("node") is None:
        pytest.skip("node-opcua is not installed (scripts/install test, needs npm and a registry)")
    with NodeOpcua(INSTALLED, tags=TAGS) as running:
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
    while sink.samples < 20 * TAGS:
        assert time.monotonic() < end, sink.reasons
        await asyncio.sleep(0.05)  # polls the condition
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sink.values[TAGS].quality is Quality.BAD
    assert sink.reasons == []
    assert sink.jumps == 0
    assert time.time() - sink.values[0].source_ts < 10
