"""Which certificates of the OPC UA connections and of our own OPC UA server end soon: looked at by the office, which alerts people."""

from __future__ import annotations

from pathlib import Path

from edgeqc.errors import PeerError
from edgeqc.settings import OpcuaEndpoint, OpcuaSecurity, Settings


def expiring(settings: Settings, state_dir: Path) -> str:
    """What to tell of certificates that end within `WARN_DAYS` or have ended; empty where all is well.

    A file that cannot be read is the connection's own fault to tell.
    """
    paths: dict[Path, None] = {}
    peers = [each for each in (*(station.plc for station in settings.stations), *settings.tags)
             if isinstance(each, OpcuaEndpoint)]  # fmt: skip
    server = [] if settings.server.opcua is None else [settings.server.opcua]
    for each in (*peers, *server):
        if each.security is OpcuaSecurity.NONE:
            continue
        paths[each.certificate or state_dir / "pki" / "own.der"] = None
        if isinstance(each, OpcuaEndpoint) and each.server_certificate is not None:
            paths[each.server_certificate] = None
    if not paths:
        return ""
    from edgeqc.plc.certificates import WARN_DAYS, days_left  # noqa: PLC0415 - cryptography, only where it is used

    said: list[str] = []
    for path in paths:
        try:
            days = days_left(path, "office")
        except PeerError:
            continue
        if days < WARN_DAYS:
            said.append(f"{path.name} has expired" if days < 0 else f"{path.name} expires in {days} days")
    return "; ".join(said)
