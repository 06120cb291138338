"""Usage of a month gathered to what is billed: one row per key and stretch of days.

Rules of this file:
- The key is everything that a charge names; node and time of day are summed away.
- Keys are sorted by their values, null first, so that nothing later depends on the order of input rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import prompts, records
from apicost.core.rating import money
from apicost.core.rating.period import Period

# Sort order of charges, coarse to fine: billed costs are rounded down this tree.
KEYS = (
    "api", "operation_id", "method", "path_template", "match_state", "consumer",
    "route_id", "service_id", "status_class", "scope", "upstream_scope", "llm_model",
)  # fmt: skip
SUMS = tuple(column.name for column in records.USAGE_SUMS)

Ints = npt.NDArray[np.int64]
LARGEST = 1 << 62  # no sum of a month reaches it


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRows:
    """Usage by key and stretch of days.

    cuts: the days (from 0) at which stretches begin, the first of them 0.
    keys: one row per distinct key, sorted; columns KEYS, all TEXT.
    key: position in `keys` of each row; day: the first day of its stretch. Rows are sorted by both, distinct.
    sums: column of records.USAGE_SUMS, or part of one (core/prompts) -> int64, one value per row; all of them, or
        those that were asked for.
    """

    cuts: tuple[int, ...]

    keys: pa.Table
    key: Ints
    day: Ints
    sums: dict[str, Ints]

    def of(self, columns: Sequence[str]) -> Ints:
        """The sum of some columns, row by row."""
        total = np.zeros(len(self.key), np.int64)
        for name in columns:
            total = total + self.sums[name]
        return total


def gather(usage: pa.Table, period: Period, cuts: Sequence[int] | None = None) -> UsageRows:
    """Sum usage by key and stretch of days.

    usage: `minute_unix_s`, and any of KEYS, of records.USAGE_SUMS and of their parts; a key that is missing is
        null throughout, a sum that is missing is not there. Buckets may be of any length; each belongs to the
        stretch in which it starts.
        A caller that keeps no reference to the table has its columns freed as they are summed.
    cuts: days (from 0) at which stretches begin; None is every day.
    Raises ValueError for usage outside the period, and OverflowError where a column's sum passes 2**62:
        the reader asked for the wrong month, or counters are broken.
    """
    cuts = tuple(range(len(period.days)) if cuts is None else sorted({0, *cuts}))
    minute = _ints(usage, "minute_unix_s")
    outside = int(((minute < period.start_unix_s) | (minute >= period.end_unix_s)).sum())
    if outside:
        raise ValueError(f"{outside} of {len(minute)} usage rows lie outside {period.name} ({period.time_zone})")
    starts = np.array([period.starts[day] for day in cuts], np.int64)
    stretch = np.searchsorted(starts, minute, side="right") - 1
    columns = [_ranked(usage, name) for name in KEYS]
    key, first_row = _number(columns, len(minute))
    keys = [records.text(ranks[first_row], values) for ranks, values in columns]
    values = {name: usage.column(name) for name in usage.column_names if name in SUMS or prompts.is_part(name)}
    del usage, columns, minute
    if len(cuts) == 1:
        cell, position = np.arange(len(first_row)), key
    else:
        cell, position = np.unique(key * len(cuts) + stretch, return_inverse=True)
    sums = {}
    for name in list(values):
        column = records.numbers(pa.table({name: values.pop(name)}), name).astype(np.int64, copy=False)
        sums[name] = money.add_by(position, column, len(cell))
        if money.exact_sum(sums[name]) >= LARGEST:
            raise OverflowError(f"usage of {period.name}: the sum of {name} passes 2**62")
    days = np.array(cuts, np.int64)
    return UsageRows(
        cuts=cuts, keys=pa.table(keys, names=list(KEYS)), key=cell // len(cuts), day=days[cell % len(cuts)], sums=sums
    )


def _ints(table: pa.Table, name: str) -> Ints:
    return records.numbers(table, name).astype(np.int64, copy=False)


def _ranked(usage: pa.Table, name: str) -> tuple[Ints, list[str]]:
    """A text column as ranks among its sorted distinct values; -1 is null."""
    if name not in usage.column_names:
        return np.full(usage.num_rows, -1, np.int64), []
    column = usage.column(name)
    if not pa.types.is_dictionary(column.type):
        usage = pa.table({name: column.cast(pa.string()).dictionary_encode()})
    codes, values = records.codes(usage, name)
    present = np.unique(codes[codes >= 0])
    ordered = sorted(present.tolist(), key=lambda code: values[code])
    rank_of = np.full(len(values) + 1, -1, np.int64)  # the last place serves code -1
    rank_of[ordered] = np.arange(len(ordered))
    return rank_of[codes], [values[code] for code in ordered]


def _number(columns: Sequence[tuple[Ints, list[str]]], rows: int) -> tuple[Ints, Ints]:
    """Number rows by their key in sort order; also one row that has each key."""
    combined, size = np.zeros(rows, np.int64), 1
    for ranks, values in columns:
        if size * (len(values) + 1) >= LARGEST:
            distinct, combined = np.unique(combined, return_inverse=True)
            size = len(distinct)
        combined = combined * (len(values) + 1) + ranks + 1
        size *= len(values) + 1
    found: Any = np.unique(combined, return_index=True, return_inverse=True)
    return found[2].astype(np.int64), found[1]
