"""A GigE Vision camera through Aravis, receiving straight into our slots.

Figures behind the choices: frames were lost at every start with Aravis's own receive buffer policy, none with the
socket sized by us before acquisition; see the constants.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgeqc.cameras.aravis import MONO8, PACKET_SIZE_ADJUSTMENT_NEVER, PACKET_SOCKET_DISABLED, aravis
from edgeqc.cameras.softtrigger import TriggerThread
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.records import NS_PER_S, Frame, FrameStatus
from edgeqc.settings import GigeCameraSettings
from edgeqc.shm.slots import FrameSlots

GVCP_PORT: Final = 3956
PROBE_S: Final = 0.1
"""A camera answers a discovery datagram in under 1 ms; Aravis alone needs 2.5 s to find that none is there."""
RECEIVE_PRIORITY: Final = 30
"""SCHED_FIFO, above the line thread (20): a packet that waits is a packet lost."""
POP_US: Final = 50_000
"""How long one pop may block: so soon is a lost control channel noticed."""
FRAME_IDS: Final = 65_535
"""GVSP frame ids run 1..65535 and skip 0."""
HUNG_S: Final = 8.0
"""Longest that Aravis was seen to sit in a call to a dead camera: 5 s."""
OLDEST_NS: Final = 10 * NS_PER_S
"""A transfer that seems longer than this is a stepped clock."""

RESEND_SHARE: Final = 0.25
"""Of the frame's retention, until a packet is asked for again; Aravis's 20 ms would use a short retention up at once."""

_RESEND: Final = {"never": 0, "always": 1}
_SO_RCVBUFFORCE: Final = 33
"""<asm-generic/socket.h>; Python has no name for it."""
_SUCCESS, _SIZE_MISMATCH = 0, 5


class GigeCamera:
    """One connection (edgeqc.ports.Camera)."""

    def __init__(self, settings: GigeCameraSettings, slots: FrameSlots, bank: int, *, software_trigger: bool) -> None:
        """Connect, configure, start. PeerError: try again; also when another client controls the camera."""
        self.zero_copy = True
        self._settings, self._slots, self._peer = settings, slots, settings.name
        self._library = aravis()
        self._camera: int | None = None
        self._device: int | None = None
        self._stream: int | None = None
        self._trigger: TriggerThread | None = None
        self._buffers: dict[int, int] = {}
        """Slot > buffer, for those that are with us and not with Aravis."""
        self._last_id = 0
        """Of the last good frame."""
        self._given_id = 0
        """Of the last frame that was handed out; 0: none yet."""
        self._counted: dict[str, int] = {}
        self._lock = threading.Lock()
        _probe(self._peer, settings.address)
        try:
            self._configure(software_trigger=software_trigger)
            self._start(range(bank * slots.bank, (bank + 1) * slots.bank))
            if software_trigger:
                self._trigger = TriggerThread(self._peer, lambda: self._call("arv_camera_software_trigger"))
        except BaseException:
            self.close()
            raise

    def trigger(self) -> None:
        """Send the software trigger."""
        if self._trigger is None:
            raise PeerError(self._peer, "was not opened for software triggers")
        self._trigger.trigger()

    def next_frame(self, until_ns: int) -> Frame | None:
        """Wait for the next frame."""
        library, stream = self._library, self._stream
        while stream is not None:
            left_us = max(0, (until_ns - time.monotonic_ns()) // 1000)
            buffer = library.arv_stream_timeout_pop_buffer(stream, min(left_us, POP_US))
            if buffer and (frame := self._frame(buffer, time.monotonic_ns(), time.time_ns())) is not None:
                return frame
            # plain read of a flag that Aravis's heartbeat thread clears: no callback, no Python in that thread
            if not library.arv_gv_device_is_controller(self._device):
                raise PeerError(self._peer, "control lost: the camera answers no more, or another client took it")
            if left_us <= POP_US:
                return None
        raise PeerError(self._peer, "is closed")

    def release(self, slot: int) -> None:
        """Let Aravis fill the slot again."""
        buffer = self._buffers.pop(slot, None)
        if buffer is not None and self._stream is not None:
            # Aravis sets them with a frame's first packet: where that is lost they would be of the buffer's last frame
            self._library.arv_buffer_set_frame_id(buffer, 0)
            self._library.arv_buffer_set_system_timestamp(buffer, 0)
            self._library.arv_stream_push_buffer(self._stream, buffer)

    def counters(self) -> dict[str, int]:
        """Aravis's own statistics of this stream; the last ones after `close`."""
        with self._lock:
            if self._stream is not None:
                library, stream = self._library, self._stream
                self._counted = {
                    library.arv_stream_get_info_name(stream, index).decode(): library.arv_stream_get_info_uint64(
                        stream, index
                    )
                    for index in range(library.arv_stream_get_n_infos(stream))
                }
            return self._counted

    def close(self) -> None:
        """Stop and free."""
        self.counters()
        with self._lock:
            stream, self._stream = self._stream, None
            camera, self._camera = self._camera, None
        if camera is None:
            return
        free = self._trigger is None or self._trigger.stop(HUNG_S)
        if stream is not None:
            if free:
                with contextlib.suppress(PeerError):
                    _probe(self._peer, self._settings.address)  # stopping a dead camera would take 2.5 s and more
                    self._library.call(self._peer, "arv_camera_stop_acquisition", camera)
            self._library.unref(stream)  # joins the receive thread: nobody writes to the slots after this
        for buffer in self._buffers.values():
            self._library.unref(buffer)
        self._buffers.clear()
        if free:  # else a thread still sits in a call on it: freeing it would crash, so it is leaked
            self._library.unref(camera)

    def _call(self, name: str, *args: Any) -> Any:
        return self._library.call(self._peer, name, self._camera, *args)

    def _configure(self, *, software_trigger: bool) -> None:
        settings = self._settings
        self._camera = self._library.call(self._peer, "arv_camera_new", settings.address.encode())
        self._device = self._library.arv_camera_get_device(self._camera)
        if not self._library.arv_gv_device_is_controller(self._device):
            raise PeerError(self._peer, "is controlled by another client")
        self._call(
            "arv_camera_set_region", settings.offset_x_px, settings.offset_y_px, settings.width_px, settings.height_px
        )
        self._call("arv_camera_set_pixel_format_from_string", settings.pixel_format.encode())
        self._call("arv_camera_clear_triggers")
        if software_trigger:
            self._call("arv_camera_set_trigger", b"Software")
        elif settings.trigger_line is not None:
            self._call("arv_camera_set_trigger", settings.trigger_line.encode())
        elif settings.rate_hz is not None:
            self._call("arv_camera_set_frame_rate", settings.rate_hz)
        if settings.exposure_us is not None:
            self._call("arv_camera_set_exposure_time", settings.exposure_us)
        if settings.gain_db is not None:
            self._call("arv_camera_set_gain", settings.gain_db)
        self._library.arv_camera_gv_set_packet_size_adjustment(self._camera, PACKET_SIZE_ADJUSTMENT_NEVER)
        self._call("arv_camera_gv_set_packet_size", settings.packet_bytes)
        payload = self._call("arv_camera_get_payload")
        if payload != self._slots.frame_bytes:
            raise PeerError(
                self._peer,
                f"sends {payload} bytes a frame, not {settings.width_px}x{settings.height_px} {settings.pixel_format}",
            )

    def _start(self, slots: range) -> None:
        library, settings = self._library, self._settings
        library.arv_camera_gv_set_stream_options(self._camera, PACKET_SOCKET_DISABLED)
        self._stream = stream = self._call("arv_camera_create_stream", None, None)
        retention_us = int(settings.frame_retention_ms * 1000)
        library.set_property(stream, "frame-retention", retention_us)
        library.set_property(stream, "initial-packet-timeout", 0)  # a dedicated link does not reorder: a gap is a loss
        library.set_property(stream, "packet-timeout", max(1000, int(retention_us * RESEND_SHARE)))
        if settings.packet_resend in _RESEND:  # auto: Aravis has asked the camera whether it can
            library.set_property(stream, "packet-resend", _RESEND[settings.packet_resend])
        # socket-buffer stays as it is: Aravis would size the socket only after the first packet, and smaller than we do
        size = _size_receive_buffer(library.arv_gv_stream_get_port(stream), settings.receive_buffer_bytes)
        if size < 2 * self._slots.frame_bytes:
            raise PeerError(
                self._peer,
                f"the receive buffer got {size} bytes, a frame needs {2 * self._slots.frame_bytes}: "
                f"sysctl -w net.core.rmem_max={settings.receive_buffer_bytes}",
            )
        for slot in slots:
            # user data 0 would read as NULL
            buffer = library.arv_buffer_new_full(self._slots.frame_bytes, self._slots.address(slot), slot + 1, None)
            library.arv_stream_push_buffer(stream, buffer)
        _make_receiver_realtime()
        self._call("arv_camera_start_acquisition")

    def _frame(self, buffer: int, received_ns: int, wall_ns: int) -> Frame | None:
        """None for one that says nothing of itself, before any that did."""
        library = self._library
        slot = library.arv_buffer_get_user_data(buffer) - 1
        self._buffers[slot] = buffer
        frame_id = library.arv_buffer_get_frame_id(buffer)
        if not frame_id and library.arv_buffer_get_status(buffer) != _SUCCESS:
            # its first packet is lost, and its number with it: a gap before it shows with the next one
            if not self._given_id:
                self.release(slot)
                return None
            frame_id = self._given_id + 1 if self._given_id != FRAME_IDS else 1
        self._given_id = frame_id
        size = ctypes.c_size_t()
        if library.arv_buffer_get_data(buffer, ctypes.byref(size)) != self._slots.address(slot):
            self.zero_copy = False
        transfer_ns = wall_ns - library.arv_buffer_get_system_timestamp(buffer)
        return Frame(
            slot=slot,
            pixels=self._slots.pixels(slot),
            frame_id=frame_id,
            status=self._judged(buffer, size.value, frame_id),
            received_ns=received_ns,
            transfer_ns=transfer_ns if 0 <= transfer_ns < OLDEST_NS else 0,
        )

    def _judged(self, buffer: int, size: int, frame_id: int) -> FrameStatus:
        """Trust nothing but a complete frame of the right shape and a counter that goes up."""
        library, status = self._library, self._library.arv_buffer_get_status(buffer)
        if status == _SIZE_MISMATCH:
            return FrameStatus.WRONG_SIZE
        if status != _SUCCESS:
            return FrameStatus.INCOMPLETE  # holes show pixels of an older frame
        shape = (library.arv_buffer_get_image_height(buffer), library.arv_buffer_get_image_width(buffer))
        mono8 = library.arv_buffer_get_image_pixel_format(buffer) == MONO8
        if shape != self._slots.shape or size != self._slots.frame_bytes or not mono8:
            return FrameStatus.WRONG_SIZE
        last_id, self._last_id = self._last_id, frame_id
        return FrameStatus.OK if not last_id or _is_after(frame_id, last_id) else FrameStatus.STALE


