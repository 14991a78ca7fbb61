"""A simulated GigE Vision camera: a process of its own that sends images over real GVCP and GVSP packets.

`python -m edgeqc.sim.camera --address 127.0.0.2 --images parts.npy --stage /dev/shm/stage`
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Final

import numpy as np

from edgeqc.cores import real_time
from edgeqc.errors import PeerError
from edgeqc.sim.gige import GigeServer
from edgeqc.sim.peer import Peer
from edgeqc.sim.stage import Stage

HARDWARE_PRIORITY: Final = 10
"""SCHED_FIFO, where allowed: below the station's threads, above everything else."""
TRIES: Final = 20
"""Loopback addresses tried before giving up; one in 16,000 is taken per camera that runs."""
_TAKEN: Final = 75
"""Exit code: another camera listens at this address."""


class SimCamera(Peer):
    """The process from outside. Picks a free loopback address of its own, and keeps it."""

    def __init__(
        self, images: Path, stage: Path, *, address: str | None = None, first_frame_id: int = 1, camera: int = 0
    ) -> None:
        """Prepare only; `images`: .npy, (n, height, width) uint8; `camera`: which of those at the stage it is."""
        super().__init__("the simulated camera")
        self._images, self._stage, self._first_id = images, stage, first_frame_id
        self._camera = camera
        self._kept = address
        self._address = address or _some_address()

    @property
    def address(self) -> str:
        """Where it listens; known from the first start on."""
        if self._kept is None:
            raise PeerError(self._name, "has not been started")
        return self._kept

    def command(self) -> list[str]:
        """This module, at the address of the last time where there was one."""
        words = [sys.executable, "-m", "edgeqc.sim.camera", "--address", self._address, "--with-parent"]
        return [
            *words,
            "--images",
            str(self._images),
            "--stage",
            str(self._stage),
            "--first-frame-id",
            str(self._first_id),
            "--camera",
            str(self._camera),
        ]

    def told_ready(self, words: list[str]) -> None:
        """It has the address."""
        self._kept = words[0]

    def ready(self) -> None:
        """Return once it answers; where the address is taken, and nobody depends on it yet, another is tried."""
        for _ in range(TRIES):
            process = self.process
            try:
                super().ready()
            except PeerError:
                if self._kept is not None or process.returncode != _TAKEN:
                    raise PeerError(
                        self._name, f"did not start at {self._address} (exit code {process.returncode})"
                    ) from None
                self._address = _some_address()
                self.begin()
            else:
                return
        self.kill()
        raise PeerError(self._name, "found no free loopback address")


def _some_address() -> str:
    """127/8 is this box on Linux without any set-up; not 127.0.0.x, which people use by hand."""
    return f"127.{random.randrange(64, 128)}.{random.randrange(256)}.{random.randrange(1, 255)}"


def main() -> int:
    """Be the camera until stdin ends (with --with-parent) or a signal comes."""
    parser = argparse.ArgumentParser(description="simulated GigE Vision camera")
    parser.add_argument("--address", required=True, help="loopback address to listen on (GVCP port 3956)")
    parser.add_argument("--images", required=True, type=Path, help=".npy file, (n, height, width) uint8")
    parser.add_argument("--stage", required=True, type=Path, help="shared memory of the simulated line")
    parser.add_argument("--camera", type=int, default=0, help="which of the cameras at the stage it is")
    parser.add_argument("--first-frame-id", type=int, default=1, help="frame id after each start of acquisition")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin ends")
    words = parser.parse_args()
    images = np.load(words.images, mmap_mode="r")
    if images.ndim != 3 or images.dtype != np.uint8:  # noqa: PLR2004 - n, height, width
        sys.stderr.write(f"{words.images}: {images.dtype}{images.shape} is not uint8 (n, height, width)\n")
        return 2
    try:
        stage = Stage.attach(words.stage, words.camera)
        server = GigeServer(words.address, images, stage, first_frame_id=words.first_frame_id)
    except OSError as exc:
        sys.stderr.write(f"{words.address}: {exc}\n")
        return _TAKEN
    real_time(HARDWARE_PRIORITY)  # a camera does not share a core with whatever else this box does
    sys.stdout.write(f"READY {words.address}\n")
    sys.stdout.flush()
    try:
        server.run(parent=sys.stdin.fileno() if words.with_parent else None)
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
