"""Upstream attempts over TLS, simulated: recorded plain runs with the bytes that TLS 1.3 would have added.

    python bench/upstream_tls.py --data DIR [--case NAME ...]

There is no recording of TLS towards an upstream. So each turn of a plain one gets 22 B for every record of 16 KiB
either way, now and then one record more (a response's head written apart from its body), and each new connection a
handshake: as a turn of its own in half of them, in one turn with the first request in the others, with sizes that
vary a little. Attempts keep the gateway's counts. Prints one JSON object: the share of attempts that get the true
turn's bytes (handshake included for the first), and whether all bytes are given out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from upstream_accuracy import _true_bytes, conserved, recorded_attempts, recorded_flows

from apicost.core.join.upstream import UpstreamSettings, UpstreamState, attribute_upstream
from apicost.core.records import Confidence, SnapshotKind

PAYLOAD = ("in_payload_bytes", "out_payload_bytes")
WIRE = ("in_wire_bytes", "out_wire_bytes")


def with_tls(flows: pa.Table, seed: int = 20261123) -> tuple[pa.Table, pd.DataFrame]:
    """The flows as TLS would have made them; and per turn of the plain run, the payload it then has."""
    random = np.random.default_rng(seed)
    frame = flows.to_pandas().sort_values(["flow", "turn"], kind="stable").reset_index(drop=True)
    first = ~frame.flow.duplicated()
    plain = frame.groupby("flow")[list(PAYLOAD)].diff().fillna(frame[list(PAYLOAD)]).astype(np.int64)
    served = plain.sum(axis=1) > 0
    more_in = (
        22 * (-(-plain.in_payload_bytes // 16_384) + (random.random(len(frame)) < 0.3)) * (plain.in_payload_bytes > 0)
    )
    more_out = 22 * -(-plain.out_payload_bytes // 16_384)
    hello = first & served
    hello_in = hello * (3_100 + random.integers(-8, 9, len(frame)))
    hello_out = hello * (597 + random.integers(-4, 5, len(frame)))
    added = pd.DataFrame({"in": more_in + hello_in, "out": more_out + hello_out, "flow": frame.flow})
    sums = added.groupby("flow")[["in", "out"]].cumsum()
    for side, payload, wire in zip(("in", "out"), PAYLOAD, WIRE, strict=True):
        frame[payload] += sums[side]
        frame[wire] += sums[side]
    truth = pd.DataFrame(
        {
            "flow": frame.flow,
            "begin": frame.request_first_mono_ns,
            "in": plain.in_payload_bytes + added["in"],
            "out": plain.out_payload_bytes + added["out"],
        }
    )
    # In half of the new connections the handshake is a turn of its own, just before the first request.
    apart = frame.index[hello & (frame.flow % 2 == 0)]
    turns = frame.loc[apart].copy()
    for more, payload, wire in zip((hello_in, hello_out), PAYLOAD, WIRE, strict=True):
        turns[payload] = more[apart]
        turns[wire] = more[apart] + 104
    turns["kind"] = SnapshotKind.TURN
    for name in ("request_last", "response_first", "response_last", "last"):
        turns[f"{name}_mono_ns"] = turns.request_first_mono_ns
    frame.loc[frame.flow.isin(turns.flow), "turn"] += 1
    both = pd.concat([frame, turns])
    return pa.Table.from_pandas(both, schema=flows.schema, preserve_index=False), truth


def measure(folder: Path) -> dict[str, object]:
    """The figures of one case."""
    plain = recorded_flows(folder)
    attempts, lines = recorded_attempts(folder)
    flows, truth = with_tls(plain)
    attempts = dataclasses.replace(attempts, tls=np.ones(len(attempts), np.bool_))
    began = time.process_time()
    result = attribute_upstream(
        UpstreamState(), flows, attempts, now_mono_ns=1 << 62, settings=UpstreamSettings(), final=True
    )
    spent = time.process_time() - began
    # The truth, from the plain run: the turn that each attempt has there.
    reference = attribute_upstream(
        UpstreamState(),
        plain,
        dataclasses.replace(attempts, tls=np.zeros(len(attempts), np.bool_)),
        now_mono_ns=1 << 62,
        settings=UpstreamSettings(),
        final=True,
    ).settled
    known = truth.set_index(["flow", "begin"])
    known = known[~known.index.duplicated()]
    wanted = known.reindex(pd.MultiIndex.from_arrays([reference.flow, reference.first_mono_ns]))
    order = np.lexsort((attempts.try_no, attempts.line_id))
    sent, received = _true_bytes(folder, lines, attempts.take(order))
    counted = (reference.out_payload_bytes == sent) & (reference.in_payload_bytes == received)
    settled = result.settled
    exact = (settled.in_payload_bytes == wanted["in"].to_numpy()) & (
        settled.out_payload_bytes == wanted["out"].to_numpy()
    )
    asked = counted & (sent + received > 0)
    return {
        "attempts": int(asked.sum()),
        "true_bytes": round(float(exact[asked].mean()), 6),
        "right_flow": round(float((settled.flow == reference.flow)[asked].mean()), 6),
        "new_connections": int(plain["flow"].to_pandas().nunique()),
        "conserved": conserved(flows, result),
        "confidence": {c.name: int((settled.confidence == c).sum()) for c in Confidence},
        "attempts_per_cpu_s": round(len(settled) / spent),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of recorded cases")
    parser.add_argument("--case", action="append", help="only this case; may be repeated")
    options = parser.parse_args()
    cases = options.case or ["h1-plain", "h1-tls", "h2-tls", "port-reuse", "upstream-same-size", "upstream-retries"]
    print(json.dumps({case: measure(options.data / case) for case in cases}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
