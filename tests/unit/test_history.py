from __future__ import annotations

import csv
import errno
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqc.core.align import Mark, Samples
from edgeqc.history import History, HistoryWriter, export, writer
from edgeqc.history.block import DamagedHistoryError, Tag, decode_block, encode_block
from edgeqc.history.writer import segments

S = 1_000_000_000
TAGS = [Tag(name="heat", unit="degC"), Tag(name="flow", unit="l/min"), Tag(name="speed", unit="")]


def recorder(folder: Path, *, run: str = "a", mb: float = 64, **fields) -> HistoryWriter:
    return HistoryWriter(folder, TAGS, run=run, **{"mb": mb, "days": 30, "keep_free_mb": 0, **fields})


def samples(*told: tuple[int, int, float] | tuple[int, int, float, Mark]) -> Samples:
    """Each: place, monotonic ns, value, mark."""
    return Samples(
        np.array([each[0] for each in told], np.int32),
        np.array([each[1] for each in told], np.int64),
        np.array([each[2] for each in told], np.float64),
        np.array([each[3] if len(each) > 3 else Mark.GOOD for each in told], np.uint8),
    )


def add(history: HistoryWriter, told: Samples) -> None:
    history.add(told, np.zeros(len(told.places), np.int64))
    history.flush()


def read(folder: Path, *tags: str) -> list[tuple[str, float, int]]:
    found = History(folder, list(tags) or None)
    return [
        (found.tags[place].name, value, mark)
        for chunk in found.chunks()
        for place, value, mark in zip(
            chunk.samples.places.tolist(), chunk.samples.values.tolist(), chunk.samples.marks.tolist(), strict=True
        )
        if mark != Mark.GAP and not chunk.standing
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 65_535),
            st.integers(0, 2**61),
            st.floats(allow_nan=True, allow_infinity=False),
            st.sampled_from(list(Mark)),
            st.integers(0, 2**61),
        ),
        min_size=1,
        max_size=200,
    )
)
def test_what_was_written_is_read(told):
    before = samples(*[each[:4] for each in told])
    stamps = np.array([each[4] for each in told], np.int64)
    after, stamps_after = decode_block(encode_block(before, stamps), 0)
    order = np.argsort(before.places, kind="stable")
    for column_before, column_after in zip((*before, stamps), (*after, stamps_after), strict=True):
        np.testing.assert_array_equal(column_before[order], column_after)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_is_noticed_and_nothing_else_happens(at: int, flip: int):
    index = np.arange(100)
    block = bytearray(
        encode_block(samples(*[(i % 3, i * S, float(i)) for i in index.tolist()]), np.zeros(100, np.int64))
    )
    at %= len(block)
    if flip == 0:
        decode_block(bytes(block), 0)
        return
    block[at] ^= flip
    with pytest.raises(DamagedHistoryError):
        decode_block(bytes(block), 0)


def test_samples_lie_in_the_ring_by_our_utc(tmp_path: Path):
    history = recorder(tmp_path)
    add(history, samples((1, time.monotonic_ns(), 5.0)))
    history.close()
    (chunk, *gap) = list(History(tmp_path).chunks())
    assert abs(chunk.first_ns - time.time_ns()) < 60 * S
    assert {int(mark) for each in gap for mark in each.samples.marks} == {Mark.GAP}  # nothing is known after the end
    assert read(tmp_path) == [("flow", 5.0, Mark.GOOD)]


def test_some_tags_in_the_order_asked_and_unknown_ones_are_told(tmp_path: Path):
    history = recorder(tmp_path)
    add(history, samples((0, S, 1.0), (1, S, 2.0), (2, S, 3.0)))
    history.close()
    assert [tag.name for tag in History(tmp_path, ["speed", "heat"]).tags] == ["speed", "heat"]
    assert read(tmp_path, "speed", "heat") == [("heat", 1.0, Mark.GOOD), ("speed", 3.0, Mark.GOOD)]
    with pytest.raises(KeyError, match="noise"):
        History(tmp_path, ["noise"])


