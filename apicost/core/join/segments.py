"""Arithmetic on runs of equal group numbers, without a loop over the groups.

Rules of this file: `group` is ascending; `starts` holds the first position of each group that is there.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
NEVER = -(1 << 62)  # before all times of a clock


def starts_of(group: npt.NDArray[Any]) -> I64:
    """First position of each run of equal values."""
    if len(group) == 0:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1]))).astype(np.int64)


def ends_of(group: npt.NDArray[Any]) -> I64:
    """Last position of each run of equal values."""
    if len(group) == 0:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate((group[1:] != group[:-1], [True]))).astype(np.int64)


def sums_of(values: I64, starts: I64) -> I64:
    """One sum per run (rows of a matrix are added by column)."""
    if len(starts) == 0:
        return np.zeros((0, *values.shape[1:]), np.int64)
    return np.add.reduceat(values, starts, axis=0)


def lengths_of(starts: I64, size: int) -> I64:
    """Length of each run."""
    return np.diff(np.concatenate((starts, [size])))


def cumulate(values: I64, starts: I64) -> I64:
    """Running sum that begins again at each start."""
    if len(values) == 0:
        return values.astype(np.int64)
    running = np.cumsum(values)
    before = running[starts] - values[starts]
    return running - np.repeat(before, lengths_of(starts, len(values)))


def bounds(group: npt.NDArray[Any], groups: int) -> tuple[I64, I64]:
    """First position and end of each group from 0 to `groups` - 1; both equal where it has no rows."""
    edges = np.searchsorted(group, np.arange(groups + 1))
    return edges[:-1].astype(np.int64), edges[1:].astype(np.int64)


def find(first: I64, end: I64, keys: I64, group: I64, wanted: I64, side: Literal["left", "right"] = "left") -> I64:
    """Binary search in the run of each query's own group.

    first, end: the runs of `keys` by group, as `bounds` gives them; keys ascend within a run.
    group, wanted: the queries.

    Returns positions in `keys`, from first[group] to end[group], as numpy.searchsorted would within the run.
    """
    if len(keys) == 0 or len(wanted) == 0:
        return first[group]
    there = end > first
    low = np.where(there, keys[np.minimum(first, len(keys) - 1)], 0)
    high = np.where(there, keys[np.maximum(end - 1, 0)], 0)
    span = np.where(there, high - low + 3, 0)
    base = np.cumsum(span) - span
    flat_group = np.repeat(np.arange(len(first)), end - first)
    flat = keys - low[flat_group] + 1 + base[flat_group]
    lookup = np.clip(wanted - low[group] + 1, 0, span[group] - 1) + base[group]
    found = np.searchsorted(flat, lookup, side=side).astype(np.int64)
    return np.clip(found, first[group], end[group])


def overflow(times: I64, most: int) -> int:
    """The time up to which the oldest lie that are more than `most`; before all times where there are no more."""
    beyond = len(times) - most
    return int(np.partition(times, beyond - 1)[beyond - 1]) if beyond > 0 else NEVER
