"""CPU time of the gateway's worker per request: the plugin, a JSON batch logger, and no logger, in turn.

One worker each, the same routes and upstream; load by wrk over keep-alive connections. Rounds alternate
between the gateways, so that what else the machine does falls on all of them. CPU time is the worker's own
(/proc/PID/schedstat, ns), so that waiting for a core does not count.

    .venv/bin/python bench/plugin_cpu.py [ROUNDS [SECONDS]]
"""

from __future__ import annotations

import http.server
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apicost.demo.gateway import Gateway, free_port

BENCH_LUA = Path(__file__).resolve().parent / "lua"
PATH = "/v1/orders/4711?page=2&sort=desc"
HEADERS = {
    "Host": "shop.example",
    "apikey": "acme-demo-key",
    "Authorization": "Bearer 0123456789abcdef0123456789abcdef",
    "User-Agent": "bench/1.0",
    "Accept": "application/json",
    "Content-Type": "application/json",
}
UPSTREAM_CONF = """
worker_processes 1;
daemon off;
pid {prefix}/nginx.pid;
error_log {prefix}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    client_body_temp_path {prefix}/b; proxy_temp_path {prefix}/p; fastcgi_temp_path {prefix}/f;
    uwsgi_temp_path {prefix}/u; scgi_temp_path {prefix}/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{ default_type application/json; return 200 "{{\\"id\\":4711}}"; }}
    }}
}}
"""


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes everything, answers 200."""

    protocol_version = "HTTP/1.1"
    got_bytes = 0
    got_lines = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Sink.got_bytes += len(body)
        if body.startswith(b'{"apicost"'):
            Sink.got_lines += body.count(b"\n") - 1
        answer = b'{"accepted":0,"refused":[],"duplicate":false}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def content(
    upstream: str, logger: str | None, conf: dict[str, object], metadata: dict[str, object]
) -> dict[str, object]:
    """One route with a consumer, a service and the logger as a global rule."""
    return {
        "routes": [
            {"id": "orders", "name": "orders", "uri": "/v1/orders/*", "host": "shop.example", "service_id": "shop",
             "plugins": {"key-auth": {}}}
        ],
        "services": [{"id": "shop", "name": "shop", "upstream": {"type": "roundrobin", "nodes": {upstream: 1}}}],
        "consumers": [{"username": "acme", "plugins": {"key-auth": {"key": "acme-demo-key"}}}],
        "global_rules": [{"id": "1", "plugins": {logger: conf}}] if logger else [],
        "plugin_metadata": [{"id": "apicost-logger", **metadata}],
    }  # fmt: skip


def cpu_ns(pid: int) -> int:
    """CPU time of a process so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def load(port: int, seconds: int, connections: int = 16, target: str = PATH) -> int:
    """Run wrk; returns the number of requests answered 2xx.

    Raises RuntimeError when any was not.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    for name, value in HEADERS.items():
        command += ["-H", f"{name}: {value}"]
    text = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{target}"], capture_output=True, text=True, check=True
    ).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    found = re.search(r"(\d+) requests in", text)
    assert found, text
    return int(found.group(1))


def one(gateway: Gateway, seconds: int) -> tuple[float, int]:
    """(microseconds of CPU per request, requests) of one round; a pause lets the last batch go out."""
    (worker,) = gateway.worker_pids()
    before = cpu_ns(worker)
    requests = load(gateway.http_port, seconds)
    time.sleep(1.3)
    return (cpu_ns(worker) - before) / requests / 1000, requests


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    metadata = {"receiver": f"http://127.0.0.1:{sink.server_port}", "token": "bench", "node": "bench"}
    loggers = {
        "none": (None, {}),
        "apicost": ("apicost-logger", {}),
        "json": ("json-batch-logger", {"port": sink.server_port, "fields": "usage"}),
        "json_log": ("json-batch-logger", {"port": sink.server_port, "fields": "log"}),
    }
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as folder:
        port = free_port()
        up = Path(folder) / "upstream"
        up.mkdir()
        (up / "nginx.conf").write_text(UPSTREAM_CONF.format(prefix=up, port=port))
        upstream = subprocess.Popen(["nginx", "-p", str(up), "-e", str(up / "error.log"), "-c", str(up / "nginx.conf")])
        gateways: dict[str, Gateway] = {}
        try:
            for name, (logger, conf) in loggers.items():
                prefix = Path(folder) / name
                prefix.mkdir()
                plugins = ["key-auth", "proxy-rewrite", "apicost-logger", "json-batch-logger"]
                body = content(f"127.0.0.1:{port}", logger, conf, {**metadata, "spool_dir": str(prefix)})
                gateways[name] = Gateway(
                    prefix, body, workers=1, plugins=plugins, more_lua=f"{BENCH_LUA}/?.lua;"
                ).start()
            for gateway in gateways.values():
                one(gateway, 1)
            Sink.got_lines = 0
            measured: dict[str, list[float]] = {name: [] for name in gateways}
            sent = 0
            for turn in range(rounds):
                names = list(gateways)
                for name in names if turn % 2 == 0 else reversed(names):
                    us, requests = one(gateways[name], seconds)
                    measured[name].append(us)
                    sent += requests if name == "apicost" else 0
            logs = gateways["apicost"].error_log.read_text()
        finally:
            for gateway in gateways.values():
                gateway.stop()
            upstream.terminate()
            upstream.wait()
    added = {
        name: statistics.median(a - b for a, b in zip(values, measured["none"], strict=True))
        for name, values in measured.items()
    }
    print(
        json.dumps(
            {
                "figure": "plugin, CPU of the worker per request",
                "rounds": rounds,
                "us_per_request": {name: round(statistics.median(values), 2) for name, values in measured.items()},
                "added_us": {name: round(value, 2) for name, value in added.items() if name != "none"},
                "spread_us": {name: [round(min(v), 2), round(max(v), 2)] for name, v in measured.items()},
                "ratio_to_json": round(added["apicost"] / added["json"], 3),
                "ratio_to_json_log": round(added["apicost"] / added["json_log"], 3),
                "target": "at most 8 us and 0.33 of a JSON-per-entry batch logger",
                "lines_expected": sent,
                "lines_received": Sink.got_lines,
                "error_log": logs[-500:],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
