"""Shapes and samples in the ledger: added up like usage, with a bound on what a day keeps apart."""

from collections import Counter

import pyarrow.parquet as pq
import pytest

from apicost.core import records
from apicost.core.conformance import shapes
from apicost.store import daycut, segments
from apicost.store.catalogue import DAY_S, Catalogue
from apicost.store.compact import compact
from apicost.store.lake import Lake
from apicost.store.query import Ledger
from tests.store.batches import NOON, SCOPES, exchange, table
from tests.store.test_compact import listing
from tests.store.test_query import DAY, LATER, damage

OTHER = shapes.OTHER


def write(folder, *steps: list[dict]) -> None:
    """A ledger of some steps, each with its exchanges' usage and shapes."""
    with Lake.open(folder) as lake:
        for number, rows in enumerate(steps, lake.stats()["step"]):
            shape = shapes.shapes(table(rows), SCOPES)
            lake.commit([f"step-{number}"], {"usage": shapes.usage_of(shape), "shapes": shape})


def ask(folder, *by: str, start=DAY, end=DAY + DAY_S, **where) -> dict:
    """calls by some keys."""
    with Ledger.open(folder) as ledger:
        rows = records.check(ledger.shapes(start, end, by=by, where=where), records.SHAPE, "test").to_pylist()
        assert ledger.damaged == ()
    return {tuple(row[key] for key in by) if len(by) > 1 else row[by[0]]: row["calls"] for row in rows}


def shadow(path: str, **fields) -> dict:
    return exchange(**{"match_state": "undocumented-path", "path": path, "host": "h", **fields})


@pytest.mark.parametrize("compacted", [False, True])
def test_shapes_of_a_period(tmp_path, compacted):
    """One bucket, grouped by the keys asked for, of the rows asked for; every column merged its own way."""
    write(
        tmp_path,
        [exchange(status=200, ended_s=NOON + 1, peer="192.0.2.1", downstream_out_app_bytes=9)],
        [exchange(status=200, ended_s=NOON + 70, peer="192.0.2.2", downstream_out_app_bytes=5)],
        [exchange(status=404, ended_s=NOON + 70, downstream_out_app_bytes=-1), exchange(ended_s=NOON + DAY_S)],
    )
    if compacted:
        compact(tmp_path, now_unix_s=LATER)
    assert ask(tmp_path, "status") == {"200": 2, "404": 1}
    assert ask(tmp_path, "status", start=NOON, end=NOON + 60) == {"200": 1}
    assert ask(tmp_path, "api", status="404") == {"orders": 1}
    assert ask(tmp_path, "status", api=None) == {}
    with Ledger.open(tmp_path) as ledger:
        (row,) = ledger.shapes(DAY, DAY + DAY_S, by=["api"]).to_pylist()
        absent = ledger.shapes(DAY, DAY + DAY_S, by=["api"], where={"status": "404"}).to_pylist()[0]
    assert (row["minute_unix_s"], row["status"], row["calls"]) == (DAY, None, 3)
    assert (row["first_unix_ns"], row["last_unix_ns"]) == ((NOON + 1) * 10**9, (NOON + 70) * 10**9)
    assert (row["least_out_app_bytes"], row["most_out_app_bytes"]) == (5, 9)
    assert row["clients"].bit_count() == 2
    assert (absent["least_out_app_bytes"], absent["most_out_app_bytes"]) == (-1, -1)


def test_no_shapes_and_strange_keys(tmp_path):
    """An empty answer has its columns; a key that is none is refused, by name."""
    write(tmp_path, [exchange()])
    with Ledger.open(tmp_path) as ledger:
        assert ledger.shapes(0, 60).equals(records.empty(records.SHAPE))
        assert ledger.shapes(0, 60, by=[]).num_rows == 0
        for wrong in ({"by": ["calls"]}, {"where": {"minute_unix_s": "1"}}):
            with pytest.raises(ValueError, match=r"no such keys: \['(calls|minute_unix_s)'\]"):
                ledger.shapes(0, 60, **wrong)


