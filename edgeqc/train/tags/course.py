"""From a recording to a tag model: what is usual, the network, the alarm limits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.core import teach
from edgeqc.core.alarm import Trip
from edgeqc.core.deviation import Floats
from edgeqc.core.tail import fit_tail, rate_bound
from edgeqc.errors import EdgeqcError
from edgeqc.inference.fleet import Fleet, Seen, Sight
from edgeqc.inference.tagmanifest import AlarmNumbers, Promise
from edgeqc.inference.tagpackage import TagPackage
from edgeqc.train.tags.package import GOLDEN_ROWS, LIMIT, MONITOR_LIMIT, Draft, Wishes, forecast_rows, write
from edgeqc.train.tags.recording import Recording

LEAST_ROWS: Final = 200
"""Fewer good rows teach nothing: three minutes of a machine at one row a second."""
_SHARE_LEARNED: Final = 0.75
"""Of the good time, from its beginning; the rest, later in time, sets and checks the limit."""
_SHARE_LIMIT: Final = 0.5
"""Of what was not learned: the first half sets the limit, the second checks it."""
MOST_STANDING_RATIO: Final = 0.01
"""Of the checking time, for a promise to be kept: a false alarm a day that stands for a quarter of an hour. An alarm that is
raised once and stays on is one alarm, and yet tells of a machine that is not as it was learned."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """What was made, and of what: the package and what its report shows."""

    package: TagPackage
    recording: Recording
    learned: list[slice]
    held: list[slice]
    """Good rows that were not learned from."""
    seen: list[Seen]
    """Of every row of the recording, in order, by the deployed path."""
    alarms: NDArray[np.bool_]
    seconds: float


def learn(
    recording: Recording,
    stretches: Sequence[slice],
    wishes: Wishes,
    folder: Path,
    told: Callable[[float, str], None] = lambda _share, _note: None,
) -> Lesson:
    """Learn from the good stretches of a recording and write the package into `folder`.

    Args:
        recording: all of it; rows outside of the stretches are only shown in the report.
        stretches: good rows without a gap, in order of time (`good_stretches`).
        wishes: names, promise, alarm rule.
        folder: made if it is not there; its files are overwritten.
        told: hears of progress: the share that is done and a note.

    Raises:
        EdgeqcError: too few rows, a tag that never moves by more than its resolution, or no torch for a network.
    """
    began = time.monotonic()
    learned, held = _split(stretches, _SHARE_LEARNED if wishes.per_day is not None else 1.0)
    rows = sum(stretch.stop - stretch.start for stretch in learned)
    if rows < LEAST_ROWS:
        raise EdgeqcError(f"{recording.source}: {rows} good rows to learn from; at least {LEAST_ROWS} are needed")
    values, whole = _joined(recording.values, learned)
    scale = teach.robust_scale(values)
    model = forecasts = None
    parameters = 0
    if wishes.network:
        model, parameters = _network(np.asarray(scale.apply(values), np.float32), whole, wishes, told)
        forecasts = forecast_rows(model, np.asarray(scale.apply(values), np.float32), whole)
    taught = teach.teach(values, forecasts, forecast_scale=scale, whole=whole)
    told(0.9, "limits")
    draft = Draft(
        folder=folder,
        source=recording.source,
        tags=recording.tags,
        grid_ms=wishes.grid_ms or round(recording.period_s * 1000, 3),
        wishes=wishes,
        taught=taught,
        model=model,
        parameters=parameters,
        rows=rows,
        sample=values[:GOLDEN_ROWS],
        began=began,
    )
    with tempfile.TemporaryDirectory() as aside:  # without its limit it is no package to leave behind
        unlimited = write(replace(draft, folder=Path(aside)), wishes.alarm, None)
        seen = watch(unlimited, recording, wishes.states)
    alarm, promise = wishes.alarm, None
    if wishes.per_day is not None:
        alarm, promise = _promised(recording, held, seen, wishes, period_s=draft.grid_ms / 1000)
    package = write(draft, alarm, promise, plain_limit=LIMIT if model is not None else alarm.limit)
    seen = [_limited(one, alarm.limit, wishes) for one in seen]
    alarms, _ = run_alarm(package, recording, seen)
    told(1.0, "done")
    return Lesson(
        package=package,
        recording=recording,
        learned=learned,
        held=held,
        seen=seen,
        alarms=alarms,
        seconds=time.monotonic() - began,
    )


def watch(package: TagPackage, recording: Recording, states: Sequence[str] = ()) -> list[Seen]:
    """Show the recording to the package row by row, as the daemon would; a row costs what it costs there.

    In any other of the recording's states than `states` nothing is judged, and after it the package settles anew; empty:
    every row is judged.
    """
    fleet = Fleet(package)
    judged = recording.in_states(states)[:, None]
    try:
        return [
            fleet.step(row[None, :], round(at_s * 1e9), each)[0]
            for row, at_s, each in zip(recording.values, recording.seconds, judged, strict=True)
        ]
    finally:
        fleet.close()


def run_alarm(package: TagPackage, recording: Recording, seen: Sequence[Seen]) -> tuple[NDArray[np.bool_], int]:
    """Give whether the alarm stands at each row, and how often it was raised.

    As the daemon shows it: from a stop until the machine is judged again, it is suppressed.
    """
    trip = Trip(replace(package.calibration.alarm.rule(), limit=1.0, hysteresis=0.0))
    raised, suppressed = 0, False
    on = np.zeros(len(seen), np.bool_)
    for place, (one, at_s) in enumerate(zip(seen, recording.seconds, strict=True)):
        raised += trip.update(one.excess, round(at_s * 1e9)) and trip.on
        suppressed = one.sight is Sight.OFF or (suppressed and one.sight is Sight.SETTLING)
        on[place] = trip.on and not suppressed
    return on, raised


def _network(
    scaled: NDArray[np.float32], whole: list[slice], wishes: Wishes, told: Callable[[float, str], None]
) -> tuple[bytes, int]:
    try:
        from edgeqc.train.tags.export import export_step  # noqa: PLC0415 - onnx
        from edgeqc.train.tags.network import Plan, train  # noqa: PLC0415 - torch
    except ImportError as exc:
        raise EdgeqcError(
            f"a network needs torch and onnx ({exc.name} is missing): pip install 'edgeqc[train]'; "
            "without one (--no-network) distance, T2 and Q watch the machine"
        ) from exc
    plan = Plan(seed=wishes.seed)
    total = plan.members * plan.epochs
    try:
        weights = train(scaled, whole, plan, lambda done, note: told(0.85 * done / total, note))
    except ValueError as exc:
        raise EdgeqcError(str(exc)) from exc
    return export_step(weights), weights.count


def _split(stretches: Sequence[slice], share: float) -> tuple[list[slice], list[slice]]:
    """The first `share` of all rows, and the rest."""
    left = round(sum(stretch.stop - stretch.start for stretch in stretches) * share)
    first, rest = [], []
    for stretch in stretches:
        cut = stretch.start + min(left, stretch.stop - stretch.start)
        left -= cut - stretch.start
        if cut > stretch.start:
            first.append(slice(stretch.start, cut))
        if cut < stretch.stop:
            rest.append(slice(cut, stretch.stop))
    return first, rest


def _joined(values: Floats, stretches: Sequence[slice]) -> tuple[Floats, list[slice]]:
    """The stretches' rows behind each other, and where each now is."""
    whole, at = [], 0
    for stretch in stretches:
        size = stretch.stop - stretch.start
        whole.append(slice(at, at + size))
        at += size
    return np.concatenate([values[stretch] for stretch in stretches]), whole


