"""The PLC link over Modbus and OPC UA against the simulated PLC in a process of its own, the same cases on both."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import opcua_session, open_link
from edgeqc.ports import PlcLink
from edgeqc.records import PlcResult, Verdict
from edgeqc.settings import NoPlcSettings, OpcuaPlcSettings, PlcSettings
from edgeqc.sim.plc import Kind, SimPlc
from edgeqc.sim.stage import Stage

SLACK_S = 2.0
"""For a shared, noisy machine; a call without a bound would hang for as long as the peer does."""
PATIENT_MS = 5000
PROCESS_S = 10.0
"""For the link's process to load asyncua: 0.7 s on a free core."""
KINDS: list[Kind] = ["modbus", "opcua"]

MakePlc = Callable[..., SimPlc]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with closing(Stage.create(tmp_path / "stage")) as made:
        yield made


@pytest.fixture
def make_plc(stage: Stage, tmp_path: Path) -> Iterator[MakePlc]:
    started: list[SimPlc] = []

    def make(kind: Kind, **changes: Any) -> SimPlc:
        # a budget far above what a noisy machine adds, so that only what a test delays on purpose is late
        options: dict[str, Any] = {"parts": 5, "rate_hz": 10, "budget_ms": 1000, "start": "go"} | changes
        plc = SimPlc(kind, stage.path, tmp_path / "judge.ndjson", **options)
        started.append(plc)
        return plc.start()

    yield make
    for plc in started:
        plc.kill()


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimPlc]:
    """One PLC of each kind for all cases that leave it as it was: an OPC UA server takes seconds to start."""
    folder = tmp_path_factory.mktemp("shared")
    with closing(Stage.create(folder / "stage")):
        plc = SimPlc(request.param, folder / "stage", folder / "log", parts=0, rate_hz=10, budget_ms=1000, start="go")
        with plc:
            yield plc


@pytest.fixture
def plc(shared: SimPlc) -> Iterator[SimPlc]:
    yield shared
    shared.thaw()
    shared.refuse(on=False)


def within(ms: float = PATIENT_MS) -> int:
    return time.monotonic_ns() + int(ms * 1e6)


def settings(plc: SimPlc, **changes: Any) -> PlcSettings:
    return TypeAdapter(PlcSettings).validate_python(plc.settings | changes)


def link_to(plc: SimPlc, tmp_path: Path, **changes: Any) -> closing[PlcLink]:
    return closing(open_link(settings(plc, **changes), peer="press", state_dir=tmp_path / "state"))


def result(sequence: int = 1, part_id: str = "P000001", verdict: Verdict | None = Verdict.PASS) -> PlcResult:
    code = {Verdict.PASS: 1, Verdict.REJECT: 10, None: 0}[verdict]
    return PlcResult(
        sequence=sequence, part_id=part_id, verdict=verdict, code=code, busy=False, ready=True, fault=False, score=0.25
    )


def next_trigger(link: PlcLink, after: int) -> tuple[int, str]:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        seen = link.read_trigger(within())
        if seen.counter != after:
            return seen.counter, seen.part_id
        time.sleep(0.002)  # the daemon's own pace of polling
    pytest.fail("no trigger within 10 s")


