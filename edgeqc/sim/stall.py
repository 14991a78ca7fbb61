"""Who watches the watchmen: notes when a core of this box stood still, so that nobody is blamed for it.

`python -m edgeqc.sim.stall --log FILE` runs a thread on each core that sleeps 4 ms at a time with a higher real-time
priority than anything else of the line. Where one wakes late, no process was in its way: the core itself was taken away
(a virtual machine's host did something else). Each such time becomes a line `<core> <from ns> <to ns>` (monotonic).
Without the right to real-time priority nothing can be told apart, and nothing is noted.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TextIO

from edgeqc.cores import pin, real_time
from edgeqc.records import NS_PER_MS
from edgeqc.sim.peer import Peer

_PRIORITY: Final = 60
_TICK_NS: Final = 4 * NS_PER_MS
_LEAST_NS: Final = 2 * NS_PER_MS
"""A wake-up on a core that runs is late by 0.1 ms; less than this is not worth a line."""

Stall = tuple[int, int]
"""From and to, in ns, monotonic."""


class StallWatch(Peer):
    """The process from outside."""

    def __init__(self, log: Path) -> None:
        """Nothing is noted before `start`."""
        super().__init__("the stall watch")
        self._log = log

    def command(self) -> list[str]:
        """This module."""
        return [sys.executable, "-m", "edgeqc.sim.stall", "--log", str(self._log)]

    def stalls(self) -> list[Stall]:
        """So far, of all cores together: none overlaps another, in order."""
        try:
            lines = self._log.read_text().splitlines()
        except FileNotFoundError:
            return []
        return merged((int(begin), int(end)) for _, begin, end in (line.split() for line in lines))


def merged(stalls: Iterable[Stall]) -> list[Stall]:
    """Those that overlap become one."""
    found: list[Stall] = []
    for begin, end in sorted(stalls):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def stalled_ns(stalls: Iterable[Stall], begin_ns: int, end_ns: int) -> int:
    """How long the box stood still between two moments."""
    return sum(max(0, min(end, end_ns) - max(begin, begin_ns)) for begin, end in stalls)


def main() -> int:
    """Watch until stdin is closed."""
    parser = argparse.ArgumentParser(prog="python -m edgeqc.sim.stall", description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.log.open("a", buffering=1) as log:
        for core in range(os.cpu_count() or 1):
            threading.Thread(target=_watch, args=(core, log), daemon=True).start()
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        sys.stdin.read()
    return 0


def _watch(core: int, log: TextIO) -> None:
    if not (pin({core}) and real_time(_PRIORITY)):
        return
    due_ns = time.monotonic_ns() + _TICK_NS
    while True:
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        now_ns = time.monotonic_ns()
        if now_ns - due_ns > _LEAST_NS:
            log.write(f"{core} {due_ns} {now_ns}\n")
        due_ns = now_ns + _TICK_NS


if __name__ == "__main__":
    sys.exit(main())
