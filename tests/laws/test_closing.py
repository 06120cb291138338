"""A closed month never changes; what is found out later is corrected, to the cent, in the month that is open."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.commands import _closed, _closing
from apicost.core.rating import rate
from apicost.store import compact
from apicost.store.closed import closed_months
from apicost.store.query import Ledger
from tests.closing_ledgers import MONTHS, add, bill, by_identity, close, content, row, write_book
from tests.usage_months import usage

NAMES = list(MONTHS)
CLOSED = NAMES[:3]

rows = st.builds(
    row,
    month=st.sampled_from(NAMES),
    day=st.sampled_from([0, 8, 9, 14, 29]),
    api=st.sampled_from(["a", "b", None]),
    consumer=st.sampled_from(["c", "d", None]),
    scope=st.sampled_from(["internet", "unknown"]),
    calls=st.integers(0, 900),
    downstream_out_wire_bytes=st.integers(0, 1 << 31),
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "version": st.just("2"), "price": st.sampled_from(["0.37", "0.4", "0"]), "tier": st.sampled_from(["1.01", "1"]),
        "rate": st.sampled_from(["0.9", "0.91"]), "discount": st.sampled_from(["20", "0", "33.3"]),
        "minimum": st.sampled_from(["0.50", "3.00"]), "team": st.just("t2"), "shared": st.sampled_from(["31.01", "7"]),
    },
)  # fmt: skip
stages = st.tuples(st.lists(rows, max_size=5), changes)


@given(st.tuples(stages, stages, stages, stages))
@settings(deadline=None, max_examples=8)
def test_booked_and_corrected_is_a_full_recomputation(given_stages):
    """Over several closings with late usage and corrected prices: charges of closed months and all corrections of
    them are, by identity, what the ledger and the price book of now would bill; nothing that is closed changes by a
    byte; and each month verifies."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ledger"
        known, changed, frozen = [], {}, {}
        for number, (late, change) in enumerate(given_stages):
            known += late
            changed |= change
            add(folder, f"stage-{number}", late)
            book = prices.load(write_book(Path(temporary) / "prices.yaml", **changed))
            if number < len(CLOSED):
                close(folder, CLOSED[number], book)
            assert frozen.items() <= content(folder / "closed").items()
            frozen = content(folder / "closed")
        bills = [bill(folder, MONTHS[name], book) for name in CLOSED]
        last = bill(folder, MONTHS[NAMES[3]], book)
        charges = [one.statement.charges for one in bills]
        corrections = [one.corrections for one in (*bills, last) if one is not None]
        for name in CLOSED:
            month = MONTHS[name]
            mine = [_closed.about(table, month) for table in (*charges, *corrections)]
            now = rate.rate(usage([r for r in known if is_in(r, month)]), book, month)
            assert by_identity(mine) == by_identity([now.charges])
        assert all(one.closed for one in bills)
        if last is not None:
            assert sum(one.total_minor for one in (*bills, last)) == sum(
                rate.rate(usage([r for r in known if is_in(r, MONTHS[name])]), book, MONTHS[name]).total_minor
                for name in NAMES
            )
        months = closed_months(folder)
        assert [_closing.verify(months, closed).problems for closed in months] == [()] * 3


def is_in(usage_row, month) -> bool:
    return month.start_unix_s <= usage_row["minute_unix_s"] < month.end_unix_s


@given(st.lists(rows, min_size=3, max_size=9), st.lists(rows, min_size=1, max_size=5), st.integers(0, 62))
@settings(deadline=None, max_examples=8)
def test_what_the_ledger_forgets_stays_booked(first, late, days):
    """Compaction and retention after a closing correct nothing, and change no bill of a closed month."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ledger"
        book = prices.load(write_book(Path(temporary) / "prices.yaml"))
        add(folder, "first", first)
        close(folder, CLOSED[0], book)
        add(folder, "late", late)
        close(folder, CLOSED[1], book)
        before = [bill(folder, MONTHS[name], book) for name in CLOSED[:2]]
        now = MONTHS[CLOSED[0]].starts[0] + 86_400 * days
        compact.compact(folder, now_unix_s=now, keep_days=(0, 0, 0))
        after = [bill(folder, MONTHS[name], book) for name in CLOSED[:2]]
        assert [table(one) for one in after] == [table(one) for one in before]
        with Ledger.open(folder) as ledger:
            assert not len(_closed.corrections(ledger, closed_months(folder), book).rows)


def table(one) -> list:
    return [piece.to_pylist() for piece in one.pieces()]
