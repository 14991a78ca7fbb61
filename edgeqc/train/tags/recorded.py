"""A package on recordings of its machine: how often its alarm stands, and how well that fits the labels, if any."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeqc.errors import EdgeqcError
from edgeqc.inference.tagpackage import load_tag_package
from edgeqc.train.tags.course import run_alarm, watch
from edgeqc.train.tags.curves import Curve
from edgeqc.train.tags.metrics import Counts, auc, nab
from edgeqc.train.tags.recording import STATE_COLUMN, read_folder


def measure(
    data: Path,
    model: Path,
    told: Callable[[int, int, str], None] = lambda _done, _total, _note: None,
    *,
    state: str = STATE_COLUMN,
) -> tuple[dict[str, Any], list[Curve]]:
    """Show every CSV file under `data` to the package; give the report and its curves. EdgeqcError, PackageError.

    Only rows in a state that the package learned are judged; `state` is the column that tells it. Without that column all are.
    """
    package = load_tag_package(model)
    recordings = read_folder(data, package.tags, state=state)
    curves: list[Curve] = []
    per_file: dict[str, Any] = {}
    total, scores, truths, changes = Counts(0, 0, 0, 0), [], [], []
    raised_all, hours_all = 0, 0.0
    for done, recording in enumerate(recordings):
        told(done, len(recordings), recording.source)
        period_ms = recording.period_s * 1000
        if not math.isclose(period_ms, package.manifest.grid_ms, rel_tol=0.2):
            raise EdgeqcError(
                f"{recording.source}: a row every {period_ms:g} ms, {package.name} is for {package.manifest.grid_ms:g} ms; "
                f"export it with --grid {package.manifest.grid_ms:g}"
            )
        seen = watch(package, recording, package.manifest.training.states)
        alarm, raised = run_alarm(package, recording, seen)
        judged = sum(one.is_judged for one in seen)
        hours = judged * recording.period_s / 3600
        raised_all, hours_all = raised_all + raised, hours_all + hours
        score = np.array([one.excess for one in seen]) * package.calibration.alarm.limit
        entry: dict[str, Any] = {"rows": len(recording), "hours": round(hours, 3), "alarms": raised}
        entry["judged_share"] = round(judged / len(seen), 4)
        if recording.anomaly is not None:
            counts = Counts.of(alarm, recording.anomaly)
            total += counts
            entry |= counts.told()
            known = np.isfinite(score)
            scores.append(score[known])
            truths.append(recording.anomaly[known])
            if recording.changepoint is not None:
                changes.append((recording.seconds, alarm, recording.changepoint))
        per_file[recording.source] = entry
        curves.append(
            Curve(
                name=recording.source,
                score=score,
                limit=package.calibration.alarm.limit,
                alarm=alarm,
                truth=recording.anomaly,
            )
        )
    report: dict[str, Any] = {
        "protocol": "recorded",
        "package": package.name,
        "causal": True,
        "alarms": raised_all,
        "hours": round(hours_all, 3),
        "alarms_per_day": round(raised_all / hours_all * 24, 3) if hours_all else None,
        "states": ", ".join(package.manifest.training.states),
        "files_without_state": sum(not one.states for one in recordings),
        "per_file": per_file,
    }
    if scores:
        report |= total.told()
        report["auc"] = round(auc(np.concatenate(scores), np.concatenate(truths)), 4)
        everything = np.concatenate([one.anomaly for one in recordings if one.anomaly is not None])
        report["trivial_all"] = Counts.of(np.ones(len(everything), np.bool_), everything).told()
    if changes:
        report["nab"] = nab(changes)
    told(len(recordings), len(recordings), "")
    return report, curves
