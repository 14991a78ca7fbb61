from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeqc.errors import EdgeqcError
from edgeqc.records import NS_PER_MS, NS_PER_S, Quality
from edgeqc.settings import ReplayTagSource
from edgeqc.shm.tagtable import TagTable, summarise


def source(name: str, *tags: str, stale_ms: float = 1000) -> ReplayTagSource:
    return ReplayTagSource.model_validate(
        {
            "name": name,
            "type": "replay",
            "file": "x.csv",
            "stale_ms": stale_ms,
            "tags": [{"name": tag} for tag in tags],
        }
    )


@pytest.fixture
def table(tmp_path: Path):
    made = TagTable.create(tmp_path / "tags", [source("press", "force", "speed"), source("oven", "heat")])
    yield made
    made.close()


def test_a_reader_sees_what_the_writer_wrote(table: TagTable, tmp_path: Path):
    now = 5 * NS_PER_S
    table.write_alive(1, now)
    table.write(2, 71.25, Quality.UNCERTAIN, 1234.5, now - 7)
    reader = TagTable.attach(tmp_path / "tags")
    value = reader.read(reader.index("heat"), now)
    assert (value.name, value.value, value.quality) == ("heat", 71.25, Quality.UNCERTAIN)
    assert (value.source_ts, value.received_ns) == (1234.5, now - 7)
    assert reader.names == ("force", "speed", "heat")
    assert reader.ranges == (range(2), range(2, 3))
    reader.close()


def test_a_tag_is_bad_until_its_first_value(table: TagTable):
    value = table.read(0, 0)
    assert value.quality is Quality.BAD
    assert math.isnan(value.value)
    assert value.received_ns == 0


def test_an_unknown_tag_has_no_index(table: TagTable):
    with pytest.raises(KeyError):
        table.index("nope")


def test_nothing_is_good_once_its_source_is_silent(table: TagTable):
    table.write(0, 1.0, Quality.GOOD, 0.0, NS_PER_S)
    table.write_alive(0, NS_PER_S)
    assert table.read(0, 2 * NS_PER_S).quality is Quality.GOOD
    assert table.read(0, 2 * NS_PER_S + 1).quality is Quality.BAD


def test_a_value_that_never_changes_stays_good_while_its_source_lives(table: TagTable):
    table.write(0, 1.0, Quality.GOOD, 0.0, NS_PER_S)
    table.write_alive(0, 3600 * NS_PER_S)
    assert table.read(0, 3600 * NS_PER_S + 500 * NS_PER_MS).quality is Quality.GOOD


def test_the_life_of_one_source_says_nothing_of_another(table: TagTable):
    table.write(2, 1.0, Quality.GOOD, 0.0, NS_PER_S)
    table.write_alive(0, NS_PER_S)
    assert table.read(2, 2 * NS_PER_S).quality is Quality.BAD


def test_an_entry_whose_writer_died_half_way_is_bad(table: TagTable):
    table.write_alive(0, NS_PER_S)
    table.write(1, 2.0, Quality.GOOD, 0.0, NS_PER_S)
    at = table.block.size - 2 * 64 + 1  # a byte of the value of tag 1, of 3
    assert table.read(1, NS_PER_S).quality is Quality.GOOD
    table.block.memory[at] ^= 0xFF
    assert table.read(1, NS_PER_S).quality is Quality.BAD
    table.write(1, 3.0, Quality.GOOD, 0.0, NS_PER_S)
    assert table.read(1, NS_PER_S).value == 3.0


def test_a_restarted_writer_starts_all_bad_and_old_readers_go_on(table: TagTable, tmp_path: Path):
    reader = TagTable.attach(tmp_path / "tags")
    table.write_alive(2 - 1, NS_PER_S)
    table.write(2, 1.0, Quality.GOOD, 0.0, NS_PER_S)
    again = TagTable.create(tmp_path / "tags", [source("press", "force", "speed"), source("oven", "heat")])
    assert reader.read(2, NS_PER_S).quality is Quality.BAD
    again.write_alive(1, NS_PER_S)
    again.write(2, 9.0, Quality.GOOD, 0.0, NS_PER_S)
    assert reader.read(2, NS_PER_S).value == 9.0
    again.close()
    reader.close()


def test_a_foreign_file_is_refused(tmp_path: Path):
    (tmp_path / "tags").write_bytes(b"x" * 8192)
    with pytest.raises(EdgeqcError, match="not a tag table"):
        TagTable.attach(tmp_path / "tags")


