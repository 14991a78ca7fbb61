"""A PLC by other hands: Debian's libmodbus behind ctypes, in a process of its own, for tests and the bench.

`python -m edgeqc.sim.libmodbus --registers 200 --log FILE` serves on 127.0.0.1 and prints `READY <port>`. libmodbus
parses, stores and answers; what it has stored is logged after each write: monotonic ns and the block in hex.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeqc.plc.registers import RESULT_REGISTERS, ResultImage, unpack_result
from edgeqc.sim.plc_modbus import RESULT_AT

LIBRARY: Final = "libmodbus.so.5"
"""Debian package libmodbus5; mbpoll brings it."""
_ADU: Final = 260
_WRITE: Final = 16
_READY_S: Final = 60.0


def installed() -> bool:
    """Is the library there?"""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def writes(self) -> list[tuple[int, ResultImage]]:
        """Every block that was executed, in order, with its monotonic time in ns."""
        found: list[tuple[int, ResultImage]] = []
        for line in self.log.read_text().splitlines():
            at_ns, block = line.split()
            found.append((int(at_ns), unpack_result(struct.unpack(f">{RESULT_REGISTERS}H", bytes.fromhex(block)))))
        return found


@contextmanager
def serve(log: Path) -> Iterator[Served]:
    """Start a server; it is killed at the end."""
    log.touch()
    with subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "edgeqc.sim.libmodbus", "--log", str(log)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            if not select.select([process.stdout], [], [], _READY_S)[0]:
                raise RuntimeError("libmodbus did not start")
            yield Served(int(process.stdout.readline().split()[1]), log, process)
        finally:
            process.kill()


def main() -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m edgeqc.sim.libmodbus")
    parser.add_argument("--registers", type=int, default=200)
    parser.add_argument("--log", type=Path)
    asked = parser.parse_args()
    descriptor = None if asked.log is None else os.open(asked.log, os.O_WRONLY | os.O_APPEND)
    _Server(asked.registers, descriptor).run()
    return 0


class _Mapping(ctypes.Structure):
    """modbus_mapping_t of libmodbus 3.1."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("nb_bits", "start_bits", "nb_input_bits", "start_input_bits")),
        *((name, ctypes.c_int) for name in ("nb_input_registers", "start_input_registers")),
        *((name, ctypes.c_int) for name in ("nb_registers", "start_registers")),
        *((name, ctypes.POINTER(ctypes.c_uint8)) for name in ("tab_bits", "tab_input_bits")),
        *((name, ctypes.POINTER(ctypes.c_uint16)) for name in ("tab_input_registers", "tab_registers")),
    )


class _Server:
    def __init__(self, registers: int, log: int | None) -> None:
        library: Any = ctypes.CDLL(LIBRARY)
        library.modbus_new_tcp.restype = ctypes.c_void_p
        library.modbus_mapping_new.restype = ctypes.POINTER(_Mapping)
        self._library = library
        self._log = log
        self._context = ctypes.c_void_p(library.modbus_new_tcp(b"127.0.0.1", 0))
        self._mapping = library.modbus_mapping_new(0, 0, registers, 0)
        self._listener = socket.socket(fileno=library.modbus_tcp_listen(self._context, 8))
        self._query = (ctypes.c_uint8 * _ADU)()

    def run(self) -> None:
        sys.stdout.write(f"READY {self._listener.getsockname()[1]}\n")
        sys.stdout.flush()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        clients: dict[int, socket.socket] = {}
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._listener.fileno():
                    client, _ = self._listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    clients[client.fileno()] = client
                    poll.register(client, select.POLLIN)
                elif not self._answer(descriptor):
                    poll.unregister(descriptor)
                    clients.pop(descriptor).close()

    def _answer(self, descriptor: int) -> bool:
        """Let libmodbus take one request from this socket; False where the client is gone."""
        library, context, query = self._library, self._context, self._query
        library.modbus_set_socket(context, descriptor)
        size = library.modbus_receive(context, query)
        if size <= 0:
            return bool(size == 0)
        library.modbus_reply(context, query, size, self._mapping)
        if self._log is not None and query[7] == _WRITE:
            block = self._mapping.contents.tab_registers[RESULT_AT : RESULT_AT + RESULT_REGISTERS]
            text = struct.pack(f">{RESULT_REGISTERS}H", *block).hex()
            os.write(self._log, f"{time.monotonic_ns()} {text}\n".encode())
        return True


if __name__ == "__main__":
    raise SystemExit(main())
