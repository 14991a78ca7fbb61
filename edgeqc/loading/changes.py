"""What a configuration changes against the one that ran before it in this state directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
from pathlib import Path
from typing import Any, Final

from edgeqc.loading import dump
from edgeqc.loading.faults import parsed, shown
from edgeqc.records import Event
from edgeqc.settings import Settings

FILE_NAME: Final = "configuration.json"
_NOBODY: Final = (1 << 32) - 1
"""Linux's login uid of what no person started."""
_CHARS: Final = 240
"""Of the changes in an event: a journal record has room for no more."""
_VALUE_CHARS: Final = 40
"""Of a value; of a longer one it is only said that it changed."""


def change(settings: Settings, state_dir: Path) -> Event | None:
    """Tell what these settings change, and who started them; None where they are those of the last run.

    Digests are SHA-256, 16 hex digits; keys are dotted paths, with their values before and after, but for secrets and long
    ones. What ran before is known by `keep`.
    """
    new = dump(settings)
    try:
        old = (state_dir / FILE_NAME).read_bytes()
    except OSError:
        old = b""
    if old == new:
        return None
    before: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        before = _flat(json.loads(old))
    after = _flat(json.loads(new))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)) if before else []
    return Event(
        name="configuration_changed",
        facts={
            "by": _login(),
            "old": hashlib.sha256(old).hexdigest()[:16] if old else "",
            "new": hashlib.sha256(new).hexdigest()[:16],
            "changed": len(keys),
            "keys": _cut([_changed(key, before, after) for key in keys]),
        },
    )


def keep(settings: Settings, state_dir: Path) -> None:
    """These are the settings that ran last; OSError where the disk does not keep it: the change is then told again."""
    part = state_dir / f".{FILE_NAME}.part"
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(dump(settings))
        file.flush()
        os.fsync(file.fileno())
    part.replace(state_dir / FILE_NAME)


def _flat(value: object, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        parts = [(f"{at}.{key}" if at else str(key), one) for key, one in value.items()]
    elif isinstance(value, list):
        parts = [(f"{at}[{index}]", one) for index, one in enumerate(value)]
    else:
        return {at: value}
    return {key: found for path, one in parts for key, found in _flat(one, path).items()}


def _changed(key: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    old, new = (shown(side[key], parsed(key)) if key in side else "nothing" for side in (before, after))
    return key if old == new or max(len(old), len(new)) > _VALUE_CHARS else f"{key} {old} -> {new}"


def _cut(texts: list[str]) -> str:
    told: list[str] = []
    for text in texts:
        if sum(len(one) + 2 for one in told) + len(text) > _CHARS:
            return ", ".join([*told, f"and {len(texts) - len(told)} more"])
        told.append(text)
    return ", ".join(told)


def _login() -> str:
    """Who logged in and started this, also by sudo; the process's own user where nobody did."""
    uid = os.getuid()
    with contextlib.suppress(OSError, ValueError):
        login = int(Path("/proc/self/loginuid").read_text())
        uid = uid if login == _NOBODY else login
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
