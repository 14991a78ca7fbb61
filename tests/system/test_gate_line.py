"""A line whose gate edgeqc opens: what did not pass goes out there, and nothing else."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from linebench import COMES_S, Bench, set_going, until
from pymodbus.client import ModbusTcpClient

from edgeqc.records import NS_PER_MS

PARTS = 60
INPUTS, OUTPUT = 120, 140
GATES = {
    "delay": {"tracking": "delay", "travel_ms": 600, "length_ms": 204, "poll_ms": 100},
    "encoder": {"tracking": "encoder", "travel_pulses": 600, "length_pulses": 600, "poll_ms": 50},
}
MOST_PULSES = 60
"""Between two looks, one a millisecond: where the test is starved the conveyor is slow, and nothing goes by unseen."""


class Conveyor:
    """The PLC's side of the gate: says that the line runs, sees for whom the output is on."""

    def __init__(self, port: int) -> None:
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=COMES_S)
        assert self._client.connect()
        self.ejected: set[int] = set()
        self.ejections = 0
        self._encoder = (1 << 32) - 500  # it wraps on the way
        self._looked_ns = time.monotonic_ns()

    def run(self) -> None:
        assert not self._client.write_registers(INPUTS + 3, [1]).isError()

    def look(self) -> int:
        """Move on, and read the output; the number of parts that were ejected so far."""
        before_ns, self._looked_ns = self._looked_ns, time.monotonic_ns()
        self._encoder = (self._encoder + min(MOST_PULSES, (self._looked_ns - before_ns) // NS_PER_MS)) % (1 << 32)
        assert not self._client.write_registers(INPUTS, list(divmod(self._encoder, 1 << 16))).isError()
        block = struct.pack(">8H", *self._client.read_holding_registers(OUTPUT, count=8).registers)
        status, sequence, self.ejections, *_ = struct.unpack(">HIHIHH", block)
        if status & 1:
            self.ejected.add(sequence)
        return self.ejections

    def close(self) -> None:
        self._client.close()


@pytest.fixture(params=GATES)
def going(request: pytest.FixtureRequest, bench: Callable[..., Bench]) -> Iterator[tuple[Bench, Conveyor]]:
    line = bench(parts=PARTS, wait=False, changes={"stations": [{"gate": GATES[request.param]}]})
    with closing(Conveyor(line.plc.port)) as conveyor:
        conveyor.run()
        yield set_going(line.line), conveyor


def test_what_did_not_pass_goes_out_at_the_gate_and_nothing_else(going: tuple[Bench, Conveyor]) -> None:
    line, conveyor = going
    until(lambda: conveyor.look() >= 0 and line.stage.part >= PARTS, COMES_S)
    line.plc.wait_done(COMES_S)
    until(lambda: conveyor.look() >= PARTS - line.row.counters()["passed"])
    assert set(line.row.beats()) == {"line", "guard", "triggers", "cameras", "plc", "gate"}
    report = line.account()
    assert report["triggers"] == report["verdicts"] == PARTS
    assert (report["unaccounted"], report["late"], report["plc_mismatch"]) == (0, 0, 0)
    passed = {row["sequence"] for row in line.rows() if row["verdict"] == "pass" and row["delivered"]}
    rejected = {row["sequence"] for row in line.rows()} - passed
    assert conveyor.ejected <= rejected
    assert len(conveyor.ejected) > len(rejected) / 2  # the test looks now and then, and not at all on a starved box
    assert len(rejected) <= conveyor.ejections < PARTS  # one more where the link was lost while it was on
