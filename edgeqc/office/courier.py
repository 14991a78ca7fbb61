"""Deliveries through one connection: which message next, as news or as replayed, and what became of each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from edgeqc.errors import PeerError
from edgeqc.office import payloads
from edgeqc.office.archive import Archive
from edgeqc.office.books import Refused, Settled
from edgeqc.office.mqtt import MqttConnection
from edgeqc.office.view import ArchiveView, OutboxRow
from edgeqc.records import NS_PER_S

_LIVE_NS: Final = 5 * NS_PER_S
"""A message older than this is no news: it is marked as replayed."""
NOT_NOW: Final = "Quota exceeded"
"""MQTT 5's reason code 0x97: brokers that limit the rate acknowledge so what they have dropped (EMQX 5.9)."""
_REST_NS: Final = NS_PER_S
"""Nothing is sent for so long after that."""
_PREFETCH: Final = 256
_OVERHEAD_BYTES: Final = 256
"""What MQTT adds to topic and payload at most, with our properties."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something to show that is not in the outbox: how things stand now."""

    topic: str
    """Below the prefix."""
    payload: bytes
    qos: int = 1
    retain: bool = True
    reply_to: str | None = None
    """Whole topic that it goes to instead, where whoever asked named one."""
    correlation: bytes | None = None
    """By which whoever asked knows the answer."""


@dataclass(slots=True, kw_only=True)
class _Lane:
    """Rows read ahead. Alerts have a lane of their own: they do not wait behind an hour of verdicts."""

    urgent: bool
    rows: deque[OutboxRow] = field(default_factory=deque)
    after: int = 0
    empty_at: int = -1
    """The archive's commit count when the lane was last read to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """In flight; `row` is 0 for what is not in the outbox, or not in this archive's."""

    row: int
    topic: str
    again: OutboxRow | Message | None = None
    """What to send once more where the broker cannot take it now."""


