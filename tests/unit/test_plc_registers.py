"""The two Modbus blocks: what is packed is what a PLC unpacks, and no contradiction can be packed."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edgeqc.plc.registers import (
    PART_ID_CHARS,
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
)


@given(counter=st.integers(0, 2**20), part_id=part_ids)
def test_trigger_block_round_trips(counter: int, part_id: str) -> None:
    block = pack_trigger(counter, part_id)
    assert len(block) == TRIGGER_REGISTERS
    assert unpack_trigger(block) == (counter % 65_536, part_id)


@given(st.lists(st.integers(0, 65_535), min_size=TRIGGER_REGISTERS, max_size=TRIGGER_REGISTERS))
def test_any_trigger_block_has_a_counter_and_an_id_that_echoes(block: list[int]) -> None:
    counter, part_id = unpack_trigger(block)
    assert counter == block[0]
    assert unpack_trigger(pack_trigger(counter, part_id)) == (counter, part_id)


@given(result=results, heartbeat=st.integers(0, 2**20))
def test_result_block_round_trips(result: PlcResult, heartbeat: int) -> None:
    block = pack_result(result, heartbeat)
    image = unpack_result(block)
    assert len(block) == RESULT_REGISTERS
    assert all(0 <= word <= 0xFFFF for word in block)
    assert block[14:] == [0, 0]
    assert (image.sequence, image.code) == (result.sequence % 2**32, result.code)
    assert (image.heartbeat, image.part_id) == (heartbeat % 65_536, result.part_id)
    assert image.score == (0 if math.isnan(result.score) else round(result.score * 10_000) / 10_000)
    assert bool(image.status & Status.READY) is result.ready
    assert bool(image.status & Status.BUSY) is result.busy
    assert bool(image.status & Status.FAULT) is result.fault


@given(result=results)
def test_pass_and_reject_are_never_both_set_and_valid_means_one_of_them(result: PlcResult) -> None:
    status = unpack_result(pack_result(result, 0)).status
    bits = status & (Status.PASS | Status.REJECT)
    assert bits != Status.PASS | Status.REJECT
    assert bool(status & Status.RESULT_VALID) is bool(bits) is (result.verdict is not None)
    if result.verdict is not None:
        assert bits == (Status.PASS if result.verdict is Verdict.PASS else Status.REJECT)


def test_layout_is_as_documented() -> None:
    result = PlcResult(
        sequence=0x0001_0002, part_id="P000042", verdict=Verdict.REJECT, code=10, busy=False, ready=True, fault=False,
        score=0.875,
    )  # fmt: skip
    assert pack_result(result, 7) == [
        1, 2, 0b0000_1110, 10, 7, 8750, 0x5030, 0x3030, 0x3034, 0x3200, 0, 0, 0, 0, 0, 0,
    ]  # fmt: skip


def test_part_id_of_more_than_sixteen_characters_is_cut() -> None:
    assert unpack_trigger(pack_trigger(1, "0123456789abcdefXYZ")) == (1, "0123456789abcdef")


def test_text_after_the_first_zero_is_not_part_of_the_id() -> None:
    assert unpack_trigger([5, 0x4100, 0x4242, 0, 0, 0, 0, 0, 0]) == (5, "A")
