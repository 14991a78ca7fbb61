"""Where parts begin: each trigger gets its number, its deadline and the guard's eye, before anything else happens."""

from __future__ import annotations

import time

from edgeqc.core.budget import Budget
from edgeqc.records import Trigger
from edgeqc.shm.board import Row
from edgeqc.station.guard import Guard
from edgeqc.station.part import Look, Part
from edgeqc.station.recipes import Recipes


class Intake:
    """Numbers a station's parts. One thread: whoever sees the triggers."""

    def __init__(
        self, budget: Budget, *, guard: Guard, row: Row, recipes: Recipes, first_sequence: int, cameras: int = 1
    ) -> None:
        """`first_sequence` numbers the first part, the journal knows where the last run ended; `cameras` see each part."""
        self.budget = budget
        self._guard = guard
        self._row = row
        self._recipes = recipes
        self._sequence = first_sequence - 1
        self._looks = cameras if cameras > 1 else 0

    def open(self, at_ns: int, part_id: str, recipe: int | None) -> Part:
        """A part is there, to be judged by the recipe of that number (see `Recipes.of`): from here on the guard owes it a verdict."""
        part = self._numbered(at_ns, part_id, recipe)
        self._guard.watch(part)
        return part

    def missed(self, at_ns: int, recipe: int | None) -> Part:
        """A part went by that is only known by its number: it is recorded, but no longer announced."""
        part = self._numbered(at_ns, "", recipe)
        part.announced = False
        return part

    def announce(self, recipe: int) -> None:
        """The PLC shows this recipe's number now, for the next part to come."""
        self._recipes.announce(recipe)

    def _numbered(self, at_ns: int, part_id: str, recipe: int | None) -> Part:
        self._sequence += 1
        self._row.count("triggers")
        self._row.put("last_opened", self._sequence)  # it survives this process: no number is given twice
        trigger = Trigger(
            sequence=self._sequence,
            part_id=part_id or str(self._sequence),
            at_ns=at_ns,
            wall_ns=time.time_ns() - (time.monotonic_ns() - at_ns),
        )
        fail_safe_at_ns = self.budget.fail_safe_at_ns(at_ns)
        return Part(
            trigger=trigger,
            deadline_ns=self.budget.deadline_ns(at_ns),
            fail_safe_at_ns=fail_safe_at_ns,
            recipe=self._recipes.of(recipe),
            looks=tuple(Look(fail_safe_at_ns=fail_safe_at_ns) for _ in range(self._looks)),
        )
