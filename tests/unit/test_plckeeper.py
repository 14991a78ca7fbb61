"""The PLC's link when things go wrong: who may write last, how soon the next one is opened, and how late a PASS may begin."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest
from stationbench import Line, Plc, part, soon

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.records import NS_PER_MS, NS_PER_S, RESULT_CODE, Cause, Delivery, PlcResult, PlcTrigger, Verdict
from edgeqc.station.plckeeper import Manners, PlcEvents, PlcKeeper


def test_nobody_writes_behind_the_safe_block(tmp_path: Path) -> None:
    """The guard's heartbeat waits for the link while the station's last write is under way."""
    line = Line(tmp_path)
    write = line.plc.write_result
    heartbeat = threading.Thread(target=lambda: _beat(line.keeper))

    def slow(result: PlcResult, until_ns: int) -> None:
        if not heartbeat.is_alive() and result.verdict is None:
            heartbeat.start()
            heartbeat.join(0.1)  # it waits by now
        write(result, until_ns)

    line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
    line.plc.write_result = slow  # type: ignore[method-assign]
    line.keeper.stop()
    heartbeat.join()
    told = line.plc.told[-1]
    line.close()
    assert (told.verdict, told.ready) == (None, False)


def _beat(keeper: PlcKeeper) -> None:
    with contextlib.suppress(PeerError):
        keeper.beat(ready=True, fault=False, until_ns=soon())


class _Slow(Plc):
    """Answers each question too late."""

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        raise PeerTimeoutError("plc", "no answer in time")


def test_a_question_that_the_verdict_does_not_hang_on_costs_no_link() -> None:
    events = PlcEvents(
        link=lambda _up, _reason: None, program=lambda _alive: None, turn=lambda _n, _at_ns, _reason: None
    )
    keeper = PlcKeeper(_Slow, peer="plc", events=events)
    keeper.start()
    until = time.monotonic() + 5
    while not keeper.up:
        assert time.monotonic() < until
        time.sleep(0.001)
    try:
        with pytest.raises(PeerTimeoutError):
            keeper.read_trigger(soon(), patient=True)
        assert keeper.up
        with pytest.raises(PeerTimeoutError):
            keeper.read_trigger(soon())
        assert not keeper.up
    finally:
        keeper.stop()


class _Fickle(Plc):
    """Takes each connection, and drops it with the first poll."""

    def __init__(self) -> None:
        super().__init__()
        self.polls = 0

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        self.polls += 1
        if self.polls > 1:
            raise PeerError("plc", "closed")
        return super().read_trigger(until_ns)


def test_a_plc_that_takes_each_connection_and_drops_it_is_not_stormed() -> None:
    opened: list[_Fickle] = []

    def connect() -> _Fickle:
        opened.append(_Fickle())
        return opened[-1]

    events = PlcEvents(link=lambda _up, _reason: None, program=lambda _alive: None, turn=lambda *_: None)
    keeper = PlcKeeper(connect, peer="plc", events=events, manners=Manners(triggers=True))
    keeper.start()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        try:
            keeper.read_trigger(soon())
        except PeerError:
            time.sleep(0.001)
    keeper.stop()
    # 0.1, 0.2, 0.4 s between them, less their jitter
    assert 2 <= len(opened) <= 6


def test_a_link_that_confuses_us_while_it_is_opened_is_closed() -> None:
    closed = threading.Event()

    class Confusing(Plc):
        def write_result(self, result: PlcResult, until_ns: int) -> None:
            raise ValueError("what is that?")

        def close(self) -> None:
            closed.set()

    told: list[tuple[bool, str]] = []
    events = PlcEvents(
        link=lambda up, reason: told.append((up, reason)), program=lambda _alive: None, turn=lambda *_: None
    )
    keeper = PlcKeeper(Confusing, peer="plc", events=events)
    keeper.start()
    assert closed.wait(5)
    keeper.stop()
    assert told[0] == (False, "ValueError: what is that?")


def test_no_pass_is_begun_behind_a_write_that_took_until_it_would_be_late(tmp_path: Path) -> None:
    line = Line(tmp_path)
    holding, done = threading.Event(), threading.Event()
    write = line.plc.write_result

    def slow(result: PlcResult, until_ns: int) -> None:
        if result.busy and not done.is_set():
            holding.set()
            done.wait(5)
        write(result, until_ns)

    line.plc.write_result = slow  # type: ignore[method-assign]
    busy = threading.Thread(
        target=lambda: line.keeper.show_busy(2, "P2", time.monotonic_ns() + 10 * NS_PER_S, unless=lambda: False)
    )
    busy.start()
    assert holding.wait(5)
    one = part(1, left_s=0.1)  # and a second more for its reject
    threading.Timer(0.2, done.set).start()
    line.outcome.settle(one, Verdict.PASS, Cause.OK)
    busy.join()
    told = [(result.verdict, result.code) for result in line.plc.told if result.verdict is not None]
    delivery = next(body for body in line.journaled() if isinstance(body, Delivery))
    line.close()
    assert told == [(Verdict.REJECT, RESULT_CODE[Cause.LATE])]
    assert (delivery.verdict, delivery.cause, delivery.delivered) == (Verdict.REJECT, Cause.LATE, True)


def test_a_reject_waits_for_the_link_until_its_deadline(tmp_path: Path) -> None:
    line = Line(tmp_path)
    one = part(1, left_s=0.0)
    with line.keeper._lock:
        settling = threading.Thread(target=lambda: line.outcome.settle(one, Verdict.REJECT, Cause.NO_FRAME))
        settling.start()
        settling.join(100 * NS_PER_MS / NS_PER_S)
    settling.join()
    told = line.plc.told[-1].verdict
    line.close()
    assert told is Verdict.REJECT


def test_a_stop_does_not_wait_for_a_plc_that_does_not_answer() -> None:
    """The station has three seconds for all of its stopping."""
    may_fail = threading.Event()

    def connect() -> Plc:
        may_fail.wait(20)
        raise PeerError("plc", "does not answer")

    events = PlcEvents(link=lambda _up, _reason: None, program=lambda _alive: None, turn=lambda *_: None)
    keeper = PlcKeeper(connect, peer="plc", events=events)
    keeper.start()
    began_s = time.monotonic()
    keeper.stop()
    took_s = time.monotonic() - began_s
    may_fail.set()
    keeper._thread.join(5)
    assert took_s < 3
