"""A backlog in the spool: stops leave it there, starts work it off, and its bytes and lines count once."""

import time

import numpy as np
import pyarrow as pa
import pytest

from apicost import config as configuration
from apicost.core import records
from apicost.core.clock import Clock
from apicost.daemon import MAX_STEP_ROWS, Daemon
from apicost.demo import live
from bench import backlog, kill_daemon
from bench.steady_traffic import SECOND, Steady

WIRE = [f"{leg}_{way}_wire_bytes" for leg in ("downstream", "upstream") for way in ("in", "out")]


@pytest.fixture
def filled(tmp_path):
    """A folder with a spool of 45,000 snapshots and lines, three steps' worth."""
    start = time.monotonic_ns() - 120 * SECOND
    traffic = Steady(rate=500, seconds=30, clients=10, backends=4, start_mono_ns=start)
    configuration_file = live.write_config(tmp_path, None)
    backlog.fill(tmp_path / "state" / "spool", traffic)
    return tmp_path, configuration.load(str(configuration_file)), traffic


def wire_bytes(flows: pa.Table) -> int:
    return int(flows.to_pandas().groupby("flow")[["in_wire_bytes", "out_wire_bytes"]].max().to_numpy().sum())


def work_off(daemon: Daemon) -> None:
    while daemon.former_segment is not None:
        daemon._piece()


def test_a_stop_leaves_a_backlog_to_the_next_start(filled):
    """After SIGTERM one step is enough; what is left is durable, and comes into the ledger once."""
    folder, settings, traffic = filled
    daemon = Daemon(settings)
    before = daemon.spool.backlog()["rows"]
    daemon.stop_by_s = time.monotonic()
    daemon.stopping.set()
    daemon._step_loop()
    assert before - MAX_STEP_ROWS <= daemon.spool.backlog()["rows"] < before
    daemon.close()
    daemon = Daemon(settings)
    work_off(daemon)
    daemon.close()
    lines = kill_daemon.ledger_lines(folder / "state/ledger")
    assert len(lines) == len(set(lines)) == 15_000
    rows = kill_daemon.ledger_rows(folder / "state/ledger", WIRE)
    assert np.array(rows).sum() == wire_bytes(traffic.batches()[0])


def test_a_backlog_is_as_sure_as_traffic_that_is_taken_at_once(filled):
    """Waits run by the time of the input: minutes later no request is app-only for it."""
    folder, settings, _ = filled
    daemon = Daemon(settings)
    work_off(daemon)
    daemon.close()
    rows = kill_daemon.ledger_rows(folder / "state/ledger", ["kind", "downstream_confidence", "upstream_confidence"])
    found = {(row[1], row[2] == 4) for row in rows if row[0] == records.RowKind.EXCHANGE}
    assert found == {(records.Confidence.EXACT, False)}


def test_flows_of_this_run_wait_until_those_of_former_runs_have_ended(filled):
    """What the probe seals while a backlog is worked off keeps its bytes when the former session ends."""
    folder, settings, traffic = filled
    daemon = Daemon(settings)
    fresh = Steady(rate=100, seconds=2, clients=4, backends=2, start_mono_ns=time.monotonic_ns() - 5 * SECOND)
    flows = fresh.batches()[0]
    salted = records.numbers(flows, "flow").astype(np.uint64) | np.uint64(1 << 60)
    kinds = np.full(len(flows), records.SnapshotKind.TURN)
    kinds[records.numbers(flows, "kind") == records.SnapshotKind.OPEN] = records.SnapshotKind.CLOSED
    flows = flows.set_column(0, "flow", pa.array(salted)).set_column(2, "kind", pa.array(kinds, pa.uint8()))
    daemon.spool.add_flows(flows, clock=Clock(mono_ns=time.monotonic_ns(), unix_ns=time.time_ns()))
    work_off(daemon)
    assert daemon.spool.backlog()["rows"] == len(flows)
    daemon._piece()
    daemon.close()
    daemon = Daemon(settings)
    work_off(daemon)
    daemon.close()
    rows = kill_daemon.ledger_rows(folder / "state/ledger", WIRE)
    assert np.array(rows).sum() == wire_bytes(traffic.batches()[0]) + wire_bytes(flows)
