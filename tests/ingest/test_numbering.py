"""Which lines have come: laws of the numbers, against a plain set of integers."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from apicost.ingest import numbering
from apicost.ingest.numbering import Hole, Numbers, Taking


def expand(runs):
    return [n for first, last in runs for n in range(first, last + 1)]


def missing(numbers):
    return set(expand((hole.first, hole.last) for hole in numbers.holes))


def test_numbers_in_order_leave_no_hole():
    """1..3 then 4..9."""
    taking = Taking(Numbers())
    assert taking.take([(1, 3)], 5) == [(1, 3)]
    assert taking.take([(4, 9)], 6) == [(4, 9)]
    assert taking.numbers == Numbers(highest=9)


def test_a_hole_is_filled_by_the_late_batch():
    """1..3, 7..9, then 4..6; the hole's middle may come first."""
    taking = Taking(Numbers())
    taking.take([(1, 3), (7, 9)], 5)
    assert taking.numbers.holes == (Hole(4, 6, 5),)
    assert taking.take([(5, 5)], 6) == [(5, 5)]
    assert taking.numbers.holes == (Hole(4, 4, 5), Hole(6, 6, 5))
    assert taking.take([(2, 12)], 7) == [(4, 4), (6, 6), (10, 12)]
    assert taking.numbers == Numbers(highest=12)


def test_a_hole_counts_as_lost_only_after_the_grace_and_is_taken_back():
    """Ripe holes are counted once; a late line is then recovered."""
    taking = Taking(Numbers())
    taking.take([(1, 1), (5, 5)], 100)
    numbers, due = numbering.ripe(taking.numbers, 99)
    assert (due, numbers.lost) == ([], 0)
    numbers, due = numbering.ripe(numbers, 100)
    assert [hole.size for hole in due] == [3] and numbers.lost == 3
    assert numbering.ripe(numbers, 200)[1] == []
    late = Taking(numbers)
    assert late.take([(3, 3)], 300) == [(3, 3)]
    assert late.recovered == 1 and late.numbers.lost == 2


def test_what_came_before_memory_is_nobodys_loss():
    """A worker older than the spool: its earlier lines may still come, and are never lost."""
    numbers = numbering.older_than_memory(first=1_000, dropped=7)
    assert numbers.missing == 999 and numbering.ripe(numbers, (1 << 63) - 2)[1] == []
    taking = Taking(numbers)
    assert taking.take([(990, 1_002)], 5) == [(990, 999), (1_000, 1_002)]
    assert taking.numbers.missing == 989 and taking.numbers.lost == 0


def test_holes_are_bounded_and_what_is_shut_stays_lost():
    """Every second line missing: the oldest holes are shut and counted."""
    taking = Taking(Numbers())
    most = numbering.MAX_HOLES
    taking.take([(2 * n, 2 * n) for n in range(1, most + 11)], 5)
    numbers = taking.numbers
    assert len(numbers.holes) == most and numbers.shut == numbers.shut_lost == taking.shut_uncounted == 10
    assert numbers.missing == most + 10
    assert taking.take([(1, 1)], 6) == [], "a line of a shut hole can't be told from a duplicate"


runs = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8)).map(lambda r: (r[0], r[0] + r[1])), max_size=15)


@given(runs, st.integers(0, 3))
def test_each_number_is_taken_once_and_the_rest_is_missing(batches, ripen_every):
    """Whatever comes in whatever order: fresh numbers are those not seen before, and fresh + missing = highest."""
    taking = Taking(Numbers())
    seen: set[int] = set()
    lost = 0
    for time, run in enumerate(batches):
        fresh = expand(taking.take([run], time))
        assert fresh == [n for n in range(run[0], run[1] + 1) if n not in seen]
        seen.update(fresh)
        if ripen_every and time % ripen_every == 0:
            taking.numbers, due = numbering.ripe(taking.numbers, time - 1)
            lost += sum(hole.size for hole in due)
        numbers = taking.numbers
        assert missing(numbers) == set(range(1, numbers.highest + 1)) - seen
        assert len(seen) + numbers.missing == numbers.highest == max(seen)
        assert lost - taking.recovered == numbers.lost
        assert all(a.last < b.first for a, b in pairwise(numbers.holes))


sets = st.sets(st.integers(1, 40), max_size=20)


@given(sets, sets)
def test_runs_are_the_numbers(lines, refused):
    """Runs cover exactly the numbers given, ascending, and none touches the next."""
    found = numbering.runs_of(np.array(sorted(lines), np.int64), np.array(sorted(refused - lines), np.int64))
    assert expand(found) == sorted(lines | refused)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(found))


@given(st.lists(st.integers(1, 40)), sets)
def test_within_and_first_of_each(numbers, members):
    """Membership in runs, and the first of equal numbers."""
    array = np.array(numbers, np.int64)
    found = numbering.within(array, numbering.runs_of(np.array(sorted(members), np.int64), np.empty(0, np.int64)))
    assert found.tolist() == [n in members for n in numbers]
    first = numbering.first_of_each(array).tolist()
    assert first == [n not in numbers[:i] for i, n in enumerate(numbers)]
