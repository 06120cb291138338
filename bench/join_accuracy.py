"""How many requests get exactly the bytes that their client counted, on recorded runs with the truth beside them.

    python bench/join_accuracy.py [--data DIR] [--case NAME ...] [--blind] [--lose-lines P] [--lose-turns P]

DIR holds one folder for each recorded case (default: the excerpt in tests/data/join). Prints one JSON object. For
HTTP/1.x a request is right when its payload, both ways, is what the client's socket counted; for HTTP/2 the
error is the sum of the differences to the frames' bytes over their sum. --blind takes the TLS layer's counters out of
the lines; --lose-lines and --lose-turns drop this share of the lines and of the turns' snapshots.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from join_recorded import EXCERPT, Recorded, cases, load

from apicost.core import records
from apicost.core.join.correlate import Carry, Settings, Step, correlate
from apicost.core.records import Confidence, RowKind, SnapshotKind

SETTINGS = Settings(gateway_ports=(19080, 19443))
COUNTERS = records.schema(records.PART).names[4:]
STEP_NS = 2_000_000_000


def whole(case: Recorded) -> Step:
    """The case in one step."""
    return correlate(
        Carry.empty(), case.flows, case.lines, clock=case.clock, now_mono_ns=0, settings=SETTINGS, final=True
    )


def worsened(case: Recorded, *, blind: bool, lose_lines: float, lose_turns: float) -> Recorded:
    """The case with less to go by."""
    lines, random = case.lines, np.random.default_rng(1)
    for name in ("tls_read_bytes", "tls_written_bytes") if blind else ():
        place = lines.schema.get_field_index(name)
        lines = lines.set_column(place, lines.schema.field(place), pa.array(np.full(len(lines), -1), pa.int64()))
    kept = random.random(len(lines)) >= lose_lines
    turn = case.flows.column("kind").to_numpy() == SnapshotKind.TURN
    seen = ~turn | (random.random(len(turn)) >= lose_turns)
    return dataclasses.replace(case, lines=lines.filter(pa.array(kept)), flows=case.flows.filter(pa.array(seen)))


def not_conserved(case: Recorded, step: Step) -> int:
    """Flows whose parts don't add up to the kernel's counters."""
    flows = case.flows.to_pandas()
    flows["resent_bytes"] = flows.in_resent_bytes + flows.out_resent_bytes
    counted = flows.groupby("flow")[COUNTERS].max()
    given = step.parts.to_pandas().groupby("flow")[COUNTERS].sum().reindex(counted.index, fill_value=0)
    return int((counted != given).any(axis=1).sum())


def measure(case: Recorded) -> dict[str, Any]:
    step = whole(case)
    rows = step.exchanges.to_pandas()
    requests = rows[rows.kind == RowKind.EXCHANGE].merge(
        case.truth.drop(columns=["status"], errors="ignore").rename(
            columns={"downstream_flow": "true_flow", "kind": "true_kind"}
        ),
        on="request_id",
    )
    wire = rows[[f"downstream_{way}_wire_bytes" for way in ("in", "out")]].sum(axis=1)
    found: dict[str, Any] = {
        "requests": len(requests),
        "right_flow": float((requests.downstream_flow == requests.true_flow).mean()),
        "flows_not_conserved": not_conserved(case, step),
        "wire_bytes_by_confidence": {
            level.name.lower(): int(wire[rows.downstream_confidence == level].sum()) for level in Confidence
        },
    }
    if "h2_frame_bytes_sent" in requests:
        for mine, true in (("in", "sent"), ("out", "received")):
            frames = requests[f"h2_frame_bytes_{true}"]
            error = np.abs(requests[f"downstream_{mine}_payload_bytes"] - frames).sum() / frames.sum()
            found[f"{mine}_error_of_frame_bytes"] = round(float(error), 6)
            right = requests[f"downstream_{mine}_payload_bytes"] == frames
            found[f"{mine}_exact"] = int(right.sum())
        return found
    more = requests.client_received_bytes - requests.downstream_out_payload_bytes
    right = (requests.downstream_in_payload_bytes == requests.client_sent_bytes) & (more == 0)
    # A WebSocket's client over TLS reads on to the end and may count the close_notify (24 B) as received.
    alert = ~right & (requests.true_kind == "ws") & (more == 24) & requests.tls_version.notna()
    exact = requests.downstream_confidence == Confidence.EXACT
    found |= {
        "exact": int(right.sum()),
        "exact_but_for_close_notify": int(alert.sum()),
        "exact_share": round(float((right | alert).mean()), 6),
        "claimed_exact": int(exact.sum()),
        "claimed_exact_wrong": int((exact & ~right & ~alert).sum()),
    }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=EXCERPT)
    parser.add_argument("--case", action="append")
    parser.add_argument("--blind", action="store_true")
    parser.add_argument("--lose-lines", type=float, default=0.0, metavar="P")
    parser.add_argument("--lose-turns", type=float, default=0.0, metavar="P")
    options = parser.parse_args()
    less = {"blind": options.blind, "lose_lines": options.lose_lines, "lose_turns": options.lose_turns}
    names = options.case or cases(options.data)
    print(json.dumps({name: measure(worsened(load(options.data / name), **less)) for name in names}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
