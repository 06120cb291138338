"""A stretch of a FOCUS file as the linter looks at it: columns as text, masks of rows, exact products.

Rules of this file:
- A test of a text is made once per distinct text where the column has few, and by Arrow where it has many.
- Numbers are compared exactly: as wide decimals, and as fractions where those are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Mask = npt.NDArray[np.bool_]
Texts = tuple[str | None, ...]

NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
_WIDEST = 76  # digits of Arrow's widest decimal


class Piece:
    """Rows of a table whose columns are text; a column that is not there counts as null."""

    def __init__(self, table: pa.Table) -> None:
        self.rows = len(table)
        self.columns: dict[str, Any] = {}
        self.plain: dict[str, Any] = {}  # dictionaries as strings
        self.matched: dict[tuple[str, str], Mask] = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            array: Any = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
            array = array.combine_chunks()
            if isinstance(array, pa.ChunkedArray):  # no rows: Arrow keeps it chunked
                array = pa.array([], pa.string())
            self.columns[name] = array

    def has(self, *names: str) -> bool:
        return all(name in self.columns for name in names)

    def texts(self, name: str) -> Any:
        """A column as plain strings."""
        if name not in self.columns:
            return pa.nulls(self.rows, pa.string())
        column = self.columns[name]
        if pa.types.is_string(column.type):
            return column
        if name not in self.plain:
            self.plain[name] = column.cast(pa.string())
        return self.plain[name]

    def filled(self, name: str) -> Mask:
        """Rows that have a value."""
        if name not in self.columns:
            return np.zeros(self.rows, np.bool_)
        return _mask(pc.is_valid(self.columns[name]))

    def null(self, name: str) -> Mask:
        return ~self.filled(name)

    def equal(self, name: str, *values: str) -> Mask:
        """Rows whose value is one of some."""
        return self.test(name, lambda texts: pc.is_in(texts, pa.array(values)))

    def test(self, name: str, check: Callable[[Any], Any]) -> Mask:
        """Rows whose value passes a test by Arrow; null passes none."""
        if name not in self.columns:
            return np.zeros(self.rows, np.bool_)
        column = self.columns[name]
        if not pa.types.is_dictionary(column.type):
            return _mask(pc.fill_null(check(column), False)) & self.filled(name)
        passed = np.append(_mask(pc.fill_null(check(column.dictionary), False)), False)
        of_rows: Mask = passed[column.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        return of_rows

    def test_each(self, name: str, check: Callable[[str], bool]) -> Mask:
        """Rows whose value passes a test in Python, made once per distinct value."""
        self.coded(name)
        return self.test(name, lambda texts: pa.array([check(text) for text in texts.to_pylist()], pa.bool_()))

    def matches(self, name: str, pattern: str) -> Mask:
        """Rows whose value fits a regular expression."""
        if (name, pattern) not in self.matched:
            self.matched[name, pattern] = self.test(name, lambda texts: pc.match_substring_regex(texts, pattern))
        return self.matched[name, pattern]

    def differ(self, left: str, right: str) -> Mask:
        """Rows in which two columns have other texts; two nulls don't differ."""
        one, other = pc.fill_null(self.texts(left), "\x00"), pc.fill_null(self.texts(right), "\x00")
        return _mask(pc.not_equal(one, other))

    def later(self, left: str, right: str) -> Mask:
        """Rows in which the time on the left is later than that on the right."""
        return _mask(pc.fill_null(pc.greater(self.texts(left), self.texts(right)), False))

    def distinct(self, names: tuple[str, ...], rows: Mask) -> list[tuple[int, Texts]]:
        """The distinct combinations of columns among some rows: the first row of each, and its texts."""
        return [(int(mine[0]), texts) for mine, texts in self.groups(names, rows)]

    def groups(self, names: tuple[str, ...], rows: Mask) -> list[tuple[npt.NDArray[np.int64], Texts]]:
        """Some rows by their combination of columns: the rows of each, and its texts."""
        picked = np.flatnonzero(rows)
        if not len(picked):
            return []
        combined = np.zeros(len(picked), np.int64)
        for name in names:
            column = self.coded(name)
            if column is not None:
                codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)[picked].astype(np.int64)
                combined = np.unique(combined * (len(column.dictionary) + 1) + codes + 1, return_inverse=True)[1]
        order = np.argsort(combined, kind="stable")
        starts = np.flatnonzero(np.diff(combined[order])) + 1
        groups = [picked[mine] for mine in np.split(order, starts)]
        return [(mine, tuple(self.value(name, int(mine[0])) for name in names)) for mine in groups]

    def coded(self, name: str) -> Any:
        """A column as a dictionary of texts; None where it is not there."""
        if name in self.columns and not pa.types.is_dictionary(self.columns[name].type):
            self.columns[name] = self.columns[name].dictionary_encode()
        return self.columns.get(name)

    def value(self, name: str, row: int) -> str | None:
        if name not in self.columns:
            return None
        found: str | None = self.columns[name][row].as_py()
        return found

    def numbers(self, *names: str) -> Mask:
        """Rows in which all of some columns are plain numbers."""
        found = np.ones(self.rows, np.bool_)
        for name in names:
            found &= self.matches(name, NUMBER)
        return found

    def no_product(self, left: str, right: str, product: str) -> Mask:
        """Rows in which left x right is not the product, exactly; rows with a null are not looked at."""
        wrong = np.zeros(self.rows, np.bool_)
        all_numbers = self.numbers(left, right, product)
        names = (left, right, product)
        if self.has(*names) and all(pa.types.is_dictionary(self.columns[name].type) for name in names):
            for rows, (one, other, result) in self.groups(names, all_numbers):
                wrong[rows] = Fraction(one or 0) * Fraction(other or 0) != Fraction(result or 0)
            return wrong
        rows = np.flatnonzero(all_numbers)
        factors = [self.texts(name).take(pa.array(rows)) for name in names]
        # Numbers with many digits apart: one of them would widen all.
        long = np.zeros(len(rows), np.int64)
        for texts in factors[:2]:
            long = long * 2 + (pc.utf8_length(texts).to_numpy() > 18)
        for kind in np.unique(long):
            mine = np.flatnonzero(long == kind)
            wrong[rows[mine]] = _no_product(*(texts.take(pa.array(mine)) for texts in factors))
        return wrong

    def total(self, name: str) -> Fraction:
        """The sum of a column's numbers, exactly."""
        texts = self.texts(name).filter(pa.array(self.numbers(name)))
        if not len(texts):
            return Fraction()
        digits, scale = _digits(texts)
        if digits + scale + len(str(len(texts))) > _WIDEST:
            return sum((Fraction(text) for text in texts.to_pylist()), Fraction())
        return Fraction(pc.sum(texts.cast(pa.decimal256(_WIDEST, scale))).as_py())