class Courier:
    """Empties the outbox through one connection. Used by the outbox's thread only."""

    def __init__(
        self,
        connection: MqttConnection,
        archive: Archive,
        *,
        prefix: str,
        boot: str,
        live_expiry_s: int,
        barred: Callable[[str], str | None],
        greet: Callable[[ArchiveView | None], list[Message]],
        alerts: Callable[[ArchiveView | None], list[Message]],
        now_ns: Callable[[], int] = time.monotonic_ns,
        hello: Message | None = None,
    ) -> None:
        """Begin with the greeting: how things stand.

        Args:
            connection: just opened.
            archive: whose outbox is emptied.
            prefix: topics begin with it.
            boot: the kernel's boot id: times of another boot cannot be compared.
            live_expiry_s: message expiry of what is news and not retained.
            barred: why a topic need not even be tried, or None.
            greet: the retained messages that say how things stand, alerts among them: told now, and again once another
                archive is open, since without one there is little to say.
            alerts: the alerts as they stand, for when their history has been replayed.
            now_ns: the clock of the rows' `mono_ns`.
            hello: the first message of all.
        """
        self.published = 0
        self.replayed = 0
        self.acknowledged = 0
        self.refusals: list[tuple[str, str, bool]] = []
        """(topic, reason, did the broker say so) of what it refused or was not asked to take; the owner takes them out."""
        self._now_ns = now_ns
        self._since_ns = now_ns()
        self._connection = connection
        self._archive = archive
        self._prefix = prefix
        self._boot = boot
        self._live_expiry_s = live_expiry_s
        self._barred = barred
        self._greet = greet
        self._alerts = alerts
        self._first: deque[Message] = deque([] if hello is None else [hello])
        self._begin()
        self._restate = False
        self._accepted: set[str] = set()
        self._sent: dict[int, _Sent] = {}
        self._rest_until_ns = 0

    def turn(self, shown: list[Message]) -> None:
        """Settle what was acknowledged, show what is to be shown, send what there is room for."""
        if self._archive.view is not self._view:
            self._follow()
        self.settle()
        for message in shown:
            # The first of a topic asks for an answer: a broker that refuses QoS 0 hangs up without a word.
            if message.qos or message.topic not in self._accepted:
                self._first.append(message)
            else:
                self._send(message.topic, message.payload, qos=0, retain=message.retain)
        self._fill()

    @property
    def idle(self) -> bool:
        """Is everything acknowledged that there is to send?"""
        return not self._sent and not self._first and not any(lane.rows for lane in self._lanes) and self._at_end()

    @property
    def shown(self) -> bool:
        """Has the broker taken everything that is not from the outbox?"""
        return not self._first and all(sent.row for sent in self._sent.values())

    @property
    def out(self) -> bool:
        """Is everything on its way that is not from the outbox?"""
        return not self._first

    @property
    def head(self) -> int:
        """The outbox row that waits longest for its acknowledgement; 0 = none."""
        return next((sent.row for sent in self._sent.values() if sent.row), 0)

    def _begin(self) -> None:
        """Say how things stand by this archive; its messages come behind that."""
        self._view = self._archive.view
        # In this order: an alert that comes in between is then both in the greeting and news, never in neither.
        self._backlog = self._view.last_message() if self._view is not None else 0
        self._first.extend(self._greet(self._view))
        self._lanes = (_Lane(urgent=True), _Lane(urgent=False))

    def _at_end(self) -> bool:
        return all(lane.empty_at == self._archive.commits for lane in self._lanes)

    def _follow(self) -> None:
        """Another archive was begun: its rows are other rows. Or the first one, later than the connection was up."""
        self._begin()
        self._sent = {mid: _Sent(row=0, topic=sent.topic) for mid, sent in self._sent.items()}

    def settle(self) -> None:
        """Take in what was acknowledged; once more when the connection is lost."""
        done: list[int] = []
        while self._connection.acks:
            mid, refusal = self._connection.acks.popleft()
            sent = self._sent.pop(mid, None)
            if sent is None:
                continue  # QoS 0: paho tells when it is written
            self.acknowledged += 1
            if refusal == NOT_NOW and sent.again is not None:
                self._put_back(sent.again)
                continue
            if refusal is not None:
                self._refuse(sent.row, sent.topic, refusal, by_broker=True)
                continue
            self._accepted.add(sent.topic)
            if sent.row:
                done.append(sent.row)
        if done:
            self._archive.put(Settled(ids=done))

    def _put_back(self, unsent: OutboxRow | Message) -> None:
        """The broker has enough for now: this one goes again, before the others, after a rest."""
        self._rest_until_ns = self._now_ns() + _REST_NS
        if isinstance(unsent, Message):
            self._first.appendleft(unsent)
        else:
            self._lanes[0 if unsent.urgent else 1].rows.appendleft(unsent)

    def _fill(self) -> None:
        if self._now_ns() < self._rest_until_ns:
            return
        while len(self._sent) < self._connection.inflight:
            if self._first:
                message = self._first.popleft()
                self._send(message.topic, message.payload, qos=1, retain=message.retain, message=message)
                continue
            row = self._next_row()
            if row is None:
                return
            self._send_row(row)

    def _next_row(self) -> OutboxRow | None:
        for lane in self._lanes:
            if not lane.rows:
                self._read_ahead(lane)
            if lane.rows:
                return lane.rows.popleft()
            if lane.urgent and self._restate:
                self._restate = False
                self._first.extend(self._alerts(self._view))
        return None

    def _read_ahead(self, lane: _Lane) -> None:
        commits = self._archive.commits
        if self._view is None or lane.empty_at == commits:
            return
        ended = self._archive.settling()
        rows = self._view.undelivered(urgent=lane.urgent, after=lane.after, limit=_PREFETCH)
        if rows:
            lane.after = rows[-1].id
        if len(rows) < _PREFETCH:
            lane.empty_at = commits
        lane.rows.extend(row for row in rows if row.id not in ended)

    def _send_row(self, row: OutboxRow) -> None:
        age_ns = self._now_ns() - row.mono_ns
        old = row.boot != self._boot or row.mono_ns < self._since_ns or not 0 <= age_ns <= _LIVE_NS
        if not old and row.id > self._backlog:
            expiry_s = None if row.retain else self._live_expiry_s
            self._send(row.topic, row.payload, qos=1, retain=row.retain, expiry_s=expiry_s, row=row)
            return
        if row.urgent and row.id > self._backlog:
            self._restate = True
        if not row.payload:
            # What empties a retained topic is a state, not a story: the greeting has told the state.
            self._archive.put(Settled(ids=[row.id]))
            return
        self.replayed += 1
        self._send(row.topic, payloads.replayed(row.payload), qos=1, retain=False, row=row)

    def _send(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool,
        expiry_s: int | None = None,
        row: OutboxRow | None = None,
        message: Message | None = None,
    ) -> None:
        number = 0 if row is None else row.id
        refusal = self._barred(topic)
        if refusal is not None:
            self._refuse(number, topic, refusal)
            return
        full = message.reply_to if message is not None and message.reply_to else f"{self._prefix}/{topic}"
        correlation = message.correlation if message is not None else None
        if len(full) + len(payload) + _OVERHEAD_BYTES > self._connection.packet_bytes:
            self._refuse(number, topic, f"larger than the {self._connection.packet_bytes} bytes that the broker takes")
            return
        try:
            mid = self._connection.publish(
                full, payload, qos=qos, retain=retain, expiry_s=expiry_s, correlation=correlation
            )
        except PeerError as fault:
            self._refuse(number, topic, fault.reason)
            return
        self.published += 1
        if qos:
            self._sent[mid] = _Sent(row=number, topic=topic, again=message if row is None else row)

    def _refuse(self, row: int, topic: str, reason: str, *, by_broker: bool = False) -> None:
        if row:
            self._archive.put(Refused(id=row, reason=reason))
        self.refusals.append((topic, reason, by_broker))
