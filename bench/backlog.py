"""A large backlog in the spool: memory while it is worked off, how sure its requests are, and how soon SIGTERM ends it.

A spool is filled with made-up steady traffic as if nobody had taken it for so long, and the sidecar is started on it
(probe off). SIGTERM comes when it has worked for a second, then it is started again and left to finish. Each request
must be in the ledger once.

    python bench/backlog.py [--rate 5000] [--seconds 300] [--lines-late 0] [--flows-late 0]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apicost.core.clock import Clock
from apicost.demo import live
from apicost.ingest import spool as spooling
from apicost.ingest.line_form import Header, Worker
from apicost.ingest.lines import ParsedBatch
from bench import kill_daemon
from bench.daemon_memory import peak_mb
from bench.steady_traffic import SECOND, Steady

SEAL_NS = SECOND // 2


def fill(folder: Path, traffic: Steady, *, lines_late_s: float = 0.0, flows_late_s: float = 0.0) -> int:
    """Write a spool as the sidecar would have while nothing took from it; returns its bytes."""
    flows, seen, lines, posted = traffic.batches()
    seen, posted = seen + int(flows_late_s * SECOND), posted + int(lines_late_s * SECOND)
    wall_ns = time.time_ns() - time.monotonic_ns()
    now = SimpleNamespace(mono_ns=0)
    real = spooling.time
    spooling.time = SimpleNamespace(monotonic_ns=lambda: now.mono_ns)  # type: ignore[assignment]
    try:
        spool = spooling.Spool.open(folder, node="demo", clock=lambda: now.mono_ns + wall_ns)
        numbers: Counter[int] = Counter()
        for now.mono_ns in range(int(min(seen[0], posted[0])), int(max(seen[-1], posted[-1])) + SEAL_NS, SEAL_NS):
            start, end = np.searchsorted(posted, [now.mono_ns - SEAL_NS, now.mono_ns])
            rows = lines.slice(start, end - start)
            for pid in sorted(set(rows["worker_pid"].to_pylist())):
                own = rows.filter(np.asarray(rows["worker_pid"].to_numpy() == pid))
                first = own["line_no"][0].as_py()
                numbers[pid] += 1
                header = Header(
                    apicost=1, node="demo", worker=Worker(pid=pid, started_unix_ms=1), batch=numbers[pid],
                    first=first, count=len(own), dropped=0, base_mono_ns=now.mono_ns,
                    base_unix_ns=now.mono_ns + wall_ns,
                )  # fmt: skip
                spool.add_lines([ParsedBatch(header=header, table=own, received_unix_ns=now.mono_ns + wall_ns)])
            start, end = np.searchsorted(seen, [now.mono_ns - SEAL_NS, now.mono_ns])
            read = now.mono_ns - int(flows_late_s * SECOND)
            spool.add_flows(flows.slice(start, end - start), clock=Clock(mono_ns=read, unix_ns=read + wall_ns))
        size = spool.backlog()["bytes"]
        spool.close()
    finally:
        spooling.time = real
    return size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--lines-late", type=float, default=0.0)
    parser.add_argument("--flows-late", type=float, default=0.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = live.write_config(folder, None)
        start = time.monotonic_ns() - (options.seconds + 60) * SECOND
        traffic = Steady(rate=options.rate, seconds=options.seconds, start_mono_ns=start)
        size = fill(
            folder / "state" / "spool", traffic, lines_late_s=options.lines_late, flows_late_s=options.flows_late
        )
        begun = time.monotonic()
        with live.Sidecar(config) as sidecar:
            ready_s = time.monotonic() - begun
            time.sleep(1)
            begun = time.monotonic()
            code = sidecar.stop()
            stop_s = time.monotonic() - begun
        done_at_stop = len(kill_daemon.ledger_lines(folder / "state" / "ledger"))
        with live.Sidecar(config) as sidecar:
            pid = int(str(sidecar.ready["pid"]))
            peak_mb(pid, begin=True)
            begun = time.monotonic()
            while sidecar.metrics()["apicost_spool_rows"] and time.monotonic() < begun + 600:
                time.sleep(0.5)
            worked_s = time.monotonic() - begun
            peak = peak_mb(pid)
            metrics = sidecar.metrics()
            sidecar.stop()
        rows = kill_daemon.ledger_rows(
            folder / "state" / "ledger",
            ["kind", "worker_pid", "line_no", "downstream_confidence", "upstream_confidence"],
        )
        calls = [row for row in rows if row[0] == 1]
        told = int(options.rate * options.seconds)
        print(
            json.dumps(
                {
                    "backlog_requests": told,
                    "backlog_mb": round(size / 1e6, 1),
                    "ready_s": round(ready_s, 2),
                    "stop_s": round(stop_s, 2),
                    "exit_code": code,
                    "requests_done_at_stop": done_at_stop,
                    "lost": told - len({row[1:3] for row in calls}),
                    "twice": len(calls) - len({row[1:3] for row in calls}),
                    "worked_off_s": round(worked_s, 1),
                    "resident_mb_peak": round(peak, 1),
                    "app_only_downstream": sum(row[3] == 4 for row in calls),
                    "app_only_upstream": sum(row[4] == 4 for row in calls),
                    "crowded_out": {name: int(count) for name, count in metrics.items() if "crowded_out" in name},
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
