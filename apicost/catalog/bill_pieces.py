"""Some lines of a bill as columns: codes of texts, exact numbers, and whether a cost is quantity x unit price."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.catalog.bill_files import NUMBER

Codes = npt.NDArray[np.int32]

MOST_PLACES = 12
EXACT = 99  # agreement of a cost that is quantity x unit price to the last digit
_DECIMAL = re.compile(r"[+-]?(\d{1,40}(\.\d{0,60})?|\.\d{1,60})([eE][+-]?\d{1,2})?", re.ASCII)
# A unit price of 8 digits before the point and 16 after it: its product with a quantity, less a cost, has the 76 digits
# that Arrow's decimals hold.
_FACTOR = pa.decimal256(24, 16)


class Piece:
    """Some lines of a bill by column; a column that the file has not is null throughout."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.names = frozenset(table.column_names)
        self._codes: dict[str, tuple[Codes, list[str]]] = {}
        self._plain: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.table.num_rows

    def codes(self, name: str) -> tuple[Codes, list[str]]:
        """A text column as codes of its values; -1 is null."""
        if name not in self.names:
            return np.full(len(self), -1, np.int32), []
        if name not in self._codes:
            column = self._whole(name)
            codes = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
            self._codes[name] = codes, column.dictionary.to_pylist()
        return self._codes[name]

    def plain(self, name: str) -> Any:
        """A text column as text."""
        if name not in self._plain:
            here = name in self.names
            self._plain[name] = self._whole(name).cast(pa.string()) if here else pa.nulls(len(self), pa.string())
        return self._plain[name]

    def number(self, name: str, *, none: bool = False) -> Any:
        """A column of numbers; null is 0, unless `none`."""
        column = self._whole(name) if name in self.names else pa.nulls(len(self), NUMBER)
        compute: Any = pc
        return column if none else compute.fill_null(column, 0)

    def _whole(self, name: str) -> Any:
        column = self.table.column(name)
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


@functools.lru_cache(maxsize=1 << 16)
def fraction(text: str | None) -> Fraction | None:
    """A decimal number; None where there is none, or it is none."""
    return Fraction(text) if text is not None and _DECIMAL.fullmatch(text) else None


def agreement_of(cost: Any, quantity: Any, price: Any) -> npt.NDArray[np.int8]:
    """To how many decimal places cost is quantity x unit price: the difference is less than one unit of the last.

    price: as text. -1 for lines without a price and for differences of a cent or more; EXACT for none at all.
    """
    compute: Any = pc  # its stubs know no columns of unknown type
    encoded = price.dictionary_encode()
    codes = compute.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    prices = [fraction(text) or Fraction() for text in encoded.dictionary.to_pylist()]
    short = np.array([*map(_is_short, prices), False], np.bool_)[codes]
    agreement = np.full(len(cost), -1, np.int8)
    rows = np.flatnonzero(short)
    if len(rows):
        texts = [text if _is_short(p) else "0" for text, p in zip(encoded.dictionary.to_pylist(), prices, strict=True)]
        factor = pa.array(texts, pa.string()).cast(_FACTOR).take(pa.array(codes[rows]))
        product = compute.multiply(quantity.take(pa.array(rows)), factor)
        difference = compute.abs(compute.subtract(cost.take(pa.array(rows)).cast(product.type), product))
        found = np.full(len(rows), -1, np.int8)
        for places in range(2, MOST_PLACES + 1):
            bound = pa.scalar(Decimal(1).scaleb(-places)).cast(difference.type)
            found[compute.less(difference, bound).to_numpy(zero_copy_only=False)] = places
        found[compute.equal(difference, pa.scalar(0).cast(difference.type)).to_numpy(zero_copy_only=False)] = EXACT
        agreement[rows] = found
    for row in np.flatnonzero(~short & (codes >= 0)).tolist():  # more digits than columns hold: few lines have such
        away = abs(Fraction(cost[row].as_py()) - Fraction(quantity[row].as_py()) * prices[codes[row]])
        fits = [places for places in range(2, MOST_PLACES + 1) if away * 10**places < 1]
        agreement[row] = EXACT if not away else max(fits, default=-1)
    return agreement


def _is_short(price: Fraction) -> bool:
    """Whether a unit price fits a column of `_FACTOR`."""
    return abs(price) < 10**8 and 10**16 % price.denominator == 0
