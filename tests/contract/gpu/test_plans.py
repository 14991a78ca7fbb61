"""A plan is built, checked and kept on the box; one that is not exactly what it should be is refused with the way out."""

import fcntl
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from edgeqc.cli import main
from edgeqc.cli.box import gpu
from edgeqc.cli.findings import State
from edgeqc.errors import EngineLostError, PackageError, PlanError
from edgeqc.inference.engine import open_engine
from edgeqc.inference.manifest import Backend, Precision
from edgeqc.inference.package import check_golden, load_package
from edgeqc.inference.tensorrt import vendor
from edgeqc.inference.tensorrt.plan import Plans
from edgeqc.inference.tensorrt.workshop import Workshop
from edgeqc.inference.writing import read_folder, replace_folder
from edgeqc.settings import GpuSettings, Settings
from edgeqc.sim.gpu import tensorrt as double
from edgeqc.sim.parts import draw_set

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "engines" / "demo-part" / "1"


@pytest.fixture
def box(driver, monkeypatch, tmp_path):
    """A box with the pretended GPU and TensorRT; its state directory."""
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    return tmp_path / "state"


@pytest.fixture(scope="module")
def package():
    return load_package(PACKAGE).as_run(Backend.TENSORRT, Precision.FP32)


def _build(box, package):
    workshop = Workshop(box, GpuSettings())
    try:
        return workshop.build(package)
    finally:
        workshop.close()


def _open(box, package):
    return open_engine(package, backend="tensorrt", state_dir=box)


def test_built_plan_runs_and_its_sidecar_says_what_it_is(box, package, driver):
    outcome = _build(box, package)
    assert outcome.state == "built"
    sidecar = json.loads(outcome.path.with_suffix(".json").read_bytes())
    assert sidecar["schema"] == "edgeqc.plan/1"
    assert sidecar["package"] == package.name
    assert sidecar["make"] == {
        "onnx_sha256": package.digest.hex(),
        "precision": "fp32",
        "tensorrt": "10.3.0",
        "device": "pretended GPU",
        "sm": "8.7",
        "driver": "13.0",
        "shapes": {"image": list(package.io.inputs[0].shape)},
    }
    assert sidecar["plan_bytes"] == outcome.path.stat().st_size
    assert sidecar["golden_difference"] <= package.golden_tolerance
    engine = _open(box, package)
    assert check_golden(engine, package) <= package.golden_tolerance
    assert engine.backend.startswith("tensorrt 10.3.0 pretended GPU")
    engine.close()


def test_without_a_plan_nothing_runs_and_the_command_is_told(box, package):
    with pytest.raises(
        PlanError, match=r"is not there\. Build it while the line stands: edgeqc engine build LINE.yaml"
    ):
        _open(box, package)


def _edit(path, **changes):
    document = json.loads(path.read_bytes())
    for name, value in changes.items():
        (document["make"] if name in document["make"] else document)[name] = value
    path.write_text(json.dumps(document))


