"""Certificates of OPC UA applications: reading them, whom to believe, and how long they last."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from edgeqc.errors import PeerError

WARN_DAYS: Final = 30
"""Before the end: a new certificate must be trusted in the PLC, too, and that takes a visit."""
_SUFFIXES: Final = frozenset({".der", ".cer", ".crt", ".pem"})


def load(path: Path, peer: str) -> x509.Certificate:
    """Read a certificate, DER or PEM. Raises PeerError."""
    try:
        return _parse(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise PeerError(peer, f"certificate {path}: {exc}") from exc


def check_trusted(shown: bytes, folder: Path, peer: str) -> None:
    """Refuse a server's certificate (DER) that is neither in the folder itself nor issued by an authority that is.

    An empty folder trusts nobody. Raises PeerError that says what to do.
    """
    certificate = _parse_shown(shown, peer)
    now = dt.datetime.now(dt.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise PeerError(
            peer,
            f"the server's certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d} only, and here it is {now:%Y-%m-%d}",
        )
    try:
        found = [load(path, peer) for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES]
    except OSError as exc:
        raise PeerError(peer, f"trust: {folder}: {exc.strerror or exc}") from exc
    if any(one == certificate or (_is_authority(one) and _issued(certificate, one)) for one in found):
        return
    known = f"none of the {len(found)} certificates" if found else "there is no certificate"
    raise PeerError(
        peer,
        f"the server's certificate is not trusted: {known} in {folder} is it or has issued it; "
        "`edgeqc test plc FILE --save-certificate FILE.der` fetches it, compare its fingerprint with the one on the PLC",
    )


def days_left(path: Path, peer: str) -> int:
    """How many days the certificate will last, negative where it has ended. Raises PeerError."""
    return (load(path, peer).not_valid_after_utc - dt.datetime.now(dt.UTC)).days


def der(certificate: x509.Certificate) -> bytes:
    """As it goes over the wire."""
    return certificate.public_bytes(serialization.Encoding.DER)


def _parse(content: bytes) -> x509.Certificate:
    if content.startswith(b"-----BEGIN"):
        return x509.load_pem_x509_certificate(content)
    return x509.load_der_x509_certificate(content)


def _parse_shown(shown: bytes, peer: str) -> x509.Certificate:
    try:
        return _parse(shown)
    except ValueError as exc:
        raise PeerError(peer, f"the server shows what is no certificate: {exc}") from exc


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