def test_a_finished_day_has_a_file_of_shapes_for_each_grain(tmp_path):
    """Minutes, quarter hours and the day, as of usage; the day counts once."""
    write(tmp_path, *[[exchange(ended_s=NOON + 60 * i, status=200 + i % 2)] for i in range(20)])
    outcome = compact(tmp_path, now_unix_s=LATER)
    assert (outcome.rolled_days, outcome.problems) == (1, [])
    assert listing(tmp_path, "shapes") == [(60, True, 20), (900, False, 4), (86_400, False, 2)]
    assert compact(tmp_path, now_unix_s=LATER).made == 0


def test_shapes_age_like_usage(tmp_path):
    """Minutes go when their days are over, rollups stay; late rows then go into the quarter hours."""
    write(tmp_path, [exchange()])
    compact(tmp_path, now_unix_s=LATER, keep_days=(1, 1, 99))
    assert listing(tmp_path, "shapes") == listing(tmp_path) == [(900, False, 1), (86_400, False, 1)]
    write(tmp_path, [exchange(status=404)])
    for _ in range(2):
        assert ask(tmp_path, "status") == {"200": 1, "404": 1}
        compact(tmp_path, now_unix_s=LATER)
    assert listing(tmp_path, "shapes") == [(900, False, 2), (86_400, False, 2)]


def test_a_damaged_rollup_is_read_from_another_grain(tmp_path):
    """What another grain holds is not missing."""
    write(tmp_path, [exchange()])
    compact(tmp_path, now_unix_s=LATER)
    (path,) = tmp_path.glob("segments/*/shapes-86400-*")
    damage(path, "short")
    assert ask(tmp_path, "status") == {"200": 1}


@pytest.fixture
def small_bounds(monkeypatch):
    """Three undocumented paths for an API, two texts for an operation, one for an undocumented path."""
    for name, number in {"PATHS": 3, "TEXTS": 2, "TEXTS_OF_PATH": 1}.items():
        monkeypatch.setattr(daycut, name, number)


def everywhere(folder, wanted: dict, *by: str) -> None:
    """The same answer from a day as it was written, merged, rolled up, with late rows of nothing, and aged."""
    for compactions in range(3):
        assert ask(folder, *by) == wanted, f"after {compactions} compactions"
        compact(folder, now_unix_s=LATER, keep_days=None if compactions else (99, 99, 99))
    compact(folder, now_unix_s=LATER, keep_days=(1, 1, 99))
    assert ask(folder, *by) == wanted, "without minutes"


@pytest.mark.usefixtures("small_bounds")
def test_a_day_keeps_the_most_called_undocumented_paths(tmp_path):
    """Ties go by text; what is left is one row with all its calls; documented requests are no part of it."""
    calls = {"/e": 1, "/d": 2, "/c": 2, "/b": 2, "/a": 3}
    write(
        tmp_path,
        *[[shadow(path, ended_s=NOON + 60 * i)] for path, count in calls.items() for i in range(count)],
        [exchange(path="/documented")],
    )
    wanted = {("h", "/a"): 3, ("h", "/b"): 2, ("h", "/c"): 2, (OTHER, OTHER): 3, (None, None): 1}
    everywhere(tmp_path, wanted, "host", "path")


