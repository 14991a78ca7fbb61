"""A whole simulated line around a real daemon: camera, PLC, broker, tag server, and the daemon's own process.

Every edge speaks its real protocol. `SimLine` starts everything, `edgeqc.sim.report` holds the three witnesses (PLC,
archive, MQTT) against each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import cv2
import numpy as np
import yaml

from edgeqc.core.handshake import Form
from edgeqc.errors import EdgeqcError
from edgeqc.shm.board import Board, State
from edgeqc.sim.broker import Listener, SimBroker
from edgeqc.sim.camera import SimCamera
from edgeqc.sim.images import PartImages
from edgeqc.sim.machine import SimMachine
from edgeqc.sim.peer import Peer
from edgeqc.sim.plc import SimPlc
from edgeqc.sim.stage import Stage
from edgeqc.sim.stall import Stall, StallWatch, merged
from edgeqc.sim.tags import SimTags, tag_settings

NODE: Final = "demo"
STATION: Final = "top"
VIEWS: Final = ("front", "back", "left", "right", "above", "below", "inside", "outside")
"""Names of the cameras where there are several."""
DAEMON_READY_S: Final = 90.0
STOP_S: Final = 15.0
TRUSTED: Final = tuple(sorted((Path(__file__).parents[2] / "engines" / "trust").glob("*.pub")))
"""Of the packages that come with the project."""


AnyPeer = TypeVar("AnyPeer", bound=Peer)


@dataclass(slots=True, kw_only=True)
class Plan:
    """What kind of line."""

    folder: Path
    """Everything is kept in here; must exist."""
    images: PartImages
    engine: Path
    views: tuple[PartImages, ...] = ()
    """What further cameras see of the same parts, one each: as many images as `images` has."""
    recipes: tuple[int, ...] = ()
    """Numbers that the PLC asks for in turn; `changes` says what they are."""
    recipe_run: int = 20
    """Parts of one recipe after another."""
    trusted: tuple[Path, ...] = TRUSTED
    """Public keys whose packages the daemon runs."""
    parts: int = 300
    rate_hz: float = 10.0
    budget_ms: float = 80.0
    plc: Literal["modbus", "modbus-server", "opcua"] = "modbus"
    form: Form = Form.PULSE
    """Of the handshake."""
    camera: Literal["gige", "replay"] = "gige"
    trigger: Literal["plc", "camera"] = "plc"
    side_load: int = 0
    machine: Callable[[], SimMachine] | None = None
    """A machine beside the line whose tags are watched; `machine_changes` says what the configuration has of it."""
    machine_changes: Callable[[SimMachine], dict[str, Any]] | None = None
    mqtt: bool = True
    broker_acl: str | None = None
    """mosquitto's access list; None: everything is allowed."""
    start: Literal["ready", "go"] = "ready"
    environment: dict[str, str] = field(default_factory=dict)
    """Of the daemon, beside what it has anyway."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Merged into the configuration: `{"stations": [{"images": {...}}]}`."""