def _promised(
    recording: Recording, held: Sequence[slice], seen: Sequence[Seen], wishes: Wishes, *, period_s: float
) -> tuple[AlarmNumbers, Promise]:
    """Set the limit on the first half of what was not learned, and count on the second what it is worth.

    Rows that were not judged (the machine settles after each stop) are no time that proves anything.
    """
    per_day = wishes.per_day or 1.0
    setting, checking = _split(held, _SHARE_LIMIT)
    scores = np.array(
        [_score(seen[row], wishes) for part in setting for row in range(part.start, part.stop) if seen[row].is_judged]
    )
    limit = wishes.alarm.limit
    tail = fit_tail(scores) if len(scores) >= LEAST_ROWS else None
    if tail is not None:
        limit = max(limit, tail.level(per_day * period_s / 86_400))
    elif len(scores):
        limit = max(limit, float(scores.max()))
    alarm = wishes.alarm.model_copy(update={"limit": round(limit, 4)})
    raised, rows, standing = 0, 0, 0
    for part in checking:
        trip = Trip(replace(alarm.rule(), limit=1.0))
        for row in range(part.start, part.stop):
            excess = _limited(seen[row], alarm.limit, wishes).excess
            raised += trip.update(excess, round(recording.seconds[row] * 1e9)) and trip.on
            rows += seen[row].is_judged
            standing += seen[row].is_judged and trip.on
    days = rows * period_s / 86_400
    bound = rate_bound(raised, days) if days else 1e9
    standing_ratio = standing / rows if rows else 0.0
    return alarm, Promise(
        per_day=per_day,
        method="pot" if tail is not None else "given",
        kept=bound <= per_day and standing_ratio <= MOST_STANDING_RATIO,
        bound_per_day=round(bound, 2),
        hours=round(days * 24, 3),
        alarms=raised,
        standing_ratio=round(standing_ratio, 4),
    )


def _score(one: Seen, wishes: Wishes) -> float:
    """What the alarm's limit is for: the score, or the plain one of a package without a network; 0 where there is none."""
    if one.deviation is None or one.sight is not (Sight.MODEL if wishes.network else Sight.PLAIN):
        return 0.0
    return one.deviation.score if wishes.network else one.deviation.plain


def _limited(one: Seen, limit: float, wishes: Wishes) -> Seen:
    """What was seen of a row, had the alarm had this limit; that of T2 and Q stays."""
    score = _score(one, wishes)
    if one.deviation is None or not score:
        return one
    by_monitor = one.deviation.monitor / MONITOR_LIMIT > score / limit
    if by_monitor:
        score, limit = one.deviation.monitor, MONITOR_LIMIT
    return replace(one, excess=score / limit, score=score, limit=limit, by_monitor=by_monitor)
