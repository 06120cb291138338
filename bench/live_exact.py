"""HTTP/1.1 requests whose exchange has exactly the payload bytes of the client's own socket, live on this machine.

Clients with kept-alive connections send requests of mixed sizes through a gateway with the plugin, the probe on its
cgroup; every request has a path of its own, by which it is found in the ledger again.

    plain, tls   so many requests each, sizes from 0 B to 300 kB up and down
    early        plain and TLS: answers that the gateway gives without reading the body, POST without a key (401) and
                 to an unknown host (404), between ordinary requests
    abort        downloads that their client resets in the middle; only what it sent is compared, since the gateway
                 had sent more than the client took

    python bench/live_exact.py [--requests 20000]
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from apicost import config as configuration
from apicost import run as wiring
from apicost.core.clock import Clock
from apicost.demo import gateway, live, traffic
from apicost.demo.upstreams import Upstreams
from apicost.store import lake

CLIENTS = 8
SIZES = (0, 1, 37, 200, 900, 1_400, 1_500, 4_000, 16_384, 70_000, 300_000)
WEIGHTS = (10, 10, 10, 20, 20, 10, 10, 10, 5, 2, 0.5)
KEY = {"apikey": "acme-demo-key"}


def keepalive(address: tuple[str, int], tls: bool, number: int, requests: int, out: list[traffic.Sent]) -> None:
    """One client: a new connection every 500 requests."""
    rng = random.Random(number * 2 + tls)
    label = "tls" if tls else "plain"
    wire = None
    for index in range(requests):
        if index % 500 == 0:
            if wire is not None:
                wire.close()
            wire = traffic.Connection(address, tls=tls)
        up, down = rng.choices(SIZES, WEIGHTS, k=2)
        path = f"/v1/orders/{label}-{number}-{index}?size={down}"
        assert wire is not None
        if rng.random() < 0.5:
            out.append(traffic.request(wire, "GET", "shop.example", path, headers=KEY, kind=label))
        else:
            out.append(traffic.request(wire, "PUT", "shop.example", path, body=b"b" * up, headers=KEY, kind=label))
    if wire is not None:
        wire.close()


def early(address: tuple[str, int], tls: bool, number: int, requests: int, out: list[traffic.Sent]) -> None:
    """One client whose requests are answered early or given up, between others that are not."""
    rng = random.Random(number)
    label = "early tls" if tls else "early"
    wire = traffic.Connection(address, tls=tls)
    for index in range(requests):
        path = f"/v1/orders/early-{number}-{tls:d}-{index}"
        kind = rng.randrange(5)
        body = b"b" * rng.choice((200, 1_500, 16_384))
        try:
            if kind == 0:
                out.append(traffic.request(wire, "POST", "shop.example", path, body=body, kind=label))
            elif kind == 1:
                out.append(traffic.request(wire, "POST", f"no-{number}.example", path, body=body, kind=label))
            elif kind == 2 and index % 10 == 0 and not tls:
                out.append(traffic.abort(address, "shop.example", f"{path}?size=3000000", KEY, after_bytes=50_000))
            else:
                out.append(traffic.request(wire, "GET", "shop.example", path, headers=KEY, kind=label))
        except (ConnectionError, OSError):  # the gateway closed after an early answer: this request has no truth
            wire = traffic.Connection(address, tls=tls)
    wire.close()


def clients(target: object, arguments: list[tuple[object, ...]]) -> None:
    """Run them side by side."""
    threads = [threading.Thread(target=target, args=a) for a in arguments]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ledger_rows(config: Path) -> dict[str, tuple[int, int, int]]:
    """Path -> (payload in, payload out, confidence) of every request in the ledger, waits ended."""
    settings = configuration.load(config)
    knowledge = wiring.load_knowledge(settings.apis, settings.prices)
    with contextlib.closing(lake.Lake.open(settings.ledger_dir)) as ledger:
        pipeline = wiring.Pipeline(ledger, wiring.correlate_settings(settings), node=settings.node)
        pipeline.end_session(knowledge, Clock(mono_ns=time.monotonic_ns(), unix_ns=time.time_ns()))
    names = ["kind", "path", "downstream_in_payload_bytes", "downstream_out_payload_bytes", "downstream_confidence"]
    files = glob.glob(str(settings.ledger_dir / "**" / "exchanges-*.parquet"), recursive=True)
    table = pa.concat_tables([pq.ParquetFile(file).read(names) for file in files]).unify_dictionaries()
    columns = [table.column(name).to_pylist() for name in names]
    return {row[1]: row[2:] for row in zip(*columns, strict=True) if row[0] == 1}  # type: ignore[misc]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    sent: list[traffic.Sent] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        upstreams = stack.enter_context(Upstreams())
        cgroup = stack.enter_context(live.own_cgroup("apicost-exact"))
        config = live.write_config(folder, cgroup)
        sidecar = stack.enter_context(live.Sidecar(config))
        (folder / "gateway").mkdir()
        content = gateway.resources(upstreams, sidecar.plugin_metadata())
        with gateway.Gateway(folder / "gateway", content, cgroup=cgroup) as served:
            plain, secure = ("127.0.0.1", served.http_port), ("127.0.0.1", served.https_port)
            each = options.requests // CLIENTS
            clients(keepalive, [(plain, False, n, each, sent) for n in range(CLIENTS)])
            clients(keepalive, [(secure, True, n, each, sent) for n in range(CLIENTS)])
            clients(early, [(plain, False, n, each // 4, sent) for n in range(CLIENTS)])
            clients(early, [(secure, True, n, each // 4, sent) for n in range(CLIENTS)])
            sidecar.settle(len(sent))
        sidecar.stop()
        rows = ledger_rows(config)
    found: dict[str, dict[str, float]] = {}
    for kind in ("plain", "tls", "early", "early tls", "abort"):
        asked = [s for s in sent if s.kind == kind]
        right = claimed = wrong = 0
        for one in asked:
            got_in, got_out, confidence = rows.get(one.path, (-1, -1, -1))
            same = got_in == one.sent_bytes and (kind == "abort" or got_out == one.received_bytes)
            right += same
            claimed += confidence == 1
            wrong += confidence == 1 and not same
        if asked:
            found[kind] = {
                "requests": len(asked),
                "exact": right,
                "share": round(right / len(asked), 5),
                "claimed_exact": claimed,
                "claimed_exact_wrong": wrong,
            }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
