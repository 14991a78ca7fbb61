"""A server process: one protocol, what its clients may cost bounded, the daemon's state looked at 20 times a second."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import secrets
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from edgeqc import __version__
from edgeqc.core.refusals import Refusals
from edgeqc.cores import end_with_parent, pin_background
from edgeqc.errors import EdgeqcError
from edgeqc.journal import JournalWriter
from edgeqc.loading import digest, paths, resolved, restore
from edgeqc.logs import Log, configure
from edgeqc.records import Event, Started
from edgeqc.server.picture import Observer, Picture
from edgeqc.server.shift import Shift
from edgeqc.settings import Settings
from edgeqc.shm.board import Board, Row, State

LOOK_S: Final = 0.05
"""From one look at board and journals to the next: SCADA polls at 0.1 to 1 s."""
_MB: Final = 1 << 20
_NICE: Final = 5
"""For OPC UA, where a client can have us compute without end. A Modbus request costs 40 us and is rationed."""
_OOM_SCORE: Final = 500
"""When the box runs out of memory this process goes, and not a station (proc(5): -1000 to 1000)."""


def main(argv: list[str]) -> int:
    """`edgeqc server modbus|opcua --run-dir DIR`; started by the supervisor."""
    parser = argparse.ArgumentParser(prog="edgeqc server")
    parser.add_argument("protocol", choices=("modbus", "opcua"))
    parser.add_argument("--run-dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    end_with_parent()
    run_dir: Path = arguments.run_dir
    settings = restore((run_dir / "settings.json").read_bytes())
    name = f"server-{arguments.protocol}"
    log = configure(process=name)
    pin_background(settings)
    confine(settings.server.memory_mb)
    row = Board.attach(run_dir)[name]
    try:
        with contextlib.closing(Desk(settings, run_dir=run_dir, row=row, log=log)) as desk:
            if arguments.protocol == "modbus":
                _serve_modbus(settings, desk)
            else:
                os.nice(_NICE)
                from edgeqc.server.opcua import serve_opcua  # noqa: PLC0415 - asyncua takes 0.5 s and 60 MiB

                asyncio.run(serve_opcua(resolved(settings, within=("server",)), desk))
    except EdgeqcError as exc:
        log.critical("server_failed", reason=str(exc))
        return 1
    except MemoryError:
        log.critical("server_out_of_memory", memory_mb=settings.server.memory_mb, action="it is started anew")
        return 1
    return 0


def confine(memory_mb: int) -> None:
    """Whatever clients send: no more memory than this, and no core dump of what they sent."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * _MB, memory_mb * _MB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))


class Desk:
    """What both servers need of the daemon: the picture, the counters' reset, the record of who did what."""

    def __init__(self, settings: Settings, *, run_dir: Path, row: Row, log: Log) -> None:
        """Open the journal and look for the first time."""
        state_dir = paths(settings)[0]
        self.state_dir = state_dir
        self.log = log
        self.config_digest = digest(settings)
        self.stopping = False
        self._row = row
        self._refusals: defaultdict[str, Refusals] = defaultdict(Refusals)
        self._observer = Observer(settings, Board.attach(run_dir), state_dir)
        self._shift = Shift(state_dir, run_dir)
        self._journal = JournalWriter(
            state_dir / "journal" / row.name,
            settings.journal.model_copy(update={"segment_mb": 1, "budget_mb": 8}),
        )
        self._journal.listen(lambda name, facts: log.warning(name, **facts))
        self._journal.append(
            Started(
                process=row.name,
                run_id=secrets.token_hex(8),
                version=__version__,
                config_digest=self.config_digest[:16],
            )
        )
        self.picture: Picture = self.look()

    def look(self) -> Picture:
        """See how things are now."""
        self._row.beat("main")
        self._shift.refresh()
        self.picture = self._observer.look(self._shift)
        return self.picture

    def ready(self, port: int) -> None:
        """Say that clients are served."""
        self._row.beat("main")
        self._row.state = State.READY
        self.log.info("server_started", port=port)

    @property
    def observer(self) -> Observer:
        """For the last results of a station."""
        return self._observer

    def reset(self, who: str, stations: frozenset[str] | None = None) -> bool:
        """Begin the counters since reset anew, of all stations or these; False, and said in the log, where it can't be.

        Who did it goes into the journal.
        """
        counters = {station.name: station.counters for station in self.picture.stations}
        try:
            self._shift.reset(counters, frozenset(counters) if stations is None else stations)
        except OSError as exc:
            self.log.exception("counters_not_reset", reason=str(exc))
            return False
        told = "all" if stations is None else ", ".join(sorted(stations))
        self.note("counters_reset", by=who, stations=told)
        self.look()
        return True

    def note(self, name: str, **facts: str | int) -> None:
        """Keep an event in the log and in the journal."""
        self.log.info(name, **facts)
        self._journal.append(Event(name=name, facts=dict(facts)))

    def on_client(self, name: str, peer: str, reason: str) -> None:
        """A client came, left or was refused."""
        if name == "client_refused":
            self.refused(name, peer=peer, reason=reason)
        else:
            self.log.info(name, peer=peer, reason=reason)

    def refused(self, name: str, **facts: str) -> None:
        """Keep it that a client or a login was refused; the same once a minute, with how many were not told meanwhile."""
        untold = self._refusals[name].take(tuple(facts.values()), time.monotonic_ns())
        if untold is not None:
            self.note(name, **facts, **({"untold": untold} if untold else {}))

    def close(self) -> None:
        """The end of it."""
        self._row.state = State.STOPPING
        self._observer.close()
        self._journal.close()
        self.log.info("server_stopped")


def _serve_modbus(settings: Settings, desk: Desk) -> None:
    from edgeqc.server.modbus import RegisterBank, open_server  # noqa: PLC0415 - the other protocol's process

    chosen = settings.server.modbus
    if chosen is None:
        raise EdgeqcError("server.modbus is not configured")
    bank = RegisterBank(
        chosen, version=__version__, config_digest=desk.config_digest, reset=lambda: desk.reset("a Modbus client")
    )
    bank.show(desk.picture)
    with contextlib.closing(open_server(chosen, bank, on_event=desk.on_client)) as server:
        stop = _on_sigterm(server.wake)
        desk.ready(server.port)
        gc.freeze()
        looked_s = time.monotonic()
        while not stop():
            server.turn(max(0.0, looked_s + LOOK_S - time.monotonic()))
            if time.monotonic() - looked_s >= LOOK_S:
                looked_s = time.monotonic()
                bank.show(desk.look())


def _on_sigterm(wake: Callable[[], None]) -> Callable[[], bool]:
    told = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        told = True
        wake()

    signal.signal(signal.SIGTERM, stop)
    return lambda: told