def test_the_ring_keeps_its_budget_and_lets_the_oldest_go(tmp_path: Path):
    history = recorder(tmp_path, mb=1)
    noise = np.random.default_rng(7)
    for number in range(80):
        told = Samples(
            np.zeros(5000, np.int32),
            np.arange(5000, dtype=np.int64) * S + number,
            noise.random(5000),
            np.full(5000, Mark.GOOD, np.uint8),
        )
        add(history, told)
        assert sum(path.stat().st_size for path in segments(tmp_path)) <= 1 << 20
    history.close()
    assert history.lost == 0
    assert history.written_bytes > 2 << 20
    left = sum(len(chunk.samples.places) for chunk in History(tmp_path).chunks())
    assert 0.6 * (1 << 20) < left * history.written_bytes / history.written <= 1 << 20


def test_what_is_older_than_its_days_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    monkeypatch.setattr(time, "time", lambda: now_ns / S)
    monkeypatch.setattr(time, "monotonic", lambda: now_ns / S)
    history = recorder(tmp_path, days=1)
    add(history, samples((0, S, 1.0)))
    now_ns += 86_400 * S
    add(history, samples((0, S, 2.0)))  # the file is full after an hour: a new one
    assert len(segments(tmp_path)) == 2
    now_ns += 2 * 3600 * S
    add(history, samples((0, S, 3.0)))
    assert [value for _, value, _ in read(tmp_path)] == [2.0, 3.0]
    history.close()


def test_a_clock_that_is_set_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now_s = time.time()
    history = recorder(tmp_path, days=1)
    add(history, samples((0, S, 1.0)))
    monkeypatch.setattr(time, "time", lambda: now_s + 400 * 86_400)
    monkeypatch.setattr(time, "time_ns", lambda: int((now_s + 400 * 86_400) * S))
    for value in (2.0, 3.0):
        add(history, samples((0, S, value)))
    history.close()
    assert [value for _, value, _ in read(tmp_path)] == [1.0, 2.0, 3.0]


def fill(history: HistoryWriter, seed: int, times: int) -> list[float]:
    """More than one file a few times; the value that each block ends with."""
    noise = np.random.default_rng(seed)
    ends: list[float] = []
    for _ in range(times):
        values = noise.random(5000)
        ends.append(float(values[-1]))
        add(history, Samples(np.zeros(5000, np.int32), np.arange(5000) * S, values, np.full(5000, Mark.GOOD, np.uint8)))
    return ends


@pytest.mark.parametrize("restarted", [True, False])
def test_what_was_named_in_the_future_goes_before_what_is_written_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
):
    """The clock was a year ahead when the ring was filled, then it was set right, with or without a restart."""
    ahead_s = 365 * 86_400
    wall_s, wall_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: wall_s() + ahead_s)
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + ahead_s * S)
    history = recorder(tmp_path, mb=1)
    before = fill(history, 1, 40)
    if restarted:
        history.close()
    monkeypatch.setattr(time, "time", wall_s)
    monkeypatch.setattr(time, "time_ns", wall_ns)
    if restarted:
        history = recorder(tmp_path, mb=1)
    after = fill(history, 2, 15)
    history.close()
    left = {value for _, value, _ in read(tmp_path)}
    assert left.issuperset(after)
    assert not left.issuperset(before)
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= 1 << 20


def test_a_clock_set_back_a_little_costs_the_oldest_and_not_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    history = recorder(tmp_path, mb=1)
    before = fill(history, 1, 20)
    wall_s, wall_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: wall_s() - 1800)
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() - 1800 * S)
    after = fill(history, 2, 20)
    history.close()
    left = {value for _, value, _ in read(tmp_path)}
    kept = [end in left for end in before + after]
    assert kept == sorted(kept)
    assert not kept[0]
    assert kept[20]


def test_what_is_older_than_its_days_goes_though_there_are_files_from_the_future(tmp_path: Path):
    tmp_path.joinpath(f"{time.time_ns() + 86_400 * S:020d}.tags").write_bytes(b"x")
    old = tmp_path / f"{time.time_ns() - 3 * 86_400 * S:020d}.tags"
    old.write_bytes(b"x")
    history = recorder(tmp_path, days=1)
    add(history, samples((0, S, 1.0)))
    assert not old.exists()
    assert len(segments(tmp_path)) == 2
    history.close()


