"""From labelled pictures to a package: examine, split, features, cross-validation, calibration, final net, figures."""

from __future__ import annotations

import csv
import json
import re
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from rich.console import Console

from edgeqc.errors import EdgeqcError
from edgeqc.inference.manifest import Normalise, Preprocessing
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.package import Package
from edgeqc.settings import RegionMode, RegionSettings
from edgeqc.train.calibrate import Rule, calibrated, readings_of
from edgeqc.train.dataset import Picture, classes_of, read_dataset
from edgeqc.train.examine import Examined, Finding, examine
from edgeqc.train.figures import best_map_threshold
from edgeqc.train.learn import Plan, count_parameters, learn
from edgeqc.train.lite0 import LITE0, Head, Lite0, Trunk, pretrained_trunk
from edgeqc.train.oneclass import fit_one_class
from edgeqc.train.package import Origin, Scores, export_onnx, golden_of, write_package
from edgeqc.train.pool import Pool
from edgeqc.train.progress import Told
from edgeqc.train.samples import Sample, Task, prepare
from edgeqc.train.scoring import Scored, Scorer, framed
from edgeqc.train.splits import folds_of, with_split
from edgeqc.train.views import WIDE, Views

LEAST_GOODS: Final = 20
"""Good pictures below which nothing is trained: there is no telling what is usual from so few."""
LEAST_DEFECTS: Final = 2
"""Of one kind; a single one can be learned from or tested on, not both."""
BATCH: Final = 16
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
    one_class: bool = False
    mirrored: bool = False
    """Judge each part four times, mirrored: better where parts may lie either way round, at four times the time."""
    long_side_px: int = 448
    region: RegionSettings | None = None
    """None: all of the frame where all pictures are of one size, else the part is located on a black surround."""
    views: int = 4800
    steps: int = 900
    minutes: float | None = None
    """Ends the training of each net early; what it then is depends on the machine. None: steps alone decide."""
    rate: float = 2e-3
    folds: int = 5
    """For out-of-fold scores, which the threshold is taken from; 0: a quarter of the groups is held back instead."""
    rule: Rule
    cross_validate: bool = False
    """Also score every picture, the test's included, by a net that saw nothing of its group: cross.csv in the work folder."""
    seed: int = 1
    threads: int = 2
    key: Ed25519PrivateKey | None = None
    """Signs the package; None: it is not signed."""


def look_through(job: Job, console: Console) -> Examined:
    """Read and examine the pictures; writes findings.csv. EdgeqcError where too little is left."""
    pictures = with_split(read_dataset(job.data, group_by=job.group_by), job.seed)
    with Told(console, "look", len(pictures)) as told:
        examined = examine(pictures, told.at)
    job.work.mkdir(parents=True, exist_ok=True)
    write_findings(job.work / "findings.csv", examined.findings)
    for what, count in Counter(
        (finding.left_out, " ".join(finding.what.split()[:4])) for finding in examined.findings
    ).items():
        console.print(f"{count} pictures {'left out' if what[0] else 'noted'}: {what[1]} ...", soft_wrap=True)
    if examined.findings:
        console.print(f"Each is in {job.work / 'findings.csv'}", soft_wrap=True)
    return examined


