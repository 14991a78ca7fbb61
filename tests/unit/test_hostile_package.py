"""A package made to hurt: what is read before trust, and by whom, is bounded and refused without a crash."""

import hashlib
import io
import json
import os
import shutil
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import edgeqc
from edgeqc.errors import PackageError
from edgeqc.inference import folder as folder_module
from edgeqc.inference.arrays import read_arrays
from edgeqc.inference.documents import from_json, from_yaml, to_yaml
from edgeqc.inference.engine import open_engine
from edgeqc.inference.manifest import Calibration, Manifest
from edgeqc.inference.onnxfile import FIELDS_MOST, OnnxFault, survey
from edgeqc.inference.package import check_golden, load_package
from edgeqc.inference.signature import SIGNATURE, sign
from edgeqc.inference.tagpackage import load_tag_package
from edgeqc.inference.trust import Trust
from edgeqc.inference.writing import import_package, read_signed, sign_folder

DEMO = Path(edgeqc.__file__).parents[1] / "engines" / "demo-part" / "1"
MANIFEST = (DEMO / "manifest.yaml").read_text()
NOBODY = Trust(folder=Path("/nowhere"))

# --- golden.npz ---------------------------------------------------------------------------------------------------------

EXPECTED = {"x": ("float32", (4,))}


def _npy(array=None, *, header=None, version=b"\x01\x00"):
    if header is None:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((2, 4), np.float32) if array is None else array)
        return buffer.getvalue()
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


def _zip(*entries, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def _header(shape, descr="<f4"):
    return _npy(header=f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}")


def _encrypted():
    content = bytearray(_zip(("x.npy", _npy())))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    return bytes(content)


def _lying(size):
    """The archive says that the entry has `size` bytes; packed in it are a hundred million zeros."""
    content = bytearray(_zip(("x.npy", _npy() + bytes(100_000_000))))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(mark) + at, size)
    return bytes(content)


NPZ = {
    "twice the same name": (lambda: _zip(("x.npy", _npy()), ("x", _npy())), "holds"),
    "encrypted": (_encrypted, "is packed in a way"),
    "lzma": (lambda: _zip(("x.npy", _npy()), method=zipfile.ZIP_LZMA), "is packed in a way"),
    "room for a terabyte": (lambda: _zip(("x.npy", _header("(274877906944, 4)"))), "reshape"),
    "room for more than numbers hold": (lambda: _zip(("x.npy", _header(f"({2**80}, 4)"))), "x"),
    "negative": (lambda: _zip(("x.npy", _header("(-3, 4)"))), "x|reshape|empty"),
    "nested without end": (lambda: _zip(("x.npy", _header("(" * 900 + ")" * 900))), "header|nested|recursion|depth"),
    "signs without end": (lambda: _zip(("x.npy", _header(f"({'-' * 9000}1, 4)"))), "."),
    "type of nothing": (lambda: _zip(("x.npy", _header("(2, 4)", "|V0"))), "."),
    "text": (lambda: _zip(("x.npy", _npy(np.full((2, 4), "a")))), "must be float32"),
    "other format": (lambda: _zip(("x.npy", _npy(header="{}", version=b"\x03\x00"))), "format 1.0"),
    "no array": (lambda: _zip(("x.npy", b"#!/bin/sh\n")), "magic"),
    "nothing": (_zip, "holds"),
    "no case": (lambda: _zip(("x.npy", _npy(np.zeros((0, 4), np.float32)))), "must be"),
    "scalar": (lambda: _zip(("x.npy", _npy(np.float32(1)))), "must be"),
}


@pytest.mark.parametrize("kind", NPZ)
def test_archive_that_asks_for_more_than_is_expected_is_refused(kind):
    make, match = NPZ[kind]
    with pytest.raises(ValueError, match=match):
        read_arrays(make(), EXPECTED)


