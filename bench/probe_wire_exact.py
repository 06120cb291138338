"""Figure: wire bytes of the probe against a packet capture of the same port. Target: 0 bytes difference.

An nginx in a cgroup and a network namespace of its own; clients across a veth pair whose segmentation
offload is off, so that the capture holds what a wire would. Every connection is compared on its own.

Packets that a cgroup program is never run for are counted from the capture and printed by reason, not
hidden in the difference: those that the kernel answers from a time-wait socket (the peer's FIN after the
server closed first, and its ACK), and those that arrive after a reset took the socket away.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from apicost.commands.probe import endpoint
from apicost.core.records import SnapshotKind
from apicost.ingest.probe import Options, Probe
from tests.kernel import lab

NGINX = """
daemon off; master_process on; worker_processes 2; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; client_max_body_size 64m; keepalive_requests 100000; client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    server {{
        listen {v4}:8080; listen [{v6}]:8080; listen {v4}:8443 ssl http2; listen [{v6}]:8443 ssl http2;
        ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;
        root {dir}/www;
        location /upload {{ return 200 "taken"; }}
    }}
}}
"""
SIZES = {"tiny": 100, "page": 200_000, "bulk": 4_000_000}


def request(sock, method: str, path: str, body: bytes = b"", close: bool = False) -> int:
    """One HTTP/1.1 exchange; returns the length of the answer's body."""
    words = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n"
    sock.sendall((words + ("Connection: close\r\n" if close else "") + "\r\n").encode() + body)
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    left = length - len(rest)
    while left > 0:
        left -= len(sock.recv(min(left, 1 << 20)))
    return length


def traffic(host: str, namespace: str, scale: float) -> dict[str, int]:
    """All kinds of it, from the client's namespace; returns how many connections each kind made."""

    def many(count: int) -> int:
        return max(2, int(count * scale))

    made: dict[str, int] = {}

    def connect(port: int = 8080):
        return socket.create_connection((host, port), timeout=60)

    with lab.inside(namespace):
        with connect() as sock:
            for _ in range(many(16)):
                request(sock, "GET", "/bulk")
        made["bulk"] = 1
        for _ in range(4):
            with connect() as sock:
                for _ in range(many(500)):
                    request(sock, "GET", "/tiny")
        made["small"] = 4
        for number in range(many(2_000)):
            with connect() as sock:
                request(sock, "GET", "/tiny", close=number % 2 == 1)
                if number % 2:  # the server closes first
                    sock.recv(1)
        made["churn"] = many(2_000)
        for _ in range(many(20)):  # the client's FIN comes when the server's socket is a time-wait one
            with connect() as sock:
                request(sock, "GET", "/tiny", close=True)
                sock.recv(1)
                time.sleep(0.06)  # longer than its delayed acknowledgement
        made["server_first"] = many(20)
        with connect() as sock:
            for _ in range(many(20)):
                request(sock, "POST", "/upload", b"z" * 1_000_000)
        made["uploads"] = 1
        for number in range(many(200)):
            sock = connect()
            sock.sendall(b"GET /bulk HTTP/1.1\r\nHost: test\r\n\r\n")
            sock.recv(10_000)
            if number % 2:  # a reset instead of a FIN
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        made["aborts"] = many(200)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for _ in range(many(30)):
            with context.wrap_socket(connect(8443)) as sock:
                request(sock, "GET", "/page")
                request(sock, "GET", "/tiny")
        made["tls"] = many(30)
    name = f"[{host}]" if ":" in host else host
    done = lab.run(
        "ip", "netns", "exec", namespace, "h2load", "-n", str(many(400)), "-c", "4", "-m", "10",
        f"https://{name}:8443/page",
    )  # fmt: skip
    assert f"{many(400)} succeeded" in done.stdout, done.stdout
    made["http2"] = 4
    return made


