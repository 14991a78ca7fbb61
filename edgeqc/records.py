"""The facts that cross a boundary: what a part, a frame, a verdict and a tag value are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000


class Verdict(StrEnum):
    """What the line does with a part. There is no third: no verdict is a reject with its cause."""

    PASS = "pass"  # noqa: S105 - not a password
    REJECT = "reject"


class Cause(StrEnum):
    """Why a verdict is what it is. Everything but OK, DEFECT, ANOMALY and HOLD is the fail-safe verdict."""

    OK = "ok"
    DEFECT = "defect"
    ANOMALY = "anomaly"
    LATE = "late"
    NO_FRAME = "no_frame"
    BAD_FRAME = "bad_frame"
    ENGINE = "engine"
    BAD_TAG = "bad_tag"
    JOURNAL = "journal"
    PLC = "plc"
    STARTING = "starting"
    RECIPE = "recipe"
    IDENTITY = "identity"
    HOLD = "hold"
    """Neither clearly good nor clearly bad: rejected, and for a person to look at."""


JUDGED: Final = frozenset({Cause.OK, Cause.DEFECT, Cause.ANOMALY, Cause.HOLD})
"""Causes that say something about the part itself; all others speak of the station."""

RESULT_CODE: Final[dict[Cause, int]] = {
    Cause.OK: 1,
    Cause.DEFECT: 10,
    Cause.ANOMALY: 11,
    Cause.HOLD: 12,
    Cause.LATE: 100,
    Cause.NO_FRAME: 101,
    Cause.BAD_FRAME: 102,
    Cause.ENGINE: 103,
    Cause.BAD_TAG: 104,
    Cause.JOURNAL: 105,
    Cause.PLC: 106,
    Cause.STARTING: 107,
    Cause.RECIPE: 108,
    Cause.IDENTITY: 109,
}
"""What the PLC reads in its result-code register; 0 = no result yet, below 100 = judged, from 100 = fail-safe."""


class FrameStatus(StrEnum):
    """Is this frame fit to be judged, and if not, why."""

    OK = "ok"
    INCOMPLETE = "incomplete"
    WRONG_SIZE = "wrong_size"
    STALE = "stale"
    UNREADABLE = "unreadable"


class Quality(IntEnum):
    """OPC UA's three qualities of a tag value."""

    BAD = 0
    UNCERTAIN = 1
    GOOD = 2


