"""The daemon as a server: where it listens, who may come, and what they may do."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from edgeqc.settings.base import Model, Secret
from edgeqc.settings.listener import Listener
from edgeqc.settings.plc import OpcuaSecurity


class Role(StrEnum):
    """What a user of the OPC UA server may do; each may do what stands before it too."""

    VIEWER = "viewer"
    """Read, subscribe, ask for results."""
    OPERATOR = "operator"
    """Call ResetCounters."""


class ServerUser(Model):
    """Someone who may log in to the OPC UA server."""

    name: str = Field(min_length=1, max_length=64)
    password: Secret
    role: Role = Role.VIEWER


class Command(StrEnum):
    """A register of the Modbus server that may be written."""

    WATCHDOG = "watchdog"
    RESET_COUNTERS = "reset_counters"


class ModbusServerSettings(Listener):
    """Modbus TCP for SCADA: state, counters and last results as registers, read-only but for the named ones."""

    port: int = Field(1502, ge=0, le=65_535, description="502 needs the right to it (CAP_NET_BIND_SERVICE)")
    writable: list[Command] = Field(
        default_factory=list, description="registers that may be written: watchdog, reset_counters"
    )


class OpcuaServerSettings(Listener):
    """OPC UA for SCADA and MES: state, health, counters, results and tags, and methods by role."""

    port: int = Field(4840, ge=0, le=65_535)
    security: OpcuaSecurity = Field(
        OpcuaSecurity.SIGN_ENCRYPT,
        description="sign_encrypt: Basic256Sha256 SignAndEncrypt and nothing else; none: anyone on the network can "
        "read along and forge, logged loudly at each start",
    )
    certificate: Path | None = Field(None, description="our own certificate; made in the state directory if null")
    private_key: Path | None = None
    clients: Path | None = Field(
        None,
        description="folder of client certificates (DER or PEM) that are trusted, an empty one trusts nobody; "
        "null: any client certificate, its user must log in",
    )
    users: list[ServerUser] = Field(default_factory=list, max_length=32)
    anonymous: bool = Field(
        False, description="let clients in as viewers without a user; with sign_encrypt they must be in `clients`"
    )

    @model_validator(mode="after")
    def _somebody_may_come(self) -> Self:
        if not self.users and not self.anonymous:
            raise ValueError("users: there is none and anonymous is false, so nobody could log in")
        if self.anonymous and self.security is OpcuaSecurity.SIGN_ENCRYPT and self.clients is None:
            raise ValueError("anonymous: with sign_encrypt it needs clients, else anybody with any certificate is in")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate, private_key: give both or neither")
        return self


class ServerSettings(Model):
    """What SCADA and MES connect to. A process for each protocol, so that neither can harm the line or the other."""

    modbus: ModbusServerSettings | None = None
    opcua: OpcuaServerSettings | None = None
    memory_mb: int = Field(
        256, ge=128, le=4096, description="each of these processes ends, and starts anew, at this much memory"
    )
