"""Memory of the sidecar at a steady rate of real requests, and whether it stays flat.

A gateway with the plugin in a cgroup with the probe, an nginx that answers behind it, wrk in front, which sends
request number n when n / rate seconds are over. The daemon's resident set is read ten times a second; its peak
is the kernel's own (VmHWM, begun anew when the load begins), so that no short step is missed.

    python bench/daemon_memory.py [--rate 5000] [--seconds 600] [--daemon-cpu 0.1]

With `--daemon-cpu` the sidecar gets only so much of a core (the cgroup v1 cpu controller), so that it falls behind for
certain; SIGTERM then comes with the end of the load, and another start, unthrottled, works off what was left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from apicost.core.records import Confidence, RowKind
from apicost.demo import gateway, live
from apicost.store.catalogue import Catalogue

EVERY_S = 0.1

BACKEND = """daemon off; pid {folder}/backend.pid; error_log {folder}/backend.log; worker_processes 1;
events {{ worker_connections 2048; }}
http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{body}"; }} }} }}
"""
SCRIPT = """local ffi = require "ffi"
ffi.cdef "typedef struct {{ long s; long ns; }} moment; int clock_gettime(int clock, moment *now);"
local now, started, asked, n = ffi.new("moment"), nil, 0, 0
local function seconds()
  ffi.C.clock_gettime(1, now)
  return tonumber(now.s) + tonumber(now.ns) / 1e9
end
function delay()
  started = started or seconds()
  asked = asked + 1
  return math.max(0, math.ceil(1000 * (asked / {rate} - (seconds() - started))))
end
function request()
  n = n + 1
  return wrk.format("GET", "/v1/products/sku-" .. (n % 500), {{["Host"] = "shop.example"}})
end
"""


@contextlib.contextmanager
def backend(folder: Path):
    folder.mkdir()
    port = gateway.free_port()
    conf = folder / "backend.conf"
    conf.write_text(BACKEND.format(folder=folder, port=port, body="x" * 900))
    process = subprocess.Popen(["nginx", "-p", str(folder), "-e", str(folder / "backend.log"), "-c", str(conf)])
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class Addresses:
    """Looks like the demo's upstreams, all of them the one backend."""

    def __init__(self, address: str) -> None:
        self.good = self.closing = self.refusing = address


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def peak_mb(pid: int, *, begin: bool = False) -> float:
    """The most that was resident since the last call with `begin`."""
    status = Path(f"/proc/{pid}/status").read_text()
    if begin:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5)
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024 / 1e6  # type: ignore[union-attr]


def finished(config: Path) -> None:
    """Work off what a stop left."""
    with live.Sidecar(config) as sidecar:
        while sidecar.metrics()["apicost_spool_rows"]:
            time.sleep(0.5)
        sidecar.stop()


def calls_in(ledger: Path) -> int:
    with Catalogue.open(ledger) as catalogue:
        return sum(segment.calls for segment in catalogue.segments("usage") if segment.grain_s == 60)


def acknowledged_in(ledger: Path) -> int:
    """Lines that the receiver has taken, as completeness has them."""
    with Catalogue.open(ledger) as catalogue:
        files = [ledger / segment.name for segment in catalogue.segments("completeness")]
    tables = [pq.read_table(path, columns=["metric", "value"]).to_pylist() for path in files]
    return sum(row["value"] for table in tables for row in table if row["metric"] == "lines_received")


def upstream_shares(ledger: Path) -> dict[str, float]:
    """Of the requests that went to the backend, the share with each confidence."""
    with Catalogue.open(ledger) as catalogue:
        files = [ledger / segment.name for segment in catalogue.segments("exchanges")]
    found: Counter[int] = Counter()
    for path in files:
        rows = pq.read_table(path, columns=["kind", "attempts", "upstream_confidence"])
        mine = (rows["kind"].to_numpy() == RowKind.EXCHANGE) & (rows["attempts"].to_numpy() > 0)
        for grade, count in zip(
            *np.unique(rows["upstream_confidence"].to_numpy()[mine], return_counts=True), strict=True
        ):
            found[int(grade)] += int(count)
    return {Confidence(grade).name.lower(): round(count / found.total(), 5) for grade, count in sorted(found.items())}


