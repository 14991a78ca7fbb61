"""`edgeqc engine`: the packages that judge parts: whose they are, what is in them, and what runs them on this box."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from edgeqc.cli import convert, pixels, plans, signing
from edgeqc.cli.console import emit, show, talk, tell
from edgeqc.cli.exits import Exit
from edgeqc.cli.signing import TrustOption
from edgeqc.errors import PackageError

if TYPE_CHECKING:
    from edgeqc.inference.choice import Trial
    from edgeqc.inference.package import Package

_DEPTH: Final = 3
"""Folders below the one that is searched: engines/name/version/manifest.yaml."""

_Backends = Literal["onnxruntime", "openvino", "tensorrt", "auto"]
_Precisions = Literal["fp32", "bf16", "fp16", "int8", "auto"]
Backend = Annotated[_Backends, typer.Option(help="auto: each that is allowed is tried.")]
Precision = Annotated[_Precisions, typer.Option(help="auto: each that the package has.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Unsigned = Annotated[bool, typer.Option("--allow-unsigned", help="Take packages that nobody vouches for, too.")]


def application() -> typer.Typer:
    """The commands under `engine`."""
    app = typer.Typer(
        help="Engine packages: make keys, sign, verify, import from a stick, look inside, convert, build.",
        no_args_is_help=True,
    )
    app.command("list")(_list)
    app.command("show")(_show)
    app.command("verify")(_verify)
    app.command("import")(_import)
    app.command("sign")(signing.sign)
    app.command("keygen")(signing.keygen)
    app.command("trust")(signing.trust)
    app.command("convert")(convert.convert)
    app.command("pixels")(pixels.pixels)
    app.command("build")(plans.build)
    return app


def _list(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Where to look; default: engines, state/engines.")
    ] = None,
    trust: TrustOption = None,
    as_json: AsJson = False,
) -> None:
    """List the packages in some folders, and who vouches for each."""
    from edgeqc.inference.package import load_package  # noqa: PLC0415 - heavy
    from edgeqc.loading import default_paths  # noqa: PLC0415 - heavy

    keys = signing.keys_of(trust, allow_unsigned=True)
    rows: list[dict[str, Any]] = []
    for folder in _packages(folders or [Path("engines"), default_paths()[0] / "engines"]):
        try:
            package = load_package(folder, trust=keys)
        except PackageError as error:
            rows.append(
                {"folder": str(folder), "state": "fail", "what": str(error).replace(f"{folder}", "").strip("/: ")}
            )
            continue
        rows.append(
            {
                "folder": str(folder),
                "state": "ok" if package.trusted else "warn",
                "name": package.name,
                "what": package.vouched,
                "precisions": ", ".join(["fp32", *package.variants]),
                "threshold": package.threshold,
                "mb": round(len(package.model) / 1e6, 1),
            }
        )
    if as_json:
        emit("edgeqc.engines/1", {"packages": rows})
        return
    show(
        ("package", "state", "vouched", "precisions", "threshold", "MB", "folder"),
        [
            [str(row.get(key, "")) for key in ("name", "state", "what", "precisions", "threshold", "mb", "folder")]
            for row in rows
        ],
    )
    if not rows:
        talk("No package found; name a folder: edgeqc engine list /media/stick")


def _show(
    folder: Annotated[Path, typer.Argument(help="The package's folder.")],
    trust: TrustOption = None,
    measure: Annotated[
        bool | None,
        typer.Option(help="Run it on each backend that is allowed; default: if a trusted key signed it."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=64, help="As recipe.threads.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Show what a package is, who vouches for it, and what runs it on this box how fast, and why."""
    from edgeqc.inference.choice import choose  # noqa: PLC0415 - heavy
    from edgeqc.inference.onnxfile import survey  # noqa: PLC0415 - heavy
    from edgeqc.inference.package import load_package  # noqa: PLC0415 - heavy

    package = load_package(folder, trust=signing.keys_of(trust, allow_unsigned=True))
    manifest, figures = package.manifest, package.manifest.figures
    graph = survey(package.model)
    facts = {
        "package": package.name,
        "description": manifest.description,
        "licence": manifest.licence,
        "vouched": package.vouched,
        "key": package.signature.fingerprint if package.signature else "",
        "model": f"sha256 {package.digest.hex()}, {len(package.model) / 1e6:.2f} MB",
        "graph": f"opset {graph.opset}, {graph.nodes} nodes: {', '.join(graph.named())}",
        "input": " ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in package.io.inputs),
        "outputs": ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in package.io.outputs),
        "classes": ", ".join(manifest.classes),
        "threshold": f"{package.threshold:g}, set on {package.calibration.goods} good and "
        f"{package.calibration.defects} bad parts",
        "trained on": f"{manifest.training.images} images, {manifest.training.data}",
        "figures": f"AUROC {figures.auroc:.4f}, escapes {figures.escapes} of {figures.defects}, "
        f"overkill {figures.overkills} of {figures.goods}"
        + ("" if figures.threshold is None else f", with the threshold of then, {figures.threshold:g}"),
        "may run on": ", ".join(manifest.backends) + ("" if manifest.bf16 else "; not in bf16"),
        "precisions": ", ".join(["fp32", *package.variants]),
        "golden tolerance": f"{package.golden_tolerance:g}",
    }
    why = ""
    trials: tuple[Trial, ...] = ()
    if measure is None and not package.trusted:
        talk(f"Not run, since it {package.vouched}; --measure runs it all the same.", style="yellow")
    measure = package.trusted if measure is None else measure
    if measure:
        talk("Running it on every backend that is allowed ...")
        try:
            choice = choose(package, backend="auto", precision="auto", threads=threads, state_dir=_state_dir())
            why, trials = f"{choice.backend} {choice.precision}: {choice.why}", choice.trials
        except PackageError as error:
            why = str(error)
    if as_json:
        emit("edgeqc.engine/1", {**facts, "runs": why, "trials": [_trial_facts(trial) for trial in trials]})
        return
    for name, value in facts.items():
        tell(f"{name:18}{value}")
    if measure:
        _show_trials(trials)
        tell(f"{'auto takes':18}{why}")


