"""What goes wrong with a tag server, from its wire to the alarm: real OPC UA, the whole watch process but for its journal."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from asyncua import ua
from asyncua.server.server import Server

from edgeqc.core.align import Mark
from edgeqc.history import History
from edgeqc.records import AlertChange, Event, Quality
from edgeqc.settings import Settings
from edgeqc.shm.tagtable import FILE_NAME, TagTable
from edgeqc.tags.memory import memory_path
from edgeqc.watch.grid import Moment
from edgeqc.watch.process import run_watch

PATIENCE_S = 40.0
PLANT = "urn:plant:press"
HEAT, FLOW = "heat", "flow"


class Plant:
    """An OPC UA server that a test can do anything to, on a thread of its own; its port stays."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.space = 0
        self.values = {HEAT: 20.0, FLOW: 5.0}
        self.fixed: dict[str, float] = {}
        self.kinds = dict.fromkeys(self.values, ua.VariantType.Double)
        self.nodes: dict[str, Any] = {}
        self._thread: threading.Thread | None = None

    def start(self, *others: str) -> Self:
        """Serve; `others` are namespaces that come before ours."""
        logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(others, ready)), name="plant", daemon=True
        )
        self._thread.start()
        assert ready.wait(PATIENCE_S)
        return self

    def stop(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)
            self._thread = None

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have something done on the server's loop."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def remove(self, name: str) -> None:
        node = self.nodes.pop(name)
        await self.server.delete_nodes([node])

    async def add(self, name: str) -> None:
        node = ua.NodeId(name, self.space)
        self.nodes[name] = await self.server.nodes.objects.add_variable(node, name, self._variant(name))

    def _variant(self, name: str) -> ua.Variant:
        kind = self.kinds[name]
        value = self.fixed.get(name, self.values[name])
        return ua.Variant(value if kind is ua.VariantType.Double else int(value), kind)

    async def _serve(self, others: tuple[str, ...], ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.server = server = Server()
        await server.init()
        server.set_endpoint(f"opc.tcp://127.0.0.1:{self.port}")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        for other in others:
            await server.register_namespace(other)
        self.space = await server.register_namespace(PLANT)
        for name in self.values:
            await self.add(name)
        async with server:
            ready.set()
            while not self._stop.is_set():
                await self._write()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 0.1)

    async def _write(self) -> None:
        for name, node in list(self.nodes.items()):
            self.values[name] += 0.5
            value = self._variant(name)
            now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
            await self.server.write_attribute_value(node.nodeid, ua.DataValue(value, SourceTimestamp=now))


class Watch:
    """The watch process on one source, in this process."""

    def __init__(self, folder: Path, port: int, *, node: str = "ns={space};s={name}", space: int = 2) -> None:
        self.folder = folder
        self.told: list[AlertChange] = []
        self.events: list[Event] = []
        self.moments: list[Moment] = []
        tags = [{"name": name, "node": node.format(space=space, name=name)} for name in (HEAT, FLOW)]
        self.settings = Settings.model_validate(
            {
                "version": 1,
                "node": "box",
                "state_dir": folder / "state",
                "run_dir": folder,
                "stations": [
                    {
                        "name": "top",
                        "takt_ms": 100,
                        "budget_ms": 50,
                        "camera": {"type": "replay", "folder": "x", "width_px": 64, "height_px": 64},
                        "recipe": {"engine": "x"},
                        "plc": {"type": "none"},
                    }
                ],
                "tags": [
                    {
                        "name": "press",
                        "type": "opcua",
                        "url": f"opc.tcp://127.0.0.1:{port}",
                        "security": "none",
                        "stale_ms": 3000,
                        "tags": tags,
                    }
                ],
                "history": {"keep_free_mb": 0},
            }
        )

    def _tell(self, body: AlertChange | Event) -> None:
        if isinstance(body, AlertChange):
            self.told.append(body)
        else:
            self.events.append(body)

    async def __aenter__(self) -> Self:
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(
            run_watch(
                self.settings,
                state_dir=self.folder / "state",
                run_dir=self.folder,
                journal=self._tell,
                beat=lambda _keeper: None,
                stop=self._stop,
                judge=self.moments.append,
            ),
            name="watch",
        )
        await self.until(lambda: (self.folder / FILE_NAME).exists() or self._task.done(), "the table")
        self.table = TagTable.attach(self.folder / FILE_NAME)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.wait_for(self._task, 20)
        self.table.close()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"not within {PATIENCE_S:g} s: {what}; told: {self.told}"
            await asyncio.sleep(0.02)  # polls the condition

    def quality(self, name: str = HEAT) -> Quality:
        return self.table.read(self.table.index(name), time.monotonic_ns()).quality

    def mark(self, name: str = HEAT) -> Mark | None:
        return Mark(self.moments[-1].row.marks[self.table.index(name)]) if self.moments else None

    async def good(self, *names: str) -> None:
        await self.until(
            lambda: {self.quality(name) for name in names or (HEAT, FLOW)} == {Quality.GOOD}, "good values"
        )

    async def raised(self, kind: str) -> AlertChange:
        await self.until(lambda: any(c.id == f"tags.press.{kind}" and c.active for c in self.told), f"alarm {kind}")
        return next(change for change in self.told if change.id == f"tags.press.{kind}" and change.active)

    async def cleared(self, kind: str) -> None:
        def last() -> bool:
            told = [change.active for change in self.told if change.id == f"tags.press.{kind}"]
            return bool(told) and not told[-1]

        await self.until(last, f"end of alarm {kind}")


def row_is_good(moment: Moment) -> bool:
    return Mark(moment.row.marks[0]) is Mark.GOOD


