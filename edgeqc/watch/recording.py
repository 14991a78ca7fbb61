"""Recording tags without the daemon: the same sources, intake, states and history, and nothing else."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Final, Self

from edgeqc import loading
from edgeqc.errors import EdgeqcError
from edgeqc.history import HistoryWriter
from edgeqc.records import Quality
from edgeqc.settings import HistorySettings, Settings
from edgeqc.watch.flow import TagFlow


class Recording:
    """A context: sources run from its begin to its end, and `work` writes what came."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Record the tags of `settings` (secrets resolved) into `folder`."""
        self._scratch = tempfile.TemporaryDirectory(prefix="edgeqc-record-")
        self._fresh = threading.Event()
        state_dir, _ = loading.paths(settings)
        self._flow = TagFlow(
            settings,
            table_dir=Path(self._scratch.name),
            state_dir=state_dir,
            history_dir=folder,
            history=HistorySettings(mb=_ALL_MB, days=_ALL_DAYS, keep_free_mb=_KEEP_FREE_MB),
            wake=self._fresh.set,
        )

    def __enter__(self) -> Self:
        self._flow.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._flow.close()
        self._scratch.cleanup()

    @property
    def history(self) -> HistoryWriter:
        """What has been written, and what has not."""
        if self._flow.history is None:
            raise EdgeqcError("nothing is recorded")  # it always is
        return self._flow.history

    @property
    def updates(self) -> int:
        """Samples taken."""
        return self._flow.intake.updates

    @property
    def bad(self) -> int:
        """How many tags are BAD now."""
        return int((self._flow.intake.qualities == Quality.BAD).sum())

    def work(self, seconds: float) -> None:
        """Write what comes within this time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._fresh.wait(min(left, _POLL_S))
            self._fresh.clear()
            for _ in self._flow.moments(time.monotonic_ns()):
                pass  # rows are for models; the states are recorded on the way

    def down(self) -> dict[str, str]:
        """Sources that do not answer, and why."""
        return {
            source.settings.name: source.reason
            for source in self._flow.intake.sources
            if not source.up and source.settings.type not in {"derived", "state"}
        }


_ALL_MB: Final = 1_000_000_000
_ALL_DAYS: Final = 36_500.0
_KEEP_FREE_MB: Final = 64
_POLL_S: Final = 0.1
