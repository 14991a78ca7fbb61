"""Model packages: a folder that is read whole, checked against its own hashes, and then never read again."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import PackageError
from edgeqc.inference.arrays import UNPACKED_MOST_BYTES, read_arrays
from edgeqc.inference.documents import from_json, from_yaml
from edgeqc.inference.folder import MODEL_LIMIT_BYTES, TEXT_LIMIT_BYTES, read_file
from edgeqc.inference.manifest import MAP, Backend, Calibration, Manifest, Precision, VariantName
from edgeqc.inference.onnxfile import OnnxFault, survey
from edgeqc.inference.signature import SIGNATURE, Signature, check_files, read_signature
from edgeqc.inference.trust import Trust
from edgeqc.ports import Engine, EngineIo, TensorSpec


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
    golden: dict[str, NDArray[np.generic]]
    """`input.<name>` and `output.<name>`, each with the cases along axis 0."""
    golden_tolerance: float
    """How far the model's outputs may be from the golden ones."""
    precision: Precision = Precision.FP32
    calibrated: bool = True
    """Is the calibration of this very precision? Another's threshold is that of other scores."""
    variant: VariantName | None = None
    variants: dict[VariantName, Package] = field(default_factory=dict)
    """The same package with another model file in place of `model`."""
    signature: Signature | None = None
    vouched: str = ""
    """Who stands for it, in words; empty where it was loaded without asking."""
    trusted: bool = False
    """Signed by a key of the trust folder."""

    @property
    def model_file(self) -> Path:
        """Where `model` came from, for messages only."""
        return self.folder / (f"model.{self.variant}.onnx" if self.variant else "model.onnx")

    def as_run(self, backend: Backend, precision: Precision) -> Package:
        """The package as this backend runs it in this precision: its own model file, calibration and tolerance.

        PackageError where the package has no such file, or does not let that run.
        """
        manifest = self.manifest
        if backend not in manifest.backends:
            raise PackageError(f"{self.folder}: may not run on {backend} (backends: {', '.join(manifest.backends)})")
        if precision is Precision.BF16 and not manifest.bf16:
            raise PackageError(f"{self.folder}: may not run in bf16 (bf16: false)")
        if precision is Precision.BF16 and backend is not Backend.OPENVINO:
            raise PackageError(f"{self.folder}: only openvino runs the fp32 file in bf16")
        if precision in {Precision.FP32, Precision.BF16}:  # one file, one calibration
            return replace(self, precision=precision, calibrated=precision is self._calibrated_for)
        quantised = VariantName.INT8_TENSORRT if backend is Backend.TENSORRT else VariantName.INT8_CPU
        name = VariantName.FP16 if precision is Precision.FP16 else quantised
        if name not in self.variants:
            raise PackageError(
                f"{self.folder}: has no model.{name}.onnx; make it with: edgeqc engine convert {self.folder}"
            )
        return self.variants[name]

    @property
    def _calibrated_for(self) -> Precision:
        """Whose scores the calibration of `model.onnx` is made of."""
        return Precision.BF16 if self.calibration.backend.endswith(f" {Precision.BF16}") else Precision.FP32

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
        return self.manifest.input_shape

    @property
    def map_shape(self) -> tuple[int, int]:
        """(height, width) of the model's defect map, in cells."""
        shape = next(tensor.shape for tensor in self.manifest.outputs if tensor.name == MAP)
        return shape[2], shape[3]

    @property
    def threshold(self) -> float:
        """A part with this score or more is a defect, unless the recipe says otherwise."""
        return self.calibration.threshold


