"""What an examination found: one row of `doctor`, `test` and `check --connect`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """ok: as it should be; warn: the line runs, worse than it could; fail: it does not run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at."""

    name: str
    state: State
    found: str
    limit: str = ""
    """What it should be."""
    mend: str = ""
    """The command or the key that mends it."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)
