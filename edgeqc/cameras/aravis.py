"""The few calls of libaravis 0.8 (LGPL, the distribution's library) that a GigE Vision camera needs, through ctypes.

The GIL is released around every call that may wait or take a lock. No Python function is ever handed to the library, so
its receive and heartbeat threads never wait for an interpreter.
"""

from __future__ import annotations

import ctypes as c
import functools
from typing import Any, Final

from edgeqc.errors import EdgeqcError, PeerError

SONAME: Final = "libaravis-0.8.so.0"
"""0.8 only: the stream calls changed their arguments in 0.10."""
INSTALL: Final = "apt-get install libaravis-0.8-0"

MONO8: Final = 0x01080001
"""GenICam PFNC code of Mono8."""
PACKET_SOCKET_DISABLED: Final = 1
"""ArvGvStreamOption; a packet socket needs CAP_NET_RAW and no figure here was taken with it."""
PACKET_SIZE_ADJUSTMENT_NEVER: Final = 0
"""Aravis's own search can settle above the path's MTU (its issue 1065)."""

_pointer, _text, _int, _uint, _u64, _double = c.c_void_p, c.c_char_p, c.c_int, c.c_uint, c.c_uint64, c.c_double


class _GError(c.Structure):
    _fields_ = (("domain", c.c_uint32), ("code", c.c_int), ("message", c.c_char_p))


_ERROR = c.POINTER(c.POINTER(_GError))

_ARAVIS: Final[dict[str, tuple[Any, ...]]] = {  # name: result, arguments
    "arv_get_major_version": (_uint,),
    "arv_get_minor_version": (_uint,),
    "arv_get_micro_version": (_uint,),
    "arv_disable_interface": (None, _text),
    "arv_camera_new": (_pointer, _text, _ERROR),
    "arv_camera_get_device": (_pointer, _pointer),
    "arv_camera_set_region": (None, _pointer, _int, _int, _int, _int, _ERROR),
    "arv_camera_set_pixel_format_from_string": (None, _pointer, _text, _ERROR),
    "arv_camera_clear_triggers": (None, _pointer, _ERROR),
    "arv_camera_set_trigger": (None, _pointer, _text, _ERROR),
    "arv_camera_software_trigger": (None, _pointer, _ERROR),
    "arv_camera_set_frame_rate": (None, _pointer, _double, _ERROR),
    "arv_camera_set_exposure_time": (None, _pointer, _double, _ERROR),
    "arv_camera_set_gain": (None, _pointer, _double, _ERROR),
    "arv_camera_get_payload": (_uint, _pointer, _ERROR),
    "arv_camera_gv_set_packet_size_adjustment": (None, _pointer, _int),
    "arv_camera_gv_set_packet_size": (None, _pointer, _int, _ERROR),
    "arv_camera_gv_set_stream_options": (None, _pointer, _int),
    "arv_camera_create_stream": (_pointer, _pointer, _pointer, _pointer, _ERROR),
    "arv_camera_start_acquisition": (None, _pointer, _ERROR),
    "arv_camera_stop_acquisition": (None, _pointer, _ERROR),
    "arv_gv_device_is_controller": (_int, _pointer),
    "arv_gv_stream_get_port": (c.c_uint16, _pointer),
    "arv_stream_push_buffer": (None, _pointer, _pointer),
    "arv_stream_timeout_pop_buffer": (_pointer, _pointer, _u64),
    "arv_stream_get_n_infos": (_uint, _pointer),
    "arv_stream_get_info_name": (_text, _pointer, _uint),
    "arv_stream_get_info_uint64": (_u64, _pointer, _uint),
    "arv_buffer_new_full": (_pointer, c.c_size_t, _pointer, _pointer, _pointer),
    "arv_fake_camera_new": (_pointer, _text),
    "arv_fake_camera_get_genicam_xml": (_pointer, _pointer, c.POINTER(c.c_size_t)),
    "arv_fake_camera_read_memory": (_int, _pointer, c.c_uint32, c.c_uint32, _pointer),
}
_READING: Final[dict[str, tuple[Any, ...]]] = {
    "arv_buffer_get_status": (_int, _pointer),
    "arv_buffer_get_data": (_pointer, _pointer, c.POINTER(c.c_size_t)),
    "arv_buffer_get_user_data": (_pointer, _pointer),
    "arv_buffer_get_frame_id": (_u64, _pointer),
    "arv_buffer_get_system_timestamp": (_u64, _pointer),
    "arv_buffer_get_image_width": (_int, _pointer),
    "arv_buffer_get_image_height": (_int, _pointer),
    "arv_buffer_get_image_pixel_format": (c.c_uint32, _pointer),
    "arv_buffer_set_frame_id": (None, _pointer, _u64),
    "arv_buffer_set_system_timestamp": (None, _pointer, _u64),
}
"""They read or set a field of a buffer that is ours. Called with the GIL held: giving it up eight times for each frame would
let another thread take it just when the line has a frame to judge."""


