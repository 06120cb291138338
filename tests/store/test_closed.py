"""Usage of closed months from two sources, and what is told of it by day."""

import random

import numpy as np
import pytest

from apicost.catalog import prices
from apicost.commands import _closed
from apicost.core.rating import rate
from apicost.core.rating.bill import fingerprint
from apicost.store import closed, compact
from apicost.store.closed import DaysOf, DaySums, FrozenUsage
from apicost.store.query import Ledger
from tests.closing_ledgers import MONTHS, add, row, write_book
from tests.usage_months import usage

JULY = MONTHS["2026-07"]  # its prices change on the tenth


def rows(seed: int) -> list[dict]:
    """Usage of some days, other for another seed."""
    drawn = random.Random(seed)
    return [
        row("2026-07", day=drawn.randrange(31), api=drawn.choice(["a", None]), consumer=drawn.choice("cd"),
            calls=drawn.randrange(1, 99), downstream_out_wire_bytes=drawn.randrange(9_999))
        for _ in range(60)
    ]  # fmt: skip


def on(days, given):
    return [one for one in given if any(JULY.starts[d] <= one["minute_unix_s"] < JULY.starts[d + 1] for d in days)]


@pytest.mark.parametrize("days", [(), range(31), (0,), (8, 9), (3, 4, 9, 10, 30), tuple(range(0, 31, 2))])
def test_days_of_two_sources_are_those_of_each(tmp_path, days):
    """A month of which some days come from a second source is rated as one ledger with the days of both, price changes
    within a run of days included; and its sums by day are those."""
    book = prices.load(write_book(tmp_path / "prices.yaml"))
    first, second = rows(1), rows(2)
    others = [day for day in range(31) if day not in days]
    for name, given in (("one", first), ("two", second), ("both", [*on(others, first), *on(days, second)])):
        add(tmp_path / name, "in", given)
    with Ledger.open(tmp_path / "one") as one, Ledger.open(tmp_path / "two") as two:
        closed.write_usage(tmp_path / "usage.parquet", two, JULY.starts)
        mixed = DaysOf(
            first=one, second=FrozenUsage(path=tmp_path / "usage.parquet"),
            days=frozenset(JULY.starts[day] for day in days), starts=JULY.starts,
        )  # fmt: skip
        found = _closed.statement_of(mixed, JULY, book)
        sums = DaySums.of(mixed, JULY.starts)
    with Ledger.open(tmp_path / "both") as both:
        wanted = _closed.statement_of(both, JULY, book)
        assert sums.equals(DaySums.of(both, JULY.starts))
    assert found.charges.to_pylist() == wanted.charges.to_pylist()


def test_sums_by_day_say_who_knows_less():
    """Less in any sum of a day, or a day that is not there, is less; columns that only one has are not compared."""
    one = DaySums(names=("calls", "bytes"), days={1: (5, 9), 2: (1, 1)})
    other = DaySums(names=("bytes", "calls", "more"), days={1: (8, 6, 7), 3: (0, 2, 0)})
    assert one.falls_short_of(other) == {1, 3}
    assert other.falls_short_of(one) == {1, 2}
    assert not one.equals(other) and one.equals(DaySums.from_data(one.as_data()))


def test_control_sums_stay_when_a_ledger_is_compacted(tmp_path):
    """Calls and wire bytes by UTC day, from minutes or from rollups, with and without minutes that came later."""
    add(tmp_path / "ledger", "in", rows(1))
    span = (JULY.start_unix_s, JULY.end_unix_s)

    def sums():
        with Ledger.open(tmp_path / "ledger") as ledger:
            return ledger.control_sums(*span)

    before = sums()
    compact.compact(tmp_path / "ledger", now_unix_s=JULY.end_unix_s + 90 * 86_400)
    assert sums() == before and np.sum([calls for _, calls, _ in before]) == sum(one["calls"] for one in rows(1))
    add(tmp_path / "ledger", "late", [row("2026-07", day=5, calls=3)])
    late = sums()
    assert sum(calls for _, calls, _ in late) == sum(calls for _, calls, _ in before) + 3
    compact.compact(tmp_path / "ledger", now_unix_s=JULY.end_unix_s + 90 * 86_400)
    assert sums() == late


def test_a_fingerprint_is_that_of_the_charges(tmp_path):
    """The same for the same usage in any order; another when a cent or a unit lies elsewhere, or a price is another."""
    book, dearer = (prices.load(write_book(tmp_path / f"{p}.yaml", price=p)) for p in ("0.37", "0.38"))
    given = rows(1)
    made = [rate.rate(usage(lot), one, JULY) for lot, one in ((given, book), (given[::-1], book), (given, dearer))]
    first, again, other = (fingerprint(statement) for statement in made)
    assert first == again != other
    for column in (made[1].billed_minor, made[1].quantity):
        at = np.flatnonzero(column)[:2]
        column[at] += np.array([1, -1])
        assert fingerprint(made[1]) != first
        column[at] -= np.array([1, -1])
    assert fingerprint(made[1]) == first
