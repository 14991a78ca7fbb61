"""A software trigger that cannot hold the line thread up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

from edgeqc.errors import PeerError, PeerTimeoutError

TRIGGER_S: Final = 0.1
"""What edgeqc.ports.Camera.trigger promises."""


class TriggerThread:
    """Calls `send` on a thread of its own, because Aravis retries a lost write for 2.5 s and cannot be told not to."""

    def __init__(self, peer: str, send: Callable[[], None]) -> None:
        """Start the thread. `send` raises PeerError."""
        self._peer, self._send = peer, send
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[PeerError | None] = queue.SimpleQueue()
        self._hung = False
        self._thread = threading.Thread(target=self._run, name=f"trigger-{peer}", daemon=True)
        self._thread.start()

    def trigger(self) -> None:
        """Send one and wait for the camera's acknowledgement, 100 ms at most. Raises PeerError."""
        if self._hung:
            raise PeerTimeoutError(self._peer, "an earlier software trigger is still unanswered")
        self._wanted.put(True)
        try:
            error = self._answers.get(timeout=TRIGGER_S)
        except queue.Empty:
            self._hung = True  # its answer would be taken for that of the next trigger
            raise PeerTimeoutError(self._peer, "the software trigger was not acknowledged within 100 ms") from None
        if error is not None:
            raise error

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False where it still sits in `send` after `timeout_s`."""
        self._wanted.put(False)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._wanted.get():
            try:
                self._send()
            except PeerError as exc:
                self._answers.put(exc)
            else:
                self._answers.put(None)
