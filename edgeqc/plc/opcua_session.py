"""One OPC UA session, used once: how a server is reached, believed and left. Tags and the PLC link share it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from asyncua import ua
from asyncua.client.client import Client
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.crypto.uacrypto import CertProperties
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import certificates
from edgeqc.plc.opcua_bounds import bound_decoding
from edgeqc.plc.opcua_tokens import own_token_clock
from edgeqc.settings import OpcuaEndpoint, OpcuaSecurity

CLOSE_S: Final = 0.5
"""How long a peer may take to say good-bye before its socket is cut."""
_SESSION_MS: Final = 30_000  # a server forgets a dead daemon's session after this; open sessions are few in a PLC
_VALID_DAYS: Final = 3650  # nobody renews a certificate beside a line, and a new one must be trusted in the PLC again
_RSA_BITS: Final = 2048  # Basic256Sha256 asks for 2048..4096; PLCs pay for each handshake
_PRIVATE: Final = 0o600
_MESSAGE_MOST: Final = 16 << 20
"""1000 values are 40 kB; what we tell the server, and what a server that keeps to the rules keeps to."""
_CHUNKS_MOST: Final = 256


async def connect(
    endpoint: OpcuaEndpoint, *, peer: str, state_dir: Path, timeout_s: float, probe_s: float = 1.0
) -> Client:
    """Open a fresh session within `timeout_s`; `timeout_s` also bounds each of its requests. Raises PeerError.

    A server that does not answer within `probe_s`, asked as often, is given up, whatever else is under way. It never reconnects by itself: after any error `close` it and connect again.
    """
    # asyncua logs each publish at INFO and a lost peer as tracebacks; what matters comes as PeerError
    logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)
    bound_decoding()
    own_token_clock()
    client = Client(endpoint.url, timeout=timeout_s, watchdog_intervall=probe_s, auto_reconnect=False)
    client.max_messagesize, client.max_chunkcount = _MESSAGE_MOST, _CHUNKS_MOST
    client.name = client.description = "edgeqc"
    client.session_timeout = _SESSION_MS
    if endpoint.user is not None:
        client.set_user(endpoint.user)
    if endpoint.password is not None:
        client.set_password(endpoint.password)
    try:
        async with asyncio.timeout(timeout_s):
            if endpoint.security is OpcuaSecurity.SIGN_ENCRYPT:
                await _protect(client, endpoint, peer, state_dir, timeout_s)
            await client.connect()
    except BaseException as exc:
        _cut(client)
        if isinstance(exc, TimeoutError) and endpoint.server_certificate is not None:
            # a server that cannot read our first message says nothing at all
            raise PeerTimeoutError(peer, "no answer in time; is server_certificate still this server's?") from exc
        if isinstance(exc, Exception):
            raise peer_error(peer, exc) from exc
        raise
    if endpoint.security is OpcuaSecurity.NONE:
        structlog.get_logger().warning(
            "opcua_unprotected",
            peer=peer,
            url=endpoint.url,
            meaning="anyone on this network can read and forge these values; use security: sign_encrypt",
        )
    return client


async def close(client: Client) -> None:
    """Say good-bye within `CLOSE_S`, then cut the socket. Never raises."""
    protocol = client.uaclient.protocol
    try:
        with contextlib.suppress(Exception):  # whatever it is, the connection is over
            async with asyncio.timeout(CLOSE_S):
                await client.disconnect()
    finally:
        _cut(client)
        if protocol is not None and protocol.transport is not None:
            protocol.transport.abort()


async def server_certificate(endpoint: OpcuaEndpoint, *, peer: str, timeout_s: float) -> bytes:
    """The certificate (DER) that the server shows for sign_encrypt, fetched UNPROTECTED: for a person to compare.

    Raises PeerError.
    """
    logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)
    client = Client(endpoint.url, timeout=timeout_s, auto_reconnect=False)
    try:
        async with asyncio.timeout(timeout_s):
            found = await client.connect_and_get_server_endpoints()
    except Exception as exc:
        raise peer_error(peer, exc) from exc
    finally:
        _cut(client)
    for offer in found:
        if (
            offer.SecurityMode == ua.MessageSecurityMode.SignAndEncrypt
            and offer.SecurityPolicyUri == SecurityPolicyBasic256Sha256.URI
            and offer.ServerCertificate
        ):
            return _first(bytes(offer.ServerCertificate))
    raise PeerError(peer, "the server offers no Basic256Sha256 with SignAndEncrypt")


def peer_error(peer: str, exc: Exception) -> PeerError:
    """Say in the project's words what asyncua, its decoder (which raises anything on hostile bytes) or the socket said."""
    if isinstance(exc, PeerError):
        return exc
    if isinstance(exc, TimeoutError):
        return PeerTimeoutError(peer, "no answer in time")
    return PeerError(peer, f"{type(exc).__name__}: {exc}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Our own certificate and where it lies, for the PLC's trust list."""

    certificate: Path
    private_key: Path
    application_uri: str
    """The URI in the certificate: a server refuses a client that gives another."""


def own_identity(endpoint: OpcuaEndpoint, *, peer: str, state_dir: Path) -> Identity:
    """Our configured certificate, else the one in `state_dir`/pki, made at first use. Raises PeerError."""
    if (endpoint.certificate is None) != (endpoint.private_key is None):
        raise PeerError(peer, "certificate and private_key must be given together, or neither")
    if endpoint.certificate is not None and endpoint.private_key is not None:
        certificate, private_key = endpoint.certificate, endpoint.private_key
    else:
        pki = state_dir / "pki"
        certificate, private_key = pki / "own.der", pki / "own.key.pem"
        pki.mkdir(parents=True, exist_ok=True)
        lock = pki / ".lock"
        with _locked(lock):  # stations and watch start at the same time
            if not (certificate.exists() and private_key.exists()):
                _make_identity(certificate, private_key)
        if os.geteuid() == 0:  # a command typed by root: the daemon, whose folder it is, must read them
            owner = state_dir.stat()
            for path in (pki, lock, certificate, private_key):
                os.chown(path, owner.st_uid, owner.st_gid)
    shown = certificates.load(certificate, peer)
    days_left = (shown.not_valid_after_utc - dt.datetime.now(dt.UTC)).days
    if days_left < certificates.WARN_DAYS:
        structlog.get_logger().warning(
            "opcua_certificate_expires", peer=peer, certificate=str(certificate), days_left=days_left
        )
    try:
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if not uris:
        raise PeerError(peer, f"{certificate}: has no application URI (subjectAltName), OPC UA asks for one")
    return Identity(certificate=certificate, private_key=private_key, application_uri=uris[0])


async def _protect(client: Client, endpoint: OpcuaEndpoint, peer: str, state_dir: Path, timeout_s: float) -> None:
    """Basic256Sha256 SignAndEncrypt towards the one pinned certificate."""
    if endpoint.server_certificate is not None:
        pinned = certificates.der(certificates.load(endpoint.server_certificate, peer))
    elif endpoint.trust is not None:
        # fetched unprotected, and so believed only for what the folder says of it
        pinned = await server_certificate(endpoint, peer=peer, timeout_s=timeout_s)
        certificates.check_trusted(pinned, endpoint.trust, peer)
    else:
        raise PeerError(
            peer,
            "security: sign_encrypt needs server_certificate, the server's certificate as a file, or trust, a folder of "
            "them; `edgeqc test plc` shows and saves it, compare its fingerprint with the one on the PLC",
        )
    identity = own_identity(endpoint, peer=peer, state_dir=state_dir)
    client.application_uri = identity.application_uri
    own = certificates.load(identity.certificate, peer)
    try:
        key = await asyncio.to_thread(identity.private_key.read_bytes)
    except OSError as exc:
        raise PeerError(peer, f"private key: {exc}") from exc
    await client.set_security(
        SecurityPolicyBasic256Sha256,
        CertProperties(certificates.der(own), "der"),
        CertProperties(key, "pem" if key.startswith(b"-----") else "der"),
        server_certificate=CertProperties(pinned, "der"),
        mode=ua.MessageSecurityMode.SignAndEncrypt,
    )


def _first(chain: bytes) -> bytes:
    """The server's own certificate where it sent its whole chain: DER, outer SEQUENCE with a 16-bit length."""
    return chain[: 4 + int.from_bytes(chain[2:4], "big")] if chain[:2] == b"\x30\x82" else chain


def _cut(client: Client) -> None:
    """Drop the socket now: a close that flushes would wait for a hung peer for ever."""
    protocol = client.uaclient.protocol
    client.disconnect_socket()
    if protocol is not None and protocol.transport is not None:
        protocol.transport.abort()


def _make_identity(certificate: Path, private_key: Path) -> None:
    """Make key (0600) and self-signed application certificate (OPC 10000-6, 6.2.2; not a CA)."""
    host = socket.gethostname()
    key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgeqc on {host}"[:64])])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # the PLC's clock may be behind ours
        .not_valid_after(now + dt.timedelta(days=_VALID_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:{host}:edgeqc"), x509.DNSName(host)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=True,
                key_encipherment=True,
                data_encipherment=True,
                key_agreement=False,
                key_cert_sign=True,  # self-signed: it is its own issuer
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(private_key, pem, _PRIVATE)
    _write(certificate, made.public_bytes(serialization.Encoding.DER), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Put the whole file in place at once, never readable by others on the way."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; another process makes a key in well under a second."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
