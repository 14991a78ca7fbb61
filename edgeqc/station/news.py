"""What a station says of itself: each change once in the log, and in the journal as an alert or event for the office."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from edgeqc import __version__
from edgeqc.core.stopping import StopReason
from edgeqc.journal import JournalWriter
from edgeqc.journal.codec import Body
from edgeqc.logs import Log
from edgeqc.records import NS_PER_S, RECIPE_READY, AlertChange, Event, Ne107, Started
from edgeqc.settings import StationSettings
from edgeqc.station.recipes import Recipes
from edgeqc.station.viewpoints import Viewpoints

_WHY_CHARS: Final = 96
"""Of the reason for a backend, in the journal: with all other facts it must fit a record; the log has all of it."""
_SAY_AGAIN_NS: Final = 60 * NS_PER_S
_LOOK_AT_DISK: Final = "Look at the state directory's disk (dmesg); no part can pass once the journal is full"
_DISK_ACTIONS: Final = {
    "disk_full": "Make room on the state directory's disk; until then no part can pass once the journal is full",
    "journal_budget_used_up": "Records were deleted before they were archived: see that the office runs (systemctl status edgeqc)",
}


class News:
    """Any thread may tell."""

    def __init__(self, station: StationSettings, *, note: Callable[[Body], None], log: Log) -> None:
        """`note` journals an event or an alert."""
        self._station, self._note, self._log = station, note, log
        self._without_score_ns = -_SAY_AGAIN_NS

    def started(self, config_digest: str, recipes: Recipes, cameras: Viewpoints, journal: JournalWriter) -> None:
        """The station is about to run: with which configuration and engines, and what its journal had to mend."""
        name = self._station.name
        first = recipes[recipes.all[0]][0]
        self._note(
            Started(
                process=f"station-{name}",
                run_id=secrets.token_hex(8),
                version=__version__,
                config_digest=config_digest,
                backend=first.engine.backend,
                model=first.package.name,
                model_digest=first.package.digest.hex(),
            )
        )
        for what, count in journal.repaired.items():
            if count:
                self._log.warning("journal_repaired", what=what, count=count)
                self._note(Event(name="journal_repaired", facts={"what": what, "count": count}))
        self._alert("engine.failed", active=False, text="")
        self._tell_unsigned(recipes)
        for recipe in recipes.all:
            for camera, inspection in zip(cameras, recipes[recipe], strict=True):
                facts: dict[str, str | int | float | bool] = {
                    "recipe": recipe.name,
                    **({"camera": camera.name} if len(cameras) > 1 else {}),
                    "model": inspection.package.name,
                    "model_digest": inspection.package.digest.hex(),
                    "backend": inspection.engine.backend,
                    "why": inspection.choice.why,
                    "golden_difference": inspection.golden_difference,
                    "golden_limit": inspection.package.golden_tolerance,
                    "vouched": inspection.package.vouched,
                    "threshold": inspection.threshold,
                }
                self._log.info(RECIPE_READY, **facts)
                self._note(Event(name=RECIPE_READY, facts={**facts, "why": inspection.choice.why[:_WHY_CHARS]}))

    def _tell_unsigned(self, recipes: Recipes) -> None:
        unsigned = [
            (recipe.name, inspection.package)
            for recipe in recipes.all
            for inspection in recipes[recipe]
            if not inspection.package.trusted
        ]
        for name, package in unsigned:
            self._log.warning("package_not_trusted", recipe=name, package=str(package.folder), vouched=package.vouched)
        self._alert(
            "package.unsigned",
            active=bool(unsigned),
            text="engine packages run that nobody vouches for: "
            + ", ".join(dict.fromkeys(name for name, _ in unsigned))
            if unsigned
            else "",
            action="Sign them (edgeqc engine sign), then take engines.unsigned: allow out of the configuration",
        )

    def engine_failed(self, reason: str) -> None:
        """The engine cannot go on: the process ends, and the supervisor starts it anew."""
        self._alert("engine.failed", active=True, text=reason)

    def without_score(self, reason: str) -> None:
        """Say it once in a while: each part's is in the journal, and an engine that is broken would fill the log."""
        now_ns = time.monotonic_ns()
        if now_ns - self._without_score_ns > _SAY_AGAIN_NS:
            self._log.warning("part_without_score", reason=reason, next_said_after_s=_SAY_AGAIN_NS // NS_PER_S)
            self._without_score_ns = now_ns

    def peer(self, peer: str, up: bool, reason: str, *, action: str) -> None:
        """The camera or the PLC was lost, for `reason`, or is back; `action` is what helps."""
        if up:
            self._log.info("peer_back", peer=peer)
        else:
            self._log.warning("peer_lost", peer=peer, reason=reason)
        self._alert(f"{peer}.lost", active=not up, text=f"{peer} lost: {reason}" if reason else "", action=action)

    def plc_program(self, alive: bool) -> None:
        """The PLC's program moves its heartbeat, or no more."""
        if not alive:
            self._log.warning("plc_program_stopped")
        self._alert(
            "plc.program",
            active=not alive,
            text="" if alive else "the PLC answers, but its heartbeat stands still: READY is off",
            action="Check that the PLC is in RUN and that its program writes the heartbeat (plc_heartbeat_ms)",
        )

    def line_stop(self, reason: StopReason | None) -> None:
        """The PLC is asked to stop the line, for `reason`; None: no more."""
        self._log.warning("line_stop_asked" if reason is not None else "line_stop_withdrawn", reason=str(reason))
        stop = self._station.stop
        texts = {
            StopReason.FAIL_SAFE: f"{stop.fail_safe_in_a_row} late or fail-safe verdicts in a row: "
            "nothing is inspected any more",
            StopReason.REJECTS: f"over {stop.reject_ratio or 0:.0%} of the last {stop.reject_parts} parts rejected",
            StopReason.GATE: "a part that had to be ejected went through the gate, or may have",
        }
        self._alert(
            "line.stop",
            active=reason is not None,
            priority="critical",
            text=f"line stop asked for: {texts[reason]}" if reason is not None else "",
            action="Look at the other alerts of the station, and at its last images: edgeqc records"
            if reason is not None
            else "",
        )

    def disk(self, name: str, facts: dict[str, str | int]) -> None:
        """The journal's disk does not take what it should, or does again (`disk_ok`)."""
        self._log.warning(name, **facts)
        full = name != "disk_ok"
        self._alert(
            "journal.disk",
            active=full,
            text=f"journal: {name}: {facts.get('reason', '')}".removesuffix(": ") if full else "",
            action=_DISK_ACTIONS.get(name, _LOOK_AT_DISK) if full else "",
        )

    def _alert(self, name: str, *, active: bool, text: str, action: str = "", priority: str = "high") -> None:
        self._note(
            AlertChange(
                id=f"{self._station.name}.{name}",
                active=active,
                priority=priority,
                ne107=Ne107.FAILURE if active else Ne107.NORMAL,
                text=text,
                action=action,
            )
        )
