"""Planted bugs: each a change of the shipping code's text, which must be noticed.

`mutated` loads core and simulation anew with one module's text changed, and puts everything back.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

RELOADED = ("edgeqc.core", "edgeqc.office.courier", "edgeqc.sim.virtual")
CAMPAIGN = "edgeqc.sim.virtual.campaign"


@dataclass(frozen=True)
class Mutant:
    """One planted bug."""

    name: str
    module: str
    before: str
    after: str
    seed: int = 0
    """Of a line on which it shows."""
    breaks: str = ""
    """The invariant that it violates there."""
    fails: str = ""
    """Instead: `module.function`, the test of the rule that fails with it: no line can show it."""


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self._mutant = mutant

    def get_code(self, fullname: str):
        text = Path(self.path).read_text()
        assert text.count(self._mutant.before) == 1, f"{self._mutant.name}: not once in {fullname}"
        return compile(text.replace(self._mutant.before, self._mutant.after), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, fullname, path, target=None):
        if fullname != f"edgeqc.{self._mutant.module}":
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        return importlib.util.spec_from_loader(fullname, _Loader(fullname, found.origin, self._mutant))


@contextmanager
def mutated(mutant: Mutant, *, test: str = "") -> Iterator[ModuleType]:
    """The simulation's campaign module around code with this bug. `test`: that module of tests instead."""
    reloaded = (*RELOADED, test) if test else RELOADED
    kept = {name: module for name, module in sys.modules.items() if name.startswith(reloaded)}
    finder = _Finder(mutant)
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module(test or CAMPAIGN)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith(reloaded)]:
            del sys.modules[name]
        sys.modules.update(kept)


def _core(
    name: str, module: str, before: str, after: str, *, seed: int = 0, breaks: str = "", fails: str = ""
) -> Mutant:
    return Mutant(name, f"core.{module}", before, after, seed=seed, breaks=breaks, fails=fails)


def _courier(name: str, before: str, after: str, *, seed: int, breaks: str) -> Mutant:
    return Mutant(name, "office.courier", before, after, seed=seed, breaks=breaks)


