"""The judge of the simulated line: knows what is true of each part, and what must hold after each event."""

from __future__ import annotations

import hashlib
from typing import Final

from edgeqc.core.exposure import Claim, Match
from edgeqc.core.invariant import balance, signals
from edgeqc.core.stopping import StopReason
from edgeqc.records import JUDGED, NS_PER_MS, RESULT_CODE, Cause, PlcResult, Verdict
from edgeqc.sim.virtual.gateoracle import GateOracle
from edgeqc.sim.virtual.kernel import Kernel
from edgeqc.sim.virtual.pieces import Piece, Shot

_ENDS_STATION: Final = frozenset(
    {"killed", "power_cut", "crash_loop", "engine_hung", "line_stuck", "triggers_stuck", "guard_stuck"}
)
"""For which the station is started anew, or may be."""
_IN_A_ROW: Final = 3
"""Fail-safe verdicts that ask for a stop: as the product's documentation says it."""
_GUARD_FAULTS: Final = frozenset(
    {"guard_stuck", "disk_slow", "write_lost", "write_late", "write_unacknowledged", "plc_refuses", "plc_frozen"}
)
"""For which the guard, which gives the fail-safe verdicts, waits for something else meanwhile."""


class Violation(AssertionError):  # noqa: N818 - it is what is found
    """An invariant does not hold."""

    def __init__(self, name: str, at_ns: int, facts: str) -> None:
        super().__init__(f"{name} at {at_ns / 1e9:.6f} s: {facts}")
        self.name, self.at_ns, self.facts = name, at_ns, facts

    def __reduce__(self) -> tuple[type[Violation], tuple[str, int, str]]:
        return Violation, (self.name, self.at_ns, self.facts)


