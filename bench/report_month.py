"""How long `apicost report` takes for a month of 10^9 requests, and in how much memory: reading, rating,
page and CSV files, in one process as a user starts it.

The ledger is the generated one of month_report_usage.py: 450,000 sets of dimensions, quarter hours and days.
Two time zones: UTC, whose months and days are those of the day rollups, and Europe/Berlin, whose days are cut
from quarter hours.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

BOOK = """
pricebook: {{id: bench, version: "1", currency: EUR, calendar: {{time_zone: {zone}}}}}
scopes:
  intra-zone: {{peers: ["10.1.0.0/20"]}}
  inter-zone: {{peers: ["10.1.16.0/20"]}}
  internet: {{peers: ["0.0.0.0/0", "::/0"]}}
skus:
  call:
    meter: calls
    unit: 1000 Requests
    prices:
      - from: 2026-01-01
        mode: graduated
        tiers: [{{up_to: "300000", price: "0.0010"}}, {{up_to: null, price: "0.0009"}}]
  egress-internet:
    meter: bytes
    where: {{direction: egress, scope: internet}}
    unit: GB
    free: {{quantity: "100", share: pro_rata}}
    prices:
      - from: 2026-01-01
        mode: graduated
        tiers: [{{up_to: "1024", price: "0.09"}}, {{up_to: null, price: "0.085"}}]
  between-zones:
    meter: bytes
    where: {{scope: inter-zone}}
    both_directions: true
    unit: GB
    prices: [{{from: 2026-01-01, mode: flat, price: "0.01"}}]
shared_costs:
  - {{id: nodes, amount: "812.40", period: monthly, weights: {{calls: "0.5", bytes: "0.5"}},
     idle: {{keep_unallocated: "0.30"}}}}
"""

CHILD = """
import resource, sys, time
began = time.monotonic()
from apicost import cli
code = cli.main()  # as the command: its process is its own
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: that counts the parent's memory at the fork.
peak_mb = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
print("figures", code, time.monotonic() - began, used.ru_utime + used.ru_stime, peak_mb)
"""


def run(arguments, scratch):
    """One command in a process of its own; its figures."""
    command = [sys.executable, "-c", CHILD, *arguments]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    code, wall, cpu, peak = ran.stdout.splitlines()[-1].split()[1:]
    return {
        "exit_code": int(code),
        "wall_s": round(float(wall), 1),
        "cpu_s": round(float(cpu), 1),
        "peak_mb": int(peak),
        "file_bytes": {path.name: path.stat().st_size for path in sorted(Path(scratch, "out").iterdir())},
    }


def measure(ledger, zone, formats):
    """One report; its figures."""
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        book = Path(scratch) / "prices.yaml"
        book.write_text(BOOK.format(zone=zone))
        arguments = [
            "report",
            "--month",
            "2026-11",
            "--ledger",
            str(ledger),
            "--prices",
            str(book),
            "--format",
            formats,
        ]
        return run([*arguments, "--out", f"{scratch}/out"], scratch)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ledger", type=Path, help="use this ledger, made by an earlier run; made where missing")
    parser.add_argument("--before", action="store_true", help="make 30 days of the month before, too, to compare with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        folder = options.ledger or Path(scratch) / "ledger"
        figures = {"bench": "report_month", "cpus": os.cpu_count()}
        if not folder.exists():
            import month_report_usage

            began = time.process_time()
            figures |= month_report_usage.generate(folder)
            if options.before:
                month_report_usage.MONTH -= month_report_usage.DAYS * 86_400
                figures["month_before"] = month_report_usage.generate(folder)
            figures["generating_cpu_s"] = round(time.process_time() - began)
        for zone in ("UTC", "Europe/Berlin"):
            for formats in ("html", "html,csv"):
                figures[f"{zone} {formats}"] = measure(folder, zone, formats)
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
