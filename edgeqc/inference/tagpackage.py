"""A tag model's package: a folder that is read whole, checked against its own hashes, and then never read again."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from edgeqc.errors import PackageError
from edgeqc.inference.tagmanifest import TagCalibration, TagManifest

_LIMIT_BYTES: Final = 16 << 20
"""Of each file: the networks are 50 kB; ten times the largest that steps in 100 us on such a box."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TagPackage:
    """A verified package, in memory."""

    folder: Path
    manifest: TagManifest
    calibration: TagCalibration
    model: bytes | None
    """The ONNX file; None: the monitor alone."""
    golden: dict[str, NDArray[np.float32]]
    """`tags` (rows, tags) scaled, `forecast` (rows, members, tags); empty without a network."""

    @property
    def name(self) -> str:
        """`name/version`, as logs and topics say it."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def tags(self) -> tuple[str, ...]:
        """Names, in the model's order."""
        return tuple(tag.name for tag in self.manifest.tags)


def load_tag_package(folder: Path) -> TagPackage:
    """Read and check a package folder. PackageError with file, value and limit; nothing is kept open."""
    manifest = _parse(TagManifest, folder / "manifest.yaml", _yaml(folder / "manifest.yaml"))
    files = manifest.files
    try:
        text = json.loads(_verified(folder / "calibration.json", files.calibration))
    except ValueError as exc:
        raise PackageError(f"{folder / 'calibration.json'}: {exc}") from exc
    calibration = _parse(TagCalibration, folder / "calibration.json", text)
    count = len(manifest.tags)
    sizes = {
        len(calibration.level_usual),
        len(calibration.forecast_scale.centre),
        len(calibration.level_scale.centre),
        len(calibration.monitor.scale.centre),
    }
    if sizes != {count}:
        raise PackageError(f"{folder / 'calibration.json'}: is for {sorted(sizes)} tags, the manifest has {count}")
    model = None if files.model is None else _verified(folder / "model.onnx", files.model)
    golden = {} if files.golden is None else _arrays(folder / "golden.npz", files.golden, manifest)
    return TagPackage(folder=folder, manifest=manifest, calibration=calibration, model=model, golden=golden)


_Document = TypeVar("_Document", bound=BaseModel)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
    except OSError as exc:
        raise PackageError(f"{path}: {exc.strerror}") from exc
    if len(content) > _LIMIT_BYTES:
        raise PackageError(f"{path}: is over {_LIMIT_BYTES} bytes")
    return content


def _verified(path: Path, expected: str) -> bytes:
    content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise PackageError(f"{path}: SHA-256 is {found}, the manifest says {expected}")
    return content


def _yaml(path: Path) -> object:
    try:
        document: object = yaml.safe_load(_read(path))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise PackageError(f"{path}: {str(exc)[:500]}") from exc
    return document


def _parse(kind: type[_Document], path: Path, document: object) -> _Document:
    try:
        return kind.model_validate(document)
    except ValidationError as exc:
        lines = []
        for fault in exc.errors(include_url=False):
            where = ".".join(str(step) for step in fault["loc"]) or "whole file"
            lines.append(f"{path}: {where}: {fault['msg']}")
        raise PackageError("\n".join(lines[:20])) from exc


def _arrays(path: Path, digest: str, manifest: TagManifest) -> dict[str, NDArray[np.float32]]:
    content = _verified(path, digest)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _LIMIT_BYTES:
            raise PackageError(f"{path}: unpacks to {unpacked} bytes, over {_LIMIT_BYTES}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            golden = {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as exc:
        raise PackageError(f"{path}: {exc}") from exc
    rows = len(golden["tags"]) if "tags" in golden else 0
    count = len(manifest.tags)
    shapes = {"tags": (rows, count), "forecast": (rows, manifest.members, count)}
    found = {name: array.shape for name, array in golden.items()}
    finite = all(array.dtype == np.float32 and np.isfinite(array).all() for array in golden.values())
    if found != shapes or not rows or not finite:
        raise PackageError(f"{path}: holds {found}, must hold finite float32 {shapes}")
    return golden