@contextlib.contextmanager
def throttled(pid: int, share: float):
    """A process with so much of a core, in 10 ms of each 10 / share ms."""
    group = Path("/sys/fs/cgroup/cpu") / f"apicost-memory-{pid}"
    if not (group.parent / "cpu.cfs_quota_us").exists():
        sys.exit("--daemon-cpu needs the cgroup v1 cpu controller at /sys/fs/cgroup/cpu")
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(str(round(10_000 / share)))
        (group / "cpu.cfs_quota_us").write_text("10000")
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for task in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(task)
        group.rmdir()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--daemon-cpu", type=float, default=0.0)
    options = parser.parse_args()
    connections = 100
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = stack.enter_context(backend(folder / "backend"))
        cgroup = stack.enter_context(live.own_cgroup("apicost-memory"))
        config = live.write_config(folder, cgroup)
        sidecar = stack.enter_context(live.Sidecar(config))
        (folder / "gateway").mkdir()
        content = gateway.resources(Addresses(address), sidecar.plugin_metadata())
        served = stack.enter_context(gateway.Gateway(folder / "gateway", content, cgroup=cgroup))
        script = folder / "load.lua"
        script.write_text(SCRIPT.format(rate=options.rate))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{options.seconds}s", "-s", str(script)]
        url = f"http://127.0.0.1:{served.http_port}/"
        pid = int(str(sidecar.ready["pid"]))
        idle = resident_mb(pid)
        peak_mb(pid, begin=True)
        if options.daemon_cpu:
            stack.enter_context(throttled(pid, options.daemon_cpu))
        load = subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True)
        samples: list[float] = []
        started, cpu_before = time.monotonic(), cpu_s(pid)
        while load.poll() is None:
            samples.append(resident_mb(pid))
            time.sleep(EVERY_S)
        peak = peak_mb(pid)
        seconds, cpu = time.monotonic() - started, cpu_s(pid) - cpu_before
        text = load.stdout.read() if load.stdout else ""
        requests = int(re.search(r"(\d+) requests in", text).group(1))  # type: ignore[union-attr]
        waiting = 0.0
        if not options.daemon_cpu:
            sidecar.settle(requests)
        else:
            waiting = sidecar.metrics()["apicost_spool_rows"]
        began = time.monotonic()
        sidecar.stop()
        stop_s = time.monotonic() - began
        if options.daemon_cpu:
            finished(config)
        # The first minute warms caches up; then each third should look like the others.
        steady = samples[min(round(60 / EVERY_S), len(samples) // 3) :]
        third = max(1, len(steady) // 3)
        print(
            json.dumps(
                {
                    "requests": requests,
                    "requests_per_s": round(requests / seconds),
                    "calls_in_ledger": calls_in(folder / "state" / "ledger"),
                    "acknowledged_lines": acknowledged_in(folder / "state" / "ledger"),
                    "resident_mb_idle": round(idle, 1),
                    "resident_mb_peak": round(peak, 1),
                    "resident_mb_median": round(statistics.median(steady), 1),
                    "resident_mb_99_percent": round(statistics.quantiles(steady, n=100)[98], 1),
                    "resident_mb_first_third": round(sum(steady[:third]) / third, 1),
                    "resident_mb_last_third": round(sum(steady[-third:]) / third, 1),
                    "daemon_cpu_share_of_a_core": round(cpu / seconds, 3),
                    "seconds": round(seconds),
                    "spool_rows_at_the_end": int(waiting),
                    "stop_s": round(stop_s, 1),
                    "upstream_shares": upstream_shares(folder / "state" / "ledger"),
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
