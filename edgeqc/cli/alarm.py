"""`edgeqc alarm`: alarms as they stand, and what people answer to them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edgeqc.cli.console import emit, show, talk
from edgeqc.cli.exits import Exit
from edgeqc.cli.records import When, moment_ns

_File = Annotated[Path | None, typer.Argument(help="The line's configuration, for its state directory.")]
_State = Annotated[Path | None, typer.Option("--state", help="The state directory itself.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
_Id = Annotated[str, typer.Argument(help="Of the alarm, as the list shows it; '*' for all.", metavar="ALARM")]
_By = Annotated[str, typer.Option("--by", help="Who; your login on the box is kept with it in any case.")]
_Why = Annotated[str, typer.Option("--why", help="A sentence that stays with the alarm.")]
_COLUMNS: Final = ("alarm", "state", "priority", "since", "count", "what is wrong", "what to do")
_COLOURS: Final = {"active_unacked": "bold red", "active_acked": "yellow", "cleared_unacked": "cyan"}
_DAY_NS: Final = 86_400 * 1_000_000_000


def application() -> typer.Typer:
    """The commands under `alarm`."""
    app = typer.Typer(help="Alarms: what stands, acknowledge, shelve, history, figures.", no_args_is_help=True)
    app.command("list")(_list)
    app.command("ack")(_ack)
    app.command("shelve")(_shelve)
    app.command("unshelve")(_unshelve)
    app.command("remove")(_remove)
    app.command("return")(_return)
    app.command("history")(_history)
    app.command("figures")(_figures)
    return app


def _list(
    file: _File = None,
    *,
    state: _State = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that are normal, too.")] = False,
    as_json: _Json = False,
) -> None:
    """Show what stands: * marks what came first. The daemon may be running or not."""
    from edgeqc.office.alarmlist import standing  # noqa: PLC0415 - sqlite

    found = standing(_state_dir(file, state), everything=everything)
    if as_json:
        for one in found:
            emit(one["schema"], one)
        return
    if not found:
        talk("No alarm stands.")
        return
    show(
        _COLUMNS,
        [
            [
                f"{one['id']}{' *' if one['first_up'] else ''}",
                one["state"],
                one["priority"],
                one["since"][:19].replace("T", " "),
                str(one["count"]),
                one["text"] + _answer(one),
                one["action"],
            ]
            for one in found
        ],
    )


def _ack(alarm: _Id, file: _File = None, *, state: _State = None, by: _By = "", why: _Why = "") -> None:
    """Acknowledge: somebody has seen it."""
    _give(_state_dir(file, state), "ack", alarm, by, why)


def _shelve(
    alarm: _Id,
    file: _File = None,
    *,
    hours: Annotated[float, typer.Option(help="Up to 24; then it shows itself again.")] = 1.0,
    state: _State = None,
    by: _By = "",
    why: _Why,
) -> None:
    """Set an alarm aside for a time; it needs a reason."""
    _give(_state_dir(file, state), "shelve", alarm, by, why, hours=hours)


def _unshelve(alarm: _Id, file: _File = None, *, state: _State = None, by: _By = "", why: _Why = "") -> None:
    """Take it from the shelf now."""
    _give(_state_dir(file, state), "unshelve", alarm, by, why)


def _remove(alarm: _Id, file: _File = None, *, state: _State = None, by: _By = "", why: _Why) -> None:
    """Take an alarm out of service until somebody returns it; it needs a reason."""
    _give(_state_dir(file, state), "remove", alarm, by, why)


def _return(alarm: _Id, file: _File = None, *, state: _State = None, by: _By = "", why: _Why = "") -> None:
    """Take an alarm into service again."""
    _give(_state_dir(file, state), "return", alarm, by, why)


def _history(
    file: _File = None,
    *,
    state: _State = None,
    alarm: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    since: When = "7d",
    limit: Annotated[int, typer.Option(help="At most this many, newest first; -1: all.")] = 100,
    as_json: _Json = False,
) -> None:
    """Every change of the alarms: raised, cleared, answered by whom and why."""
    from edgeqc.office.alarmlist import history  # noqa: PLC0415 - sqlite

    found = history(_state_dir(file, state), alarm=alarm, since_ns=moment_ns(since), limit=limit)
    if as_json:
        for one in found:
            emit(one["schema"], one)
        return
    show(
        ("when (UTC)", "alarm", "event", "state", "what, by whom and why"),
        [
            [one["ts"][:19].replace("T", " "), one["id"], one["event"], one["state"], one["text"] + _answer(one)]
            for one in found
        ],
    )


def _figures(file: _File = None, *, state: _State = None, since: When = "7d", as_json: _Json = False) -> None:
    """How good the alarms are, after ISA-18.2: how many, how often the same, chattering, standing too long."""
    from edgeqc.office.alarmlist import figures  # noqa: PLC0415 - sqlite

    now_ns = time.time_ns()
    found = figures(_state_dir(file, state), since_ns=moment_ns(since) or now_ns - 7 * _DAY_NS, now_ns=now_ns)
    if as_json:
        emit("edgeqc.alarm-figures/1", found)
        return
    show(("figure", "value"), [[name, _told(value)] for name, value in found.items()])


def _give(state_dir: Path, verb: str, alarm: str, by: str, why: str, **more: float) -> None:
    from edgeqc.office.commands import ask  # noqa: PLC0415 - heavy

    try:
        said = ask(state_dir, {"verb": verb, "user": by, "args": {"id": alarm, "note": why, **more}})
    except OSError as exc:
        talk(f"{state_dir}: no daemon answers here ({exc.strerror or exc}); start it: edgeqc run", style="red")
        raise typer.Exit(Exit.FAILED) from exc
    if said["status"] != "ok":
        talk(said["error"]["message"], style="red")
        raise typer.Exit(Exit.FAILED)
    for one in said["data"]["alarms"]:
        talk(f"{one['id']}: {one['state']}", style=_COLOURS.get(one["state"], ""))


def _answer(one: dict[str, Any]) -> str:
    parts = []
    if one["acked_by"]:
        parts.append(f"acknowledged by {one['acked_by']}")
    if one["covered_by"]:
        parts.append(f"by {one['covered_by']}")
    if one["shelved_until"]:
        parts.append(f"until {one['shelved_until'][:16].replace('T', ' ')}")
    if one["note"]:
        parts.append(one["note"])
    return f" [{'; '.join(parts)}]" if parts else ""


def _told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "-"
    return "-" if value is None else str(value)


def _state_dir(file: Path | None, state: Path | None) -> Path:
    from edgeqc.cli.state import state_of  # noqa: PLC0415 - heavy

    return state_of(file, state)
