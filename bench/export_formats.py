"""A month's charges exported by `apicost export` in each format: CPU time, memory and size, in a process of its own.

The ledger and the price book are those of rate_rows.py, by default 100,000 sets of dimensions, each charged by itself.
The workbook has 40 sheets. Reading and rating are
in each figure: `cpu_s_before` is what they take alone.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pyarrow.parquet as pq
import rate_rows
import report_month

FORMATS = ("csv", "parquet", "json", "xlsx")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=100_000)
    parser.add_argument("--formats", default=",".join(FORMATS))
    options = parser.parse_args()
    figures = {"bench": "export_formats", "cpus": os.cpu_count(), "sets_of_dimensions": options.sets}
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        ledger = Path(scratch) / "ledger"
        rate_rows.generate(ledger, options.sets, options.sets)
        book = Path(scratch) / "prices.yaml"
        book.write_text(report_month.BOOK.format(zone="UTC"))
        common = ["export", "charges", "--month", "2026-11", "--ledger", str(ledger), "--prices", str(book)]
        (Path(scratch) / "out").mkdir()
        nothing = report_month.run([*common, "--api", "none", "-o", f"{scratch}/out/none.csv"], scratch)
        figures["cpu_s_before"], figures["peak_mb_before"] = nothing["cpu_s"], nothing["peak_mb"]
        for name in options.formats.split(","):
            output = Path(scratch) / "out" / f"charges.{name}"
            ran = report_month.run([*common, "-o", str(output)], scratch)
            figures[name] = {key: ran[key] for key in ("cpu_s", "wall_s", "peak_mb")} | {"bytes": output.stat().st_size}
            if name == "parquet":
                figures["charges"] = pq.read_metadata(output).num_rows
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