class Aravis:
    """The loaded library: every function above is an attribute."""

    def __init__(self) -> None:
        """Load it; EdgeqcError that says how to install it."""
        try:
            self._aravis = _bound(c.CDLL(SONAME), _ARAVIS)
            self._reading = _bound(c.PyDLL(SONAME), _READING)
            self._gobject = _bound(c.CDLL("libgobject-2.0.so.0"), {"g_object_unref": (None, _pointer)})
            self._glib = _bound(c.CDLL("libglib-2.0.so.0"), {"g_error_free": (None, c.POINTER(_GError))})
        except (OSError, AttributeError) as exc:
            raise EdgeqcError(f"GigE Vision needs {SONAME} ({exc}): {INSTALL}") from exc
        self._gobject.g_object_set.restype = None
        self._aravis.arv_disable_interface(b"USB3Vision")  # else each process gets libusb's thread and uevent socket

    def __getattr__(self, name: str) -> Any:
        """Give the library's function `arv_...` that cannot fail, or whose failure is a NULL."""
        if name not in _ARAVIS and name not in _READING:
            raise AttributeError(name)
        function = getattr(self._aravis if name in _ARAVIS else self._reading, name)
        setattr(self, name, function)  # found at once the next time
        return function

    def call(self, peer: str, name: str, *args: Any) -> Any:
        """Call a function that ends in a GError; PeerError where it set one."""
        error = c.POINTER(_GError)()
        result = getattr(self._aravis, name)(*args, c.byref(error))
        if error:  # type: ignore[truthy-bool] # a NULL pointer is false
            message = (error.contents.message or b"").decode(errors="replace")
            self._glib.g_error_free(error)
            raise PeerError(peer, f"{message} ({name})")
        return result

    def set_property(self, instance: int, name: str, value: int) -> None:
        """Set an integer, unsigned or enumeration property of a GObject."""
        # variadic and NULL-terminated, so the types are given here
        self._gobject.g_object_set(_pointer(instance), _text(name.encode()), _int(value), _pointer(None))

    def unref(self, instance: int) -> None:
        """Drop our reference."""
        self._gobject.g_object_unref(instance)


@functools.cache
def aravis() -> Aravis:
    """Load the library once per process; EdgeqcError where it is missing."""
    return Aravis()


def aravis_available() -> bool:
    """Can GigE Vision cameras be used on this box."""
    return library_version() is not None


def library_version() -> str | None:
    """Tell e.g. `0.8.26`, or None where the library is missing."""
    try:
        library = aravis()
    except EdgeqcError:
        return None
    parts = (library.arv_get_major_version(), library.arv_get_minor_version(), library.arv_get_micro_version())
    return ".".join(str(part) for part in parts)


def _bound(library: c.CDLL, signatures: dict[str, tuple[Any, ...]]) -> c.CDLL:
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library