@pytest.mark.usefixtures("small_bounds")
def test_the_bound_is_each_apis_own_and_each_days(tmp_path):
    """One API's scanner takes nothing from another, nor from its own next day."""
    scan = [shadow(f"/x{i}") for i in range(9)]
    quiet = [shadow("/y", api=None), shadow("/z", api="other"), shadow("/x8", ended_s=NOON + DAY_S)]
    write(tmp_path, scan + quiet)
    wanted = {("orders", "/x0"): 1, ("orders", "/x1"): 1, ("orders", "/x2"): 1, ("orders", OTHER): 6}
    wanted |= {(None, "/y"): 1, ("other", "/z"): 1}
    everywhere(tmp_path, wanted, "api", "path")
    assert ask(tmp_path, "path", start=DAY + DAY_S, end=DAY + 2 * DAY_S) == {"/x8": 1}
    assert ask(tmp_path, "path", api="orders", end=DAY + 2 * DAY_S)["/x8"] == 1


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("name", ["query_names", "host", "request_content_type", "response_content_type"])
def test_an_operation_keeps_its_most_called_texts(tmp_path, name):
    """Two of each are kept apart, and those without; each operation has its own two."""
    counts = {"x": 3, "y": 2, "w": 2, "v": 1, None: 4}
    rows = [exchange(**{name: text}, status=200 + i) for text, count in counts.items() for i in range(count)]
    rows.append(exchange(**{name: "v"}, operation_id="o2", path_template="/o2"))
    write(tmp_path, rows)
    wanted = {("/orders/{id}", "x"): 3, ("/orders/{id}", "w"): 2, ("/orders/{id}", OTHER): 3}
    everywhere(tmp_path, wanted | {("/orders/{id}", None): 4, ("/o2", "v"): 1}, "path_template", name)


@pytest.mark.usefixtures("small_bounds")
def test_an_undocumented_path_keeps_few_texts(tmp_path):
    """Many paths with many texts each would be too many; the host of a path is no text of it."""
    rows = [shadow("/a", query_names=f"q{i}") for i in (1, 1, 2, 3)] + [shadow("/a", host="g", query_names="q3")]
    write(tmp_path, rows)
    wanted = {("g", "/a", "q3"): 1, ("h", "/a", "q1"): 2, ("h", "/a", OTHER): 2}
    everywhere(tmp_path, wanted, "host", "path", "query_names")


