"""Making a package folder: all files beside each other first, signed, loaded as the daemon would, then put in place.

For who trains, calibrates or converts: put the contents together, call `write_package` with a key from
`edgeqc.inference.signature` (`load_key`, or `local_key` for this box's own), and a folder is there that is whole.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from edgeqc.errors import PackageError
from edgeqc.inference.documents import to_yaml
from edgeqc.inference.folder import TEXT_LIMIT_BYTES, read_file, read_files, read_whole
from edgeqc.inference.manifest import VariantName
from edgeqc.inference.package import Package, load_package
from edgeqc.inference.signature import SIGNATURE, public_pem, read_signature, sign
from edgeqc.inference.trust import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFiles:
    """A model in another precision, and what goes with it."""

    model: bytes
    """ONNX."""
    golden_tolerance: float
    calibration: Mapping[str, Any] | None = None
    """None: it has none, and may not judge before it is calibrated."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contents:
    """Everything of a package; the manifest's hashes are filled in when it is written."""

    manifest: Mapping[str, Any]
    """As `manifest.yaml` has it, without `files` and `variants`."""
    model: bytes
    """ONNX, static shapes, all weights inside."""
    calibration: Mapping[str, Any]
    golden: Mapping[str, NDArray[np.generic]]
    """`input.<name>` and `output.<name>`, the cases along axis 0."""
    variants: Mapping[VariantName, VariantFiles] = field(default_factory=dict)
    extra: Mapping[str, bytes] = field(default_factory=dict)
    """Further files for people, e.g. a report: signed, and never read by the daemon."""


def write_package(folder: Path, contents: Contents, *, key: Ed25519PrivateKey | None) -> Package:
    """Write, sign (None: not signed), check, and put the folder in place of what was there.

    Until the last step the old folder stands; whatever fails before leaves it as it was. PackageError where the daemon
    would refuse the result, and where something else than a package is in its place; OSError where the disk refuses.
    """
    return replace_folder(folder, _files(contents), key=key)


def only_a_package(folder: Path) -> None:
    """PackageError where something else lies there: what a package replaces is gone. Ask before long work, too."""
    plain = folder.is_dir() and not folder.is_symlink()
    inside = list(folder.iterdir()) if plain else []
    is_package = MANIFEST in {path.name for path in inside} and not any(path.is_dir() for path in inside)
    if os.path.lexists(folder) and not (plain and (is_package or not inside)):
        raise PackageError(f"{folder}: is there and no package, and all in it would be lost: name a folder of its own")


