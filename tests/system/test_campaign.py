"""Long campaigns: `scripts/test --long`."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from linebench import Bench, until

KILLS = 200
Make = Callable[..., Bench]
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_kills_at_random_moments_lose_nothing_that_the_plc_saw(bench: Make) -> None:
    """Station, office or all at once, anywhere within a part, again and again; then the witnesses must agree."""
    line = bench()
    dice = random.Random(20_261_122)
    for _ in range(KILLS):
        time.sleep(dice.random() * 2)  # anywhere: while starting, judging, archiving
        victim = dice.choice(["station-top", "office", "all"])
        if victim == "all":
            line.line.kill_daemon()
            line.line.start_daemon()
            line.line.wait_ready()
            continue
        pid = line.pid(victim)
        if pid:
            os.kill(pid, signal.SIGKILL)
    until(lambda: bool(line.row.get("plc_up")) and bool(line.row.get("camera_up")))
    seen = line.stage.part
    line.part_is(seen + 40)
    report = line.finish()
    assert (report["plc_mismatch"], report["duplicates"], report["mqtt_missing"]) == (0, 0, 0)
    assert report["verdicts"] > KILLS
