"""Who gets in to the OPC UA server, and what a connection may cost before and after that."""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import ipaddress
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from asyncua import ua
from asyncua.crypto.permission_rules import SimpleRoleRuleset, User, UserRole
from asyncua.crypto.truststore import TrustStore
from asyncua.crypto.validator import CertificateValidator, CertificateValidatorOptions
from asyncua.server.binary_server_asyncio import BinaryServer, OPCUAProtocol
from asyncua.ua.uaerrors import BadCertificateUntrusted

from edgeqc.settings import Listener, OpcuaServerSettings, Role, ServerUser

CHUNK_BYTES: Final = 65_535
MESSAGE_BYTES: Final = 1 << 20
"""The largest request: a read of 1000 nodes has 60 KiB."""
UNDECODED_BYTES: Final = 2 * CHUNK_BYTES
"""What one connection may leave with us that is no whole chunk yet."""
PENDING: Final = 50
"""Requests of one connection that wait for their turn."""
ACTIVATION_S: Final = 10.0
"""To open the channel and log in; a PLC takes 2 s for its cryptography."""
_BACK_PRESSURE: Final = 1 << 20
"""Bytes of answers that a client may leave unread."""
_LOCK_AFTER: Final = 5
_LOCK_S: Final = 30.0
"""A name with 5 wrong passwords behind each other is not let in for so long: 14,400 guesses a day, not a billion."""

Told = Callable[[str, str, str], None]
"""Of `client_came`, `client_left`, `client_refused` or `login_refused`: event, who, reason."""


class Doorkeeper:
    """Checks users; remembers who calls a method."""

    def __init__(self, settings: OpcuaServerSettings, tell: Told) -> None:
        """`tell` is told of logins that fail."""
        self._users = {user.name: user for user in settings.users}
        self._anonymous = settings.anonymous
        self._tell = tell
        self._wrong: dict[str, tuple[int, float]] = {}

    def get_user(
        self,
        iserver: object,
        username: str | None = None,
        password: str | bytes | None = None,
        certificate: object = None,
    ) -> User | None:
        """Let someone in, or None. asyncua's UserManager."""
        del iserver, certificate
        if username is None:
            return User(role=UserRole.User, name=None) if self._anonymous else None
        given = password.encode() if isinstance(password, str) else password or b""
        count, until_s = self._wrong.get(username, (0, 0.0))
        locked = count >= _LOCK_AFTER and time.monotonic() < until_s
        if count >= _LOCK_AFTER and not locked:
            count = 0  # the lock is over: one more mistake is one
        user: ServerUser | None = self._users.get(username)
        # compared even where there is no such user: the time taken must not say which names exist
        right = hmac.compare_digest(given, (user.password if user else "\0").encode())
        if user is not None and right and not locked:
            self._wrong.pop(username, None)
            return User(role=UserRole.User, name=user.name)
        if (
            user is not None and not locked
        ):  # a try while it is locked prolongs nothing; names that do not exist need no lock, and must push out nobody's
            self._wrong[username] = (count + 1, time.monotonic() + _LOCK_S)
        self._tell("login_refused", username[:64], "too many wrong passwords" if locked else "wrong name or password")
        return None

    def role_of(self, user: User | None) -> Role:
        """What someone who is in may do."""
        known = self._users.get(user.name or "") if user is not None else None
        return known.role if known is not None else Role.VIEWER


class Ruleset(SimpleRoleRuleset):
    """asyncua's own rules; on the way, it keeps who asks, which a method is not told otherwise."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def check_validity(self, user: User, action_type_id: ua.NodeId, body: object) -> bool:
        """May this user use this service?"""
        _caller.set(user)
        return bool(super().check_validity(user, action_type_id, body))  # type: ignore[no-untyped-call]


def caller() -> User | None:
    """Who called the method that runs now."""
    return _caller.get()


_caller: Final[contextvars.ContextVar[User | None]] = contextvars.ContextVar("caller", default=None)


async def certificate_check(clients: Path | None) -> Callable[[Any, Any], Any]:
    """The check of client certificates: in date, the client's own URI, and trusted where there is a folder of trusted ones."""
    if clients is None:
        return CertificateValidator(CertificateValidatorOptions.BASIC_VALIDATION).validate
    if not await asyncio.to_thread(lambda: any(clients.iterdir())):

        async def nobody(_certificate: object, _description: object) -> None:
            raise BadCertificateUntrusted

        return nobody
    store = TrustStore([clients], [])
    await store.load()
    return CertificateValidator(
        CertificateValidatorOptions.BASIC_VALIDATION
        | CertificateValidatorOptions.TRUSTED
        | CertificateValidatorOptions.PEER_CLIENT,
        store,
    ).validate


class GuardedServer(BinaryServer):
    """asyncua's listener, with protocols that look first."""

    listener: Listener
    tell: Told
    refused: int = 0

    def _make_protocol(self) -> OPCUAProtocol:
        return GuardedProtocol(
            iserver=self.iserver,
            policies=self._policies,
            clients=self.clients,
            closing_tasks=self.closing_tasks,
            limits=self.limits,
        ).guarded_by(self)


class GuardedProtocol(OPCUAProtocol):
    """One connection: its peer is on the list, its bytes are bounded both ways."""

    _server: GuardedServer

    def guarded_by(self, server: GuardedServer) -> GuardedProtocol:
        """Know the list and the bounds."""
        self._server = server
        return self

    def connection_made(self, transport: Any) -> None:
        """Refuse strangers before anything is made for them."""
        host = str(transport.get_extra_info("peername")[0])
        listener = self._server.listener
        if not is_peer(listener, host):
            reason = "is not among the peers"
        elif len(self.clients) >= listener.connections:
            reason = f"all {listener.connections} connections are in use"
        else:
            transport.set_write_buffer_limits(high=_BACK_PRESSURE)
            super().connection_made(transport)
            self._server.tell("client_came", host, "")
            return
        self._server.refused += 1
        self._server.tell("client_refused", host, reason)
        transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what comes, as long as it comes in chunks of the size that was agreed."""
        if self.transport is None or self.transport.is_closing():
            return
        super().data_received(data)
        if len(self._buffer) > UNDECODED_BYTES:
            self._cut(f"sent {len(self._buffer)} bytes that are no chunk")

    async def _process_one_msg(self, header: Any, buf: Any) -> bool:
        """Who has not logged in gets one mistake; asyncua would go on listening."""
        try:
            return await super()._process_one_msg(header, buf)
        except Exception as exc:  # what strangers send makes the decoder raise anything
            session = self.processor.session if self.processor is not None else None
            if session is not None and session.is_activated():
                raise
            self._cut(f"sent what cannot be understood: {type(exc).__name__}")
            return False

    def pause_writing(self) -> None:
        """It reads no answers: a second MiB is not kept for it."""
        self._cut("takes no answers")

    def _cut(self, reason: str) -> None:
        self._buffer = b""
        if self.transport is not None:
            self._server.tell("client_left", str(self.peer_name[0]), reason)
            self.transport.abort()


def is_peer(listener: Listener, host: str) -> bool:
    """Is this address on the list?"""
    address = ipaddress.ip_address(host.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in ipaddress.ip_network(network) for network in listener.peers)
