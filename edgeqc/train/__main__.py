"""Train a model package: on parts that edgeqc draws itself, or on a folder of labelled images."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from rich.console import Console

import edgeqc
from edgeqc.errors import EdgeqcError
from edgeqc.inference.manifest import Normalise, Preprocessing
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.package import Package
from edgeqc.inference.signature import load_key, local_key
from edgeqc.inference.writing import sign_once
from edgeqc.loading import default_paths
from edgeqc.settings import RegionMode, RegionSettings
from edgeqc.sim.parts import SENSOR_SHAPE, Flaw
from edgeqc.train.calibrate import Rule
from edgeqc.train.learn import Plan, count_parameters, learn
from edgeqc.train.net import SMALL, Net
from edgeqc.train.package import Origin, Scores, export_onnx, run_scores, validated, write_package
from edgeqc.train.progress import Told
from edgeqc.train.samples import Raw, Sample, Task, drawn, drawn_samples
from edgeqc.train.trainer import BATCH, Job
from edgeqc.train.views import Batches, Variation, Views
from edgeqc.train.vision import package_name, train_vision

DEMO_OUT: Final = Path(edgeqc.__file__).resolve().parents[1] / "engines" / "demo-part" / "1"


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, write, tell. Exit code 0, or 2 where it was asked for something impossible."""
    asked = _parser().parse_args(arguments)
    cv2.setNumThreads(1)
    console = Console()
    try:
        package = _train_images(asked, console) if asked.data else _train_drawn(asked, console)
    except EdgeqcError as exc:
        console.print(f"[red]{exc}[/red]", soft_wrap=True)
        return 2
    figures = package.manifest.figures
    console.print(
        f"{package.folder}: {package.name}, {len(package.model) / 1e6:.2f} MB, threshold {package.threshold:g}\n"
        f"test: AUROC {figures.auroc:.4f}, escapes {figures.escapes} of {figures.defects} defects, "
        f"overkill {figures.overkills} of {figures.goods} good parts",
        highlight=False,
        soft_wrap=True,
    )
    return 0


_DRAWN_TASK: Final = Task(
    spec=Preprocessing(normalise=Normalise.MEAN, gain=1.0, offset=-1.0, max_scale=4.0),
    input_shape=(256, 256),
    frame_shape=SENSOR_SHAPE,
    region=RegionSettings(mode=RegionMode.LOCATE),
    classes=tuple(flaw.value for flaw in Flaw),
)
_SMALL_SHAPE: Final = (512, 640)  # a quarter of the drawn parts: the demo may be asked for a smaller sensor
_SMALL_SHARE: Final = 0.25
_DRAWN_RATIO: Final = 0.6
_QUICK_VIEWS: Final = 1600
_QUICK_STEPS: Final = 400
_QUICK_MINUTES: Final = 5.0  # of the steps alone: on a busy box the engine gets worse, not later


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/train", description=__doc__)
    parser.add_argument("--data", type=Path, help="labelled images, in any form that edgeqc train vision reads")
    parser.add_argument("--out", type=Path, help="package folder (without --data: engines/demo-part/1)")
    parser.add_argument(
        "--quick", action="store_true", help="drawn parts: a rough model in 2 minutes; --data: under 10"
    )
    parser.add_argument("--minutes", type=float, help="end the training loop after this; the model then varies")
    parser.add_argument("--steps", type=int, help="batches to train on")
    parser.add_argument("--parts", type=int, help="drawn parts to train on")
    parser.add_argument("--key", type=Path, help="private key that signs the package (default: state/keys/local.key)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use (default 2)")
    return parser


