from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from asyncua import ua
from asyncua.client.client import Client

from edgeqc.records import Quality, TagFault, TagRemark
from edgeqc.settings import OpcuaTagSource
from edgeqc.sim.tags import SimTags, tag_settings
from edgeqc.sim.tagsink import TagRecorder
from edgeqc.tags import open_source, subscription
from edgeqc.tags.subscription import Subscription

PATIENCE_S = 30.0


class Feed:
    """A source that runs into a sink."""

    def __init__(self, settings: OpcuaTagSource, state_dir: Path) -> None:
        self.sink = TagRecorder([tag.name for tag in settings.tags])
        self._source = open_source(settings, sink=self.sink, state_dir=state_dir)

    async def __aenter__(self) -> TagRecorder:
        self._task = asyncio.create_task(self._source.run())
        return self.sink

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.02)  # polls the condition


def settings(sim: SimTags, **fields) -> OpcuaTagSource:
    return OpcuaTagSource.model_validate({**tag_settings(sim.tags, sim.url), **fields})


@pytest.fixture(scope="module")
def running():
    """One server for the tests that do not hurt it."""
    with SimTags(tags=20) as sim:
        yield sim


@pytest.fixture
def server():
    """A server to be killed."""
    with SimTags(tags=20) as sim:
        yield sim


async def test_values_come_with_quality_and_the_servers_time(running: SimTags, tmp_path: Path):
    async with Feed(settings(running), tmp_path) as sink:
        await until(lambda: len(sink.values) == 20 and sink.samples > 100, "values of all tags")
        heartbeat = sink.values[0]
        assert sorted(sink.values) == list(range(20))
        assert heartbeat.name == "sim-heartbeat"
        assert heartbeat.quality is Quality.GOOD
        assert heartbeat.source_ts == pytest.approx(heartbeat.value, abs=1)
        assert abs(time.time() - heartbeat.source_ts) < 5
        assert time.monotonic_ns() - heartbeat.received_ns < 5e9


async def test_bad_nodes_do_not_stop_the_good_ones(running: SimTags, tmp_path: Path):
    fragment = tag_settings(5, running.url)
    fragment["tags"].insert(2, {"name": "gone", "node": "ns=2;s=NoSuchTag"})
    fragment["tags"].append({"name": "nonsense", "node": "nsu=urn:nowhere;s=Tag1"})
    fragment["tags"].append({"name": "name", "node": "i=2261"})  # the server's ProductUri: text
    async with Feed(OpcuaTagSource.model_validate(fragment), tmp_path) as sink:
        await until(lambda: len(sink.values) == 8 and sink.samples > 50, "values")
        bad = {value.name for value in sink.values.values() if value.quality is Quality.BAD}
        assert bad == {"gone", "nonsense", "name"}
        assert {TagFault(sink.faults[place]) for place in (2, 6)} == {TagFault.REFUSED}
        assert "gone: BadNodeIdUnknown" in sink.remarks[TagRemark.REFUSED]
        assert "no namespace urn:nowhere" in sink.remarks[TagRemark.REFUSED]
        assert sink.history == ["back"]


async def test_a_wrong_password_is_told_and_tried_again(tmp_path: Path):
    with SimTags(tags=2, user="edge", password="right") as sim:
        async with Feed(settings(sim, user="edge", password="wrong"), tmp_path) as sink:
            await until(lambda: len(sink.reasons) >= 2, "two refusals")
            assert "BadUserAccessDenied" in sink.reasons[0]
            assert sink.values == {}
        async with Feed(settings(sim, user="edge", password="right"), tmp_path) as sink:
            await until(lambda: len(sink.values) == 2, "values")


async def test_a_killed_server_is_lost_at_once_and_found_again(server: SimTags, tmp_path: Path):
    async with Feed(settings(server, stale_ms=10_000), tmp_path) as sink:
        await until(lambda: len(sink.values) == 20, "values")
        server.kill()
        await until(lambda: sink.history == ["back", "lost"], "loss", 5)  # not only after stale_ms
        server.start()
        await until(lambda: len(sink.values) == 20, "values after the restart")
        assert sink.history == ["back", "lost", "back"]


async def test_an_orderly_restart_is_survived(server: SimTags, tmp_path: Path):
    async with Feed(settings(server), tmp_path) as sink:
        await until(lambda: len(sink.values) == 20, "values")
        await asyncio.to_thread(server.restart)
        await until(lambda: "lost" in sink.history and len(sink.values) == 20, "values after the restart")


