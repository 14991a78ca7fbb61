"""From labelled pictures to a package: examine, split, features, cross-validation, calibration, final net, figures."""

from __future__ import annotations

import csv
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from edgeqc.errors import EdgeqcError
from edgeqc.inference.manifest import Normalise, Preprocessing
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.package import Package
from edgeqc.settings import RegionMode, RegionSettings
from edgeqc.train.calibrate import OF_PART, OF_PICTURE, Rule, calibrated, promise_of, readings_of
from edgeqc.train.dataset import Picture, classes_of, read_dataset
from edgeqc.train.examine import Examined, Finding, examine
from edgeqc.train.figures import best_map_threshold, image_auroc
from edgeqc.train.lite0 import LITE0
from edgeqc.train.package import Origin, Scores, write_package
from edgeqc.train.progress import Told
from edgeqc.train.samples import Task
from edgeqc.train.scoring import Scored, Scorer
from edgeqc.train.splits import SPLIT_FILE, divided, with_split, write_split
from edgeqc.train.trainer import Job, Trainer

LEAST_GOODS: Final = 20
"""Good pictures below which nothing is trained: there is no telling what is usual from so few."""
LEAST_DEFECTS: Final = 2
"""Of one kind; a single one can be learned from or tested on, not both."""


def look_through(job: Job, console: Console) -> Examined:
    """Read and examine the pictures; writes findings.csv. EdgeqcError where too little is left."""
    pictures = with_split(read_dataset(job.data, group_by=job.group_by), job.seed)
    with Told(console, "look", len(pictures)) as told:
        examined = examine(pictures, told.at, by_picture=job.by_picture)
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
    learned, tested, aside = divided(examined.pictures)
    if aside:
        splits = ", ".join(sorted({picture.split for picture in aside}))
        console.print(
            f"{len(aside)} pictures are left aside, neither to learn from nor to test on: of the split {splits}",
            soft_wrap=True,
        )
    one_class = job.one_class or not any(picture.is_defect for picture in learned)
    _enough(learned, tested, one_class=one_class)
    task = task_of_pictures(job, examined, () if one_class else classes_of(learned))
    _promise(console, learned, job.rule, one_class=one_class)
    trainer = Trainer(job, task, console, one_class=one_class)
    trainer.prepare(learned)
    net, folds = trainer.cross_fit("fold", learned, without=tested)
    scored = [one for fold in folds for one in fold]
    write_scores(job.work / "scores.csv", scored, by_picture=job.by_picture)
    model, parameters, golden = trainer.final(net, learned, without=tested)
    with Told(console, "test", len(tested)) as told:
        test = list(Scorer(OnnxRuntimeEngine(model, threads=job.threads), task)(tested, told.at))
    readings = readings_of(scored)
    calibration = calibrated(readings, job.rule, map_threshold=best_map_threshold(scored), backend=_BACKEND)
    if refused := promise_of(readings, job.rule):
        console.print(f"No promise on overkill: {refused}", highlight=False, soft_wrap=True)
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
    groups = {picture.path: picture.group for picture in read_dataset(job.data, group_by=job.group_by)}
    write_split(job.work / SPLIT_FILE, [replace(picture, group=groups[picture.path]) for picture in learned + tested])
    _suspicious(job, scored, calibration.threshold, console)
    if job.cross_validate:
        _cross_validate(job, task, learned + tested, console, one_class=one_class)
    return package


def _cross_validate(job: Job, task: Task, pictures: list[Picture], console: Console, *, one_class: bool) -> None:
    """Nets of their own, from views of all pictures: cross.csv in the work folder has each score, the console the figure."""
    trainer = Trainer(replace(job, work=job.work / "cross"), task, console, one_class=one_class)
    trainer.prepare(pictures)
    _, folds = trainer.cross_fit("fold", pictures)
    write_scores(job.work / "cross.csv", [one for fold in folds for one in fold], by_picture=job.by_picture)
    aurocs = [_auroc(fold) for fold in folds]
    console.print(
        f"Cross-validated over all {len(pictures)} pictures, image AUROC by fold: "
        f"{' '.join(f'{auroc:.3f}' for auroc in aurocs)}, mean {np.mean(aurocs):.4f}",
        soft_wrap=True,
    )


def _auroc(scored: Sequence[Scored]) -> float:
    """Image AUROC of these."""
    scores = scores_of(scored)
    return image_auroc(scores.score[~scores.flawed], scores.score[scores.flawed])


def package_name(text: str) -> str:
    """Small letters, digits, dot, dash and underline of a text, as manifests want it."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "parts"


def task_of_pictures(job: Job, examined: Examined, classes: tuple[str, ...]) -> Task:
    """How frames become inputs, from the pictures' sizes. No `classes`: what is unusual is all that is told."""
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
        classes=classes or ("anomaly",),
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


def write_scores(file: Path, scored: Sequence[Scored], *, by_picture: bool) -> None:
    """path, label, group, part, score, group_is: what `edgeqc calibrate --scores` reads.

    `group_is` says what each group stands for: a `part`, or a `picture` (`by_picture`), of which several may show one part.
    """
    group_is = OF_PICTURE if by_picture else OF_PART
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "group", "part", "score", "group_is"])
        for one in scored:
            picture = one.picture
            writer.writerow([str(picture.path), picture.label, picture.group, picture.part, repr(one.score), group_is])


_BACKEND: Final = "onnxruntime fp32"
_SENSOR_STEP_PX: Final = 64
_PADDED_CONTRAST: Final = 10  # grey levels: a part's dark corners are no brighter than that over black padding
_SUSPECTS: Final = 20


def _up(value: float, step: int) -> int:
    return int(-(-value // step) * step)


def _told(pictures: list[Picture]) -> str:
    counts = Counter(picture.label for picture in pictures)
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))


def _enough(learned: list[Picture], tested: list[Picture], *, one_class: bool) -> None:
    counts = Counter(picture.label for picture in learned)
    faults = []
    if counts["good"] < LEAST_GOODS:
        faults.append(f"{counts['good']} good pictures to learn from are under {LEAST_GOODS}")
    groups = {picture.group for picture in learned if not picture.is_defect}
    if len(groups) == 1:
        faults.append(
            f"all good pictures to learn from are of one group ({groups.pop()}), and one group is held back at a time: "
            "two are the least; see --group-by"
        )
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
    write_scores(file, odd, by_picture=job.by_picture)
    console.print(
        f"{len(odd)} pictures look mislabelled (or are the hardest ones): see {file}", highlight=False, soft_wrap=True
    )
