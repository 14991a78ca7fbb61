"""What a transaction of the archive did: told to others only once it is committed."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from edgeqc.journal import Entry
from edgeqc.office.payloads import Payload
from edgeqc.records import Delivery, PartRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A part whose story is complete, and the payload that tells it."""

    record: PartRecord
    delivery: Delivery | None
    payload: Payload


@dataclass(slots=True, kw_only=True)
class Outcome:
    """All that one transaction did."""

    closed: list[Closed] = field(default_factory=list)
    messages: int = 0
    message_bytes: int = 0
    started: bool = False
    doubled: int = 0
    """Entries that were in the archive already."""
    refused: list[str] = field(default_factory=list)
    """Entries that could not be understood, one line each."""
    audited: list[Entry] = field(default_factory=list)
    """Changes that go into the audit trail before this is on the disk."""
    answers: list[tuple[Future[dict[str, Any]], dict[str, Any]]] = field(default_factory=list)
    """What whoever gave a command is told."""
    flooded: bool | None = None
    """A flood of alarms began or ended; None: neither."""
