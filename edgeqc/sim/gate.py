"""A bench's figure beside its limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One line of the table."""

    name: str
    measured: float
    limit: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Is the measured figure within its limit?"""
        return self.measured <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Benched:
    """What a bench found."""

    title: str
    gates: list[Gate]
    figures: dict[str, Any] = field(default_factory=dict)
    """For `--json`, beside the machine."""
