"""The TensorRT engine keeps the port's contract, on each kind of memory, with and without graphs.

On the pretended device the numbers are ONNX Runtime's own and must be equal to the last bit; on a real one
(`EDGEQC_GPU=1 pytest -m gpu tests/contract/gpu`) they must agree to what the precision allows.
"""

import threading
import time

import numpy as np
import pytest
from gpubox import Gpu, pycuda
from gpumodels import CARRY, HIDDEN, WIDTH, cell, cnn

from edgeqc.errors import EngineError, EngineLostError
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.tensorrt import engine as engine_module
from edgeqc.sim.gpu import tensorrt as double

FAR_NS = 1 << 62


def _soon_ns():
    return time.monotonic_ns() + 5_000_000_000


def _run(engine, slot, **inputs):
    for name, value in inputs.items():
        slot.input(name)[:] = value
    engine.submit(slot)
    engine.wait(slot, _soon_ns())
    return {tensor.name: slot.output(tensor.name).copy() for tensor in engine.io.outputs}


def _equal(gpu, found, expected):
    for name, value in expected.items():
        if gpu.driver is None:
            np.testing.assert_allclose(found[name], value, rtol=2e-2, atol=2e-3)
        else:
            np.testing.assert_array_equal(found[name], value)


MODELS = {
    "fp32": (cnn(), np.float32),
    "fp16": (cnn(np.float16), np.float16),
    "int8": (cnn(quantised=True), np.float32),
    "uint8 input": (cnn(uint8=True), np.uint8),
}


@pytest.mark.parametrize("kind", MODELS)
def test_results_equal_the_reference(gpu, kind):
    model, dtype = MODELS[kind]
    engine, reference = gpu.engine(model), OnnxRuntimeEngine(model)
    assert engine.io == reference.io
    draw = np.random.default_rng(1)
    slots = [engine.acquire(), engine.acquire()]
    other = reference.acquire()
    for turn in range(12):
        image = draw.integers(0, 256, engine.io.inputs[0].shape) / (1 if dtype == np.uint8 else 255)
        image = image.astype(dtype)
        expected = _run(reference, other, image=image)
        assert np.isfinite(expected["map"]).all()
        _equal(gpu, _run(engine, slots[turn % 2], image=image), expected)
    for slot in slots:
        slot.release()
    reference.close()


def test_steps_with_the_state_on_the_device_equal_the_reference(gpu):
    engine = gpu.engine(cell(), carry=CARRY)
    reference = OnnxRuntimeEngine(cell(), carry=CARRY)
    assert engine.io == reference.io
    slot, other = engine.acquire(), reference.acquire()
    for x in np.random.default_rng(2).standard_normal((11, 1, WIDTH)).astype(np.float32):
        _equal(gpu, _run(engine, slot, x=x), _run(reference, other, x=x))
        _equal(gpu, slot.state(), other.state())
    slot.release()
    reference.close()


def test_slots_keep_their_states_apart_and_begin_with_none(gpu):
    engine = gpu.engine(cell(), carry=CARRY)
    x = np.ones((1, WIDTH), np.float32)
    one, two = engine.acquire(), engine.acquire()
    first = _run(engine, one, x=x)["y"]
    second = _run(engine, one, x=x)["y"]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(_run(engine, two, x=x)["y"], first)
    kept = one.state()
    third = _run(engine, one, x=x)["y"]
    one.restore(kept)
    np.testing.assert_array_equal(_run(engine, one, x=x)["y"], third)
    one.restore(None)
    np.testing.assert_array_equal(_run(engine, one, x=x)["y"], first)
    one.release()
    two.release()
    for slot in (engine.acquire(), engine.acquire()):
        assert not slot.state()["h"].any()
        np.testing.assert_array_equal(_run(engine, slot, x=x)["y"], first)


def test_state_is_refused_while_a_run_uses_it_and_where_it_does_not_fit(gpu):
    engine = gpu.engine(cell(), carry=CARRY)
    slot = engine.acquire()
    slot.input("x")[:] = 1
    engine.submit(slot)
    with pytest.raises(EngineError, match="until its run has been waited for"):
        slot.state()
    with pytest.raises(EngineError, match="until its run has been waited for"):
        slot.restore(None)
    engine.wait(slot, _soon_ns())
    with pytest.raises(EngineError, match="is not float32"):
        slot.restore({"h": np.zeros((1, HIDDEN), np.float64)})
    with pytest.raises(EngineError, match=r"no input named h; there are \['x'\]"):
        slot.input("h")
    slot.release()


