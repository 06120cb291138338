"""Segments: batches as Parquet files by UTC day, written whole or not at all."""

from __future__ import annotations

import datetime
import errno
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apicost import durable
from apicost.core import records
from apicost.store.catalogue import DAY_S, MINUTE_S, Segment

COLUMNS = {
    "exchanges": records.EXCHANGE,
    "usage": records.USAGE,
    "shapes": records.SHAPE,
    "samples": records.SAMPLE,
    "completeness": records.COMPLETENESS,
}
GRAIN_S = {kind: 0 if kind == "exchanges" else MINUTE_S for kind in COLUMNS}
ROLLED_UP = ("usage", "shapes")  # kinds with calls and wire bytes in every row, and rollups
# Rows that a reader takes or skips together. Files are sorted by API and consumer, so that small groups let a
# question about some of them skip the rest; each costs some fifty column chunks of up to some kB.
ROW_GROUP = 1 << 14
_MAGIC = b"PAR1"  # first and last four bytes of a Parquet file
_NS_PER_S = 1_000_000_000
WIRE = tuple(f"{leg}_{way}_wire_bytes" for leg in records.LEGS for way in ("in", "out"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A segment that the ledger lists and that can't be read; its sums are what is missing."""

    name: str
    fact: str
    row_count: int
    calls: int
    wire_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.fact}\n"
            f"  effect: {self.row_count} rows with {self.calls} calls and {self.wire_bytes} wire bytes are missing\n"
            "  fix: put this file back from a backup of the ledger's folder"
        )


def day_folder(day_unix_s: int) -> str:
    """segments/YYYY-MM-DD of a UTC day."""
    day = datetime.datetime.fromtimestamp(day_unix_s, datetime.UTC)
    return f"segments/{day:%Y-%m-%d}"


def by_day(kind: str, batch: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """The batch cut by UTC day: (start of the day in unix seconds, its rows in their order)."""
    if kind == "exchanges":
        seconds = records.numbers(batch, "ended_unix_ns").astype(np.int64) // _NS_PER_S
    else:
        seconds = records.numbers(batch, "minute_unix_s").astype(np.int64)
    days = seconds // DAY_S * DAY_S
    found = np.unique(days)
    for day in found.tolist():
        yield day, batch if len(found) == 1 else batch.filter(pa.array(days == day))


def write(
    folder: Path, name: str, kind: str, day_unix_s: int, batch: pa.Table, *, grain_s: int | None = None
) -> Segment:
    """Write one segment, durable when this returns. Raises OSError and leaves nothing behind.

    grain_s: length of the rows' buckets, where it is not that of the kind's minutes.
    """
    sink = pa.BufferOutputStream()
    texts: Any = [f.name for f in batch.schema if pa.types.is_dictionary(f.type)]
    pq.write_table(batch, sink, compression="zstd", compression_level=1, use_dictionary=texts, row_group_size=ROW_GROUP)
    content = sink.getvalue()

    def put(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            stream.write(memoryview(content))

    size = place(folder / name, put)
    return Segment(
        kind=kind, grain_s=GRAIN_S[kind] if grain_s is None else grain_s, day_unix_s=day_unix_s, name=name,
        row_count=batch.num_rows, bytes=size,
        crc32=zlib.crc32(memoryview(content)), calls=calls(kind, batch), wire_bytes=wire_bytes(kind, batch),
    )  # fmt: skip


def place(path: Path, put: Callable[[Path], None]) -> int:
    """`durable.write_file` into a day's folder, which is made where it is missing."""
    for _ in range(9):
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            durable.sync_folder(path.parent.parent)
        try:
            return durable.write_file(path, put)
        except FileNotFoundError:  # retention found the folder empty and removed it in between
            continue
    raise FileNotFoundError(errno.ENOENT, "the day's folder is removed again and again", str(path.parent))


def calls(kind: str, batch: pa.Table) -> int:
    """Control sum: requests in a batch."""
    if kind == "exchanges":
        return int((records.numbers(batch, "kind") == records.RowKind.EXCHANGE).sum())
    return int(records.numbers(batch, "calls").sum()) if kind in ROLLED_UP else 0


def wire_bytes(kind: str, batch: pa.Table) -> int:
    """Control sum: wire bytes of both legs and directions."""
    if kind != "exchanges" and kind not in ROLLED_UP:
        return 0
    return sum(int(records.numbers(batch, name).sum()) for name in WIRE)


def read(folder: Path, segment: Segment) -> pa.Table:
    """The rows of one segment, columns as `records` has them. Raises OSError or pa.ArrowException."""
    found = pq.read_table(folder / segment.name)
    schema = records.schema(COLUMNS[segment.kind])
    columns = []
    for field in schema:
        column = found.column(field.name)
        if column.type != field.type:  # DuckDB writes text plainly
            column = (
                column.cast(pa.string()).dictionary_encode() if field.type == records.TEXT else column.cast(field.type)
            )
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def damage(folder: Path, segment: Segment, *, whole: bool = False) -> Damage | None:
    """What is wrong with a segment's file, if anything: missing, cut short or, if `whole`, changed."""
    fact = _fact(folder / segment.name, segment, whole)
    if fact is None:
        return None
    return Damage(
        name=segment.name, fact=fact, row_count=segment.row_count, calls=segment.calls, wire_bytes=segment.wire_bytes
    )


def _fact(path: Path, segment: Segment, whole: bool) -> str | None:
    try:
        with open(path, "rb") as stream:
            head = stream.read(4)
            size = stream.seek(0, 2)
            stream.seek(max(size - 4, 0))
            tail = stream.read(4)
        if size != segment.bytes:
            return f"has {size} bytes, the catalogue says {segment.bytes}"
        if head != _MAGIC or tail != _MAGIC:
            return "is no Parquet file"
        if whole and checksum(path) != segment.crc32:
            return "its content is not what was written (checksum differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return None
