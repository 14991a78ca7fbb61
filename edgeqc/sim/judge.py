"""What the PLC thinks of the daemon's results: right part, in time, one bit, once. Pure; told times, reads no clock.

A part is late where its result was written more than budget plus allowance after its trigger. The allowance stands for
what is not in the daemon's budget: the wait for its next poll of the trigger block (PLC trigger), or exposure and
transfer of the frame (camera trigger). It is stated beside every figure.

By part id (PLC trigger) a result belongs to the part that it names. In order (camera trigger, where the PLC names no
part) a new sequence belongs to the newest exposure before it, so results must come within one takt to be told apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgeqc.plc.registers import ResultImage, Status
from edgeqc.records import NS_PER_MS, NS_PER_S, RESULT_CODE, Cause

SETTLE_NS: Final = NS_PER_S
"""How long after its deadline a part is still watched for a second result before its line is written."""
_FAIL_SAFE_CODE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """One part as the PLC saw it."""

    part: int
    part_id: str
    triggered_ns: int
    """Monotonic."""
    result: str
    """pass, reject or none; none too where both bits were set."""
    code: int
    sequence: int
    latency_ms: float | None
    in_time: bool
    faults: list[str]
    """late, none, both_bits, valid_without_bit, bit_without_valid, code, sequence, duplicate, contradiction."""
    defective: bool | None
    """The truth, where it is known."""


class Judge:
    """Collects triggers and writes in the order of their times and says what was wrong."""

    def __init__(
        self, *, budget_ns: int, allowance_ns: int, by_part_id: bool, truth: Sequence[bool] | None = None
    ) -> None:
        """`truth` says for each image whether it is defective; part n shows image n modulo their number."""
        self._budget_ns = budget_ns
        self._allowance_ns = allowance_ns
        self._by_part_id = by_part_id
        self._truth = truth
        self._parts: list[_Part] = []
        self._by_name: dict[str, _Part] = {}
        self._by_sequence: dict[int, _Part] = {}
        self._shown: _Part | None = None
        """Whose result was seen last."""
        self._settled = 0
        self._matched = -1
        self._highest = 0
        self._last: tuple[int, int] | None = None
        self._gap_ns = 0
        self._counts: Counter[str] = Counter()
        self._strays: list[str] = []

    def part(self, part: int, part_id: str, at_ns: int, *, judged: bool = True) -> None:
        """A part was triggered or exposed; with `judged` off it only takes up its own result."""
        entry = _Part(number=part, part_id=part_id, at_ns=at_ns, judged=judged)
        self._parts.append(entry)
        self._by_name[part_id] = entry

    def wrote(self, image: ResultImage, at_ns: int) -> None:
        """The daemon wrote the result block."""
        self._beat(image.heartbeat, at_ns)
        if not self._parts:
            return  # what is left of an earlier run names parts that this judge never saw
        status = image.status
        bits = status & (Status.PASS | Status.REJECT)
        valid = bool(status & Status.RESULT_VALID)
        if not bits and not valid:  # ready, busy or heartbeat: no result
            if self._shown is not None:
                self._shown.taken_back = True
            return
        part = self._part_of(image, at_ns)
        self._look_at_form(image, part)
        if part is None:
            self._counts["wrong_part"] += 1
            self._strays.append(f"{image.part_id or '(empty)'} #{image.sequence}")
            return
        if part.answer is None:
            if image.sequence <= self._highest:
                part.fault("sequence")
            self._highest = max(self._highest, image.sequence)
            part.answer, part.answered_ns = image, at_ns
        elif (image.sequence, bits, image.code) != part.said:
            part.fault("contradiction" if bits != part.said[1] else "duplicate")
        elif part.taken_back:
            part.fault("duplicate")
        self._shown = part

    def settled(self, now_ns: int) -> Iterator[PartReport]:
        """Parts that nothing can happen to any more, each once, in order."""
        while self._settled < len(self._parts):
            part = self._parts[self._settled]
            if now_ns <= part.at_ns + self._budget_ns + self._allowance_ns + SETTLE_NS:
                return
            self._settled += 1
            if part.judged:
                yield self._report(part)

    def rest(self) -> Iterator[PartReport]:
        """All that have not been reported, at the end."""
        rest, self._settled = self._parts[self._settled :], len(self._parts)
        yield from (self._report(part) for part in rest if part.judged)

    def summary(self) -> dict[str, Any]:
        """Every count there is; all but triggers, answered, pass, reject, fail_safe and writes should be 0."""
        reports = [self._report(part) for part in self._parts if part.judged]
        faults = Counter(fault for report in reports for fault in report.faults)
        results = Counter(report.result for report in reports)
        latencies = sorted(report.latency_ms for report in reports if report.latency_ms is not None)
        known = [report for report in reports if report.defective is not None and report.result != "none"]
        confusion = Counter((report.defective, report.result) for report in known)
        return {
            "triggers": len(reports),
            "answered": len(latencies),
            "pass": results["pass"],
            "reject": results["reject"],
            "fail_safe": sum(report.code >= _FAIL_SAFE_CODE for report in reports),
            "none": faults["none"],
            "late": faults["late"],
            "wrong_part": self._counts["wrong_part"],
            "both_bits": self._counts["both_bits"],
            "valid_without_bit": self._counts["valid_without_bit"],
            "bit_without_valid": self._counts["bit_without_valid"],
            "code": self._counts["code"],
            "sequence": faults["sequence"],
            "duplicates": faults["duplicate"] + faults["contradiction"],
            "contradictions": faults["contradiction"],
            "strays": self._strays[:10],
            "writes": self._counts["writes"],
            "heartbeat_stuck": self._counts["heartbeat_stuck"],
            "heartbeat_gap_max_ms": round(self._gap_ns / NS_PER_MS, 3),
            "budget_ms": self._budget_ns / NS_PER_MS,
            "allowance_ms": self._allowance_ns / NS_PER_MS,
            "latency_ms": {
                "p50": _quantile(latencies, 0.5),
                "p99": _quantile(latencies, 0.99),
                "max": _quantile(latencies, 1),
            },
            "confusion": {
                "tp": confusion[True, "reject"],
                "fp": confusion[False, "reject"],
                "tn": confusion[False, "pass"],
                "fn": confusion[True, "pass"],
            },
        }

    def _look_at_form(self, image: ResultImage, part: _Part | None) -> None:
        """Do bits and code go together?"""
        bits = image.status & (Status.PASS | Status.REJECT)
        valid = bool(image.status & Status.RESULT_VALID)
        for name, seen in (
            ("both_bits", bits == Status.PASS | Status.REJECT),
            ("valid_without_bit", valid and not bits),
            ("bit_without_valid", bool(bits) and not valid),
            ("code", bool(bits) and (bits == Status.PASS) != (image.code == RESULT_CODE[Cause.OK])),
            ("code", image.code == 0),
        ):
            if seen and (part is None or name not in part.faults):
                self._counts[name] += 1
                if part is not None:
                    part.faults.append(name)

    def _beat(self, heartbeat: int, at_ns: int) -> None:
        self._counts["writes"] += 1
        if self._last is not None:
            self._gap_ns = max(self._gap_ns, at_ns - self._last[1])
            self._counts["heartbeat_stuck"] += heartbeat == self._last[0]
        self._last = (heartbeat, at_ns)

    def _part_of(self, image: ResultImage, at_ns: int) -> _Part | None:
        if self._by_part_id:
            return self._by_name.get(image.part_id)
        known = self._by_sequence.get(image.sequence)
        if known is not None:
            return known
        newest = next((i for i in reversed(range(len(self._parts))) if self._parts[i].at_ns <= at_ns), -1)
        if newest <= self._matched:
            return None
        self._matched = newest
        self._by_sequence[image.sequence] = self._parts[newest]
        return self._parts[newest]

    def _report(self, part: _Part) -> PartReport:
        faults = list(part.faults)
        latency_ns: int | None = None
        in_time = False
        if part.answer is None:
            faults.append("none")
        else:
            latency_ns = part.answered_ns - part.at_ns
            in_time = latency_ns <= self._budget_ns + self._allowance_ns
            if not in_time:
                faults.append("late")
        answer = part.answer
        bits = answer.status & (Status.PASS | Status.REJECT) if answer else Status(0)
        truth = self._truth
        return PartReport(
            part=part.number,
            part_id=part.part_id,
            triggered_ns=part.at_ns,
            result={Status.PASS: "pass", Status.REJECT: "reject"}.get(bits, "none"),
            code=answer.code if answer else 0,
            sequence=answer.sequence if answer else 0,
            latency_ms=None if latency_ns is None else round(latency_ns / NS_PER_MS, 3),
            in_time=in_time,
            faults=faults,
            defective=None if truth is None else bool(truth[part.number % len(truth)]),
        )


@dataclass(slots=True, kw_only=True)
class _Part:
    """A part and what was said of it."""

    number: int
    part_id: str
    at_ns: int
    judged: bool
    answer: ResultImage | None = None
    """The first result."""
    answered_ns: int = 0
    taken_back: bool = False
    """Its result is shown no more: shown again it would be taken for another part's."""
    faults: list[str] = field(default_factory=list)

    @property
    def said(self) -> tuple[int, Status, int]:
        """What a repeated write of the same result has in common."""
        if self.answer is None:
            return 0, Status(0), 0
        return self.answer.sequence, self.answer.status & (Status.PASS | Status.REJECT), self.answer.code

    def fault(self, name: str) -> None:
        """Note it once."""
        if name not in self.faults:
            self.faults.append(name)


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None