def test_views_are_the_same_memory_from_run_to_run(gpu):
    engine = gpu.engine(cnn())
    slot = engine.acquire()
    image, score = slot.input("image"), slot.output("score")
    _run(engine, slot, image=0.5)
    before = float(score[0])
    assert np.shares_memory(image, slot.input("image"))
    assert np.shares_memory(score, slot.output("score"))
    _run(engine, slot, image=0.9)
    assert float(score[0]) != before  # seen through the view of before: nothing was copied out by us
    other = engine.acquire()
    assert not np.shares_memory(image, other.input("image"))
    slot.release()
    other.release()


def test_backend_says_device_memory_and_adapter(gpu):
    engine = gpu.engine(cnn())
    assert engine.backend.startswith(f"tensorrt {gpu.trt.__version__} ")
    assert ("mapped memory" in engine.backend) or ("copied memory" in engine.backend)
    assert ("no graph" in engine.backend) != gpu.graphs


def test_slots_are_lent_once_and_only_so_many(gpu):
    engine = gpu.engine(cnn())
    slots = [engine.acquire(), engine.acquire()]
    with pytest.raises(EngineError, match="all 2 slots are out"):
        engine.acquire()
    slots[0].release()
    with pytest.raises(EngineError, match="released twice"):
        slots[0].release()
    with pytest.raises(EngineError, match="was released"):
        engine.submit(slots[0])
    assert engine.acquire() is slots[0]


def test_submit_and_wait_take_turns(gpu):
    engine = gpu.engine(cnn())
    slot = engine.acquire()
    with pytest.raises(EngineError, match="wait without submit"):
        engine.wait(slot, FAR_NS)
    engine.submit(slot)
    with pytest.raises(EngineError, match="submit again without wait"):
        engine.submit(slot)
    engine.wait(slot, _soon_ns())
    with pytest.raises(EngineError, match="wait without submit"):
        engine.wait(slot, FAR_NS)
    slot.release()


def test_foreign_slots_and_unknown_names_are_refused(gpu):
    engine, other = gpu.engine(cnn()), gpu.engine(cnn())
    slot = other.acquire()
    with pytest.raises(EngineError, match="not of this engine"):
        engine.submit(slot)
    with pytest.raises(EngineError, match=r"no input named score; there are \['image'\]"):
        slot.input("score")
    with pytest.raises(EngineError, match=r"no output named image; there are \['map', 'score'\]"):
        slot.output("image")
    slot.release()


def test_closed_engine_runs_nothing_and_closes_twice(gpu):
    engine = gpu.engine(cnn())
    slot = engine.acquire()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.submit(slot)
    with pytest.raises(EngineError):
        engine.acquire()


