"""Figure: CPU per proxied request with the probe on, against off. Target: +2 % at most.

An nginx that proxies over kept-alive upstream connections, in a cgroup, under steady load by wrk. The
probe's programs are attached and detached every few hundred milliseconds; each on-window is compared
with the off-windows around it. CPU is that of the gateway's cgroup (cpu.stat) by request that nginx counted
(stub_status). On loopback the kernel runs the receiving side of a packet in the sender's time, so the same
is given for gateway, client and upstream together. `programs_us_per_request` is the time inside the
programs by the kernel's own watch (kernel.bpf_stats_enabled) less that of an empty program, from windows of its own.

The gateway is a bare nginx, about the cheapest there is. With `--plugins` it is one that does a gateway's work: the
host for APISIX plugins with key-auth and apicost-logger, its lines going to a sidecar that is running beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from apicost.demo import gateway as demo_gateway
from apicost.demo import live
from apicost.ingest import bpfsys
from apicost.ingest.probe import Options, Probe
from bench.probe_ns import _free_port, difference, load_empty, times
from tests.kernel import lab

HEAD = """
daemon off; worker_processes 1; pid {dir}/{name}.pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 100000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;
    fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
"""
UPSTREAM = HEAD + (
    "    server {{ listen 127.0.0.1:{port}; location / {{ root {dir}; }}"
    " location /v1/ {{ rewrite ^ /file break; root {dir}; }} location = /status {{ stub_status; }} }}\n}}\n"
)
GATEWAY = HEAD + (
    "    upstream backend {{ server 127.0.0.1:{backend}; keepalive 64; keepalive_requests 100000000; }}\n"
    "    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://backend; proxy_http_version 1.1;"
    ' proxy_set_header Connection ""; }} location = /status {{ stub_status; }} }}\n}}\n'
)


def spent_us(*folders: Path) -> int:
    return sum(int(re.search(r"usage_usec (\d+)", (f / "cpu.stat").read_text()).group(1)) for f in folders)


def requests_of(port: int) -> int:
    """How many requests the gateway has taken, this one included."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10).read().decode()
    return int(text.splitlines()[2].split()[2])


class Switch:
    """Attaches and detaches the programs of a probe that is open."""

    def __init__(self, probe: Probe, gateway: Path) -> None:
        self.gateway = os.open(gateway, os.O_RDONLY)
        self.programs = {}
        for hook in (bpfsys.CGROUP_INET_INGRESS, bpfsys.CGROUP_INET_EGRESS, bpfsys.CGROUP_SOCK_OPS):
            (number,) = bpfsys.attached(self.gateway, hook)[1]
            self.programs[hook] = bpfsys.bpf(bpfsys.PROG_GET_FD_BY_ID, bpfsys.attributes("III", number, 0, 0))
        for name in ("flow_in", "flow_out", "flow_tcp"):
            os.close(probe._descriptors.pop(name))
        self.links: list[int] = []

    def set(self, on: bool) -> None:
        while self.links:
            os.close(self.links.pop())
        if on:
            self.links = [bpfsys.link(program, self.gateway, hook) for hook, program in self.programs.items()]


def window(port: int, seconds: float, gateway: Path, others: list[Path], probe: Probe) -> tuple[float, float]:
    """(gateway's, everyone's) CPU in us per request."""
    start, before = requests_of(port), (spent_us(gateway), spent_us(gateway, *others))
    time.sleep(seconds)
    end, after = requests_of(port), (spent_us(gateway), spent_us(gateway, *others))
    probe.read()
    return (after[0] - before[0]) / (end - start), (after[1] - before[1]) / (end - start)


def inside_programs(port: int, seconds: float, gateway: Path) -> tuple[float, float]:
    """(us inside the packet programs by bpf_stats, less an empty program's; packets) per request."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    was = switch.read_text()
    empty, place = load_empty(), os.open(gateway, os.O_RDONLY)
    links = [bpfsys.link(empty, place, hook) for hook in (bpfsys.CGROUP_INET_INGRESS, bpfsys.CGROUP_INET_EGRESS)]
    try:
        switch.write_text("1")
        start, before = requests_of(port), times(gateway)
        time.sleep(seconds)
        end, after = requests_of(port), times(gateway)
    finally:
        switch.write_text(was)
        for descriptor in (*links, empty, place):
            os.close(descriptor)
    found = difference(before, after)
    per_request = found["packets"] / (end - start)
    return found["ns_per_packet"] * per_request / 1e3, per_request


class OneBackend:
    """Looks like the demo's upstreams, all of them the one server."""

    def __init__(self, port: int) -> None:
        self.good = self.closing = self.refusing = f"127.0.0.1:{port}"