def compare(seen: dict, flows: list[dict]) -> dict:
    """Connection by connection; everything in bytes and packets."""
    by_client = defaultdict(list)
    for flow in sorted(flows, key=lambda row: row["born_mono_ns"]):
        address = endpoint(flow["peer_hi"], flow["peer_lo"], flow["peer_port"]).rpartition(":")[0].strip("[]")
        by_client[(address, flow["peer_port"], flow["local_port"])].append(flow)
    result = {
        "connections_captured": sum(map(len, seen.values())), "connections_probed": len(flows),
        "captured_bytes": 0, "in_difference_bytes": 0, "out_difference_bytes": 0, "packets_difference": 0,
        "payload_difference_bytes": 0, "resent_bytes": 0, "unseen": {}, "examples": [],
    }  # fmt: skip
    for key in set(seen) | set(by_client):
        uses, rows = seen.get(key, []), by_client.get(key, [])
        for number in range(max(len(uses), len(rows))):
            use = uses[number] if number < len(uses) else lab.Seen()
            row = rows[number] if number < len(rows) else defaultdict(int)
            late = {"in": [], "out": []}
            for way, packet in use.late:
                late[way].append(packet)
            late_bytes = {way: sum(p.wire_bytes for p in packets) for way, packets in late.items()}
            counted_late = use.late and (
                row["in_wire_bytes"] == use.in_wire_bytes + late_bytes["in"]
                and row["out_wire_bytes"] == use.out_wire_bytes + late_bytes["out"]
            )
            expected = {
                way: getattr(use, f"{way}_wire_bytes") + (late_bytes[way] if counted_late else 0) for way in late
            }
            packets = use.in_packets + use.out_packets + (len(use.late) if counted_late else 0)
            payload = use.in_payload_bytes + use.out_payload_bytes
            payload += sum(p.payload for _, p in use.late) if counted_late else 0
            if use.late and not counted_late:
                unseen = result["unseen"].setdefault(
                    use.late_reason, {"connections": 0, "packets": 0, "bytes": 0, "payload_bytes": 0}
                )
                unseen["connections"] += 1
                unseen["packets"] += len(use.late)
                unseen["bytes"] += sum(late_bytes.values())
                unseen["payload_bytes"] += sum(p.payload for _, p in use.late)
            gaps = {way: row[f"{way}_wire_bytes"] - expected[way] for way in late}
            result["captured_bytes"] += sum(expected.values())
            result["in_difference_bytes"] += abs(gaps["in"])
            result["out_difference_bytes"] += abs(gaps["out"])
            result["packets_difference"] += abs(row["in_packets"] + row["out_packets"] - packets)
            resent = row["in_resent_bytes"] + row["out_resent_bytes"]
            probed = row["in_payload_bytes"] + row["out_payload_bytes"] + resent
            result["resent_bytes"] += resent
            result["payload_difference_bytes"] += abs(probed - payload)
            if any(gaps.values()) and len(result["examples"]) < 3:
                result["examples"].append({"client": str(key), "gaps": gaps, "use": repr(use)[:1500]})
    return result


@contextlib.contextmanager
def gateway(wire: lab.Wire, folder: Path) -> Iterator[None]:
    """The nginx of this figure, running in a cgroup at the near end of the wire."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "www").mkdir()
        for file, size in SIZES.items():
            (root / "www" / file).write_bytes(b"x" * size)
        lab.run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
            "-keyout", f"{name}/key.pem", "-out", f"{name}/cert.pem",
        )  # fmt: skip
        (root / "nginx.conf").write_text(NGINX.format(dir=name, v4=wire.near_ipv4, v6=wire.near_ipv6))
        nginx = lab.start(["nginx", "-c", f"{name}/nginx.conf"], folder, wire.near)
        try:
            with lab.inside(wire.far):
                assert lab.until(lambda: _answers(wire.near_ipv4)), (root / "error.log").read_text()
            yield
        finally:
            lab.stop(nginx)


def measure(scale: float) -> dict:
    expression = "tcp port 8080 or tcp port 8443"
    with (
        lab.wire() as wire,
        lab.cgroup() as folder,
        gateway(wire, folder),
        Probe.open(Options(cgroup=folder)) as probe,
        lab.capture(wire.near, wire.near_device, expression) as captured,
    ):
        made = {"ipv4": traffic(wire.near_ipv4, wire.far, scale)}
        tables = [probe.read()]
        made["ipv6"] = traffic(wire.near_ipv6, wire.far, scale)
        captured.finish()
        tables += [probe.read(final=True)]
        losses = probe.losses()
        rows = [row for table in tables for row in table.to_pylist()]
        flows = {row["flow"]: row for row in rows if row["kind"] != SnapshotKind.TURN}
        seen: dict = {}
        for port in (8080, 8443):
            packets = (p for p in captured.packets() if port in (p.source_port, p.target_port))
            seen |= lab.connections(packets, port)
        result = compare(seen, [f for f in flows.values() if f["local_port"] in (8080, 8443)])
        return result | {"connections": made, "capture_dropped": captured.dropped, "losses": losses}


def _answers(host: str) -> bool:
    try:
        socket.create_connection((host, 8080), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full workload")
    outcome = measure(parser.parse_args().scale)
    outcome["target"] = "0 bytes difference, both directions"
    print(json.dumps(outcome, indent=1))
