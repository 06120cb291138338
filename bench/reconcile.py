"""A bill of a million lines against a month by `apicost reconcile`: CPU time and memory of the process.

The bill is generated: an AWS Cost and Usage Report with hourly lines of many resources, gzipped CSV or Parquet with
binary floats as AWS writes them, a tenth of it not the gateway's and a twentieth that no rule maps. The ledger is
small: what is measured is reading the bill, its rules, and the bridge. One bill has a unit price of its own for each
line: nothing can be added up as it is read.
"""

import argparse
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apicost.core.rating import period
from apicost.store.lake import Lake
from tests.usage_months import usage

BOOK = """pricebook: {id: bench, version: '1', currency: USD, calendar: {time_zone: Europe/Berlin}}
scopes:
  inter-zone: {peers: ["10.0.0.0/8"]}
  internet: {peers: ["0.0.0.0/0"]}
skus:
  net: {meter: bytes, unit: GiB, where: {direction: egress, scope: internet}, prices: [{from: 2026-01-01, mode:
    graduated, tiers: [{up_to: "10240", price: "0.09"}, {up_to: null, price: "0.085"}]}]}
  zone: {meter: bytes, unit: GiB, where: {direction: egress, scope: inter-zone}, prices: [{from: 2026-01-01, mode: flat,
    price: "0.01"}]}
"""
RULES = """groups: {egress: [net, zone]}
rules:
  - {match: {line_item_resource_id: "i-other*"}, sku: net, unit: GiB, other_hosts: true}
  - {use: aws-internet-egress, sku: net}
  - {use: aws-inter-zone, sku: zone}
  - {match: {line_item_product_code: AmazonS3}, ignore: storage}
"""
PIECE = 50_000


def pieces(lines, distinct, seed=7):
    """The bill's lines as columns of text, some at a time."""
    rng = np.random.default_rng(seed)
    for first in range(0, lines, PIECE):
        count = min(PIECE, lines - first)
        number = np.arange(first, first + count)
        kind = rng.choice(4, count, p=[0.55, 0.3, 0.1, 0.05])
        day, hour = number // 24 % 30 + 1, number % 24
        start = [f"2026-11-{d:02}T{h:02}:00:00.000Z" for d, h in zip(day.tolist(), hour.tolist(), strict=True)]
        amount = rng.integers(1, 5 * 10**9, count).tolist()  # 10**-10 GiB
        price = [["0.0900000000", "0.0100000000", "0.0230000000", "0.2000000000"][k] for k in kind.tolist()]
        if distinct:
            price = [f"0.09{n:08}" for n in number.tolist()]
        quantity = [Decimal(a).scaleb(-10) for a in amount]
        cost = [str((q * Decimal(p)).quantize(Decimal("1e-10"))) for q, p in zip(quantity, price, strict=True)]
        other = rng.random(count) < 0.1
        yield {
            "identity_line_item_id": [f"{n:052x}" for n in number.tolist()],
            "identity_time_interval": [f"{s[:-5]}Z/{s[:11]}23:59:59Z" for s in start],
            "bill_billing_period_start_date": ["2026-11-01T00:00:00.000Z"] * count,
            "bill_billing_period_end_date": ["2026-12-01T00:00:00.000Z"] * count,
            "line_item_line_item_type": ["Usage"] * count,
            "line_item_usage_start_date": start,
            "line_item_product_code": [
                ["AWSDataTransfer", "AWSDataTransfer", "AmazonS3", "AWSLambda"][k] for k in kind
            ],
            "line_item_usage_type": [
                ["EUC1-DataTransfer-Out-Bytes", "EUC1-DataTransfer-Regional-Bytes", "Storage", "Lambda-GB"][k]
                for k in kind
            ],
            "line_item_resource_id": [
                f"i-other{n % 97}" if o else f"i-gateway{n % 11}" for n, o in zip(number.tolist(), other, strict=True)
            ],
            "line_item_usage_amount": [str(q) for q in quantity],
            "line_item_currency_code": ["USD"] * count,
            "line_item_unblended_rate": price,
            "line_item_unblended_cost": cost,
            "pricing_unit": ["GB"] * count,
            "product_description": [f"something that nobody asks for, {n}" for n in number.tolist()],
        }


def write(path, lines, form, distinct):
    """The bill as a file."""
    if form == "parquet":
        writer = None
        for columns in pieces(lines, distinct):
            for name in ("line_item_usage_amount", "line_item_unblended_cost"):
                columns[name] = [float(text) for text in columns[name]]
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        writer.close()
        return
    with gzip.open(path, "wb", compresslevel=1) as packed, io.TextIOWrapper(packed, newline="") as stream:
        writer = csv.writer(stream)
        for number, columns in enumerate(pieces(lines, distinct)):
            if not number:
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def measure(folder, bill):
    """One run; its figures."""
    command = [sys.executable, "-c", "import sys; from apicost.cli import main; sys.exit(main())", "reconcile",
               "--ledger", folder / "ledger", "--prices", folder / "prices.yaml", "--rules", folder / "rules.yaml",
               "--month", "2026-11", "--json", "-o", folder / "out.json", "--bill", bill]  # fmt: skip
    began = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], cwd=Path(__file__).parent.parent)
    _, status, used = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - began
    assert os.waitstatus_to_exitcode(status) == 1, "the bridge has a difference"
    found = json.loads((folder / "out.json").read_text())
    exact = sum(Decimal(row["amount"]) for row in found["rows"])
    assert exact == Decimal(found["difference"]), "the bridge does not sum"
    return {
        "lines": found["bill"]["lines"], "file_mb": round(bill.stat().st_size / 1e6, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2), "wall_s": round(elapsed, 2),
        "peak_mb": round(used.ru_maxrss / 1024), "causes": len(found["rows"]),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--more", type=int, default=4_000_000, help="lines of the larger Parquet bill; 0 is none")
    options = parser.parse_args()
    figures = {"bench": "reconcile", "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        folder = Path(scratch)
        month = period.month("2026-11", "Europe/Berlin")
        row = {"minute_unix_s": month.starts[4], "scope": "internet", "downstream_out_wire_bytes": 10**14}
        with Lake.open(folder / "ledger") as lake:
            lake.commit(["in"], {"usage": usage([row])})
        (folder / "prices.yaml").write_text(BOOK)
        (folder / "rules.yaml").write_text(RULES)
        tasks = [("nothing", 1, "parquet", False), ("csv_gz", options.lines, "csv.gz", False),
                 ("parquet", options.lines, "parquet", False),
                 ("csv_gz_distinct_prices", options.lines // 10, "csv.gz", True)]  # fmt: skip
        if options.more:
            tasks.append(("parquet_more", options.more, "parquet", False))
        for name, lines, form, distinct in tasks:
            bill = folder / f"bill.{form}"
            write(bill, lines, form, distinct)
            figures[name] = measure(folder, bill)
            bill.unlink()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
