"""A sink for tag sources that keeps everything it was told, for tests and benches."""

from __future__ import annotations

from collections.abc import Sequence

from edgeqc.records import NS_PER_S, Quality, TagBatch, TagRemark, TagValue


class TagRecorder:
    """The `TagSink` of one source; tags are known by their place."""

    def __init__(self, names: Sequence[str], *, keep: bool = False) -> None:
        """Know the tags by `names`; `keep` every sample in `told`."""
        self.values: dict[int, TagValue] = {}
        """The newest of each tag since the source was lost last."""
        self.faults: dict[int, int] = {}
        self.told: list[TagValue] = []
        self.samples = 0
        self.jumps = 0
        """Samples of a counting tag that are not one more than the one before; tag 0 does not count."""
        self.history: list[str] = []
        """`back` and `lost`, without repetitions."""
        self.reasons: list[str] = []
        self.hung: list[bool] = []
        self.backs = 0
        self.alive_ns = 0
        self.signs = 0
        self.remarks: dict[TagRemark, str] = {}
        self.sent_ns = 0
        self._names = tuple(names)
        self._keep = keep

    async def room(self) -> None:
        """There is always room."""

    def take(self, batch: TagBatch) -> None:
        """Keep the samples."""
        self.sent_ns = batch.sent_ns or self.sent_ns
        columns = (batch.places, batch.values, batch.qualities, batch.faults, batch.source_ns)
        for place, value, quality, fault, source_ns in zip(*(column.tolist() for column in columns), strict=True):
            before = self.values.get(place)
            if place and before is not None and quality == Quality.GOOD and value != before.value + 1:
                self.jumps += 1
            told = TagValue(
                name=self._names[place],
                value=value,
                quality=Quality(quality),
                source_ts=source_ns / NS_PER_S,
                received_ns=batch.received_ns,
            )
            self.values[place] = told
            self.faults[place] = fault
            self.samples += 1
            if self._keep:
                self.told.append(told)

    def alive(self, source: str, at_ns: int) -> None:  # noqa: ARG002 - there is one source
        """Keep the sign of life."""
        self.alive_ns = at_ns
        self.signs += 1

    def lost(self, source: str, reason: str, *, hung: bool) -> None:  # noqa: ARG002 - there is one source
        """Keep the reason; forget the values."""
        if self.history[-1:] != ["lost"]:
            self.history.append("lost")
        self.reasons.append(reason)
        self.hung.append(hung)
        self.values.clear()

    def back(self, source: str) -> None:  # noqa: ARG002 - there is one source
        """Count it."""
        self.history.append("back")
        self.backs += 1

    def remark(self, source: str, remark: TagRemark, text: str) -> None:  # noqa: ARG002 - there is one source
        """Keep the newest of each kind."""
        self.remarks[remark] = text
