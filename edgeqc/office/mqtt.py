"""One connection to the plant's broker: MQTT 5 through paho, its network thread and nothing of its memory.

Used once: after it is lost another is opened. So nothing is sent again behind the outbox's back: what was not
acknowledged goes out again from the disk, marked as replayed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.settings import MqttSettings, TlsSettings

CONNECT_S: Final = 5.0
"""TCP, TLS and the broker's answer together take milliseconds on a plant's network."""
_GOODBYE_S: Final = 0.3
_INFLIGHT: Final = 64
"""Unacknowledged messages at a time; the broker may ask for fewer (mosquitto: 20)."""
COMMAND_BYTES: Final = 4096
"""A command is a name, an id and a sentence."""
_COMMANDS_MAX: Final = 64
"""Waiting to be read, which happens every half second at the latest."""
_NO_LIMIT: Final = 268_435_455
"""The largest packet that MQTT knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A message that came in."""

    topic: str
    payload: bytes
    """Longer than COMMAND_BYTES only where it was longer than that."""
    retained: bool
    response_topic: str | None
    correlation: bytes | None


class MqttConnection:
    """Connects in the constructor. `wake` is called, on paho's thread, when `acks` or `lost` has news."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        client_id: str,
        will: tuple[str, bytes],
        clean_start: bool,
        wake: Callable[[], None],
        commands: str | None = None,
    ) -> None:
        """Connect within CONNECT_S.

        Args:
            settings: host, credentials, TLS.
            client_id: the broker's name for us; another client with the same one throws us out.
            will: topic and payload that the broker publishes, retained, when we are gone without a goodbye.
            clean_start: False: the broker's session for this client id goes on.
            wake: see above.
            commands: topic filter under which commands come; None: none are taken.

        Raises:
            PeerError: refused, unreachable, or TLS does not come about; the reason says what to look at.
        """
        self.peer = f"mqtt {settings.host}:{settings.port}"
        self.acks: deque[tuple[int, str | None]] = deque()
        """(message id, None or why the broker refuses it), in the order they came."""
        self.commands: deque[Inbound] = deque()
        """What came in, oldest first; beyond _COMMANDS_MAX the newest are dropped and counted."""
        self.commands_dropped = 0
        self.deaf: str | None = None
        """Why the broker sends no commands, where it does not: it refuses the subscription."""
        self.lost: str | None = None
        """Why the connection is gone."""
        self.closed_by_broker = False
        """Did the other end hang up, rather than fall silent?"""
        self.inflight = _INFLIGHT
        """Unacknowledged messages that the broker takes at a time."""
        self.packet_bytes = _NO_LIMIT
        """Largest packet that the broker takes."""
        self._settings = settings
        self._wake = wake
        self._answered = threading.Event()
        self._refused: str | None = None
        self._client = client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, reconnect_on_failure=False
        )
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(_INFLIGHT)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.will_set(will[0], will[1], qos=1, retain=True, properties=_properties(PacketTypes.WILLMESSAGE, will[1]))
        if settings.user is not None:
            client.username_pw_set(settings.user, settings.password)
        try:
            if commands is not None:
                client.on_message = self._on_message
                client.on_subscribe = self._on_subscribe
            self._connect(clean_start=clean_start)
            if commands is not None:
                self._subscribe(commands)
        except BaseException:
            self.close(goodbye=False)
            raise

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool,
        expiry_s: int | None,
        correlation: bytes | None = None,
    ) -> int:
        """Send and return the message id that `acks` will name; never blocks for the broker.

        Raises:
            PeerError: the topic cannot be sent at all.
        """
        properties = _properties(PacketTypes.PUBLISH, payload)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        if correlation is not None:
            properties.CorrelationData = correlation
        try:
            return self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties).mid
        except ValueError as exc:
            raise PeerError(self.peer, f"{topic}: {exc}") from exc

    def close(self, *, goodbye: bool = True) -> None:
        """End it: with a goodbye the broker keeps the will to itself. Bounded; raises nothing."""
        if goodbye and self.lost is None:
            self._answered.clear()
            self._client.disconnect()
            self._answered.wait(_GOODBYE_S)
        # Callbacks that know us would keep client and sockets alive until the collector comes.
        self._client.on_connect = self._client.on_disconnect = self._client.on_publish = None
        self._client.on_message = self._client.on_subscribe = None
        connection = self._client.socket()
        if connection is not None:
            # Without this paho's thread waits for acknowledgements that a hung broker will never send.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined] # paho's type knows WebSockets too
        self._client.loop_stop()
        del self._client
        self.lost = self.lost or "closed"

    def _connect(self, *, clean_start: bool) -> None:
        settings = self._settings
        properties = _empty(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = settings.session_expiry_s
        try:
            if settings.tls is not None:
                self._client.tls_set_context(_context(settings.tls))
            self._client.connect(
                settings.host,
                settings.port,
                keepalive=settings.keepalive_s,
                clean_start=clean_start,
                properties=properties,
            )
        except TimeoutError as exc:
            raise PeerTimeoutError(self.peer, f"no connection within {CONNECT_S:g} s") from exc
        except ssl.SSLCertVerificationError as exc:
            raise PeerError(self.peer, f"{exc.verify_message}: is mqtt.tls.ca the broker's, host its name?") from exc
        except (OSError, ValueError) as exc:
            raise PeerError(self.peer, str(exc)) from exc
        self._client.loop_start()
        if not self._answered.wait(CONNECT_S):
            raise PeerTimeoutError(self.peer, f"connected, but no answer within {CONNECT_S:g} s")
        if self._refused is not None:
            raise PeerError(self.peer, self._refused)
        if self.lost is not None:
            hint = ": does the broker want a client certificate (mqtt.tls.certificate)?" if settings.tls else ""
            raise PeerError(self.peer, f"closed before it answered{hint}")

    def _subscribe(self, topic: str) -> None:
        # What was retained is no command: nobody knows when it was meant.
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        self._client.subscribe(topic, options=options)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        self.deaf = next((reason.getName() for reason in reasons if reason.is_failure), None)
        self._wake()

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        if len(self.commands) >= _COMMANDS_MAX:
            self.commands_dropped += 1
            return
        properties = message.properties
        self.commands.append(
            Inbound(
                topic=message.topic,
                payload=bytes(message.payload[: COMMAND_BYTES + 1]),
                retained=bool(message.retain),
                response_topic=getattr(properties, "ResponseTopic", None),
                correlation=getattr(properties, "CorrelationData", None),
            )
        )
        self._wake()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"refused: {reason.getName()}"
        elif properties is not None:
            self.inflight = min(_INFLIGHT, getattr(properties, "ReceiveMaximum", _INFLIGHT))
            self.packet_bytes = getattr(properties, "MaximumPacketSize", _NO_LIMIT)
        self._answered.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.closed_by_broker = reason.getName() != "Keep alive timeout"
        self.lost = f"disconnected: {reason.getName()}"
        self._answered.set()
        self._wake()

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        self.acks.append((mid, reason.getName() if reason.is_failure else None))
        self._wake()


class _Socket(ssl.SSLSocket):
    """Closes itself when the handshake fails, which paho leaves to the collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _context(tls: TlsSettings) -> ssl.SSLContext:
    """Made anew for each connection: a certificate renewed on the disk is the one that is used."""
    context = ssl.create_default_context(cafile=tls.ca)
    context.sslsocket_class = _Socket
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.private_key)
    return context


def _properties(packet: int, payload: bytes) -> Properties:
    """Content type and schema: a reader knows what it has before it parses."""
    properties = _empty(packet)
    if payload:
        properties.ContentType = "application/json"
        properties.PayloadFormatIndicator = 1
        # Every payload begins with {"schema":"edgeqc.<name>/1", see payloads.
        properties.UserProperty = ("schema", payload[11 : payload.index(b'"', 11)].decode())
    return properties


def _empty(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call] # paho leaves it untyped
