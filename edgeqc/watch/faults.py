"""What can be wrong with a tag source, each with its own alarm: what it is, how bad, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeqc.records import NS_PER_S, AlertChange, Ne107, TagFault, TagRemark
from edgeqc.settings import DerivedTagSource, StateSource, TagSourceSettings
from edgeqc.watch.intake import SourceIntake, TagIntake

CLOCK_NS: Final = 60 * NS_PER_S
"""A peer's clock that is further off than this is told; PLCs without NTP drift by seconds a day."""
STANDS_NS: Final = 60 * NS_PER_S
"""How long something that happened at one moment stays an alarm."""
GAP_NS: Final = 60 * NS_PER_S
"""A source that was away for longer than this left a gap that models have to warm up after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that may be wrong, and whether it is now."""

    kind: str
    """The last part of the alarm's id: `tags.<source>.<kind>`."""
    active: bool
    priority: str = "medium"
    ne107: Ne107 = Ne107.FAILURE
    text: str = ""
    action: str = ""
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    at_once: bool = False
    """It needs no on-delay: it happened, or it did not."""

    def change(self, source: str) -> AlertChange:
        """As an alarm that begins or ends now."""
        return AlertChange(
            id=f"tags.{source}.{self.kind}",
            active=self.active,
            priority=self.priority,
            ne107=self.ne107 if self.active else Ne107.NORMAL,
            text=self.text if self.active else f"{source}: {self.kind.replace('_', ' ')} is over",
            action=self.action if self.active else "",
            value=self.value if self.active else None,
            limit=self.limit if self.active else None,
            unit=self.unit if self.active else "",
        )


def faults_of(
    source: SourceIntake, intake: TagIntake, names: Sequence[str], *, now_ns: int, wall_less_mono_ns: int
) -> Iterator[Fault]:
    """Go through everything that can be wrong with one source.

    Args:
        source: which.
        intake: has the state of its tags.
        names: of all tags, by place.
        now_ns: monotonic.
        wall_less_mono_ns: this box's UTC less its monotonic time.
    """
    name = source.settings.name
    yield from _connection(source, now_ns)
    span = slice(source.places.start, source.places.stop)
    found = intake.faults[span]
    for fault, kind, what, action in _OF_TAGS:
        bad = (np.flatnonzero(found == fault) + source.places.start).tolist() if source.up else []
        yield Fault(
            kind=kind,
            active=len(bad) > 0,
            text=f"{len(bad)} of {len(found)} tags of {name} {what}: {_named(bad, names)}",
            action=action,
            value=float(len(bad)),
            limit=0.0,
            unit="tags",
        )
    if isinstance(source.settings, DerivedTagSource | StateSource):
        return
    yield from _remarks(source, now_ns)
    yield from _clock(source, now_ns, wall_less_mono_ns)
    back_ns = now_ns - source.changed_ns
    yield Fault(
        kind="gap",
        active=source.up and source.gap_ns > GAP_NS and back_ns < STANDS_NS,
        priority="low",
        ne107=Ne107.FUNCTION_CHECK,
        text=f"{name} was away for {source.gap_ns / NS_PER_S:.0f} s: its tags have a gap, models begin anew",
        action="None; what was not recorded stays a gap",
        value=round(source.gap_ns / NS_PER_S, 1),
        limit=GAP_NS / NS_PER_S,
        unit="s",
        at_once=True,
    )
    yield Fault(
        kind="backlog",
        active=source.up and source.backlog,
        priority="low",
        ne107=Ne107.FUNCTION_CHECK,
        text=f"{name} sends what it had kept: its values are {source.lag_ns / NS_PER_S:.0f} s old, and recorded but not judged",
        action="None while it gets less; else the server or this box is too slow for these tags",
        value=round(source.lag_ns / NS_PER_S, 1),
        unit="s",
        at_once=True,
    )


def overrun(dropped: int) -> Fault:
    """Samples came faster than the box can take them (`tags.watch.overrun`)."""
    return Fault(
        kind="overrun",
        active=dropped > 0,
        ne107=Ne107.OUT_OF_SPECIFICATION,
        text=f"{dropped} samples were given up: they came faster than this box can take them",
        action="Fewer tags, a longer publishing_ms or poll_ms, a deadband for those that only have noise",
        value=float(dropped),
        limit=0.0,
        unit="samples",
        at_once=True,
    )


def history_disk(reason: str, lost: int) -> Fault:
    """The tags' recording cannot be written (`tags.history.disk`); `reason` empty: it can."""
    return Fault(
        kind="disk",
        active=bool(reason),
        ne107=Ne107.OUT_OF_SPECIFICATION,
        text=f"The tags are not recorded: {reason}; {lost} samples are missing so far",
        action="Make room on the state directory's disk, or lower history.mb; nothing else depends on it",
        value=float(lost),
        unit="samples",
    )


def where(settings: TagSourceSettings) -> str:
    """Where a source's server is, for people."""
    match settings.type:
        case "opcua":
            return settings.url
        case "modbus":
            return settings.device
        case "replay":
            return str(settings.file)
        case "derived" | "state":
            return "this box"


