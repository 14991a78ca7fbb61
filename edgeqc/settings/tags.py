"""The machine's values and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from edgeqc.core.datatype import REGISTER_BITS, WordOrder, width
from edgeqc.core.derive import How
from edgeqc.core.reads import Span
from edgeqc.settings.base import Host, Model, Name, Node
from edgeqc.settings.plc import OpcuaEndpoint

MODBUS_PORT: Final = 502
_YEAR_S: Final = 31_536_000


class TagSettings(Model):
    """One value of the machine."""

    name: Name
    node: Node | None = Field(None, description="OPC UA NodeId")
    register_address: int | None = Field(None, ge=0, le=65_535, alias="register", description="Modbus holding register")
    type: Literal["uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64", "bool"] = "float64"
    word_order: WordOrder = Field(
        WordOrder.ABCD, description="which byte of a 32-bit value is where; `edgeqc plc probe` shows all four"
    )
    bit: int | None = Field(
        None, ge=0, lt=REGISTER_BITS, description="type bool: this bit of the register, 0 is the lowest; null: any"
    )
    element: int | None = Field(None, ge=0, le=65_535, description="OPC UA: which one of an array, from 0")
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    min: float | None = Field(None, description="in `unit`: below it the value is Uncertain")
    max: float | None = Field(None, description="in `unit`: above it the value is Uncertain")
    deadband: float = Field(
        0.0, ge=0, description="in `unit`: a smaller change is no sample; an OPC UA server is asked not to send it"
    )
    stuck_s: float | None = Field(
        None,
        gt=0,
        le=_YEAR_S,
        description="no change at all for this long: the sensor is stuck, the value Uncertain; null: never",
    )


class TagSourceBase(Model):
    """A server of tag values."""

    name: Name
    stale_ms: float = Field(
        2000, ge=50, le=86_400_000, description="no sign of life for this long: the source is stale, tags BAD"
    )
    tags: list[TagSettings] = Field(min_length=1)

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        key = {"opcua": "node", "modbus": "register_address"}.get(getattr(self, "type", ""))
        faults = [
            f"tags[{place}].{key.removesuffix('_address')}: is missing, {tag.name} is nowhere without it"
            for place, tag in enumerate(self.tags)
            if key and getattr(tag, key) is None
        ]
        faults += [
            f"tags[{place}].min: {tag.min:g} is not under {tag.max:g} (max)"
            for place, tag in enumerate(self.tags)
            if tag.min is not None and tag.max is not None and tag.min >= tag.max
        ]
        faults += [
            f"tags[{place}].bit: {tag.bit} is a bit of a register, {tag.name} is {tag.type}, not bool"
            for place, tag in enumerate(self.tags)
            if tag.bit is not None and tag.type != "bool"
        ]
        most_ms = self.stale_ms / 2
        faults += [
            f"{key}: {period_ms:g} is over {most_ms:g}, half of stale_ms: its tags would be BAD from one to the next"
            for key in ("poll_ms", "publishing_ms")
            if (period_ms := getattr(self, key, 0)) > most_ms
        ]
        return faults


class OpcuaTagSource(TagSourceBase, OpcuaEndpoint):
    """Tags by OPC UA subscription."""

    type: Literal["opcua"]
    publishing_ms: float = Field(100, ge=10, le=60_000)
    sampling_ms: float = Field(50, ge=0, le=60_000)

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        return [*super().misfits(), *self.half_identity()]


class ModbusTagSource(TagSourceBase):
    """Tags by polling Modbus holding registers."""

    type: Literal["modbus"]
    host: Host | None = Field(None, description="the server; left out with `through`")
    port: int = Field(MODBUS_PORT, ge=1, le=65_535)
    through: Name | None = Field(
        None,
        description="instead of host and port: the station over whose connection to its PLC the tags are read, one "
        "request behind each of its polls",
    )
    device_id: int = Field(1, ge=0, le=255)
    poll_ms: float = Field(100, ge=10, le=60_000)
    gap_ms: float = Field(
        0,
        ge=0,
        le=10_000,
        description="rest of the device between the end of a request and the next; sources at the same host and port "
        "take turns, and the longest of theirs holds for all; 0: none",
    )

    @property
    def device(self) -> str:
        """What all sources have in common that ask the same device."""
        return f"{self.host}:{self.port}" if self.through is None else f"the PLC of station {self.through}"

    @property
    def spans(self) -> list[Span]:
        """Each tag's registers."""
        return [Span(address=tag.register_address or 0, count=width(tag.type)) for tag in self.tags]

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        faults = super().misfits()
        if self.through is None and self.host is None:
            faults.append("host: is missing, and so is through")
        if self.through is not None and (self.host is not None or self.port != MODBUS_PORT):
            key, value = ("host", self.host) if self.host is not None else ("port", self.port)
            faults.append(f"{key}: {value} stands beside through, which is a connection already")
        return faults


