"""The time that waits are measured against: that of what was read, held back by the source that is late."""

import numpy as np
import pyarrow as pa
import pytest

from apicost.core import records
from apicost.core.join.watermark import ALLOWED_NS, MOST_LATE_NS, Watermark

S = 1_000_000_000
NONE = np.zeros(0, np.int64)


def lines(*rows: tuple[int, int]) -> pa.Table:
    """Lines as (worker's pid, logged at)."""
    blank = {column.name: pa.nulls(len(rows), column.type) for column in records.LINE}
    blank["worker_pid"] = pa.array([pid for pid, _ in rows], pa.int32())
    blank["log_mono_ns"] = pa.array([logged for _, logged in rows], pa.int64())
    return pa.table(blank, schema=records.schema(records.LINE))


def test_a_backlog_is_as_old_as_its_input():
    """What is read an hour late is worked off with the time at which it came."""
    mark = Watermark()
    assert mark.advance(100 * S, 100 * S, lines((1, 99 * S)), np.array([100 * S])) == 100 * S
    assert mark.advance(102 * S, 102 * S, lines((1, 101 * S)), np.array([102 * S])) == 102 * S


def test_flows_that_are_late_hold_the_time_back():
    """While the probe's snapshots are 8 s behind, no line gives up on them; what waits have room for is free."""
    mark = Watermark()
    assert mark.advance(100 * S, 92 * S, lines(), NONE) == 92 * S + ALLOWED_NS
    assert mark.advance(101 * S, 101 * S, lines(), NONE) == 101 * S


def test_the_worker_that_is_latest_holds_the_time_back():
    """Its newest line counts, not the oldest of a batch, nor the lines of others."""
    mark = Watermark()
    table = lines((1, 99 * S), (2, 70 * S), (2, 80 * S))
    assert mark.advance(100 * S, 100 * S, table, np.full(3, 100 * S)) == 80 * S + ALLOWED_NS


def test_lateness_is_forgotten_as_fast_as_time_goes_on():
    """A pause in the lines of a late worker does not let the time jump over those still to come."""
    mark = Watermark()
    mark.advance(100 * S, 100 * S, lines((1, 80 * S)), np.array([100 * S]))
    assert mark.advance(105 * S, 105 * S, lines(), NONE) == 105 * S - 15 * S + ALLOWED_NS
    assert mark.advance(130 * S, 130 * S, lines(), NONE) == 130 * S


def test_a_source_that_has_stopped_stops_nothing():
    """Flows that nobody reads, and lines an hour old, hold back no longer than `MOST_LATE_NS`."""
    mark = Watermark()
    assert mark.advance(5_000 * S, 100 * S, lines(), NONE) == 5_000 * S - MOST_LATE_NS
    mark = Watermark()
    assert mark.advance(5_000 * S, 5_000 * S, lines((1, 100 * S)), np.array([5_000 * S])) == 5_000 * S


@pytest.mark.parametrize("later", [(90, 90), (101, 60)])
def test_the_time_never_goes_back(later):
    """Whatever is read next."""
    mark = Watermark()
    mark.advance(100 * S, 100 * S, lines(), NONE)
    assert mark.advance(later[0] * S, later[1] * S, lines(), NONE) == 100 * S
