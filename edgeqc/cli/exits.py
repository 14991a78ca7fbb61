"""How a command ends: one exit code per kind of end, and what is said about it."""

from __future__ import annotations

from enum import IntEnum

from edgeqc.cli.console import talk
from edgeqc.errors import AlreadyRunningError, PackageError, PeerError, PlanError, SettingsError


class Exit(IntEnum):
    """Exit codes. systemd/edgeqc.service does not restart after SETTINGS, PACKAGE and PERMISSION."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SETTINGS = 3
    UNREACHABLE = 4
    PACKAGE = 5
    GATE = 6
    PERMISSION = 7
    RUNNING = 8
    INTERRUPTED = 130


def code_of(error: Exception) -> Exit:
    """Which exit code an error gets."""
    match error:
        case SettingsError():
            return Exit.SETTINGS
        case PackageError():
            return Exit.PACKAGE
        case PeerError():
            return Exit.UNREACHABLE
        case AlreadyRunningError():
            return Exit.RUNNING
        case PermissionError():
            return Exit.PERMISSION
        case _:
            return Exit.FAILED


def say(error: Exception) -> None:
    """Tell what was wrong, where, and what to do, on stderr and without a traceback."""
    match error:
        case SettingsError():
            for fault in error.faults:
                talk(fault)
            number = len(error.faults)
            talk(
                f"{number} fault{'s' if number > 1 else ''} in the configuration; nothing was started.",
                style="bold red",
            )
        case PlanError():
            talk(str(error), style="bold red")
        case PackageError():
            talk(f"engine package: {error}", style="bold red")
            if "edgeqc engine" not in str(error):  # it says by itself what to do
                talk("Copy the package again from where it was made, or name another one in recipe.engine.")
        case PeerError():
            talk(str(error), style="bold red")
            talk(
                "Is it switched on, and is the address right? `edgeqc doctor FILE` looks at cables, rights and buffers."
            )
        case AlreadyRunningError():
            talk(str(error), style="bold red")
            talk("Stop that one first (systemctl stop edgeqc), or give this one another state_dir.")
        case PermissionError():
            talk(f"{error.filename or error}: no permission", style="bold red")
            talk("Run it as the user the daemon runs as: sudo -u edgeqc edgeqc ...")
        case OSError() if error.filename is not None and error.strerror:
            talk(f"{error.filename}: {error.strerror}", style="bold red")
        case _:
            talk(str(error), style="bold red")