class SimLine:
    """Starts, holds and stops everything. Use as a context; `stop_daemon` first where its archive is to be read."""

    def __init__(self, plan: Plan) -> None:
        """Nothing runs yet."""
        self.plan = plan
        self.config = plan.folder / "line.yaml"
        self.state_dir = plan.folder / "state"
        self.run_dir = Path("/dev/shm") / f"edgeqc-sim-{os.getpid()}-{abs(hash(str(plan.folder))) % 10**8}"  # noqa: S108 - ours, by pid
        self.log = plan.folder / "daemon.log"
        self.cameras: list[SimCamera] = []
        self.plc: SimPlc | None = None
        self.broker: SimBroker | None = None
        self.listener: Listener | None = None
        self.tags: SimTags | None = None
        self.machine: SimMachine | None = None
        self.stage: Stage | None = None
        """As the first camera sees it; `stage_of` for the others."""
        self.stall_watch: StallWatch | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self.daemon_started_ns = 0
        self._stack = contextlib.ExitStack()
        self._cores = os.sched_getaffinity(0)

    def __enter__(self) -> Self:
        """Start the peers and write the configuration; the daemon is started by `start_daemon`."""
        try:
            self._start_peers()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all, the daemon first."""
        self.stop_daemon()
        self._stack.close()

    def start_daemon(self) -> None:
        """`edgeqc run` in a process of its own, logging to a file."""
        self.daemon_started_ns = time.monotonic_ns()
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(  # noqa: S603 - this very package
                [sys.executable, "-m", "edgeqc", "run", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "EDGEQC__RUN_DIR": str(self.run_dir), **self.plan.environment},
                preexec_fn=lambda: os.sched_setaffinity(0, self._cores),  # noqa: PLW1509 - one call, no locks
            )

    def wait_ready(self, timeout_s: float = DAEMON_READY_S) -> Board:
        """Until every process of the daemon is ready and camera and PLC are there; EdgeqcError if it does not come."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.daemon is not None and self.daemon.poll() is not None:
                raise EdgeqcError(f"the daemon ended with {self.daemon.returncode}: {self.log.read_text()[-500:]}")
            with contextlib.suppress(OSError, EdgeqcError):
                board = Board.attach(self.run_dir)
                row = board[f"station-{STATION}"]
                fresh = all(
                    other.state is State.READY and other.started_ns > self.daemon_started_ns  # not of the daemon before
                    for other in board.rows.values()
                )
                if fresh and row.get("camera_up") and row.get("plc_up"):
                    return board
            time.sleep(0.02)
        raise EdgeqcError(f"the daemon was not ready within {timeout_s:g} s: {self.log.read_text()[-500:]}")

    def stop_daemon(self) -> int | None:
        """SIGTERM and wait; its exit code, None where it did not run."""
        if self.daemon is None:
            return None
        daemon, self.daemon = self.daemon, None
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        return daemon.returncode

    def kill_daemon(self) -> None:
        """SIGKILL for the supervisor and all its processes at once: what a crash of the box looks like to the peers."""
        if self.daemon is None:
            return
        with contextlib.suppress(OSError, EdgeqcError):
            for row in Board.attach(self.run_dir).rows.values():
                if row.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(row.pid, signal.SIGKILL)
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None

    def _start_peers(self) -> None:
        plan = self.plan
        if len(self._cores) > 1:
            # The last core is the station's; a simulated line must not be in its way.
            os.sched_setaffinity(0, self._cores - {max(self._cores)})
            self._stack.callback(os.sched_setaffinity, 0, self._cores)
        self.stage = Stage.create(plan.folder / "stage")
        self._stack.callback(self.stage.close)
        self.stall_watch = self._begun(StallWatch(plan.folder / "stalls.log"))
        self.plc = self._begun(
            SimPlc(
                plan.plc,
                plan.folder / "stage",
                plan.folder / "plc.ndjson",
                parts=plan.parts,
                rate_hz=plan.rate_hz,
                budget_ms=plan.budget_ms,
                trigger=plan.trigger,
                start=plan.start,
                truth=_truth(plan),
                form=plan.form,
                recipes=plan.recipes,
                recipe_run=plan.recipe_run,
            )
        )
        if plan.camera == "gige":
            self.cameras = [
                self._begun(SimCamera(seen.file, plan.folder / "stage", camera=index))
                for index, seen in enumerate((plan.images, *plan.views))
            ]
        if plan.mqtt:
            self.broker = self._begun(SimBroker(acl=plan.broker_acl))
        if plan.side_load:
            self.tags = self._begun(SimTags("opcua", tags=plan.side_load))
        for peer in (self.stall_watch, self.plc, *self.cameras, self.broker, self.tags):
            if peer is not None:
                peer.ready()
        if self.broker is not None:
            self.listener = self._stack.enter_context(
                Listener("127.0.0.1", self.broker.port, f"edgeqc/{NODE}/#", client_id="watcher")
            )
        if plan.machine is not None:
            self.machine = self._stack.enter_context(plan.machine())
        if plan.trigger == "camera":
            self.stage.advance = True
        self.config.write_text(yaml.safe_dump(self.settings(), sort_keys=False))

    def _begun(self, peer: AnyPeer) -> AnyPeer:
        """Start it beside the others; it goes with the line."""
        peer.begin()
        self._stack.callback(peer.close)
        return peer

    def settings(self) -> dict[str, Any]:
        """The configuration that reaches the peers."""
        plan = self.plan
        takt_ms = 1000 / plan.rate_hz
        cameras = [self._camera(index, seen) for index, seen in enumerate((plan.images, *plan.views))]
        assert self.plc is not None  # noqa: S101 - _start_peers made it
        station: dict[str, Any] = {
            "name": STATION,
            "takt_ms": takt_ms,
            "budget_ms": plan.budget_ms,
            "trigger": {"source": plan.trigger},
            **({"cameras": cameras} if plan.views else {"camera": cameras[0]}),
            "recipe": {
                "engine": str(plan.engine),
                "region": {"mode": "full"}
                if plan.images.contrast is None
                else {"mode": "locate", "contrast": plan.images.contrast},
            },
            "plc": self.plc.settings,
            "images": {"rejects": True, "every_nth_pass": 50},
        }
        settings: dict[str, Any] = {
            "version": 1,
            "node": NODE,
            "state_dir": str(self.state_dir),
            "engines": {"trust": str(_trust_folder(plan))},
            "stations": [station],
        }
        if self.broker is not None:
            settings["mqtt"] = {"host": "127.0.0.1", "port": self.broker.port, "health_s": 2}
        if self.tags is not None:
            settings["tags"] = [tag_settings(plan.side_load, self.tags.url)]
        if self.machine is not None and plan.machine_changes is not None:
            told = plan.machine_changes(self.machine)
            settings.setdefault("tags", []).append(told.pop("source"))
            settings |= told
        merged: dict[str, Any] = _merged(settings, plan.changes)
        return merged

    def stage_of(self, camera: int) -> Stage:
        """The stage with the faults, triggers and exposures of this camera; the caller closes it."""
        return Stage.attach(self.plan.folder / "stage", camera)

    def _camera(self, index: int, seen: PartImages) -> dict[str, Any]:
        """The configuration of a camera."""
        plan, (height, width) = self.plan, seen.shape
        camera: dict[str, Any] = {"width_px": width, "height_px": height}
        if plan.views:
            camera["name"] = VIEWS[index]
        if not self.cameras:
            folder = _replay_folder(plan.folder / f"frames{index or ''}", seen)
            return {**camera, "type": "replay", "folder": str(folder), "rate_hz": plan.rate_hz}
        if plan.trigger == "camera":
            camera["rate_hz"] = plan.rate_hz
        return {**camera, "type": "gige", "address": self.cameras[index].address, "packet_bytes": 8000}

    def told(self) -> list[dict[str, Any]]:
        """Every verdict message so far, as a subscriber got it."""
        return [] if self.listener is None else [message.json for message in self.listener.received("/verdict")]

    def stalls(self) -> list[Stall]:
        """When the box itself, or the PLC, stood still."""
        box = [] if self.stall_watch is None else self.stall_watch.stalls()
        return merged([*box, *((line["stall"][0], line["stall"][1]) for line in self._plc_log() if "stall" in line)])

    def judged(self) -> list[dict[str, Any]]:
        """What the PLC said of each part so far."""
        return [line for line in self._plc_log() if "part" in line]

    def _plc_log(self) -> list[dict[str, Any]]:
        lines = (self.plan.folder / "plc.ndjson").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]


