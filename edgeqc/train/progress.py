"""How far a long step is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Told:
    """One named step of `total` pieces (0: nobody knows how many); used as a context manager."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._console, self._what, self._total = console, what, total
        self._began = self._last = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total or None, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if error is None and not self._console.is_terminal:
            self._line(f"{self._what}: done")

    def at(self, count: int, note: str = "") -> None:
        """`count` pieces of the total are done."""
        self._bar.update(self._task, completed=count, note=note)
        if not self._console.is_terminal and time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            of = f" of {self._total}" if self._total else ""
            self._line(f"{self._what}: {count}{of} {note}".rstrip())

    def trained(self, step: int, done: float, loss: float) -> None:
        """Training has taken `step` steps and is `done` (0..1) with its plan."""
        self.at(round(done * self._total), f"step {step}, loss {loss:.3f}")

    def _line(self, text: str) -> None:
        self._console.print(f"{text} ({time.monotonic() - self._began:.0f} s)", highlight=False, soft_wrap=True)


_EVERY_S: Final = 10.0
