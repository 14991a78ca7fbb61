"""The line stop: what the gate asks for stands, whatever another thread does at that moment."""

from __future__ import annotations

import threading

from edgeqc.core.stopping import StopLimits, StopReason
from edgeqc.records import Cause, Verdict
from edgeqc.station.linestop import LineStop


def test_the_gates_request_does_not_vanish_in_one_that_ends_just_then() -> None:
    """The last judged part ends a stop while the gate's thread asks for its own."""
    gate: list[threading.Thread] = []

    class Slow(LineStop):
        def reset(self) -> None:
            if not gate:  # the rule has seen that the request is over, and has not taken it back yet
                gate.append(threading.Thread(target=self.ask, args=(StopReason.GATE,)))
                gate[0].start()
                gate[0].join(0.2)  # it has to wait
            super().reset()

    stop = Slow(StopLimits(fail_safe_in_a_row=1))
    assert stop.verdict(Verdict.REJECT, Cause.LATE)
    assert stop.reason is StopReason.FAIL_SAFE
    stop.verdict(Verdict.PASS, Cause.OK)
    gate[0].join()
    assert stop.reason is StopReason.GATE