MUTANTS = [
    _core(
        "a standing trigger counts again",
        "account",
        "if distance == 0:",
        "if distance < 0:",
        seed=0,
        breaks="I1 phantom",
    ),
    _core(
        "counters compared without their wrap",
        "account",
        "distance = (after - before) % cycle",
        "distance = after - before",
        seed=7,
        breaks="I13 gate",
    ),
    _core(
        "the 0 of a restart near the wrap taken for a part",
        "account",
        " and not (counter == 0 and missed)",
        "",
        seed=1_001_471,
        breaks="I7 frame",
    ),
    _core("one missed part too many", "account", "missed=distance - 1)", "missed=distance)", seed=3, breaks="I1 count"),
    _core(
        "a reading that was overtaken counts",
        "account",
        "if read_ns < self._read_ns:",
        "if read_ns < 0:",
        seed=37,
        breaks="I1 phantom",
    ),
    _core("missed parts forgotten", "account", "missed=distance - 1)", "missed=0)", seed=3, breaks="I1 count"),
    _core(
        "the old trigger taken for a part",
        "account",
        "{Step.FIRST, Step.SAME}",
        "{Step.SAME}",
        seed=0,
        breaks="I1 phantom",
    ),
    _core(
        "a stale trigger taken for fresh",
        "account",
        "fresh=known and gap_ns <= self._fresh_ns",
        "fresh=True",
        seed=75,
        breaks="I2 age",
    ),
    _core(
        "the counter not asked",
        "exposure",
        "if owner.ordinal != ordinal or not owner.open:",
        "if not owner.open:",
        seed=5,
        breaks="I7 frame",
    ),
    _core(
        "the oldest part gets the frame",
        "exposure",
        "for exposure in reversed(self._exposures):\n            if exposure.at_ns",
        "for exposure in self._exposures:\n            if exposure.at_ns",
        seed=0,
        breaks="I13 frame",
    ),
    _core(
        "the latest frame is the part's",
        "exposure",
        "if exposure.at_ns + self._least_ns - slack_ns <= first_ns:\n                return exposure if first_ns - exposure.at_ns <= self._most_ns else None",
        "return exposure",
        seed=41,
        breaks="I13 frame",
    ),
    _core(
        "a pipeline before the counter is known",
        "exposure",
        "(self._base is not None or not self.outstanding)",
        "True",
        fails="test_accounting.test_one_part_at_a_time_until_the_cameras_counter_is_known",
    ),
    _core(
        "a frame that stays out is not noticed",
        "exposure",
        "            if exposure.open:\n                return self._doubt()",
        "            if exposure is None:\n                return self._doubt()",
        seed=29,
        breaks="I13 recovery",
    ),
    _core(
        "verdicts overtake each other",
        "flight",
        "if self.parts and self.parts[0].settled:\n            return self.parts.popleft()",
        "for part in self.parts:\n            if part.settled:\n                self.parts.remove(part)\n                return part",
        seed=5,
        breaks="production check",
    ),
    _core(
        "NaN is an ordinary score",
        "decide",
        "if not engine_ok or not math.isfinite(score) or not 0 <= score <= 1:",
        "if not engine_ok:",
        seed=0,
        breaks="I6 overkill",
    ),
    _core(
        "NaN passes",
        "decide",
        "if not engine_ok or not math.isfinite(score) or not 0 <= score <= 1:\n        return Cause.ENGINE",
        "if score != score:\n        return Cause.OK",
        seed=0,
        breaks="production check",
    ),
    _core("bad tags do not matter", "decide", "if not tags_good:", "if tags_good is None:", seed=4, breaks="I8 tags"),
    _core(
        "the threshold is not asked",
        "decide",
        "if score < (threshold if hold is None else min(hold, threshold)):",
        "if score <= 1:",
        seed=0,
        breaks="production check",
    ),
    _core(
        "overdue is a pass",
        "decide",
        "return Verdict.REJECT, Cause.LATE if frame_came else Cause.NO_FRAME",
        "return Verdict.PASS, Cause.OK",
        seed=3,
        breaks="production check",
    ),
    _core(
        "announced before it is journaled",
        "decide",
        "    if not journaled:\n        return Verdict.REJECT, Cause.JOURNAL\n",
        "",
        seed=28,
        breaks="production check",
    ),
    _core(
        "a pass that nobody hears",
        "decide",
        "    if not plc_up:\n        return Verdict.REJECT, Cause.PLC\n",
        "",
        seed=5,
        breaks="I1 unheard",
    ),
    _core(
        "the best view counts",
        "views",
        "_badness(ruling) > _badness(worst)",
        "_badness(ruling) < _badness(worst)",
        seed=4,
        breaks="production check",
    ),
    _core(
        "the last view counts",
        "views",
        "if worst is None or _badness(ruling) > _badness(worst):",
        "if True:",
        seed=4,
        breaks="production check",
    ),
    _core(
        "one view is enough",
        "lane",
        "return all(one is not None for one in part.views)",
        "return any(one is not None for one in part.views)",
        seed=1,
        breaks="I6 overkill",
    ),
    _core(
        "exposed when it has moved on",
        "lane",
        "if not fresh or now_ns - trigger_ns > self._expose_within_ns:",
        "if fresh is None:",
        seed=0,
        breaks="I2 age",
    ),
    _core(
        "exposed while the camera is in doubt",
        "lane",
        "if self.unready(now_ns) >= 0:",
        "if not self.cameras:",
        seed=130,
        breaks="I7 frame",
    ),
    _core(
        "the result of the part before",
        "handshake",
        "sequence=sequence if shown is None else shown.sequence,",
        "sequence=sequence if shown is None else shown.sequence - 1,",
        seed=0,
        breaks="I7 echo",
    ),
    _core(
        "a result under the newest part's id",
        "handshake",
        "part_id=part_id if shown is None else shown.part_id,",
        "part_id=part_id,",
        seed=3,
        breaks="I6 escape",
    ),
    _core(
        "the newest waiting result first",
        "handshake",
        "self._put(self._waiting.popleft())",
        "self._put(self._waiting.pop())",
        seed=41,
        breaks="I5 order",
    ),
    _core(
        "an acknowledgement brings nothing",
        "handshake",
        "(Phase.VALID, Event.ACK_NEXT): (Phase.OFFERED, Act.NEXT)",
        "(Phase.VALID, Event.ACK_NEXT): (Phase.VALID, Act.NOTHING)",
        seed=4,
        breaks="I13 recovery",
    ),
    _core(
        "a hanging loop is not seen",
        "restart",
        'return next((loop for loop, most_ns in limits_ns.items() if now_ns - beats.get(loop, started_ns) > most_ns), "")',
        'return ""',
        seed=41,
        breaks="I6 overkill",
    ),
    _core(
        "the link comes back after an hour",
        "backoff",
        "plain = min(self.most_s, ",
        "plain = 3600 + min(self.most_s, ",
        seed=3,
        breaks="I13 recovery",
    ),
    _core(
        "nothing kept back for the fail-safe verdict",
        "budget",
        "- self.plc_write_ns",
        "+ self.plc_write_ns",
        seed=11,
        breaks="I2 deadline",
    ),
    _core(
        "the gate opens for every part",
        "track",
        "if tracked.passed or tracked.gone:",
        "if tracked.gone:",
        seed=1,
        breaks="I6 gate",
    ),
    _core(
        "the gate opens for known rejects only",
        "track",
        "    passed: bool = False",
        "    passed: bool = True",
        seed=1,
        breaks="I6 gate",
    ),
    _core(
        "the gate is at the camera",
        "track",
        "gate=position + self._layout.travel",
        "gate=position",
        seed=1,
        breaks="I13 gate",
    ),
    _core(
        "the gate is open for too short",
        "track",
        "if position < tracked.gate + layout.length:",
        "if position < tracked.gate + layout.length // 8:",
        seed=1,
        breaks="I13 gate",
    ),
    _core(
        "parts are lost in silence",
        "track",
        "return [_event(GateFact.UNTRACKED, tracked) for tracked in parts if not tracked.passed]",
        "return []",
        seed=5,
        breaks="I6 gate",
    ),
    _core(
        "parts are lost in silence, long before a station is killed",
        "track",
        "return [_event(GateFact.UNTRACKED, tracked) for tracked in parts if not tracked.passed]",
        "return []",
        seed=23,
        breaks="I6 gate",
    ),
    _core(
        "a part that cannot be placed is not told",
        "track",
        "return [GateEvent(fact=GateFact.UNTRACKED, sequence=sequence, part_id=part_id)]",
        "return []",
        seed=21,
        breaks="I6 gate",
    ),
    _core(
        "parts go by in silence",
        "track",
        "events.append(_event(GateFact.WENT_BY, tracked))",
        "pass",
        seed=47,
        breaks="I6 gate",
    ),
    _core(
        "an ejector that did not fire is not told",
        "track",
        "events.append(_event(GateFact.NOT_EJECTED, self._unconfirmed.popleft()))",
        "self._unconfirmed.popleft()",
        seed=47,
        breaks="I6 gate",
    ),
    _core(
        "a part that can be placed is told as one that cannot, after a fault long ago",
        "conveyor",
        "if at_ns is None or blind:",
        "if at_ns is None or blind or sequence % 97 == 0:",
        seed=15,
        breaks="I13 gate",
    ),
    _core(
        "confirmations are not counted",
        "track",
        "self._unconfirmed.popleft()\n            else:",
        "pass\n            else:",
        seed=1,
        breaks="I13 gate",
    ),
    _core(
        "time counts while the line stands",
        "axis",
        "(at_ns - last_ns if running else 0)))\n        return True",
        "(at_ns - last_ns)))\n        return True",
        seed=5,
        breaks="I6 gate",
    ),
    _core(
        "an encoder set anew is movement", "axis", "if abs(step) > self._most_step or", "if", seed=47, breaks="I6 gate"
    ),
    _core(
        "nobody asks for a stop",
        "stopping",
        "if 0 < limits.fail_safe_in_a_row <= self.in_a_row:",
        "if limits.fail_safe_in_a_row < 0:",
        seed=3,
        breaks="I11 stop",
    ),
    _core(
        "the first fail-safe verdict asks for a stop",
        "stopping",
        "0 < limits.fail_safe_in_a_row <= self.in_a_row",
        "0 < limits.fail_safe_in_a_row and self.in_a_row",
        seed=4,
        breaks="I11 stop",
    ),
    _core(
        "a stop is asked for without an end",
        "stopping",
        "return self._judged_in_a_row >= self._limits.fail_safe_in_a_row",
        "return False",
        seed=8,
        breaks="I11 stop",
    ),
    _core(
        "good parts are late, now and then",
        "decide",
        "    if not plc_up:\n        return Verdict.REJECT, Cause.PLC\n",
        "    if not plc_up or now_ns // 1_000_000 % 3 == 0:\n        return Verdict.REJECT, Cause.LATE\n",
        seed=1,
        breaks="I6 overkill",
    ),
    # --- parts and their ids ---
    _core(
        "a doubled id judged",
        "account",
        "doubled = bool(part_id) and part_id == self._last",
        "doubled = False",
        fails="test_accounting.test_the_part_id_of_the_part_before_is_a_doubled_part",
    ),
    _core("a swapped id judged", "account", "part_id in self._ids\n", "False\n", seed=29, breaks="I7 id"),
    _core("judged under an id that is another's", "lane", "if not known:", "if known is None:", seed=0, breaks="I7 id"),
    _core(
        "a restart taken for missed parts",
        "account",
        " or moved.missed > MOST_MISSED",
        "",
        seed=64,
        breaks="I1 phantom",
    ),
    _core("a part's age forgotten", "account", "waited_ns=gap_ns", "waited_ns=0", seed=0, breaks="I2 age"),
    _core(
        "zero taken for a frame number",
        "account",
        "GVSP_CYCLE: Final = 65_535",
        "GVSP_CYCLE: Final = 65_536",
        seed=9,
        breaks="I13 frame",
    ),
    _core(
        "a doubled frame judged",
        "exposure",
        "if moved.step is Step.SAME:",
        "if moved.step is None:",
        seed=5,
        breaks="I7 doubled frame",
    ),
    _core(
        "a late exposure judged",
        "exposure",
        "if first_ns - usual_ns > owner.until_ns:",
        "if first_ns < 0:",
        seed=0,
        breaks="I7 frame",
    ),
    _core(
        "a reopened camera's counter trusted",
        "exposure",
        "        self._base = None\n        self._frame_id = None\n",
        "",
        seed=28,
        breaks="I13 frame",
    ),
    _core(
        "a camera that counts anew is stale for ever",
        "exposure",
        "        self._frame_id = frame_id\n        if moved.step is Step.BACK:",
        "        if moved.step is not Step.BACK:\n            self._frame_id = frame_id\n        if moved.step is Step.BACK:",
        seed=0,
        breaks="I13 recovery",
    ),
    _core(
        "two verdicts for a part",
        "flight",
        "if part.settled:\n            return False",
        "if part.settled:\n            return True",
        seed=0,
        breaks="I1 two verdicts",
    ),
    _core(
        "no fail-safe verdict",
        "flight",
        "and part.fail_safe_at_ns <= now_ns]",
        "and part.fail_safe_at_ns < 0]",
        seed=0,
        breaks="I2 fail-safe",
    ),
    _core(
        "nobody knows when the fail-safe verdict is due",
        "lane",
        "return self._flight.due_ns()",
        "return None",
        seed=20,
        breaks="I2 fail-safe",
    ),
    _core(
        "a pass after the time",
        "decide",
        "    if now_ns >= fail_safe_at_ns:\n        return Verdict.REJECT, Cause.LATE\n    return verdict",
        "    return verdict",
        seed=6,
        breaks="production check",
    ),
    _core(
        "a picture may be as old as it likes",
        "lane",
        "trigger_ns + self._expose_within_ns)",
        "trigger_ns + (1 << 62))",
        seed=0,
        breaks="I7 frame",
    ),
    _core(
        "a swapped frame leaves its part waiting",
        "lane",
        "found = (self._parts.get(sequence) for sequence in sequences)",
        "found = (self._parts.get(sequence + 1) for sequence in sequences)",
        seed=0,
        breaks="I7 given up",
    ),
    _core(
        "any acknowledgement releases",
        "handshake",
        "if not _same(sequence, self._shown.sequence):",
        "if sequence < 0:",
        seed=0,
        breaks="I7 acknowledgement",
    ),
    _core(
        "a code without a result",
        "handshake",
        "code=0 if shown is None else shown.code,",
        "code=10 if shown is None else shown.code,",
        seed=0,
        breaks="I3 code",
    ),
    _core(
        "a restart takes for ever",
        "restart",
        "return self.backoff.delay_s(self._over, lot)",
        "return 3600.0",
        seed=14,
        breaks="I13 recovery",
    ),
    _core(
        "the encoder's wrap is a leap",
        "axis",
        "step = (raw - before + half) % self._cycle - half",
        "step = raw - before",
        seed=9,
        breaks="I13 gate",
    ),
    _core(
        "fail-safe verdicts are not counted in a row",
        "stopping",
        "self.in_a_row + 1 if blind else 0",
        "1 if blind else 0",
        seed=0,
        breaks="I11 stop",
    ),
    _core(
        "frames in doubt judged",
        "exposure",
        "if now_ns < self._doubt_until_ns:",
        "if now_ns < 0:",
        fails="test_lane.test_a_frame_that_comes_while_nothing_is_trusted_is_nobodys",
    ),
    _core(
        "a second frame judged",
        "exposure",
        "one.ordinal <= owner.ordinal",
        "one.ordinal < owner.ordinal",
        fails="test_accounting.test_a_frame_that_comes_twice_is_judged_once",
    ),
    _core(
        "exposing while in doubt",
        "exposure",
        "return now_ns >= self._doubt_until_ns and (",
        "return (",
        fails="test_accounting.test_a_trigger_that_the_camera_ignored_gives_no_part_anothers_frame",
    ),
    _core(
        "the result stays when the link is lost",
        "handshake",
        "            case Act.FORGET:\n                self._put(None)\n",
        "            case Act.FORGET:\n",
        fails="test_handshake.test_a_link_that_is_lost_leaves_no_result_to_be_shown",
    ),
    _courier(
        "settled when it is sent",
        "        self.published += 1\n        if qos:",
        "        self.published += 1\n        if row:\n            self._archive.put(Settled(ids=[row.id]))\n        if qos:",
        seed=0,
        breaks="I9 lost",
    ),
    _courier(
        "a refusal is a success",
        "if refusal is not None:\n                self._refuse",
        "if False:\n                self._refuse",
        seed=0,
        breaks="I9 refused",
    ),
    _courier(
        "no bound",
        "while len(self._sent) < self._connection.inflight:",
        "while len(self._sent) < 10**6:",
        seed=1,
        breaks="I10 bound",
    ),
    _courier("the newest first", "return lane.rows.popleft()", "return lane.rows.pop()", seed=0, breaks="I10 order"),
    _courier(
        "acknowledgements are not heard",
        "if sent.row:\n                done",
        "if sent.row < 0:\n                done",
        seed=0,
        breaks="I13 outbox",
    ),
]
