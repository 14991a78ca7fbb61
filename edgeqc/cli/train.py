"""`edgeqc train vision`: from labelled pictures to a signed package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeqc.cli.calibrate import Contrast, RegionKind, region_of
from edgeqc.cli.console import talk
from edgeqc.cli.packagename import name_of
from edgeqc.cli.traintags import train_tags
from edgeqc.errors import EdgeqcError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edgeqc.inference.package import Package


def vision(  # noqa: PLR0917 - each is a switch of the command
    data: Annotated[
        Path,
        typer.Option(help="Folder of one folder per class, or with index.csv, COCO or Pascal VOC; or such a file."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the package, e.g. engines/housing/3.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Default: of OUT, where it is NAME/VERSION, else of the data.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Default: as the name, or 1.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Features, checkpoints, findings, scores; resumed. Default: OUT.work")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Look through the pictures and stop.")] = False,
    group_by: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Pictures with the same match in their path stay together.")
    ] = None,
    by_picture: Annotated[
        bool,
        typer.Option("--by-picture", help="Each picture is a group of its own, as in published splits; flatters."),
    ] = False,
    one_class: Annotated[bool, typer.Option("--one-class", help="Learn from the good parts alone.")] = False,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="Judge each part four times, mirrored: better, 4 times the engine time.")
    ] = False,
    region: Annotated[
        RegionKind | None, typer.Option(help="Default: full; locate where the pictures are of several sizes.")
    ] = None,
    contrast: Contrast = 24,
    side: Annotated[int, typer.Option(metavar="PX", min=64, max=2048, help="Longest side that the net sees.")] = 448,
    overkill: Annotated[float, typer.Option(help="Share of good parts that may be rejected.")] = 0.02,
    steps: Annotated[int, typer.Option(min=1, help="Batches of 12.")] = 450,
    views: Annotated[int, typer.Option(min=32, help="Varied crops to learn from; 110 KB of disk each.")] = 4000,
    folds: Annotated[
        int, typer.Option(min=0, max=20, help="Of the cross-validation that the threshold is from; 0: one held back.")
    ] = 5,
    cross_validate: Annotated[
        bool, typer.Option("--cross-validate", help="Also score the test's pictures out of fold; as long again.")
    ] = False,
    seed: Annotated[int, typer.Option()] = 1,
    threads: Annotated[int, typer.Option(min=1, max=64)] = 2,
    key: Annotated[Path | None, typer.Option(help="Private key that signs it; default: this box's own.")] = None,
) -> None:
    """Train a defect map on pictures of good and bad parts, calibrate it, test it, and write a signed package.

    Start with 20 good pictures (and no bad ones: --one-class) to try it out; 149 good parts are needed to promise 2 %
    overkill, 299 for 1 %. Give each bad part its mask or box where you can: that helps more than more pictures.
    """
    from rich.console import Console  # noqa: PLC0415 - heavy

    from edgeqc.inference.writing import only_a_package  # noqa: PLC0415 - heavy
    from edgeqc.train.calibrate import Rule  # noqa: PLC0415 - heavy

    if not check and out is None:
        raise typer.BadParameter("is needed, or --check", param_hint="--out")
    if not 0 < overkill < 1:
        raise typer.BadParameter(f"{overkill:g} does not lie between 0 and 1", param_hint="--overkill")
    name, version = name_of(out, name=name, version=version, data=data)
    target = out or Path(".train") / data.stem / version
    try:
        from edgeqc.train.trainer import Job  # noqa: PLC0415 - torch
        from edgeqc.train.vision import look_through, package_name, train_vision  # noqa: PLC0415 - torch
    except ImportError as exc:
        raise EdgeqcError(f"training needs the train extra: pip install 'edgeqc[train]' ({exc})") from exc
    job = Job(
        data=data,
        out=target,
        work=work or target.with_name(f"{target.name}.work"),
        name=package_name(name),
        version=version,
        group_by=group_by,
        by_picture=by_picture,
        one_class=one_class,
        mirrored=mirrored,
        long_side_px=side,
        region=region_of(region, contrast),
        views=views,
        steps=steps,
        folds=folds,
        rule=Rule(overkill=overkill, parts=not by_picture),
        cross_validate=cross_validate,
        seed=seed,
        threads=threads,
        key=None if check else signing_key(key),
    )
    only_a_package(target)
    console = Console(stderr=True)
    if check:
        found = look_through(job, console)
        talk(f"{len(found.pictures)} pictures can be used.")
        return
    _tell(train_vision(job, console))


def application() -> typer.Typer:
    """`edgeqc train ...`."""
    app = typer.Typer(help="Make a model package from your own data.", no_args_is_help=True)
    app.command("vision")(vision)
    app.command("tags")(train_tags)
    return app


def signing_key(file: Path | None) -> Ed25519PrivateKey:
    """The key named, or this box's own in its state directory."""
    from edgeqc.inference.signature import load_key, local_key  # noqa: PLC0415 - heavy
    from edgeqc.loading import default_paths  # noqa: PLC0415 - heavy

    return load_key(file) if file is not None else local_key(default_paths()[0] / "keys")


def _tell(package: Package) -> None:
    from edgeqc.cli.calibrate import told  # noqa: PLC0415

    figures, training = package.manifest.figures, package.manifest.training
    talk(
        f"{package.folder}: {package.name}, {len(package.model) / 1e6:.1f} MB\n"
        f"test: AUROC {figures.auroc:.4f}, {figures.escapes} of {figures.defects} bad parts pass, "
        f"{figures.overkills} of {figures.goods} good parts are rejected\n{told(package.calibration)}"
    )
    if training.region is not None and training.region.mode.value != RegionKind.FULL:
        talk(f"In the recipe: region: {{mode: {training.region.mode}, contrast: {training.region.contrast}}}")
    talk(f"Next: edgeqc eval vision --data DATA --engine {package.folder} --report report.json")