def test_archive_that_lies_about_its_size_unpacks_no_further_than_it_says():
    content = _lying(len(_npy()))
    tracemalloc.start()
    with suppress(ValueError):
        read_arrays(content, EXPECTED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_arrays_in_fortran_s_order_are_read_as_they_were():
    array = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    found = read_arrays(_zip(("x.npy", _npy(array))), {"x": ("float32", (3, 4))})["x"]
    np.testing.assert_array_equal(found, array)


GOLDEN = _zip(("x.npy", _npy(np.random.default_rng(0).random((2, 4), np.float32))))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_archive_is_read_or_refused_and_never_more(changes):
    content = bytearray(GOLDEN)
    for at, value in changes:
        content[at] = value
    with suppress(ValueError):
        assert read_arrays(bytes(content), EXPECTED)["x"].shape[1:] == (4,)


# --- manifest.yaml, calibration.json, signature.json --------------------------------------------------------------------

YAML = {
    "key twice": (f"{MANIFEST}golden_tolerance: 0.1\n", "golden_tolerance|is given twice"),
    "key twice, deep": (MANIFEST.replace("  fit: letterbox", "  gain: 3.0\n  fit: letterbox"), "is given twice"),
    "merged": (MANIFEST + "<<: {golden_tolerance: 0.1}\n", "merge"),
    "two documents": (MANIFEST + "---\n" + MANIFEST, "second document"),
    "aliases that unfold": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "more than 200000 values",
    ),
    "nested without end": ("a: " + "[" * 100_000, "nested more than|not YAML"),
    "number without end": (f"{MANIFEST}x: {'9' * 100_000}\n", "x: 9{80}: Extra"),
    "hexadecimal without end": (f"{MANIFEST}x: 0x{'f' * 100_000}\n", "x: 0xf{78}: Extra"),
    "day that is none": (f"{MANIFEST}x: 2026-99-99\n", "x: 2026-99-99: Extra"),
    "object": (MANIFEST + "x: !!python/object/apply:os.system [id]\n", "is not used here"),
    "terminal's commands": (
        MANIFEST.replace("licence: Apache-2.0", 'licence: "a\\e[2J\\e]0;x"'),
        r"licence: 'a.x1b\[2J",
    ),
    "writing turned round": (MANIFEST.replace("licence: Apache-2.0", "licence: \u202egpj.exe"), r"licence: '.u202egpj"),
    "letters that look alike": (MANIFEST.replace("name: demo-part", "name: dem\u043e-part"), "name: dem\u043e-part: "),
    "end of line in a name": (MANIFEST.replace("name: demo-part", 'name: "demo-part\\n"'), "name: 'demo-part"),
    "way up": (MANIFEST.replace("version: '1'", "version: '../../1'"), r"version: \.\./\.\./1: "),
    "zero byte": (MANIFEST + 'x: "\\0"\n', "Extra"),
}


@pytest.mark.parametrize("kind", YAML)
def test_manifest_that_reads_two_ways_or_without_end_is_refused(kind):
    text, match = YAML[kind]
    assert text != MANIFEST
    with pytest.raises(PackageError, match=match) as caught:
        from_yaml(Manifest, Path("manifest.yaml"), text.encode())
    assert len(str(caught.value)) < 20_000
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "word", ["y", "N", "no", "on", "012", "1_000", "12:30", "0x1f", "~", "", "1e3", "*a", "2026-01-01"]
)
def test_words_that_yaml_reads_in_its_own_way_come_back_as_they_were_written(word):
    told = yaml.safe_load(MANIFEST) | {"licence": word or " ", "description": word}
    found = from_yaml(Manifest, Path("manifest.yaml"), to_yaml(told))
    assert (found.licence, found.description) == (word or " ", word)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_manifest_is_a_manifest_or_refused(content):
    with suppress(PackageError):
        from_yaml(Manifest, Path("manifest.yaml"), content)
    with suppress(PackageError):
        from_json(Calibration, Path("calibration.json"), content)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"threshold": 0.9, "threshold": 0.1, "map_threshold": 0.5, "goods": 1, "defects": 1}', "given twice"),
        ("[" * 100_000, "recursion|nest"),
        (f'{{"threshold": {"9" * 5000}}}', "digits"),
        ('{"threshold": 1e999, "map_threshold": 0.5, "goods": 1, "defects": 1}', "threshold: inf"),
    ],
)
def test_calibration_that_reads_two_ways_or_without_end_is_refused(text, match):
    with pytest.raises(PackageError, match=match):
        from_json(Calibration, Path("calibration.json"), text.encode())


# --- model.onnx -----------------------------------------------------------------------------------------------------------


def _varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(key, payload):
    return _varint(key) + _varint(len(payload)) + payload


