"""`edgeqc eval vision`: what a package is worth on labelled pictures, as JSON and as a page with pictures."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from edgeqc.cli.calibrate import Contrast, Region, region_of, tell_findings, tell_unknown
from edgeqc.cli.console import show, talk
from edgeqc.cli.traintags import eval_tags


def vision(  # noqa: PLR0917 - each is a switch of the command
    data: Annotated[Path, typer.Option(help="Labelled pictures; forms as of `edgeqc train vision`.")],
    engine: Annotated[Path, typer.Option(help="Folder of the package.")],
    report: Annotated[Path, typer.Option(help="JSON; the page with pictures goes beside it as .html.")],
    split: Annotated[str, typer.Option(help="Which of the data's splits; '' for all.")] = "test",
    group_by: Annotated[str | None, typer.Option(metavar="REGEX", help="As when it was trained.")] = None,
    backend: Annotated[str, typer.Option(help="Whose scores the figures are of.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "fp32",
    region: Region = None,
    contrast: Contrast = 24,
    threads: Annotated[int, typer.Option(min=1, max=64)] = 2,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="Score with every backend and precision that runs here, too.")
    ] = False,
    repeat: Annotated[int, typer.Option(min=0, help="Judge up to 40 parts this many times; 0: not.")] = 5,
) -> None:
    """Report AUROC, escape, overkill, pixel figures, intervals, worst mistakes with their maps, latency, agreement."""
    from rich.console import Console  # noqa: PLC0415 - heavy

    from edgeqc.train import evaluate, runs  # noqa: PLC0415 - heavy
    from edgeqc.train.dataset import TRAIN, read_dataset  # noqa: PLC0415 - heavy
    from edgeqc.train.progress import Told  # noqa: PLC0415 - heavy
    from edgeqc.train.report import page  # noqa: PLC0415 - heavy
    from edgeqc.train.scoring import Scorer  # noqa: PLC0415 - heavy
    from edgeqc.train.splits import with_drawn_split  # noqa: PLC0415 - heavy

    console = Console(stderr=True)
    run = runs.as_run(engine, backend=backend, precision=precision)
    pictures = runs.of_split(data, with_drawn_split(read_dataset(data, group_by=group_by), engine), split)
    if learned := sum(picture.split == TRAIN for picture in pictures):
        talk(f"{learned} of {len(pictures)} pictures are in the split {TRAIN}: {_FLATTER}", style="yellow")
    tell_unknown(pictures)
    with Told(console, "look", 0) as told:
        examined = runs.look(data, pictures, told.at)
    tell_findings(examined.findings)
    task = runs.task_of(run.package, examined.sizes, region_of(region, contrast))
    with Told(console, "score", len(examined.pictures)) as told:
        scored = runs.score_set(run, examined.pictures, task, threads=threads, told=told.at)
    found = evaluate.evaluated(
        run,
        scored,
        findings=examined.findings,
        data=data.resolve().name,
        split=split,
        command=shlex.join(["edgeqc", *sys.argv[1:]]),
    )
    others = list(runs.runs_of(engine))
    with Told(console, "latency", len(others)):
        found["latency_by_run"] = evaluate.latencies(others, task, threads=threads)
    if all_runs:
        with Told(console, "other runs", len(examined.pictures)) as told:
            found["runs"] = evaluate.compared(others, examined.pictures, task, threads=threads, told=told.at)
    calibration = run.package.calibration
    opened = run.open(threads)
    try:
        scorer = Scorer(opened, task)
        if repeat:
            some = examined.pictures[:: max(1, len(examined.pictures) // 40)]
            with Told(console, "repeat", len(some)):
                found["repeatability"] = evaluate.repeatability(scorer, some, calibration.threshold, times=repeat)
        shown = evaluate.worst(scorer, scored, calibration.threshold, calibration.map_threshold)
    finally:
        opened.close()
    html = report.with_suffix(".html")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(evaluate.plain(found), indent=2, allow_nan=False) + "\n")
    html.write_text(page(found, scored, shown))
    show(
        ["figure", "value", "95 %"],
        [
            [name, evaluate.number(found[name]), evaluate.interval(found["ci95"].get(name))]
            for name in ("image_auroc", "image_ap", "overkill", "escape", "escape_upper95", "pixel_f1", "miou", "aupro")
        ],
    )
    talk(f"{report} and {html}")


_FLATTER: Final = "the net has learned from them, and the figures flatter"


def application() -> typer.Typer:
    """`edgeqc eval ...`."""
    app = typer.Typer(help="Measure what a model package is worth on your own data.", no_args_is_help=True)
    app.command("vision")(vision)
    app.command("tags")(eval_tags)
    return app
