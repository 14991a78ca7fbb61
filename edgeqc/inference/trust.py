"""Whose packages may run: the public keys in a folder, and what becomes of a package that none of them signed."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgeqc.errors import PackageError
from edgeqc.inference.signature import Signature, fingerprint, load_public
from edgeqc.settings import EngineSettings

KEYS_MOST: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """A trust folder as it was read."""

    folder: Path
    signers: dict[bytes, str] = field(default_factory=dict)
    """Public key to the name of its file, without `.pub`."""
    allow_unsigned: bool = False

    def vouch(self, where: Path, signature: Signature | None) -> tuple[str, bool]:
        """Who stands for the package at `where`, and is that someone of the trust folder?

        PackageError where nobody does, unless the configuration lets such packages run.
        """
        signer = self.signers.get(signature.public_key) if signature is not None else None
        if signature is not None and signer is not None:
            return f"signed by {signer} ({signature.fingerprint[:16]})", True
        what = "is not signed" if signature is None else f"is signed by an unknown key ({signature.fingerprint[:16]})"
        if self.allow_unsigned:
            return what, False
        known = ", ".join(sorted(self.signers.values())) or "none"
        raise PackageError(
            f"{where}: {what}; keys in {self.folder}: {known}. To trust its maker's key: edgeqc engine trust KEY.pub; "
            f"to run it without: engines.unsigned: allow"
        )


def trust_of(settings: EngineSettings) -> Trust:
    """Read the trust folder of a configuration."""
    return read_trust(settings.trust, allow_unsigned=settings.unsigned == "allow")


def read_trust(folder: Path, *, allow_unsigned: bool = False) -> Trust:
    """Read all `*.pub` of a folder; one that is missing trusts nobody.

    PackageError where a key cannot be read, or where anybody on the box could put one there.
    """
    signers: dict[bytes, str] = {}
    if folder.is_dir():
        _private(folder)
        found = sorted(folder.glob("*.pub"))
        if len(found) > KEYS_MOST:
            raise PackageError(f"{folder}: {len(found)} keys are over {KEYS_MOST}")
        for path in found:
            _private(path)
            signers.setdefault(load_public(path), path.stem)
    return Trust(folder=folder, signers=signers, allow_unsigned=allow_unsigned)


def add_key(folder: Path, key: Path, *, name: str = "") -> tuple[str, str]:
    """Copy a public key into the folder; returns the name it has there, and its fingerprint.

    PackageError where it is no public key, or another one of that name is there.
    """
    public = load_public(key)
    known = read_trust(folder).signers.get(public)
    if known is not None:
        return known, fingerprint(public)
    target = folder / f"{name or key.stem}.pub"
    if target.exists():
        raise PackageError(f"{target}: is there already and another key; choose another --name")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_bytes(key.read_bytes())
    target.chmod(0o644)
    return target.stem, fingerprint(public)


def _private(path: Path) -> None:
    mode = path.stat().st_mode
    if mode & stat.S_IWOTH:  # with the sticky bit, too: that keeps others from removing, not from adding
        raise PackageError(f"{path}: anybody may write it, and so sign packages; chmod o-w {path}")
