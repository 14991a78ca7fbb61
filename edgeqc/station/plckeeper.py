"""The station's PLC connection: kept open by a thread of its own, used by line and guard."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from edgeqc.core.backoff import Backoff
from edgeqc.errors import PeerError
from edgeqc.ports import PlcLink
from edgeqc.records import NS_PER_MS, PlcResult, PlcTrigger

_BACKOFF: Final = Backoff(first_s=0.1, most_s=1.0)
"""A PLC that is back must see a verdict within 2 s."""
_SAFE_WRITE_NS: Final = 500 * NS_PER_MS
"""For the first write on a new connection, which puts the outputs into their safe state."""


class PlcKeeper:
    """Keeps one link open; after any failure it is dropped and a fresh one opened.

    What the PLC sees is always composed here, under the link's lock, so that a heartbeat can never bring an older
    result back.
    """

    def __init__(self, open_link: Callable[[], PlcLink], *, peer: str, on_change: Callable[[bool, str], None]) -> None:
        """`on_change(up, reason)` is called from the keeper's thread at each change."""
        self.reconnected = 0
        self._open_link = open_link
        self._peer = peer
        self._on_change = on_change
        self._link: PlcLink | None = None
        self._write_lock = threading.Lock()
        self._shown = PlcResult(
            sequence=0, part_id="", verdict=None, code=0, busy=False, ready=False, fault=False, score=0
        )
        self._lost = threading.Event()
        self._reason = "not connected yet"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="plc-keeper", daemon=True)

    @property
    def up(self) -> bool:
        """Is there a link that last answered?"""
        return self._link is not None

    @property
    def shown(self) -> PlcResult:
        """What the PLC was last told (or was to be told)."""
        return self._shown

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Outputs safe, then close: bounded to about 2 s."""
        if self.up:
            try:
                self.show(_safe(self._shown, ready=False), time.monotonic_ns() + _SAFE_WRITE_NS)
            except PeerError as exc:
                self._reason = exc.reason  # it is gone: its own watchdog sees the heartbeat stop
        self._stopping.set()
        self._lost.set()
        self._thread.join(timeout=5)

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        """See PlcLink; PeerError at once while there is no link."""
        link = self._link
        if link is None:
            raise PeerError(self._peer, self._reason)
        try:
            return link.read_trigger(until_ns)
        except PeerError as exc:
            self._drop(link, exc.reason)
            raise

    def show(self, result: PlcResult, until_ns: int) -> None:
        """Write this result; returns when the PLC acknowledged it. PeerError at once while there is no link."""
        self._write(lambda: result, until_ns)

    def show_busy(self, sequence: int, part_id: str, until_ns: int, *, unless: Callable[[], bool]) -> None:
        """BUSY on, PASS and REJECT off, for a part that has no verdict yet.

        `unless` is asked while no other write can come between: a fail-safe verdict that is out must stay.
        """

        def busy() -> PlcResult | None:
            shown = replace(_safe(self._shown, ready=self._shown.ready), busy=True)
            return None if unless() else replace(shown, sequence=sequence, part_id=part_id)

        self._write(busy, until_ns)

    def clear(self, sequence: int, until_ns: int) -> None:
        """PASS and REJECT off, if they are still this part's: the next one's may be out by now."""

        def cleared() -> PlcResult | None:
            shown = self._shown
            return _safe(shown, ready=shown.ready) if shown.sequence == sequence else None

        self._write(cleared, until_ns)

    def beat(self, *, ready: bool, fault: bool, until_ns: int) -> None:
        """Write what is shown once more, with the heartbeat moved on."""
        self._write(lambda: replace(self._shown, ready=ready, fault=fault), until_ns)

    def _write(self, compose: Callable[[], PlcResult | None], until_ns: int) -> None:
        """Write what `compose` gives once the link is ours; nothing where that is None."""
        link = self._link
        if link is None:
            raise PeerError(self._peer, self._reason)
        if not self._write_lock.acquire(timeout=max(0.0, (until_ns - time.monotonic_ns()) / 1e9)):
            raise PeerError(self._peer, "the link is busy with another write")
        try:
            composed = compose()
            if composed is not None:
                self._shown = composed
                link.write_result(composed, until_ns)
        except PeerError as exc:
            self._drop(link, exc.reason)
            raise
        finally:
            self._write_lock.release()

    def _drop(self, link: PlcLink, reason: str) -> None:
        if self._link is link:
            self._link = None
            self._reason = reason
            self._lost.set()

    def _keep(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                link = self._open_safe()
            except Exception as exc:  # noqa: BLE001 - the thread's root: a PLC that confuses us is tried again
                self._reason = exc.reason if isinstance(exc, PeerError) else f"{type(exc).__name__}: {exc}"
                failures += 1
                if failures == 1:
                    self._on_change(False, self._reason)
                self._stopping.wait(_BACKOFF.delay_s(failures, random.random()))  # noqa: S311 - jitter, not a secret
                continue
            failures = 0
            self._lost.clear()
            self._link = link
            self._on_change(True, "")
            self._lost.wait()
            self._link = None
            link.close()
            if not self._stopping.is_set():
                self.reconnected += 1
                failures = 1
                self._on_change(False, self._reason)

    def _open_safe(self) -> PlcLink:
        """A link whose PLC has acknowledged the safe state: what its registers hold may be of another life."""
        link = self._open_link()
        try:
            self._shown = _safe(self._shown, ready=self._shown.ready)
            link.write_result(self._shown, time.monotonic_ns() + _SAFE_WRITE_NS)
        except PeerError:
            link.close()
            raise
        return link


def _safe(shown: PlcResult, *, ready: bool) -> PlcResult:
    """The same part, but no result."""
    return replace(shown, verdict=None, code=0, busy=False, ready=ready, score=0.0)
