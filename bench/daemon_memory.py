"""Memory of the sidecar at a steady rate of real requests, and whether it stays flat.

A gateway with the plugin in a cgroup with the probe, an nginx that answers behind it, wrk in front with a delay
per connection that makes the rate. The daemon's resident set is read once a second.

    python bench/daemon_memory.py [--rate 5000] [--seconds 600]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from apicost.demo import gateway, live

BACKEND = """daemon off; pid {folder}/backend.pid; error_log {folder}/backend.log; worker_processes 1;
events {{ worker_connections 2048; }}
http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{body}"; }} }} }}
"""
SCRIPT = """local n = 0
function delay() return {delay_ms} end
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


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=600)
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
        script.write_text(SCRIPT.format(delay_ms=round(1000 * connections / options.rate)))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{options.seconds}s", "-s", str(script)]
        url = f"http://127.0.0.1:{served.http_port}/"
        pid = int(str(sidecar.ready["pid"]))
        load = subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True)
        samples: list[float] = []
        started, cpu_before = time.monotonic(), cpu_s(pid)
        while load.poll() is None:
            samples.append(resident_mb(pid))
            time.sleep(1)
        seconds, cpu = time.monotonic() - started, cpu_s(pid) - cpu_before
        text = load.stdout.read() if load.stdout else ""
        requests = int(re.search(r"(\d+) requests in", text).group(1))  # type: ignore[union-attr]
        metrics = sidecar.settle(requests)
        # The first minute warms caches up; then each third should look like the others.
        steady = samples[min(60, len(samples) // 3) :]
        third = max(1, len(steady) // 3)
        print(
            json.dumps(
                {
                    "requests": requests,
                    "requests_per_s": round(requests / seconds),
                    "calls_in_ledger": int(metrics["apicost_calls_total"]),
                    "resident_mb_max": round(max(samples), 1),
                    "resident_mb_first_third": round(sum(steady[:third]) / third, 1),
                    "resident_mb_last_third": round(sum(steady[-third:]) / third, 1),
                    "daemon_cpu_share_of_a_core": round(cpu / seconds, 3),
                    "seconds": round(seconds),
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
