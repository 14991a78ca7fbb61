"""What becomes of a message that the broker cannot take just now."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from edgeqc.office.courier import NOT_NOW, Courier, Message
from edgeqc.records import NS_PER_S


class Connection:
    """A broker that acknowledges what the test says."""

    inflight, packet_bytes = 20, 1 << 20

    def __init__(self) -> None:
        self.acks: deque[tuple[int, str | None]] = deque()
        self.sent: list[str] = []

    def publish(self, topic: str, _payload: bytes, **_how: Any) -> int:
        self.sent.append(topic)
        return len(self.sent)


def test_a_message_that_the_broker_has_no_room_for_goes_again_after_a_rest() -> None:
    connection, clock = Connection(), [NS_PER_S]
    archive = SimpleNamespace(view=None, commits=0)
    courier = Courier(
        connection,  # type: ignore[arg-type] - what it needs of one
        archive,  # type: ignore[arg-type]
        prefix="box",
        boot="",
        live_expiry_s=60,
        barred=lambda _topic: None,
        greet=lambda _view: [],
        alerts=lambda _view: [],
        now_ns=lambda: clock[0],
    )
    courier.turn([Message(topic="info", payload=b"a"), Message(topic="health", payload=b"b")])
    connection.acks += [(1, NOT_NOW), (2, None)]
    courier.turn([])
    assert connection.sent == ["box/info", "box/health"]
    assert courier.refusals == []
    assert not courier.shown
    assert not courier.out, "the last message could not go either: whoever ends now leaves without a goodbye"
    clock[0] += NS_PER_S
    courier.turn([])
    assert connection.sent == ["box/info", "box/health", "box/info"]
    connection.acks.append((3, None))
    courier.turn([])
    assert courier.shown
