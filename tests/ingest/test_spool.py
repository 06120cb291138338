"""The spool: durable, each line once, counts with their segments, repair at start-up."""

import contextlib
import os
import random
import resource
import sqlite3
import threading
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apicost import durable
from apicost.core import records
from apicost.core.clock import Clock
from apicost.ingest import segment_files
from apicost.ingest import spool as spooling
from apicost.ingest.lines import parse_batch
from apicost.ingest.register import Register
from apicost.ingest.spool import Spool, SpoolError
from bench import receiver_workload as sample

MINUTE = 60_000_000_000
NOW = sample.BASE_UNIX_NS
CLOCK = Clock(mono_ns=5, unix_ns=NOW)


class Time:
    """A wall clock that stands until it is moved."""

    def __init__(self, unix_ns=NOW - MINUTE):
        self.unix_ns = unix_ns

    def __call__(self):
        return self.unix_ns


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def spool(tmp_path, time):
    # Made a minute before the sample's worker started: the worker is not older than the spool.
    opened = Spool.open(tmp_path / "spool", node="gw-1", clock=time)
    time.unix_ns = NOW
    yield opened
    opened.close()


def again(spool, time):
    """The spool as a restarted process finds it, without a clean close."""
    os.close(spool._lock_descriptor)
    spool._lock_descriptor = os.open(os.devnull, os.O_RDONLY)
    return Spool.open(spool.folder, node="gw-1", clock=time)


def batch(first=1, numbers=(0, 1, 2), bad=(), **header):
    texts = [b"junk" if n in bad else sample.line(n=n) for n in numbers]
    return parse_batch(sample.body(sample.header(first=first, count=len(texts), **header), texts))


def flows(*ids):
    columns = [pa.array([i if f.name == "flow" else 0 for i in ids], f.type) for f in records.schema(records.FLOW)]
    return pa.Table.from_arrays(columns, schema=records.schema(records.FLOW))


def counts(refs):
    total = Counter()
    for ref in refs:
        for (_, metric), value in ref.counts.items():
            total[metric] += value
    return {metric: value for metric, value in total.items() if value}


def consume(spool):
    refs = spool.sealed()
    _, lines, _ = spool.read(refs)
    spool.drop(refs)
    return lines["line_no"].to_pylist(), counts(refs)


def test_lines_come_back_as_they_went_in(spool):
    """Several batches of several workers: one LINE table, in order."""
    given_in = [batch(), batch(first=4, pid=9), parse_batch(sample.realistic(100, first=50))]
    assert [a.accepted for a in spool.add_lines(given_in)] == [3, 3, 100]
    refs = spool.sealed()
    assert [(ref.kind, ref.rows) for ref in refs] == [("lines", 106)]
    _, lines, _ = spool.read(refs)
    records.check(lines, records.LINE, "test")
    assert lines.to_pylist() == pa.concat_tables([b.table for b in given_in]).to_pylist()


def test_flows_and_losses_come_back(spool):
    """Flow snapshots with the probe's losses as counts."""
    spool.add_flows(flows(7, 8), losses={"ring_lost": 3, "overflow_in_bytes": 0}, clock=CLOCK)
    spool.add_flows(flows(), losses={"ring_lost": 2}, clock=CLOCK)
    spool.add_flows(flows(), losses={}, clock=CLOCK)
    refs = spool.sealed()
    table, lines, completeness = spool.read(refs)
    records.check(table, records.FLOW, "test")
    records.check(lines, records.LINE, "test")
    records.check(completeness, records.COMPLETENESS, "test")
    assert table["flow"].to_pylist() == [7, 8] and lines.num_rows == 0
    assert completeness.to_pylist() == [
        {"minute_unix_s": NOW // MINUTE * 60, "node": "gw-1", "metric": "ring_lost", "value": 5}
    ]
    assert refs[0].clock == CLOCK


def test_data_is_on_disk_before_the_register_says_so(spool, monkeypatch):
    """A new segment: its bytes, its name, then the transaction. An open one: its bytes, then the transaction."""
    order = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: order.append("bytes"))
    monkeypatch.setattr(durable, "sync_folder", lambda folder: order.append("name"))
    commit = Register.commit
    monkeypatch.setattr(Register, "commit", lambda self, **c: (order.append("register"), commit(self, **c)))
    spool.add_lines([batch(first=1)])
    spool.add_lines([batch(first=4)])
    spool.add_flows(flows(1), clock=CLOCK)
    assert order == ["bytes", "name", "register", "bytes", "register", "bytes", "name", "register"]
    assert spool._register._db.execute("pragma synchronous").fetchone() == (2,), "FULL"
    assert spool._register._db.execute("pragma journal_mode").fetchone() == ("wal",)


