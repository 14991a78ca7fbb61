from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.core.datatype import decode, decode_array, encode, width
from edgeqc.core.reads import MAX_REGISTERS, Span, plan_reads, split_read

ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
RANGES = {
    "uint16": st.integers(0, 2**16 - 1),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float32": st.floats(width=32, allow_nan=False),
    "float64": st.floats(allow_nan=False),
    "bool": st.integers(0, 1),
}
types = st.sampled_from(sorted(RANGES))
values = types.flatmap(lambda kind: st.tuples(st.just(kind), RANGES[kind]))


@st.composite
def spans(draw) -> list[Span]:
    places = draw(st.lists(st.tuples(st.integers(0, 600), types), min_size=1, max_size=60))
    return [Span(address=register, count=width(kind)) for register, kind in places]


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
    assert decode(b"\x01\x00", "bool", "ABCD") is True
    assert decode(b"\x00\x00", "bool", "ABCD") is False


def test_not_a_number_stays_not_a_number():
    assert math.isnan(decode(bytes.fromhex("7fc00000"), "float32", "ABCD"))


@pytest.mark.parametrize("bit", range(16))
@pytest.mark.parametrize("order", ORDERS)
def test_one_bit_of_a_register_is_that_bit(bit, order):
    data = encode(True, "bool", order, bit=bit)
    assert [decode(data, "bool", order, bit=other) for other in range(16)] == [other == bit for other in range(16)]


def test_bit_0_is_the_lowest_of_the_low_byte():
    assert decode(b"\x00\x01", "bool", bit=0) is True
    assert decode(b"\x00\x01", "bool", "BADC", bit=8) is True


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=20), st.sampled_from(ORDERS))
def test_every_string_survives_its_registers(text, order):
    assert decode(encode(text, "string", order, chars=20), "string", order) == text


def test_a_string_with_swapped_bytes_is_told_by_its_order():
    assert decode(b"AP-R3T", "string", "BADC") == "PAR-T3"
    assert decode(b"PART\0\0xx", "string") == "PART"
    assert decode(b"PART    ", "string") == "PART"


def test_a_whole_number_of_64_bits_keeps_its_last_digit():
    assert decode(b"\x7f" + b"\xff" * 7, "int64") == 2**63 - 1


def test_an_array_is_value_behind_value():
    assert decode_array(bytes.fromhex("00010002ffff"), "int16") == [1, 2, -1]
    assert decode_array(bytes.fromhex("0000000100000002ffff"), "uint32") == [1, 2]
    assert [place for place, on in enumerate(decode_array(bytes.fromhex("80010002"), "bool")) if on] == [0, 15, 17]


def test_a_value_that_does_not_fit_is_refused():
    with pytest.raises(struct.error):
        encode(70_000, "uint16")
    with pytest.raises(struct.error):
        decode(b"\0\0", "float32")


@given(spans())
def test_every_value_is_inside_exactly_one_read(wanted):
    reads = plan_reads(wanted)
    assert sorted(place for read in reads for place in read.places) == list(range(len(wanted)))
    for read in reads:
        assert 1 <= read.count <= MAX_REGISTERS
        for place in read.places:
            assert read.address <= wanted[place].address
            assert wanted[place].address + wanted[place].count <= read.address + read.count


def test_a_thousand_neighbours_take_seventeen_reads():
    assert len(plan_reads([Span(address=2 * index, count=2) for index in range(1000)])) == 17  # 62 of 2 fit into 125


def test_a_wide_gap_is_not_read():
    wanted = [Span(address=at, count=1) for at in (0, 17, 40)]
    assert [(read.address, read.count) for read in plan_reads(wanted)] == [(0, 18), (40, 1)]


@given(spans())
def test_splitting_ends_with_each_value_alone(wanted):
    pending, alone = plan_reads(wanted), []
    while pending:
        read = pending.pop()
        halves = split_read(read, wanted)
        if halves:
            assert sorted(place for half in halves for place in half.places) == sorted(read.places)
            pending.extend(halves)
        else:
            alone.extend(read.places)
    assert sorted(alone) == list(range(len(wanted)))
