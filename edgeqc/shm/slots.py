"""Frame slots: where the camera writes, preprocessing reads and the archive borrows.

Layout of the file: one header page, one page of leases, then per slot the frame (rounded up to a page) and the
defect map (one page or more). Two banks of slots: a reopened camera gets the other bank, because the old
connection's receive thread may still write until it is closed.

Leases: the station lends a slot to the office by a lease number in the part's journal record. The office copies and
then gives the number back; it may be too slow, then the station has revoked the lease and the copy is thrown away.
Neither ever waits for the other.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EdgeqcError
from edgeqc.shm.block import Block

PAGE: Final = 4096
_MAGIC: Final = b"EQCSLOT1"
_HEADER: Final = struct.Struct("<8sIIIII")


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def file_name(station: str, camera: str = "") -> str:
    """Of the slots in the run directory; `camera`: where the station has several."""
    return f"slots-{station}.{camera}" if camera else f"slots-{station}"


class FrameSlots:
    """All frame slots of one camera of one station. One writer (the station), any number of borrowers."""

    def __init__(self, block: Block) -> None:
        """Attach; EdgeqcError where the file is not one of ours."""
        if block.size < 2 * PAGE:
            raise EdgeqcError(f"{block.path}: {block.size} bytes are no frame slots")
        magic, count, height, width, map_height, map_width = _HEADER.unpack_from(block.memory, 0)
        if magic != _MAGIC:
            raise EdgeqcError(f"{block.path}: not a frame slot file of this version")
        self.block = block
        self.count: int = count
        """Slots in both banks together."""
        self.bank: int = count // 2
        """Slots per bank: bank 0 is 0..bank-1, bank 1 the rest."""
        self.shape = (height, width)
        """(height, width) of a frame, Mono8."""
        self.map_shape = (map_height, map_width)
        """(height, width) of a defect map, uint8."""
        self.frame_bytes: int = height * width
        stride = _pages(self.frame_bytes) + _pages(max(1, map_height * map_width))
        whole = np.frombuffer(block.memory, np.uint8)
        self.memory: NDArray[np.uint8] | None = whole
        """The whole mapping, page-aligned: what a GPU page-locks. None once closed."""
        self._leases = whole[PAGE : PAGE + 16 * count].view(np.uint64).reshape(count, 2)
        self._pixels: list[NDArray[np.uint8]] = []
        self._maps: list[NDArray[np.uint8]] = []
        for index in range(count):
            start = 2 * PAGE + index * stride
            self._pixels.append(whole[start : start + self.frame_bytes].reshape(height, width))
            start += _pages(self.frame_bytes)
            self._maps.append(whole[start : start + map_height * map_width].reshape(map_height, map_width))
        self._addresses = [int(pixels.ctypes.data) for pixels in self._pixels]
        self._next_lease = int(self._leases.max(initial=0)) + 1

    @classmethod
    def create(
        cls, path: Path, *, per_bank: int, shape: tuple[int, int], map_shape: tuple[int, int] = (1, 1)
    ) -> FrameSlots:
        """Make (or take over, where the size is the same) the slots of a camera; leases of a dead station lapse."""
        count = 2 * per_bank
        stride = _pages(shape[0] * shape[1]) + _pages(max(1, map_shape[0] * map_shape[1]))
        block = Block(path, size=2 * PAGE + count * stride)
        _HEADER.pack_into(block.memory, 0, _MAGIC, count, *shape, *map_shape)
        slots = cls(block)
        slots._leases[:, 1] = slots._leases[:, 0]
        return slots

    @classmethod
    def attach(cls, path: Path) -> FrameSlots:
        """Borrow an existing station's slots."""
        return cls(Block(path))

    def pixels(self, slot: int) -> NDArray[np.uint8]:
        """(height, width) view on the slot's frame; the same object each time."""
        return self._pixels[slot]

    def map(self, slot: int) -> NDArray[np.uint8]:
        """(height, width) view on the slot's defect map, 0..255."""
        return self._maps[slot]

    def address(self, slot: int) -> int:
        """Where the frame begins: what a camera library is given."""
        return self._addresses[slot]

    def lend(self, slot: int) -> int:
        """Lend the slot's image under a new lease number (never 0)."""
        lease = self._next_lease
        self._next_lease += 1
        self._leases[slot, 0] = lease
        return lease

    def returned(self, slot: int) -> bool:
        """Has the office given the slot's lease back?"""
        return bool(self._leases[slot, 0] == self._leases[slot, 1])

    def revoke(self, slot: int) -> None:
        """Take the slot back whatever the office does with it."""
        lease = self._next_lease
        self._next_lease += 1
        self._leases[slot, 0] = lease
        self._leases[slot, 1] = lease

    def borrow(self, slot: int, lease: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Copy frame and map if the lease still stands when the copy is done, and give it back; else None.

        One that was given back stands no more, whoever asks: the slot has gone to the camera, and to another part.
        """
        if not self._stands(slot, lease):
            return None
        pixels, defect_map = self._pixels[slot].copy(), self._maps[slot].copy()
        if not self._stands(slot, lease):
            return None
        self._leases[slot, 1] = lease
        return pixels, defect_map

    def _stands(self, slot: int, lease: int) -> bool:
        if not 0 <= slot < self.count:
            return False
        lent, returned = (int(number) for number in self._leases[slot])
        return lent == lease != returned

    def give_back(self, slot: int, lease: int) -> None:
        """Return a lease unused."""
        if 0 <= slot < self.count and int(self._leases[slot, 0]) == lease:
            self._leases[slot, 1] = lease

    def close(self) -> None:
        """Forget the views; the file stays for the other processes."""
        self._pixels.clear()
        self._maps.clear()
        self.memory = None
        del self._leases
        self.block.close()
