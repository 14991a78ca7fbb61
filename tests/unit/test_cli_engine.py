"""`edgeqc engine`: from a key to a package that another box takes from a stick, and every refusal on that way."""

import json
import shutil
import stat
from pathlib import Path
from typing import get_args

import cv2
import pytest

import edgeqc
from edgeqc.cli import engine as engine_module
from edgeqc.cli import main
from edgeqc.cli.exits import Exit
from edgeqc.cli.packagename import name_of
from edgeqc.inference import manifest
from edgeqc.inference.package import load_package
from edgeqc.inference.signature import fingerprint, load_public
from edgeqc.sim.parts import draw_set

ENGINES = Path(edgeqc.__file__).parents[1] / "engines"
DEMO = ENGINES / "demo-part" / "1"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Nothing of the developer's own directory, environment or width of terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "EDGEQC_TRUST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def edgeqc_(capsys):
    """Run one command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["engine", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def site(edgeqc_):
    """A key, a box that trusts it, and a signed package on a stick."""
    edgeqc_("keygen", "quality", "--out", "desk")
    code, out, err = edgeqc_(
        "trust",
        "desk/quality.pub",
        "--trust",
        "box/trust",
        "--fingerprint",
        fingerprint(load_public(Path("desk/quality.pub"))),
    )
    assert (code, out.strip()) == (0, "box/trust/quality.pub"), err
    shutil.copytree(DEMO, "stick/part/1")
    code, out, err = edgeqc_("sign", "stick/part/1", "--key", "desk/quality.key")
    assert code == 0, err
    assert "4 files signed" in out
    return Path("stick/part/1")


def test_key_pair_is_made_once_and_the_private_half_is_private(edgeqc_):
    code, out, _ = edgeqc_("keygen", "quality", "--out", "desk")
    assert code == 0
    assert fingerprint(load_public(Path("desk/quality.pub"))) in out
    assert stat.S_IMODE(Path("desk/quality.key").stat().st_mode) == 0o600
    code, _, err = edgeqc_("keygen", "quality", "--out", "desk")
    assert code == Exit.FAILED
    assert "never overwritten" in err or "exists" in err


def test_trusting_a_key_asks_and_a_wrong_fingerprint_is_refused(edgeqc_):
    edgeqc_("keygen", "other")
    code, _, err = edgeqc_("trust", "other.pub", "--trust", "trust", "--fingerprint", "00" * 32)
    assert code == Exit.PACKAGE
    assert "this is somebody else's key" in err
    assert not Path("trust").exists()
    code, _, err = edgeqc_("trust", "--trust", "trust")
    assert code == 0
    assert "no package may run here" in err


def test_import_checks_and_puts_in_place_and_verify_agrees(edgeqc_, site):
    code, out, err = edgeqc_(
        "import", site, "--into", "box/engines", "--trust", "box/trust", "--backend", "onnxruntime"
    )
    assert code == 0, err
    assert out.strip().endswith("box/engines/demo-part/1")
    assert "signed by quality" in err
    assert load_package(Path("box/engines/demo-part/1")).name == "demo-part@1"
    assert [path.name for path in Path("box/engines").iterdir()] == ["demo-part"], "nothing half-written is left"
    code, out, err = edgeqc_("verify", "box/engines/demo-part/1", "--trust", "box/trust", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["packages"]
    assert (row["ok"], row["golden_difference"] <= row["limit"], row["not_signed"]) == (True, True, [])
    code, out, _ = edgeqc_("import", site, "--into", "box/engines", "--trust", "box/trust")
    assert code == 0
    assert "was there already" in out


def test_stray_files_on_the_stick_are_left_there(edgeqc_, site):
    (site / "Thumbs.db").write_bytes(b"x")
    (site / "New folder").mkdir()
    code, _, err = edgeqc_("import", site, "--into", "box/engines", "--trust", "box/trust", "--backend", "onnxruntime")
    assert code == 0, err
    assert {path.name for path in Path("box/engines/demo-part/1").iterdir()} == {
        "manifest.yaml", "model.onnx", "calibration.json", "golden.npz", "signature.json",
    }  # fmt: skip


def test_import_of_another_package_under_a_version_that_is_there_is_refused(edgeqc_, site):
    options = ("--into", "box/engines", "--trust", "box/trust", "--backend", "onnxruntime")
    assert edgeqc_("import", site, *options)[0] == 0
    edgeqc_("keygen", "again", "--out", "desk")
    shutil.copy("desk/again.pub", "box/trust")
    edgeqc_("sign", site, "--key", "desk/again.key")
    code, _, err = edgeqc_("import", site, *options)
    assert code == Exit.PACKAGE
    assert "a version is never changed" in err
    assert load_package(Path("box/engines/demo-part/1")).signature.fingerprint == fingerprint(
        load_public(Path("desk/quality.pub"))
    )


@pytest.mark.parametrize("spoil", ["unsigned", "changed", "unknown key", "missing file"])
def test_import_of_what_nobody_vouches_for_leaves_nothing_behind(edgeqc_, site, spoil):
    match spoil:
        case "unsigned":
            (site / "signature.json").unlink()
        case "changed":
            (site / "calibration.json").write_text('{"threshold": 1, "map_threshold": 0.5, "goods": 1, "defects": 1}')
        case "unknown key":
            edgeqc_("sign", site)  # this desk's own key
        case "missing file":
            (site / "golden.npz").unlink()
    code, out, err = edgeqc_("import", site, "--into", "box/engines", "--trust", "box/trust")
    assert code == Exit.PACKAGE
    assert out == ""
    assert err
    assert not Path("box/engines").exists() or list(Path("box/engines").iterdir()) == []


def test_import_of_what_misses_its_golden_vectors_here_is_refused_with_the_numbers(edgeqc_, site):
    text = (site / "manifest.yaml").read_text()
    (site / "manifest.yaml").write_text(text.replace("golden_tolerance: 0.02", "golden_tolerance: 1.0e-09"))
    edgeqc_("sign", site, "--key", "desk/quality.key")
    code, _, err = edgeqc_(
        "import", site, "--into", "box/engines", "--trust", "box/trust", "--backend", "openvino", "--precision", "fp32"
    )
    assert code == Exit.PACKAGE
    assert "is off the golden outputs by" in err
    assert list(Path("box/engines").iterdir()) == []


def test_signature_of_what_the_daemon_would_refuse_is_not_made(edgeqc_, site):
    (site / "calibration.json").write_text("{}")
    code, _, err = edgeqc_("sign", site, "--key", "desk/quality.key")
    assert code == Exit.PACKAGE
    assert "calibration.json: SHA-256" in err


def test_list_shows_whom_each_package_is_from(edgeqc_, site):
    shutil.copytree(site, "stick/unsigned/1")
    Path("stick/unsigned/1/signature.json").unlink()
    shutil.copytree(site, "stick/broken/1")
    Path("stick/broken/1/golden.npz").unlink()
    code, out, err = edgeqc_("list", "stick", "--trust", "box/trust", "--json")
    assert code == 0, err
    rows = {Path(row["folder"]).parent.name: row for row in json.loads(out)["packages"]}
    assert {name: row["state"] for name, row in rows.items()} == {"part": "ok", "unsigned": "warn", "broken": "fail"}
    assert rows["part"]["what"].startswith("signed by quality")
    assert "golden.npz: No such file" in rows["broken"]["what"]
    code, out, _ = edgeqc_("list", "stick", "--trust", "box/trust")
    assert "demo-part@1" in out


def test_show_says_what_runs_here_and_why(edgeqc_, site):
    code, out, err = edgeqc_("show", site, "--trust", "box/trust", "--json")
    assert code == 0, err
    found = json.loads(out)
    ways = {trial["way"]: trial for trial in found["trials"]}
    assert not ways["onnxruntime fp32"]["refused"]
    assert found["runs"].split(":")[0] in ways
    assert "fastest here" in found["runs"]
    assert "Conv" in found["graph"]
    code, out, _ = edgeqc_("show", site, "--trust", "box/trust", "--no-measure")
    assert "signed by quality" in out
    assert "auto takes" not in out


def test_package_that_nobody_vouches_for_is_shown_and_not_run(edgeqc_, site):
    (site / "signature.json").unlink()
    code, out, err = edgeqc_("show", site, "--trust", "box/trust")
    assert code == 0
    assert "is not signed" in out
    assert "Not run, since it is not signed; --measure runs it all the same" in err
    assert "auto takes" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("verify", "stick/part/1", "--backend", "tensorflow"), "'tensorflow' is not one of"),
        (("import", "stick/part/1", "--precision", "fp8"), "'fp8' is not one of"),
        (("build", "stick/part/1", "--precision", "auto"), "'auto' is not one of"),
        (("pixels", "stick/part/1"), "Missing option '--out'"),
        (("keygen", "../up"), "letters, digits"),
        (("sign", "stick/part/1", "--key", "k", "--once", "t"), "leave --key out"),
    ],
)
def test_wrong_word_is_told_with_what_there_is(edgeqc_, site, arguments, told):
    code, _, err = edgeqc_(*arguments)
    assert code == Exit.USAGE
    assert told in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize("command", ["verify", "show", "sign", "import", "convert", "build"])
def test_folder_that_is_none_is_told_without_a_traceback(edgeqc_, site, command):
    code, _, err = edgeqc_(command, "stick/none/1")
    assert code in {Exit.PACKAGE, Exit.SETTINGS}
    assert "stick/none/1" in err
    assert "Traceback" not in err


def test_words_of_the_command_are_those_of_the_daemon():
    assert (*manifest.Backend, "auto") == get_args(engine_module._Backends)
    assert (*manifest.Precision, "auto") == get_args(engine_module._Precisions)


def test_convert_adds_what_is_near_enough_and_says_what_is_not(edgeqc_, site):
    code, out, err = edgeqc_("convert", site, "--out", "box/wide/1", "--no-int8", "--version", "1.fp16")
    assert code == 0, err
    assert "fp16" in out
    assert "needs a calibration on its own scores" in err
    package = load_package(Path("box/wide/1"))
    assert (package.manifest.version, load_package(site).manifest.version) == ("1.fp16", "1")
    assert list(package.variants) == ["fp16"]
    assert package.variants["fp16"].model != package.model
    assert load_package(site).variants == {}, "the original stays as it was"
    code, out, err = edgeqc_("verify", "box/wide/1", "--trust", "state/keys", "--precision", "fp16")
    assert code == 0, err
    assert "onnxruntime fp16 is off the golden outputs by" in out


def test_convert_calibrates_on_frames(edgeqc_, site):
    Path("frames").mkdir()
    for number, part in enumerate(draw_set(12, seed=5, defect_ratio=0.5, shape=(480, 640))):
        cv2.imwrite(f"frames/{number}.png", part.image)
    (Path("frames") / "broken.png").write_bytes(b"no image")
    code, out, err = edgeqc_("convert", site, "--out", "box/wide/1", "--no-fp16", "--images", "frames", "--locate")
    assert "Calibrating int8 on 12 images" in err
    assert "broken.png: cannot be read, left out" in err
    assert "int8-tensorrt" in out
    assert (code == 0) == ("written" in out)


def test_pixels_makes_a_package_that_reads_frames_as_they_are(edgeqc_, site):
    code, _, err = edgeqc_("pixels", site, "--out", "box/pixels/1")
    assert code == Exit.PACKAGE
    assert "preprocess.fill: mean" in err
    text = (site / "manifest.yaml").read_text()
    (site / "manifest.yaml").write_text(text.replace("fill: 0", "fill: mean"))
    edgeqc_("sign", site, "--key", "desk/quality.key")
    code, out, err = edgeqc_("pixels", site, "--out", "box/pixels/1", "--key", "desk/quality.key")
    assert code == 0, err
    assert "reads 256x256 pixels, off the golden outputs by" in out
    code, out, err = edgeqc_("convert", "box/pixels/1", "--key", "desk/quality.key")
    assert code == 0, err
    package = load_package(Path("box/pixels/1"))
    assert package.manifest.takes_pixels
    assert "fp16" in package.variants
    assert package.variants["fp16"].io == package.io
    code, out, err = edgeqc_("verify", "box/pixels/1", "--trust", "box/trust", "--backend", "openvino")
    assert code == 0, err


def test_help_reads_like_a_tool(edgeqc_):
    code, out, _ = edgeqc_("--help")
    assert code == 0
    for command in ("list", "show", "verify", "import", "sign", "keygen", "trust", "convert", "pixels", "build"):
        assert command in out
        code, text, _ = edgeqc_(command, "--help")
        assert code == 0
        assert "Usage" in text


@pytest.mark.parametrize(
    ("out", "name", "version", "named"),
    [
        ("engines/housing/3", None, None, ("housing", "3")),
        ("engines/housing/3.1-b", None, None, ("housing", "3.1-b")),
        ("engines/housing/3", "lid", None, ("lid", "3")),
        ("engines/housing/3", None, "4", ("housing", "4")),
        ("somewhere/pkg", None, None, ("parts", "1")),
        (None, None, None, ("parts", "1")),
    ],
)
def test_a_package_is_called_as_its_folder_says(out, name, version, named):
    assert name_of(None if out is None else Path(out), name=name, version=version, data=Path("data/parts")) == named
