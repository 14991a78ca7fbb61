from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from edgeqc.records import Quality
from edgeqc.settings import ModbusTagSource
from edgeqc.shm.tagtable import FILE_NAME, TagTable
from edgeqc.sim.tags import SimTags, tag_settings
from edgeqc.sim.tagsink import TagRecorder
from edgeqc.tags import open_source
from edgeqc.watch.intake import TagIntake
from edgeqc.watch.sources import SourceThread

PATIENCE_S = 30.0


class Feed:
    """A source that runs into a sink."""

    def __init__(self, settings: ModbusTagSource, state_dir: Path = Path()) -> None:
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


@pytest.fixture
def server():
    with SimTags("modbus", tags=100) as sim:
        yield sim


def settings(sim: SimTags, **fields) -> ModbusTagSource:
    return ModbusTagSource.model_validate({**tag_settings(sim.tags, sim.url), **fields})


async def test_values_come_good_and_change(server: SimTags):
    async with Feed(settings(server)) as sink:
        await until(lambda: len(sink.values) == 100, "values of all tags")
        assert {value.quality for value in sink.values.values()} == {Quality.GOOD}
        ms_of_day = time.time() * 1000 % 86_400_000
        assert abs(ms_of_day - sink.values[0].value) % 86_400_000 < 5000
        first = sink.values[99].value
        await until(lambda: sink.values[99].value > first, "a change")


async def test_a_killed_server_is_lost_and_found_again(server: SimTags):
    async with Feed(settings(server)) as sink:
        await until(lambda: len(sink.values) == 100, "values")
        await asyncio.to_thread(server.kill)
        await until(lambda: bool(sink.reasons), "loss")
        await asyncio.to_thread(server.start)
        await until(lambda: len(sink.values) == 100, "values after the restart")
        assert sink.backs == 2


async def test_a_hung_server_is_stale_and_flows_again_when_it_wakes(server: SimTags):
    async with Feed(settings(server, stale_ms=1000)) as sink:
        await until(lambda: len(sink.values) == 100, "values")
        server.freeze()
        frozen = time.monotonic()
        await until(lambda: bool(sink.reasons), "staleness")
        assert "no reply" in sink.reasons[0]
        await asyncio.sleep(max(0.0, frozen + 3 - time.monotonic()))  # the peer hangs for 3 s in all
        server.thaw()
        await until(lambda: len(sink.values) == 100, "values after the hang")


async def test_registers_that_do_not_exist_spoil_only_their_own_tags(server: SimTags):
    fragment = tag_settings(100, server.url)
    fragment["tags"] += [
        {"name": "beyond", "register": 199, "type": "float32"},  # its second half is beyond the end
        {"name": "far", "register": 5000, "type": "int16"},
    ]
    async with Feed(ModbusTagSource.model_validate(fragment)) as sink:
        await until(lambda: len(sink.values) == 102 and sink.signs > 60, "values")
        bad = {value.name for value in sink.values.values() if value.quality is Quality.BAD}
        assert bad == {"beyond", "far"}
        assert sink.reasons == []


REGISTERS = [0x42F6, 0xE979, 7]
TAGS = [
    {"name": "flow", "register": 0, "type": "float32"},
    {"name": "count", "register": 2, "type": "uint16"},
]
Reply = Callable[[int, int, bytes], bytes]


def frame(transaction: int, unit: int, pdu: bytes, *, protocol: int = 0) -> bytes:
    return struct.pack(">HHHB", transaction, protocol, len(pdu) + 1, unit) + pdu


def good(transaction: int, unit: int, pdu: bytes) -> bytes:
    address, count = struct.unpack(">HH", pdu[1:])
    return frame(transaction, unit, struct.pack(f">BB{count}H", 3, 2 * count, *REGISTERS[address : address + count]))


