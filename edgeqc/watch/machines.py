"""The machines: rows of the grid in, deviation from normal out, and an alarm for each that says which tags it is.

On the watch process's loop. What a machine was doing when the process ended is kept in the state directory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from edgeqc.core.alarm import DeadBand, Trip, TripRule
from edgeqc.core.align import Mark
from edgeqc.errors import JournalError, PackageError
from edgeqc.inference.fleet import Fleet, Seen, Sight
from edgeqc.inference.tagpackage import TagPackage, load_tag_package
from edgeqc.records import NS_PER_MS, NS_PER_S, AlertChange, Event, Ne107
from edgeqc.settings import MachineSettings
from edgeqc.watch.cause import explain
from edgeqc.watch.grid import Moment
from edgeqc.watch.latch import Latch

FOLDER: Final = "machines"
"""In the state directory."""
KEEP_NS: Final = 10 * NS_PER_S
"""Between two savings; what is newer than this is learned again in a moment."""
OLD_S: Final = 120.0
"""What was kept longer ago says nothing of now: the machine begins anew, only its alarm is remembered."""
BLIND_ON_NS: Final = 5 * NS_PER_S
BLIND_OFF_NS: Final = 5 * NS_PER_S


class Machines:
    """All of them. `judge` takes each moment of the grid."""

    def __init__(
        self,
        settings: Sequence[MachineSettings],
        columns: Mapping[str, int],
        journal: Callable[[AlertChange | Event], object],
        *,
        period_ns: int,
        state_dir: Path,
    ) -> None:
        """Load every package and go on where the last run ended.

        Args:
            settings: as configured.
            columns: of the grid, by tag name.
            journal: takes alarms.
            period_ns: of the grid.
            state_dir: what is kept goes below it.

        A package that is damaged, names a tag that the line has not, or has a pace that the grid has not, leaves its
        machines unwatched, with an alarm; the others are watched.
        """
        self._groups: list[_Group] = []
        self._journal = journal
        self._folder = state_dir / FOLDER
        self._kept_ns = time.monotonic_ns()
        self._rows = 0
        self._log = structlog.get_logger()
        for folder, members in _by_package(settings).items():
            reason = ""
            try:
                self._groups.append(_Group(folder, members, columns, period_ns))
            except PackageError as exc:
                reason = str(exc)
            for machine in members:
                self._tell(_unwatched_alert(machine, reason))
        for group in self._groups:
            self._recall(group)
            self._tell_standing(group)
            self._log.info(
                "machine_watched",
                machines=[machine.settings.name for machine in group.machines],
                model=group.package.name,
                backend=group.fleet.backend,
            )
            if group.package.model is None:
                self._log.warning("machine_without_forecast", model=group.package.name, backend=group.fleet.backend)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(len(group.machines) for group in self._groups)

    @property
    def alarms(self) -> int:
        """How many alarms stand."""
        return sum(machine.trip.on for group in self._groups for machine in group.machines)

    @property
    def steps(self) -> int:
        """Rows judged since the start, over all machines."""
        return self._rows

    def judge(self, moment: Moment) -> None:
        """Take one moment; each package takes those that are at its own pace."""
        for group in self._groups:
            if moment.row.at_ns % group.grid_ns:
                continue
            at_ns = moment.row.at_ns
            values = np.where(moment.row.marks[group.places] >= Mark.UNCERTAIN, moment.row.values[group.places], np.nan)
            judged = np.array([machine.is_judged(moment) for machine in group.machines])
            failures = group.fleet.failures
            for machine, seen in zip(group.machines, group.fleet.step(values, at_ns, judged), strict=True):
                self._rows += 1
                self._follow(machine, group.fleet, seen, at_ns)
            if group.fleet.failures > failures:
                self._log.error("forecast_failed", model=group.package.name, reason=group.fleet.last_failure)
        now_ns = time.monotonic_ns()
        if now_ns - self._kept_ns >= KEEP_NS:
            self._kept_ns = now_ns
            self.keep()

    def keep(self) -> None:
        """Write down what a restart must not forget; a full disk is no reason to stop."""
        for group in self._groups:
            kept = {
                "package": group.digest,
                "wall_s": time.time(),
                "fleet": group.fleet.kept(),
                "machines": {
                    machine.settings.name: {**machine.trip.kept(), "off": machine.told_off}
                    for machine in group.machines
                },
            }
            path = self._folder / f"{group.key}.json"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                scratch = path.with_suffix(".new")
                scratch.write_text(json.dumps(kept))
                scratch.replace(path)
            except OSError as exc:
                self._log.warning("machine_state_not_kept", file=str(path), reason=str(exc))

    def close(self) -> None:
        """Keep what there is and free the networks."""
        self.keep()
        for group in self._groups:
            group.fleet.close()

    def _recall(self, group: _Group) -> None:
        path = self._folder / f"{group.key}.json"
        try:
            kept = json.loads(path.read_text())
            for machine in group.machines:
                memory = kept["machines"].get(machine.settings.name)
                if memory is not None:
                    machine.trip.restore(memory, time.monotonic_ns())
                    machine.told_off = bool(memory.get("off", False))
            age_s = time.time() - float(kept["wall_s"])
            if kept["package"] == group.digest and 0 <= age_s <= OLD_S:
                group.fleet.restore(kept["fleet"], time.monotonic_ns())
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            self._log.warning("machine_state_not_usable", file=str(path), reason=str(exc)[:255])

    def _tell_standing(self, group: _Group) -> None:
        """Tell again what stands, before the first row: a slow package's comes later than the office waits for it."""
        for machine in group.machines:
            if machine.trip.on and self._tell(_deviation_alert(machine, None, suppressed=machine.told_off)):
                machine.told = True

    def _follow(self, machine: _Machine, fleet: Fleet, seen: Seen, at_ns: int) -> None:
        machine.trip.update(seen.excess, at_ns)
        on, off = machine.trip.on, seen.sight is Sight.OFF
        moved = on and np.isfinite(seen.excess) and machine.band.moved(seen.excess)
        if (on, off) != (machine.told, machine.told_off) or moved:
            if machine.told_off and not off and seen.sight is Sight.SETTLING:
                return  # it runs again, but nothing is known of it yet: the alarm stays suppressed until then
            change = _deviation_alert(machine, seen, suppressed=off)
            if self._tell(change):
                if (on, off) != (bool(machine.told), machine.told_off):
                    log = self._log.warning if on else self._log.info
                    log("machine_alarm", id=change.id, active=on, suppressed=off, text=change.text)
                machine.told, machine.told_off = on, off
                if not on:
                    machine.band.forget()
        blind = seen.sight is Sight.BLIND
        if machine.blind.update(blind, at_ns) and self._tell(_blind_alert(machine, seen, blind=blind)):
            machine.blind.settle()
        without = seen.sight is Sight.PLAIN and machine.package.model is not None
        if machine.without.update(without, at_ns):
            reason = fleet.last_failure or "its network has settled anew"
            if self._tell(_without_alert(machine, reason, without=without)):
                machine.without.settle()

    def _tell(self, change: AlertChange) -> bool:
        """Journal it; a journal that cannot take it now is asked again with the next row."""
        try:
            self._journal(change)
        except JournalError as exc:
            self._log.error("journal_failed", reason=str(exc))
            return False
        return True