def _trust_folder(plan: Plan) -> Path:
    folder = plan.folder / "trust"
    folder.mkdir(exist_ok=True)
    for key in plan.trusted:
        shutil.copy(key, folder)
    return folder


def _truth(plan: Plan) -> Path:
    """A part is defective if any camera can see that it is."""
    if not plan.views:
        return plan.images.truth
    path = plan.folder / "truth.npy"
    np.save(path, np.any([np.load(seen.truth) for seen in (plan.images, *plan.views)], axis=0))
    return path


def _replay_folder(folder: Path, seen: PartImages) -> Path:
    """The images as files, in the order in which the line shows them: part n is image n modulo their number."""
    folder.mkdir(exist_ok=True)
    images = np.load(seen.file, mmap_mode="r")
    for index in range(len(images)):
        cv2.imwrite(str(folder / f"{index:06d}.png"), images[(index + 1) % len(images)])
    return folder


def _merged(base: Any, changes: Any) -> Any:
    """`changes` over `base`: mappings are merged, lists item by item, all else is replaced."""
    if isinstance(base, dict) and isinstance(changes, dict):
        return {**base, **{key: _merged(base.get(key), value) for key, value in changes.items()}}
    if isinstance(base, Sequence) and isinstance(changes, list) and not isinstance(base, str):
        items = [_merged(item, change) for item, change in zip(base, changes, strict=False)]
        return [*items, *changes[len(items) :], *base[len(items) :]]
    return changes
