"""The supervisor: starts, watches, restarts and stops the daemon's processes. Does nothing else, and so never waits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from edgeqc import __version__
from edgeqc.core.restart import RestartBudget, hung
from edgeqc.errors import AlreadyRunningError, EdgeqcError, JournalError
from edgeqc.jobs import Job, jobs
from edgeqc.journal import JournalWriter
from edgeqc.journal.codec import Body
from edgeqc.loading import changes, digest, dump, paths
from edgeqc.logs import Log, configure
from edgeqc.records import NS_PER_S, AlertChange, Event, Ne107, Started
from edgeqc.rights import missing_rights
from edgeqc.settings import Settings
from edgeqc.shm.board import Board, Row, State
from edgeqc.shm.tagtable import FILE_NAME as TAG_TABLE

_SYNC_NS: Final = 2 * NS_PER_S
"""For the record of a changed configuration: a slow disk is told of it again at the next start."""
_PERIOD_S: Final = 0.05
_STOOD_NS: Final = NS_PER_S // 2
"""A round takes milliseconds."""
_AFTER_STANDING_NS: Final = NS_PER_S
"""Where the whole box stood still, its processes stood, too: so long they have to show that they run."""
_NOT_STARTED: Final = 127
"""Exit code of a process that the kernel would not start, as a shell says it."""
_LEFTOVER_S: Final = 5.0
_PACKAGE_REFUSED: Final = 5
"""A station's exit code where its model package may not judge parts."""
_START_NS: Final = 60 * NS_PER_S
"""Loading a large engine on a busy box; then a process that is not ready, and has not beaten since, counts as hung."""
_STOP_SLACK_NS: Final = 5 * NS_PER_S
"""For a process that ends by itself: an engine that failed has a device to let go."""
_EXTEND: Final = f"EXTEND_TIMEOUT_USEC={2 * _START_NS // 1000}"
"""For systemd's TimeoutStartSec: while all that start show life, many recipes are no reason to begin anew."""


def run(settings: Settings, *, config_path: Path) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code.

    AlreadyRunningError where another daemon has this state directory.
    """
    state_dir, run_dir = paths(settings)
    log = configure(process="supervisor")
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(state_dir):
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_strange(run_dir)
        _end_leftovers(run_dir, log)
        return Supervisor(settings, state_dir=state_dir, run_dir=run_dir, log=log).run(config_path)


def _refuse_strange(run_dir: Path) -> None:
    """PermissionError where somebody else made this folder: /dev/shm is open to all, and verdicts go through what is in it."""
    status = run_dir.lstat()
    if os.geteuid() != status.st_uid or not stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IWOTH:
        raise PermissionError(errno.EPERM, "is not this user's own folder", str(run_dir))


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """Hold the state directory; the lock goes with the process, however it ends."""
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno == errno.EWOULDBLOCK:
                raise AlreadyRunningError(f"{state_dir}: another edgeqc runs here") from exc
            raise
        yield
    finally:
        os.close(descriptor)


def _end_leftovers(run_dir: Path, log: Log) -> None:
    """End what a supervisor that was killed left behind: two stations must never write to one PLC.

    They end by themselves, outputs first; this waits for it, and kills what does not.
    """
    try:
        pids = {row.pid for row in Board.attach(run_dir).rows.values() if row.pid}
    except (OSError, EdgeqcError):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + _LEFTOVER_S
        while (left := {pid for pid in pids if _is_ours(pid, run_dir)}) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(_PERIOD_S)
        if not left:
            return
        log.warning("leftover_killed", pids=sorted(left))


def _is_ours(pid: int, run_dir: Path) -> bool:
    """Is this process one of a daemon in this run directory? Pids are used again."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"--run-dir" in words and os.fsencode(run_dir) in words


@dataclass(slots=True, kw_only=True)
class _Child:
    """A job and the process that does it now."""

    job: Job
    row: Row
    process: subprocess.Popen[bytes] | None = None
    start_at_ns: int = 0
    killed: bool = False
    alerted: bool = False
    """People were told that it keeps ending."""
    ends: int = 0
    """How often it ended since it last lived for `must_live_ns`, however slowly."""
    must_live_ns: int = 0
    budget: RestartBudget = field(default_factory=RestartBudget)


