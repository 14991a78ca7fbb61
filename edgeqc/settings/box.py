"""One box beside one line: all of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from edgeqc.core.reads import plan_reads
from edgeqc.settings.base import Model, Name
from edgeqc.settings.gpu import GpuSettings
from edgeqc.settings.machine import MachineSettings
from edgeqc.settings.office import ArchiveSettings, JournalSettings, MqttSettings
from edgeqc.settings.plc import ModbusPlcSettings
from edgeqc.settings.recipe import EngineSettings
from edgeqc.settings.server import ServerSettings
from edgeqc.settings.sharing import shared
from edgeqc.settings.station import StationSettings
from edgeqc.settings.tags import (
    DerivedTagSettings,
    DerivedTagSource,
    GridSettings,
    HistorySettings,
    ModbusTagSource,
    StateSource,
    TagSettings,
    TagSourceSettings,
)


class Settings(Model):
    """One box beside one line."""

    version: Literal[1]
    node: Name = Field(description="this box's name in topics and records")
    state_dir: Path | None = Field(
        None, description="null: $STATE_DIRECTORY, else /var/lib/edgeqc where the service is installed, else ./state"
    )
    run_dir: Path | None = Field(
        None, description="shared memory; null: $RUNTIME_DIRECTORY, else /dev/shm/edgeqc-<uid>-..."
    )
    stations: list[StationSettings] = Field(min_length=1, max_length=16)
    engines: EngineSettings = EngineSettings()
    gpu: GpuSettings = GpuSettings()
    journal: JournalSettings = JournalSettings()
    archive: ArchiveSettings = ArchiveSettings()
    mqtt: MqttSettings | None = None
    server: ServerSettings = ServerSettings()
    tags: list[TagSourceSettings] = Field(default_factory=list, max_length=32)
    grid: GridSettings = GridSettings()
    history: HistorySettings = HistorySettings()
    machines: list[MachineSettings] = Field(
        default_factory=list, max_length=64, description="whose tags a model watches"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        faults = [
            f"stations[{index}].{fault}" for index, station in enumerate(self.stations) for fault in station.misfits()
        ]
        faults += [f"tags[{index}].{fault}" for index, source in enumerate(self.tags) for fault in source.misfits()]
        names: dict[str, str] = {
            f"tags[{index}].tags[{place}].name": tag.name
            for index, source in enumerate(self.tags)
            for place, tag in enumerate(_tags_of(source))
        }
        faults += _twice({f"stations[{index}].name": station.name for index, station in enumerate(self.stations)})
        faults += _twice({f"tags[{index}].name": source.name for index, source in enumerate(self.tags)})
        faults += _twice(names)
        known = set(names.values())
        faults += [
            f"stations[{index}].required_tags[{place}]: {name} is no tag of any source"
            for index, station in enumerate(self.stations)
            for place, name in enumerate(station.required_tags)
            if name not in known
        ]
        faults += [
            f"stations[{index}].snapshot_tags[{place}]: {name} is no tag of any source"
            for index, station in enumerate(self.stations)
            for place, name in enumerate(station.snapshot_tags or ())
            if name not in known
        ]
        faults += _made_of_nothing(self.tags)
        faults += _without_rest(self.tags)
        faults += _through_nothing(self.tags, self.stations)
        faults += _twice({f"machines[{index}].name": machine.name for index, machine in enumerate(self.machines)})
        states = {source.name for source in self.tags if isinstance(source, StateSource)}
        for index, machine in enumerate(self.machines):
            faults += [
                f"machines[{index}].tags.{tag}: {name} is no tag of any source"
                for tag, name in machine.tags.items()
                if name not in known
            ]
            if machine.state is not None and machine.state not in states:
                faults.append(f"machines[{index}].state: {machine.state} is no source of type: state")
        faults += shared(self.stations, self.server)
        if self.mqtt is not None and self.mqtt.password is not None and self.mqtt.user is None:
            faults.append("mqtt.user: is missing, password is nothing without it")
        journal = self.journal
        if journal.budget_mb < 2 * journal.segment_mb:  # else each new one would take what the office has not read yet
            least = f"{2 * journal.segment_mb}, two segments of segment_mb: {journal.segment_mb}"
            faults.append(f"journal.budget_mb: {journal.budget_mb} is under {least}")
        if faults:
            raise ValueError("\n".join(faults))
        return self


def _tags_of(source: TagSourceSettings) -> list[TagSettings | DerivedTagSettings]:
    return [*source.tags]


def _twice(names: dict[str, str]) -> list[str]:
    """Each path whose name an earlier one has."""
    first: dict[str, str] = {}
    return [
        f"{path}: {name} is the name of {first[name]} already"
        for path, name in names.items()
        if first.setdefault(name, path) != path
    ]


def _made_of_nothing(sources: list[TagSourceSettings]) -> list[str]:
    """Each reference of a derived tag or a state to a tag that is not there, or not before it."""
    measured = {
        tag.name for source in sources if not isinstance(source, DerivedTagSource | StateSource) for tag in source.tags
    }
    derived = {tag.name for source in sources if isinstance(source, DerivedTagSource) for tag in source.tags}
    faults: list[str] = []
    before = set(measured)
    for index, source in enumerate(sources):
        if isinstance(source, DerivedTagSource):
            for place, tag in enumerate(source.tags):
                faults += [
                    f"tags[{index}].tags[{place}].of[{which}]: {name} is no measured tag and no derived one before this"
                    for which, name in enumerate(tag.of)
                    if name not in before
                ]
                before.add(tag.name)
        elif isinstance(source, StateSource):
            faults += [
                f"tags[{index}].{key}[{place}].tag: {condition.tag} is no measured or derived tag"
                for key, conditions in (("running", source.running), ("changeover", source.changeover))
                for place, condition in enumerate(conditions)
                if condition.tag not in measured | derived
            ]
    return faults


def _without_rest(sources: list[TagSourceSettings]) -> list[str]:
    """Each Modbus device that would have to be asked more often than its rest allows."""
    devices: dict[str, list[tuple[int, ModbusTagSource]]] = {}
    for index, source in enumerate(sources):
        if isinstance(source, ModbusTagSource):
            devices.setdefault(source.device, []).append((index, source))
    faults = []
    for device, asking in devices.items():
        index, longest = max(asking, key=lambda each: each[1].gap_ms)
        polls = [(source, len(plan_reads(source.spans))) for _, source in asking]
        ratio = sum(reads * longest.gap_ms / source.poll_ms for source, reads in polls)
        if ratio > 1:
            told = ", ".join(f"{source.name} {reads} each {source.poll_ms:g} ms" for source, reads in polls)
            faults.append(
                f"tags[{index}].gap_ms: {longest.gap_ms:g} behind each request to {device} takes {100 * ratio:.0f} % of the time, "
                f"over 100 % ({told})"
            )
    return faults


def _through_nothing(sources: list[TagSourceSettings], stations: list[StationSettings]) -> list[str]:
    """Each source whose station has no connection to share, or shares less of it than the source wants."""
    places = {station.name: place for place, station in enumerate(stations)}
    faults = []
    busy: dict[str, float] = {}
    for index, source in enumerate(sources):
        if not isinstance(source, ModbusTagSource) or source.through is None:
            continue
        place = places.get(source.through)
        if place is None:
            faults.append(f"tags[{index}].through: {source.through} is no station")
            continue
        station, plc = stations[place], stations[place].plc
        if not isinstance(plc, ModbusPlcSettings):
            faults.append(
                f"tags[{index}].through: {source.through} has no connection to share, "
                f"stations[{place}].plc.type is {plc.type}, not modbus"
            )
            continue
        if source.device_id != plc.device_id:
            faults.append(
                f"tags[{index}].device_id: {source.device_id} is not {plc.device_id} (stations[{place}].plc.device_id)"
            )
        reads, poll_ms = len(plan_reads(source.spans)), station.trigger.poll_ms
        busy[source.through] = busy.get(source.through, 0.0) + reads * poll_ms / source.poll_ms
        if station.polls_plc and busy[source.through] > 1:
            faults.append(
                f"tags[{index}].poll_ms: {source.poll_ms:g} is too often: {reads} requests, one behind each poll of the "
                f"PLC (stations[{place}].trigger.poll_ms {poll_ms:g}), take {100 * busy[source.through]:.0f} % of the "
                "polls with the sources before, over 100 %"
            )
    return faults
