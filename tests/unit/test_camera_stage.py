"""The simulated line's shared words, and the camera's frame counter arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.cameras.gige import FRAME_IDS, _is_after
from edgeqc.errors import EdgeqcError
from edgeqc.sim.stage import RING, CameraFault, Stage


def test_what_one_writes_the_other_reads(tmp_path: Path):
    line, camera = Stage.create(tmp_path / "stage"), Stage.attach(tmp_path / "stage")
    line.part = 41
    line.break_camera(CameraFault.SLOW, 30)
    line.advance = True
    line.pulse()
    camera.triggered()
    assert (camera.part, camera.fault, camera.advance, camera.pulses) == (41, (CameraFault.SLOW, 30), True, 1)
    assert line.triggers == 1
    line.close()
    camera.close()


def test_an_exposure_remembers_its_part(tmp_path: Path):
    stage = Stage.create(tmp_path / "stage")
    assert stage.exposure(0) is None
    assert stage.exposure(1) is None
    for part in (7, 8, 8):
        stage.part = part
        assert stage.expose(frame_id=part + 100) == part
    seen = [stage.exposure(number) for number in (1, 2, 3)]
    assert [(one.number, one.part, one.frame_id) for one in seen if one] == [(1, 7, 107), (2, 8, 108), (3, 8, 108)]
    assert stage.exposures == 3
    assert stage.exposure(4) is None
    stage.close()


def test_an_overwritten_exposure_is_forgotten_not_mistaken(tmp_path: Path):
    stage = Stage.create(tmp_path / "stage")
    for part in range(RING + 1):
        stage.part = part
        stage.expose(frame_id=1)
    assert stage.exposure(1) is None
    newest = stage.exposure(RING + 1)
    assert newest is not None
    assert newest.part == RING
    stage.close()


def test_create_begins_anew_and_attach_takes_nothing_else(tmp_path: Path):
    first = Stage.create(tmp_path / "stage")
    first.part = 5
    first.close()
    second = Stage.create(tmp_path / "stage")
    assert second.part == 0
    size = (tmp_path / "stage").stat().st_size
    second.close()
    (tmp_path / "zeros").write_bytes(bytes(size))
    (tmp_path / "short").write_bytes(b"EQCSTAG1")
    for name in ("zeros", "short"):
        with pytest.raises(EdgeqcError):
            Stage.attach(tmp_path / name)


@given(st.integers(1, FRAME_IDS), st.integers(1, FRAME_IDS // 2 - 1))
def test_a_frame_counter_wraps_from_65535_to_1(last, step):
    later = (last - 1 + step) % FRAME_IDS + 1
    assert _is_after(later, last)
    assert not _is_after(last, later)
    assert not _is_after(last, last)


@given(st.integers(FRAME_IDS + 1, 2**64 - 2), st.integers(1, 2**32))
def test_extended_frame_ids_do_not_wrap(last, step):
    assert _is_after(last + step, last)
    assert not _is_after(last, last + step)