def _with_tensor(tensor, node=b""):
    value = helper.make_tensor_value_info
    nodes = [] if node else [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, (4,))], [value("y", TensorProto.FLOAT, (4,))]
    ).SerializeToString()
    head = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 17)])
    head.ClearField("graph")
    return head.SerializeToString() + _field(0x3A, node + graph + _field(0x2A, tensor))


TOP = 1 << 32
"""Bits above the 32 of a field's key: libprotobuf cuts them off, so that a walk which does not is led past the field."""
ELSEWHERE = _field(0x0A, b"location") + _field(0x12, b"../../etc/passwd")
SOUND = b"\x08\x04\x10\x01" + _field(0x42, b"w")


@pytest.mark.parametrize("key", [0x6A, 0x6A | TOP, 0x6A | 4 * TOP])
@pytest.mark.parametrize("location", [1, 1 | TOP])
def test_data_in_other_files_is_found_however_it_is_written(key, location):
    """With both in their odd form OpenVINO 2026.4 reads the other file, and ONNX Runtime 1.31 does where it is given a path."""
    tensor = SOUND + _field(key, ELSEWHERE) + _varint(0x70) + _varint(location)
    with pytest.raises(OnnxFault, match=r"keeps data in other files|over 32 bits"):
        survey(_with_tensor(tensor))


def test_location_elsewhere_alone_is_found_however_it_is_written():
    with pytest.raises(OnnxFault, match="keeps data in other files"):
        survey(_with_tensor(SOUND + _varint(0x70) + _varint(1 | TOP)))


def test_operator_s_domain_is_found_however_it_is_written():
    node = _field(0x0A, b"x") + _field(0x12, b"y") + _field(0x22, b"Trapdoor") + _field(0x3A | TOP, b"evil")
    with pytest.raises(OnnxFault, match="over 32 bits"):
        survey(_with_tensor(SOUND, _field(0x0A, node)))


@pytest.mark.parametrize("packed", [True, False])
def test_constant_of_countless_dimensions_is_refused_at_once(packed):
    many = 200_000
    sizes = _field(0x0A, b"\x01" * many) if packed else b"\x08\x01" * many
    with pytest.raises(OnnxFault, match="more than 32 dimensions"):
        survey(_with_tensor(sizes))


def test_file_of_countless_fields_is_refused():
    crowd = b"\x18\x01" * (FIELDS_MOST + 1)
    with pytest.raises(OnnxFault, match="fields; export it with weights as raw data"):
        survey(crowd)


# --- the folder, and time between check and use -------------------------------------------------------------------------


@pytest.fixture
def stick(tmp_path):
    """A copy of the demo's package, signed by `key`, and who trusts it."""
    key = Ed25519PrivateKey.generate()
    folder = Path(shutil.copytree(DEMO, tmp_path / "stick" / "1"))
    sign_folder(folder, key)
    return folder, Trust(folder=tmp_path, signers={key.public_key().public_bytes_raw(): "quality"})


def test_what_was_checked_is_what_runs_whatever_becomes_of_the_folder(stick):
    folder, trust = stick
    package = load_package(folder, trust=trust)
    for path in folder.iterdir():
        path.write_bytes(b"changed behind the daemon's back")
    engine = open_engine(package)
    assert check_golden(engine, package) <= package.golden_tolerance
    engine.close()


def test_what_was_checked_is_what_is_imported_whatever_becomes_of_the_stick(stick, tmp_path):
    folder, trust = stick
    files = read_signed(folder, trust)

    def swapped(_package):
        for path in folder.iterdir():
            path.write_bytes(b"changed while the golden vectors ran")

    package, _ = import_package(files, tmp_path / "engines", trust=trust, accept=swapped)
    assert load_package(package.folder, trust=trust).model == (DEMO / "model.onnx").read_bytes()


def test_of_a_stick_that_nobody_vouches_for_only_the_signature_is_read(stick):
    folder, _ = stick
    for path in folder.iterdir():
        if path.name != SIGNATURE:
            path.unlink()
            os.mkfifo(path)  # reading one would be a fault of another kind
    with pytest.raises(PackageError, match="signed by an unknown key"):
        read_signed(folder, NOBODY)
    (folder / SIGNATURE).unlink()
    with pytest.raises(PackageError, match="is not signed"):
        read_signed(folder, NOBODY)


def _listing(folder, names):
    """A signature of a trusted key over files of these names."""
    key = Ed25519PrivateKey.generate()
    (folder / SIGNATURE).write_bytes(sign(dict.fromkeys(names, b""), key))
    return Trust(folder=folder, signers={key.public_key().public_bytes_raw(): "k"})


