"""`edgeqc engine pixels`: the same net behind its own preprocessing, so that it reads frames where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeqc.cli.console import talk, tell


def pixels(
    folder: Annotated[Path, typer.Argument(help="The package's folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the new package.")],
    key: Annotated[Path | None, typer.Option(help="Private key to sign with; default: state/keys/local.key.")] = None,
) -> None:
    """Put preprocessing into the model: the new package takes grey levels as the camera has them, uint8.

    Where the whole frame (or a region as wide) is just as large as the model's input, the engine then reads it where the
    camera's library wrote it. For OpenVINO and TensorRT; ONNX Runtime is faster with preprocessing of our own.
    """
    from edgeqc.inference.engine import open_engine  # noqa: PLC0415 - heavy
    from edgeqc.inference.package import check_golden, load_package  # noqa: PLC0415 - heavy
    from edgeqc.inference.pixels import with_pixels  # noqa: PLC0415 - heavy
    from edgeqc.inference.signature import load_key, local_key  # noqa: PLC0415 - heavy
    from edgeqc.inference.writing import write_package  # noqa: PLC0415 - heavy
    from edgeqc.loading import default_paths  # noqa: PLC0415 - heavy

    contents = with_pixels(load_package(folder))
    private = load_key(key) if key is not None else local_key(default_paths()[0] / "keys")
    written = write_package(out, contents, key=private)
    engine = open_engine(written)
    off = check_golden(engine, written)
    engine.close()
    height, width = written.input_shape
    tell(f"{written.folder}: {written.name}, reads {width}x{height} pixels, off the golden outputs by {off:.3g}")
    talk("Other precisions were left out: edgeqc engine convert makes them of the new package.")
