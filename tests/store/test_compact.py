"""Compaction and retention: fewer files, the same sums."""

import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from apicost.store import compact as compaction
from apicost.store.catalogue import COMPACT_LOCK, DAY_S, Catalogue, lock
from apicost.store.compact import compact
from apicost.store.lake import Lake
from apicost.store.query import Ledger
from tests.store.batches import NOON, exchange, table, usage
from tests.store.test_query import DAY, LATER, calls, damage, write

QUARTER_S = 900


def listing(folder, kind="usage") -> list[tuple[int, bool, int]]:
    """(grain, rolled, rows) of the live segments of a kind."""
    with Catalogue.read(folder) as catalogue:
        return sorted((s.grain_s, s.rolled, s.row_count) for s in catalogue.segments(kind))


def day_calls(folder, *edges) -> dict:
    with Ledger.open(folder) as ledger:
        return calls(ledger.usage(edges or (DAY, DAY + DAY_S), by=[]), "minute_unix_s")


def test_a_finished_day_becomes_one_file_a_grain(tmp_path):
    """Minutes, quarter hours and the day; one file of exchanges and one of completeness."""
    write(tmp_path, *[[exchange(ended_s=NOON + 60 * i)] for i in range(20)])
    outcome = compact(tmp_path, now_unix_s=LATER)
    assert (outcome.merged, outcome.made, outcome.rolled_days, outcome.problems) == (60, 5, 1, [])
    assert listing(tmp_path) == [(60, True, 20), (900, False, 2), (86_400, False, 1)]
    assert listing(tmp_path, "exchanges") == [(0, False, 20)]
    assert len(listing(tmp_path, "completeness")) == 1


def test_a_running_day_has_its_small_files_merged_and_no_rollup(tmp_path):
    """Rollups of a day that still grows would be made again each time."""
    write(tmp_path, *[[exchange()]] * compaction.FEW)
    compact(tmp_path, now_unix_s=NOON + 60)
    assert listing(tmp_path) == [(60, False, 1)]
    write(tmp_path, [exchange()])
    assert compact(tmp_path, now_unix_s=NOON + 60).merged == 0, "few files are left alone"


def test_nothing_to_do_does_nothing(tmp_path):
    """A second run over a compacted ledger writes no file."""
    write(tmp_path, [exchange()], [exchange()])
    compact(tmp_path, now_unix_s=LATER)
    assert (again := compact(tmp_path, now_unix_s=LATER)).made == 0 and again.problems == []


def test_late_rows_are_rolled_up_too(tmp_path):
    """A day is made anew when rows come after its rollup; no row counts twice at any grain."""
    write(tmp_path, [exchange()])
    compact(tmp_path, now_unix_s=LATER)
    write(tmp_path, [exchange(), exchange(ended_s=NOON + 60)])
    for _ in range(2):
        assert day_calls(tmp_path) == {DAY: 3}
        assert day_calls(tmp_path, NOON, NOON + QUARTER_S) == {NOON: 3}
        assert day_calls(tmp_path, NOON, NOON + 60) == {NOON: 2}
        compact(tmp_path, now_unix_s=LATER)
    assert listing(tmp_path) == [(60, True, 2), (900, False, 1), (86_400, False, 1)]