def _verify(  # noqa: PLR0917 - each is a switch of the command
    folders: Annotated[list[Path], typer.Argument(help="Package folders.")],
    trust: TrustOption = None,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    unsigned: Unsigned = False,
    as_json: AsJson = False,
) -> None:
    """Verify signature, hashes, limits and graph, and run the golden vectors on the backend that will judge parts.

    The exit code is 5 where a package would be refused.
    """
    from edgeqc.inference.package import load_package  # noqa: PLC0415 - heavy

    keys = signing.keys_of(trust, allow_unsigned=unsigned)
    rows: list[dict[str, Any]] = []
    for folder in folders:
        row: dict[str, Any] = {"folder": str(folder), "ok": False}
        try:
            package = load_package(folder, trust=keys)
            trial = _golden(package, backend, precision)
            row |= {"ok": True, "name": package.name, "vouched": package.vouched, **_trial_facts(trial)}
            row["limit"] = package.as_run(trial.backend, trial.precision).golden_tolerance
            row["not_signed"] = _unsigned_files(package)
        except PackageError as error:
            row["fault"] = str(error)
        rows.append(row)
    good = all(row["ok"] for row in rows)
    if as_json:
        emit("edgeqc.verify/1", {"ok": good, "packages": rows})
    else:
        for row in rows:
            _tell_verified(row)
    raise typer.Exit(Exit.OK if good else Exit.PACKAGE)


