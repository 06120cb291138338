"""Usage batches as a gateway worker would post them, for the receiver's benchmarks and tests.

A line here has what the plugin sends for an ordinary request: about 430 bytes, most of its values
repeated from line to line (routes, hosts, ciphers), its sizes and times not.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

SCHEMA = Path(__file__).parent.parent / "specs" / "usage-line.schema.json"
COLUMNS = [column["name"] for column in json.loads(SCHEMA.read_text())["x-columns"]]
BASE_MONO_NS = 8_000_000_000_000
BASE_UNIX_NS = 1_795_435_200_000_000_000  # 2026-11-23T12:00:00Z


def header(**changes: object) -> dict[str, object]:
    """The header of one batch; `pid` and `started_unix_ms` may be changed as well."""
    pid = changes.pop("pid", 4242)
    started = changes.pop("started_unix_ms", BASE_UNIX_NS // 1_000_000)
    return {
        "apicost": 1,
        "node": "gw-1",
        "worker": {"pid": pid, "started_unix_ms": started},
        "batch": 1,
        "first": 1,
        "count": 0,
        "dropped": 0,
        "base_mono_ns": BASE_MONO_NS,
        "base_unix_ns": BASE_UNIX_NS,
    } | changes


def line(**values: object) -> bytes:
    """One request line; what is not given has the value of a plain GET."""
    known = {
        "n": 0,
        "log_us": 1_000,
        "access_before_us": 700,
        "header_before_us": 90,
        "msec": f"{BASE_UNIX_NS / 1e9:.3f}",
        "request_time": "0.001",
        "connection": 7,
        "connection_requests": 1,
        "peer_addr": "10.1.2.3",
        "peer_port": 40_000,
        "local_addr": "10.0.0.1",
        "local_port": 9080,
        "http_version": "HTTP/1.1",
        "method": "GET",
        "host": "api.example.com",
        "path": "/v1/orders/17",
        "route_id": "orders",
        "status": 200,
        "response_source": "upstream",
        "request_bytes": 170,
        "response_bytes": 420,
        "response_body_bytes": 200,
        "upstream_scheme": "http",
        "upstream_addr": "10.0.1.1:8080",
        "upstream_status": "200",
        "upstream_bytes_sent": "180",
        "upstream_bytes_received": "410",
        "upstream_connect_time": "0.000",
        "upstream_response_time": "0.001",
        "request_id": "0123456789abcdef0123456789abcdef",
    } | values
    unknown = set(known) - set(COLUMNS)
    if unknown:
        raise ValueError(f"no such columns: {sorted(unknown)}")
    cells = (known.get(name, "") for name in COLUMNS)
    return b"\t".join(c if isinstance(c, bytes) else str(c).encode() for c in cells)


def body(head: dict[str, object], lines: list[bytes]) -> bytes:
    """Header and lines as they go over the wire."""
    return json.dumps(head).encode() + b"\n" + b"".join(text + b"\n" for text in lines)


def realistic(count: int, *, seed: int = 1, first: int = 1, retries: float = 0.0, **head: object) -> bytes:
    """One batch of `count` ordinary lines; `retries` is the share that took two tries upstream."""
    pick = random.Random(seed)
    lines = []
    for n in range(count):
        log_us = 1_000 + n * 180
        took_ms = pick.choice((1, 2, 3, 5, 8, 13, 40))
        sent, received = pick.randrange(150, 900), pick.randrange(200, 50_000)
        route = pick.randrange(12)
        tls = pick.random() < 0.6
        post = pick.random() < 0.3
        values: dict[str, object] = {
            "n": n,
            "log_us": log_us,
            "access_before_us": took_ms * 1_000,
            "header_before_us": 40 + pick.randrange(500),
            "msec": f"{(BASE_UNIX_NS + log_us * 1_000) / 1e9:.3f}",
            "request_time": f"{took_ms / 1e3:.3f}",
            "connection": 1_000 + pick.randrange(200),
            "connection_requests": 1 + n // 8,
            "peer_addr": f"10.{pick.randrange(4)}.{pick.randrange(16)}.{pick.randrange(250)}",
            "peer_port": pick.randrange(32_768, 61_000),
            "local_port": 9443 if tls else 9080,
            "method": "POST" if post else "GET",
            "path": f"/v1/{('orders', 'customers', 'items')[route % 3]}/{pick.randrange(5_000)}",
            "query_names": pick.choice(("", "", "limit&cursor", "expand")),
            "route_id": f"00000000000000{route:06d}",
            "route_name": f"shop-{route}",
            "service_id": f"svc-{route % 4}",
            "consumer": pick.choice(("", "acme", "globex", "initech")),
            "matched_uri": f"/v1/{('orders', 'customers', 'items')[route % 3]}/*",
            "request_bytes": sent,
            "response_bytes": received,
            "response_body_bytes": received - 190,
            "request_content_type": "application/json" if post else "",
            "content_length": pick.randrange(20, 600) if post else "",
            "response_content_type": "application/json",
            "upstream_addr": f"10.0.1.{route}:8080",
            "upstream_bytes_sent": sent + 30,
            "upstream_bytes_received": received - 20,
            "upstream_response_time": f"{took_ms / 1e3:.3f}",
            "auth_kinds": pick.choice(("", "bearer", "apikey")),
            "request_id": f"{pick.getrandbits(128):032x}",
        }
        if tls:
            values |= {
                "tls_version": "TLSv1.3",
                "tls_cipher": "TLS_AES_256_GCM_SHA384",
                "tls_read_bytes": sent + 700,
                "tls_written_bytes": received + 2_000,
            }
        if pick.random() < retries:
            values |= {
                "upstream_addr": f"10.0.1.99:8080, 10.0.1.{route}:8080",
                "upstream_status": "502, 200",
                "upstream_bytes_sent": f"0, {sent + 30}",
                "upstream_bytes_received": f"-, {received - 20}",
                "upstream_connect_time": "-, 0.000",
                "upstream_response_time": f"0.001, {took_ms / 1e3:.3f}",
            }
        lines.append(line(**values))
    return body(header(first=first, count=count, **head), lines)
