from __future__ import annotations

import math

import pytest

from edgeqc.records import Quality
from edgeqc.settings import TagSettings
from edgeqc.tags.reading import Reading


def reading(**fields) -> Reading:
    return Reading.of(TagSettings.model_validate({"name": "heat", **fields}))


def test_scale_and_offset_make_the_unit():
    value = reading(scale=0.1, offset=-40).value(1111, Quality.GOOD, 5.0, 7)
    assert value.value == pytest.approx(71.1)
    assert (value.name, value.quality, value.source_ts, value.received_ns) == ("heat", Quality.GOOD, 5.0, 7)


@pytest.mark.parametrize(("raw", "quality"), [(0, "GOOD"), (10, "GOOD"), (-0.1, "UNCERTAIN"), (10.1, "UNCERTAIN")])
def test_an_implausible_value_is_uncertain(raw, quality):
    assert reading(min=0, max=10).value(raw, Quality.GOOD, 0.0, 1).quality is Quality[quality]


def test_plausibility_is_judged_in_the_tags_unit():
    assert reading(scale=0.01, max=10).value(999, Quality.GOOD, 0.0, 1).quality is Quality.GOOD


def test_a_plausible_value_is_no_better_than_its_server_says():
    assert reading(min=0, max=10).value(5, Quality.UNCERTAIN, 0.0, 1).quality is Quality.UNCERTAIN
    assert reading(min=0, max=10).value(50, Quality.BAD, 0.0, 1).quality is Quality.BAD


@pytest.mark.parametrize("raw", ["12", None, [1, 2], b"\x01", math.nan, math.inf, 1j])
def test_what_is_no_finite_number_is_bad(raw):
    value = reading().value(raw, Quality.GOOD, 0.0, 1)
    assert value.quality is Quality.BAD
    assert math.isnan(value.value)


def test_a_value_that_overflows_its_scale_is_bad():
    assert reading(scale=1e10).value(1e308, Quality.GOOD, 0.0, 1).quality is Quality.BAD


def test_true_is_one():
    assert reading().value(True, Quality.GOOD, 0.0, 1).value == 1.0
