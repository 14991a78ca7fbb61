"""The history as files that other tools read: CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from edgeqc.core.align import GridRow, Mark
from edgeqc.errors import EdgeqcError
from edgeqc.history.block import Tag
from edgeqc.history.reader import QUALITY_NAMES, Chunk
from edgeqc.records import NS_PER_S

SAMPLE_COLUMNS: Final = ("time", "tag", "value", "quality", "unit", "source_time")
"""Of an export of samples as they came."""
TIME_COLUMN: Final = "t"
"""First of an export on a grid: UTC seconds since 1970; what `type: replay` of a tag source plays."""


def samples_to_csv(chunks: Iterable[Chunk], tags: Sequence[Tag], file: TextIO) -> int:
    """Write every sample as a line, in order of time within each chunk (2 s); give their number."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(SAMPLE_COLUMNS)
    count = 0
    for chunk in chunks:
        order = np.argsort(chunk.samples.at_ns, kind="stable")
        samples, stamps = chunk.samples.picked(order), chunk.source_ns[order]
        for place, at_ns, value, mark, source_ns in zip(
            *(column.tolist() for column in (*samples, stamps)), strict=True
        ):
            tag = tags[place]
            writer.writerow(
                (
                    _rfc3339(at_ns),
                    tag.name,
                    "" if math.isnan(value) else repr(value),
                    QUALITY_NAMES[Mark(mark)],
                    tag.unit,
                    _rfc3339(source_ns) if source_ns else "",
                )
            )
            count += 1
    return count


def rows_to_csv(rows: Iterable[GridRow], tags: Sequence[Tag], file: TextIO) -> int:
    """Write a line per moment, a column per tag, empty where nothing is known; give the number of lines."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((TIME_COLUMN, *(tag.name for tag in tags)))
    count = 0
    for row in rows:
        cells = ["" if math.isnan(value) else repr(value) for value in row.values.tolist()]
        writer.writerow((f"{row.at_ns / NS_PER_S:.3f}", *cells))
        count += 1
    return count


def samples_to_parquet(chunks: Iterable[Chunk], tags: Sequence[Tag], path: Path) -> int:
    """Write every sample as a row: time, tag, value, quality, source_time; give their number."""
    arrow = _arrow()
    names = arrow.array([tag.name for tag in tags])
    qualities = arrow.array([QUALITY_NAMES[mark] for mark in sorted(QUALITY_NAMES)])
    stamp = arrow.timestamp("ns", tz="UTC")

    def tables() -> Iterator[Any]:
        for chunk in chunks:
            samples = chunk.samples
            yield arrow.table(
                {
                    "time": arrow.array(samples.at_ns).cast(stamp),
                    "tag": arrow.DictionaryArray.from_arrays(arrow.array(samples.places), names),
                    "value": arrow.array(samples.values, from_pandas=True),
                    "quality": arrow.DictionaryArray.from_arrays(arrow.array(samples.marks.astype(np.int8)), qualities),
                    "source_time": arrow.array(chunk.source_ns, mask=chunk.source_ns == 0).cast(stamp),
                }
            )

    return _write_parquet(tables(), path)


def rows_to_parquet(rows: Iterable[GridRow], tags: Sequence[Tag], path: Path) -> int:
    """Write a row per moment, a column per tag, null where nothing is known; give the number of rows."""
    arrow = _arrow()

    def tables() -> Iterator[Any]:
        batch: list[GridRow] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _ROWS_AT_ONCE:
                yield _wide(arrow, batch, tags)
                batch = []
        if batch:
            yield _wide(arrow, batch, tags)

    return _write_parquet(tables(), path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; the file is at `path` only when it is whole, and nothing is left where it failed."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        if part.exists():
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _wide(arrow: Any, batch: list[GridRow], tags: Sequence[Tag]) -> Any:
    values = np.stack([row.values for row in batch])
    moments = np.array([row.at_ns for row in batch], np.int64)
    columns = {TIME_COLUMN: arrow.array(moments).cast(arrow.timestamp("ns", tz="UTC"))}
    columns.update({tag.name: arrow.array(values[:, place], from_pandas=True) for place, tag in enumerate(tags)})
    return arrow.table(columns)


def _write_parquet(tables: Iterator[Any], path: Path) -> int:
    from pyarrow import parquet  # noqa: PLC0415 - an extra

    count, writer = 0, None
    try:
        for table in tables:
            writer = writer or parquet.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            count += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return count


def _arrow() -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
    except ImportError as exc:
        raise EdgeqcError(
            "Parquet needs pyarrow, which is not installed: pip install 'edgeqc[parquet]', or write .csv"
        ) from exc
    return pa


_ROWS_AT_ONCE: Final = 10_000


def _rfc3339(utc_ns: int) -> str:
    seconds, rest = divmod(utc_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
