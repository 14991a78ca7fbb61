"""Nets for a job: early features of all views once, then a net learns from them for every fold, and one for the line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from rich.console import Console

from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.settings import RegionSettings
from edgeqc.train.calibrate import Rule
from edgeqc.train.dataset import Picture
from edgeqc.train.learn import Plan, count_parameters, learn
from edgeqc.train.lite0 import LITE0, Lite0, Trunk, Tuned, pretrained_trunk
from edgeqc.train.oneclass import fit_one_class
from edgeqc.train.package import export_onnx, golden_of
from edgeqc.train.pool import Pool
from edgeqc.train.progress import Told
from edgeqc.train.samples import Sample, Task, prepare
from edgeqc.train.scoring import Scored, Scorer, framed
from edgeqc.train.splits import folds_of
from edgeqc.train.views import WIDE, Views

BATCH: Final = 12
"""Views that a step learns from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked for."""

    data: Path
    out: Path
    work: Path
    """Features, checkpoints, findings and out-of-fold scores; an interrupted run goes on from here."""
    name: str
    version: str = "1"
    licence: str = "as the training images"
    group_by: str | None = None
    by_picture: bool = False
    """Each picture is a group of its own, as in published splits: figures flatter."""
    one_class: bool = False
    mirrored: bool = False
    """Judge each part four times, mirrored: better where parts may lie either way round, at four times the time."""
    long_side_px: int = 448
    region: RegionSettings | None = None
    """None: all of the frame where all pictures are of one size, else the part is located on a black surround."""
    views: int = 4000
    steps: int = 450
    minutes: float | None = None
    """Ends the training of each net early; what it then is depends on the machine. None: steps alone decide."""
    rate: float = 1e-3
    folds: int = 5
    """For out-of-fold scores, which the threshold is taken from; 0: a quarter of the groups is held back instead."""
    rule: Rule
    cross_validate: bool = False
    """Also score every picture, the test's included, by a net that saw nothing of its group; the package stays the same."""
    seed: int = 1
    threads: int = 2
    key: Ed25519PrivateKey | None = None
    """Signs the package; None: it is not signed."""


