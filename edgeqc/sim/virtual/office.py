"""The office in virtual time: what the journal holds becomes messages, and the courier that ships takes them to a broker.

No verdict waits for it, and nothing here is told to the station: a line is the same, to the nanosecond, whatever broker
and office do. The disk's archive is simulated; what is put into it and not committed is lost with the process.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from edgeqc.office.archive import Archive
from edgeqc.office.books import Refused, Settled
from edgeqc.office.courier import Courier
from edgeqc.office.mqtt import MqttConnection
from edgeqc.office.view import OutboxRow
from edgeqc.records import NS_PER_MS, Delivery, Verdict

if TYPE_CHECKING:
    from edgeqc.sim.virtual.kernel import Steps
    from edgeqc.sim.virtual.plant import Plant

REFUSED: Final = "refused"
"""A topic that the broker's access list forbids."""
_BOOT: Final = "this boot"
_TURN_NS: Final = 50 * NS_PER_MS
_PACKET_BYTES: Final = 10_000
_DRAIN_TURNS: Final = 2000
"""At the end of a line, in which all that is left must be taken: more than it ever needs."""


class Ledger:
    """The archive's outbox, as the courier sees it."""

    def __init__(self, office: Office) -> None:
        """Empty."""
        self.rows: dict[int, OutboxRow] = {}
        self.commits = 0
        self.cursor = 0
        """Records of the journal that are archived."""
        self._office = office
        self._last = 0
        self._made: list[OutboxRow] = []
        self._put: list[Settled | Refused] = []
        self._next_cursor = 0

    @property
    def view(self) -> Ledger:
        """Reading and writing are one here."""
        return self

    def add(self, topic: str, payload: bytes, *, urgent: bool, now_ns: int) -> None:
        """Make a message, with the transaction that is under way."""
        self._last += 1
        row = OutboxRow(
            id=self._last, urgent=urgent, topic=topic, payload=payload, retain=False, mono_ns=now_ns, boot=_BOOT
        )
        self._made.append(row)

    def tail(self, records: list[object], now_ns: int) -> None:
        """Take in what the journal has more than at the last look."""
        if self._next_cursor == len(records):
            return
        self._next_cursor = min(self._next_cursor, len(records))  # a power cut took what was not on the disk yet
        for record in records[self._next_cursor :]:
            if isinstance(record, Delivery):
                told = f'{{"seq":{record.sequence},"verdict":"{record.verdict.value}","replayed":false}}'.encode()
                self.add(REFUSED if record.sequence % 64 == 0 else "verdict", told, urgent=False, now_ns=now_ns)
                if record.verdict is Verdict.REJECT:
                    self.add("alert/reject", told, urgent=True, now_ns=now_ns)
        self._next_cursor = len(records)

    def put(self, what: Settled | Refused) -> None:
        """What became of messages, with the transaction that is under way."""
        self._put.append(what)

    def settling(self) -> set[int]:
        """Messages whose end is not committed yet."""
        return {row for what in self._put for row in _ids(what)}

    def commit(self) -> None:
        """Bring it to the disk, if there is anything."""
        if not self._made and not self._put:
            self.cursor = self._next_cursor
            return
        for what in self._put:
            for row in _ids(what):
                self._office.gone(row, refused=isinstance(what, Refused))
                self.rows.pop(row, None)
        self.rows.update((row.id, row) for row in self._made)
        self.cursor = self._next_cursor
        self._put.clear()
        self._made.clear()
        self.commits += 1

    def crash(self) -> None:
        """The office is killed."""
        self._put.clear()
        self._made.clear()
        self._next_cursor = self.cursor

    def undelivered(self, *, urgent: bool, after: int, limit: int) -> list[OutboxRow]:
        """The next messages of a lane, in order."""
        return [row for row in self.rows.values() if row.urgent is urgent and row.id > after][:limit]

    def last_message(self) -> int:
        """The newest message's number."""
        return max(self.rows, default=0)


