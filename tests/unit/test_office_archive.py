import dataclasses
import json
import math
import sqlite3
import time
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edgeqc.core.alarm import AlarmState, Verb
from edgeqc.journal import Cursor, Entry, JournalWriter
from edgeqc.office import alarms, audit, query, tables
from edgeqc.office.alarms import AlarmCommand
from edgeqc.office.archive import Archive
from edgeqc.office.books import Asked, Books, ImagesGone, ImageStored, Noted, Refused, Settled, Tailed
from edgeqc.office.intake import Intake
from edgeqc.office.tail import Tail
from edgeqc.office.transaction import Outcome
from edgeqc.records import (
    RECIPE_READY,
    AlertChange,
    Cause,
    Defect,
    Delivery,
    Event,
    Ledger,
    Ne107,
    PartRecord,
    Quality,
    Snapshot,
    SnapshotTag,
    Started,
    Trigger,
    Verdict,
    ViewRecord,
)
from edgeqc.settings import ArchiveSettings, JournalSettings

PATIENCE_S = 20.0
WALL_NS = time.time_ns()


def part(sequence: int, *, cause: Cause = Cause.DEFECT, wall_ns: int = WALL_NS) -> PartRecord:
    now_ns = time.monotonic_ns()
    return PartRecord(
        station="top",
        trigger=Trigger(sequence=sequence, part_id=f"P{sequence}", at_ns=now_ns, wall_ns=wall_ns + sequence),
        frame_id=sequence,
        verdict=Verdict.PASS if cause is Cause.OK else Verdict.REJECT,
        cause=cause,
        score=0.75,
        threshold=0.5,
        ledger=Ledger(trigger_ns=now_ns, frame_ns=now_ns + 1, prepared_ns=now_ns + 2, scored_ns=now_ns + 3),
        deadline_ns=now_ns + 60_000_000,
        recipe="cap",
        model_digest=b"\x01" * 32,
        defects=(Defect(name="dent", score=0.75, x_px=1, y_px=2, width_px=3, height_px=4),),
    )


def delivery(sequence: int, *, cause: Cause = Cause.DEFECT, **changes) -> Delivery:
    fields = {
        "sequence": sequence,
        "verdict": Verdict.PASS if cause is Cause.OK else Verdict.REJECT,
        "cause": cause,
        "delivered": True,
        "delivered_ns": time.monotonic_ns(),
        "late": False,
        "late_score": math.nan,
        **changes,
    }
    return Delivery(**fields)


def started(run: int) -> Started:
    return Started(
        process="station-top",
        run_id=f"{run:016x}",
        version="0.1.0",
        config_digest="00ff",
        backend="onnxruntime",
        model="demo@1",
        model_digest="01" * 32,
    )


def alert(*, active: bool) -> AlertChange:
    return AlertChange(
        id="top.camera.lost", active=active, priority="high", ne107=Ne107.FAILURE, text="No frame", action="Look"
    )


def ask(archive: Archive, verb: Verb, alarm: str, by: str = "maint1", why: str = "", for_ns: int = 0) -> dict:
    answer: Future[dict] = Future()
    command = AlarmCommand(verb=verb, id=alarm, by=by, why=why, for_ns=for_ns)
    archive.put(Asked(command=command, answer=answer, wall_ns=time.time_ns(), mono_ns=time.monotonic_ns()))
    return answer.result(10)


class Desk:
    """A state directory with one journal, and an archive on it that can be stopped and started."""

    def __init__(self, state_dir: Path, outbox_bytes: int | None = 1 << 20) -> None:
        self.state_dir = state_dir
        self.outbox_bytes = outbox_bytes
        self.cameras: tuple[str, ...] = ("cam",)
        self.journal = JournalWriter(state_dir / "journal" / "station-top", JournalSettings())
        self.troubles: list[str | None] = []
        self.closed: list = []
        self.flood: list[bool] = []

    def _committed(self, outcome: Outcome, _tailed: object) -> None:
        self.closed.extend(outcome.closed)
        if outcome.flooded is not None:
            self.flood.append(outcome.flooded)

    @contextmanager
    def archive(self, settings: ArchiveSettings | None = None):
        archive = Archive(
            self.state_dir / tables.FILE_NAME,
            settings or ArchiveSettings(),
            node="n1",
            cameras={"top": self.cameras},
            boot="boot",
            outbox_bytes=self.outbox_bytes,
            on_commit=self._committed,
            on_trouble=self.troubles.append,
        )
        tail = Tail(self.state_dir, archive, lambda _record: None)
        archive.start()
        try:
            yield archive, tail
        finally:
            archive.stop(PATIENCE_S)
            tail.close()

    def settle(self, archive: Archive, tail: Tail) -> None:
        """Tail until there is nothing left to read and nothing left to write."""
        until(lambda: archive.view is not None)
        until(lambda: not tail.turn() and archive.idle)

    def rows(self, query: str) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self.state_dir / tables.FILE_NAME)) as database:
            database.row_factory = sqlite3.Row
            return database.execute(query).fetchall()

    def messages(self, topic: str) -> list[dict]:
        rows = self.rows("SELECT * FROM outbox ORDER BY id")
        return [json.loads(row["payload"]) for row in rows if row["topic"] == topic and row["payload"]]


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "not within the time a loaded box needs"
        time.sleep(0.005)  # another thread has to do it


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    yield made
    made.journal.close()


