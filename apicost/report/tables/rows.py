"""A month's rows as every table format takes them: named columns of four kinds, piece by piece.

Rules of this file:
- A format is chosen by a column's kind, never by its name or its values.
- Amounts are exact decimal text until a format has a type that holds them exactly.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

Seen = Callable[[int], None]  # called with the rows written so far


class Kind(enum.Enum):
    """What the values of a column are; null is absent in all of them."""

    TEXT = "text"
    COUNT = "count"  # int64
    AMOUNT = "amount"  # plain decimal text: money, quantities, prices, rates
    TIME = "time"  # UTC text, 2026-10-31T23:00:00Z


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    places: decimal places that a person sees of an amount; None: as many as each value has.
    added: whether its sum says something: it stands in summaries.
    """

    name: str
    kind: Kind = Kind.TEXT
    places: int | None = None
    added: bool = False

    @property
    def is_number(self) -> bool:
        """Whether a spreadsheet calculates with it."""
        return self.kind in (Kind.AMOUNT, Kind.COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one list of columns, in their order.

    pieces: makes them anew at each call, the same each time; tables with at least these columns.
    count: how many there are; None where that is known only at the end.
    split: in a workbook, rows of each value of this column have a sheet of their own.
    sheets: the values that are known to be in it, in the order of their sheets; others follow as they come.
    first: the columns that come first in a workbook, before the others.
    """

    columns: tuple[Column, ...]
    pieces: Callable[[], Iterator[pa.Table]]
    count: int | None = None
    split: str | None = None
    sheets: tuple[str | None, ...] = ()
    first: tuple[str, ...] = ()

    def of_kind(self, kind: Kind) -> tuple[str, ...]:
        """Names of the columns of a kind."""
        return tuple(column.name for column in self.columns if column.kind is kind)

    def in_sheets(self) -> tuple[Column, ...]:
        """The columns in the order of a workbook."""
        by_name = {column.name: column for column in self.columns}
        names = dict.fromkeys((*self.first, *by_name))
        return tuple(by_name[name] for name in names)

    def selected(self) -> Iterator[pa.Table]:
        """The pieces that hold a row, with these columns alone."""
        names = [column.name for column in self.columns]
        return (piece.select(names) for piece in self.pieces() if len(piece))


def plain(column: Any) -> Any:
    """A column as one array of plain values, whatever its dictionaries were."""
    values = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    whole = values.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
