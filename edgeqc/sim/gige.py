"""The wire side of the simulated GigE Vision camera: GVCP (control) and GVSP (stream) as a device speaks them.

Registers and GenICam description are those of libaravis's fake camera; the packets are made here, because only so can
the camera listen on any loopback address without rights, answer a trigger at once instead of polling for it, resend,
and be broken on the wire. Clause numbers: GigE Vision 1.2.
"""

from __future__ import annotations

import ctypes
import random
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.cameras.aravis import MONO8, aravis
from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.sim.stage import CameraFault, Stage

GVCP_PORT: Final = 3956
FRAME_IDS: Final = 65_535
"""Frame ids run 1..65535; 0 is skipped."""
LINE_POLL_S: Final = 0.001
"""How often the input line is looked at while it is the trigger."""
IDLE_S: Final = 0.25
"""How often an idle camera looks at its heartbeat."""
KEPT: Final = 4
"""Frames that can be resent."""

_KEY, _HEADER_BYTES, _ACK_WANTED = 0x42, 8, 0x01
_UNKNOWN, _BAD_VALUE, _BAD_ADDRESS, _DENIED = 0x8001, 0x8002, 0x8003, 0x8006

# bootstrap registers (clause 28) and those of the fake camera's GenICam description
_CAPABILITY, _HEARTBEAT_MS, _PRIVILEGE = 0x934, 0x938, 0xA00
_STREAM_PORT, _PACKET_SIZE, _STREAM_ADDRESS = 0xD00, 0xD04, 0xD18
_WIDTH, _HEIGHT, _SENSOR_HEIGHT, _SENSOR_WIDTH = 0x100, 0x104, 0x118, 0x11C
_ACQUISITION, _PIXEL_FORMAT, _X, _Y, _PERIOD_US = 0x124, 0x128, 0x130, 0x134, 0x138
_TRIGGER_MODE, _TRIGGER_SOURCE, _TRIGGER_SOFTWARE = 0x300, 0x304, 0x30C
_SOURCE_LINE, _SOURCE_SOFTWARE = 0, 1
_CAN_RESEND: Final = 0x4
_MEMORY: Final = 0x10000
"""Size of the register space; the GenICam description lies behind it."""
_OVERHEAD: Final = 36
"""IP, UDP and GVSP headers within the packet size (clause 15)."""
_LEADER, _TRAILER, _PAYLOAD = 1, 2, 3


class _Command(IntEnum):
    DISCOVERY = 0x02
    RESEND = 0x40
    READ = 0x80
    WRITE = 0x82
    READ_MEMORY = 0x84
    WRITE_MEMORY = 0x86


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    frame_id: int
    due_ns: int
    taken_ns: int
    width: int
    height: int
    payload: memoryview
    packet_bytes: int
    withheld: range