def lines(plc: SimPlc) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, plc.log.read_text().splitlines()) if "part" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_right_results_in_time_are_judged_without_fault(kind: Kind, make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc(kind, start="ready")
    with link_to(plc, tmp_path) as link:
        counter = link.read_trigger(within()).counter
        link.write_result(result(0, "", None), within())
        for sequence in range(1, 6):
            counter, part_id = next_trigger(link, counter)
            assert (counter, part_id) == (sequence, f"P{sequence:06d}")
            verdict = Verdict.REJECT if sequence == 3 else Verdict.PASS
            link.write_result(result(sequence, part_id, verdict), within())
        summary = plc.wait_done(10)
    assert {name: summary[name] for name in ("triggers", "answered", "pass", "reject")} == {
        "triggers": 5, "answered": 5, "pass": 4, "reject": 1,
    }  # fmt: skip
    wrong = ("none", "late", "wrong_part", "both_bits", "valid_without_bit", "bit_without_valid", "code", "sequence")
    assert all(summary[name] == 0 for name in (*wrong, "duplicates", "contradictions", "heartbeat_stuck"))
    assert summary["writes"] == 6
    assert [line["faults"] for line in lines(plc)] == [[]] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_results_are_judged_as_what_they_are(kind: Kind, make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc(kind, rate_hz=4, budget_ms=100, allowance_ms=20)
    with link_to(plc, tmp_path) as link:
        plc.go()
        counter, first = next_trigger(link, 0)
        link.write_result(result(1, first), within())
        link.write_result(result(1, first, Verdict.REJECT), within())
        counter, _ = next_trigger(link, counter)
        link.write_result(result(2, "P000099"), within())
        counter, third = next_trigger(link, counter)
        time.sleep(0.15)  # over budget and allowance
        link.write_result(result(3, third), within())
        counter, fourth = next_trigger(link, counter)
        link.write_result(result(3, fourth), within())
        summary = plc.wait_done(10)
    faults = [line["faults"] for line in lines(plc)]
    assert faults == [["contradiction"], ["none"], ["late"], ["sequence"], ["none"]]
    assert summary["wrong_part"] == 1
    assert summary["strays"] == ["P000099 #2"]


def test_refused_write_is_a_peer_error_and_the_link_goes_on(plc: SimPlc, tmp_path: Path) -> None:
    with link_to(plc, tmp_path) as link:
        plc.refuse(on=True)
        refused: PeerError | None = None
        until = time.monotonic() + 5
        while refused is None and time.monotonic() < until:  # the command takes its own way to the PLC
            try:
                link.write_result(result(), within())
            except PeerTimeoutError:
                raise
            except PeerError as exc:
                refused = exc
        assert refused is not None
        assert ("DEVICE_BUSY" if plc.kind == "modbus" else "nodes.result_") in refused.reason
        assert refused.peer == "press"
        plc.refuse(on=False)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            try:
                link.write_result(result(), within())
                break
            except PeerError:
                continue
        else:
            pytest.fail("still refused")
        assert link.read_trigger(within()).counter == 0


def test_hung_peer_costs_no_more_than_the_bound(plc: SimPlc, tmp_path: Path) -> None:
    with link_to(plc, tmp_path) as link:
        plc.freeze()
        for call in (link.read_trigger, lambda until: link.write_result(result(), until)):
            until = within(100)
            with pytest.raises(PeerTimeoutError):
                call(until)
            assert 0 <= time.monotonic_ns() - until < SLACK_S * 1e9
        plc.thaw()
        # late answers are under way: the next one must be the right one
        link.write_result(result(2, "P000002", None), within())
        assert link.read_trigger(within()).counter == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bound_in_the_past_sends_nothing(kind: Kind, make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc(kind, parts=0)
    with link_to(plc, tmp_path) as link:
        with pytest.raises(PeerTimeoutError):
            link.write_result(result(), within(-1))
        link.write_result(result(), within())
        plc.go()
        assert plc.wait_done(10)["writes"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_killed_peer_is_a_peer_error_and_the_next_link_works(kind: Kind, make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc(kind)
    with link_to(plc, tmp_path) as link:
        link.read_trigger(within())
        plc.kill()
        for call in (link.read_trigger, lambda until: link.write_result(result(), until)):
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(PeerError):
                    call(within(1000))
                assert time.monotonic() - began < 1 + SLACK_S
        with pytest.raises(PeerError, match="press: "):
            open_link(settings(plc), peer="press", state_dir=tmp_path)
    plc.start()
    with link_to(plc, tmp_path) as link:
        link.write_result(result(), within())


@pytest.mark.parametrize("kind", KINDS)
def test_line_and_guard_thread_share_the_link(kind: Kind, make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc(kind, parts=0)
    wrong: list[BaseException] = []

    def use(call: Callable[[int], object]) -> None:
        try:
            for number in range(50):
                call(number)
        except BaseException as exc:  # noqa: BLE001 - shown by the test's own thread
            wrong.append(exc)

    with link_to(plc, tmp_path) as link:
        calls: list[Callable[[int], object]] = [
            lambda number: link.write_result(result(number, f"L{number}"), within()),
            lambda number: link.write_result(result(number, f"G{number}"), within()),
            lambda _: link.read_trigger(within()),
        ]
        threads = [threading.Thread(target=use, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        plc.go()
        summary = plc.wait_done(10)
    assert wrong == []
    assert (summary["writes"], summary["heartbeat_stuck"]) == (100, 0)


def test_thread_that_waits_for_the_other_has_its_own_bound(plc: SimPlc, tmp_path: Path) -> None:
    took: list[float] = []

    def write(ms: float) -> None:
        began = time.monotonic()
        with pytest.raises(PeerTimeoutError):
            link.write_result(result(), within(ms))
        took.append(time.monotonic() - began)

    with link_to(plc, tmp_path) as link:
        plc.freeze()
        line = threading.Thread(target=write, args=(3000,))
        line.start()
        time.sleep(0.1)  # the line thread is in its call
        write(100)
        line.join(10)
        plc.thaw()
    assert took[0] < 0.1 + SLACK_S < took[1]


def test_close_ends_a_call_under_way_and_every_later_one(plc: SimPlc, tmp_path: Path) -> None:
    link = open_link(settings(plc), peer="press", state_dir=tmp_path)
    plc.freeze()
    ended: list[Exception] = []

    def wait() -> None:
        try:
            link.read_trigger(within(30_000))
        except PeerError as exc:
            ended.append(exc)

    reader = threading.Thread(target=wait)
    reader.start()
    time.sleep(0.1)  # the reader is in its call
    began = time.monotonic()
    link.close()
    assert time.monotonic() - began < 1 + SLACK_S
    reader.join(10)
    assert len(ended) == 1
    link.close()
    for call in (link.read_trigger, lambda until: link.write_result(result(), until)):
        with pytest.raises(PeerError):
            call(within(100))


def test_link_leaves_no_thread_and_no_socket(plc: SimPlc, tmp_path: Path) -> None:
    with link_to(plc, tmp_path) as link:  # what the libraries open once is open now
        link.read_trigger(within())
    before = (threading.active_count(), len(list(Path("/proc/self/fd").iterdir())))
    for _ in range(5):
        with link_to(plc, tmp_path) as link:
            link.write_result(result(), within())
    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before


def test_station_without_plc_has_no_link(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no link"):
        open_link(NoPlcSettings(type="none"), peer="press", state_dir=tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "modbus", "host": "127.0.0.1"},
        {"type": "opcua", "url": "opc.tcp://127.0.0.1:{port}", "security": "none"},
    ],
    ids=KINDS,
)
def test_nobody_listening_is_a_peer_error_at_once(entry: dict[str, Any], tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: refused, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        if entry["type"] == "modbus":
            entry = entry | {"port": port}
        else:
            nodes = dict.fromkeys(
                ("trigger", "part_id", "result_sequence", "result_part_id", "result_pass", "result_fail", "result_code",
                 "result_score", "busy", "ready", "fault", "heartbeat"), "ns=2;s=X",
            )  # fmt: skip
            entry = entry | {"url": f"opc.tcp://127.0.0.1:{port}", "nodes": nodes}
        began = time.monotonic()
        with pytest.raises(PeerError, match=r"(?i)refused|connect"):
            open_link(TypeAdapter(PlcSettings).validate_python(entry), peer="press", state_dir=tmp_path)
        assert time.monotonic() - began < SLACK_S + (PROCESS_S if entry["type"] == "opcua" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_plc_started_again_goes_on_with_the_next_part(kind: Kind, make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc(kind, parts=2)
    plc.go()
    plc.wait_done(10)
    plc.restart()
    with link_to(plc, tmp_path) as link:
        assert link.read_trigger(within()).counter == 2
        plc.go()
        assert next_trigger(link, 2) == (3, "P000003")


@pytest.mark.parametrize("trigger", ["camera", "line"])
def test_without_plc_trigger_the_exposures_are_the_parts(
    trigger: str, make_plc: MakePlc, stage: Stage, tmp_path: Path
) -> None:
    plc = make_plc("modbus", trigger=trigger, parts=4, rate_hz=3, start="go")
    stop = threading.Event()

    def camera() -> None:
        frame, pulses = 0, stage.pulses
        while not stop.wait(0.3 if trigger == "camera" else 0.002):
            if trigger == "camera":
                if stage.advance:
                    stage.part += 1
            elif stage.pulses == pulses:
                continue
            pulses, frame = stage.pulses, frame + 1
            stage.expose(frame)

    taking = threading.Thread(target=camera)
    taking.start()
    try:
        with link_to(plc, tmp_path) as link:
            seen, part = stage.exposures, 0
            plc.go()
            until = time.monotonic() + 20
            while part < 4 and time.monotonic() < until:
                exposure = stage.exposure(seen + 1)
                if exposure is not None:
                    seen, part = exposure.number, exposure.part
                    link.write_result(result(seen, str(seen)), within())
                time.sleep(0.002)  # the pace of a poll
            summary = plc.wait_done(10)
    finally:
        stop.set()
        taking.join(5)
    assert (summary["triggers"], summary["answered"], summary["allowance_ms"]) == (4, 4, 20)
    assert summary["wrong_part"] == summary["duplicates"] == summary["late"] == 0


# Modbus alone


def mbpoll(*arguments: str) -> str:
    if shutil.which("mbpoll") is None:
        if os.environ.get("EDGEQC_REQUIRE_PEERS") == "1":
            pytest.fail("mbpoll is not installed (Debian package mbpoll)")
        pytest.skip("mbpoll is not installed (Debian package mbpoll)")
    done = subprocess.run(["mbpoll", *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def polled(port: int, first: int, count: int) -> list[int]:
    shown = mbpoll("-m", "tcp", "-p", str(port), "-a", "1", "-0", "-r", str(first), "-c", str(count), "-t", "4:hex", "-1",
                   "127.0.0.1")  # fmt: skip
    return [int(line.split()[-1], 16) for line in shown.splitlines() if line.startswith("[")]


def test_mbpoll_reads_the_registers_as_documented(make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc("modbus", parts=1)
    with link_to(plc, tmp_path) as link:
        plc.go()
        next_trigger(link, 0)
        link.write_result(result(0x0001_0002, "P000001", Verdict.REJECT), within())
        trigger, block = polled(plc.port, 0, 9), polled(plc.port, 100, 16)
    text = [0x5030, 0x3030, 0x3030, 0x3100, 0, 0, 0, 0]
    assert trigger == [1, *text]
    assert block[:4] == [1, 2, 0b1110, 10]
    assert block[5:] == [2500, *text, 0, 0]


def test_registers_that_the_plc_does_not_have_are_refused_by_name(make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc("modbus")
    with link_to(plc, tmp_path, registers={"trigger": 1000, "result": 1000}) as link:
        with pytest.raises(PeerError, match="exception 2 ILLEGAL_ADDRESS"):
            link.read_trigger(within())
        with pytest.raises(PeerError, match="exception 2 ILLEGAL_ADDRESS"):
            link.write_result(result(), within())


# OPC UA alone


@pytest.mark.parametrize("shared", ["opcua"], indirect=True)
@pytest.mark.parametrize(
    ("name", "node", "says"),
    [
        ("result_pass", "ns=2;s=Line.Nothing", r"nodes\.result_pass: ns=2;s=Line\.Nothing: BadNodeIdUnknown"),
        ("result_pass", "ns=2;s=Line.ResultCode", r"nodes\.result_pass: .* is UInt16, not Boolean"),
        ("trigger", "ns=2;s=Line.PartId", r"nodes\.trigger: .* is String, not UInt16"),
        ("result_score", "ns=2;s=Line.ResultCode", r"nodes\.result_score: .* is UInt16, not Float, Double"),
        ("busy", "nsu=urn:other:line;s=Line.Busy", r"nodes\.busy: .*has no namespace urn:other:line; it has http:"),
        ("busy", "i=2253", r"nodes\.busy: i=2253"),
    ],
)
def test_unsuitable_node_is_named_at_connect(name: str, node: str, says: str, plc: SimPlc, tmp_path: Path) -> None:
    nodes = plc.settings["nodes"] | {name: node}
    with pytest.raises(PeerError, match=says):
        open_link(settings(plc, nodes=nodes), peer="press", state_dir=tmp_path)


@pytest.mark.parametrize("shared", ["opcua"], indirect=True)
@pytest.mark.parametrize("form", ["pulse", "ack", "buffered"])
def test_a_sequence_that_is_acknowledged_must_be_whole(form: str, plc: SimPlc, tmp_path: Path) -> None:
    """Of 65 536 an UInt16 holds 0, and the acknowledgement of 0 would release nothing any more."""
    nodes = plc.settings["nodes"] | {"result_sequence": "ns=2;s=Line.ResultCode"}
    asked = settings(plc, nodes=nodes, handshake={"form": form})
    if form == "pulse":
        open_link(asked, peer="press", state_dir=tmp_path).close()
        return
    with pytest.raises(PeerError, match=r"nodes\.result_sequence: .* is UInt16, not Int32, UInt32"):
        open_link(asked, peer="press", state_dir=tmp_path)


@pytest.mark.parametrize("shared", ["opcua"], indirect=True)
def test_nodes_may_name_their_namespace_by_uri(plc: SimPlc, tmp_path: Path) -> None:
    by_uri = {name: text.replace("ns=2;", "nsu=urn:edgeqc:sim:plc;") for name, text in plc.settings["nodes"].items()}
    assert all(text.startswith("nsu=") for text in by_uri.values())
    with contextlib.closing(open_link(settings(plc, nodes=by_uri), peer="press", state_dir=tmp_path)) as link:
        assert link.read_trigger(within()).counter >= 0


def test_protected_channel_with_user_works_and_anything_less_does_not(make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc("opcua", parts=1, pki=tmp_path / "plc", user="edge", password="s3cret")
    with link_to(plc, tmp_path) as link:
        plc.go()
        _, part_id = next_trigger(link, 0)
        link.write_result(result(1, part_id), within())
        assert plc.wait_done(10)["pass"] == 1
    own = tmp_path / "state" / "pki"
    assert (own / "own.key.pem").stat().st_mode & 0o777 == 0o600
    trust = tmp_path / "trust"
    trust.mkdir()
    by_trust = {"server_certificate": None, "trust": str(trust)}
    with pytest.raises(PeerError, match="there is no certificate in"):
        open_link(settings(plc, **by_trust), peer="press", state_dir=tmp_path / "state")
    shutil.copy(tmp_path / "plc" / "pki" / "own.der", trust / "plc.der")
    with link_to(plc, tmp_path, **by_trust) as link:
        assert link.read_trigger(within()).counter == 1
    for changes, says in (
        ({"password": "guess"}, "BadUserAccessDenied"),
        ({"user": None, "password": None}, "BadIdentityTokenRejected"),
        ({"server_certificate": None}, "edgeqc test plc"),
        ({"server_certificate": str(own / "own.der")}, "is server_certificate still this server's"),
        ({"server_certificate": str(own / "own.key.pem")}, "certificate .*own.key.pem"),
        ({"server_certificate": str(own / "missing.der")}, "missing.der"),
        ({"security": "none"}, "No matching endpoints"),
    ):
        with pytest.raises(PeerError, match=says):
            open_link(settings(plc, **changes), peer="press", state_dir=tmp_path / "state")


async def test_server_shows_the_certificate_to_pin(make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc("opcua", pki=tmp_path / "plc")
    endpoint = settings(plc, server_certificate=None)
    assert isinstance(endpoint, OpcuaPlcSettings)
    shown = await opcua_session.server_certificate(endpoint, peer="press", timeout_s=5)
    assert shown == (tmp_path / "plc" / "pki" / "own.der").read_bytes()


def test_score_of_no_number_is_written_as_zero(make_plc: MakePlc, tmp_path: Path) -> None:
    plc = make_plc("modbus")
    with link_to(plc, tmp_path) as link:
        unknown = PlcResult(
            sequence=1, part_id="", verdict=Verdict.REJECT, code=101, busy=False, ready=True, fault=True, score=math.nan
        )
        link.write_result(unknown, within())
        assert polled(plc.port, 105, 1) == [0]
