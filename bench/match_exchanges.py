"""What naming costs the pipeline: rows of a correlation step named per second, and the memory it leaves behind.

usage: .venv/bin/python bench/match_exchanges.py

Traffic is generated from the sample documents: a batch of 100,000 rows, 20,000 distinct paths, one path in fifty
undocumented; then a million distinct undocumented paths in batches of 100,000. CPU time of this process. Prints one
JSON object. The resident set holds the generated batches too: what matters is that it does not grow.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from apicost.catalog.openapi import Source, load_apis
from apicost.core import records
from apicost.core.naming.match import name_exchanges

SPECS = Path(__file__).parents[1] / "specs"
ROWS = 100_000
TEXTS = {"method", "host", "path"}


def rss_mb() -> float:
    """Resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def joined(requests: list[tuple[str, str, str]]) -> pa.Table:
    """A JOINED batch of requests."""
    methods, hosts, paths = zip(*requests, strict=True)
    given = {"method": methods, "host": hosts, "path": paths}
    columns = {}
    for column in records.JOINED:
        if column.name in given:
            columns[column.name] = pa.array(given[column.name]).dictionary_encode()
        elif column.type == records.TEXT:
            columns[column.name] = pa.nulls(len(requests), pa.string()).dictionary_encode()
        elif column.type == pa.string():
            columns[column.name] = pa.nulls(len(requests), pa.string())
        else:
            columns[column.name] = pa.array(np.ones(len(requests), np.int64)).cast(column.type)
    return pa.table(columns, schema=records.schema(records.JOINED))


def main() -> None:
    """Measure and print."""
    sources = [Source(id=name, documents=(SPECS / f"{name}.yaml",)) for name in ("shop", "media")]
    index = load_apis(sources).index
    generator = random.Random(20261123)

    def request() -> tuple[str, str, str]:
        number = generator.randrange(20_000)
        if number % 50 == 0:
            return "GET", "shop.example", f"/v1/nothing/{number}"
        if number % 3 == 0:
            return "PUT", "media.example", f"/files/{number}.bin"
        return "GET", "shop.example", f"/v1/orders/{number}"

    batch = joined([request() for _ in range(ROWS)])
    spent = []
    for _ in range(10):
        start = time.process_time()
        name_exchanges(batch, index, node="bench")
        spent.append(time.process_time() - start)
    scans = []
    grown = []
    for step in range(10):
        paths = [("GET", "shop.example", f"/scan/{step}/{number}.php") for number in range(ROWS)]
        batch = joined(paths)
        del paths
        start = time.process_time()
        name_exchanges(batch, index, node="bench")
        scans.append(time.process_time() - start)
        grown.append(rss_mb())
    print(
        json.dumps(
            {
                "rows_per_s": round(ROWS / min(spent)),
                "share_of_a_core_at_100000_rows_per_s": round(min(spent) * 100_000 / ROWS, 3),
                "undocumented_rows_per_s": round(ROWS / min(scans)),
                "rss_mb_after_batches_of_distinct_undocumented_paths": [round(mb, 1) for mb in grown],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
