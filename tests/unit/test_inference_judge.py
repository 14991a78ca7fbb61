"""What the judge makes of an engine's outputs: boxes in frame pixels, the largest first, and a map over the frame."""

from pathlib import Path

import numpy as np
import pytest

import edgeqc
from edgeqc.errors import EngineError
from edgeqc.inference.judge import MOST_DEFECTS, Judge, map_shape
from edgeqc.inference.package import load_package
from edgeqc.inference.preprocess import Placement

DEMO = Path(edgeqc.__file__).parents[1] / "engines" / "demo-part" / "1"
FRAME = (512, 640)
WHOLE = Placement(
    found=True, frame_shape=FRAME, x_px=64, y_px=0, width_px=512, height_px=512, left=0, top=0, width=256, height=256
)


class _Outputs:
    """A slot after `wait`."""

    def __init__(self, cells, score=0.9, kind=0):
        self._outputs = {
            "score": np.array([score], np.float32),
            "map": cells[None, None].astype(np.float32),
            "kind": np.zeros((1, 4, *cells.shape), np.float32),
        }
        self._outputs["kind"][0, kind] = 1

    def output(self, name):
        return self._outputs[name]

    def input(self, name):
        raise EngineError(name)

    def release(self):
        pass


@pytest.fixture
def judge():
    return Judge(load_package(DEMO))


def _cells(*boxes):
    cells = np.zeros((32, 32), np.float32)
    for value, rows, columns in boxes:
        cells[rows, columns] = value
    return cells


def test_defect_is_named_and_boxed_in_frame_pixels(judge):
    slot = _Outputs(_cells((0.97, slice(4, 6), slice(10, 13))), kind=2)
    (defect,) = judge.judgement(slot, WHOLE).defects
    assert defect.name == "stain"
    assert defect.score == pytest.approx(0.97)
    assert (defect.x_px, defect.y_px, defect.width_px, defect.height_px) == (64 + 160, 64, 48, 32)
    assert defect.area_px == 48 * 32


def test_area_is_of_the_place_and_not_of_its_box(judge):
    slot = _Outputs(_cells((0.97, slice(4, 8), slice(10, 11)), (0.97, slice(7, 8), slice(10, 14))))
    (defect,) = judge.judgement(slot, WHOLE).defects
    assert (defect.width_px, defect.height_px) == (64, 64)
    assert defect.area_px == 7 * 16 * 16


def test_largest_defects_come_first_and_four_at_most(judge):
    boxes = [(0.99, slice(4 * row, 4 * row + 1), slice(0, row + 1)) for row in range(7)]
    defects = judge.judgement(_Outputs(_cells(*boxes)), WHOLE).defects
    assert len(defects) == MOST_DEFECTS
    assert [defect.width_px for defect in defects] == [16 * size for size in (7, 6, 5, 4)]


def test_diagonal_cells_are_one_defect(judge):
    cells = np.zeros((32, 32), np.float32)
    cells[[3, 4, 5], [3, 4, 5]] = 0.99
    assert len(judge.judgement(_Outputs(cells), WHOLE).defects) == 1


def test_part_that_no_cell_convicts_still_points_at_its_peak(judge):
    cells = _cells()
    cells[5, 7] = 0.3  # under the map's limit
    (defect,) = judge.judgement(_Outputs(cells), WHOLE).defects
    assert defect.score == pytest.approx(0.3)


def test_quiet_map_has_no_defects(judge):
    judgement = judge.judgement(_Outputs(_cells(), score=0.01), WHOLE)
    assert judgement.defects == ()
    assert judgement.score == pytest.approx(0.01)


def test_not_a_number_is_passed_on_without_a_warning(judge):
    kept = np.zeros(map_shape(FRAME), np.uint8)
    outputs = _Outputs(np.full((32, 32), np.nan), score=np.nan)
    judgement = judge.judgement(outputs, WHOLE)
    judge.draw(outputs, WHOLE, kept)
    assert np.isnan(judgement.score)
    assert judgement.defects == ()


def test_map_lies_over_the_frame_where_the_region_is(judge):
    kept = np.full(map_shape(FRAME), 77, np.uint8)
    assert kept.shape == (64, 80)
    judge.draw(_Outputs(_cells((1.0, slice(8, 12), slice(0, 32)))), WHOLE, kept)
    assert (kept[:, :8] == 0).all()
    assert (kept[:, 72:] == 0).all()
    assert (kept[17:23, 8:72] == 255).all()
    assert (kept[:14] == 0).all()
    assert (kept[26:] == 0).all()


def test_letterbox_rows_are_left_out_of_the_map(judge):
    placement = Placement(
        found=True,
        frame_shape=FRAME,
        x_px=0,
        y_px=128,
        width_px=640,
        height_px=320,
        left=0,
        top=64,
        width=256,
        height=128,
    )
    kept = np.zeros(map_shape(FRAME), np.uint8)
    judge.draw(_Outputs(_cells((1.0, slice(8, 24), slice(0, 32)))), placement, kept)
    assert (kept[16:56] == 255).all()
    assert (kept[:16] == 0).all()
    assert (kept[56:] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (512, 640)])
def test_map_buffer_may_have_any_shape(judge, shape):
    kept = np.zeros(shape, np.uint8)
    judge.draw(_Outputs(_cells((1.0, slice(0, 32), slice(0, 32)))), WHOLE, kept)
    assert kept.max() == 255