def test_exchanges_are_sorted_by_api_consumer_and_time(tmp_path):
    """One consumer's rows lie together, so that asking for them reads little."""
    keys = [("b", "x", 1), ("a", "y", 3), ("a", "x", 2), ("a", "x", 1)]
    write(tmp_path, *[[exchange(api=api, consumer=consumer, ended_s=NOON + s)] for api, consumer, s in keys])
    compact(tmp_path, now_unix_s=LATER)
    (path,) = tmp_path.glob("segments/*/exchanges-c*")
    rows = pq.read_table(path).to_pylist()
    assert [(r["api"], r["consumer"], r["ended_unix_ns"] // 10**9 - NOON) for r in rows] == sorted(keys)


def test_files_replaced_are_deleted_after_a_while(tmp_path):
    """Not at once: a reader may have them in its list."""
    write(tmp_path, [exchange()], [exchange()])
    assert compact(tmp_path, now_unix_s=LATER).deleted_files == 0
    assert compact(tmp_path, now_unix_s=LATER + 301).deleted_files == 6
    assert len(list(tmp_path.glob("segments/*/*"))) == 5


def test_minutes_leave_when_their_sums_stand_in_rollups(tmp_path):
    """Usage ages into coarser grain; a day that no rollup holds keeps its minutes however old."""
    write(tmp_path, [exchange(ended_s=NOON), exchange(ended_s=NOON + 60)])
    far = DAY + 100 * DAY_S
    with Lake.open(tmp_path, clock=lambda: far) as lake:
        assert lake.retire(exchange_days=14, minute_days=62, hour_days=1_100).segments == 1, "the exchanges alone"
    compact(tmp_path, now_unix_s=far, keep_days=(14, 62, 1_100))
    assert listing(tmp_path) == [(900, False, 1), (86_400, False, 1)]
    assert day_calls(tmp_path) == {DAY: 2}
    assert day_calls(tmp_path, NOON, NOON + QUARTER_S) == {NOON: 2}


def test_rows_that_come_after_the_minutes_have_gone_are_kept(tmp_path):
    """They go into the quarter hours, which are the finest there is."""
    far = DAY + 100 * DAY_S
    write(tmp_path, [exchange()])
    compact(tmp_path, now_unix_s=far, keep_days=(14, 62, 1_100))
    write(tmp_path, [exchange()])
    assert day_calls(tmp_path) == {DAY: 2}
    compact(tmp_path, now_unix_s=far, keep_days=(14, 62, 1_100))
    assert listing(tmp_path) == [(900, False, 1), (86_400, False, 1)]
    assert day_calls(tmp_path) == {DAY: 2} and day_calls(tmp_path, NOON, NOON + QUARTER_S) == {NOON: 2}


def test_retention_removes_whole_days(tmp_path):
    """After their days exchanges, rollups and completeness go, and so do their files and folders."""
    write(tmp_path, [exchange()], [exchange(ended_s=NOON + 10 * DAY_S)])
    now = DAY + 15 * DAY_S
    compact(tmp_path, now_unix_s=now, keep_days=(5, 5, 14))
    assert [len(listing(tmp_path, kind)) for kind in ("exchanges", "usage", "completeness")] == [1, 3, 0]
    assert day_calls(tmp_path) == {}
    assert day_calls(tmp_path, DAY + 10 * DAY_S, DAY + 11 * DAY_S) == {DAY + 10 * DAY_S: 1}
    compact(tmp_path, now_unix_s=now + 301, keep_days=(5, 5, 14))
    assert [path.name for path in tmp_path.glob("segments/*")] == ["2026-11-17"]


def test_a_result_of_other_sums_is_thrown_away(tmp_path, monkeypatch):
    """A rewrite must prove itself by the catalogue's control sums before it replaces anything."""
    write(tmp_path, [exchange()], [exchange()])
    before = listing(tmp_path)
    honest = compaction.duck.query
    monkeypatch.setattr(
        compaction.duck, "query",
        lambda name, **words: honest(name, **words).replace("cast(sum(calls)", "1 + cast(sum(calls)"),
    )  # fmt: skip
    (problem,) = compact(tmp_path, now_unix_s=LATER).problems
    assert "!= (2, 0) of the files it was made from" in problem
    assert listing(tmp_path) == before
    assert not list(tmp_path.glob("segments/*/usage-*-c*"))


def test_a_damaged_file_does_not_stop_the_rest(tmp_path):
    """Its day stays as it is and is named; other days are compacted."""
    write(tmp_path, [exchange()], [exchange(ended_s=NOON + DAY_S)], [exchange(ended_s=NOON + DAY_S)])
    path = min(tmp_path.glob("segments/2026-11-07/usage*"))
    damage(path, "flipped")
    outcome = compact(tmp_path, now_unix_s=LATER)
    assert outcome.rolled_days == 1 and len(outcome.problems) == 1
    assert path.exists()


def test_what_retention_took_meanwhile_does_not_come_back(tmp_path, monkeypatch):
    """A rewrite whose sources left the list while it ran is thrown away."""
    write(tmp_path, [exchange()], [exchange()])
    honest = compaction.duck.write

    def slow(*args, **options):
        with Lake.open(tmp_path, clock=lambda: LATER) as lake:
            lake.retire(exchange_days=0, minute_days=0, hour_days=0)
        honest(*args, **options)

    monkeypatch.setattr(compaction.duck, "write", slow)
    assert compact(tmp_path, now_unix_s=LATER).problems == []
    assert day_calls(tmp_path) == {}
    assert listing(tmp_path) == listing(tmp_path, "exchanges") == []


def test_one_compaction_at_a_time(tmp_path):
    """A second one leaves at once and says so."""
    write(tmp_path, [exchange()])
    with lock(tmp_path / COMPACT_LOCK):
        assert compact(tmp_path, now_unix_s=LATER).busy
        # The daemon's start leaves alone what a compaction is writing.
        half = next(tmp_path.glob("segments/*")) / "usage-60-c000000009-1.parquet.tmp"
        half.write_bytes(b"half")
        with Lake.open(tmp_path) as lake:
            assert lake.repairs == ()
    compact(tmp_path, now_unix_s=LATER)
    assert not half.exists(), "its own next run removes it"


def test_the_command(tmp_path):
    """`python -m apicost.store.compact` says what it did as JSON; 2 where there is no ledger."""
    write(tmp_path, [exchange()], [exchange()])
    command = [sys.executable, "-m", "apicost.store.compact"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"problems": []' in done.stdout
    none = subprocess.run([*command, str(tmp_path / "absent")], capture_output=True, text=True, timeout=60)
    assert none.returncode == 2 and "no ledger here" in none.stderr


def test_a_sum_beyond_64_bits_is_an_error_not_a_wrong_number(tmp_path):
    """Integers that do not fit are refused by the query; they never wrap."""
    big = exchange(downstream_in_wire_bytes=2**62)
    with Lake.open(tmp_path) as lake:
        for number in range(3):
            lake.commit([f"{number}"], {"usage": usage(big), "exchanges": table([big])})
    with Ledger.open(tmp_path) as ledger, pytest.raises(OverflowError, match="downstream_in_wire_bytes"):
        ledger.usage((DAY, DAY + DAY_S))