def test_a_full_disk_loses_history_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    history = recorder(tmp_path)
    add(history, samples((0, S, 1.0)))
    whole = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) > 20:
            return whole(file, data[:20])  # as a disk does that has a little room left
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    for _ in range(3):
        add(history, samples((0, 2 * S, 2.0)))
        monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert history.trouble == os.strerror(errno.ENOSPC)
    assert history.lost == 3
    monkeypatch.setattr(os, "write", whole)
    add(history, samples((0, 3 * S, 3.0)))
    assert history.trouble == ""
    history.close()
    found = History(tmp_path)
    assert [value for _, value, _ in read(tmp_path)] == [1.0, 3.0]
    list(found.chunks())
    assert found.damaged == 0  # the half-written block left no trace


def test_the_history_gives_way_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    history = recorder(tmp_path, keep_free_mb=100)
    for number in range(3):
        add(history, samples((0, S, float(number))))
        history._opened_s = 0  # each block in a file of its own
    assert len(segments(tmp_path)) == 3
    usage = type("Usage", (), {"free": 50 << 20})
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    add(history, samples((0, S, 9.0)))
    assert "less than 100 MB are free" in history.trouble
    assert history.lost == 1
    assert len(segments(tmp_path)) == 1  # all that it could give back
    usage.free = 200 << 20
    add(history, samples((0, S, 10.0)))
    assert history.trouble == ""
    history.close()


def test_a_disk_that_hangs_costs_samples_and_not_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "PENDING_SAMPLES", 10)
    history = recorder(tmp_path)
    for number in range(25):
        history.add(samples((0, number * S, float(number))), np.zeros(1, np.int64))
    assert history.lost == 15
    history.close()


def test_damage_in_the_middle_costs_that_block(tmp_path: Path):
    history = recorder(tmp_path)
    sizes = []
    for number in range(5):
        add(history, samples((0, S, float(number))))
        sizes.append(segments(tmp_path)[0].stat().st_size)
    history.close()
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    data[sizes[1] + 40] ^= 0xFF  # in the third
    path.write_bytes(data)
    assert [value for _, value, _ in read(tmp_path)] == [0.0, 1.0, 3.0, 4.0]
    found = History(tmp_path)
    list(found.chunks())
    assert found.damaged == 1


def test_a_killed_writer_leaves_all_but_the_last_block(tmp_path: Path):
    history = recorder(tmp_path)
    for number in range(3):
        add(history, samples((0, S, float(number))))
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    assert [value for _, value, _ in read(tmp_path)] == [0.0, 1.0]
    (tmp_path / "00000000000000000001.tags").write_bytes(b"nonsense")
    assert [value for _, value, _ in read(tmp_path)] == [0.0, 1.0]
    history.close()


def test_it_writes_by_itself_and_ends_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "FLUSH_S", 0.05)
    history = recorder(tmp_path)
    history.start()
    history.add(samples((0, time.monotonic_ns(), 1.0)), np.zeros(1, np.int64))
    end = time.monotonic() + 20
    while not history.written:
        assert time.monotonic() < end
        time.sleep(0.01)  # polls the writer's thread
    history.add(samples((0, time.monotonic_ns(), 2.0)), np.zeros(1, np.int64))
    history.close()
    assert [value for _, value, _ in read(tmp_path)] == [1.0, 2.0]


def test_the_grid_of_a_recording_marks_what_was_not_recorded(tmp_path: Path):
    base = time.monotonic_ns() // S * S
    first = recorder(tmp_path, run="a")
    add(first, samples(*[(0, base + second * S, float(second)) for second in range(10)]))
    first._close_segment()  # killed: it says nothing of its end
    second = recorder(tmp_path, run="b")
    add(second, samples(*[(0, base + second * S, float(second)) for second in range(30, 40)]))
    second.close()
    rows = list(History(tmp_path, ["heat", "flow"]).rows(S))
    values = [row.values[0] for row in rows]
    known = [not np.isnan(value) for value in values]
    assert len(rows) >= 39
    assert known[:9] == [True] * 9
    assert not any(known[11:29])
    assert all(known[31:39])
    assert all(np.isnan(row.values[1]) for row in rows)


