"""What reports ask of the ledger, before and after compaction."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from apicost.core import meter, records
from apicost.store.catalogue import DAY_S
from apicost.store.compact import compact
from apicost.store.lake import Lake
from apicost.store.query import Ledger, LedgerError
from tests.store.batches import NOON, completeness, exchange, same, table, usage

DAY = NOON // DAY_S * DAY_S
LATER = DAY + 3 * DAY_S  # the day is finished then, and counts as settled


def write(folder, *steps: list[dict]) -> None:
    """A ledger of some steps, each with its exchanges, their usage and completeness."""
    with Lake.open(folder) as lake:
        for number, rows in enumerate(steps, lake.stats()["step"]):
            received = completeness((NOON, "lines_received", len(rows)), (NOON + 60, "lines_lost", 1))
            outputs = {"exchanges": table(rows), "usage": usage(*rows), "completeness": received}
            lake.commit([f"step-{number}"], outputs)


@pytest.fixture(params=["as written", "compacted", "compacted, then more"])
def ledger(tmp_path, request):
    """Two days of two steps: ten calls of a, one of b, one without an API, one that day after."""
    first = [exchange(ended_s=NOON + 60 * i, api="a") for i in range(10)]
    second = [exchange(api="b", downstream_in_wire_bytes=500), exchange(api=None), exchange(ended_s=NOON + DAY_S)]
    write(tmp_path, first, *([second] if request.param != "compacted, then more" else []))
    if request.param != "as written":
        assert compact(tmp_path, now_unix_s=LATER).problems == []
    if request.param == "compacted, then more":
        write(tmp_path, second)
    with Ledger.open(tmp_path) as opened:
        yield opened


def calls(batch, *keys: str) -> dict:
    """calls by some columns."""
    rows = batch.to_pylist()
    return {tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row["calls"] for row in rows}


def test_a_period_by_api(ledger):
    """Sums by the keys asked for; what no API claims has a row of its own."""
    found = records.check(ledger.usage((DAY, DAY + DAY_S), by=["api"]), records.USAGE, "test")
    assert calls(found, "api") == {None: 1, "a": 10, "b": 1}
    assert found.column("minute_unix_s").to_pylist() == [DAY] * 3
    assert found.column("consumer").to_pylist() == [None] * 3


def test_local_days(ledger):
    """Edges at local midnights make local days, also where zones are off by 30 or 45 minutes."""
    kathmandu = 5 * 3_600 + 45 * 60
    edges = [DAY - kathmandu + i * DAY_S for i in range(4)]
    assert calls(ledger.usage(edges, by=[]), "minute_unix_s") == {edges[1] - DAY_S: 12, edges[1]: 1}


def test_edges_cut_minutes_as_asked(ledger):
    """A period may begin at any minute: finer rows are read where rollups would not do."""
    assert calls(ledger.usage((NOON + 60, NOON + 240), by=["api"]), "api") == {"a": 3}
    assert calls(ledger.usage((NOON, NOON + 60, NOON + 600), by=[], where={"api": "a"}), "minute_unix_s") == {
        NOON: 1,
        NOON + 60: 9,
    }


def test_uneven_edges(ledger):
    """Days of a clock change have 23 or 25 hours; buckets need not be equal."""
    edges = (DAY, DAY + 43_200, DAY + 43_200 + 300, DAY + DAY_S, DAY + 2 * DAY_S)
    assert calls(ledger.usage(edges, by=[]), "minute_unix_s") == {edges[1]: 7, edges[2]: 5, edges[3]: 1}


def test_where_asks_for_rows_with_a_value_or_none(ledger):
    """None means rows that have none; text is never part of the SQL."""
    assert calls(ledger.usage((DAY, DAY + DAY_S), by=["api"], where={"api": None}), "api") == {None: 1}
    assert ledger.usage((DAY, DAY + DAY_S), where={"api": "a' or 1 = 1 --"}).num_rows == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda ledger: ledger.usage((DAY,)),
        lambda ledger: ledger.usage((DAY, DAY)),
        lambda ledger: ledger.usage((DAY, DAY + 1), by=["calls"]),
        lambda ledger: ledger.usage((DAY, DAY + 1), where={"1=1; --": "x"}),
        lambda ledger: ledger.exchanges(DAY, DAY + 1, where={"line_no": "1"}),
    ],
)
def test_what_is_no_key_or_period_is_refused(ledger, ask):
    """Names are checked against the columns before they reach the SQL."""
    with pytest.raises(ValueError):
        ask(ledger)


def test_completeness_of_a_period(ledger):
    """Metrics add up over steps; another day has none."""
    assert ledger.completeness(DAY, DAY + DAY_S) == {"lines_received": 13, "lines_lost": 2}
    assert ledger.completeness(NOON, NOON + 60) == {"lines_received": 13}
    assert ledger.completeness(DAY + DAY_S, LATER) == {}


def test_the_largest_exchanges_come_first(ledger):
    """For explaining a charge: whole exchanges, by wire bytes."""
    found = ledger.exchanges(DAY, DAY + DAY_S, limit=2)
    assert records.check(found, records.EXCHANGE, "test").column("api").to_pylist() == ["b", "a"] or found.num_rows == 2
    assert found.column("downstream_in_wire_bytes").to_pylist() == [500, 0]
    assert ledger.exchanges(DAY, DAY + DAY_S, where={"api": "nobody"}).num_rows == 0


def test_an_empty_period_is_an_empty_batch(ledger):
    """The columns are there, the rows are not."""
    assert ledger.usage((0, 60)).schema.equals(records.schema(records.USAGE))
    assert ledger.span() == (DAY, DAY + DAY_S)


def test_the_order_of_rows_is_that_of_the_meter(ledger):
    """Equal facts give equal bytes, from whatever files they come."""
    found = ledger.usage((DAY, DAY + 2 * DAY_S))
    assert same(found, meter.merge([found.take(list(reversed(range(found.num_rows))))]))


def test_no_ledger_is_said_so(tmp_path):
    """Reading makes nothing where there is nothing."""
    with pytest.raises(LedgerError, match="no ledger here"):
        Ledger.open(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_keeps_its_state(tmp_path):
    """What is committed, compacted and deleted meanwhile does not change a reader's answers."""
    write(tmp_path, *[[exchange()]] * 3)
    with Ledger.open(tmp_path) as ledger:
        before = ledger.usage((DAY, DAY + DAY_S))
        write(tmp_path, [exchange()])
        outcome = compact(tmp_path, now_unix_s=LATER)
        assert (outcome.rolled_days, outcome.deleted_files) == (1, 0)
        compact(tmp_path, now_unix_s=LATER + 10_000)
        assert same(ledger.usage((DAY, DAY + DAY_S)), before)
        assert ledger.damaged == ()
    assert compact(tmp_path, now_unix_s=LATER + 10_000).deleted_files == 12
    with Ledger.open(tmp_path) as ledger:
        assert calls(ledger.usage((DAY, DAY + DAY_S), by=[]), "minute_unix_s") == {DAY: 4}


