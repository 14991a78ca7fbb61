"""Two cameras that look at each part: the worst of both counts, and what one of them does not show is no pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from linebench import Bench, first_good_after, until

from edgeqc.office import query
from edgeqc.sim.images import SEED, PartImages, drawn_parts
from edgeqc.sim.stage import RING, CameraFault

pytestmark = pytest.mark.timeout(120)

NAMES = ["front", "back"]
RECOVERY_S = 2.0
Make = Callable[..., Bench]


@pytest.fixture(scope="session")
def behind(tmp_path_factory: pytest.TempPathFactory) -> PartImages:
    """What the second camera sees of the parts: as many, other places and defects."""
    return drawn_parts(tmp_path_factory.mktemp("behind"), count=16, shape=(480, 640), seed=SEED + 1)


def verdicts(line: Bench) -> dict[str, dict[str, Any]]:
    """The messages about each part, by its id."""
    return {told["part_id"]: told for told in line.line.told()}


def shown(line: Bench, camera: int) -> set[tuple[int, int]]:
    """Frame counter and part of each exposure of this camera: its own word, not the daemon's."""
    with closing(line.line.stage_of(camera)) as stage:
        found = (stage.exposure(number) for number in range(max(1, stage.exposures - RING + 1), stage.exposures + 1))
        return {(one.frame_id, one.part) for one in found if one is not None}


def whole(report: dict[str, Any]) -> None:
    """Nothing contradicts, nothing twice, and no trigger went without its verdict."""
    assert report["plc_mismatch"] == report["duplicates"] == report["unaccounted"] == 0


def test_each_part_is_judged_by_every_camera_and_the_worst_view_counts(bench: Make, behind: PartImages) -> None:
    line = bench(parts=40, views=(behind,))
    report = line.finish()
    frames = [shown(line, camera) for camera in range(2)]
    whole(report)
    assert report["archive_rows"] == report["mqtt_received"] == 40
    assert report["confusion"]["fn"] == 0
    assert report["zero_copy"] is True
    ways = set()
    for part_id, message in verdicts(line).items():
        assert [view["camera"] for view in message["views"]] == NAMES
        if message["evaluation"] == "not_decidable":
            continue  # a box that stood still for a moment
        views = {view["camera"]: view["result"] for view in message["views"]}
        ways.add(tuple(views.values()))
        assert message["result"] == ("pass" if set(views.values()) == {"pass"} else "reject")
        assert views[message["camera"]] == message["result"]
        # a defect that one view shows counts, though a box that stood still cost the part another's picture
        seen = [
            (frame, view) for frame, view in zip(frames, message["views"], strict=True) if view["score"] is not None
        ]
        assert message["score"] == max(view["score"] for _, view in seen)
        assert len(seen) == len(NAMES) or message["result"] == "reject"
        for frame, view in seen:
            assert (view["frame_id"], int(part_id[1:])) in frame
    assert ways == {("pass", "pass"), ("pass", "reject"), ("reject", "pass"), ("reject", "reject")}
    defective = [row for row in query.query(line.line.state_dir, limit=-1) if row["cause"] == "defect"]
    for row in defective:
        paths = [view["image"] for view in row["views"]]
        assert row["image"] in paths
        assert [Path(path).name for path in paths] == [f"top-{row['sequence']}.{name}.png" for name in NAMES]
        assert all((line.line.state_dir / path).exists() for path in paths)


def test_without_one_camera_every_part_is_a_reject_in_time_that_names_it(bench: Make, behind: PartImages) -> None:
    line = bench(views=(behind,))
    line.part_is(10)
    line.line.cameras[1].kill()
    until(lambda: line.logged("peer_lost", peer="camera.back"))
    known_ns = time.monotonic_ns()
    line.part_is(line.stage.part + 20)
    until_ns = time.monotonic_ns()
    line.line.cameras[1].start()
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.finish()
    whole(report)
    assert report["late"] == 0
    takt_ns = 10**9 / line.line.plan.rate_hz
    told = verdicts(line)
    without = [part for part in line.line.judged() if known_ns + takt_ns < part["triggered_ns"] < until_ns - takt_ns]
    assert len(without) > 10
    for part in without:
        message = told[part["part_id"]]
        assert (part["result"], part["code"]) == ("reject", 101)
        assert (message["camera"], message["cause"]) == ("back", "no_frame")
        assert message["views"][1]["cause"] == "no_frame"
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S
    assert [event["peer"] for event in line.logged("peer_lost")] == ["camera.back"]


@pytest.mark.parametrize(
    ("fault", "value"),
    [(CameraFault.SLOW, 73), (CameraFault.SILENT, 0), (CameraFault.SHORT, 3), (CameraFault.BACKWARD, 2)],
)
def test_frames_of_a_sick_camera_never_count_for_another_part(
    bench: Make, behind: PartImages, fault: CameraFault, value: int
) -> None:
    line = bench(views=(behind,))
    line.part_is(10)
    with closing(line.line.stage_of(1)) as stage:
        stage.break_camera(fault, value)
        broken = line.stage.part
        line.part_is(broken + 15)
        mended = line.stage.part
        stage.break_camera(CameraFault.NONE)
    back_ns = time.monotonic_ns()
    line.recovered()
    whole(line.finish())
    frames = [shown(line, camera) for camera in range(2)]
    told = verdicts(line)
    for part_id, message in told.items():
        judged = [view for view in message["views"] if view["score"] is not None]
        assert message["result"] == "reject" or len(judged) == 2
        for view in judged:
            assert (view["frame_id"], int(part_id[1:])) in frames[NAMES.index(view["camera"])], message
    if fault is not CameraFault.BACKWARD:  # that happens once
        sick = [message for part_id, message in told.items() if broken + 2 <= int(part_id[1:]) < mended]
        assert sick
        assert all(message["views"][1]["result"] == "reject" for message in sick)
        assert any(message["camera"] == "back" and message["evaluation"] == "not_decidable" for message in sick)
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S
