"""Integers shared out by weight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apicost.core.join.allocate import allocate, allocate_groups

amounts = st.integers(0, 1 << 60)
weightings = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=12)


def test_what_is_left_over_goes_to_the_largest_remainders() -> None:
    """100 by 1, 1, 1 is 34, 33, 33; 10 by 3, 7, 5 is 2, 5, 3."""
    assert allocate(100, [1, 1, 1]) == [34, 33, 33]
    assert allocate(10, [3, 7, 5]) == [2, 5, 3]
    assert allocate(-7, [1, 1]) == [-3, -4]


def test_nothing_to_weigh_by_is_refused() -> None:
    """Without a positive weight there is no share: the caller books the amount as unattributed."""
    with pytest.raises(ValueError, match="cannot split 5"):
        allocate(5, [0, 0])
    with pytest.raises(ValueError, match="-1"):
        allocate(5, [2, -1])


@given(st.lists(st.tuples(amounts, weightings), min_size=1, max_size=6))
def test_groups_are_shared_out_as_each_alone(groups: list[tuple[int, list[int]]]) -> None:
    """Many groups at once give what `allocate` gives for each; without weight the shares are even."""
    group = np.repeat(np.arange(len(groups)), [len(w) for _, w in groups])
    weights = np.array([w for _, ws in groups for w in ws], np.int64)
    shares = allocate_groups(np.array([a for a, _ in groups], np.int64), group, weights)
    for number, (amount, own) in enumerate(groups):
        wanted = allocate(amount, own if sum(own) else [1] * len(own))
        assert shares[group == number].tolist() == wanted
        assert sum(wanted) == amount
