"""The way from the archive to the broker under drawn faults: nothing that was archived is lost, and the order stays.

The courier is the one that ships. Archive, broker and the moments at which everything is killed are drawn from a seed.
"""

from __future__ import annotations

import json
import random
import time
from collections import deque
from types import ModuleType
from typing import Any, Final

import pytest
from mutants import COURIER_MUTANTS, Mutant, mutated

from edgeqc.office import courier, payloads
from edgeqc.office.books import Refused, Settled
from edgeqc.office.view import OutboxRow

MESSAGES: Final = 150
SEEDS: Final = range(10)
BOOT: Final = "this boot"
REFUSED_TOPIC: Final = "refused"


class Archive:
    """Rows on a disk; what was put and not committed is lost with the process."""

    def __init__(self) -> None:
        self.rows: dict[int, OutboxRow] = {}
        self.gone: dict[int, type] = {}
        """Rows that left, and how."""
        self.commits = 0
        self._put: list[Settled | Refused] = []

    @property
    def view(self) -> Archive:
        return self

    def add(self, row: OutboxRow) -> None:
        self.rows[row.id] = row
        self.commits += 1

    def put(self, what: Settled | Refused) -> None:
        self._put.append(what)

    def settling(self) -> set[int]:
        return {row for what in self._put for row in _rows(what)}

    def commit(self) -> None:
        for what in self._put:
            for row in _rows(what):
                self.rows.pop(row, None)
                self.gone[row] = type(what)
        self._put.clear()
        self.commits += 1

    def crash(self) -> None:
        self._put.clear()

    def undelivered(self, *, urgent: bool, after: int, limit: int) -> list[OutboxRow]:
        return [row for row in self.rows.values() if row.urgent is urgent and row.id > after][:limit]

    def last_message(self) -> int:
        return max(self.rows, default=0)


class Connection:
    """One connection to the broker. What is lost with it may have arrived, and may not."""

    def __init__(self, taken: list[dict[str, Any]], lots: random.Random) -> None:
        self.acks: deque[tuple[int, str | None]] = deque()
        self.inflight = lots.randint(1, 20)
        self.packet_bytes = 10_000
        self.most_open = 0
        self._taken, self._lots = taken, lots
        self._open: deque[tuple[int, str, bytes]] = deque()
        self._mid = 0

    def publish(self, topic: str, payload: bytes, **_: object) -> int:
        self._mid += 1
        self._open.append((self._mid, topic, payload))
        self.most_open = max(self.most_open, len(self._open))
        return self._mid

    def answer(self) -> None:
        """Some of it arrives, in order, and is acknowledged."""
        for _ in range(self._lots.randint(0, len(self._open))):
            mid, refusal = self._arrive()
            self.acks.append((mid, refusal))

    def lose(self) -> None:
        """Some of what is under way arrives, and nobody hears of it."""
        for _ in range(self._lots.randint(0, len(self._open))):
            self._arrive()

    def _arrive(self) -> tuple[int, str | None]:
        mid, topic, payload = self._open.popleft()
        if REFUSED_TOPIC in topic:
            return mid, "not authorized"
        self._taken.append(json.loads(payload))
        return mid, None


def _rows(what: Settled | Refused) -> list[int]:
    return what.ids if isinstance(what, Settled) else [what.id]


def _run(seed: int, module: ModuleType) -> tuple[Archive, list[dict[str, Any]], dict[int, OutboxRow], bool]:
    """Messages come, broker and office go and come back; then nothing breaks any more until the outbox is empty."""
    lots = random.Random(seed)
    archive, made, bounded = Archive(), dict[int, OutboxRow](), True
    taken: list[dict[str, Any]] = []
    connection: Connection | None = None
    office: Any = None
    trouble = lots.choice((0.0, 0.01, 0.1))
    for _ in range(50 * MESSAGES):
        well = len(made) >= MESSAGES
        if well and not archive.rows:
            break
        if not well and lots.random() < 0.5:
            row = _message(len(made) + 1, lots)
            made[row.id] = row
            archive.add(row)
        for crash in (False, True):  # the broker is gone; the office is killed
            if not well and connection is not None and lots.random() < trouble:
                connection.lose()
                office = connection = None
                if crash:
                    archive.crash()
        if connection is None and (well or lots.random() < 0.2):
            connection = Connection(taken, lots)
            office = module.Courier(
                connection, archive, prefix="p", boot=BOOT, live_expiry_s=60, barred=lambda _: None,
                greet=lambda _: [], alerts=lambda _: [],
            )  # fmt: skip
        if connection is not None:
            office.turn([])
            bounded = bounded and connection.most_open <= connection.inflight
            connection.answer()
        if lots.random() < 0.3:
            archive.commit()
    return archive, taken, made, bounded


def _message(number: int, lots: random.Random) -> OutboxRow:
    urgent = lots.random() < 0.2
    topic = "alert/x" if urgent else REFUSED_TOPIC if lots.random() < 0.02 else "verdict"
    payload = payloads.encode({"seq": number, "replayed": False})
    return OutboxRow(
        id=number, urgent=urgent, topic=topic, payload=payload, retain=False, mono_ns=time.monotonic_ns(), boot=BOOT
    )


def _violated(seed: int, module: ModuleType = courier) -> str:
    """What does not hold, if anything (I9: acknowledged is durable; I10: order and bound)."""
    archive, taken, made, bounded = _run(seed, module)
    if not bounded:
        return "I10 bound"
    arrived = [body["seq"] for body in taken]
    for number, row in made.items():
        refused = row.topic == REFUSED_TOPIC
        if archive.gone.get(number) is not (Refused if refused else Settled) or refused == (number in arrived):
            return "I9 lost"
    for urgent in (True, False):
        firsts = list(dict.fromkeys(number for number in arrived if made[number].urgent is urgent))
        if firsts != sorted(firsts):
            return "I10 order"
    return ""


def test_nothing_archived_is_lost_and_the_order_stays() -> None:
    for seed in SEEDS:
        assert _violated(seed) == "", f"seed {seed}"


@pytest.mark.parametrize("mutant", COURIER_MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_planted_in_the_courier_is_noticed(mutant: Mutant) -> None:
    with mutated(mutant) as module:
        assert mutant.breaks in {_violated(seed, module) for seed in SEEDS}
