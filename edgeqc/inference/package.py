"""Model packages: a folder that is read whole, checked against its own hashes, and then never read again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from edgeqc.errors import PackageError
from edgeqc.inference.manifest import MAP, Calibration, Manifest
from edgeqc.ports import Engine, EngineIo, TensorSpec

MODEL_LIMIT_BYTES: Final = 256 << 20
"""Over ten times the largest model that fits a takt on such a box (12 MB); what the daemon's memory budget bears."""
GOLDEN_LIMIT_BYTES: Final = 64 << 20
TEXT_LIMIT_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Package:
    """A verified package, in memory."""

    folder: Path
    """Where it was read from, for messages only."""
    digest: bytes
    """SHA-256 of the model file."""
    model: bytes
    """The ONNX file that `digest` belongs to."""
    manifest: Manifest
    calibration: Calibration
    golden: dict[str, NDArray[np.float32]]
    """`input.<name>` and `output.<name>`, each with the cases along axis 0."""

    @property
    def name(self) -> str:
        """`name@version`, as logs and topics say it."""
        return f"{self.manifest.name}@{self.manifest.version}"

    @property
    def io(self) -> EngineIo:
        """What the model reads and writes."""
        manifest = self.manifest
        return EngineIo(
            inputs=tuple(TensorSpec(name=t.name, dtype=t.dtype, shape=t.shape) for t in manifest.inputs),
            outputs=tuple(TensorSpec(name=t.name, dtype=t.dtype, shape=t.shape) for t in manifest.outputs),
        )

    @property
    def input_shape(self) -> tuple[int, int]:
        """(height, width) of the image that the model reads."""
        return self.manifest.inputs[0].shape[2], self.manifest.inputs[0].shape[3]

    @property
    def map_shape(self) -> tuple[int, int]:
        """(height, width) of the model's defect map, in cells."""
        shape = next(tensor.shape for tensor in self.manifest.outputs if tensor.name == MAP)
        return shape[2], shape[3]

    @property
    def threshold(self) -> float:
        """A part with this score or more is a defect, unless the recipe says otherwise."""
        return self.calibration.threshold


def load_package(folder: Path) -> Package:
    """Read and check a package folder. PackageError with file, value and limit; nothing is kept open."""
    manifest = _parse(Manifest, folder / "manifest.yaml", _yaml(folder / "manifest.yaml"))
    model = _verified(folder / "model.onnx", MODEL_LIMIT_BYTES, manifest.files.model)
    text = _verified(folder / "calibration.json", TEXT_LIMIT_BYTES, manifest.files.calibration)
    golden = _verified(folder / "golden.npz", GOLDEN_LIMIT_BYTES, manifest.files.golden)
    if _EXTERNAL in model:
        raise PackageError(f"{folder / 'model.onnx'}: keeps data in other files; export it with all weights inside")
    try:
        document = json.loads(text)
    except ValueError as exc:
        raise PackageError(f"{folder / 'calibration.json'}: {exc}") from exc
    return Package(
        folder=folder,
        digest=hashlib.sha256(model).digest(),
        model=model,
        manifest=manifest,
        calibration=_parse(Calibration, folder / "calibration.json", document),
        golden=_arrays(folder / "golden.npz", golden, manifest),
    )


def check_golden(engine: Engine, package: Package) -> float:
    """Run the golden inputs and return the largest difference of any output from what it must be.

    PackageError where that is over the manifest's tolerance, or not a number: this engine must not judge parts.
    """
    worst, where = 0.0, ""
    cases = len(next(iter(package.golden.values())))
    for case in range(cases):
        slot = engine.acquire()
        try:
            for tensor in package.io.inputs:
                np.copyto(slot.input(tensor.name), package.golden[f"input.{tensor.name}"][case])
            engine.submit(slot)
            engine.wait(slot, time.monotonic_ns() + _GOLDEN_NS)
            for tensor in package.io.outputs:
                expected = package.golden[f"output.{tensor.name}"][case]
                difference = float(np.max(np.abs(np.asarray(slot.output(tensor.name), np.float32) - expected)))
                if not difference <= worst:  # not a number, too
                    worst = difference if np.isfinite(difference) else np.inf
                    where = f"case {case}, output {tensor.name}"
        finally:
            slot.release()
    limit = package.manifest.golden_tolerance
    if worst > limit:
        raise PackageError(
            f"{package.folder}: {engine.backend} is off the golden outputs by {worst:.3g} ({where}), limit {limit:g}"
        )
    return worst


