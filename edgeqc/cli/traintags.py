"""`edgeqc train tags` and `edgeqc eval tags`: a tag model from recorded tags, and what it is worth."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeqc.cli.console import show, talk
from edgeqc.cli.packagename import name_of
from edgeqc.errors import EdgeqcError

if TYPE_CHECKING:
    from edgeqc.train.tags.course import Lesson

_Tags = Annotated[str | None, typer.Option("--tags", help="Only these columns, with commas between.")]


class Protocol(StrEnum):
    """How a data set is measured."""

    RECORDED = "recorded"
    SKAB = "skab"


def train_tags(  # noqa: PLR0917 - each is a switch of the command
    data: Annotated[Path, typer.Option(help="CSV, or a folder of them: what `edgeqc tags export --grid` writes.")],
    out: Annotated[Path, typer.Option(help="Folder of the package.")],
    report: Annotated[Path | None, typer.Option(help="JSON; the page goes beside it. Default: in OUT.report.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Default: of OUT, where it is NAME/VERSION, else of the data.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Default: as the name, or 1.")] = None,
    tags: _Tags = None,
    state: Annotated[str, typer.Option(help="Column that says what the machine was doing.")] = "state",
    states: Annotated[str, typer.Option(help="States to learn, with commas between; '' for any.")] = "running",
    gap: Annotated[float, typer.Option(metavar="S", min=0, help="A longer pause ends a stretch; 0: ten rows.")] = 0.0,
    per_day: Annotated[float, typer.Option(min=1e-6, help="False alarms a day to promise.")] = 1.0,
    network: Annotated[bool, typer.Option("--network/--no-network", help="The forecaster; it needs torch.")] = True,
    seed: Annotated[int, typer.Option()] = 1,
    licence: Annotated[str, typer.Option(help="Of the data and what is made of it.")] = "The data's owner's",
) -> None:
    """Learn how a machine behaves when nothing is wrong with it, and write a tag package.

    Only rows in one of the states, with every tag there, are learned, the earliest three quarters of them; the rest sets
    the alarm's limit and says what the promise of false alarms is worth. Take at least an hour of good running, better a
    week: what the machine never did while it learned is an alarm.
    """
    from rich.console import Console  # noqa: PLC0415 - heavy

    from edgeqc.inference.writing import only_a_package  # noqa: PLC0415 - heavy
    from edgeqc.train.progress import Told  # noqa: PLC0415
    from edgeqc.train.tags.course import LEAST_ROWS, learn  # noqa: PLC0415 - heavy
    from edgeqc.train.tags.package import Wishes  # noqa: PLC0415
    from edgeqc.train.tags.recording import good_stretches, joined, read_folder  # noqa: PLC0415

    name, version = name_of(out, name=name, version=version, data=data)
    only_a_package(out)
    recording = joined(read_folder(data, _names(tags), state=state))
    wanted = _names(states) or []
    if wanted and not recording.states:
        talk(f"No column {state}: every row counts as {' or '.join(wanted)}.", style="yellow")
    stretches = good_stretches(
        recording,
        states=wanted,
        gap_s=gap or 10 * recording.period_s,
        least_rows=min(LEAST_ROWS, 100),
    )
    rows = sum(stretch.stop - stretch.start for stretch in stretches)
    talk(f"{len(recording)} rows, {rows} of them good, in {len(stretches)} stretches; {len(recording.tags)} tags.")
    wishes = Wishes(
        name=_word(name),
        version=version,
        licence=licence,
        network=network,
        seed=seed,
        per_day=per_day,
        states=tuple(wanted) if recording.states else (),
    )
    with Told(Console(stderr=True), "learning", 100) as bar:
        lesson = learn(recording, stretches, wishes, out, lambda share, note: bar.at(round(100 * share), note))
    _write_reports(report or out.with_name(f"{out.name}.report") / "report.json", lesson)
    _tell(lesson)


def eval_tags(
    data: Annotated[Path, typer.Option(help="Folder of CSV files, or one.")],
    report: Annotated[Path, typer.Option(help="JSON; the page with the curves goes beside it as .html.")],
    *,
    protocol: Annotated[Protocol, typer.Option(help="skab: its leaderboard's; recorded: labels, if any.")] = (
        Protocol.RECORDED
    ),
    model: Annotated[Path | None, typer.Option(help="Package to measure; skab trains one for each file.")] = None,
    network: Annotated[bool, typer.Option("--network/--no-network", help="skab: with or without forecaster.")] = True,
    seed: Annotated[int, typer.Option(help="skab: of the networks.")] = 1,
    state: Annotated[str, typer.Option(help="recorded: column that says what the machine was doing.")] = "state",
) -> None:
    """Measure alarms on recorded tags: F1, false and missed alarms, change points, file by file."""
    from rich.console import Console  # noqa: PLC0415 - heavy

    from edgeqc.train.progress import Told  # noqa: PLC0415
    from edgeqc.train.tags import page  # noqa: PLC0415 - heavy

    if protocol is Protocol.RECORDED and model is None:
        raise typer.BadParameter("is needed, or --protocol skab", param_hint="--model")
    console = Console(stderr=True)
    with Told(console, "judging", 1000) as bar:

        def told(done: int, total: int, note: str) -> None:
            bar.at(round(1000 * done / max(total, 1)), note)

        if protocol is Protocol.SKAB:
            from edgeqc.train.tags.skab import evaluate  # noqa: PLC0415 - heavy

            found, curves = evaluate(data, told, seed=seed, network=network)
        else:
            from edgeqc.train.tags.recorded import measure  # noqa: PLC0415 - heavy

            assert model is not None  # noqa: S101 - asked above
            found, curves = measure(data, model, told, state=state)
            if found["states"] and found["files_without_state"]:
                talk(
                    f"No column {state} in {found['files_without_state']} files: every row of theirs is judged.",
                    style="yellow",
                )
    _save(report, found)
    page.write(report.with_suffix(".html"), f"Alarms on {data}", found, curves)
    _show(found)
    talk(f"{report}, {report.with_suffix('.html')}")


def _write_reports(path: Path, lesson: Lesson) -> None:
    from edgeqc.train.tags import page  # noqa: PLC0415 - heavy
    from edgeqc.train.tags.curves import of_lesson  # noqa: PLC0415

    manifest, calibration = lesson.package.manifest, lesson.package.calibration
    found: dict[str, Any] = {
        "package": lesson.package.name,
        "folder": str(lesson.package.folder),
        "data": lesson.recording.source,
        "rows": len(lesson.recording),
        "learned_rows": manifest.training.rows,
        "held_rows": sum(part.stop - part.start for part in lesson.held),
        "network": lesson.package.model is not None,
        "parameters": manifest.training.parameters,
        "seconds": round(lesson.seconds, 1),
        "alarm": calibration.alarm.model_dump(),
        "promise": calibration.promise.model_dump() if calibration.promise is not None else None,
        "alarm_rows": int(lesson.alarms.sum()),
    }
    _save(path, found)
    page.write(path.with_suffix(".html"), f"{lesson.package.name}: what was learned", found, [of_lesson(lesson)])
    talk(f"{path}, {path.with_suffix('.html')}")


def _save(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


def _tell(lesson: Lesson) -> None:
    from edgeqc.train.tags.course import MOST_STANDING_RATIO  # noqa: PLC0415 - heavy

    calibration, promise = lesson.package.calibration, lesson.package.calibration.promise
    talk(f"{lesson.package.folder}: {lesson.package.name}, alarm above {calibration.alarm.limit:g} x usual")
    if lesson.package.model is None:
        talk("It has no forecaster: distance, T2 and Q alone watch the machine.", style="yellow")
    if promise is None:
        return
    bound = f"at most {promise.bound_per_day:g} false alarms a day are borne out (95 %)"
    ground = f"by {promise.hours:g} h of good time with {promise.alarms} alarms"
    if promise.kept:
        talk(f"Promise of {promise.per_day:g} a day: kept; {bound} {ground}.")
    elif (promise.standing_ratio or 0.0) > MOST_STANDING_RATIO:
        talk(
            f"Promise of {promise.per_day:g} a day: NOT kept; the alarm stood for {promise.standing_ratio:.1%} of "
            f"{promise.hours:g} h of good time that it was not taught. The machine has drifted: teach it more of its good days.",
            style="yellow",
        )
    else:
        hours = 24 * 3 / promise.per_day
        talk(
            f"Promise of {promise.per_day:g} a day: NOT borne out; {bound} {ground}. "
            f"About {8 * hours:.0f} h of good running in all, with no alarm in its last eighth, would do.",
            style="yellow",
        )


def _show(found: dict[str, Any]) -> None:
    from edgeqc.train.tags.page import compared  # noqa: PLC0415 - heavy

    show(["", "F1", "FAR %", "MAR %"], compared(found))
    if "nab" in found:
        show(
            ["change points, NAB", "standard", "low FP", "low FN"],
            [
                [label, *(f"{found[name][key]:.1f}" for key in ("standard", "low_fp", "low_fn"))]
                for name, label in (
                    ("nab", "the alarm's own rule"),
                    ("nab_with_change_rule", "a rule of their own, in no package"),
                )
                if name in found
            ],
        )
    if "anomaly_free" in found:
        free = found["anomaly_free"]
        talk(
            f"Nothing wrong: FAR {free['far']:g} % of {free['rows']} rows after {free['commissioning_rows']} to learn from "
            f"({free['far_plain_threshold']:g} % with a plain threshold)."
        )


def _names(text: str | None) -> list[str] | None:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    return names or None


def _word(text: str) -> str:
    word = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")
    if not word:
        raise EdgeqcError(f"{text}: gives no name for the package; name it with --name")
    return word