class ReplayTagSource(TagSourceBase):
    """Tags from a CSV file: first column seconds, then one column per tag name."""

    type: Literal["replay"]
    file: Path
    speed: float = Field(1.0, gt=0, le=1000)


class DerivedTagSettings(Model):
    """A value made of others: `difference` and `ratio` of two tags, `rate` and `count` of one."""

    name: Name
    how: How
    of: list[Name] = Field(min_length=1, max_length=2, description="names of the tags it is made of")
    window_s: float = Field(10.0, gt=0, le=86_400, description="how: rate: over how long the change is measured")
    wraps_at: float | None = Field(
        None, gt=0, description="how: rate or count, of a counter: the value at which it is 0 again, e.g. 65536"
    )
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    min: float | None = Field(None, description="in `unit`: below it the value is Uncertain")
    max: float | None = Field(None, description="in `unit`: above it the value is Uncertain")

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        wanted = 2 if self.how in {How.DIFFERENCE, How.RATIO} else 1
        faults = []
        if len(self.of) != wanted:
            faults.append(f"of: {len(self.of)} tags, {self.how} is made of {wanted}")
        if self.wraps_at is not None and wanted == 2:  # noqa: PLR2004 - the two of a difference
            faults.append(f"wraps_at: is for rate and count, this is a {self.how}")
        if self.min is not None and self.max is not None and self.min >= self.max:
            faults.append(f"min: {self.min:g} is not under {self.max:g} (max)")
        return faults


class DerivedTagSource(Model):
    """Tags made of the tags of other sources."""

    type: Literal["derived"]
    name: Name
    tags: list[DerivedTagSettings] = Field(min_length=1)

    @property
    def stale_ms(self) -> float:
        """A derived tag is as good as its inputs, for as long as who makes it is there."""
        return MADE_STALE_MS

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        return [f"tags[{place}].{fault}" for place, tag in enumerate(self.tags) for fault in tag.misfits()]


class ConditionSettings(Model):
    """A tag's value lies within bounds, both included."""

    tag: Name
    over: float | None = Field(None, description="at least this")
    under: float | None = Field(None, description="at most this")
    equals: float | None = Field(None, description="exactly this; for states and bits")

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        if self.equals is None and self.over is None and self.under is None:
            return [f"tag: {self.tag} needs over, under or equals"]
        if self.equals is not None and (self.over is not None or self.under is not None):
            return ["equals: does not go with over or under"]
        if self.over is not None and self.under is not None and self.over > self.under:
            return [f"over: {self.over:g} is over {self.under:g} (under)"]
        return []


class StateSource(Model):
    """What a machine is doing, told from its tags.

    It is a tag itself, named as this source: 0 unknown, 1 stopped, 2 changeover, 3 warm-up, 4 running.
    """

    type: Literal["state"]
    name: Name
    running: list[ConditionSettings] = Field(min_length=1, description="it runs where all of these hold")
    changeover: list[ConditionSettings] = Field(
        default_factory=list, description="it is changed over where all of these hold; empty: never"
    )
    warm_up_s: float = Field(0.0, ge=0, le=86_400, description="after each start, before it counts as running")
    settle_s: float = Field(0.0, ge=0, le=3600, description="what the tags say must hold this long")

    @property
    def stale_ms(self) -> float:
        """It says `unknown` by itself, for as long as who tells it is there."""
        return MADE_STALE_MS

    @property
    def tags(self) -> list[TagSettings]:
        """The one tag: the state's number."""
        return [TagSettings.model_validate({"name": self.name})]

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        return [
            f"{key}[{place}].{fault}"
            for key, conditions in (("running", self.running), ("changeover", self.changeover))
            for place, condition in enumerate(conditions)
            for fault in condition.misfits()
        ]


class GridSettings(Model):
    """The common grid of times on which tags are judged."""

    period_ms: float = Field(100.0, ge=10, le=60_000)
    late_ms: float = Field(
        200.0,
        ge=0,
        le=60_000,
        description="a row waits this long for samples of servers that have not yet told what was until then",
    )


class HistorySettings(Model):
    """The tags' own recording in the state directory, oldest first out."""

    mb: int = Field(1024, ge=0, description="disk for all of it, 0 = no recording")
    days: float = Field(30.0, gt=0, description="older than this goes, too")
    keep_free_mb: int = Field(512, ge=0, description="with less room than this on the disk the recording gives way")


MADE_STALE_MS: Final = 2000.0
"""The watch process gives what it makes of tags a sign of life each half second."""

TagSourceSettings = Annotated[
    OpcuaTagSource | ModbusTagSource | ReplayTagSource | DerivedTagSource | StateSource, Field(discriminator="type")
]
