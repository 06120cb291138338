"""What the traffic of a finding costs: its share of the statement, exactly.

Rules of this file:
- A charge is borne by a key (API, operation, consumer, ...) for a quantity over some days. The part of it that a
  finding bears is cost x (the finding's quantity / the key's quantity): tiers and free allowances are shared
  by all requests of the key alike, since no request came first.
- Costs are exact fractions; no float touches them.
- Findings overlap, so their costs do not sum to anything. One finding's cost is never more than its keys' cost.
- Traffic without a price has no cost: None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import prompts, records
from apicost.core.conformance.finding import Finding
from apicost.core.rating import money
from apicost.core.rating.statement import Statement
from apicost.core.rating.usage_rows import KEYS

Ints = npt.NDArray[np.int64]
_LARGEST = 1 << 62


class _Group(NamedTuple):
    """Charges of one SKU over some days, all tiers together.

    columns: what was counted. unit: key -> cost of one base unit.
    """

    start_unix_s: int
    end_unix_s: int
    columns: tuple[str, ...]
    unit: dict[int, Fraction]


def costs(findings: Sequence[Finding], shapes: pa.Table, statements: Sequence[Statement]) -> list[Fraction | None]:
    """The cost of each finding in the statements' currency; None where no price speaks of its traffic.

    shapes: columns as in records.SHAPE; the table that `Finding.rows` count in. Its buckets must not be cut by the
        statements' months or price changes.
    statements: of distinct months. Traffic of other times has no cost.
    """
    seconds = _ints(shapes, "minute_unix_s")
    found: list[Fraction | None] = [None if finding.rows else Fraction() for finding in findings]
    for statement in statements:
        period = statement.period
        within = (seconds >= period.start_unix_s) & (seconds < period.end_unix_s)
        if not within.any():
            continue
        place = _places(statement.keys.slice(0, len(statement.keys) - 1), shapes)
        groups = list(_groups(statement))
        measured = {columns: _sum(shapes, columns) for columns in {group.columns for group in groups}}
        for number, finding in enumerate(findings):
            rows = np.array(finding.rows, np.int64)
            rows = rows[within[rows]] if len(rows) else rows
            for group in groups:
                part = _part(group, rows, seconds, place, measured[group.columns])
                if part is not None:
                    share = Fraction(*finding.share) if finding.share else 1
                    found[number] = (found[number] or Fraction()) + part * share
    return found


def _part(group: _Group, rows: Ints, seconds: Ints, place: Ints, measured: Ints) -> Fraction | None:
    """What some rows bear of a group's charges; None where none of their keys bears any."""
    rows = rows[(seconds[rows] >= group.start_unix_s) & (seconds[rows] < group.end_unix_s)]
    keys, position = np.unique(place[rows], return_inverse=True)
    quantities = money.add_by(position, measured[rows], len(keys)).tolist()
    parts = [
        group.unit[key] * quantity
        for key, quantity in zip(keys.tolist(), quantities, strict=True)
        if key in group.unit
    ]  # fmt: skip
    return sum(parts, Fraction()) if parts else None


def _groups(statement: Statement) -> Iterator[_Group]:
    """Charges by SKU, stretch of days and columns."""
    usage, starts = statement.usage, statement.period.starts
    lines: dict[tuple[str | None, tuple[str, ...], int, int], list[int]] = {}
    for number, line in enumerate(statement.lines):
        if line.price is not None and line.columns:
            lines.setdefault((line.sku, line.columns, line.first_day, line.end_day), []).append(number)
    for (_, columns, first, end), numbers in lines.items():
        within = (usage.day >= first) & (usage.day < end)
        whole = money.add_by(usage.key[within], usage.of(columns)[within], len(usage.keys))
        cost: dict[int, Fraction] = {}
        for number in numbers:
            charges = statement.line == number
            pairs = zip(statement.key[charges].tolist(), statement.quantity[charges].tolist(), strict=True)
            ratio = Fraction(*statement.lines[number].cost_ratio())
            for key, quantity in pairs:
                cost[key] = cost.get(key, Fraction()) + quantity * ratio
        unit = {key: amount / int(whole[key]) for key, amount in cost.items() if key < len(whole) and whole[key]}
        yield _Group(starts[first], starts[end], columns, unit)


def _sum(shapes: pa.Table, columns: Sequence[str]) -> Ints:
    total = np.zeros(len(shapes), np.int64)
    shapes = prompts.with_parts(shapes, columns)
    for name in columns:
        total += _ints(shapes, name)
    return total


def _places(keys: pa.Table, rows: pa.Table) -> Ints:
    """For each row the position of its key among distinct keys, -1 where it is none of them."""
    both, size = np.zeros(len(keys) + len(rows), np.int64), 1
    for name in KEYS:
        codes, values = records.codes(keys, name)
        others, theirs = records.codes(rows, name)
        number = {value: code for code, value in enumerate(values)}
        translated = np.array([*(number.get(value, len(values)) for value in theirs), -1], np.int64)
        column = np.concatenate([codes.astype(np.int64), translated[others]]) + 1
        width = len(values) + 2
        if size * width >= _LARGEST:
            distinct, both = np.unique(both, return_inverse=True)
            size = len(distinct)
        both, size = both * width + column, size * width
    own, asked = both[: len(keys)], both[len(keys) :]
    order = np.argsort(own, kind="stable")
    spot = np.minimum(np.searchsorted(own[order], asked), max(len(own) - 1, 0))
    if not len(own):
        return np.full(len(rows), -1, np.int64)
    hit = order[spot]
    return np.where(own[hit] == asked, hit, -1)


def _ints(table: pa.Table, name: str) -> Ints:
    return records.numbers(table, name).astype(np.int64, copy=False)
