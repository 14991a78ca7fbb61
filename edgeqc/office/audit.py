"""Who changed what, and when: one line for each change, in a file in which each line seals all those before it.

A line is `<seal> <JSON>`; the seal is the SHA-256 of the seal before it and this JSON. A changed, lost, added or swapped line
breaks all seals behind it. How far the file must reach is kept beside it, so that one cut short is found, too. Both are on
the disk before the archive has the change and before whoever asked for it is answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeqc.journal import Entry
from edgeqc.records import RECIPE_READY, Event

FILE_NAME: Final = "audit.log"
AUDITED: Final = frozenset(
    {"configuration_changed", RECIPE_READY, "recipe_changed", "alarm_command", "counters_reset", "audit_began"}
)
"""Events that say that a person or a peer changed something: configuration, model, recipe, alarm, counter."""
_HEAD_SUFFIX: Final = ".head"
_BEGIN: Final = "0" * 64
_SEAL: Final = len(_BEGIN)
_WHO: Final = ("by", "user", "peer")
"""Facts that name who did it; else it was the peer of the process that told of it (a station's PLC)."""


class DamagedTrailError(ValueError):
    """The trail is not as it was written: which line, and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One change."""

    number: int
    """From 1."""
    seal: str
    """SHA-256 in hex over this line and, by the seal before it, all lines before it."""
    fields: dict[str, Any]
    """`n`, `at` (UTC ns), `who`, `what`, `source`, `sequence` and `facts`."""


def read(path: Path) -> tuple[list[Line], int]:
    """All lines, verified, and the bytes of a write behind them that never ended: what a crash may leave.

    Raises:
        DamagedTrailError: a line was changed, lost, added or swapped, or the file is shorter than it was.
        OSError: it cannot be read.
    """
    number, seal = _head(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raw = b""
    lines, end = _lines(raw)
    if len(lines) < number:
        raise DamagedTrailError(
            f"{path}: line {len(lines) + 1} of {number} is not what was written, or not where it was"
        )
    if number and lines[number - 1].seal != seal:
        raise DamagedTrailError(f"{path}: line {number} does not have the seal that was kept beside it")
    return lines, len(raw) - end


class AuditTrail:
    """The one writer. Not thread-safe: the archive's thread has it."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened before the first `write`."""
        self.path = path
        self._seal = _BEGIN
        self._number = 0
        self._known: set[tuple[str, int, int]] = set()
        self._open = False

    def open(self) -> str | None:
        """Verify what is there and go on behind it; what was damaged, where it was: that file is set aside.

        OSError where the disk does not do it; try again.
        """
        damage = None
        try:
            lines, torn = read(self.path)
        except DamagedTrailError as exc:
            damage = str(exc)
            self._set_aside()
            lines, torn = [], 0
        if torn:
            with self.path.open("rb+") as file:
                file.truncate(self.path.stat().st_size - torn)
        self._number = len(lines)
        self._seal = lines[-1].seal if lines else _BEGIN
        self._known = {(line.fields["source"], line.fields["sequence"], line.fields["at"]) for line in lines}
        self._open = True
        if damage is not None:
            self.write([_own("audit_began", {"why": damage[:300]})])
        return damage

    def write(self, entries: Sequence[Entry]) -> None:
        """Put these changes on the disk, those that are not there yet: entries come again after a crash.

        OSError: nothing is said of how much of it is there; call it again with the same entries.
        """
        if not self._open:
            self.open()
        new = [entry for entry in entries if (entry.writer, entry.sequence, entry.wall_ns) not in self._known]
        if not new:
            return
        seal, number, text = self._seal, self._number, b""
        for entry in new:
            number += 1
            body = _body(number, entry)
            seal = _sealed(seal, body)
            text += seal.encode() + b" " + body + b"\n"
        self._open = False  # until all of it is there: a failure begins with what the file then says
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _keep_head(self.path, number, seal)
        self._seal, self._number = seal, number
        self._known.update((entry.writer, entry.sequence, entry.wall_ns) for entry in new)
        self._open = True

    def _set_aside(self) -> None:
        stamp = f"damaged-{time.time_ns()}"
        for path in (self.path, _head_path(self.path)):
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f"{path.name}.{stamp}"))


def _own(name: str, facts: dict[str, str | int | float | bool]) -> Entry:
    now_ns = time.time_ns()
    return Entry(
        writer="office", sequence=0, wall_ns=now_ns, mono_ns=time.monotonic_ns(), body=Event(name=name, facts=facts)
    )


def _body(number: int, entry: Entry) -> bytes:
    event = entry.body
    assert isinstance(event, Event)  # noqa: S101 - whoever fills the list looks at the event's name
    who = next((str(event.facts[key]) for key in _WHO if event.facts.get(key)), entry.writer)
    fields = {
        "n": number,
        "at": entry.wall_ns,
        "who": who,
        "what": event.name,
        "source": entry.writer,
        "sequence": entry.sequence,
        "facts": event.facts,
    }
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode()


def _sealed(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()


def _lines(raw: bytes) -> tuple[list[Line], int]:
    """The lines up to the first that is not what was written, and where that begins."""
    found: list[Line] = []
    seal, at = _BEGIN, 0
    while (end := raw.find(b"\n", at)) >= 0:
        body = raw[at + _SEAL + 1 : end]
        seal = _sealed(seal, body)
        if raw[at : at + _SEAL + 1] != seal.encode() + b" ":
            break
        found.append(Line(number=len(found) + 1, seal=seal, fields=json.loads(body)))
        at = end + 1
    return found, at


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + _HEAD_SUFFIX)


def _head(path: Path) -> tuple[int, str]:
    """How far the file reached at the last write that was finished, and its seal there."""
    try:
        number, seal = _head_path(path).read_text().split()
        return int(number), seal
    except FileNotFoundError:
        return 0, _BEGIN
    except ValueError as exc:
        raise DamagedTrailError(f"{_head_path(path)} is not what was written") from exc


def _keep_head(path: Path, number: int, seal: str) -> None:
    head = _head_path(path)
    part = head.with_name(f".{head.name}.part")
    with part.open("w") as file:
        file.write(f"{number} {seal}\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(head)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(descriptor: int, text: bytes) -> None:
    while text:
        text = text[os.write(descriptor, text) :]