@pytest.mark.parametrize("how", ["missing", "short", "flipped"])
def test_a_damaged_segment_is_left_out_and_named(tmp_path, how):
    """The answer holds the rest, and the report can say what is missing."""
    write(tmp_path, [exchange(api="a"), exchange(api="a")], [exchange(api="b")])
    path = min(tmp_path.glob("segments/*/usage*"))
    damage(path, how)
    with Ledger.open(tmp_path) as ledger:
        assert calls(ledger.usage((DAY, DAY + DAY_S), by=["api"]), "api") == {"b": 1}
        (found,) = ledger.damaged
        assert (found.name, found.calls) == (str(path.relative_to(tmp_path)), 2)


@pytest.mark.parametrize("how", ["missing", "short", "flipped"])
def test_a_damaged_rollup_costs_nothing(tmp_path, how):
    """The same sums stand in finer grain, so that is read instead."""
    write(tmp_path, [exchange(api="a"), exchange(api="b")])
    compact(tmp_path, now_unix_s=LATER)
    for grain in (86_400, 900):
        damage(next(tmp_path.glob(f"segments/*/usage-{grain}-*")), how)
        with Ledger.open(tmp_path) as ledger:
            assert calls(ledger.usage((DAY, DAY + DAY_S), by=["api"]), "api") == {"a": 1, "b": 1}
            assert ledger.damaged == ()


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "short":
        content = content[:-7]
    else:
        # The middle of the footer: DuckDB can't make sense of it.
        size = int.from_bytes(content[-8:-4], "little")
        content[-8 - size : -8] = bytes(size)
    path.write_bytes(content)


def test_a_reader_needs_no_right_to_write():
    """A report may run as another user, with the daemon running or not."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    # Everything is imported before the change of user: who else may read this installation is not the question.
    code = (
        "import os, sys, pyarrow.compute, pandas\n"  # PyArrow imports pandas when it sees the first list
        "from apicost.store.query import Ledger\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "with Ledger.open(sys.argv[1]) as ledger:\n"
        f"    print(ledger.usage(({DAY}, {DAY + DAY_S}), by=[]).num_rows)\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, [exchange()])
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for running in (False, True):
            with Lake.open(folder) if running else contextlib.nullcontext():
                command = [sys.executable, "-c", code, name]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.stdout == "1\n", done.stderr
