"""Builds and loads the pretended driver, and sets what it pretends."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgeqc.errors import EdgeqcError

LIBRARY: Final = "libcuda.so.1"
_KINDS: Final = ("allocations", "registrations", "streams", "events", "graphs", "contexts")


def build_driver(folder: Path) -> Path:
    """Compile `driver.c` into `folder`; for another process, put the folder into its LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise EdgeqcError("no C compiler: the pretended GPU driver cannot be built; apt-get install gcc libc6-dev")
    library = folder / LIBRARY
    source = Path(__file__).with_name("driver.c")
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-pthread",
        f"-Wl,-soname,{LIBRARY}",
        "-o",
        str(library),
        str(source),
        "-ldl",
    ]
    subprocess.run(command, check=True)  # noqa: S603 - our own source
    return library


class PretendedDriver:
    """The library in this process. Once loaded, whoever looks for `libcuda.so.1` gets this one, for good."""

    def __init__(self, library: Path) -> None:
        """Load it before anything asks for a CUDA driver."""
        self._lib = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._lib.fake_set.argtypes = [ctypes.c_char_p, ctypes.c_long]
        self._lib.fake_bytes.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
        self._lib.fake_bytes.restype = ctypes.c_void_p
        self._lib.fake_is_mapped.argtypes = [ctypes.c_uint64]
        self._lib.fake_used.restype = ctypes.c_size_t
        self._lib.fake_alive.restype = ctypes.c_long
        self._lib.fake_pageable_copies.restype = ctypes.c_long
        self._lib.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]

    def pretend(self, **settings: int) -> None:
        """`integrated`, `maps`, `registers`, `no_device` (0 or 1), `limit_bytes`, `copy_delay_us`, `version`."""
        for name, value in settings.items():
            if self._lib.fake_set(name.encode(), value):
                raise EdgeqcError(f"the pretended driver has no setting {name}")

    def fail(self, code: int) -> None:
        """From now on every call ends with this CUresult, as after a fault of the device; 0 mends it."""
        self._lib.fake_fail(code)

    def settle(self) -> None:
        """Let all streams finish what they have."""
        self.let_go()
        self._lib.fake_settle()

    def forget(self) -> None:
        """Let go of everything that was not freed, as the end of a process does."""
        self._lib.fake_forget()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing that is put into a stream runs until this ends."""
        self.hold()
        try:
            yield
        finally:
            self.let_go()

    def hold(self) -> None:
        """As a device that hangs."""
        self._lib.fake_hold(1)

    def let_go(self) -> None:
        """It goes on."""
        self._lib.fake_hold(0)

    def bytes_at(self, device: int, size: int) -> int | None:
        """The CPU's address of what a device's address means; None where that is not (wholly) allocated."""
        found: int | None = self._lib.fake_bytes(device, size)
        return found

    def is_mapped(self, device: int) -> bool:
        """Whether a device's address means memory of the CPU, which it reads in place."""
        return bool(self._lib.fake_is_mapped(device))

    @property
    def capturing(self) -> bool:
        """Whether this thread is recording a graph."""
        return bool(self._lib.fake_is_capturing())

    def launch(self, stream: int, function: int) -> int:
        """Have a C function called in the stream's order; returns a CUresult."""
        code: int = self._lib.cuLaunchHostFunc(stream, function, None)
        return code

    @property
    def used_bytes(self) -> int:
        """What is allocated now."""
        return int(self._lib.fake_used())

    @property
    def pageable_copies(self) -> int:
        """Asynchronous copies so far whose side on the CPU was not page-locked: they would not be asynchronous."""
        return int(self._lib.fake_pageable_copies())

    @property
    def alive(self) -> dict[str, int]:
        """What has been made and not been freed, by kind; only what is not 0."""
        counts = {kind: int(self._lib.fake_alive(index)) for index, kind in enumerate(_KINDS)}
        return {kind: count for kind, count in counts.items() if count}
