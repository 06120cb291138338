"""What streaming costs and changes: recorded runs fed in steps, as the daemon does, with faults on request.

    python bench/upstream_stream.py --data DIR [--case NAME ...] [--lose SHARE]

Each step of two seconds gets the snapshots and the lines of its time (lines come 0 to 1.5 s late, as the gateway's
batches do; sweeps of open flows are not in the recordings). `--lose` drops that share of the turn records, as a
full ring would. Prints one JSON object: for each case the share of attempts with exactly their bytes, whether all
bytes are given out, attempts per second of CPU, and the most that the state held.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from upstream_accuracy import _true_bytes, conserved, recorded_attempts, recorded_flows

from apicost.core.join.upstream import (
    Parts,
    Settled,
    UpstreamResult,
    UpstreamSettings,
    UpstreamState,
    attribute_upstream,
)
from apicost.core.records import SnapshotKind

STEP_NS = 2_000_000_000


def measure(folder: Path, lose: float) -> dict[str, object]:
    """The figures of one case."""
    flows = recorded_flows(folder)
    attempts, lines = recorded_attempts(folder)
    random = np.random.default_rng(20261123)
    whole = flows
    lost = (random.random(len(flows)) < lose) & (flows["kind"].to_numpy() == SnapshotKind.TURN)
    flows = flows.filter(pa.array(~lost))
    seen = flows["last_mono_ns"].to_numpy()
    came = (attempts.log_mono_ns + random.random(len(lines))[attempts.line_id] * 1_500_000_000).astype(np.int64)
    start = int(min(seen.min(), came.min()))
    end = int(max(seen.max(), came.max()))
    state = UpstreamState()
    settled: list[Settled] = []
    parts: list[Parts] = []
    spent, held = 0.0, 0
    for now in range(start + STEP_NS, end + 12 * STEP_NS, STEP_NS):
        chosen = flows.filter(pa.array((seen >= now - STEP_NS) & (seen < now)))
        new = attempts.take(np.flatnonzero((came >= now - STEP_NS) & (came < now)))
        began = time.process_time()
        final = now + STEP_NS >= end + 12 * STEP_NS
        result = attribute_upstream(state, chosen, new, now_mono_ns=now, settings=UpstreamSettings(), final=final)
        state = result.state
        spent += time.process_time() - began
        held = max(held, sum(table.nbytes for table in state.to_tables().values()))
        settled.append(result.settled)
        parts.append(result.parts)
    together = UpstreamResult(settled=Settled.concat(settled), parts=Parts.concat(parts), state=state)
    given = attempts.take(np.lexsort((attempts.try_no, attempts.line_id)))
    out = together.settled
    out = out.take(np.lexsort((out.try_no, out.line_id)))
    wanted = _true_bytes(folder, lines, given)
    exact = (out.flow != 0) & (out.out_payload_bytes == wanted[0]) & (out.in_payload_bytes == wanted[1])
    return {
        "attempts": len(out),
        "exact_bytes": round(float(exact.mean()), 6),
        "conserved": conserved(whole, together),
        "attempts_per_cpu_s": round(len(out) / spent),
        "most_state_bytes": held,
        "records_lost": int(lost.sum()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of recorded cases")
    parser.add_argument("--case", action="append", help="only this case; may be repeated")
    parser.add_argument("--lose", type=float, default=0.0, help="share of turn records to drop")
    options = parser.parse_args()
    cases = options.case or sorted(p.name for p in options.data.iterdir() if (p / "flows.parquet").is_file())
    print(json.dumps({case: measure(options.data / case, options.lose) for case in cases}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
