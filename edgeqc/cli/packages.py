"""What `doctor` says of engines: which backends are there, whose packages are trusted, and whether each recipe's may run."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Final

from edgeqc.cli.findings import Finding, State
from edgeqc.errors import PackageError
from edgeqc.inference.choice import judging
from edgeqc.inference.manifest import Backend
from edgeqc.inference.package import load_package
from edgeqc.inference.trust import Trust, trust_of
from edgeqc.settings import EngineSettings, RecipeSettings, Settings

_LIBRARY: Final = {Backend.ONNXRUNTIME: "onnxruntime", Backend.OPENVINO: "openvino", Backend.TENSORRT: "tensorrt"}


def examine(settings: Settings | None) -> Iterator[Finding]:
    """One row for the backends, one for the trust folder, one for each recipe's package."""
    yield _backends(settings)
    engines = settings.engines if settings is not None else EngineSettings()
    try:
        trust = trust_of(engines)
    except PackageError as error:
        yield Finding(
            name="engine trust",
            state=State.FAIL,
            found=str(error),
            limit="keys that only root may change",
            mend=f"chmod -R o-w {engines.trust}, and take away what is no key",
        )
        return
    yield _trusted(engines, trust)
    if settings is not None:
        for station in settings.stations:
            for recipe in station.engines:
                yield _package(f"engine {station.name}/{recipe.name}", recipe, trust)


def _backends(settings: Settings | None) -> Finding:
    found: dict[Backend, str] = {}
    for backend, library in _LIBRARY.items():
        try:
            found[backend] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    named = {recipe.backend for station in settings.stations for recipe in station.engines} if settings else set()
    missing = [backend for backend in Backend if backend in named and backend not in found]
    shown = ", ".join(f"{backend} {version}" for backend, version in found.items())
    mend = "pip install 'edgeqc[openvino]'" if Backend.OPENVINO in missing else ""
    return Finding(
        name="backends",
        state=State.FAIL if missing else State.OK,
        found=f"{shown}; missing: {', '.join(missing)}" if missing else shown,
        limit="those that recipes name",
        mend=mend,
    )


def _trusted(engines: EngineSettings, trust: Trust) -> Finding:
    lax = engines.unsigned == "allow"
    known = ", ".join(sorted(trust.signers.values()))
    return Finding(
        name="engine trust",
        state=State.OK if known and not lax else State.WARN,
        found=(f"{known} in {trust.folder}" if known else f"no key in {trust.folder}")
        + ("; unsigned: allow" if lax else ""),
        limit="at least one key, and unsigned: refuse",
        mend="" if known and not lax else "engines.unsigned: refuse" if lax else "edgeqc engine trust KEY.pub",
    )


def _package(name: str, recipe: RecipeSettings, trust: Trust) -> Finding:
    try:
        package = load_package(recipe.engine, trust=trust)
        judging(package, recipe)
    except PackageError as error:
        return Finding(
            name=name, state=State.FAIL, found=str(error), limit="may judge parts", mend="edgeqc engine verify FOLDER"
        )
    state = State.OK if package.trusted else State.WARN
    return Finding(
        name=name,
        state=state,
        found=f"{package.name}, {package.vouched}",
        limit="signed and whole",
        mend="" if package.trusted else "edgeqc engine sign FOLDER --key KEY",
    )
