"""Machines for the bench of tags: models whose numbers mean nothing and whose work is that of trained ones. No torch.

All but one watch eight of the bench's counters each, held to a limit that nothing reaches. The last one watches the tag
that goes to and fro; its alarm is raised by the first row in which that is 1, and is over with the first in which it is 0.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeqc.core import teach
from edgeqc.train.tags.export import export_step
from edgeqc.train.tags.package import Draft, Wishes, forecast_rows, write
from edgeqc.train.tags.weights import QUANTILES, Weights

TAGS_EACH: Final = 8
TOLD: Final = "toggle"
"""Name of the machine whose alarm comes and goes."""
_MEMBERS: Final = 3
_HIDDEN: Final = 32
"""As `edgeqc train tags` makes them."""
_ROWS: Final = 400
_NEVER: Final = 1e6


def machines(folder: Path, count: int, *, grid_ms: float) -> list[dict[str, Any]]:
    """Give the entries of the configuration's `machines`, each with a package, and so an engine, of its own in `folder`."""
    _package(folder / "many", TAGS_EACH, grid_ms=grid_ms)
    _package(folder / TOLD, 1, grid_ms=grid_ms)
    found: list[dict[str, Any]] = []
    for number in range(count - 1):
        shutil.copytree(folder / "many", folder / f"machine{number}")
        first = number * TAGS_EACH
        found.append(
            {
                "name": f"machine{number}",
                "model": folder / f"machine{number}",
                "tags": {f"x{place}": f"t{first + place}" for place in range(TAGS_EACH)},
                "alarm": {"limit": _NEVER},
            }
        )
    found.append(
        {
            "name": TOLD,
            "model": folder / TOLD,
            "tags": {"x0": TOLD},
            "acknowledge": False,
            # in its swing the score goes up and down by a tenth with each row: each change is a rise or an end
            "alarm": {"peak_ratio": 0.97, "floor_ratio": 1.03},
        }
    )
    return found


def _package(folder: Path, tags: int, *, grid_ms: float) -> None:
    lots = np.random.default_rng(1)
    rows = lots.normal(0, 0.05, (_ROWS, tags))
    scale, whole = teach.robust_scale(rows), [slice(0, _ROWS)]
    scaled = np.asarray(scale.apply(rows), np.float32)
    weights = _drawn(tags, lots)
    model = export_step(weights)
    write(
        Draft(
            folder=folder,
            source="drawn",
            tags=tuple(f"x{place}" for place in range(tags)),
            grid_ms=grid_ms,
            wishes=(wishes := Wishes(name="bench", licence="Apache-2.0")),
            taught=teach.teach(rows, forecast_rows(model, scaled, whole), forecast_scale=scale, whole=whole),
            model=model,
            parameters=weights.count,
            rows=_ROWS,
            sample=rows[:50],
            began=time.monotonic(),
        ),
        wishes.alarm,
        None,
    )


def _drawn(tags: int, lots: np.random.Generator) -> Weights:
    def some(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return lots.normal(0, 0.1, shape).astype(np.float32)

    return Weights(
        input=some(_MEMBERS, tags, 3 * _HIDDEN),
        input_bias=some(_MEMBERS, 1, 3 * _HIDDEN),
        hidden=some(_MEMBERS, _HIDDEN, 3 * _HIDDEN),
        hidden_bias=some(_MEMBERS, 1, 3 * _HIDDEN),
        forecast=some(_MEMBERS, _HIDDEN, tags),
        forecast_bias=some(_MEMBERS, 1, tags),
        quantiles=some(_MEMBERS, _HIDDEN, len(QUANTILES) * tags),
        quantiles_bias=some(_MEMBERS, 1, len(QUANTILES) * tags),
    )
