"""A real MQTT 5 broker (mosquitto) on loopback, and someone who listens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeqc.errors import EdgeqcError, PeerError, PeerTimeoutError
from edgeqc.sim.peer import Peer

_START_S: Final = 10.0
_SUBSCRIBE_S: Final = 10.0
_HELP: Final = "mosquitto is not installed: apt-get install mosquitto (the demo and the MQTT tests need it)"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerTls:
    """Certificates of a listener that speaks TLS."""

    ca: Path
    certificate: Path
    private_key: Path
    client_certificates: bool = False
    """Must clients show a certificate of the same CA?"""


def mosquitto_path() -> str | None:
    """Where mosquitto is; Debian puts it where only root's PATH looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/mosquitto/sbin")


class SimBroker(Peer):
    """A broker of our own, on one port for its whole life; start it, kill it, hang it, start it again."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        users: dict[str, str] | None = None,
        acl: str | None = None,
        tls: BrokerTls | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        """Choose a free port; nothing runs before `start`.

        Args:
            folder: keeps its files and its log; None: a temporary one.
            users: password by name; None: anybody may connect.
            acl: mosquitto's access list, e.g. `topic readwrite #`; None: everything is allowed.
            tls: the listener speaks TLS.
            options: further lines of mosquitto.conf.

        Raises:
            EdgeqcError: mosquitto is not installed.
        """
        super().__init__("the MQTT broker")
        path = mosquitto_path()
        if path is None:
            raise EdgeqcError(_HELP)
        self._program = path
        self._temporary = tempfile.TemporaryDirectory(prefix="edgeqc-broker-") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary is not None else folder or Path()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self._config = self._folder / "mosquitto.conf"
        self._log = self._folder / "mosquitto.log"
        self._config.write_text("\n".join(self._lines(users, acl, tls, options)) + "\n")

    def command(self) -> list[str]:
        """Mosquitto, with a configuration of its own."""
        return [self._program, "-c", str(self._config)]

    def begin(self) -> None:
        """Start it, its words into its log."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own configuration
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def ready(self) -> None:
        """Return once it listens; PeerError with mosquitto's own words if it does not."""
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.kill()
        raise PeerError(self._name, f"did not start: {self._log.read_text(errors='replace')[-200:]}")

    def save(self) -> None:
        """Have it write sessions and retained messages to its disk, as plants' brokers do now and then."""
        before = self._saved()
        self.process.send_signal(signal.SIGUSR1)
        until_s = time.monotonic() + _START_S
        while self._saved() == before and time.monotonic() < until_s:
            time.sleep(0.02)

    def close(self) -> None:
        """Kill it and delete its temporary files."""
        self.kill()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _saved(self) -> int:
        try:
            return (self._folder / "mosquitto.db").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _lines(
        self, users: dict[str, str] | None, acl: str | None, tls: BrokerTls | None, options: tuple[str, ...]
    ) -> list[str]:
        folder = self._folder
        lines = [
            "per_listener_settings false",
            "persistence true",
            f"persistence_location {folder}/",
            "autosave_interval 0",
            "max_inflight_messages 0",
            "queue_qos0_messages true",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "max_queued_messages 0",
            "set_tcp_nodelay true",
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'true' if users is None else 'false'}",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # else it would drop to a user that may not read this folder
        if users is not None:
            lines.append(f"password_file {_password_file(folder, users)}")
        if acl is not None:
            (folder / "acl").write_text(acl + "\n")
            lines.append(f"acl_file {folder / 'acl'}")
        if tls is not None:
            lines += [f"cafile {tls.ca}", f"certfile {tls.certificate}", f"keyfile {tls.private_key}"]
            lines.append(f"require_certificate {'true' if tls.client_certificates else 'false'}")
        return [*lines, *options]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One message as a subscriber got it."""

    topic: str
    payload: bytes
    retain: bool
    qos: int
    properties: dict[str, Any]
    """MQTT 5 properties by name; user properties as a list of pairs."""
    at_ns: int
    """Monotonic time of arrival."""

    @property
    def json(self) -> dict[str, Any]:
        """The payload; {} where it is empty."""
        return dict(json.loads(self.payload)) if self.payload else {}


class Listener:
    """Subscribes and keeps everything, in order of arrival. Reconnects by itself.

    With a client id the broker keeps its session, so that it misses nothing while it is away.
    """

    def __init__(
        self,
        host: str,
        port: int,
        topic: str = "#",
        *,
        user: str | None = None,
        password: str | None = None,
        ca: Path | None = None,
        client_id: str = "",
        qos: int = 1,
    ) -> None:
        """Connect and wait until the broker has granted the subscription. PeerError if it does not.

        A broker that is killed takes what it has acknowledged to the publisher with it, if this listener was just
        acknowledging something; with `qos=0` it has nothing to say and reads to the end.
        """
        self._lock = threading.Condition()
        self._received: list[Received] = []
        self._subscribed = threading.Event()
        self._topic = topic
        self._qos = qos
        self._refused = ""
        self._client = client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5)
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._on_connect
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._on_message
        if user is not None:
            client.username_pw_set(user, password)
        if ca is not None:
            client.tls_set(ca_certs=str(ca))
        peer = f"mqtt {host}:{port}"
        try:
            # mosquitto saves only sessions that did not begin with a clean start.
            fresh: Literal[3] | bool = MQTT_CLEAN_START_FIRST_ONLY if not client_id else False
            client.connect(host, port, keepalive=5, clean_start=fresh, properties=_session(3600 if client_id else 0))
        except OSError as exc:
            raise PeerError(peer, str(exc)) from exc
        client.loop_start()
        if not self._subscribed.wait(_SUBSCRIBE_S):
            self.close()
            raise PeerTimeoutError(peer, self._refused or f"no subscription within {_SUBSCRIBE_S:g} s")

    def received(self, suffix: str = "") -> list[Received]:
        """Everything so far whose topic ends with `suffix`."""
        with self._lock:
            return [message for message in self._received if message.topic.endswith(suffix)]

    def payloads(self, topic: str) -> list[dict[str, Any]]:
        """The JSON bodies that came on exactly this topic, empty ones left out."""
        with self._lock:
            return [message.json for message in self._received if message.topic == topic and message.payload]

    def wait(self, count: int, suffix: str = "", *, timeout_s: float) -> list[Received]:
        """What `received` gives once there are `count` of them, or at the timeout."""
        until_s = time.monotonic() + timeout_s
        with self._lock:
            while True:
                found = [message for message in self._received if message.topic.endswith(suffix)]
                left_s = until_s - time.monotonic()
                if len(found) >= count or left_s <= 0:
                    return found
                self._lock.wait(min(left_s, 0.2))

    def close(self) -> None:
        """Disconnect and end the thread."""
        client = self._client
        client.disconnect()
        client.loop_stop()
        # Callbacks that know us would keep client and sockets alive until the collector comes.
        client.on_connect = client.on_subscribe = client.on_message = None
        del self._client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"refused: {reason.getName()}"
        else:
            client.subscribe(self._topic, qos=self._qos)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        properties: dict[str, Any] = {}
        if message.properties is not None:
            properties = message.properties.json()  # type: ignore[no-untyped-call] # paho leaves it untyped
        with self._lock:
            self._received.append(
                Received(
                    topic=message.topic,
                    payload=bytes(message.payload),
                    retain=message.retain,
                    qos=message.qos,
                    properties=properties,
                    at_ns=time.monotonic_ns(),
                )
            )
            self._lock.notify_all()


def _session(expiry_s: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
    properties.SessionExpiryInterval = expiry_s
    return properties


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _password_file(folder: Path, users: dict[str, str]) -> Path:
    program = shutil.which("mosquitto_passwd") or shutil.which("mosquitto_passwd", path="/usr/sbin")
    if program is None:
        raise EdgeqcError(_HELP)
    path = folder / "passwords"
    path.touch(mode=0o600)
    for name, password in users.items():
        subprocess.run(  # noqa: S603 - our own names
            [program, "-b", str(path), name, password], check=True, capture_output=True, timeout=10
        )
    return path
