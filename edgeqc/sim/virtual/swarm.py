"""What a seed draws: the line's shape, which faults there are, and how often."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

from edgeqc.core.handshake import Form
from edgeqc.records import NS_PER_MS

RATES: Final[dict[str, float]] = {
    "trigger_lost": 0.002,
    "trigger_doubled": 0.002,
    "trigger_burst": 0.002,
    "id_swapped": 0.001,
    "id_doubled": 0.001,
    "recipe_changed": 0.01,
    "recipe_unknown": 0.001,
    "camera_ignores": 0.003,
    "camera_slow": 0.001,
    "camera_counts_anew": 0.0005,
    "exposure_late": 0.002,
    "camera_gone": 0.0004,
    "frame_lost": 0.004,
    "frame_late": 0.004,
    "frame_doubled": 0.003,
    "frame_truncated": 0.004,
    "frame_phantom": 0.002,
    "engine_error": 0.002,
    "engine_nan": 0.003,
    "engine_range": 0.002,
    "engine_slow": 0.004,
    "engine_hung": 0.0002,
    "tags_bad": 0.003,
    "write_lost": 0.002,
    "write_late": 0.002,
    "write_unacknowledged": 0.002,
    "read_lost": 0.001,
    "read_slow": 0.02,
    "plc_refuses": 0.0005,
    "plc_frozen": 0.0004,
    "plc_restarted": 0.0003,
    "ack_missed": 0.01,
    "ack_doubled": 0.01,
    "ack_late": 0.01,
    "disk_full": 0.0003,
    "disk_slow": 0.001,
    "line_stuck": 0.0005,
    "triggers_stuck": 0.0003,
    "guard_stuck": 0.0001,
    "killed": 0.0003,
    "power_cut": 0.0001,
    "crash_loop": 0.0001,
    "encoder_set": 0.0004,
    "line_stopped": 0.002,
    "ejector_stuck": 0.002,
    "ejection_unasked": 0.001,
}
"""Faults, each with its chance per part at multiplier 1 (facts of the project's reliability study: swarm testing)."""
OFFICE_RATES: Final[dict[str, float]] = {
    "broker_gone": 0.005,
    "broker_slow": 0.05,
    "office_killed": 0.002,
    "archive_slow": 0.1,
}
"""The same of what stands behind the journal; drawn by itself, so that a line is the same with it and without."""
MULTIPLIERS: Final = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
TAIL: Final = 24
"""Parts at the end without any fault: by then the line must have recovered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """One seed's line."""

    seed: int
    triggers: int
    takt_ns: int
    budget_ns: int
    plc_write_ns: int
    poll_ns: int
    engine_ns: int
    exposure_ns: int
    transfer_ns: int
    cameras: int
    depth: int
    form: Form
    sync_each: bool
    tracking: Literal["part_id", "delay", "encoder"]
    counter: int
    frame_id: int
    encoder: int
    first_sequence: int
    rates: dict[str, float]
    office_rates: dict[str, float]

    @property
    def expose_within_ns(self) -> int:
        """As the station has it: a quarter of the takt."""
        return self.takt_ns // 4

    @property
    def frame_timeout_ns(self) -> int:
        """A frame that is not there by then never comes."""
        return 3 * self.takt_ns


def draw(seed: int, triggers: int) -> Swarm:
    """The line of this seed."""
    lots = random.Random(seed)

    def chance(of: float) -> bool:
        return lots.random() < of

    takt_ns = lots.choice((20, 40, 100, 250, 1000, 5000)) * NS_PER_MS
    pipelined = chance(1 / 2)
    # More than one part under way needs a budget of more than a takt.
    budget_ns = int(takt_ns * (lots.uniform(1.5, 4.0) if pipelined else lots.uniform(0.7, 1.0)))
    multiplier = lots.choice(MULTIPLIERS)
    on = {fault for fault in RATES if chance(1 / 2)}
    near_wrap = chance(0.3)
    cameras = lots.choice((1, 1, 2, 3))
    return Swarm(
        seed=seed,
        triggers=triggers,
        takt_ns=takt_ns,
        budget_ns=budget_ns,
        plc_write_ns=max(NS_PER_MS, budget_ns // 6),
        poll_ns=max(NS_PER_MS, takt_ns // 16),
        engine_ns=int(takt_ns * lots.uniform(0.05, 0.25) / cameras),
        exposure_ns=takt_ns // 40,
        transfer_ns=takt_ns // 20,
        cameras=cameras,
        depth=lots.randint(1, 8) if pipelined else 8,
        form=lots.choice(tuple(Form)),
        sync_each=chance(0.3),
        tracking=lots.choice(("part_id", "delay", "encoder")),
        counter=lots.choice((65_530, 32_760)) if near_wrap else lots.randint(0, 65_535),
        frame_id=lots.choice((65_530, 32_760)) if near_wrap else lots.randint(1, 65_535),
        encoder=(1 << 32) - lots.randint(6, 60) * 1000 if near_wrap else lots.randrange(1 << 32),
        first_sequence=(1 << 31) - 20 if near_wrap else 1,
        rates={fault: RATES[fault] * multiplier for fault in RATES if fault in on} if multiplier else {},
        office_rates=_office(seed),
    )


def _office(seed: int) -> dict[str, float]:
    lots = random.Random(f"{seed}:sinks")
    multiplier = lots.choice(MULTIPLIERS)
    return {fault: min(0.5, rate * multiplier) for fault, rate in OFFICE_RATES.items() if lots.random() < 1 / 2}
