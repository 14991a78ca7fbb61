"""A thread that has a core to itself looks for the PLC's answer before it sleeps for it: the answer is the same."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from edgeqc.errors import PeerTimeoutError
from edgeqc.plc.modbus import ModbusLink
from edgeqc.records import NS_PER_MS, NS_PER_S, PlcResult, Verdict
from edgeqc.settings import ModbusPlcSettings

RESULT = PlcResult(
    sequence=7, part_id="P7", verdict=Verdict.PASS, code=1, busy=False, ready=True, fault=False, score=0.5
)


@contextmanager
def plc(delay_s: float | None) -> Iterator[int]:
    """Acknowledges each write after `delay_s`; None: never. Gives its port."""

    def answer(connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(512):
                if delay_s is None:
                    continue
                time.sleep(delay_s)
                connection.sendall(request[:4] + struct.pack(">H", 6) + request[6:12])

    def serve() -> None:
        threads = []
        for _ in range(2):  # the link's two connections
            threads.append(threading.Thread(target=answer, args=(listener.accept()[0],)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = threading.Thread(target=serve)
        server.start()
        yield listener.getsockname()[1]
        server.join()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("delay_s", [0.0, 0.005])
def test_an_answer_is_taken_whether_it_comes_while_looking_or_later(delay_s: float, *, alone: bool) -> None:
    with plc(delay_s) as port:
        settings = ModbusPlcSettings(type="modbus", host="127.0.0.1", port=port)
        with closing(ModbusLink(settings, peer="plc", alone=threading.get_ident() if alone else 0)) as link:
            for _ in range(3):
                link.write_result(RESULT, time.monotonic_ns() + 5 * NS_PER_S)


@pytest.mark.parametrize("within_ns", [NS_PER_MS // 5, 20 * NS_PER_MS])
def test_looking_ends_when_the_time_is_up(within_ns: int) -> None:
    with plc(None) as port:
        settings = ModbusPlcSettings(type="modbus", host="127.0.0.1", port=port)
        link = ModbusLink(settings, peer="plc", alone=threading.get_ident())
        with closing(link), pytest.raises(PeerTimeoutError):
            link.write_result(RESULT, time.monotonic_ns() + within_ns)
