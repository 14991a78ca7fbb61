"""`edgeqc test`: reach one peer and show what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from edgeqc.cli.console import emit, talk, tell
from edgeqc.cli.exits import Exit
from edgeqc.errors import AlreadyRunningError

if TYPE_CHECKING:
    from edgeqc.settings import Settings, StationSettings

File = Annotated[Path, typer.Argument(help="The line's configuration.")]
Station = Annotated[str | None, typer.Option("--station", help="Which one; default: the first.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]

_IMAGES: Final = (".png", ".bmp", ".tif", ".jpg")


def application() -> typer.Typer:
    """The commands under `test`."""
    app = typer.Typer(
        help="Reach one peer and show what it says. The daemon must not run meanwhile.", no_args_is_help=True
    )
    app.command("camera")(camera)
    app.command("plc")(plc)
    app.command("mqtt")(mqtt)
    return app


def camera(  # noqa: PLR0917 - each is a switch of the command
    file: File,
    station: Station = None,
    frames: Annotated[int, typer.Option(min=1, max=10_000, help="How many to take.")] = 20,
    name: Annotated[
        str | None, typer.Option("--camera", help="Which of the station's cameras; needed where there are several.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the last good frame to this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Take some frames: size, status, counter, pace and brightness."""
    from edgeqc.cli.peers import look_at_camera  # noqa: PLC0415 - heavy

    if save is not None and save.suffix.lower() not in _IMAGES:
        raise typer.BadParameter(f"{save} ends in none of {', '.join(_IMAGES)}", param_hint="--save")
    _, chosen = _station(file, station, "cameras")
    names = [camera.name for camera in chosen.all_cameras]
    if (name is None and len(names) > 1) or (name is not None and name not in names):
        raise typer.BadParameter(f"one of {', '.join(names)}", param_hint="--camera")
    seen = chosen.all_cameras[names.index(name) if name is not None else 0]
    report = look_at_camera(chosen, seen, frames=frames)
    good = report.image is not None
    if save is not None and report.image is not None:
        import cv2  # noqa: PLC0415 - heavy

        if not cv2.imwrite(str(save), report.image):
            raise OSError(f"{save}: cannot be written as an image")
    if as_json:
        emit("edgeqc.test.camera/1", {**report.as_dict(), "ok": good})
    else:
        told = {
            "frames": report.frames,
            "size": report.size or "-",
            "frame ids": f"{report.first_id}..{report.last_id}",
        }
        _tell(
            f"camera {chosen.name}/{report.camera} ({report.kind})",
            told | report.as_dict(),
            skip=("frames", "size", "kind", "station", "camera"),
        )
        if save is not None and good:
            talk(f"Wrote {save}.")
    if not good:
        talk(f"No good frame among {report.frames}: {', '.join(report.status)}.", style="bold red")
        raise typer.Exit(Exit.FAILED)


