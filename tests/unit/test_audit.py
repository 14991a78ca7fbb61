"""The audit trail: one sealed line for each change, whatever is killed, and nobody changes one unseen."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeqc.cli import application
from edgeqc.journal import Entry
from edgeqc.loading import changes
from edgeqc.office.audit import FILE_NAME, KNOWN, AuditTrail, DamagedTrailError, Extent, read, verify
from edgeqc.records import Event
from edgeqc.settings import Settings

STATION = {
    "name": "top",
    "takt_ms": 100,
    "budget_ms": 60,
    "plc": {"type": "none"},
    "recipe": {"engine": "e"},
    "camera": {"type": "replay", "folder": "x", "width_px": 1280, "height_px": 1024},
}


def entry(sequence: int, name: str = "recipe_changed", **facts: str | int) -> Entry:
    return Entry(
        writer="station-top",
        sequence=sequence,
        wall_ns=1_000 + sequence,
        mono_ns=sequence,
        body=Event(name=name, facts=dict(facts)),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a trail with five changes, written in two goes."""
    trail = AuditTrail(tmp_path / FILE_NAME)
    trail.write([entry(number, recipe=f"R{number}", before=f"R{number - 1}") for number in (1, 2, 3)])
    trail.write([entry(4, "alarm_command", by="anna", why="seen"), entry(5, "counters_reset", by="shift")])
    return tmp_path / FILE_NAME


def sequences(path: Path) -> list[int]:
    return [line.fields["sequence"] for line in read(path)]


def test_a_line_says_who_what_and_when(path: Path) -> None:
    lines = list(read(path))
    assert verify(path) == Extent(lines=5, seal=lines[-1].seal, unfinished_bytes=0)
    assert [line.fields["n"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line.fields["who"] for line in lines] == ["station-top"] * 3 + ["anna", "shift"]
    assert lines[0].fields["facts"] == {"recipe": "R1", "before": "R0"}
    assert (lines[3].fields["what"], lines[3].fields["at"]) == ("alarm_command", 1004)
    assert path.stat().st_mode & 0o077 == 0


def test_what_comes_again_after_a_crash_is_there_once(path: Path) -> None:
    again = AuditTrail(path)
    again.write([entry(4, "alarm_command", by="anna", why="seen"), entry(6)])
    assert sequences(path) == [1, 2, 3, 4, 5, 6]
    again.write([entry(6)])
    assert sequences(path) == [1, 2, 3, 4, 5, 6]


def test_a_write_that_is_cut_anywhere_costs_no_line_before_it_and_comes_again(path: Path) -> None:
    """Whatever of the last write is on the disk, the head not yet written."""
    head = path.with_name(f"{FILE_NAME}.head")
    finished, kept = path.read_bytes(), head.read_bytes()
    AuditTrail(path).write([entry(6, recipe="R6"), entry(7, recipe="R7")])
    whole = path.read_bytes()
    for cut in range(len(finished), len(whole) + 1):
        path.write_bytes(whole[:cut])
        head.write_bytes(kept)
        assert sequences(path)[:5] == [1, 2, 3, 4, 5], cut
        trail = AuditTrail(path)
        assert trail.open() is None
        trail.write([entry(6, recipe="R6"), entry(7, recipe="R7")])
        assert path.read_bytes() == whole, cut


def test_garbage_behind_the_last_finished_write_is_no_damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100 + b"\n" + b"\0" * 7)
    assert verify(path).unfinished_bytes == 108
    trail = AuditTrail(path)
    assert trail.open() is None
    assert path.read_bytes() == whole


def test_each_byte_that_is_changed_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedTrailError):
            verify(path)
    path.write_bytes(whole)
    assert sequences(path) == [1, 2, 3, 4, 5]


def test_lines_that_are_lost_or_swapped_are_found(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (lines[:-1], lines[1:], [lines[1], lines[0], *lines[2:]], [*lines[:2], *lines[3:]], []):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(DamagedTrailError):
            verify(path)
    path.unlink()
    with pytest.raises(DamagedTrailError):
        verify(path)


def test_a_damaged_trail_is_set_aside_and_a_new_one_says_so(path: Path) -> None:
    damaged = path.read_bytes().replace(b"anna", b"otto")
    path.write_bytes(damaged)
    trail = AuditTrail(path)
    assert "line 4" in str(trail.open())
    trail.write([entry(6)])
    lines = list(read(path))
    assert [line.fields["what"] for line in lines] == ["audit_began", "recipe_changed"]
    assert [each.read_bytes() for each in path.parent.glob(f"{FILE_NAME}.damaged-*")] == [damaged]


def test_a_long_trail_needs_no_more_memory_than_its_newest_changes(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    changes = 2 * KNOWN
    AuditTrail(path).write([entry(number, recipe=f"R{number}") for number in range(changes)])
    size = path.stat().st_size
    tracemalloc.start()
    try:
        trail = AuditTrail(path)
        assert trail.open() is None
        trail.write([entry(number, recipe=f"R{number}") for number in range(changes - 64, changes)])  # come again
        assert path.stat().st_size == size
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (kept < 400 * KNOWN, peak < 600 * KNOWN) == (True, True), (kept, peak)


def test_the_command_shows_it_and_verifies_it(path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(application(), ["audit", "--state", str(path.parent), *arguments])
        return done.exit_code, done.stdout

    assert run("--verify", "--json")[1].startswith('{"schema": "edgeqc.audit-verified/1", "lines": 5')
    assert [line.count('"who"') for line in run("--json")[1].splitlines()] == [1] * 5
    path.write_bytes(path.read_bytes().replace(b"anna", b"otto"))
    assert run("--verify")[0] == 1


def test_a_configuration_that_differs_from_the_last_runs_is_told_with_its_keys(tmp_path: Path) -> None:
    def settings(**fields: object) -> Settings:
        return Settings.model_validate({"version": 1, "node": "n1", "stations": [STATION], **fields})

    first = changes.change(settings(), tmp_path)
    assert first is not None
    assert (first.facts["old"], first.facts["keys"]) == ("", "")
    changes.keep(settings(), tmp_path)
    assert changes.change(settings(), tmp_path) is None
    other = changes.change(settings(archive={"rows_days": 7}), tmp_path)
    assert other is not None
    assert (other.facts["keys"], other.facts["changed"]) == ("archive.rows_days 90 -> 7", 1)
    assert other.facts["old"] == first.facts["new"] != other.facts["new"]
    assert other.facts["by"]
    assert (tmp_path / changes.FILE_NAME).stat().st_mode & 0o077 == 0


def test_a_change_shows_no_secret(tmp_path: Path) -> None:
    def settings(password: str, source: str) -> Settings:
        camera = {"type": "opencv", "source": source, "width_px": 64, "height_px": 64}
        station = STATION | {"camera": camera, "trigger": {"source": "camera"}}
        mqtt = {"host": "b", "user": "edge", "password": password}
        return Settings.model_validate({"version": 1, "node": "n1", "stations": [station], "mqtt": mqtt})

    changes.keep(settings("old-secret", "rtsp://me:old-secret@10.0.0.9/a"), tmp_path)
    changed = changes.change(settings("new-secret", "rtsp://me:new-secret@10.0.0.9/b"), tmp_path)
    assert changed is not None
    assert changed.facts["keys"] == (
        "mqtt.password, stations[0].camera.source rtsp://...@10.0.0.9/a -> rtsp://...@10.0.0.9/b"
    )
