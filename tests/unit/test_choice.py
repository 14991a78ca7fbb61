"""`backend: auto` takes the fastest that may run, and says of each other why not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import edgeqc
from edgeqc.errors import PackageError
from edgeqc.inference import choice
from edgeqc.inference.choice import Trial, candidates, choose, fastest, judging, try_out
from edgeqc.inference.manifest import Backend, Precision, VariantName
from edgeqc.inference.package import load_package
from edgeqc.inference.writing import VariantFiles, with_variants
from edgeqc.settings import RecipeSettings

DEMO = Path(edgeqc.__file__).parents[1] / "engines" / "demo-part" / "1"
ORT, OPENVINO, TENSORRT = Backend


@pytest.fixture(scope="module")
def package():
    return load_package(DEMO)


def _trial(backend, p50_us, *, precision=Precision.FP32, refused=""):
    return Trial(backend=backend, precision=precision, p50_us=p50_us, refused=refused)


def test_clearly_faster_one_is_taken_and_all_are_told():
    found = fastest([_trial(ORT, 8000), _trial(OPENVINO, 3000), _trial(TENSORRT, 0, refused="no device")])
    assert (found.backend, found.precision) == (OPENVINO, Precision.FP32)
    assert found.why == "fastest here: onnxruntime fp32 8.00 ms, openvino fp32 3.00 ms, tensorrt fp32 refused"


def test_one_that_is_hardly_faster_does_not_change_what_judges_parts():
    assert fastest([_trial(ORT, 8000), _trial(OPENVINO, 7500)]).backend is ORT


def test_first_that_may_run_is_taken_where_the_first_is_refused():
    assert fastest([_trial(ORT, 0, refused="off"), _trial(OPENVINO, 9000)]).backend is OPENVINO


def test_where_none_may_run_all_reasons_are_told():
    with pytest.raises(PackageError, match=r"onnxruntime fp32: off; openvino fp32: not installed"):
        fastest([_trial(ORT, 0, refused="off"), _trial(OPENVINO, 0, refused="not installed")])


def test_everything_that_configuration_and_package_leave_open_is_tried(package):
    assert candidates(package, backend="auto", precision="fp32") == [(each, Precision.FP32) for each in Backend]
    assert candidates(package, backend="openvino", precision="auto") == [
        (OPENVINO, Precision.FP32),
        (OPENVINO, Precision.BF16),
    ]


def test_package_may_forbid_a_backend_and_bf16(package):
    manifest = package.manifest.model_copy(update={"backends": (ORT, TENSORRT), "bf16": False})
    strict = replace(package, manifest=manifest)
    assert OPENVINO not in {backend for backend, _ in candidates(strict, backend="auto", precision="auto")}
    with pytest.raises(PackageError, match=r"may not run on openvino \(backends: onnxruntime, tensorrt\)"):
        candidates(strict, backend="openvino", precision="fp32")
    wide = replace(package, manifest=package.manifest.model_copy(update={"bf16": False}))
    with pytest.raises(PackageError, match=r"may not run in bf16"):
        candidates(wide, backend="openvino", precision="bf16")


def test_precision_that_the_package_has_no_file_for_is_refused_with_how_to_make_it(package):
    with pytest.raises(PackageError, match=r"has no model\.int8-cpu\.onnx; make it with: edgeqc engine convert"):
        choose(package, backend="onnxruntime", precision="int8")
    with pytest.raises(PackageError, match=r"has no model\.int8-tensorrt\.onnx"):
        choose(package, backend="tensorrt", precision="int8")


def test_named_backend_is_not_tried_but_taken(package, monkeypatch):
    monkeypatch.setattr(choice, "try_out", lambda *_a, **_k: pytest.fail("nothing to measure"))
    found = choose(package, backend="openvino", precision="fp32")
    assert (found.backend, found.precision) == (OPENVINO, Precision.FP32)
    assert found.why == "the configuration names it"


def test_trial_measures_and_checks_the_golden_vectors(package):
    found = try_out(package, (ORT, Precision.FP32))
    assert not found.refused
    assert 0 < found.p50_us <= found.p99_us
    assert found.golden_difference <= 1e-4


def test_trial_that_misses_the_golden_vectors_is_refused_with_the_numbers(tmp_path, package):
    folder = Path(shutil.copytree(DEMO, tmp_path / "1"))
    (folder / "signature.json").unlink()
    text = (folder / "manifest.yaml").read_text()
    (folder / "manifest.yaml").write_text(text.replace("golden_tolerance: 0.02", "golden_tolerance: 1.0e-09"))
    found = try_out(load_package(folder), (OPENVINO, Precision.FP32))
    assert "is off the golden outputs by" in found.refused
    assert "limit 1e-09" in found.refused
    assert found.p50_us == 0


def test_package_that_changes_while_it_is_tried_is_refused(package):
    found = try_out(replace(package, digest=bytes(32)), (ORT, Precision.FP32))
    assert "was changed meanwhile" in found.refused


def test_trial_that_crashes_or_hangs_costs_a_line_and_not_the_start(package, monkeypatch, tmp_path):
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho 'Illegal instruction' >&2\nkill -ILL $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(choice.sys, "executable", str(crash))
    assert try_out(package, (ORT, Precision.FP32)).refused == "ended with -4: Illegal instruction"
    crash.write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(choice, "TRIAL_S", 0.2)
    assert try_out(package, (ORT, Precision.FP32)).refused == "not ready within 0.2 s"


def test_auto_takes_what_runs_here(package):
    signs: list[bool] = []
    found = choose(package, backend="auto", precision="fp32", alive=lambda: signs.append(True))
    assert len(signs) == len(found.trials) == 3, "a sign of life before each: together they may take minutes"
    assert found.backend in {ORT, OPENVINO}
    told = {trial.name: trial for trial in found.trials}
    assert not told["onnxruntime fp32"].refused
    assert not told["openvino fp32"].refused
    assert told["tensorrt fp32"].refused
    assert "tensorrt fp32 refused" in found.why


def _recipe(**fields):
    return RecipeSettings(engine=DEMO, **fields)


def test_only_a_precision_with_a_calibration_of_its_own_judges(package, tmp_path):
    """The fp32 threshold is one of other scores: 0.03 against outputs that may be 0.1 apart."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "1"))
    scores = package.calibration.model_dump(mode="json", exclude_none=True)
    for calibration, precisions in ((None, ["fp32"]), (scores, ["fp16", "fp32"])):
        fp16 = VariantFiles(model=package.model, golden_tolerance=0.05, calibration=calibration)
        with_variants(folder, folder, {VariantName.FP16: fp16}, key=Ed25519PrivateKey.generate())
        found = load_package(folder)
        ways = judging(found, _recipe(backend="onnxruntime", precision="auto"))
        assert sorted(precision for _, precision in ways) == precisions
        assert (ORT, Precision.FP16) in candidates(found, backend="onnxruntime", precision="auto")
        if calibration is None:
            with pytest.raises(PackageError, match=r"fp16 has no calibration of its own.*edgeqc calibrate --engine"):
                judging(found, _recipe(backend="onnxruntime", precision="fp16"))
        named = judging(found, _recipe(backend="onnxruntime", precision="fp16", threshold=0.2))
        assert named == [(ORT, Precision.FP16)]


def test_one_file_is_calibrated_for_one_of_its_two_precisions(package):
    of_bf16 = replace(package, calibration=package.calibration.model_copy(update={"backend": "openvino bf16"}))
    for each, own, other in ((package, "fp32", "bf16"), (of_bf16, "bf16", "fp32")):
        assert judging(each, _recipe(backend="openvino", precision="auto")) == [(OPENVINO, Precision(own))]
        with pytest.raises(PackageError, match=f"{other} has no calibration of its own"):
            judging(each, _recipe(backend="openvino", precision=other))


def test_bf16_is_openvinos_alone(package):
    with pytest.raises(PackageError, match="only openvino runs the fp32 file in bf16"):
        package.as_run(ORT, Precision.BF16)


def test_a_recipe_that_holds_needs_a_hold_band(package):
    without = replace(package, calibration=package.calibration.model_copy(update={"hold_threshold": None}))
    with pytest.raises(PackageError, match="has no hold band; edgeqc calibrate sets it"):
        judging(without, _recipe(hold=True))