def with_plugins(folder: Path, backend: int, cgroup: Path, stack: contextlib.ExitStack) -> int:
    """Start a sidecar (without a probe) and a gateway with plugins; returns the gateway's port."""
    config = live.write_config(folder, None)
    sidecar = stack.enter_context(live.Sidecar(config))
    (folder / "gateway").mkdir()
    content = demo_gateway.resources(OneBackend(backend), sidecar.plugin_metadata())
    served = demo_gateway.Gateway(folder / "gateway", content, cgroup=cgroup, workers=1)
    return stack.enter_context(served).http_port


def middle_mean(values: list[float]) -> tuple[float, float]:
    """(mean of the middle half, its standard error by drawing anew): other work disturbs single windows."""

    def mean(drawn: list[float]) -> float:
        quarter = len(drawn) // 4
        return statistics.mean(sorted(drawn)[quarter : len(drawn) - quarter])

    draw = random.Random(1)
    return mean(values), statistics.stdev(mean(draw.choices(values, k=len(values))) for _ in range(500))


def measure(seconds: float, windows: int, plugins: bool) -> dict:
    with (
        lab.cgroup() as gateway, lab.cgroup() as client, lab.cgroup() as upstream,
        tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack,
    ):  # fmt: skip
        os.chmod(name, 0o755)
        Path(name, "file").write_bytes(b"x" * 1_000)
        backend, port = _free_port(), _free_port()
        Path(name, "u.conf").write_text(UPSTREAM.format(dir=name, port=backend, name="u"))
        Path(name, "g.conf").write_text(GATEWAY.format(dir=name, port=port, backend=backend, name="g"))
        running = [lab.start(["nginx", "-c", f"{name}/u.conf"], upstream)]
        if plugins:
            port = with_plugins(Path(name), backend, gateway, stack)
            ask = ["-H", "Host: shop.example", "-H", "apikey: acme-demo-key", f"http://127.0.0.1:{port}/v1/orders/17"]
        else:
            running.append(lab.start(["nginx", "-c", f"{name}/g.conf"], gateway))
            ask = [f"http://127.0.0.1:{port}/file"]
        counted = backend  # every request reaches the upstream, whose nginx counts it
        others = [client, upstream]
        try:
            time.sleep(0.5)
            wrk = ["wrk", "-t1", "-c32", "-d3600s", *ask]
            running.append(lab.start(wrk, client, stdout=subprocess.DEVNULL))
            with Probe.open(Options(cgroup=gateway)) as probe:
                switch = Switch(probe, gateway)
                time.sleep(1)
                series = []
                for number in range(2 * windows + 1):
                    switch.set(bool(number % 2))
                    series.append(window(counted, seconds, gateway, others, probe))
                switch.set(True)
                inside = []
                for _ in range(9):
                    inside.append(inside_programs(counted, seconds, gateway))
                    probe.read()
                switch.set(False)
        finally:
            for process in reversed(running):
                lab.stop(process)
    result: dict = {"target": "+2 %", "windows": windows, "plugins": plugins}
    for which, label in ((0, "gateway"), (1, "gateway_client_upstream")):
        values = [row[which] for row in series]
        extra = [values[i] - (values[i - 1] + values[i + 1]) / 2 for i in range(1, len(values), 2)]
        off = statistics.median(values[::2])
        middle, error = middle_mean(extra)
        result[label] = {
            "off_us_per_request": round(off, 2),
            "on_us_per_request": round(statistics.median(values[1::2]), 2),
            "extra_us_per_request": round(statistics.median(extra), 2),
            "extra_percent": round(100 * statistics.median(extra) / off, 2),
            "middle_mean_extra_percent": round(100 * middle / off, 2),
            "standard_error_percent": round(100 * error / off, 2),
        }
    result["programs_us_per_request"] = round(statistics.median(row[0] for row in inside), 2)
    result["packets_per_request"] = round(statistics.median(row[1] for row in inside), 1)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a window")
    parser.add_argument("--windows", type=int, default=100, help="on-windows")
    parser.add_argument("--plugins", action="store_true", help="a gateway that does a gateway's work")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.seconds, asked.windows, asked.plugins), indent=1))