def test_more_files_than_a_package_has_are_refused_unread(tmp_path):
    trust = _listing(tmp_path, [f"f{number}" for number in range(folder_module.FILES_MOST + 1)])
    with pytest.raises(PackageError, match=r"65 files are over 64"):
        read_signed(tmp_path, trust)


def test_files_that_are_too_much_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "WHOLE_LIMIT_BYTES", 1000)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(400))
    with pytest.raises(PackageError, match=r"c: 400 bytes are over 200"):
        read_signed(tmp_path, _listing(tmp_path, ["a", "b", "c"]))


def test_link_to_another_place_is_not_followed_at_import(stick, tmp_path):
    folder, trust = stick
    (folder / "golden.npz").unlink()
    (folder / "golden.npz").symlink_to(DEMO / "golden.npz")
    with pytest.raises(PackageError, match=r"golden\.npz: is a symbolic link"):
        read_signed(folder, trust)


def test_signature_that_lists_a_file_twice_is_refused(stick):
    folder, trust = stick
    text = (folder / SIGNATURE).read_text()
    (folder / SIGNATURE).write_text(text.replace('"files": {', '"files": {"model.onnx": "' + "0" * 64 + '", ', 1))
    with pytest.raises(PackageError, match="is no signature: a key is given twice"):
        load_package(folder, trust=trust)


# --- tag packages, which need no signature, have the same walls ----------------------------------------------------------


@pytest.fixture
def tags(tmp_path):
    """As much of a tag package as is read before its network."""
    folder = tmp_path / "tags"
    folder.mkdir()
    scale = {"centre": [0.0], "width": [1.0]}
    names = ("surprise_usual", "distance_usual", "offset_usual", "score_usual", "plain_usual", "surprise_smoothing")
    usual = dict.fromkeys((*names, "level_smoothing", "plain_limit", "monitor_limit"), 1.0)
    monitor = {"scale": scale, "axes": [[1.0]], "variances": [1.0], "t2_usual": 1.0, "q_usual": 1.0, "smoothing": 1.0}
    calibration = {
        **usual, "forecast_scale": scale, "level_scale": scale, "level_usual": [1.0], "monitor": monitor,
        "settle_rows": 1, "alarm": {"limit": 1.0},
    }  # fmt: skip
    (folder / "calibration.json").write_text(json.dumps(calibration))
    return folder


def _tag_package(folder, model):
    (folder / "model.onnx").write_bytes(model)
    (folder / "golden.npz").write_bytes(b"")
    files = {name: hashlib.sha256((folder / file).read_bytes()).hexdigest() for name, file in
             {"model": "model.onnx", "calibration": "calibration.json", "golden": "golden.npz"}.items()}  # fmt: skip
    training = {"data": "d", "seed": 1, "minutes": 1.0, "rows": 1, "parameters": 1}
    manifest = {
        "format": 1, "kind": "tags", "name": "n", "version": "1", "licence": "l", "files": files,
        "tags": [{"name": "t"}], "grid_ms": 100, "members": 1, "hidden": 1, "training": training,
    }  # fmt: skip
    (folder / "manifest.yaml").write_bytes(to_yaml(manifest))
    return folder


def test_network_of_a_tag_package_may_not_lead_elsewhere(tags):
    elsewhere = _with_tensor(SOUND + _field(0x6A, ELSEWHERE) + b"\x70\x01")
    with pytest.raises(PackageError, match=r"model\.onnx: keeps data in other files"):
        load_tag_package(_tag_package(tags, elsewhere))
    node = helper.make_node("Trapdoor", ["x"], ["y"], domain="evil")
    custom = helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString()
    with pytest.raises(PackageError, match="Trapdoor of evil"):
        load_tag_package(_tag_package(tags, custom))
    with pytest.raises(PackageError, match=r"golden\.npz: File is not a zip file"):
        load_tag_package(_tag_package(tags, _with_tensor(SOUND)))


def test_link_in_a_tag_package_is_not_followed(tags):
    _tag_package(tags, b"x")
    (tags / "calibration.json").rename(tags / "elsewhere")
    (tags / "calibration.json").symlink_to(tags / "elsewhere")
    with pytest.raises(PackageError, match=r"calibration\.json: is a symbolic link"):
        load_tag_package(tags)
