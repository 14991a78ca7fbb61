"""`edgeqc demo`: a simulated line around the real daemon, watched part by part, and judged at the end."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeqc.cli.console import command, talk
from edgeqc.cli.exits import Exit
from edgeqc.errors import EdgeqcError, PeerTimeoutError

if TYPE_CHECKING:
    from edgeqc.cli.demomachine import DemoMachine
    from edgeqc.shm.board import Row
    from edgeqc.sim.line import Plan, SimLine
    from edgeqc.sim.plc import SimPlc

_ROOT: Final = Path(__file__).parents[2]
_DEMO_ENGINE: Final = _ROOT / "engines" / "demo-part" / "1"
_QUIET_S: Final = 10.0
"""Without a terminal, one line of progress this often."""
_FRAME_S: Final = 0.1
_BAR: Final = 40


class PlcKind(StrEnum):
    """Protocol of the simulated PLC."""

    MODBUS = "modbus"
    MODBUS_SERVER = "modbus-server"
    OPCUA = "opcua"


class HandshakeKind(StrEnum):
    """How results are handed to the PLC: edgeqc.core.handshake.Form, without what it loads."""

    PULSE = "pulse"
    ACK = "ack"
    BUFFERED = "buffered"


class CameraKind(StrEnum):
    """Camera of the simulated line."""

    GIGE = "gige"
    REPLAY = "replay"


class TagKind(StrEnum):
    """Recordings of real machines."""

    SKAB = "skab"


class TriggerKind(StrEnum):
    """Who says that a part is there."""

    PLC = "plc"
    CAMERA = "camera"


def demo(  # noqa: PLR0917 - each is a switch of the command
    parts: Annotated[int, typer.Option(min=1, help="How many parts pass.")] = 100,
    rate: Annotated[float, typer.Option(metavar="HZ", min=0.1, max=200, help="Parts per second.")] = 10.0,
    budget: Annotated[
        float | None, typer.Option(metavar="MS", help="Trigger to result; default 80 % of the takt.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of real images with index.csv, instead of drawn parts.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which of the index's splits is shown.")] = "test",
    engine: Annotated[Path | None, typer.Option(help="Folder of the model package.")] = None,
    plc: Annotated[PlcKind, typer.Option(help="Protocol of the PLC.")] = PlcKind.MODBUS,
    handshake: Annotated[HandshakeKind, typer.Option(help="How results are handed to the PLC.")] = HandshakeKind.PULSE,
    camera: Annotated[CameraKind | None, typer.Option(help="Default: gige where libaravis is installed.")] = None,
    cameras: Annotated[int, typer.Option(min=1, max=8, help="How many look at each drawn part.")] = 1,
    trigger: Annotated[TriggerKind, typer.Option(help="plc: a tag counts parts; camera: free run.")] = TriggerKind.PLC,
    side_load: Annotated[int, typer.Option(metavar="TAGS", min=0, help="OPC UA tags at 10 Hz beside it.")] = 0,
    tags: Annotated[
        TagKind | None, typer.Option(help="skab: a pump whose valve closes, watched by a tag model, with its alarm.")
    ] = None,
    tag_data: Annotated[Path | None, typer.Option(help="Folder of the SKAB recordings.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    keep: Annotated[Path, typer.Option(help="Folder for archive, images, logs; emptied first.")] = Path(".demo"),
) -> None:
    """Run a simulated line: camera, PLC, broker and the daemon, with real protocols between them.

    Every part is judged by the PLC too. The end is a report; the exit code is 1 if a trigger is unaccounted for, a
    result contradicts its verdict, or a message is missing.
    """
    from edgeqc.core.handshake import Form  # noqa: PLC0415 - heavy
    from edgeqc.sim.images import SEED, drawn_parts, indexed_parts  # noqa: PLC0415 - heavy
    from edgeqc.sim.line import TRUSTED, Plan  # noqa: PLC0415 - heavy

    if cameras > 1 and (images is not None or trigger is TriggerKind.CAMERA):
        raise typer.BadParameter("several go with drawn parts and --trigger plc only", param_hint="--cameras")
    folder = _emptied(keep)
    kind = camera or _camera_here()
    cache = folder.parent / f"{folder.name}-parts"
    if images is None:
        cache.mkdir(exist_ok=True)
        talk("Drawing parts ...")
        shown = drawn_parts(cache)
        views = tuple(drawn_parts(cache, seed=SEED + number) for number in range(1, cameras))
    else:
        talk(f"Reading {images} ({split}) ...")
        shown = indexed_parts(folder, images, split=split)
        views = ()
    plan = Plan(
        folder=folder,
        images=shown,
        views=views,
        engine=(engine or _engine_for(images)).absolute(),
        trusted=(*TRUSTED, *_own_key()),
        parts=parts,
        rate_hz=rate,
        budget_ms=budget or 0.8 * 1000 / rate,
        plc=plc.value,
        form=Form(handshake),
        camera=kind.value,
        trigger=trigger.value,
        side_load=side_load,
        mqtt=_broker_here(),
        start="go",
    )
    machine = None
    if tags is TagKind.SKAB:
        from edgeqc.cli.demomachine import prepare  # noqa: PLC0415 - heavy

        machine = prepare(folder, tag_data)
    if machine is not None:
        plan.machine, plan.machine_changes = machine.start, machine.changes
    found = run_line(plan, machine)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(found, indent=2) + "\n")
        talk(f"Report: {report}")
    _show_report(found, plan)
    from edgeqc.sim.report import faults  # noqa: PLC0415 - heavy

    wrong = [*faults(found), *found.get("machine_missing", [])]
    for fault in wrong:
        talk(f"FAIL {fault}", style="bold red")
    if wrong:
        raise typer.Exit(Exit.FAILED)
    witnesses = "PLC, archive and MQTT" if plan.mqtt else "PLC and archive"
    talk(f"Every trigger has one verdict, in time; {witnesses} say the same.", style="green")


def run_line(plan: Plan, machine: DemoMachine | None = None) -> dict[str, Any]:
    """Run the line of this plan from start to end and return its report."""
    from edgeqc.sim.line import SimLine  # noqa: PLC0415 - heavy

    broker = "an MQTT broker, " if plan.mqtt else ""
    talk(f"Starting a {plan.camera} camera, a {plan.plc} PLC, {broker}and the daemon ...")
    with SimLine(plan) as line:
        line.start_daemon()
        board = line.wait_ready()
        row = board["station-top"]
        if plan.side_load:
            talk(f"Side load: waiting for {plan.side_load} tags ...")
            _wait(lambda: board["watch"].get("tags_good") >= plan.side_load, 30)
        if machine is not None and line.machine is not None:
            from edgeqc.core.teach import SETTLE_ROWS  # noqa: PLC0415 - brings numpy

            settled = 3 * SETTLE_ROWS
            talk(f"Machine: waiting until its model has seen {settled} rows ...")
            _wait(lambda: board["watch"].get("machine_rows") >= settled, 30)
            machine.go(line.machine)
        talk(f"Line runs: {plan.parts} parts at {plan.rate_hz:g}/s, budget {plan.budget_ms:g} ms, {row.backend}.")
        assert line.plc is not None  # noqa: S101 - SimLine started it
        line.plc.go()
        with _progress(line, row) as show:
            summary = _watch(line.plc, show, timeout_s=plan.parts / plan.rate_hz * 1.5 + 30)
        missing = machine.watch(line) if machine is not None else []
        return {**_collect(line, row, summary), **({"machine_missing": missing} if machine is not None else {})}


def _watch(plc: SimPlc, show: Callable[[], None], *, timeout_s: float) -> dict[str, Any]:
    """Show the line until the PLC is through with its parts; its summary."""
    until = time.monotonic() + timeout_s
    while True:
        show()
        try:
            return plc.wait_done(_FRAME_S)
        except PeerTimeoutError:
            if time.monotonic() > until:
                raise


def _collect(line: SimLine, row: Row, summary: dict[str, Any]) -> dict[str, Any]:
    """Let the office finish, stop the daemon, read the three witnesses."""
    from edgeqc.sim.report import archived, build  # noqa: PLC0415 - heavy

    counters, backend = row.counters(), row.backend
    if line.listener is not None:
        _wait(lambda: len(line.told()) >= counters["verdicts"], 10)
    code = line.stop_daemon()
    if code:
        raise EdgeqcError(f"the daemon ended with {code}; see {line.log}")
    return build(
        judged=line.judged(),
        summary=summary,
        rows=archived(line.state_dir),
        messages=line.told() if line.listener is not None else None,
        counters=counters,
        camera=line.plan.camera,
        backend=backend,
        stalls=line.stalls(),
    )


@contextlib.contextmanager
def _progress(line: SimLine, row: Row) -> Iterator[Callable[[], None]]:
    """A live table on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        told = [time.monotonic()]

        def tell() -> None:
            if time.monotonic() - told[0] >= _QUIET_S:
                told[0] = time.monotonic()
                counters = row.counters()
                talk(f"{counters['verdicts']}/{line.plan.parts} parts, {counters['rejected']} rejected")

        yield tell
        return
    from rich.live import Live  # noqa: PLC0415 - only on a terminal

    with Live(_table(line, row), refresh_per_second=10, transient=True) as live:
        yield lambda: live.update(_table(line, row))