def plc(  # noqa: PLR0917 - each is a switch of the command
    file: File,
    station: Station = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Instead: an OPC UA source of tags; its certificate is shown.")
    ] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Also write result blocks (no result, not ready, a heartbeat that moves) for 5 s, and EJECT off.",
        ),
    ] = False,
    save_certificate: Annotated[
        Path | None, typer.Option("--save-certificate", help="OPC UA: write the certificate that the server shows.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the trigger block, and the gate's inputs where edgeqc opens one.

    For OPC UA, show the server's certificate: pin it once it is the one on the PLC.
    """
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.cli.peers import look_at_plc  # noqa: PLC0415 - heavy
    from edgeqc.cli.state import in_use  # noqa: PLC0415 - heavy
    from edgeqc.logs import configure  # noqa: PLC0415 - heavy

    configure(process="edgeqc")  # what the link logs goes to stderr: stdout is for the report
    if source is not None:
        _certificate(_source(file, source), source, save_certificate, as_json=as_json, alone=True)
        return
    settings, chosen = _station(file, station, "plc")
    if chosen.plc.type == "none":
        raise typer.BadParameter(f"{chosen.name} has no PLC (plc: {{type: none}})", param_hint="--station")
    if write and in_use(loading.paths(settings)[0]):
        raise AlreadyRunningError(f"{loading.paths(settings)[0]}: edgeqc runs here, and writes these registers itself")
    unpinned = getattr(chosen.plc, "server_certificate", None) is None and save_certificate is not None
    digits = _certificate(chosen.plc, chosen.name, save_certificate, as_json=as_json, alone=unpinned)
    if digits is not None and unpinned:
        return
    report = look_at_plc(chosen, state_dir=loading.paths(settings)[0], write=write)
    fields = {name: getattr(report, name) for name in report.__dataclass_fields__}
    if as_json:
        emit("edgeqc.test.plc/1", {**fields, "certificate_sha256": digits, "ok": True})
    else:
        _tell(f"plc {chosen.name} ({report.kind})", fields, skip=("station", "kind"))


def _certificate(peer: object, name: str, save: Path | None, *, as_json: bool, alone: bool) -> str | None:
    """Show what an OPC UA server shows, and save it; its SHA-256. `alone`: nothing else is told of this server."""
    from edgeqc.cli.peers import certificate_of  # noqa: PLC0415 - heavy

    shown = certificate_of(peer, name)
    if shown is None:
        return None
    content, digits = shown
    if not as_json:
        tell(f"certificate SHA-256: {digits}")
    elif alone:
        emit("edgeqc.test.plc/1", {"certificate_sha256": digits, "ok": True})
    if save is not None:
        save.write_bytes(content)
        talk(f"Wrote {save}. It came over an unprotected channel: compare the SHA-256 with the one on the PLC.")
        talk(f"Then pin it: server_certificate: {save}")
    return digits


def _source(file: Path, name: str) -> object:
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.settings import OpcuaTagSource  # noqa: PLC0415 - heavy

    found = {each.name: each for each in loading.load(file).tags if isinstance(each, OpcuaTagSource)}
    if name not in found:
        known = ", ".join(found) or "there is none"
        raise typer.BadParameter(f"{name} is no source of type: opcua ({known})", param_hint="--source")
    return found[name]


def mqtt(file: File, as_json: Json = False) -> None:
    """Open a session, publish one message to {prefix}/event and read it back where that is allowed."""
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.cli.broker import look_at_broker  # noqa: PLC0415 - heavy

    settings = loading.resolved(loading.load(file), within=("mqtt",))
    if settings.mqtt is None:
        raise typer.BadParameter(f"{file} has no mqtt section", param_hint="FILE")
    report = look_at_broker(settings.mqtt, node=settings.node, publish=True)
    if as_json:
        emit("edgeqc.test.mqtt/1", {**vars(report), "ok": True})
    else:
        _tell(f"broker {report.host}", vars(report), skip=("host",))
        if report.readable is False:
            talk(f"This user may not read {report.topic}; the daemon needs only to write there.")


def _station(file: Path, name: str | None, part: Literal["cameras", "plc"]) -> tuple[Settings, StationSettings]:
    """The configuration and the station, with the secrets of this part of it: who tests a camera needs no other's."""
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.cli.peers import place_of  # noqa: PLC0415 - heavy

    settings = loading.load(file)
    names = [station.name for station in settings.stations]
    if name is not None and name not in names:
        raise typer.BadParameter(f"{name} is none of {', '.join(names)}", param_hint="--station")
    index = names.index(name) if name is not None else 0
    settings = loading.resolved(settings, within=place_of(settings, index, part))
    return settings, settings.stations[index]


def _tell(title: str, fields: dict[str, Any], *, skip: tuple[str, ...]) -> None:
    tell(title)
    for name, value in fields.items():
        if name in skip or value in ({}, None, ""):
            continue
        shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        tell(f"  {name}: {shown}")
