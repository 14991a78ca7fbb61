"""`edgeqc engine convert`: the same net in fp16 and int8, each with its distance from the golden outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeqc.cli.console import show, talk, tell
from edgeqc.errors import PackageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeqc.inference.package import Package
    from edgeqc.settings import RegionSettings

_WORST: Final = 0.1
"""As manifest.golden_tolerance: a net that is further off is another net."""
_MARGIN: Final = 1.5
"""Of the distance found here: processors round differently, kernels sum in another order."""
_STEP: Final = 0.005
_SUFFIXES: Final = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def convert(  # noqa: PLR0917 - each is a switch of the command
    folder: Annotated[Path, typer.Argument(help="The package's folder.")],
    out: Annotated[Path | None, typer.Option(help="Write there; default: the package itself is replaced.")] = None,
    fp16: Annotated[bool, typer.Option(help="Add model.fp16.onnx.")] = True,
    int8: Annotated[bool, typer.Option(help="Add model.int8-cpu.onnx and model.int8-tensorrt.onnx.")] = True,
    images: Annotated[
        Path | None, typer.Option(help="Frames to calibrate int8 on; default: the golden inputs.")
    ] = None,
    locate: Annotated[
        bool,
        typer.Option("--locate", help="Judge the part in the frame, as region.mode: locate; default: as in training."),
    ] = False,
    version: Annotated[
        str | None, typer.Option(help="Make it this version: a box that has the old one imports no other of that name.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key to sign with; default: state/keys/local.key.")] = None,
) -> None:
    """Add fp16 and int8 to a package: files of their own beside the fp32 one, from one calibration.

    A file that is further off the golden outputs than 0.1 is not written. Scores shift: calibrate each before it judges.
    """
    from edgeqc.inference import precision  # noqa: PLC0415 - heavy
    from edgeqc.inference.manifest import VariantName  # noqa: PLC0415 - heavy
    from edgeqc.inference.package import load_package  # noqa: PLC0415 - heavy
    from edgeqc.inference.signature import load_key, local_key  # noqa: PLC0415 - heavy
    from edgeqc.inference.writing import VariantFiles, only_a_package, with_variants  # noqa: PLC0415 - heavy
    from edgeqc.loading import default_paths  # noqa: PLC0415 - heavy

    only_a_package(out or folder)
    package = load_package(folder)
    models: dict[VariantName, bytes] = {}
    if fp16:
        models[VariantName.FP16] = precision.to_fp16(package.model)
    if int8:
        inputs = _inputs(package, images, locate=locate)
        talk(f"Calibrating int8 on {min(len(inputs), precision.CALIBRATION_MOST)} images ...")
        made = precision.to_int8(package.model, inputs)
        models |= {VariantName.INT8_CPU: made.cpu, VariantName.INT8_TENSORRT: made.tensorrt}
    variants: dict[VariantName, VariantFiles] = {}
    rows: list[tuple[str, str, str, str]] = []
    for name, model in models.items():
        off = _distance(package, model)
        kept = off * _MARGIN <= _WORST
        if kept:
            tolerance = max(package.golden_tolerance, -(-off * _MARGIN // _STEP) * _STEP)
            variants[name] = VariantFiles(model=model, golden_tolerance=round(min(tolerance, _WORST), 4))
        rows.append(
            (
                name.value,
                f"{len(model) / 1e6:.2f}",
                f"{off:.3g}",
                "written" if kept else f"left out: {_MARGIN:g} times that is over {_WORST:g}",
            )
        )
    show(("file", "MB", "off golden by", ""), rows)
    if not variants:
        raise PackageError(f"{folder}: none of the files is near enough to the golden outputs")
    private = load_key(key) if key is not None else local_key(default_paths()[0] / "keys")
    written = with_variants(folder, out or folder, variants, key=private, version=version)
    tell(f"{written.folder}: {written.name}, {', '.join(['fp32', *written.variants])}")
    talk("Each needs a calibration on its own scores before it may judge: edgeqc calibrate --precision ...")


def _inputs(package: Package, images: Path | None, *, locate: bool) -> list[dict[str, NDArray[np.generic]]]:
    """What the engine would be given."""
    name = package.manifest.preprocess.input
    if images is None:
        golden = list(package.golden[f"input.{name}"])
        talk(
            f"warning: only the {len(golden)} golden inputs to calibrate on; --images FOLDER is better", style="yellow"
        )
        return [{name: case} for case in golden]
    from edgeqc.settings import RegionMode, RegionSettings  # noqa: PLC0415 - heavy

    trained = package.manifest.training.region or RegionSettings()
    region = RegionSettings(mode=RegionMode.LOCATE) if locate else trained
    found = [{name: each} for each in _prepared(package, images, region)]
    if not found:
        raise PackageError(f"{images}: no image in which a part was found")
    return found


def _prepared(package: Package, images: Path, region: RegionSettings) -> Iterator[NDArray[np.generic]]:
    import cv2  # noqa: PLC0415 - heavy
    import numpy as np  # noqa: PLC0415 - heavy

    from edgeqc.inference.precision import CALIBRATION_MOST  # noqa: PLC0415 - heavy
    from edgeqc.inference.preprocess import Preprocess  # noqa: PLC0415 - heavy
    from edgeqc.sim.images import pad_onto  # noqa: PLC0415 - heavy

    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in _SUFFIXES)
    by_shape: dict[tuple[int, ...], Any] = {}
    for path in files[:: max(1, -(-len(files) // CALIBRATION_MOST))]:
        frame = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if frame is None:
            talk(f"{path}: cannot be read, left out", style="yellow")
            continue
        shape = (int(frame.shape[0]), int(frame.shape[1]))
        camera = package.manifest.training.frame
        if camera is not None and shape[0] <= camera[0] and shape[1] <= camera[1]:
            frame, shape = pad_onto(np.asarray(frame, np.uint8), camera), camera
        if shape not in by_shape:
            by_shape[shape] = Preprocess(package.manifest.preprocess, package.input_shape, shape, region)
        tensor = package.manifest.inputs[0]
        target = np.zeros(tensor.shape, tensor.dtype)
        if by_shape[shape].into(np.asarray(frame, np.uint8), target).found:
            yield target


def _distance(package: Package, model: bytes) -> float:
    """The largest difference of any output from the golden ones, on the portable backend."""
    from edgeqc.inference.onnxruntime import OnnxRuntimeEngine  # noqa: PLC0415 - heavy
    from edgeqc.inference.package import golden_difference  # noqa: PLC0415 - heavy

    engine = OnnxRuntimeEngine(model)
    try:
        return golden_difference(engine, package)[0]
    finally:
        engine.close()