def _table(line: SimLine, row: Row) -> Any:
    from rich.table import Table  # noqa: PLC0415 - only on a terminal
    from rich.text import Text  # noqa: PLC0415 - only on a terminal

    counters, plan = row.counters(), line.plan
    latency_ms = counters["last_latency_ns"] / 1e6
    stages = [
        ("frame", latency_ms - (counters["last_engine_ns"] + counters["last_plc_ns"]) / 1e6, "blue"),
        ("engine", counters["last_engine_ns"] / 1e6, "magenta"),
        ("plc", counters["last_plc_ns"] / 1e6, "cyan"),
    ]
    bar = Text()
    for _, length_ms, colour in stages:
        bar.append("█" * round(_BAR * max(0.0, length_ms) / plan.budget_ms), style=colour)
    bar.append("·" * max(0, _BAR - len(bar)), style="dim")
    verdict = Text("PASS", style="bold green") if counters["last_passed"] else Text("REJECT", style="bold red")
    table = Table.grid(padding=(0, 2))
    table.add_row("parts", f"{counters['verdicts']} of {plan.parts}")
    table.add_row("last", Text.assemble(f"#{counters['last_sequence']} ", verdict, f" code {counters['last_code']}"))
    table.add_row("passed / rejected", f"{counters['passed']} / {counters['rejected']}")
    table.add_row("fail-safe / late", f"{counters['fail_safe']} / {counters['late']}")
    table.add_row(f"budget {plan.budget_ms:g} ms", Text.assemble(bar, f" {latency_ms:.1f} ms"))
    table.add_row("", Text.assemble(*((f"█ {name} {length:.1f}  ", colour) for name, length, colour in stages)))
    return table


