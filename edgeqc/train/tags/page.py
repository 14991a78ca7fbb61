"""One HTML page of a report: its figures and a curve for each recording. No script, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.train.tags.curves import Curve

_WIDTH: Final = 1100
_HEIGHT: Final = 150
_CAP: Final = 5.0
"""Times the limit that a curve shows; what is higher is cut, and its peak told in words."""
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1140px;margin:2em auto;padding:0 1em;color:#1b1f24;background:#fff}
h2{font-size:1em;font-weight:600;margin:1.6em 0 .2em} .compared{margin-bottom:1.5em} .compared td+td,.compared th+th{text-align:right}
.compared tr:nth-child(2) td{font-weight:600} table{border-collapse:collapse} td,th{padding:.15em .8em .15em 0;text-align:left;
vertical-align:top} th{font-weight:600} svg{display:block;width:100%;height:auto;border-bottom:1px solid #ccc}
.key span{display:inline-block;margin-right:1.5em} .key i{display:inline-block;width:1em;height:.7em;margin-right:.4em}
code{font-size:.92em}
"""
COMPARED: Final = (
    ((), "this detector"),
    (("cross_validated", "leave_one_out"), "limit, peak and floor picked on the other files"),
    (("cross_validated", "leave_one_out_limit"), "only the limit picked on the other files"),
    (("plain_threshold",), "plain threshold, no alarm logic"),
    (("model_free",), "without forecaster, same alarm"),
    (
        ("model_free_cross_validated", "leave_one_out"),
        "without forecaster, limit, peak and floor picked on the other files",
    ),
    (("monitor",), "T2 and Q, same alarm"),
    (("t2q",), "T2+Q as on the leaderboard"),
    (("trivial_rows",), "rows 570 to 969 of every file, no sensor read"),
    (("trivial_all",), "flag everything"),
)
"""Where in a report F1, FAR and MAR of what was compared stand, and what it is.

What was picked on other files is the alarm's three numbers. The network's plan, the score's formula and the smoothing were
picked on all files of SKAB: those rows are not of a detector that has never seen the file it judges.
"""
_WORDS: Final = {
    "auc": "AUC",
    "nab": "change points (NAB)",
    "nab_with_change_rule": "change points by a rule of their own, which no package has",
    "change_rule": "that rule",
    "rule": "alarm rule",
    "step_us": "microseconds a row",
    "anomaly_free": "machine that nothing is wrong with",
    "alarm": "alarm rule",
    "promise": "false alarms",
}
"""Names of a report's figures for people; the others are their own."""
_COLOURS: Final = {"truth": "#f3d9a4", "learned": "#dbe7f3", "alarm": "#c0392b", "score": "#1f4e79", "limit": "#7a7a7a"}


def write(path: Path, title: str, figures: dict[str, Any], curves: Sequence[Curve]) -> None:
    """Write the page."""
    there = {
        "truth": any(curve.truth is not None for curve in curves),
        "learned": any(curve.learned is not None for curve in curves),
    }
    key = "".join(
        f'<span><i style="background:{_COLOURS[name]}"></i>{text}</span>'
        for name, text in (
            ("score", "score"),
            ("limit", "limit"),
            ("alarm", "alarm stands"),
            ("truth", "labelled as anomalous"),
            ("learned", "learned from"),
        )
        if there.get(name, True)
    )
    body = "".join(_curve(curve, figures.get("per_file", {}).get(curve.name, {})) for curve in curves)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        f'{_comparison(figures)}<table>{_table(figures)}</table><p class="key">{key}</p>{body}</html>\n',
        encoding="utf-8",
    )


def compared(figures: dict[str, Any]) -> list[list[str]]:
    """Give a row of words for each thing that the report compares: what, F1, FAR and MAR in per cent."""
    rows = []
    for keys, label in COMPARED:
        part: Any = figures
        for key in keys:
            part = (part or {}).get(key)
        if isinstance(part, dict) and "f1" in part:
            rows.append([label, f"{part['f1']:.3f}", f"{part['far']:.1f}", f"{part['mar']:.1f}"])
    return rows


def _comparison(figures: dict[str, Any]) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in compared(figures))
    head = "<tr><th></th><th>F1</th><th>false alarms (FAR) %</th><th>missed (MAR) %</th></tr>"
    return f'<table class="compared">{head}{rows}</table>' if rows else ""


def _table(figures: dict[str, Any]) -> str:
    """What is not in the comparison."""
    elsewhere = {"per_file", "f1", "far", "mar", *(keys[0] for keys, _ in COMPARED if keys)}
    rows = []
    for name, value in figures.items():
        if name in elsewhere:
            continue
        words = _WORDS.get(name, name.replace("_", " "))
        rows.append(f"<tr><th>{html.escape(words)}</th><td>{html.escape(_told(value))}</td></tr>")
    return "".join(rows)


def _told(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key.replace('_', ' ')} {_told(one)}" for key, one in value.items())
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _curve(curve: Curve, counted: dict[str, Any]) -> str:
    count = max(len(curve.score), 2)
    across = _WIDTH / (count - 1)
    top = _CAP * curve.limit
    shapes = [_bands(curve.learned, across, "learned"), _bands(curve.truth, across, "truth")]
    level = _HEIGHT * (1 - curve.limit / top)
    shapes.append(
        f'<line x1="0" x2="{_WIDTH}" y1="{level:.1f}" y2="{level:.1f}" stroke="{_COLOURS["limit"]}" stroke-dasharray="4 3"/>'
    )
    shapes.append(_line(curve.score, across, top))
    shapes.append(_bands(curve.alarm, across, "alarm", y=_HEIGHT - 6, height=6))
    finite = curve.score[np.isfinite(curve.score)]
    peak = f"; highest {finite.max():.1f}, limit {curve.limit:.3g}" if len(finite) else ""
    if "f1" in counted:
        peak += f"; F1 {counted['f1']:.2f}, false alarms {counted['far']:.1f} %, missed {counted['mar']:.1f} %"
    note = f"; {curve.note}" if curve.note else ""
    return (
        f"<h2>{html.escape(curve.name)}{html.escape(note + peak)}</h2>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="score of {html.escape(curve.name)}">{"".join(shapes)}</svg>'
    )


def _line(score: NDArray[np.float64], across: float, top: float) -> str:
    """The score as lines, of no more points than there are pixels: the highest of each stretch."""
    step = max(1, len(score) // (2 * _WIDTH))
    pieces: list[list[str]] = [[]]
    for start in range(0, len(score), step):
        part = score[start : start + step]
        part = part[np.isfinite(part)]
        if len(part):
            y = _HEIGHT * (1 - min(float(part.max()), top) / top)
            pieces[-1].append(f"{start * across:.1f},{y:.1f}")
        elif pieces[-1]:
            pieces.append([])
    colour = _COLOURS["score"]
    return "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.2" points="{" ".join(piece)}"/>'
        for piece in pieces
        if piece
    )


def _bands(flags: NDArray[np.bool_] | None, across: float, name: str, *, y: int = 0, height: int = _HEIGHT) -> str:
    if flags is None or not flags.any():
        return ""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return "".join(
        f'<rect x="{start * across:.1f}" y="{y}" width="{max((end - start) * across, 0.5):.1f}" height="{height}" '
        f'fill="{_COLOURS[name]}"/>'
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    )
