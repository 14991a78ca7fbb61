"""`edgeqc check`: can this configuration run?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeqc.cli.console import emit, talk, tell
from edgeqc.cli.exits import Exit, code_of, say
from edgeqc.errors import EdgeqcError, PackageError, SettingsError

if TYPE_CHECKING:
    from edgeqc.inference.package import Package
    from edgeqc.settings import RecipeSettings, Settings, StationSettings

FLIGHT_LIMIT: Final = 4
"""Parts between camera and gate at a time: more is a typo more often than a long conveyor."""


def check(
    file: Annotated[Path, typer.Argument(help="The line's configuration.")],
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    connect: Annotated[bool, typer.Option("--connect", help="Also reach every camera, PLC and broker.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, edgeqc.check/1.")] = False,
) -> None:
    """Check a configuration and its engine packages without starting anything; all faults are told at once."""
    from edgeqc import loading  # noqa: PLC0415 - heavy

    report: dict[str, Any] = {"file": str(file), "ok": False, "faults": [], "warnings": [], "peers": []}
    error: EdgeqcError | None = None
    try:
        settings = loading.load(file)
        report["digest"] = loading.digest(settings)
        report["warnings"] = [*warnings(settings)]
        report["packages"] = _packages(settings, report["warnings"])
        if connect:
            from edgeqc.cli.peers import reach  # noqa: PLC0415 - heavy

            report["peers"] = [finding.as_dict() for finding in reach(settings)]
    except SettingsError as caught:
        error, report["faults"] = caught, caught.faults
    except PackageError as caught:
        error, report["faults"] = caught, str(caught).splitlines()
    unreachable = any(peer["state"] == "fail" for peer in report["peers"])
    report["ok"] = error is None and not unreachable and not (strict and report["warnings"])
    if as_json:
        emit("edgeqc.check/1", report)
    else:
        _tell(report, error)
    if error is not None:
        raise typer.Exit(code_of(error))
    raise typer.Exit(Exit.OK if report["ok"] else Exit.UNREACHABLE if unreachable else Exit.FAILED)


def warnings(settings: Settings) -> list[str]:
    """What is allowed and still seldom meant, as `path: what`."""
    from edgeqc import loading  # noqa: PLC0415 - heavy

    said: list[str] = []
    for index, station in enumerate(settings.stations):
        said += [f"stations[{index}].{warning}" for warning in _of_station(station)]
        of_plc = _of_endpoint(station.plc, f"--station {station.name}")
        said += [f"stations[{index}].plc.{warning}" for warning in of_plc]
    for index, source in enumerate(settings.tags):
        said += [f"tags[{index}].{warning}" for warning in _of_endpoint(source, f"--source {source.name}")]
    if settings.engines.unsigned == "allow":
        said.append("engines.unsigned: allow: anybody who can write an engine folder decides what passes")
    mqtt = settings.mqtt
    if mqtt is not None and mqtt.password is not None and mqtt.tls is None:
        said.append("mqtt.tls: is missing: the password crosses the network as clear text")
    try:
        loading.resolved(settings)
    except SettingsError as error:
        said += error.faults
    return said


def _of_station(station: StationSettings) -> list[str]:
    said: list[str] = []
    for index, camera in enumerate(station.all_cameras):
        place = "camera" if station.camera is not None else f"cameras[{index}]"
        if camera.type == "replay" and not camera.folder.is_dir():
            said.append(f"{place}.folder: {camera.folder} is no folder")
        if camera.type == "opencv" and not (camera.streams or camera.is_device or Path(camera.source).is_file()):
            said.append(f"{place}.source: {camera.source} is no file")
    if station.budget_ms > station.takt_ms * FLIGHT_LIMIT:
        said.append(f"budget_ms: {station.budget_ms:g} is over {FLIGHT_LIMIT} takts of {station.takt_ms:g} ms")
    if station.plc.type == "none":
        said.append("plc: none: verdicts reach no reject gate")
    if station.plc.type == "modbus" and station.plc.registers.overlap:
        said.append(
            "plc.registers: trigger and result overlap: right for a PLC that reads and writes separate areas, in any other "
            "each result is written over the trigger"
        )
    return said


def _of_endpoint(peer: object, which: str) -> list[str]:
    """What weakens an OPC UA channel, or keeps it closed; nothing for other peers."""
    from edgeqc.settings import OpcuaEndpoint, OpcuaSecurity  # noqa: PLC0415 - heavy

    if not isinstance(peer, OpcuaEndpoint):
        return []
    if peer.security is OpcuaSecurity.NONE:
        return ["security: none: anyone on the network can forge what it says"]
    if peer.server_certificate is None and peer.trust is None:
        return [
            f"server_certificate: is missing, nothing is connected to: edgeqc test plc FILE {which} --save-certificate FILE.der"
        ]
    return []


def _packages(settings: Settings, warnings: list[str]) -> list[dict[str, str]]:
    """The packages of all recipes and machines; PackageError says what none of them may do, one line each."""
    from edgeqc.inference.choice import judging  # noqa: PLC0415 - heavy
    from edgeqc.inference.package import load_package  # noqa: PLC0415 - heavy
    from edgeqc.inference.trust import trust_of  # noqa: PLC0415 - heavy

    trust = trust_of(settings.engines)
    found: dict[str, dict[str, str]] = {}
    refused: dict[str, None] = {}
    for recipe in [recipe for station in settings.stations for recipe in station.engines]:
        try:
            package = load_package(recipe.engine, trust=trust)
            judging(package, recipe)
        except PackageError as error:
            refused[str(error)] = None
            continue
        if warning := _other_region(recipe, package):
            warnings.append(warning)
        found[str(package.folder)] = {
            "folder": str(package.folder),
            "name": package.name,
            "sha256": package.digest.hex(),
            "vouched": package.vouched,
        }
    if refused:
        raise PackageError("\n".join(refused))
    return [found[folder] for folder in sorted(found)] + _tag_packages(settings)


def _other_region(recipe: RecipeSettings, package: Package) -> str:
    """Scores and threshold are of the region that was trained on; empty: it is the recipe's, or nobody noted it."""
    trained, asked = package.manifest.training.region, recipe.region
    if trained is None or asked.mode == "fixed":  # a box that training's pictures may have been cut to
        return ""
    keys = ("mode", "background", "contrast", "margin_px") if trained.mode == asked.mode == "locate" else ("mode",)
    other = [key for key in keys if getattr(trained, key) != getattr(asked, key)]
    told = ", ".join(f"{key} {getattr(asked, key)} (trained: {getattr(trained, key)})" for key in other)
    return (
        f"recipe {recipe.name}: region: {package.name} was trained and calibrated with another: {told}" if told else ""
    )


