"""What a report's page draws: the score over time with its limit, the alarms, and the labels where there are any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeqc.train.tags.course import Lesson


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One recording."""

    name: str
    score: NDArray[np.float64]
    """(rows,); NaN where nothing was judged."""
    limit: float
    alarm: NDArray[np.bool_]
    truth: NDArray[np.bool_] | None = None
    learned: NDArray[np.bool_] | None = None
    """Rows that were learned from."""
    note: str = ""


def of_lesson(lesson: Lesson) -> Curve:
    """The recording that was learned from."""
    learned = np.zeros(len(lesson.recording), np.bool_)
    for part in lesson.learned:
        learned[part] = True
    limit = lesson.package.calibration.alarm.limit
    return Curve(
        name=lesson.recording.source,
        score=np.array([one.excess for one in lesson.seen]) * limit,
        limit=limit,
        alarm=lesson.alarms,
        truth=lesson.recording.anomaly,
        learned=learned,
    )