def _mask(array: Any) -> Mask:
    found: Mask = array.to_numpy(zero_copy_only=False)
    return found


def _digits(texts: Any) -> tuple[int, int]:
    """The most digits before and after the point."""
    at = pc.find_substring(texts, ".").to_numpy()
    length = pc.utf8_length(texts).to_numpy()
    return int(np.where(at < 0, length, at).max()), int(np.where(at < 0, 0, length - at - 1).max())


def _no_product(left: Any, right: Any, product: Any) -> Mask:
    """Rows in which left x right is not the product; none is null."""
    (left_digits, left_scale), (right_digits, right_scale) = _digits(left), _digits(right)
    digits, scale = _digits(product)
    scale = max(scale, left_scale + right_scale)
    narrow = max(digits, left_digits + right_digits + 1) + scale
    if narrow > _WIDEST or left_digits + left_scale + right_digits + right_scale + 1 > _WIDEST:
        rows = zip(left.to_pylist(), right.to_pylist(), product.to_pylist(), strict=True)
        return np.array([Fraction(a) * Fraction(b) != Fraction(c) for a, b, c in rows], np.bool_)
    exact = pc.multiply(
        left.cast(pa.decimal256(left_digits + left_scale, left_scale)),
        right.cast(pa.decimal256(right_digits + right_scale, right_scale)),
    )
    wide = pa.decimal256(_WIDEST, scale)
    return _mask(pc.not_equal(exact.cast(wide), product.cast(wide)))


def distance_reaches(left: Any, right: Any, limit: Fraction) -> Mask:
    """Rows in which two numbers are so far from each other, or farther; none is null."""
    (left_digits, left_scale), (right_digits, right_scale) = _digits(left), _digits(right)
    scale = max(left_scale, right_scale)
    if max(left_digits, right_digits) + scale + 2 > _WIDEST or (limit * 10**scale).denominator != 1:
        rows = zip(left.to_pylist(), right.to_pylist(), strict=True)
        return np.array([abs(Fraction(a) - Fraction(b)) >= limit for a, b in rows], np.bool_)
    wide = pa.decimal256(_WIDEST - 1, scale)
    apart = pc.abs(pc.subtract(left.cast(wide), right.cast(wide)))
    least = pa.scalar(Decimal(int(limit * 10**scale)).scaleb(-scale), pa.decimal256(_WIDEST, scale))
    return _mask(pc.greater_equal(apart, least))
