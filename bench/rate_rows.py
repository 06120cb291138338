"""Ten million usage rows rated and exported to CSV by `apicost export`: CPU time and memory of the process.

The rows are generated: day rollups of one month over so many sets of dimensions (1,200 operations of 40 APIs,
consumers, status, scopes), every day with equally many of them. With `--sets` equal to `--rows` no two rows share
a key: each is charged by itself. The book is that of report_month.py: calls, egress and traffic between zones,
two graduated prices, a free allowance, a shared cost. All of it runs on one core.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import month_report_usage as month
import numpy as np
import report_month

from apicost.core import meter
from apicost.store import segments
from apicost.store.catalogue import DAY_S, Catalogue, add


def generate(folder, rows, sets):
    """A ledger of so many day rows."""
    rng = np.random.default_rng(2027)
    month.GROUPS = sets
    keys = month.dimensions(rng)
    # No two sets are the same: each consumer calls each operation, from one place and with one status.
    number = np.arange(sets)
    operation, consumer = (number % month.OPERATIONS).astype(np.int32), (number // month.OPERATIONS).astype(np.int32)
    parts = {"api": month.APIS, "operation_id": month.OPERATIONS, "method": 4, "path_template": month.OPERATIONS,
             "route_id": 200, "service_id": month.APIS}  # fmt: skip
    keys |= {name: (operation % count, keys[name][1]) for name, count in parts.items()}
    keys["consumer"] = (consumer, [f"consumer-{i}" for i in range(int(consumer.max()) + 1)])
    order = rng.permutation(sets)
    made = []
    with Catalogue.open(folder) as catalogue:
        for number, part in enumerate(np.array_split(np.arange(rows), month.DAYS)):
            day = month.MONTH + number * DAY_S
            group = order[part % sets]
            calls = rng.zipf(1.5, len(part)).clip(1, 10**6).astype(np.int64)
            table = meter.merge([month.table(np.full(len(part), day), group, calls, keys, rng)])
            by_api = np.lexsort([meter.records.codes(table, key)[0] for key in ("consumer", "api")])
            name = f"{segments.day_folder(day)}/usage-{DAY_S}-c000000001-1.parquet"
            made.append(segments.write(folder, name, "usage", day, table.take(by_api), grain_s=DAY_S))
        with catalogue.transaction() as change:
            add(change, made, month.MONTH)
    return {"rows_in_ledger": sum(s.row_count for s in made), "bytes_on_disk": sum(s.bytes for s in made)}


def measure(ledger, what, *more):
    """One export; its figures."""
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        book = Path(scratch) / "prices.yaml"
        book.write_text(report_month.BOOK.format(zone="UTC"))
        output = Path(scratch) / "out" / f"{what}.csv"
        arguments = ["export", what, "--month", "2026-11", "--ledger", str(ledger), "--prices", str(book), *more]
        figures = report_month.run([*arguments, "-o", str(output)], scratch)
        with open(output, "rb") as stream:
            figures["rows"] = sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b"")) - 1
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ledger", type=Path, help="use this ledger, made by an earlier run; made where missing")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--sets", type=int, default=450_000, help="sets of dimensions (default: %(default)s)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the exports', too
    figures = {"bench": "rate_rows", "cpus": os.cpu_count(), "sets_of_dimensions": options.sets}
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        folder = options.ledger or Path(scratch) / "ledger"
        if not folder.exists():
            began = time.process_time()
            figures |= generate(folder, options.rows, options.sets)
            figures["generating_cpu_s"] = round(time.process_time() - began)
        figures["charges"] = measure(folder, "charges")
        figures["usage"] = measure(folder, "usage")
        figures["usage by day"] = measure(folder, "usage", "--by", "day")
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
