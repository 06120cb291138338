"""FOCUS files as the linter takes them: CSV and Parquet, piece by piece, every cell as text.

Rules of this file:
- A cell is what stands in the file: nothing is guessed, trimmed or converted. In Parquet a column may have a type of
  its own: decimals, times and whole numbers are told as FOCUS writes them in text.
- A file of any size fits: some megabytes of it are read at a time.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from apicost.report.focus.columns import MADE
from apicost.report.focus.lint import Finding, Linter

_BLOCK_BYTES = 8 << 20
_ROWS = 1 << 15
_MANY = MADE | {"AllocatedMethodDetails"}


class UnreadableError(Exception):
    """A file that is neither CSV in UTF-8 nor Parquet; the text says why."""


def version_of(path: Path) -> str:
    """The FOCUS version that a file's columns are of: 1.4 where it names a service provider, else 1.2.

    Raises OSError, UnreadableError.
    """
    try:
        names = pyarrow.parquet.read_schema(path).names if _is_parquet(path) else _header(path)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as failure:
        raise UnreadableError(str(failure)) from None
    return "1.4" if "ServiceProviderName" in names else "1.2"


def lint_file(path: Path, version: str, total: str | None = None) -> tuple[tuple[Finding, ...], int]:
    """All findings of a file, and its rows.

    Raises OSError, UnreadableError, ValueError for a version that is not known.
    """
    is_parquet = _is_parquet(path)
    linter = Linter(version, total, is_csv=not is_parquet)
    try:
        for table in _parquet(path, linter) if is_parquet else _csv(path, linter):
            linter.feed(table)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as failure:
        raise UnreadableError(str(failure)) from None
    return linter.finish(), linter.rows


def _is_parquet(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4) == b"PAR1"


def _header(path: Path) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        return next(csv.reader(stream), [])


def _csv(path: Path, linter: Linter) -> Iterator[pa.Table]:
    """Pieces of a CSV file; an empty cell is null, quoted or not."""
    names = _header(path)
    linter.header(names)
    if not names:
        return
    # Columns of one name would be one: each is read by its place.
    places = [str(place) for place in range(len(names))]
    # Texts of which there are few are told once in each piece, and looked at once.
    few = pa.dictionary(pa.int32(), pa.string())
    types = {place: pa.string() if name in _MANY else few for place, name in zip(places, names, strict=True)}

    def ragged(row: Any) -> Literal["skip"]:
        number = None if row.number is None else row.number - 1
        linter.fail("row-width", number, f"it has {row.actual_columns} cells, not {row.expected_columns}")
        return "skip"

    try:
        reader = pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=_BLOCK_BYTES, skip_rows=1, column_names=places
            ),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=ragged),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )  # fmt: skip
    except pa.ArrowInvalid as failure:
        if "Empty CSV" in str(failure):  # a header alone is a month without charges
            return
        raise
    last = {name: place for place, name in enumerate(names)}
    for batch in reader:
        table = pa.Table.from_batches([batch])
        yield pa.table([table.column(place) for place in last.values()], names=list(last))


def _parquet(path: Path, linter: Linter) -> Iterator[pa.Table]:
    """Pieces of a Parquet file, its columns as text."""
    file = pyarrow.parquet.ParquetFile(path)
    schema = file.schema_arrow
    linter.header(schema.names)
    for field in schema:
        if pa.types.is_floating(field.type):
            linter.fail("number-binary", None, f"{field.name} is of type {field.type}")
    for batch in file.iter_batches(batch_size=_ROWS):
        columns = [_as_text(column) for column in batch.columns]
        yield pa.table(columns, names=schema.names)


def _as_text(column: Any) -> Any:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(pa.dictionary(pa.int32(), pa.string()))
    if pa.types.is_timestamp(kind):
        return pc.strftime(column.cast(pa.timestamp("s", kind.tz)), "%Y-%m-%dT%H:%M:%SZ")
    if pa.types.is_decimal(kind):  # Arrow's own text of a small one has an exponent
        coded = column.dictionary_encode()
        plain = [format(value, "f") for value in coded.dictionary.to_pylist()]
        return pa.array([_trimmed(text) for text in plain], pa.string()).take(coded.indices)
    texts = column.cast(pa.string())
    if pa.types.is_integer(kind):
        return pc.binary_join_element_wise(texts, ".0", "")
    return texts


def _trimmed(text: str) -> str:
    """A decimal without the zeros that its type adds; a whole number keeps one."""
    whole, _, places = text.partition(".")
    return f"{whole}.{places.rstrip('0') or '0'}"