class GigeServer:
    """One camera: serves until told to stop. Everything happens on the caller's thread."""

    def __init__(self, address: str, images: NDArray[np.uint8], stage: Stage, *, first_frame_id: int = 1) -> None:
        """Listen on `address`; OSError where another camera is there. `images`: (n, height, width) Mono8."""
        self._images, self._stage, self._first_id = images, stage, first_frame_id
        self._memory = _fake_camera_memory(serial=address)
        for register, value in (
            (_SENSOR_WIDTH, images.shape[2]),
            (_SENSOR_HEIGHT, images.shape[1]),
            (_CAPABILITY, _CAN_RESEND),
        ):
            self._set(register, value)
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._control.bind((address, GVCP_PORT))
        self._control.setblocking(False)
        self._stream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stream.bind((address, 0))
        self._controller: tuple[str, int] | None = None
        self._heard_ns = 0
        self._next_id = first_frame_id
        self._next_exposure_ns = 0
        self._pulses = stage.pulses
        self._fault = CameraFault.NONE
        self._broken = 0
        """Frames since the fault of now began."""
        self._waiting: deque[_Image] = deque(maxlen=64)
        self._sent: deque[_Image] = deque(maxlen=KEPT)

    def run(self, parent: int | None = None) -> None:
        """Serve until the file descriptor `parent` reports its end."""
        watched: list[socket.socket | int] = [self._control]
        if parent is not None:
            watched.append(parent)
        while True:
            readable, _, _ = select.select(watched, [], [], self._pause_s())
            if parent in readable:
                return
            now_ns = time.monotonic_ns()
            if self._controller and now_ns - self._heard_ns > self._get(_HEARTBEAT_MS) * NS_PER_MS:
                self._set_free()
            while self._answer_one():
                pass
            self._expose_if_due()
            self._send_due()

    def close(self) -> None:
        """Stop listening."""
        self._control.close()
        self._stream.close()

    def _pause_s(self) -> float:
        now_ns, until_ns = time.monotonic_ns(), time.monotonic_ns() + int(IDLE_S * NS_PER_S)
        if self._waiting:
            until_ns = min(until_ns, self._waiting[0].due_ns)
        if self._get(_ACQUISITION):
            if not self._get(_TRIGGER_MODE):
                until_ns = min(until_ns, self._next_exposure_ns)
            elif self._get(_TRIGGER_SOURCE) == _SOURCE_LINE:
                return LINE_POLL_S
        return max(0.0, (until_ns - now_ns) / NS_PER_S)

    # control

    def _answer_one(self) -> bool:
        try:
            request, sender = self._control.recvfrom(2048)
        except BlockingIOError:
            return False
        if len(request) < _HEADER_BYTES or request[0] != _KEY:
            return True
        command, size, request_id = struct.unpack_from(">HHH", request, 2)
        body = request[_HEADER_BYTES : _HEADER_BYTES + size]
        if sender == self._controller:
            self._heard_ns = time.monotonic_ns()
        if command == _Command.RESEND:
            self._resend(body)
            return True
        try:
            status, answer = self._execute(command, body, sender)
        except struct.error:
            status, answer = _BAD_ADDRESS, b""
        if request[1] & _ACK_WANTED:
            self._control.sendto(struct.pack(">HHHH", status, command + 1, len(answer), request_id) + answer, sender)
        if command == _Command.WRITE and status == 0:
            for register, value in struct.iter_unpack(">II", body):
                self._obey(register, value, sender)
        return True

    def _execute(self, command: int, body: bytes, sender: tuple[str, int]) -> tuple[int, bytes]:
        """Read or write registers; returns status and answer."""
        status, answer = 0, b""
        match command:
            case _Command.DISCOVERY:
                answer = bytes(self._memory[:0xF8])
            case _Command.READ:
                answer = b"".join(self._memory[at : at + 4] for (at,) in struct.iter_unpack(">I", body))
            case _Command.READ_MEMORY:
                at, count = struct.unpack(">IxxH", body)
                answer = body[:4] + self._memory[at : at + count]
            case _Command.WRITE | _Command.WRITE_MEMORY if self._controller not in (None, sender):
                status = _DENIED
            case _Command.WRITE:
                status, answer = self._write(list(struct.iter_unpack(">II", body)))
            case _Command.WRITE_MEMORY:
                (at,) = struct.unpack_from(">I", body)
                end = at + len(body) - 4
                if end <= _MEMORY:
                    self._memory[at:end] = body[4:]
                    answer = struct.pack(">HH", 0, len(body) - 4)
                else:
                    status = _BAD_ADDRESS
            case _:
                status = _UNKNOWN
        return status, answer

    def _write(self, pairs: list[tuple[int, int]]) -> tuple[int, bytes]:
        limits = {_WIDTH: self._get(_SENSOR_WIDTH), _HEIGHT: self._get(_SENSOR_HEIGHT)}
        if any(at + 4 > _MEMORY for at, _ in pairs):
            return _BAD_ADDRESS, b""
        if any(value > limits.get(at, value) for at, value in pairs):
            return _BAD_VALUE, b""
        for at, value in pairs:
            self._set(at, value)
        return 0, struct.pack(">HH", 0, len(pairs))

    def _obey(self, register: int, value: int, sender: tuple[str, int]) -> None:
        """Do what a write to this register means; the answer is out already."""
        if register == _PRIVILEGE:
            if value:
                self._controller, self._heard_ns = sender, time.monotonic_ns()
            else:
                self._set_free()
        elif register == _ACQUISITION and value:
            self._next_id = self._first_id
            self._next_exposure_ns = time.monotonic_ns()
            self._pulses = self._stage.pulses
            destination = socket.inet_ntoa(struct.pack(">I", self._get(_STREAM_ADDRESS)))
            self._stream.connect((destination, self._get(_STREAM_PORT) & 0xFFFF))
        elif register == _TRIGGER_SOFTWARE and value:
            self._set(_TRIGGER_SOFTWARE, 0)
            if self._get(_ACQUISITION) and self._get(_TRIGGER_MODE) and self._get(_TRIGGER_SOURCE) == _SOURCE_SOFTWARE:
                self._stage.triggered()
                self._expose()

    def _set_free(self) -> None:
        """Nobody controls the camera any more: it stops (clause 10.6)."""
        self._controller = None
        self._set(_PRIVILEGE, 0)
        self._set(_ACQUISITION, 0)
        self._waiting.clear()

    def _get(self, register: int) -> int:
        return int.from_bytes(self._memory[register : register + 4], "big")

    def _set(self, register: int, value: int) -> None:
        self._memory[register : register + 4] = value.to_bytes(4, "big")

    # images

    def _expose_if_due(self) -> None:
        if not self._get(_ACQUISITION):
            return
        if self._get(_TRIGGER_MODE):
            if self._get(_TRIGGER_SOURCE) == _SOURCE_LINE and self._stage.pulses != self._pulses:
                self._pulses = self._stage.pulses  # pulses faster than the sensor are missed, as on a real one
                self._expose()
            return
        now_ns = time.monotonic_ns()
        if now_ns < self._next_exposure_ns:
            return
        period_ns = max(1000, self._get(_PERIOD_US) * 1000)
        self._next_exposure_ns += period_ns
        if self._next_exposure_ns < now_ns:  # the box was too busy: go on from here instead of in a burst
            self._next_exposure_ns = now_ns + period_ns
        if self._stage.advance and self._stage.fault[0] is not CameraFault.SILENT:
            self._stage.part += 1
        self._expose()

    def _expose(self) -> None:
        fault, value = self._stage.fault
        if fault is CameraFault.SILENT:
            return
        if fault is CameraFault.BACKWARD and self._fault is not fault:
            self._next_id = (self._next_id - 1 - value) % FRAME_IDS + 1
        self._broken = self._broken + 1 if self._fault is fault else 1
        self._fault = fault
        frame_id = self._next_id
        self._next_id = frame_id % FRAME_IDS + 1
        part = self._stage.expose(frame_id)
        width, height = self._get(_WIDTH), self._get(_HEIGHT)
        if fault is CameraFault.WRONG_SIZE:
            height = value or height // 2
        pixels = self._view(part, width, height)
        packet_bytes = (self._get(_PACKET_SIZE) & 0xFFFF) - _OVERHEAD
        middle = len(pixels) // packet_bytes // 2 + 1
        withheld = range(middle, middle + max(1, value)) if fault is CameraFault.SHORT else range(0)
        if fault is CameraFault.LEADERLESS and self._broken <= (value or self._broken):
            withheld = range(1)
        now_ns = time.monotonic_ns()
        due_ns = now_ns + value * NS_PER_MS if fault is CameraFault.SLOW else now_ns
        self._waiting.append(_Image(frame_id, due_ns, now_ns, width, height, pixels, packet_bytes, withheld))
        self._send_due()

    def _view(self, part: int, width: int, height: int) -> memoryview:
        """Cut the region of interest out of the part's image; black beyond its edge."""
        image = self._images[part % len(self._images)]
        if image.shape == (height, width):
            return memoryview(image.reshape(-1))
        region = np.zeros((height, width), np.uint8)
        x, y = self._get(_X), self._get(_Y)
        cut = image[y : y + height, x : x + width]
        region[: cut.shape[0], : cut.shape[1]] = cut
        return memoryview(region.reshape(-1))  # type: ignore[arg-type] # an ndarray is a buffer

    # stream

    def _send_due(self) -> None:
        while self._waiting and self._waiting[0].due_ns <= time.monotonic_ns():
            image = self._waiting.popleft()
            self._sent.append(image)
            count = -(-len(image.payload) // image.packet_bytes) + 2
            fault, value = self._stage.fault
            lost = value / 1000 if fault is CameraFault.LOSSY else 0.0
            for packet_id in range(count):
                if lost and random.random() < lost:
                    continue
                self._send(image, packet_id, count)

    def _send(self, image: _Image, packet_id: int, count: int) -> None:
        if packet_id in image.withheld:
            return
        kind = _LEADER if packet_id == 0 else _TRAILER if packet_id == count - 1 else _PAYLOAD
        header = struct.pack(">HHI", 0, image.frame_id, kind << 24 | packet_id)
        body: memoryview | bytes
        if kind == _PAYLOAD:
            start = (packet_id - 1) * image.packet_bytes
            body = image.payload[start : start + image.packet_bytes]
        elif kind == _LEADER:
            sizes = (MONO8, image.width, image.height, self._get(_X), self._get(_Y), 0)
            body = struct.pack(">HHQIIIIII", 0, 1, image.taken_ns, *sizes)
        else:
            body = struct.pack(">HHI", 0, 1, image.height)
        try:
            self._stream.sendmsg((header, body))
        except OSError:
            return  # nobody listens there any more; a camera sends on regardless

    def _resend(self, body: bytes) -> None:
        """Answer PACKETRESEND (clause 16.7) from the frames still at hand."""
        frame_id, first, last = struct.unpack_from(">xxHII", body)
        for image in self._sent:
            if image.frame_id == frame_id:
                count = -(-len(image.payload) // image.packet_bytes) + 2
                for packet_id in range(first & 0xFFFFFF, min(last & 0xFFFFFF, count - 1) + 1):
                    self._send(image, packet_id, count)


def _fake_camera_memory(serial: str) -> bytearray:
    """Take registers and GenICam description from the library's fake camera."""
    library = aravis()
    camera = library.arv_fake_camera_new(serial[:15].encode())
    try:
        size = ctypes.c_size_t()
        description = ctypes.string_at(library.arv_fake_camera_get_genicam_xml(camera, ctypes.byref(size)), size.value)
        registers = ctypes.create_string_buffer(_MEMORY)
        library.arv_fake_camera_read_memory(camera, 0, _MEMORY - 4, registers)
        return bytearray(registers.raw + description)
    finally:
        library.unref(camera)
