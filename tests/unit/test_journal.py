"""The journal: what is appended is read back, whatever was cut, flipped, filled or killed."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.errors import JournalError
from edgeqc.journal import Cursor, JournalReader, JournalWriter, codec, list_journals, mark_archived, segment
from edgeqc.journal import writer as writer_module
from edgeqc.journal.codec import MAX_DEFECTS, RECORD_BYTES, DamagedRecordError, decode, encode, split_snapshot
from edgeqc.records import (
    AlertChange,
    Cause,
    Defect,
    Delivery,
    Event,
    Ledger,
    Ne107,
    PartRecord,
    Quality,
    SnapshotTag,
    Started,
    Trigger,
    Verdict,
    ViewRecord,
)
from edgeqc.settings import JournalSettings, JournalSync

SMALL = JournalSettings(segment_mb=1, ballast_mb=0, group_ms=5)
PER_SEGMENT = (1 << 20) // RECORD_BYTES - 1


def part(sequence: int, **changes: object) -> PartRecord:
    fields: dict[str, object] = {
        "station": "top",
        "trigger": Trigger(sequence=sequence, part_id=f"P{sequence}", at_ns=5, wall_ns=6),
        "frame_id": 7,
        "verdict": Verdict.PASS,
        "cause": Cause.OK,
        "score": 0.25,
        "threshold": 0.5,
        "ledger": Ledger(trigger_ns=5, frame_ns=8, decided_ns=9),
        "deadline_ns": 100,
        "recipe": "default",
        "model_digest": bytes(range(32)),
    }
    return PartRecord(**{**fields, **changes})  # type: ignore[arg-type]


def event(number: int) -> Event:
    return Event(name="tick", facts={"n": number})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def texts(size: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=size)


ints = st.integers(0, 2**63 - 1)
defects = st.builds(
    Defect,
    name=texts(4),
    score=st.floats(0, 1, width=32),
    x_px=st.integers(0, 65535),
    y_px=st.integers(0, 65535),
    width_px=st.integers(0, 65535),
    height_px=st.integers(0, 65535),
)
parts = st.builds(
    part,
    st.integers(0, 2**64 - 1),
    trigger=st.builds(Trigger, sequence=ints, part_id=texts(12), at_ns=ints, wall_ns=ints),
    frame_id=ints,
    verdict=st.sampled_from(Verdict),
    cause=st.sampled_from(Cause),
    score=st.floats(0, 1),
    ledger=st.builds(Ledger, trigger_ns=ints, frame_ns=ints, transfer_ns=ints, delivered_ns=ints),
    defects=st.lists(defects, max_size=MAX_DEFECTS).map(tuple),
    slot=st.integers(-1, 63),
    lease=ints,
    view=st.integers(-1, 7),
)
views = st.builds(
    ViewRecord,
    sequence=ints,
    wall_ns=ints,
    place=st.integers(0, 7),
    camera=st.from_regex("[a-z0-9][a-z0-9_-]{0,30}", fullmatch=True),
    verdict=st.sampled_from(Verdict),
    cause=st.sampled_from(Cause),
    frame_id=ints,
    score=st.floats(0, 1),
    threshold=st.floats(0, 1),
    model_digest=st.binary(min_size=32, max_size=32),
    frame_ns=ints,
    transfer_ns=ints,
    prepared_ns=ints,
    scored_ns=ints,
    defects=st.lists(defects, max_size=MAX_DEFECTS).map(tuple),
    slot=st.integers(-1, 63),
    lease=ints,
    part_passed=st.booleans(),
)
bodies = st.one_of(
    parts,
    views,
    st.builds(
        Delivery,
        sequence=ints,
        verdict=st.sampled_from(Verdict),
        cause=st.sampled_from(Cause),
        delivered=st.booleans(),
        delivered_ns=ints,
        late=st.booleans(),
        late_score=st.floats(0, 1),
        reason=texts(24),
    ),
    st.builds(Event, name=texts(10), facts=st.dictionaries(texts(5), st.integers(0, 9) | texts(9), max_size=3)),
    st.builds(
        AlertChange,
        id=texts(9),
        active=st.booleans(),
        priority=texts(5),
        ne107=st.sampled_from(Ne107),
        text=texts(9),
        action=texts(9),
        value=st.none() | st.floats(0, 9),
        unit=texts(3),
        contribution=st.lists(st.tuples(texts(6), st.floats(0, 1)), max_size=3).map(tuple),
        latched=st.booleans(),
        suppressed=st.booleans(),
    ),
    st.builds(Started, process=texts(9), run_id=texts(9), version=texts(5), config_digest=texts(9)),
)


@given(bodies, ints)
def test_a_record_reads_back_as_it_was_written(body: object, sequence: int) -> None:
    data = encode(body, sequence=sequence, wall_ns=1, mono_ns=2)  # type: ignore[arg-type]
    assert len(data) == RECORD_BYTES
    entry = decode(data, writer="station-top")
    assert (entry.sequence, entry.body) == (sequence, body)


@given(bodies, st.integers(0, RECORD_BYTES - 1), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(body: object, at: int, flip: int) -> None:
    data = bytearray(encode(body, sequence=1, wall_ns=1, mono_ns=2))  # type: ignore[arg-type]
    data[at] ^= flip
    with pytest.raises(DamagedRecordError):
        decode(bytes(data), writer="w")


@given(texts(2000), st.dictionaries(texts(30), texts(600) | st.integers(), max_size=30))
def test_a_text_too_long_is_cut_and_never_refused(name: str, facts: dict[str, object]) -> None:
    body = Event(name="x", facts={**facts, "text": name})  # type: ignore[dict-item]
    entry = decode(encode(body, sequence=1, wall_ns=1, mono_ns=2), writer="w")
    assert isinstance(entry.body, Event)
    assert entry.body.name == "x"


def test_area_of_a_defect_is_kept_and_records_without_it_are_still_read() -> None:
    scratch = Defect(name="scratch", score=0.5, x_px=3, y_px=4, width_px=300, height_px=400, area_px=70_000)
    data = encode(part(1, defects=(scratch, scratch)), sequence=1, wall_ns=1, mono_ns=2)
    entry = decode(data, writer="station-top")
    assert isinstance(entry.body, PartRecord)
    assert entry.body.defects == (scratch, scratch)
    fields = list(codec._PART.unpack_from(data, codec._HEAD.size))
    fields[17] = 2  # the count alone, as releases before areas wrote it
    one = codec._DEFECT_BEFORE_AREA.pack(b"scratch", 0.5, 3, 4, 300, 400)
    read = codec._unpack_part(codec._PART.pack(*fields) + 2 * one, "top")
    assert read.defects == (replace(scratch, area_px=0),) * 2


def test_more_defects_than_fit_keep_the_first(tmp_path: Path) -> None:
    many = tuple(Defect(name="d", score=1, x_px=i, y_px=0, width_px=1, height_px=1) for i in range(9))
    entry = decode(encode(part(1, defects=many), sequence=1, wall_ns=1, mono_ns=2), writer="station-top")
    assert isinstance(entry.body, PartRecord)
    assert [defect.x_px for defect in entry.body.defects] == list(range(MAX_DEFECTS))


def test_a_reader_tails_across_segments_in_order(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    reader = JournalReader(tmp_path / "w")
    seen: list[int] = []
    total = 2 * PER_SEGMENT + 100
    for number in range(1, total + 1):
        while True:
            try:
                assert writer.append(event(number)) == number
                break
            except JournalError:  # the next segment is still being made: 4000 records a millisecond apart
                time.sleep(0.01)
        if number % 97 == 0:
            seen += [entry.sequence for entry in reader.read()]
    while entries := reader.read():
        seen += [entry.sequence for entry in entries]
    assert seen == list(range(1, total + 1))
    assert (reader.lost, reader.segments_missed) == (0, 0)
    reader.close()
    writer.close()


def test_what_a_disk_cannot_give_back_costs_those_records_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(JournalWriter(tmp_path / "w", SMALL)) as journal:
        for number in range(40):
            journal.append(Event(name="tick", facts={"n": number}))
        bad, real = range(2 * mmap.PAGESIZE, 3 * mmap.PAGESIZE), os.pread

        def pread(descriptor: int, size: int, offset: int) -> bytes:
            if offset in bad:
                raise OSError(errno.EIO, "Input/output error")
            return real(descriptor, min(size, bad.start - offset) if offset < bad.start else size, offset)

        monkeypatch.setattr(os, "pread", pread)
        reader = JournalReader(journal.folder)
        found = [entry.sequence for entry in reader.read()]
        found += [entry.sequence for entry in reader.read()]
        reader.close()
    in_page = range(bad.start // RECORD_BYTES, bad.stop // RECORD_BYTES)  # the first record is the second of the file
    assert found == [number for number in range(1, 41) if number not in in_page]
    assert reader.lost == len(in_page)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOMEM])
def test_records_before_a_damaged_one_are_given_once_whatever_the_disk_says_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    with closing(JournalWriter(tmp_path / "w", SMALL)) as journal:
        for number in range(4):
            journal.append(Event(name="tick", facts={"n": number}))
        journal._memory[3 * RECORD_BYTES + 100] ^= 0xFF  # the third record
        bad, real, refuses = 4 * RECORD_BYTES, os.pread, [True]

        def pread(descriptor: int, size: int, offset: int) -> bytes:
            if offset == bad and refuses[0]:
                raise OSError(error, os.strerror(error))
            return real(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", pread)
        reader = JournalReader(journal.folder)
        found = []
        for refuses[0] in (True, True, False):
            with suppress(OSError):
                found += [entry.sequence for entry in reader.read()]
        reader.close()
    assert found == [1, 2, 4]
    assert reader.lost == 1


def test_records_that_were_read_are_given_though_what_comes_next_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(JournalWriter(tmp_path / "w", SMALL)) as journal:
        journal.append(Event(name="tick", facts={}))
        reader = JournalReader(journal.folder, Cursor(segment=1, offset=RECORD_BYTES))

        def none_left(_reader: JournalReader) -> int | None:
            raise OSError(errno.ENFILE, "Too many open files in system")

        with monkeypatch.context() as patch:
            patch.setattr(JournalReader, "_later_segment", none_left)
            assert [entry.sequence for entry in reader.read()] == [1]
            with pytest.raises(OSError, match="Too many"):
                reader.read()
        assert reader.read() == []
        reader.close()


def test_a_cursor_goes_on_where_it_was(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    for number in range(10):
        writer.append(event(number))
    first = JournalReader(tmp_path / "w")
    assert len(first.read(limit=4)) == 4
    second = JournalReader(tmp_path / "w", first.cursor)
    assert [entry.sequence for entry in second.read()] == [5, 6, 7, 8, 9, 10]
    first.close()
    second.close()
    writer.close()
    assert list_journals(tmp_path) == []


def test_numbering_goes_on_after_a_restart(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "station-top", SMALL)
    writer.append(part(41))
    writer.append(event(1))
    writer.close()
    again = JournalWriter(tmp_path / "station-top", SMALL)
    assert again.last_part_sequence == 41
    assert again.append(event(2)) == 3
    again.close()


def test_numbers_that_a_full_disk_may_have_kept_out_of_the_journal_are_not_given_again(tmp_path: Path) -> None:
    """The PLC knows them, as rejects: a part with one of them would count as acknowledged."""
    writer = JournalWriter(tmp_path / "w", SMALL)
    for _ in range(PER_SEGMENT):
        writer.append(part(41))
    writer.close()
    again = JournalWriter(tmp_path / "w", SMALL)
    assert again.last_part_sequence == 1041
    again.close()


@pytest.mark.parametrize("body", [part(41), event(1)], ids=["parts", "no parts"])
def test_numbering_goes_on_where_a_segment_was_begun_and_nothing_written(
    tmp_path: Path, body: PartRecord | Event
) -> None:
    """Killed between the header of a fresh segment and its first record."""
    writer = JournalWriter(tmp_path / "w", SMALL)
    for number in range(1, PER_SEGMENT + 1):
        assert writer.append(body) == number
    while True:
        try:
            writer.append(body)
            break
        except JournalError:  # the next segment is still being made
            time.sleep(0.01)
    writer.close()
    with segment.path_of(tmp_path / "w", 2).open("r+b") as file:
        file.seek(RECORD_BYTES)
        file.write(bytes(RECORD_BYTES))
    again = JournalWriter(tmp_path / "w", SMALL)
    assert again.last_part_sequence == (41 if isinstance(body, PartRecord) else 0)
    assert again.append(event(2)) == PER_SEGMENT + 1
    again.close()


def test_a_torn_tail_is_cleared_and_the_rest_kept(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    for number in range(3):
        writer.append(event(number))
    writer.close()
    path = segment.path_of(tmp_path / "w", 1)
    with path.open("r+b") as file:
        file.seek(4 * RECORD_BYTES)
        file.write(b"\x31\x4a\x51\x45half a record")
    reader = JournalReader(tmp_path / "w")
    assert len(reader.read()) == 3
    again = JournalWriter(tmp_path / "w", SMALL)
    assert again.repaired == {"torn": 1, "quarantined": 0}
    again.append(event(4))
    assert [entry.sequence for entry in reader.read()] == [4]
    assert reader.lost == 0
    reader.close()
    again.close()


def test_a_damaged_record_in_the_middle_is_skipped_and_counted(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    for number in range(5):
        writer.append(event(number))
    with segment.path_of(tmp_path / "w", 1).open("r+b") as file:
        file.seek(3 * RECORD_BYTES + 100)
        file.write(b"\xff")
    reader = JournalReader(tmp_path / "w")
    assert [entry.sequence for entry in reader.read()] == [1, 2, 4, 5]
    assert reader.lost == 1
    reader.close()
    writer.close()


@pytest.mark.parametrize("damage", [b"garbage" * 100, bytes(range(256)) * 4])
def test_an_unreadable_segment_is_set_aside_and_the_line_goes_on(tmp_path: Path, damage: bytes) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    writer.append(event(1))
    writer.close()
    with segment.path_of(tmp_path / "w", 1).open("r+b") as file:
        file.write(damage)
    again = JournalWriter(tmp_path / "w", SMALL)
    assert again.repaired["quarantined"] == 1
    again.append(event(2))
    reader = JournalReader(tmp_path / "w")
    assert [entry.body for entry in reader.read()] == [event(2)]
    assert list((tmp_path / "w").glob("*.damaged-*"))
    reader.close()
    again.close()


def test_archived_segments_go_and_unarchived_stay_within_the_budget(tmp_path: Path) -> None:
    settings = JournalSettings(segment_mb=1, budget_mb=8, ballast_mb=0, group_ms=1)
    troubles: list[str] = []
    writer = JournalWriter(tmp_path / "w", settings)
    writer.listen(lambda name, _facts: troubles.append(name))

    def fill(segments: int) -> None:
        done = 0
        while done < segments * PER_SEGMENT:
            try:
                writer.append(event(done))
                done += 1
            except JournalError:  # wait for the next segment to be ready
                time.sleep(0.005)

    fill(4)
    reader = JournalReader(tmp_path / "w")
    while reader.read():
        pass
    mark_archived(tmp_path / "w", reader.cursor)
    fill(1)
    wait_until(lambda: min(segment.numbers(tmp_path / "w")) > 1)
    assert troubles == []
    fill(9)
    wait_until(lambda: len(segment.numbers(tmp_path / "w")) <= 8)
    assert writer.dropped_segments > 0
    assert "journal_budget_used_up" in troubles
    before = reader.segments_missed
    assert reader.read()
    assert reader.segments_missed > before
    reader.close()
    writer.close()


def test_each_waits_until_the_disk_has_it(tmp_path: Path) -> None:
    settings = JournalSettings(segment_mb=1, ballast_mb=0, sync=JournalSync.EACH, group_ms=10_000)
    writer = JournalWriter(tmp_path / "w", settings)
    sequence = writer.append(event(1))
    assert writer.wait_synced(sequence, time.monotonic_ns() + 10_000_000_000)
    assert not writer.wait_synced(sequence + 1, time.monotonic_ns() + 20_000_000)
    writer.close()


def test_what_was_appended_survives_kill_minus_nine(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from edgeqc.journal import JournalWriter
        from edgeqc.records import Event
        from edgeqc.settings import JournalSettings
        writer = JournalWriter(Path(sys.argv[1]), JournalSettings(segment_mb=1, ballast_mb=0))
        while True:
            try:
                number = writer.append(Event(name="tick", facts={}))
            except Exception:
                continue
            sys.stdout.buffer.write(b"%d\\n" % number)
            sys.stdout.buffer.flush()
        """
    )
    told = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "w")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3000)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split(b"\n")
        process.stdout.close()
        process.wait()
        told = max(int(line) for line in [*lines, *rest[:-1]] if line.strip().isdigit())
    reader = JournalReader(tmp_path / "w")
    seen: list[int] = []
    while entries := reader.read():
        seen += [entry.sequence for entry in entries]
    assert seen == list(range(1, seen[-1] + 1))
    assert told <= seen[-1] <= told + 1
    reader.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_frees_the_ballast_refuses_and_recovers(tmp_path: Path) -> None:
    """Runs in a mount namespace of its own, on a tmpfs of 6 MiB."""
    script = textwrap.dedent(
        """
        import subprocess, sys, time
        from pathlib import Path
        root = Path(sys.argv[1])
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(root)], check=True)
        from edgeqc.errors import JournalError
        from edgeqc.journal import JournalReader, JournalWriter
        from edgeqc.records import Event
        from edgeqc.settings import JournalSettings
        told = []
        settings = JournalSettings(segment_mb=1, ballast_mb=2, group_ms=1, budget_mb=64)
        writer = JournalWriter(root / "journal" / "w", settings)
        writer.listen(lambda name, facts: told.append(name))
        time.sleep(0.3)
        assert (root / "journal" / "ballast").exists()
        (root / "filler").write_bytes(bytes(2 << 20))
        refused = 0
        while refused < 50:
            try:
                writer.append(Event(name="tick", facts={}))
            except JournalError:
                refused += 1
                time.sleep(0.02)
        assert not (root / "journal" / "ballast").exists(), "the ballast is freed first"
        assert told == ["disk_full"], told
        (root / "filler").unlink()
        deadline = time.monotonic() + 10
        while True:
            try:
                writer.append(Event(name="back", facts={}))
                break
            except JournalError:
                assert time.monotonic() < deadline, "no recovery"
                time.sleep(0.05)
        writer.close()
        reader = JournalReader(root / "journal" / "w")
        seen = []
        while entries := reader.read():
            seen += entries
        assert [entry.sequence for entry in seen] == list(range(1, len(seen) + 1))
        assert seen[-1].body.name == "back" and len(seen) > 4000
        print("ok")
        """
    )
    root = tmp_path / "disk"
    root.mkdir()
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script, str(root)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.strip() == "ok", done.stderr


