"""Exact arithmetic on whole columns: products, shares and rounding without a binary fraction.

Rules of this file:
- Every number is an integer of a named unit or an exact Fraction or Decimal. There is no float, and a
  test reads this file to hold that.
- Columns are int64 where the result provably fits, and Python integers (NumPy's object columns) where
  it might not: same results, slower. Each function says its bound.
- Values are never negative: corrections will come with a sign of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Column = npt.NDArray[Any]  # int64, or object holding Python integers

INT64_MAX = (1 << 63) - 1
_PIECE = 1 << 17  # values at a time where a column may be that of all keys of a month: 1 MB


def product(values: Column, numerator: int, denominator: int) -> tuple[Column, Column]:
    """values * numerator / denominator as (whole, rest), the rest counted in 1/denominator.

    Exact for any operands: int64 where vmax * numerator < 2**63, or by long division in limbs where the
    reduced denominator has at most 58 bits; Python integers otherwise.
    """
    common = math.gcd(numerator, denominator)
    divisor = denominator // common
    factor, numerator = divmod(numerator // common, divisor)  # numerator is now smaller than divisor
    largest = _largest(values)
    # A column of zeros fits with any factor, but the factor itself must be an int64 too.
    fits = max(largest, 1) * factor + largest * numerator // divisor <= INT64_MAX and denominator <= INT64_MAX
    if not fits or values.dtype == object:
        whole, rest = _divmod(values.astype(object) * numerator, divisor)
        return whole + values.astype(object) * factor, rest * common
    if largest * numerator <= INT64_MAX:
        whole, rest = _divmod(values * np.int64(numerator), divisor)
    else:
        limb_bits = 62 - divisor.bit_length()
        if limb_bits < 4:
            whole, rest = _divmod(values.astype(object) * numerator, divisor)
            whole, rest = whole.astype(np.int64), rest.astype(np.int64)
        else:
            whole, rest = _long_division(values, numerator, divisor, limb_bits)
    return whole + values * np.int64(factor), rest * np.int64(common)


def _long_division(values: Column, numerator: int, divisor: int, limb_bits: int) -> tuple[Column, Column]:
    """values * numerator / divisor in schoolbook limbs, for numerator < divisor < 2**(62 - limb_bits).

    At each limb: rest < divisor, so (rest << limb_bits) + limb * numerator < 2 * divisor << limb_bits < 2**63.
    """
    steps = -(-_largest(values).bit_length() // limb_bits)
    whole = np.zeros(len(values), np.int64)
    rest = np.zeros(len(values), np.int64)
    mask = np.int64((1 << limb_bits) - 1)
    for shift in range((steps - 1) * limb_bits, -1, -limb_bits):
        limb = (values >> np.int64(shift)) & mask
        digit, rest = _divmod((rest << np.int64(limb_bits)) + limb * np.int64(numerator), divisor)
        whole = (whole << np.int64(limb_bits)) + digit
    return whole, rest


def share(total: int, weights: Column, *, piece: int = _PIECE) -> Column:
    """Split an integer in proportion to `weights`; the shares sum to it exactly.

    What rounding down leaves over goes to the largest remainders, earliest first (Hamilton's method), so
    that rows in a canonical order make the split independent of the order they came in. A share is never
    more than the next whole number above its exact value: with total <= sum(weights), never more than its weight.
    piece: so many weights are divided at a time, so that beside weights and shares little is held.
    Raises ValueError when nothing carries weight: book the amount as unallocated instead of spreading it.
    """
    whole_weight = exact_sum(weights)
    if whole_weight <= 0 or total < 0:
        raise ValueError(f"cannot split {total} by weights that sum to {whole_weight}")
    if len(weights) <= piece:
        shares, rest = product(weights, total, whole_weight)
        left = total - exact_sum(shares)
        if left:
            shares = shares.copy()
            shares[np.argsort(-rest, kind="stable")[:left]] += 1
        return shares
    return _share_in_pieces(total, weights, whole_weight, piece)


def _share_in_pieces(total: int, weights: Column, whole_weight: int, piece: int) -> Column:
    """`share` with two divisions of each weight: one to find the smallest remainder that gets one more, to the upper
    bits, and one to give it and to tell apart those whose upper bits are the same."""
    slices = [slice(start, start + piece) for start in range(0, len(weights), piece)]
    shift = max(0, whole_weight.bit_length() - 16)
    shares: Column = np.empty(len(weights), weights.dtype)
    counts = np.zeros((whole_weight >> shift) + 1, np.int64)
    for part in slices:
        shares[part], rest = product(weights[part], total, whole_weight)
        np.add.at(counts, (rest >> shift).astype(np.int64), 1)
    left = total - exact_sum(shares)
    if not left:
        return shares
    above = np.cumsum(counts[::-1])[::-1] - counts  # remainders with larger upper bits
    edge = int(np.flatnonzero(above < left)[0])
    at, rests = [], []
    for start, part in zip(range(0, len(weights), piece), slices, strict=True):
        _, rest = product(weights[part], total, whole_weight)
        upper = (rest >> shift).astype(np.int64)
        shares[part] += upper > edge
        of_edge = np.flatnonzero(upper == edge)
        at.append(start + of_edge)
        rests.append(rest[of_edge])
    order = np.argsort(-np.concatenate(rests), kind="stable")[: left - int(above[edge])]
    shares[np.concatenate(at)[order]] += 1
    return shares


def exact_sum(values: Column) -> int:
    """The sum as a Python integer, whatever its size.

    Summed in two halves of at most 32 bits each, so that no piece of values can overflow.
    """
    if values.dtype == object:
        return sum(values.tolist())
    total = 0
    for start in range(0, len(values), _PIECE):
        part = values[start : start + _PIECE]
        high, low = part >> np.int64(32), part & np.int64((1 << 32) - 1)
        total += (int(high.sum(dtype=np.int64)) << 32) + int(low.sum(dtype=np.int64))
    return total


def add_by(groups: npt.NDArray[np.integer], values: Column, size: int) -> Column:
    """Sums of `values` by group number: int64 where the sum of all fits, so that each part does."""
    wide = values.dtype == object or exact_sum(values) > INT64_MAX
    sums = np.zeros(size, object if wide else np.int64)
    np.add.at(sums, groups, values.astype(object) if wide else values)
    return sums


def half_even(amount: Fraction) -> int:
    """The nearest whole number; the even one of two that are equally near."""
    return round(amount)


def round_by_remainder(exact: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each the floor of its exact value or one more.

    `total` is the sum of the exact values, rounded. For the few rows of a table; see `round_tree` for many.
    """
    whole = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def round_tree(
    whole: Column,
    rest: Column,
    divisor: int,
    levels: Iterable[npt.NDArray[np.integer]],
    total: int | Column,
    roots: npt.NDArray[np.integer] | None = None,
) -> npt.NDArray[np.int64]:
    """Round rows to whole numbers that sum to `total`, and so that every node of a tree is right too.

    whole, rest: each row's exact value is whole + rest/divisor.
    levels: for each level of the tree, coarsest first, the node number of every row; nodes are numbered
        from 0 in row order and a node's rows are adjacent. The rows themselves are the last level.
    total: the exact sum, rounded to one of its two neighbours; with `roots`, the level above all others, one for
        each of its nodes: several trees beside each other.

    From the top down each node's amount is given to its children by largest remainder, ties to the
    earlier one. So each node, at every level, gets the floor of its exact value or one more: a group
    of many small rows is not starved by rows with larger remainders elsewhere.
    """
    count = len(whole)
    if count == 0:
        return np.zeros(0, np.int64)
    if rest.dtype == object or exact_sum(rest) > INT64_MAX or exact_sum(whole) > INT64_MAX:
        whole, rest = whole.astype(object), rest.astype(object)
    amount: Column = np.array([total] if roots is None else total, whole.dtype)
    parent_of_row: npt.NDArray[np.integer] = np.zeros(count, np.int32) if roots is None else roots
    for level in itertools.chain(levels, [None]):
        if level is None:  # each row is a node: nothing to add up, and no copies of what is largest
            node_whole, node_rest, parent = whole, rest, parent_of_row
        else:
            first = np.searchsorted(level, np.arange(int(level[-1]) + 1))
            carried, node_rest = _divmod(np.add.reduceat(rest, first), divisor)
            node_whole = np.add.reduceat(whole, first) + carried
            parent = parent_of_row[first]
        first = np.searchsorted(parent, np.arange(len(amount)))
        left = amount - np.add.reduceat(node_whole, first)
        amount = node_whole
        # Most nodes share out nothing beyond whole numbers. Of the others, the children by remainder: stable sorts
        # keep the earlier of equal ones first; lexsort's last key is its first.
        some = np.flatnonzero((left != 0)[parent])
        if len(some):
            of_some = parent[some]
            order = np.lexsort((_ranks(-node_rest[some]), of_some))
            place = np.arange(len(some)) - np.searchsorted(of_some, of_some)
            amount = amount.copy()
            amount[some[order]] += place < left[of_some]
        if level is not None:
            parent_of_row = level
    return amount.astype(np.int64)


def decimal_texts(whole: Column, rest: Column, scale: int) -> pa.Array:
    """Plain decimal text of whole + rest/10**scale: no exponent, no trailing zeros, no sign.

    A whole number has no point: "12", "0.0000035".
    """
    head = pa.array(whole.astype(str)) if whole.dtype == object else pc.cast(pa.array(whole), pa.string())
    if scale == 0:
        return head
    tail = pa.array(rest.astype(str)) if rest.dtype == object else pc.cast(pa.array(rest), pa.string())
    tail = pc.utf8_rtrim(pc.utf8_lpad(tail, width=scale, padding="0"), characters="0")
    return pc.utf8_rtrim(joined([head, tail], "."), characters=".")


def joined(texts: Sequence[pa.Array], separator: str) -> pa.Array:
    """Text columns joined to one, row by row; none may hold nulls."""
    join: Any = pc.binary_join_element_wise  # its stubs know no mix of arrays and a separator
    return join(*texts, separator)


def product_texts(values: Column, numerator: int, denominator: int) -> pa.Array:
    """Plain decimal text of values * numerator / denominator, for denominators that divide a power of ten.

    Raises ValueError for another denominator: a third has no exact decimal.
    """
    return products_texts([values], [(numerator, denominator)])


def products_texts(values: Sequence[Column], ratios: Sequence[tuple[int, int]]) -> pa.Array:
    """`product_texts` of columns one after the other, each with its own numerator and denominator."""
    products = []
    for column, (numerator, denominator) in zip(values, ratios, strict=True):
        places = _places(denominator)
        products.append((*product(column, numerator * (10**places // denominator), 10**places), places))
    scale = max((places for *_, places in products), default=0)
    if scale > 18 or any(column.dtype == object for *both, _ in products for column in both):
        texts = [decimal_texts(whole, rest, places) for whole, rest, places in products]
        return pa.concat_arrays([pa.array([], pa.string()), *texts])
    nothing = np.zeros(0, np.int64)
    whole = np.concatenate([nothing, *(whole for whole, _, _ in products)])
    rest = np.concatenate([nothing, *(rest * np.int64(10 ** (scale - places)) for _, rest, places in products)])
    return decimal_texts(whole, rest, scale)  # at once, and without the zeros that a common scale adds


def _places(denominator: int) -> int:
    """The decimal places of 1/denominator."""
    places, power = 0, 1
    while power % denominator:
        places, power = places + 1, power * 10
        if places > 200:
            raise ValueError(f"1/{denominator} has no exact decimal")
    return places


def fixed_texts(minor: Column, scale: int) -> pa.Array:
    """`fixed` for a column of amounts that are not negative."""
    whole, rest = _divmod(minor, 10**scale)
    head = pc.cast(pa.array(whole), pa.string())
    if scale == 0:
        return head
    tail = pc.utf8_lpad(pc.cast(pa.array(rest), pa.string()), width=scale, padding="0")
    return joined([head, tail], ".")


def plain(amount: Decimal | int) -> str:
    """Plain decimal text of one number, exactly: never an exponent."""
    text = format(Decimal(amount), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def fixed(minor: int, scale: int) -> str:
    """An amount in minor units with all its places: fixed(1234, 2) is "12.34"."""
    sign, digits = ("-" if minor < 0 else ""), str(abs(minor)).rjust(scale + 1, "0")
    return sign + (digits if scale == 0 else f"{digits[:-scale]}.{digits[-scale:]}")


def ratio(amount: Decimal) -> tuple[int, int]:
    """A decimal as (numerator, power of ten)."""
    sign, digits, exponent = amount.as_tuple()
    assert isinstance(exponent, int), amount
    number = int("".join(map(str, digits)) or "0") * (-1 if sign else 1)
    return (number * 10**exponent, 1) if exponent >= 0 else (number, 10**-exponent)


def exact_decimal(amount: Fraction) -> Decimal:
    """A fraction as a decimal with all its digits, whatever the context's precision.

    Raises ValueError where its denominator has other primes than 2 and 5: a third has no exact decimal.
    """
    scale, power = 0, 1
    while power % amount.denominator:
        scale, power = scale + 1, power * 10
        if scale > 200:
            raise ValueError(f"{amount} has no exact decimal")
    digits = tuple(map(int, str(abs(amount.numerator) * (power // amount.denominator))))
    return Decimal((int(amount < 0), digits, -scale))


def _divmod(values: Column, divisor: int) -> tuple[Column, Column]:
    if values.dtype == object:
        return values // divisor, values % divisor
    whole = values // np.int64(divisor)
    return whole, values - whole * np.int64(divisor)


def _largest(values: Column) -> int:
    return int(values.max()) if len(values) else 0


def _ranks(values: Column) -> Column:
    """Numbers that sort as `values` do: lexsort takes no Python integers."""
    return np.unique(values, return_inverse=True)[1] if values.dtype == object else values
