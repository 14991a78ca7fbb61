"""Threads that call into libraries and peers: one that hangs is seen, one that has nothing to do is not taken for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stationbench import Plc

from edgeqc import loading
from edgeqc.cameras import keeper as camera_keeper
from edgeqc.cameras.keeper import CameraKeeper
from edgeqc.core.restart import hung
from edgeqc.errors import PeerError
from edgeqc.jobs import jobs
from edgeqc.plc.gate import GateInputs
from edgeqc.records import NS_PER_S
from edgeqc.settings import ReplayCameraSettings
from edgeqc.settings.gate import EncoderGate
from edgeqc.shm.board import Board
from edgeqc.shm.slots import FrameSlots
from edgeqc.station import gate as gate_watch
from edgeqc.station import plckeeper
from edgeqc.station.gate import GateWatch
from edgeqc.station.plckeeper import PlcEvents, PlcKeeper
from edgeqc.station.plcwatch import PlcWatch
from edgeqc.station.viewpoints import Viewpoints

EVENTS = PlcEvents(link=lambda _up, _reason: None, program=lambda _alive: None, turn=lambda *_: None)
STILL_S = 0.3


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What hangs goes on when this is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_keeper, "_TURN_S", 0.02)
    monkeypatch.setattr(plckeeper, "_TURN_S", 0.02)


def moves(thread: Any) -> bool:
    """Does it come round again?"""
    before_ns = thread.turned_ns
    end = time.monotonic() + 10
    while thread.turned_ns == before_ns:
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def stands(thread: Any) -> bool:
    """Does it not come round any more? What it was at may still end."""
    time.sleep(STILL_S)
    before_ns = thread.turned_ns
    time.sleep(STILL_S)
    return bool(thread.turned_ns == before_ns)


def keeper_of(folder: Path) -> CameraKeeper:
    settings = ReplayCameraSettings(type="replay", folder=folder, width_px=16, height_px=16)
    return CameraKeeper(
        settings, FrameSlots.create(folder / "slots", per_bank=2, shape=(16, 16)), software_trigger=False
    )


def test_a_camera_that_hangs_in_opening_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    def hangs(*_: object, **__: object) -> object:
        release.wait(60)
        raise PeerError("cam", "gone")

    monkeypatch.setattr(camera_keeper, "open_camera", hangs)
    keeper = keeper_of(tmp_path)
    keeper.start()
    assert stands(keeper)
    release.set()
    assert moves(keeper)
    keeper.stop(5)


def test_a_camera_whose_connections_hang_in_closing_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    """Each of them holds a bank of slots, and there are two."""
    monkeypatch.setattr(
        camera_keeper,
        "open_camera",
        lambda *_, **__: SimpleNamespace(zero_copy=True, counters=dict, close=release.wait),
    )
    keeper = keeper_of(tmp_path)
    keeper.start()
    for _ in range(2):
        end = time.monotonic() + 10
        while not keeper.up:
            assert time.monotonic() < end
            time.sleep(0.005)
        assert moves(keeper)
        keeper.lost("silent")
    assert stands(keeper)
    release.set()
    assert moves(keeper)
    keeper.stop(5)


def test_a_thread_that_hangs_in_fetching_is_seen_beside_one_that_does_not(release: threading.Event) -> None:
    def point(next_frame: Callable[[int], object]) -> Any:
        keeper = SimpleNamespace(start=lambda: None, stop=lambda timeout_s: None, next_frame=next_frame)
        # a keeper's own thread always comes round here
        return SimpleNamespace(name="cam", keeper=_Alive(keeper))

    cameras = Viewpoints([point(lambda _until: time.sleep(0.005)), point(lambda _until: release.wait(60) and None)])
    cameras.start()
    assert stands(cameras)
    release.set()
    assert moves(cameras)
    cameras.stop(5)


class _Alive:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def turned_ns(self) -> int:
        return time.monotonic_ns()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_plc_that_hangs_in_opening_is_seen(release: threading.Event) -> None:
    hangs = threading.Event()

    def connect() -> Plc:
        if hangs.is_set():
            release.wait(60)
        return Plc()

    keeper = PlcKeeper(connect, peer="plc", events=EVENTS)
    keeper.start()
    assert moves(keeper)  # also with nothing to do
    hangs.set()
    keeper._lost.set()
    assert stands(keeper)
    release.set()
    assert moves(keeper)
    keeper.stop()


def test_whoever_listens_to_the_plc_beats_for_it(tmp_path: Path) -> None:
    row = Board.create(tmp_path, ["station-top"])["station-top"]
    keeper = PlcKeeper(Plc, peer="plc", events=EVENTS)
    keeper.start()
    watch = PlcWatch(keeper, row=row, poll_ns=NS_PER_S // 100, announce=lambda _number: None)
    assert not row.beats()
    watch.start()
    end = time.monotonic() + 10
    while not row.beats().get("triggers"):
        assert time.monotonic() < end
        time.sleep(0.005)
    watch.stop()
    keeper.stop()


def test_a_gate_whose_thread_hangs_is_watched_by_nobody(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    """Though its link was never lost: READY must not say that what has to go out will."""
    monkeypatch.setattr(gate_watch, "_STUCK_NS", NS_PER_S // 2)
    hangs = threading.Event()

    class Link:
        def read(self, _until_ns: int) -> GateInputs:
            if hangs.is_set():
                release.wait(60)
            return GateInputs(encoder=0, confirmations=0, running=True, looked=False, read_ns=time.monotonic_ns())

        def write(self, *_: object) -> None:
            """Taken."""

        def close(self) -> None:
            """Nothing to close."""

    settings = EncoderGate(tracking="encoder", travel_pulses=100, length_pulses=50)
    told: list[object] = []
    watch = GateWatch(
        settings,
        Link,
        station="top",
        note=told.append,
        on_failure=lambda: None,
        on_looked=lambda: None,
        on_link=lambda _up, _reason: None,
    )
    watch.start()
    assert moves(watch)
    end = time.monotonic() + 10
    while not watch.up:
        assert time.monotonic() < end
        time.sleep(0.005)
    hangs.set()
    while watch.up:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert stands(watch)
    began = time.monotonic()
    watch.tell_to_stop()
    assert time.monotonic() - began < 1  # the handshake's outputs are made safe before anybody waits for the gate
    release.set()
    watch.stop()


def test_what_a_station_does_not_have_is_not_waited_for_and_what_it_has_is(tmp_path: Path) -> None:
    def limits(**changes: object) -> dict[str, int]:
        station = {
            "name": "top",
            "takt_ms": 100,
            "budget_ms": 80,
            "camera": {"type": "gige", "address": "127.0.0.1", "width_px": 64, "height_px": 48},
            "recipe": {"engine": "engines/part/1"},
            "plc": {"type": "none"},
            **changes,
        }
        path = tmp_path / "line.yaml"
        path.write_text(json.dumps({"version": 1, "node": "n", "stations": [station]}))
        return dict(jobs(loading.load(path))[0].limits_ns)

    plc = {"type": "modbus", "host": "127.0.0.1"}
    gate = {"tracking": "delay", "travel_ms": 300, "length_ms": 100, "registers": {"inputs": 120, "output": 140}}
    assert list(limits()) == ["line", "guard", "cameras"]
    assert list(limits(plc=plc)) == ["line", "guard", "cameras", "plc"]
    hears = {**plc, "handshake": {"form": "ack"}}
    assert "triggers" in limits(plc=hears)
    tracked = limits(plc=plc, trigger={"source": "plc"}, gate=gate)
    assert list(tracked) == ["line", "guard", "cameras", "plc", "triggers", "gate"]
    beats = dict.fromkeys(tracked, 100 * NS_PER_S)
    assert hung(beats, tracked, started_ns=0, now_ns=102 * NS_PER_S) == ""
    assert hung({**beats, "gate": 40 * NS_PER_S}, tracked, started_ns=0, now_ns=101 * NS_PER_S) == "gate"
    assert hung({**beats, "line": 97 * NS_PER_S}, tracked, started_ns=0, now_ns=101 * NS_PER_S) == "line"
