from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from edgeqc.records import Quality
from edgeqc.settings import ReplayTagSource
from edgeqc.sim.tagsink import TagRecorder
from edgeqc.tags import open_source


async def replay(path: Path, tags: list[str], condition: Callable[[TagRecorder], bool], **fields) -> TagRecorder:
    """Play the file until the condition holds."""
    sink = TagRecorder(tags, keep=True)
    settings = ReplayTagSource.model_validate(
        {"name": "file", "type": "replay", "file": path, "tags": [{"name": tag} for tag in tags], **fields}
    )
    task = asyncio.create_task(open_source(settings, sink=sink, state_dir=path.parent).run())
    end = time.monotonic() + 20
    while not condition(sink):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)  # polls the condition
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return sink


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tags.csv"
    path.write_text(text)
    return path


async def test_rows_come_in_order_and_the_file_starts_again(tmp_path: Path):
    path = written(tmp_path, "t,heat,flow\n0,1,10\n0.01,2,20\n0.02,3,30\n")
    sink = await replay(path, ["heat", "flow"], lambda sink: len(sink.told) >= 8)
    assert [(value.name, value.value) for value in sink.told[:8]] == [
        ("heat", 1),
        ("flow", 10),
        ("heat", 2),
        ("flow", 20),
        ("heat", 3),
        ("flow", 30),
        ("heat", 1),
        ("flow", 10),
    ]
    assert {value.quality for value in sink.told} == {Quality.GOOD}
    assert sink.reasons == []


async def test_speed_divides_the_time(tmp_path: Path):
    path = written(tmp_path, "t,heat\n100,1\n200,2\n")
    began = time.monotonic()
    await replay(path, ["heat"], lambda sink: len(sink.told) >= 2, speed=500)
    assert 0.2 <= time.monotonic() - began < 10


async def test_an_empty_cell_is_no_update_and_text_is_bad(tmp_path: Path):
    path = written(tmp_path, "t,heat,flow\n0,,10\n0.01,broken,20\n")
    sink = await replay(path, ["heat", "flow"], lambda sink: len(sink.told) >= 3)
    assert [(value.name, value.quality) for value in sink.told[:3]] == [
        ("flow", Quality.GOOD),
        ("heat", Quality.BAD),
        ("flow", Quality.GOOD),
    ]


async def test_a_tag_without_a_column_is_bad_and_the_others_go_on(tmp_path: Path):
    path = written(tmp_path, "t,heat\n0,1\n")
    sink = await replay(path, ["heat", "flow"], lambda sink: len(sink.told) >= 2)
    assert {value.name: value.quality for value in sink.told} == {"heat": Quality.GOOD, "flow": Quality.BAD}


async def test_rare_rows_are_not_a_dead_source(tmp_path: Path):
    path = written(tmp_path, "t,heat\n0,1\n100,2\n")
    sink = await replay(path, ["heat"], lambda sink: sink.signs >= 5, stale_ms=60)
    assert len(sink.told) == 1


async def test_a_missing_or_empty_or_timeless_file_is_told(tmp_path: Path):
    sink = await replay(tmp_path / "none.csv", ["heat"], lambda sink: bool(sink.reasons))
    assert "No such file" in sink.reasons[0]
    sink = await replay(written(tmp_path, ""), ["heat"], lambda sink: bool(sink.reasons))
    assert "is empty" in sink.reasons[0]
    sink = await replay(written(tmp_path, "t,heat\n"), ["heat"], lambda sink: bool(sink.reasons))
    assert "no rows" in sink.reasons[0]
    sink = await replay(written(tmp_path, "t,heat\nnoon,1\n"), ["heat"], lambda sink: bool(sink.reasons))
    assert "row 2 has no time" in sink.reasons[0]
