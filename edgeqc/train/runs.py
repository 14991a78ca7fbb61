"""Packages run as a line would run them: which backend and precision, on which pictures, and a new calibration for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeqc.errors import EdgeqcError, PackageError
from edgeqc.inference.documents import to_yaml
from edgeqc.inference.engine import open_engine
from edgeqc.inference.manifest import Backend, Calibration, Precision
from edgeqc.inference.package import Package, check_golden, load_package
from edgeqc.inference.writing import read_folder, replace_folder
from edgeqc.loading import default_paths
from edgeqc.ports import Engine
from edgeqc.settings import RegionMode, RegionSettings
from edgeqc.train.dataset import TRAIN, Picture
from edgeqc.train.examine import Examined, examine
from edgeqc.train.samples import Task
from edgeqc.train.scoring import Scored, Scorer
from edgeqc.train.splits import SPLIT_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One package on one backend in one precision."""

    package: Package
    """With the model file and the calibration of that precision."""
    backend: Backend
    precision: Precision

    @property
    def label(self) -> str:
        """As a calibration notes it."""
        return f"{self.backend} {self.precision}"

    def open(self, threads: int) -> Engine:
        """Ready to run and checked against the golden vectors; the caller closes it. PackageError."""
        engine = open_engine(self.package, backend=self.backend, threads=threads, state_dir=default_paths()[0])
        try:
            check_golden(engine, self.package)
        except PackageError:
            engine.close()
            raise
        return engine


def as_run(folder: Path, *, backend: str = Backend.ONNXRUNTIME, precision: str = Precision.FP32) -> Run:
    """Load a package as that backend runs it. PackageError where it may not, or where one of the words is unknown."""
    try:
        on, of = Backend(backend), Precision(precision)
    except ValueError as exc:
        known = f"backends: {', '.join(Backend)}; precisions: {', '.join(Precision)}"
        raise PackageError(f"{exc}; {known}") from exc
    return Run(package=load_package(folder).as_run(on, of), backend=on, precision=of)


def runs_of(folder: Path) -> Iterator[Run]:
    """Every way in which the package may run."""
    package = load_package(folder)
    for backend in package.manifest.backends:
        for precision in Precision:
            try:
                yield Run(package=package.as_run(backend, precision), backend=backend, precision=precision)
            except PackageError:
                continue


def task_of(package: Package, sizes: list[tuple[int, int]], region: RegionSettings | None = None) -> Task:
    """How frames become inputs, by the manifest.

    Pictures of one size are a camera's frames, and judged as the line would. Where they are of several, or a part is to
    be located that may fill its picture, smaller ones are laid on black up to the frames of training.

    `region`: as the recipe has it; None: as in training.
    EdgeqcError where they are larger, or where the package does not say what its frames were.
    """
    manifest = package.manifest
    largest = (max(size[0] for size in sizes), max(size[1] for size in sizes))
    frame = manifest.training.frame or largest
    if largest[0] > frame[0] or largest[1] > frame[1]:
        raise EdgeqcError(
            f"pictures of up to {largest[1]}x{largest[0]} px are larger than the frames that {package.name} was trained "
            f"on ({frame[1]}x{frame[0]})"
        )
    region = region or manifest.training.region or RegionSettings()
    if region.mode is not RegionMode.LOCATE and len(set(sizes)) == 1:
        frame = largest
    return Task(
        spec=manifest.preprocess,
        input_shape=package.input_shape,
        frame_shape=frame,
        region=region,
        classes=manifest.classes,
    )


def of_split(data: Path, pictures: list[Picture], split: str) -> list[Picture]:
    """Pictures of one split of `data` ("" = all). EdgeqcError where there are none."""
    chosen = [picture for picture in pictures if split in {"", picture.split}]
    if not chosen:
        splits = sorted({picture.split for picture in pictures} - {""})
        raise EdgeqcError(
            f"{data}: has no split {split}; it has {', '.join(splits) or 'none'}. What a training drew by itself is in its "
            f"OUT.work/{SPLIT_FILE}: keep that beside the package, or name it with --data. Pictures of which the net has "
            "seen nothing need no split: --split ''"
        )
    return chosen


def learned_groups(pictures: Sequence[Picture]) -> set[str]:
    """Groups of which the split `train` shows something: a net scores what it has learned from better than new parts."""
    return {picture.group for picture in pictures if picture.split == TRAIN}


def look(data: Path, pictures: list[Picture], told: Callable[[int], None] = lambda _count: None) -> Examined:
    """Examine these pictures of `data`. EdgeqcError where none can be used."""
    examined = examine(pictures, told)
    if not examined.pictures:
        raise EdgeqcError(f"{data}: none of {len(pictures)} pictures can be used; first: {examined.findings[0].what}")
    return examined


def score_set(
    run: Run, pictures: list[Picture], task: Task, *, threads: int, told: Callable[[int], None] = lambda _count: None
) -> list[Scored]:
    """All pictures by this run's engine."""
    engine = run.open(threads)
    try:
        return list(Scorer(engine, task)(pictures, told))
    finally:
        engine.close()


def recalibrated(
    run: Run, calibration: Calibration, *, out: Path, key: Ed25519PrivateKey, version: str | None = None
) -> Package:
    """The package with another calibration for this run's model file, signed anew, at `out`; None: of the same version.

    The calibration of other files stays as it is; fp32 and bf16 are one file. The old package stays where anything fails.
    """
    folder = run.package.folder
    files = read_folder(folder)
    manifest = yaml.safe_load(files["manifest.yaml"])
    manifest["version"] = version or manifest["version"]
    document = (json.dumps(calibration.model_dump(mode="json", exclude_none=True), indent=2) + "\n").encode()
    digest = hashlib.sha256(document).hexdigest()
    variant = next(
        (name for name, entry in manifest.get("variants", {}).items() if entry["model"] == run.package.digest.hex()),
        None,
    )
    if variant is None:
        # what was measured in training was measured with the threshold of then
        manifest["figures"].setdefault("threshold", run.package.threshold)
        files[_CALIBRATION] = document
        manifest["files"]["calibration"] = digest
    else:
        files[f"calibration.{variant}.json"] = document
        manifest["variants"][variant]["calibration"] = digest
    files["manifest.yaml"] = to_yaml(manifest)
    return replace_folder(out, files, key=key)


_CALIBRATION: Final = "calibration.json"
