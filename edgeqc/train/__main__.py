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
from edgeqc.sim.images import Labelled, read_index
from edgeqc.sim.parts import SENSOR_SHAPE, Flaw
from edgeqc.train.learn import Plan, count_parameters, learn
from edgeqc.train.net import SMALL, Net
from edgeqc.train.package import Origin, Scores, export_onnx, run_scores, validated, write_package
from edgeqc.train.progress import Told
from edgeqc.train.samples import Raw, Sample, Task, drawn, drawn_samples, indexed, prepare
from edgeqc.train.views import Batches, Variation, Views

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
_TILE_CONTRAST: Final = 10  # grey levels: a tile's bevelled edge is no brighter than that over the black around it
_TILE_SCALE: Final = 0.7  # all pictures alike, so that grinding marks and pores keep their size
_SENSOR_STEP_PX: Final = 64
_VALIDATION_RATIO: Final = 0.25


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/train", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with index.csv: path,label,mask,split,group")
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
    out: Path | None = asked.out
    if out is None:
        raise EdgeqcError("--data needs --out DIR: the package's licence is that of the images")
    if out.resolve().is_relative_to(DEMO_OUT.parents[1]):
        raise EdgeqcError(f"--out {out}: models of foreign images stay out of {DEMO_OUT.parents[1]}")
    began = time.monotonic()
    rows, test_rows = read_index(asked.data, "train"), read_index(asked.data, "test")
    task = _image_task(rows + test_rows)
    kept, held = _split(rows, asked.seed)
    console.print(
        f"{len(kept)} images to train on, {len(held)} for the threshold, {len(test_rows)} for the test; "
        f"frame {task.frame_shape[1]}x{task.frame_shape[0]}, input {task.input_shape[1]}x{task.input_shape[0]}",
        highlight=False,
        soft_wrap=True,
    )
    samples = prepare(task, indexed(task, kept))
    plan = Plan(
        steps=asked.steps or (3000 if asked.quick else 6000),
        minutes=asked.minutes or (7.0 if asked.quick else None),
        rate=1.5e-3,
        threads=asked.threads,
        seed=asked.seed,
    )
    crop = min(192, *task.input_shape)
    batches = Batches(Views(samples, task.spec, crop=(crop, crop), seed=asked.seed), size=12)
    model, parameters = _learn(console, batches, task, plan)
    with Told(console, "validate", len(held)) as told:
        validation, golden = _score(model, task, indexed(task, held), told)
    with Told(console, "test", len(test_rows)) as told:
        test, _ = _score(model, task, indexed(task, test_rows), told)
    name = asked.data.resolve().name.lower().replace("_", "-")
    origin = Origin(
        name=name,
        version="1",
        description=f"Trained on {name}; frames of {task.frame_shape[1]}x{task.frame_shape[0]}.",
        licence="as the training images",
        data=f"{name}, split train of index.csv",
        seed=asked.seed,
        minutes=(time.monotonic() - began) / 60,
        images=len(samples),
        parameters=parameters,
    )
    return write_package(
        out,
        task=task,
        model=model,
        origin=origin,
        calibration=validated(validation),
        test=test,
        golden=golden,
        key=_key(asked),
    )


def _key(asked: argparse.Namespace) -> Ed25519PrivateKey:
    """The key named, or this box's own in the state directory."""
    return load_key(asked.key) if asked.key else local_key(default_paths()[0] / "keys")


def _image_task(rows: list[Labelled]) -> Task:
    """The smallest frame, in steps that sensors come in, that holds every image; and the input that holds it scaled."""
    sizes = []
    for row in rows:
        image = cv2.imread(str(row.path), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise EdgeqcError(f"{row.path}: cannot be read as an image")
        sizes.append(image.shape)
    height, width = np.array(sizes).max(axis=0)
    frame = (_up(height + 8, _SENSOR_STEP_PX), _up(width + 8, _SENSOR_STEP_PX))
    return Task(
        spec=Preprocessing(normalise=Normalise.MEAN, gain=1.0, offset=-1.0, max_scale=_TILE_SCALE, fill="mean"),
        input_shape=(_up(height * _TILE_SCALE, 16), _up(width * _TILE_SCALE, 16)),
        frame_shape=frame,
        region=RegionSettings(mode=RegionMode.LOCATE, contrast=_TILE_CONTRAST),
        classes=tuple(sorted({row.label for row in rows if row.is_defect})),
    )


def _up(value: float, step: int) -> int:
    return int(-(-value // step) * step)


def _split(rows: list[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Hold back a quarter of the groups for the threshold, of good parts and of bad ones alike."""
    rng = np.random.default_rng(seed)
    bad = {row.group for row in rows if row.is_defect}
    held: set[str] = set()
    for groups in (sorted(bad), sorted({row.group for row in rows} - bad)):
        picked = rng.permutation(len(groups))[: max(1, round(len(groups) * _VALIDATION_RATIO))]
        held |= {groups[int(index)] for index in picked}
    return [row for row in rows if row.group not in held], [row for row in rows if row.group in held]


def _learn(console: Console, batches: Batches, task: Task, plan: Plan) -> tuple[bytes, int]:
    with Told(console, "train", plan.steps) as told:
        net = learn(lambda: Net(len(task.classes)), batches, SMALL, plan, told.trained)
    return export_onnx(net, SMALL, task), count_parameters(net)


def _score(model: bytes, task: Task, frames: Iterator[Raw], told: Told) -> tuple[Scores, NDArray[np.float32]]:
    return run_scores(OnnxRuntimeEngine(model), task, frames, told.at)


if __name__ == "__main__":
    sys.exit(main())
