"""Recorded runs: how they are cut into files changes nothing."""

import random

import pyarrow as pa
import pytest

from apicost.core import records
from apicost.core.clock import Clock
from apicost.ingest import replay
from apicost.ingest.lines import parse_batch
from apicost.problems import InputError
from bench import receiver_workload as sample

CLOCK = Clock(mono_ns=sample.BASE_MONO_NS, unix_ns=sample.BASE_UNIX_NS)
LINES = parse_batch(sample.realistic(60)).table


def flows(count=40):
    pick = random.Random(3)
    columns = []
    for column in records.FLOW:
        values = [pick.randrange(200) for _ in range(count)]
        if column.name == "last_mono_ns":
            values = [sample.BASE_MONO_NS + n * 250_000 for n in range(count)]
        columns.append(pa.array(values, column.type))
    return pa.Table.from_arrays(columns, schema=records.schema(records.FLOW))


FLOWS = flows()


def test_what_was_recorded_comes_back(tmp_path):
    """Flows, lines, clock; the tables are FLOW, LINE and COMPLETENESS."""
    replay.record(tmp_path, FLOWS, LINES, CLOCK)
    back = replay.load(tmp_path)
    records.check(back.flows, records.FLOW, "test")
    records.check(back.lines, records.LINE, "test")
    records.check(back.completeness, records.COMPLETENESS, "test")
    assert back.lines.to_pylist() == LINES.to_pylist()
    assert back.flows.to_pylist() == FLOWS.to_pylist()
    assert back.clock == CLOCK
    assert [(r["metric"], r["value"]) for r in back.completeness.to_pylist()] == [("lines_received", 60)]


@pytest.mark.parametrize("seed", range(4))
def test_splits_order_and_repetition_change_nothing(tmp_path, seed):
    """Shuffled rows in any number of files, some of them twice: the same rows and the same identity."""
    pick = random.Random(seed)
    replay.record(tmp_path / "whole", FLOWS, LINES, CLOCK)
    parts = []
    for table, is_flow in ((FLOWS, True), (LINES, False)):
        order = pick.sample(range(table.num_rows), table.num_rows)
        cuts = sorted(pick.sample(range(1, table.num_rows), 4))
        for first, last in zip([0, *cuts], [*cuts, table.num_rows], strict=True):
            parts.append((table.take(order[first:last]), is_flow))
    parts.append(pick.choice(parts))
    pick.shuffle(parts)
    for table, is_flow in parts:
        empty = records.empty(records.LINE if is_flow else records.FLOW)
        replay.record(tmp_path / "parts", *((table, empty) if is_flow else (empty, table)), CLOCK)
    whole, again = replay.load(tmp_path / "whole"), replay.load(tmp_path / "parts")
    assert again.identity == whole.identity
    assert again.flows.to_pylist() == whole.flows.to_pylist()
    assert again.lines.to_pylist() == whole.lines.to_pylist()


def test_another_run_has_another_identity(tmp_path):
    """So that a ledger takes each recording once."""
    replay.record(tmp_path / "a", FLOWS, LINES, CLOCK)
    replay.record(tmp_path / "b", FLOWS, LINES.slice(1), CLOCK)
    replay.record(tmp_path / "c", FLOWS.slice(1), LINES, CLOCK)
    assert len({replay.load(tmp_path / name).identity for name in "abc"}) == 3


def test_a_recording_saved_anew_is_one_file_each_and_the_same(tmp_path):
    """What goes into a repository."""
    replay.record(tmp_path / "a", FLOWS.slice(0, 10), LINES.slice(0, 9), CLOCK)
    replay.record(tmp_path / "a", FLOWS.slice(10), LINES.slice(9), CLOCK)
    first = replay.load(tmp_path / "a")
    replay.save(tmp_path / "b", first)
    second = replay.load(tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "clock.json", "completeness.parquet", "flows.parquet", "lines.parquet",
    ]  # fmt: skip
    assert second.identity == first.identity
    assert second.completeness.to_pylist() == first.completeness.to_pylist()


def test_raw_bodies_are_lines_too(tmp_path):
    """Bodies as gateways post them; refused, repeated and missing lines are told."""
    replay.record(tmp_path, FLOWS, records.empty(records.LINE), CLOCK)
    (tmp_path / "lines").mkdir()
    good = [sample.line(n=n) for n in range(3)]
    body = sample.body(sample.header(count=4), [*good, b"junk"])
    (tmp_path / "lines" / "a.usage").write_bytes(body + body)
    (tmp_path / "lines" / "b.usage").write_bytes(sample.body(sample.header(first=11, count=3), good))
    back = replay.load(tmp_path)
    assert back.lines["line_no"].to_pylist() == [1, 2, 3, 11, 12, 13]
    assert {r["metric"]: r["value"] for r in back.completeness.to_pylist()} == {
        "lines_received": 6,
        "lines_duplicate": 3,
        "lines_refused": 2,
        "lines_lost": 7,
    }


def test_a_recorded_completeness_is_kept(tmp_path):
    """The live run knew more than its lines tell."""
    known = pa.table(
        [
            pa.array([60, 0], pa.int64()),
            pa.array(["gw", "gw"]).dictionary_encode(),
            pa.array(["ring_lost", "lines_received"]).dictionary_encode(),
            pa.array([2, 60], pa.int64()),
        ],
        schema=records.schema(records.COMPLETENESS),
    )
    replay.record(tmp_path, FLOWS, LINES, CLOCK, known)
    rows = replay.load(tmp_path).completeness.to_pylist()
    assert [(r["metric"], r["value"]) for r in rows] == [("lines_received", 60), ("ring_lost", 2)]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_cuts_are_a_partition_in_time(tmp_path, steps):
    """Each row is in one piece, none later than the piece's end."""
    replay.record(tmp_path, FLOWS, LINES, CLOCK)
    back = replay.load(tmp_path)
    pieces = list(back.cut(steps))
    assert len(pieces) == steps
    assert pa.concat_tables([lines for _, lines, _ in pieces]).num_rows == 60
    assert pa.concat_tables([flows for flows, _, _ in pieces]).num_rows == 40
    ends = [end for _, _, end in pieces]
    assert ends == sorted(ends)
    for flows_in, lines_in, end in pieces:
        assert all(at <= end for at in lines_in["log_mono_ns"].to_pylist() + flows_in["last_mono_ns"].to_pylist())


def test_a_row_on_the_edge_of_two_pieces_is_in_the_first(tmp_path):
    """40 snapshots 250 us apart in 39 pieces: every one lies on an edge."""
    replay.record(tmp_path, FLOWS, records.empty(records.LINE), CLOCK)
    sizes = [flows_in.num_rows for flows_in, _, _ in replay.load(tmp_path).cut(39)]
    assert sizes == [2] + [1] * 38


def test_a_folder_that_is_no_recording_is_a_problem(tmp_path):
    """All problems at once, each with its file."""
    (tmp_path / "clock.json").write_text("[]")
    (tmp_path / "lines.parquet").write_bytes(b"no parquet")
    (tmp_path / "flows").mkdir()
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"flow": [1]}), tmp_path / "flows" / "1.parquet")
    with pytest.raises(InputError) as error:
        replay.load(tmp_path)
    places = [problem.place.rpartition("/")[2] for problem in error.value.problems]
    assert places == ["clock.json", "1.parquet", "lines.parquet"]
    with pytest.raises(InputError, match=r"clock\.json"):
        replay.load(tmp_path / "none")
