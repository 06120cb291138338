"""Batches of NumPy columns with names, for the inside of the upstream leg.

Rules of this file:
- A batch is a frozen dataclass whose fields are arrays of one length; the field's annotation is its dtype.
- `counts` is a matrix of int64, one row per record, its columns in the order of `COUNTERS`.
- What is kept between steps goes through `to_table` and `from_table`: plain Arrow columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

# What is conserved, in this order. `resent_bytes` is payload sent again, both directions.
COUNTERS = (
    "in_wire_bytes",
    "out_wire_bytes",
    "in_payload_bytes",
    "out_payload_bytes",
    "in_packets",
    "out_packets",
    "resent_bytes",
)
IN_WIRE, OUT_WIRE, IN_PAYLOAD, OUT_PAYLOAD, IN_PACKETS, OUT_PACKETS, RESENT = range(len(COUNTERS))

_DTYPES: dict[str, type[np.generic]] = {
    "I64": np.int64,
    "I32": np.int32,
    "U64": np.uint64,
    "U8": np.uint8,
    "Bool": np.bool_,
    "Counts": np.int64,
}


class Columns:
    """What all batches here can do. Sub-classes are frozen dataclasses of arrays of one length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(getattr(self, dataclasses.fields(self)[0].name))  # type: ignore[arg-type]

    def take(self, rows: npt.NDArray[Any]) -> Self:
        """The rows at these positions, or where this mask is true."""
        positions = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return type(self)(**{name: getattr(self, name).take(positions, axis=0) for name in names(type(self))})

    def replace(self, **columns: npt.NDArray[Any]) -> Self:
        """The same rows with some columns exchanged."""
        return type(self)(**{name: columns.get(name, getattr(self, name)) for name in names(type(self))})

    def to_table(self) -> pa.Table:
        """Arrow columns, the counters one by one."""
        arrays: dict[str, pa.Array] = {}
        for name in names(type(self)):
            values = getattr(self, name)
            if values.ndim == 2:
                arrays |= {counter: pa.array(values[:, i]) for i, counter in enumerate(COUNTERS)}
            else:
                arrays[name] = pa.array(values)
        return pa.table(arrays)

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """The inverse of `to_table`.

        Raises KeyError when a column is missing: the table is of another version and can't be used.
        """
        columns: dict[str, npt.NDArray[Any]] = {}
        for name, kind in _kinds(cls):
            if kind == "Counts":
                parts = [table.column(counter).to_numpy().astype(np.int64) for counter in COUNTERS]
                columns[name] = np.stack(parts, axis=1)
            else:
                columns[name] = table.column(name).to_numpy().astype(_DTYPES[kind])
        return cls(**columns)

    @classmethod
    def empty(cls) -> Self:
        """No rows."""
        return cls.blank(0)

    @classmethod
    def blank(cls, rows: int) -> Self:
        """So many rows of zeros."""
        return cls(
            **{
                name: np.zeros((rows, len(COUNTERS)) if kind == "Counts" else rows, _DTYPES[kind])
                for name, kind in _kinds(cls)
            }
        )

    @classmethod
    def concat(cls, batches: Sequence[Self]) -> Self:
        """The rows of all, in order."""
        full = [batch for batch in batches if len(batch)]
        if len(full) == 1:
            return full[0]
        if not full:
            return cls.empty()
        return cls(**{name: np.concatenate([getattr(b, name) for b in full]) for name in names(cls)})


def names(cls: type[Columns]) -> list[str]:
    """The names of a batch's columns, in order."""
    return [name for name, _ in _kinds(cls)]


def _kinds(cls: type[Columns]) -> list[tuple[str, str]]:
    return [(f.name, str(f.type)) for f in dataclasses.fields(cls)]  # type: ignore[arg-type]


def hash_of(*columns: npt.NDArray[Any]) -> U64:
    """One 64-bit number for each row, equal where all columns are equal.

    Different rows may meet with a chance of about 2^-64 a pair, so whoever relies on it compares the
    columns themselves once more. (Multiply and xor-shift, as in SplitMix64 by Steele, Lea and Flood, 2014.)
    """
    mixed = np.full(len(columns[0]), 0x9E3779B97F4A7C15, np.uint64)
    for column in columns:
        mixed ^= column.astype(np.uint64, copy=False)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(31)
    return mixed
