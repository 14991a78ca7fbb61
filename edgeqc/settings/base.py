"""What every part of the configuration has: no unknown keys, no change after loading."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from edgeqc.core import nodeid


def _node(text: str) -> str:
    return str(nodeid.parse(text))


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
