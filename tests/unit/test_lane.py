"""A station's lane: whose part is judged, on which picture, and that each gets one verdict in time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import stationbench

from edgeqc.core.account import TriggerAccount
from edgeqc.core.decide import last_word
from edgeqc.core.exposure import Claim, Exposures, Match
from edgeqc.core.lane import Lane
from edgeqc.core.views import View
from edgeqc.records import NS_PER_MS, Cause, Verdict
from edgeqc.station.triggers import TriggerWatch
from edgeqc.station.underway import UnderWay

MS = NS_PER_MS
TAKT = 40 * MS


@dataclass
class Part:
    sequence: int
    settled: bool = False
    fail_safe_at_ns: int = 0
    views: list[View | None] = field(default_factory=list)


def lane() -> Lane[Part]:
    return Lane([Exposures(most_ns=30 * MS)], expose_within_ns=10 * MS)


def exposed(line: Lane[Part], sequence: int, at_ns: int, *, trigger_ns: int | None = None) -> Part:
    part = Part(sequence)
    assert line.open(part, trigger_ns=at_ns, now_ns=at_ns) is None
    line.expose(part, 0, sent_ns=at_ns, trigger_ns=at_ns if trigger_ns is None else trigger_ns)
    return part


def test_a_part_whose_id_is_anothers_is_rejected_unseen() -> None:
    assert lane().open(Part(1), known=False, trigger_ns=0, now_ns=0) is Cause.IDENTITY


def test_a_part_has_one_verdict() -> None:
    line, part = lane(), Part(1)
    assert line.open(part, trigger_ns=0, now_ns=0) is None
    assert line.settle(part)
    assert not line.settle(part)


def test_a_picture_of_a_part_that_has_moved_on_is_not_its_own() -> None:
    line = lane()
    exposed(line, 1, 0)
    assert line.frame(0, 1, 5 * MS, 6 * MS).claim is Claim.OWN
    exposed(line, 2, TAKT, trigger_ns=TAKT - 20 * MS)
    match = line.frame(0, 2, TAKT + 5 * MS, TAKT + 6 * MS)
    assert (match.claim, match.without) == (Claim.STALE, (2,))


def test_a_frame_that_is_here_before_the_cameras_answer_finds_its_part() -> None:
    """The answer to a software trigger may be behind the picture of a small region."""
    line = lane()
    came: list[Match] = []

    class Camera:
        keeper: Any

        def trigger(self) -> None:
            now_ns = time.monotonic_ns()
            came.append(line.frame(0, 1, now_ns, now_ns))

    class Thin:
        def expose(self, part: Part, camera: int, *, sent_ns: int) -> None:
            line.expose(part, camera, sent_ns=sent_ns, trigger_ns=part.at_ns)

        def exposed(self, part: Part, now_ns: int) -> bool:
            return line.exposed(part.at_ns, now_ns)

    class Cameras(list[Camera]):
        down = -1

    camera = Camera()
    camera.keeper = camera
    watched: Any = SimpleNamespace(
        cameras=Cameras([camera]),
        outcome=SimpleNamespace(under_way=Thin()),
        tags=SimpleNamespace(snapshot=lambda _at_ns: ()),
    )
    part: Any = Part(1)
    part.at_ns = time.monotonic_ns()
    assert line.open(part, trigger_ns=part.at_ns, now_ns=part.at_ns) is None
    TriggerWatch(watched, poll_ns=MS, repeated_ids=False)._expose(part)
    assert [(match.claim, match.sequence) for match in came] == [(Claim.OWN, 1)]


def test_what_is_exposed_on_a_fresh_connection_is_not_given_up_with_the_old_ones() -> None:
    """The triggers' thread may see the connection before the line does, which then has nothing left to give up."""
    under_way = UnderWay([Exposures(most_ns=30 * MS)], expose_within_ns=10 * MS, depth=4)
    old, new = stationbench.part(1), stationbench.part(2)
    for one in (old, new):
        one.views = []
        under_way.admit(one)
    under_way.expose(old, 0, sent_ns=old.trigger.at_ns)
    assert under_way.follow(0, 1) == [old]
    under_way.expose(new, 0, sent_ns=new.trigger.at_ns)
    assert under_way.follow(0, 1) == []
    frame: Any = SimpleNamespace(frame_id=1, received_ns=new.trigger.at_ns + 5 * MS, transfer_ns=MS)
    match, part, without, _ = under_way.match(0, frame, frame.received_ns)
    assert (match.claim, part, without) == (Claim.OWN, new, [])


def test_the_part_of_a_frame_that_is_anothers_waits_no_longer() -> None:
    line = lane()
    exposed(line, 1, 0)
    assert line.frame(0, 1, 5 * MS, 6 * MS).claim is Claim.OWN
    second = exposed(line, 2, TAKT)
    match = line.frame(0, 3, TAKT + 5 * MS, TAKT + 6 * MS)
    assert line.without(match) == ([second], Cause.IDENTITY)


def test_a_frame_sent_twice_costs_the_next_part_nothing() -> None:
    line = lane()
    exposed(line, 1, 0)
    assert line.frame(0, 1, 5 * MS, 6 * MS).claim is Claim.OWN
    exposed(line, 2, TAKT)
    again = line.frame(0, 1, TAKT + 5 * MS, TAKT + 6 * MS)
    assert (again.claim, again.without) == (Claim.DOUBLED, ())
    assert line.frame(0, 2, TAKT + 6 * MS, TAKT + 7 * MS).claim is Claim.OWN


def test_a_cameras_counter_goes_from_65535_to_1() -> None:
    line = lane()
    exposed(line, 1, 0)
    assert line.frame(0, 65_535, 5 * MS, 6 * MS).claim is Claim.OWN
    exposed(line, 2, TAKT)
    assert line.frame(0, 1, TAKT + 5 * MS, TAKT + 6 * MS).claim is Claim.OWN


def test_a_frame_that_comes_while_nothing_is_trusted_is_nobodys() -> None:
    camera = Exposures(most_ns=100 * MS)
    camera.exposed(1, 0, 10 * MS)
    assert camera.frame(10, 5 * MS, 6 * MS).claim is Claim.OWN
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    camera.exposed(3, 2 * TAKT, 2 * TAKT + 10 * MS)
    assert camera.frame(11, 2 * TAKT + 5 * MS, 2 * TAKT + 6 * MS).claim is Claim.SWAPPED
    camera.exposed(4, 2 * TAKT + 8 * MS, 2 * TAKT + 18 * MS)  # its trigger was on the way already
    assert camera.frame(12, 2 * TAKT + 12 * MS, 2 * TAKT + 13 * MS).claim is Claim.STALE, "part 3's, delayed"


def test_a_pass_is_not_begun_when_its_time_is_up() -> None:
    told = last_word(Verdict.PASS, Cause.OK, journaled=True, now_ns=10, fail_safe_at_ns=10)
    assert told == (Verdict.REJECT, Cause.LATE)


def test_a_counter_that_leaps_further_than_parts_can_was_set_anew() -> None:
    triggers = TriggerAccount(fresh_ns=10 * MS)
    triggers.reading(100, "", 0)
    arrival = triggers.reading(20_000, "P1", 2 * MS)
    assert (arrival.restarted, arrival.missed, arrival.fresh) == (True, 0, False)
