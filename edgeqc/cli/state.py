"""Which state directory a reading command means."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

import typer

from edgeqc import loading

LOCK: Final = "lock"


def state_of(file: Path | None, state: Path | None) -> Path:
    """The directory given, else the configuration's, else what `edgeqc run` here would use."""
    if state is None:
        state = (loading.default_paths() if file is None else loading.paths(loading.load(file)))[0]
    elif not state.is_dir():
        raise typer.BadParameter(f"{state} is no directory", param_hint="--state")
    if state.is_dir() and not os.access(state, os.R_OK | os.X_OK):
        owner = state.owner()
        raise PermissionError(
            errno.EACCES, f"is {owner}'s: run this as {owner} (sudo -u {owner} edgeqc ...)", str(state)
        )
    return state


def in_use(state_dir: Path) -> bool:
    """Does a daemon hold this directory now?"""
    try:
        with (state_dir / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):  # held, or another user's: hands off either way
        return True
    return False
