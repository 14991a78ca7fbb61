"""The station's main: builds it from the configuration, runs the line on the main thread, ends with outputs safe."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Final

from edgeqc.cameras.keeper import CameraKeeper
from edgeqc.core.stopping import StopReason
from edgeqc.cores import (
    end_with_parent,
    pin,
    pin_background,
    real_time,
    real_time_throughout,
    shared_cores,
    station_cores,
)
from edgeqc.errors import EdgeqcError, EngineError, PackageError
from edgeqc.inference.judge import map_shape
from edgeqc.inference.trust import trust_of
from edgeqc.journal import JournalWriter
from edgeqc.journal.codec import Body
from edgeqc.loading import digest, paths, resolved, restore
from edgeqc.logs import Log, configure
from edgeqc.plc import PlcDoor, plc_door
from edgeqc.plc.relay import TagRelay, relay_path
from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.settings import (
    CameraSettings,
    ModbusPlcSettings,
    ModbusTagSource,
    NoPlcSettings,
    Settings,
    StationSettings,
    TriggerSource,
)
from edgeqc.settings.gate import DelayGate, EncoderGate
from edgeqc.shm.board import Board, Row, State
from edgeqc.shm.slots import FrameSlots, file_name
from edgeqc.station import rules
from edgeqc.station.accounting import Accounting
from edgeqc.station.arrivals import Arrivals, Arriving
from edgeqc.station.gate import GateWatch
from edgeqc.station.guard import Guard
from edgeqc.station.intake import Intake
from edgeqc.station.lender import Lender
from edgeqc.station.line import Line, Peers
from edgeqc.station.linestop import LineStop
from edgeqc.station.news import News
from edgeqc.station.outcome import Outcome
from edgeqc.station.plckeeper import PlcEvents, PlcKeeper
from edgeqc.station.plcwatch import PlcWatch
from edgeqc.station.recipes import Recipes
from edgeqc.station.tagwatch import TagWatch
from edgeqc.station.triggers import TriggerWatch, Watched, relayed_ns
from edgeqc.station.underway import UnderWay
from edgeqc.station.viewpoints import Viewpoint, Viewpoints

_SWITCH_S: Final = 0.0005
"""The default 5 ms is how long one thread may keep the others from the interpreter (measured: p99 17.8 -> 8.4 ms)."""


_LAST_RECORDS_NS: Final = NS_PER_S
"""At an orderly stop, for what a full disk has not taken so far."""
_LOADING_PRIORITY: Final = 1
"""While engines are loaded and tried, seconds of work: above ordinary processes, below every station that runs."""


def main(argv: list[str]) -> int:
    """`edgeqc station NAME --run-dir DIR`; started by the supervisor."""
    parser = argparse.ArgumentParser(prog="edgeqc station")
    parser.add_argument("name")
    parser.add_argument("--run-dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    end_with_parent()
    settings = restore((arguments.run_dir / "settings.json").read_bytes())
    log = configure(process=f"station-{arguments.name}")
    row = Board.attach(arguments.run_dir)[f"station-{arguments.name}"]
    index = next(index for index, station in enumerate(settings.stations) if station.name == arguments.name)
    try:
        station = resolved(settings, within=("stations", index)).stations[index]
        return Station(settings, station, row=row, log=log).run()
    except PackageError as exc:
        log.critical("package_refused", reason=str(exc))
        row.state = State.FAILED
        return 5
    except EngineError as exc:
        log.critical("engine_failed", reason=str(exc))
        return 1
    except EdgeqcError as exc:
        log.critical("station_failed", reason=str(exc))
        return 1


class Station:
    """Everything of one station, wired together."""

    def __init__(self, settings: Settings, station: StationSettings, *, row: Row, log: Log) -> None:
        """Load the engine, open journal and slots; camera and PLC are connected to by their keepers' threads."""
        self._settings, self._station, self._row, self._log = settings, station, row, log
        self._news = News(station, note=self._note, log=log)
        row.state = State.STARTING
        row.put("camera_up", 0)
        row.put("plc_up", 0)
        state_dir, run_dir = paths(settings)
        sys.setswitchinterval(_SWITCH_S)
        available = os.sched_getaffinity(0)
        self._core = station_cores(settings, available).get(station.name)
        self._shared_cores = shared_cores(settings, available)
        self._has_real_time = station.priority > 0 and real_time(_LOADING_PRIORITY)
        pin_background(settings)
        self.journal = JournalWriter(state_dir / "journal" / f"station-{station.name}", settings.journal)
        self._recipes = Recipes(
            station,
            trust=trust_of(settings.engines),
            core=self._core,
            state_dir=state_dir,
            gpu=settings.gpu,
            alive=partial(row.beat, "line"),
        )
        real_time_throughout(station.priority)  # from here on: what is started inherits it
        by_plc = station.trigger.source is TriggerSource.PLC
        self._several = len(station.all_cameras) > 1
        self._up = dict.fromkeys((camera.name for camera in station.all_cameras), False)
        self._camera_changes, self._stop_changes = threading.Lock(), threading.Lock()
        self._cameras = Viewpoints(
            [self._viewpoint(index, camera, run_dir) for index, camera in enumerate(station.all_cameras)]
        )
        self._plc: PlcKeeper | None = None
        self._door: PlcDoor | None = None
        if not isinstance(station.plc, NoPlcSettings):
            plc = station.plc
            peer = f"plc {station.name}"
            alone = 0 if self._core is None else threading.get_ident()  # we are on the thread that will be the line's
            relay = _relay(settings, station, state_dir)
            self._door = plc_door(
                plc, peer=peer, state_dir=state_dir, alone=alone, gate=station.tracked_gate, relay=relay
            )
            self._plc = PlcKeeper(
                self._door.open,
                peer=peer,
                events=PlcEvents(link=self._on_plc, program=self._news.plc_program, turn=self._on_turn),
                manners=rules.manners(station, plc.handshake),
            )
        under_way = UnderWay(
            [rules.exposures(station, camera) for camera in station.all_cameras] if by_plc else [],
            expose_within_ns=rules.expose_within_ns(station),
            depth=rules.depth(station),
            views=len(self._cameras),
        )
        self._stop_rule = LineStop(rules.stop_limits(station))
        self._gate: GateWatch | None = None
        self._outcome = Outcome(
            station=station.name,
            journal=self.journal,
            sync=settings.journal.sync,
            plc=self._plc,
            lenders={camera.name: camera.lender for camera in self._cameras},
            keep=rules.keep(station),
            row=row,
            under_way=under_way,
            stop=self._stop_rule,
            on_pass=self._on_pass,
            on_stop=self._on_line_stop,
        )
        accounting = Accounting(station.name, row=row, note=self._outcome.note)
        budget = rules.budget(station)
        self._guard = Guard(
            outcome=self._outcome,
            plc=self._plc,
            row=row,
            fail_safe_ns=budget.fail_safe_at_ns(0),
            heartbeat_ns=int(station.heartbeat_ms * NS_PER_MS),
            healthy=self._healthy,
            ready=self._gate_watched,
            on_look=self._beat_for_others,
            priority=station.priority + 1 if self._has_real_time else 0,
        )
        tags = TagWatch(run_dir, station)
        intake = Intake(
            budget,
            guard=self._guard,
            row=row,
            recipes=self._recipes,
            first_sequence=max(self.journal.last_part_sequence, row.get("last_opened")) + 1,
            cameras=len(self._cameras),
        )
        self._watches: list[TriggerWatch | PlcWatch | Arrivals] = []
        """Who sees parts come, and hears the PLC."""
        arrivals = None
        if by_plc:
            self._watch_triggers(intake, accounting, tags)
        else:
            arrivals = self._watch_frames(intake, accounting, tags)
        self._line = Line(
            station,
            Peers(
                cameras=self._cameras,
                recipes=self._recipes,
                outcome=self._outcome,
                accounting=accounting,
                plc=self._plc,
                row=row,
                tags=tags,
                arrivals=arrivals,
                on_engine_failure=self._news.without_score,
            ),
        )

    def _watch_triggers(self, intake: Intake, accounting: Accounting, tags: TagWatch) -> None:
        """The PLC says when a part is there."""
        if self._plc is None or self._door is None:
            return
        if self._station.tracked_gate is not None:
            self._gate = self._gate_watch(self._door, self._station.tracked_gate)
        watched = Watched(
            plc=self._plc,
            cameras=self._cameras,
            intake=intake,
            outcome=self._outcome,
            accounting=accounting,
            tags=tags,
            row=self._row,
            gate=self._gate,
        )
        trigger = self._station.trigger
        poll_ns = int(trigger.poll_ms * NS_PER_MS)
        self._watches.append(TriggerWatch(watched, poll_ns=poll_ns, repeated_ids=trigger.repeated_ids))

    def _watch_frames(self, intake: Intake, accounting: Accounting, tags: TagWatch) -> Arrivals:
        """Each frame is a part; the PLC may have to be listened to all the same."""
        if self._plc is not None and self._station.polls_plc:
            poll_ns = int(self._station.trigger.poll_ms * NS_PER_MS)
            self._watches.append(PlcWatch(self._plc, row=self._row, poll_ns=poll_ns, announce=self._recipes.announce))
        arriving = Arriving(
            camera=self._cameras[0],
            plc=self._plc,
            intake=intake,
            outcome=self._outcome,
            accounting=accounting,
            recipes=self._recipes,
            tags=tags,
            row=self._row,
        )
        arrivals = Arrivals(self._station, arriving)
        self._watches.append(arrivals)
        return arrivals

    def run(self) -> int:
        """Until SIGTERM; then no more parts, outputs safe, journal on the disk."""
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._stop())
        self._row.backend = self._recipes[self._recipes.all[0]][0].engine.backend
        self._news.started(digest(self._settings)[:16], self._recipes, self._cameras, self.journal)
        self.journal.listen(self._news.disk)
        self._log.info(
            "station_started",
            recipes=len(self._recipes.all),
            engines_mb=round(self._recipes.memory_mb, 1),
            core=self._core,
            real_time=self._has_real_time,
            next_part=self.journal.last_part_sequence + 1,
        )
        self._cameras.start()
        if self._plc is not None:
            self._plc.start()
        self._guard.start()
        if self._gate is not None:
            self._gate.start()
        for watch in self._watches:
            watch.start()
        if self._core is not None and not pin({self._core}):
            self._log.warning("core_not_pinned", core=self._core)
        gc.collect()
        gc.freeze()
        gc.disable()  # the line looks for garbage itself, when no part is due
        for loop in ("line", "guard", "triggers"):
            self._row.beat(loop)
        self._beat_for_others()
        self._row.state = State.READY
        try:
            self._line.run()
        except EngineError as exc:
            self._news.engine_failed(str(exc))
            raise
        finally:
            self._end()
        return 0

    def _end(self) -> None:
        """Outputs safe, then a record for each part, then peers and devices."""
        self._row.state = State.STOPPING
        pin(self._shared_cores)
        if self._gate is not None:
            self._gate.tell_to_stop()
        for watch in self._watches:
            watch.stop()
        if self._plc is not None:
            self._plc.stop()
        self._guard.stop()
        # outputs are safe and each part has its record: what is left may take its time, or be killed in it
        if self._gate is not None:
            self._gate.stop()
        if self._door is not None:
            self._door.close()
        self._cameras.stop(timeout_s=1.0)
        self._recipes.close()  # behind the cameras, whose memory they may have page-locked
        self._outcome.retry_journal(time.monotonic_ns() + _LAST_RECORDS_NS)
        if lost := self._outcome.unjournaled:
            self._log.critical("journal_records_lost", count=lost)
        self.journal.close()

    def _note(self, body: Body) -> None:
        self._outcome.note(body)

    def _healthy(self) -> bool:
        """Can parts be judged? Asked by the guard before each heartbeat."""
        self._row.put("zero_copy", self._cameras.zero_copy)
        return self._cameras.down < 0

    def _beat_for_others(self) -> None:
        """For threads that call into libraries and peers, and have nothing of their own to tell the supervisor with."""
        self._row.beat("cameras", self._cameras.turned_ns)
        if self._plc is not None:
            self._row.beat("plc", self._plc.turned_ns)
        if self._gate is not None:
            self._row.beat("gate", self._gate.turned_ns)

    def _gate_watched(self) -> bool:
        """Where nobody watches the gate, parts are judged, but what is to go out may not."""
        return self._gate is None or self._gate.up

    def _stop(self) -> None:
        self._line.stopping = True

    def _viewpoint(self, index: int, camera: CameraSettings, run_dir: Path) -> Viewpoint:
        """One camera with its slots, known to its engines."""
        shape = (camera.height_px, camera.width_px)
        file = run_dir / file_name(self._station.name, camera.name if self._several else "")
        slots = FrameSlots.create(file, per_bank=camera.slots, shape=shape, map_shape=map_shape(shape))
        if slots.memory is not None and not self._recipes.adopt(index, slots.memory):
            backend = self._recipes[self._recipes.all[0]][index].engine.backend
            self._log.warning("frames_not_page_locked", camera=camera.name, backend=backend)
        keeper = CameraKeeper(
            camera.model_copy(update={"silence_ms": rules.silence_ms(self._station, camera)}),
            slots,
            software_trigger=self._station.trigger.source is TriggerSource.PLC,
            on_change=partial(self._on_camera, camera.name),
        )
        lender = Lender(slots, most=max(1, camera.slots // 2), take_back=keeper.release)
        return Viewpoint(name=camera.name, keeper=keeper, slots=slots, lender=lender)

    def _on_camera(self, name: str, up: bool, reason: str) -> None:
        with self._camera_changes:
            self._up[name] = up
            self._row.put("camera_up", all(self._up.values()))
        self._row.put("camera_reopened", self._cameras.reopened)
        action = "Check power and link of the camera; then, with the daemon stopped: edgeqc test camera FILE"
        self._news.peer(f"camera.{name}" if self._several else "camera", up, reason, action=action)

    def _on_plc(self, up: bool, reason: str) -> None:
        self._row.put("plc_up", up)
        if self._plc is not None:
            self._row.put("plc_reconnected", self._plc.reconnected)
        self._news.peer(
            "plc",
            up,
            reason,
            action="Check the PLC's network and that it runs; then, with the daemon stopped: edgeqc test plc FILE",
        )

    def _gate_watch(self, door: PlcDoor, gate: DelayGate | EncoderGate) -> GateWatch:
        return GateWatch(
            gate,
            door.open_gate,
            station=self._station.name,
            note=self._outcome.note,
            on_failure=self._on_gate_failure,
            on_looked=self._on_gate_looked,
            on_link=self._on_gate_link,
        )

    def _on_pass(self, sequence: int) -> None:
        if self._gate is not None:
            self._gate.passed(sequence)

    def _on_gate_failure(self) -> None:
        if self._stop_rule.ask(StopReason.GATE):
            self._on_line_stop()

    def _on_gate_link(self, up: bool, reason: str) -> None:
        action = "Check gate.registers or gate.nodes and that the PLC reads and writes them; with the daemon stopped: edgeqc test plc FILE"
        self._news.peer("gate", up, reason, action=action)

    def _on_gate_looked(self) -> None:
        if self._stop_rule.reason is StopReason.GATE:
            self._stop_rule.reset()
            self._on_line_stop()

    def _on_line_stop(self) -> None:
        if self._line.stopping:
            return  # parts that the end leaves without a verdict say nothing of the line
        with self._stop_changes:  # the gate's thread asks, too: who comes last tells what holds by then
            reason = self._stop_rule.reason
            if self._plc is not None:
                self._plc.ask_stop(reason is not None)
            self._row.put("stop_asked", reason is not None)
            self._news.line_stop(reason)

    def _on_turn(self, sequence: int, at_ns: int, reason: str) -> None:
        self._outcome.turn(sequence, at_ns, reason)


def _relay(settings: Settings, station: StationSettings, state_dir: Path) -> TagRelay | None:
    """For the tags that are read through this station."""
    through = [source for source in settings.tags if isinstance(source, ModbusTagSource)]
    if not any(source.through == station.name for source in through) or not isinstance(station.plc, ModbusPlcSettings):
        return None
    return TagRelay(
        relay_path(state_dir, station.name),
        unit=station.plc.device_id,
        within_ns=relayed_ns(int(station.trigger.poll_ms * NS_PER_MS)),
    )