def ahead_ns() -> int:
    return time.time_ns() - time.monotonic_ns()


def told(chunks) -> list[tuple[bool, int, float]]:
    """Each sample: is it standing, its tag's place, its value."""
    return [
        (chunk.standing, place, value)
        for chunk in chunks
        for place, value in zip(chunk.samples.places.tolist(), chunk.samples.values.tolist(), strict=True)
    ]


def new_file(history: HistoryWriter) -> None:
    history._opened_s -= 3601
    time.sleep(0.001)


def test_a_tag_that_does_not_change_is_known_from_the_first_row_on(tmp_path: Path):
    history = recorder(tmp_path)
    now_ns = time.monotonic_ns()
    add(history, samples((0, now_ns - 60 * S, 7.0), (1, now_ns - 60 * S, 1.0)))
    add(history, samples((1, now_ns - 20 * S, 2.0)))
    new_file(history)
    add(history, samples((1, now_ns - 5 * S, 3.0)))
    new_file(history)
    add(history, samples((1, now_ns, 4.0)))
    since_ns = now_ns - 10 * S + ahead_ns()
    found = History(tmp_path, ["heat", "flow"])
    assert told(found.chunks(since_ns)) == [(True, 0, 7.0), (True, 1, 2.0), (False, 1, 3.0), (False, 1, 4.0)]
    rows = list(found.rows(S, since_ns))
    assert [row.values.tolist() for row in rows][:5] == [[7.0, 2.0]] * 5
    assert 10 <= len(rows) <= 11
    assert [row.values[0] for row in History(tmp_path, ["heat"]).rows(S, since_ns)] == [7.0] * len(rows)
    history.close()


def test_what_the_ring_has_dropped_stands_in_what_is_left(tmp_path: Path):
    history = recorder(tmp_path)
    now_ns = time.monotonic_ns()
    add(history, samples((0, now_ns - 9 * S, 7.0), (1, now_ns - 9 * S, 1.0), (2, now_ns - 9 * S, 0.0, Mark.BAD)))
    new_file(history)
    add(history, samples((1, now_ns - 2 * S, 2.0)))
    first, second = segments(tmp_path)
    assert [kind for kind, *_ in told(History(tmp_path).chunks())] == [False] * 4  # each once while all is there
    first.unlink()
    found = History(tmp_path, ["heat", "flow", "speed"])
    assert told(found.chunks()) == [(True, 0, 7.0), (True, 1, 1.0), (True, 2, 0.0), (False, 1, 2.0)]
    assert next(chunk.samples.marks.tolist() for chunk in found.chunks()) == [Mark.GOOD, Mark.GOOD, Mark.BAD]
    text = io.StringIO()
    export.samples_to_csv(found.chunks(), found.tags, text)
    times = [line.split(",")[0] for line in text.getvalue().splitlines()[1:]]
    assert times == sorted(times)
    second.write_bytes(second.read_bytes()[:-1])  # a killed writer
    assert told(History(tmp_path).chunks()) == []  # nothing says how long it stood
    history.close()


def test_the_grid_ends_where_it_was_asked_to_and_not_where_damage_says(tmp_path: Path):
    history = recorder(tmp_path)
    now_ns = time.monotonic_ns()
    add(history, samples((0, now_ns - 60 * S, 7.0), (1, now_ns - 60 * S, 1.0)))
    add(history, samples((1, now_ns - 50 * S, 2.0)))
    add(history, samples((1, now_ns - 5 * S, 3.0)))
    since_ns, until_ns = (now_ns - before * S + ahead_ns() for before in (40, 20))
    found = History(tmp_path, ["heat", "flow"])
    rows = list(found.rows(S, since_ns, until_ns))  # nothing changed in that time, and it is known
    assert [row.values.tolist() for row in rows] == [[7.0, 2.0]] * len(rows)
    assert 19 <= len(rows) <= 21
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    last = data.rindex(b"QBLK")
    data[last + 31] ^= 0x20  # the last block says that it goes on for centuries
    path.write_bytes(data)
    found = History(tmp_path, ["heat", "flow"])
    assert 10 <= len(list(found.rows(S))) <= 12
    assert found.damaged == 1
    history.close()


