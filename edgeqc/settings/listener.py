"""Where the daemon listens for others, and whom it lets in."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from edgeqc.settings.base import Model


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


Address = Annotated[str, AfterValidator(_address), Field(description="IP address of one of this box's interfaces")]
Network = Annotated[str, AfterValidator(_network), Field(description="an address, or a network such as 192.168.1.0/24")]


class Listener(Model):
    """A port of ours. Address and peers have no default: who may connect is decided by the one who commissions."""

    bind: Address = Field(description="the interface to listen on, by its address; 0.0.0.0 is all of them")
    peers: list[Network] = Field(
        min_length=1, max_length=64, description="who may connect; all others are refused before a byte is read"
    )
    connections: int = Field(8, ge=1, le=64, description="at a time; one more is refused")
    idle_s: float = Field(60, ge=1, le=3600, description="a client that asks nothing for so long is let go")
