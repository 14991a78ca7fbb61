"""A station's configuration as its parts take it: in nanoseconds, with what was left open filled in. Pure."""

from __future__ import annotations

from typing import Final

from edgeqc.core.budget import Budget
from edgeqc.core.exposure import Exposures
from edgeqc.core.handshake import Form, Rules
from edgeqc.core.keeping import KeepRule
from edgeqc.core.lane import DEPTH
from edgeqc.core.stopping import StopLimits
from edgeqc.records import NS_PER_MS
from edgeqc.settings import CameraSettings, HandshakeSettings, StationSettings, TriggerSource
from edgeqc.station.plckeeper import WRITE_NS, Manners

_HOLD_MOST_MS: Final = 200
_EXPOSE_WITHIN_RATIO: Final = 0.25
"""Of the takt: a part that was triggered longer ago has moved on, and a picture of it would show something else."""
_SILENT_FRAMES: Final = 10
"""A free-running camera that misses so many frames in a row is taken for lost, after half a second at least."""
_SILENT_LEAST_MS: Final = 500


def budget(station: StationSettings) -> Budget:
    """How long a verdict may take; with the PLC's triggers one may have risen a poll before it was seen."""
    return Budget.of_ms(
        budget_ms=station.budget_ms,
        plc_write_ms=station.plc_write_ms,
        seen_late_ms=station.trigger.poll_ms if station.trigger.source is TriggerSource.PLC else 0,
    )


def depth(station: StationSettings) -> int:
    """Parts under way at once: the camera needs the other half of its slots."""
    return min(DEPTH, max(1, min(camera.slots for camera in station.all_cameras) // 2))


def expose_within_ns(station: StationSettings) -> int:
    """A part whose trigger is older is not exposed any more."""
    return int(station.takt_ms * NS_PER_MS * _EXPOSE_WITHIN_RATIO)


def keep(station: StationSettings) -> KeepRule:
    """Whose images are kept."""
    images = station.images
    return KeepRule(rejects=images.rejects, every_nth_pass=images.every_nth_pass, newest=images.newest)


def stop_limits(station: StationSettings) -> StopLimits:
    """When the PLC is asked to stop the line."""
    stop = station.stop
    return StopLimits(
        fail_safe_in_a_row=stop.fail_safe_in_a_row,
        reject_ratio=stop.reject_ratio or 0.0,
        reject_parts=stop.reject_parts,
    )


def manners(station: StationSettings, handshake: HandshakeSettings) -> Manners:
    """How long results are shown, and what is expected of the PLC."""
    hold_ms = station.result_hold_ms
    if hold_ms is None and handshake.form is Form.PULSE:
        hold_ms = min(station.takt_ms / 2, _HOLD_MOST_MS)
    return Manners(
        rules=Rules(
            form=handshake.form, depth=handshake.depth, hold_ns=None if hold_ms is None else int(hold_ms * NS_PER_MS)
        ),
        plc_heartbeat_ns=None if handshake.plc_heartbeat_ms is None else int(handshake.plc_heartbeat_ms * NS_PER_MS),
        triggers=station.trigger.source is TriggerSource.PLC,
        write_ns=max(int(station.plc_write_ms * NS_PER_MS), WRITE_NS),
    )


def exposures(station: StationSettings, camera: CameraSettings) -> Exposures:
    """A camera's exposures; how long they take is learned from the first frame where the configuration does not say."""
    exposure_us = getattr(camera, "exposure_us", None) or 0
    return Exposures(least_ns=int(exposure_us * 1000), most_ns=int(station.trigger.frame_timeout_ms * NS_PER_MS))


def silence_ms(station: StationSettings, camera: CameraSettings) -> float | None:
    """The silence rule of a camera that runs by itself; a triggered one is silent only when asked."""
    if camera.silence_ms is not None or station.trigger.source is TriggerSource.PLC:
        return camera.silence_ms
    rate_hz = getattr(camera, "rate_hz", None)
    return max(_SILENT_LEAST_MS, _SILENT_FRAMES * 1000 / rate_hz) if rate_hz else None
