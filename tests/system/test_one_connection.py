"""Tags of the PLC that triggers the parts: the watch process reads them over the station's own connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
from linebench import Bench

from edgeqc.sim.line import STATION

PARTS = 60
TAGS = {
    "name": "press",
    "type": "modbus",
    "through": STATION,
    "poll_ms": 50,
    "tags": [
        {"name": "triggers", "register": 0, "type": "uint16"},
        {"name": "idle", "register": 150, "type": "uint16"},
    ],
}
"""The trigger block's own counter, and a register that needs a request of its own."""


def connections(pid: int, port: int) -> int:
    found = psutil.Process(pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.raddr.port == port for each in found)


def good(told: list[dict[str, Any]], tag: str) -> list[float]:
    """What the verdicts tell of a tag; those of parts that were not exposed tell nothing."""
    known = [message["process"][tag] for message in told if message["process"]]
    return [value["value"] for value in known if value["quality"] == "Good"]


def test_tags_through_the_station_cost_no_connection_and_no_verdict(bench: Callable[..., Bench]) -> None:
    line = bench(
        parts=PARTS,
        changes={"stations": [{"trigger": {"poll_ms": 10}, "snapshot_tags": ["triggers", "idle"]}], "tags": [TAGS]},
    )
    line.part_is(PARTS // 2)
    port = line.plc.port
    assert [connections(line.pid(process), port) for process in (f"station-{STATION}", "watch", "office")] == [2, 0, 0]
    report = line.finish()
    assert report["triggers"] == report["verdicts"] == PARTS
    assert (report["unaccounted"], report["late"], report["plc_mismatch"], report["duplicates"]) == (0, 0, 0, 0)
    told = sorted(line.line.told(), key=lambda message: int(message["trigger_id"]))
    seen, idle = good(told, "triggers"), good(told, "idle")
    assert len(seen) > PARTS // 6  # a starved box loses some
    assert seen == sorted(seen)
    assert 1 <= seen[-1] <= PARTS
    assert set(idle) == {0}