class Oracle:
    """Raises `Violation`. The trace is a hash over everything that was decided and seen."""

    def __init__(self, kernel: Kernel) -> None:
        """Nothing has happened."""
        self.pieces: dict[int, Piece] = {}
        self.triggers = 0
        """Numbers that stations gave."""
        self.passed = 0
        self.rejected = 0
        self.judged = 0
        self.faults: dict[str, int] = {}
        self.lost_in_crash = 0
        """Parts that were under way when the station died."""
        self.owner: dict[int, Piece | None] = {}
        """Whose sequence number that is; None for one that was missed."""
        self.calm_ns = 0
        """So long it may take from such a fault until parts are heard of in time again."""
        self.recovery_ns = self.restart_ns = 1 << 62
        """So long after a fault all must be well again; the same where it may end the station."""
        self._broken_until_ns = 0
        """A part that comes later must not be rejected for a fault so far."""
        self._guard_fault_ns = -(1 << 62)
        """When something last kept the guard from its looks."""
        self.delivered_pass: set[int] = set()
        """Sequences whose PASS the PLC confirmed."""
        self.gate = GateOracle(self)
        self._trace = hashlib.sha256()
        self._sink_trace = hashlib.sha256()
        self._kernel = kernel
        self._shown_sequence = 0
        self._account: tuple[tuple[int, int], int, int] | None = None
        self._blind = 0
        self._judged_in_a_row = 0
        self._stopped = False
        """Has the line to stop for fail-safe verdicts?"""
        self._verdicts: set[int] = set()
        """Sequences that have their verdict."""
        self._hidden: set[int] = set()
        """Sequences whose results the PLC's program could not see."""
        self._ids: set[str] = set()
        """Part ids that the station has seen, and must know again."""
        self._foreign: set[int] = set()
        """Sequences of parts that came under an id of a part before them."""
        self._taken: dict[int, Shot] = {}
        """Of each camera the frame that the station took last."""

    @property
    def now_ns(self) -> int:
        """Virtual time."""
        return self._kernel.now_ns

    def fail(self, name: str, facts: str) -> None:
        """An invariant does not hold."""
        raise Violation(name, self._kernel.now_ns, facts)

    def note(self, *facts: object) -> None:
        """Something happened that must happen again with the same seed."""
        self._trace.update(repr((self._kernel.now_ns, *facts)).encode())

    def note_sink(self, *facts: object) -> None:
        """The same of what is told to the outside, which no verdict waits for."""
        self._sink_trace.update(repr((self._kernel.now_ns, *facts)).encode())

    @property
    def line_trace(self) -> str:
        """Hash of all that happened on the line."""
        return self._trace.hexdigest()[:16]

    @property
    def trace(self) -> str:
        """Hash of all that happened."""
        both = self._trace.copy()
        both.update(self._sink_trace.digest())
        return both.hexdigest()[:16]

    def fault(self, name: str) -> None:
        """A fault was injected."""
        self.faults[name] = self.faults.get(name, 0) + 1
        self.gate.fault(name)
        takes_ns = self.restart_ns if name in _ENDS_STATION else self.recovery_ns
        self._broken_until_ns = max(self._broken_until_ns, self._kernel.now_ns + takes_ns)
        if name in _GUARD_FAULTS:
            self._guard_fault_ns = self._kernel.now_ns
        self.note("fault", name)

    def ids_forgotten(self) -> None:
        """The PLC was restarted: its ids may begin anew."""
        self._ids.clear()

    def opened(self, sequence: int, piece: Piece | None, *, counted: int) -> None:
        """A station gave a part this number. `counted`: parts that the PLC has counted in all."""
        if sequence in self.owner:
            self.fail("I1 number used twice", f"sequence {sequence}")
        self.owner[sequence] = piece
        self.triggers += 1
        if self.triggers > counted:
            self.fail("I1 phantom", f"{self.triggers} parts have numbers, and the PLC counted {counted}")
        if piece is not None:
            if piece.shown_id in self._ids:
                self._foreign.add(sequence)
            self._ids.add(piece.shown_id)
        if piece is not None:
            piece.sequences.append(sequence)
            if len(piece.sequences) > piece.counts:
                self.fail(
                    "I1 phantom", f"piece {piece.number} was counted {piece.counts} times and has {piece.sequences}"
                )
        self.note("opened", sequence)

    def aged(self, piece: Piece, came_ns: int, *, poll_ns: int, fresh_ns: int) -> None:
        """The core thinks that a part that may be exposed came then: a poll too late at the most.

        Where readings are further apart it takes the part for older, by what they may be apart at the most.
        """
        early_ns = piece.at_ns - came_ns
        if piece.counts == 1 and not -poll_ns <= early_ns <= fresh_ns - poll_ns:
            self.fail("I2 age", f"piece {piece.number} came at {piece.at_ns} ns, and is taken for one of {came_ns} ns")

    def reopened(self, camera: int) -> None:
        """The station counts this camera's frames from anew."""
        self._taken.pop(camera, None)

    def claimed(self, shot: Shot, match: Match, *, sure: bool) -> None:
        """The core says whose a frame is. `sure`: nothing was ever wrong with this camera's connection."""
        again = self._taken.get(shot.camera) is shot
        self._taken[shot.camera] = shot
        if again and (match.claim is not Claim.DOUBLED or match.without):
            self.fail("I7 doubled frame", f"the same frame came twice, and is {match.claim}, without {match.without}")
        owner = self.owner.get(match.sequence)
        if match.claim is Claim.OWN and (owner is None or shot.content != owner.number):
            self.fail("I7 frame", f"it shows piece {shot.content}, and was given to {match.sequence}, which is {owner}")
        if sure and not again and (match.claim is not Claim.OWN or match.without):
            self.fail("I13 frame", f"nothing is wrong, and the frame of {shot.sequence} is {match}")

    def verdict(self, sequence: int, *, due_ns: int, waited_from_ns: int, deadline_ns: int) -> None:
        """The core says that this part has its verdict now.

        `due_ns`: of its fail-safe verdict, or of its number where that came later; `waited_from_ns`: since then the guard
        has nothing to do but to wait for what is due.
        """
        if sequence in self._verdicts:
            self.fail("I1 two verdicts", f"{sequence} has one already")
        now_ns = self._kernel.now_ns
        if waited_from_ns < due_ns and now_ns > due_ns + NS_PER_MS:
            self.fail(
                "I2 fail-safe", f"the guard waited, and {sequence} has a verdict {now_ns - due_ns} ns after it was due"
            )
        if now_ns > max(deadline_ns, due_ns + NS_PER_MS) and self._guard_fault_ns < deadline_ns - self.calm_ns:
            self.fail("I2 deadline", f"nothing is wrong, and {sequence} has no verdict by {deadline_ns} ns")
        self._verdicts.add(sequence)

    def settled(
        self, sequence: int, verdict: Verdict, cause: Cause, *, shots: list[Shot], score: float, within_ns: int
    ) -> None:
        """A part's verdict is final, as it goes out.

        `shots`: its judged frames; `within_ns`: after the part came, no later were they exposed.
        """
        self.passed += verdict is Verdict.PASS
        self.rejected += verdict is Verdict.REJECT
        piece = self.owner[sequence]
        self.note("settled", sequence, verdict, cause)
        if cause in JUDGED and sequence in self._foreign:
            self.fail("I7 id", f"{sequence} was judged under {piece and piece.shown_id}, which is of a part before it")
        if (verdict is Verdict.PASS) != (cause is Cause.OK):
            self.fail("I3 verdict and cause", f"{sequence}: {verdict} {cause}")
        if verdict is Verdict.PASS:
            self._passed(sequence, piece, shots, score, within_ns)
        elif piece is not None and cause in {Cause.DEFECT, Cause.ANOMALY, Cause.HOLD}:
            if any(shot.content != piece.number for shot in shots):
                self.fail("I7 identity", f"{sequence} is piece {piece.number}, its frames show {shots}")
            if not piece.defective:
                self.fail("I6 overkill", f"{sequence}: piece {piece.number} is good, cause {cause}")

    def _passed(self, sequence: int, piece: Piece | None, shots: list[Shot], score: float, within_ns: int) -> None:
        if piece is None:
            self.fail("I7 identity", f"{sequence} passed, and was never seen")
            return
        ages = [shot.exposed_ns - piece.at_ns for shot in shots]
        if piece.counts == 1 and any(not 0 <= age_ns <= within_ns for age_ns in ages):
            self.fail("I8 frame", f"{sequence} passed on frames {ages} ns after it came")
        if not shots or any(shot.content != piece.number for shot in shots):
            self.fail("I7 identity", f"{sequence} is piece {piece.number}, its frames show {shots}")
        if piece.defective:
            self.fail("I6 escape", f"{sequence}: piece {piece.number} is defective, score {score}")
        if not 0 <= score <= 1:
            self.fail("I12 score", f"{sequence}: PASS on a score of {score}")

    def counts(self, under_way: int) -> None:
        """Looked at after each event."""
        for name in balance(
            triggers=self.triggers - self.lost_in_crash,
            passed=self.passed,
            rejected=self.rejected,
            under_way=under_way,
        ):
            self.fail(
                name, f"{self.triggers} = {self.passed} + {self.rejected} + {under_way} + {self.lost_in_crash} lost"
            )

    def hidden(self, sequence: int) -> None:
        """A write that the PLC executed late took the place of this result before its program looked."""
        self._hidden.add(sequence)

    def visible(self, block: PlcResult) -> None:
        """A write was executed: this is in the PLC's registers now."""
        verdict = block.verdict
        for name in signals(
            passing=verdict is Verdict.PASS,
            rejecting=verdict is Verdict.REJECT,
            valid=verdict is not None,
            fault=block.fault,
            code=block.code,
            ok_code=RESULT_CODE[Cause.OK],
        ):
            self.fail(name, f"{block}")
        self.note("visible", block.sequence, verdict, block.code, block.busy, block.ready)

    def write_begun(self, block: PlcResult, *, latest_ns: int, durable: bool, fresh_link: bool = False) -> None:
        """A write of this block is begun. `latest_ns`: after the part came, no PASS of it is begun later."""
        if fresh_link and (block.verdict is not None or block.ready):
            self.fail("I11 start", f"a fresh link begins with {block}")
        if block.verdict is None or block.sequence == self._shown_sequence:
            return
        if block.sequence < self._shown_sequence:
            self.fail("I5 order", f"{block.sequence} after {self._shown_sequence}")
        self._shown_sequence = block.sequence
        piece = self.owner.get(block.sequence)
        # A PLC that restarts near its counter's wrap looks like one that counted on: a number without a part.
        if block.part_id != (str(block.sequence) if piece is None else piece.shown_id):
            self.fail("I7 echo", f"{block.sequence} announced as {block.part_id}")
        if block.verdict is not Verdict.PASS:
            return
        if piece is None:
            self.fail("I6 escape", f"{block.sequence} passes, and is no part's")
            return
        if not durable:
            self.fail("I4 journal", f"{block.sequence} announced before its record is safe")
        if self._kernel.now_ns - piece.at_ns > latest_ns and piece.counts == 1:
            self.fail(
                "I2 deadline", f"PASS of {block.sequence} begun {self._kernel.now_ns - piece.at_ns} ns after it came"
            )

    def accounted(self, life: int, counter: int, sequence: int, *, restarts: int) -> None:
        """After each reading: as many numbers were given as the PLC counted."""
        if self._account is not None and self._account[0] == (life, restarts):
            _, before, given = self._account
            if (counter - before) % 65_536 != sequence - given:
                self.fail("I1 count", f"the PLC counted {before} to {counter}, the station {given} to {sequence}")
        self._account = (life, restarts), counter, sequence

    def begin_anew(self) -> None:
        """The station's memory is gone, and what it had counted."""
        self._blind = self._judged_in_a_row = 0
        self._stopped = False
        self._ids.clear()
        self._taken.clear()

    def blind(self, cause: Cause, *, asked: StopReason | None) -> None:
        """Three fail-safe verdicts in a row ask for a stop, two do not; three judged ones end it, and two do not."""
        self._blind = 0 if cause in JUDGED else self._blind + 1
        self._judged_in_a_row = self._judged_in_a_row + 1 if cause in JUDGED else 0
        if self._blind >= _IN_A_ROW and asked is None:
            self.fail("I11 stop", f"{self._blind} fail-safe verdicts in a row, and nobody asked for a stop")
        if self._blind >= _IN_A_ROW:
            self._stopped = True
        elif self._judged_in_a_row >= _IN_A_ROW:
            self._stopped = False
        if (asked is StopReason.FAIL_SAFE) is not self._stopped and asked is not StopReason.GATE:
            self.fail(
                "I11 stop",
                f"{self._blind} fail-safe verdicts, {self._judged_in_a_row} judged in a row, and the stop is {asked}",
            )

    def decided(self, piece: Piece, verdict: Verdict, *, told: bool = True) -> None:
        """The PLC's program took a decision; not `told`: because the window was over."""
        piece.decision = verdict
        self.note("decided", piece.number, verdict)
        if verdict is Verdict.PASS and piece.defective:
            self.fail("I6 escape", f"the PLC let piece {piece.number} through, which is defective")
        broken = self._broken_until_ns >= piece.at_ns
        if verdict is Verdict.REJECT and not piece.defective and not broken:
            self.fail("I6 overkill", f"nothing is broken, piece {piece.number} is good, and the PLC rejected it")
        seen = any(sequence in self.delivered_pass and sequence not in self._hidden for sequence in piece.sequences)
        if not told and seen:
            self.fail("I1 unseen", f"piece {piece.number} passed, the PLC confirmed it, and its program never saw it")
