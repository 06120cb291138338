"""Upstream attempts per second of one core's CPU, in isolation: recorded runs, many at once, fed in steps.

    python bench/upstream_throughput.py --data DIR [--copies N]

The recorded case h1-plain (20,000 attempts of mixed sizes through a keep-alive pool) and upstream-retries are laid
side by side N times, each copy with flows and backends of its own and a little later than the one before, as many
gateways' load would be; steps of two seconds, lines up to 1.5 s late. Only `attribute_upstream` is timed.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from upstream_accuracy import recorded_attempts, recorded_flows

from apicost.core.join.upstream import Attempts, UpstreamSettings, UpstreamState, attribute_upstream

STEP_NS = 2_000_000_000


def copied(flows: pa.Table, attempts: Attempts, copies: int) -> tuple[pa.Table, Attempts]:
    """So many copies, each with its own flows, backends, lines and times."""
    tables, batches = [], []
    for copy in range(copies):
        later = copy * 37_000_000
        table = flows
        for name in flows.schema.names:
            values = flows[name].to_numpy()
            if name.endswith("_mono_ns"):
                values = np.where(values > 0, values + later, values)
            elif name == "flow":
                values = values + np.uint64(copy << 32)
            elif name == "peer_lo":
                values = values + np.uint64(copy)
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        tables.append(table)
        batches.append(
            dataclasses.replace(
                attempts,
                line_id=attempts.line_id + (copy << 32),
                addr_lo=attempts.addr_lo + np.uint64(copy),
                **{f"{n}_mono_ns": getattr(attempts, f"{n}_mono_ns") + later for n in ("access", "header", "log")},
            )
        )
    return pa.concat_tables(tables).combine_chunks(), Attempts.concat(batches)


def measure(folder: Path, copies: int) -> dict[str, object]:
    """The figures of one case."""
    flows, attempts = copied(recorded_flows(folder), recorded_attempts(folder)[0], copies)
    seen = flows["last_mono_ns"].to_numpy()
    late = np.random.default_rng(20261123).integers(0, 1_500_000_000, len(attempts))
    came = attempts.log_mono_ns + late
    start, end = int(min(seen.min(), came.min())), int(max(seen.max(), came.max())) + 4 * STEP_NS
    state, spent, slowest, settled = UpstreamState(), 0.0, 0.0, 0
    for now in range(start + STEP_NS, end, STEP_NS):
        chosen = flows.filter(pa.array((seen >= now - STEP_NS) & (seen < now))).combine_chunks()
        new = attempts.take(np.flatnonzero((came >= now - STEP_NS) & (came < now)))
        began = time.process_time()
        result = attribute_upstream(
            state, chosen, new, now_mono_ns=now, settings=UpstreamSettings(), final=now + STEP_NS >= end
        )
        took = time.process_time() - began
        state = result.state
        spent, slowest, settled = spent + took, max(slowest, took), settled + len(result.settled)
    seconds = (int(attempts.log_mono_ns.max()) - int(attempts.log_mono_ns.min())) / 1e9
    return {
        "attempts": settled,
        "load_per_s": round(settled / seconds),
        "attempts_per_cpu_s": round(settled / spent),
        "slowest_step_cpu_s": round(slowest, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of recorded cases")
    parser.add_argument("--copies", type=int, default=10)
    options = parser.parse_args()
    figures: dict[str, object] = {
        case: measure(options.data / case, options.copies)
        for case in ("h1-plain", "upstream-retries", "upstream-same-size")
    }
    figures["most_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
