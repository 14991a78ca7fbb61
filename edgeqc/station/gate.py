"""Reject at the gate: follows each part from the camera to the gate and opens it there unless the part has passed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

from edgeqc.core.axis import Axis
from edgeqc.core.backoff import Backoff
from edgeqc.core.conveyor import Conveyor
from edgeqc.core.track import FAILURES, Gate, GateEvent, GateFact, GateLayout
from edgeqc.errors import PeerError
from edgeqc.journal.codec import Body
from edgeqc.plc.gate import GateInputs, GateLink, longest_gap_ns
from edgeqc.records import NS_PER_MS, NS_PER_S, AlertChange, Event, Ne107
from edgeqc.settings.gate import DelayGate, EncoderGate
from edgeqc.station.part import Part

_ENCODER_CYCLE: Final = 1 << 32
CALL_NS: Final = 100 * NS_PER_MS
"""For one read or write: a PLC that takes longer is as good as gone."""
_BACKOFF: Final = Backoff(first_s=0.1, most_s=1.0)
_STUCK_NS: Final = NS_PER_S
"""More than a poll and its two calls take: nobody watches the gate."""
_WELL: Final = 20
"""Ejections in a row without a failure, after which the alert ends."""
_TEXTS: Final = {
    GateFact.WENT_BY: "a part that had to be ejected went by while the gate was not watched",
    GateFact.UNTRACKED: "a part that has to be ejected cannot be placed: missed at the camera, or the encoder jumped",
    GateFact.NOT_MOVING: "parts come, and the encoder stands still or counts down (tracking delay: the line does not run)",
    GateFact.NOT_EJECTED: "the ejector did not fire, or the part did not reach the sensor behind it",
    GateFact.TOO_SHORT: "the output was on for less than two polls, and may have missed its part: the line is too fast for it",
    GateFact.EJECTED_UNASKED: "a part was ejected that nobody wanted out",
}


class GateWatch:
    """One station's gate, in a thread of its own."""

    def __init__(
        self,
        settings: DelayGate | EncoderGate,
        connect: Callable[[], GateLink],
        *,
        station: str,
        note: Callable[[Body], None],
        on_failure: Callable[[], None],
        on_looked: Callable[[], None],
        on_link: Callable[[bool, str], None],
        call_ns: int = CALL_NS,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            settings: where the gate is.
            connect: opens a connection; raises PeerError.
            station: for alerts.
            note: journals an event or an alert.
            on_failure: told when a bad part may be among the good ones.
            on_looked: told when the PLC says that somebody has looked; not while it goes on saying so.
            on_link: told when the gate is watched, and when it is no more, and why.
            call_ns: for one read or write.
        """
        self._settings = settings
        self._connect = connect
        self._station = station
        self._note = note
        self._on_failure = on_failure
        self._on_looked = on_looked
        self._on_link = on_link
        self.turned_ns = 0
        """When the thread last came round (monotonic)."""
        self._up: bool | None = None
        self._call_ns = call_ns
        self._lock = threading.Lock()
        gap_ns = longest_gap_ns(settings)
        if isinstance(settings, EncoderGate):
            axis = Axis(cycle=_ENCODER_CYCLE, most_step=settings.most_pulses_per_poll)
            travel, length, confirm = settings.travel_pulses, settings.length_pulses, settings.confirm_pulses
        else:
            axis = Axis(most_gap_ns=gap_ns)
            travel, length, confirm = (
                int(each * NS_PER_MS) for each in (settings.travel_ms, settings.length_ms, settings.confirm_ms)
            )
        gate = Gate(GateLayout(travel=travel, length=length, confirm=confirm if settings.confirmed else 0))
        self._conveyor = Conveyor(axis, gate, most_gap_ns=gap_ns)
        self._poll_s = settings.poll_ms / 1000
        self._stuck_ns = int(settings.poll_ms * NS_PER_MS) + 2 * call_ns + _STUCK_NS
        self._raw = 0
        self._read_ns = 0
        self._alarm: GateFact | None = None
        """What the alert that stands is about."""
        self._well = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._note(Event(name="gate_began", facts={"tracking": self._settings.tracking}))
        self.turned_ns = time.monotonic_ns()
        self._thread.start()

    def tell_to_stop(self) -> None:
        """The output goes off soon. What is between camera and gate is the PLC's affair from then on."""
        self._stopping.set()

    def stop(self) -> None:
        """Wait until the output is off and the thread has ended: 2 s at most."""
        self.tell_to_stop()
        self._thread.join(timeout=2)

    def part(self, part: Part, *, placed: bool) -> None:
        """A part was triggered; `placed`: its trigger's time is known. Any thread."""
        at_ns = part.trigger.at_ns if placed else None
        with self._lock:
            events = self._conveyor.part(part.sequence, part.trigger.part_id, at_ns, now_ns=time.monotonic_ns())
        self._tell(events)

    def passed(self, sequence: int) -> None:
        """The PLC has acknowledged this part's PASS. Any thread."""
        with self._lock:
            self._conveyor.passed(sequence)

    @property
    def up(self) -> bool:
        """Is the gate watched: inputs read, and the output written, on the link of now?"""
        return bool(self._up) and time.monotonic_ns() - self.turned_ns < self._stuck_ns

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self.turned_ns = time.monotonic_ns()
            reason = ""
            try:
                with closing(self._connect()) as link:
                    self._serve(link)
            except PeerError as exc:
                reason = exc.reason
            except Exception as exc:  # noqa: BLE001 - the thread's root: without it nobody would watch the gate ever again
                reason = f"{type(exc).__name__}: {exc}"
            failures = 1 if self._up else failures + 1
            with self._lock:
                self._conveyor.interrupted()
            if not self._stopping.is_set():
                self._turn(False, reason)
                self._stopping.wait(_BACKOFF.delay_s(failures, 0.5))

    def _turn(self, up: bool, reason: str = "") -> None:
        if up is not self._up:
            self._up = up
            self._on_link(up, reason)

    def _serve(self, link: GateLink) -> None:
        next_s = time.monotonic()
        looked = True  # whatever stood there before: only a bit that goes on is somebody's
        while not self._stopping.is_set():
            self.turned_ns = time.monotonic_ns()
            inputs = link.read(time.monotonic_ns() + self._call_ns)
            if inputs.looked and not looked:
                self._on_looked()
            looked = inputs.looked
            with self._lock:
                events = self._moved(inputs)
                output, encoder_at = self._conveyor.output, self._encoder_at()
            try:
                link.write(output, encoder_at, time.monotonic_ns() + self._call_ns)
            finally:
                self._tell(events)  # a part that went by has done so, whether the output can be written or not
            self._turn(True)
            next_s = max(next_s + self._poll_s, time.monotonic())
            self._stopping.wait(max(0.0, next_s - time.monotonic()))
        with self._lock:
            self._conveyor.interrupted()
        link.write(self._conveyor.output, 0, time.monotonic_ns() + self._call_ns)

    def _moved(self, inputs: GateInputs) -> list[GateEvent]:
        if inputs.read_ns == self._read_ns:
            return []  # the PLC, which comes to us, has said nothing new yet
        self._raw, self._read_ns = inputs.encoder, inputs.read_ns
        confirmations = inputs.confirmations if self._settings.confirmed else None
        if isinstance(self._settings, EncoderGate):
            return self._conveyor.encoder(inputs.encoder, inputs.read_ns, confirmations=confirmations)
        return self._conveyor.clock(inputs.read_ns, running=inputs.running, confirmations=confirmations)

    def _encoder_at(self) -> int:
        """The encoder's value at which the part of the output is at the gate."""
        if not isinstance(self._settings, EncoderGate):
            return 0
        return (self._raw + self._conveyor.output.position - self._conveyor.position) % _ENCODER_CYCLE

    def _tell(self, events: list[GateEvent]) -> None:
        for event in events:
            self._note(
                Event(name="gate", facts={"fact": event.fact.value, "part": event.sequence, "part_id": event.part_id})
            )
            if event.fact is GateFact.EJECT:
                self._well += 1
                if self._alarm is not None and self._well >= _WELL:
                    self._alarm = None
                    self._alert("")
                continue
            self._well = 0
            if self._alarm is None or (event.fact in FAILURES and self._alarm not in FAILURES):
                self._alarm = event.fact
                self._alert(f"part {event.sequence}: {_TEXTS[event.fact]}" if event.sequence else _TEXTS[event.fact])
            if event.fact in FAILURES:
                self._on_failure()

    def _alert(self, text: str) -> None:
        self._note(
            AlertChange(
                id=f"{self._station}.gate",
                active=bool(text),
                priority="critical" if text else "high",
                ne107=Ne107.FAILURE if text else Ne107.NORMAL,
                text=text,
                action="Check ejector, air, the sensor behind it and the encoder; look for the part among the good ones"
                if text
                else "",
            )
        )
