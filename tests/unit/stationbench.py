"""An outcome with everything it touches, and a PLC that keeps what it was told."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from edgeqc.core.keeping import KeepRule
from edgeqc.core.views import View
from edgeqc.errors import PeerError
from edgeqc.journal import JournalReader, JournalWriter
from edgeqc.records import NS_PER_S, FrameStatus, PlcResult, PlcTrigger, Trigger
from edgeqc.settings import JournalSettings, JournalSync
from edgeqc.shm.board import Board
from edgeqc.shm.slots import FrameSlots
from edgeqc.station.lender import Lender
from edgeqc.station.outcome import Outcome
from edgeqc.station.part import Part
from edgeqc.station.plckeeper import Manners, PlcEvents, PlcKeeper


class Plc:
    """A link that keeps what it was told; `broken` makes it refuse."""

    def __init__(self) -> None:
        self.told: list[PlcResult] = []
        self.broken = False
        self.says = PlcTrigger(counter=0, part_id="", read_ns=0)

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        return replace(self.says, read_ns=self.says.read_ns or time.monotonic_ns())

    def write_result(self, result: PlcResult, until_ns: int) -> None:
        if self.broken:
            raise PeerError("plc", "refused")
        self.told.append(result)

    def close(self) -> None:
        """Nothing to close."""


class Line:
    """An outcome with everything it touches, and the PLC's side of it."""

    def __init__(
        self,
        folder: Path,
        *,
        sync: JournalSync = JournalSync.GROUP,
        keep_rejects: bool = False,
        manners: Manners | None = None,
    ) -> None:
        self.plc = Plc()
        self.programs: list[bool] = []
        events = PlcEvents(link=lambda _up, _reason: None, program=self.programs.append, turn=self.turn)
        self.keeper = PlcKeeper(lambda: self.plc, peer="plc", events=events, manners=manners)
        self.keeper.start()
        until = time.monotonic() + 5
        while not self.keeper.up:
            assert time.monotonic() < until
        self.plc.told.clear()
        self.journal = JournalWriter(folder / "journal" / "station-top", JournalSettings(segment_mb=1, ballast_mb=0))
        self.row = Board.create(folder, ["station-top"])["station-top"]
        slots = FrameSlots.create(folder / "slots", per_bank=4, shape=(16, 16))
        self.outcome = Outcome(
            station="top",
            journal=self.journal,
            sync=sync,
            plc=self.keeper,
            lenders={"cam": Lender(slots, most=1, take_back=lambda _slot: None)},
            keep=KeepRule(rejects=keep_rejects, every_nth_pass=0, newest=0),
            row=self.row,
        )

    def turn(self, sequence: int, at_ns: int, reason: str) -> None:
        self.outcome.turn(sequence, at_ns, reason)

    def journaled(self, most: int = 500) -> list[object]:
        reader = JournalReader(self.journal.folder)
        found = [entry.body for entry in reader.read(most)]
        reader.close()
        return found

    def close(self) -> None:
        self.keeper.stop()
        self.journal.close()
        self.__dict__.clear()  # the fixture keeps this object, and it the shared memory


def part(sequence: int, *, left_s: float = 10.0) -> Part:
    now_ns = time.monotonic_ns()
    return Part(
        trigger=Trigger(sequence=sequence, part_id=f"P{sequence}", at_ns=now_ns, wall_ns=0),
        deadline_ns=now_ns + int((left_s + 1) * NS_PER_S),
        fail_safe_at_ns=now_ns + int(left_s * NS_PER_S),
        score=0.1,
        views=[View(name="cam", sequence=sequence, frame=FrameStatus.OK, score=0.1, threshold=0.5)],
    )


def soon() -> int:
    return time.monotonic_ns() + NS_PER_S
