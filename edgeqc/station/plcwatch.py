"""Listens to a PLC that triggers nothing: its acknowledgements and its heartbeat, where the camera brings the parts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_MS
from edgeqc.shm.board import Row
from edgeqc.station.plckeeper import PlcKeeper

_READ_NS: Final = 300 * NS_PER_MS
"""For one read of the trigger block: a PLC that takes longer is as good as gone."""
_DOWN_S: Final = 0.02
"""Between looks at a link that is down."""


class PlcWatch:
    """Polls the trigger block in a thread of its own; the keeper does what follows from it."""

    def __init__(self, plc: PlcKeeper, *, row: Row, poll_ns: int, announce: Callable[[int], None]) -> None:
        """`poll_ns`: from one read to the next; `row`: gets the beat of the loop that reads triggers; `announce`: the recipe."""
        self._plc, self._row, self._announce = plc, row, announce
        self._poll_ns = poll_ns
        self._told_to_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plc-watch", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._told_to_stop.set()
        self._thread.join(timeout=1)

    def _run(self) -> None:
        pause_s = 0.0
        while not self._told_to_stop.wait(pause_s):
            began_ns = time.monotonic_ns()
            self._row.beat("triggers")
            try:
                self._announce(self._plc.read_trigger(began_ns + _READ_NS).recipe)
                pause_s = max(0, began_ns + self._poll_ns - time.monotonic_ns()) / 1e9
            except PeerError:  # the keeper says who and why, and reconnects
                pause_s = _DOWN_S