@pytest.fixture
def plant() -> Iterator[Plant]:
    made = Plant().start()
    yield made
    made.stop()


async def test_a_tag_that_is_taken_out_and_put_back(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgeqc.tags.subscription.RETRY_S", 1.0)
    plant.do(plant.remove(HEAT))
    async with Watch(tmp_path, plant.port) as watch:
        change = await watch.raised("refused")
        assert "heat: BadNodeIdUnknown" in change.text
        assert (watch.quality(HEAT), watch.quality(FLOW)) == (Quality.BAD, Quality.GOOD)
        assert watch.mark(HEAT) is Mark.BAD
        plant.do(plant.add(HEAT))  # the PLC's program was changed back, its server went on
        await watch.good()
        await watch.cleared("refused")


async def test_a_value_that_is_no_number_is_bad_until_it_is_one(plant: Plant, tmp_path: Path):
    async with Watch(tmp_path, plant.port) as watch:
        await watch.good()
        plant.fixed[HEAT] = math.nan
        change = await watch.raised("not_a_number")
        assert change.text.endswith(": heat")
        assert (watch.quality(HEAT), watch.quality(FLOW)) == (Quality.BAD, Quality.GOOD)
        plant.fixed[HEAT] = math.inf
        await asyncio.sleep(0.5)  # some samples
        assert watch.quality(HEAT) is Quality.BAD
        del plant.fixed[HEAT]
        await watch.good()
        await watch.cleared("not_a_number")


async def test_a_server_that_comes_back_with_other_namespaces_and_types(tmp_path: Path):
    """Tags named by number go on to mean what they meant; a value of another type is not trusted until a person does."""
    plant = Plant().start()
    assert plant.space == 2
    async with Watch(tmp_path, plant.port) as watch:
        await watch.good()
        await asyncio.to_thread(plant.stop)
        await watch.until(lambda: watch.quality() is Quality.BAD, "loss")
        plant.kinds[FLOW] = ua.VariantType.Int32
        await asyncio.to_thread(plant.start, "urn:plant:other", "urn:plant:third")
        assert plant.space == 4
        await watch.good(HEAT)
        change = await watch.raised("namespaces")
        assert PLANT in change.text
        assert "nsu=URI" in change.action
        assert "restarted at 20" in (await watch.raised("restarted")).text
        change = await watch.raised("type")
        assert "flow: Int32, was Double" in change.text
        assert "edgeqc tags accept" in change.action
        assert watch.quality(FLOW) is Quality.UNCERTAIN
        assert watch.table.read(watch.table.index(FLOW), time.monotonic_ns()).value > 5
        assert watch.mark(HEAT) is Mark.GOOD
        memory_path(tmp_path / "state", "press").unlink()  # as `edgeqc tags accept` does
        # by number they are the third's now, which has no such tags
        change = await watch.raised("refused")
        assert "BadNodeIdUnknown" in change.text
        await watch.cleared("type")
        await watch.cleared("namespaces")
    plant.stop()


async def test_a_server_of_which_nothing_can_be_kept_stays_connected(plant: Plant, tmp_path: Path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "tags").write_text("a folder cannot be made here")
    async with Watch(tmp_path, plant.port) as watch:
        await watch.good()
        await asyncio.sleep(2.5)  # it is looked once a second whether somebody has removed the file
        assert watch.quality() is Quality.GOOD
        assert watch.table.source(0).losses == 0


async def test_tags_named_by_uri_do_not_care_for_numbers(tmp_path: Path):
    plant = Plant().start("urn:plant:other")
    async with Watch(tmp_path, plant.port, node="nsu=" + PLANT + ";s={name}") as watch:
        await watch.good()
        await asyncio.to_thread(plant.stop)
        await asyncio.to_thread(plant.start, "urn:plant:third", "urn:plant:other", "urn:plant:more")
        await watch.until(lambda: watch.quality() is Quality.GOOD and watch.table.source(0).losses > 0, "values again")
        await watch.raised("restarted")
        assert not any(change.id.endswith("namespaces") for change in watch.told)
    plant.stop()


async def test_what_was_recorded_of_a_gap_is_a_gap(tmp_path: Path):
    plant = Plant().start()
    async with Watch(tmp_path, plant.port) as watch:
        await watch.good()
        await watch.until(lambda: sum(row_is_good(moment) for moment in watch.moments) > 5, "rows")
        await asyncio.to_thread(plant.stop)
        await watch.raised("lost")
        assert watch.mark() is Mark.GAP
        await asyncio.to_thread(plant.start)
        await watch.good()
        await watch.cleared("lost")
        await watch.until(lambda: watch.mark() is Mark.GOOD, "rows again")
    plant.stop()
    rows = list(History(tmp_path / "state" / "history", [HEAT]).rows(100_000_000))
    known = [not np.isnan(row.values[0]) for row in rows]
    turns = sum(left != right for left, right in itertools.pairwise(known))
    assert known[0]
    assert turns >= 2  # known, then not, then known again
    values = [float(row.values[0]) for row, is_known in zip(rows, known, strict=True) if is_known]
    assert values == sorted(values)  # as the plant counted


async def test_a_full_disk_costs_the_recording_only(plant: Plant, tmp_path: Path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "history").write_text("a file where the folder should be: nothing can be written")
    async with Watch(tmp_path, plant.port) as watch:
        await watch.good()
        await watch.until(lambda: any(change.id == "tags.history.disk" for change in watch.told), "the alarm")
        assert watch.mark() is Mark.GOOD
        (tmp_path / "state" / "history").unlink()
        await watch.until(
            lambda: [change.active for change in watch.told if change.id == "tags.history.disk"][-1] is False, "the end"
        )
