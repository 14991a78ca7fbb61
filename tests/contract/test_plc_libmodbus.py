"""The Modbus link and the handshake against a PLC by other hands: libmodbus, frozen, thawed, killed and started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgeqc.core.handshake import Form, Rules
from edgeqc.errors import PeerError
from edgeqc.plc import open_link
from edgeqc.plc.registers import ResultImage, Status
from edgeqc.records import NS_PER_MS, PlcResult, Verdict
from edgeqc.settings import HandshakeSettings, ModbusPlcSettings
from edgeqc.sim import libmodbus
from edgeqc.sim.libmodbus import Served
from edgeqc.station.plckeeper import Manners, PlcEvents, PlcKeeper

PATIENCE_S = 20.0


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Served]:
    if not libmodbus.installed():
        if os.environ.get("EDGEQC_REQUIRE_PEERS") == "1":
            pytest.fail("libmodbus is not installed (Debian package libmodbus5)")
        pytest.skip("libmodbus is not installed (Debian package libmodbus5)")
    with libmodbus.serve(tmp_path / "writes") as served:
        yield served


def settings(peer: Served, *, read_back: bool = False) -> ModbusPlcSettings:
    return ModbusPlcSettings(
        type="modbus", host="127.0.0.1", port=peer.port, handshake=HandshakeSettings(read_back=read_back)
    )


def within(s: float = PATIENCE_S) -> int:
    return time.monotonic_ns() + int(s * 1e9)


def result(sequence: int, verdict: Verdict | None) -> PlcResult:
    code = {Verdict.PASS: 1, Verdict.REJECT: 10, None: 0}[verdict]
    return PlcResult(
        sequence=sequence, part_id=f"P{sequence}", verdict=verdict, code=code, busy=False, ready=True, fault=False,
        score=0.5,
    )  # fmt: skip


def verdict_of(image: ResultImage) -> Verdict | None:
    bits = image.status & (Status.PASS | Status.REJECT)
    return {Status.PASS: Verdict.PASS, Status.REJECT: Verdict.REJECT}.get(bits)


def until_up(keeper: PlcKeeper) -> None:
    until = time.monotonic() + PATIENCE_S
    while not keeper.up:
        assert time.monotonic() < until, "the link did not come back"
        time.sleep(0.01)  # the keeper's own pace


@pytest.fixture
def make_keeper(peer: Served, tmp_path: Path) -> Iterator[Callable[..., PlcKeeper]]:
    made: list[PlcKeeper] = []

    def make(*, read_back: bool = False, form: Form = Form.PULSE) -> PlcKeeper:
        keeper = PlcKeeper(
            lambda: open_link(settings(peer, read_back=read_back), peer="press", state_dir=tmp_path),
            peer="press",
            events=PlcEvents(link=lambda _up, _why: None, program=lambda _alive: None, turn=lambda *_told: None),
            manners=Manners(rules=Rules(form=form)),
        )
        made.append(keeper)
        keeper.start()
        until_up(keeper)
        return keeper

    yield make
    for keeper in made:
        keeper.stop()


@pytest.mark.parametrize("read_back", [False, True])
def test_what_is_written_is_what_libmodbus_holds(peer: Served, read_back: bool, tmp_path: Path) -> None:
    with closing(open_link(settings(peer, read_back=read_back), peer="press", state_dir=tmp_path)) as link:
        for sequence, verdict in ((1, Verdict.PASS), (2, Verdict.REJECT), (3, None)):
            link.write_result(result(sequence, verdict), within())
        assert link.read_trigger(within()).counter == 0
    seen = [image for _, image in peer.writes()]
    assert [(one.sequence, one.part_id, verdict_of(one)) for one in seen] == [
        (1, "P1", Verdict.PASS), (2, "P2", Verdict.REJECT), (3, "P3", None),
    ]  # fmt: skip
    assert len({one.heartbeat for one in seen}) == 3


@pytest.mark.parametrize("rounds", [3])
def test_a_write_that_timed_out_and_is_executed_later_never_judges_another_part(
    peer: Served, make_keeper: Callable[..., PlcKeeper], rounds: int
) -> None:
    """Freeze the PLC, lose a verdict to it, go on with the next part on a fresh link, thaw: what it executes then."""
    keeper = make_keeper()
    given: dict[int, Verdict] = {}
    lost: list[tuple[int, int]] = []
    for turn in range(rounds):
        stale, fresh = 2 * turn + 1, 2 * turn + 2
        given[stale], given[fresh] = Verdict.REJECT, Verdict.PASS  # the stale REJECT must not hit the good part
        os.kill(peer.process.pid, signal.SIGSTOP)
        with pytest.raises(PeerError):
            keeper.show(result(stale, given[stale]), time.monotonic_ns() + 50 * NS_PER_MS)
        lost.append((stale, time.monotonic_ns()))
        time.sleep(0.3)  # the keeper tries fresh connections, and each leaves a write with the frozen peer
        os.kill(peer.process.pid, signal.SIGCONT)
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                keeper.show(result(fresh, given[fresh]), within())
                break
            except PeerError:
                assert time.monotonic() < until
                time.sleep(0.02)  # the pace of the next part
        keeper.touch(within())
    executed = peer.writes()
    late = [
        (sequence, at) for sequence, gone in lost for at, image in executed if image.sequence == sequence and at > gone
    ]
    assert late, "no write was executed late: the test did not try what it is about"
    for _, image in executed:
        verdict = verdict_of(image)
        assert (verdict is not None) == bool(image.status & Status.RESULT_VALID)
        if verdict is not None:
            assert image.part_id == f"P{image.sequence}", "sequence and part id come in one write"
            assert verdict is given[image.sequence], "whoever takes only its own part's result takes the right one"
    final = executed[-1][1]
    assert (final.sequence, verdict_of(final)) == (2 * rounds, Verdict.PASS), "the fresh result stands at the end"


def test_a_killed_peer_is_a_clear_block_when_it_is_back(
    peer: Served, make_keeper: Callable[..., PlcKeeper], tmp_path: Path
) -> None:
    keeper = make_keeper(form=Form.ACK)
    keeper.show(result(1, Verdict.PASS), within())
    peer.process.kill()
    with pytest.raises(PeerError):
        keeper.show(result(2, Verdict.PASS), within(1))
    assert not keeper.up
    assert keeper.shown.verdict is None
