"""The simulated PLC's program: it times the parts, raises their triggers and feeds the judge."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from itertools import count
from typing import Any, Final, Literal, Protocol, TextIO

import numpy as np

from edgeqc.plc.registers import ResultImage, Status, TriggerImage
from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.sim.judge import Judge
from edgeqc.sim.stage import Stage

TriggerKind = Literal["plc", "line", "camera"]

_STALL_NS: Final = 5 * NS_PER_MS
"""A scan that begins so late: this PLC itself was frozen, or got no time; who wrote to it meanwhile could not help it."""
_BEAT_S: Final = 0.05
"""From one heartbeat of the program to the next."""
_SLACK_RATIO: Final = 0.1
"""Of the takt: how much nearer than that to the part before it a part may come."""
ALLOWANCE_MS: Final[dict[TriggerKind, float]] = {"plc": 5.0, "line": 20.0, "camera": 20.0}
"""Not in the daemon's budget: a poll of 2 ms and its way / exposure and transfer of a frame (11 ms at 1 Gbit/s)."""


class Server(Protocol):
    """A protocol's side of the PLC."""

    async def start(self, port: int, says: TriggerImage) -> None:
        """Serve on 127.0.0.1, the trigger block as given; clients can connect when it returns."""

    async def show(self, says: TriggerImage) -> None:
        """Put this into the trigger block."""

    async def refuse(self, on: bool) -> None:
        """Answer result writes with an error, or take them again."""

    async def stop(self) -> None:
        """Hang up."""


class Line:
    """Times the parts and feeds the judge."""

    def __init__(self, arguments: argparse.Namespace, stage: Stage, log: TextIO) -> None:
        """`arguments` as edgeqc.sim.plc documents them; the log stays the caller's."""
        self._stage = stage
        self._log = log
        self._parts: int = arguments.parts
        self._takt_s: float = 1 / arguments.rate
        self._trigger: TriggerKind = arguments.trigger
        self._recipes: list[int] = arguments.recipes
        self._recipe_run: int = arguments.recipe_run
        self._on_ready: bool = arguments.start == "ready"
        allowance_ms = ALLOWANCE_MS[self._trigger] if arguments.allowance_ms is None else arguments.allowance_ms
        self._window_s = (arguments.budget_ms + allowance_ms) / 1000
        self._judge = Judge(
            budget_ns=int(arguments.budget_ms * NS_PER_MS),
            allowance_ns=int(allowance_ms * NS_PER_MS),
            by_part_id=self._trigger == "plc",
            truth=None if arguments.truth is None else np.load(arguments.truth).astype(bool).tolist(),
        )
        self._seen = stage.exposures
        """Exposures that the judge was told of."""
        self._next = 0
        """First part whose exposure is still to come."""
        self._last = -1
        """Number of the last part; none before the start."""
        self._finished = False
        self.acknowledges: bool = arguments.form != "pulse"
        """The program takes each result that it finds and acknowledges it."""
        self.beats = True
        """The program changes its heartbeat."""
        self._scan_s: float = arguments.scan_ms / 1000
        self._image: ResultImage | None = None
        """The result block as it stands there."""
        self.says = TriggerImage(counter=stage.part, part_id="", ack=0, heartbeat=0, recipe=0)
        """The trigger block; change it by `say`."""
        self.started = asyncio.Event()

    def wrote(self, image: ResultImage, at_ns: int) -> None:
        """The daemon wrote a result block."""
        self._image = image
        self._look()
        self._judge.wrote(image, at_ns)
        if self._on_ready and image.status & Status.READY:
            self.started.set()

    async def say(self, server: Server, **changes: Any) -> None:
        """Change what the PLC says in its trigger block."""
        self.says = dataclasses.replace(self.says, **changes)
        await server.show(self.says)

    async def scan(self, server: Server) -> None:
        """The PLC's program, once a scan: take the result that is there, acknowledge it by its number, move the heartbeat."""
        beat_s = time.monotonic()
        while True:
            due_ns = time.monotonic_ns() + int(self._scan_s * NS_PER_S)
            await asyncio.sleep(self._scan_s)
            if time.monotonic_ns() - due_ns > _STALL_NS:
                self._log.write(json.dumps({"stall": [due_ns, time.monotonic_ns()]}) + "\n")
            image, changes = self._image, dict[str, Any]()
            if self.acknowledges and image is not None and image.status & Status.RESULT_VALID:
                changes["ack"] = image.sequence
            if self.beats and time.monotonic() - beat_s > _BEAT_S:
                beat_s = time.monotonic()
                changes["heartbeat"] = self.says.heartbeat + 1
            if "heartbeat" in changes or changes.get("ack", self.says.ack) != self.says.ack:
                await self.say(server, **changes)

    async def run(self, server: Server) -> None:
        """Wait for the start, bring the parts, wait for the last result, say DONE."""
        while not self.started.is_set():  # exposures before the start take up their own results
            self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.started.wait(), self._takt_s / 4)
        self._next = self._stage.part + 1
        self._last = self._stage.part + self._parts
        say("STARTED")
        if self._trigger == "camera":
            await self._free_run()
        else:
            await self._timed(server)
        await asyncio.sleep(self._window_s)
        self._look()
        self.finish()
        say("DONE")

    def finish(self) -> None:
        """Write what is left and the summary, once."""
        if self._finished:
            return
        self._finished = True
        for report in self._judge.rest():
            self._log.write(json.dumps(dataclasses.asdict(report)) + "\n")
        self.summarize()

    def summarize(self) -> None:
        """Write the summary of this moment."""
        self._log.write(json.dumps({"summary": self._judge.summary()}) + "\n")
        self._log.flush()

    def end(self) -> None:
        """No further part."""
        self._last = min(self._last, self._stage.part)

    async def _timed(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for number in count(self._next):
            # what was late is not made up for: a line does not run faster than its takt, whoever slept too long
            due = max(due + self._takt_s, loop.time())
            await asyncio.sleep(due - loop.time())
            if number > self._last:
                return
            if loop.time() - due > self._takt_s * _SLACK_RATIO:
                due = loop.time()
            self._stage.part = number
            if self._trigger == "line":
                self._stage.pulse()
            else:
                part_id = f"P{number:06d}"
                self._judge.part(number, part_id, time.monotonic_ns())
                recipe = recipe_of(number, self._recipes, self._recipe_run)
                await self.say(server, counter=number, part_id=part_id, recipe=recipe)
            self._report()

    async def _free_run(self) -> None:
        self._stage.advance = True
        try:
            while self._stage.part < self._last:
                await asyncio.sleep(self._takt_s / 8)
                self._report()
        finally:
            self._stage.advance = False

    def _look(self) -> None:
        """Tell the judge of new exposures, where they are the triggers."""
        if self._trigger == "plc":
            return
        while (exposure := self._stage.exposure(self._seen + 1)) is not None:
            self._seen += 1
            judged = self._next <= exposure.part <= self._last  # a part left standing is exposed again and again
            if judged:
                self._next = exposure.part + 1
            self._judge.part(exposure.part, "", exposure.at_ns, judged=judged)

    def _report(self) -> None:
        self._look()
        for report in self._judge.settled(time.monotonic_ns()):
            self._log.write(json.dumps(dataclasses.asdict(report)) + "\n")


def recipe_of(number: int, recipes: Sequence[int], run: int) -> int:
    """The recipe of the part with this number: each in turn for `run` parts."""
    return recipes[number // run % len(recipes)]


def say(line: str) -> None:
    """Tell whoever started the process."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
