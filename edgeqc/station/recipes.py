"""A station's recipes: all loaded, warm and checked before the line is armed; each part has the one it was triggered with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import PackageError
from edgeqc.inference.choice import measure
from edgeqc.inference.trust import Trust
from edgeqc.records import AlertChange, Event, Ne107
from edgeqc.settings import GpuSettings, RecipeSettings, StationSettings
from edgeqc.station.inspection import Inspection
from edgeqc.station.part import UNKNOWN_RECIPE, Recipe

_MIB: Final = 1 << 20
MEASURED_MOST: Final = 3
"""Times that views are measured before they are refused for being too slow."""


class Recipes:
    """Number to recipe, and recipe to what judges by it. `of` and `coming` from any thread, the rest by the line's.

    A changeover costs nothing: the engines of all recipes are ready, and each part is judged by the recipe that was
    latched with its trigger.
    """

    def __init__(
        self,
        station: StationSettings,
        *,
        trust: Trust,
        core: int | None = None,
        state_dir: Path | None = None,
        gpu: GpuSettings | None = None,
        alive: Callable[[], None] | None = None,
    ) -> None:
        """Load all: seconds each. PackageError where one may not judge parts, or all take more memory than they may.

        `alive` is called while they load, so that whoever waits can tell many recipes from one that hangs.
        """
        self._by_plc = station.changeover is not None
        self._inspections: dict[Recipe, tuple[Inspection, ...]] = {}
        self._numbers: dict[int, Recipe] = {}
        self._keep_warm_ms: dict[Recipe, float] = {}
        before = _resident_bytes()
        load = partial(Inspection, trust=trust, core=core, state_dir=state_dir, gpu=gpu, alive=alive)
        for settings in station.recipes:
            inspections = tuple(load(settings.seen_by(camera.name), camera) for camera in station.all_cameras)
            recipe = self._add(settings, inspections)
            self._keep_warm_ms[recipe] = settings.keep_warm_ms
        self.memory_mb = (_resident_bytes() - before) / _MIB
        """Grown by, while the recipes were loaded: what their engines hold, and the backend's library."""
        if station.changeover is not None and self.memory_mb > station.changeover.memory_mb:
            raise PackageError(
                f"the engines of {len(self.all)} recipes take {self.memory_mb:.0f} MB, "
                f"over {station.changeover.memory_mb} (changeover.memory_mb)"
            )
        if len(station.all_cameras) > 1:
            self._check_time(station)
        self.coming: Recipe = self.all[0]
        """What the next part is expected to be judged by."""
        self._station = station.name
        self._turn = 0
        self._last: Recipe | None = None

    @property
    def all(self) -> tuple[Recipe, ...]:
        """In the order of the configuration."""
        return tuple(self._inspections)

    def of(self, number: int | None) -> Recipe:
        """The recipe that the PLC calls by this number; one that is not known where there is none, or it named none (None)."""
        if not self._by_plc:
            return self.all[0]
        if number is None:
            return UNKNOWN_RECIPE
        known = self._numbers.get(number)
        return known or Recipe(name=f"number {number}", threshold=math.nan, model_digest=bytes(32), known=False)

    def announce(self, number: int) -> None:
        """The PLC shows this number now: the next part is likely to be of it, and its engine worth warming."""
        recipe = self.of(number)
        if recipe.known:
            self.coming = recipe

    def __getitem__(self, recipe: Recipe) -> tuple[Inspection, ...]:
        """What judges by this recipe, one for each camera; KeyError for one that is not known."""
        return self._inspections[recipe]

    def to_warm(self, *, idle: bool) -> Recipe:
        """Whose engine to run for nothing: the coming recipe's; where the line stands, every second time another's."""
        self._turn += idle
        others = self.all if idle and self._turn % 2 == 0 else (self.coming,)
        return others[self._turn // 2 % len(others)]

    def changeover(self, recipe: Recipe, sequence: int) -> list[Event | AlertChange]:
        """What is to be told of the recipe that this part had: nothing where the part before it had the same."""
        if recipe in {self._last, UNKNOWN_RECIPE}:
            return []
        last, self._last = self._last, recipe
        said: list[Event | AlertChange] = []
        if last is not None:
            facts: dict[str, str | int | float | bool] = {
                "station": self._station, "recipe": recipe.name, "before": last.name, "first_part": sequence
            }  # fmt: skip
            said.append(Event(name="recipe_changed", facts=facts))
        if not recipe.known or (last is not None and not last.known):
            said.append(self._unknown(recipe))
        return said

    def _unknown(self, recipe: Recipe) -> AlertChange:
        active = not recipe.known
        return AlertChange(
            id=f"{self._station}.recipe.unknown",
            active=active,
            priority="high",
            ne107=Ne107.OUT_OF_SPECIFICATION if active else Ne107.NORMAL,
            text=f"the PLC asks for recipe {recipe.name}, which this station does not have" if active else "",
            action="Every part is rejected. Set the PLC's recipe number, or add it under changeover.recipes",
        )

    def keep_warm_ms(self) -> float:
        """How long the coming recipe's engine may idle; 0 = for ever."""
        return self._keep_warm_ms[self.coming]

    def adopt(self, camera: int, memory: NDArray[np.uint8]) -> bool:
        """Show its engines the memory that a camera's frames will lie in; False where one cannot read them in place."""
        adopted = [inspections[camera].adopt(memory) for inspections in self._inspections.values()]
        return all(adopted)

    def close(self) -> None:
        """Free all engines."""
        for inspections in self._inspections.values():
            for inspection in inspections:
                inspection.close()

    def _check_time(self, station: StationSettings) -> None:
        """Views are judged one after the other: PackageError where that alone takes longer than a part has."""
        left_ms = station.budget_ms - station.plc_write_ms - station.trigger.poll_ms
        for recipe, inspections in self._inspections.items():
            took_ms = undisturbed_ms(partial(_took_ms, inspections), left_ms)
            if sum(took_ms) > left_ms:
                raise PackageError(
                    f"recipe {recipe.name}: its {len(took_ms)} views take {' + '.join(f'{one:.1f}' for one in took_ms)} "
                    f"= {sum(took_ms):.1f} ms, over {left_ms:g} (budget_ms less plc_write_ms and trigger.poll_ms)"
                )

    def _add(self, settings: RecipeSettings, inspections: tuple[Inspection, ...]) -> Recipe:
        views = tuple(
            Recipe(
                name=settings.name,
                threshold=inspection.threshold,
                hold=inspection.hold,
                model_digest=inspection.package.digest,
            )
            for inspection in inspections
        )
        recipe = replace(views[0], views=views if len(views) > 1 else ())
        self._inspections[recipe] = inspections
        self._numbers[settings.number] = recipe
        return recipe


def _took_ms(inspections: tuple[Inspection, ...]) -> list[float]:
    return [measure(inspection.engine, inspection.package)[0] / 1000 for inspection in inspections]


def undisturbed_ms(measured: Callable[[], list[float]], left_ms: float, *, pause_s: float = 1.0) -> list[float]:
    """The quickest of up to `MEASURED_MOST` measurements, the first whose sum is within `left_ms`.

    What else the box does adds time, never takes any: one slow moment at the start must not keep a line unarmed for good.
    """
    best = measured()
    for _ in range(MEASURED_MOST - 1):
        if sum(best) <= left_ms:
            break
        time.sleep(pause_s)  # whatever it was may be over
        best = min(best, measured(), key=sum)
    return best


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
