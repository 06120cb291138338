"""Distinct combinations of text columns, so that work is done once for each and not once per row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# Codes are combined in int64; beyond this the combined code is made dense first.
_DENSE_BEYOND = 1 << 62
# Values are turned into Python text this many at a time: 1 << 15 paths of 2 KiB = 64 MiB at the very most.
CHUNK = 1 << 15


class Coded(NamedTuple):
    """A text column as codes (-1 null) into distinct values."""

    codes: npt.NDArray[np.int32]
    values: pa.StringArray

    def at(self, rows: npt.NDArray[np.integer]) -> list[str]:
        """The texts of some rows; "" for null."""
        picked = self.codes[rows]
        texts: Any = self.values.take(pa.array(picked, pa.int32(), mask=picked < 0))
        filled: list[str] = texts.fill_null("").to_pylist()
        return filled


def code(column: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> Coded:
    """A column of text, in whatever form, as codes."""
    array: Any = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, pa.string())
    if isinstance(array, pa.ChunkedArray):
        if pa.types.is_dictionary(array.type):
            array = array.unify_dictionaries()
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # no rows: Arrow keeps it chunked
            return Coded(np.empty(0, np.int32), pa.array([], pa.string()))
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    indices = array.indices if array.null_count == 0 else array.indices.fill_null(-1)
    return Coded(indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False), array.dictionary)


class Combinations(NamedTuple):
    """Distinct combinations of columns.

    codes: for each row, which combination it has.
    rows: for each combination, the first row that has it.
    """

    codes: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]


def combine(columns: Sequence[npt.NDArray[np.integer]], sizes: Sequence[int]) -> Combinations:
    """Distinct combinations of code columns; codes run from -1 to size - 1."""
    combined = np.zeros(len(columns[0]), np.int64)
    span = 1
    for column, size in zip(columns, sizes, strict=True):
        if span > _DENSE_BEYOND // (size + 1):
            combined, span = _dense(combined)
        combined = combined * (size + 1) + (column.astype(np.int64) + 1)
        span *= size + 1
    codes, count = _dense(combined)
    rows = np.empty(count, np.int64)
    # Written backwards, so that the first row of each combination stays.
    rows[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return Combinations(codes.astype(np.int32), rows)


def _dense(combined: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], int]:
    encoded: Any = pc.dictionary_encode(pa.array(combined))
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)
