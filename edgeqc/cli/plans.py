"""`edgeqc engine build`: TensorRT plans, built on the box that will run them, while the line stands."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from edgeqc.cli.console import emit, show, talk
from edgeqc.cli.exits import Exit
from edgeqc.errors import AlreadyRunningError, PackageError

if TYPE_CHECKING:
    from edgeqc.inference.package import Package
    from edgeqc.inference.tensorrt.build import Progress
    from edgeqc.inference.tensorrt.workshop import Outcome, Workshop
    from edgeqc.inference.trust import Trust
    from edgeqc.settings import Settings


def build(  # noqa: PLR0917 - each is a switch of the command
    target: Annotated[
        Path, typer.Argument(help="The line's configuration: builds what its recipes need. Or a package's folder.")
    ],
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="For a package's folder, which must have the file.")
    ] = "fp32",
    state: Annotated[
        Path | None, typer.Option(help="For a package's folder: the state directory that gets the plan.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build what is current, too.")] = False,
    look: Annotated[bool, typer.Option("--check", help="Build nothing; exit 5 if something would be built.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, edgeqc.plans/1.")] = False,
) -> None:
    """Build TensorRT plans for this box's GPU, check each against the golden outputs, and put it in place.

    A plan belongs to one package, precision, GPU, driver and TensorRT; what fits is left as it is. Takes seconds to
    minutes per plan and all of the GPU, so it refuses while a daemon runs on the same state directory. The unit
    edgeqc-engines.service does this before the daemon starts.
    """
    from edgeqc.inference.tensorrt.workshop import Workshop  # noqa: PLC0415 - heavy
    from edgeqc.settings import GpuSettings  # noqa: PLC0415 - heavy

    settings = None if target.is_dir() else _settings(target)
    state_dir = _state_dir(settings, state)
    packages = list(_asked(settings, target, precision))
    if not packages:
        talk(f"{target}: no recipe runs on tensorrt; nothing to build.")
        if as_json:
            emit("edgeqc.plans/1", {"plans": []})
        raise typer.Exit(Exit.OK)
    workshop = Workshop(state_dir, settings.gpu if settings is not None else GpuSettings())
    try:
        with _alone(state_dir, needed=not look):
            rows = [_row(package, *_made(workshop, package, force=force, look=look)) for package in packages]
    finally:
        workshop.close()
    _tell(workshop, rows, as_json=as_json)
    if any(row["state"] in {"stale", "failed"} for row in rows):
        raise typer.Exit(Exit.PACKAGE)


_LOCK: Final = "build.lock"


def _settings(file: Path) -> Settings:
    from edgeqc import loading  # noqa: PLC0415 - heavy

    return loading.load(file)


def _state_dir(settings: Settings | None, state: Path | None) -> Path:
    from edgeqc import loading  # noqa: PLC0415 - heavy

    if settings is None:
        return state or loading.default_paths()[0]
    if state is not None:
        raise typer.BadParameter("a configuration names its own state directory", param_hint="--state")
    return loading.paths(settings)[0]


def _asked(settings: Settings | None, target: Path, precision: str) -> Iterator[Package]:
    """Each package as it will run, once; with `auto`, each precision that it has and that TensorRT may run."""
    from edgeqc.inference.choice import AUTO, candidates  # noqa: PLC0415 - heavy
    from edgeqc.inference.manifest import Backend  # noqa: PLC0415 - heavy
    from edgeqc.inference.package import load_package  # noqa: PLC0415 - heavy
    from edgeqc.inference.trust import trust_of  # noqa: PLC0415 - heavy

    wanted: dict[tuple[Path, str, bool], None] = {}
    trust: Trust | None = None
    if settings is None:
        wanted[target, precision, True] = None
    else:
        trust = trust_of(settings.engines)
        for recipe in (recipe for station in settings.stations for recipe in station.engines):
            if recipe.backend in {"tensorrt", AUTO}:
                wanted[recipe.engine, recipe.precision, recipe.backend == "tensorrt"] = None
    seen: set[tuple[str, str, bytes]] = set()
    for folder, numbers, named in wanted:
        package = load_package(folder, trust=trust)
        try:
            ways = candidates(package, backend=Backend.TENSORRT, precision=numbers)
        except (PackageError, ValueError):
            if named:
                raise
            continue  # auto: a package that may not run on TensorRT needs no plan
        for backend, number in ways:
            runs = package.as_run(backend, number)
            plan = runs.name, runs.precision, runs.digest  # a version of the same model has a plan of its own
            if plan not in seen:
                seen.add(plan)
                yield runs


def _made(workshop: Workshop, package: Package, *, force: bool, look: bool) -> tuple[Outcome | None, str]:
    """The outcome, or why there is none; one package that cannot be built does not keep the others from it."""
    found = workshop.look(package)
    if look or (found.state == "current" and not force):
        return found, ""
    try:
        with _bar(f"{package.name} {package.precision}") as progress:
            return workshop.build(package, progress=progress), ""
    except PackageError as error:
        return None, str(error)


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A bar on stderr: the builder's phases within phases, each with its steps."""
    from rich.console import Console  # noqa: PLC0415 - heavy
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - heavy

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None, phase="reading the model")

        def tell(phase: str, step: int, steps: int) -> bool:
            bars.update(task, completed=step, total=max(steps, 1), phase=phase)
            return True

        yield tell


@contextmanager
def _alone(state_dir: Path, *, needed: bool) -> Iterator[None]:
    """Neither beside a running line nor beside another build."""
    from edgeqc.cli.state import in_use  # noqa: PLC0415 - heavy

    if not needed:
        yield
        return
    if in_use(state_dir):
        raise AlreadyRunningError(f"{state_dir}: a daemon runs here, and building would take the GPU from its line")
    folder = state_dir / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise AlreadyRunningError(f"{folder}: another build is under way") from exc
        yield


def _row(package: Package, outcome: Outcome | None, failure: str) -> dict[str, Any]:
    row: dict[str, Any] = {"package": package.name, "precision": str(package.precision)}
    if outcome is None:
        return row | {"state": "failed", "why": failure, "plan": ""}
    sidecar = None if outcome.sidecar is None else asdict(outcome.sidecar)
    return row | {"state": outcome.state, "why": outcome.why, "plan": str(outcome.path), "sidecar": sidecar}


def _tell(workshop: Workshop, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    device = workshop.device
    if as_json:
        emit("edgeqc.plans/1", {"device": asdict(device), "tensorrt": workshop.tensorrt, "plans": rows})
        return
    talk(f"{device.name}, SM {device.sm}, driver {device.driver}, TensorRT {workshop.tensorrt}")
    show(
        ("package", "precision", "state", "what"),
        [[row["package"], row["precision"], row["state"], row["why"]] for row in rows],
    )
