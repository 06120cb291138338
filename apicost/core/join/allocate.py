"""Integers shared out by weight so that no unit is lost or made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from apicost.core.join.segments import cumulate, starts_of, sums_of

_I64 = npt.NDArray[np.int64]
_SAFE = 1 << 62  # products below this fit an int64


def allocate(total: int, weights: Sequence[int]) -> list[int]:
    """Split an integer in proportion to `weights`; the shares sum to it exactly.

    total: bytes, or money in the smallest unit kept; negative for a credit.
    weights: one unit throughout, none negative.

    Returns one share per weight, in order. What rounding down leaves over goes to the largest
    remainders, earliest first (Hamilton's method).
    Raises ValueError when nothing carries weight: book the amount as unattributed instead of spreading it.
    """
    whole = sum(weights)
    if whole == 0 or min(weights) < 0:
        raise ValueError(f"cannot split {total} by weights {weights}")
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: total * weights[i] % whole, reverse=True)
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def allocate_groups(totals: _I64, group: _I64, weights: _I64) -> _I64:
    """`allocate` for many groups at once.

    totals: one amount per group, not negative.
    group: per weight the number of its group, ascending, each from 0 to len(totals) - 1 at least once.
    weights: not negative; a group whose weights are all 0 is split evenly.

    Returns one share per weight; each group's shares sum to its total. Equal remainders go to the
    earliest. Groups whose products would not fit 64 bits are split with Python's integers.
    """
    if len(weights) == 0:
        return np.zeros(0, np.int64)
    starts = starts_of(group)
    whole = sums_of(weights, starts)
    weights = np.where((whole == 0)[group], 1, weights)
    whole = sums_of(weights, starts)
    heaviest = np.maximum.reduceat(weights, starts)
    large = (heaviest > 0) & (totals > _SAFE // np.maximum(heaviest, 1))
    share_of = np.where(large, 0, totals)
    product = share_of[group] * weights
    shares = product // whole[group]
    remainder = product - shares * whole[group]
    left = share_of - sums_of(shares, starts)
    order = np.lexsort((-remainder, group))
    place = cumulate(np.ones(len(group), np.int64), starts) - 1
    lucky = order[place < left[group]]
    shares[lucky] += 1
    for number in np.flatnonzero(large):
        end = starts[number + 1] if number + 1 < len(starts) else len(group)
        chosen = slice(starts[number], end)
        shares[chosen] = allocate(int(totals[number]), [int(w) for w in weights[chosen]])
    return shares
