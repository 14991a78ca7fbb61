"""Images of parts: borrowed from the station's slots, written by a thread of their own, within a budget.

`state_dir/images/YYYY-MM-DD/<station>-<sequence>.png`, with several cameras `<station>-<sequence>.<camera>.png`; beside it `.map.png` with the defect map where there is one, and
with parts that were judged bad `.overlay.png`, the picture with map and defects drawn in.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from edgeqc.errors import EdgeqcError
from edgeqc.journal import Entry
from edgeqc.office.books import ImagesGone, ImageStored
from edgeqc.office.overlay import BESIDE, overlay, palette
from edgeqc.office.png import encode_png
from edgeqc.records import JUDGED, NS_PER_S, Defect, PartRecord, Verdict, ViewRecord
from edgeqc.settings import ArchiveSettings, ImageRules
from edgeqc.shm.slots import FrameSlots, file_name

FOLDER: Final = "images"
_MB: Final = 1 << 20
_QUEUE_BYTES: Final = 12 * _MB
"""Copies that wait for the disk: nine frames of 1280x1024; the office has 90 MB for everything."""
_LOOK_S: Final = 1.0
"""How often free disk space is looked at when no image comes."""
_ROOM_BYTES: Final = 16 * _MB
"""Kept free when the archive finds the disk full: SQLite needs room for its WAL before it can free anything."""


@dataclass(slots=True, kw_only=True)
class ImageCounts:
    """What became of the images, since the office started."""

    stored: int = 0
    given_up: int = 0
    """Lease lapsed, slots gone, or queue full."""
    failed: int = 0
    """The disk did not take it."""
    deleted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    path: str
    station: str
    sequence: int
    ring: bool
    pixels: NDArray[np.uint8]
    defect_map: NDArray[np.uint8] | None
    overlaid: tuple[Defect, ...] | None
    """The defects to draw in; None: the part was not judged bad."""

    @property
    def size(self) -> int:
        return self.pixels.nbytes + (self.defect_map.nbytes if self.defect_map is not None else 0)


class ImageStore:
    """`take` and `reconcile` are called by the tailing loop; the files are the thread's."""

    def __init__(
        self,
        state_dir: Path,
        run_dir: Path,
        settings: ArchiveSettings,
        rules: dict[str, ImageRules],
        report: Callable[[ImageStored | ImagesGone], None],
        *,
        cameras: Mapping[str, int] | None = None,
    ) -> None:
        """Nothing happens before `start`; `report` is called on the thread. `cameras`: how many, where not one."""
        self.counts = ImageCounts()
        self.bytes = 0
        self._state_dir = state_dir
        self._run_dir = run_dir
        self._settings = settings
        self._rules = rules
        self._report = report
        self._cameras = cameras or {}
        self._last_view: tuple[str, int, bool] | None = None
        """Station and sequence of the part whose views come, and whether it is only among the newest."""
        self._slots: dict[str, tuple[int, FrameSlots]] = {}
        self._passes: dict[str, int] = {}
        self._jobs: queue.SimpleQueue[_Job | dict[str, bool] | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._files: OrderedDict[str, int] = OrderedDict()
        self._ring: dict[str, deque[str]] = {}
        self._make_room = threading.Event()
        self._failing = False
        self._log = structlog.get_logger("edgeqc.images")
        self._thread = threading.Thread(target=self._run, name="images", daemon=True)

    def start(self) -> None:
        """Look through the folder, then write what comes."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Write what is queued and end."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        for _, slots in self._slots.values():
            slots.close()
        self._slots.clear()

    def reconcile(self, known: dict[str, bool]) -> None:
        """Bring a newly opened archive and the folder together: its images, and which are only among the newest."""
        self._jobs.put(known)

    def free_space(self) -> None:
        """The disk is full: delete the oldest images soon. Any thread."""
        self._make_room.set()

    @property
    def idle(self) -> bool:
        """Is everything on the disk that was taken?"""
        return self._queued_bytes == 0

    @property
    def alive(self) -> bool:
        """False once the thread ended for a reason that nobody thought of."""
        return self._thread.is_alive()

    def image_of(self, entry: Entry) -> str | None:
        """Take the image of a journal's record, where it has one."""
        match entry.body:
            case PartRecord() as record:
                return self.take(record)
            case ViewRecord() as view:
                return self.take_view(entry.writer.removeprefix("station-"), view)
            case _:
                return None

    def take(self, record: PartRecord) -> str | None:
        """Copy the part's image out of its slot and give the slot back; the file it will be in, None if given up.

        Takes as long as the copy (0.3 ms for 1280x1024), and none at all when the disk cannot follow.
        """
        if record.slot < 0:
            return None
        ring = self._only_newest(record.station, passed=record.verdict is Verdict.PASS)
        return self._take(record.station, "", record, record.trigger.sequence, record.trigger.wall_ns, ring=ring)

    def take_view(self, station: str, view: ViewRecord) -> str | None:
        """Take the image of one of several views, as `take`."""
        if view.slot < 0:
            return None
        if self._last_view is None or self._last_view[:2] != (station, view.sequence):
            ring = self._only_newest(station, passed=view.part_passed)
            self._last_view = (station, view.sequence, ring)
        return self._take(station, view.camera, view, view.sequence, view.wall_ns, ring=self._last_view[2])

    def _take(
        self, station: str, camera: str, record: PartRecord | ViewRecord, sequence: int, wall_ns: int, *, ring: bool
    ) -> str | None:
        path = _path(station, camera, sequence, wall_ns)
        slots = self._attached(file_name(station, camera))
        if slots is None:
            return self._given_up(path)
        size = slots.frame_bytes
        with self._lock:
            full = self._queued_bytes > 0 and self._queued_bytes + size > _QUEUE_BYTES
        if full:
            slots.give_back(record.slot, record.lease)
            return self._given_up(path)
        copies = slots.borrow(record.slot, record.lease)
        if copies is None:
            return self._given_up(path)
        job = _Job(
            path=path,
            station=station,
            sequence=sequence,
            ring=ring,
            pixels=copies[0],
            defect_map=copies[1] if slots.map_shape != (1, 1) else None,
            overlaid=record.defects if record.verdict is Verdict.REJECT and record.cause in JUDGED else None,
        )
        with self._lock:
            self._queued_bytes += job.size
        self._jobs.put(job)
        return path

    def _given_up(self, path: str) -> str | None:
        """Records that are read a second time find the file that the first reading left."""
        if (self._state_dir / path).exists():
            return path
        self.counts.given_up += 1
        return None

    def _only_newest(self, station: str, *, passed: bool) -> bool:
        """Are this part's images wanted only for being among the newest? The station lends what any rule wants."""
        rules = self._rules.get(station, ImageRules())
        if rules.newest == 0:
            return False
        if not passed:
            return not rules.rejects
        passes = self._passes.get(station, 0)
        self._passes[station] = passes + 1
        return rules.every_nth_pass == 0 or passes % rules.every_nth_pass != 0

    def _attached(self, file: str) -> FrameSlots | None:
        """A camera's slots; a station that came back with other frames has made another file."""
        path = self._run_dir / file
        try:
            inode = path.stat().st_ino
            held = self._slots.get(file)
            if held is None or held[0] != inode:
                if held is not None:
                    held[1].close()
                    del self._slots[file]
                held = self._slots[file] = (inode, FrameSlots.attach(path))
        except (OSError, EdgeqcError) as exc:
            self._log.warning("slots_unavailable", file=file, reason=str(exc)[:255])
            return None
        return held[1]

    def _run(self) -> None:
        try:
            self._scan()
            while True:
                try:
                    job = self._jobs.get(timeout=_LOOK_S)
                except queue.Empty:
                    self._keep_budget()
                    continue
                if job is None:
                    return
                if isinstance(job, dict):
                    self._reconcile(job)
                    continue
                self._store(job)
                with self._lock:
                    self._queued_bytes -= job.size
                self._keep_budget()
        except Exception:  # noqa: BLE001 - the thread's root: `alive` tells the office, which ends and is started again
            self._log.exception("image_thread_failed")

    def _scan(self) -> None:
        """Learn what is there, oldest first; half-written files go."""
        found: list[tuple[float, str, int]] = []
        for part in self._state_dir.glob(f"{FOLDER}/*/.*.part"):
            part.unlink(missing_ok=True)
        for file in self._state_dir.glob(f"{FOLDER}/*/*.png"):
            if file.name.endswith(BESIDE):
                continue
            with contextlib.suppress(OSError):
                size = file.stat().st_size + sum(_size(file.with_suffix(suffix)) for suffix in BESIDE)
                found.append((file.stat().st_mtime, str(file.relative_to(self._state_dir)), size))
        for _, path, size in sorted(found):
            self._files[path] = size
            self.bytes += size

    def _reconcile(self, known: dict[str, bool]) -> None:
        gone = [path for path in known if path not in self._files]
        if gone:
            self._report(ImagesGone(paths=gone))
        for path, size in self._files.items():
            station, _, sequence = Path(path).stem.partition(".")[0].rpartition("-")
            if path in known:
                if known[path] and path not in self._ring.setdefault(station, deque()):
                    self._ring[station].append(path)
            elif sequence.isdecimal():
                self._report(ImageStored(path=path, station=station, sequence=int(sequence), size=size, ring=False))

    def _store(self, job: _Job) -> None:
        target = self._state_dir / job.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            size = _write(target, encode_png(job.pixels))
            if job.defect_map is not None:
                size += _write(target.with_suffix(".map.png"), encode_png(job.defect_map))
            if job.defect_map is not None and job.overlaid is not None:
                drawn = encode_png(overlay(job.pixels, job.defect_map, job.overlaid), palette())
                size += _write(target.with_suffix(".overlay.png"), drawn)
        except OSError as exc:
            self.counts.failed += 1
            self._make_room.set()
            if not self._failing:
                self._log.error("image_not_stored", file=job.path, reason=str(exc))
            self._failing = True
            return
        self._failing = False
        self.counts.stored += 1
        self.bytes += size - self._files.pop(job.path, 0)
        self._files[job.path] = size
        self._report(ImageStored(path=job.path, station=job.station, sequence=job.sequence, size=size, ring=job.ring))
        if job.ring:
            ring = self._ring.setdefault(job.station, deque())
            ring.append(job.path)
            while len(ring) > self._rules[job.station].newest * self._cameras.get(job.station, 1):
                self._delete([ring.popleft()])

    def _keep_budget(self) -> None:
        """Oldest first, until images_mb and disk_free_mb are kept, and some more if the archive asked for room."""
        wanted = self.bytes - self._settings.images_mb * _MB
        room = self._settings.disk_free_mb * _MB
        if self._make_room.is_set():
            self._make_room.clear()
            room = max(room, _ROOM_BYTES)
        with contextlib.suppress(OSError):
            wanted = max(wanted, room - shutil.disk_usage(self._state_dir).free)
        paths: list[str] = []
        for path, size in self._files.items():
            if wanted <= 0:
                break
            paths.append(path)
            wanted -= size
        if paths:
            self._delete(paths)

    def _delete(self, paths: list[str]) -> None:
        for path in paths:
            if path not in self._files:
                continue  # went before, e.g. for the budget while it was among the newest
            file = self._state_dir / path
            self.bytes -= self._files.pop(path)
            self.counts.deleted += 1
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
                for suffix in BESIDE:
                    file.with_suffix(suffix).unlink(missing_ok=True)
                file.parent.rmdir()  # only when it was the day's last
        self._report(ImagesGone(paths=paths))


def path_of(record: PartRecord) -> str:
    """Where the part's image is, below the state directory."""
    return _path(record.station, "", record.trigger.sequence, record.trigger.wall_ns)


def _path(station: str, camera: str, sequence: int, wall_ns: int) -> str:
    day = datetime.fromtimestamp(wall_ns // NS_PER_S, UTC)
    return f"{FOLDER}/{day:%Y-%m-%d}/{station}-{sequence}{camera and f'.{camera}'}.png"


def _write(target: Path, data: bytes) -> int:
    """Whole or not at all, whatever happens in between."""
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return len(data)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
