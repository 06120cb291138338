"""A provider's bill as a file: CSV, plain or gzipped, or Parquet, read piece by piece by the columns asked for.

Rules of this file:
- Memory is bounded by a piece, whatever the file's size.
- Numbers are exact decimals. A binary float of a Parquet file is the shortest decimal that is this float: what the
  same bill shows as CSV.
- What can't be read is a problem with row and column; rows count from 1, below the header.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from apicost.catalog.bill_rules import column_name
from apicost.problems import InputError, Problem

PIECE_ROWS = 1 << 15
_BLOCK_BYTES = 1 << 20  # Arrow reads 32 of them ahead
_PIECE_BYTES = 64 << 20
_HEADER_BYTES = 1 << 20
# 19 digits before the point, as an int64 may have, and 31 after it: a byte's part of a gibibyte has 30.
NUMBER = pa.decimal256(50, 31)
MOST_PROBLEMS = 20
EFFECT = "the bill is not reconciled"
_CSV_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pa.ArrowException)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillFile:
    """One file of a bill. columns: name as rules have it -> name in the file."""

    path: Path
    columns: dict[str, str]
    parquet: bool
    gzipped: bool


def inspect(path: Path) -> BillFile:
    """The columns of a file. Raises InputError where it can't be read, or has a column twice."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(4)
        parquet, gzipped = head == b"PAR1", head[:2] == b"\x1f\x8b"
        names = pq.read_schema(path).names if parquet else _header(path, gzipped)
    except _CSV_ERRORS as error:
        coding = isinstance(error, UnicodeDecodeError) and not parquet
        fix = "save it as CSV in UTF-8" if coding else "name a CSV, CSV.gz or Parquet file"
        raise problem(str(path), f"can't be read: {_said(error)}", fix) from None
    columns: dict[str, str] = {}
    twice = []
    for name in names:
        own = column_name(name)
        if own in columns:
            twice.append(name)
        columns[own] = name
    if twice:
        raise problem(str(path), f"columns stand twice: {', '.join(map(repr, twice))}", "remove one of each")
    if not names:
        raise problem(str(path), "is empty", "name the file that the provider wrote")
    return BillFile(path=path, columns=columns, parquet=parquet, gzipped=gzipped)


def pieces(file: BillFile, texts: Sequence[str], numbers: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a file, with the number of the first: those of `texts` and `numbers` that the file has.

    Texts come dictionary-encoded, null where empty; numbers as `NUMBER`, null where empty.
    Raises InputError with the problems of a piece.
    """
    texts = [name for name in dict.fromkeys(texts) if name in file.columns and name not in numbers]
    numbers = [name for name in dict.fromkeys(numbers) if name in file.columns]
    first = 1
    for table in _tables(file, [*texts, *numbers]):
        problems: list[Problem] = []
        columns = [_text(file, name, table.column(name), problems) for name in texts]
        columns += [_number(file, name, table.column(name), first, problems) for name in numbers]
        if problems:
            raise InputError(problems[:MOST_PROBLEMS])
        yield first, pa.table(columns, names=[*texts, *numbers])
        first += table.num_rows


def unix_s(text: str) -> int | None:
    """A time of a bill in unix seconds; one without an offset is UTC. None for what is no time."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return int(found.timestamp()) if not found.microsecond else None


def problem(place: str, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=place, fact=fact, effect=EFFECT, fix=fix)])


def _header(path: Path, gzipped: bool) -> list[str]:
    """The names in the first row."""
    with contextlib.closing(gzip.open(path) if gzipped else path.open("rb")) as stream:
        head = stream.read(_HEADER_BYTES)
    text = head.decode("utf-8-sig", errors="strict" if len(head) < _HEADER_BYTES else "replace")
    return next(csv.reader(io.StringIO(text), strict=True), [])


def _tables(file: BillFile, names: Sequence[str]) -> Iterator[pa.Table]:
    """Pieces with some columns, by the names that rules have."""
    wanted = [file.columns[name] for name in names]
    try:
        if file.parquet:
            with pq.ParquetFile(file.path) as opened:
                for batch in opened.iter_batches(batch_size=PIECE_ROWS, columns=wanted, use_threads=False):
                    yield pa.Table.from_batches([batch]).select(wanted).rename_columns(list(names))
            return
        compression: Any = "gzip" if file.gzipped else None
        with pa.input_stream(str(file.path), compression=compression) as stream:
            source: Any = stream
            reader = pa_csv.open_csv(
                source,
                read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
                parse_options=pa_csv.ParseOptions(newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=True,
                    null_values=[""], quoted_strings_can_be_null=True,
                ),
            )  # fmt: skip
            held: list[pa.RecordBatch] = []
            for batch in reader:
                held.append(batch)
                full = sum(map(len, held)) >= PIECE_ROWS or sum(each.nbytes for each in held) >= _PIECE_BYTES
                if full:
                    yield pa.Table.from_batches(held).rename_columns(list(names))
                    held = []
            if held:
                yield pa.Table.from_batches(held).rename_columns(list(names))
    except _CSV_ERRORS as error:
        raise problem(str(file.path), f"can't be read: {_said(error)}", "fetch the file again, or mend it") from None


def _text(file: BillFile, name: str, column: Any, problems: list[Problem]) -> Any:
    """A column as dictionary-encoded text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_timestamp(kind):
        column = pc.strftime(column.cast(pa.timestamp("us")), format="%Y-%m-%dT%H:%M:%SZ")
    try:
        column = column.cast(pa.string())
    except pa.ArrowException:
        fact = f"column {file.columns[name]} has values of type {kind}, which are no text"
        problems.append(
            Problem(place=str(file.path), fact=fact, effect=EFFECT, fix="ask for another column in the rules")
        )
        column = pa.chunked_array([pa.nulls(len(column), pa.string())])
    encoded = column.combine_chunks().dictionary_encode()
    if "" in encoded.dictionary.to_pylist():
        encoded = _without_empty(encoded.cast(pa.string())).dictionary_encode()
    return encoded


def _number(file: BillFile, name: str, column: Any, first: int, problems: list[Problem]) -> Any:
    """A column as exact decimals."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_floating(kind):
        column, kind = column.cast(pa.string()), pa.string()
    column = column.combine_chunks()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = _without_empty(column)
    try:
        return column.cast(NUMBER)
    except pa.ArrowException:
        pass
    for row, value in enumerate(column.to_pylist()):
        try:
            pa.array([value], kind).cast(NUMBER)
        except pa.ArrowException:
            shown = f"{value!s:.60}"
            fact = (
                f"row {first + row}, column {file.columns[name]}: {shown!r} is no decimal number, or one of more than "
            )
            fact += "19 digits before the point or 31 after it"
            problems.append(
                Problem(
                    place=str(file.path),
                    fact=fact,
                    effect=EFFECT,
                    fix="write digits and a point, without separators or currency signs",
                )
            )
            if len(problems) >= MOST_PROBLEMS:
                break
    return pa.nulls(len(column), NUMBER)


def _without_empty(column: Any) -> Any:
    """Text in which an empty value is none."""
    compute: Any = pc
    return compute.if_else(compute.equal(column, ""), None, column)


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
