"""CPU time of an installed APISIX's worker per request: the plugin, http-logger, and no logger, in turn.

Needs the `apisix` and `openresty` commands on PATH. One worker has three routes to the same service, alike but for the
logger, and windows of one second go to them in turn: workers differ by several microseconds in APISIX's own code,
depending on the traces that LuaJIT happens to make. Several workers, one after the other, each pinned to one core, load
and upstream on another. The sum of user and system time (/proc/PID/schedstat, ns), sending included; the medians of the
differences to the window without a logger.

    .venv/bin/python bench/plugin_cpu_apisix.py [WORKERS [WINDOWS]]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import plugin_cpu as plain  # the load, the upstream and the routes are the same

from apicost.demo.gateway import ApisixGateway, free_port

WORKER_CORE, LOAD_CORE = 0, 1
SINK = (
    "import http.server, sys; sys.path.insert(0, sys.argv[1]); import plugin_cpu; "
    "http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[2])), plugin_cpu.Sink).serve_forever()"
)


def one(gateway: ApisixGateway, worker: int, name: str) -> float:
    """Microseconds of the worker's CPU per request of a route, in one second; again where too few came through."""
    requests = 0
    while requests < 1000:
        before = plain.cpu_ns(worker)
        requests = plain.load(gateway.http_port, 1, target=f"/{name}{plain.PATH}")
    return (plain.cpu_ns(worker) - before) / requests / 1000


def one_worker(folder: Path, sink_port: int, windows: int) -> dict[str, list[float]]:
    """Microseconds per request of each window, by logger."""
    http = {"uri": f"http://127.0.0.1:{sink_port}/log", "batch_max_size": 1000, "inactive_timeout": 1}
    loggers: dict[str, dict[str, object]] = {
        "none": {}, "apicost": {"apicost-logger": {}}, "http_logger": {"http-logger": http},
    }  # fmt: skip
    port = free_port()
    up = folder / "upstream"
    up.mkdir()
    (up / "nginx.conf").write_text(plain.UPSTREAM_CONF.format(prefix=up, port=port))
    upstream = subprocess.Popen(["nginx", "-p", str(up), "-e", str(up / "error.log"), "-c", str(up / "nginx.conf")])
    prefix = folder / "gateway"
    prefix.mkdir()
    metadata = {"receiver": f"http://127.0.0.1:{sink_port}", "token": "bench", "node": "bench"}
    body = plain.content(f"127.0.0.1:{port}", None, {}, {**metadata, "spool_dir": str(prefix)})
    body["plugin_attr"] = {"prometheus": {"enable_export_server": False}}
    body["routes"] = [
        {"id": name, "name": name, "uri": f"/{name}/*", "host": "shop.example", "service_id": "shop",
         "plugins": {"key-auth": {}, **logger}}
        for name, logger in loggers.items()
    ]  # fmt: skip
    plugins = ["prometheus", "key-auth", "proxy-rewrite", "apicost-logger", "http-logger"]
    gateway = ApisixGateway(prefix, body, workers=1, plugins=plugins)
    try:
        gateway.start()
        (worker,) = gateway.worker_pids()
        os.sched_setaffinity(worker, {WORKER_CORE})
        for name in loggers:
            one(gateway, worker, name)
        measured: dict[str, list[float]] = {name: [] for name in loggers}
        for turn in range(windows):
            for name in list(loggers) if turn % 2 == 0 else reversed(list(loggers)):
                measured[name].append(one(gateway, worker, name))
        return measured
    finally:
        gateway.stop(timeout_s=3)
        upstream.terminate()
        upstream.wait()


def main() -> None:
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    windows = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    sink_port = free_port()
    arguments = [sys.executable, "-c", SINK, str(Path(__file__).parent), str(sink_port)]
    sink = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    os.sched_setaffinity(0, {LOAD_CORE})  # what is started here inherits it; the worker is pinned above
    os.sched_setaffinity(sink.pid, {LOAD_CORE})
    rows = []
    try:
        for _ in range(workers):
            with tempfile.TemporaryDirectory(prefix="apicost-bench-") as folder:
                measured = one_worker(Path(folder), sink_port, windows)
            row = {"none": statistics.median(measured["none"])}
            for name in ("apicost", "http_logger"):
                row[name] = statistics.median(
                    a - b for a, b in zip(measured[name], measured["none"], strict=True)
                )  # fmt: skip
            rows.append({name: round(value, 2) for name, value in row.items()})
    finally:
        sink.terminate()
        sink.wait()
    middle = {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
    print(
        json.dumps(
            {
                "figure": "plugin, CPU of an installed APISIX's worker per request",
                "windows_per_worker": windows,
                "us_without_logger_and_added_us_by_worker": rows,
                "median": middle,
                "ratio": round(middle["apicost"] / middle["http_logger"], 3),
                "ratio_by_worker": [round(row["apicost"] / row["http_logger"], 3) for row in rows],
                "target": "at most 8 us and 0.33 of a JSON-per-entry batch logger",
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
