"""What every part of the configuration has: no unknown keys, no change after loading."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from edgeqc.core import nodeid


def _node(text: str) -> str:
    return str(nodeid.parse(text))


def _host(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text))
    if re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", text) is None:
        raise ValueError(f"{text[:_SHOWN]} is no host: a name or an address alone, the port has a key of its own")
    return text


def _opcua_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme == "opc.tcp" and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port over 65535, a broken IPv6 address
        good = False
    if not good:
        raise ValueError(f"{text[:_SHOWN]} is no opc.tcp://HOST:PORT")
    return text


_SHOWN = 60
Host = Annotated[str, AfterValidator(_host), Field(description="name or IP address")]
OpcuaUrl = Annotated[
    str, AfterValidator(_opcua_url), Field(pattern=r"^opc\.tcp://.+", description="opc.tcp://HOST:PORT")
]
Node = Annotated[
    str,
    AfterValidator(_node),
    Field(description="OPC UA NodeId: i=, s=, g= or b=, behind ns=INDEX; or nsu=URI; (the URI outlasts a renumbering)"),
]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$", description="lower-case letters, digits, - and _")]
Secret = Annotated[str, Field(description="`secret://name` (systemd credential, then /etc/edgeqc/secrets) or the text")]


class Model(BaseModel):
    """Unknown keys are errors; nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
