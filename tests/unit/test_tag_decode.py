from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.settings import TagSettings
from edgeqc.tags.decode import MAX_REGISTERS, decode, encode, plan_reads, split_read, width

ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
RANGES = {
    "uint16": st.integers(0, 2**16 - 1),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float32": st.floats(width=32, allow_nan=False),
    "float64": st.floats(allow_nan=False),
    "bool": st.integers(0, 1),
}
types = st.sampled_from(sorted(RANGES))
values = types.flatmap(lambda kind: st.tuples(st.just(kind), RANGES[kind]))


@st.composite
def tag_lists(draw) -> list[TagSettings]:
    places = draw(st.lists(st.tuples(st.integers(0, 600), types), min_size=1, max_size=60))
    return [
        TagSettings.model_validate({"name": f"t{index}", "register": register, "type": kind})
        for index, (register, kind) in enumerate(places)
    ]


@given(values, st.sampled_from(ORDERS))
def test_every_value_survives_its_registers(value, order):
    kind, number = value
    data = encode(number, kind, order)
    assert len(data) == 2 * width(kind)
    assert decode(data, kind, order) == number


@pytest.mark.parametrize(
    ("order", "registers"),
    [("ABCD", "42f6e979"), ("CDAB", "e97942f6"), ("BADC", "f64279e9"), ("DCBA", "79e9f642")],
)
def test_the_orders_are_what_their_letters_say(order, registers):
    assert decode(bytes.fromhex(registers), "float32", order) == pytest.approx(123.456)


def test_four_registers_are_reversed_as_a_whole():
    data = struct.pack(">d", 123.456)
    words = [data[at : at + 2] for at in (0, 2, 4, 6)]
    assert decode(b"".join(reversed(words)), "float64", "CDAB") == 123.456
    assert decode(data[::-1], "float64", "DCBA") == 123.456


def test_any_bit_makes_a_bool_true():
    assert decode(b"\x01\x00", "bool", "ABCD") == 1.0
    assert decode(b"\x00\x00", "bool", "ABCD") == 0.0


def test_not_a_number_stays_not_a_number():
    assert math.isnan(decode(bytes.fromhex("7fc00000"), "float32", "ABCD"))


@given(tag_lists())
def test_every_tag_is_inside_exactly_one_read(tags):
    reads = plan_reads(tags)
    assert sorted(place for read in reads for place in read.places) == list(range(len(tags)))
    for read in reads:
        assert 1 <= read.count <= MAX_REGISTERS
        for place in read.places:
            tag = tags[place]
            assert tag.register_address is not None
            assert read.address <= tag.register_address
            assert tag.register_address + width(tag.type) <= read.address + read.count


def test_a_thousand_neighbours_take_seventeen_reads():
    tags = [
        TagSettings.model_validate({"name": f"t{index}", "register": 2 * index, "type": "float32"})
        for index in range(1000)
    ]
    assert len(plan_reads(tags)) == 17  # 62 of 2 registers each fit into 125


def test_a_wide_gap_is_not_read():
    tags = [TagSettings.model_validate({"name": f"t{at}", "register": at, "type": "int16"}) for at in (0, 17, 40)]
    assert [(read.address, read.count) for read in plan_reads(tags)] == [(0, 18), (40, 1)]


@given(tag_lists())
def test_splitting_ends_with_each_tag_alone(tags):
    pending, alone = plan_reads(tags), []
    while pending:
        read = pending.pop()
        halves = split_read(read, tags)
        if halves:
            assert sorted(place for half in halves for place in half.places) == sorted(read.places)
            pending.extend(halves)
        else:
            alone.extend(read.places)
    assert sorted(alone) == list(range(len(tags)))
