"""The tags on one grid of times, and what the machines are doing: what every model of the watch process is fed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from edgeqc.core.align import Aligner, GridRow, Mark, Samples
from edgeqc.core.linestate import Condition, LineState, StateMachine
from edgeqc.records import NS_PER_MS, NS_PER_S, Event, Quality
from edgeqc.settings import ConditionSettings, GridSettings, StateSource, TagSourceSettings
from edgeqc.shm.tagtable import TagTable
from edgeqc.watch.intake import TagIntake
from edgeqc.watch.newest import Taken


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moment:
    """One row of the grid with the states of all machines."""

    row: GridRow
    """Columns are the places of the tag table; `at_ns` is monotonic. The states' own columns are filled in."""
    states: Mapping[str, LineState]
    """By the name of the state source."""
    changed: tuple[Event, ...] = ()
    """A `line_state` for each state that is another one than in the row before."""


class TagGrid:
    """Aligns what the intake hands over. One thread."""

    def __init__(
        self, table: TagTable, sources: Sequence[TagSourceSettings], settings: GridSettings, intake: TagIntake
    ) -> None:
        """Columns are the places of `table`, which was made for these `sources`."""
        self.names: tuple[str, ...] = table.names
        """Of the columns."""
        self.aligner = Aligner(
            len(table.names),
            period_ns=int(settings.period_ms * NS_PER_MS),
            late_ns=int(settings.late_ms * NS_PER_MS),
        )
        self._intake = intake
        own = [source for source in sources if isinstance(source, StateSource)]
        self._machines = [(source.name, table.index(source.name), machine(source, table)) for source in own]
        self._states = dict.fromkeys((source.name for source in own), LineState.UNKNOWN)

    def put(self, taken: Sequence[Taken]) -> None:
        """Take what came."""
        for each in taken:
            self.aligner.put(each.samples)

    def moments(self, now_ns: int) -> Iterator[Moment]:
        """Give each row whose time has come, in order: when all sources have told what was until then, or `late_ms` after."""
        for row in self.aligner.rows(now_ns, complete_to_ns=self._intake.complete_to_ns()):
            yield self._moment(row, now_ns)

    def state_samples(self, moment: Moment) -> Samples:
        """The states of a row as samples, for whoever records them: of those that changed."""
        told = [
            place for name, place, _ in self._machines if any(event.facts["line"] == name for event in moment.changed)
        ]
        return Samples(
            np.array(told, np.int32),
            np.full(len(told), moment.row.at_ns, np.int64),
            moment.row.values[told].astype(np.float64),
            moment.row.marks[told],
        )

    def _moment(self, row: GridRow, now_ns: int) -> Moment:
        changed: list[Event] = []
        for name, place, state_machine in self._machines:
            before = state_machine.state
            state = state_machine.step(row)
            known = state is not LineState.UNKNOWN
            row.values[place] = float(state)
            row.marks[place] = Mark.GOOD if known else Mark.UNCERTAIN
            row.ages_s[place] = (row.at_ns - state_machine.since_ns) / NS_PER_S
            self._intake.tell_state(place, float(state), Quality.GOOD if known else Quality.UNCERTAIN, now_ns)
            if state is not before:
                facts: dict[str, str | int | float | bool] = {
                    "line": name,
                    "state": state.name.lower(),
                    "was": before.name.lower(),
                }
                structlog.get_logger().info("line_state", **facts)
                changed.append(Event(name="line_state", facts=facts))
            self._states[name] = state
        return Moment(row=row, states=dict(self._states), changed=tuple(changed))


def machine(source: StateSource, table: TagTable) -> StateMachine:
    """The state machine of one state source; its columns are the places of `table`."""
    return StateMachine(
        running=[_condition(condition, table) for condition in source.running],
        changeover=[_condition(condition, table) for condition in source.changeover],
        warm_up_ns=int(source.warm_up_s * NS_PER_S),
        settle_ns=int(source.settle_s * NS_PER_S),
    )


def _condition(settings: ConditionSettings, table: TagTable) -> Condition:
    place = table.index(settings.tag)
    if settings.equals is not None:
        return Condition(place=place, low=settings.equals, high=settings.equals)
    bounds = {}
    if settings.over is not None:
        bounds["low"] = settings.over
    if settings.under is not None:
        bounds["high"] = settings.under
    return Condition(place=place, **bounds)