class Peer:
    """A Modbus server that answers as it is told to, one connection after the other."""

    def __init__(self) -> None:
        self.reply: Reply | None = good
        self.requests = 0
        self.asked_s: list[float] = []
        """When each request was there."""
        self.rested_from_s: list[float] = []
        """When its reply went out."""
        self._closed: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._closed:
            task.cancel()
        await asyncio.gather(*self._closed, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._closed.append(task)
        try:
            while True:
                transaction, _, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
                pdu = await reader.readexactly(length - 1)
                self.requests += 1
                self.asked_s.append(time.monotonic())
                self.rested_from_s.append(self.asked_s[-1])
                if self.reply is None:
                    return
                self.rested_from_s[-1] = time.monotonic()
                writer.write(self.reply(transaction, unit, pdu))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.transport.abort()

    def settings(self, **changes: object) -> ModbusTagSource:
        return ModbusTagSource.model_validate(
            {
                "name": "press",
                "type": "modbus",
                "host": "127.0.0.1",
                "port": self.port,
                "poll_ms": 20,
                "stale_ms": 600,
                "tags": TAGS,
            }
            | changes
        )


HOSTILE: dict[str, tuple[Reply | None, str]] = {
    "too few registers": (lambda t, u, p: frame(t, u, b"\x03\x04" + bytes(4)), "for 3 registers"),
    "too many registers": (lambda t, u, p: frame(t, u, b"\x03\x08" + bytes(8)), "for 3 registers"),
    "byte count lies": (lambda t, u, p: frame(t, u, b"\x03\xfa" + bytes(6)), "said 250"),
    "another function": (lambda t, u, p: frame(t, u, b"\x04\x06" + bytes(6)), "function code 4"),
    "another unit": (lambda t, u, p: good(t, 77, p), "unit 77"),
    "another transaction": (lambda t, u, p: good(t + 5, u, p), "transaction"),
    "transaction 0": (lambda t, u, p: good(0, u, p), "reply to transaction 0"),
    "no Modbus": (lambda t, u, p: b"\xde\xad\xbe\xef" * 8, "not Modbus"),
    "huge length": (lambda t, u, p: struct.pack(">HHHBB", t, 0, 65_000, u, 3), "not Modbus"),
    "cut in the middle": (lambda t, u, p: good(t, u, p)[:9], "no reply within"),
    "silence": (lambda t, u, p: b"", "no reply within"),
    "hanging up": (None, "closed the connection"),
}


@pytest.mark.parametrize("fault", sorted(HOSTILE))
async def test_a_foreign_reply_is_refused_and_a_good_one_taken_after_it(fault: str):
    async with Peer() as peer:
        reply, reason = HOSTILE[fault]
        peer.reply = reply
        async with Feed(peer.settings()) as sink:
            await until(lambda: bool(sink.reasons), "refusal")
            assert reason in sink.reasons[0]
            assert sink.values == {}
            peer.reply = good
            await until(lambda: len(sink.values) == 2, "values from the honest peer")
            assert sink.values[0].value == pytest.approx(123.456)
            assert sink.values[1].value == 7


async def test_a_refused_read_is_not_a_lost_server():
    async with Peer() as peer:
        peer.reply = lambda t, u, p: frame(t, u, b"\x83\x04")
        async with Feed(peer.settings()) as sink:
            await until(lambda: len(sink.values) == 2, "both tags")
            assert {value.quality for value in sink.values.values()} == {Quality.BAD}
            assert sink.reasons == []
            peer.reply = good
            await until(lambda: {value.quality for value in sink.values.values()} == {Quality.GOOD}, "recovery")


async def test_nobody_listening_is_told():
    async with Peer() as peer:
        settings = peer.settings()
    async with Feed(settings) as sink:
        await until(lambda: len(sink.reasons) >= 2, "two refusals")
        assert "refused" in sink.reasons[0]
        assert sink.backs == 0


GAP_MS = 30.0
APART = [{"name": f"far-{place}", "register": 1000 * place, "type": "uint16"} for place in range(3)]
"""Three requests a poll."""


def zeros(transaction: int, unit: int, pdu: bytes) -> bytes:
    count = struct.unpack(">HH", pdu[1:])[1]
    return frame(transaction, unit, struct.pack(">BB", 3, 2 * count) + bytes(2 * count))


def rests_ms(peer: Peer) -> list[float]:
    """How long the device was left alone between each reply and the request behind it."""
    return [(asked - rested) * 1000 for rested, asked in zip(peer.rested_from_s, peer.asked_s[1:], strict=False)]


async def test_a_device_has_its_rest_behind_each_request_over_reconnects_too():
    async with Peer() as peer:
        peer.reply = zeros
        async with Feed(peer.settings(poll_ms=100, gap_ms=GAP_MS, tags=APART)) as sink:
            await until(lambda: len(sink.values) == 3 and peer.requests > 6, "values")
            peer.reply = None  # hangs up
            await until(lambda: bool(sink.reasons), "loss")
            peer.reply = zeros
            await until(lambda: len(sink.values) == 3 and sink.backs == 2, "values again")
        assert len(rests_ms(peer)) > 6
        assert min(rests_ms(peer)) >= GAP_MS


async def test_sources_at_one_device_share_its_rest(tmp_path: Path):
    """Two units behind a gateway on a serial line, which has one request on it at a time."""
    async with Peer() as peer:
        peer.reply = zeros
        sources = [
            peer.settings(name="oven", device_id=1, poll_ms=200, gap_ms=GAP_MS, tags=APART),
            peer.settings(name="fan", device_id=2, poll_ms=200, tags=[{"name": "speed", "register": 0}]),
        ]
        table = TagTable.create(tmp_path / FILE_NAME, sources)
        thread = SourceThread(sources, TagIntake(table, sources, wake=lambda: None), state_dir=tmp_path)
        thread.start()
        try:
            await until(lambda: peer.requests > 12, "requests")
        finally:
            await asyncio.to_thread(thread.stop)
            table.close()
        assert min(rests_ms(peer)) >= GAP_MS
