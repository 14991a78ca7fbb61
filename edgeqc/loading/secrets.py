"""Where `secret://name` comes from. A secret is never written back, logged or shown."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgeqc.errors import SettingsError
from edgeqc.loading.document import Path as Place
from edgeqc.loading.faults import text

SCHEME: Final = "secret://"
FOLDER: Final = Path("/etc/edgeqc/secrets")
SIZE_LIMIT: Final = 64 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def fill(data: Any, *, environ: Mapping[str, str], folder: Path = FOLDER, within: Place = ()) -> Any:
    """Plain data with every `secret://name` at or below `within` replaced; SettingsError tells of all that are missing."""
    faults: list[str] = []

    def filled(data: Any, place: Place) -> Any:
        match data:
            case dict():
                return {key: filled(value, (*place, key)) for key, value in data.items()}
            case list():
                return [filled(item, (*place, index)) for index, item in enumerate(data)]
            case str() if data.startswith(SCHEME) and place[: len(within)] == within:
                try:
                    return secret(data.removeprefix(SCHEME), environ=environ, folder=folder)
                except LookupError as error:
                    faults.append(f"{text(place)}: {error.args[0]}")
                    return data
            case _:
                return data

    whole = filled(data, ())
    if faults:
        raise SettingsError(faults)
    return whole


def secret(name: str, *, environ: Mapping[str, str] | None = None, folder: Path = FOLDER) -> str:
    """The secret `name`: systemd credential, then a 0600 file, then EDGEQC_SECRET_NAME. LookupError says why not."""
    environ = os.environ if environ is None else environ
    if not _NAME.fullmatch(name):
        raise LookupError(f"{SCHEME}{name[:64]}: letters, digits, dot, - and _ only")
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (path := Path(credentials) / name).is_file():
        return _read(path)
    path = folder / name
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise LookupError(f"{SCHEME}{name}: {path}: {error.strerror}") from error
    else:
        if mode & 0o077:
            raise LookupError(f"{SCHEME}{name}: {path} has mode {mode:04o}, 0600 is needed: chmod 600 {path}")
        return _read(path)
    variable = "EDGEQC_SECRET_" + re.sub(r"[.-]", "_", name).upper()
    if variable in environ:
        return environ[variable]
    raise LookupError(f"{SCHEME}{name} is neither a systemd credential, nor {path}, nor {variable}")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise LookupError(f"{path}: {error.strerror}") from error
    if len(raw) > SIZE_LIMIT:
        raise LookupError(f"{path}: over {SIZE_LIMIT} bytes")
    try:
        return raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise LookupError(f"{path}: not UTF-8") from None  # the error would quote the bytes
