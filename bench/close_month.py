"""What closing a month, showing it again and correcting it takes: a million charges, several prices, a shared cost.

One usage row for each bearer (--rows); the book sells calls in tiers and bytes, and shares a cost by calls, so that
each bearer has four charges. Each command runs in a process of its own; CPU time and peak memory are that process's.
Late usage of a month with a shared cost shifts everybody's share: it corrects a row of each bearer. Prints one JSON
object.
"""

import argparse
import filecmp
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import period
from apicost.store.lake import Lake

ROOT = Path(__file__).parent.parent
MONTH = period.month("2026-08", "Europe/Berlin")
BOOK = """
pricebook: {{id: bench, version: "{version}", currency: EUR, calendar: {{time_zone: Europe/Berlin}}}}
skus:
  call:
    meter: calls
    unit: 1000000 Requests
    prices:
      - {{from: 2026-01-01, mode: graduated, tiers: [{{up_to: "5", price: "{price}"}}, {{up_to: null, price: "0.9"}}]}}
  egress:
    meter: bytes
    where: {{direction: egress}}
    unit: GB
    prices: [{{from: 2026-01-01, mode: flat, price: "0.09"}}]
shared_costs: [{{id: nodes, amount: "812.40", period: monthly, weights: {{calls: "1"}}}}]
"""


def usage(rows: int, seed: int) -> pa.Table:
    """A month's usage: so many bearers, each on one day."""
    rng = np.random.default_rng(seed)
    number = np.arange(rows)
    texts = {
        "api": (number % 40, [f"api-{i}" for i in range(40)]),
        "operation_id": (number % 1_200, [f"operation{i}" for i in range(1_200)]),
        "consumer": (number // 1_200, [f"consumer-{i}" for i in range(rows // 1_200 + 1)]),
        "match_state": (np.zeros(rows, np.int64), ["matched"]),
        "status_class": (np.zeros(rows, np.int64), ["2xx"]),
    }
    calls = rng.integers(1, 2_000, rows)
    sums = {"calls": calls, "attempts": calls, "downstream_out_wire_bytes": calls * rng.integers(500, 9_000, rows)}
    columns = []
    for field in records.schema(records.USAGE):
        if field.name == "minute_unix_s":
            columns.append(pa.array(np.array(MONTH.starts[:-1])[number % len(MONTH.days)] + 3_600))
        elif field.type == records.TEXT:
            codes, values = texts.get(field.name, (np.full(rows, -1), []))
            columns.append(records.text(codes.astype(np.int32), values))
        else:
            columns.append(pa.array(np.asarray(sums.get(field.name, np.zeros(rows)), np.int64)))
    return pa.table(columns, schema=records.schema(records.USAGE))


# Of this process alone: what rusage says of a child begins with what its parent held.
COMMAND = """
import resource, sys
from apicost import cli
code = cli.main()
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"used {used.ru_utime + used.ru_stime:.1f} {int(peak) * 1024 // 10**6}", file=sys.stderr)
sys.exit(code)
"""


def run(folder: Path, *arguments: str) -> dict[str, float]:
    """CPU seconds and peak memory of a command."""
    where = ("--ledger", str(folder / "ledger"), "--prices", str(folder / "prices.yaml"))
    command = [sys.executable, "-c", COMMAND, *arguments, *where]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    _, cpu_s, peak_mb = ended.stderr.splitlines()[-1].split()
    return {"cpu_s": float(cpu_s), "peak_mb": int(peak_mb)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=330_000, help="bearers (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        book = folder / "prices.yaml"
        book.write_text(BOOK.format(version="1", price="1.00"))
        with Lake.open(folder / "ledger") as lake:
            lake.commit(["first"], {"usage": usage(options.rows, 1)})
        export = ("export", "charges", "--month")
        figures: dict[str, object] = {"export_open": run(folder, *export, "2026-08", "-o", str(folder / "a.csv"))}
        figures["close"] = run(folder, "close", "2026-08")
        figures["export_closed"] = run(folder, *export, "2026-08", "-o", str(folder / "b.csv"))
        assert filecmp.cmp(folder / "a.csv", folder / "b.csv", shallow=False), "closing changed the export"
        with open(folder / "a.csv", "rb") as stream:
            figures["charges"] = sum(1 for _ in stream) - 1
        closed = folder / "ledger" / "closed" / "2026-08"
        figures["closed_mb"] = {path.name: round(path.stat().st_size / 1e6, 1) for path in sorted(closed.iterdir())}
        figures["verify"] = run(folder, "verify", "2026-08")
        with Lake.open(folder / "ledger") as lake:
            september = usage(1_200, 2)
            later = pa.array(np.asarray(september["minute_unix_s"]) + 86_400 * 31)
            lake.commit(["september"], {"usage": september.set_column(0, september.schema.field(0), later)})
        figures["next_month_nothing_changed"] = run(folder, *export, "2026-09", "-o", str(folder / "c.csv"))
        with Lake.open(folder / "ledger") as lake:
            lake.commit(["late"], {"usage": usage(3, 3)})
        figures["next_month_three_late_rows"] = run(folder, *export, "2026-09", "-o", str(folder / "d.csv"))
        book.write_text(BOOK.format(version="2", price="1.10"))
        figures["next_month_a_price_corrected"] = run(folder, *export, "2026-09", "-o", str(folder / "e.csv"))
        with open(folder / "e.csv", "rb") as stream:
            figures["corrections"] = sum(1 for line in stream if b",Correction," in line)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
