import csv
import io
import json
import math
import time
from pathlib import Path

import pytest

from edgeqc.errors import EdgeqcError
from edgeqc.journal import Entry
from edgeqc.office import query, tables
from edgeqc.office.intake import Intake
from edgeqc.office.transaction import Outcome
from edgeqc.records import Cause, Delivery, Ledger, PartRecord, Trigger, Verdict

FIRST_NS = 1_795_335_330_000_000_000


def fill(state_dir: Path, count: int = 10) -> None:
    """Parts 1..count, a second apart; every third rejected, the first with its image."""
    database = tables.open_archive(state_dir / tables.FILE_NAME)
    intake = Intake(database, node="n", cameras={}, boot="b", publish=False, now_ns=0)
    outcome = Outcome()
    for sequence in range(1, count + 1):
        bad = sequence % 3 == 0
        verdict, cause = (Verdict.REJECT, Cause.LATE) if bad else (Verdict.PASS, Cause.OK)
        record = PartRecord(
            station="top" if sequence % 2 else "low",
            trigger=Trigger(
                sequence=sequence, part_id=f"P{sequence}", at_ns=1_000, wall_ns=FIRST_NS + sequence * 10**9
            ),
            frame_id=sequence,
            verdict=verdict,
            cause=cause,
            score=math.nan if bad else 0.25,
            threshold=0.5,
            ledger=Ledger(trigger_ns=1_000),
            deadline_ns=60_001_000,
            recipe="cap",
            model_digest=b"\x01" * 32,
        )
        told = Delivery(
            sequence=sequence,
            verdict=verdict,
            cause=cause,
            delivered=True,
            delivered_ns=21_501_000,
            late=False,
            late_score=0.75 if bad else math.nan,
        )
        writer = f"station-{record.station}"
        entries = [Entry(writer=writer, sequence=sequence, wall_ns=1, mono_ns=1, body=body) for body in (record, told)]
        path = f"images/2026-11-22/{record.station}-{sequence}.png"
        intake.take(entries, {sequence: path} if sequence in {1, 3} else {}, outcome, now_ns=0)
        if sequence == 3:
            database.execute("INSERT INTO images VALUES(?, 'top', 3, 9, 0, 1)", (path,))
            (state_dir / path).parent.mkdir(parents=True)
            (state_dir / path).write_bytes(b"picture")
            (state_dir / path).with_suffix(".map.png").write_bytes(b"map")
    database.close()


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    fill(folder)
    return folder


def numbers(state_dir: Path, **wanted) -> list[int]:
    return [row["sequence"] for row in query.query(state_dir, **wanted)]


def test_the_newest_come_first_and_the_limit_holds(state_dir):
    assert numbers(state_dir) == list(range(10, 0, -1))
    assert numbers(state_dir, limit=3) == [10, 9, 8]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"station": "low"}, [10, 8, 6, 4, 2]),
        ({"verdict": "reject"}, [9, 6, 3]),
        ({"cause": "late", "station": "low"}, [6]),
        ({"part_id": "P7"}, [7]),
        ({"since_ns": FIRST_NS + 9 * 10**9}, [10, 9]),
        ({"until_ns": FIRST_NS + 3 * 10**9}, [2, 1]),
        ({"part_id": "'; DROP TABLE parts; --"}, []),
    ],
)
def test_only_what_was_asked_for_is_found(state_dir, wanted, found):
    assert numbers(state_dir, **wanted) == found


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"part_id": "P7"}, "parts_by_part (part_id=?)"),
        ({"since_ns": FIRST_NS}, "parts_by_time (trigger_wall_ns>?)"),
        ({"since_ns": FIRST_NS, "until_ns": FIRST_NS}, "parts_by_time (trigger_wall_ns>? AND trigger_wall_ns<?)"),
    ],
)
def test_ten_million_parts_are_not_read_for_a_few(state_dir, monkeypatch, wanted, index):
    monkeypatch.setattr(query, "_QUERY", "EXPLAIN QUERY PLAN " + query._QUERY)
    monkeypatch.setattr(query, "_facts", lambda row: row["detail"])
    assert any(f"SEARCH parts USING INDEX {index}" in step for step in query.query(state_dir, **wanted))


def test_a_row_has_every_column_in_order(state_dir):
    row = next(query.query(state_dir, part_id="P3"))
    assert tuple(row) == query.COLUMNS
    assert (row["score"], row["late_score"], row["latency_ms"]) == (None, 0.75, 21.5)
    assert row["ts"] == "2026-11-22T08:15:33.000000Z"
    assert row["model_sha256"] == "01" * 32


def test_an_image_is_named_only_while_it_is_there(state_dir):
    images = {row["sequence"]: row["image"] for row in query.query(state_dir)}
    assert images[3] == "images/2026-11-22/top-3.png"
    assert images[1] is None


def test_csv_and_json_tell_the_same(state_dir):
    table, lines = io.StringIO(), io.StringIO()
    assert query.export_csv(query.query(state_dir), table) == 10
    assert query.export_json(query.query(state_dir), lines) == 10
    rows = list(csv.DictReader(table.getvalue().splitlines()))
    objects = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [row["part_id"] for row in rows] == [each["part_id"] for each in objects]
    assert {each["schema"] for each in objects} == {"edgeqc.record/1"}
    assert rows[1]["score"] == ""
    assert objects[1]["score"] is None


def test_images_are_copied_with_their_verdict_in_the_name(state_dir, tmp_path):
    assert query.export_images(state_dir, query.query(state_dir), tmp_path / "out") == 1
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "top-00000003-reject-late.map.png",
        "top-00000003-reject-late.png",
    ]


def test_no_archive_is_said_so(tmp_path):
    with pytest.raises(EdgeqcError, match="no archive yet"):
        list(query.query(tmp_path))


def test_a_file_that_is_no_archive_is_said_so(tmp_path):
    (tmp_path / tables.FILE_NAME).write_bytes(b"no database at all" * 100)
    with pytest.raises(EdgeqcError, match=r"archive\.db"):
        list(query.query(tmp_path))


def test_who_reads_slowly_keeps_neither_the_writer_waiting_nor_its_log_on_the_disk(tmp_path):
    fill(tmp_path, 1200)
    rows = query.query(tmp_path, limit=-1)
    next(rows)
    database = tables.open_archive(tmp_path / tables.FILE_NAME)
    began = time.monotonic()
    database.execute("UPDATE parts SET plc_reason='x' WHERE sequence=1")
    assert time.monotonic() - began < 1
    assert database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    database.close()
    assert [row["sequence"] for row in rows] == list(range(1199, 0, -1))
    assert numbers(tmp_path, limit=1100) == list(range(1200, 100, -1))
