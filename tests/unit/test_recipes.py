"""Several products on one line: each part has the recipe that was latched with its trigger, or none."""

from pathlib import Path

import pytest

import edgeqc
from edgeqc.errors import PackageError, SettingsError
from edgeqc.inference.trust import read_trust
from edgeqc.loading import load
from edgeqc.records import AlertChange, Event
from edgeqc.settings import (
    ChangeoverSettings,
    ModbusPlcSettings,
    NoPlcSettings,
    RecipeSettings,
    ReplayCameraSettings,
    StationSettings,
    TriggerSettings,
)
from edgeqc.station.recipes import Recipes, undisturbed_ms

ENGINES = Path(edgeqc.__file__).parents[1] / "engines"
DEMO = ENGINES / "demo-part" / "1"
TRUST = read_trust(ENGINES / "trust")


def _recipe(name, number, **more):
    return RecipeSettings(name=name, number=number, engine=DEMO, **more)


def _station(*others, memory_mb=512):
    changeover = ChangeoverSettings(recipes=list(others), memory_mb=memory_mb) if others else None
    return StationSettings(
        name="top",
        takt_ms=100,
        budget_ms=80,
        camera=ReplayCameraSettings(type="replay", folder=Path(), width_px=64, height_px=64),
        recipe=_recipe("cap", 1),
        changeover=changeover,
        plc=NoPlcSettings(type="none"),
    )


@pytest.fixture
def recipes():
    signs = []
    loaded = Recipes(
        _station(_recipe("lid", 2, threshold=0.9), _recipe("ring", 7)), trust=TRUST, alive=lambda: signs.append(True)
    )
    assert len(signs) == 3, "of each recipe: who waits for all may not take them for one that hangs"
    yield loaded
    loaded.close()


def test_the_plc_s_number_chooses_and_an_unknown_one_chooses_nothing(recipes):
    assert [recipe.name for recipe in recipes.all] == ["cap", "lid", "ring"]
    assert recipes.of(2).name == "lid"
    assert recipes.of(2).threshold == 0.9
    assert recipes.of(7).name == "ring"
    for number in (0, 3, 65_535):
        unknown = recipes.of(number)
        assert not unknown.known
        assert unknown.name == f"number {number}"
        assert not any(unknown.model_digest), "no model is said to have judged it"
        with pytest.raises(KeyError):
            recipes[unknown]


def test_one_recipe_needs_no_number():
    loaded = Recipes(_station(), trust=TRUST)
    assert {loaded.of(number).name for number in (0, 1, 99)} == {"cap"}
    loaded.close()


def test_recipes_of_one_package_still_are_engines_of_their_own(recipes):
    engines = {id(recipes[recipe][0].engine) for recipe in recipes.all}
    assert len(engines) == 3


def test_memory_over_the_limit_starts_nothing(monkeypatch):
    held = iter([0, 600 << 20])
    monkeypatch.setattr("edgeqc.station.recipes._resident_bytes", lambda: next(held))
    with pytest.raises(PackageError, match=r"engines of 2 recipes take 600 MB, over 512 \(changeover\.memory_mb\)"):
        Recipes(_station(_recipe("lid", 2)), trust=TRUST)


def test_views_whose_engines_do_not_fit_the_budget_together_start_nothing():
    cameras = [
        ReplayCameraSettings(name=name, type="replay", folder=Path(), width_px=64, height_px=64) for name in "ab"
    ]
    plc = ModbusPlcSettings(type="modbus", host="plc")
    more = {"camera": None, "cameras": cameras, "plc": plc, "trigger": TriggerSettings(source="plc")}
    more |= {"takt_ms": 10_000, "budget_ms": 8_000}  # enough on any box
    station = _station().model_copy(update=more)
    loaded = Recipes(station, trust=TRUST)
    assert [len(loaded[recipe]) for recipe in loaded.all] == [2]
    assert len(loaded.all[0].views) == 2
    loaded.close()
    with pytest.raises(PackageError, match=r"recipe cap: its 2 views take .* ms, over 2 \(budget_ms less"):
        Recipes(station.model_copy(update={"budget_ms": 5, "plc_write_ms": 1}), trust=TRUST)