class _Machine:
    """One machine's alarm."""

    def __init__(self, settings: MachineSettings, package: TagPackage) -> None:
        self.settings = settings
        self.package = package
        self.trip = Trip(_rule(settings, package))
        self.told: bool | None = None
        """As last told; None: nothing was told by this run, and whoever looks may still know an older alarm."""
        self.told_off = False
        """Was it last told as suppressed, by this run or the one before."""
        self.band = DeadBand(share=settings.alarm.dead_band)
        self.blind = Latch(on_ns=BLIND_ON_NS, off_ns=BLIND_OFF_NS)
        self.without = Latch(on_ns=0, off_ns=BLIND_OFF_NS)

    def is_judged(self, moment: Moment) -> bool:
        if self.settings.state is None:
            return True
        return moment.states[self.settings.state].name.lower() in self.settings.judged_states


class _Group:
    """Machines that share a package: one step for all of them."""

    def __init__(
        self, folder: Path, members: Sequence[MachineSettings], columns: Mapping[str, int], period_ns: int
    ) -> None:
        self.package = package = load_tag_package(folder)
        self.grid_ns = round(package.manifest.grid_ms * NS_PER_MS)
        self.places = np.array([places(one, package, columns, period_ns=period_ns) for one in members], np.intp)
        self.machines = [_Machine(one, package) for one in members]
        self.fleet = Fleet(package, len(members))
        self.digest = package.manifest.files.calibration
        self.key = "-".join(one.name for one in members)[:100]


def _by_package(settings: Sequence[MachineSettings]) -> dict[Path, list[MachineSettings]]:
    groups: dict[Path, list[MachineSettings]] = {}
    for one in settings:
        groups.setdefault(one.model.absolute(), []).append(one)
    return groups


