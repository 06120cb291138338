"""What waits in the join is bounded, whatever of it never comes; made-up traffic of 200 requests a second."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from apicost.core import records
from apicost.core.clock import Clock
from apicost.core.join.correlate import Carry, Settings, correlate
from apicost.core.records import Confidence, RowKind
from bench.steady_traffic import SECOND, Steady

CLOCK = Clock(mono_ns=0, unix_ns=1_795_000_000 * SECOND)
TRAFFIC = Steady(rate=200, seconds=10, clients=6, backends=4)
WAITS = Settings(line_wait_ns=3 * SECOND, flow_wait_ns=2 * SECOND)
ROOM = 12  # of each flow its newest turn stays, and its newest snapshot
UPSTREAM_ROOM = 4 * 17  # of each flow the first 16 turns, since a stream may begin with any, and one for those behind
SMALL = dataclasses.replace(WAITS, most_lines=300, most_turns=400)


def run(options: Settings, *, flows_late_s: float = 0, lines_late_s: float = 0, lines: bool = True, flows: bool = True):
    """Steps of a second; returns all rows, the carry's most rows by table, and the sums of the counts."""
    snapshots, seen, told, posted = TRAFFIC.batches()
    snapshots = snapshots if flows else snapshots[:0]
    told = told if lines else told[:0]
    seen, posted = seen[: len(snapshots)] + int(flows_late_s * SECOND), posted[: len(told)] + int(lines_late_s * SECOND)
    end = TRAFFIC.start_mono_ns + 50 * SECOND
    carry, rows, most, counts = Carry.empty(), [], {}, {}
    for now in range(TRAFFIC.start_mono_ns + SECOND, end, SECOND):
        step = correlate(
            carry,
            snapshots.filter(pa.array((seen >= now - SECOND) & (seen < now))),
            told.filter(pa.array((posted >= now - SECOND) & (posted < now))),
            clock=CLOCK,
            now_mono_ns=now,
            settings=options,
            final=now + SECOND >= end,
        )
        carry = step.carry
        rows.append(step.exchanges)
        for name, table in carry.to_tables().items():
            most[name] = max(most.get(name, 0), len(table))
        for name, count in step.counts.items():
            counts[name] = counts.get(name, 0) + count
    return pa.concat_tables(rows), most, counts


def wire_bytes(rows: pa.Table) -> int:
    return sum(
        int(records.numbers(rows, f"{leg}_{way}_wire_bytes").sum())
        for leg in ("downstream", "upstream")
        for way in ("in", "out")
    )


def counted() -> int:
    frame = TRAFFIC.batches()[0].to_pandas().groupby("flow")[["in_wire_bytes", "out_wire_bytes"]].max()
    return int(frame.to_numpy().sum())


def test_traffic_without_lines_waits_in_bounded_memory():
    """Turns of open connections that no line ever claims are at most so many, and no byte of them is lost."""
    rows, most, counts = run(SMALL, lines=False)
    assert most["downstream_turns"] <= 400 + ROOM and most["upstream_turns"] <= 400 + UPSTREAM_ROOM
    assert counts["turns_crowded_out"] > 800
    assert wire_bytes(rows) == counted()
    assert (records.numbers(rows, "kind") != RowKind.EXCHANGE).all()


def test_turns_wait_without_bound_where_none_is_set():
    """The reason for the bound: each request without a line leaves a turn in the carry."""
    _, most, _ = run(WAITS, lines=False)
    assert most["downstream_turns"] >= 1_900


def test_lines_that_are_more_than_may_wait_are_given_out_oldest_first():
    """A leg holds so many lines at most; those beyond are app-only, each once, and counted."""
    long = dataclasses.replace(SMALL, line_wait_ns=60 * SECOND, flow_wait_ns=60 * SECOND)
    rows, most, counts = run(long, flows=False)
    assert most["lines"] <= 300 and most["unplaced"] <= 300 and most["upstream_waiting"] <= 300
    assert counts["lines_crowded_out"] == counts["tries_crowded_out"] == 1_700
    numbers = list(zip(records.numbers(rows, "worker_pid"), records.numbers(rows, "line_no"), strict=True))
    assert len(numbers) == len(set(numbers)) == 2_000
    assert (records.numbers(rows, "downstream_confidence") == Confidence.APP_ONLY).all()
    ended = records.numbers(rows, "ended_unix_ns")
    assert (np.diff(np.array([part.max() for part in np.array_split(ended, 20)])) > 0).all()


@pytest.mark.parametrize("late", [{"flows_late_s": 8}, {"lines_late_s": 8}])
def test_bytes_stay_exact_when_one_side_is_far_behind(late):
    """Whatever is crowded out: each line comes once, and all bytes of the kernel are in some row."""
    rows, most, _ = run(SMALL, **late)
    assert (records.numbers(rows, "kind") == RowKind.EXCHANGE).sum() == 2_000
    assert wire_bytes(rows) == counted()
    assert most["downstream_turns"] <= 400 + ROOM and most["upstream_turns"] <= 400 + UPSTREAM_ROOM


def test_a_bound_that_is_not_reached_changes_nothing():
    """With room for all, the rows are those of no bound."""
    plenty = dataclasses.replace(WAITS, most_lines=10_000, most_turns=10_000)
    assert run(plenty)[0].equals(run(WAITS)[0])
    assert run(plenty)[2]["lines_crowded_out"] == 0


def test_a_busy_connection_finds_a_flow_that_is_read_after_its_lines():
    """Its newest line is always ahead of the flow; the first one is not, and one is enough."""
    patient = dataclasses.replace(WAITS, line_wait_ns=8 * SECOND, flow_wait_ns=5 * SECOND)
    rows, _, _ = run(patient, flows_late_s=1.5)
    requests = records.numbers(rows, "kind") == RowKind.EXCHANGE
    grade = records.numbers(rows, "downstream_confidence")[requests]
    assert (grade == Confidence.EXACT).all()
