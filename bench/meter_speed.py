"""How many exchanges a core meters per CPU-second, and how fast addresses find their scope."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from apicost.core.meter import merge, meter
from apicost.core.scopes import Scopes
from tests.store.batches import SCOPES, many


def best_cpu_s(work, rounds=5):
    """The least CPU time of some rounds: the machine may be shared."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)


def main():
    figures = {}
    for rows in (10_000, 500_000):
        batch = many(rows)
        figures[f"meter_rows_per_cpu_s_batches_of_{rows}"] = round(rows / best_cpu_s(lambda b=batch: meter(b, SCOPES)))
    usage = meter(batch, SCOPES)
    figures["usage_rows_of_the_large_batch"] = usage.num_rows
    figures["merge_rows_per_cpu_s"] = round(2 * usage.num_rows / best_cpu_s(lambda: merge([usage, usage])))
    rng = np.random.default_rng(1)
    wide = Scopes([(f"zone{i % 7}", [f"10.{i // 256}.{i % 256}.0/24"]) for i in range(2_000)])
    lo = rng.integers(0, 1 << 24, 1_000_000).astype(np.uint64) + np.uint64((0xFFFF << 32) + (10 << 24))
    hi = np.zeros(len(lo), np.uint64)
    figures["scope_addresses_per_cpu_s_2000_networks"] = round(len(lo) / best_cpu_s(lambda: wide.classify(hi, lo)))
    print(json.dumps({"bench": "meter_speed", **figures}))


if __name__ == "__main__":
    main()