class Supervisor:
    """Holds the board, the children and systemd's watchdog."""

    def __init__(self, settings: Settings, *, state_dir: Path, run_dir: Path, log: Log) -> None:
        """Make the shared memory; nothing is started yet."""
        self._settings, self._state_dir, self._run_dir, self._log = settings, state_dir, run_dir, log
        (run_dir / TAG_TABLE).unlink(missing_ok=True)  # it may be of another configuration
        self._board = Board.create(run_dir, [job.name for job in jobs(settings)])
        (run_dir / "settings.json").touch(mode=0o600)
        (run_dir / "settings.json").write_bytes(dump(settings))
        self._journal = JournalWriter(
            state_dir / "journal" / "supervisor", settings.journal.model_copy(update={"segment_mb": 1, "budget_mb": 8})
        )
        self._children = [_Child(job=job, row=self._board[job.name]) for job in jobs(settings)]
        self._stopping = False
        self._exit_code = 0
        self._told_ready = False
        self._status = ""
        self._fed_ns = 0
        self._round_ns = time.monotonic_ns()
        self._stood_ns = -_AFTER_STANDING_NS
        self._watchdog_ns = int(os.environ.get("WATCHDOG_USEC", "0")) * 1000

    def run(self, config_path: Path) -> int:
        """Until told to stop; then everything in order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal is no reason to stop a line
        for missing in missing_rights(self._settings, self._state_dir, self._run_dir):
            self._log.warning("right_missing", what=missing)
        self._note(
            Started(
                process="supervisor",
                run_id=f"{time.time_ns():016x}",
                version=__version__,
                config_digest=digest(self._settings)[:16],
            )
        )
        self._log.info("daemon_started", version=__version__, config=str(config_path), state_dir=str(self._state_dir))
        self._tell_change()
        try:
            self._round_ns = time.monotonic_ns()
            while not self._stopping:
                self._round(time.monotonic_ns())
                time.sleep(_PERIOD_S)
        finally:
            self._stop()
        return self._exit_code

    def _round(self, now_ns: int) -> None:
        stood_ns, self._round_ns = now_ns - self._round_ns, now_ns
        if stood_ns > _STOOD_NS:  # what died meanwhile was not seen to
            self._log.warning("supervisor_stood_still", seconds=round(stood_ns / NS_PER_S, 1))
            self._stood_ns = now_ns
        for child in self._children:
            self._tend(child, now_ns)
        self._notify(now_ns)

    def _note(self, body: Body) -> None:
        try:
            self._journal.append(body)
        except JournalError as exc:  # the line runs on without the supervisor's news: the log has them
            self._log.error("not_journaled", reason=str(exc))

    def _tell_change(self) -> None:
        """Who runs the line by other settings than the last run's; the journal has it first."""
        event = changes.change(self._settings, self._state_dir)
        if event is None:
            return
        self._log.info(event.name, **event.facts)
        try:
            if self._journal.wait_synced(self._journal.append(event), time.monotonic_ns() + _SYNC_NS):
                changes.keep(self._settings, self._state_dir)
        except (OSError, JournalError) as exc:  # a full disk is no reason not to start: the next start tells it again
            self._log.warning("configuration_not_kept", reason=str(exc))

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _tend(self, child: _Child, now_ns: int) -> None:
        process = child.process
        if process is None:
            if now_ns >= child.start_at_ns:
                self._start(child, now_ns)
            return
        code = process.poll()
        if code is not None:
            self._ended(child, code, now_ns)
        elif not child.killed and (loop := self._hung(child, now_ns)):
            self._log.error("process_hung", name=child.job.name, loop=loop)
            child.killed = True
            process.kill()

    def _start(self, child: _Child, now_ns: int) -> None:
        child.row.reset()
        child.row.state = State.STARTING
        child.row.started_ns = now_ns
        child.killed = False
        try:
            child.process = subprocess.Popen(  # noqa: S603 - this very package
                [sys.executable, "-m", "edgeqc", *child.job.argv, "--run-dir", str(self._run_dir)],
                stdin=subprocess.DEVNULL,
            )
        except OSError as exc:  # no memory for it now: the others run on
            self._log.error("process_not_started", name=child.job.name, reason=str(exc))
            self._ended(child, _NOT_STARTED, now_ns)
            return
        child.row.pid = child.process.pid

    def _ended(self, child: _Child, code: int, now_ns: int) -> None:
        delay_s = child.budget.ended(now_ns, random.random())  # noqa: S311 - jitter
        child.ends += 1
        # one that was killed because a loop hung may hang again only when that loop's limit is over
        child.must_live_ns = child.budget.window_ns + (max(child.job.limits_ns.values()) if child.killed else 0)
        child.process = None
        child.row.pid = 0
        child.row.state = State.FAILED
        child.row.restarts += 1
        child.start_at_ns = now_ns + int(delay_s * NS_PER_S)
        self._log.error("process_ended", name=child.job.name, exit_code=code, again_in_s=round(delay_s, 2))
        self._note(
            Event(name="process_ended", facts={"process": child.job.name, "exit_code": code, "again_in_s": delay_s})
        )
        if code == _PACKAGE_REFUSED and not self._told_ready:
            self._exit_code, self._stopping = code, True  # nothing runs in part: the package must be mended first
        elif child.budget.degraded or (child.ends > child.budget.free and not child.alerted):
            child.alerted = True
            self._alert(child.job, active=True, code=code)

    def _hung(self, child: _Child, now_ns: int) -> str:
        """Which loop hangs, if any."""
        row, job = child.row, child.job
        if now_ns - self._stood_ns < _AFTER_STANDING_NS:
            return ""
        if row.state is State.STARTING:
            last_ns = max(row.started_ns, *row.beats().values(), 0)
            return "start" if now_ns - last_ns > _START_NS else ""
        if row.state in {
            State.STOPPING,
            State.FAILED,
        }:  # its threads may still beat: what counts is when its work ended
            beats = row.beats()
            last_ns = max(row.started_ns, beats.get("line", 0), beats.get("main", 0))
            return "stop" if now_ns - last_ns > int(job.stop_s * NS_PER_S) + _STOP_SLACK_NS else ""
        if row.state is not State.READY:
            return ""
        return hung(row.beats(), job.limits_ns, started_ns=row.started_ns, now_ns=now_ns)

    def _notify(self, now_ns: int) -> None:
        """Tell systemd: ready once all run, and the watchdog while every loop answers or is being restarted by us."""
        states = [child.row.state for child in self._children if not child.job.serves_others]
        ready = all(state is State.READY for state in states)
        if ready and not self._told_ready:
            self._told_ready = True
            _sd_notify("READY=1")
            self._log.info("daemon_ready", processes=len(states))
        for child in self._children:
            if child.row.state is not State.READY or now_ns - child.row.started_ns <= child.must_live_ns:
                continue
            child.ends = 0
            if child.alerted:
                child.alerted, child.budget = False, RestartBudget()
                self._alert(child.job, active=False, code=0)
        status = ", ".join(f"{child.job.name} {child.row.state.name.lower()}" for child in self._children)
        if status != self._status:
            self._status = status
            _sd_notify(f"STATUS={status}")
        answering = not any(child.process is not None and self._hung(child, now_ns) for child in self._children)
        if answering and now_ns - self._fed_ns > self._watchdog_ns // 4:
            self._fed_ns = now_ns
            _sd_notify("WATCHDOG=1" if self._told_ready else f"WATCHDOG=1\n{_EXTEND}")

    def _alert(self, job: Job, *, active: bool, code: int) -> None:
        self._note(
            AlertChange(
                id=f"process.{job.name}",
                active=active,
                priority="medium" if job.serves_others else "critical",
                ne107=Ne107.FAILURE if active else Ne107.NORMAL,
                text=f"{job.name} keeps ending (exit code {code}); it is started again and again" if active else "",
                action="See the log: journalctl -u edgeqc; then: edgeqc doctor" if active else "",
            )
        )

    def _stop(self) -> None:
        """Turn by turn: outputs are safe before anything else happens."""
        _sd_notify("STOPPING=1")
        self._log.info("daemon_stopping")
        for turn in sorted({child.job.turn for child in self._children}):
            told = [(child, child.process) for child in self._children if child.job.turn == turn and child.process]
            for _, process in told:
                process.terminate()
            told_at = time.monotonic()
            for child, process in told:
                try:
                    process.wait(max(0.0, told_at + child.job.stop_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self._log.error("process_killed", name=child.job.name, after_s=child.job.stop_s)
                    process.kill()
                    process.wait()
                child.row.state = State.OFF
        self._journal.close()
        if not os.environ.get("RUNTIME_DIRECTORY"):
            shutil.rmtree(self._run_dir, ignore_errors=True)
        self._log.info("daemon_stopped")


def _sd_notify(message: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(message.encode(), address)