@pytest.mark.parametrize("late_first", [True, False])
def test_a_late_score_is_kept_beside_the_verdict_whichever_comes_first(desk, late_first):
    late = delivery(1, cause=Cause.LATE, delivered=False, delivered_ns=0, late=True, late_score=0.75)
    told = delivery(1, cause=Cause.LATE)
    desk.journal.append(started(1))
    desk.journal.append(part(1, cause=Cause.LATE))
    for body in (late, told) if late_first else (told, late):
        desk.journal.append(body)
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (row,) = desk.rows("SELECT * FROM parts")
    assert (row["cause"], row["delivered"], row["late"], row["open"], row["late_score"]) == ("late", 1, 0, 0, 0.75)


def test_a_part_becomes_one_row_and_one_message(desk):
    desk.journal.append(started(1))
    desk.journal.append(part(1))
    desk.journal.append(delivery(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (row,) = desk.rows("SELECT * FROM parts")
    assert (row["station"], row["sequence"], row["part_id"], row["run_id"]) == ("top", 1, "P1", f"{1:016x}")
    assert (row["delivered"], row["late"], row["open"], row["late_score"]) == (1, 0, 0, None)
    assert row["journaled_ns"] > 0
    (message,) = desk.messages("verdict")
    assert (message["seq"], message["part_id"], message["plc"]["delivered"]) == (1, "P1", True)
    assert message["models"][0]["name"] == "demo"


def snapshot(sequence: int, **values: float) -> Snapshot:
    return Snapshot(
        sequence=sequence,
        tags=tuple(
            SnapshotTag(name=name, value=value, quality=Quality.GOOD, age_s=0.0421) for name, value in values.items()
        ),
    )


def test_a_verdict_carries_the_machine_at_its_exposure(desk):
    desk.journal.append(part(1))
    desk.journal.append(snapshot(1, heat=201.5, belt=math.nan))
    desk.journal.append(snapshot(1, force=7.0))
    desk.journal.append(delivery(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (message,) = desk.messages("verdict")
    assert message["process"] == {
        "heat": {"value": 201.5, "quality": "Good", "age_ms": 42.1},
        "belt": {"value": None, "quality": "Good", "age_ms": 42.1},
        "force": {"value": 7.0, "quality": "Good", "age_ms": 42.1},
    }
    (row,) = query.query(desk.state_dir)
    assert row["process"] == message["process"]


def test_a_snapshot_outlives_the_offices_restart_and_goes_with_its_part(desk):
    desk.journal.append(part(1))
    desk.journal.append(snapshot(1, heat=201.5))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    desk.journal.append(delivery(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (message,) = desk.messages("verdict")
    assert message["process"]["heat"]["value"] == 201.5
    with closing(sqlite3.connect(desk.state_dir / tables.FILE_NAME)) as database, database:
        database.execute("DELETE FROM parts")
    assert desk.rows("SELECT * FROM snapshots") == []


def test_a_snapshot_that_comes_after_its_message_is_in_the_archive_all_the_same(desk):
    desk.journal.append(part(1))
    desk.journal.append(delivery(1))
    desk.journal.append(snapshot(1, heat=201.5))
    desk.journal.append(snapshot(99, heat=1.0))  # of a part that nobody knows
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (row,) = query.query(desk.state_dir)
    assert row["process"]["heat"]["value"] == 201.5


def view(sequence: int, place: int, *, cause: Cause = Cause.OK) -> ViewRecord:
    return ViewRecord(
        sequence=sequence,
        wall_ns=WALL_NS + sequence,
        place=place,
        camera=("left", "right")[place],
        verdict=Verdict.PASS if cause is Cause.OK else Verdict.REJECT,
        cause=cause,
        frame_id=sequence,
        score=0.25,
        threshold=0.5,
        model_digest=b"\x02" * 32,
        defects=(Defect(name="dent", score=0.75, x_px=1, y_px=2, width_px=3, height_px=4),),
    )


def test_views_are_rows_of_their_part_and_in_its_message_even_across_a_restart(desk):
    desk.cameras = ("left", "right")
    for camera, model in (("left", "cap-left@1"), ("right", "cap-right@4")):
        facts = {"recipe": "cap", "camera": camera, "model": model}
        desk.journal.append(Event(name=RECIPE_READY, facts=facts))
    desk.journal.append(dataclasses.replace(part(1, cause=Cause.NO_FRAME), view=1))
    desk.journal.append(view(1, 0))
    desk.journal.append(view(1, 1, cause=Cause.NO_FRAME))
    desk.journal.append(view(99, 0))  # of a part that nobody knows
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        assert [recipe.camera for recipe in archive.view.recipes()] == ["left", "right"]
    desk.journal.append(delivery(1, cause=Cause.NO_FRAME))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (message,) = desk.messages("verdict")
    assert (message["camera"], message["models"][0]["name"]) == ("right", "cap-right")
    assert [(one["camera"], one["cause"], one["model"]["name"]) for one in message["views"]] == [
        ("left", "ok", "cap-left"),
        ("right", "no_frame", "cap-right"),
    ]
    (row,) = query.query(desk.state_dir)
    assert (row["camera"], row["model"]) == ("right", "cap-right@4")
    assert [(one["camera"], one["verdict"], one["score"], one["model"]) for one in row["views"]] == [
        ("left", "pass", 0.25, "cap-left@1"),
        ("right", "reject", 0.25, "cap-right@4"),
    ]
    assert row["views"][0]["defects"][0]["class"] == "dent"
    with closing(sqlite3.connect(desk.state_dir / tables.FILE_NAME)) as database, database:
        database.execute("DELETE FROM parts")
        assert database.execute("SELECT count(*) FROM views").fetchone() == (0,)


def test_an_archive_of_before_gets_the_tables_that_came_later(desk):
    desk.journal.append(part(1))
    desk.journal.append(delivery(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    with closing(sqlite3.connect(desk.state_dir / tables.FILE_NAME)) as database, database:
        database.execute("DROP TABLE snapshots")
        database.execute("DROP TRIGGER part_gone")
        database.execute("DROP TRIGGER part_gone_with_views")
        database.execute("DROP TABLE views")
        database.execute("ALTER TABLE parts DROP COLUMN view")
        database.execute("DROP TABLE recipes")
        database.execute(
            "CREATE TABLE recipes(writer TEXT NOT NULL, recipe TEXT NOT NULL, model TEXT NOT NULL, "
            "model_digest TEXT NOT NULL, backend TEXT NOT NULL, why TEXT NOT NULL, vouched TEXT NOT NULL, "
            "PRIMARY KEY(writer, recipe))"
        )
        database.execute("INSERT INTO recipes VALUES('station-top', 'cap', 'cap@3', 'd', 'b', 'w', 'v')")
        database.execute("PRAGMA user_version=2")
    desk.journal.append(part(2))
    desk.journal.append(snapshot(2, heat=5.0))
    desk.journal.append(delivery(2))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    newest, oldest = query.query(desk.state_dir)
    assert (newest["process"]["heat"]["value"], oldest["process"]) == (5.0, {})
    assert (newest["views"], newest["model"]) == ([], "cap@3")


def test_reading_a_journal_twice_changes_nothing(desk):
    for sequence in range(1, 51):
        desk.journal.append(part(sequence))
        desk.journal.append(delivery(sequence))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        first = Tailed(
            folder=desk.journal.folder,
            entries=[
                Entry(writer="station-top", sequence=n, wall_ns=1, mono_ns=1, body=body)
                for n, body in enumerate((part(1), delivery(1)))
            ],
            cursor=Cursor(segment=1, offset=512),
            images={},
        )
        assert archive.offer(first)
        until(lambda: archive.idle)
    assert len(desk.rows("SELECT * FROM parts")) == 50
    assert [message["seq"] for message in desk.messages("verdict")] == list(range(1, 51))


def test_a_restart_goes_on_where_it_was(desk):
    desk.journal.append(part(1))
    desk.journal.append(delivery(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    desk.journal.append(part(2))
    desk.journal.append(delivery(2))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    assert [message["seq"] for message in desk.messages("verdict")] == [1, 2]


def test_a_delivery_that_comes_after_a_restart_of_the_office_completes_its_part(desk):
    desk.journal.append(part(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    assert desk.messages("verdict") == []
    desk.journal.append(delivery(1, delivered=False, delivered_ns=0, reason="timeout"))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (message,) = desk.messages("verdict")
    assert message["plc"] == {"delivered": False, "late": False, "reason": "timeout"}
    assert message["defects"][0]["class"] == "dent"
    assert message["score"] == 0.75


def test_a_station_that_died_in_between_leaves_its_part_as_unknown(desk):
    desk.journal.append(started(1))
    desk.journal.append(part(1))
    desk.journal.append(started(2))
    desk.journal.append(part(2))
    desk.journal.append(delivery(2))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    assert [message["plc"]["delivered"] for message in desk.messages("verdict")] == [None, True]
    assert [row["delivered"] for row in desk.rows("SELECT delivered FROM parts ORDER BY id")] == [None, 1]
    assert [row["run_id"][-1] for row in desk.rows("SELECT run_id FROM parts ORDER BY id")] == ["1", "2"]


def test_a_part_without_delivery_is_told_after_two_seconds_and_completed_later(desk):
    desk.journal.append(part(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        until(lambda: not tail.turn() and desk.closed)
        (message,) = desk.messages("verdict")
        assert message["plc"]["delivered"] is None
        desk.journal.append(delivery(1))
        desk.settle(archive, tail)
    assert len(desk.messages("verdict")) == 1
    assert desk.rows("SELECT delivered FROM parts")[0]["delivered"] == 1


def test_a_part_is_not_given_up_while_its_journal_is_unread(desk):
    desk.journal.append(part(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        time.sleep(2.5)  # the time after which a part would be given up, with nobody tailing
        desk.journal.append(delivery(1))
        desk.settle(archive, tail)
    (message,) = desk.messages("verdict")
    assert message["plc"]["delivered"] is True


def test_what_was_announced_is_what_the_row_says(desk):
    desk.journal.append(part(1, cause=Cause.OK))
    desk.journal.append(delivery(1, cause=Cause.JOURNAL))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (row,) = desk.rows("SELECT * FROM parts")
    assert (row["verdict"], row["cause"], row["code"]) == ("reject", "journal", 105)


def test_a_sequence_that_begins_anew_is_another_part(desk):
    for wall_ns in (WALL_NS, WALL_NS + 10**9):
        desk.journal.append(part(1, wall_ns=wall_ns))
        desk.journal.append(delivery(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    assert [row["delivered"] for row in desk.rows("SELECT delivered FROM parts")] == [1, 1]


@pytest.mark.parametrize("damage", ["garbage", "page", "truncated"])
def test_a_damaged_archive_is_set_aside_and_read_again_from_the_journal(desk, damage):
    for sequence in range(1, 201):
        desk.journal.append(part(sequence))
        desk.journal.append(delivery(sequence))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    path = desk.state_dir / tables.FILE_NAME
    data = bytearray(path.read_bytes())
    match damage:
        case "garbage":
            path.write_bytes(b"\xde\xad\xbe\xef" * 1000)
        case "page":
            data[4096:] = bytes(b ^ 0x5A for b in data[4096:])
            path.write_bytes(data)
        case _:
            path.write_bytes(data[: len(data) // 2])
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    assert len(desk.rows("SELECT * FROM parts")) == 200
    assert len(list(desk.state_dir.glob("archive.db.damaged-*"))) == 1


def ruin(file: Path) -> None:
    """Leave nothing whole of an archive but its first page."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as stream:
        size = stream.seek(0, 2) - 4096
        stream.seek(4096)
        stream.write(b"\x5a" * size)


def test_damage_found_while_running_begins_a_new_archive(desk):
    for sequence in range(1, 401):
        desk.journal.append(part(sequence))
        desk.journal.append(delivery(sequence))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        before = archive.view
        ruin(desk.state_dir / tables.FILE_NAME)
        desk.journal.append(part(401))
        desk.journal.append(delivery(401))
        until(lambda: (tail.turn(), archive.view not in {before, None})[1])
        desk.settle(archive, tail)
    assert len(desk.rows("SELECT * FROM parts")) == 401
    assert list(desk.state_dir.glob("archive.db.damaged-*"))


def test_the_newest_messages_are_kept_and_the_dropped_ones_counted(tmp_path):
    desk = Desk(tmp_path, outbox_bytes=100_000)
    for sequence in range(1, 301):
        desk.journal.append(part(sequence))
        desk.journal.append(delivery(sequence))
    desk.journal.append(alert(active=True))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        tally = archive.tally
    desk.journal.close()
    numbers = [message["seq"] for message in desk.messages("verdict")]
    assert numbers == list(range(301 - len(numbers), 301))
    assert tally.dropped == 300 - len(numbers) > 0
    assert tally.rows == len(numbers) + 1
    assert tally.size <= 100_000
    assert len(desk.messages("alert/top.camera.lost")) == 1
    assert len(desk.rows("SELECT * FROM parts")) == 300


def test_without_a_broker_no_messages_are_made(tmp_path):
    desk = Desk(tmp_path, outbox_bytes=None)
    desk.journal.append(part(1))
    desk.journal.append(delivery(1))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    desk.journal.close()
    assert desk.rows("SELECT * FROM outbox") == []
    assert len(desk.rows("SELECT * FROM parts")) == 1


def test_a_settled_message_leaves_and_a_refused_one_is_kept_with_its_reason(desk):
    for sequence in (1, 2, 3):
        desk.journal.append(part(sequence))
        desk.journal.append(delivery(sequence))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        first, second, _ = (row["id"] for row in desk.rows("SELECT id FROM outbox ORDER BY id"))
        archive.put(Settled(ids=[first]))
        archive.put(Refused(id=second, reason="Not authorized"))
        until(lambda: archive.idle and not archive.settling())
        assert (archive.tally.rows, archive.tally.dead) == (1, 1)
    assert [message["seq"] for message in desk.messages("verdict")] == [3]
    (letter,) = desk.rows("SELECT * FROM dead_letters")
    assert (letter["topic"], letter["reason"]) == ("verdict", "Not authorized")


def test_an_alert_is_counted_and_emptied_when_it_clears(desk):
    for active in (True, True, False, True):
        desk.journal.append(alert(active=active))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        assert archive.view is not None
        (state,) = archive.view.alerts()
    assert (state.change.active, state.count) == (True, 2)
    sent = [
        (json.loads(row["payload"])["state"] if row["payload"] else "", row["retain"])
        for row in desk.rows("SELECT * FROM outbox ORDER BY id")
    ]
    assert sent == [("active_unacked", 1), ("active_unacked", 1), ("normal", 0), ("", 1), ("active_unacked", 1)]


def test_alerts_of_a_run_end_when_the_process_starts_again_and_does_not_tell_them(desk, monkeypatch):
    monkeypatch.setattr(alarms, "CONFIRM_NS", 0)
    desk.journal.append(alert(active=True))
    desk.journal.append(started(2))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        assert archive.view is not None
        until(lambda: not archive.view.alerts()[0].change.active)
        (state,) = archive.view.alerts()
    assert state.alarm.at_rest
    assert state.teller == "office"


@pytest.fixture
def supervisor(tmp_path):
    journal = JournalWriter(tmp_path / "journal" / "supervisor", JournalSettings())
    yield journal
    journal.close()


def test_alarms_of_a_station_that_is_not_configured_any_more_end_with_the_daemons_next_start(
    desk, supervisor, monkeypatch
):
    monkeypatch.setattr(alarms, "CONFIRM_NS", 0)
    desk.journal.append(alert(active=True))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        supervisor.append(dataclasses.replace(started(2), process="supervisor"))
        desk.settle(archive, tail)
        until(lambda: not archive.view.alerts()[0].change.active)
        assert desk.messages("alert/top.camera.lost")[-1]["state"] == "normal"
        desk.journal.append(alert(active=True))  # raised by the run that has begun: it stands
        desk.settle(archive, tail)
        assert archive.view.alerts()[0].change.active


def test_what_a_killed_office_had_raised_ends_if_the_next_one_does_not_raise_it_again(desk, supervisor, monkeypatch):
    monkeypatch.setattr(alarms, "CONFIRM_NS", 300_000_000)
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        for name in ("office.message.refused", "office.archive.damaged"):
            body = dataclasses.replace(alert(active=True), id=name)
            archive.put(Noted(body=body, wall_ns=time.time_ns(), mono_ns=time.monotonic_ns()))
        until(lambda: archive.idle)
    supervisor.append(Event(name="process_ended", facts={"process": "office", "exit_code": -9, "again_in_s": 0.1}))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        archive.put(Noted(body=body, wall_ns=time.time_ns(), mono_ns=time.monotonic_ns()))
        until(lambda: sum(state.change.active for state in archive.view.alerts()) == 1)
        time.sleep(0.4)  # over CONFIRM_NS: what was raised again stands
        assert [state.change.id for state in archive.view.alerts() if state.change.active] == ["office.archive.damaged"]


def test_a_clock_that_is_set_back_holds_up_neither_a_floods_end_nor_an_unconfirmed_alarms(tmp_path):
    hour_ns = 3600 * 10**9
    with closing(tables.open_archive(tmp_path / tables.FILE_NAME)) as database:
        book = alarms.AlarmBook(database)
        for number in range(alarms.FLOOD_BEGINS + 1):
            change = dataclasses.replace(alert(active=True), id=f"high.{number}")
            book.take(change, source="station-top", sequence=number, wall_ns=WALL_NS)
        book.expire(sequence=100, wall_ns=WALL_NS)
        book.started("station-top", WALL_NS, read_wall_ns=WALL_NS)
        assert book.flooded
        assert not book.due(WALL_NS + 1)
        assert book.due(WALL_NS - hour_ns)
        ended = book.expire(sequence=200, wall_ns=WALL_NS - hour_ns)
        assert not book.flooded
        assert len([state for state in ended if not state.change.active]) == alarms.FLOOD_BEGINS + 1


def test_a_box_that_boots_in_the_past_ends_what_an_earlier_run_had_raised(desk, monkeypatch):
    monkeypatch.setattr(alarms, "CONFIRM_NS", 0)
    year_ns = 365 * 86_400 * 10**9
    told = (
        ("station-gone", WALL_NS + year_ns, dataclasses.replace(alert(active=True), id="gone.camera.lost")),
        ("supervisor", WALL_NS, dataclasses.replace(started(2), process="supervisor")),
        ("station-top", WALL_NS + 1, alert(active=True)),  # raised by the run that has begun: it stands
        ("office", WALL_NS + year_ns, dataclasses.replace(alert(active=True), id="office.outbox.full")),
        ("supervisor", WALL_NS, Event(name="process_ended", facts={"process": "office", "exit_code": -9})),
    )
    entries = [
        Entry(writer=writer, sequence=number, wall_ns=wall_ns, mono_ns=1, body=body)
        for number, (writer, wall_ns, body) in enumerate(told)
    ]
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        batch = Tailed(folder=desk.journal.folder, entries=entries, cursor=Cursor(segment=1, offset=512), images={})
        assert archive.offer(batch)
        until(lambda: archive.idle and archive.view.alerts())
        until(lambda: sum(state.change.active for state in archive.view.alerts()) == 1)
        assert [state.change.id for state in archive.view.alerts() if state.change.active] == ["top.camera.lost"]


def test_an_alarm_leaves_the_shelf_where_the_clock_was_far_ahead_when_it_was_shelved(tmp_path):
    hour_ns = 3600 * 10**9
    with closing(tables.open_archive(tmp_path / tables.FILE_NAME)) as database:
        book = alarms.AlarmBook(database)
        ahead_ns = WALL_NS + 1000 * 24 * hour_ns
        book.take(alert(active=True), source="station-top", sequence=1, wall_ns=ahead_ns)
        shelve = AlarmCommand(verb=Verb.SHELVE, id="top.camera.lost", by="anna", why="known", for_ns=hour_ns)
        book.obey(shelve, sequence=2, wall_ns=ahead_ns)
        assert not book.due(ahead_ns + 1)
        assert book.due(WALL_NS)
        (state,) = book.expire(sequence=3, wall_ns=WALL_NS)
        assert (state.alarm.state, state.until_ns) == (AlarmState.ACTIVE_UNACKED, 0)
        shelve = dataclasses.replace(shelve, for_ns=alarms.LONGEST_SHELF_NS)
        book.obey(shelve, sequence=4, wall_ns=WALL_NS)
        assert not book.due(WALL_NS)


def test_an_acknowledged_alert_that_a_new_run_tells_again_stays_acknowledged(desk):
    desk.journal.append(alert(active=True))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        assert ask(archive, Verb.ACK, "top.camera.lost")["status"] == "ok"
        desk.journal.append(started(2))
        desk.journal.append(alert(active=True))
        desk.settle(archive, tail)
        (state,) = archive.view.alerts()
    assert (state.alarm.state, state.acked_by, state.count) == (AlarmState.ACTIVE_ACKED, "maint1", 1)


def test_answers_outlive_the_office_and_say_who_and_why(desk):
    desk.journal.append(alert(active=True))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        ask(archive, Verb.ACK, "top.camera.lost", why="cable is on its way")
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        (state,) = archive.view.alerts()
    assert (state.alarm.state, state.acked_by, state.note) == (
        AlarmState.ACTIVE_ACKED,
        "maint1",
        "cable is on its way",
    )
    (event,) = desk.rows("SELECT facts FROM events WHERE name='alarm_command'")
    assert json.loads(event["facts"])["why"] == "cable is on its way"
    told = [json.loads(row["payload"])["state"] for row in desk.rows("SELECT * FROM outbox WHERE topic LIKE 'alert/%'")]
    assert told == ["active_unacked", "active_acked"]


def test_a_shelved_alert_comes_back_by_itself(desk):
    desk.journal.append(alert(active=True))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        ask(archive, Verb.SHELVE, "top.camera.lost", why="known", for_ns=200_000_000)
        assert archive.view.alerts()[0].alarm.state is AlarmState.SHELVED
        until(lambda: archive.view.alerts()[0].alarm.state is AlarmState.ACTIVE_UNACKED)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ({"verb": Verb.ACK, "alarm": "nobody"}, "no alarm nobody"),
        ({"verb": Verb.ACK, "alarm": "top.camera.lost", "by": " "}, "who you are"),
        ({"verb": Verb.SHELVE, "alarm": "top.camera.lost", "for_ns": 1}, "needs a reason"),
        ({"verb": Verb.SHELVE, "alarm": "top.camera.lost", "why": "w", "for_ns": 10**15}, "24"),
        ({"verb": Verb.UNSHELVE, "alarm": "top.camera.lost"}, "active_unacked"),
        ({"verb": Verb.RETURN, "alarm": "*"}, "no alarm"),
    ],
)
def test_a_command_that_does_not_fit_is_refused_and_changes_nothing(desk, command, reason):
    desk.journal.append(alert(active=True))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        said = ask(archive, **{"by": "maint1", **command})
        assert said["status"] == "error"
        assert reason in said["error"]["message"]
        assert archive.view.alerts()[0].alarm.state is AlarmState.ACTIVE_UNACKED
    assert len(desk.rows("SELECT * FROM alerts")) == 1


def test_a_flood_keeps_the_least_back_and_tells_it_afterwards(desk, monkeypatch):
    monkeypatch.setattr(alarms, "FLOOD_BEGINS", 2)
    monkeypatch.setattr(alarms, "FLOOD_ENDS", 2)
    monkeypatch.setattr(alarms, "FLOOD_NS", 1_000_000_000)
    for number in range(4):
        desk.journal.append(dataclasses.replace(alert(active=True), id=f"high.{number}"))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        until(lambda: desk.flood == [True])
        desk.journal.append(dataclasses.replace(alert(active=True), id="low.1", priority="low"))
        desk.settle(archive, tail)
        assert not desk.messages("alert/low.1")
        until(lambda: desk.flood == [True, False])
        assert desk.messages("alert/low.1")
        first = [state.first_up for state in archive.view.alerts()]
    assert sum(first) == 1
    assert [row["alert_id"] for row in desk.rows("SELECT alert_id FROM alerts WHERE first_up")] == ["high.0"]


def raised(number: int, *, wall_ns: int, priority: str = "high", active: bool = True) -> Entry:
    change = dataclasses.replace(alert(active=active), id=f"{priority}.{number}", priority=priority)
    return Entry(writer="station-top", sequence=number, wall_ns=wall_ns, mono_ns=1, body=change)


def test_a_flood_ends_though_the_disk_refused_a_write_meanwhile(desk):
    hour_ns = 3600 * 10**9
    with closing(tables.open_archive(desk.state_dir / tables.FILE_NAME)) as database:
        intake = Intake(database, node="n1", cameras={}, boot="boot", publish=True, now_ns=0)
        books = Books(database, intake, budget=None, dropped=0)

        def write(entries: list[Entry], wall_ns: int) -> Outcome:
            outcome = Outcome()
            books.begin()
            intake.take(entries, {}, outcome, now_ns=1)
            intake.follow_up(outcome, wall_ns=wall_ns, mono_ns=1)
            return outcome

        many = [raised(number, wall_ns=WALL_NS) for number in range(8)]
        some = [raised(number, wall_ns=WALL_NS + alarms.FLOOD_NS // 2) for number in range(8, 15)]
        assert write([*many, *some], WALL_NS + alarms.FLOOD_NS // 2).flooded
        books.commit()
        left_ns = (
            WALL_NS + alarms.FLOOD_NS + 1
        )  # of the 15 the last 7 count: too few to begin a flood, too many to end one
        assert write([raised(1, wall_ns=left_ns, priority="low")], left_ns).flooded is None
        books.rollback(books.tally)
        intake.reload(now_ns=1)
        assert write([raised(1, wall_ns=left_ns, priority="low")], left_ns).flooded is None
        books.commit()
        assert not desk.messages("alert/low.1")
        assert write([], left_ns + hour_ns).flooded is False
        books.rollback(books.tally)  # the end itself, too, is told again
        intake.reload(now_ns=1)
        assert write([], left_ns + hour_ns).flooded is False
        books.commit()
    assert [told["state"] for told in desk.messages("alert/low.1")] == ["active_unacked"]


def test_a_flood_ends_though_the_archive_was_set_aside_in_it(desk, monkeypatch):
    monkeypatch.setattr(alarms, "FLOOD_BEGINS", 2)
    monkeypatch.setattr(alarms, "FLOOD_ENDS", 2)
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        for number in range(4):  # the office's own: no journal has them for a new archive to read
            body = dataclasses.replace(alert(active=True), id=f"office.{number}")
            archive.put(Noted(body=body, wall_ns=time.time_ns(), mono_ns=time.monotonic_ns()))
        until(lambda: desk.flood == [True])
        desk.journal.append(dataclasses.replace(alert(active=True), id="low.1", priority="low"))
        desk.settle(archive, tail)
        assert not desk.messages("alert/low.1")
        before = archive.view
        ruin(desk.state_dir / tables.FILE_NAME)
        desk.journal.append(part(1))
        until(lambda: (tail.turn(), archive.view not in {before, None})[1])
        until(lambda: (tail.turn(), desk.flood == [True, False])[1])
        desk.settle(archive, tail)
        assert desk.messages("alert/low.1")


def test_a_floods_end_tells_nothing_of_what_is_at_rest(tmp_path):
    with closing(tables.open_archive(tmp_path / tables.FILE_NAME)) as database:
        book = alarms.AlarmBook(database)
        told = [raised(number, wall_ns=WALL_NS) for number in range(alarms.FLOOD_BEGINS + 1)]
        told += [raised(1, wall_ns=WALL_NS, priority="low"), raised(1, wall_ns=WALL_NS, priority="low", active=False)]
        told += [raised(2, wall_ns=WALL_NS, priority="low")]
        for entry in told:
            book.take(entry.body, source=entry.writer, sequence=entry.sequence, wall_ns=WALL_NS)
        book.expire(sequence=100, wall_ns=WALL_NS)
        assert book.flooded
        ended = book.expire(sequence=200, wall_ns=WALL_NS + 2 * alarms.FLOOD_NS)
        assert [state.change.id for state in ended] == ["low.2"]


def test_an_archive_of_the_first_layout_is_brought_up(desk, monkeypatch):
    with monkeypatch.context() as old:
        old.setattr(tables, "_MIGRATIONS", ())
        old.setattr(tables, "SCHEMA_VERSION", 1)
        database = tables.open_archive(desk.state_dir / tables.FILE_NAME)
        database.execute(
            "INSERT INTO alerts(source, sequence, wall_ns, alert_id, active, priority, ne107, text, action, unit, since_ns, "
            "count) VALUES('station-top', 1, 5, 'old', 1, 'high', 'failure', 't', 'a', '', 5, 1)"
        )
        database.close()
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        (state,) = archive.view.alerts()
        assert state.alarm.state is AlarmState.ACTIVE_UNACKED
        assert ask(archive, Verb.ACK, "old")["status"] == "ok"


def test_events_and_starts_are_archived_and_told(desk):
    desk.journal.append(started(1))
    desk.journal.append(Event(name="recipe_changed", facts={"recipe": "cap"}))
    with desk.archive() as (archive, tail):
        archive.put(Noted(body=Event(name="message_refused", facts={}), wall_ns=WALL_NS, mono_ns=1))
        desk.settle(archive, tail)
    names = {row["name"] for row in desk.rows("SELECT name FROM events")}
    assert names == {"started", "recipe_changed", "message_refused"}
    assert {message["name"] for message in desk.messages("event")} == names


def test_old_rows_go_and_the_last_word_on_an_alert_stays(desk, monkeypatch):
    monkeypatch.setattr("edgeqc.office.archive._TIDY_S", 0.2)
    old_ns = WALL_NS - 100 * 86_400 * 10**9
    for sequence in range(1, 1200):
        desk.journal.append(part(sequence, wall_ns=old_ns if sequence < 1100 else WALL_NS))
        desk.journal.append(delivery(sequence))
    with desk.archive(ArchiveSettings(rows_days=90)) as (archive, tail):
        desk.settle(archive, tail)
        until(lambda: len(desk.rows("SELECT id FROM parts")) == 100)


def test_a_stepped_clock_deletes_nothing(desk, monkeypatch):
    monkeypatch.setattr("edgeqc.office.archive._TIDY_S", 0.05)
    desk.journal.append(part(1))
    desk.journal.append(delivery(1))
    with desk.archive(ArchiveSettings(rows_days=1)) as (archive, tail):
        desk.settle(archive, tail)
        real = time.time_ns
        monkeypatch.setattr("time.time_ns", lambda: real() + 3650 * 86_400 * 10**9)
        time.sleep(0.7)  # several turns of the archive's clock
        assert len(desk.rows("SELECT id FROM parts")) == 1


def test_images_are_known_while_they_are_there(desk):
    with desk.archive() as (archive, _tail):
        until(lambda: archive.view is not None)
        assert archive.view is not None
        for sequence in (1, 2):
            archive.put(
                ImageStored(path=f"images/d/top-{sequence}.png", station="top", sequence=sequence, size=10, ring=False)
            )
        archive.put(ImagesGone(paths=["images/d/top-1.png"]))
        until(lambda: archive.idle)
        assert archive.view.images() == {"images/d/top-2.png": False}


def test_a_command_that_the_disk_takes_only_later_is_in_the_audit_trail_once(desk, monkeypatch):
    desk.journal.append(alert(active=True))
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        commit, full = Books.commit, [True] * 4

        def full_at_first(books):
            if full:
                full.pop()
                raise sqlite3.OperationalError("database or disk is full")
            commit(books)

        monkeypatch.setattr(Books, "commit", full_at_first)
        assert ask(archive, Verb.ACK, "top.camera.lost")["status"] == "ok"
    lines = list(audit.read(desk.state_dir / audit.FILE_NAME))
    assert [line.fields["what"] for line in lines] == ["alarm_command"]
    (row,) = desk.rows("SELECT * FROM events WHERE name='alarm_command'")
    assert (row["sequence"], row["wall_ns"]) == (lines[0].fields["sequence"], lines[0].fields["at"])


def test_beginning_with_an_archive_of_many_parts_reads_only_the_open_ones(desk):
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    with closing(tables.open_archive(desk.state_dir / tables.FILE_NAME)) as database:
        asked: list[str] = []
        database.set_trace_callback(asked.append)
        Intake(database, node="n1", cameras={}, boot="boot", publish=True, now_ns=0)
        database.set_trace_callback(None)
        plans = [row["detail"] for query in asked for row in database.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert plans
    assert not [step for step in plans if step.startswith("SCAN parts") and "parts_open" not in step]


def test_a_disk_that_takes_nothing_loses_nothing(desk):
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
        with closing(sqlite3.connect(desk.state_dir / tables.FILE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # whoever holds the write lock is, to the archive, a disk that is stuck
            for sequence in range(1, 11):
                desk.journal.append(part(sequence))
                desk.journal.append(delivery(sequence))
            until(lambda: (tail.turn(), desk.troubles)[1])
            assert desk.rows("SELECT * FROM parts") == []
            other.execute("ROLLBACK")
        desk.settle(archive, tail)
        until(lambda: desk.troubles[-1] is None)
    assert [message["seq"] for message in desk.messages("verdict")] == list(range(1, 11))
    assert desk.troubles[0] is not None


def test_a_part_survives_the_way_through_its_row(desk):
    made = part(5)
    desk.journal.append(made)
    with desk.archive() as (archive, tail):
        desk.settle(archive, tail)
    (row,) = desk.rows("SELECT * FROM parts")
    back = tables.part_of(row)
    assert back.trigger == made.trigger
    assert back.defects == made.defects
    assert (back.score, back.threshold, back.model_digest) == (made.score, made.threshold, made.model_digest)
