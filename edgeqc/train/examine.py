"""Opens every picture once and tells what is wrong with it: what is left out is listed, and why; nothing goes silently."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.train.dataset import Picture, Shape

LEAST_SIDE_PX: Final = 32
"""One cell of the coarsest features: on less there is nothing to learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about one picture that the user should know."""

    path: Path
    what: str
    left_out: bool
    """True: the picture takes no part in training or test."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examined:
    """What can be used, and what was found."""

    pictures: list[Picture]
    sizes: list[tuple[int, int]]
    """(height, width) of each."""
    findings: list[Finding]


def examine(
    pictures: list[Picture], told: Callable[[int], None] = lambda _count: None, *, by_picture: bool = False
) -> Examined:
    """Open all; leave out what cannot be used; join the groups of pictures that are the same.

    `by_picture`: each is a group of its own, as published splits have it, and nothing is joined: what is nearly the same
    in training and test is told and stays, so that figures flatter.

    Groups that lie in train and in test are split by the user's own word; that, and pictures of one split that are
    found again in the other, is told as a finding and the pictures of the training split are left out.
    """
    usable: list[Picture] = []
    sizes: list[tuple[int, int]] = []
    prints: list[tuple[str, NDArray[np.float32]]] = []
    findings: list[Finding] = []
    for count, picture in enumerate(pictures, 1):
        notes, image = _look(picture)
        findings += notes
        if image is not None:
            usable.append(picture)
            sizes.append((image.shape[0], image.shape[1]))
            prints.append((hashlib.sha256(image.tobytes()).hexdigest(), _thumb(image)))
        told(count)
    joined, again = _same(usable, prints)
    findings += again
    usable = [replace(picture, group=str(picture.path)) for picture in usable] if by_picture else joined
    findings += _odd_sizes(usable, sizes)
    usable, sizes, split = _leaks(usable, sizes)
    findings += split
    return Examined(pictures=usable, sizes=sizes, findings=findings)


def load_picture(path: Path) -> NDArray[np.uint8] | None:
    """As Mono8, upright by its EXIF note; None where it cannot be read."""
    with _quiet():
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    return None if image is None else np.asarray(image, np.uint8)


