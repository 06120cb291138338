"""A statement made lot by lot is that of the whole, charge by charge."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.rating import money, rate
from apicost.core.rating.usage_rows import KEYS, UsageRows, gather
from tests.laws.test_money_terms import BOOK, MONTH, rows
from tests.usage_months import usage


def lots_of(whole: UsageRows, cut: int) -> list[UsageRows]:
    """Usage in lots, cut between some operations: where a bit of `cut` is set."""
    codes = np.array([records.codes(whole.keys, name)[0] for name in KEYS[:5]])
    changes = np.flatnonzero((codes[:, 1:] != codes[:, :-1]).any(axis=0)) + 1
    edges = [0, *(at for bit, at in enumerate(changes.tolist()) if cut >> bit & 1), len(whole.keys)]
    lots = []
    for first, end in itertools.pairwise(edges):
        mine = (whole.key >= first) & (whole.key < end)
        sums = {name: values[mine] for name, values in whole.sums.items()}
        lots.append(
            UsageRows(
                cuts=whole.cuts, keys=whole.keys.slice(first, end - first), key=whole.key[mine] - first,
                day=whole.day[mine], sums=sums,
            )
        )  # fmt: skip
    return lots


def copied(column):
    """Keeps a column as a file would: what comes back is another one."""
    content = column.tobytes()
    return lambda: np.frombuffer(content, column.dtype)


@given(rows, st.integers(0, 1 << 12))
@settings(deadline=None, max_examples=150)
def test_lots_make_the_charges_of_the_whole(given_rows, cut):
    """Wherever usage is cut between operations: the same lines, charges, identities, billed costs and total."""
    whole = gather(usage(given_rows), MONTH, BOOK.price_changes(MONTH.days))
    statement = rate.rate_rows(whole, BOOK, MONTH)
    lots = lots_of(whole, cut)
    in_lots = rate.rate_lots(lots, BOOK, MONTH, copied)
    parts = list(in_lots.parts())
    assert len(parts) == len(lots) and len(in_lots) == len(statement)
    assert (in_lots.lines, in_lots.total_minor, in_lots.total_exact) == (
        statement.lines, statement.total_minor, statement.total_exact,
    )  # fmt: skip
    assert [row for part in parts for row in part.charges.to_pylist()] == statement.charges.to_pylist()
    assert sum(part.total_minor for part in parts) == statement.total_minor
    assert sum(part.total_exact for part in parts) == statement.total_exact


weights = st.lists(st.integers(0, 1 << 40) | st.integers(0, 3), min_size=1, max_size=40)


@given(weights, st.integers(0, 1 << 44), st.integers(1, 9))
@settings(deadline=None, max_examples=300)
def test_a_share_is_the_same_piece_by_piece(given_weights, total, size):
    """However few weights are divided at a time: the same shares."""
    column = np.array([*given_weights, 1], np.int64)
    whole = money.share(total, column)
    assert money.share(total, column, piece=size).tolist() == whole.tolist()
    assert whole.sum() == total
