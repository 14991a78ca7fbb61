"""The report for people: one HTML page that needs nothing else, with pictures, curves and every figure of the JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.train.evaluate import Shown
from edgeqc.train.scoring import Scored


def page(found: dict[str, Any], scored: Sequence[Scored], shown: dict[str, list[Shown]]) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(found['package'])} on {escape(found['data'])}</h1>",
        _origin(found),
        _verdict(found),
        _headline(found),
        "<h2>Scores</h2>",
        _histogram(scored, found["threshold"], (found.get("held") or {}).get("hold_threshold")),
        _roc(scored, found["threshold"]),
        "<h2>Kinds of defects</h2>",
        _table(
            ["kind", "pictures", "groups", "AUROC", "escape", "groups with an escape, 95 % bound", "pixel F1"],
            [
                [
                    name,
                    row["n"],
                    row["n_groups"],
                    row["image_auroc"],
                    row["escape"],
                    row["escape_upper95"],
                    row["pixel_f1"],
                ]
                for name, row in found["per_class"].items()
            ],
        ),
        "<h2>Width of the widest defect</h2>",
        _widths(found["per_width"]),
        _mistakes(shown),
        "<h2>Several pictures of a part judged together</h2>",
        _parts(found["per_part"]),
        "<h2>Agreement with the reference (AIAG MSA, attribute study)</h2>",
        _agreement(found),
        "<h2>Backends and precisions</h2>",
        _runs(found),
        "<h2>Groups with mistakes</h2>",
        _groups(found["per_group"]),
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(found['package'])}</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


_STYLE: Final = """
:root{color-scheme:light dark;--line:#8885;--good:#2a7a4b;--bad:#b3362b}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid var(--line)}
.quiet{opacity:.7}.cards{display:flex;flex-wrap:wrap;gap:1rem}
.card{border:1px solid var(--line);border-radius:8px;padding:.6rem 1rem;min-width:9rem}
.card b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .9rem .2rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}tr{border-bottom:1px solid var(--line)}
.note{border-left:4px solid var(--bad);padding:.3rem 1rem}.fine{border-color:var(--good)}
figure{display:inline-block;margin:0 1.2rem 1.2rem 0;vertical-align:top}figure img{max-height:220px;border-radius:3px}
figcaption{font-size:.85rem;max-width:26rem;overflow-wrap:anywhere}svg{max-width:100%;height:auto}
"""


def _origin(found: dict[str, Any]) -> str:
    return (
        f"<p class=quiet>split {escape(found['split'])}, {found['n_good']} good and {found['n_bad']} bad pictures of "
        f"{found['n_groups']} groups; {escape(found['run'])}; model {found['model_sha256'][:16]}; {found['made']}<br>"
        f"trained on {escape(found['trained']['data'])}, seed {found['trained']['seed']}; "
        f"<code>{escape(found['command'])}</code></p>"
    )


def _verdict(found: dict[str, Any]) -> str:
    promise = found["promise"]
    if promise is None:
        return (
            "<p class=note>No promise on overkill: the threshold was set on too few independent good parts, or too many of "
            "them score 1. "
            "The overkill below is what was seen here, not what is assured.</p>"
        )
    kept = found["overkill"] <= promise["overkill"]
    return (
        f"<p class='note{' fine' if kept else ''}'>Promised when calibrated: overkill at most {promise['overkill']:.3g} "
        f"with {promise['confidence']:.0%} confidence, on {promise['goods']} independent good parts. "
        f"Seen here: {found['overkill']:.4f}.</p>"
    )


def _headline(found: dict[str, Any]) -> str:
    ci = found["ci95"]
    cards = [
        ("image AUROC", found["image_auroc"], ci.get("image_auroc")),
        ("escape (bad parts that pass)", found["escape"], ci.get("escape")),
        ("overkill (good parts rejected)", found["overkill"], ci.get("overkill")),
        ("average precision", found["image_ap"], ci.get("image_ap")),
        ("pixel F1", found["pixel_f1"], None),
        ("mIoU", found["miou"], None),
        ("AUPRO (FPR up to .3)", found["aupro"], None),
    ]
    boxes = "".join(
        f"<div class=card>{escape(name)}<b>{_number(value)}</b>"
        f"<span class=quiet>{f'{interval[0]:.3f} to {interval[1]:.3f}' if interval else '&nbsp;'}</span></div>"
        for name, value, interval in cards
    )
    table = found["confusion"]
    return (
        f"<div class=cards>{boxes}</div><p class=quiet>Intervals: 95 %, drawn over groups. With 95 % confidence at most "
        f"{_number(found['escape_upper95'])} of groups like these have a bad part that passes, and at most "
        f"{_number(found['overkill_upper95'])} a good one that is rejected.</p>"
        + _table(
            ["", "rejected", "passed"],
            [
                ["bad pictures", table["bad_rejected"], table["bad_passed"]],
                ["good pictures", table["good_rejected"], table["good_passed"]],
            ],
        )
    )


def _histogram(scored: Sequence[Scored], threshold: float, hold: float | None) -> str:
    """Scores on a logit axis: good above, bad below the middle."""
    edges = np.linspace(-_LOGIT, _LOGIT, _BARS + 1)
    sides = [_logits(scored, bad=False), _logits(scored, bad=True)]
    counts = [np.histogram(side, edges)[0] for side in sides]
    most = max(1, *(int(count.max()) for count in counts))
    width = _WIDE / _BARS
    bars = []
    for count, colour, sign in ((counts[0], "var(--good)", -1), (counts[1], "var(--bad)", 1)):
        for index, number in enumerate(count):
            height = 90 * number / most
            top = 100 - height if sign < 0 else 100
            bars.append(
                f"<rect x={index * width:.1f} y={top:.1f} width={width - 1:.1f} height={height:.1f} fill='{colour}'/>"
            )
    lines = [_mark(threshold, "threshold")]
    if hold is not None and hold < threshold:
        lines.append(_mark(hold, "hold", left=True))
    axis = "".join(
        f"<text x={_place(value):.0f} y=214 text-anchor=middle>{value:g}</text>"
        for value in (0.01, 0.1, 0.5, 0.9, 0.99)
    )
    return (
        f"<svg viewBox='0 -18 {_WIDE} 238' width={_WIDE} role=img aria-label='scores' font-size=12 fill=currentColor>"
        f"{''.join(bars)}<text x=4 y=14>good</text><text x=4 y=196>bad</text>{''.join(lines)}{axis}</svg>"
    )


def _roc(scored: Sequence[Scored], threshold: float) -> str:
    """Escape against overkill as the threshold moves."""
    good = np.sort([one.score for one in scored if not one.picture.is_defect])
    bad = np.sort([one.score for one in scored if one.picture.is_defect])
    if not len(good) or not len(bad):
        return ""
    cuts = np.unique(np.concatenate([good, bad, [0.0, 1.1], [threshold]]))
    overkill = 1 - np.searchsorted(good, cuts, "left") / len(good)
    escapes = np.searchsorted(bad, cuts, "left") / len(bad)
    points = " ".join(f"{40 + 220 * x:.1f},{240 - 220 * y:.1f}" for x, y in zip(overkill, escapes, strict=True))
    at = int(np.searchsorted(cuts, threshold))
    return (
        "<svg viewBox='0 0 300 280' width=300 role=img aria-label='escape against overkill' font-size=12 "
        "fill=currentColor><rect x=40 y=20 width=220 height=220 fill=none stroke='var(--line)'/>"
        f"<polyline points='{points}' fill=none stroke=currentColor stroke-width=2 />"
        f"<circle cx={40 + 220 * overkill[at]:.1f} cy={240 - 220 * escapes[at]:.1f} r=5 fill='var(--bad)'/>"
        "<text x=150 y=270 text-anchor=middle>overkill</text><text x=14 y=134 text-anchor=middle "
        "transform='rotate(-90 14 134)'>escape</text><text x=40 y=254>0</text><text x=254 y=254>1</text></svg>"
    )


def _mistakes(shown: dict[str, list[Shown]]) -> str:
    titles = {
        "escapes": "Bad parts that pass, the worst first",
        "overkill": "Good parts that are rejected, the worst first",
        "found": "Bad parts that are found, the clearest first",
    }
    parts = ["<p class=quiet>Colour: the net's map; red box: what it calls a defect; green line: what was marked.</p>"]
    for name, title in titles.items():
        parts.append(f"<h2>{title}</h2>" + ("".join(map(_figure, shown[name])) or "<p>None.</p>"))
    return "".join(parts)


def _figure(one: Shown) -> str:
    word = "reject" if one.rejected else "pass"
    return (
        f"<figure><img alt='' src='{_data(one.plain)}'> <img alt='{escape(one.picture.label)}, {word}' "
        f"src='{_data(one.overlaid)}'><figcaption>{escape(one.picture.label)}, score {one.score:.3f}: {word}<br>"
        f"<span class=quiet>{escape(one.picture.path.name)}, group {escape(one.picture.group)}</span></figcaption></figure>"
    )


def _widths(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "<p>No defect is marked.</p>"
    return _table(
        ["px of the picture", "pictures", "groups", "kinds", "escape", "groups with an escape, 95 % bound"],
        [
            [
                f"{row['least_px']:.1f} to {row['most_px']:.1f}",
                row["n"],
                row["n_groups"],
                ", ".join(row["labels"]),
                row["escape"],
                row["escape_upper95"],
            ]
            for row in rows
        ],
    )


def _parts(found: dict[str, Any]) -> str:
    names = ("image_auroc", "image_ap", "threshold", "overkill", "escape", "escape_upper95")
    rows = [[word, *[found[key].get(name) for name in names]] for word, key in _JUDGED_BY.items()]
    return f"<p>{found['n_good']} good and {found['n_bad']} bad parts.</p>" + _table(
        ["judged by", "AUROC", "AP", "threshold", "overkill", "escape", "groups with an escape, 95 % bound"], rows
    )


_JUDGED_BY: Final = {"the worst picture": "worst", "the mean of its pictures": "mean"}


def _agreement(found: dict[str, Any]) -> str:
    grade = found["agreement"]
    rows = [
        [name.replace("_", " "), grade[name]] for name in ("effectiveness", "miss_rate", "false_alarm_rate", "kappa")
    ]
    word = grade["grade"] or "none: it takes good and bad pictures"
    text = f"<p>Grade: <b>{escape(word)}</b></p>" + _table(["", ""], rows)
    again = found.get("repeatability")
    if again:
        text += (
            f"<p>Repeatability: {again['parts']} parts {again['times']} times each, the same verdict every time for "
            f"{again['same_verdict']:.1%} ({escape(again['how'])}).</p>"
        )
    return text


def _runs(found: dict[str, Any]) -> str:
    rows = []
    times = found.get("latency_by_run", {})
    scores = found.get("runs", {})
    for label in {**times, **scores}:
        time, score = times.get(label, {}), scores.get(label, {})
        why = time.get("not_run") or score.get("not_run")
        if why:
            rows.append([label, f"not run: {why[:80]}", "", "", "", "", ""])
            continue
        names = ("image_auroc", "overkill", "escape", "pixel_f1")
        rows.append([label, time.get("p50"), time.get("p99"), *(score.get(name) for name in names)])
    heads = ["run", "p50 ms", "p99 ms", "AUROC", "overkill", "escape", "pixel F1"]
    return _table(heads, rows) if rows else "<p>Not asked for.</p>"


def _groups(groups: dict[str, dict[str, Any]]) -> str:
    wrong = [(name, row) for name, row in groups.items() if row["good_rejected"] + row["bad_passed"]]
    wrong.sort(key=lambda item: -(item[1]["good_rejected"] + item[1]["bad_passed"]))
    rows = [
        [name, ", ".join(row["labels"]), row["n_good"], row["good_rejected"], row["n_bad"], row["bad_passed"]]
        for name, row in wrong
    ]
    return _table(["group", "kinds", "good", "rejected", "bad", "passed"], rows) if rows else "<p>None.</p>"


_LOGIT: Final = 8.0
_BARS: Final = 64
_WIDE: Final = 760


def _logits(scored: Sequence[Scored], *, bad: bool) -> NDArray[np.float64]:
    scores = np.clip([one.score for one in scored if one.picture.is_defect == bad], 1e-4, 1 - 1e-4)
    return np.asarray(np.clip(np.log(scores / (1 - scores)), -_LOGIT + 1e-6, _LOGIT - 1e-6), np.float64)


def _place(score: float) -> float:
    clipped = min(max(score, 1e-4), 1 - 1e-4)
    return (float(np.log(clipped / (1 - clipped))) + _LOGIT) / (2 * _LOGIT) * _WIDE


def _mark(score: float, word: str, *, left: bool = False) -> str:
    """A line with its name on its right, or on its left: two may lie close together."""
    x = _place(score)
    side, anchor = (-4, "end") if left else (4, "start")
    return (
        f"<line x1={x:.1f} x2={x:.1f} y1=-14 y2=200 stroke=currentColor stroke-dasharray='4 3'/>"
        f"<text x={x + side:.1f} y=-6 text-anchor={anchor}>{word} {score:.3f}</text>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_number(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


def _data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