def mask_of(picture: Picture, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """(height, width), 255 where a defect is marked; all 0 where none is. The mask's file was examined before."""
    if picture.mask is not None:
        found = load_picture(picture.mask)
        if found is not None and found.shape == shape:
            return np.where(found > 0, np.uint8(255), np.uint8(0))
    drawn = np.zeros(shape, np.uint8)
    for mark in picture.shapes:
        _draw(drawn, mark)
    return drawn


_SHORT: Final = 1 << 16  # bytes of a file that hold its headers
_CMYK: Final = 4
_THUMB: Final = 48
_NEAR: Final = 0.97
"""Correlation of what two pictures have beside the set's mean: pictures of one part under two exposures have .9 to .96,
the same picture saved twice over .99."""
_AT_ONCE: Final = 1000
_ODD: Final = 3.0


def _look(picture: Picture) -> tuple[list[Finding], NDArray[np.uint8] | None]:
    path = picture.path
    image, fault, turned = _open(path)
    notes = [Finding(path=path, what="is stored turned (EXIF) and was put upright", left_out=False)] if turned else []
    if image is not None:
        fault = _mask_fault(picture, image.shape)
        if fault and picture.mask is not None:
            fault = f"its mask {picture.mask.name} {fault}"
    if fault:
        return [*notes, Finding(path=path, what=fault, left_out=True)], None
    return notes, image


def _open(path: Path) -> tuple[NDArray[np.uint8] | None, str, bool]:
    """The picture, or None and what is wrong with it; and whether it was stored turned."""
    try:
        head = _head(path)
    except OSError as exc:
        return None, f"cannot be opened: {exc.strerror}", False
    with _quiet():
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if head else None
    image = load_picture(path)
    fault = ""
    if not head:
        fault = "is empty (0 bytes)"
    elif raw is None or image is None:
        fault = "cannot be read as a picture; is it cut off, or another kind of file?"
    elif raw.dtype != np.uint8:
        fault = f"has {raw.dtype.itemsize * 8} bits a pixel; lines deliver 8: convert it as the camera would"
    elif _components(head) == _CMYK:
        fault = "is CMYK, made for print; save it as grey or RGB"
    elif min(image.shape) < LEAST_SIDE_PX:
        fault = f"is {image.shape[1]}x{image.shape[0]} px, under {LEAST_SIDE_PX}"
    elif int(image.max()) == int(image.min()):
        fault = f"is all of one level ({int(image.max())}): cap on the lens?"
    if fault or image is None:
        return None, fault, False
    return image, "", b"Exif" in head and _turned(path, image)


def _mask_fault(picture: Picture, shape: tuple[int, ...]) -> str:
    if picture.mask is not None:
        found = load_picture(picture.mask)
        if found is None:
            return "cannot be read as a picture"
        if found.shape != shape:
            return f"is {found.shape[1]}x{found.shape[0]} px, the picture {shape[1]}x{shape[0]}"
        if picture.is_defect and not found.any():
            return f"is empty, though the picture is labelled {picture.label}"
    for mark in picture.shapes:
        if mark.box is not None:
            x, y, width, height = mark.box
            if x + width <= 0 or y + height <= 0 or x >= shape[1] or y >= shape[0]:
                return f"has a {mark.label} at {x:g},{y:g}, outside its {shape[1]}x{shape[0]} px"
    return ""


def _same(
    pictures: list[Picture], prints: list[tuple[str, NDArray[np.float32]]]
) -> tuple[list[Picture], list[Finding]]:
    """Join the groups of the same and of nearly the same pictures."""
    findings: list[Finding] = []
    joined: dict[str, str] = {}

    def root(group: str) -> str:
        while joined.get(group, group) != group:
            group = joined[group]
        return group

    for one, two, what in _pairs(prints):
        first, second = pictures[one], pictures[two]
        if first.group != second.group or what == "the same as":
            text = f"is {what} {first.path}" + (f", labelled {first.label}" if first.label != second.label else "")
            findings.append(Finding(path=second.path, what=text, left_out=False))
        joined[root(second.group)] = root(first.group)
    return [replace(picture, group=root(picture.group)) for picture in pictures], findings


def _pairs(prints: list[tuple[str, NDArray[np.float32]]]) -> list[tuple[int, int, str]]:
    first: dict[str, int] = {}
    pairs: list[tuple[int, int, str]] = []
    for index, (digest, _) in enumerate(prints):
        if digest in first:
            pairs.append((first[digest], index, "the same as"))
        else:
            first[digest] = index
    if len(prints) < 3:  # noqa: PLR2004 - two pictures less their mean are always opposite
        return pairs
    thumbs = np.stack([thumb for _, thumb in prints])
    thumbs -= thumbs.mean(0)
    norms = np.linalg.norm(thumbs, axis=1, keepdims=True)
    thumbs /= np.maximum(norms, 1e-6)
    for start in range(0, len(thumbs), _AT_ONCE):  # all against all at once would be gigabytes
        near = np.triu(thumbs[start : start + _AT_ONCE] @ thumbs.T, start + 1) > _NEAR
        for one, two in np.argwhere(near):
            if prints[start + one][0] != prints[two][0]:
                pairs.append((start + int(one), int(two), "nearly the same as"))
    return pairs


def _leaks(
    pictures: list[Picture], sizes: list[tuple[int, int]]
) -> tuple[list[Picture], list[tuple[int, int]], list[Finding]]:
    """Leave those out of training whose group is in the test, too."""
    tested = {picture.group for picture in pictures if picture.split == "test"}
    findings, keep = [], []
    for index, picture in enumerate(pictures):
        if picture.split == "train" and picture.group in tested:
            what = f"shares its group ({picture.group}) with a picture of the test split"
            findings.append(Finding(path=picture.path, what=what, left_out=True))
        else:
            keep.append(index)
    return [pictures[index] for index in keep], [sizes[index] for index in keep], findings


def _odd_sizes(pictures: list[Picture], sizes: list[tuple[int, int]]) -> list[Finding]:
    if not sizes:
        return []
    usual, times = Counter(sizes).most_common(1)[0]
    middle = np.median(np.array(sizes), axis=0)
    findings = []
    for picture, size in zip(pictures, sizes, strict=True):
        ratio = np.array(size) / middle
        odd = max(ratio.max(), 1 / ratio.min()) > _ODD
        if odd or (times > len(sizes) * 0.9 and size != usual):
            what = f"is {size[1]}x{size[0]} px, the others are about {middle[1]:.0f}x{middle[0]:.0f}"
            findings.append(Finding(path=picture.path, what=what, left_out=False))
    return findings


def _thumb(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = cv2.resize(image, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    return np.asarray(small / max(1.0, float(small.std())), np.float32)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SHORT)


def _components(head: bytes) -> int:
    """How many colours a JPEG holds, by its frame header (ITU-T T.81, B.2.2); 0 where it is no JPEG."""
    if not head.startswith(b"\xff\xd8"):
        return 0
    at = 2
    while at + 9 < len(head) and head[at] == 0xFF:  # noqa: PLR2004 - marker
        kind, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if kind in _FRAMES:
            return head[at + 9]
        at += 2 + length
    return 0


_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC3})


def _turned(path: Path, image: NDArray[np.uint8]) -> bool:
    with _quiet():
        stored = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    return stored is not None and (stored.shape != image.shape or not np.array_equal(stored, image))


def _draw(mask: NDArray[np.uint8], mark: Shape) -> None:
    for polygon in mark.polygons:
        points = np.round(np.array(polygon, np.float64).reshape(-1, 2)).astype(np.int32)
        cv2.fillPoly(mask, [points], (255,))
    if mark.box is not None:
        x, y, width, height = mark.box
        left, top = max(0, round(x)), max(0, round(y))
        mask[top : max(top + 1, round(y + height)), left : max(left + 1, round(x + width))] = 255


class _quiet:  # noqa: N801 - reads as a statement
    """OpenCV writes to stderr what the caller tells anyway."""

    def __enter__(self) -> None:
        self._level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

    def __exit__(self, *_exc: object) -> None:
        cv2.utils.logging.setLogLevel(self._level)
