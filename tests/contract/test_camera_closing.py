"""A connection is closed when the calls on it have ended, whoever gave it up: a library's stream is not freed under a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeqc.cameras import keeper as camera_keeper
from edgeqc.cameras.keeper import CameraKeeper
from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_MS, NS_PER_S, Frame, FrameStatus
from edgeqc.settings import ReplayCameraSettings
from edgeqc.shm.slots import FrameSlots

BLOCKS_S = 0.02
PER_BANK = 2
PATIENCE_S = 10.0


class Library:
    """Makes connections that block in each call, and tells which were closed under one."""

    def __init__(self) -> None:
        self.opened: list[Connection] = []
        self.blocks: Callable[[], object] = lambda: time.sleep(BLOCKS_S)

    def open(self, *args: Any, **_: Any) -> Connection:
        self.opened.append(Connection(self, args[2]))
        return self.opened[-1]

    @property
    def current(self) -> Connection:
        return self.opened[-1]


class Connection:
    """edgeqc.ports.Camera."""

    def __init__(self, library: Library, bank: int) -> None:
        self.zero_copy = True
        self.bank = bank
        self.calls = 0
        self.inside = threading.Event()
        """Some call has begun."""
        self.closed = threading.Event()
        self.torn = False
        """Closed while a call was under way, or called when it was closed."""
        self.fails = False
        self._library = library
        self._lock = threading.Lock()

    def _call(self) -> None:
        with self._lock:
            self.torn |= self.closed.is_set()
            self.calls += 1
        self.inside.set()
        self._library.blocks()
        with self._lock:
            self.calls -= 1
        if self.fails:
            raise PeerError("cam", "control lost")

    def next_frame(self, until_ns: int) -> Frame | None:
        self._call()
        return None

    def trigger(self) -> None:
        self._call()

    def release(self, slot: int) -> None:
        self._call()

    def counters(self) -> dict[str, int]:
        return {"connections": 1}

    def close(self) -> None:
        with self._lock:
            self.torn |= self.calls > 0
            self.closed.set()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(camera_keeper, "open_camera", made.open)
    return made


@pytest.fixture
def keeper(tmp_path: Path, library: Library) -> Iterator[CameraKeeper]:
    settings = ReplayCameraSettings(type="replay", folder=tmp_path, width_px=16, height_px=16)
    slots = FrameSlots.create(tmp_path / "slots", per_bank=PER_BANK, shape=(16, 16))
    made = CameraKeeper(settings, slots, software_trigger=True)
    made.start()
    wait_for(lambda: made.up)
    yield made
    made.stop(PATIENCE_S)
    slots.close()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.001)  # polled


def within(seconds: float = 0.0) -> int:
    return time.monotonic_ns() + int(seconds * NS_PER_S)


def call(keeper: CameraKeeper, name: str) -> None:
    try:
        match name:
            case "next_frame":
                keeper.next_frame(within())
            case "trigger":
                keeper.trigger()
            case _:
                keeper.release(PER_BANK * keeper._bank)
    except PeerError:
        pass


def begun(keeper: CameraKeeper, library: Library, name: str = "next_frame") -> threading.Thread:
    """A thread inside a call on the current connection."""
    library.current.inside.clear()
    thread = threading.Thread(target=call, args=(keeper, name), name=f"line {name}")
    thread.start()
    assert library.current.inside.wait(PATIENCE_S)
    return thread


@pytest.mark.parametrize("name", ["next_frame", "trigger", "release"])
def test_a_connection_is_not_closed_before_the_calls_on_it_have_ended(
    keeper: CameraKeeper, library: Library, name: str
):
    for _ in range(5):
        wait_for(lambda: keeper.up)
        thread, one = begun(keeper, library, name), library.current
        keeper.lost("the software trigger was not acknowledged")
        assert not keeper.up or library.current is not one
        thread.join(PATIENCE_S)
        assert one.closed.wait(PATIENCE_S)
        assert not one.torn
    wait_for(lambda: keeper.up)
    assert keeper.counters() == {"connections": 6}


@pytest.mark.parametrize("name", ["next_frame", "trigger", "release"])
def test_a_call_that_never_ends_keeps_its_connection_and_the_next_one_is_opened_in_the_other_bank(
    keeper: CameraKeeper, library: Library, name: str
):
    ends = threading.Event()
    library.blocks = ends.wait
    thread, hung = begun(keeper, library, name), library.current
    keeper.lost("silent")
    wait_for(lambda: keeper.up)
    assert library.current.bank != hung.bank
    library.blocks = lambda: None
    call(keeper, "next_frame")
    call(keeper, "trigger")
    keeper.lost("again")
    wait_for(lambda: keeper.up)
    assert library.current.bank != hung.bank, "what is used still keeps its bank"
    assert not hung.closed.is_set()
    ends.set()
    thread.join(PATIENCE_S)
    assert hung.closed.wait(PATIENCE_S), "the last to leave has it closed, though another one is used by then"
    assert not hung.torn


def test_a_keeper_with_a_call_that_never_ends_in_each_bank_comes_round_no_more(
    keeper: CameraKeeper, library: Library, monkeypatch: pytest.MonkeyPatch
):
    """So that the station is started again, as where both hang in closing."""
    monkeypatch.setattr(camera_keeper, "_TURN_S", 0.02)
    ends = threading.Event()
    library.blocks = ends.wait
    threads = []
    for _ in range(2):
        wait_for(lambda: keeper.up)
        threads.append(begun(keeper, library))
        keeper.lost("silent")
    time.sleep(0.2)  # what it was at ends
    before_ns = keeper.turned_ns
    time.sleep(0.2)  # ten turns
    assert keeper.turned_ns == before_ns
    assert not any(one.closed.is_set() for one in library.opened)
    ends.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    wait_for(lambda: keeper.up)
    assert not any(one.torn for one in library.opened)


def test_stop_waits_for_a_call_as_long_as_it_may(keeper: CameraKeeper, library: Library):
    ends = threading.Event()
    library.blocks = ends.wait
    thread, one = begun(keeper, library), library.current
    began = time.monotonic()
    keeper.stop(0.2)
    assert 0.2 <= time.monotonic() - began < 2
    assert not one.closed.is_set()
    ends.set()
    thread.join(PATIENCE_S)
    assert one.closed.wait(PATIENCE_S)
    assert not one.torn


def test_stop_closes_what_a_call_leaves_in_time(keeper: CameraKeeper, library: Library):
    thread, one = begun(keeper, library), library.current
    keeper.stop(PATIENCE_S)
    assert one.closed.is_set()
    assert not one.torn
    thread.join(PATIENCE_S)


@pytest.mark.parametrize("name", ["next_frame", "trigger"])
def test_a_call_that_fails_late_does_not_give_up_the_connection_after_its_own(
    keeper: CameraKeeper, library: Library, name: str
):
    ends = threading.Event()
    library.blocks = ends.wait
    thread, first = begun(keeper, library, name), library.current
    first.fails = True
    keeper.lost("silent")
    wait_for(lambda: keeper.up)
    library.blocks = lambda: None
    ends.set()
    thread.join(PATIENCE_S)
    assert first.closed.wait(PATIENCE_S)
    assert keeper.up
    assert len(library.opened) == 2


def test_a_frame_of_a_connection_that_was_given_up_meanwhile_keeps_its_slot_and_says_nothing_of_the_next(
    tmp_path: Path, library: Library
):
    changes: list[bool] = []
    settings = ReplayCameraSettings(type="replay", folder=tmp_path, width_px=16, height_px=16)
    slots = FrameSlots.create(tmp_path / "slots", per_bank=PER_BANK, shape=(16, 16))
    keeper = CameraKeeper(settings, slots, software_trigger=True, on_change=lambda up, _: changes.append(up))
    keeper.start()
    wait_for(lambda: keeper.up)
    one = library.current
    pixels = np.zeros((16, 16), np.uint8)

    def brings(until_ns: int) -> Frame:
        one._call()
        slot = one.bank * PER_BANK
        return Frame(
            slot=slot, pixels=pixels, frame_id=1, status=FrameStatus.OK, received_ns=within(), transfer_ns=NS_PER_MS
        )

    one.next_frame = brings  # type: ignore[method-assign]
    came: list[Frame | None] = []
    thread = threading.Thread(target=lambda: came.append(keeper.next_frame(within())), name="line")
    thread.start()
    assert one.inside.wait(PATIENCE_S)
    keeper.lost("silent")
    thread.join(PATIENCE_S)
    assert changes[:2] == [True, False]
    assert one.closed.wait(PATIENCE_S)
    (frame,) = came
    assert frame is not None
    for _ in range(3):
        wait_for(lambda: keeper.up)
        assert library.current.bank != one.bank, "the line has its slot still"
        keeper.lost("again")
    assert not any(changes[2:]), "none of them has brought a frame"
    keeper.stop(PATIENCE_S)
    slots.close()