class Trainer:
    """Early features once, then a net for each fold and one for the line."""

    def __init__(self, job: Job, task: Task, console: Console, *, one_class: bool) -> None:
        self._job, self._task, self._console, self._one_class = job, task, console, one_class
        self._samples: list[Sample] = []
        self._trunk: Trunk = pretrained_trunk()
        self._pool: Pool | None = None

    def prepare(self, pictures: list[Picture]) -> None:
        """Load the pictures and compute the features of their views."""
        job = self._job
        with Told(self._console, "load", len(pictures)) as told:
            self._samples = prepare(self._task, framed(self._task, pictures), told.at)
        if self._one_class:
            return
        side = min(_CROP_PX, *self._task.input_shape)
        crop = (side, side)
        key = json.dumps(
            {
                "task": [str(value) for value in asdict(self._task).values()],
                "pictures": [[str(p.path), p.label, p.group] for p in pictures],
                "content": _digest(self._samples),
                "seed": job.seed,
                "variation": asdict(WIDE),
            }
        )
        self._pool = Pool(job.work / "features", job.views, crop, key)
        with Told(self._console, "features", job.views) as told:
            self._pool.fill(
                lambda chunk: Views(
                    self._samples, self._task.spec, crop=crop, seed=job.seed * 100_000 + chunk, variation=WIDE
                ),
                self._trunk,
                told.at,
            )

    def cross_fit(
        self, name: str, pictures: list[Picture], *, without: Sequence[Picture] = ()
    ) -> tuple[Any, list[list[Scored]]]:
        """The net of the last fold, and fold by fold each picture scored by one that saw nothing of its group, nor of `without`."""
        job = self._job
        folds = folds_of(pictures, job.folds or 4, job.seed)
        never = {picture.group for picture in without}
        net: Any = None
        scored: list[list[Scored]] = []
        for fold in range(max(folds.values()) + 1 if job.folds else 1):
            held = [picture for picture in pictures if folds[picture.group] == fold]
            groups = never | {picture.group for picture in held}
            net = self._net(f"{name}{fold + 1}", groups, job.seed + 1 + fold)
            engine = OnnxRuntimeEngine(self._exported(net), threads=job.threads)
            with Told(self._console, f"score {name}{fold + 1}", len(held)) as told:
                scored.append(list(Scorer(engine, self._task)(held, told.at)))
            engine.close()
        return net, scored

    def final(
        self, net: Any, pictures: list[Picture], *, without: Sequence[Picture]
    ) -> tuple[bytes, int, NDArray[np.float32]]:
        """The model for the line, its parameters, and inputs for the golden vectors.

        It is made as those of the folds were, from all of their groups, so that its scores are like theirs, which the
        threshold is from. Without folds it is the very `net` that left out what the threshold is from.
        """
        if self._job.folds:
            net = self._net("final", {picture.group for picture in without}, self._job.seed)
        golden = golden_of(self._task, framed(self._task, _few(pictures)))
        return self._exported(net), count_parameters(self._whole(net)), golden

    def _exported(self, net: Any) -> bytes:
        return export_onnx(self._whole(net), LITE0, self._task, mirrored=self._job.mirrored)

    def _whole(self, net: Any) -> Any:
        return net if self._one_class else Lite0(self._trunk, net).eval()

    def _net(self, name: str, without: Collection[str], seed: int) -> Any:
        """Learn from everything that shows nothing of the groups `without`; resumes and never repeats what is done."""
        held = frozenset(without)
        if self._one_class:
            goods = [sample for sample in self._samples if sample.kind < 0 and sample.group not in held]
            with Told(self._console, name, len(goods)) as told:
                return fit_one_class(self._trunk, goods, self._task, told.at)
        assert self._pool is not None  # noqa: S101 - prepare made it
        plan = Plan(
            steps=self._job.steps,
            minutes=self._job.minutes,
            patience=_PATIENCE_STEPS,
            rate=self._job.rate,
            threads=self._job.threads,
            seed=seed,
            checkpoint=self._job.work / f"{name}.pt",
            key=f"{self._pool.stamp} without {sorted(held)}",
        )
        source = self._pool.batches(without=held, size=BATCH, seed=seed)
        curve = Curve(self._job.work / f"{name}.curve.csv")
        with Told(self._console, name, plan.steps) as told:

            def both(step: int, done: float, loss: float) -> None:
                curve.add(step, loss)
                told.trained(step, done, curve.smooth)

            return learn(lambda: Tuned(self._trunk, len(self._task.classes)), source, LITE0, plan, both)


class Curve:
    """The loss as it falls, in a file that can be watched."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sum = self._count = 0.0
        self.smooth = float("nan")

    def add(self, step: int, loss: float) -> None:
        """One step's loss."""
        self._sum, self._count = self._sum + loss, self._count + 1
        if step % _CURVE_STEPS == 0:
            self.smooth = self._sum / self._count
            self._sum = self._count = 0.0
            first = step == _CURVE_STEPS
            with self._file.open("w" if first else "a") as file:
                file.write("step,loss\n" if first else "")
                file.write(f"{step},{self.smooth:.5f}\n")


_CROP_PX: Final = 192
_CURVE_STEPS: Final = 10
_GOLDEN: Final = 4
_PATIENCE_STEPS: Final = 200


def _digest(samples: Sequence[Sample]) -> str:
    """Of all that views are made of: a mask drawn anew or another picture under an old name is another set."""
    digest = hashlib.sha256()
    for one in samples:
        said = (one.levels.shape, one.mean, one.area, one.kind, one.group, one.masked)
        digest.update(repr(said).encode())
        digest.update(one.levels.tobytes())
        digest.update(one.mask.tobytes())
    return digest.hexdigest()


def _few(pictures: list[Picture]) -> list[Picture]:
    goods = [picture for picture in pictures if not picture.is_defect][: _GOLDEN // 2]
    return [*goods, *[picture for picture in pictures if picture.is_defect][: _GOLDEN - len(goods)]]
