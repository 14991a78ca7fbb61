from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.core.datatype import DataType, WordOrder, decode, encode, width
from edgeqc.core.interpret import believable, bits, matches, readings

NUMBERS = [kind for kind in DataType if kind not in {DataType.BOOL, DataType.STRING}]


@given(st.binary(min_size=2, max_size=16).filter(lambda data: len(data) % 2 == 0))
def test_every_meaning_is_what_the_decoder_says(data):
    for reading in readings(data, 100):
        start = 2 * (reading.address - 100)
        size = 2 * width(reading.type, chars=len(data)) if reading.type is DataType.STRING else 2 * width(reading.type)
        for order, value in reading.values.items():
            again = decode(data[start : start + size], reading.type, order)
            assert again == value or (math.isnan(again) and math.isnan(value))


@given(
    st.sampled_from(NUMBERS),
    st.sampled_from(list(WordOrder)),
    st.integers(0, 3),
    st.integers(1, 30_000),
)
def test_a_known_value_is_found_wherever_it_is(kind, order, before, number):
    data = bytes(2 * before) + encode(number, kind, order) + bytes(2)
    found = matches(data, 200, float(number), tolerance=0.0)
    assert any(
        (match.address, match.type) == (200 + before, kind)
        and decode(data[2 * before :][: 2 * width(kind)], kind, match.order) == number
        for match in found
    )


def test_the_simplest_meaning_comes_first():
    data = struct.pack(">f", 201.5)[2:] + struct.pack(">f", 201.5)[:2] + struct.pack(">H", 2015)
    found = matches(data, 10, 201.5)
    assert [(match.address, match.type, match.order, match.scale) for match in found[:2]] == [
        (10, DataType.FLOAT32, WordOrder.CDAB, 1.0),
        (12, DataType.UINT16, WordOrder.ABCD, 0.1),
    ]


def test_what_is_far_from_it_is_no_match():
    assert matches(struct.pack(">H", 100), 0, 150.0) == []
    assert [match.value for match in matches(struct.pack(">H", 100), 0, 101.0, tolerance=2)] == [100.0, 100.0]


@pytest.mark.parametrize(
    ("value", "so"),
    [
        (201.5, True),
        (0.0, True),
        (1e-30, False),
        (float("nan"), False),
        (3e12, False),
        (7, True),
        (2**60, False),
        ("A1", True),
        ("\x01", False),
        ("", False),
    ],
)
def test_what_a_machine_could_show(value, so):
    assert believable(value) is so


def test_bits_are_counted_from_the_lowest():
    assert bits(b"\x80\x01") == [0, 15]