MISFITS = {
    "other TensorRT": (lambda path: _edit(path, tensorrt="10.16.1"), r"tensorrt 10\.16\.1 is now 10\.3\.0"),
    "other device": (lambda path: _edit(path, device="Orin", sm="8.9"), r"device Orin is now .*sm 8\.9 is now 8\.7"),
    "other driver": (lambda path: _edit(path, driver="12.6"), r"driver 12\.6 is now 13\.0"),
    "other model": (lambda path: _edit(path, onnx_sha256="0" * 64), r"onnx_sha256 000000000000\.\.\. is now"),
    "other precision": (lambda path: _edit(path, precision="fp16"), "precision fp16 is now fp32"),
    "other profile": (lambda path: _edit(path, shapes={"image": [8, 1, 2, 2]}), r"shapes .*8, 1, 2, 2.* is now"),
    "other schema": (lambda path: _edit(path, schema="edgeqc.plan/0"), "schema edgeqc.plan/0, must be edgeqc.plan/1"),
    "empty sidecar": (lambda path: path.write_text(""), "sidecar that cannot be read"),
    "list as sidecar": (lambda path: path.write_text("[]"), "sidecar that cannot be read"),
    "key too much": (lambda path: _edit(path, extra=1), "sidecar that cannot be read"),
    "no plan": (lambda path: path.with_suffix(".plan").unlink(), "No such file"),
    "half a plan": (
        lambda path: path.with_suffix(".plan").write_bytes(path.with_suffix(".plan").read_bytes()[:999]),
        "is damaged: SHA-256",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_plan_of_another_make_is_refused_with_the_reason(box, package, misfit):
    path = _build(box, package).path
    spoil, reason = MISFITS[misfit]
    spoil(path.with_suffix(".json"))
    with pytest.raises(PlanError, match=reason) as caught:
        _open(box, package)
    assert "edgeqc engine build" in str(caught.value)


def test_flipped_bit_that_the_library_would_not_see_is_refused(box, package):
    path = _build(box, package).path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PlanError, match="is damaged"):
        _open(box, package)


def test_build_that_is_off_the_golden_outputs_leaves_the_old_plan(box, package):
    path = _build(box, package).path
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    double.Stage.wrong_by = 0.5
    with pytest.raises(PackageError, match=r"off the golden outputs by 0\.5"):
        _build(box, package)
    double.Stage.wrong_by = 0.0
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    _open(box, package).close()


def test_store_that_was_cut_off_leaves_no_plan_rather_than_a_wrong_one(box, package, monkeypatch):
    path = _build(box, package).path
    monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        _build(box, package)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    assert path.exists()
    with pytest.raises(PlanError, match="is not there"):
        _open(box, package)
    assert not list(path.parent.glob(".*")), "half-written files are left"


def test_timing_cache_goes_from_build_to_build(box, package):
    _build(box, package)
    assert Plans(box).timings.read_bytes() == b"+"
    _build(box, package)
    assert Plans(box).timings.read_bytes() == b"++"


@pytest.mark.parametrize("kept", [b"of another release", b"@+++"])
def test_timing_cache_that_is_damaged_or_of_another_device_costs_time_and_not_the_build(box, package, kept):
    plans = Plans(box)
    plans.keep_timings(kept)
    assert _build(box, package).state == "built"
    assert plans.timings.read_bytes() == b"+"


def test_no_gpu_is_not_the_package_s_fault(box, package, driver):
    _build(box, package)
    driver.pretend(no_device=1)
    with pytest.raises(EngineLostError, match=r"NO_DEVICE \(100\); no GPU is visible"):
        _open(box, package)


def test_missing_library_says_how_to_install_it(driver, monkeypatch, package, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PackageError, match="python3-libnvinfer"):
        _open(tmp_path, package)
    with pytest.raises(PackageError, match="cannot be loaded"):
        vendor.load()


# --- the command ------------------------------------------------------------------------------------------------------


def _run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_command_builds_once_and_then_has_nothing_to_do(box, capsys):
    arguments = ("engine", "build", PACKAGE, "--state", box)
    code, out, _ = _run(capsys, *arguments, "--check")
    assert code == 5
    assert "is not there" in out
    code, out, err = _run(capsys, *arguments)
    assert code == 0
    assert "built" in out
    assert "pretended GPU, SM 8.7, driver 13.0, TensorRT 10.3.0" in err
    written = (path := next(box.rglob("*.plan"))).stat().st_mtime_ns
    code, out, _ = _run(capsys, *arguments, "--json")
    assert code == 0
    assert json.loads(out)["plans"][0]["state"] == "current"
    assert path.stat().st_mtime_ns == written
    code, out, _ = _run(capsys, *arguments, "--check")
    assert code == 0
    _run(capsys, *arguments, "--force")
    assert path.stat().st_mtime_ns > written


def test_command_builds_what_the_recipes_of_a_line_need(box, capsys, tmp_path):
    line = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    line["state_dir"] = str(box)
    line["engines"] = {"unsigned": "allow"}
    for station in line["stations"]:
        station["recipe"] = {"name": "one", "engine": str(PACKAGE), "backend": "tensorrt"}
    file = tmp_path / "line.yaml"
    file.write_text(yaml.safe_dump(line))
    code, out, err = _run(capsys, "engine", "build", file)
    assert code == 0, err
    assert out.count("built") == 1
    line["stations"][0]["recipe"]["backend"] = "onnxruntime"
    file.write_text(yaml.safe_dump(line))
    code, out, err = _run(capsys, "engine", "build", file)
    assert code == 0
    assert "nothing to build" in err


def test_packages_of_one_model_have_a_plan_each(box, capsys, tmp_path):
    files = read_folder(PACKAGE)
    files["manifest.yaml"] = files["manifest.yaml"].replace(b"version: '1'", b"version: '2'")
    other = replace_folder(tmp_path / "2", files, key=None).folder
    camera = {"type": "replay", "folder": "parts", "width_px": 64, "height_px": 48, "rate_hz": 10}
    station = {"takt_ms": 100, "budget_ms": 80, "camera": camera, "plc": {"type": "none"}}
    stations = [
        station | {"name": f"s{folder.name}", "recipe": {"engine": str(folder), "backend": "tensorrt"}}
        for folder in (PACKAGE, other)
    ]
    line = {"version": 1, "node": "box", "state_dir": str(box), "engines": {"unsigned": "allow"}, "stations": stations}
    file = tmp_path / "line.yaml"
    file.write_text(yaml.safe_dump(line))
    code, _, err = _run(capsys, "engine", "build", file)
    assert code == 0, err
    assert {path.parent.name for path in box.rglob("*.plan")} == {"1", "2"}


def test_plans_are_calibrated_evaluated_and_explained_like_other_engines(box, package, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(box))
    _build(box, package)
    good = next(part.image for part in draw_set(9, seed=5, defect_ratio=0.0, shape=(480, 640)))
    (tmp_path / "parts" / "good").mkdir(parents=True)
    cv2.imwrite(str(picture := tmp_path / "parts" / "good" / "1.png"), good)
    on = ("--engine", PACKAGE, "--backend", "tensorrt", "--region", "locate")
    code, _, err = _run(capsys, "explain", picture, *on, "--no-occlusion", "--out", tmp_path / "explained")
    assert code == 0, err
    report = tmp_path / "report.json"
    code, _, err = _run(capsys, "eval", "vision", "--data", tmp_path / "parts", *on, "--report", report, "--split", "")
    assert code == 0, err
    found = json.loads(report.read_text())
    assert (found["run"], "engine" in found["latency_by_run"]["tensorrt fp32"]) == ("tensorrt fp32", True)
    parts = ("--data", tmp_path / "parts", "--without-promise", "--out", tmp_path / "2")
    code, _, err = _run(capsys, "calibrate", *on, *parts)
    assert code == 0, err
    assert load_package(tmp_path / "2").calibration.backend == "tensorrt fp32"


def test_command_does_not_build_beside_a_running_line_or_another_build(box, capsys):
    box.mkdir()
    arguments = ("engine", "build", PACKAGE, "--state", box)
    with (box / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = _run(capsys, *arguments)
        assert code == 8
        assert "a daemon runs here" in err
        assert _run(capsys, *arguments, "--check")[0] == 5  # looking is allowed
    (box / "plans").mkdir(exist_ok=True)
    with (box / "plans" / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = _run(capsys, *arguments)
        assert code == 8
        assert "another build is under way" in err


def test_command_tells_which_package_failed_and_ends_with_5(box, capsys):
    double.Stage.wrong_by = 0.25
    code, out, _ = _run(capsys, "engine", "build", PACKAGE, "--state", box)
    assert code == 5
    assert "off the golden outputs by 0.25" in out
    assert not list(box.rglob("*.plan"))


def test_command_without_tensorrt_ends_with_5_and_says_what_to_install(driver, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, _, err = _run(capsys, "engine", "build", PACKAGE, "--state", tmp_path)
    assert code == 5
    assert "python3-libnvinfer" in err


def test_plans_of_two_precisions_lie_side_by_side(box, package):
    plans = Plans(box)
    path = plans.path(package)
    assert path.name == "fp32.plan"
    assert path.parent == box / "plans" / package.manifest.name / package.manifest.version


def test_scores_equal_the_reference_through_the_whole_package(box, package):
    _build(box, package)
    ours, reference = _open(box, package), open_engine(package)
    image = np.random.default_rng(0).random(package.io.inputs[0].shape, np.float32)
    found = []
    for engine in (ours, reference):
        slot = engine.acquire()
        slot.input("image")[:] = image
        engine.submit(slot)
        engine.wait(slot, 1 << 62)
        found.append(float(slot.output("score")[0]))
        slot.release()
        engine.close()
    assert found[0] == found[1]


def test_doctor_shows_the_gpu_or_why_there_is_none(box, capsys, tmp_path, monkeypatch):
    line = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    line["state_dir"] = str(box)
    line["stations"][0]["recipe"] = {"name": "one", "engine": str(PACKAGE), "backend": "tensorrt"}
    settings = Settings.model_validate(line)
    assert [finding.state for finding in gpu(settings, box)] == [State.OK]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (finding,) = gpu(settings, box)
    assert finding.state is State.FAIL
    assert "python3-libnvinfer" in finding.found
    line["stations"][0]["recipe"]["backend"] = "onnxruntime"
    assert list(gpu(Settings.model_validate(line), box)) == []
