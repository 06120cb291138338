"""So many charges as FOCUS cost and usage, 1.2 and 1.4: CPU time of making the rows, of writing them as CSV and of the
project's own linter over them and over the file, and the memory that this adds to the bill's own.

The month is generated: sets of 40 APIs, 1,200 operations, consumers, statuses and scopes, each its own charges by the
price book below: calls in two tiers, egress with a free allowance and two tiers in dollars, backends, a shared cost.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa

from apicost.catalog import prices
from apicost.core import records
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.report import csvfile
from apicost.report.export import ApiInfo
from apicost.report.focus import rows
from apicost.report.focus.lint import Linter
from apicost.report.focus.lint_files import lint_file

BOOK = """
pricebook: {id: bench, version: '1', currency: EUR, calendar: {time_zone: UTC}}
fx: [{from: USD, to: EUR, period: 2026-10, rate: "0.8642", locked: true}]
scopes: {internal: {peers: ["10.0.0.0/8"]}, internet: {peers: ["0.0.0.0/0"]}}
skus:
  call: {meter: calls, unit: 1000 Requests, prices: [{from: 2026-01-01, mode: graduated,
    tiers: [{up_to: "300000", price: "0.0010"}, {up_to: null, price: "0.0009"}]}]}
  egress: {meter: bytes, where: {direction: egress, scope: internet}, unit: GB, free: {quantity: "100",
    share: pro_rata}, prices: [{from: 2026-01-01, mode: graduated, currency: USD,
    tiers: [{up_to: "10240", price: "0.09"}, {up_to: null, price: "0.085"}]}]}
  inside: {meter: bytes, where: {leg: upstream}, both_directions: true, unit: GB,
    prices: [{from: 2026-01-01, mode: flat, price: "0.01"}]}
shared_costs: [{id: nodes, amount: "812.40", period: monthly, method: by-weight, weights: {calls: "0.5", bytes: "0.5"},
  idle: {keep_unallocated: "0.30"}, fallback_when_zero: unallocated}]
"""
APIS, OPERATIONS, CHARGES_PER_SET = 40, 1_200, 8


def bill(charges):
    """A bill of about so many charges."""
    random = np.random.default_rng(14)
    sets = charges // CHARGES_PER_SET
    number = np.arange(sets)
    operation, consumer = number % OPERATIONS, number // OPERATIONS

    def text(code, name):
        return records.text(code.astype(np.int32), [f"{name}-{i}" for i in range(int(code.max()) + 1)])

    calls = random.zipf(1.5, sets).clip(1, 10**6).astype(np.int64)
    book = prices.parse(BOOK)
    when = period.month("2026-10", "UTC")
    scope = records.text((number % 7 == 0).astype(np.int32), ["internet", "internal"])
    out = calls * random.integers(500, 20_000, sets)
    zero = pa.array(np.zeros(sets, np.int64))
    usage = pa.table(dict.fromkeys(rate.sums_needed(book), zero) | {
        "minute_unix_s": pa.array(np.full(sets, when.start_unix_s)),
        "api": text(operation % APIS, "api"), "operation_id": text(operation, "operation"),
        "method": text(operation % 4, "METHOD"), "path_template": text(operation, "/v1/things"),
        "match_state": text(number * 0, "matched"), "consumer": text(consumer, "consumer"),
        "route_id": text(operation % 200, "route"), "service_id": text(operation % APIS, "service"),
        "status_class": text(number % 3, "status"), "scope": scope, "calls": pa.array(calls),
        "downstream_out_wire_bytes": pa.array(out), "upstream_in_wire_bytes": pa.array(out),
        "upstream_out_wire_bytes": pa.array(calls * 700),
    })  # fmt: skip
    return Bill(statement=rate.rate(usage, book, when))


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(made, version, folder):
    """CPU seconds of the rows alone, of the CSV and of the linter."""
    apis = {f"api-{i}": ApiInfo(title=f"API {i}", team=f"team-{i % 9}", tags={"env": "prod"}) for i in range(APIS)}
    started = time.process_time()
    count = sum(len(piece) for piece in rows.pieces(made, apis, version))
    rows_s = time.process_time() - started
    started = time.process_time()
    file = folder / "focus.csv"
    size = csvfile.write(file, rows.columns(version), rows.pieces(made, apis, version))
    csv_s = time.process_time() - started
    started = time.process_time()
    findings, _ = lint_file(file, version, made.total)
    file_s = time.process_time() - started
    file.unlink()
    started = time.process_time()
    linter = Linter(version, made.total)
    for piece in rows.pieces(made, apis, version):
        linter.feed(piece)
    found = linter.finish()
    return {
        "rows": count, "findings": len(found) + len(findings),
        "rows_cpu_s": round(rows_s, 1), "csv_cpu_s": round(csv_s, 1),
        "rows_and_lint_cpu_s": round(time.process_time() - started, 1), "csv_bytes": size,
        "lint_of_the_file_cpu_s": round(file_s, 1),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--charges", type=int, default=1_000_000, help="default: %(default)s")
    options = parser.parse_args()
    made = bill(options.charges)
    figures = {"bench": "focus_export", "cpus": os.cpu_count(), "charges": len(made), "bill_mb": round(megabytes())}
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as folder:
        for version in ("1.2", "1.4"):
            figures[version] = measure(made, version, Path(folder))
    figures["peak_mb"] = round(megabytes())
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
