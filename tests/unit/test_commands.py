"""What people ask of alarms: whatever a command says, it is carried out or refused, and nothing ends by it."""

import asyncio
import json
import math

import pytest

from edgeqc.core.alarm import Verb
from edgeqc.office.alarms import RefusedCommandError, parse_command
from edgeqc.office.books import Asked
from edgeqc.office.commands import Commands, CommandSocket, ask
from edgeqc.office.courier import Message
from edgeqc.office.mqtt import Inbound


class Office:
    """Commands with an archive that takes them, or does not, and a broker that keeps the answers."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.asked: list[Asked] = []
        self.answers: list[Message] = []
        self.commands = Commands(self._put, self.answers.append, node="n1", verbs=list(Verb))

    def _put(self, asked: Asked) -> None:
        if self.fault is not None:
            raise self.fault
        self.asked.append(asked)
        asked.answer.set_result({"status": "ok", "data": {"alarms": []}})

    def over_mqtt(self, verb: str, payload: bytes) -> dict:
        self.commands.inbound(
            Inbound(topic=f"cmd/{verb}", payload=payload, retained=False, response_topic=None, correlation=None)
        )
        self.commands.turn()
        return json.loads(self.answers.pop().payload)


NO_HOURS = ["1" + 400 * "0", "-1" + 400 * "0", "1e400", "NaN", "-Infinity", "1000001", '"1"', "true"]


@pytest.mark.parametrize("hours", NO_HOURS)
def test_hours_that_are_no_time_are_refused_however_they_are_written(hours):
    office = Office()
    payload = b'{"user": "a", "args": {"id": "x", "hours": ' + hours.encode() + b"}}"
    said = office.over_mqtt("ack", payload)
    assert (said["status"], "hours" in said["error"]["message"]) == ("error", True)
    assert not office.asked
    with pytest.raises(RefusedCommandError, match="hours"):
        parse_command("ack", json.loads(payload), via="console")


@pytest.mark.parametrize(("hours", "for_ns"), [(0.5, 1_800 * 10**9), (24, 86_400 * 10**9), (0, 0)])
def test_hours_are_the_time_on_the_shelf(hours, for_ns):
    command = parse_command("shelve", {"user": "a", "id": "x", "note": "n", "hours": hours}, via="mqtt")
    assert math.isclose(command.for_ns, for_ns)


def test_a_command_that_fails_in_a_way_nobody_thought_of_is_refused_over_mqtt():
    office = Office(OverflowError("int too large to convert to float"))
    said = office.over_mqtt("ack", b'{"user": "a", "args": {"id": "x"}}')
    assert (said["status"], "OverflowError" in said["error"]["message"]) == ("error", True)


async def test_a_command_that_fails_in_a_way_nobody_thought_of_is_refused_on_the_socket(tmp_path):
    office = Office(OverflowError("int too large to convert to float"))
    console = CommandSocket(office.commands, tmp_path)
    await console.open()
    try:
        said = await asyncio.to_thread(ask, tmp_path, {"verb": "ack", "args": {"id": "x"}})
        assert (said["status"], "OverflowError" in said["error"]["message"]) == ("error", True)
        office.fault = None
        assert (await asyncio.to_thread(ask, tmp_path, {"verb": "ack", "args": {"id": "x"}}))["status"] == "ok"
    finally:
        await console.close()
