"""Laws of the meter: sums are conserved, whatever the order, split or batching."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.meter import SUMS, coarsen, merge, meter
from apicost.core.records import LEGS, RowKind
from tests.store.batches import SCOPES, exchange_batches, same


def total(batch, name) -> int:
    return int(records.numbers(batch, name).astype(np.int64).sum())


@settings(deadline=None)
@given(exchange_batches)
def test_sums_are_conserved(batch):
    """What goes in comes out: calls, bytes and packets of the usage are those of the exchanges."""
    usage = meter(batch, SCOPES)
    assert total(usage, "calls") == int((records.numbers(batch, "kind") == RowKind.EXCHANGE).sum())
    for leg in LEGS:
        for name in ("in_wire_bytes", "out_wire_bytes", "resent_bytes", "out_packets"):
            assert total(usage, f"{leg}_{name}") == total(batch, f"{leg}_{name}")


@settings(deadline=None)
@given(exchange_batches)
def test_each_wire_byte_has_one_confidence(batch):
    """exact + aligned + apportioned + unattributed = all wire bytes, row by row."""
    usage = meter(batch, SCOPES)
    parts = sum(records.numbers(usage, f"{name}_bytes") for name in ("exact", "aligned", "apportioned", "unattributed"))
    wire = sum(records.numbers(usage, f"{leg}_{way}_wire_bytes") for leg in LEGS for way in ("in", "out"))
    assert (parts == wire).all()


@settings(deadline=None)
@given(exchange_batches, st.randoms(use_true_random=False))
def test_order_does_not_matter(batch, random):
    """Shuffled input gives the same bytes."""
    order = list(range(batch.num_rows))
    random.shuffle(order)
    assert same(meter(batch.take(order), SCOPES), meter(batch, SCOPES))


@settings(deadline=None)
@given(exchange_batches, st.lists(st.integers(0, 12), max_size=4))
def test_splits_merge_to_the_whole(batch, cuts):
    """The usage of the parts adds up to the usage of the whole, byte for byte."""
    edges = [0, *sorted(min(c, batch.num_rows) for c in cuts), batch.num_rows]
    parts = [batch.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    assert same(merge([meter(part, SCOPES) for part in parts]), meter(batch, SCOPES))


@settings(deadline=None)
@given(exchange_batches)
def test_keys_are_unique_and_sorted(batch):
    """One row per key, null before text, text by code points."""
    keys = [tuple(row[c.name] for c in records.USAGE_KEYS) for row in meter(batch, SCOPES).to_pylist()]
    ordered = [tuple((part is not None, part) for part in key) for key in keys]
    assert ordered == sorted(ordered) and len(set(keys)) == len(keys)


@settings(deadline=None)
@given(exchange_batches)
def test_coarser_buckets_are_the_same_sums(batch):
    """Metering by the quarter hour and coarsening minutes to it are one and the same."""
    by_quarter = meter(batch, SCOPES, bucket_s=900)
    assert same(coarsen(meter(batch, SCOPES), bucket_s=900), by_quarter)
    assert all(total(by_quarter, name) == total(meter(batch, SCOPES), name) for name in SUMS)
