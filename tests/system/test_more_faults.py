"""Faults of the box itself: the engine, its package, the configuration, the disk, the clock."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ENGINE
from flatpackage import UNSIGNED, flat_images, flat_package, seal
from linebench import COMES_S, Bench, until

from edgeqc.sim.stage import CameraFault

pytestmark = pytest.mark.timeout(120)
Make = Callable[..., Bench]


def test_a_score_that_is_no_number_is_a_reject(bench: Make, tmp_path: Path) -> None:
    line = bench(
        parts=40,
        engine=flat_package(tmp_path / "flat" / "1"),
        images=flat_images(tmp_path, [50, 50, 200]),
        changes=UNSIGNED,
    )
    report = line.finish()
    assert (report["unaccounted"], report["plc_mismatch"]) == (0, 0)
    parts = line.line.judged()
    busy = {100, 101, 109}  # a box that stood still for a moment
    assert {103} <= {part["code"] for part in parts if part["defective"]} <= {103} | busy
    assert {part["code"] for part in parts if not part["defective"]} <= {1} | busy
    assert report["confusion"]["fn"] == 0
    (told,) = line.logged("package_not_trusted")
    assert (told["vouched"], told["level"]) == ("is not signed", "warning"), "said loudly at each start"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated", "model.onnx: is cut off"),
        ("wrong_hash", "model.onnx: SHA-256 is"),
        ("wrong_shape", "golden.npz: input.image: float32"),
        ("golden", "is off the golden outputs by 0.05"),
        ("signed", "signed was"),
    ],
)
def test_a_damaged_package_starts_nothing(tmp_path: Path, damage: str, reason: str) -> None:
    folder = Path(shutil.copytree(ENGINE, tmp_path / "engine" / "1"))
    if damage != "signed":
        (folder / "signature.json").unlink()
    model = folder / "model.onnx"
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    match damage:
        case "truncated":
            model.write_bytes(model.read_bytes()[:-100])
            seal(folder, manifest)
        case "golden":
            with np.load(folder / "golden.npz") as archive:
                arrays = dict(archive)
            arrays["output.score"][0] += 0.05
            np.savez_compressed(folder / "golden.npz", **arrays)
            seal(folder, manifest)
        case "wrong_hash" | "signed":
            model.write_bytes(model.read_bytes()[:-1] + b"x")
        case _:
            manifest["inputs"][0]["shape"] = [1, 1, 128, 128]
            seal(folder, manifest)
    code, said = run_daemon(tmp_path, engine=str(folder))
    assert code == 5, said
    assert reason in said


def test_twenty_faults_in_a_configuration_are_told_at_once_and_nothing_runs(tmp_path: Path) -> None:
    text = textwrap.dedent(
        """\
        version: 2
        node: Bad Name
        colour: blue
        stations:
          - name: top
            takt_ms: -1
            budget_ms: zero
            plc_write_ms: 0
            result_hold_ms: -5
            heartbeat_ms: 5
            trigger: {source: nobody, poll_ms: 0}
            camera: {type: gige, adress: 10.0.0.1, width_px: 5, height_px: 99999, exposure_us: -3, packet_bytes: 10}
            recipe: {engine: 5, threads: 0, threshold: 2}
            plc: {type: modbus, host: 1, port: 99999}
            images: {every_nth_pass: -1}
        journal: {sync: never, group_ms: 0}
        """
    )
    config = tmp_path / "line.yaml"
    config.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "edgeqc", "run", str(config)],
        capture_output=True,
        text=True,
        timeout=COMES_S,
        check=False,
    )
    assert done.returncode == 3
    told = [line for line in done.stderr.splitlines() if "line.yaml:" in line]
    assert len(told) >= 20, done.stderr
    assert any("adress" in line and "address" in line.split("adress", 1)[1] for line in told), "nearest name"
    assert not (tmp_path / "state").exists()


def run_daemon(folder: Path, *, engine: str) -> tuple[int, str]:
    """`edgeqc run` on a folder of images with this engine, until it ends by itself."""
    frames = folder / "frames"
    frames.mkdir()
    settings = {
        "version": 1,
        "node": "x",
        "state_dir": str(folder / "state"),
        "run_dir": str(folder / "run"),
        "engines": {"trust": str(ENGINE.parents[1] / "trust"), "unsigned": "allow"},
        "stations": [
            {
                "name": "top",
                "takt_ms": 100,
                "budget_ms": 80,
                "camera": {"type": "replay", "folder": str(frames), "width_px": 64, "height_px": 64},
                "recipe": {"engine": engine},
                "plc": {"type": "none"},
            }
        ],
    }
    config = folder / "line.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "edgeqc", "run", str(config)],
        capture_output=True,
        text=True,
        timeout=COMES_S,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_second_daemon_on_the_same_state_is_refused(bench: Make) -> None:
    line = bench()
    done = subprocess.run(
        [sys.executable, "-m", "edgeqc", "run", str(line.line.config)],
        capture_output=True,
        text=True,
        timeout=COMES_S,
        check=False,
        env={**os.environ, "EDGEQC__RUN_DIR": str(line.line.run_dir) + "-second"},
    )
    assert done.returncode == 8, done.stderr
    report = line.finish()
    assert report["unaccounted"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_rejects_what_cannot_be_recorded_and_recovers(bench: Make, tmp_path: Path) -> None:
    """The state directory is a tmpfs of 24 MiB, filled to the brim while parts pass."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    try:
        line = bench(
            mqtt=False,
            changes={
                "state_dir": str(disk / "state"),
                "journal": {"segment_mb": 1, "ballast_mb": 1, "budget_mb": 8},
                "archive": {"images_mb": 1, "disk_free_mb": 0},
                "stations": [{"images": {"rejects": False, "every_nth_pass": 0}}],
            },
        )
        line.line.state_dir = disk / "state"
        line.part_is(10)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        line.part_is(120)
        filler.unlink()
        line.recovered()
        report = line.finish()
        assert (report["unaccounted"], report["plc_mismatch"], report["duplicates"]) == (0, 0, 0)
        assert report["archive_rows"] == report["triggers"]
        assert line.line.judged()[-1]["code"] in {1, 10}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(),
    reason="needs root and a loop device for an ext4 of its own",
)
def test_a_disk_that_turns_read_only_is_told_of_and_holds_no_verdict_up(bench: Make, tmp_path: Path) -> None:
    """As a worn-out SD card does: ext4 finds an error, aborts its journal and takes no write any more."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", str(image), str(disk)], check=True)
    try:
        mounts = [text.split() for text in Path("/proc/mounts").read_text().splitlines()]
        (device,) = [Path(source).name for source, where, *_ in mounts if where == str(disk)]
        line = bench(
            changes={
                "state_dir": str(disk / "state"),
                "journal": {"segment_mb": 4, "ballast_mb": 1, "budget_mb": 16},
                "archive": {"images_mb": 1, "disk_free_mb": 0},
            },
        )
        line.line.state_dir = disk / "state"
        line.part_is(10)
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("worn out")
        began_ns = time.monotonic_ns()
        until(lambda: bool(line.logged("journal_sync_failed")))
        assert line.line.listener is not None
        until(lambda: bool(line.line.listener.received("/alert/office.archive.stuck")))
        until(lambda: len(line.judged_after(began_ns)) >= 40)
        since = line.judged_after(began_ns)
        line.line.stop_daemon()
        judged = [part for part in since if part["code"] in {1, 10}]
        assert len(judged) > len(since) / 2  # a box that stands still costs some their verdict
        assert all(part["code"] in {1, 10} or part["code"] >= 100 for part in since), since
        assert len(line.logged("journal_sync_failed")) == 1, "said once"
        assert not line.logged("process_ended")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_log_that_nobody_reads_holds_nothing_up(bench: Make, tmp_path: Path) -> None:
    """As a journal's daemon that hangs: the pipe to it is full before the first line, and stays so."""
    line = bench()
    line.line.stop_daemon()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reads = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writes = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while os.write(writes, bytes(4096)):
                pass
        kept, line.line.log = line.line.log, pipe
        line.line.start_daemon()
        line.line.log = kept
        line.line.wait_ready()
        line.begin_section()
        line.stage.break_camera(CameraFault.SILENT)  # something to tell
        line.passes(5)
        line.stage.break_camera(CameraFault.NONE)
        line.recovered()
        line.passes(20)
        report = line.section()
        assert (report["unaccounted"], report["plc_mismatch"], report["duplicates"]) == (0, 0, 0)
        assert report["archive_rows"] == report["triggers"]
        line.finish()
    finally:
        os.close(reads)
        os.close(writes)


def test_a_clock_that_is_stepped_changes_no_verdict(bench: Make, tmp_path: Path) -> None:
    """The daemon's wall clock jumps by an hour and back while parts pass; verdicts go by the monotonic clock."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the wall clock that the test needs")
    library, offset = tmp_path / "wallclock.so", tmp_path / "offset"
    source = Path(__file__).with_name("wallclock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    offset.write_text("0")
    line = bench(environment={"LD_PRELOAD": str(library), "WALLCLOCK_OFFSET": str(offset)})
    for at, seconds in ((10, 3600), (25, -3600), (40, 0)):
        line.part_is(at)
        offset.write_text(str(seconds))
    line.part_is(50)
    report = line.finish()
    assert (report["unaccounted"], report["late"], report["plc_mismatch"]) == (0, 0, 0)
    assert report["archive_rows"] == report["triggers"]
    assert report["fail_safe"] <= 8
    hours = {found["ts"][:13] for found in line.line.told()}
    assert len(hours) >= 3, "the clock did step"
