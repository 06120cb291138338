"""The charges and usage that a report is about: a whole statement, or one API's part of it.

Rules of this file:
- Sums are integers, costs exact fractions: what a table says is a sum of the charges that the CSV lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from math import lcm

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.pricebook import TAGS
from apicost.core.rating.statement import Statement
from apicost.report.export import keys_of
from apicost.report.month.labels import NOBODY, Grouping, Label

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Ratio = tuple[int, int]


class Part:
    """All charges of a statement, or one API's.

    tagged: owner, team and cost centre of each of the statement's keys.
    chosen: which keys; charges, rows: which charges and which rows of usage.
    contracted, listed: by line, the cost of one base unit with and without contracts; (0, 1) without a price.
    """

    def __init__(self, statement: Statement, api: str | None, tagged: pa.Table) -> None:
        self.statement = statement
        self.tagged = tagged
        everything = np.ones(len(statement.keys), np.bool_)
        self.chosen: Mask = everything if api is None else keys_of(statement.keys, api)
        self.charges: Mask = self.chosen[statement.key]
        self.rows: Mask = self.chosen[statement.usage.key]
        self.total_minor = int(statement.billed_minor[self.charges].sum())
        self.contracted = [line.cost_ratio() if line.price is not None else (0, 1) for line in statement.lines]
        self.listed = [line.list_ratio() if line.price is not None else (0, 1) for line in statement.lines]

    @cached_property
    def of_line(self) -> list[npt.NDArray[np.int32]]:
        """By line, the positions of this part's charges."""
        picked = np.flatnonzero(self.charges).astype(np.int32)  # a million charges, kept as long as the part is
        lines = self.statement.line[picked]
        order = picked[np.argsort(lines, kind="stable")]
        counts = np.bincount(lines, minlength=len(self.statement.lines))
        return np.split(order, np.cumsum(counts))[:-1]

    @cached_property
    def by_line(self) -> list[int]:
        """By line, the quantity of this part's charges in base units."""
        return [money.exact_sum(self.statement.quantity[charges]) for charges in self.of_line]

    def exact_total(self) -> Fraction:
        return self._total(self.contracted)

    def list_total(self) -> Fraction:
        return self._total(self.listed)

    def sums(self) -> dict[str, int]:
        """The part's usage: every sum."""
        return {name: money.exact_sum(values[self.rows]) for name, values in self.statement.usage.sums.items()}

    def billed_of(self, lines: Sequence[bool]) -> int:
        """Billed cost of the charges of some lines."""
        picked = self.charges & np.array([*lines, False], np.bool_)[self.statement.line]
        return int(self.statement.billed_minor[picked].sum())

    def billed_in(self, column: str, values: Sequence[str]) -> int:
        """Billed cost of the charges whose key has one of some values."""
        codes, texts = records.codes(self.statement.keys, column)
        wanted = np.array([text in values for text in texts] + [False])[codes]
        picked = self.charges & wanted[self.statement.key]
        return int(self.statement.billed_minor[picked].sum())

    def groups(self, by: Grouping) -> tuple[list[Label], Ints]:
        """Labels, and for each key the position of its own; keys with one label are one. The last key is nobody's."""
        keys = self.statement.keys
        coded = {name: records.codes(self.tagged if name in TAGS else keys, name) for name in by.columns}
        first, inverse = distinct(list(coded.values()), len(keys))
        found = np.stack([codes[first] for codes, _ in coded.values()], axis=1)
        numbers: dict[Label, int] = {}
        of_distinct = []
        for row in found.tolist():
            texts = {
                name: None if code < 0 else coded[name][1][code] for name, code in zip(by.columns, row, strict=True)
            }
            of_distinct.append(numbers.setdefault(by.label(texts), len(numbers)))
        group = np.array(of_distinct, np.int64)[inverse]
        group[-1] = numbers.setdefault(NOBODY, len(numbers))
        return list(numbers), group

    def billed(self, group: Ints, count: int) -> Ints:
        """Billed cost by group of keys."""
        picked = self.charges
        return money.add_by(group[self.statement.key[picked]], self.statement.billed_minor[picked], count)

    def exact(self, group: Ints, count: int, ratios: Sequence[Ratio]) -> list[Fraction]:
        """Exact cost by group of keys, each line's quantity by its ratio."""
        divisor = lcm(1, *(bottom for _, bottom in ratios))
        total = np.zeros(count, object)
        for (top, bottom), charges in zip(ratios, self.of_line, strict=True):
            factor = top * (divisor // bottom)
            if factor and len(charges):
                sums = money.add_by(group[self.statement.key[charges]], self.statement.quantity[charges], count)
                found = np.flatnonzero(sums)
                total[found] += sums[found].astype(object) * factor
        return [Fraction(value, divisor) for value in total.tolist()]

    def _total(self, ratios: Sequence[Ratio]) -> Fraction:
        return sum((n * Fraction(*ratio) for n, ratio in zip(self.by_line, ratios, strict=True)), Fraction())


def distinct(coded: Sequence[tuple[npt.NDArray[np.integer], Sequence[str]]], rows: int) -> tuple[Ints, Ints]:
    """Rows with the same codes in every column: one row of each kind, and each row's kind."""
    combined, size = np.zeros(rows, np.int64), 1
    for codes, values in coded:
        if size * (len(values) + 1) >= 1 << 62:
            combined = np.unique(combined, return_inverse=True)[1].reshape(-1).astype(np.int64)
            size = rows
        combined, size = combined * (len(values) + 1) + codes + 1, size * (len(values) + 1)
    _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
    return first.astype(np.int64), inverse.reshape(-1).astype(np.int64)