def test_an_unknown_folder_reads_as_empty(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "nothing", Cursor(segment=3, offset=RECORD_BYTES))
    assert reader.read() == []
    reader.close()


NAMES = st.text(st.characters(codec="ascii", min_codepoint=45, max_codepoint=122), min_size=1, max_size=31)


@given(
    st.lists(
        st.tuples(NAMES, st.floats(width=64), st.sampled_from(list(Quality)), st.floats(0, 1e6, width=32)), max_size=64
    )
)
def test_a_snapshot_of_any_tags_is_read_back_whole(told: list[tuple[str, float, Quality, float]]) -> None:
    tags = tuple(
        SnapshotTag(name=name, value=value, quality=quality, age_s=age_s) for name, value, quality, age_s in told
    )
    records = split_snapshot(7, tags)
    read = [decode(encode(record, sequence=1, wall_ns=2, mono_ns=3), writer="station-top").body for record in records]
    assert {record.sequence for record in read} <= {7}
    assert repr([tag for record in read for tag in record.tags]) == repr(list(tags))  # NaN is not itself


def filled(writer: JournalWriter, body: PartRecord | Event, records: int) -> None:
    """So many records, waiting for segments to be made."""
    for _ in range(records):
        while True:
            try:
                writer.append(body)
                break
            except JournalError:
                time.sleep(0.005)


