"""The OPC UA link and the handshake against a PLC by other hands: node-opcua, SignAndEncrypt, user and password."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgeqc.core.handshake import Form, Rules
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import open_link
from edgeqc.plc.opcua_session import server_certificate
from edgeqc.records import NS_PER_MS, PlcResult, Verdict
from edgeqc.settings import OpcuaEndpoint, OpcuaPlcSettings
from edgeqc.sim import plc_opcua
from edgeqc.sim.nodeopcua import INSTALLED, PASSWORD, USER, NodeOpcua
from edgeqc.station.plckeeper import Manners, PlcEvents, PlcKeeper

pytestmark = pytest.mark.timeout(180)
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[NodeOpcua]:
    if not (INSTALLED / "node_modules").is_dir() or shutil.which("node") is None:
        pytest.skip("node-opcua is not installed (scripts/install test, needs npm and a registry)")
    with NodeOpcua(INSTALLED, tags=1) as running:
        yield running


@pytest.fixture
def settings(server: NodeOpcua, tmp_path: Path) -> OpcuaPlcSettings:
    shown = asyncio.run(server_certificate(OpcuaEndpoint(url=server.url), peer="press", timeout_s=PATIENCE_S))
    (tmp_path / "server.der").write_bytes(shown)
    return OpcuaPlcSettings.model_validate(
        {
            "type": "opcua",
            "url": server.url,
            "server_certificate": tmp_path / "server.der",
            "user": USER,
            "password": PASSWORD,
            "nodes": {
                name: f"{server.namespace};s=Line.{shown_name}" for name, (shown_name, _, _) in plc_opcua.NODES.items()
            },
            "handshake": {"form": "buffered", "read_back": True, "plc_heartbeat_ms": 2000},
        }
    )


def within(s: float = PATIENCE_S) -> int:
    return time.monotonic_ns() + int(s * 1e9)


def result(sequence: int, verdict: Verdict = Verdict.PASS) -> PlcResult:
    return PlcResult(
        sequence=sequence, part_id=f"P{sequence}", verdict=verdict, code=1, busy=False, ready=True, fault=False,
        score=0.5,
    )  # fmt: skip


def test_buffered_results_are_taken_one_by_one_by_the_plcs_own_program(
    settings: OpcuaPlcSettings, tmp_path: Path
) -> None:
    turns: list[int] = []
    keeper = PlcKeeper(
        lambda: open_link(settings, peer="press", state_dir=tmp_path),
        peer="press",
        events=PlcEvents(
            link=lambda _up, _why: None,
            program=lambda _alive: None,
            turn=lambda sequence, _at, _why: turns.append(sequence),
        ),
        manners=Manners(
            rules=Rules(form=Form.BUFFERED), plc_heartbeat_ns=2000 * NS_PER_MS, write_ns=int(PATIENCE_S * 1e9)
        ),
    )
    keeper.start()
    try:
        until = time.monotonic() + PATIENCE_S
        while not keeper.up:
            assert time.monotonic() < until
            time.sleep(0.01)  # the keeper's own pace
        first = 1000
        given = [keeper.show(result(first + number, verdict), within()) for number, verdict in enumerate(
            (Verdict.PASS, Verdict.REJECT, Verdict.PASS, Verdict.PASS)
        )]  # fmt: skip
        assert given[0] > 0
        beats: set[int] = set()
        while keeper.shown.verdict is not None:
            assert time.monotonic() < until + PATIENCE_S
            beats.add(keeper.read_trigger(within()).heartbeat)
            time.sleep(0.005)  # the pace of a poll
        assert turns == [first + number for number, one in enumerate(given) if not one]
        assert keeper.read_trigger(within()).ack == first + 3
        assert keeper.overruns == 0
    finally:
        keeper.stop()


def test_frozen_server_costs_the_bound_and_a_fresh_link_works_after_it(
    server: NodeOpcua, settings: OpcuaPlcSettings, tmp_path: Path
) -> None:
    with closing(open_link(settings, peer="press", state_dir=tmp_path)) as link:
        link.write_result(result(2000), within())
        os.kill(server.pid, signal.SIGSTOP)
        try:
            until = within(0.2)
            with pytest.raises(PeerTimeoutError):
                link.write_result(result(2001, Verdict.REJECT), until)
            assert time.monotonic_ns() - until < 2e9
        finally:
            os.kill(server.pid, signal.SIGCONT)
    with closing(open_link(settings, peer="press", state_dir=tmp_path)) as link:
        link.write_result(result(2002), within())


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"password": "guess"}, "BadUserAccessDenied"), ({"user": None, "password": None}, "BadIdentityToken")],
)
def test_who_may_not_is_told_so(
    changes: dict[str, str | None], says: str, settings: OpcuaPlcSettings, tmp_path: Path
) -> None:
    with pytest.raises(PeerError, match=says):
        open_link(settings.model_copy(update=changes), peer="press", state_dir=tmp_path)
