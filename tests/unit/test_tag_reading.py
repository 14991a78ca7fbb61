from __future__ import annotations

import math

import numpy as np
import pytest

from edgeqc.records import Quality, TagFault
from edgeqc.settings import TagSettings
from edgeqc.tags.reading import Readings

Told = tuple[float, Quality, TagFault]


def readings(**fields) -> Readings:
    return Readings("oven", [TagSettings.model_validate({"name": "heat", **fields})])


def read(reading: Readings, raw: object, quality: Quality = Quality.GOOD) -> Told:
    batch = reading.batch(
        np.zeros(1, np.int32),
        np.array([reading.number(0, raw)]),
        received_ns=7,
        qualities=np.array([quality], np.uint8),
        source_ns=np.array([5], np.int64),
    )
    assert (batch.source, batch.received_ns, batch.source_ns[0]) == ("oven", 7, 5)
    return float(batch.values[0]), Quality(batch.qualities[0]), TagFault(batch.faults[0])


def test_scale_and_offset_make_the_unit():
    value, quality, fault = read(readings(scale=0.1, offset=-40), 1111)
    assert value == pytest.approx(71.1)
    assert (quality, fault) == (Quality.GOOD, TagFault.NONE)


@pytest.mark.parametrize(("raw", "quality"), [(0, "GOOD"), (10, "GOOD"), (-0.1, "UNCERTAIN"), (10.1, "UNCERTAIN")])
def test_an_implausible_value_is_uncertain(raw, quality):
    assert read(readings(min=0, max=10), raw)[1] is Quality[quality]


def test_plausibility_is_judged_in_the_tags_unit():
    assert read(readings(scale=0.01, max=10), 999)[1] is Quality.GOOD


def test_a_plausible_value_is_no_better_than_its_server_says():
    assert read(readings(min=0, max=10), 5, Quality.UNCERTAIN)[1] is Quality.UNCERTAIN
    assert read(readings(min=0, max=10), 50, Quality.BAD)[1:] == (Quality.BAD, TagFault.STATUS)


@pytest.mark.parametrize("raw", ["12", None, [1, 2], b"\x01", math.nan, math.inf, 1j])
def test_what_is_no_finite_number_is_bad_and_said_to_be(raw):
    value, quality, fault = read(readings(), raw)
    assert math.isnan(value)
    assert (quality, fault) == (Quality.BAD, TagFault.NOT_A_NUMBER)


def test_a_value_that_overflows_its_scale_is_bad():
    assert read(readings(scale=1e10), 1e308)[1] is Quality.BAD


def test_true_is_one():
    assert read(readings(), True)[0] == 1.0


def test_one_element_of_an_array_is_the_value():
    assert read(readings(element=1), [5, 6, 7])[0] == 6.0
    assert read(readings(element=3), [5, 6, 7])[1] is Quality.BAD
    assert read(readings(element=0), 5)[1] is Quality.BAD


def test_a_refused_tag_is_bad_and_says_so():
    batch = readings().refused([0], 9)
    assert (batch.qualities[0], batch.faults[0]) == (Quality.BAD, TagFault.REFUSED)


def test_each_tag_of_a_batch_has_its_own_scale():
    tags = [TagSettings(name="a", register=0, scale=2.0), TagSettings(name="b", register=0, offset=1.0)]
    batch = Readings("oven", tags).batch(np.array([1, 0, 1], np.int32), np.array([1.0, 1.0, 5.0]), received_ns=1)
    assert batch.values.tolist() == [2.0, 2.0, 6.0]
