"""Billed costs: what charges cost exactly, rounded once, so that they sum to the statement's total.

Rules of this file:
- The total goes down a tree: APIs, their operations, consumers of these, charges. Each node's amount is given to its
  children by largest remainder (`money.round_tree`).
- Of all lots together only operations are held; the tree below an operation is made lot by lot. So no two lots may
  share an operation; they may share an API.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import lcm

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.statement import Line
from apicost.core.rating.usage_rows import KEYS

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.int32]

# How many of KEYS make a node of each level.
_API, _OPERATION, _CONSUMER = 1, 5, 6


class Rounding:
    """The billed costs of a statement in the making: every lot is added, then settled, then each lot's are asked for.

    keys: of a lot, sorted; those of the last lot end with a key of nulls, which is a node of its own at every level.
    charges: for each line in order, the positions in `keys` that bear it and their quantities.
    """

    def __init__(self, lines: Sequence[Line], minor: int) -> None:
        """minor: minor units of the currency in one of it."""
        self._ratios = [Fraction(*x.cost_ratio()) * minor if x.price is not None else None for x in lines]
        self._divisor = lcm(1, *(ratio.denominator for ratio in self._ratios if ratio is not None))
        self._exact: list[money.Column] = []  # by lot: what each operation costs, in 1/divisor of the minor unit
        self._apis: list[list[str | None]] = []  # by lot: of each operation

    def add(self, keys: pa.Table, charges: Iterable[tuple[Keys, Ints]], *, last: bool) -> None:
        """The next lot."""
        operation = _runs(keys, _OPERATION, last)
        count = int(operation[-1]) + 1
        exact = np.zeros(count, object)
        for ratio, (key, quantity) in zip(self._ratios, charges, strict=True):
            if ratio is not None and len(key):
                sums = money.add_by(operation[key], quantity, count)
                some = np.flatnonzero(sums)
                exact[some] += sums[some].astype(object) * (ratio.numerator * (self._divisor // ratio.denominator))
        self._exact.append(exact)
        first = np.searchsorted(operation, np.arange(count))
        codes, values = records.codes(keys, "api")
        self._apis.append([values[code] if code >= 0 else None for code in codes[first].tolist()])

    def settle(self, total: int) -> list[Ints]:
        """What each lot's operations are billed, of the whole `total`, in minor units."""
        exact = np.concatenate(self._exact)
        apis = [api for of_lot in self._apis for api in of_lot]
        level = np.cumsum([0, *(a != b for a, b in itertools.pairwise(apis))])
        level[-1] = level[-2] + 1 if len(level) > 1 else 0  # what no usage bears
        small = self._divisor <= money.INT64_MAX
        whole, rest = exact // self._divisor, (exact % self._divisor).astype(np.int64 if small else object)
        amounts = money.round_tree(whole, rest, self._divisor, [level], total)
        return np.split(amounts, np.cumsum([len(of_lot) for of_lot in self._exact])[:-1])

    def billed(
        self, keys: pa.Table, charges: Sequence[tuple[Keys, Ints]], order: Ints, amounts: Ints, *, last: bool
    ) -> Ints:
        """Billed cost of each charge of a lot in minor units; 0 for those without a price.

        order: sorts the charges, line after line as they are given, by key. amounts: of the lot's operations.
        """
        lengths = [len(key) for key, _ in charges]
        priced = np.repeat(np.array([ratio is not None for ratio in self._ratios], np.bool_), lengths)[order]
        key = np.concatenate([np.empty(0, np.int32), *(key for key, _ in charges)])[order][priced]
        whole: money.Column = np.zeros(len(order), np.int64)
        rest: money.Column = np.zeros(len(order), np.int64 if self._divisor <= money.INT64_MAX else object)
        start = 0
        for ratio, (_, quantity), length in zip(self._ratios, charges, lengths, strict=True):
            if ratio is not None:
                rows = slice(start, start + length)
                whole[rows], part = money.product(quantity, ratio.numerator, ratio.denominator)
                rest[rows] = part.astype(rest.dtype) * (self._divisor // ratio.denominator)
            start += length
        whole, rest = whole[order][priced], rest[order][priced]
        operation = _runs(keys, _OPERATION, last)[key]
        level, first = _numbered(operation)
        consumer, _ = _numbered(_runs(keys, _CONSUMER, last)[key])
        billed = np.zeros(len(order), np.int64)
        billed[priced] = money.round_tree(whole, rest, self._divisor, [consumer], amounts[operation[first]], level)
        return billed


def _runs(keys: pa.Table, columns: int, last: bool) -> Keys:
    """Numbers the runs of keys whose first so many columns are the same. last: the last key is a run by itself."""
    new = np.zeros(len(keys), np.bool_)
    new[-1] = last
    for name in KEYS[:columns]:
        codes = records.codes(keys, name)[0]
        new[1:] |= codes[1:] != codes[:-1]
    new[:1] = False
    return np.cumsum(new, dtype=np.int32)


def _numbered(runs: Keys) -> tuple[Keys, Ints]:
    """Ascending numbers without gaps, and where each begins."""
    new = np.ones(len(runs), np.bool_)
    new[1:] = runs[1:] != runs[:-1]
    return np.cumsum(new, dtype=np.int32) - np.int32(1), np.flatnonzero(new)