def _connection(source: SourceIntake, now_ns: int) -> Iterator[Fault]:
    name, settings = source.settings.name, source.settings
    if isinstance(settings, DerivedTagSource | StateSource):
        return
    away_s = round((now_ns - source.changed_ns) / NS_PER_S, 1)
    peer = where(settings)
    yield Fault(
        kind="lost",
        active=not source.up and not source.hung,
        priority="high",
        text=f"No tag values from {name}: {source.reason[:_REASON]}",
        action=f"Check that {peer} is there and its network is up; values come back by themselves",
        value=away_s,
        limit=settings.stale_ms / 1000,
        unit="s",
    )
    yield Fault(
        kind="hung",
        active=not source.up and source.hung,
        priority="high",
        text=f"{name} does not answer: {source.reason[:_REASON]}",
        action=f"Check {peer}: switched off, cut off, or its server hangs and must be restarted",
        value=away_s,
        limit=settings.stale_ms / 1000,
        unit="s",
    )


def _remarks(source: SourceIntake, now_ns: int) -> Iterator[Fault]:
    name = source.settings.name
    for remark, priority, ne107, what, action in _OF_REMARKS:
        text = source.remarks.get(remark, "")
        active = bool(text)
        if remark is TagRemark.RESTARTED:
            active = active and now_ns - source.remarked_ns[remark] < STANDS_NS
        yield Fault(
            kind=remark.value,
            active=active,
            priority=priority,
            ne107=ne107,
            text=f"{name} {what}{text[:_REMARK]}",
            action=action.format(source=name),
            at_once=remark is TagRemark.RESTARTED,
        )


def _clock(source: SourceIntake, now_ns: int, wall_less_mono_ns: int) -> Iterator[Fault]:
    name = source.settings.name
    wrong_ns = source.clock.wrong_by_ns(wall_less_mono_ns)
    ahead = source.ahead > 0 and now_ns - source.ahead_at_ns < STANDS_NS
    if abs(wrong_ns) > CLOCK_NS:
        text = f"The clock of {name} is {_span(wrong_ns)} {'ahead of' if wrong_ns > 0 else 'behind'} this box's"
    elif source.behind_ns:
        text = f"The times of {name}'s values are {_span(source.behind_ns)} behind its own clock"
    else:
        text = f"Values of {name} have times in the future"
    yield Fault(
        kind="clock",
        active=source.up and (abs(wrong_ns) > CLOCK_NS or source.behind_ns > 0 or ahead),
        priority="low",
        ne107=Ne107.MAINTENANCE_REQUIRED,
        text=text + "; it is allowed for",
        action="Set the clocks of both by NTP; the archive has the times of this box",
        value=round(wrong_ns / NS_PER_S, 1),
        limit=CLOCK_NS / NS_PER_S,
        unit="s",
    )
    jump_ns = source.clock.last_jump_ns
    yield Fault(
        kind="clock_jumped",
        active=source.jumped_ns > 0 and now_ns - source.jumped_ns < STANDS_NS,
        priority="low",
        ne107=Ne107.FUNCTION_CHECK,
        text=f"The clock of {name} was set {'forward' if jump_ns > 0 else 'back'} by {_span(jump_ns)}; it is allowed for",
        action="Find out what sets it; a clock that follows NTP does not jump",
        value=round(jump_ns / NS_PER_S, 1),
        unit="s",
        at_once=True,
    )


_REASON: Final = 100
"""Characters of what the peer said, so that text and action fit into a journal record."""
_REMARK: Final = 180
_NAMED: Final = 4
"""Tags that an alarm names; the rest is a number."""
_OF_TAGS: Final = (
    (TagFault.STATUS, "bad", "are bad by their server's own word", "Check the sensors and modules behind these tags"),
    (
        TagFault.NOT_A_NUMBER,
        "not_a_number",
        "are no finite number",
        "Check the scaling in the PLC: a division by 0, or a module that is not there",
    ),
    (
        TagFault.STUCK,
        "stuck",
        "have not changed for longer than their stuck_s",
        "Check sensor and wiring; a machine that stands still does this, too: then stuck_s is too short",
    ),
)
_OF_REMARKS: Final = (
    (
        TagRemark.REFUSED,
        "medium",
        Ne107.FAILURE,
        "refuses tags: ",
        "Compare their addresses with the PLC's program; they are asked for again every 10 s",
    ),
    (
        TagRemark.TYPE,
        "medium",
        Ne107.MAINTENANCE_REQUIRED,
        "gives values of another type than before: ",
        "Check scale and unit of these tags, then: edgeqc tags accept FILE --source {source}",
    ),
    (
        TagRemark.NAMESPACES,
        "low",
        Ne107.MAINTENANCE_REQUIRED,
        "numbers its namespaces anew: ",
        "Write nsu=URI; instead of ns=NUMBER; in the configuration, or: edgeqc tags accept FILE --source {source}",
    ),
    (TagRemark.RESTARTED, "low", Ne107.FUNCTION_CHECK, "", "None, if it was meant to be"),
    (
        TagRemark.SAMPLES_LOST,
        "medium",
        Ne107.OUT_OF_SPECIFICATION,
        "lost values because its queue was full: ",
        "A longer sampling_ms or a shorter publishing_ms for this source",
    ),
    (
        TagRemark.SLOW,
        "medium",
        Ne107.OUT_OF_SPECIFICATION,
        "is slower than it was asked to be: ",
        "A longer stale_ms for this source, or a shorter publishing interval in the server's own settings",
    ),
)


def _named(places: Sequence[int], names: Sequence[str]) -> str:
    named = sorted(names[place] for place in places)
    return ", ".join(named[:_NAMED]) + (" ..." if len(named) > _NAMED else "")


def _span(span_ns: int) -> str:
    seconds = abs(span_ns) / NS_PER_S
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004 - two hours
