"""The two Modbus blocks: what is packed is what a PLC unpacks, and no contradiction can be packed."""

from __future__ import annotations

import math
import struct

from hypothesis import given
from hypothesis import strategies as st

from edgeqc.plc.registers import (
    HANDSHAKE_REGISTERS,
    PART_ID_CHARS,
    RECIPE_REGISTERS,
    RESULT_REGISTERS,
    TRIGGER_REGISTERS,
    Status,
    pack_result,
    pack_trigger,
    unpack_result,
    unpack_trigger,
)
from edgeqc.records import RESULT_CODE, PlcResult, Verdict

part_ids = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=PART_ID_CHARS)
results = st.builds(
    PlcResult,
    sequence=st.integers(0, 2**40),
    part_id=part_ids,
    verdict=st.sampled_from([None, *Verdict]),
    code=st.sampled_from([0, *RESULT_CODE.values()]),
    busy=st.booleans(),
    ready=st.booleans(),
    fault=st.booleans(),
    score=st.one_of(st.just(math.nan), st.floats(0, 1)),
    overrun=st.booleans(),
    trigger_ack=st.integers(0, 2**20),
    waiting=st.integers(0, 64),
)


def wire(block: list[int]) -> bytes:
    return struct.pack(f">{len(block)}H", *block)


@given(counter=st.integers(0, 2**20), part_id=part_ids, ack=st.integers(0, 2**40), heartbeat=st.integers(0, 2**20),
       recipe=st.integers(0, 2**20))  # fmt: skip
def test_trigger_block_round_trips(counter: int, part_id: str, ack: int, heartbeat: int, recipe: int) -> None:
    block = pack_trigger(counter, part_id, ack=ack, heartbeat=heartbeat, recipe=recipe)
    assert len(block) == RECIPE_REGISTERS
    seen = unpack_trigger(wire(block))
    assert (seen.counter, seen.part_id) == (counter % 65_536, part_id)
    assert (seen.ack, seen.heartbeat, seen.recipe) == (ack % 2**32, heartbeat % 65_536, recipe % 65_536)
    middle = unpack_trigger(wire(block[:HANDSHAKE_REGISTERS]))
    assert (middle.ack, middle.heartbeat, middle.recipe) == (seen.ack, seen.heartbeat, 0)
    short = unpack_trigger(wire(block[:TRIGGER_REGISTERS]))
    assert (short.counter, short.part_id, short.ack, short.heartbeat) == (seen.counter, seen.part_id, 0, 0)


@given(st.lists(st.integers(0, 65_535), min_size=RECIPE_REGISTERS, max_size=RECIPE_REGISTERS))
def test_any_trigger_block_has_a_counter_and_an_id_that_echoes(block: list[int]) -> None:
    seen = unpack_trigger(wire(block))
    assert (seen.counter, seen.heartbeat) == (block[0], block[11])
    again = pack_trigger(seen.counter, seen.part_id, ack=seen.ack, heartbeat=seen.heartbeat, recipe=seen.recipe)
    assert unpack_trigger(wire(again)) == seen


@given(result=results, heartbeat=st.integers(0, 2**20))
def test_result_block_round_trips(result: PlcResult, heartbeat: int) -> None:
    block = list(struct.unpack(">16H", pack_result(result, heartbeat)))
    image = unpack_result(block)
    assert len(block) == RESULT_REGISTERS
    assert all(0 <= word <= 0xFFFF for word in block)
    assert block[14:] == [result.trigger_ack % 65_536, result.waiting]
    assert (image.trigger_ack, image.waiting) == (result.trigger_ack % 65_536, result.waiting)
    assert (image.sequence, image.code) == (result.sequence % 2**32, result.code)
    assert (image.heartbeat, image.part_id) == (heartbeat % 65_536, result.part_id)
    assert image.score == (0 if math.isnan(result.score) else round(result.score * 10_000) / 10_000)
    assert bool(image.status & Status.READY) is result.ready
    assert bool(image.status & Status.BUSY) is result.busy
    assert bool(image.status & Status.FAULT) is result.fault
    assert bool(image.status & Status.OVERRUN) is result.overrun


@given(result=results)
def test_pass_and_reject_are_never_both_set_and_valid_means_one_of_them(result: PlcResult) -> None:
    status = unpack_result(struct.unpack(">16H", pack_result(result, 0))).status
    bits = status & (Status.PASS | Status.REJECT)
    assert bits != Status.PASS | Status.REJECT
    assert bool(status & Status.RESULT_VALID) is bool(bits) is (result.verdict is not None)
    if result.verdict is not None:
        assert bits == (Status.PASS if result.verdict is Verdict.PASS else Status.REJECT)


def test_layout_is_as_documented() -> None:
    result = PlcResult(
        sequence=0x0001_0002, part_id="P000042", verdict=Verdict.REJECT, code=10, busy=False, ready=True, fault=False,
        score=0.875, overrun=True, trigger_ack=0x1_0003, waiting=2,
    )  # fmt: skip
    assert list(struct.unpack(">16H", pack_result(result, 7))) == [
        1, 2, 0b0100_1110, 10, 7, 8750, 0x5030, 0x3030, 0x3034, 0x3200, 0, 0, 0, 0, 3, 2,
    ]  # fmt: skip


def test_part_id_of_more_than_sixteen_characters_is_cut() -> None:
    assert unpack_trigger(wire(pack_trigger(1, "0123456789abcdefXYZ"))).part_id == "0123456789abcdef"


def test_text_after_the_first_zero_is_not_part_of_the_id() -> None:
    assert unpack_trigger(wire([5, 0x4100, 0x4242, 0, 0, 0, 0, 0, 0])).part_id == "A"
