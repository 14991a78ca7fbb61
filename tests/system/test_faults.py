"""What the line sees when something breaks: fail-safe verdicts in time, one clear event, recovery by itself.

Witnesses are the PLC's own log, the archive and the broker; never the daemon's word alone.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
from linebench import Bench, first_good_after, gone, until

from edgeqc.sim.stage import CameraFault

pytestmark = pytest.mark.timeout(120)

RECOVERY_S = 2.0
"""Camera or PLC usable again -> next verdict on a part."""
CODE = {"late": 100, "no_frame": 101, "bad_frame": 102, "engine": 103}
Make = Callable[..., Bench]


def clean(report: dict[str, Any]) -> None:
    """Whatever broke: nothing contradicts, nothing twice, and all that the PLC saw is in the archive."""
    assert report["plc_mismatch"] == 0
    assert report["duplicates"] == 0


def whole(report: dict[str, Any]) -> None:
    """And no trigger went without its verdict."""
    clean(report)
    assert report["unaccounted"] == 0


def codes(parts: list[dict[str, Any]]) -> set[int]:
    return {part["code"] for part in parts}


def test_a_healthy_line_accounts_for_every_part(bench: Make) -> None:
    line = bench(parts=50)
    report = line.all_through()
    whole(report)
    assert report["triggers"] == report["archive_rows"] == report["mqtt_received"] == 50
    assert report["mqtt_duplicates"] == 0
    assert report["zero_copy"] is True
    assert report["pass"] > 0
    assert report["reject"] > 0


def test_a_free_running_camera_is_its_own_trigger(bench: Make) -> None:
    line = bench(parts=40, trigger="camera")
    report = line.all_through()
    clean(report)
    assert report["archive_rows"] >= 40
    assert report["unaccounted"] <= 1  # the exposure that was under way when the count began


def test_an_opcua_plc_gets_the_same_verdicts(bench: Make) -> None:
    report = bench(parts=40, plc="opcua").all_through()
    whole(report)
    assert report["archive_rows"] == 40


# --- camera ---------------------------------------------------------------------------------------------------------


def test_a_killed_camera_means_rejects_in_time_and_comes_back(bench: Make) -> None:
    line = bench()
    line.part_is(10)
    assert line.line.camera is not None
    line.line.camera.kill()
    line.part_is(25)
    line.line.camera.start()
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.finish()
    whole(report)
    assert report["late"] == 0
    assert CODE["no_frame"] in codes(line.line.judged())
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S
    assert len(line.logged("peer_lost", peer="camera")) == 1


def test_a_silent_camera_means_rejects_in_time_and_comes_back(bench: Make) -> None:
    line = bench()
    line.part_is(10)
    line.stage.break_camera(CameraFault.SILENT)
    line.part_is(30)
    line.stage.break_camera(CameraFault.NONE)
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.finish()
    whole(report)
    assert report["late"] == 0
    assert CODE["no_frame"] in codes(line.line.judged())
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S


def test_a_slow_camera_never_gives_a_part_the_image_of_another(bench: Make) -> None:
    line = bench()
    line.part_is(10)
    line.stage.break_camera(CameraFault.SLOW, 60)  # later than the takt: part n's image comes when n+1 stands there
    line.part_is(35)
    line.stage.break_camera(CameraFault.NONE)
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.finish()
    whole(report)
    slow = [part for part in line.line.judged() if 14 <= part["part"] <= 34]
    assert all(part["result"] == "reject" and part["code"] >= 100 for part in slow)
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S


@pytest.mark.parametrize("fault", [CameraFault.SHORT, CameraFault.WRONG_SIZE])
def test_a_frame_that_is_not_whole_is_never_judged(bench: Make, fault: CameraFault) -> None:
    line = bench()
    line.part_is(10)
    line.stage.break_camera(fault)
    line.part_is(30)
    line.stage.break_camera(CameraFault.NONE)
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.finish()
    whole(report)
    broken = [part for part in line.line.judged() if 13 <= part["part"] <= 28]
    assert all(part["result"] == "reject" for part in broken)
    assert codes(broken) <= {CODE["bad_frame"], CODE["no_frame"], CODE["late"]}
    assert report["frames_bad"] > 0
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S


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


def test_a_hung_plc_is_left_and_served_again(bench: Make) -> None:
    line = bench()
    line.part_is(10)
    line.plc.freeze()
    time.sleep(3.0)  # a switch that reboots
    line.plc.thaw()
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.finish()
    clean(report)
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S


def test_a_plc_that_refuses_writes_is_no_reason_to_stop(bench: Make) -> None:
    line = bench()
    line.part_is(10)
    line.plc.refuse(True)
    line.part_is(30)
    line.plc.refuse(False)
    back_ns = time.monotonic_ns()
    line.recovered()
    report = line.finish()
    clean(report)
    assert first_good_after(line.line.judged(), back_ns) <= RECOVERY_S
    assert line.logged("peer_lost", peer="plc")


# --- broker ---------------------------------------------------------------------------------------------------------


def test_a_broker_that_is_gone_costs_no_verdict_and_no_message(bench: Make) -> None:
    line = bench()
    broker = line.line.broker
    assert broker is not None
    line.part_is(10)
    broker.stop()
    line.part_is(35)
    broker.start()
    until(lambda: told(line) >= 40, 20)
    report = line.finish()
    whole(report)
    assert (report["late"], report["mqtt_missing"]) == (0, 0)


def test_a_hung_broker_costs_no_verdict_and_no_message(bench: Make) -> None:
    line = bench()
    broker = line.line.broker
    assert broker is not None
    line.part_is(10)
    broker.freeze()
    line.part_is(60)
    broker.thaw()
    until(lambda: told(line) >= 65, 20)
    report = line.finish()
    whole(report)
    assert (report["late"], report["mqtt_missing"]) == (0, 0)


def told(line: Bench) -> int:
    return len({message["trigger_id"] for message in line.line.told()})


# --- our own processes ----------------------------------------------------------------------------------------------


def test_a_killed_office_costs_nothing(bench: Make) -> None:
    line = bench(parts=70)
    for at in (10, 30):
        line.part_is(at)
        before = line.pid("office")
        os.kill(before, signal.SIGKILL)
        line.restarted("office", before)
    report = line.all_through()
    whole(report)
    assert (report["late"], report["mqtt_missing"], report["archive_rows"]) == (0, 0, 70)


def test_a_killed_watch_costs_no_verdict_and_its_tags_come_back(bench: Make) -> None:
    line = bench(side_load=20)
    until(lambda: line.board["watch"].get("tags_good") == 20, 20)
    line.part_is(10)
    old = line.pid("watch")
    os.kill(old, signal.SIGKILL)
    line.board["watch"].put("tags_good", 0)
    line.restarted("watch", old)
    until(lambda: line.board["watch"].get("tags_good") == 20, 20)
    report = line.finish()
    whole(report)
    assert (report["late"], report["archive_rows"]) == (0, report["triggers"])


def test_a_killed_station_is_back_and_loses_nothing_that_the_plc_saw(bench: Make) -> None:
    line = bench()
    dice = random.Random(7)
    for _ in range(2):
        line.recovered(10)
        time.sleep(dice.random() * 0.08)  # anywhere within a part
        old = line.pid("station-top")
        killed_ns = time.monotonic_ns()
        os.kill(old, signal.SIGKILL)
        line.restarted("station-top", old)
        line.recovered()
        assert (time.monotonic_ns() - killed_ns) / 1e9 < 8
    report = line.finish()
    clean(report)
    judged = line.line.judged()
    assert judged[-1]["result"] != "none"
    assert len(line.logged("process_ended", name="station-top")) == 2


def test_the_whole_daemon_killed_at_once_loses_nothing_that_the_plc_saw(bench: Make) -> None:
    line = bench()
    dice = random.Random(11)
    for _ in range(2):
        line.recovered(10)
        time.sleep(dice.random() * 0.08)  # anywhere within a part
        line.line.kill_daemon()
        line.line.start_daemon()
        line.line.wait_ready()
    line.recovered()
    report = line.finish()
    clean(report)
    assert report["mqtt_missing"] == 0
    assert line.line.judged()[-1]["result"] != "none"


def test_a_killed_supervisor_leaves_no_process_behind(bench: Make) -> None:
    line = bench()
    line.part_is(5)
    pids = [line.pid(name) for name in ("station-top", "office")]
    assert line.line.daemon is not None
    line.line.daemon.kill()
    line.line.daemon.wait()
    line.line.daemon = None
    for pid in pids:
        until(lambda pid=pid: gone(pid), 8)


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
    assert line.line.judged()[-1]["result"] != "none"


def test_a_hung_station_is_killed_and_started_again(bench: Make) -> None:
    line = bench()
    line.part_is(10)
    old = line.pid("station-top")
    os.kill(old, signal.SIGSTOP)
    line.restarted("station-top", old)
    line.recovered()
    report = line.finish()
    clean(report)
    assert line.logged("process_hung", name="station-top")
    assert line.line.judged()[-1]["result"] != "none"


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
    until(lambda: rows_in(archive) >= 30, 20)  # the journal still has them
    assert line.line.stop_daemon() == 0


def rows_in(archive: Any) -> int:
    try:
        database = sqlite3.connect(f"file:{archive}?mode=ro", uri=True)
        try:
            return int(database.execute("SELECT count(*) FROM parts").fetchone()[0])
        finally:
            database.close()
    except sqlite3.Error:
        return 0