def train_vision(job: Job, console: Console) -> Package:
    """The whole way. Nothing of an earlier package at `out` is touched before the new one is complete."""
    began = time.monotonic()
    examined = look_through(job, console)
    pictures = examined.pictures
    learned = [picture for picture in pictures if picture.split != "test"]
    tested = [picture for picture in pictures if picture.split == "test"]
    one_class = job.one_class or not any(picture.is_defect for picture in learned)
    _enough(learned, tested, one_class=one_class)
    task = task_of_pictures(job, examined, one_class=one_class)
    _promise(console, learned, job.rule, one_class=one_class)
    trainer = Trainer(job, task, console, one_class=one_class)
    trainer.prepare(pictures if job.cross_validate else learned)
    nets, scored = trainer.cross_fit("fold", learned, without=tested)
    write_scores(job.work / "scores.csv", scored)
    model, parameters, golden = trainer.joined(nets, learned, without=tested)
    with Told(console, "test", len(tested)) as told:
        test = list(Scorer(OnnxRuntimeEngine(model, threads=job.threads), task)(tested, told.at))
    calibration = calibrated(readings_of(scored), job.rule, map_threshold=best_map_threshold(scored), backend=_BACKEND)
    origin = Origin(
        name=job.name,
        version=job.version,
        description=f"{'One-class' if one_class else 'Supervised'} Lite0 on {job.data.resolve().name}.",
        licence=job.licence,
        data=f"{job.data.resolve().name}: {_told(learned)}",
        seed=job.seed,
        minutes=(time.monotonic() - began) / 60,
        images=len(learned),
        parameters=parameters,
    )
    package = write_package(
        job.out,
        task=task,
        model=model,
        origin=origin,
        calibration=calibration,
        test=scores_of(test),
        golden=golden,
        key=job.key,
    )
    _suspicious(job, scored, calibration.threshold, console)
    if job.cross_validate:
        _, crossed = trainer.cross_fit("cv", pictures)
        write_scores(job.work / "cross.csv", crossed)
    return package


def package_name(text: str) -> str:
    """Small letters, digits, dot, dash and underline of a text, as manifests want it."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "parts"


class Trainer:
    """Features once, then one head for each fold and one for the line."""

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
    ) -> tuple[list[Any], list[Scored]]:
        """The nets of all folds, and each picture scored by the one that saw nothing of its group, nor of `without`."""
        job = self._job
        folds = folds_of(pictures, job.folds or 4, job.seed)
        never = {picture.group for picture in without}
        nets: list[Any] = []
        scored: list[Scored] = []
        for fold in range(max(folds.values()) + 1 if job.folds else 1):
            held = [picture for picture in pictures if folds[picture.group] == fold]
            groups = never | {picture.group for picture in held}
            nets.append(self._net(f"{name}{fold + 1}", groups, job.seed + 1 + fold))
            engine = OnnxRuntimeEngine(self._exported(nets[-1:]), threads=job.threads)
            with Told(self._console, f"score {name}{fold + 1}", len(held)) as told:
                scored += Scorer(engine, self._task)(held, told.at)
            engine.close()
        return nets, scored

    def joined(
        self, nets: list[Any], pictures: list[Picture], *, without: Sequence[Picture]
    ) -> tuple[bytes, int, NDArray[np.float32]]:
        """All folds' nets as one for the line, its parameters, and inputs for the golden vectors.

        The mean of nets that learned from different parts errs less than one that learned from all of them, and takes
        no training more. One-class nets hold a covariance, which is better made of all good parts.
        """
        if self._one_class:
            nets = [self._net("final", {picture.group for picture in without}, self._job.seed)]
        golden = golden_of(self._task, framed(self._task, _few(pictures)))
        return self._exported(nets), count_parameters(self._whole(nets)), golden

    def _exported(self, nets: list[Any]) -> bytes:
        return export_onnx(self._whole(nets), LITE0, self._task, mirrored=self._job.mirrored)

    def _whole(self, nets: list[Any]) -> Any:
        return nets[0] if self._one_class else Lite0(self._trunk, nets).eval()

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

            return learn(lambda: Head(len(self._task.classes)), source, LITE0, plan, both)


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


def task_of_pictures(job: Job, examined: Examined, *, one_class: bool) -> Task:
    """How frames become inputs, from the pictures' sizes."""
    sizes = np.array(examined.sizes)
    height, width = (int(value) for value in sizes.max(axis=0))
    alike = len(set(examined.sizes)) == 1
    scale = min(1.0, job.long_side_px / max(height, width))
    if alike:
        frame, region = (height, width), job.region or RegionSettings()
    else:
        frame = (_up(height + 8, _SENSOR_STEP_PX), _up(width + 8, _SENSOR_STEP_PX))
        region = job.region or RegionSettings(mode=RegionMode.LOCATE, contrast=_PADDED_CONTRAST)
    return Task(
        spec=Preprocessing(normalise=Normalise.MEAN, gain=1.0, offset=-1.0, max_scale=scale, fill="mean"),
        input_shape=(_up(height * scale, LITE0.deepest), _up(width * scale, LITE0.deepest)),
        frame_shape=frame,
        region=region,
        classes=classes_of(examined.pictures) if not one_class else ("anomaly",),
    )