def _is_after(frame_id: int, last_id: int) -> bool:
    if frame_id > FRAME_IDS or last_id > FRAME_IDS:  # extended ids (GigE Vision 2) do not wrap
        return frame_id > last_id
    return 0 < (frame_id - last_id) % FRAME_IDS < FRAME_IDS // 2


def _probe(peer: str, address: str) -> None:
    """Ask for discovery by unicast; PeerTimeoutError where nobody answers."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return  # a serial number: Aravis looks for it itself
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as prober:
        prober.settimeout(PROBE_S)
        try:
            prober.connect((address, GVCP_PORT))
            prober.send(struct.pack(">BBHHH", 0x42, 0x01, 0x0002, 0, 1))  # DISCOVERY_CMD, acknowledge wanted
            prober.recv(1024)
        except OSError as exc:
            raise PeerTimeoutError(peer, f"no GigE Vision camera answers at {address} ({exc})") from exc


def _size_receive_buffer(port: int, wanted: int) -> int:
    """Set SO_RCVBUF of the stream's socket before the first packet; returns what the kernel gave."""
    given = 0
    for receiver in _own_sockets(port):
        try:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted)  # needs CAP_NET_ADMIN
        except PermissionError:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)  # the kernel cuts it at rmem_max
        given = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return given


def _own_sockets(port: int) -> Iterator[socket.socket]:
    """Find this process's UDP sockets at `port`: Aravis tells the port, not the descriptor."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            if not str(link.readlink()).startswith("socket:"):
                continue
            found = socket.socket(fileno=os.dup(int(link.name)))
        except OSError:
            continue  # closed by another thread meanwhile
        with found:
            try:
                wanted = found.family == socket.AF_INET and found.type == socket.SOCK_DGRAM
                if wanted and found.getsockname()[1] == port:
                    yield found
            except OSError:
                continue


def _make_receiver_realtime() -> None:
    """Let Aravis's receive threads run before ordinary ones, where this process may."""
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().strip() == "arv_gv_stream":
                os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(RECEIVE_PRIORITY))
        except (OSError, ValueError):
            continue  # no right to, or the thread ended
