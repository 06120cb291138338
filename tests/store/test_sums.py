"""Usage files added up: the same sums as the meter's, whatever the files, keys and number of values."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import meter, prompts, records
from apicost.store import duck, sums
from apicost.store import older as older_
from tests.store.batches import NOON, same

EDGES = (NOON, NOON + 900, NOON + 1_800)


def usage_of(rng, rows, values, *, largest=1_000):
    """Usage of rows at random, with so many values to each key, some of them null."""
    columns = {"minute_unix_s": pa.array(NOON - 900 + 900 * rng.integers(0, 4, rows))}
    for name in meter.TEXT_KEYS:
        columns[name] = records.text(rng.integers(-1, values, rows), [f"{name} {i}" for i in range(values)])
    columns |= {name: pa.array(rng.integers(0, largest, rows)) for name in meter.SUMS}
    return pa.table(columns, schema=records.schema(records.USAGE))


def written(folder, tables, *, row_group=100):
    """Parquet files, by turns as the daemon writes them and as compaction does, with plain text."""
    paths = []
    for number, table in enumerate(tables):
        if number % 2:
            plain = [pa.field(f.name, pa.string() if f.type == records.TEXT else f.type) for f in table.schema]
            table = table.cast(pa.schema(plain))
        paths.append(folder / f"{number}.parquet")
        pq.write_table(table, paths[-1], row_group_size=row_group)
    return paths


def expected(tables, by, where):
    """The same by the meter: filtered, put into buckets, keys that are not asked for left out, merged."""
    whole = pa.concat_tables(tables)
    minute = records.numbers(whole, "minute_unix_s")
    keep = (minute >= EDGES[0]) & (minute < EDGES[-1])
    for name, value in where.items():
        texts = whole.column(name).cast(pa.string())
        is_it = pc.is_null(texts) if value is None else pc.fill_null(pc.equal(texts, value), False)
        keep &= is_it.to_numpy(zero_copy_only=False)
    whole = whole.filter(pa.array(keep))
    for at, name in enumerate(whole.column_names):
        if name in meter.TEXT_KEYS and name not in by:
            whole = whole.set_column(at, name, pa.nulls(len(whole), pa.string()).dictionary_encode())
    return meter.merge([whole.cast(records.schema(records.USAGE))])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1 << 32),
    files=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=1, max_size=4),
    by=st.sets(st.sampled_from(meter.TEXT_KEYS)),
    where=st.dictionaries(st.sampled_from(["api", "consumer"]), st.sampled_from([None, "api 0", "consumer 1", "x"])),
)
def test_sums_are_those_of_the_meter(tmp_path_factory, seed, files, by, where):
    """Any files, keys and conditions give the bytes that merging all rows gives."""
    rng = np.random.default_rng(seed)
    tables = [usage_of(rng, rows, values) for rows, values in files]
    paths = written(tmp_path_factory.mktemp("sums"), tables)
    assert same(sums.add_up(paths, EDGES, sorted(by), where), expected(tables, by, where))


def test_more_values_than_one_word_holds(tmp_path):
    """13 keys of a thousand values each need 130 bits; later files bring values that widen the earlier ones' codes."""
    rng = np.random.default_rng(5)
    tables = [usage_of(rng, rows, values) for rows, values in ((50, 1), (2_000, 30), (3_000, 1_000), (3_000, 1_500))]
    found = sums.add_up(written(tmp_path, [*tables, *tables]), EDGES, meter.TEXT_KEYS, {})
    assert same(found, expected([*tables, *tables], meter.TEXT_KEYS, {}))


def test_only_the_sums_asked_for(tmp_path):
    """What is not asked for is not read, and is no column of zeros."""
    rng = np.random.default_rng(6)
    table = usage_of(rng, 500, 3)
    found = sums.add_up(written(tmp_path, [table]), EDGES, ["api"], {}, ["app_only_bytes", "calls"])
    assert found.column_names == ["minute_unix_s", *meter.TEXT_KEYS, "calls", "app_only_bytes"]
    assert same(found, expected([table], ["api"], {}).select(found.column_names))


