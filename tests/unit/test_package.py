"""Model packages: the committed one is sound; every way to spoil a copy of it is refused with file, value and limit."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import edgeqc
from edgeqc.errors import PackageError
from edgeqc.inference.arrays import UNPACKED_MOST_BYTES
from edgeqc.inference.engine import open_engine
from edgeqc.inference.folder import MODEL_LIMIT_BYTES, TEXT_LIMIT_BYTES
from edgeqc.inference.package import check_golden, load_package
from edgeqc.inference.writing import read_folder, replace_folder

DEMO = Path(edgeqc.__file__).parents[1] / "engines" / "demo-part" / "1"
FILES = {"model.onnx": "model", "calibration.json": "calibration", "golden.npz": "golden"}


@pytest.fixture
def folder(tmp_path):
    copy = Path(shutil.copytree(DEMO, tmp_path / "1"))
    (copy / "signature.json").unlink()  # test_signature.py has what becomes of a signed one
    return copy


def _seal(folder):
    """Make the hashes right again, so that the fault behind them is what is met."""
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    for name, key in FILES.items():
        manifest["files"][key] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))


def _edit(folder, change):
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    change(manifest)
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))


def _refused(folder, match):
    with pytest.raises(PackageError, match=match) as caught:
        open_engine(load_package(folder))
    assert str(folder) in str(caught.value)


def test_committed_package_is_sound_and_small():
    package = load_package(DEMO)
    assert package.name == "demo-part@1"
    assert package.digest == hashlib.sha256((DEMO / "model.onnx").read_bytes()).digest()
    assert sum(file.stat().st_size for file in DEMO.iterdir()) < 4_000_000
    assert package.manifest.licence == "Apache-2.0"
    assert package.input_shape == (256, 256)
    assert package.map_shape == (32, 32)
    assert package.calibration.map_threshold <= package.threshold


def test_committed_package_keeps_its_promises():
    figures = load_package(DEMO).manifest.figures
    assert figures.defects >= 500
    assert figures.goods >= 500
    assert figures.escapes <= 0.02 * figures.defects
    assert figures.overkills <= 0.01 * figures.goods


def test_golden_outputs_are_met():
    package = load_package(DEMO)
    engine = open_engine(package)
    assert 0 <= check_golden(engine, package) <= 1e-4
    engine.close()


@pytest.mark.parametrize("name", ["output.score", "output.map", "output.kind"])
def test_altered_golden_output_fails_the_check(folder, name):
    with np.load(folder / "golden.npz") as archive:
        arrays = dict(archive)
    arrays[name][0].flat[0] += 0.05
    np.savez_compressed(folder / "golden.npz", **arrays)
    _seal(folder)
    package = load_package(folder)
    engine = open_engine(package)
    with pytest.raises(PackageError, match=rf"0\.05.*case 0, {name.replace('.', ' ')}.*limit 0\.02"):
        check_golden(engine, package)
    engine.close()


class _NanSlot:
    def __init__(self, slot):
        self._slot = slot
        self.input, self.release = slot.input, slot.release

    def output(self, name):
        return np.full_like(self._slot.output(name), np.nan)


class _NanEngine:
    """A real engine whose outputs turn out not to be numbers."""

    def __init__(self, engine):
        self._engine = engine
        self.io, self.backend = engine.io, engine.backend

    def acquire(self):
        return _NanSlot(self._engine.acquire())

    def submit(self, slot):
        self._engine.submit(slot._slot)

    def wait(self, slot, until_ns):
        self._engine.wait(slot._slot, until_ns)


def test_outputs_that_are_not_numbers_fail_the_check():
    package = load_package(DEMO)
    engine = open_engine(package)
    with pytest.raises(PackageError, match="off the golden outputs by inf"):
        check_golden(_NanEngine(engine), package)
    engine.close()


@pytest.mark.parametrize("name", ["manifest.yaml", *FILES])
def test_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    _refused(folder, f"{name}: No such file")


@pytest.mark.parametrize("name", ["manifest.yaml", *FILES])
def test_symbolic_link_is_refused(folder, name):
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    _refused(folder, f"{name}: is a symbolic link")


@pytest.mark.parametrize("name", ["manifest.yaml", *FILES])
def test_pipe_is_refused_without_waiting_for_a_writer(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    _refused(folder, f"{name}: is not a regular file")


@pytest.mark.parametrize("name", FILES)
def test_file_in_a_folder_s_place_is_refused(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    _refused(folder, f"{name}: ")


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    _refused(folder, f"{name}: SHA-256 is")


@pytest.mark.parametrize("name", FILES)
def test_wrong_hash_is_refused(folder, name):
    _edit(folder, lambda manifest: manifest["files"].update({FILES[name]: "0" * 64}))
    _refused(folder, f"{name}: SHA-256 is [0-9a-f]+, the manifest says 0+")


@pytest.mark.parametrize("content", [b"", b"not onnx at all"])
def test_file_that_is_no_model_is_refused(folder, content):
    (folder / "model.onnx").write_bytes(content)
    _seal(folder)
    _refused(folder, r"model\.onnx: is (no ONNX model|cut off)")


def test_truncated_model_with_a_right_hash_is_refused(folder):
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-100_000])
    _seal(folder)
    _refused(folder, r"model\.onnx: is cut off")


def test_model_over_the_size_limit_is_refused_unread(folder):
    with (folder / "model.onnx").open("r+b") as file:
        file.truncate(MODEL_LIMIT_BYTES + 1)
    _refused(folder, rf"model\.onnx: {MODEL_LIMIT_BYTES + 1} bytes are over")


def test_golden_file_that_unpacks_over_the_limit_is_refused(folder):
    zeros = np.zeros((UNPACKED_MOST_BYTES // 4 + 1,), np.float32)
    np.savez_compressed(folder / "golden.npz", **{"input.image": zeros})
    _seal(folder)
    _refused(folder, r"golden\.npz: unpacks to \d+ bytes, over")


@pytest.mark.parametrize("content", [b"", b"PK no archive", b"\x80\x04N."])
def test_golden_file_that_is_no_archive_is_refused(folder, content):
    (folder / "golden.npz").write_bytes(content)
    _seal(folder)
    _refused(folder, r"golden\.npz: ")


def test_pickled_golden_array_is_refused(folder):
    with np.load(folder / "golden.npz") as archive:
        arrays = dict(archive)
    np.savez(folder / "golden.npz", **(arrays | {"output.map": np.array([{"a": 1}], dtype=object)}))
    _seal(folder)
    _refused(folder, r"golden\.npz: .*pickle")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda arrays: arrays.pop("output.map"), "holds .*, must hold"),
        (lambda arrays: arrays.update(extra=np.zeros(1, np.float32)), "holds .*extra"),
        (lambda arrays: arrays.update({"output.map": arrays["output.map"][:-1]}), "must be float32"),
        (lambda arrays: arrays.update({"output.map": arrays["output.map"].astype(np.float64)}), "float64"),
        (lambda arrays: arrays["output.map"].fill(np.nan), "not finite"),
    ],
)
def test_golden_arrays_that_do_not_fit_are_refused(folder, change, match):
    with np.load(folder / "golden.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez_compressed(folder / "golden.npz", **arrays)
    _seal(folder)
    _refused(folder, match)


@pytest.mark.parametrize(
    ("calibration", "match"),
    [
        ("{", r"calibration\.json: "),
        ("[]", r"calibration\.json: whole file"),
        ({"threshold": 1.5}, r"threshold: 1\.5: .*less than or equal to 1"),
        ({"threshold": float("nan")}, "threshold: nan: .*finite"),
        ({"map_threshold": 0}, "map_threshold: 0: .*greater than 0"),
        ({"surprise": 1}, "surprise: 1: Extra inputs are not permitted"),
    ],
)
def test_calibration_that_makes_no_sense_is_refused(folder, calibration, match):
    file = folder / "calibration.json"
    file.write_text(
        calibration if isinstance(calibration, str) else json.dumps(json.loads(file.read_text()) | calibration)
    )
    _seal(folder)
    _refused(folder, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(surprise=1), r"manifest\.yaml: surprise: 1: Extra inputs are not permitted"),
        (lambda m: m["preprocess"].update(gian=2), r"preprocess\.gian: 2: Extra inputs"),
        (lambda m: m.pop("licence"), "licence: Field required"),
        (lambda m: m.update(format=2), "format: 2: Input should be 1"),
        (lambda m: m["files"].update({"../../etc/passwd": "0" * 64}), "files.*Extra inputs"),
        (lambda m: m["files"].update(model="abc"), r"files\.model: abc: "),
        (lambda m: m["inputs"][0].update(dtype="float16"), r"inputs\.0\.dtype: float16: "),
        (lambda m: m["inputs"][0].update(shape=[1, 3, 256, 256]), r"inputs\[0\]\.shape: \[1, 3, 256, 256\] is not"),
        (lambda m: m["inputs"][0].update(shape=[1, 1, 16384, 16384]), "values are over 16777216"),
        (lambda m: m["inputs"][0].update(shape=[1, 1, 0, 16]), r"inputs\.0\.shape\.2: 0: "),
        (lambda m: m["inputs"][0].update(name="picture"), r"preprocess\.input: image is no input"),
        (lambda m: m["outputs"][0].update(name="points"), "outputs: points, map, kind; must be score, map"),
        (lambda m: m["outputs"][0].update(shape=[2]), r"outputs\.score\.shape: \[2\] is not \[1\]"),
        (lambda m: m.update(classes=["a", "b"]), r"outputs\.kind\.shape"),
        (lambda m: m["outputs"].pop(), "classes: 4 need an output named kind"),
        (lambda m: m["preprocess"].update(gain=float("inf")), r"preprocess\.gain: inf: .*finite"),
        (lambda m: m.update(name="../evil"), r"name: \.\./evil: "),
        (lambda m: m["inputs"][0].update(dtype="uint8"), r"is not \[1, height, width, 1\].*gain 1 and offset 0"),
        (lambda m: m["inputs"][0].update(shape=[256]), r"inputs\[0\]\.shape: \[256\] is not"),
        (lambda m: m["outputs"][0].update(dtype="uint8"), r"outputs\.score\.dtype: uint8 is not float32"),
    ],
)
def test_manifest_that_makes_no_sense_is_refused(folder, change, match):
    _edit(folder, change)
    _refused(folder, match)


@pytest.mark.parametrize("content", [b"", b"[", b"- 1", b"\xff\xfe\x00", b"!!python/object/apply:os.getcwd []"])
def test_manifest_that_is_no_mapping_is_refused(folder, content):
    (folder / "manifest.yaml").write_bytes(content)
    _refused(folder, r"manifest\.yaml:(\d+:)? ")


def test_manifest_over_the_size_limit_is_refused(folder):
    (folder / "manifest.yaml").write_bytes(b"#" * (TEXT_LIMIT_BYTES + 1))
    _refused(folder, r"manifest\.yaml: \d+ bytes are over \d+")


def test_all_faults_of_a_manifest_are_told_at_once(folder):
    _edit(folder, lambda m: (m.update(surprise=1), m.pop("licence"), m["preprocess"].update(max_scale=300)))
    with pytest.raises(PackageError) as caught:
        load_package(folder)
    assert len(str(caught.value).splitlines()) == 3


def _with_golden_shapes(folder, change):
    """Change shapes in the manifest, and the golden arrays with them, so that only the model itself disagrees."""
    _edit(folder, change)
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    arrays = {f"input.{t['name']}": np.zeros((1, *t["shape"]), np.float32) for t in manifest["inputs"]}
    arrays |= {f"output.{t['name']}": np.zeros((1, *t["shape"]), np.float32) for t in manifest["outputs"]}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    (folder / "golden.npz").write_bytes(buffer.getvalue())
    _seal(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m: m["inputs"][0].update(shape=[1, 1, 128, 128]),
            r"image: float32\[1, 1, 256, 256\], the manifest says float32\[1, 1, 128, 128\]",
        ),
        (
            lambda m: (m["outputs"][1].update(shape=[1, 1, 16, 16]), m["outputs"][2].update(shape=[1, 4, 16, 16])),
            r"kind: float32\[1, 4, 32, 32\], the manifest says float32\[1, 4, 16, 16\]",
        ),
        (
            lambda m: (m["inputs"][0].update(name="picture"), m["preprocess"].update(input="picture")),
            "image: float32.*, the manifest says is not there",
        ),
        (lambda m: (m["outputs"].pop(), m.update(classes=["flaw"])), "kind: float32.*, the manifest says is not there"),
    ],
)
def test_model_that_is_not_as_the_manifest_says_is_refused(folder, change, match):
    _with_golden_shapes(folder, change)
    _refused(folder, match)


def test_unknown_backend_is_refused_by_name(folder):
    with pytest.raises(PackageError, match="backend: tensorflow is none of onnxruntime"):
        open_engine(load_package(folder), backend="tensorflow")


@pytest.mark.parametrize("inside", ["parts/good.png", "manifest.yaml/x", "1/manifest.yaml", "notes.txt"])
def test_what_is_no_package_is_never_replaced_by_one(folder, inside):
    """`--out engines/housing` with the version forgotten, or the pictures' own folder: it would all be gone."""
    place = folder.parent / "mine"
    (place / inside).parent.mkdir(parents=True)
    (place / inside).write_text("dear")
    with pytest.raises(PackageError, match="is there and no package, and all in it would be lost"):
        replace_folder(place, read_folder(folder), key=None)
    assert (place / inside).read_text() == "dear"
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_package_and_an_empty_folder_are_replaced(folder):
    empty = folder.parent / "empty"
    empty.mkdir()
    for place in (empty, empty, folder):
        assert replace_folder(place, read_folder(folder), key=None).name == load_package(folder).name
