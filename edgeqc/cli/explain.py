"""`edgeqc explain`: why a picture is scored as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqc.cli.calibrate import Contrast, Region, region_of
from edgeqc.cli.console import show, talk


def explain(  # noqa: PLR0917 - each is a switch of the command
    picture: Annotated[Path, typer.Argument(help="A picture, e.g. one that the archive kept of a reject.")],
    engine: Annotated[Path, typer.Option(help="Folder of the package.")],
    out: Annotated[Path, typer.Option(help="Folder for map.png and occlusion.png.")] = Path("explained"),
    backend: Annotated[str, typer.Option()] = "onnxruntime",
    precision: Annotated[str, typer.Option()] = "fp32",
    window: Annotated[int, typer.Option(metavar="PX", min=8, help="Side of the covered place.")] = 32,
    no_occlusion: Annotated[bool, typer.Option("--no-occlusion", help="The net's own map only: one run.")] = False,
    um_per_px: Annotated[float | None, typer.Option(help="Scale of the picture, for areas in µm².")] = None,
    region: Region = None,
    contrast: Contrast = 24,
    threads: Annotated[int, typer.Option(min=1, max=64)] = 2,
) -> None:
    """Show the net's map over a picture, its defects with area, and where covering it changes the score."""
    from rich.console import Console  # noqa: PLC0415 - heavy

    from edgeqc.train import runs  # noqa: PLC0415 - heavy
    from edgeqc.train.explain import occlusion, places  # noqa: PLC0415 - heavy
    from edgeqc.train.overlay import overlay, png  # noqa: PLC0415 - heavy
    from edgeqc.train.progress import Told  # noqa: PLC0415 - heavy
    from edgeqc.train.scoring import Scorer, load  # noqa: PLC0415 - heavy

    run = runs.as_run(engine, backend=backend, precision=precision)
    pixels = load(picture)
    calibration = run.package.calibration
    opened = run.open(threads)
    try:
        scorer = Scorer(
            opened, runs.task_of(run.package, [(pixels.shape[0], pixels.shape[1])], region_of(region, contrast))
        )
        score, heat, _ = scorer.judge(pixels)
        out.mkdir(parents=True, exist_ok=True)
        (out / "map.png").write_bytes(png(overlay(pixels, heat, calibration.map_threshold)))
        written = ["map.png"]
        if not no_occlusion:
            with Told(Console(stderr=True), "cover", places(pixels.shape, window)) as told:
                fall = occlusion(scorer, pixels, window_px=window, told=told.at)
            strongest = float(fall.max())
            (out / "occlusion.png").write_bytes(png(overlay(pixels, fall / max(strongest, 1e-6), 0.9)))
            written.append(f"occlusion.png (the logit of the score falls by up to {strongest:.2f})")
    finally:
        opened.close()
    word = "reject" if score >= calibration.threshold else "pass"
    if word == "pass" and calibration.hold_threshold is not None and score >= calibration.hold_threshold:
        word = "pass, in the hold band"
    talk(f"{picture.name}: score {score:.4f}, threshold {calibration.threshold:.4f}: {word}")
    show(["defect", "peak", "x", "y", "width", "height", "area"], _rows(heat, calibration.map_threshold, um_per_px))
    talk(f"{out}: {', '.join(written)}")


def _rows(heat: Any, limit: float, um_per_px: float | None) -> list[list[str]]:
    from edgeqc.train.overlay import pieces  # noqa: PLC0415 - heavy

    rows = []
    for number, piece in enumerate(pieces(heat, limit), 1):
        area = f"{piece.area_px} px"
        if um_per_px is not None:
            area += f" ({piece.area_px * um_per_px**2:.0f} µm²)"
        x, y, width, height = piece.box
        rows.append([str(number), f"{piece.peak:.3f}", str(x), str(y), str(width), str(height), area])
    return rows