def test_no_number_of_a_part_is_given_again_when_its_record_has_long_been_deleted(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "station-top", SMALL)
    writer.append(part(41))
    filled(writer, event(1), 3 * PER_SEGMENT)  # a link that comes and goes all night, and no part
    writer.close()
    segment.path_of(tmp_path / "station-top", 1).unlink()
    again = JournalWriter(tmp_path / "station-top", SMALL)
    assert again.last_part_sequence == 41
    assert again.append(event(2)) == 3 * PER_SEGMENT + 2
    again.close()


def test_after_a_boot_nothing_is_written_where_the_archive_may_have_read_what_a_power_cut_took(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "station-top", SMALL)
    writer.append(part(1))
    writer.append(part(2))
    reader = JournalReader(tmp_path / "station-top")
    assert len(reader.read()) == 2
    cursor = reader.cursor
    reader.close()
    writer.close()
    path = segment.path_of(tmp_path / "station-top", 1)
    with path.open("r+b") as file:  # the second record never reached the disk, and the box was booted
        file.write(segment.header(segment.Header(number=1, writer="station-top", boot=bytes(range(16)))))
        file.seek(2 * RECORD_BYTES)
        file.write(bytes(RECORD_BYTES))
    again = JournalWriter(tmp_path / "station-top", SMALL)
    assert again.last_part_sequence >= 2, "the PLC knows part 2"
    again.append(part(5000))
    reader = JournalReader(tmp_path / "station-top", cursor)
    assert [entry.body for entry in reader.read()] == [part(5000)]
    reader.close()
    again.close()