def test_large_counters_add_up_exactly(tmp_path):
    """A bound by the largest value is not taken for the sum: one huge row among many small ones is no overflow."""
    rng = np.random.default_rng(7)
    table = usage_of(rng, 5_000, 2)
    huge = np.zeros(5_000, np.int64)
    huge[::2_500] = 1 << 60
    table = table.set_column(table.column_names.index("calls"), "calls", pa.array(huge))
    edges = (NOON - 900, NOON + 9_000)
    found = sums.add_up(written(tmp_path, [table]), edges, [], {})
    assert found.column("calls").to_pylist() == [1 << 61]


def test_a_sum_that_may_not_fit_is_refused(tmp_path):
    """Counters near the end of 64 bits are an error that names the column, not a wrapped sum."""
    table = usage_of(np.random.default_rng(8), 100, 1, largest=1 << 62)
    with pytest.raises(OverflowError, match="calls"):
        sums.add_up(written(tmp_path, [table]), EDGES, [], {})


LATER = [*records.QUANTA.values(), "calls_without_quanta", "llm_calls_without_tokens", prompts.KEY]


def older_table(table):
    """What an earlier version would have written."""
    return table.drop_columns(LATER)


def told(table):
    """What an earlier version's rows are worth: nothing that was not counted is 0."""
    rows = table.to_pylist()
    silent = [bool(r["llm_model"]) and not r["llm_prompt_tokens"] and not r["llm_completion_tokens"] for r in rows]
    worth = dict.fromkeys(records.QUANTA.values(), [0] * len(rows)) | {
        "calls_without_quanta": [r["calls"] for r in rows],
        "llm_calls_without_tokens": [r["calls"] * s for r, s in zip(rows, silent, strict=True)],
    }
    columns = {name: pa.array(worth[name], pa.int64()) if name in worth else table.column(name)
               for name in table.column_names}  # fmt: skip
    columns[prompts.KEY] = pa.nulls(len(rows), pa.string()).dictionary_encode()
    return pa.table(columns, schema=table.schema)


@settings(max_examples=15)
@given(seed=st.integers(0, 1 << 32), older=st.lists(st.booleans(), min_size=1, max_size=4))
def test_columns_that_came_later_are_no_zeros(tmp_path_factory, seed, older):
    """In any mixture of files, calls without counted blocks are counted as such, by NumPy and by SQL."""
    rng = np.random.default_rng(seed)
    tables = []
    for _ in older:
        table = usage_of(rng, 200, 3, largest=3)
        classes = records.text(rng.integers(-1, len(prompts.CLASSES), 200), list(prompts.CLASSES))
        tables.append(table.set_column(table.column_names.index(prompts.KEY), prompts.KEY, classes))
    folder = tmp_path_factory.mktemp("sums")
    paths = written(folder, [older_table(t) if is_old else t for t, is_old in zip(tables, older, strict=True)])
    worth = [told(t) if is_old else t for t, is_old in zip(tables, older, strict=True)]
    assert same(sums.add_up(paths, EDGES, meter.TEXT_KEYS, {}), expected(worth, meter.TEXT_KEYS, {}))
    with duck.session() as connection:
        for name in meter.SUMS:
            sql = f"select sum({name}) from {older_.source(paths)}"
            assert connection.execute(sql).fetchone()[0] == sum(sum(t.column(name).to_pylist()) for t in worth), name
    parts = [
        prompts.part("llm_prompt_tokens", None, 200_000),
        prompts.part("llm_prompt_tokens", 200_000, None),
        prompts.unclassed("llm_prompt_tokens"),
        prompts.part("llm_completion_tokens", 32_000, 128_000),
    ]
    found = sums.add_up(paths, EDGES, ["api"], {}, parts)
    assert found.column_names[-4:] == parts
    whole = prompts.with_parts(pa.concat_tables(worth), tuple(parts))
    minute = records.numbers(whole, "minute_unix_s")
    inside = whole.filter(pa.array((minute >= EDGES[0]) & (minute < EDGES[-1])))
    for name in parts:
        assert sum(found.column(name).to_pylist()) == sum(inside.column(name).to_pylist()), name


def test_a_key_that_came_later_matches_nothing_in_older_files(tmp_path):
    """Asked for a class of prompts, an older file has no row; asked for none, all of them."""
    (path,) = written(tmp_path, [older_table(usage_of(np.random.default_rng(9), 100, 2))])
    assert sums.add_up([path], EDGES, [], {prompts.KEY: "200000"}).num_rows == 0
    assert same(sums.add_up([path], EDGES, [], {prompts.KEY: None}), sums.add_up([path], EDGES, [], {}))
