"""Attempts of which the gateway counts no bytes, as ai-proxy's: how many are given a flow, and how many of these the
true one. In recorded runs the bytes of a share of attempts are blanked; the others keep theirs.

    .venv/bin/python bench/upstream_unsized.py --data DIR
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
import upstream_accuracy

from apicost.core.join.upstream import UpstreamSettings, UpstreamState, attribute_upstream

SHARES = (0.001, 0.01, 1.0)


def measure(folder, share):
    """The figures of one case with so many of its attempts blanked."""
    flows = upstream_accuracy.recorded_flows(folder)
    attempts, lines = upstream_accuracy.recorded_attempts(folder)
    attempts = attempts.take(np.lexsort((attempts.try_no, attempts.line_id)))
    truth = pd.read_parquet(folder / "truth.parquet").dropna(subset="request_id").set_index("request_id")
    of_line = truth.upstream_flow.reindex(lines.request_id.to_numpy()[attempts.line_id]).fillna(0).to_numpy()
    blank = np.random.default_rng(1).random(len(attempts)) < share
    unsized = attempts.replace(
        sent_bytes=np.where(blank, -1, attempts.sent_bytes), received_bytes=np.where(blank, -1, attempts.received_bytes)
    )
    settings = UpstreamSettings()
    result = attribute_upstream(UpstreamState(), flows, unsized, now_mono_ns=1 << 62, settings=settings, final=True)
    known = blank & (attempts.try_no == attempts.n_tries - 1) & (of_line > 0)
    given = result.settled.flow[known].astype(np.int64)
    sized = ~blank & (attempts.try_no == attempts.n_tries - 1) & (of_line > 0)
    right = result.settled.flow[sized].astype(np.int64) == of_line[sized].astype(np.int64)
    return {
        "blanked": int(known.sum()),
        "given_a_flow": int((given != 0).sum()),
        "of_these_the_true_one": int((given == of_line[known].astype(np.int64)).sum()),
        "others_right_flow": round(float(right.mean()), 4) if len(right) else None,
        "conserved": upstream_accuracy.conserved(flows, result),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of recorded runs")
    options = parser.parse_args()
    cases = sorted(path.parent for path in options.data.glob("*/truth.parquet"))
    print(json.dumps({"bench": "upstream_unsized"} | {
        case.name: {f"{share:.1%}": measure(case, share) for share in SHARES} for case in cases
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
