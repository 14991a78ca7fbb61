"""An RTSP camera on loopback: RFC 2326 with motion JPEG (RFC 2435) interleaved in its own TCP connection.

FFmpeg, which OpenCV brings, is the client; nothing of this is the daemon's.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

RATE_HZ: Final = 20.0
_JPEG: Final = 26
_CLOCK_HZ: Final = 90_000
_MOST: Final = 1400
_QUANTISERS, _SCAN = 0xDB, 0xDA


class RtspCamera:
    """Use as a context: serves one picture again and again to whoever plays it, until it is told to be silent or to end."""

    def __init__(self, picture: NDArray[np.uint8], *, mute: bool = False) -> None:
        """`picture`: (height, width) Mono8, sides multiples of 16 px. `mute`: take connections, never answer."""
        self._height, self._width = picture.shape
        encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        self._tables, self._scan = _taken_apart(encoded.tobytes())
        self._mute = mute
        self.silent = threading.Event()
        """Play on without a picture: a camera that hangs."""
        self._ending = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, name="rtsp")]
        self._clients: list[socket.socket] = []

    @property
    def url(self) -> str:
        """Where to play it."""
        return f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/stream"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.hang_up()
        for thread in self._threads[1:]:
            thread.join()

    def hang_up(self) -> None:
        """End all connections, as a camera that starts anew."""
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                self._clients.append(client)
                thread = threading.Thread(target=self._serve, args=(client,), name="rtsp-client")
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError):
            if self._mute:
                while client.recv(4096):
                    pass
                return
            while self._answer(client) != "PLAY":
                pass
            self._play(client)

    def _answer(self, client: socket.socket) -> str:
        """One request and its answer; its method."""
        text = b""
        while not text.endswith(b"\r\n\r\n"):
            some = client.recv(1)
            if not some:
                raise EOFError
            text += some
        lines = text.decode().split("\r\n")
        method = lines[0].split()[0]
        asked = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        told, body = [f"CSeq: {asked['cseq']}"], ""
        match method:
            case "OPTIONS":
                told.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            case "DESCRIBE":
                body = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:video\r\n"
                told += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            case "SETUP":
                told += ["Session: 1", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"]
            case _:
                told.append("Session: 1")
        client.sendall("\r\n".join(["RTSP/1.0 200 OK", *told, "", body]).encode())
        return method

    def _play(self, client: socket.socket) -> None:
        began_s, numbers, source = time.monotonic(), itertools.count(1), random.getrandbits(32)
        while not self._ending.wait(1 / RATE_HZ):
            if self.silent.is_set():
                continue
            stamp = round((time.monotonic() - began_s) * _CLOCK_HZ)
            for last, payload in self._packets():
                head = struct.pack(">BBHII", 0x80, _JPEG | last << 7, next(numbers) & 0xFFFF, stamp, source)
                client.sendall(struct.pack(">cBH", b"$", 0, len(head) + len(payload)) + head + payload)

    def _packets(self) -> Iterator[tuple[bool, bytes]]:
        """Is it the picture's last, and its payload."""
        for start in range(0, len(self._scan), _MOST):
            # type 1: 4:2:0; quality 255: the tables come with each picture
            head = struct.pack(">IBBBB", start, 1, 255, self._width // 8, self._height // 8)
            tables = b"" if start else struct.pack(">BBH", 0, 0, len(self._tables)) + self._tables
            yield start + _MOST >= len(self._scan), head + tables + self._scan[start : start + _MOST]


def _taken_apart(jpeg: bytes) -> tuple[bytes, bytes]:
    """The two quantisation tables and the entropy-coded scan of a baseline JPEG with the usual Huffman tables."""
    at, tables = 2, b""
    while True:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4])
        segment = jpeg[at + 4 : at + 2 + length]
        if marker == _QUANTISERS:
            tables += b"".join(segment[start + 1 : start + 65] for start in range(0, len(segment), 65))
        at += 2 + length
        if marker == _SCAN:
            return tables, jpeg[at:-2]
