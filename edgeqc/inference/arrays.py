"""Golden vectors as a package has them: an .npz archive, of which nothing is believed but what is expected.

NumPy's own reader makes room for what a header announces and lets an archive's entries unpack to any size; this one
looks at both before.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

UNPACKED_MOST_BYTES: Final = 64 << 20
"""Of all arrays together: a hundred cases of the demo part's net are 30 MB."""

Expected = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name to dtype and shape of one case."""


def read_arrays(content: bytes, expected: Expected) -> dict[str, NDArray[np.generic]]:
    """All arrays, each with the same number of cases (at least one) along axis 0. ValueError says what is wrong."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = _entries(archive, expected)
            arrays = {name: _array(archive, entry) for name, entry in entries.items()}
    except (*_DAMAGED, *_OVER) as exc:
        raise ValueError(
            f"{type(exc).__name__}: {str(exc)[:200]}" if isinstance(exc, _OVER) else str(exc)[:200]
        ) from exc
    cases = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    for name, array in arrays.items():
        dtype, shape = expected[name]
        if array.dtype != dtype or array.shape[1:] != shape or len(cases) != 1 or 0 in cases:
            raise ValueError(
                f"{name}: {array.dtype}{list(array.shape)}, must be {dtype}[n, {', '.join(map(str, shape))}]"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: has values that are not finite")
    return arrays


_DAMAGED: Final = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error)
_OVER: Final = (NotImplementedError, RuntimeError, MemoryError, OverflowError)
"""Encryption, methods that zipfile does not know, headers that nest without end."""
_KINDS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_ENCRYPTED: Final = 1


def _entries(archive: zipfile.ZipFile, expected: Expected) -> dict[str, zipfile.ZipInfo]:
    found = archive.infolist()
    unpacked = sum(entry.file_size for entry in found)
    if unpacked > UNPACKED_MOST_BYTES:
        raise ValueError(f"unpacks to {unpacked} bytes, over {UNPACKED_MOST_BYTES}")
    names = [entry.filename.removesuffix(".npy") for entry in found]
    if len(set(names)) < len(names) or set(names) != set(expected):
        raise ValueError(f"holds {_listed(names)}, must hold {sorted(expected)}")
    if any(entry.compress_type not in _KINDS or entry.flag_bits & _ENCRYPTED for entry in found):
        raise ValueError("is packed in a way that NumPy does not use")
    return dict(zip(names, found, strict=True))


def _listed(names: list[str]) -> str:
    return str([name[:80] for name in sorted(names)[:16]])


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[np.generic]:
    with archive.open(entry) as stream:
        content = stream.read(entry.file_size)  # no more is unpacked, whatever follows
    header = io.BytesIO(content)
    if npy.read_magic(header) != (1, 0):
        raise ValueError(f"{entry.filename}: is not of NumPy's format 1.0")
    shape, fortran, dtype = npy.read_array_header_1_0(header)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename}: holds Python objects (pickle)")
    values = np.frombuffer(content, dtype, offset=header.tell())
    return values.reshape(shape, order="F" if fortran else "C").copy(order="C")
