"""Another product on the running line: each part is judged by the recipe that the PLC named with its trigger."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from conftest import ENGINE
from linebench import Bench

from edgeqc.inference.signature import local_key
from edgeqc.inference.writing import read_folder, replace_folder
from edgeqc.sim.line import TRUSTED
from edgeqc.sim.plc_line import recipe_of

Make = Callable[..., Bench]
RUN = 7
PARTS = 120
PLAIN, STRICT, UNKNOWN = 11, 12, 99


@pytest.fixture
def strict(tmp_path: Path) -> Path:
    """The demo's package with another model file (its name) and a threshold that lets nothing pass."""
    folder = Path(shutil.copytree(ENGINE, tmp_path / "strict" / "2"))
    files = read_folder(folder)
    model = onnx.load_from_string(files["model.onnx"])
    model.graph.name = "strict"
    manifest = yaml.safe_load(files["manifest.yaml"]) | {"name": "strict", "version": "2"}
    files["model.onnx"] = model.SerializeToString()
    files["calibration.json"] = b'{"threshold": 0, "map_threshold": 0.5, "goods": 1, "defects": 1}'
    for name, key in {"model.onnx": "model", "calibration.json": "calibration"}.items():
        manifest["files"][key] = hashlib.sha256(files[name]).hexdigest()
    files["manifest.yaml"] = yaml.safe_dump(manifest).encode()
    replace_folder(folder, files, key=local_key(tmp_path / "keys"))
    return folder


def _changes(strict: Path) -> dict[str, Any]:
    recipe = {"name": "strict", "number": STRICT, "engine": str(strict), "region": {"mode": "locate", "contrast": 24}}
    station = {"recipe": {"name": "plain", "number": PLAIN}, "changeover": {"recipes": [recipe]}}
    return {"stations": [station]}


def test_changeover_at_25_per_second_leaves_no_trigger_unaccounted_or_late(
    bench: Make, tmp_path: Path, strict: Path
) -> None:
    line = bench(
        parts=PARTS,
        rate_hz=25.0,
        budget_ms=39.0,
        recipes=(PLAIN, STRICT),
        recipe_run=RUN,
        changes=_changes(strict),
        trusted=(*TRUSTED, tmp_path / "keys" / "local.pub"),
    )
    report = line.finish()
    assert report["triggers"] == report["verdicts"] == PARTS
    assert (report["unaccounted"], report["late"], report["plc_mismatch"], report["duplicates"]) == (0, 0, 0, 0)
    digests = {
        "plain": hashlib.sha256((ENGINE / "model.onnx").read_bytes()).digest(),
        "strict": hashlib.sha256((strict / "model.onnx").read_bytes()).digest(),
    }
    judged = {"plain": 0, "strict": 0}
    for row in line.rows():
        number = int(row["part_id"].removeprefix("P"))
        expected = {PLAIN: "plain", STRICT: "strict"}[recipe_of(number, (PLAIN, STRICT), RUN)]
        assert row["recipe"] == expected, row["part_id"]
        assert row["model_digest"] == digests[expected]
        assert row["model"] == {"plain": "demo-part@1", "strict": "strict@2"}[expected]
        if row["code"] >= 100:
            continue  # the line's own: a busy box may cost a part its picture, never its account
        judged[expected] += 1
        assert row["threshold"] == (0 if expected == "strict" else pytest.approx(0.4811))
        assert row["verdict"] == ("reject" if row["score"] >= row["threshold"] else "pass")
    assert min(judged.values()) > PARTS // 6, judged  # a starved box loses pictures, by its camera
    changes = line.logged("recipe_ready")
    assert [found["recipe"] for found in changes] == ["plain", "strict"]
    assert all(found["golden_difference"] <= found["golden_limit"] for found in changes)


def test_a_recipe_that_the_station_does_not_have_is_a_reject_that_says_so(
    bench: Make, tmp_path: Path, strict: Path
) -> None:
    line = bench(
        parts=30,
        recipes=(PLAIN, UNKNOWN),
        recipe_run=10,
        changes=_changes(strict),
        trusted=(*TRUSTED, tmp_path / "keys" / "local.pub"),
    )
    report = line.finish()
    assert (report["unaccounted"], report["late"], report["plc_mismatch"]) == (0, 0, 0)
    unknown = [row for row in line.rows() if recipe_of(int(row["part_id"][1:]), (PLAIN, UNKNOWN), 10) == UNKNOWN]
    assert len(unknown) >= 9
    assert {(row["verdict"], row["cause"], row["code"], row["recipe"]) for row in unknown} <= {
        ("reject", "recipe", 108, "number 99"),
        ("reject", "no_frame", 101, "number 99"),
    }
    assert sum(row["cause"] == "recipe" for row in unknown) >= 5
    alerts = [m.json for m in line.line.listener.received("/alert/top.recipe.unknown") if m.payload]
    assert alerts
    assert "number 99" in alerts[0]["text"]
    assert any(alert["state"] == "normal" for alert in alerts), "it ends with the next part of a known recipe"


def test_a_recipe_whose_package_nobody_vouches_for_keeps_the_line_unarmed(
    bench: Make, tmp_path: Path, strict: Path
) -> None:
    line = bench(parts=5, wait=False, changes=_changes(strict), recipes=(PLAIN, STRICT))
    assert line.line.daemon is not None
    assert line.line.daemon.wait(30) == 5
    text = line.line.log.read_text()
    assert "signed by an unknown key" in text
    assert "edgeqc engine trust" in text