def load_package(folder: Path, *, trust: Trust | None = None) -> Package:
    """Read and check a package folder. PackageError with file, value and limit; nothing is kept open.

    Where there is a signature, it must fit. With `trust`, one of its keys must have made it (or the configuration lets
    packages run that nobody signed); that is settled before anything but `signature.json` is parsed.
    """
    signature = _signature(folder)
    vouched, trusted = trust.vouch(folder, signature) if trust is not None else ("", False)

    def read(name: str, limit: int, expected: str = "") -> bytes:
        content = read_file(folder / name, limit)
        if signature is not None:
            check_files(folder / SIGNATURE, signature, {name: content})
        found = hashlib.sha256(content).hexdigest()
        if expected and found != expected:
            raise PackageError(f"{folder / name}: SHA-256 is {found}, the manifest says {expected}")
        return content

    manifest = from_yaml(Manifest, folder / "manifest.yaml", read("manifest.yaml", TEXT_LIMIT_BYTES))
    model = _model(folder, "model.onnx", read, manifest.files.model)
    calibration = _calibration(folder, "calibration.json", read, manifest.files.calibration)
    golden = read("golden.npz", UNPACKED_MOST_BYTES, manifest.files.golden)
    package = Package(
        folder=folder,
        digest=hashlib.sha256(model).digest(),
        model=model,
        manifest=manifest,
        calibration=calibration,
        golden=_golden(folder / "golden.npz", golden, manifest),
        golden_tolerance=manifest.golden_tolerance,
        signature=signature,
        vouched=vouched,
        trusted=trusted,
    )
    for name, variant in manifest.variants.items():
        model = _model(folder, f"model.{name}.onnx", read, variant.model)
        package.variants[name] = replace(
            package,
            digest=hashlib.sha256(model).digest(),
            model=model,
            variant=name,
            precision=Precision.FP16 if name is VariantName.FP16 else Precision.INT8,
            calibration=_calibration(folder, f"calibration.{name}.json", read, variant.calibration)
            if variant.calibration is not None
            else calibration,
            calibrated=variant.calibration is not None,
            golden_tolerance=variant.golden_tolerance,
            variants={},
        )
    return package


def check_golden(engine: Engine, package: Package) -> float:
    """Run the golden inputs and return the largest difference of any output from what it must be.

    PackageError where that is over the manifest's tolerance, or not a number: this engine must not judge parts.
    """
    worst, where = golden_difference(engine, package)
    limit = package.golden_tolerance
    if worst > limit:
        raise PackageError(
            f"{package.folder}: {engine.backend} is off the golden outputs by {worst:.3g} ({where}), limit {limit:g}"
        )
    return worst


def golden_difference(engine: Engine, package: Package) -> tuple[float, str]:
    """The largest difference of any output from the golden ones (inf where it is not a number), and where it is."""
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
    return worst, where


def check_io(engine_io: EngineIo, package: Package) -> None:
    """PackageError where the model's own inputs and outputs are not those of the manifest."""
    for side in ("inputs", "outputs"):
        found: dict[str, TensorSpec] = {tensor.name: tensor for tensor in getattr(engine_io, side)}
        said: dict[str, TensorSpec] = {tensor.name: tensor for tensor in getattr(package.io, side)}
        for name in sorted(found.keys() | said.keys()):
            model, manifest = _tell(found.get(name)), _tell(said.get(name))
            if model != manifest:
                raise PackageError(f"{package.folder / 'model.onnx'}: {name}: {model}, the manifest says {manifest}")


_GOLDEN_NS: Final = 30_000_000_000


def _tell(tensor: TensorSpec | None) -> str:
    return "is not there" if tensor is None else f"{tensor.dtype}{list(tensor.shape)}"


class _Read(Protocol):
    """Reads a file of the package, checked against signature and manifest."""

    def __call__(self, name: str, limit: int, expected: str = "") -> bytes: ...


def _signature(folder: Path) -> Signature | None:
    path = folder / SIGNATURE
    if not folder.is_dir():
        raise PackageError(f"{folder}: is no folder")
    return read_signature(path, read_file(path, TEXT_LIMIT_BYTES)) if os.path.lexists(path) else None


def _model(folder: Path, name: str, read: _Read, expected: str) -> bytes:
    content = read(name, MODEL_LIMIT_BYTES, expected)
    try:
        survey(content)
    except OnnxFault as exc:
        raise PackageError(f"{folder / name}: {exc}") from exc
    return content


def _calibration(folder: Path, name: str, read: _Read, expected: str) -> Calibration:
    return from_json(Calibration, folder / name, read(name, TEXT_LIMIT_BYTES, expected))


def _golden(path: Path, content: bytes, manifest: Manifest) -> dict[str, NDArray[np.generic]]:
    expected = {f"input.{tensor.name}": (tensor.dtype, tensor.shape) for tensor in manifest.inputs}
    expected |= {f"output.{tensor.name}": (tensor.dtype, tensor.shape) for tensor in manifest.outputs}
    try:
        return read_arrays(content, expected)
    except ValueError as exc:
        raise PackageError(f"{path}: {exc}") from exc
