"""Journal, archive and broker."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import Field

from edgeqc.core.alarm import Verb
from edgeqc.settings.base import Host, Model, Secret

_MQTT_MOST: Final = 0xFFFF_FFFF
"""Seconds: a four-byte integer of MQTT 5. As the expiry of a session it is never."""


class JournalSync(StrEnum):
    """When a record is safe from a power cut."""

    GROUP = "group"
    EACH = "each"


class JournalSettings(Model):
    """The append-only file that every verdict goes through."""

    sync: JournalSync = Field(JournalSync.GROUP, description="each: a PASS waits for the disk; group: the disk follows")
    group_ms: float = Field(50, ge=1, le=10_000)
    segment_mb: int = Field(4, ge=1, le=256)
    budget_mb: int = Field(256, ge=8, le=65_536, description="per process; oldest archived segments go first")
    ballast_mb: int = Field(16, ge=0, le=1024, description="freed when the disk is full, so that the line goes on")


class ArchiveSettings(Model):
    """What is kept on this box."""

    images_mb: int = Field(512, ge=1, le=1 << 22, description="oldest images go first")
    rows_days: int = Field(90, ge=1, le=3650)
    disk_free_mb: int = Field(256, ge=0, description="below this, images are deleted until it is met")


class TlsSettings(Model):
    """TLS towards the broker."""

    ca: Path | None = Field(None, description="null: the system's")
    certificate: Path | None = None
    private_key: Path | None = None


class MqttSettings(Model):
    """The plant's broker (MQTT 5)."""

    enabled: bool = True
    host: Host
    port: int = Field(1883, ge=1, le=65_535)
    prefix: str = Field(
        "edgeqc/{node}", pattern=r"^[^+#\s]+$", description="topics begin with this; {node} is replaced"
    )
    client_id: str | None = None
    user: str | None = None
    password: Secret | None = None
    tls: TlsSettings | None = None
    keepalive_s: int = Field(5, ge=1, le=3600)
    outbox_mb: int = Field(64, ge=1, le=65_536, description="undelivered messages on disk; oldest go first when full")
    session_expiry_s: int = Field(3600, ge=0, le=_MQTT_MOST)
    live_expiry_s: int = Field(
        60, ge=1, le=_MQTT_MOST, description="message expiry of live topics; replayed ones have none"
    )
    health_s: float = Field(10, ge=0.2, le=3600)
    commands: list[Verb] = Field(
        default_factory=list,
        description="what may be done to alarms by whoever may write to `{prefix}/cmd/<verb>`; empty: nothing",
    )
