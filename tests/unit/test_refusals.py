"""Refusals that are told: the same once a minute, and never more than so many, whoever knocks."""

from edgeqc.core.refusals import AGAIN_NS, KINDS, Refusals


def test_the_same_refusal_is_told_once_a_minute_with_the_count_of_those_kept_back():
    refusals = Refusals()
    told = [
        refusals.take(("10.0.0.9", "is not among the peers"), at_ns) for at_ns in range(0, 2 * AGAIN_NS, AGAIN_NS // 10)
    ]
    assert told == [0, *[None] * 9, 9, *[None] * 9]


def test_another_peer_and_another_reason_are_told_at_once():
    refusals = Refusals()
    assert refusals.take(("a", "wrong password"), 0) == 0
    assert refusals.take(("a", "too many wrong passwords"), 1) == 0
    assert refusals.take(("b", "wrong password"), 2) == 0


def test_who_comes_with_a_new_name_each_time_fills_nothing():
    refusals = Refusals()
    told = [refusals.take((f"name{number}",), number) for number in range(10_000)]
    assert [each for each in told if each is not None] == [0] * KINDS
    assert refusals.take(("later",), 2 * AGAIN_NS) == 10_000 - KINDS