def _show_report(found: dict[str, Any], plan: Plan) -> None:
    from edgeqc.cli.console import show  # noqa: PLC0415 - rich

    confusion = found["confusion"]
    show(
        ["what", "count"],
        [
            *((name, str(found[name])) for name in ("triggers", "verdicts", "pass", "reject", "fail_safe", "late")),
            *((name, str(found[name])) for name in ("unaccounted", "duplicates", "plc_mismatch", "frames_bad")),
            ("not judged: the box stood still", str(found["stalled"])),
            *((name, str(found[name])) for name in ("archive_rows", "mqtt_received", "mqtt_duplicates")),
            ("defects rejected / passed", f"{confusion['tp']} / {confusion['fn']}"),
            ("good parts passed / rejected", f"{confusion['tn']} / {confusion['fp']}"),
            ("camera, engine", f"{found['camera']}, {found['backend']}"),
            ("zero copy", "yes" if found["zero_copy"] else "NO"),
        ],
        title=f"{plan.parts} parts at {plan.rate_hz:g}/s",
    )
    show(
        ["ms", "p50", "p99", "p99.9", "max"],
        [
            [name, *(_ms(found[f"{name}_ms"][key]) for key in ("p50", "p99", "p999", "max"))]
            for name in ("latency", "transfer", "engine", "overhead")
        ],
    )
    talk(f"Archive, images and log: {plan.folder}   Look: {command()} records --state {plan.folder / 'state'}")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _emptied(folder: Path) -> Path:
    """The folder, made and empty; refuses one that holds anything else than an earlier run, and one that is at work."""
    from edgeqc.cli.state import in_use  # noqa: PLC0415 - heavy

    mark = folder / ".edgeqc-demo"  # of its own: a real configuration is called line.yaml, too
    if folder.exists() and any(folder.iterdir()) and not (mark.exists() or (folder / "stage").exists()):
        raise EdgeqcError(f"{folder}: is not empty and not of an earlier demo; name another with --keep")
    if in_use(folder / "state"):
        raise EdgeqcError(f"{folder}: a daemon runs there; stop it first, or name another with --keep")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()
    return folder.absolute()


def _camera_here() -> CameraKind:
    from edgeqc.cameras.aravis import aravis  # noqa: PLC0415 - loads libaravis

    try:
        aravis()
    except EdgeqcError as exc:
        talk(f"{exc}\nUsing the replay camera instead.", style="yellow")
        return CameraKind.REPLAY
    return CameraKind.GIGE


def _broker_here() -> bool:
    from edgeqc.sim.broker import mosquitto_path  # noqa: PLC0415 - loads paho

    if mosquitto_path() is None:
        talk("No MQTT broker: mosquitto is not installed (apt-get install mosquitto). Running without.", style="yellow")
        return False
    return True


def _own_key() -> list[Path]:
    """This box's own key, where a package was trained here."""
    from edgeqc.loading import default_paths  # noqa: PLC0415 - heavy

    key = default_paths()[0] / "keys" / "local.pub"
    return [key] if key.exists() else []


def _engine_for(images: Path | None) -> Path:
    """The demo's own package, or one trained on these images: made by scripts/train, or now where torch is there."""
    if images is None:
        return _DEMO_ENGINE
    trained = Path(".train") / images.name / "1"
    if not (trained / "manifest.yaml").exists():
        try:
            from edgeqc.train.__main__ import main as train  # noqa: PLC0415 - torch
        except ImportError:
            talk(
                f"No engine for these images (and no torch to train one): using the demo's own, which was not made for "
                f"them.\nBetter: pip install torch, then scripts/train --data {images} --quick --out {trained}",
                style="yellow",
            )
            return _DEMO_ENGINE
        talk(f"Training an engine on {images} (train split), under 10 minutes ...")
        train(["--data", str(images), "--quick", "--out", str(trained)])
    return trained


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)  # a person watches
    return True
