"""From a YAML file to `Settings`, whole or not at all, and from there to the worker processes.

`load` tells every fault at once as `file:line:col: path: what, limit`. Secrets stay references (`secret://name`)
until `resolved` fills them in, in the process that needs them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgeqc.errors import SettingsError
from edgeqc.loading import document, faults, secrets, variables
from edgeqc.settings import Settings

SIZE_LIMIT: Final = 1 << 20
"""Bytes of a configuration file: 1000 tags are 0.1 MiB."""
INSTALLED: Final = (Path("/var/lib/edgeqc"), Path("/run/edgeqc"))
"""State and run directory of the service (systemd/edgeqc.service): where it is installed, a command that is typed by hand
means that daemon."""
_SHM: Final = Path("/dev/shm")  # noqa: S108 - the kernel's tmpfs; the folder in it is made with mode 0700 by its owner
_FILES: Final = frozenset({"server_certificate", "certificate", "private_key", "ca", "file"})
"""Paths that must be there before the daemon starts; a camera's folder and an engine are told by those who open them."""
_PATHS: Final = frozenset({*_FILES, "engine", "folder", "state_dir", "run_dir", "trust", "clients", "model"})


def load(
    path: Path, *, overrides: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read, check and resolve a configuration file; SettingsError has all its faults.

    `overrides` maps `key__key` (as after EDGEQC__) to text and wins over the environment, which wins over the file.
    Relative paths in it begin at the file's folder; what is not there is looked for in the current directory.
    """
    environ = os.environ if environ is None else environ
    text = _read(path)
    found = document.parse(text)
    said = [(fault.mark, fault.path, fault.what) for fault in found.faults]
    if found.root is None:
        raise SettingsError([_line(path, mark, at, what) for mark, at, what in said])
    told: list[tuple[document.Path, str]] = []
    data: dict[str, Any] = variables.expand(found.plain(), environ, (), told)
    names = {name: value for name, value in environ.items() if name.startswith(variables.PREFIX)}
    origin = variables.override(data, {**names, **(overrides or {})}, told)
    settings, wrong = faults.validate(data)
    if settings is not None:
        data = json.loads(settings.model_dump_json(by_alias=True))
        told.extend(_anchor(data, path.absolute().parent, ()))
    said += [(found.locate(at, key=key), at, what) for at, what, key in wrong if not _told(at, found.faults)]
    said += [(found.locate(at), at, what) for at, what in told]
    if said:
        said.sort(key=lambda fault: (fault[0].line, fault[0].column) if fault[0] else (0, 0))
        raise SettingsError([_line(origin.get(at, path), mark, at, what) for mark, at, what in said])
    return Settings.model_validate(data)


def resolved(
    settings: Settings,
    *,
    within: document.Path = (),
    environ: Mapping[str, str] | None = None,
    folder: Path = secrets.FOLDER,
) -> Settings:
    """The same settings with the secrets themselves: for the process that opens the peer. SettingsError if any lacks.

    With `within`, e.g. ("stations", 0, "plc"), only those at or below that place.
    """
    data = json.loads(dump(settings))
    environ = os.environ if environ is None else environ
    return Settings.model_validate(secrets.fill(data, environ=environ, folder=folder, within=within))


def dump(settings: Settings) -> bytes:
    """Settings as JSON for a worker process, secrets still as references."""
    return settings.model_dump_json(by_alias=True).encode()


def restore(raw: bytes) -> Settings:
    """What `dump` made."""
    return Settings.model_validate_json(raw)


def digest(settings: Settings) -> str:
    """SHA-256 (hex) of the configuration in force, defaults and overrides included, secrets as references."""
    return hashlib.sha256(dump(settings)).hexdigest()


def paths(settings: Settings, *, environ: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """(state directory, run directory), absolute; neither is made here."""
    return _paths(settings.state_dir, settings.run_dir, os.environ if environ is None else environ)


def default_paths(*, environ: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """What `paths` gives where the configuration names neither."""
    return _paths(None, None, os.environ if environ is None else environ)


def _paths(state_dir: Path | None, run_dir: Path | None, environ: Mapping[str, str]) -> tuple[Path, Path]:
    of_service, of_its_runs = INSTALLED
    here = of_service if of_service.is_dir() else Path("state")
    state_dir = (state_dir or _systemd("STATE_DIRECTORY", environ) or here).absolute()
    own = hashlib.sha256(bytes(state_dir)).hexdigest()[:8]
    shared = of_its_runs if state_dir == of_service and of_its_runs.is_dir() else _SHM / f"edgeqc-{os.getuid()}-{own}"
    run_dir = run_dir or _systemd("RUNTIME_DIRECTORY", environ) or shared
    return state_dir, run_dir.absolute()


def _systemd(variable: str, environ: Mapping[str, str]) -> Path | None:
    first = environ.get(variable, "").split(":")[0]
    return Path(first) if first else None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise SettingsError([f"{path}: {error.strerror}"]) from error
    if len(raw) > SIZE_LIMIT:
        raise SettingsError([f"{path}: over {SIZE_LIMIT} bytes, the limit of a configuration"])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SettingsError([f"{path}:{line}:1: byte {raw[error.start]:#04x} is not UTF-8"]) from error


def _line(source: Path | str, mark: document.Mark | None, at: document.Path, what: str) -> str:
    place = f"{source}:{mark.line}:{mark.column}" if mark and isinstance(source, Path) else str(source)
    return f"{place}: {faults.text(at)}: {what}" if at else f"{place}: {what}"


def _told(at: document.Path, already: list[document.Fault]) -> bool:
    return any(fault.path == at for fault in already)


def _is_film(camera: dict[str, Any]) -> bool:
    """Is this an opencv camera whose `source` is a path?"""
    return camera.get("type") == "opencv" and "://" not in camera["source"]


def _anchor(data: Any, folder: Path, path: document.Path) -> list[tuple[document.Path, str]]:
    """Make the paths in plain settings absolute; tells of files that are not there."""
    missing: list[tuple[document.Path, str]] = []
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        if isinstance(value, (dict, list)):
            missing += _anchor(value, folder, (*path, key))
        elif isinstance(value, str) and (key in _PATHS or (key == "source" and _is_film(data))):
            here, there = folder / value, Path.cwd() / value
            # os.path: what may not be looked at counts as not there, where Path raises
            data[key] = str(there if not os.path.exists(here) and os.path.exists(there) else here)  # noqa: PTH110
            if key in _FILES and not os.path.isfile(data[key]):  # noqa: PTH113
                missing.append(((*path, key), f"{value} is no file in {folder} or the current directory"))
    return missing