@pytest.mark.usefixtures("small_bounds")
def test_a_part_of_a_day_keeps_what_the_day_keeps(tmp_path):
    """What was called most at noon, but not that day, is `(other)` at noon as well; at every grain."""
    rows = [shadow(f"/m{i}", ended_s=DAY) for i in (1, 1, 2, 2, 3, 3)] + [shadow("/noon", ended_s=NOON)]
    write(tmp_path, rows)
    for _ in range(2):
        for length in (60, 900, DAY_S // 2):
            assert ask(tmp_path, "path", start=NOON, end=NOON + length) == {OTHER: 1}
        compact(tmp_path, now_unix_s=LATER)


@pytest.mark.usefixtures("small_bounds")
def test_late_rows_change_what_a_day_keeps(tmp_path):
    """A path that becomes one of the most called by late rows has all its calls of the day, cut before or not."""
    write(tmp_path, [shadow(f"/m{i}", ended_s=DAY) for i in (1, 1, 2, 2, 3, 3, 4)])
    compact(tmp_path, now_unix_s=LATER)
    assert ask(tmp_path, "path") == {"/m1": 2, "/m2": 2, "/m3": 2, OTHER: 1}
    write(tmp_path, [shadow("/m4", ended_s=DAY)] * 3)
    for _ in range(2):
        assert ask(tmp_path, "path") == {"/m4": 4, "/m1": 2, "/m2": 2, OTHER: 2}
        compact(tmp_path, now_unix_s=LATER)


@pytest.mark.usefixtures("small_bounds")
def test_the_bound_leaves_usage_alone(tmp_path):
    """Shapes added up by the keys of usage are usage, cut or not: methods, routes, consumers are no text of clients."""
    rows = [shadow(f"/p{i}", method=m, consumer=c) for i in range(6) for m in ("GET", "PUT") for c in ("x", None)]
    write(tmp_path, rows)
    for _ in range(2):
        with Ledger.open(tmp_path) as ledger:
            usage = ledger.usage((DAY, DAY + DAY_S)).to_pylist()
            shape = shapes.usage_of(shapes.merge([ledger.shapes(DAY, DAY + DAY_S)])).to_pylist()
        assert Counter(map(str, shape)) == Counter(map(str, usage))
        compact(tmp_path, now_unix_s=LATER)


def test_texts_that_look_like_sql_or_nothing(tmp_path, small_bounds):
    """Quotes, the empty text and no text are three different things."""
    texts = ["'", "''", '"', "", None, "=", "{}", "%s"]
    write(tmp_path, [exchange(query_names=text) for text in texts for _ in range(2 if text in ("'", "") else 1)])
    everywhere(tmp_path, {"'": 2, "": 2, None: 1, OTHER: 5}, "query_names")


@pytest.mark.usefixtures("small_bounds")
def test_no_host_is_another_than_an_empty_one(tmp_path):
    """Absent and empty are two hosts: each has its own place among the most called."""
    paths = [("/a", ""), ("/a", ""), ("/a", None), ("/b", "h"), ("/b", "h"), ("/c", "h"), ("/c", "h")]
    write(tmp_path, [shadow(path, host=host) for path, host in paths])
    everywhere(tmp_path, {("/a", ""): 2, ("/b", "h"): 2, ("/c", "h"): 2, (OTHER, OTHER): 1}, "path", "host")


def sample(**fields) -> dict:
    row = {c.name: None if c.type == records.TEXT else 0 for c in records.SAMPLE}
    row |= {"minute_unix_s": NOON, "api": "orders", "samples": 1, "first_unix_ns": 5, "last_unix_ns": 5}
    return row | fields


def test_samples_add_up(tmp_path):
    """By all their keys, in one bucket; many small files become one, and go with the rollups' days."""
    found = sample(rule="response-schema", detail="/a type", app_bytes=7)
    with Lake.open(tmp_path) as lake:
        for number in range(3):
            rows = [found | {"first_unix_ns": number, "last_unix_ns": number}, sample(minute_unix_s=NOON + 60 * number)]
            lake.commit([f"{number}"], {"samples": table(rows, records.SAMPLE)})
        for _ in range(2):
            with Ledger.open(tmp_path) as ledger:
                none, one = records.check(ledger.samples(DAY, DAY + DAY_S), records.SAMPLE, "test").to_pylist()
                assert ledger.samples(NOON + 60, NOON + 120).column("samples").to_pylist() == [1]
                assert ledger.span() is None
            assert (none["rule"], none["samples"], none["minute_unix_s"]) == (None, 3, DAY)
            assert (one["rule"], one["samples"], one["app_bytes"]) == ("response-schema", 3, 21)
            assert (one["first_unix_ns"], one["last_unix_ns"]) == (0, 2)
            assert compact(tmp_path, now_unix_s=LATER).problems == []
        assert listing(tmp_path, "samples") == [(60, False, 4)]
        lake.retire(exchange_days=0, minute_days=0, hour_days=0)
        assert listing(tmp_path, "samples") == []


def test_a_day_of_two_versions_is_rolled_up_whole(tmp_path):
    """An earlier version's rows lack columns: their calls stay calls without counted blocks in the rollup."""
    write(tmp_path, [exchange()], [exchange(ended_s=NOON + 60)])
    later = [*records.QUANTA.values(), "calls_without_quanta", "llm_calls_without_tokens", "llm_prompt_class"]
    with Catalogue.open(tmp_path) as catalogue:
        for kind in ("usage", "shapes"):
            path = tmp_path / next(s.name for s in catalogue.segments(kind))
            pq.write_table(pq.read_table(path, partitioning=None).drop_columns(later), path)
            with catalogue.transaction() as change:
                change.execute(
                    "update segment set bytes = ?, crc32 = ? where name = ?",
                    (path.stat().st_size, segments.checksum(path), str(path.relative_to(tmp_path))),
                )
    for _ in range(2):
        with Ledger.open(tmp_path) as ledger:
            for found in (ledger.usage((DAY, DAY + DAY_S), by=[]), ledger.shapes(DAY, DAY + DAY_S, by=[])):
                (row,) = found.to_pylist()
                assert (row["calls"], row["quanta_512k"], row["calls_without_quanta"]) == (2, 1, 1)
        assert compact(tmp_path, now_unix_s=LATER).problems == []