def check_io(engine_io: EngineIo, package: Package) -> None:
    """PackageError where the model's own inputs and outputs are not those of the manifest."""
    for side in ("inputs", "outputs"):
        found: dict[str, TensorSpec] = {tensor.name: tensor for tensor in getattr(engine_io, side)}
        said: dict[str, TensorSpec] = {tensor.name: tensor for tensor in getattr(package.io, side)}
        for name in sorted(found.keys() | said.keys()):
            model, manifest = _tell(found.get(name)), _tell(said.get(name))
            if model != manifest:
                raise PackageError(f"{package.folder / 'model.onnx'}: {name}: {model}, the manifest says {manifest}")


_EXTERNAL: Final = b"\x0a\x08location"
"""ONNX' StringStringEntryProto with the key `location`: how a tensor points at another file. ONNX Runtime 1.31 refuses
that for a model given as bytes, but only after it has looked beside the working directory."""
_GOLDEN_NS: Final = 30_000_000_000
_Document = TypeVar("_Document", bound=BaseModel)


def _tell(tensor: TensorSpec | None) -> str:
    return "is not there" if tensor is None else f"{tensor.dtype}{list(tensor.shape)}"


def _read(path: Path, limit: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        reason = "is a symbolic link" if path.is_symlink() else exc.strerror
        raise PackageError(f"{path}: {reason}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PackageError(f"{path}: is not a regular file")
        if status.st_size > limit:
            raise PackageError(f"{path}: {status.st_size} bytes are over {limit}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)


def _verified(path: Path, limit: int, expected: str) -> bytes:
    content = _read(path, limit)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise PackageError(f"{path}: SHA-256 is {found}, the manifest says {expected}")
    return content


def _yaml(path: Path) -> object:
    try:
        document: object = yaml.safe_load(_read(path, TEXT_LIMIT_BYTES))
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
            value = "" if fault["type"] in {"missing", "value_error"} else f"{str(fault['input'])[:80]}: "
            lines.append(f"{path}: {where}: {value}{fault['msg']}")
        raise PackageError("\n".join(lines)) from exc


def _arrays(path: Path, content: bytes, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    expected = {f"input.{tensor.name}": tensor.shape for tensor in manifest.inputs}
    expected |= {f"output.{tensor.name}": tensor.shape for tensor in manifest.outputs}
    try:
        _bound(path, content)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as exc:
        raise PackageError(f"{path}: {exc}") from exc
    if arrays.keys() != expected.keys():
        raise PackageError(f"{path}: holds {sorted(arrays)}, must hold {sorted(expected)}")
    cases = {len(array) if array.ndim else 0 for array in arrays.values()}
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape[1:] != expected[name] or len(cases) != 1 or 0 in cases:
            raise PackageError(
                f"{path}: {name}: {array.dtype}{list(array.shape)}, must be float32[n, {expected[name]}]"
            )
        if not np.isfinite(array).all():
            raise PackageError(f"{path}: {name}: has values that are not finite")
    return arrays


def _bound(path: Path, content: bytes) -> None:
    """Refuse an archive that unpacks to more than the limit: a small file can hold gigabytes of zeros."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > GOLDEN_LIMIT_BYTES:
        raise PackageError(f"{path}: unpacks to {unpacked} bytes, over {GOLDEN_LIMIT_BYTES}")