def replace_folder(folder: Path, files: Mapping[str, bytes], *, key: Ed25519PrivateKey | None) -> Package:
    """As `write_package`, from whole files; `signature.json` among them is kept where there is no key."""
    only_a_package(folder)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    whole = dict(files)
    if key is not None:
        whole.pop(SIGNATURE, None)
        whole[SIGNATURE] = sign(whole, key)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in whole.items():
            _write(place / name, content)
        place.chmod(0o755)
        try:
            load_package(place)
        except PackageError as exc:
            raise PackageError(str(exc).replace(str(place), str(folder))) from exc
        _sync(place)
        _exchange(place, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return load_package(folder)


def with_variants(
    folder: Path,
    out: Path,
    variants: Mapping[VariantName, VariantFiles],
    *,
    key: Ed25519PrivateKey | None,
    version: str | None = None,
) -> Package:
    """The package in `folder`, at `out`, with these files added or replaced; `version` None: of the same version."""
    files = read_folder(folder)
    manifest = yaml.safe_load(files[MANIFEST])
    manifest["version"] = version or manifest["version"]
    added, entries = _variants(variants)
    manifest["variants"] = {**manifest.get("variants", {}), **entries}
    files |= added
    files[MANIFEST] = to_yaml(manifest)
    return replace_folder(out, files, key=key)


def sign_folder(folder: Path, key: Ed25519PrivateKey) -> Package:
    """Sign every file of a package as it stands. PackageError where the daemon would refuse it."""
    return replace_folder(folder, read_folder(folder), key=key)


def sign_once(folder: Path, trust: Path, *, name: str) -> Package:
    """Sign with a key that is made for it and forgotten; its public half goes into `trust` as `<name>.pub`.

    Nobody can sign anything else with that key: for packages that are shipped together with the trust they need.
    """
    key = Ed25519PrivateKey.generate()
    package = sign_folder(folder, key)
    trust.mkdir(parents=True, exist_ok=True)
    _write(trust / f"{name}.pub.new", public_pem(key))
    (trust / f"{name}.pub.new").replace(trust / f"{name}.pub")
    return package


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a package but its signature. PackageError for folders and links in it, and for too much of it."""
    return {name: content for name, content in read_whole(folder).items() if name != SIGNATURE}


def read_signed(folder: Path, trust: Trust) -> dict[str, bytes]:
    """The files that a package's signature lists, and it; all files of one that is not signed. PackageError.

    Whether anybody of the trust folder signed it is settled by `signature.json` alone, before the rest is read.
    """
    path = folder / SIGNATURE
    if not folder.is_dir():
        raise PackageError(f"{folder}: is no folder")
    if not os.path.lexists(path):
        trust.vouch(folder, None)
        return read_whole(folder)
    content = read_file(path, TEXT_LIMIT_BYTES)
    signature = read_signature(path, content)
    trust.vouch(folder, signature)
    return {**read_files(folder, signature.files), SIGNATURE: content}


def import_package(
    files: Mapping[str, bytes], into: Path, *, trust: Trust, accept: Callable[[Package], None]
) -> tuple[Package, bool]:
    """Put a package from elsewhere (`read_signed`) at `into`/name/version; returns it, and whether it is new there.

    Signature, hashes and limits are checked, and `accept` (which may raise PackageError) is asked, on the very files
    that are put in place, before they are. PackageError where that name and version is there already and another package.
    """
    into = into.absolute()
    into.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".import.", dir=into))
    try:
        for name, content in files.items():
            _write(place / name, content)
        place.chmod(0o755)
        package = load_package(place, trust=trust)
        target = into / package.manifest.name / package.manifest.version
        if target.exists():
            _same(target, files)
            return load_package(target, trust=trust), False
        accept(package)
        target.parent.mkdir(exist_ok=True)
        _sync(place)
        _exchange(place, target)
    except PackageError as exc:
        raise PackageError(str(exc).replace(str(place), "the package")) from exc
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return load_package(target, trust=trust), True


def _same(target: Path, files: Mapping[str, bytes]) -> None:
    if read_whole(target) != files:
        raise PackageError(f"{target}: is there already, and another package: a version is never changed")


MANIFEST: Final = "manifest.yaml"
_RENAME_EXCHANGE: Final = 2  # linux/fs.h
_AT_FDCWD: Final = -100


def _files(contents: Contents) -> dict[str, bytes]:
    golden = BytesIO()
    np.savez_compressed(golden, allow_pickle=False, **contents.golden)
    files = {
        "model.onnx": contents.model,
        "calibration.json": _json(contents.calibration),
        "golden.npz": golden.getvalue(),
        **contents.extra,
    }
    added, variants = _variants(contents.variants)
    files |= added
    hashes = {"model": "model.onnx", "calibration": "calibration.json", "golden": "golden.npz"}
    manifest = {
        **contents.manifest,
        "files": {key: _sha256(files[name]) for key, name in hashes.items()},
        **({"variants": variants} if variants else {}),
    }
    files[MANIFEST] = to_yaml(manifest)
    return files


def _variants(variants: Mapping[VariantName, VariantFiles]) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """Their files, and what the manifest says of them."""
    files: dict[str, bytes] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, variant in variants.items():
        files[f"model.{name}.onnx"] = variant.model
        entries[name.value] = {"model": _sha256(variant.model), "golden_tolerance": variant.golden_tolerance}
        if variant.calibration is not None:
            files[f"calibration.{name}.json"] = _json(variant.calibration)
            entries[name.value]["calibration"] = _sha256(files[f"calibration.{name}.json"])
    return files, entries


def _json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; what was there is at `new` afterwards."""
    if not folder.exists():
        new.rename(folder)
    elif not _swapped(new, folder):  # a file system that cannot swap (vfat): for a moment there is no folder
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)) / "old"
        folder.rename(aside)
        new.rename(folder)
        shutil.rmtree(aside.parent)
    _sync(folder.parent)


def _swapped(one: Path, other: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    failed: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return failed == 0
