"""How many sampled bodies a second go the whole way: parsed as posted, over the pipe, checked in the child, as rows.

usage: .venv/bin/python bench/samples_speed.py [SAMPLES]

Two workloads of POST /v1/orders of specs/shop.yaml with both bodies, values different each time: `conforming`, and
`deviating` where each tenth request body and each fifth response body does not fit. Batches of 50 samples. A cap of
posts and a queue stand before this in the sidecar; here they never are the limit.

Prints one JSON object: samples per second of CPU time, of the child (the limit: it has one core) and of the sidecar's
side, and by the clock; the child's memory.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apicost.catalog.openapi import Source
from apicost.catalog.sample_host import SampleHost, sample_table
from apicost.ingest.samples import SampleQueue, parse_samples
from bench.samples_workload import body, sample

SHOP = Source(id="shop", documents=(Path(__file__).parents[1] / "specs" / "shop.yaml",), service_ids=("shop",))
BATCH = 50


def posts(count: int, deviating: bool, first_batch: int) -> list[bytes]:
    """Bodies as a gateway posts them."""
    made = []
    for start in range(0, count, BATCH):
        batch = []
        for number in range(start, start + BATCH):
            lines = [{"sku": f"S-{number}-{i}", "count": i + 1} for i in range(number % 4 + 1)]
            sent = {"lines": lines if number % 10 or not deviating else "none", "note": "n" * (number % 90)}
            status = "open" if number % 5 or not deviating else "gone"
            got = {"id": f"o{number}", "status": status, "lines": lines, "total": f"{number}.00"}
            batch.append(sample(number + 1, sent, got))
        made.append(body(batch, batch=first_batch + start // BATCH))
    return made


def child_cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def through(host: SampleHost, queue: SampleQueue, made: list[bytes], count: int) -> dict[str, float]:
    """Rates of one workload."""
    checked_before, results = host.counts["checked"], []
    child = host._child
    child_before = child_cpu_s(child.pid) if child else 0.0
    own_before, clock_before = time.process_time(), time.monotonic()
    for one in made:
        batch = parse_samples(one, time.time_ns())
        while queue.samples > 1_000:
            time.sleep(0.002)
        queue.offer(batch)
    while host.counts["checked"] - checked_before < count:
        time.sleep(0.005)
    while len(results) < len(made):
        results += host.take()
    table = sample_table(rows for _, rows in results)
    own_s, clock_s = time.process_time() - own_before, time.monotonic() - clock_before
    assert host._child is not None
    child_s = child_cpu_s(host._child.pid) - child_before
    return {
        "per_child_cpu_s": round(count / child_s),
        "per_sidecar_cpu_s": round(count / own_s),
        "per_clock_s": round(count / clock_s),
        "rows": table.num_rows,
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    queue = SampleQueue(max_bytes=64 << 20)
    host = SampleHost(queue)
    host.start([SHOP])
    try:
        began = time.monotonic()
        through(host, queue, posts(BATCH, False, 1), BATCH)
        figures: dict[str, object] = {"samples": count, "first_answer_after_s": round(time.monotonic() - began, 2)}
        for place, (name, deviating) in enumerate((("conforming", False), ("deviating", True))):
            figures[name] = through(host, queue, posts(count, deviating, 1_000_000 * (place + 1)), count)
        assert host._child is not None
        status = Path(f"/proc/{host._child.pid}/status").read_text()
        figures |= {
            "child_resident_mb": round(int(status.split("VmHWM:")[1].split()[0]) / 1024),
            "child_address_space_mb": round(int(status.split("VmPeak:")[1].split()[0]) / 1024),
        }
    finally:
        host.stop()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
