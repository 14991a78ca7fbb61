"""Views with their early features, computed once and shared by every fold of a cross-validation. Files, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from edgeqc.errors import EdgeqcError
from edgeqc.train.lite0 import EARLY_CHANNELS, EARLY_STRIDE, Trunk
from edgeqc.train.net import quick
from edgeqc.train.views import Views


class Pool:
    """Features and targets of `count` views, half of them flawed, in memory-mapped files of one folder."""

    def __init__(self, folder: Path, count: int, crop: tuple[int, int], key: str) -> None:
        """Opens what is there of the same `key`, else makes it empty; `key` says what the views depend on."""
        folder.mkdir(parents=True, exist_ok=True)
        self._count, self._crop = count, crop
        self._note = folder / "pool.json"
        stamp = hashlib.sha256(f"{key} {count} {crop}".encode()).hexdigest()
        self._state: dict[str, Any] = {"stamp": stamp, "groups": [], "kinds": [], "masked": []}
        if self._note.exists():
            held = json.loads(self._note.read_text())
            if held["stamp"] == stamp:
                self._state = held
        fresh = not self._state["groups"]
        cells = (crop[0] // EARLY_STRIDE, crop[1] // EARLY_STRIDE)
        self._early = _mapped(folder / "early.npy", np.float16, (count, EARLY_CHANNELS, *cells), fresh=fresh)
        self._masks = _mapped(folder / "masks.npy", np.uint8, (count, *cells), fresh=fresh)

    @property
    def stamp(self) -> str:
        """What the views are of: another set, another stamp."""
        return str(self._state["stamp"])

    @property
    def done(self) -> int:
        """Views that are there."""
        return len(self._state["groups"])

    def fill(self, views: Callable[[int], Views], trunk: Trunk, told: Callable[[int], None]) -> None:
        """Compute what is missing; `views(chunk)` seeds each chunk by itself, so that a resumed fill is the same."""
        while self.done < self._count:
            first = self.done
            source = views(first // _CHUNK)
            drawn = [source.one(flawed=index % 2 == 0) for index in range(min(_CHUNK, self._count - first))]
            images = torch.from_numpy(np.stack([view.image for view in drawn])[:, None])
            with torch.no_grad(), quick():
                early = trunk.early(images.contiguous(memory_format=torch.channels_last))
            last = first + len(drawn)
            self._early[first:last] = early.float().numpy()
            height, width = self._masks.shape[1:]
            for index, view in enumerate(drawn, first):
                cover = cv2.resize(view.mask, (width, height), interpolation=cv2.INTER_AREA)
                self._masks[index] = np.round(cover * 255)
            self._state["groups"] += [list(view.groups) for view in drawn]
            self._state["kinds"] += [view.kind for view in drawn]
            self._state["masked"] += [view.masked for view in drawn]
            part = self._note.with_suffix(".part")
            part.write_text(json.dumps(self._state))
            part.replace(self._note)
            told(last)

    def batches(self, *, without: Collection[str], size: int, seed: int) -> PoolBatches:
        """Batches of the views that show nothing of the groups `without`."""
        held = frozenset(without)
        usable = np.array([not held.intersection(groups) for groups in self._state["groups"]], np.bool_)
        kinds = np.array(self._state["kinds"], np.int64)
        masked = np.array(self._state["masked"], np.bool_)
        return PoolBatches(self._early, self._masks, kinds, masked, usable, size=size, seed=seed)


class PoolBatches:
    """Endless batches, half of them of bad parts, kinds in equal shares. Deterministic for a seed."""

    def __init__(
        self,
        early: Any,
        masks: NDArray[np.uint8],
        kinds: NDArray[np.int64],
        masked: NDArray[np.bool_],
        usable: NDArray[np.bool_],
        *,
        size: int,
        seed: int,
    ) -> None:
        self._early, self._masks, self._kinds, self._masked = early, masks, kinds, masked
        self.rng = np.random.default_rng(seed)
        self._size = size
        self._goods = np.flatnonzero(usable & (kinds < 0))
        pools = [np.flatnonzero(usable & (kinds == kind)) for kind in range(int(kinds.max(initial=-1)) + 1)]
        self._flawed = [pool for pool in pools if len(pool)]

    def next(self) -> tuple[list[NDArray[np.float32]], NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """Early features, masks (n, 1, h, w) in 0..1 at stride 4, kinds (n,), masked (n,)."""
        picked = []
        for index in range(self._size):
            pool = self._goods
            if index % 2 == 0 and self._flawed:
                pool = self._flawed[int(self.rng.integers(len(self._flawed)))]
            picked.append(int(pool[int(self.rng.integers(len(pool)))]))
        early = np.stack([self._early[index] for index in picked]).astype(np.float32)
        masks = np.stack([self._masks[index] for index in picked])[:, None].astype(np.float32)
        masks /= 255
        return [early], masks, self._kinds[picked], self._masked[picked]


_CHUNK: Final = 16


def _mapped(file: Path, kind: type[np.generic], shape: tuple[int, ...], *, fresh: bool) -> Any:
    """A file as an array. EdgeqcError where the disk has no room: found out now, a mapped hole would be a SIGBUS later."""
    if not fresh:
        return np.lib.format.open_memmap(file, "r+")
    array = np.lib.format.open_memmap(file, "w+", kind, shape)
    try:
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    except OSError as exc:
        size_mb = file.stat().st_size / 1e6
        file.unlink()
        raise EdgeqcError(
            f"{file}: {exc.strerror}; it takes {size_mb:.0f} MB. Name another --work folder, or fewer --views"
        ) from exc
    return array