async def test_a_hung_server_is_stale_and_flows_again_when_it_wakes(server: SimTags, tmp_path: Path):
    async with Feed(settings(server, stale_ms=1000), tmp_path) as sink:
        await until(lambda: len(sink.values) == 20, "values")
        server.freeze()
        frozen = time.monotonic()
        await until(lambda: "lost" in sink.history, "staleness")
        assert "no sign of life" in sink.reasons[0]
        assert time.monotonic() - frozen < 5
        await asyncio.sleep(max(0.0, frozen + 3 - time.monotonic()))  # the peer hangs for 3 s in all
        server.thaw()
        await until(lambda: len(sink.values) == 20, "values after the hang")
        before = sink.samples
        await until(lambda: sink.samples >= before + 200, "ten more samples of each")


async def test_a_server_that_is_slow_to_open_is_not_silent(
    running: SimTags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened = Subscription.open

    async def slowly(subscription: Subscription, client: Client, nodes: list[ua.NodeId | str]) -> None:
        await opened(subscription, client, nodes)
        await asyncio.sleep(1.5)  # as a small PLC that thinks about a thousand items

    monkeypatch.setattr(Subscription, "open", slowly)
    async with Feed(settings(running, stale_ms=1000), tmp_path) as sink:
        await until(lambda: len(sink.values) == 20, "values")
        assert sink.history == ["back"]


async def test_a_server_that_insists_on_publishing_seldom_is_told_of(
    server: SimTags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ask = subscription._create_subscription

    async def insists(client: Client, asked: ua.CreateSubscriptionParameters) -> ua.CreateSubscriptionResult:
        made = await ask(client, asked)
        made.RevisedPublishingInterval, made.RevisedMaxKeepAliveCount = 5000.0, ua.Counter(1)
        return made

    async with Feed(settings(server), tmp_path) as sink:
        await until(lambda: TagRemark.SLOW in sink.remarks, "a word of it")
        assert not sink.remarks[TagRemark.SLOW]
    monkeypatch.setattr(subscription, "_create_subscription", insists)
    async with Feed(settings(server), tmp_path) as sink:
        await until(lambda: bool(sink.remarks.get(TagRemark.SLOW)), "a word of it")
        assert "nothing for 5000 ms, and tags are BAD after 2000" in sink.remarks[TagRemark.SLOW]


async def test_a_pause_that_is_shorter_than_stale_ms_is_no_loss(server: SimTags, tmp_path: Path):
    async with Feed(settings(server, stale_ms=20_000), tmp_path) as sink:
        await until(lambda: len(sink.values) == 20, "values")
        server.freeze()
        await asyncio.sleep(4)  # asyncua asks each second, and would wait for one
        server.thaw()
        before = sink.samples
        await until(lambda: sink.samples >= before + 200, "ten more samples of each")
        assert sink.history == ["back"]


async def test_a_source_whose_values_never_change_stays_alive(running: SimTags, tmp_path: Path):
    fragment = {**tag_settings(1, running.url), "stale_ms": 600}
    fragment["tags"] = [{"name": "state", "node": "i=2259"}]  # the server's State: 0 as long as it runs
    async with Feed(OpcuaTagSource.model_validate(fragment), tmp_path) as sink:
        await until(lambda: len(sink.values) == 1, "the first value")
        first_ns = sink.values[0].received_ns
        await asyncio.sleep(2)  # several times stale_ms
        assert sink.history == ["back"]
        assert sink.values[0].received_ns == first_ns
        assert time.monotonic_ns() - sink.alive_ns < 1e9


async def test_nobody_listening_is_told(tmp_path: Path):
    sim = SimTags(tags=1)
    sim.port = 9  # discard: nobody serves it here
    async with Feed(settings(sim), tmp_path) as sink:
        await until(lambda: len(sink.reasons) >= 2, "two refusals")
        assert sink.history == ["lost"]


async def test_a_thousand_tags_at_ten_hertz_lose_no_sample(tmp_path: Path):
    with SimTags(tags=1000, rate_hz=10) as sim:
        # a starved server is slow here, not lost
        async with Feed(settings(sim, stale_ms=10_000), tmp_path) as sink:
            await until(lambda: len(sink.values) == 1000 and sink.samples > 5000, "values of all tags")
            us, peer = psutil.Process(), psutil.Process(sim.pid)
            began, samples = time.monotonic(), sink.samples
            busy = [sum(process.cpu_times()[:2]) for process in (us, peer)]
            await asyncio.sleep(10)  # the measurement
            elapsed = time.monotonic() - began
            ours, theirs = (
                100 * (sum(process.cpu_times()[:2]) - before) / elapsed
                for process, before in zip((us, peer), busy, strict=True)
            )
            rate = (sink.samples - samples) / elapsed
            print(  # noqa: T201 - shown by pytest -s
                f"{rate:.0f} samples/s, client {ours:.1f} % of a core, server {theirs:.1f} %"
            )
            assert sink.jumps == 0
            assert rate > 1000  # a shared machine may slow the server; it loses no sample for that
            assert sink.history == ["back"]
