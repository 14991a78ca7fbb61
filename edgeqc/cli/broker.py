"""One MQTT 5 session with the plant's broker, to see what it allows."""

from __future__ import annotations

import queue
import ssl
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.office import payloads
from edgeqc.settings import MqttSettings

ANSWER_S: Final = 5.0
_PEER: Final = "mqtt"
_SOURCE: Final = "test-mqtt"
"""Of the message; no process of a daemon has this name. It keeps no count: its numbers are microseconds."""
_REFUSED: Final = 0x80


@dataclass(kw_only=True)
class BrokerReport:
    """What a broker said in one session."""

    host: str
    topic: str
    connect_ms: float
    limits: dict[str, Any] = field(default_factory=dict)
    """What its CONNACK names: maximum packet size, receive maximum, ..."""
    publish_ms: float | None = None
    """Publish to acknowledgement; None where it was not tried."""
    readable: bool | None = None
    """May this user read what it writes; None where it was not tried. A daemon need not."""
    echo_ms: float | None = None


def look_at_broker(settings: MqttSettings, *, node: str, publish: bool) -> BrokerReport:
    """Connect; with `publish`, send one message to {prefix}/event and try to read it back. PeerError, PeerTimeoutError."""
    topic = f"{settings.prefix.replace('{node}', node)}/event"
    # an id of its own: the daemon's would throw the running daemon out
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"edgeqc-test-{uuid.uuid4().hex[:12]}",
        protocol=paho.MQTTv5,
        reconnect_on_failure=False,
    )
    if settings.user is not None:
        client.username_pw_set(settings.user, settings.password)
    session = _Session(client)
    began = time.monotonic()
    try:
        if settings.tls is not None:
            client.tls_set_context(_context(settings))
        client.connect(settings.host, settings.port, keepalive=settings.keepalive_s, clean_start=True)
    except (OSError, ValueError) as error:
        raise PeerError(_PEER, f"{settings.host}:{settings.port}: {error}") from error
    client.loop_start()
    try:
        limits = session.wait("connected", f"{settings.host}:{settings.port} took the connection and says nothing")
        report = BrokerReport(
            host=f"{settings.host}:{settings.port}",
            topic=topic,
            connect_ms=round((time.monotonic() - began) * 1000, 2),
            limits=limits,
        )
        if publish:
            _exchange(session, report, node)
        return report
    finally:
        client.disconnect()
        client.loop_stop()


def _exchange(session: _Session, report: BrokerReport, node: str) -> None:
    session.client.subscribe(report.topic, qos=1)
    report.readable = session.wait("subscribed", "the broker does not answer a subscription")
    token = uuid.uuid4().hex
    wall_ns = time.time_ns()
    body = payloads.event(
        "self_test", {"token": token}, node=node, source=_SOURCE, sequence=wall_ns // 1000, wall_ns=wall_ns
    )
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho has no types here
    properties.ContentType = "application/json"
    properties.MessageExpiryInterval = 60
    session.token = token.encode()
    began = time.monotonic()
    session.client.publish(report.topic, payloads.encode(body), qos=1, properties=properties)
    code = session.wait("published", f"no acknowledgement for {report.topic}")
    if code >= _REFUSED:
        raise PeerError(
            _PEER, f"{report.topic}: refused with reason code {code}; give this user the right to write there"
        )
    report.publish_ms = round((time.monotonic() - began) * 1000, 2)
    if report.readable:
        session.wait("echoed", f"{report.topic}: acknowledged, but not delivered back")
        report.echo_ms = round((time.monotonic() - began) * 1000, 2)


class _Session:
    """Callbacks of paho's thread, as answers that can be waited for."""

    def __init__(self, client: paho.Client) -> None:
        self.client = client
        self.token = b""
        self._answers: dict[str, queue.Queue[Any]] = {
            name: queue.Queue(maxsize=8) for name in ("connected", "subscribed", "published", "echoed")
        }
        client.on_connect = self._on_connect
        client.on_subscribe = lambda _c, _u, _mid, codes, _p: self._put("subscribed", not codes[0].is_failure)
        client.on_publish = lambda _c, _u, _mid, code, _p: self._put("published", code.value)
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect

    def wait(self, name: str, otherwise: str) -> Any:
        try:
            answer = self._answers[name].get(timeout=ANSWER_S)
        except queue.Empty:
            raise PeerTimeoutError(_PEER, f"{otherwise} ({ANSWER_S:g} s)") from None
        if isinstance(answer, PeerError):
            raise answer
        return answer

    def _on_connect(self, _client: paho.Client, _data: object, _flags: object, code: Any, properties: Any) -> None:
        if code.is_failure:
            self._put("connected", PeerError(_PEER, f"the broker refuses us: {code}"))
            return
        self._put("connected", dict(properties.json()) if properties is not None else {})

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if self.token and self.token in message.payload:
            self._put("echoed", True)

    def _on_disconnect(self, _client: paho.Client, _data: object, _flags: object, code: Any, _properties: Any) -> None:
        if code.is_failure:
            for name in self._answers:
                self._put(name, PeerError(_PEER, f"the broker closed the connection: {code}"))

    def _put(self, name: str, answer: Any) -> None:
        if not self._answers[name].full():  # eight answers to one question: the rest is not ours
            self._answers[name].put_nowait(answer)


def _context(settings: MqttSettings) -> ssl.SSLContext:
    tls = settings.tls
    if tls is None:
        raise ValueError("no TLS is configured")
    context = ssl.create_default_context(cafile=tls.ca)
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.private_key)
    return context
