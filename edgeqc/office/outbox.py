"""The way from the archive's outbox to the broker: in order, at least once, whatever happens in between.

A row leaves the outbox when the broker has acknowledged it. What the broker refuses goes to the dead letters. Alerts
have a lane of their own ahead of verdicts and events; within a lane the order is that of the journal.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from edgeqc.errors import PeerError
from edgeqc.office import payloads
from edgeqc.office.archive import Archive
from edgeqc.office.books import Refused
from edgeqc.office.courier import Courier, Message
from edgeqc.office.mqtt import Inbound, MqttConnection
from edgeqc.office.view import ArchiveView
from edgeqc.settings import MqttSettings

ARCHIVE_S: Final = 5.0
"""The broker is told nothing for so long at the start while the archive is not open: its check takes up to 2 s."""
_LOOK_S: Final = 0.02
_BACKOFF_S: Final = (0.25, 1.5)
"""First and longest wait between attempts: a broker that is back is used within 2 s."""
_STABLE_S: Final = 5.0
"""A connection that lived this long earns a fresh start of the backoff."""
_TICK_S: Final = 0.5
_STRIKES: Final = 5
"""So often may the broker hang up on the same message before it is a dead letter."""
_BARRED_S: Final = 60.0
"""A kind of topic that the broker refuses is not tried again for this long."""
_FAREWELL_S: Final = 0.5
_COMMANDS: Final = f"{payloads.COMMAND}+"
_REPLIES: Final = 64
"""Answers waiting to go out; of more the oldest are given up."""


class Outbox:
    """Owns the connection to the broker and its thread."""

    def __init__(
        self,
        settings: MqttSettings,
        archive: Archive,
        *,
        node: str,
        boot: str,
        state_payload: Callable[[bool, str], bytes],
        greet: Callable[[ArchiveView | None], list[Message]],
        alerts: Callable[[ArchiveView | None], list[Message]],
        on_refused: Callable[[str, str], None],
        on_command: Callable[[Inbound], None] | None = None,
    ) -> None:
        """Nothing happens before `start`.

        Args:
            settings: the broker.
            archive: whose outbox is emptied.
            node: for `{node}` in the prefix and the client id.
            boot: the kernel's boot id.
            state_payload: makes the `state` payload from (online, reason).
            greet: the retained messages that say how things stand, alerts among them; `state` is not.
            alerts: only the alerts as they stand.
            on_refused: told, on the outbox's thread, of a message that went to the dead letters, or that commands are not
                heard: topic and reason.
            on_command: told, on the outbox's thread, of what came in below `cmd/`; its topic is that below the prefix.
                None: nothing is asked for.
        """
        self.connected = False
        self.connections = 0
        self.published = 0
        self.replayed = 0
        self.refused = 0
        self._settings = settings
        self._archive = archive
        self._prefix = settings.prefix.replace("{node}", node)
        self._client_id = settings.client_id or f"edgeqc-{node}"
        self._boot = boot
        self._state_payload = state_payload
        self._greet = greet
        self._alerts = alerts
        self._on_refused = on_refused
        self._on_command = on_command
        self._replies: deque[Message] = deque(maxlen=_REPLIES)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._shown: dict[str, Message] = {}
        self._courier: Courier | None = None
        self._suspect = (0, 0)
        self._barred: dict[str, tuple[float, str]] = {}
        self._unreachable = False
        self._log = structlog.get_logger("edgeqc.outbox")
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Connect, and again whenever it is lost."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Say offline, say goodbye, end. What is not acknowledged stays in the outbox."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._wake.set()

    def show(self, message: Message) -> None:
        """Publish how things are now; only the newest of a topic, and only while connected."""
        with self._lock:
            if self.connected:
                self._shown[message.topic] = message
        self._wake.set()

    def reply(self, message: Message) -> None:
        """Answer a command; only while connected, since nobody waits for an answer across an outage."""
        with self._lock:
            if self.connected:
                self._replies.append(message)
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Is there nothing to wait for: all acknowledged, or no broker to wait for?"""
        courier = self._courier
        return courier is None or courier.idle

    @property
    def alive(self) -> bool:
        """False once the thread ended for a reason that nobody thought of."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._await_archive()
            attempt = 0
            while not self._stopping.is_set():
                began_s = time.monotonic()
                try:
                    self._serve(self._connect())
                except PeerError as fault:
                    if not self._unreachable:
                        self._log.warning("broker_unreachable", peer=fault.peer, reason=fault.reason)
                    self._unreachable = True
                attempt = 0 if time.monotonic() - began_s > _STABLE_S else attempt + 1
                pause_s = min(_BACKOFF_S[0] * 2**attempt, _BACKOFF_S[1])
                self._stopping.wait(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
        except Exception:  # noqa: BLE001 - the thread's root: `alive` tells the office, which ends and is started again
            self._log.exception("outbox_thread_failed")

    def _await_archive(self) -> None:
        """Without it there is little to say; one that cannot be opened at all is a reason to say just that."""
        until_s = time.monotonic() + ARCHIVE_S
        while self._archive.view is None and time.monotonic() < until_s and not self._stopping.wait(_LOOK_S):
            pass

    def _connect(self) -> MqttConnection:
        return MqttConnection(
            self._settings,
            client_id=self._client_id,
            will=(self._topic(payloads.STATE), self._state_payload(False, "will")),
            clean_start=self.connections == 0,
            wake=self._wake.set,
            commands=self._topic(_COMMANDS) if self._on_command is not None else None,
        )

    def _serve(self, connection: MqttConnection) -> None:
        """Empty the outbox until the connection is lost or the office stops."""
        reason = "reconnect" if self.connections else "start"
        self.connections += 1
        self._unreachable = False
        with self._lock:
            self._shown.clear()
            self._replies.clear()
            self.connected = True
        self._log.info("broker_connected", peer=connection.peer, connections=self.connections)
        courier = self._courier = Courier(
            connection,
            self._archive,
            prefix=self._prefix,
            boot=self._boot,
            live_expiry_s=self._settings.live_expiry_s,
            barred=self._barred_for,
            greet=self._greet,
            alerts=self._alerts,
            hello=self._state(True, reason),
        )
        told = False
        try:
            while connection.lost is None and not self._stopping.is_set():
                self._wake.clear()
                self._turn(courier)
                self._take_commands(connection)
                self._wake.wait(_TICK_S)
            if connection.lost is None:
                told = self._farewell(connection, courier)
        finally:
            with self._lock:
                self.connected = False
            self._courier = None
            lost = connection.lost
            # without a goodbye the broker publishes the will, which says the same
            connection.close(goodbye=lost is None and told)
        courier.settle()
        self._account(courier, courier.published, courier.replayed)
        if lost is not None:
            self._log.warning("broker_lost", peer=connection.peer, reason=lost)
            self._judge(connection, courier)

    def _turn(self, courier: Courier) -> None:
        with self._lock:
            shown = [*self._shown.values(), *self._replies]
            self._shown.clear()
            self._replies.clear()
        published, replayed = courier.published, courier.replayed
        courier.turn(shown)
        self._account(courier, published, replayed)

    def _take_commands(self, connection: MqttConnection) -> None:
        if connection.deaf is not None:
            reason, connection.deaf = connection.deaf, None
            self._log.warning("commands_refused", peer=connection.peer, reason=reason)
            self._on_refused(_COMMANDS, f"the broker does not let us hear commands: {reason}")
        while connection.commands and self._on_command is not None:
            inbound = connection.commands.popleft()
            self._on_command(replace(inbound, topic=inbound.topic.removeprefix(f"{self._prefix}/")))

    def _account(self, courier: Courier, published: int, replayed: int) -> None:
        self.published += courier.published - published
        self.replayed += courier.replayed - replayed
        for topic, reason, by_broker in courier.refusals:
            self.refused += 1
            # One that is too large says nothing about the next.
            if by_broker and self._barred_for(topic) is None:
                # mosquitto refuses with a PUBACK and hangs up; a topic without rights must not end every connection.
                self._barred[_kind(topic)] = (time.monotonic() + _BARRED_S, reason)
            self._on_refused(topic, reason)
        courier.refusals.clear()

    def _barred_for(self, topic: str) -> str | None:
        """Why the broker refused this kind of topic a moment ago, if it did."""
        until_s, reason = self._barred.get(_kind(topic), (0.0, ""))
        return reason if time.monotonic() < until_s else None

    def _farewell(self, connection: MqttConnection, courier: Courier) -> bool:
        """The last message is that we are gone. False where there was no room for it."""
        until_s = time.monotonic() + _FAREWELL_S
        courier.turn([self._state(False, "stop")])
        while connection.lost is None and time.monotonic() < until_s and not courier.shown:
            self._wake.clear()
            courier.turn([])
            self._wake.wait(_FAREWELL_S / 10)
        return courier.out

    def _judge(self, connection: MqttConnection, courier: Courier) -> None:
        """A message on which a broker that otherwise answers hangs up again and again is refused in its name."""
        head = courier.head if connection.closed_by_broker and courier.acknowledged else 0
        self._suspect = (head, self._suspect[1] + 1 if head == self._suspect[0] else 1)
        if head and self._suspect[1] >= _STRIKES:
            self._archive.put(Refused(id=head, reason=f"the broker hangs up on it ({connection.lost})"))
            self._suspect = (0, 0)

    def _state(self, online: bool, reason: str) -> Message:
        return Message(topic=payloads.STATE, payload=self._state_payload(online, reason))

    def _topic(self, topic: str) -> str:
        return f"{self._prefix}/{topic}"


def _kind(topic: str) -> str:
    """Topics for which a broker gives rights together: all alerts are one kind."""
    return payloads.ALERT if topic.startswith(payloads.ALERT) else topic
