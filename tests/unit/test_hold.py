"""The hold band of a calibration, as the line's inspection takes it up."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeqc.errors import PackageError
from edgeqc.inference.documents import to_yaml
from edgeqc.inference.writing import read_folder, replace_folder
from edgeqc.settings import RecipeSettings, RegionMode, RegionSettings, ReplayCameraSettings
from edgeqc.sim.parts import draw_set
from edgeqc.station.inspection import Inspection
from edgeqc.station.part import Look

ENGINE = Path(__file__).parents[2] / "engines" / "demo-part" / "1"
SHAPE = (480, 640)


def _inspection(engine: Path, folder: Path, *, hold: bool) -> Inspection:
    recipe = RecipeSettings(engine=engine, hold=hold, region=RegionSettings(mode=RegionMode.LOCATE))
    return Inspection(recipe, ReplayCameraSettings(type="replay", folder=folder, height_px=SHAPE[0], width_px=SHAPE[1]))


def _with_hold(out: Path, hold: float) -> Path:
    """The demo's package with a hold band."""
    files = read_folder(ENGINE)
    calibration = json.loads(files["calibration.json"]) | {"hold_threshold": hold}
    files["calibration.json"] = json.dumps(calibration).encode()
    manifest = yaml.safe_load(files["manifest.yaml"])
    manifest["files"]["calibration"] = hashlib.sha256(files["calibration.json"]).hexdigest()
    files["manifest.yaml"] = to_yaml(manifest)
    return replace_folder(out, files, key=Ed25519PrivateKey.generate()).folder


def test_hold_needs_a_package_that_has_the_band(tmp_path):
    with pytest.raises(PackageError, match="has no hold band"):
        _inspection(ENGINE, tmp_path, hold=True)


@pytest.mark.parametrize("hold", [True, False])
def test_defects_of_a_held_part_are_told_where_the_recipe_asks_for_the_band(tmp_path, hold):
    good = next(part.image for part in draw_set(20, seed=5, defect_ratio=0.0, shape=SHAPE))
    inspection = _inspection(_with_hold(tmp_path / "1", 0.0), tmp_path, hold=hold)
    try:
        assert inspection.hold == (0.0 if hold else None)
        look, shown = Look(fail_safe_at_ns=2**62), np.full((SHAPE[0] // 8, SHAPE[1] // 8), 255, np.uint8)
        assert inspection.inspect(look, good, shown)
        assert look.score < inspection.threshold
        assert bool((shown != 255).any()) == hold  # the map of a part that may pass is not drawn
    finally:
        inspection.close()