def _train_drawn(asked: argparse.Namespace, console: Console) -> Package:
    task = _DRAWN_TASK
    parts = asked.parts or (600 if asked.quick else 4000)
    steps = asked.steps or (150 if asked.quick else 1600)
    held = max(20, min(500, parts // 4))
    tested = max(20, min(1200, parts // 2))
    began = time.monotonic()
    samples: list[Sample] = []
    small = round(parts * _SMALL_SHARE)
    for shape, count, seed in ((SENSOR_SHAPE, parts - small, asked.seed), (_SMALL_SHAPE, small, asked.seed + 1)):
        sized = replace(task, frame_shape=shape)
        with Told(console, f"draw {shape[1]}x{shape[0]}", count) as told:
            samples += drawn_samples(
                sized, count=count, seed=seed, defect_ratio=_DRAWN_RATIO, workers=asked.threads, told=told.at
            )
    plan = Plan(steps=steps, minutes=asked.minutes, threads=asked.threads, seed=asked.seed)
    views = Views(samples, task.spec, crop=task.input_shape, seed=asked.seed, variation=Variation(turns=True))
    batches = Batches(views, size=16)
    model, parameters = _learn(console, batches, task, plan)
    with Told(console, "validate", held) as told:
        validation, golden = _score(model, task, drawn(task, count=held, seed=asked.seed + 2, defect_ratio=0.5), told)
    with Told(console, "test", tested) as told:
        test, _ = _score(model, task, drawn(task, count=tested, seed=asked.seed + 3, defect_ratio=0.5), told)
    origin = Origin(
        name="demo-part",
        version="1",
        description="Turned flanges drawn by edgeqc.sim.parts: scratches, dents, stains and chips.",
        licence="Apache-2.0",
        data=f"drawn by edgeqc.sim.parts, seeds {asked.seed} and {asked.seed + 1}; threshold {asked.seed + 2}, "
        f"test {asked.seed + 3}",
        seed=asked.seed,
        minutes=(time.monotonic() - began) / 60,
        images=len(samples),
        parameters=parameters,
    )
    package = write_package(
        asked.out or DEMO_OUT,
        task=task,
        model=model,
        origin=origin,
        calibration=validated(validation),
        test=test,
        golden=golden,
        key=_key(asked) if asked.out else None,
    )
    if asked.out:
        return package
    # The shipped package: its key is forgotten at once, so that the trust that is shipped with it is good for nothing else.
    return sign_once(DEMO_OUT, DEMO_OUT.parents[1] / "trust", name="demo-part")


def _train_images(asked: argparse.Namespace, console: Console) -> Package:
    """The way of `edgeqc train vision`; quick: its threshold from a quarter of the groups."""
    out: Path | None = asked.out
    if out is None:
        raise EdgeqcError("--data needs --out DIR: the package's licence is that of the images")
    if out.resolve().is_relative_to(DEMO_OUT.parents[1]):
        raise EdgeqcError(f"--out {out}: models of foreign images stay out of {DEMO_OUT.parents[1]}")
    job = Job(
        data=asked.data,
        out=out,
        work=out.with_name(f"{out.name}.work"),
        name=package_name(asked.data.resolve().name),
        rule=Rule(),
        seed=asked.seed,
        threads=asked.threads,
        key=_key(asked),
    )
    if asked.quick:
        steps = asked.steps or _QUICK_STEPS
        views = min(_QUICK_VIEWS, BATCH * steps)  # no more than the steps look at
        return train_vision(
            replace(job, views=views, steps=steps, folds=0, minutes=asked.minutes or _QUICK_MINUTES), console
        )
    return train_vision(replace(job, steps=asked.steps or job.steps, minutes=asked.minutes), console)


def _key(asked: argparse.Namespace) -> Ed25519PrivateKey:
    """The key named, or this box's own in the state directory."""
    return load_key(asked.key) if asked.key else local_key(default_paths()[0] / "keys")


def _learn(console: Console, batches: Batches, task: Task, plan: Plan) -> tuple[bytes, int]:
    with Told(console, "train", plan.steps) as told:
        net = learn(lambda: Net(len(task.classes)), batches, SMALL, plan, told.trained)
    return export_onnx(net, SMALL, task), count_parameters(net)


def _score(model: bytes, task: Task, frames: Iterator[Raw], told: Told) -> tuple[Scores, NDArray[np.float32]]:
    return run_scores(OnnxRuntimeEngine(model), task, frames, told.at)


if __name__ == "__main__":
    sys.exit(main())
