"""A box without a line: board, journals and settings as a running daemon has them, and a real server process on it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeqc.jobs import jobs
from edgeqc.journal import JournalWriter
from edgeqc.loading import dump
from edgeqc.records import (
    RESULT_CODE,
    AlertChange,
    Cause,
    Delivery,
    Ledger,
    Ne107,
    PartRecord,
    Trigger,
    Verdict,
)
from edgeqc.settings import Settings
from edgeqc.shm.board import Board, State

START_S = 20.0
"""A server process imports asyncua and builds its address space; seconds on a loaded box."""


def settings_of(folder: Path, server: dict[str, Any], **more: Any) -> Settings:
    station = {
        "name": "top",
        "takt_ms": 100,
        "budget_ms": 80,
        "camera": {"type": "replay", "folder": str(folder), "width_px": 64, "height_px": 64},
        "recipe": {"engine": str(folder)},
        "plc": {"type": "none"},
    }
    return Settings.model_validate(
        {
            "version": 1,
            "node": "box",
            "state_dir": str(folder / "state"),
            "run_dir": str(folder / "run"),
            "stations": [station, station | {"name": "side"}],
            "journal": {"segment_mb": 1, "budget_mb": 8},
            "server": server,
            **more,
        }
    )


class Box:
    """What a server process finds when it starts."""

    def __init__(self, folder: Path, server: dict[str, Any], **more: Any) -> None:
        self.settings = settings_of(folder, server, **more)
        self.state_dir, self.run_dir = folder / "state", folder / "run"
        self.run_dir.mkdir()
        self.board = Board.create(self.run_dir, [job.name for job in jobs(self.settings)])
        for row in self.board.rows.values():
            row.state = State.READY
            row.started_ns = time.monotonic_ns()
        for name in ("top", "side"):
            self.board[f"station-{name}"].put("camera_up", 1)
        (self.run_dir / "settings.json").write_bytes(dump(self.settings))
        self.journal = JournalWriter(self.state_dir / "journal" / "station-top", self.settings.journal)
        self.sequence = 0

    def part(self, verdict: Verdict, cause: Cause, *, score: float = 0.25, part_id: str = "") -> int:
        """Judge a part as a station does: counters, journal, delivery."""
        self.sequence += 1
        now_ns = time.monotonic_ns()
        self.journal.append(
            PartRecord(
                station="top",
                trigger=Trigger(
                    sequence=self.sequence,
                    part_id=part_id or f"P{self.sequence:05d}",
                    at_ns=now_ns - 5_000_000,
                    wall_ns=time.time_ns(),
                ),
                frame_id=self.sequence,
                verdict=verdict,
                cause=cause,
                score=score,
                threshold=0.5,
                ledger=Ledger(trigger_ns=now_ns - 5_000_000, decided_ns=now_ns - 1_000_000),
                deadline_ns=now_ns + 1_000_000,
                recipe="default",
                model_digest=bytes(range(32)),
            )
        )
        self.journal.append(
            Delivery(
                sequence=self.sequence,
                verdict=verdict,
                cause=cause,
                delivered=True,
                delivered_ns=now_ns,
                late=False,
                late_score=float("nan"),
            )
        )
        row = self.board["station-top"]
        row.count("triggers")
        row.count("verdicts")
        row.count("passed" if verdict is Verdict.PASS else "rejected")
        assert RESULT_CODE[cause]
        return self.sequence

    def alert(self, id_: str, *, active: bool) -> None:
        self.journal.append(
            AlertChange(
                id=id_,
                active=active,
                priority="high",
                ne107=Ne107.FAILURE if active else Ne107.NORMAL,
                text="a test",
                action="none",
            )
        )

    def close(self) -> None:
        self.journal.close()
        self.board.block.close()


class Served:
    """A server process of the daemon, started as the supervisor does."""

    def __init__(self, box: Box, protocol: str) -> None:
        self.box, self.protocol = box, protocol
        self.log: list[dict[str, Any]] = []
        self._rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgeqc", "server", protocol, "--run-dir", str(box.run_dir)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.set_blocking(self.process.stderr.fileno(), False)
        try:
            self.port = int(self.wait_for("server_started", within_s=START_S)["port"])
        except BaseException:
            self.close()
            raise

    def wait_for(self, event: str, *, within_s: float = 5.0, **facts: Any) -> dict[str, Any]:
        """The first line of the log that says so, from the process's start on."""
        until_s = time.monotonic() + within_s
        seen = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while True:
                for line in self.log[seen:]:
                    if line.get("event") == event and all(line.get(key) == value for key, value in facts.items()):
                        return line
                seen = len(self.log)
                left_s = until_s - time.monotonic()
                assert left_s > 0, f"no {event} in {self.log}"
                if selector.select(left_s):
                    some = self.process.stderr.read()
                    assert some or self.process.poll() is None, f"ended with {self.process.wait()}: {self.log}"
                    *lines, self._rest = (self._rest + (some or b"")).split(b"\n")
                    self.log += [_line(line) for line in lines if line]

    @property
    def memory_mb(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stderr.close()


def _line(raw: bytes) -> dict[str, Any]:
    try:
        return json.loads(raw)
    except ValueError:
        return {"event": "text", "text": raw.decode(errors="replace")}
