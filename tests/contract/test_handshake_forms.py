"""The handshake's forms between the station's keeper and the simulated PLC's program, over both protocols."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from edgeqc.core.handshake import Form, Given, Rules
from edgeqc.errors import PeerError
from edgeqc.plc import open_link
from edgeqc.records import NS_PER_MS, PlcResult, Verdict
from edgeqc.settings import PlcSettings
from edgeqc.sim.plc import Kind, SimPlc
from edgeqc.sim.stage import Stage
from edgeqc.station.plckeeper import Manners, PlcEvents, PlcKeeper

KINDS: list[Kind] = ["modbus", "opcua"]
PATIENCE_S = 10.0
"""An OPC UA server on a loaded box answers in tenths of a second."""


@dataclass
class Bench:
    """A keeper, what it was told, and its PLC."""

    plc: SimPlc
    keeper: PlcKeeper
    programs: list[bool]
    turns: list[tuple[int, bool]] = field(default_factory=list)

    def show(self, sequence: int, verdict: Verdict = Verdict.PASS) -> Given:
        result = PlcResult(
            sequence=sequence, part_id=f"P{sequence:06d}", verdict=verdict, code=1 if verdict is Verdict.PASS else 10,
            busy=False, ready=True, fault=False, score=0.1,
        )  # fmt: skip
        return Given.SHOWN if self.keeper.show(result, within()) else Given.WAITS

    def poll_until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until, "it did not come to that"
            self.keeper.read_trigger(within())
            time.sleep(0.002)  # the pace of the station's poll


def within(s: float = PATIENCE_S) -> int:
    return time.monotonic_ns() + int(s * 1e9)


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    kind, form, depth = request.param
    with closing(Stage.create(tmp_path / "stage")):
        plc = SimPlc(
            kind, tmp_path / "stage", tmp_path / "log", parts=0, rate_hz=10, budget_ms=1000, start="go", form=form
        )
        with plc:
            settings: PlcSettings = TypeAdapter(PlcSettings).validate_python(
                plc.settings | {"handshake": {"form": form, "plc_heartbeat_ms": 500, "read_back": True}}
            )
            programs: list[bool] = []
            events = PlcEvents(
                link=lambda _up, _reason: None,
                program=programs.append,
                turn=lambda sequence, at_ns, _reason: made.turns.append((sequence, at_ns > 0)),
            )
            keeper = PlcKeeper(
                lambda: open_link(settings, peer="press", state_dir=tmp_path / "state"),
                peer="press",
                events=events,
                manners=Manners(rules=Rules(form=form, depth=depth), plc_heartbeat_ns=500 * NS_PER_MS),
            )
            made = Bench(plc, keeper, programs)
            keeper.start()
            until = time.monotonic() + PATIENCE_S
            while not keeper.up:
                assert time.monotonic() < until
                time.sleep(0.01)  # the keeper's own pace
            yield made
            keeper.stop()


def kinds(form: Form, depth: int = 8) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", [(kind, form, depth) for kind in KINDS], indirect=True, ids=KINDS)


@kinds(Form.ACK)
def test_the_programs_acknowledgement_takes_the_result_off(bench: Bench) -> None:
    for sequence in (1, 2, 3):
        assert bench.show(sequence) is Given.SHOWN
        bench.poll_until(lambda: bench.keeper.shown.verdict is None)
    assert bench.keeper.overruns == 0


@kinds(Form.BUFFERED, depth=3)
def test_a_buffer_fills_overruns_and_empties_in_order(bench: Bench) -> None:
    bench.plc.acknowledge(False)
    time.sleep(0.1)  # the command takes its own way to the PLC
    assert [bench.show(sequence) for sequence in (1, 2, 3)] == [Given.SHOWN, Given.WAITS, Given.WAITS]
    with pytest.raises(PeerError, match="buffer is full"):
        bench.show(4)
    bench.keeper.beat(ready=True, fault=False, until_ns=within())
    assert (bench.keeper.shown.overrun, bench.keeper.shown.ready) == (True, False)
    bench.plc.acknowledge(True)
    bench.poll_until(lambda: bench.keeper.shown.verdict is None)
    assert bench.turns == [(2, True), (3, True)]
    assert not bench.keeper.shown.overrun


@kinds(Form.PULSE)
def test_a_program_that_stopped_is_seen_though_its_server_answers(bench: Bench) -> None:
    bench.poll_until(lambda: bench.keeper.read_trigger(within()).heartbeat > 0)
    bench.plc.beat(False)
    bench.poll_until(lambda: bench.programs == [False])
    bench.keeper.beat(ready=True, fault=False, until_ns=within())
    assert not bench.keeper.shown.ready
    bench.plc.beat(True)
    bench.poll_until(lambda: bench.programs == [False, True])
