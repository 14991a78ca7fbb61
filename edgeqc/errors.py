"""What can go wrong, split by what the caller does next."""

from __future__ import annotations


class EdgeqcError(Exception):
    """Root of everything edgeqc raises on purpose."""


class SettingsError(EdgeqcError):
    """The configuration cannot run: say all faults and stop (exit code 3).

    Attributes:
        faults: one line per fault, `file:line:col: path: what, limit`.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class PackageError(EdgeqcError):
    """A model package is missing, damaged or does not fit: say so and stop (exit code 5)."""


class PeerError(EdgeqcError):
    """A camera, PLC, tag server or broker does not answer as it must: count, reconnect.

    Attributes:
        peer: who, as the configuration names it.
        reason: what was seen, cut at 255 characters because the peer may have written it.
    """

    def __init__(self, peer: str, reason: str) -> None:
        self.peer = peer
        self.reason = reason[:255]
        super().__init__(f"{peer}: {self.reason}")


class PeerTimeoutError(PeerError, TimeoutError):
    """The peer did not answer within the time it was given."""


class EngineError(EdgeqcError):
    """The engine failed: the part gets the fail-safe verdict; three in a row end the station process."""


class EngineLostError(EngineError):
    """The engine's device is lost to this process: the part gets the fail-safe verdict, and the process ends at once."""


class PlanError(PackageError):
    """The plan that the box built from a package is missing, damaged or of another make: say so, how to build it, stop."""


class JournalError(EdgeqcError):
    """The journal can take no more records (disk full, budget used up): nothing may pass until it can."""


class AlreadyRunningError(EdgeqcError):
    """Another daemon holds this state directory (exit code 8)."""
