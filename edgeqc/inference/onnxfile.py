"""What an ONNX file holds, read from its bytes alone: operators, domains, weights, and whether it points elsewhere.

A package comes from outside. Before a runtime, which is a large C++ program, sees the file, this walk refuses what no
package may have: data in other files, operators that are not ONNX' own, functions, and more of anything than fits a
box. It reads the protobuf wire format (protobuf.dev/programming-guides/encoding) with the field numbers of onnx.proto;
the onnx package is not needed where engines run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import Final

NODES_MOST: Final = 20_000
"""ResNet-152 has 516; a plan of more takes minutes to build and does not fit a takt."""
VALUES_MOST: Final = 512 << 20
"""Values in one constant: more than any model's whole file may hold."""
FIELDS_MOST: Final = 2_000_000
"""Of the protobuf, all levels together: 20,000 nodes have a quarter of it, and this walk takes 1 us for each."""
RANK_MOST: Final = 32
"""Sizes of one constant; images have 4."""
DEPTH_MOST: Final = 8
"""Subgraphs in subgraphs (If, Loop, Scan)."""
_OWN_DOMAINS: Final = frozenset({"", "ai.onnx"})


class OnnxFault(Exception):  # noqa: N818 - a fault found, told on as PackageError
    """Why this file may not be in a package."""


@dataclass(slots=True, kw_only=True)
class Survey:
    """What was found."""

    opset: int = 0
    nodes: int = 0
    operators: set[str] = field(default_factory=set)
    initializers: int = 0
    tensors: set[str] = field(default_factory=set)
    """Names of the main graph's inputs and outputs."""
    fields: int = 0
    """Of the protobuf."""

    def named(self) -> tuple[str, ...]:
        """The operators used, in order."""
        return tuple(sorted(self.operators))


def survey(model: bytes) -> Survey:
    """Walk the whole file. OnnxFault says what a package may not have, or where the file stops making sense."""
    found = Survey()
    graphs = 0
    for number, value in _fields(memoryview(model), found):
        match number, value:
            case 7, memoryview():
                graphs += 1
                _graph(value, found, 0)
            case 8, memoryview():
                _opset(value, found)
            case ((20 | 25), memoryview()):
                what = "training steps" if number == _TRAINING else "functions of its own"
                raise OnnxFault(f"has {what}; export it for inference, with all functions inlined")
            case _:
                pass
    if graphs != 1 or not found.nodes:
        raise OnnxFault("is no ONNX model" if not graphs else f"has {graphs} graphs with {found.nodes} nodes")
    return found


_TRAINING: Final = 20
_NAME_MOST: Final = 256
"""Bytes of a name that are looked at; a manifest's names are shorter."""
_EXTERNAL: Final = 1  # TensorProto.DataLocation
_INT32: Final = 0xFFFF_FFFF
"""Of an enum and of a field's key protobuf's own readers take the lower 32 bits, whatever was written above them."""


def _opset(data: memoryview, found: Survey) -> None:
    domain, version = "", 0
    for number, value in _fields(data, found):
        if number == 1 and isinstance(value, memoryview):
            domain = _text(value)
        elif number == 2 and isinstance(value, int):  # noqa: PLR2004 - onnx.proto
            version = value
    if domain in _OWN_DOMAINS:
        found.opset = version


def _graph(data: memoryview, found: Survey, depth: int) -> None:
    if depth > DEPTH_MOST:
        raise OnnxFault(f"has subgraphs more than {DEPTH_MOST} deep")
    for number, value in _fields(data, found):
        match number, value:
            case 1, memoryview():
                _node(value, found, depth)
            case 5, memoryview():
                found.initializers += 1
                _tensor(value, found)
            case 15, memoryview():
                _sparse(value, found)
            case ((11 | 12), memoryview()) if not depth:
                found.tensors.update(
                    _text(name) for at, name in _fields(value, found) if at == 1 and not isinstance(name, int)
                )
            case _:
                pass


def _node(data: memoryview, found: Survey, depth: int) -> None:
    found.nodes += 1
    if found.nodes > NODES_MOST:
        raise OnnxFault(f"has over {NODES_MOST} nodes")
    operator, domain = "", ""
    for number, value in _fields(data, found):
        match number, value:
            case 4, memoryview():
                operator = _text(value)
            case 7, memoryview():
                domain = _text(value)
            case 5, memoryview():
                _attribute(value, found, depth)
            case _:
                pass
    if domain not in _OWN_DOMAINS:
        raise OnnxFault(f"has the operator {operator} of {domain}: only ONNX' own may be in a package")
    found.operators.add(operator)


def _attribute(data: memoryview, found: Survey, depth: int) -> None:
    for number, value in _fields(data, found):
        match number, value:
            case ((5 | 10), memoryview()):
                _tensor(value, found)
            case ((6 | 11), memoryview()):
                _graph(value, found, depth + 1)
            case ((22 | 23), memoryview()):
                _sparse(value, found)
            case _:
                pass


def _sparse(data: memoryview, found: Survey) -> None:
    for number, value in _fields(data, found):
        if number in (1, 2) and isinstance(value, memoryview):
            _tensor(value, found)


def _tensor(data: memoryview, found: Survey) -> None:
    sizes: list[int] = []
    for number, value in _fields(data, found):
        match number, value:
            case 1, int():
                sizes.append(value)
            case 1, memoryview():
                sizes += islice(_packed(value), RANK_MOST + 1)
            case 13, memoryview():
                raise OnnxFault("keeps data in other files; export it with all weights inside")
            case 14, int() if value & _INT32 == _EXTERNAL:
                raise OnnxFault("keeps data in other files; export it with all weights inside")
            case _:
                pass
        if len(sizes) > RANK_MOST:
            raise OnnxFault(f"has a constant of more than {RANK_MOST} dimensions")
    if prod(sizes) > VALUES_MOST:
        raise OnnxFault(f"has a constant of {sizes}, over {VALUES_MOST} values")


def _text(data: memoryview) -> str:
    return bytes(data[:_NAME_MOST]).decode("utf-8", "replace")


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _fields(data: memoryview, found: Survey) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value: a number for varints, a view for all else. OnnxFault where the bytes are no message."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        if key > _INT32:
            raise OnnxFault("is no ONNX model (a key over 32 bits)")
        found.fields += 1
        if found.fields > FIELDS_MOST:
            raise OnnxFault(f"has over {FIELDS_MOST} fields; export it with weights as raw data")
        match key & 7:
            case 0:
                value, at = _varint(data, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(data, at)
            case 5:
                size = 4
            case kind:
                raise OnnxFault(f"is no ONNX model (wire type {kind})")
        if size > end - at:
            raise OnnxFault("is cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise OnnxFault("is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
            return value, at
    raise OnnxFault("is no ONNX model (a number without an end)")
