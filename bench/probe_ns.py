"""Figure: ns per packet that the probe adds, in situ. Target: 120 ns.

kernel.bpf_stats_enabled times each run of each program. An empty program is attached to the same hooks
of the same cgroup and sees the same packets; its time is that of the measuring and is taken off. Also
given: the cost of the sock_ops program, per call.

`mixed` is the traffic of probe_wire_exact (bulk, small, churn, uploads, aborts, TLS, HTTP/2 across a veth
pair); the others are single kinds on loopback, of which `keep_alive` is the worst there is: every second
packet ends a turn and writes a ring record.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from apicost.ingest import bpfsys
from apicost.ingest.probe import Options, Probe
from bench import probe_wire_exact
from tests.kernel import lab

CGROUP_SKB = 8
HOOKS = {"in": bpfsys.CGROUP_INET_INGRESS, "out": bpfsys.CGROUP_INET_EGRESS, "tcp": bpfsys.CGROUP_SOCK_OPS}

NGINX = """
daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 10000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;
    fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "0123456789"; }} location /bulk {{ root {dir}; }} }}
}}
"""


def load_empty() -> int:
    """Load `return 1` as a cgroup_skb program."""
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0))
    terms = ctypes.create_string_buffer(b"GPL")
    attr = bpfsys.attributes("IIQQIIQ", CGROUP_SKB, 2, ctypes.addressof(code), ctypes.addressof(terms), 0, 0, 0)
    return bpfsys.bpf(bpfsys.PROG_LOAD, attr)


def times(folder: Path) -> dict[str, dict[int, tuple[str, int, int]]]:
    """By hook: program id -> (name, ns, runs)."""
    place = os.open(folder, os.O_RDONLY)
    try:
        return {
            name: {i: bpfsys.program_info(i) for i in bpfsys.attached(place, hook)[1]} for name, hook in HOOKS.items()
        }
    finally:
        os.close(place)


def measure(seconds: int, rounds: int) -> dict:
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before_value = switch.read_text()
    kinds: dict[str, list[dict[str, float]]] = {"keep_alive": [], "connections": [], "bulk": []}
    with lab.cgroup() as folder, tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        port = _free_port()
        Path(name, "nginx.conf").write_text(NGINX.format(dir=name, port=port))
        Path(name, "bulk").write_bytes(b"x" * 1_000_000)
        nginx = lab.start(["nginx", "-c", f"{name}/nginx.conf"], folder)
        empty = load_empty()
        links = []
        try:
            switch.write_text("1")
            with Probe.open(Options(cgroup=folder)) as probe:
                place = os.open(folder, os.O_RDONLY)
                links = [bpfsys.link(empty, place, HOOKS[way]) for way in ("in", "out")]
                os.close(place)
                for _ in range(rounds):
                    for kind, found in kinds.items():
                        start = times(folder)
                        _load(kind, port, seconds, probe)
                        found.append(difference(start, times(folder)))
                lost = probe.losses()
        finally:
            switch.write_text(before_value)
            for link in links:
                os.close(link)
            os.close(empty)
            lab.stop(nginx)
    kinds["mixed"] = mixed(max(rounds // 2, 1))
    result: dict = {"target_ns": 120}
    for kind, found in kinds.items():
        result[kind] = {field: round(statistics.median(row[field] for row in found), 1) for field in found[0]}
        result[kind]["least_ns_per_packet"] = round(min(row["ns_per_packet"] for row in found), 1)
    result["ring_lost"] = lost["ring_lost"]
    return result


def mixed(rounds: int) -> list[dict[str, float]]:
    """The same for all kinds of traffic across a wire."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before_value, found = switch.read_text(), []
    with (
        lab.wire() as wire,
        lab.cgroup() as folder,
        probe_wire_exact.gateway(wire, folder),
        Probe.open(Options(cgroup=folder)) as probe,
    ):
        empty, place = load_empty(), os.open(folder, os.O_RDONLY)
        links = [bpfsys.link(empty, place, HOOKS[way]) for way in ("in", "out")]
        done = threading.Event()

        def read() -> None:
            while not done.wait(0.1):
                probe.read()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            switch.write_text("1")
            for _ in range(rounds):
                start = times(folder)
                for host in (wire.near_ipv4, wire.near_ipv6):
                    probe_wire_exact.traffic(host, wire.far, 1.0)
                found.append(difference(start, times(folder)))
        finally:
            switch.write_text(before_value)
            done.set()
            reader.join()
            for descriptor in (*links, empty, place):
                os.close(descriptor)
    return found


def difference(start: dict, end: dict) -> dict[str, float]:
    def of(hook: str, name: str) -> tuple[int, int]:
        ns = runs = 0
        for number, (title, total, count) in end[hook].items():
            if title == name and number in start[hook]:
                ns += total - start[hook][number][1]
                runs += count - start[hook][number][2]
        return ns, runs

    found: dict[str, float] = {}
    spent = runs = 0
    for way in ("in", "out"):
        ours, count = of(way, f"flow_{way}")
        base, base_count = of(way, "")
        net = ours - base * count / max(base_count, 1)
        found[f"{way}_ns"] = net / max(count, 1)
        spent, runs = spent + net, runs + count
        found["empty_ns"] = base / max(base_count, 1)
    found["ns_per_packet"] = spent / max(runs, 1)
    found["packets"] = runs
    tcp, calls = of("tcp", "flow_tcp")
    found["sock_ops_ns_per_call"] = tcp / max(calls, 1)
    return found


def _load(kind: str, port: int, seconds: int, probe: Probe) -> None:
    """Requests for a while, with the ring read meanwhile as the daemon would."""
    url = f"http://127.0.0.1:{port}/{'bulk' if kind == 'bulk' else ''}"
    extra = ["-H", "Connection: close"] if kind == "connections" else []
    wrk = lab.start(["wrk", "-t1", "-c32", f"-d{seconds}s", *extra, url], stdout=subprocess.DEVNULL)
    while wrk.poll() is None:
        probe.read()
        time.sleep(0.1)


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.seconds, asked.rounds), indent=1))
