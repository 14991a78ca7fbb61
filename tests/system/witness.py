"""Somebody else who looks at the PLC: reads the result block over Modbus, again and again, and keeps what changed."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from edgeqc.plc.registers import RESULT_REGISTERS, ResultImage, unpack_result
from edgeqc.sim.plc_modbus import RESULT_AT

_PERIOD_S: Final = 0.005
_ANSWER_S: Final = 1.0
_ASK: Final = struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, RESULT_AT, RESULT_REGISTERS)
_ANSWER_BYTES: Final = 9 + 2 * RESULT_REGISTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The result block, as it stood there from this monotonic time on."""

    at_ns: int
    image: ResultImage


class Witness:
    """Use as a context; `sights` may be read at any time."""

    def __init__(self, port: int) -> None:
        """Of the simulated PLC on this box."""
        self.sights: list[Sight] = []
        self._port = port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def at(self, at_ns: int) -> Sight:
        """What stood there at this time."""
        return next(sight for sight in reversed(self.sights) if sight.at_ns <= at_ns)

    def between(self, from_ns: int, to_ns: int) -> list[Sight]:
        """What came within this time."""
        return [sight for sight in self.sights if from_ns < sight.at_ns <= to_ns]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(2 * _ANSWER_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), _ANSWER_S) as line:
                self._look(line)
            self._stopping.wait(_PERIOD_S)

    def _look(self, line: socket.socket) -> None:
        """Until the PLC hangs up, or does not answer."""
        while not self._stopping.wait(_PERIOD_S):
            line.sendall(_ASK)
            answer = line.recv(_ANSWER_BYTES, socket.MSG_WAITALL)
            if len(answer) != _ANSWER_BYTES:
                return
            image = unpack_result(struct.unpack(f">{RESULT_REGISTERS}H", answer[9:]))
            if not self.sights or self.sights[-1].image != image:
                self.sights.append(Sight(at_ns=time.monotonic_ns(), image=image))