def test_nothing_stands_over_the_time_between_two_runs(tmp_path: Path):
    now_ns = time.monotonic_ns()
    killed = recorder(tmp_path, run="a")
    add(killed, samples((0, now_ns - 60 * S, 7.0)))
    killed._close_segment()
    path = segments(tmp_path)[0]
    path.rename(path.with_name(f"{now_ns - 60 * S + ahead_ns():020d}.tags"))
    after = recorder(tmp_path, run="b")
    add(after, samples((1, now_ns - 5 * S, 1.0)))
    found = History(tmp_path, ["heat", "flow"])
    since_ns = now_ns - 30 * S + ahead_ns()
    assert told(found.chunks(since_ns)) == [(False, 1, 1.0)]
    assert all(np.isnan(row.values[0]) for row in found.rows(S, since_ns))
    assert [row.values[0] for row in found.rows(S)][-1:] != [7.0]  # nor does it stand on in the next run
    after.close()


def test_samples_are_exported_as_they_came(tmp_path: Path):
    history = recorder(tmp_path)
    stamp = 1_790_000_000_250_000_000
    history.add(samples((0, 2 * S, 1.5), (1, S, np.nan, Mark.BAD)), np.array([stamp, 0], np.int64))
    history.flush()
    found, text = History(tmp_path), io.StringIO()
    assert export.samples_to_csv(found.chunks(), found.tags, text) == 2
    history.close()
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert [(row["tag"], row["value"], row["quality"], row["unit"]) for row in rows] == [
        ("flow", "", "bad", "l/min"),
        ("heat", "1.5", "good", "degC"),
    ]
    assert rows[1]["source_time"].endswith("20.250000Z")
    assert rows[0]["source_time"] == ""


def test_an_export_on_a_grid_can_be_played_again(tmp_path: Path):
    history = recorder(tmp_path)
    base = time.monotonic_ns() // S * S
    add(history, samples(*[(0, base + second * S, float(second)) for second in range(5)]))
    history.close()
    found, text = History(tmp_path, ["heat"]), io.StringIO()
    assert export.rows_to_csv(found.rows(S), found.tags, text) >= 4
    header, *rows = text.getvalue().splitlines()
    assert header == "t,heat"
    # the grid may begin a row before the first sample: nothing is known there
    moment, value = next(row for row in rows if not row.endswith(",")).split(",")
    assert float(value) in {0.0, 1.0}
    assert abs(float(moment) - time.time()) < 120


def test_parquet_has_the_same(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    history = recorder(tmp_path / "ring")
    base = time.monotonic_ns() // S * S
    add(history, samples(*[(0, base + second * S, float(second)) for second in range(5)], (1, base, np.nan, Mark.BAD)))
    history.close()
    found = History(tmp_path / "ring", ["heat", "flow"])
    count = export.samples_to_parquet(found.chunks(), found.tags, tmp_path / "long.parquet")
    long = parquet.read_table(tmp_path / "long.parquet")
    assert long.num_rows == count == 6 + 2  # and a gap of each at the end
    assert long["tag"].to_pylist()[:2] == ["heat", "heat"]
    assert long["value"].null_count == 3
    assert set(long["quality"].to_pylist()) == {"good", "bad", "gap"}
    count = export.rows_to_parquet(found.rows(S), found.tags, tmp_path / "wide.parquet")
    wide = parquet.read_table(tmp_path / "wide.parquet")
    assert wide.num_rows == count
    assert wide.column_names == ["t", "heat", "flow"]
    assert wide["flow"].null_count == count


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path: Path):
    path = tmp_path / "out.csv"

    def fail() -> None:
        with export.whole_file(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
