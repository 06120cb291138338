"""Laws of the ledger: the same facts give the same answers, however they were split, compacted or aged."""

import itertools
import json
import subprocess
import sys
import tempfile
import threading

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import meter
from apicost.store.catalogue import DAY_S
from apicost.store.compact import compact
from apicost.store.lake import Lake
from apicost.store.query import Ledger
from tests.store.batches import NOON, SCOPES, completeness, exchange, exchange_batches, same, table, usage

DAY = NOON // DAY_S * DAY_S
LATER = DAY + 3 * DAY_S


def commit(lake: Lake, name: str, batch) -> None:
    received = completeness((NOON, "lines_received", batch.num_rows))
    lake.commit([name], {"exchanges": batch, "usage": meter.meter(batch, SCOPES), "completeness": received})


@settings(max_examples=25, deadline=None)
@given(
    exchange_batches,
    st.lists(st.integers(0, 12), max_size=4),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
    st.sampled_from([(0, LATER), (0, NOON, LATER), (0, DAY, DAY + DAY_S, LATER), (0, DAY + 34_215, LATER)]),
)
def test_answers_do_not_depend_on_split_order_or_compaction(batch, cuts, compact_after, random, edges):
    """One step or many, in any order, compacted in between or never: usage of any period is byte for byte
    what the meter makes of the exchanges."""
    cuts = [0, *sorted(min(c, batch.num_rows) for c in cuts), batch.num_rows]
    parts = [batch.slice(a, b - a) for a, b in itertools.pairwise(cuts) if a < b]
    random.shuffle(parts)
    ended = batch.column("ended_unix_ns").to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        with Lake.open(folder) as lake:
            for number, part in enumerate(parts):
                commit(lake, f"part-{number}", part)
                if number == compact_after:
                    assert compact(folder, now_unix_s=LATER).problems == []
        with Ledger.open(folder) as ledger:
            found = ledger.usage(edges)
            assert ledger.completeness(0, LATER) == {"lines_received": batch.num_rows}
    expected = []
    for start, end in itertools.pairwise(edges):
        inside = [start <= ns // 10**9 // 60 * 60 < end for ns in ended]
        part = meter.meter(batch.filter(inside), SCOPES)
        at = part.schema.get_field_index("minute_unix_s")
        expected.append(part.set_column(at, part.schema.field(at), pa.array([start] * part.num_rows, pa.int64())))
    assert same(found, meter.merge(expected))


READER = """
import json, sys, time
from apicost.store.query import Ledger
folder, day = sys.argv[1], int(sys.argv[2])
seen, n = [], 0
print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    with Ledger.open(folder) as ledger:
        whole = ledger.usage((day, day + 86400), by=["api"])
        finer = ledger.usage((day, day + 43260, day + 86400), by=[])
        lines = ledger.completeness(day, day + 86400).get("lines_received", 0)
        calls = sum(whole.column("calls").to_pylist())
        wire = sum(whole.column("downstream_in_wire_bytes").to_pylist())
        again = sum(finer.column("calls").to_pylist())
        assert calls == again == lines and wire == 7 * calls, (calls, again, lines, wire)
        assert ledger.damaged == (), ledger.damaged
        assert not seen or calls >= seen[-1], (calls, seen[-1])
        seen.append(calls)
    if calls >= int(sys.argv[3]):
        break
print(json.dumps(seen))
"""


def test_readers_see_whole_steps_while_others_write_and_compact(tmp_path):
    """In each listing that a reader takes, calls at every grain, lines and bytes agree, and never go back,
    while a daemon commits and compaction after compaction replaces and deletes what the reader may hold."""
    steps, of_step = 60, 3
    rows = [exchange(api=api, downstream_in_wire_bytes=7) for api in ("a", "b", None)]
    outputs = {
        "exchanges": table(rows),
        "usage": usage(*rows),
        "completeness": completeness((NOON, "lines_received", of_step)),
    }
    stop = threading.Event()
    outcomes = []

    def keep_compacting():
        now = LATER
        while not stop.is_set():
            now += 1_000  # past the grace of what the last run replaced
            outcomes.append(compact(tmp_path, now_unix_s=now, memory_mb=128))

    with Lake.open(tmp_path) as lake:
        lake.commit(["first"], outputs)
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(tmp_path), str(DAY), str(steps * of_step)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert reader.stdout.readline() == "ready\n", reader.stderr.read()
        compactor = threading.Thread(target=keep_compacting)
        compactor.start()
        try:
            for number in range(1, steps):
                lake.commit([f"step-{number}"], outputs)
                stop.wait(0.05)
            told, complaint = reader.communicate(timeout=90)
        finally:
            stop.set()
            compactor.join()
            reader.kill()
    assert reader.returncode == 0, complaint
    seen = json.loads(told)
    assert seen[-1] == steps * of_step and len(set(seen)) > 3, f"the reader saw no change: {seen}"
    assert sum(outcome.rolled_days for outcome in outcomes) > 2
    assert sum(outcome.deleted_files for outcome in outcomes) > 0
    assert not [problem for outcome in outcomes for problem in outcome.problems]


KILLED = """
import sys
from apicost.store.compact import compact
print("on", flush=True)
now = int(sys.argv[2])
while True:
    now += 1000
    compact(sys.argv[1], now_unix_s=now)
"""


def test_compaction_killed_at_any_moment_changes_no_sum(tmp_path):
    """Whatever a killed compaction leaves, the sums stay, and the next start leaves no stray file."""
    rows = [exchange(api="a", downstream_in_wire_bytes=7)]
    for round_ in range(7):
        killed = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(LATER)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) if round_ else None  # fmt: skip
        with Lake.open(tmp_path) as lake:
            for number in range(10):
                outputs = {"exchanges": table(rows), "usage": usage(*rows)}
                lake.commit([f"step-{round_}-{number}"], outputs)
                if killed and number == 2 + round_:
                    assert killed.stdout.readline() == b"on\n", killed.stderr.read()
                if killed and number == 9:
                    killed.kill()
                    killed.communicate()
        with Ledger.open(tmp_path) as ledger:
            (day,) = ledger.usage((DAY, DAY + DAY_S), by=[]).to_pylist()
            assert (day["calls"], day["downstream_in_wire_bytes"]) == ((round_ + 1) * 10, (round_ + 1) * 70)
            assert ledger.damaged == ()
    with Lake.open(tmp_path) as lake:
        named = {row[0] for row in lake._catalogue.rows("select name from segment")}
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("segments/*/*")} == named
