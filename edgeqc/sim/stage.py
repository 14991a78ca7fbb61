"""What ties the simulated line together: which part stands before the camera, what was exposed, what is broken.

A file that camera, PLC, judge and tests map at once. Every field is one aligned 64-bit word with one writer, so no
lock is needed; a ring entry carries its own number, so a reader knows when it was overwritten.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import numpy as np

from edgeqc.errors import EdgeqcError
from edgeqc.shm.block import Block

CAMERAS: Final = 8
"""That can look at the parts."""
RING: Final = 4096
"""Exposures remembered of each: 40 s at 100 parts/s."""
_MAGIC: Final = int.from_bytes(b"EQCSTAG2", "little")
_WORDS: Final = 16
_ENTRY: Final = 4
_PART, _ADVANCE, _PULSES = range(1, 4)
_EXPOSURES, _FAULT, _TRIGGERS = range(3)
"""Of each camera."""
_SIZE: Final = 8 * (_WORDS + CAMERAS * (_WORDS + RING * _ENTRY))


class CameraFault(IntEnum):
    """What is wrong with the simulated camera. The value of each is an int."""

    NONE = 0
    SILENT = 1
    """No frame leaves, control still answers."""
    SLOW = 2
    """Each frame leaves `value` milliseconds late."""
    SHORT = 3
    """`value` packets (at least one) of each frame never leave, resend or not."""
    WRONG_SIZE = 4
    """Frames have `value` rows, or half of what was asked where it is 0."""
    LOSSY = 5
    """`value` of a thousand packets are lost; a resend brings them."""
    BACKWARD = 6
    """The frame counter jumps back by `value`, once."""
    LEADERLESS = 7
    """The first packet of each frame never leaves, resend or not; of `value` frames where that is not 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One image that the simulated camera took."""

    number: int
    """Counts from 1 since the stage was made."""
    part: int
    at_ns: int
    """Monotonic."""
    frame_id: int
    """As the frame carries it."""


class Stage:
    """The shared words. `part` has one writer at a time: the line, or the camera while `advance` is on.

    Faults, triggers and exposures are those of one camera.
    """

    def __init__(self, path: Path, camera: int = 0) -> None:
        """Attach, with the eyes of this camera; EdgeqcError where the file is no stage."""
        self._block = Block(path)
        if self._block.size != _SIZE:
            raise EdgeqcError(f"{path}: not a stage")
        words = np.frombuffer(self._block.memory, np.uint64)
        self._words = words[:_WORDS]
        own = words[_WORDS:].reshape(CAMERAS, -1)[camera]
        self._own = own[:_WORDS]
        self._ring = own[_WORDS:].reshape(RING, _ENTRY)
        if int(self._words[0]) != _MAGIC:
            raise EdgeqcError(f"{path}: not a stage of this version")
        self.path = path

    @classmethod
    def create(cls, path: Path) -> Stage:
        """Make an empty stage, in place of any that was there."""
        path.unlink(missing_ok=True)
        block = Block(path, size=_SIZE)
        block.memory[:8] = _MAGIC.to_bytes(8, "little")
        block.close()
        return cls(path)

    @classmethod
    def attach(cls, path: Path, camera: int = 0) -> Stage:
        """Join an existing one."""
        return cls(path, camera)

    @property
    def part(self) -> int:
        """Number of the part before the camera; 0 = none yet."""
        return int(self._words[_PART])

    @part.setter
    def part(self, number: int) -> None:
        self._words[_PART] = number

    @property
    def advance(self) -> bool:
        """While on, each exposure in free run first brings the next part."""
        return bool(self._words[_ADVANCE])

    @advance.setter
    def advance(self, on: bool) -> None:
        self._words[_ADVANCE] = int(on)

    @property
    def fault(self) -> tuple[CameraFault, int]:
        """What is broken now, and its value."""
        word = int(self._own[_FAULT])
        return CameraFault(word >> 32), word & 0xFFFF_FFFF

    def break_camera(self, fault: CameraFault, value: int = 0) -> None:
        """Break it (or mend it: NONE) from the next exposure on."""
        self._own[_FAULT] = int(fault) << 32 | value

    def pulse(self) -> None:
        """Raise the camera's input line once: what a light barrier does."""
        self._words[_PULSES] += np.uint64(1)

    @property
    def pulses(self) -> int:
        """How often the input line was raised."""
        return int(self._words[_PULSES])

    @property
    def triggers(self) -> int:
        """Software triggers that the camera took."""
        return int(self._own[_TRIGGERS])

    def triggered(self) -> None:
        """Count a software trigger (the camera does)."""
        self._own[_TRIGGERS] += np.uint64(1)

    @property
    def exposures(self) -> int:
        """Images taken since the stage was made."""
        return int(self._own[_EXPOSURES])

    def expose(self, frame_id: int) -> int:
        """Note an exposure of the part that stands there (the camera does); returns the part."""
        number, part = self.exposures + 1, self.part
        entry = self._ring[number % RING]
        entry[0] = 0  # a reader between here and the end sees that the entry is not whole
        entry[1], entry[2], entry[3] = part, time.monotonic_ns(), frame_id
        entry[0] = number
        self._own[_EXPOSURES] = number
        return part

    def exposure(self, number: int) -> Exposure | None:
        """Look an exposure up; None where it has not been made or is forgotten."""
        entry = self._ring[number % RING]
        part, at_ns, frame_id = int(entry[1]), int(entry[2]), int(entry[3])
        if number < 1 or int(entry[0]) != number:
            return None
        return Exposure(number=number, part=part, at_ns=at_ns, frame_id=frame_id)

    def close(self) -> None:
        """Forget the mapping; the file stays."""
        del self._words, self._own, self._ring
        self._block.close()