def scores_of(scored: Sequence[Scored]) -> Scores:
    """Scores and truth alone."""
    return Scores(
        score=np.array([one.score for one in scored]),
        flawed=np.array([one.picture.is_defect for one in scored], np.bool_),
    )


def write_findings(file: Path, findings: Sequence[Finding]) -> None:
    """path, left_out, what."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "left_out", "what"])
        writer.writerows([str(one.path), int(one.left_out), one.what] for one in findings)


def write_scores(file: Path, scored: Sequence[Scored]) -> None:
    """path, label, group, part, score: what `edgeqc calibrate --scores` reads."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "group", "part", "score"])
        for one in scored:
            picture = one.picture
            writer.writerow([str(picture.path), picture.label, picture.group, picture.part, repr(one.score)])


_BACKEND: Final = "onnxruntime fp32"
_CROP_PX: Final = 192
_CURVE_STEPS: Final = 10
_SENSOR_STEP_PX: Final = 64
_PADDED_CONTRAST: Final = 10  # grey levels: a part's dark corners are no brighter than that over black padding
_GOLDEN: Final = 4
_SUSPECTS: Final = 20


def _up(value: float, step: int) -> int:
    return int(-(-value // step) * step)


def _few(pictures: list[Picture]) -> list[Picture]:
    goods = [picture for picture in pictures if not picture.is_defect][: _GOLDEN // 2]
    return [*goods, *[picture for picture in pictures if picture.is_defect][: _GOLDEN - len(goods)]]


def _told(pictures: list[Picture]) -> str:
    counts = Counter(picture.label for picture in pictures)
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))


def _enough(learned: list[Picture], tested: list[Picture], *, one_class: bool) -> None:
    counts = Counter(picture.label for picture in learned)
    faults = []
    if counts["good"] < LEAST_GOODS:
        faults.append(f"{counts['good']} good pictures to learn from are under {LEAST_GOODS}")
    if not one_class:
        faults += [
            f"{label}: {count} picture to learn from is under {LEAST_DEFECTS}; add some, or name it as another kind"
            for label, count in sorted(counts.items())
            if count < LEAST_DEFECTS
        ]
    if unseen := {picture.label for picture in tested if picture.is_defect} - counts.keys():
        faults += [] if one_class else [f"{label}: is in the test alone" for label in sorted(unseen)]
    if not tested:
        faults.append("no picture is left to test on")
    if faults:
        raise EdgeqcError("\n".join(faults))


def _promise(console: Console, learned: list[Picture], rule: Rule, *, one_class: bool) -> None:
    goods = [picture for picture in learned if not picture.is_defect]
    groups = len({picture.group for picture in goods})
    console.print(
        f"{_told(learned)} to learn from, {groups} groups of good parts. "
        + (
            "Only good parts are learned (one-class): unusual parts stand out, small known defects may not. "
            if one_class
            else ""
        )
        + rule.outlook(groups),
        highlight=False,
        soft_wrap=True,
    )


def _suspicious(job: Job, scored: Sequence[Scored], threshold: float, console: Console) -> None:
    """Pictures whose out-of-fold score says the opposite of their label most loudly: worth a second look."""
    goods = sorted((one for one in scored if not one.picture.is_defect), key=lambda one: -one.score)
    bads = sorted((one for one in scored if one.picture.is_defect), key=lambda one: one.score)
    floor = float(np.median([one.score for one in goods])) if goods else 0.0
    odd = [one for one in goods[:_SUSPECTS] if one.score >= max(threshold, 0.5)]
    odd += [one for one in bads[:_SUSPECTS] if one.score <= floor]
    if not odd:
        return
    file = job.work / "suspicious.csv"
    write_scores(file, odd)
    console.print(
        f"{len(odd)} pictures look mislabelled (or are the hardest ones): see {file}", highlight=False, soft_wrap=True
    )
