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
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
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
KNOWN: Final = 4096
"""Changes that are known when they come again. After a crash those of one transaction do; after the archive was set aside all
that the journals still hold: of those, changes before the newest 4096 are entered twice, at one changeover a minute after 3 days."""
_LONGEST: Final = 1 << 20
"""Bytes of a line. A journal's record has 512; what is longer is no line of ours."""
_Key = tuple[str, int, int]
"""Whose change: its journal, its number in it and its UTC ns."""
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
    end: int
    """Bytes of the file up to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How far a trail reaches that is as it was written."""

    lines: int
    seal: str
    """Of the last line; empty where there is none."""
    unfinished_bytes: int
    """Of a write behind the lines that never ended: what a crash may leave."""


def read(path: Path) -> Iterator[Line]:
    """Each line once it is verified; only at the end is it known whether the trail reaches as far as it must.

    Raises:
        DamagedTrailError: a line was changed, lost, added or swapped, or the file is shorter than it was.
        OSError: it cannot be read.
    """
    number, seal = _head(path)
    count = 0
    for line in _lines(path):
        if line.number == number and line.seal != seal:
            raise DamagedTrailError(f"{path}: line {number} does not have the seal that was kept beside it")
        count = line.number
        yield line
    if count < number:
        raise DamagedTrailError(f"{path}: line {count + 1} of {number} is not what was written, or not where it was")


def verify(path: Path, look: Callable[[Line], object] = lambda _line: None) -> Extent:
    """Read it to the end; each line is given to `look` and forgotten. Raises what `read` does."""
    size = path.stat().st_size if path.exists() else 0
    lines, seal, end = 0, "", 0
    for line in read(path):
        look(line)
        lines, seal, end = line.number, line.seal, line.end
    return Extent(lines=lines, seal=seal, unfinished_bytes=max(0, size - end))  # it may have grown since


class AuditTrail:
    """The one writer. Not thread-safe: the archive's thread has it."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened before the first `write`."""
        self.path = path
        self._seal = _BEGIN
        self._number = 0
        self._known: OrderedDict[_Key, None] = OrderedDict()
        """The newest KNOWN changes, oldest first."""
        self._open = False

    def open(self) -> str | None:
        """Verify what is there and go on behind it; what was damaged, where it was: that file is set aside.

        OSError where the disk does not do it; try again.
        """
        damage = None
        self._known.clear()
        try:
            extent = verify(self.path, self._remember_line)
        except DamagedTrailError as exc:
            damage = str(exc)
            self._set_aside()
            self._known.clear()
            extent = Extent(lines=0, seal="", unfinished_bytes=0)
        if extent.unfinished_bytes:
            with self.path.open("rb+") as file:
                file.truncate(self.path.stat().st_size - extent.unfinished_bytes)
        self._number = extent.lines
        self._seal = extent.seal or _BEGIN
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
        new = [entry for entry in entries if _key(entry) not in self._known]
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
        for entry in new:
            self._remember(_key(entry))
        self._open = True

    def _remember_line(self, line: Line) -> None:
        fields = line.fields
        self._remember((sys.intern(fields["source"]), fields["sequence"], fields["at"]))

    def _remember(self, key: _Key) -> None:
        self._known[key] = None
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def _set_aside(self) -> None:
        stamp = f"damaged-{time.time_ns()}"
        for path in (self.path, _head_path(self.path)):
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f"{path.name}.{stamp}"))


def _key(entry: Entry) -> _Key:
    return entry.writer, entry.sequence, entry.wall_ns


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


def _lines(path: Path) -> Iterator[Line]:
    """The lines up to the first that is not what was written."""
    seal, number, end = _BEGIN, 0, 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        while (raw := file.readline(_LONGEST)).endswith(b"\n"):
            body = raw[_SEAL + 1 : -1]
            seal = _sealed(seal, body)
            if raw[: _SEAL + 1] != seal.encode() + b" ":
                return
            number, end = number + 1, end + len(raw)
            yield Line(number=number, seal=seal, fields=json.loads(body), end=end)


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