def test_a_table_without_sources_is_possible(tmp_path: Path):
    empty = TagTable.create(tmp_path / "tags", [])
    assert summarise(empty, 0) == {}
    empty.close()


def test_the_longest_names_and_reasons_fit(tmp_path: Path):
    long = "a" * 31
    table = TagTable.create(tmp_path / "tags", [source(long, long)])
    table.write_source(0, up=False, changed_ns=1, updates_hz=0.5, losses=3, reason="ü" * 500)
    assert table.index(long) == 0
    state = table.source(0)
    assert (state.name, state.up, state.changed_ns, state.updates_hz, state.losses) == (long, False, 1, 0.5, 3)
    assert state.reason == "ü" * 60
    table.close()


def test_health_tells_counts_ages_and_why(table: TagTable):
    now = 10 * NS_PER_S
    table.write_alive(0, now - 100 * NS_PER_MS)
    table.write_source(0, up=True, changed_ns=1, updates_hz=20.0, losses=1, reason="")
    table.write(0, 1.0, Quality.GOOD, 0.0, now - 300 * NS_PER_MS)
    table.write(1, 1.0, Quality.UNCERTAIN, 0.0, now - 100 * NS_PER_MS)
    table.write_source(1, up=False, changed_ns=1, updates_hz=0.0, losses=2, reason="no answer")
    health = summarise(table, now)
    assert health["tags.press"] == {
        "ne107": "out_of_specification",
        "connected": True,
        "good": 1,
        "uncertain": 1,
        "bad": 0,
        "updates_hz": 20.0,
        "silent_ms": 100,
        "oldest_ms": 300,
        "losses": 1,
    }
    assert health["tags.oven"]["ne107"] == "failure"
    assert health["tags.oven"]["bad"] == 1
    assert health["tags.oven"]["reason"] == "no answer"


def test_health_says_when_the_watch_process_is_gone(table: TagTable):
    table.write_alive(0, NS_PER_S)
    table.write_source(0, up=True, changed_ns=1, updates_hz=20.0, losses=0, reason="")
    health = summarise(table, 60 * NS_PER_S)
    assert health["tags.press"]["connected"] is False
    assert health["tags.press"]["reason"] == "the watch process is silent"


WRITER = """
import os, sys
from pathlib import Path
from edgeqc.records import Quality
from edgeqc.shm.tagtable import TagTable
from edgeqc.shm.block import Block
table = TagTable(Block(Path(sys.argv[1])))
print("READY", flush=True)
n = 0
while os.getppid() == int(sys.argv[2]):
    n += 1
    table.write(0, float(n), Quality(n % 3), float(n), n)
"""
"""Writes until it is killed, or nobody is there to kill it."""


def test_no_reader_sees_half_of_an_entry(table: TagTable, tmp_path: Path):
    reader = TagTable.attach(tmp_path / "tags")
    command = [sys.executable, "-c", WRITER, str(tmp_path / "tags"), str(os.getpid())]
    seen, torn, until = set(), 0, time.monotonic() + 2
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            # for two seconds, and on a busy box until both have run at the same time (or this test's own time is up)
            while len(seen) <= 100 or time.monotonic() < until:
                assert writer.poll() is None
                for _ in range(100):
                    value = reader.read(0, -(1 << 62))  # so long ago that no source counts as silent
                    if value.received_ns:
                        seen.add(value.received_ns)
                        torn += (value.value, value.source_ts) != (value.received_ns, value.received_ns)
                        torn += value.quality is not Quality(value.received_ns % 3)
        finally:
            writer.kill()
    reader.close()
    assert torn == 0


def test_what_held_at_an_exposure_is_seen_a_moment_later(table: TagTable):
    ms = NS_PER_MS
    now = 2 * NS_PER_S
    table.write_alive(0, now)
    table.write(1, 1.0, Quality.GOOD, 0.0, now - 100 * ms)
    assert table.read_at(1, now - 50 * ms, now).value == 1.0
    table.write(1, 2.0, Quality.GOOD, 0.0, now - 10 * ms)
    assert table.read_at(1, now - 50 * ms, now).value == 1.0
    assert table.read_at(1, now - 10 * ms, now).value == 2.0
    assert table.read(1, now).value == 2.0


def test_a_tag_that_was_first_heard_of_after_the_exposure_is_told_as_it_is(table: TagTable):
    table.write_alive(0, NS_PER_S)
    table.write(1, 2.0, Quality.GOOD, 0.0, NS_PER_S)
    assert table.read_at(1, NS_PER_S - 5, NS_PER_S).value == 2.0
