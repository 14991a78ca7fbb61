"""Why a machine's alarm was raised, in a sentence and in shares: the tags that make its deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeqc.inference.fleet import Seen
from edgeqc.inference.tagpackage import TagPackage

NAMED: Final = 3
"""A faulty tag raises its neighbours' forecasts too: one name is too few, more than three nobody reads."""
_SMALL: Final = 0.05
"""A tag with less of a share is not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What makes the deviation."""

    sentence: str
    contribution: tuple[tuple[str, float], ...]
    """Tags with their share, largest first; at most NAMED."""


def explain(package: TagPackage, seen: Seen, *, room: int = 200) -> Explanation:
    """Name the tags with the largest shares, with their value, how far it is from usual, and what was expected.

    The sentence has at most `room` characters: the first tag always, others as long as they fit. ValueError where the
    row was not measured.
    """
    if seen.deviation is None:
        raise ValueError("nothing was measured")
    deviation = seen.deviation
    shares = deviation.monitor_shares if seen.by_monitor else deviation.shares
    order = [int(tag) for tag in np.argsort(-shares)[:NAMED] if shares[tag] >= _SMALL]
    parts = []
    for tag in order:
        name, unit = package.tags[tag], package.manifest.tags[tag].unit
        value, level = seen.row[tag], deviation.level[tag]
        direction = "above" if level > 0 else "below"
        part = f"{name} {value:.4g}{' ' + unit if unit else ''}"
        if abs(level) >= 1:
            part += f", {abs(level):.1f} sd {direction} usual"
        elif seen.low is not None and seen.high is not None and not seen.low[tag] <= value <= seen.high[tag]:
            part += f", expected {seen.low[tag]:.4g} to {seen.high[tag]:.4g}"
        else:
            part += ", swings more than usual"
        parts.append(f"{part} ({shares[tag]:.0%})")
    sentence = "tags no longer go together: " if seen.by_monitor else ""
    sentence += parts[0] if parts else "many tags, each a little"
    for part in parts[1:]:
        if len(sentence) + 2 + len(part) <= room:
            sentence += f"; {part}"
    return Explanation(
        sentence=sentence[:room],
        contribution=tuple((package.tags[tag], round(float(shares[tag]), 3)) for tag in order),
    )