def places(machine: MachineSettings, package: TagPackage, columns: Mapping[str, int], *, period_ns: int) -> list[int]:
    """Give the column of each tag of the package. PackageError where the package does not fit this line."""
    if round(package.manifest.grid_ms * NS_PER_MS) % period_ns:
        raise PackageError(
            f"machine {machine.name}: {package.name} has a row every {package.manifest.grid_ms:g} ms, which is no multiple "
            f"of grid.period_ms ({period_ns / NS_PER_MS:g})"
        )
    unknown = sorted(set(machine.tags) - set(package.tags))
    if unknown:
        raise PackageError(f"machine {machine.name}: {package.name} has no tag {', '.join(unknown)}")
    names = [machine.tags.get(name, name) for name in package.tags]
    missing = [name for name in names if name not in columns]
    if missing:
        raise PackageError(
            f"machine {machine.name}: {package.name} needs the tags {', '.join(missing)}, which no source has; "
            "name them under machines[].tags"
        )
    return [columns[name] for name in names]


def _rule(settings: MachineSettings, package: TagPackage) -> TripRule:
    """In units of excess: 1 is the limit, whichever of the scores is held against it."""
    said, own = settings.alarm, package.calibration.alarm
    limit = said.limit if said.limit is not None else own.limit
    scale = limit / own.limit
    hysteresis = said.hysteresis if said.hysteresis is not None else own.hysteresis
    floor_s = said.floor_s if said.floor_s is not None else own.floor_s
    return TripRule(
        limit=scale,
        hysteresis=hysteresis / own.limit,
        peak_ratio=own.peak_ratio if said.peak_ratio is None else said.peak_ratio,
        floor_ratio=own.floor_ratio if said.floor_ratio is None else said.floor_ratio,
        floor_ns=round(floor_s * NS_PER_S),
        on_delay_ns=round((own.on_delay_s if said.on_delay_s is None else said.on_delay_s) * NS_PER_S),
        off_delay_ns=round((own.off_delay_s if said.off_delay_s is None else said.off_delay_s) * NS_PER_S),
    )


def _deviation_alert(machine: _Machine, seen: Seen | None, *, suppressed: bool) -> AlertChange:
    """As it is told; `seen` None: nothing was seen by this run yet."""
    settings, on = machine.settings, machine.trip.on
    action = (settings.action or _ACTION) if on else ""
    room = max(_WORDS - len(action) - len(settings.name), 60)
    cause = (
        explain(machine.package, seen, room=room) if on and seen is not None and seen.deviation is not None else None
    )
    if suppressed:
        text = f"{settings.name} is in a state that is not judged"
    elif cause is not None:
        text = f"{settings.name} is not as usual: {cause.sentence}"
    else:
        text = f"{settings.name} is not as usual" if on else f"{settings.name} is as usual again"
    value = round(seen.score, 3) if seen is not None and np.isfinite(seen.score) else None
    return AlertChange(
        id=f"machine.{settings.name}.deviation",
        active=on,
        priority=settings.priority,
        ne107=Ne107.OUT_OF_SPECIFICATION if on else Ne107.NORMAL,
        text=text,
        action=action,
        value=value,
        limit=round(machine.trip.limit * seen.limit, 3) if seen is not None else None,
        unit="x usual" if value is not None else "",
        contribution=cause.contribution if cause is not None else (),
        latched=settings.acknowledge,
        suppressed=suppressed,
    )


def _unwatched_alert(machine: MachineSettings, reason: str) -> AlertChange:
    return AlertChange(
        id=f"machine.{machine.name}.model",
        active=bool(reason),
        priority="high",
        ne107=Ne107.FAILURE if reason else Ne107.NORMAL,
        text=f"{machine.name} is not watched: {reason[:150]}" if reason else f"{machine.name} has its model",
        action="Give it a package that fits (edgeqc train tags), then restart the daemon" if reason else "",
    )


def _blind_alert(machine: _Machine, seen: Seen, *, blind: bool) -> AlertChange:
    names = [machine.package.tags[tag] for tag in seen.missing]
    return AlertChange(
        id=f"machine.{machine.settings.name}.blind",
        active=blind,
        priority="medium",
        ne107=Ne107.FUNCTION_CHECK if blind else Ne107.NORMAL,
        text=f"{machine.settings.name} is not judged: no value of {', '.join(names[:4])}"
        if blind
        else f"{machine.settings.name} is judged again",
        action="See the alarms of the tag server; check these tags and their sensors" if blind else "",
        value=float(len(names)) if blind else None,
        limit=0.0 if blind else None,
        unit="tags" if blind else "",
    )


def _without_alert(machine: _Machine, reason: str, *, without: bool) -> AlertChange:
    name = machine.settings.name
    return AlertChange(
        id=f"machine.{name}.forecast",
        active=without,
        priority="medium",
        ne107=Ne107.FUNCTION_CHECK if without else Ne107.NORMAL,
        text=f"{name} is watched without its forecast: {reason[:120]}"
        if without
        else f"{name} is watched as it was taught",
        action="It comes back by itself; if not, train its model anew" if without else "",
    )


_ACTION: Final = "Look at the tags named here, largest share first"
_WORDS: Final = 160
"""Characters that text and action have together, beside all else that a journal record holds of an alarm."""