def test_engine_works_on_another_thread_than_made_it(gpu):
    engine = gpu.engine(cnn())
    slot = engine.acquire()
    here = _run(engine, slot, image=0.25)
    there = {}

    def run():
        try:
            there.update(_run(engine, slot, image=0.25))
        except EngineError as error:
            there["error"] = str(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if gpu.adapter == "pycuda":
        assert "only the thread that opened the device" in there["error"]
    else:
        np.testing.assert_array_equal(there["map"], here["map"])
    slot.release()


# --- what only a device that can be held and broken shows ---------------------------------------------------------------


def test_submit_does_not_wait_and_outputs_are_not_there_before_the_event(pretended_gpu):
    engine = pretended_gpu.engine(cnn())
    slot = engine.acquire()
    first = _run(engine, slot, image=0.1)["map"]
    slot.input("image")[:] = 0.9
    with pretended_gpu.driver.held():
        engine.submit(slot)
        early = slot.output("map").copy()
        np.testing.assert_array_equal(early, first)  # still the last part's: reading now would judge the wrong part
    engine.wait(slot, _soon_ns())
    assert not np.array_equal(slot.output("map"), first)
    slot.release()


def test_slot_released_in_mid_run_is_lent_again_only_after_its_event(pretended_gpu):
    engine = pretended_gpu.engine(cnn(), slots=1)
    slot = engine.acquire()
    with pretended_gpu.driver.held():
        engine.submit(slot)
        slot.release()
        with pytest.raises(EngineError, match="out or still running"):
            engine.acquire()
    deadline = time.monotonic() + 5
    again = None
    while again is None and time.monotonic() < deadline:
        try:
            again = engine.acquire()
        except EngineError:
            time.sleep(0.001)  # until the device has come to it
    assert again is slot
    with pytest.raises(EngineError, match="wait without submit"):
        engine.wait(again, FAR_NS)
    again.release()


@pytest.mark.parametrize("late_ns", [1, 60_000_000_000], ids=["just late", "of a frame that waited for a minute"])
def test_late_result_is_waited_for(pretended_gpu, late_ns):
    engine = pretended_gpu.engine(cnn())
    slot = engine.acquire()
    pretended_gpu.driver.hold()
    engine.submit(slot)
    release = threading.Timer(0.05, pretended_gpu.driver.let_go)
    release.start()
    engine.wait(slot, time.monotonic_ns() - late_ns)
    release.join()
    assert np.isfinite(slot.output("score")).all()
    slot.release()


def test_device_that_hangs_is_lost(pretended_gpu, monkeypatch):
    monkeypatch.setattr(engine_module, "HUNG_NS", 20_000_000)
    engine = pretended_gpu.engine(cnn())
    slot = engine.acquire()
    with pretended_gpu.driver.held():
        engine.submit(slot)
        with pytest.raises(EngineLostError, match="no result 20 ms after it was due"):
            engine.wait(slot, time.monotonic_ns())
        engine.close()  # does not hang with it
        assert "streams" in pretended_gpu.driver.alive
    deadline = time.monotonic() + 5
    while not slot.idle() and time.monotonic() < deadline:
        time.sleep(0.001)
    engine._closed = False  # the rest, for the next test's sake
    engine.close()


def test_closing_waits_for_the_zeroing_of_a_slot_that_was_lent_and_never_ran(pretended_gpu):
    driver = pretended_gpu.driver
    engine = pretended_gpu.engine(cell(), carry=CARRY)
    driver.hold()
    engine.acquire()
    letting_go = threading.Timer(0.1, driver.let_go)
    letting_go.start()
    engine.close()
    letting_go.join()
    driver.settle()
    again = pretended_gpu.engine(cell(), carry=CARRY)  # a device that found its memory gone is lost for good
    _run(again, again.acquire(), x=np.ones((1, WIDTH), np.float32))


def test_lost_device_is_told_as_such_and_closing_does_not_raise(pretended_gpu):
    engine = pretended_gpu.engine(cnn())
    slot = engine.acquire()
    engine.submit(slot)
    pretended_gpu.driver.fail(719)
    with pytest.raises(EngineLostError, match=r"LAUNCH_FAILED \(719\)|error 719"):
        engine.wait(slot, _soon_ns())
    with pytest.raises(EngineLostError):
        engine.submit(engine.acquire())
    engine.close()
    pretended_gpu.driver.fail(0)
    pretended_gpu.driver.forget()  # what a lost device could not free ends with the process


def test_refused_run_is_an_error_and_leaves_the_state(pretended_gpu):
    engine = pretended_gpu.engine(cell(), carry=CARRY, graphs=False)
    slot = engine.acquire()
    x = np.ones((1, WIDTH), np.float32)
    _run(engine, slot, x=x)
    state = slot.state()
    double.Stage.refuse_execute = True
    with pytest.raises(EngineError, match="refused to run"):
        engine.submit(slot)
    double.Stage.refuse_execute = False
    np.testing.assert_array_equal(slot.state()["h"], state["h"])
    with pytest.raises(EngineError, match="wait without submit"):
        engine.wait(slot, FAR_NS)
    slot.release()


def test_fault_that_the_library_reports_during_a_run_fails_that_run_only(pretended_gpu):
    engine = pretended_gpu.engine(cnn())
    slot = engine.acquire()
    double.Stage.fail_execute = "kernel failed: too many resources"
    engine.submit(slot)
    with pytest.raises(EngineError, match="kernel failed: too many resources") as caught:
        engine.wait(slot, _soon_ns())
    assert not isinstance(caught.value, EngineLostError)
    double.Stage.fail_execute = ""
    _run(engine, slot, image=0.5)
    slot.release()


def test_no_room_on_the_device_is_an_error_and_nothing_is_kept(pretended_gpu):
    pretended_gpu.driver.pretend(limit_bytes=6000)  # room for the first slot's image, not for all
    with pytest.raises(EngineError, match=r"OUT_OF_MEMORY \(2\).*fewer slots|error 2"):
        pretended_gpu.engine(cnn())
    assert pretended_gpu.driver.used_bytes == 0


def test_damaged_plan_is_an_error_and_nothing_is_kept(pretended_gpu):
    for plan in (b"", b"not a plan", b"pretended pla" * 100):
        with pytest.raises(EngineError, match=r"cannot load the plan.*magicTag"):
            pretended_gpu.run_plan(plan)
    assert pretended_gpu.driver.alive == {}


# --- a camera's frame slots -------------------------------------------------------------------------------------------


def test_input_may_lie_in_adopted_memory(locking_gpu):
    model = cnn(uint8=True)
    engine, reference = locking_gpu.engine(model), OnnxRuntimeEngine(model)
    ring = np.zeros(4096 * 4, np.uint8)
    assert engine.adopt(ring)
    draw = np.random.default_rng(6)
    slot, other = engine.acquire(), reference.acquire()
    for index in range(8):
        frame = ring[4096 * (index % 4) :][: 32 * 32].reshape(1, 32, 32, 1)
        frame[:] = draw.integers(0, 256, frame.shape)
        slot.point("image", frame)
        assert np.shares_memory(slot.input("image"), ring)
        found = _run(engine, slot)
        np.testing.assert_array_equal(found["map"], _run(reference, other, image=frame)["map"])
    slot.release()
    again = engine.acquire()
    assert not np.shares_memory(again.input("image"), ring)
    again.release()
    reference.close()


def test_input_outside_adopted_memory_is_refused(locking_gpu):
    engine = locking_gpu.engine(cnn(uint8=True))
    ring = np.zeros(4096, np.uint8)
    engine.adopt(ring)
    slot = engine.acquire()
    for array in (
        np.zeros((1, 32, 32, 1), np.uint8),
        ring[: 2 * 32 * 32].reshape(1, 32, 64, 1)[:, :, ::2],
        np.frombuffer(ring, np.uint8)[:0],
    ):
        with pytest.raises(EngineError, match="input image"):
            slot.point("image", array)
    slot.release()


def test_two_engines_share_one_ring(locking_gpu):
    one, two = locking_gpu.engine(cnn(uint8=True)), locking_gpu.engine(cnn(uint8=True))
    ring = np.zeros(4096, np.uint8)
    assert one.adopt(ring)
    assert two.adopt(ring)
    for engine in (one, two):
        slot = engine.acquire()
        slot.point("image", ring[:1024].reshape(1, 32, 32, 1))
        _run(engine, slot)
        slot.release()
    two.close()
    assert locking_gpu.driver.alive["registrations"] == 1
    one.close()


def test_device_that_cannot_page_lock_foreign_memory_says_so(locking_gpu):
    locking_gpu.driver.pretend(registers=0)
    engine = locking_gpu.engine(cnn(uint8=True))
    assert not engine.adopt(np.zeros(4096, np.uint8))


@pytest.mark.parametrize(
    ("integrated", "maps", "mode"), [(1, 1, "mapped"), (1, 0, "copied"), (0, 1, "copied"), (0, 0, "copied")]
)
def test_memory_mode_follows_what_the_device_says(driver, integrated, maps, mode):
    driver.pretend(integrated=integrated, maps=maps)
    gpu = Gpu(double, driver=driver)
    engine = gpu.engine(cnn())
    assert f"{mode} memory" in engine.backend
    slot = engine.acquire()
    assert all(driver.is_mapped(buffer.device) == (mode == "mapped") for buffer in slot._inputs.values())
    slot.release()
    gpu.close()


@pytest.mark.parametrize("memory", ["mapped", "copied"])
def test_pycuda_page_locks_no_foreign_memory_and_says_so(driver, memory):
    driver.pretend(integrated=memory == "mapped")
    gpu = Gpu(double, adapter=pycuda(), graphs=False, driver=driver)
    engine = gpu.engine(cnn(uint8=True))
    ring = np.zeros(4096, np.uint8)
    assert not engine.adopt(ring)
    slot = engine.acquire()
    with pytest.raises(EngineError, match="not inside memory that the engine adopted"):
        slot.point("image", ring[:1024].reshape(1, 32, 32, 1))
    slot.release()
    assert "registrations" not in driver.alive
    gpu.close()
