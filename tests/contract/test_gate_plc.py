"""The gate against a Modbus server: parts are followed by the PLC's encoder and ejected where they are."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edgeqc.plc.gate import ModbusGate
from edgeqc.plc.registers import TriggerImage
from edgeqc.records import AlertChange, Event, Trigger
from edgeqc.settings import ModbusPlcSettings
from edgeqc.settings.gate import EncoderGate
from edgeqc.sim.plc_modbus import ModbusPlc
from edgeqc.station.gate import GateWatch
from edgeqc.station.part import Part

INPUTS, OUTPUT = 120, 140
START = (1 << 32) - 500
"""The encoder wraps on the way."""


class GatePlc:
    """A PLC with a conveyor: `drive` turns the encoder, the output is what the box wrote last."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.server = ModbusPlc(lambda _image, _at: None)
        self.encoder = START
        self.confirmations = 0
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._put()
        self._thread.start()
        assert self._ready.wait(5)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        says = TriggerImage(counter=0, part_id="", ack=0, heartbeat=0, recipe=0)
        self.loop.run_until_complete(self.server.start(0, says))
        assert self.server._server is not None
        self.port = self.server._server.sockets[0].getsockname()[1]
        self._ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self.server.stop())
        self.loop.close()

    def _put(self) -> None:
        struct.pack_into(
            ">IHH", self.server._memory, 2 * INPUTS, self.encoder % (1 << 32), self.confirmations & 0xFFFF, 1
        )

    def drive(self, pulses: int) -> None:
        self.encoder += pulses
        self._put()

    def confirm(self) -> None:
        self.confirmations += 1
        self._put()

    @property
    def output(self) -> tuple[bool, int, int, int, int]:
        """EJECT, sequence, ejections, position, heartbeat."""
        status, sequence, ejections, position, heartbeat, _ = struct.unpack_from(
            ">HIHIHH", self.server._memory, 2 * OUTPUT
        )
        return bool(status & 1), sequence, ejections, position, heartbeat

    def hang_up(self) -> None:
        self.loop.call_soon_threadsafe(lambda: [transport.abort() for transport in list(self.server._open)])

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


@pytest.fixture
def plc() -> Iterator[GatePlc]:
    made = GatePlc()
    yield made
    made.stop()


@pytest.fixture
def told() -> list[object]:
    return []


@pytest.fixture
def gate(plc: GatePlc, told: list[object]) -> Iterator[GateWatch]:
    settings = EncoderGate(
        tracking="encoder", travel_pulses=1000, length_pulses=100, confirm_pulses=200, confirmed=True, poll_ms=2
    )
    link = ModbusPlcSettings(type="modbus", host="127.0.0.1", port=plc.port)
    watch = GateWatch(
        settings,
        lambda: ModbusGate(link, settings.registers, peer="gate top"),
        station="top",
        note=told.append,
        on_failure=lambda: told.append("failure"),
        on_looked=lambda: None,
    )
    watch.start()
    until(lambda: plc.output[4] > 2)
    yield watch
    watch.stop()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def settled(plc: GatePlc) -> None:
    """Two more polls have gone by."""
    beat = plc.output[4]
    until(lambda: plc.output[4] >= beat + 3)


def part(sequence: int) -> Part:
    now_ns = time.monotonic_ns()
    trigger = Trigger(sequence=sequence, part_id=f"P{sequence}", at_ns=now_ns, wall_ns=0)
    return Part(trigger=trigger, deadline_ns=now_ns, fail_safe_at_ns=now_ns)


def facts(told: list[object]) -> list[tuple[object, object]]:
    return [(one.facts["fact"], one.facts["part"]) for one in told if isinstance(one, Event) and one.name == "gate"]


def test_the_part_that_did_not_pass_is_ejected_at_the_gate_and_no_other(
    plc: GatePlc, gate: GateWatch, told: list[object]
) -> None:
    for sequence in (1, 2, 3):
        settled(plc)
        gate.part(part(sequence), placed=True)
        settled(plc)
        plc.drive(300)
    gate.passed(1)
    gate.passed(3)
    settled(plc)
    assert not plc.output[0]
    plc.drive(150)  # part 1 is at the gate: it passed
    settled(plc)
    assert not plc.output[0]
    plc.drive(270)  # part 2
    until(lambda: plc.output[0])
    assert plc.output[1:4] == (2, 1, (START + 1300) % (1 << 32))
    plc.confirm()
    plc.drive(100)
    until(lambda: not plc.output[0])
    plc.drive(300)  # part 3 and beyond
    settled(plc)
    assert plc.output[1:3] == (2, 1)
    assert facts(told) == [("eject", 2)]


def test_an_ejector_that_did_not_fire_is_an_alert_and_asks_for_a_stop(
    plc: GatePlc, gate: GateWatch, told: list[object]
) -> None:
    settled(plc)
    gate.part(part(1), placed=True)
    settled(plc)
    plc.drive(1050)
    until(lambda: plc.output[0])
    plc.drive(300)
    until(lambda: "failure" in told)
    assert facts(told) == [("eject", 1), ("not_ejected", 1)]
    assert [alert.id for alert in told if isinstance(alert, AlertChange) and alert.active] == ["top.gate"]


def test_a_part_that_goes_by_while_the_link_is_down_is_told(plc: GatePlc, gate: GateWatch, told: list[object]) -> None:
    settled(plc)
    gate.part(part(1), placed=True)
    settled(plc)
    plc.hang_up()
    plc.drive(1500)
    until(lambda: ("went_by", 1) in facts(told))
    assert "failure" in told


def test_a_part_that_nobody_can_place_is_told_at_once(gate: GateWatch, told: list[object]) -> None:
    gate.part(part(1), placed=False)
    assert facts(told) == [("untracked", 1)]
    assert "failure" in told