def test_the_number_of_a_segment_that_was_set_aside_is_not_given_again(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    filled(writer, event(1), PER_SEGMENT + 3)
    writer.close()
    reader = JournalReader(tmp_path / "w")
    while reader.read():
        pass
    reader.close()
    with segment.path_of(tmp_path / "w", 2).open("r+b") as file:
        file.write(b"garbage")
    again = JournalWriter(tmp_path / "w", SMALL)
    again.append(event(2))
    reader = JournalReader(tmp_path / "w", reader.cursor)
    assert [(entry.sequence, entry.body) for entry in reader.read()] == [(PER_SEGMENT + 4, event(2))]
    reader.close()
    again.close()


def test_with_another_size_of_segments_nothing_is_written_behind_a_readers_back(tmp_path: Path) -> None:
    for size in (1, 2, 1):
        writer = JournalWriter(tmp_path / "w", SMALL.model_copy(update={"segment_mb": size}))
        writer.append(event(size))
        writer.close()
    reader = JournalReader(tmp_path / "w")
    assert [entry.sequence for entry in reader.read()] == [1, 2, 3]
    reader.close()


def test_a_segment_that_was_cut_within_a_record_holds_no_reader_up(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    filled(writer, event(1), PER_SEGMENT + 1)
    writer.close()
    with segment.path_of(tmp_path / "w", 1).open("r+b") as file:
        file.truncate(3 * RECORD_BYTES + 100)
    reader = JournalReader(tmp_path / "w")
    assert [entry.sequence for entry in reader.read()] == [1, 2, PER_SEGMENT + 1]
    reader.close()


def test_a_disk_that_refuses_is_told_of_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system does that was remounted read-only: nothing can be made or deleted."""
    refusing = True

    def refuses(*_: object, **__: object) -> None:
        if refusing:
            raise OSError(errno.EROFS, "Read-only file system")

    make, unlink = segment.make, Path.unlink
    writer = JournalWriter(tmp_path / "w", SMALL)
    wait_until(lambda: writer._ready is not None)
    monkeypatch.setattr(Path, "unlink", lambda path, **_: (refuses(), unlink(path))[1])
    monkeypatch.setattr(segment, "make", lambda path, size: (refuses(), make(path, size))[1])
    told: list[str] = []
    filled(writer, event(1), PER_SEGMENT + 1)  # the segment that was made before
    wait_until(lambda: bool(writer._troubles))
    writer.listen(lambda name, _facts: told.append(name))
    assert told == ["disk_refuses"], "what stands is told to who listens later"
    refusing = False
    wait_until(lambda: told == ["disk_refuses", "disk_ok"])
    filled(writer, event(1), PER_SEGMENT + 1)
    writer.close()


def test_a_sync_that_failed_is_told_as_over_when_one_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    told: list[str] = []
    writer.listen(lambda name, _facts: told.append(name))
    fdatasync, failing = os.fdatasync, True

    def fails(descriptor: int) -> None:
        if failing:
            raise OSError(errno.EIO, "Input/output error")
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", fails)
    sequence = writer.append(part(1))
    wait_until(lambda: told == ["journal_sync_failed"])
    failing = False
    assert writer.wait_synced(sequence, time.monotonic_ns() + 10**10)
    wait_until(lambda: told == ["journal_sync_failed", "disk_ok"])
    writer.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], list[tuple[str, int, int]]]:
    """`disk(takes)`: what is synced of a file in which `takes` is False is refused; gives what was asked of the disk."""
    fdatasync, pwrite = os.fdatasync, os.pwrite
    monkeypatch.setattr(writer_module, "_RETRY_S", 0.01)

    def refusing(takes: Callable[[int], bool]) -> list[tuple[str, int, int]]:
        asked: list[tuple[str, int, int]] = []

        def sync(descriptor: int) -> None:
            if not takes(os.fstat(descriptor).st_ino):
                raise OSError(errno.EIO, "Input/output error")
            asked.append(("sync", os.fstat(descriptor).st_ino, 0))
            fdatasync(descriptor)

        def write(descriptor: int, data: bytes, place: int) -> int:
            asked.append(("write", os.fstat(descriptor).st_ino, place + len(data)))
            return pwrite(descriptor, data, place)

        monkeypatch.setattr(os, "fdatasync", sync)
        monkeypatch.setattr(os, "pwrite", write)
        return asked

    return refusing


def inode(writer: JournalWriter, number: int) -> int:
    return segment.path_of(writer.folder, number).stat().st_ino


def test_what_a_disk_refused_once_is_written_anew(tmp_path: Path, disk: Any) -> None:
    """Linux tells of a failed write once, and the next fdatasync of the same pages finds nothing to do."""
    writer = JournalWriter(tmp_path / "w", SMALL)
    failing = True
    asked = disk(lambda _file: not failing)
    told: list[str] = []
    writer.listen(lambda name, _facts: told.append(name))
    sequence = [writer.append(part(number)) for number in range(1, 11)][-1]
    wait_until(lambda: told == ["journal_sync_failed"])
    failing = False
    assert writer.wait_synced(sequence, time.monotonic_ns() + 10**10)
    first = inode(writer, 1)
    done = asked.index(("sync", first, 0))
    assert ("write", first, 11 * RECORD_BYTES) in asked[:done], "head and records, before they are synced"
    wait_until(lambda: told == ["journal_sync_failed", "disk_ok"])
    writer.close()
    reader = JournalReader(tmp_path / "w")
    assert [entry.sequence for entry in reader.read(10_000)] == list(range(1, sequence + 1))
    reader.close()


def test_a_segment_that_the_disk_never_takes_holds_up_none_after_it(tmp_path: Path, disk: Any) -> None:
    """One block of a worn-out card: what lies there cannot be saved, what comes after can."""
    writer = JournalWriter(tmp_path / "w", SMALL)
    wait_until(lambda: writer._ready is not None)
    bad = inode(writer, 1)
    disk(lambda file: file != bad)
    first = writer.append(part(1))
    assert not writer.wait_synced(first, time.monotonic_ns() + 10**7)
    wait_until(lambda: writer._offset == writer._size)  # it goes on in the next segment
    second = writer.append(part(2))
    assert writer._number == 2
    assert writer.wait_synced(second, time.monotonic_ns() + 10**10)
    filled(writer, event(1), 2 * PER_SEGMENT)
    assert writer.wait_synced(writer.sequence, time.monotonic_ns() + 10**10)
    writer.close()
    reader = JournalReader(tmp_path / "w")
    found = [entry.sequence for _ in range(5) for entry in reader.read(10_000)]
    reader.close()
    assert found == list(range(1, writer.sequence + 1))


def test_a_disk_that_takes_nothing_any_more_keeps_the_line_in_the_segment_it_has(tmp_path: Path, disk: Any) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    wait_until(lambda: writer._ready is not None)
    asked = disk(lambda _file: False)
    for number in range(1, 20):
        writer.append(part(number))
        time.sleep(0.02)
    assert writer.sequence == 19
    assert writer._number == 2, "the one that was made ready, and no further"
    assert "sync" not in {what for what, *_ in asked}
    writer.close()


def test_a_disk_that_takes_nothing_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "w").touch()
    with pytest.raises(JournalError, match=r"/w: .* the journal cannot be written"):
        JournalWriter(tmp_path / "w", SMALL)


def test_a_segment_that_cannot_be_opened_refuses_the_record_and_the_next_one_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path / "w", SMALL)
    filled(writer, event(1), PER_SEGMENT)
    wait_until(lambda: writer._ready is not None)

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        with pytest.raises(JournalError, match="Too many open files"):
            writer.append(event(2))
    assert writer.append(event(3)) == PER_SEGMENT + 1
    writer.close()


@pytest.mark.parametrize(
    "body",
    [
        Event(name="part_accounting", facts={"part_id": "\udcff"}),
        AlertChange(
            id="top.plc.lost",
            active=True,
            priority="high",
            ne107=Ne107.FAILURE,
            text="no file '/mnt/\udcff'",
            action="",
        ),
    ],
)
def test_a_text_that_is_no_unicode_is_no_reason_to_refuse_a_record(body: Event | AlertChange) -> None:
    """A file name or a peer's string, decoded as Python does it."""
    assert decode(encode(body, sequence=1, wall_ns=0, mono_ns=0), writer="w").sequence == 1


def test_a_segment_is_empty_when_it_is_begun_whatever_a_power_cut_left_in_it(tmp_path: Path) -> None:
    """Of what was not synced the disk may have some: records of a segment whose header it has not."""
    writer = JournalWriter(tmp_path / "w", SMALL)
    writer.append(event(1))
    wait_until(lambda: writer._ready is not None)
    writer.close()
    stale = encode(event(77), sequence=PER_SEGMENT + 2, wall_ns=0, mono_ns=0)
    with segment.path_of(tmp_path / "w", 2).open("r+b") as file:
        file.seek(2 * RECORD_BYTES)
        file.write(stale)
    again = JournalWriter(tmp_path / "w", SMALL)
    filled(again, event(2), PER_SEGMENT)
    reader = JournalReader(tmp_path / "w")
    entries = []
    while some := reader.read():
        entries += some
    reader.close()
    again.close()
    assert [entry.sequence for entry in entries] == list(range(1, PER_SEGMENT + 2))
    assert event(77) not in [entry.body for entry in entries]


def test_a_segments_name_is_on_the_disk_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut in the next seconds takes the file, with records that were synced."""
    synced: list[tuple[str, bool]] = []
    fsync, path = os.fsync, segment.path_of(tmp_path, 1)

    def watched(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    segment.make(path, 1 << 20)
    assert synced[-1] == (str(tmp_path), True)
