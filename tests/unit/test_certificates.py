"""Whom the OPC UA links believe, and when people are told that a certificate ends."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgeqc.errors import PeerError
from edgeqc.office.expiry import expiring
from edgeqc.plc.certificates import check_trusted, der
from edgeqc.plc.opcua_session import own_identity
from edgeqc.settings import OpcuaTagSource, Settings

KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]


def made(
    name: str, key: int, *, issuer: str = "", by: int | None = None, ca: bool = False, days: int = 365
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer or name)]))
        .public_key(KEYS[key].public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=400))
        .not_valid_after(now + dt.timedelta(days=days, hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(KEYS[key if by is None else by], hashes.SHA256())
    )


def kept(folder: Path, name: str, certificate: x509.Certificate) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(der(certificate))
    return path


def test_an_empty_folder_trusts_nobody(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="there is no certificate in"):
        check_trusted(der(made("plc", 0)), tmp_path, "press")


def test_a_server_in_the_folder_or_issued_by_an_authority_in_it_is_trusted(tmp_path: Path) -> None:
    server = made("plc", 0)
    kept(tmp_path, "plc.der", server)
    check_trusted(der(server), tmp_path, "press")
    kept(tmp_path, "plant.crt", made("plant", 1, ca=True))
    check_trusted(der(made("other", 0, issuer="plant", by=1)), tmp_path, "press")


@pytest.mark.parametrize(
    "stranger",
    [
        made("plc", 2),
        made("other", 0, issuer="plant", by=2),
        made("other", 0, issuer="plain", by=1),
    ],
    ids=["another key under the same name", "signed by another key than the authority's", "issued by no authority"],
)
def test_anybody_else_is_not(stranger: x509.Certificate, tmp_path: Path) -> None:
    kept(tmp_path, "plc.der", made("plc", 0))
    kept(tmp_path, "plant.crt", made("plant", 1, ca=True))
    kept(tmp_path, "plain.crt", made("plain", 1))
    with pytest.raises(PeerError, match="none of the 3 certificates"):
        check_trusted(der(stranger), tmp_path, "press")


def test_an_expired_server_is_not_trusted_though_it_is_in_the_folder(tmp_path: Path) -> None:
    server = made("plc", 0, days=-1)
    kept(tmp_path, "plc.der", server)
    with pytest.raises(PeerError, match=r"is valid from .* only"):
        check_trusted(der(server), tmp_path, "press")


def _settings(**more: Any) -> Settings:
    """Of a box whose station talks to no PLC."""
    station = {
        "name": "top", "takt_ms": 100, "budget_ms": 80,
        "camera": {"type": "replay", "folder": ".", "width_px": 64, "height_px": 64},
        "recipe": {"engine": "."},
        "plc": {"type": "none"},
    }  # fmt: skip
    return Settings.model_validate({"version": 1, "node": "n", "stations": [station], **more})


@pytest.mark.parametrize(("days", "says"), [(100, ""), (12, "plc.der expires in 12 days"), (-3, "plc.der has expired")])
def test_people_are_told_a_month_before_a_certificate_ends(days: int, says: str, tmp_path: Path) -> None:
    path = kept(tmp_path / "certificates", "plc.der", made("plc", 0, days=days))
    press = {
        "type": "opcua", "name": "press", "url": "opc.tcp://plc:4840", "server_certificate": str(path),
        "tags": [{"name": "one", "node": "i=1"}],
    }  # fmt: skip
    assert expiring(_settings(tags=[press]), tmp_path) == says


def test_the_certificate_of_our_own_server_is_watched_where_it_is_the_only_one(tmp_path: Path) -> None:
    kept(tmp_path / "pki", "own.der", made("edgeqc", 0, days=12))
    opcua = {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "users": [{"name": "s", "password": "p"}]}
    settings = _settings(server={"opcua": opcua})
    assert expiring(settings, tmp_path) == "own.der expires in 12 days"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_in_the_daemons_folder_is_the_daemons(tmp_path: Path) -> None:
    state_dir, daemon = tmp_path / "state", 65_534
    state_dir.mkdir()
    os.chown(state_dir, daemon, daemon)
    press = OpcuaTagSource.model_validate(
        {"type": "opcua", "name": "press", "url": "opc.tcp://127.0.0.1:1", "tags": [{"name": "force", "node": "i=1"}]}
    )
    identity = own_identity(press, peer="press", state_dir=state_dir)
    pki = state_dir / "pki"
    assert {path.name for path in pki.iterdir()} == {".lock", identity.certificate.name, identity.private_key.name}
    assert {path.stat().st_uid for path in (pki, *pki.iterdir())} == {daemon}
