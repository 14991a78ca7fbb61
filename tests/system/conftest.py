"""Whole daemons on simulated lines: real processes, real protocols, real files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from linebench import ENDLESS, Bench, set_going

from edgeqc.cameras.aravis import aravis_available
from edgeqc.sim.images import PartImages, drawn_parts
from edgeqc.sim.line import Plan, SimLine

ENGINE = Path(__file__).parents[2] / "engines" / "demo-part" / "1"
RATE_HZ = 12.5
BUDGET_MS = 75.0
"""Of the takt of 80 ms: a part's verdict is out before the next part comes, on a busy box too."""
STANDARD: dict[str, Any] = {"parts": ENDLESS, "rate_hz": RATE_HZ, "budget_ms": BUDGET_MS, "start": "go"}


@pytest.fixture(scope="session", autouse=True)
def _box_of_its_own() -> Iterator[None]:
    """A line's box does nothing else: on a shared one its processes come before others, where we may say so.

    Linux schedules by session first, and by nice only within one (sched_autogroup).
    """
    group = Path("/proc/self/autogroup")
    try:
        before = group.read_text().split()[-1]
        group.write_text("-20")
    except (OSError, IndexError):
        yield
        return
    yield
    group.write_text(before)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> PartImages:
    return drawn_parts(tmp_path_factory.mktemp("parts"), count=16, shape=(480, 640))


class Lines:
    """Makes running lines, and tears them down."""

    def __init__(self, folder: Path, images: PartImages) -> None:
        self._folder, self._images = folder, images
        self._lines: list[SimLine] = []

    def make(self, *, wait: bool = True, **changes: Any) -> Bench:
        """`changes` to the plan. Without `parts` they come until the test ends them."""
        if not aravis_available() and os.environ.get("EDGEQC_REQUIRE_PEERS") != "1":
            pytest.skip("libaravis is not installed: apt-get install libaravis-0.8-0")
        line = SimLine(
            Plan(**{"folder": self._folder, "images": self._images, "engine": ENGINE, **STANDARD, **changes})
        )
        line.__enter__()
        self._lines.append(line)
        line.start_daemon()
        return set_going(line) if wait else Bench(line)

    def close(self) -> None:
        while self._lines:
            self._lines.pop().__exit__(None, None, None)


@pytest.fixture
def bench(tmp_path: Path, images: PartImages) -> Iterator[Callable[..., Bench]]:
    """Make a running line: `bench(parts=100, camera="gige", ...)`; it is torn down at the end, whatever happened."""
    lines = Lines(tmp_path, images)
    yield lines.make
    lines.close()