def test_a_repeated_batch_counts_once(spool, time):
    """In the same group, in the next one, and after a restart."""
    one = batch()
    results = spool.add_lines([one, one])
    assert [(a.accepted, a.duplicate) for a in results] == [(3, False), (0, True)]
    assert spool.add_lines([one])[0].duplicate
    opened = again(spool, time)
    assert opened.add_lines([one])[0].duplicate
    assert consume(opened) == (
        [1, 2, 3],
        # What only counted the two repetitions in memory is gone with the process.
        {"lines_received": 3, "lines_duplicate": 6, "batches_received": 1, "batches_duplicate": 2},
    )
    opened.close()


def test_the_same_batch_on_two_connections_at_once_counts_once(spool):
    """Eight threads, fifty batches, every thread all of them in its own order."""
    batches = [batch(first=1 + 3 * n) for n in range(50)]
    accepted = []

    def post(seed):
        order = random.Random(seed).sample(batches, len(batches))
        accepted.extend(spool.add_lines([one])[0].accepted for one in order)

    threads = [threading.Thread(target=post, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers, found = consume(spool)
    assert sorted(numbers) == list(range(1, 151)) and sum(accepted) == 150
    assert found["lines_received"] == 150 and "lines_lost" not in found


def test_overlapping_batches_give_each_line_once(spool):
    """Half a batch, then the whole of it: only what is missing is added."""
    half = batch(numbers=(0, 1))
    assert spool.add_lines([half])[0].accepted == 2
    whole = spool.add_lines([batch(numbers=(0, 1, 2, 3))])[0]
    assert (whole.accepted, whole.duplicates, whole.duplicate) == (2, 2, False)
    assert consume(spool)[0] == [1, 2, 3, 4]


def test_a_number_twice_in_one_batch_counts_once(spool):
    """The second line with the number is a duplicate."""
    assert spool.add_lines([batch(numbers=(0, 1, 1, 0, 2))])[0] == spooling.Added(3, 2, False)
    assert sorted(consume(spool)[0]) == [1, 2, 3]


def test_gaps_are_lost_after_the_grace_and_late_lines_take_the_loss_back(spool, time):
    """Counted in the minute the gap was found; each count travels once."""
    spool.add_lines([batch(first=1), batch(first=11)])
    assert consume(spool)[1] == {"lines_received": 6, "batches_received": 2}
    time.unix_ns += spooling.GRACE_NS + 1
    refs = spool.sealed()
    assert counts(refs) == {"lines_lost": 7}
    assert next(iter(refs[0].counts))[0] == NOW // MINUTE * 60
    spool.drop(refs)
    assert spool.sealed() == []
    spool.add_lines([batch(first=4)])
    assert consume(spool) == ([4, 5, 6], {"lines_received": 3, "batches_received": 1, "lines_lost": -3})
    assert [w.numbers.lost for w in spool.numbering()] == [4]


def test_refused_lines_are_not_lost_lines(spool, time):
    """They had numbers: received + refused + lost = numbered."""
    spool.add_lines([batch(numbers=range(10), bad=(3, 7))])
    time.unix_ns += spooling.GRACE_NS + 1
    assert consume(spool) == (
        [1, 2, 3, 5, 6, 7, 9, 10],
        {"lines_received": 8, "lines_refused": 2, "batches_received": 1},
    )
    assert spool.add_lines([batch(numbers=range(10), bad=(3, 7))])[0].duplicate
    assert consume(spool)[1] == {"lines_duplicate": 8, "batches_duplicate": 1}


def test_a_batch_of_only_bad_lines_is_counted_durably(spool, time):
    """Its refusals are acknowledged, so they survive a restart."""
    spool.add_lines([batch(numbers=(0, 1), bad=(0, 1))])
    opened = again(spool, time)
    assert consume(opened) == ([], {"lines_refused": 2, "batches_received": 1})
    opened.close()


def test_the_gateways_own_drops_are_counted_by_difference(spool, time):
    """The header tells a sum since the worker's start; after a restart nothing is counted twice."""
    spool.add_lines([batch(first=1, dropped=5)])
    spool.add_lines([batch(first=4, dropped=5), batch(first=7, dropped=9), batch(first=10, dropped=7)])
    opened = again(spool, time)
    opened.add_lines([batch(first=13, dropped=10)])
    opened.add_lines([parse_batch(sample.body(sample.header(dropped=12), []))])
    assert consume(opened)[1]["lines_dropped"] == 12
    opened.close()


def test_a_worker_older_than_the_spool_has_lost_nothing_yet(tmp_path):
    """A fresh spool beside a gateway that runs for months does not report months of losses."""
    time = Time(NOW + 3_600_000_000_000)
    with contextlib.closing(Spool.open(tmp_path / "spool", clock=time)) as fresh:
        fresh.add_lines([batch(first=1_000_001, dropped=77)])
        time.unix_ns += spooling.GRACE_NS + 1
        assert consume(fresh)[1] == {"lines_received": 3, "batches_received": 1}
        assert fresh.add_lines([batch(first=500)])[0].accepted == 3, "earlier lines may still come"
        assert consume(fresh)[1] == {"lines_received": 3, "batches_received": 1}


def test_an_absurd_leap_in_the_numbers_is_refused(spool):
    """One wrong number does not make billions of lost lines."""
    spool.add_lines([batch()])
    answer = spool.add_lines([batch(first=1 << 50), batch(first=4)])
    assert "beyond the last one" in answer[0].problem and answer[1].accepted == 3
    assert consume(spool)[0] == [1, 2, 3, 4, 5, 6]


def test_consumed_segments_are_gone_and_their_names_never_come_back(spool, time):
    """A consumer that remembers names never mistakes a new segment for an old one."""
    names = []
    for first in (1, 4, 7):
        spool.add_lines([batch(first=first)])
        refs = spool.sealed()
        names += [ref.id for ref in refs]
        spool.drop(refs)
        spool.drop(refs)
    opened = again(spool, time)
    opened.add_lines([batch(first=10)])
    names += [ref.id for ref in opened.sealed()]
    assert len(set(names)) == 4
    assert [p.name for p in opened.folder.glob("*.arrows")] == [f"lines-{int(names[-1][-10:]):010d}.arrows"]
    opened.close()


def test_a_bounded_step_takes_the_oldest_segments(spool):
    """At least one, whatever its size."""
    for first in (1, 4, 7):
        spool.add_lines([batch(first=first)])
        spool.sealed()
    assert [ref.rows for ref in spool.sealed(max_rows=1)] == [3]
    assert [ref.rows for ref in spool.sealed(max_rows=6)] == [3, 3]
    assert spool.backlog()["rows"] == 9


def test_start_up_repairs_and_says_what_it_found(spool, time):
    """Unacknowledged bytes are cut off, unknown files removed, a missing file's lines counted as lost."""
    spool.add_lines([batch(first=1)])
    whole = spool.sealed()[0]
    spool.add_lines([batch(first=4)])
    gone = spool.sealed()[1]
    with open(spool.folder / f"lines-{whole.number:010d}.arrows", "ab") as file:
        file.write(b"torn")
    (spool.folder / f"lines-{gone.number:010d}.arrows").unlink()
    (spool.folder / "lines-0000000099.arrows").write_bytes(b"never acknowledged")
    (spool.folder / "x.tmp").write_bytes(b"")
    opened = again(spool, time)
    assert [text.partition(":")[0] for text in opened.repairs] == [
        "x.tmp", "lines-0000000099.arrows", "lines-0000000001.arrows", "lines-0000000002.arrows",
    ]  # fmt: skip
    assert consume(opened) == ([1, 2, 3], {"lines_received": 3, "lines_lost": 3, "batches_received": 2})
    opened.close()
    with contextlib.closing(Spool.open(spool.folder)) as clean:
        assert list(clean.repairs) == []


def test_a_segment_that_cannot_be_read_back_is_set_aside(spool):
    """One bad disk block does not stop the rest; its lines are lost lines."""
    spool.add_lines([batch(first=1)])
    bad = spool.sealed()[0]
    path = spool.folder / f"lines-{bad.number:010d}.arrows"
    path.write_bytes(b"\0" * bad.bytes)
    spool.add_lines([batch(first=4)])
    with pytest.raises(SpoolError, match="cannot be read back"):
        spool.read(spool.sealed())
    assert consume(spool) == ([4, 5, 6], {"lines_received": 3, "lines_lost": 3, "batches_received": 2})
    assert (spool.folder / "damaged" / path.name).exists()


def test_one_process_at_a_time(spool):
    """Two daemons on one folder would each miss half."""
    with pytest.raises(SpoolError, match="another process"):
        Spool.open(spool.folder)


@contextlib.contextmanager
def full_disk(bytes_left):
    """No file may grow beyond this: writes fail as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_takes_nothing_and_loses_nothing(spool, time):
    """The gateway sends again; when there is room, everything is there once."""
    spool.add_lines([batch(first=1)])
    size = max(path.stat().st_size for path in spool.folder.iterdir())
    for left in (size, 100, 5_000, size + 5_000):
        with full_disk(left), pytest.raises(SpoolError):
            for first in range(4, 4_000, 3):
                spool.add_lines([batch(first=first)])
    taken = spool.numbering()[0].numbers.received
    for first in range(1, 61, 3):
        spool.add_lines([batch(first=first)])
    numbers, found = consume(spool)
    assert sorted(numbers) == list(range(1, max(60, taken) + 1))
    assert found["lines_received"] == len(numbers)
    opened = again(spool, time)
    assert consume(opened)[0] == []
    opened.close()


def test_a_full_disk_refuses_flows_too(spool):
    """The probe keeps its snapshots and hands them over again."""
    with full_disk(100), pytest.raises(SpoolError):
        spool.add_flows(flows(1), losses={"ring_lost": 1}, clock=CLOCK)
    spool.add_flows(flows(1), losses={"ring_lost": 1}, clock=CLOCK)
    refs = spool.sealed()
    assert spool.read(refs)[0]["flow"].to_pylist() == [1] and counts(refs) == {"ring_lost": 1}


def test_a_commit_that_failed_but_reached_the_disk_is_not_repeated(spool, monkeypatch):
    """What the register says holds, not what the error said."""
    register = spool._register
    commit = type(register).commit

    def commit_then_fail(self, **changes):
        commit(self, **changes)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(type(register), "commit", commit_then_fail)
    assert spool.add_lines([batch()])[0].accepted == 3
    monkeypatch.undo()
    assert spool.add_lines([batch()])[0].duplicate
    assert consume(spool)[0] == [1, 2, 3]


def test_a_commit_that_failed_left_nothing(spool, monkeypatch):
    """A failed transaction's lines are neither there nor remembered."""
    monkeypatch.setattr(
        type(spool._register), "commit", lambda self, **_: (_ for _ in ()).throw(sqlite3.OperationalError("full"))
    )
    with pytest.raises(SpoolError, match="full"):
        spool.add_lines([batch()])
    monkeypatch.undo()
    assert consume(spool) == ([], {})
    assert spool.add_lines([batch()])[0].accepted == 3


def test_workers_of_long_ago_are_forgotten(spool, time, monkeypatch):
    """Memory is bounded; the ones in use stay, and who was forgotten is not taken for new."""
    monkeypatch.setattr(spooling, "KEPT_WORKERS", 3)
    for pid in range(1, 7):
        spool.add_lines([batch(pid=pid)])
    spool.sealed()
    assert len(spool.numbering()) == 6, "seen less than a day ago"
    time.unix_ns += spooling.KEEP_WORKER_NS + 1
    spool.add_lines([batch(pid=6, first=4)])
    consume(spool)
    assert [w.pid for w in spool.numbering()] == [4, 5, 6]
    time.unix_ns += spooling.GRACE_NS + 1
    spool.add_lines([batch(pid=1, first=100)])
    assert consume(spool)[1] == {"lines_received": 3, "batches_received": 1}
    opened = again(spool, time)
    assert {w.pid for w in opened.numbering()} == {1, 5, 6}
    opened.close()


# -- laws --------------------------------------------------------------------------------------

deliveries = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.integers(1, 2)), min_size=1, max_size=12)
LAW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@LAW
@given(deliveries, st.randoms(use_true_random=False), st.booleans())
def test_any_split_order_and_repetition_gives_the_same_lines(tmp_path_factory, parts, pick, restart):
    """The accepted set depends on what was sent, not on how; gaps + received = numbered."""
    time = Time()
    spool = Spool.open(tmp_path_factory.mktemp("law"), clock=time)
    time.unix_ns = NOW
    sent: dict[int, set[int]] = {1: set(), 2: set()}
    batches = []
    for start, size, pid in parts:
        sent[pid].update(range(start * 5 + 1, start * 5 + 1 + size))
        batches.append(batch(first=start * 5 + 1, numbers=range(size), pid=pid))
    batches += pick.sample(batches, len(batches) // 2)
    pick.shuffle(batches)
    got: dict[int, list[int]] = {1: [], 2: []}
    total: Counter[str] = Counter()
    while batches:
        group = [batches.pop() for _ in range(min(len(batches), pick.randint(1, 4)))]
        spool.add_lines(group)
        if pick.random() < 0.3:
            time.unix_ns += spooling.GRACE_NS
        if restart and pick.random() < 0.3:
            spool = again(spool, time)
        if pick.random() < 0.5:
            collect(spool, got, total)
    time.unix_ns += spooling.GRACE_NS + 1
    collect(spool, got, total)
    assert {pid: sorted(numbers) for pid, numbers in got.items()} == {p: sorted(s) for p, s in sent.items()}
    numbered = sum(max(numbers, default=0) for numbers in sent.values())
    assert total["lines_received"] == sum(map(len, sent.values()))
    assert total["lines_received"] + total["lines_lost"] == numbered
    spool.close()


def collect(spool, got, total):
    refs = spool.sealed()
    _, lines, _ = spool.read(refs)
    for pid, number in zip(lines["worker_pid"].to_pylist(), lines["line_no"].to_pylist(), strict=True):
        got[pid].append(number)
    total.update(counts(refs))
    spool.drop(refs)


# -- crash at a chosen point -------------------------------------------------------------------


def die_in_child(work):
    """Run `work` in a forked process that ends as if killed; returns after its death."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 9 << 8, "the child did not reach the chosen point"


def crash(*_, **__):
    os._exit(9)


def half_then_crash(descriptor, block):
    os.write(descriptor, memoryview(block)[: block.size // 2])
    os._exit(9)


def all_then_crash(descriptor, block):
    os.write(descriptor, memoryview(block))
    os._exit(9)


def commit_then_crash(self, **changes):
    REAL_COMMIT(self, **changes)
    os._exit(9)


REAL_COMMIT = Register.commit
POINTS = {
    "before the file": (segment_files, "append", crash, False),
    "half of the file": (segment_files, "append", half_then_crash, False),
    "file written, not registered": (segment_files, "append", all_then_crash, False),
    "before the register's commit": (Register, "commit", crash, False),
    "registered, not answered": (Register, "commit", commit_then_crash, True),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("first_batch", [True, False])
def test_a_crash_at_any_point_leaves_all_or_nothing(tmp_path, time, point, first_batch):
    """Into a new segment or an open one: what was acknowledged stays, the resent batch counts once."""
    where, name, crashing, there = POINTS[point]

    def life():
        spool = Spool.open(tmp_path, clock=time)
        if not first_batch:
            spool.add_lines([one])
        setattr(where, name, crashing)
        spool.add_lines([two])

    one, two = batch(first=1), batch(first=4)
    die_in_child(life)
    with contextlib.closing(Spool.open(tmp_path, clock=time)) as opened:
        assert opened.add_lines([two])[0].duplicate == there
        assert opened.add_lines([one])[0].duplicate == (not first_batch)
        numbers, found = consume(opened)
        assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
        assert found["lines_received"] == 6


@pytest.mark.parametrize("crashing", [crash, commit_then_crash])
def test_a_crash_while_dropping_consumes_all_or_nothing(tmp_path, time, crashing):
    """A file whose row is gone is swept; a row whose file is there is listed again."""

    def life():
        spool = Spool.open(tmp_path, clock=time)
        spool.add_lines([one])
        refs = spool.sealed()
        Register.commit = crashing
        spool.drop(refs)

    one = batch(first=1)
    die_in_child(life)
    with contextlib.closing(Spool.open(tmp_path, clock=time)) as opened:
        assert consume(opened)[0] == ([1, 2, 3] if crashing is crash else [])
        assert opened.add_lines([one])[0].duplicate
        assert list(opened.folder.glob("*.arrows")) == []
