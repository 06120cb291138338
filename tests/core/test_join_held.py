"""Lines that wait: none is lost, doubled or changed, however they are cut into chunks."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.join import held


def lines(count: int, first: int = 0) -> pa.Table:
    """LINE rows whose columns tell them apart: the path of line 7 is /7, and it has 7 % 3 tries."""
    columns: dict[str, Any] = {}
    numbers = range(first, first + count)
    for field in records.schema(records.LINE):
        if field.type == records.TEXT:
            columns[field.name] = pa.array([f"/{n}" for n in numbers], pa.string()).dictionary_encode()
        elif field.type == pa.string():
            columns[field.name] = pa.array([f"{n:032x}" for n in numbers])
        elif field.name == "attempt_addr":
            columns[field.name] = pa.array([["10.0.0.1:80"] * (n % 3) for n in numbers], field.type)
        elif pa.types.is_list(field.type):
            columns[field.name] = pa.array([[n, -1, None][: n % 3] for n in numbers], field.type)
        else:
            columns[field.name] = pa.array([n % 100 for n in numbers], field.type)
    return pa.table(columns, schema=records.schema(records.LINE))


def held_lines(sizes: list[int]) -> pa.Table:
    """One chunk for each size, numbered on."""
    ends = np.cumsum(sizes)
    return pa.concat_tables(
        [held.SCHEMA.empty_table()]
        + [held.held_of(lines(n, e - n), np.arange(e - n, e)) for n, e in zip(sizes, ends.tolist(), strict=True)]
    )


def test_tries_and_their_bytes_are_told():
    """A held line knows how many tries it had and what they moved; an absent count adds nothing."""
    table = held.held_of(lines(4, 6), np.arange(6, 10))
    assert table["tries"].to_pylist() == [0, 1, 2, 0]
    assert table["attempts_sent_bytes"].to_pylist() == [0, 7, 8, 0]  # the second try of line 8 says -1
    assert table["attempts_received_bytes"].to_pylist() == [0, 7, 8, 0]


def test_lines_without_an_address_have_no_tries():
    """A null list of tries is none."""
    bare = lines(2, 1)
    for name in ("attempt_addr", "attempt_sent_bytes", "attempt_received_bytes"):
        place = bare.schema.get_field_index(name)
        bare = bare.set_column(place, bare.schema.field(place), pa.nulls(2, bare.schema.field(place).type))
    table = held.held_of(bare, np.arange(2))
    assert table["tries"].to_pylist() == [0, 0] and table["attempts_sent_bytes"].to_pylist() == [0, 0]


def test_large_chunks_stay_where_they_are():
    """What stays of large chunks is not copied, and a chunk of which nothing stays is gone."""
    size = held.CHUNK_ROWS * 2
    table = held_lines([size, size, size])
    chosen = np.arange(3 * size) < size
    _, kept = held.split(table, chosen)
    before, after = table["line_no"].chunks, kept["line_no"].chunks
    full = [chunk for chunk in after if len(chunk)]
    assert [chunk.buffers()[1].address for chunk in full] == [chunk.buffers()[1].address for chunk in before[-2:]]


def test_small_chunks_become_one():
    """Chunks don't pile up where few lines come."""
    _, kept = held.split(held_lines([3] * 50), np.zeros(150, np.bool_))
    assert len(kept) == 150 and max(column.num_chunks for column in kept.columns) == 1


def test_what_stays_forgets_the_texts_of_what_left():
    """The dictionaries of a chunk shrink with it, so that a path seen once is not kept for ever."""
    chosen = np.arange(8_000) >= 5
    _, kept = held.split(held_lines([8_000]), chosen)
    _, texts = records.codes(kept, "path")
    assert texts == ["/0", "/1", "/2", "/3", "/4"]


@given(st.lists(st.integers(0, 6), max_size=6), st.data())
def test_every_line_is_on_one_side(sizes, data):
    """Chosen and others together are all lines, each as it was, both in order; identities are the chosen ones'."""
    table = held_lines(sizes)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))), np.bool_)
    out, kept = held.split(table, chosen)
    rows = table.to_pylist()
    assert out.to_pylist() == [row for row, mine in zip(rows, chosen, strict=True) if mine]
    assert kept.to_pylist() == [row for row, mine in zip(rows, chosen, strict=True) if not mine]
    assert out.schema == kept.schema == held.SCHEMA
    identities = held.identities_of(table, chosen)
    assert identities.to_pylist() == out.select(held.IDENTITY.names).to_pylist()