def _tag_packages(settings: Settings) -> list[dict[str, str]]:
    """The machines' models, each held against the tags that the line has."""
    if not settings.machines:
        return []
    from edgeqc.inference.tagpackage import load_tag_package  # noqa: PLC0415 - heavy
    from edgeqc.records import NS_PER_MS  # noqa: PLC0415 - brings numpy
    from edgeqc.watch.machines import places  # noqa: PLC0415 - heavy

    names = [tag.name for source in settings.tags for tag in source.tags]
    columns = {name: place for place, name in enumerate(names)}
    found = {}
    for machine in settings.machines:
        package = load_tag_package(machine.model)
        places(machine, package, columns, period_ns=round(settings.grid.period_ms * NS_PER_MS))
        found[str(package.folder)] = {
            "folder": str(package.folder),
            "name": package.name,
            "sha256": package.manifest.files.calibration,
            "vouched": "a tag model, which is not signed: it decides nothing about parts",
        }
    return list(found.values())


def _tell(report: dict[str, Any], error: EdgeqcError | None) -> None:
    for warning in report["warnings"]:
        talk(f"warning: {warning}", style="yellow")
    if error is not None:
        say(error)
        return
    for package in report["packages"]:
        tell(f"{package['folder']}: {package['name']}, sha256 {package['sha256'][:16]}, {package['vouched']}")
    for peer in report["peers"]:
        tell(f"{peer['name']}: {peer['state']}: {peer['found']}")
    tell(f"{report['file']}: {'valid' if report['ok'] else 'not as it should be'}, digest {report['digest'][:16]}")
