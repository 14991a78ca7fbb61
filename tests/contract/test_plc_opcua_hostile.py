"""An OPC UA server that sends what no server should: it costs the link's own process, never the station's."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from pydantic import TypeAdapter

from edgeqc.errors import PeerError
from edgeqc.plc import open_link
from edgeqc.plc.opcua_peer import MEMORY_MB
from edgeqc.settings import PlcSettings
from edgeqc.sim.plc import SimPlc
from edgeqc.sim.stage import Stage

pytestmark = pytest.mark.timeout(180)
MIB = 1 << 20
FLOOD_MIB = 600
"""Over what the link's process may have."""
READ_RESPONSE = bytes((1, 0)) + struct.pack("<H", 634)
HEADER = 24
"""Of a chunk without protection: type, size, channel, token, sequence, request."""
RESPONSE_HEADER = 24

Spoil = Callable[[socket.socket, bytes], None]


class Relay:
    """Stands between link and server; `spoil` gets the next ReadResponse in place of the link."""

    def __init__(self, port: int) -> None:
        self.spoil: Spoil | None = None
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for sock in (*self._open, self._listener):
            sock.close()

    def _start(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, server]
                self._start(lambda client=client, server=server: self._up(client, server))  # type: ignore[misc]
                self._start(lambda client=client, server=server: self._down(server, client))  # type: ignore[misc]

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while some := client.recv(65_536):
                server.sendall(some)
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError, EOFError):
            while True:
                head = exactly(server, 8)
                chunk = head + exactly(server, struct.unpack_from("<I", head, 4)[0] - 8)
                spoil = self.spoil
                if spoil is not None and chunk[HEADER : HEADER + 4] == READ_RESPONSE:
                    self.spoil = None
                    spoil(client, chunk)
                else:
                    client.sendall(chunk)


def exactly(sock: socket.socket, size: int) -> bytes:
    some = b""
    while len(some) < size:
        more = sock.recv(size - len(some))
        if not more:
            raise EOFError
        some += more
    return some


def with_results(chunk: bytes, results: bytes) -> bytes:
    body = chunk[: HEADER + 4 + RESPONSE_HEADER] + results
    return body[:4] + struct.pack("<I", len(body)) + body[8:]


def huge_array(client: socket.socket, chunk: bytes) -> None:
    """One value, an array of 200 million elements that take no bytes: 1.6 GiB and 11 s in asyncua 2.1.0."""
    client.sendall(with_results(chunk, struct.pack("<i", 1) + b"\x01\x80" + struct.pack("<i", 200_000_000)))


def chunk_flood(client: socket.socket, chunk: bytes) -> None:
    """Chunks of a message that never ends."""
    (sequence,) = struct.unpack_from("<I", chunk, 16)
    body = bytes(60_000)
    for number in range(FLOOD_MIB * MIB // len(body)):
        head = b"MSGC" + struct.pack("<I", HEADER + len(body)) + chunk[8:16]
        client.sendall(head + struct.pack("<I", sequence + number) + chunk[20:24] + body)


def garbage(client: socket.socket, chunk: bytes) -> None:
    """The right length, and nothing that means anything."""
    client.sendall(chunk[:HEADER] + b"\xa5" * (len(chunk) - HEADER))


def wrong_type(client: socket.socket, chunk: bytes) -> None:
    """Texts where numbers were."""
    text = b"\x01\x0c" + struct.pack("<i", 4) + b"\xff\xfe\xfd\xfc"
    client.sendall(with_results(chunk, struct.pack("<i", 2) + text * 2 + b"\xff\xff\xff\xff"))


def fewer(client: socket.socket, chunk: bytes) -> None:
    """No value for what was asked."""
    client.sendall(with_results(chunk, struct.pack("<i", 0) + b"\xff\xff\xff\xff"))


def nothing(_client: socket.socket, _chunk: bytes) -> None:
    """No answer at all."""


@pytest.fixture(scope="module")
def plc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimPlc]:
    folder = tmp_path_factory.mktemp("plc")
    with (
        closing(Stage.create(folder / "stage")),
        SimPlc("opcua", folder / "stage", folder / "log", parts=0, rate_hz=10, budget_ms=1000, start="go") as made,
    ):
        yield made


def within(s: float) -> int:
    return time.monotonic_ns() + int(s * 1e9)


@pytest.mark.parametrize("spoil", [huge_array, chunk_flood, garbage, wrong_type, fewer, nothing])
def test_hostile_answer_costs_the_station_no_memory_and_no_more_than_the_bound(
    spoil: Spoil, plc: SimPlc, tmp_path: Path
) -> None:
    with closing(Relay(plc.port)) as relay:
        settings: PlcSettings = TypeAdapter(PlcSettings).validate_python(
            plc.settings | {"url": f"opc.tcp://127.0.0.1:{relay.port}"}
        )
        station = psutil.Process()
        with closing(open_link(settings, peer="press", state_dir=tmp_path)) as link:
            link.read_trigger(within(10))
            (decoder,) = [child for child in station.children() if "opcua_peer" in " ".join(child.cmdline())]
            before = station.memory_info().rss
            relay.spoil = spoil
            bound_s = 6.0 if spoil is chunk_flood else 2.0
            until = within(bound_s)
            with pytest.raises(PeerError):
                link.read_trigger(until)
            assert time.monotonic_ns() - until < 2e9, "a call is over at its bound, whatever the server sends"
            with suppress(psutil.Error):  # the flood ends it
                assert decoder.memory_info().rss < MEMORY_MB * MIB
            assert station.memory_info().rss - before < 32 * MIB
        assert not decoder.is_running() or decoder.status() == psutil.STATUS_ZOMBIE
        with closing(open_link(settings, peer="press", state_dir=tmp_path)) as again:
            assert again.read_trigger(within(10)).counter == 0


def test_a_frozen_decoder_costs_no_more_than_the_bound(plc: SimPlc, tmp_path: Path) -> None:
    settings: PlcSettings = TypeAdapter(PlcSettings).validate_python(plc.settings)
    link = open_link(settings, peer="press", state_dir=tmp_path)
    (decoder,) = [child for child in psutil.Process().children() if "opcua_peer" in " ".join(child.cmdline())]
    decoder.suspend()
    until = within(0.1)
    with pytest.raises(PeerError, match="no answer in time"):
        link.read_trigger(until)
    assert time.monotonic_ns() - until < 2e9
    link.close()
    assert not decoder.is_running()
