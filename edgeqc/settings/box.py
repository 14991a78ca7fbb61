"""One box beside one line: all of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from edgeqc.settings.base import Model, Name
from edgeqc.settings.office import ArchiveSettings, JournalSettings, MqttSettings
from edgeqc.settings.recipe import EngineSettings
from edgeqc.settings.server import ServerSettings
from edgeqc.settings.station import StationSettings
from edgeqc.settings.tags import TagSourceSettings


class Settings(Model):
    """One box beside one line."""

    version: Literal[1]
    node: Name = Field(description="this box's name in topics and records")
    state_dir: Path | None = Field(None, description="null: $STATE_DIRECTORY, else ./state")
    run_dir: Path | None = Field(
        None, description="shared memory; null: $RUNTIME_DIRECTORY, else /dev/shm/edgeqc-<uid>-..."
    )
    stations: list[StationSettings] = Field(min_length=1, max_length=16)
    engines: EngineSettings = EngineSettings()
    journal: JournalSettings = JournalSettings()
    archive: ArchiveSettings = ArchiveSettings()
    mqtt: MqttSettings | None = None
    server: ServerSettings = ServerSettings()
    tags: list[TagSourceSettings] = Field(default_factory=list, max_length=16)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        faults = [
            f"stations[{index}].{fault}" for index, station in enumerate(self.stations) for fault in station.misfits()
        ]
        faults += [f"tags[{index}].{fault}" for index, source in enumerate(self.tags) for fault in source.misfits()]
        names = {
            f"tags[{index}].tags[{place}].name": tag.name
            for index, source in enumerate(self.tags)
            for place, tag in enumerate(source.tags)
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
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _twice(names: dict[str, str]) -> list[str]:
    """Each path whose name an earlier one has."""
    first: dict[str, str] = {}
    return [
        f"{path}: {name} is the name of {first[name]} already"
        for path, name in names.items()
        if first.setdefault(name, path) != path
    ]