def test_one_slow_moment_at_the_start_refuses_no_recipe():
    readings = iter([[40.0, 40.9], [12.0, 11.0], [10.0, 10.0]])
    assert undisturbed_ms(lambda: next(readings), 63, pause_s=0) == [12.0, 11.0]
    assert next(readings) == [10.0, 10.0], "measured no more than needed"


def test_views_that_are_always_too_slow_are_told_at_their_quickest():
    readings = iter([[40.0, 40.9], [50.0, 50.0], [39.0, 40.0]])
    assert undisturbed_ms(lambda: next(readings), 63, pause_s=0) == [39.0, 40.0]
    assert next(readings, None) is None


def test_memory_is_told(recipes):
    assert 0 <= recipes.memory_mb < 512


def test_changeover_is_told_once_and_an_unknown_recipe_is_an_alert_until_it_ends(recipes):
    cap, lid, unknown = recipes.of(1), recipes.of(2), recipes.of(5)
    assert recipes.changeover(cap, 1) == []
    assert recipes.changeover(cap, 2) == []
    (changed,) = recipes.changeover(lid, 3)
    assert isinstance(changed, Event)
    assert changed.facts == {"station": "top", "recipe": "lid", "before": "cap", "first_part": 3}
    changed, alert = recipes.changeover(unknown, 4)
    assert isinstance(alert, AlertChange)
    assert alert.active
    assert "number 5" in alert.text
    assert recipes.changeover(unknown, 5) == []
    changed, alert = recipes.changeover(lid, 6)
    assert (changed.facts["recipe"], alert.active) == ("lid", False)


def test_a_part_of_which_the_plc_named_no_recipe_is_judged_by_none_and_is_no_changeover(recipes):
    cap, unnamed = recipes.of(1), recipes.of(None)
    assert not unnamed.known
    assert recipes.changeover(cap, 1) == recipes.changeover(unnamed, 2) == recipes.changeover(cap, 3) == []


def test_the_announced_recipe_is_warmed_before_its_part_and_the_others_while_the_line_stands(recipes):
    assert recipes.to_warm(idle=False).name == "cap"
    recipes.announce(7)
    recipes.announce(99)  # nobody to warm
    assert {recipes.to_warm(idle=False).name for _ in range(5)} == {"ring"}
    assert {recipes.to_warm(idle=True).name for _ in range(12)} == {"cap", "lid", "ring"}


CONFIG = f"""\
version: 1
node: box
stations:
  - name: top
    takt_ms: 100
    budget_ms: 80
    camera: {{type: replay, folder: ., width_px: 64, height_px: 64}}
    recipe: {{name: cap, engine: {DEMO}}}
    changeover:
      recipes:
        - {{name: cap, number: 2, engine: {DEMO}}}
        - {{name: lid, number: 2, engine: {DEMO}, region: {{mode: fixed, width_px: 100, height_px: 10}}}}
    plc: {{type: modbus, host: plc}}
"""


def test_what_does_not_go_together_is_told_at_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("line.yaml").write_text(CONFIG)
    with pytest.raises(SettingsError) as caught:
        load(Path("line.yaml"))
    told = "\n".join(caught.value.faults)
    for fault in (
        "stations[0].recipe.number: must be over 0 with changeover",
        "stations[0].changeover.recipes[0].name: cap is the name of recipe already",
        "stations[0].changeover.recipes[1].number: 2 is the number of changeover.recipes[0] already",
        "stations[0].changeover.recipes[1].region: box ends at 100x10, outside camera.width_px x height_px (64x64)",
        "stations[0].plc.registers.recipe: must be true, changeover needs the recipe's number",
    ):
        assert fault in told, told
