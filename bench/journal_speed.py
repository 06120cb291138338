"""What a large month's journal costs to write, and `bean-check` to check it: CPU time and memory, each in a process of
its own. The month has 40 APIs, 50 operations, 1,000 consumers and the sample price book; its usage is made and
rated before anything is measured.
"""

import argparse
import json
import os
import resource
import subprocess
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
from apicost.report import journal

ROOT = Path(__file__).parent.parent


def usage(month, rows):
    """A month of usage rows, from a fixed seed."""
    random = np.random.default_rng(1)

    def names(prefix, count):
        return records.text(random.integers(0, count, rows).astype(np.int32), [f"{prefix}{n}" for n in range(count)])

    calls = random.integers(1, 900, rows)
    return pa.table({
        "minute_unix_s": pa.array(np.array(month.starts[:-1])[random.integers(0, len(month.days), rows)]),
        "api": names("api-", 40), "operation_id": names("op-", 50), "consumer": names("c-", 1_000),
        "match_state": records.text(np.zeros(rows, np.int32), ["matched"]),
        "scope": records.text(np.zeros(rows, np.int32), ["internet"]), "calls": pa.array(calls),
        **{name: pa.array(calls * size if name.startswith("downstream") else calls * 0)
           for name, size in ((n, 900 + 90_000 * ("out" in n)) for n in rate.WIRE_BYTES)},
        "app_only_bytes": pa.array(calls * 0),
        **{name: pa.array(calls * 0) for name in rate.TOKENS},
    })  # fmt: skip


def write(rows, path):
    """Rate and write; the figures of the writing."""
    book = prices.parse((ROOT / "specs/prices.yaml").read_text())
    month = period.month("2026-11", book.time_zone)
    bill = Bill(statement=rate.rate(usage(month, rows), book, month))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    charges = journal.write(bill, path, {})
    return {
        "charges": charges, "write_cpu_s": round(time.process_time() - began, 2),
        "mb_rated": before >> 10, "mb_written": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "file_mb": round(path.stat().st_size / 1e6, 1),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="usage rows (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as folder:
        path = Path(folder) / "month.beancount"
        figures = {"bench": "journal_speed", **write(options.rows, path), "cpus": os.cpu_count()}
        check = Path(sys.executable).with_name("bean-check")
        done = subprocess.run([check, "--no-cache", path], capture_output=True, text=True)
        figures["accepted"] = (done.returncode, done.stdout, done.stderr) == (0, "", "")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures |= {"bean_check_cpu_s": round(used.ru_utime + used.ru_stime, 1), "bean_check_mb": used.ru_maxrss >> 10}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
