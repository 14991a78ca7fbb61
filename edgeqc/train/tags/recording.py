"""What was recorded of a machine: rows of tag values in time, from CSV files of the line's history or of anybody."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.core.linestate import LineState
from edgeqc.errors import EdgeqcError

TIME_COLUMNS: Final = ("time", "ts", "timestamp", "datetime", "seconds", "t")
STATE_COLUMN: Final = "state"
LABEL_COLUMNS: Final = ("anomaly", "changepoint")
_MOST_ROWS: Final = 5_000_000
_MOST_S: Final = 253_402_300_800.0
"""The year 10000, where ISO 8601 ends: beyond are milliseconds taken for seconds, and what no clock in ns can hold."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """Rows in the order of time."""

    source: str
    """Where it was read from, for messages and reports."""
    tags: tuple[str, ...]
    seconds: NDArray[np.float64]
    """(rows,) since 1970, or since whenever the file counts from."""
    values: NDArray[np.float64]
    """(rows, tags); NaN where there is none."""
    states: tuple[str, ...] = ()
    """Line state of each row, where the file has a column `state`."""
    anomaly: NDArray[np.bool_] | None = None
    """Labels, where the file has them: for reports only, never for training."""
    changepoint: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def period_s(self) -> float:
        """Usual time between rows."""
        return float(np.median(np.diff(self.seconds))) if len(self.seconds) > 1 else 1.0

    def in_states(self, states: Sequence[str]) -> NDArray[np.bool_]:
        """(rows,) Is the machine in one of `states`? Every row is, where none are given or the file tells of none."""
        if not states or not self.states:
            return np.ones(len(self), np.bool_)
        return np.isin(np.array(self.states), list(states))

    def picked(self, which: slice) -> Recording:
        """Some of its rows."""
        return Recording(
            source=self.source,
            tags=self.tags,
            seconds=self.seconds[which],
            values=self.values[which],
            states=self.states[which],
            anomaly=None if self.anomaly is None else self.anomaly[which],
            changepoint=None if self.changepoint is None else self.changepoint[which],
        )


def read_csv(path: Path, tags: Sequence[str] | None = None, *, state: str = STATE_COLUMN) -> Recording:
    """Read one file: a time column first, one column per tag; comma, semicolon or tab. EdgeqcError with line and value.

    Times are seconds or ISO 8601 (UTC where they say nothing). `tags` picks columns; None: all but state and labels.
    Text that is no number is NaN: the tag was missing. `state`: the column that says what the machine was doing, in
    words or in the numbers of a `state` source.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(",;\t", key=first.count))
            header = [column.strip() for column in next(rows, [])]
            body, lines = [], []
            for row in rows:
                if row:
                    body.append(row)
                    lines.append(rows.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise EdgeqcError(f"{path}: {exc}") from exc
    if len(header) < 2 or header[0].lower() not in TIME_COLUMNS:  # noqa: PLR2004 - a time and a tag
        raise EdgeqcError(f"{path}: the first column must be one of {', '.join(TIME_COLUMNS)}; it is {header[:1]}")
    if not body or len(body) > _MOST_ROWS:
        raise EdgeqcError(f"{path}: {len(body)} rows; 1 to {_MOST_ROWS} can be used")
    for line, row in zip(lines, body, strict=True):
        if len(row) != len(header):
            raise EdgeqcError(f"{path}:{line}: {len(row)} columns, the header has {len(header)}")
    columns = dict(zip(header, zip(*body, strict=True), strict=True))
    special = {state, *LABEL_COLUMNS, header[0]}
    names = tuple(tags) if tags else tuple(name for name in header if name not in special)
    missing = [name for name in names if name not in columns]
    if missing:
        raise EdgeqcError(f"{path}: no column {', '.join(missing)}; there are {', '.join(header[1:])}")
    seconds = np.array([_seconds(text, path, line) for line, text in zip(lines, columns[header[0]], strict=True)])
    order = np.argsort(seconds, kind="stable")
    labels = {
        name: np.asarray(_numbers(columns[name])[order] == 1, np.bool_) for name in LABEL_COLUMNS if name in columns
    }
    return Recording(
        source=str(path),
        tags=names,
        seconds=seconds[order],
        values=np.column_stack([_numbers(columns[name]) for name in names])[order],
        states=tuple(_state(columns[state][place], path, lines[place]) for place in order) if state in columns else (),
        anomaly=labels.get("anomaly"),
        changepoint=labels.get("changepoint"),
    )


def read_folder(data: Path, tags: Sequence[str] | None = None, *, state: str = STATE_COLUMN) -> list[Recording]:
    """Read a file, or every CSV file under a folder (`index.csv` apart), in the order of their paths. EdgeqcError."""
    if data.is_file():
        return [read_csv(data, tags, state=state)]
    paths = [path for path in sorted(data.rglob("*.csv")) if path.name != "index.csv"]
    if not paths:
        raise EdgeqcError(f"{data}: no CSV file")
    return [read_csv(path, tags, state=state) for path in paths]


def joined(recordings: Sequence[Recording]) -> Recording:
    """Several files of one machine as one recording, in the order of time.

    EdgeqcError where their tags differ, and where two have rows in common: learned from in one, they would make the promise of
    what was held back in the other.
    """
    ordered = sorted(recordings, key=lambda one: float(one.seconds[0]))
    first = ordered[0]
    for one in ordered[1:]:
        if one.tags != first.tags or bool(one.states) != bool(first.states):
            raise EdgeqcError(f"{one.source}: has other columns than {first.source}; pick the tags with --tags")
    for before, one in combinations(ordered, 2):
        if (common := _in_common(before, one)) > _CHANCE * min(len(before), len(one)):
            raise EdgeqcError(
                f"{one.source}: {common} of its rows are in {before.source}, too, and may be learned from there; leave one of "
                "them out, or export them anew, each from where the one before it ends"
            )
    return Recording(
        source=first.source if len(ordered) == 1 else f"{first.source} and {len(ordered) - 1} more",
        tags=first.tags,
        seconds=np.concatenate([one.seconds for one in ordered]),
        values=np.concatenate([one.values for one in ordered]),
        states=tuple(state for one in ordered for state in one.states),
    )


def _in_common(before: Recording, one: Recording) -> int:
    """Rows with the same time and the same values. Files that count from 0 have the same times, and may have had nothing to do."""
    if one.seconds[0] > before.seconds[-1] or one.seconds[0] < _UTC_S:
        return 0
    _, here, there = np.intersect1d(before.seconds, one.seconds, return_indices=True)
    same = np.isclose(before.values[here], one.values[there], rtol=0, atol=0, equal_nan=True)
    known = np.isfinite(one.values[there]).any(axis=1)
    return int((same.all(axis=1) & known).sum())


_UTC_S: Final = 1e8
"""Times before this (March 1973) are counted from something else than 1970."""
_CHANCE: Final = 0.01
"""Of rows: machines that stand still look alike."""


def good_stretches(recording: Recording, *, states: Sequence[str] = (), gap_s: float, least_rows: int) -> list[slice]:
    """Give the stretches to learn from: in one of `states` (where given), every tag there, no gap over `gap_s`.

    Shorter ones than `least_rows` are left out.
    """
    good = np.isfinite(recording.values).all(axis=1) & recording.in_states(states)
    stretches: list[slice] = []
    begin: int | None = None
    for row in range(len(recording) + 1):
        ended = row == len(recording) or not good[row]
        broken = not ended and begin is not None and recording.seconds[row] - recording.seconds[row - 1] > gap_s
        if begin is not None and (ended or broken):
            if row - begin >= least_rows:
                stretches.append(slice(begin, row))
            begin = None
        if begin is None and not ended:
            begin = row
    return stretches


def _state(cell: str, path: Path, line: int) -> str:
    text = cell.strip().lower()
    try:
        return LineState(int(float(text))).name.lower()
    except ValueError:
        return text
    except OverflowError as exc:
        numbers = ", ".join(f"{state.value} {state.name.lower()}" for state in LineState)
        raise EdgeqcError(f"{path}:{line}: {cell[:40]!r} is no state: a word, or a number ({numbers})") from exc


def _numbers(column: Sequence[str]) -> NDArray[np.float64]:
    try:
        return np.array(column, np.float64)
    except ValueError:
        return np.array([_number(text) for text in column])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _seconds(text: str, path: Path, line: int) -> float:
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if not abs(seconds) <= _MOST_S:  # nor is NaN
            raise EdgeqcError(f"{path}:{line}: {text[:40]!r} is no time: seconds since 1970, or since any moment")
        return seconds
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as exc:
        raise EdgeqcError(f"{path}:{line}: {text[:40]!r} is no time: seconds or ISO 8601") from exc
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