class Ne107(StrEnum):
    """NAMUR NE 107 state of a component."""

    NORMAL = "normal"
    FAILURE = "failure"
    FUNCTION_CHECK = "function_check"
    OUT_OF_SPECIFICATION = "out_of_specification"
    MAINTENANCE_REQUIRED = "maintenance_required"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One image as the camera delivered it, in a slot of our own memory.

    The receiver owns the slot until it releases it; `pixels` is a view and is stale after that.
    """

    slot: int
    """Index into the station's frame slots."""
    pixels: NDArray[np.uint8]
    """(height, width) Mono8 view on the slot; undefined where `status` is not OK."""
    frame_id: int
    """The camera's own frame counter, as GVSP has it: 16 bit, 65535 is followed by 1."""
    status: FrameStatus
    received_ns: int
    """Monotonic time at which the whole frame was in hand."""
    transfer_ns: int
    """First packet to whole frame, 0 where the source has no notion of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A part is there: seen at `at_ns`, told by the PLC or by the frame itself."""

    sequence: int
    """Counts this station's triggers from 1 since the journal began; never reused."""
    part_id: str
    """As the PLC names the part; the sequence number where it does not."""
    at_ns: int
    """Monotonic; the part's budget starts here."""
    wall_ns: int
    """UTC nanoseconds since 1970 of the same moment, for people and archives only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One place on the part that the engine objects to."""

    name: str
    score: float
    x_px: int
    y_px: int
    width_px: int
    height_px: int
    area_px: int = 0
    """Of the place itself, not of the box around it; 0: not known (records of earlier releases)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """When a part reached each stage: monotonic ns, 0 = never got there."""

    trigger_ns: int
    frame_ns: int = 0
    transfer_ns: int = 0
    """Duration, not a moment: trigger (or first packet) to whole frame."""
    prepared_ns: int = 0
    scored_ns: int = 0
    decided_ns: int = 0
    journaled_ns: int = 0
    delivered_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the engine said of a part: score, where, and by which model."""

    score: float
    """0..1, higher is worse."""
    defects: tuple[Defect, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """Everything that is known of a part when its verdict is made: the journal's unit."""

    station: str
    trigger: Trigger
    frame_id: int
    """0 where no frame came."""
    verdict: Verdict
    cause: Cause
    score: float
    """NaN where the engine gave none."""
    threshold: float
    ledger: Ledger
    deadline_ns: int
    recipe: str
    model_digest: bytes
    """SHA-256 of the model file, 32 bytes; zeros where no engine was asked."""
    defects: tuple[Defect, ...] = ()
    slot: int = -1
    """Frame slot that holds the image under `lease`; -1 = no image is kept."""
    lease: int = 0
    view: int = 0
    """Which of the station's cameras the verdict comes from, from 0; -1 = none in particular."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRecord:
    """What one of several cameras showed of a part, whether it came in time or not; follows the part's own record."""

    sequence: int
    """The trigger's sequence: which part."""
    wall_ns: int
    """The trigger's."""
    place: int
    """Of the camera in the configuration, from 0."""
    camera: str
    """Its name."""
    verdict: Verdict
    """By this view alone, as known when the part was settled."""
    cause: Cause
    frame_id: int
    """0 where no frame came."""
    score: float
    """NaN where the engine gave none."""
    threshold: float
    model_digest: bytes
    """SHA-256 of the model file, 32 bytes."""
    frame_ns: int = 0
    transfer_ns: int = 0
    prepared_ns: int = 0
    scored_ns: int = 0
    """As in `Ledger`."""
    defects: tuple[Defect, ...] = ()
    slot: int = -1
    """Slot of this camera that holds the image under `lease`; -1 = no image is kept."""
    lease: int = 0
    part_passed: bool = False
    """The part's verdict, by which its images are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTag:
    """What was known of one tag at a part's exposure."""

    name: str
    value: float
    """NaN where nothing was known."""
    quality: Quality
    age_s: float
    """From the value's arrival to the exposure; inf where none ever came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The machine at a part's exposure. Many tags take several of these, one after the other."""

    sequence: int
    """The trigger's sequence: which part."""
    tags: tuple[SnapshotTag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How the verdict reached the PLC, or did not."""

    sequence: int
    """The trigger's sequence: which part."""
    verdict: Verdict
    """What was announced: other than the part record's only where a PASS could no longer be: disk or time failed it."""
    cause: Cause
    delivered: bool
    delivered_ns: int
    """Monotonic time of the PLC's acknowledgement, 0 where none came."""
    late: bool
    """True where the acknowledgement came after the deadline."""
    late_score: float
    """NaN, or the score that came after the fail-safe verdict: recorded, changes nothing."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlcResult:
    """What one write puts before the PLC."""

    sequence: int
    part_id: str
    verdict: Verdict | None
    """None = no result: both PASS and REJECT are off."""
    code: int
    busy: bool
    ready: bool
    fault: bool
    score: float
    overrun: bool = False
    """A result was lost to the PLC: see edgeqc.core.handshake."""
    stop: bool = False
    """The PLC is asked to stop the line: see edgeqc.core.stopping."""
    trigger_ack: int = 0
    """The PLC's trigger counter as last taken up."""
    waiting: int = 0
    """Results that are not acknowledged yet, the one that is shown included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlcTrigger:
    """What one read of the PLC's trigger block gave."""

    counter: int
    """Counts parts, wraps at the width the PLC has (Modbus: 16 bit)."""
    part_id: str
    read_ns: int
    """Monotonic time at which the answer was in hand."""
    exact: bool = False
    """`read_ns` is when the counter came to be as it is: the PLC wrote it here, and no look before says how old it is."""
    recipe: int = 0
    """Number of the recipe that the part is to be judged by; 0 where the PLC names none."""
    ack: int = 0
    """Sequence of the result that the PLC took last; 0 where it does not acknowledge."""
    heartbeat: int = 0
    """The PLC program's own; 0 where it has none."""
    written: bool = True
    """False: the PLC is to write the block here, and has not done so yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagValue:
    """The last that is known of one tag."""

    name: str
    value: float
    quality: Quality
    source_ts: float
    """The peer's UTC, seconds since 1970; 0 where it gave none."""
    received_ns: int
    """Monotonic; age = now - received_ns. 0 = never received."""


class TagFault(IntEnum):
    """What is wrong with a tag's value, beyond its quality."""

    NONE = 0
    STATUS = 1
    """The server itself says Bad."""
    NOT_A_NUMBER = 2
    """NaN, infinite, text."""
    REFUSED = 3
    """The server knows no such tag, or will not give it."""
    TYPE = 4
    """The value has another type than it had when the tag was first seen."""
    STUCK = 5
    """It has not changed for longer than it may stay the same."""


class TagRemark(StrEnum):
    """What a source has to say of itself, beyond values; each stands until it is taken back."""

    REFUSED = "refused"
    TYPE = "type"
    NAMESPACES = "namespaces"
    """The server numbers its namespaces in another way than before."""
    RESTARTED = "restarted"
    SAMPLES_LOST = "samples_lost"
    """The server's queue was full: values change faster than they are fetched."""
    SLOW = "slow"
    """The server gives signs of life less often than it would have to for its tags to stay Good."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TagBatch:
    """Samples of one source in the order in which it sent them: arrays of one length, the receiver's own."""

    source: str
    places: NDArray[np.int32]
    """Each sample's tag, by its place in the source's configuration."""
    values: NDArray[np.float64]
    """In the tag's unit; NaN where the quality is Bad."""
    qualities: NDArray[np.uint8]
    """`Quality`"""
    faults: NDArray[np.uint8]
    """`TagFault`"""
    source_ns: NDArray[np.int64]
    """The peer's UTC of each, ns since 1970; 0 where it gave none."""
    received_ns: int
    """Monotonic."""
    sent_ns: int = 0
    """The peer's UTC when it sent them; 0 where it does not say."""
    complete_to_ns: int = 0
    """Monotonic: nothing older than this is still to come from the source; 0 where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process of the daemon began: what it runs with. Parts of an earlier run that were never delivered end here."""

    process: str
    run_id: str
    """New at each start of the process, 16 hex digits."""
    version: str
    config_digest: str
    """First 16 hex digits of the configuration's SHA-256."""
    backend: str = ""
    model: str = ""
    """name@version"""
    model_digest: str = ""
    """SHA-256 in hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change of state worth keeping: a constant snake_case fact and its particulars."""

    name: str
    facts: dict[str, str | int | float | bool]


RECIPE_READY: Final = "recipe_ready"
"""An event of a station, one for each recipe at its start: what judges by it, and who vouches for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertChange:
    """An alert for people begins or ends."""

    id: str
    """Dotted and stable, e.g. `top.camera.lost`; also the topic's last level."""
    active: bool
    priority: str
    """diagnostic, low, medium, high or critical."""
    ne107: Ne107
    text: str
    """What is wrong, for the maintenance engineer."""
    action: str
    """What to do about it."""
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    contribution: tuple[tuple[str, float], ...] = ()
    """Tags that the alert is about with their shares of it (0..1), largest first; at most three."""
    latched: bool = False
    """Once over it stays before people until one has acknowledged it."""
    suppressed: bool = False
    """True while the machine's state makes it meaningless (stopped, changeover): followed, but not shown."""
