"""A tag model's package: a folder that is read whole, checked against its own hashes, and then never read again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import PackageError
from edgeqc.inference.arrays import read_arrays
from edgeqc.inference.documents import from_json, from_yaml
from edgeqc.inference.folder import read_file
from edgeqc.inference.onnxfile import OnnxFault, survey
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
    golden: dict[str, NDArray[np.generic]]
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
    path = folder / "manifest.yaml"
    manifest = from_yaml(TagManifest, path, read_file(path, _LIMIT_BYTES))
    files = manifest.files
    path = folder / "calibration.json"
    calibration = from_json(TagCalibration, path, _verified(path, files.calibration))
    count = len(manifest.tags)
    sizes = {
        len(calibration.level_usual),
        len(calibration.forecast_scale.centre),
        len(calibration.level_scale.centre),
        len(calibration.monitor.scale.centre),
    }
    if sizes != {count}:
        raise PackageError(f"{path}: is for {sorted(sizes)} tags, the manifest has {count}")
    model = None if files.model is None else _model(folder / "model.onnx", files.model)
    golden = {} if files.golden is None else _golden(folder / "golden.npz", files.golden, manifest)
    return TagPackage(folder=folder, manifest=manifest, calibration=calibration, model=model, golden=golden)


def _verified(path: Path, expected: str) -> bytes:
    content = read_file(path, _LIMIT_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise PackageError(f"{path}: SHA-256 is {found}, the manifest says {expected}")
    return content


def _model(path: Path, digest: str) -> bytes:
    content = _verified(path, digest)
    try:
        survey(content)
    except OnnxFault as exc:
        raise PackageError(f"{path}: {exc}") from exc
    return content


def _golden(path: Path, digest: str, manifest: TagManifest) -> dict[str, NDArray[np.generic]]:
    count = len(manifest.tags)
    expected = {"tags": ("float32", (count,)), "forecast": ("float32", (manifest.members, count))}
    try:
        return read_arrays(_verified(path, digest), expected)
    except ValueError as exc:
        raise PackageError(f"{path}: {exc}") from exc
