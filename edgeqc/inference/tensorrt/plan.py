"""Plans on the box's disk: a file per package and precision, and beside it what it was built from, for whom.

TensorRT has no way to ask a plan whether it fits: it says so, or does not, when it is loaded or run. So everything that
a plan depends on is in its sidecar and compared before the plan is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edgeqc.errors import PlanError
from edgeqc.inference.cuda.port import Device
from edgeqc.inference.package import Package

PLAN_LIMIT_BYTES: Final = 1 << 30
SCHEMA: Final = "edgeqc.plan/1"
BUILD_COMMAND: Final = "edgeqc engine build LINE.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """What a plan depends on: one that was built from or for anything else is not run."""

    onnx_sha256: str
    """Of the package's model file in this precision."""
    precision: str
    tensorrt: str
    """Version of the library that builds and runs it."""
    device: str
    """Name of the GPU; its multiprocessors and clocks are in there."""
    sm: str
    driver: str
    shapes: dict[str, list[int]]
    """The profile: the fixed shape of each input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """The JSON file beside a plan."""

    schema: str
    package: str
    make: Make
    plan_sha256: str
    plan_bytes: int
    built_at: str
    """UTC, ISO 8601."""
    build_s: float
    golden_difference: float
    """Largest difference from the package's golden outputs, on this device."""
    workspace_mb: int
    level: int


class Plans:
    """The plans in one state directory: `plans/NAME/VERSION/PRECISION.plan` and `.json`."""

    def __init__(self, state_dir: Path) -> None:
        """Nothing is read or made."""
        self.folder = state_dir / "plans"

    def path(self, package: Package) -> Path:
        """Where this package's plan is or will be; one for each of its precisions."""
        return self.folder / package.manifest.name / package.manifest.version / f"{package.precision}.plan"

    @property
    def timings(self) -> Path:
        """The builder's timing cache; it checks by itself what it can use of it."""
        return self.folder / "timing.cache"

    def load(self, package: Package, make: Make) -> tuple[bytes, Sidecar]:
        """The plan and its sidecar, checked. PlanError with the reason and the command that mends it."""
        path = self.path(package)
        sidecar = self._sidecar(path)
        differences = [
            f"{name} {_tell(getattr(sidecar.make, name))} is now {_tell(getattr(make, name))}"
            for name in make.__dataclass_fields__
            if getattr(sidecar.make, name) != getattr(make, name)
        ]
        if differences:
            raise self._stale(path, "was built for something else: " + ", ".join(differences))
        try:
            if path.stat().st_size > PLAN_LIMIT_BYTES:
                raise self._stale(path, f"has {path.stat().st_size} bytes, over {PLAN_LIMIT_BYTES}")
            content = path.read_bytes()
        except OSError as exc:
            raise self._stale(path, str(exc.strerror)) from exc
        found = hashlib.sha256(content).hexdigest()
        if found != sidecar.plan_sha256:
            raise self._stale(path, f"is damaged: SHA-256 is {found}, its sidecar says {sidecar.plan_sha256}")
        return content, sidecar

    def refused(self, package: Package, reason: str) -> PlanError:
        """The error for a plan that is what it should be and still does not do."""
        return self._stale(self.path(package), reason)

    def store(self, package: Package, plan: bytes, sidecar: Sidecar) -> None:
        """Put a plan in the place of what is there; after a power cut there is the old one, the new one or none."""
        path = self.path(package)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".json")
        beside.unlink(missing_ok=True)  # without it the plan counts as not there
        _replace(path, plan)
        _replace(beside, (json.dumps(asdict(sidecar), indent=2, sort_keys=True) + "\n").encode())

    def keep_timings(self, content: bytes) -> None:
        """For the next build."""
        if content:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.timings, content)

    def _sidecar(self, path: Path) -> Sidecar:
        beside = path.with_suffix(".json")
        try:
            document: dict[str, Any] = json.loads(beside.read_bytes()[:_SIDECAR_LIMIT_BYTES])
            if document.get("schema") != SCHEMA:
                raise self._stale(path, f"has a sidecar of schema {document.get('schema')}, must be {SCHEMA}")
            return Sidecar(**{**document, "make": Make(**document["make"])})
        except FileNotFoundError as exc:
            raise self._stale(path, "is not there") from exc
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise self._stale(path, f"has a sidecar that cannot be read ({exc})") from exc

    def _stale(self, path: Path, reason: str) -> PlanError:
        return PlanError(f"plan {path} {reason}. Build it while the line stands: {BUILD_COMMAND}")


def make_of(package: Package, *, tensorrt: str, device: Device) -> Make:
    """What a plan must have been built from and for, here and now."""
    return Make(
        onnx_sha256=package.digest.hex(),
        precision=package.precision,
        tensorrt=tensorrt,
        device=device.name,
        sm=device.sm,
        driver=device.driver,
        shapes={tensor.name: list(tensor.shape) for tensor in package.io.inputs},
    )


_SIDECAR_LIMIT_BYTES: Final = 1 << 16


def _tell(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)  # noqa: PLR2004 - SHA-256


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, also over a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
