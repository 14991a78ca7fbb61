"""Two stations on one box: each is judged, accounted and started anew by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from conftest import ENGINE
from flatpackage import WELL_LEVEL, flat_package
from linebench import COMES_S, gone, until

from edgeqc.errors import EdgeqcError
from edgeqc.shm.board import Board, Row, State
from edgeqc.sim.report import archived

pytestmark = pytest.mark.timeout(240)
SIDE_PX = 64
RATE_HZ = 10.0
NAMES = ("left", "right")


def station(name: str, frames: Path, engine: Path) -> dict[str, Any]:
    return {
        "name": name,
        "takt_ms": 1000 / RATE_HZ,
        "budget_ms": 90,
        "camera": {
            "type": "replay",
            "folder": str(frames),
            "width_px": SIDE_PX,
            "height_px": SIDE_PX,
            "rate_hz": RATE_HZ,
        },
        "recipe": {"engine": str(engine)},
        "plc": {"type": "none"},
    }


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """With both stations at work; its folders are in `tmp_path`."""
    frames = tmp_path / "frames"
    frames.mkdir()
    assert cv2.imwrite(str(frames / "part.png"), np.full((SIDE_PX, SIDE_PX), WELL_LEVEL, np.uint8))
    engine = flat_package(tmp_path / "flat" / "1")
    settings = {
        "version": 1,
        "node": "x",
        "state_dir": str(tmp_path / "state"),
        "run_dir": str(tmp_path / "run"),
        "engines": {"trust": str(ENGINE.parents[1] / "trust"), "unsigned": "allow"},
        "stations": [station(name, frames, engine) for name in NAMES],
    }
    config = tmp_path / "line.yaml"
    config.write_text(yaml.safe_dump(settings))
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen([sys.executable, "-m", "edgeqc", "run", str(config)], stdout=log, stderr=log)
        try:
            until(lambda: all(verdicts(tmp_path, name) >= 10 for name in NAMES))
            yield daemon
        finally:
            daemon.kill()
            daemon.wait()


def row(folder: Path, name: str) -> Row:
    return Board.attach(folder / "run")[f"station-{name}"]


def verdicts(folder: Path, name: str) -> int:
    try:
        return row(folder, name).get("verdicts")
    except (OSError, EdgeqcError):  # it is just starting
        return 0


def test_a_killed_station_leaves_the_other_at_work_and_comes_back(
    daemon: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    box, state_dir = tmp_path, tmp_path / "state"
    left, right = row(box, "left").pid, row(box, "right").pid
    other = verdicts(box, "right")
    os.kill(left, signal.SIGKILL)
    until(lambda: gone(left))
    until(lambda: row(box, "left").pid not in {0, left} and row(box, "left").state is State.READY)
    before = verdicts(box, "left")
    until(lambda: verdicts(box, "left") >= before + 10)
    assert row(box, "right").pid == right
    seen = verdicts(box, "right")
    assert seen > other
    until(lambda: sum(part["station"] == "right" for part in archived(state_dir)) >= seen)
    parts = {name: [part for part in archived(state_dir) if part["station"] == name] for name in NAMES}
    for name in NAMES:
        numbers = [part["sequence"] for part in parts[name]]
        assert numbers == list(range(1, len(numbers) + 1)), f"{name}: each part once, also over its station's end"
    assert {part["verdict"] for part in parts["right"]} == {"pass"}
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(COMES_S) == 0, (box / "log").read_text()[-3000:]


def test_a_station_that_hangs_keeps_no_other_from_stopping(daemon: subprocess.Popen[bytes], tmp_path: Path) -> None:
    left, right = row(tmp_path, "left").pid, row(tmp_path, "right")
    os.kill(left, signal.SIGSTOP)
    daemon.send_signal(signal.SIGTERM)
    until(lambda: right.state in {State.STOPPING, State.OFF})
    assert not gone(left), "the other one was not made to wait for it"
    assert daemon.wait(COMES_S) == 0
    assert gone(left)
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert [line["name"] for line in told if line["event"] == "process_killed"] == ["station-left"]
