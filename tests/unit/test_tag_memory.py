"""What is remembered of an OPC UA server, and when that counts as taken away."""

from pathlib import Path

import pytest

from edgeqc.tags.memory import FOLDER, Memory, memory_path

TAGS = [("heat", "ns=2;s=heat")]


def loaded(state_dir: Path) -> Memory:
    return Memory.load(state_dir, "press", TAGS)


def test_a_memory_that_could_not_be_written_was_not_taken_away(tmp_path: Path):
    (tmp_path / FOLDER).write_text("no folder")
    memory = loaded(tmp_path)
    memory.kinds["heat"] = "Double"
    with pytest.raises(OSError, match="exists"):
        memory.save()
    assert not memory.forgotten


def test_a_memory_that_was_not_written_yet_was_not_taken_away(tmp_path: Path):
    assert not loaded(tmp_path).forgotten


@pytest.mark.parametrize("damaged", [False, True])
def test_who_removes_the_file_takes_the_memory_away(tmp_path: Path, damaged: bool):
    memory = loaded(tmp_path)
    memory.kinds["heat"] = "Double"
    memory.save()
    path = memory_path(tmp_path, "press")
    if damaged:
        path.write_text("{")
    again = loaded(tmp_path)
    assert again.kinds == ({} if damaged else {"heat": "Double"})
    assert not memory.forgotten
    assert not again.forgotten
    path.unlink()
    assert memory.forgotten
    assert again.forgotten
