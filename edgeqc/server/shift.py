"""Counters since somebody reset them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path


class Shift:
    """Counters since somebody reset them: a file, so that both server processes and a restarted one know it.

    It belongs to one run of the daemon: counters begin anew with each, and so does the shift.
    """

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        """Nothing is read yet."""
        self._path = state_dir / "server" / "shift"
        self._board = run_dir / "board"
        self._stamp = (0, 0)
        self._base: dict[tuple[str, str], int] = {}
        self.reset_wall_ns = 0
        """UTC; 0 = not since the daemon started."""

    def since(self, station: str, counters: Mapping[str, int]) -> dict[str, int]:
        """What was counted since the reset."""
        return {name: max(0, count - self._base.get((station, name), 0)) for name, count in counters.items()}

    def reset(self, counters: Mapping[str, Mapping[str, int]], stations: frozenset[str]) -> None:
        """Begin anew for these stations, from what all stations' counters are now. OSError where it can't be kept."""
        base = {(station, name): count for station, of in counters.items() for name, count in of.items()}
        kept = {key: count for key, count in self._base.items() if key[0] not in stations}
        base = kept | {key: count for key, count in base.items() if key[0] in stations}
        lines = [f"{self._run()} {time.time_ns()}", *(f"{key[0]} {key[1]} {count}" for key, count in base.items())]
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._path.with_name(".shift.part")
        part.write_text("\n".join(lines) + "\n")
        part.replace(self._path)
        self.refresh()

    def refresh(self) -> None:
        """See whether somebody else has reset them; a damaged file counts as none."""
        try:
            status = self._path.stat()
        except OSError:
            return
        stamp = (status.st_ino, status.st_mtime_ns)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._base, self.reset_wall_ns = {}, 0
        with contextlib.suppress(OSError, ValueError):
            head, *lines = self._path.read_text().splitlines()
            run, wall_ns = head.split()
            if run == self._run():
                self._base = {(station, name): int(count) for station, name, count in map(str.split, lines)}
                self.reset_wall_ns = int(wall_ns)

    def _run(self) -> str:
        status = self._board.stat()
        return f"{status.st_ino}.{status.st_ctime_ns}"
