"""The variables that a link reads and writes on an OPC UA server: found, their types checked, values fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua.attribute_ids import AttributeIds

from edgeqc.core.handshake import SEQUENCE_MASK
from edgeqc.errors import PeerError
from edgeqc.plc import opcua_nodes

_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One variable as the server has it."""

    name: str
    """Its path in the configuration of the station's link: `nodes.trigger`."""
    text: str
    """Its NodeId as configured."""
    node_id: ua.NodeId
    type: ua.VariantType


BITS: Final = {
    ua.VariantType.Int16: 15,
    ua.VariantType.UInt16: 16,
    ua.VariantType.Int32: 31,
    ua.VariantType.UInt32: 32,
    ua.VariantType.Int64: 63,
    ua.VariantType.UInt64: 64,
}
"""Integer types that a number may have, and at how many bits it wraps (never negative)."""
WIDE: Final = tuple(kind for kind, bits in BITS.items() if bits >= SEQUENCE_MASK.bit_length())
"""What holds a sequence number whole enough to acknowledge it."""
COUNTERS: Final = tuple(kind for kind, bits in BITS.items() if bits >= 16)  # noqa: PLR2004
"""What may count parts: as wide as our own count of them. An Int16 may go on at 0 or at -32768, and either loses a part."""
FLAG: Final = (ua.VariantType.Boolean,)
REAL: Final = (ua.VariantType.Float, ua.VariantType.Double)
TEXT: Final = (ua.VariantType.String,)


async def find(
    client: Client, nodes: Mapping[str, str], suitable: Mapping[str, Sequence[ua.VariantType]], *, path: str, peer: str
) -> dict[str, Variable]:
    """Ask the server what type each of `nodes` (name: NodeId) has; PeerError that names the first that won't do.

    `path` is where the names stand in the configuration.
    """
    resolved = await opcua_nodes.resolve(client, list(nodes.values()))
    ids: dict[str, ua.NodeId] = {}
    for name, node_id in zip(nodes, resolved, strict=True):
        if isinstance(node_id, str):
            raise PeerError(peer, f"{path}.{name}: {node_id}")
        ids[name] = node_id
    order = list(ids.values())
    declared = await client.uaclient.read_attributes(order, AttributeIds.DataType)
    current = await client.uaclient.read_attributes(order, AttributeIds.Value)
    if not len(declared) == len(current) == len(order):
        raise PeerError(peer, "the server answers for fewer nodes than were asked")
    variables: dict[str, Variable] = {}
    for (name, node_id), kind, value in zip(ids.items(), declared, current, strict=True):
        text, full = nodes[name], f"{path}.{name}"
        _check(full, text, kind.StatusCode, peer)
        found = _variant_type(_content(kind), value)
        if found is None or found not in suitable[name]:
            wanted = ", ".join(one.name for one in suitable[name])
            raise PeerError(peer, f"{full}: {text} is {found.name if found else 'no plain value'}, not {wanted}")
        variables[name] = Variable(name=full, text=text, node_id=node_id, type=found)
    return variables


async def read(client: Client, variables: Sequence[Variable], peer: str) -> list[object]:
    """Read all in one request; every status must be good. PeerError."""
    found = await client.uaclient.read_attributes([one.node_id for one in variables], AttributeIds.Value)
    values: list[object] = []
    for variable, value in _paired(variables, found, peer):
        _check(variable.name, variable.text, value.StatusCode, peer)
        told = _content(value)
        if not isinstance(told, (str, type(None)) if variable.type is ua.VariantType.String else int):
            raise PeerError(peer, f"{variable.name}: {variable.text} is {told!r}")
        values.append(told)
    return values


async def write(
    client: Client, values: Sequence[tuple[Variable, bool | float | str]], peer: str, *, read_back: bool = False
) -> None:
    """Write all in one request, each fitted to its type; every status must be good. PeerError."""
    fitted = [(variable, _fitted(value, variable.type)) for variable, value in values]
    ids = [variable.node_id for variable, _ in fitted]
    # no timestamps: many PLCs refuse a write that brings some
    statuses = await client.uaclient.write_attributes(
        ids, [ua.DataValue(ua.Variant(value, variable.type)) for variable, value in fitted]
    )
    for (variable, _), status in _paired(fitted, statuses, peer):
        _check(variable.name, variable.text, status, peer)
    if read_back:
        for (variable, written), found in _paired(
            fitted, await client.uaclient.read_attributes(ids, AttributeIds.Value), peer
        ):
            _check(variable.name, variable.text, found.StatusCode, peer)
            _compare(variable, written, _content(found), peer)


def _compare(variable: Variable, written: object, found: object, peer: str) -> None:
    """Refuse a value that reads back as another; a Float keeps 24 bits of what was written."""
    if isinstance(written, float) and isinstance(found, float):
        same = math.isclose(written, found, rel_tol=1e-6, abs_tol=1e-6)
    else:
        same = found == written or (written == "" and found is None)
    if not same:
        raise PeerError(
            peer,
            f"{variable.name}: {variable.text} reads back as {found!r}, {written!r} was written: "
            "does the PLC program write there too?",
        )


def _fitted(value: bool | float | str, kind: ua.VariantType) -> bool | int | float | str:
    """Wrap a whole number at the width of its node."""
    bits = BITS.get(kind)
    return value if bits is None else int(value) & ((1 << bits) - 1)


def _variant_type(declared: object, value: ua.DataValue) -> ua.VariantType | None:
    """Give the built-in type on the wire: as declared, or as the present value has it where a subtype is declared."""
    variant = value.Value
    if variant is not None and isinstance(variant.Value, list):
        return None
    if isinstance(declared, ua.NodeId) and declared.NamespaceIndex == 0 and isinstance(declared.Identifier, int):
        try:
            return ua.VariantType(declared.Identifier)
        except ValueError:
            pass
    return variant.VariantType if variant is not None else None


def _content(value: ua.DataValue) -> object:
    return None if value.Value is None else value.Value.Value


def _paired(asked: Sequence[_S], found: Sequence[_T], peer: str) -> list[tuple[_S, _T]]:
    if len(found) != len(asked):
        raise PeerError(peer, f"the server answers for {len(found)} of {len(asked)} nodes")
    return list(zip(asked, found, strict=True))


def _check(name: str, text: str, status: ua.StatusCode | None, peer: str) -> None:
    if status is not None and not status.is_good():  # none on the wire means Good
        raise PeerError(peer, f"{name}: {text}: {status.name}")
