"""Laws of shapes in the ledger: one answer, however they came, were compacted or aged."""

import itertools
import tempfile
from collections import Counter
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.conformance.shapes import OTHER, TEXT_KEYS, merge, shapes, usage_of
from apicost.store import daycut
from apicost.store.catalogue import DAY_S
from apicost.store.compact import compact
from apicost.store.lake import Lake
from apicost.store.query import Ledger
from tests.store.batches import NOON, SCOPES, exchange, same, spoken_rows, table

DAY = NOON // DAY_S * DAY_S
LATER = DAY + 3 * DAY_S
BOUNDS = {"PATHS": 2, "TEXTS": 2, "TEXTS_OF_PATH": 1}
TEXTS = ("query_names", "host", "request_content_type", "response_content_type")

shadows = st.builds(
    lambda path, method, host, names, at: exchange(
        match_state="undocumented-path", path_template=None, operation_id=None, path=path, method=method, host=host,
        query_names=names, ended_s=NOON + at,
    ),
    st.sampled_from(["/a", "/b", "/c", "/d"]), st.sampled_from(["GET", "PUT"]), st.sampled_from(["h", "g", None]),
    st.sampled_from([None, "p", "q", "r"]), st.sampled_from([0, 1_000, DAY_S]),
)  # fmt: skip
batches = st.lists(shadows | spoken_rows(), min_size=1, max_size=14).map(table)


def cut(rows: list[dict]) -> list[dict]:
    """What a ledger keeps of a day's shapes, by the rules of docs/ledger.md, a row at a time."""

    def kept(of, text, keep):
        """The most called texts of each group."""
        calls = Counter()
        for row in rows:
            if text(row) is not None:
                calls[of(row), text(row)] += row["calls"]
        order = sorted(calls, key=lambda k: (-calls[k], [[p is not None, p] for p in k[1]]))
        return {key for key in order if [k for k in order if k[0] == key[0]].index(key) < keep(key[0])}

    def of_path(row):
        return (row["method"], row["host"], row["path"]) if row["path"] not in (None, OTHER) else None

    paths = kept(lambda r: r["api"], of_path, lambda _: BOUNDS["PATHS"])
    for row in rows:
        if of_path(row) and (row["api"], of_path(row)) not in paths:
            row |= dict.fromkeys(("path", *TEXTS), OTHER)

    def operation(row):
        host = None if row["path"] is None else row["host"]
        return row["api"], row["method"], row["path_template"], row["path"], host

    for name in TEXTS:

        def text(row, name=name):
            free = row[name] in (None, OTHER) or (name == "host" and row["path"] is not None)
            return None if free else (row[name],)

        most = kept(operation, text, lambda o: BOUNDS["TEXTS"] if o[3] is None else BOUNDS["TEXTS_OF_PATH"])
        changed = [row for row in rows if text(row) and (operation(row), text(row)) not in most]
        for row in changed:
            row[name] = OTHER
    return rows


def expected(batch, start, end):
    """The shapes of a period: each day cut, then what lies in the period put together."""
    whole = shapes(batch, SCOPES).to_pylist()
    days = {}
    for row in whole:
        days.setdefault(row["minute_unix_s"] // DAY_S, []).append(row)
    rows = [row for day in days.values() for row in cut(day) if start <= row["minute_unix_s"] < end]
    for row in rows:
        row["minute_unix_s"] = start
    return merge([table(rows, records.SHAPE)])


@settings(max_examples=8, deadline=None)
@given(
    batches,
    st.lists(st.integers(0, 14), max_size=3),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
    st.sampled_from([(0, LATER), (DAY, DAY + DAY_S), (NOON, NOON + 60), (NOON - 900, NOON + 900)]),
    st.booleans(),
)
def test_shapes_do_not_depend_on_how_they_came(batch, cuts, compact_after, random, period, twice):
    """One step or many, in any order, compacted in between, twice or never: shapes of any period are what the
    rules make of the exchanges; added up they are usage."""
    edges = [0, *sorted(min(c, batch.num_rows) for c in cuts), batch.num_rows]
    parts = [batch.slice(a, b - a) for a, b in itertools.pairwise(edges) if a < b]
    random.shuffle(parts)
    with tempfile.TemporaryDirectory() as folder, patch.multiple(daycut, **BOUNDS):
        with Lake.open(folder) as lake:
            for number, part in enumerate(parts):
                shape = shapes(part, SCOPES)
                lake.commit([f"part-{number}"], {"shapes": shape, "usage": usage_of(shape)})
                if number == compact_after:
                    assert compact(folder, now_unix_s=LATER).problems == []
        if twice:
            for _ in range(2):
                assert compact(folder, now_unix_s=LATER).problems == []
        with Ledger.open(folder) as ledger:
            found = ledger.shapes(*period)
            usage = ledger.usage(period)
    assert same(merge([found]), expected(batch, *period))
    assert found.to_pylist() == merge([found]).to_pylist(), "sorted as shapes are"
    assert same(usage_of(merge([found])), usage)
    assert all(found.column(name).type == records.TEXT for name in TEXT_KEYS)