class Connection:
    """One connection to the broker. What is lost with it may have arrived, and may not."""

    def __init__(self, office: Office, lots: random.Random) -> None:
        """Open."""
        self.acks: deque[tuple[int, str | None]] = deque()
        self.inflight = lots.randint(8, 20)
        self.packet_bytes = _PACKET_BYTES
        self._office, self._lots = office, lots
        self._open: deque[tuple[int, str, bytes]] = deque()
        self._mid = 0

    def publish(self, topic: str, payload: bytes, **_: object) -> int:
        """Send; the number by which it is acknowledged."""
        self._mid = self._mid % 65_535 + 1
        self._open.append((self._mid, topic, payload))
        if len(self._open) > self.inflight:
            self._office.fail("I10 bound", f"{len(self._open)} messages in flight, {self.inflight} are allowed")
        return self._mid

    def answer(self) -> None:
        """Some of it arrives, in order, and is acknowledged."""
        for _ in range(self._lots.randint(len(self._open) // 2, len(self._open))):
            mid, refusal = self._arrive()
            self.acks.append((mid, refusal))

    def lose(self) -> None:
        """Some of what is under way arrives, and nobody hears of it."""
        for _ in range(self._lots.randint(0, len(self._open))):
            self._arrive()

    def _arrive(self) -> tuple[int, str | None]:
        mid, topic, payload = self._open.popleft()
        if topic.endswith(REFUSED):
            return mid, "not authorized"
        self._office.arrived(topic, payload)
        return mid, None


class Office:
    """The process, its archive and its broker; judges what arrives and what leaves the archive, at each."""

    def __init__(self, plant: Plant) -> None:
        """Nothing is archived, nobody is connected."""
        self._plant = plant
        self._rates = plant.swarm.office_rates
        self._lots = random.Random(f"{plant.swarm.seed}:office")
        self._ledger = Ledger(self)
        self._connection: Connection | None = None
        self._courier: Courier | None = None
        self._away_until_ns = 0
        self._taken: dict[tuple[str, int], bytes] = {}
        """(topic, part) and what was said of it."""
        self._last: dict[str, int] = {}
        """Of each topic the newest part that it has told of."""

    def run(self) -> Steps:
        """Take in, send, settle and commit; now and then the broker is gone, or the office is killed."""
        kernel, turn_ns = self._plant.kernel, max(_TURN_NS, self._plant.swarm.takt_ns)
        while True:
            yield kernel.now_ns + turn_ns
            self._turn()

    def drain(self) -> None:
        """Nothing breaks any more: what is archived must leave."""
        self._away_until_ns = 0
        for _ in range(_DRAIN_TURNS):
            self._turn()
            if not self._ledger.rows:
                break
        if self._ledger.rows:
            self.fail("I13 outbox", f"{len(self._ledger.rows)} messages are left, and the broker takes them all")
        told = {sequence for topic, sequence in self._taken if topic == "verdict"}
        for record in self._plant.disk.records:
            if isinstance(record, Delivery) and record.sequence % 64 and record.sequence not in told:
                self.fail("I9 lost", f"part {record.sequence} is in the journal, and the broker never heard of it")

    def fail(self, name: str, facts: str) -> None:
        """An invariant does not hold."""
        self._plant.oracle.fail(name, facts)

    def arrived(self, topic: str, payload: bytes) -> None:
        """The broker has a message."""
        topic = topic.removeprefix("p/")
        sequence = int(payload.split(b",", 1)[0].rsplit(b":", 1)[1])
        said = payload.replace(b" ", b"").replace(b'"replayed":true', b'"replayed":false')
        before = self._taken.setdefault((topic, sequence), said)
        if before != said:
            self.fail("I9 content", f"{topic} said {before!r} and {said!r}")
        if before is said and sequence < self._last.get(topic, 0):
            self.fail("I10 order", f"{topic} of {sequence} after that of {self._last[topic]}")
        self._last[topic] = max(sequence, self._last.get(topic, 0))
        self._plant.oracle.note_sink(topic, sequence)

    def gone(self, row: int, *, refused: bool) -> None:
        """A message leaves the archive."""
        message = self._ledger.rows.get(row)
        if message is None:
            return
        sequence = int(message.payload.split(b",", 1)[0].rsplit(b":", 1)[1])
        if refused != (message.topic == REFUSED):
            self.fail("I9 refused", f"{message.topic} of {sequence} leaves the outbox, refused: {refused}")
        if not refused and (message.topic, sequence) not in self._taken:
            self.fail("I9 lost", f"{message.topic} of {sequence} leaves the outbox, and the broker does not have it")

    def _turn(self) -> None:
        now_ns, lots, ledger = self._plant.kernel.now_ns, self._lots, self._ledger
        if self._connection is not None and (self._falls("broker_gone") or self._falls("office_killed")):
            self._connection.lose()
            self._connection = self._courier = None
            self._away_until_ns = now_ns + lots.randint(0, 20) * self._plant.swarm.takt_ns
            if lots.random() < 1 / 2:
                ledger.crash()
        ledger.tail(self._plant.disk.records, now_ns)
        if self._connection is None and now_ns >= self._away_until_ns:
            self._connection = Connection(self, lots)
            self._courier = Courier(
                cast("MqttConnection", self._connection),
                cast("Archive", ledger),
                prefix="p",
                boot=_BOOT,
                live_expiry_s=60,
                barred=lambda _: None,
                greet=lambda _: [],
                alerts=lambda _: [],
                now_ns=lambda: self._plant.kernel.now_ns,
            )
        if self._courier is not None and self._connection is not None:
            self._courier.turn([])
            if not self._falls("broker_slow"):
                self._connection.answer()
        if not self._falls("archive_slow"):
            ledger.commit()

    def _falls(self, fault: str) -> bool:
        rate = self._rates.get(fault)
        return rate is not None and self._lots.random() < rate and not self._plant.quiet


def _ids(what: Settled | Refused) -> list[int]:
    return what.ids if isinstance(what, Settled) else [what.id]
