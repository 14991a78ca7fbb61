"""Planted bugs: each a change of the shipping core's text, which the simulated line must notice.

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

RELOADED = ("edgeqc.core", "edgeqc.sim.virtual")


@dataclass(frozen=True)
class Mutant:
    """One planted bug."""

    name: str
    module: str
    before: str
    after: str


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
def mutated(mutant: Mutant) -> Iterator[ModuleType]:
    """The simulation's campaign module, around a core with this bug."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith(RELOADED)}
    finder = _Finder(mutant)
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module("edgeqc.sim.virtual.campaign")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith(RELOADED)]:
            del sys.modules[name]
        sys.modules.update(kept)


def _core(name: str, module: str, before: str, after: str) -> Mutant:
    return Mutant(name, f"core.{module}", before, after)


MUTANTS = [
    _core("a standing trigger counts again", "account", "if distance == 0:", "if distance < 0:"),
    _core(
        "counters compared without their wrap",
        "account",
        "distance = (after - before) % cycle",
        "distance = after - before",
    ),
    _core("one missed part too many", "account", "missed=distance - 1)", "missed=distance)"),
    _core("missed parts forgotten", "account", "missed=distance - 1)", "missed=0)"),
    _core("the old trigger taken for a part", "account", "{Step.FIRST, Step.SAME}", "{Step.SAME}"),
    _core(
        "a stale trigger taken for fresh", "account", "fresh=not restarted and gap_ns <= self._fresh_ns", "fresh=True"
    ),
    _core("a doubled id judged", "account", "doubled = bool(part_id) and part_id == self._last_id", "doubled = False"),
    _core("a swapped id judged", "account", "part_id in self._ids\n", "False\n"),
    _core("a restart taken for missed parts", "account", " or moved.missed > MOST_MISSED", ""),
    _core("a part's age forgotten", "account", "waited_ns=gap_ns", "waited_ns=0"),
    _core("a doubled frame judged", "exposure", "if moved.step is Step.SAME:", "if moved.step is None:"),
    _core("frames in doubt judged", "exposure", "if now_ns < self._doubt_until_ns:", "if now_ns < 0:"),
    _core("the counter not asked", "exposure", "if owner.ordinal != ordinal or not owner.open:", "if not owner.open:"),
    _core("a second frame judged", "exposure", "one.ordinal <= owner.ordinal", "one.ordinal < owner.ordinal"),
    _core("a late exposure judged", "exposure", "if first_ns - usual_ns > owner.until_ns:", "if first_ns < 0:"),
    _core(
        "the oldest part gets the frame",
        "exposure",
        "for exposure in reversed(self._exposures):\n            if exposure.at_ns",
        "for exposure in self._exposures:\n            if exposure.at_ns",
    ),
    _core(
        "the latest frame is the part's",
        "exposure",
        "if exposure.at_ns + self._least_ns - slack_ns <= first_ns:\n                return exposure if first_ns - exposure.at_ns <= self._most_ns else None",
        "return exposure",
    ),
    _core("exposing while in doubt", "exposure", "return now_ns >= self._doubt_until_ns and (", "return ("),
    _core(
        "a pipeline before the counter is known", "exposure", "(self._base is not None or not self.outstanding)", "True"
    ),
    _core(
        "a reopened camera's counter trusted",
        "exposure",
        "        self._base = None\n        self._frame_id = None\n",
        "",
    ),
    _core("zero taken for a frame number", "account", "GVSP_CYCLE: Final = 65_535", "GVSP_CYCLE: Final = 65_536"),
    _core(
        "a camera that counts anew is stale for ever",
        "exposure",
        "        self._frame_id = frame_id\n        if moved.step is Step.BACK:",
        "        if moved.step is not Step.BACK:\n            self._frame_id = frame_id\n        if moved.step is Step.BACK:",
    ),
    _core("a frame that stays out is not noticed", "exposure", "due = any(", "due = False and any("),
    _core(
        "two verdicts for a part",
        "flight",
        "if part.settled:\n            return False",
        "if part.settled:\n            return True",
    ),
    _core(
        "verdicts overtake each other",
        "flight",
        "if self._parts and self._parts[0].settled:\n            return self._parts.popleft()",
        "for part in self._parts:\n            if part.settled:\n                self._parts.remove(part)\n                return part",
    ),
    _core("no fail-safe verdict", "flight", "and part.fail_safe_at_ns <= now_ns]", "and part.fail_safe_at_ns < 0]"),
    _core(
        "NaN is an ordinary score",
        "decide",
        "if not engine_ok or not math.isfinite(score) or not 0 <= score <= 1:",
        "if not engine_ok:",
    ),
    _core(
        "NaN passes",
        "decide",
        "if not engine_ok or not math.isfinite(score) or not 0 <= score <= 1:\n        return Cause.ENGINE",
        "if score != score:\n        return Cause.OK",
    ),
    _core("bad tags do not matter", "decide", "if not tags_good:", "if tags_good is None:"),
    _core("the threshold is not asked", "decide", "if score < threshold else", "if score <= 1 else"),
    _core(
        "overdue is a pass",
        "decide",
        "return Verdict.REJECT, Cause.LATE if frame_came else Cause.NO_FRAME",
        "return Verdict.PASS, Cause.OK",
    ),
    _core(
        "announced before it is journaled",
        "decide",
        "    if not journaled:\n        return Verdict.REJECT, Cause.JOURNAL\n",
        "",
    ),
    _core("a pass that nobody hears", "decide", "    if not plc_up:\n        return Verdict.REJECT, Cause.PLC\n", ""),
    _core(
        "a pass after the time",
        "decide",
        "    if now_ns >= fail_safe_at_ns:\n        return Verdict.REJECT, Cause.LATE\n    return verdict",
        "    return verdict",
    ),
    _core(
        "the best view counts",
        "views",
        "_badness(ruling) > _badness(worst)",
        "_badness(ruling) < _badness(worst)",
    ),
    _core(
        "the last view counts",
        "views",
        "if worst is None or _badness(ruling) > _badness(worst):",
        "if True:",
    ),
    _core(
        "one view is enough",
        "lane",
        "return all(one is not None for one in part.views)",
        "return any(one is not None for one in part.views)",
    ),
    _core(
        "exposed when it has moved on",
        "lane",
        "if not fresh or now_ns - trigger_ns > self._expose_within_ns:",
        "if fresh is None:",
    ),
    _core("judged under an id that is another's", "lane", "if not known:", "if known is None:"),
    _core(
        "exposed while the camera is in doubt",
        "lane",
        "if self.unready(now_ns) >= 0:",
        "if not self.cameras:",
    ),
    _core(
        "a picture may be as old as it likes", "lane", "trigger_ns + self._expose_within_ns)", "trigger_ns + (1 << 62))"
    ),
    _core(
        "a swapped frame leaves its part waiting",
        "lane",
        "found = (self._parts.get(sequence) for sequence in sequences)",
        "found = (self._parts.get(sequence + 1) for sequence in sequences)",
    ),
    _core(
        "the result of the part before",
        "handshake",
        "sequence=sequence if shown is None else shown.sequence,",
        "sequence=sequence if shown is None else shown.sequence - 1,",
    ),
    _core(
        "a result under the newest part's id",
        "handshake",
        "part_id=part_id if shown is None else shown.part_id,",
        "part_id=part_id,",
    ),
    _core(
        "the result stays when the link comes back",
        "handshake",
        "            case Act.FORGET:\n                self._put(None)\n",
        "            case Act.FORGET:\n",
    ),
    _core(
        "any acknowledgement releases", "handshake", "if not _same(sequence, self._shown.sequence):", "if sequence < 0:"
    ),
    _core(
        "the newest waiting result first",
        "handshake",
        "self._put(self._waiting.popleft())",
        "self._put(self._waiting.pop())",
    ),
    _core(
        "an acknowledgement brings nothing",
        "handshake",
        "(Phase.VALID, Event.ACK_NEXT): (Phase.OFFERED, Act.NEXT)",
        "(Phase.VALID, Event.ACK_NEXT): (Phase.VALID, Act.NOTHING)",
    ),
    _core(
        "a pass has a reject's code",
        "handshake",
        "code=0 if shown is None else shown.code,",
        "code=10 if shown is None else shown.code,",
    ),
    _core(
        "a hanging loop is not seen",
        "restart",
        'return next((loop for loop in loops if now_ns - beats.get(loop, started_ns) > limit_ns), "")',
        'return ""',
    ),
    _core("a restart takes for ever", "restart", "return self.backoff.delay_s(self._over, lot)", "return 3600.0"),
    _core(
        "the link comes back after an hour", "backoff", "plain = min(self.most_s, ", "plain = 3600 + min(self.most_s, "
    ),
    _core("nothing kept back for the fail-safe verdict", "budget", "- self.plc_write_ns", "+ self.plc_write_ns"),
    _core(
        "the gate opens for every part",
        "track",
        "if tracked.passed:\n                continue",
        "if tracked.passed is None:\n                continue",
    ),
    _core("the gate opens for known rejects only", "track", "    passed: bool = False", "    passed: bool = True"),
    _core("the gate is at the camera", "track", "gate=position + self._layout.travel", "gate=position"),
    _core(
        "the gate is open for too short",
        "track",
        "if position < tracked.gate + layout.length:",
        "if position < tracked.gate + layout.length // 8:",
    ),
    _core(
        "parts are lost in silence",
        "track",
        "return [_event(GateFact.UNTRACKED, tracked) for tracked in parts if not tracked.passed]",
        "return []",
    ),
    _core("parts go by in silence", "track", "events.append(_event(GateFact.WENT_BY, tracked))", "pass"),
    _core(
        "confirmations are not counted",
        "track",
        "self._unconfirmed.popleft()\n            else:",
        "pass\n            else:",
    ),
    _core(
        "the encoder's wrap is a leap",
        "axis",
        "step = (raw - before + half) % self._cycle - half",
        "step = raw - before",
    ),
    _core(
        "time counts while the line stands",
        "axis",
        "(at_ns - last_ns if running else 0)))\n        return True",
        "(at_ns - last_ns)))\n        return True",
    ),
    _core("an encoder set anew is movement", "axis", "if abs(step) > self._most_step or", "if"),
    _core(
        "nobody asks for a stop",
        "stopping",
        "if 0 < limits.fail_safe_in_a_row <= self.in_a_row:",
        "if limits.fail_safe_in_a_row < 0:",
    ),
    _core(
        "fail-safe verdicts are not counted in a row",
        "stopping",
        "self.in_a_row + 1 if blind else 0",
        "1 if blind else 0",
    ),
]
