"""What the line sees when something breaks: fail-safe verdicts in time, one clear event, recovery by itself.

Witnesses are the PLC's own log, the archive and the broker; never the daemon's word alone. Most tests share one line,
which goes on from one to the next: each breaks something, mends it, and accounts for its own parts. What the fail-safe
matrix has (test_failsafe) is not here.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Lines
from flatpackage import SLOW_LEVEL, UNSIGNED, WELL_LEVEL, flat_images, flat_package
from linebench import Bench, first_good_after, gone, until

from edgeqc.sim.images import PartImages
from edgeqc.sim.stage import CameraFault

pytestmark = pytest.mark.timeout(120)

RECOVERY_S = 2.0
"""Camera or PLC usable again -> next verdict on a part."""
RESTART_S = 8.0
"""A process of ours killed -> next verdict on a part; its libraries and the engine are loaded anew."""
CODE = {"late": 100, "no_frame": 101, "bad_frame": 102, "engine": 103, "identity": 109}
TAGS = 10
LOCAL = {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": 0}
Make = Callable[..., Bench]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, images: PartImages) -> Iterator[Bench]:
    """A line with every process that there is."""
    lines = Lines(tmp_path_factory.mktemp("line"), images)
    try:
        bench = lines.make(
            side_load=TAGS,
            changes={"server": {"modbus": LOCAL, "opcua": {**LOCAL, "security": "none", "anonymous": True}}},
        )
        yield bench
        bench.finish()
    finally:
        lines.close()


@pytest.fixture
def line(shared: Bench) -> Bench:
    """The shared line, well, and a fresh account."""
    shared.begin_section()
    return shared


@pytest.fixture
def dice() -> random.Random:
    """Other moments in each run; pytest shows the seed where a test fails."""
    seed = time.time_ns()
    print("seed", seed)  # noqa: T201
    return random.Random(seed)


def clean(report: dict[str, Any]) -> None:
    """Whatever broke: nothing contradicts, nothing twice, and all that the PLC saw is in the archive and was told."""
    assert (report["plc_mismatch"], report["duplicates"], report["mqtt_missing"]) == (0, 0, 0)


def whole(report: dict[str, Any]) -> None:
    """And no trigger went without its verdict in time."""
    clean(report)
    assert (report["unaccounted"], report["late"]) == (0, 0)


def codes(parts: list[dict[str, Any]]) -> set[int]:
    return {part["code"] for part in parts}


def between(parts: list[dict[str, Any]], first: int, last: int) -> list[dict[str, Any]]:
    """Those parts that were wholly within a fault: not the one under way when it began or ended."""
    return [part for part in parts if first + 2 <= part["part"] <= last - 1]


def test_a_healthy_line_accounts_for_every_part(bench: Make) -> None:
    line = bench(parts=50)
    report = line.finish()
    whole(report)
    assert report["triggers"] == report["archive_rows"] == report["mqtt_received"] == 50
    assert report["mqtt_duplicates"] == 0
    assert report["zero_copy"] is True
    assert report["pass"] > 0
    assert report["reject"] > 0


def test_a_free_running_camera_is_its_own_trigger(bench: Make) -> None:
    line = bench(parts=40, trigger="camera")
    report = line.finish()
    clean(report)
    assert report["archive_rows"] >= 40
    assert report["unaccounted"] <= 1  # the exposure that was under way when the count began


def test_behind_an_engine_that_is_slow_a_free_running_cameras_parts_have_their_rejects_in_time(
    bench: Make, tmp_path: Path
) -> None:
    """One part in twelve takes three takts: what comes meanwhile is a part all the same, and the line catches up."""
    levels = [WELL_LEVEL] * 11 + [SLOW_LEVEL]
    line = bench(
        parts=60,
        trigger="camera",
        budget_ms=50.0,  # with exposure and transfer well within the takt: the PLC tells parts by their order
        images=flat_images(tmp_path, levels),
        engine=flat_package(tmp_path / "flat" / "1"),
        changes=UNSIGNED,
    )
    report = line.finish()
    clean(report)
    assert report["late"] == 0
    assert report["unaccounted"] <= 1  # the exposure that was under way when the count began
    assert report["fail_safe"] >= 5
    assert report["pass"] >= 10


def test_an_opcua_plc_gets_the_same_verdicts_and_its_killed_process_is_started_again(bench: Make) -> None:
    line = bench(plc="opcua")
    line.part_is(20)
    lost = len(
        line.logged("peer_lost", peer="plc")
    )  # a starved box, on which the simulated server was late for an answer
    until(lambda: bool(line.row.get("plc_up")))
    (peer,) = psutil.Process(line.pid("station-top")).children()
    killed_ns = time.monotonic_ns()
    peer.kill()
    line.recovered()
    report = line.finish()
    clean(report)
    assert first_good_after(line.line.judged(), killed_ns) <= RESTART_S
    assert len(line.logged("peer_lost", peer="plc")) == lost + 1
    assert lost or all(part["in_time"] for part in line.line.judged()[:18])


# --- PLC ------------------------------------------------------------------------------------------------------------


def test_a_plc_that_restarts_is_served_again(bench: Make) -> None:
    line = bench()
    line.part_is(10)
    line.plc.kill()
    time.sleep(1.0)  # long enough for the daemon to try in vain
    line.plc.start()
    line.plc.go()
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.finish()
    clean(report)
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S
    assert len(line.logged("peer_lost", peer="plc")) == 1


# --- broker ---------------------------------------------------------------------------------------------------------


def test_a_hung_broker_costs_no_verdict_and_no_message(bench: Make) -> None:
    line = bench()
    broker = line.line.broker
    assert broker is not None
    line.part_is(5)
    broker.freeze()
    line.passes(40)
    broker.thaw()
    line.recovered()
    report = line.finish()
    whole(report)
    assert report["mqtt_received"] == report["archive_rows"] == report["triggers"]


def test_a_broker_that_refuses_verdicts_costs_none_and_says_so(bench: Make) -> None:
    line = bench(parts=25, broker_acl="topic readwrite #\ntopic deny edgeqc/demo/verdict")
    listener = line.line.listener
    assert listener is not None
    alert = "edgeqc/demo/alert/office.message.refused"
    until(lambda: bool(listener.payloads(alert)))
    report = line.finish()
    assert (report["unaccounted"], report["late"], report["plc_mismatch"], report["duplicates"]) == (0, 0, 0, 0)
    assert report["mqtt_received"] == 0
    refusals = [
        event["facts"] for event in listener.payloads("edgeqc/demo/event") if event["name"] == "message_refused"
    ]
    assert [facts["topic"] for facts in refusals] == ["verdict"], "one event for all of them"
    assert dead_letters(line) == report["archive_rows"] == 25
    assert listener.received("/verdict/last"), "what is allowed still comes"


def dead_letters(line: Bench) -> int:
    database = sqlite3.connect(f"file:{line.line.state_dir / 'archive.db'}?mode=ro", uri=True)
    try:
        return int(database.execute("SELECT count(*) FROM dead_letters WHERE topic='verdict'").fetchone()[0])
    finally:
        database.close()


# --- our own processes ----------------------------------------------------------------------------------------------


def test_a_killed_supervisor_leaves_no_process_behind(bench: Make) -> None:
    line = bench()
    line.part_is(5)
    pids = [line.pid(name) for name in ("station-top", "office")]
    assert line.line.daemon is not None
    line.line.daemon.kill()
    line.line.daemon.wait()
    line.line.daemon = None
    for pid in pids:
        until(lambda pid=pid: gone(pid))


def test_a_new_supervisor_ends_what_the_killed_one_left(bench: Make) -> None:
    line = bench()
    line.part_is(10)
    old = line.pid("station-top")
    os.kill(old, signal.SIGSTOP)  # it cannot end by itself
    assert line.line.daemon is not None
    line.line.daemon.kill()
    line.line.daemon.wait()
    line.line.start_daemon()
    line.line.wait_ready()
    assert gone(old)
    line.recovered()
    report = line.finish()
    clean(report)
    assert len(line.logged("leftover_killed")) == 1


# --- disk -----------------------------------------------------------------------------------------------------------


def test_a_damaged_archive_is_set_aside_and_the_line_runs(bench: Make) -> None:
    line = bench(parts=30)
    line.plc.wait_done(30)
    assert line.line.stop_daemon() == 0
    archive = line.line.state_dir / "archive.db"
    with archive.open("r+b") as file:
        file.write(os.urandom(8192))
    line.line.start_daemon()
    line.line.wait_ready()
    until(lambda: any(archive.parent.glob("archive.db.damaged-*")))
    until(lambda: rows_in(archive) >= 30)  # the journal still has them
    assert line.line.stop_daemon() == 0
    assert len(line.logged("archive_set_aside")) == 1


def rows_in(archive: Any) -> int:
    try:
        database = sqlite3.connect(f"file:{archive}?mode=ro", uri=True)
        try:
            return int(database.execute("SELECT count(*) FROM parts").fetchone()[0])
        finally:
            database.close()
    except sqlite3.Error:
        return 0


# --- on the shared line: last, for it runs on to the module's end, and two lines on one box starve each other -----------


def test_a_frozen_camera_means_rejects_in_time_and_comes_back(line: Bench) -> None:
    camera = line.line.cameras[0]
    first = line.stage.part
    camera.freeze()
    line.passes(15)
    last = line.stage.part
    camera.thaw()
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.section()
    whole(report)
    assert codes(between(line.parts(), first, last)) == {CODE["no_frame"]}
    assert first_good_after(line.parts(), back_ns) <= RECOVERY_S
    assert len(line.logged("peer_lost", peer="camera")) == 1


def test_a_slow_camera_never_gives_a_part_the_image_of_another(line: Bench) -> None:
    first = line.stage.part
    line.stage.break_camera(CameraFault.SLOW, 90)  # longer than the takt: part n's image comes when n+1 stands there
    line.passes(25)
    last = line.stage.part
    line.stage.break_camera(CameraFault.NONE)
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.section()
    whole(report)
    judged = [part for part in between(line.parts(), first + 2, last) if 0 < part["code"] < 100]
    assert not judged, "each part's own image came too late"
    assert first_good_after(line.parts(), back_ns) <= RECOVERY_S


def test_a_frame_of_another_size_is_never_judged(line: Bench) -> None:
    first = line.stage.part
    line.stage.break_camera(CameraFault.WRONG_SIZE)
    line.passes(15)
    last = line.stage.part
    line.stage.break_camera(CameraFault.NONE)
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.section()
    whole(report)
    broken = between(line.parts(), first, last)
    assert all(part["result"] == "reject" for part in broken)
    assert codes(broken) <= {CODE["bad_frame"], CODE["no_frame"], CODE["late"], CODE["identity"]}
    assert report["frames_bad"] > 0
    assert first_good_after(line.parts(), back_ns) <= RECOVERY_S


def test_a_killed_office_costs_nothing(line: Bench, dice: random.Random) -> None:
    for _ in range(2):
        time.sleep(dice.random() * 0.5)  # anywhere within its round
        before = line.pid("office")
        os.kill(before, signal.SIGKILL)
        line.restarted("office", before)
    report = line.section()
    whole(report)
    assert report["archive_rows"] == report["triggers"]
    assert len(line.logged("process_ended", name="office")) == 2


@pytest.mark.parametrize("name", ["watch", "server-opcua"])
def test_a_killed_process_beside_the_line_costs_no_verdict_and_comes_back(
    line: Bench, dice: random.Random, name: str
) -> None:
    line.restarted(name, 0)
    time.sleep(dice.random() * 0.2)
    old = line.pid(name)
    line.board["watch"].put("tags_good", 0 if name == "watch" else TAGS)
    os.kill(old, signal.SIGKILL)
    line.restarted(name, old)
    until(lambda: line.board["watch"].get("tags_good") == TAGS)
    report = line.section()
    whole(report)
    assert report["archive_rows"] == report["triggers"]
    assert len(line.logged("process_ended", name=name)) == 1
