"""Usage in lots: together it is what the ledger adds up, in order, and no operation is in two lots."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import meter, records
from apicost.core.rating.period import month
from apicost.core.rating.usage_rows import KEYS, UsageRows, gather
from apicost.store import lots, sums
from tests.store.test_sums import usage_of, written

MONTH = month("2026-11", "UTC")
CUTS = (0, 11)
EDGES = [MONTH.starts[0], MONTH.starts[11], MONTH.end_unix_s]


def usage_in_month(seed: int, rows: int, values: int) -> pa.Table:
    """Usage at random, over November and a day on each side of it."""
    rng = np.random.default_rng(seed)
    table = usage_of(rng, rows, values)
    minute = pa.array(MONTH.start_unix_s + 3_600 * rng.integers(-24, 31 * 24, rows))
    return table.set_column(0, "minute_unix_s", minute)


def as_rows(usage: UsageRows) -> list[tuple]:
    """Each row with its key's texts."""
    keys = usage.keys.take(usage.key)
    columns = [keys.column(name).to_pylist() for name in KEYS]
    columns += [usage.day.tolist(), *(usage.sums[name].tolist() for name in sorted(usage.sums))]
    return list(zip(*columns, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    files=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 6)), min_size=1, max_size=3),
    lot_rows=st.integers(1, 60),
    wanted=st.sets(st.sampled_from(meter.SUMS), min_size=1),
)
def test_lots_are_the_whole(tmp_path_factory, seed, files, lot_rows, wanted):
    """Gathered lot by lot, kept and read again: the rows of the whole in its order, and no operation in two lots."""
    folder = tmp_path_factory.mktemp("lots")
    paths = written(folder, [usage_in_month(seed + n, *file) for n, file in enumerate(files)])
    whole = gather(sums.add_up(paths, EDGES, KEYS, {}, sorted(wanted)), MONTH, CUTS)
    seen = []
    tables = lots.split(paths, EDGES, KEYS, sorted(wanted), folder, lot_rows=lot_rows, seen=seen.append)
    kept = lots.KeptLots(folder, (gather(table, MONTH, CUTS) for table in tables))
    assert [row for lot in kept for row in as_rows(lot)] == as_rows(whole)
    assert sum(len(lot.keys) for lot in kept) == len(whole.keys)
    first_and_last = [lot.keys.select(KEYS[:2]).take([0, len(lot.keys) - 1]).to_pylist() for lot in kept]
    assert all(before[1] != after[0] for before, after in pairwise(first_and_last))
    inside = sum(((t := records.numbers(table, "minute_unix_s")) >= EDGES[0]).sum() - (t >= EDGES[-1]).sum()
                 for table in [usage_in_month(seed + n, *file) for n, file in enumerate(files)])  # fmt: skip
    assert (seen[-1] if seen else 0) == inside and seen == sorted(seen)


def test_a_small_month_is_one_lot_and_a_wide_one_several(tmp_path):
    """Lots have as many rows as asked for, but never more operations apart than lots may be open."""
    paths = written(tmp_path, [usage_in_month(3, 2_000, 40)])
    assert len(list(lots.split(paths, EDGES, KEYS, ("calls",), tmp_path))) == 1
    several = [table.num_rows for table in lots.split(paths, EDGES, KEYS, ("calls",), tmp_path, lot_rows=100)]
    assert 15 < len(several) < lots.MOST_LOTS and max(several) <= 100
    assert len(list(lots.split(paths, EDGES, KEYS, ("calls",), tmp_path, lot_rows=1))) <= lots.MOST_LOTS


def test_no_usage_is_no_lot(tmp_path):
    """Files without a row of the period give none."""
    paths = written(tmp_path, [usage_in_month(3, 50, 4)])
    later = [edge + 40 * 86_400 for edge in EDGES]
    assert list(lots.split(paths, later, KEYS, ("calls",), tmp_path)) == []


def test_a_sum_past_62_bits_is_told(tmp_path):
    """Where no lot's sum passes 2**62 but that of all does, reading stops as it does for the whole."""
    keys = pa.table([records.text(np.zeros(1, np.int32), ["x"]) for _ in KEYS], names=list(KEYS))
    one = UsageRows(
        cuts=(0,), keys=keys, key=np.zeros(1, np.int64), day=np.zeros(1, np.int64),
        sums={"calls": np.array([(1 << 62) - 1])},
    )  # fmt: skip
    assert len(lots.KeptLots(tmp_path, [one])) == 1
    with pytest.raises(OverflowError, match="calls"):
        lots.KeptLots(tmp_path, [one, one])


def test_an_answer_of_too_many_rows_is_not_given(tmp_path):
    """`most` is the largest answer; one row more is TooManyRows."""
    paths = written(tmp_path, [usage_in_month(3, 300, 4)])
    rows = sums.add_up(paths, EDGES, KEYS, {}).num_rows
    assert sums.add_up(paths, EDGES, KEYS, {}, most=rows).num_rows == rows
    with pytest.raises(sums.TooManyRows):
        sums.add_up(paths, EDGES, KEYS, {}, most=rows - 1)


def test_columns_come_back_from_the_shelf(tmp_path):
    """Each column as it was put there, in any order and more than once, also one of nothing."""
    columns = [np.arange(5, dtype=np.int32), np.empty(0, np.int64), np.array([-1, 1 << 62]), np.arange(9)[::2]]
    with lots.Shelf(tmp_path) as shelf:
        kept = [shelf(column) for column in columns]
        for number in (3, 0, 1, 2, 0):
            back = kept[number]()
            assert back.dtype == columns[number].dtype and back.tolist() == columns[number].tolist()
