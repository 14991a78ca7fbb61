"""A frame goes from the camera's slot to the engine's input by one write, and by none where the model takes pixels."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeqc.errors import PackageError
from edgeqc.inference.judge import map_shape
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.package import golden_difference, load_package
from edgeqc.inference.pixels import with_pixels
from edgeqc.inference.tensorrt.workshop import Workshop
from edgeqc.inference.writing import read_folder, replace_folder, write_package
from edgeqc.records import Trigger
from edgeqc.settings import GpuSettings, RecipeSettings, RegionMode, RegionSettings, ReplayCameraSettings
from edgeqc.shm.slots import FrameSlots
from edgeqc.sim.gpu import tensorrt as double
from edgeqc.sim.parts import draw_set
from edgeqc.station.inspection import Inspection
from edgeqc.station.part import Part

DEMO = Path(__file__).parents[3] / "engines" / "demo-part" / "1"
FRAME = (256, 256)
WAYS = ("onnxruntime", "openvino", "tensorrt mapped", "tensorrt copied", "tensorrt copied, no graph")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The demo's net with a fill that its mean survives, as it is and behind its own preprocessing."""
    folder = tmp_path_factory.mktemp("packages")
    key = Ed25519PrivateKey.generate()
    shutil.copytree(DEMO, folder / "numbers")
    files = read_folder(folder / "numbers")
    manifest = yaml.safe_load(files["manifest.yaml"])
    manifest["preprocess"]["fill"] = "mean"
    files["manifest.yaml"] = yaml.safe_dump(manifest).encode()
    replace_folder(folder / "numbers", files, key=key)
    write_package(folder / "pixels", with_pixels(load_package(folder / "numbers")), key=key)
    return folder


@pytest.fixture(params=WAYS)
def way(request, driver, monkeypatch, tmp_path):
    """Backend, settings and state directory of each way to run, with whatever that needs."""
    backend, _, memory = request.param.partition(" ")
    driver.pretend(integrated=memory == "mapped")
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    return backend, GpuSettings(graphs="no graph" not in memory), tmp_path / "state"


@pytest.fixture
def slots(tmp_path):
    made = FrameSlots.create(tmp_path / "slots", per_bank=2, shape=FRAME, map_shape=map_shape(FRAME))
    for slot, part in zip(range(made.count), draw_set(made.count, seed=3, defect_ratio=0.5, shape=FRAME), strict=True):
        made.pixels(slot)[:] = part.image
    yield made
    made.close()


class Judged:
    """What became of a frame, and where its engine read it."""

    def __init__(self, inspection, slots, slot):
        part = Part(
            trigger=Trigger(sequence=1, part_id="P", at_ns=0, wall_ns=0), deadline_ns=1 << 62, fail_safe_at_ns=1 << 62
        )
        submit = inspection.engine.submit

        def watched(engine_slot):
            self.read = engine_slot.input(inspection.engine.io.inputs[0].name)
            submit(engine_slot)

        inspection.engine.submit = watched
        before = slots.pixels(slot).copy()
        assert inspection.inspect(part, slots.pixels(slot), slots.map(slot), keep_pass=True)
        np.testing.assert_array_equal(slots.pixels(slot), before)
        inspection.engine.submit = submit
        self.in_place = np.shares_memory(self.read, slots.pixels(slot))
        self.score, self.defects = part.score, part.defects


def _inspection(folder, way, region=None):
    backend, gpu, state = way
    if backend == "tensorrt":
        workshop = Workshop(state, gpu)
        workshop.build(load_package(folder))
        workshop.close()
    camera = ReplayCameraSettings(type="replay", folder=Path(), height_px=FRAME[0], width_px=FRAME[1])
    recipe = RecipeSettings(engine=folder, backend=backend, region=region or RegionSettings())
    return Inspection(recipe, camera, state_dir=state, gpu=gpu)


def test_model_that_takes_pixels_reads_the_camera_s_own_slot(way, packages, slots):
    plain, inspection = _inspection(packages / "numbers", way), _inspection(packages / "pixels", way)
    assert inspection.adopt(slots.memory)
    assert plain.adopt(slots.memory)
    for slot in range(slots.count):
        judged, reference = Judged(inspection, slots, slot), Judged(plain, slots, slot)
        assert judged.in_place
        assert not reference.in_place
        assert judged.score == pytest.approx(reference.score, abs=2e-3)
        assert len(judged.defects) == len(reference.defects)
    inspection.close()
    plain.close()


def test_frame_that_is_not_the_input_is_written_once_as_pixels(way, packages, slots):
    region = RegionSettings(mode=RegionMode.FIXED, x_px=16, y_px=8, width_px=200, height_px=230)
    plain, inspection = _inspection(packages / "numbers", way, region), _inspection(packages / "pixels", way, region)
    assert inspection.adopt(slots.memory)
    for slot in range(slots.count):
        judged, reference = Judged(inspection, slots, slot), Judged(plain, slots, slot)
        assert not judged.in_place
        assert judged.read.dtype == np.uint8
        assert judged.score == pytest.approx(reference.score, abs=5e-3)
    inspection.close()
    plain.close()


def test_frame_outside_adopted_memory_is_written_once(way, packages, slots):
    inspection = _inspection(packages / "pixels", way)
    judged = Judged(inspection, slots, 0)
    assert not judged.in_place
    assert inspection.adopt(slots.memory)
    again = Judged(inspection, slots, 0)
    assert again.in_place
    assert again.score == pytest.approx(judged.score, abs=1e-6)
    inspection.rehearse(Part(trigger=Trigger(sequence=1, part_id="P", at_ns=0, wall_ns=0), deadline_ns=1 << 62, fail_safe_at_ns=1 << 62))  # fmt: skip
    inspection.close()


def test_pixels_package_keeps_the_old_net_s_outputs(packages):
    old, new = load_package(packages / "numbers"), load_package(packages / "pixels")
    assert new.manifest.takes_pixels
    assert new.input_shape == old.input_shape
    assert new.golden["input.pixels"].dtype == np.uint8
    engine = OnnxRuntimeEngine(new.model)
    assert golden_difference(engine, new)[0] < 1e-3
    engine.close()
    with pytest.raises(PackageError, match="takes pixels already"):
        with_pixels(new)


def test_mean_behind_a_black_letterbox_cannot_be_put_into_the_model():
    with pytest.raises(PackageError, match=r"not known behind a letterbox filled with 0.*preprocess\.fill: mean"):
        with_pixels(load_package(DEMO))
