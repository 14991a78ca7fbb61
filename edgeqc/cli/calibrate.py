"""`edgeqc calibrate`: a threshold that keeps its promise, from scores of the engine that will run."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgeqc.cli.console import talk
from edgeqc.cli.exits import Exit
from edgeqc.errors import EdgeqcError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeqc.inference.manifest import Calibration
    from edgeqc.settings.recipe import RegionSettings
    from edgeqc.train.dataset import Picture
    from edgeqc.train.examine import Finding


class RegionKind(StrEnum):
    """Which part of the picture is judged: edgeqc.settings.RegionMode, without what it loads, and what needs a box."""

    FULL = "full"
    LOCATE = "locate"


Region = Annotated[RegionKind | None, typer.Option(help="As the recipe finds the part; default: as it was trained.")]
Contrast = Annotated[
    int, typer.Option(min=1, max=255, help="Of --region locate: grey levels between part and background.")
]


def calibrate(  # noqa: PLR0917 - each is a switch of the command
    engine: Annotated[Path, typer.Option(help="Folder of the package.")],
    data: Annotated[
        Path | None, typer.Option(help="Pictures that took no part in training; forms as of `edgeqc train vision`.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="scores.csv (path, label, group, score) instead, e.g. of cross-validation.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Which of the data's splits; '' for all but train, which the net has learned from.")
    ] = "",
    group_by: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Pictures with the same match in their path count as one part.")
    ] = None,
    overkill: Annotated[float, typer.Option(help="At most this share of good parts may be rejected ...")] = 0.02,
    confidence: Annotated[float, typer.Option(help="... in this share of all calibrations.")] = 0.95,
    hold: Annotated[
        float, typer.Option(min=0, max=1, help="Share of good parts that may lie in the hold band or over it.")
    ] = 0.1,
    backend: Annotated[str, typer.Option(help="The backend that will run.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8, as it will run.")] = "fp32",
    recipe: Annotated[str, typer.Option(help="Which recipe it is for; noted.")] = "",
    camera: Annotated[str, typer.Option(help="Which camera it is for; noted.")] = "",
    threads: Annotated[int, typer.Option(min=1, max=64)] = 2,
    out: Annotated[Path | None, typer.Option(help="Write a copy of the package instead, e.g. for one camera.")] = None,
    version: Annotated[
        str | None, typer.Option(help="Make it this version: a box that has the old one imports no other of that name.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key that signs it; default: this box's own.")] = None,
    region: Region = None,
    contrast: Contrast = 24,
    rehearse: Annotated[
        int,
        typer.Option(min=0, help="Only make the promise this often on half of the parts, and hold it to the others."),
    ] = 0,
    without_promise: Annotated[
        bool, typer.Option("--without-promise", help="Take the plain quantile where a promise cannot be made.")
    ] = False,
) -> None:
    """Set the package's threshold so that its overkill keeps to a promise, or say how many good parts are missing.

    Pictures of one group count as one part. Exit code 6 where the promise cannot be made; the package is as it was.
    """
    from rich.console import Console  # noqa: PLC0415 - heavy

    from edgeqc.cli.train import signing_key  # noqa: PLC0415
    from edgeqc.inference.writing import only_a_package  # noqa: PLC0415 - heavy
    from edgeqc.train.calibrate import Rule, calibrated, promise_of, read_scores, readings_of, rehearsed  # noqa: PLC0415 - heavy
    from edgeqc.train.figures import best_map_threshold  # noqa: PLC0415 - heavy
    from edgeqc.train.progress import Told  # noqa: PLC0415 - heavy
    from edgeqc.train.runs import as_run, look, recalibrated, score_set, task_of  # noqa: PLC0415 - heavy

    if (data is None) == (scores is None):
        raise typer.BadParameter("name either --data or --scores", param_hint="--data")
    if scores is not None and group_by is not None:
        raise typer.BadParameter("is for --data; --scores has its own groups", param_hint="--group-by")
    if not 0 < overkill < 1 or not 0 < confidence < 1:
        raise typer.BadParameter("--overkill and --confidence lie between 0 and 1", param_hint="--overkill")
    only_a_package(out or engine)
    rule = Rule(overkill=overkill, confidence=confidence, hold=hold, recipe=recipe, camera=camera)
    run = as_run(engine, backend=backend, precision=precision)
    if scores is not None:
        readings, parts = read_scores(scores)
        rule, map_threshold = replace(rule, parts=parts), run.package.calibration.map_threshold
    else:
        assert data is not None  # noqa: S101 - asked above
        with Told(Console(stderr=True), "look", 0) as seen:
            examined = look(data, _fresh(data, split, group_by, engine), seen.at)
        tell_findings(examined.findings)
        task = task_of(run.package, examined.sizes, region_of(region, contrast))
        with Told(Console(stderr=True), "score", len(examined.pictures)) as seen:
            scored = score_set(run, examined.pictures, task, threads=threads, told=seen.at)
        readings = readings_of(scored)
        map_threshold = best_map_threshold(scored, run.package.calibration.map_threshold)
    if rehearse:
        found = rehearsed(readings, rule, times=rehearse)
        talk(
            f"{found.times} calibrations on {found.goods} independent good parts each, promising {found.overkill:.3g}: "
            f"the others' overkill kept to it, within its binomial interval, in {found.kept}; mean {found.seen:.4f}"
        )
        return
    refused = promise_of(readings, rule)
    if refused and not without_promise:
        talk(f"not armed: {refused}", style="bold red")
        raise typer.Exit(Exit.GATE)
    calibration = calibrated(readings, rule, map_threshold=map_threshold, backend=run.label)
    package = recalibrated(run, calibration, out=out or engine, key=signing_key(key), version=version)
    talk(f"{package.folder}: {told(calibration)}")


def _fresh(data: Path, split: str, group_by: str | None, engine: Path) -> list[Picture]:
    """Pictures of which the net has seen nothing; tells how many are left out. EdgeqcError where there are none."""
    from edgeqc.train.dataset import TRAIN, read_dataset  # noqa: PLC0415 - heavy
    from edgeqc.train.runs import learned_groups, of_split  # noqa: PLC0415 - heavy
    from edgeqc.train.splits import with_drawn_split  # noqa: PLC0415 - heavy

    if split == TRAIN:
        raise EdgeqcError(f"--split {TRAIN}: {_LEARNED}")
    pictures = with_drawn_split(read_dataset(data, group_by=group_by), engine)
    chosen, learned = of_split(data, pictures, split), learned_groups(pictures)
    fresh = [picture for picture in chosen if picture.group not in learned]
    if not fresh:
        raise EdgeqcError(f"{data}: all of it is in the split {TRAIN}, or shares its groups: {_LEARNED}")
    if len(fresh) < len(chosen):
        left = len(chosen) - len(fresh)
        talk(f"{left} pictures are left out: they, or others of their group, are in the split {TRAIN}", style="yellow")
    tell_unknown(fresh)
    return fresh


_LEARNED: Final = (
    "the net has learned from these pictures and scores them better than new parts, so that a threshold from them would "
    "reject more than it promises. Name pictures that took no part in training, or --scores OUT.work/scores.csv, where "
    "training left the scores of nets that had not seen them"
)


def region_of(kind: RegionKind | None, contrast: int) -> RegionSettings | None:
    """As a recipe would say it; None: as the package was trained."""
    from edgeqc.settings.recipe import RegionMode, RegionSettings  # noqa: PLC0415 - heavy

    return None if kind is None else RegionSettings(mode=RegionMode(kind), contrast=contrast)


def tell_findings(findings: Sequence[Finding]) -> None:
    """Each picture that is left out, and how many have a note."""
    for finding in findings:
        if finding.left_out:
            talk(f"left out: {finding.path}: {finding.what}", style="yellow")
    notes = [finding for finding in findings if not finding.left_out]
    for finding in notes[:5]:
        talk(f"note: {finding.path}: {finding.what}")
    if len(notes) > 5:  # noqa: PLR2004
        talk(f"... and {len(notes) - 5} more notes; edgeqc train vision --check lists all")


def tell_unknown(pictures: Sequence[Picture]) -> None:
    """How many pictures may have been learned from, for all that anybody said."""
    if unknown := sum(not picture.split for picture in pictures):
        talk(
            f"note: nothing says that {unknown} of {len(pictures)} pictures took no part in training; see to it yourself"
        )


def told(calibration: Calibration) -> str:
    """A calibration in words."""
    promise = calibration.promise
    words = [
        f"threshold {calibration.threshold:.4f}, on {calibration.goods} good and {calibration.defects} bad pictures"
    ]
    if calibration.hold_threshold is not None:
        words.append(f"held from {calibration.hold_threshold:.4f} on")
    if promise is not None:
        words.append(
            f"overkill at most {promise.overkill:.3g} with {promise.confidence:.0%} confidence "
            f"({promise.exceedances} of {promise.goods} independent good parts are over it)"
        )
    else:
        words.append("no promise on overkill")
    if calibration.escape_upper95 is not None:
        words.append(
            f"escape at most {calibration.escape_upper95:.3g} (95 % bound over groups, for defects like these)"
        )
    return "; ".join(words)
