"""Parts whose story is not complete: the verdict is in, how the PLC took it is still to come."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from edgeqc.journal import Entry
from edgeqc.office import payloads, tables, verdicts
from edgeqc.office.payloads import Model, Payload
from edgeqc.office.runs import Runs
from edgeqc.office.transaction import Closed, Outcome
from edgeqc.office.verdicts import Seen
from edgeqc.records import NS_PER_S, RESULT_CODE, Delivery, PartRecord, Snapshot, ViewRecord

DELIVERY_WAIT_NS: Final = 2 * NS_PER_S
"""A verdict whose delivery is not told for this long is published as unknown: the station died, or the PLC lets it wait."""
Post = Callable[[str, bytes, int, Outcome], None]
"""Puts a message into the outbox: topic, payload, monotonic time of what it tells."""


@dataclass(slots=True, kw_only=True)
class _Open:
    """A part whose delivery is still to come."""

    record: PartRecord
    row: int
    mono_ns: int
    seen_ns: int
    model: Model
    image: str | None
    process: dict[str, Payload] = field(default_factory=dict)
    views: list[Seen] = field(default_factory=list)


class OpenParts:
    """Enters parts and what follows of them into the archive, and posts a part's message once, when it is closed.

    Used by the archive's thread only; make it anew after a transaction was rolled back.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        runs: Runs,
        *,
        node: str,
        cameras: Mapping[str, tuple[str, ...]],
        scales: Mapping[str, Mapping[str, float]],
        post: Post,
        now_ns: int,
    ) -> None:
        """Take what is open from the archive. The arguments are as those of `edgeqc.office.intake.Intake`."""
        self._database, self._runs = database, runs
        self._node, self._cameras, self._scales = node, cameras, scales
        self._post = post
        self._open: dict[str, dict[int, _Open]] = {}
        for row in database.execute(
            # Left to itself SQLite walks all parts for the order's sake: seconds for each million.
            "SELECT parts.*, tags FROM parts INDEXED BY parts_open LEFT JOIN snapshots ON part = id "
            "WHERE open ORDER BY id"
        ):
            record = tables.part_of(row)
            self._open.setdefault(f"station-{record.station}", {})[record.trigger.sequence] = _Open(
                record=record,
                row=row["id"],
                mono_ns=record.ledger.journaled_ns,
                seen_ns=now_ns,
                model=Model.parse(row["model"]),
                image=row["image"],
                process=json.loads(row["tags"] or "{}"),
                views=[
                    Seen(record=tables.view_of(view, record), model=Model.parse(view["model"]), image=view["image"])
                    for view in database.execute("SELECT * FROM views WHERE part=? ORDER BY place", (row["id"],))
                ],
            )

    @property
    def waiting(self) -> bool:
        """Is any part's delivery still to come?"""
        return any(self._open.values())

    def expire(self, outcome: Outcome, *, now_ns: int) -> None:
        """Publish what waits for its delivery since DELIVERY_WAIT_NS; `now_ns`: up to when all journals are read."""
        for writer, parts in self._open.items():
            for sequence in [key for key, part in parts.items() if now_ns - part.seen_ns > DELIVERY_WAIT_NS]:
                self._close(writer, sequence, None, outcome, unknown="not told within 2 s")

    def started(self, writer: str, outcome: Outcome) -> None:
        """A station began anew: what it had not told of its parts, it will not tell."""
        for sequence in list(self._open.get(writer, {})):
            self._close(writer, sequence, None, outcome, unknown="the station ended before it could tell")

    def part(self, entry: Entry, record: PartRecord, image: str | None, outcome: Outcome, now_ns: int) -> None:
        """Enter a part with its verdict; one that is in the archive already is counted."""
        names = self._cameras.get(record.station, ())
        camera = names[record.view] if 0 <= record.view < len(names) and len(names) > 1 else ""
        model = self._runs.model(entry.writer, record.recipe, camera)
        row = tables.part_row(
            record,
            run_id=self._runs.run_id(entry.writer),
            model=model,
            journaled_ns=entry.mono_ns,
            image=image,
        )
        inserted = self._database.execute(tables.INSERT_PART, row)
        if inserted.rowcount == 0 or inserted.lastrowid is None:
            outcome.doubled += 1
            return
        if not record.ledger.journaled_ns:
            record = replace(record, ledger=replace(record.ledger, journaled_ns=entry.mono_ns))
        parts = self._open.setdefault(entry.writer, {})
        parts[record.trigger.sequence] = _Open(
            record=record,
            row=inserted.lastrowid,
            mono_ns=entry.mono_ns,
            seen_ns=now_ns,
            model=Model.parse(model),
            image=image,
        )

    def view(self, entry: Entry, view: ViewRecord, image: str | None) -> None:
        """Keep it for the part's message, and in the archive at once. The part's image is that of the deciding view."""
        part = self._open.get(entry.writer, {}).get(view.sequence)
        found = self._database.execute(
            "SELECT id, recipe, view FROM parts WHERE station=? AND sequence=? ORDER BY id DESC LIMIT 1",
            (entry.writer.removeprefix("station-"), view.sequence),
        ).fetchone()
        if found is None:
            return
        model = self._runs.view_model(entry.writer, found["recipe"], view.camera)
        row = tables.view_row(found["id"], view, model=model, image=image)
        if not self._database.execute(tables.INSERT_VIEW, row).rowcount:
            return
        decides = view.place == found["view"]
        if decides:
            self._database.execute("UPDATE parts SET image=? WHERE id=?", (image, found["id"]))
        if part is not None:
            part.views.append(Seen(record=view, model=Model.parse(model), image=image))
            part.image = image if decides else part.image

    def snapshot(self, entry: Entry, snapshot: Snapshot) -> None:
        """Keep it for the part's message, and in the archive at once."""
        part = self._open.get(entry.writer, {}).get(snapshot.sequence)
        told = verdicts.process(snapshot.tags)
        if part is not None:
            part.process.update(told)
            row, told = part.row, part.process
        else:  # the message is out already, without it: the archive learns it all the same
            found = self._database.execute(
                "SELECT max(id) FROM parts WHERE station=? AND sequence=?",
                (entry.writer.removeprefix("station-"), snapshot.sequence),
            ).fetchone()
            if found[0] is None:
                return
            row = found[0]
        self._database.execute(
            "INSERT INTO snapshots(part, tags) VALUES(?, ?) ON CONFLICT(part) DO UPDATE SET tags=excluded.tags",
            (row, json.dumps(told)),
        )

    def delivery(self, entry: Entry, delivery: Delivery, outcome: Outcome) -> None:
        """How the PLC took it: closes the part."""
        if not delivery.delivered and not math.isnan(delivery.late_score):
            # A score after the fail-safe verdict; that verdict's own delivery may still be on its way, or long through.
            self._database.execute(
                _LATE_SCORE, (delivery.late_score, entry.writer.removeprefix("station-"), delivery.sequence)
            )
            return
        if delivery.sequence in self._open.get(entry.writer, {}):
            self._close(entry.writer, delivery.sequence, delivery, outcome)
            return
        # Its verdict was published as unknown already: the archive learns the end all the same.
        self._database.execute(
            _COMPLETE_LATER,
            (*_completion(delivery), entry.writer.removeprefix("station-"), delivery.sequence),
        )

    def _close(
        self, writer: str, sequence: int, delivery: Delivery | None, outcome: Outcome, *, unknown: str = ""
    ) -> None:
        part = self._open[writer][sequence]
        payload = verdicts.verdict(
            part.record,
            delivery,
            node=self._node,
            model=part.model,
            cameras=self._cameras.get(part.record.station, ()),
            image=part.image,
            snapshot=part.process,
            views=part.views,
            um_per_px=self._scales.get(part.record.station),
            unknown=unknown,
        )
        body = payloads.encode(payload)
        if delivery is not None:
            self._database.execute(_COMPLETE, (*_completion(delivery), part.row))
        else:
            self._database.execute("UPDATE parts SET open=0 WHERE id=?", (part.row,))
        self._post(payloads.VERDICT, body, part.mono_ns, outcome)
        outcome.closed.append(Closed(record=part.record, delivery=delivery, payload=payload))
        del self._open[writer][sequence]


_LATE_SCORE: Final = "UPDATE parts SET late_score=? WHERE id=(SELECT max(id) FROM parts WHERE station=? AND sequence=?)"
_COMPLETE: Final = (
    "UPDATE parts SET verdict=?, cause=?, code=?, delivered=?, delivered_ns=?, late=?, "
    "late_score=coalesce(?, late_score), plc_reason=?, "
    "open=0 WHERE id=?"
)
_COMPLETE_LATER: Final = _COMPLETE.replace(
    "WHERE id=?", "WHERE id=(SELECT max(id) FROM parts WHERE station=? AND sequence=? AND delivered IS NULL)"
)


def _completion(delivery: Delivery) -> tuple[object, ...]:
    """Values for _COMPLETE. What was announced is what counts."""
    return (
        delivery.verdict.value,
        delivery.cause.value,
        RESULT_CODE[delivery.cause],
        delivery.delivered,
        delivery.delivered_ns,
        delivery.late,
        None if math.isnan(delivery.late_score) else delivery.late_score,
        delivery.reason,
    )
