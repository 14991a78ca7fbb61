"""Who vouches for a package: an Ed25519 signature (RFC 8032) over the SHA-256 of every file in it.

`signature.json` lists each file with its hash, the public key, and the signature over those lines; it is read and
checked before anything else of the package is parsed. Keys are PEM files as OpenSSL writes them
(`openssl genpkey -algorithm ed25519`, `openssl pkey -pubout`).
"""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgeqc.errors import PackageError
from edgeqc.inference.documents import read_json

SIGNATURE: Final = "signature.json"
FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a file of a package may be called: no folders, nothing hidden."""
KEY_BYTES_MOST: Final = 4096
_HEAD: Final = b"edgeqc engine package, format 1\n"
"""What is signed begins with this, so that a signature made for anything else is none for a package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature that fits the files it lists; whose key it is, is another question."""

    public_key: bytes
    """32 bytes."""
    files: Mapping[str, str]
    """File name to SHA-256 in hex."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key in hex: how people compare keys."""
        return fingerprint(self.public_key)


def fingerprint(public_key: bytes) -> str:
    """SHA-256 of a public key's 32 bytes, in hex."""
    return hashlib.sha256(public_key).hexdigest()


def sign(files: Mapping[str, bytes], key: Ed25519PrivateKey) -> bytes:
    """`signature.json` for these files of a package (name to content). PackageError for a name no package may have."""
    hashes = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    for name in hashes:
        if not FILE_NAME.fullmatch(name) or name == SIGNATURE:
            raise PackageError(f"{name}: is no name for a file of a package (letters, digits, . _ -)")
    public = key.public_key().public_bytes_raw()
    document = {
        "format": 1,
        "algorithm": "ed25519",
        "public_key": base64.b64encode(public).decode(),
        "files": hashes,
        "signature": base64.b64encode(key.sign(_signed(hashes))).decode(),
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def read_signature(path: Path, content: bytes) -> Signature:
    """Parse and check `signature.json` by itself: the signature is of the key and the hashes in it. PackageError."""
    try:
        public, raw, hashes = _parsed(read_json(content))
        Ed25519PublicKey.from_public_bytes(public).verify(raw, _signed(hashes))
    except InvalidSignature as exc:
        raise PackageError(f"{path}: the signature is not of these hashes: it was changed after it was signed") from exc
    except (ValueError, TypeError, binascii.Error, RecursionError) as exc:
        raise PackageError(f"{path}: is no signature: {str(exc)[:200]}") from exc
    return Signature(public_key=public, files=hashes)


def check_files(path: Path, signature: Signature, files: Mapping[str, bytes]) -> None:
    """PackageError where a file is not as it was signed, or not in the signature at all. `path`: of the signature."""
    for name, content in files.items():
        expected = signature.files.get(name)
        if expected is None:
            raise PackageError(f"{path}: does not cover {name}: it was added after the package was signed")
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise PackageError(f"{path.parent / name}: SHA-256 is {found}, signed was {expected}")


def make_key(private: Path, public: Path, *, password: bytes | None = None) -> str:
    """Make a key pair as two PEM files, the private one readable by its owner only; returns the fingerprint.

    FileExistsError where either is there already: a key is never overwritten.
    """
    if public.exists():
        raise FileExistsError(17, "is there already; a key is never overwritten", str(public))
    key = Ed25519PrivateKey.generate()
    protection: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    private.parent.mkdir(parents=True, exist_ok=True)
    public.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    public.write_bytes(public_pem(key))
    return fingerprint(key.public_key().public_bytes_raw())


def local_key(folder: Path) -> Ed25519PrivateKey:
    """This box's own key in `folder` (`local.key`, `local.pub`), made at the first use: for packages trained here.

    Whoever can read the folder can sign; a daemon trusts it only where `local.pub` is put into its trust folder.
    """
    if not (folder / "local.key").exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "local.pub").unlink(missing_ok=True)
        make_key(folder / "local.key", folder / "local.pub")
    return load_key(folder / "local.key")


def load_key(path: Path, *, password: bytes | None = None) -> Ed25519PrivateKey:
    """Read a private key. PackageError where it is none; asks for the password on the terminal where it has one."""
    pem = _read_key(path)
    if password is None and b"ENCRYPTED" in pem:
        password = getpass.getpass(f"Password of {path}: ").encode()
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise PackageError(f"{path}: is no private key ({_KEYGEN}), or the password is wrong") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise PackageError(f"{path}: is a key of another kind than Ed25519; {_KEYGEN}")
    return key


def load_public(path: Path) -> bytes:
    """Read a public key's 32 bytes. PackageError where it is none."""
    try:
        key = serialization.load_pem_public_key(_read_key(path))
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise PackageError(f"{path}: is no public key in PEM; {_KEYGEN}") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise PackageError(f"{path}: is a key of another kind than Ed25519; {_KEYGEN}")
    return key.public_bytes_raw()


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public half, as a trust folder holds it."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


_KEYGEN: Final = "edgeqc engine keygen makes NAME.key and NAME.pub"
_KEYS: Final = frozenset({"format", "algorithm", "public_key", "files", "signature"})
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def _parsed(document: Any) -> tuple[bytes, bytes, dict[str, str]]:
    """Public key, signature, hashes. ValueError, TypeError."""
    if not isinstance(document, dict) or set(document) != _KEYS:
        raise ValueError(f"must have exactly {', '.join(sorted(_KEYS))}")
    if document["format"] != 1 or document["algorithm"] != "ed25519":
        raise ValueError(f"format {document['format']}, {document['algorithm']} is not format 1, ed25519")
    hashes = document["files"]
    if not isinstance(hashes, dict) or not all(map(_is_entry, hashes.items())):
        raise ValueError("files: must map file names to SHA-256 in hex")
    public, raw = (base64.b64decode(document[name], validate=True) for name in ("public_key", "signature"))
    return public, raw, hashes


def _is_entry(item: tuple[object, object]) -> bool:
    name, sha256 = item
    return (
        isinstance(name, str)
        and isinstance(sha256, str)
        and bool(FILE_NAME.fullmatch(name))
        and bool(_SHA256.fullmatch(sha256))
    )


def _signed(hashes: Mapping[str, str]) -> bytes:
    """What is signed: the head, and a line for each file as sha256sum writes it, in order of names."""
    return _HEAD + b"".join(f"{hashes[name]}  {name}\n".encode() for name in sorted(hashes))


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(KEY_BYTES_MOST)
    except OSError as exc:
        raise PackageError(f"{path}: {exc.strerror or exc}; {_KEYGEN}") from exc
