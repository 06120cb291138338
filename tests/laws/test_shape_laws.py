"""Laws of shapes: usage is their coarser view, and they merge without order."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.conformance.shapes import merge, shapes, usage_of
from apicost.core.meter import coarsen, meter
from tests.store.batches import SCOPES, same, spoken_batches


@settings(max_examples=40, deadline=None)
@given(spoken_batches)
def test_shapes_added_up_are_usage(batch):
    """Added up by the keys of usage, shapes are what the meter makes, byte for byte."""
    assert same(usage_of(shapes(batch, SCOPES)), meter(batch, SCOPES))


@settings(max_examples=40, deadline=None)
@given(spoken_batches, st.lists(st.integers(0, 12), max_size=4), st.randoms(use_true_random=False))
def test_shapes_of_parts_merge_to_the_whole(batch, cuts, random):
    """However exchanges were split and whatever order they came in: one and the same."""
    order = list(range(batch.num_rows))
    random.shuffle(order)
    shuffled = batch.take(order)
    edges = [0, *sorted(min(c, batch.num_rows) for c in cuts), batch.num_rows]
    parts = [shuffled.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    whole = shapes(batch, SCOPES)
    assert same(merge([shapes(part, SCOPES) for part in parts]), whole)
    assert same(merge([whole]), whole)


@settings(max_examples=40, deadline=None)
@given(spoken_batches)
def test_longer_buckets_are_the_same_shapes(batch):
    """Shapes by the quarter hour are shapes by the minute put together, and so is their usage."""
    by_quarter = merge([shapes(batch, SCOPES)], bucket_s=900)
    assert same(by_quarter, shapes(batch, SCOPES, bucket_s=900))
    assert same(usage_of(by_quarter), coarsen(meter(batch, SCOPES), bucket_s=900))


@settings(max_examples=40, deadline=None)
@given(spoken_batches)
def test_keys_are_unique_and_sorted(batch):
    """One row per key, null before text, text by code points."""
    keys = [tuple(row[c.name] for c in records.SHAPE_KEYS) for row in shapes(batch, SCOPES).to_pylist()]
    ordered = [tuple((part is not None, part) for part in key) for key in keys]
    assert ordered == sorted(ordered) and len(set(keys)) == len(keys)


@settings(max_examples=40, deadline=None)
@given(spoken_batches)
def test_sizes_lie_in_their_class(batch):
    """Least and most response are of the row's size class; rows without one have none above zero."""
    for row in shapes(batch, SCOPES).to_pylist():
        least, most = row["least_out_app_bytes"], row["most_out_app_bytes"]
        assert least <= most
        if row["size_class"] is None:
            assert most <= 0
        else:
            assert 4 ** int(row["size_class"]) <= least <= most < 4 ** (int(row["size_class"]) + 1)
        assert row["first_unix_ns"] <= row["last_unix_ns"]
        assert row["clients"].bit_count() <= row["calls"]