def _import(  # noqa: PLR0917 - each is a switch of the command
    source: Annotated[Path, typer.Argument(help="The package's folder, e.g. on a USB stick.")],
    into: Annotated[
        Path | None, typer.Option(help="Becomes INTO/name/version; default: engines in the state directory.")
    ] = None,
    trust: TrustOption = None,
    backend: Backend = "auto",
    precision: Precision = "auto",
    unsigned: Unsigned = False,
) -> None:
    """Import a package: signature and golden vectors are checked before anything is put in place. Works offline.

    Name what it prints as recipe.engine. A version that is there already is never changed.
    """
    from edgeqc.inference.writing import import_package, read_signed  # noqa: PLC0415 - heavy

    keys = signing.keys_of(trust, allow_unsigned=unsigned)
    target = into or _state_dir() / "engines"
    talk(f"Reading {source} ...")
    files = read_signed(source, keys)
    trials: list[Trial] = []

    def accept(package: Package) -> None:
        talk(f"{package.name}: {package.vouched}; running its golden vectors ...")
        trials.append(_golden(package, backend, precision))

    package, new = import_package(files, target, trust=keys, accept=accept)
    _show_trials(trials)
    if not package.trusted:
        talk(f"{package.name} {package.vouched}: it runs only with engines.unsigned: allow", style="yellow")
    tell(f"{package.folder}" if new else f"{package.folder} (was there already, the same)")


def _golden(package: Package, backend: str, precision: str) -> Trial:
    """The way the package will run here, tried in a process of its own. PackageError where it may not."""
    from edgeqc.inference.choice import candidates, fastest, try_out  # noqa: PLC0415 - heavy

    ways = candidates(package, backend=backend, precision=precision)
    trials = [try_out(package, way, state_dir=_state_dir()) for way in ways]
    chosen = fastest(trials)
    return next(t for t in trials if (t.backend, t.precision) == (chosen.backend, chosen.precision))


def _packages(folders: list[Path]) -> Iterator[Path]:
    """Every folder with a manifest, at most _DEPTH below those given; hidden ones are left out."""
    for folder in folders:
        for depth in range(_DEPTH + 1):
            for manifest in sorted(folder.glob("/".join(["*"] * depth + ["manifest.yaml"]))):
                if not any(part.startswith(".") for part in manifest.relative_to(folder).parts):
                    yield manifest.parent


def _unsigned_files(package: Package) -> list[str]:
    signed = set(package.signature.files) if package.signature else set()
    return sorted(entry.name for entry in package.folder.iterdir() if entry.name not in signed | {"signature.json"})


def _tell_verified(row: dict[str, Any]) -> None:
    if not row["ok"]:
        talk(row["fault"], style="bold red")
        return
    tell(
        f"{row['folder']}: {row['name']} is good: {row['vouched']}; {row['way']} is off the golden outputs by "
        f"{row['golden_difference']:.3g}, limit {row['limit']:g}"
    )
    if row["not_signed"] and "signed by" in row["vouched"]:
        talk(f"warning: not signed, and not read by the daemon: {', '.join(row['not_signed'])}", style="yellow")


def _trial_facts(trial: Trial) -> dict[str, Any]:
    return {
        "way": trial.name,
        "p50_ms": round(trial.p50_us / 1000, 3),
        "p99_ms": round(trial.p99_us / 1000, 3),
        "golden_difference": trial.golden_difference,
        "refused": trial.refused,
    }


def _show_trials(trials: list[Trial] | tuple[Trial, ...]) -> None:
    show(
        ("way", "p50 ms", "p99 ms", "off golden by", "refused"),
        [
            (
                trial.name,
                "" if trial.refused else f"{trial.p50_us / 1000:.2f}",
                "" if trial.refused else f"{trial.p99_us / 1000:.2f}",
                "" if trial.refused else f"{trial.golden_difference:.2g}",
                trial.refused,
            )
            for trial in trials
        ],
    )


def _state_dir() -> Path:
    from edgeqc.loading import default_paths  # noqa: PLC0415 - heavy

    return default_paths()[0]
