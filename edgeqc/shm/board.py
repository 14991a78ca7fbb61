"""The status board: heartbeats and counters of every process, in shared memory.

Each row has one writer (its process); everyone reads. Single aligned 64-bit values, so no lock is needed.
"""

from __future__ import annotations

import ctypes
import time
from enum import IntEnum
from pathlib import Path
from typing import Final, cast

from edgeqc.errors import EdgeqcError
from edgeqc.shm.block import Block

_MAGIC: Final = b"EQCBRD02"
LOOPS: Final = ("main", "line", "guard", "triggers", "cameras", "plc", "gate")
"""Loops that a process may have; each beats on its own, so that one that hangs is seen."""
COUNTERS: Final = (
    "triggers",
    "verdicts",
    "passed",
    "rejected",
    "fail_safe",
    "late",
    "missed",
    "doubled",
    "stale",
    "bad_frames",
    "plc_errors",
    "images_given_up",
    "journal_errors",
    "camera_up",
    "plc_up",
    "camera_reopened",
    "plc_reconnected",
    "frame_at_ns",
    "budget_ns",
    "last_latency_ns",
    "last_transfer_ns",
    "last_engine_ns",
    "last_plc_ns",
    "last_sequence",
    "last_passed",
    "last_code",
    "first_verdict_ns",
    "zero_copy",
    "tags_good",
    "machines",
    "machine_alarms",
    "machine_rows",
    "tags_bad",
    "tag_updates",
    "spare",
    "last_opened",
    "swapped",
    "phantom",
    "repeated_ids",
    "violations",
    "stop_asked",
)
"""What a row counts; a process uses those that are its own."""


class State(IntEnum):
    """Where a process is in its life."""

    OFF = 0
    STARTING = 1
    READY = 2
    DEGRADED = 3
    STOPPING = 4
    FAILED = 5


class _Row(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 48),
        ("pid", ctypes.c_int64),
        ("state", ctypes.c_int64),
        ("started_ns", ctypes.c_int64),
        ("restarts", ctypes.c_int64),
        ("beats", ctypes.c_int64 * len(LOOPS)),
        ("counters", ctypes.c_int64 * len(COUNTERS)),
        ("backend", ctypes.c_char * 96),
    )


class _Board(ctypes.Structure):
    _fields_ = (("magic", ctypes.c_char * 8), ("rows", ctypes.c_int64))


_INDEX: Final = {name: index for index, name in enumerate(COUNTERS)}


class Row:
    """One process's row."""

    def __init__(self, row: _Row) -> None:
        """Not for callers: a Board makes these."""
        self._row = row
        self._counters = row.counters

    @property
    def name(self) -> str:
        """Of the process, e.g. `station-top`."""
        return cast("bytes", self._row.name).decode()

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return int(self._row.pid)

    @pid.setter
    def pid(self, value: int) -> None:
        self._row.pid = value

    @property
    def state(self) -> State:
        """Where the process is in its life."""
        return State(self._row.state)

    @state.setter
    def state(self, value: State) -> None:
        self._row.state = value

    @property
    def started_ns(self) -> int:
        """Monotonic time of the process's start."""
        return int(self._row.started_ns)

    @started_ns.setter
    def started_ns(self, value: int) -> None:
        self._row.started_ns = value

    @property
    def restarts(self) -> int:
        """How often the supervisor had to start it again."""
        return int(self._row.restarts)

    @restarts.setter
    def restarts(self, value: int) -> None:
        self._row.restarts = value

    @property
    def backend(self) -> str:
        """Which engine backend runs; empty for processes without one."""
        return cast("bytes", self._row.backend).decode(errors="replace")

    @backend.setter
    def backend(self, value: str) -> None:
        self._row.backend = value.encode()[:95]

    def beat(self, loop: str = "main", at_ns: int | None = None) -> None:
        """This loop is alive now, or was at that monotonic time."""
        self._row.beats[LOOPS.index(loop)] = time.monotonic_ns() if at_ns is None else at_ns

    def beats(self) -> dict[str, int]:
        """Monotonic time of each loop's last beat; loops that never beat are left out."""
        return {name: at for name, at in zip(LOOPS, self._row.beats, strict=True) if at}

    def reset(self) -> None:
        """Forget beats and the process's own state before it is started (counters go on counting)."""
        for index in range(len(LOOPS)):
            self._row.beats[index] = 0

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        self._counters[_INDEX[name]] += by

    def put(self, name: str, value: int) -> None:
        """Set a counter or gauge."""
        self._counters[_INDEX[name]] = value

    def get(self, name: str) -> int:
        """Read a counter or gauge."""
        return int(self._counters[_INDEX[name]])

    def counters(self) -> dict[str, int]:
        """All of them."""
        return dict(zip(COUNTERS, (int(value) for value in self._counters), strict=True))


class Board:
    """All rows."""

    def __init__(self, block: Block) -> None:
        """Attach; EdgeqcError where the file is not a board of this version."""
        head = _Board.from_buffer(block.memory, 0)
        if head.magic != _MAGIC:
            raise EdgeqcError(f"{block.path}: not a status board of this version")
        self.block = block
        start = ctypes.sizeof(_Board)
        self.rows = {
            row.name: row
            for row in (
                Row(_Row.from_buffer(block.memory, start + index * ctypes.sizeof(_Row))) for index in range(head.rows)
            )
        }

    @classmethod
    def create(cls, run_dir: Path, names: list[str]) -> Board:
        """Make the board with one row per process; counters start at zero."""
        path = run_dir / "board"
        path.unlink(missing_ok=True)
        block = Block(path, size=ctypes.sizeof(_Board) + len(names) * ctypes.sizeof(_Row))
        for index, name in enumerate(names):
            row = _Row.from_buffer(block.memory, ctypes.sizeof(_Board) + index * ctypes.sizeof(_Row))
            row.name = name.encode()[:47]
        head = _Board.from_buffer(block.memory, 0)
        head.magic, head.rows = _MAGIC, len(names)
        return cls(block)

    @classmethod
    def attach(cls, run_dir: Path) -> Board:
        """Map the running daemon's board; FileNotFoundError where none runs."""
        return cls(Block(run_dir / "board"))

    def __getitem__(self, name: str) -> Row:
        return self.rows[name]
