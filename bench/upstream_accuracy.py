"""How many upstream attempts get exactly their bytes, on recorded runs with the truth beside them.

    python bench/upstream_accuracy.py --data DIR [--case NAME ...]

DIR holds one folder for each recorded case: flows.parquet (cumulative snapshots), lines.parquet (what the
gateway's log phase saw), truth.parquet and upstream.parquet (what client and upstream counted).
Prints one JSON object: for each case the share of attempts whose payload bytes are those of the upstream's own
count, and the share whose flow is the true one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apicost.core import records
from apicost.core.join.upstream import (
    Attempts,
    UpstreamResult,
    UpstreamSettings,
    UpstreamState,
    attribute_upstream,
)
from apicost.core.join.upstream_attempts import address_of
from apicost.core.records import Confidence, Role, SnapshotKind

KINDS = {"turn": SnapshotKind.TURN, "open": SnapshotKind.OPEN, "closed": SnapshotKind.CLOSED}
MAPPED = 0xFFFF << 32


def recorded_flows(folder: Path) -> pa.Table:
    """The upstream snapshots of a recorded case as FLOW rows."""
    frame = pd.read_parquet(folder / "flows.parquet")
    frame = frame[frame.role == "upstream"].reset_index(drop=True)
    ends = [[address_of(f"{a}:0") for a in frame[f"{side}_addr"]] for side in ("local", "peer")]
    columns: dict[str, object] = {
        "kind": frame.kind.map(KINDS),
        "role": np.full(len(frame), Role.UPSTREAM),
        "protocol": np.full(len(frame), 6),
    }
    for side, found in zip(("local", "peer"), ends, strict=True):
        columns[f"{side}_hi"] = np.array([a[0] for a in found], np.uint64)
        columns[f"{side}_lo"] = np.array([a[1] for a in found], np.uint64)
    for direction in ("in", "out"):
        columns[f"{direction}_payload_bytes"] = frame[f"{direction}_new_payload_bytes"]
        columns[f"{direction}_resent_bytes"] = frame[f"{direction}_resent_payload_bytes"]
        columns[f"{direction}_packets"] = frame[f"{direction}_segments"]
    arrays = []
    for column in records.FLOW:
        values = columns.get(column.name, frame[column.name] if column.name in frame else np.zeros(len(frame)))
        arrays.append(pa.array(pd.Series(values).fillna(0).astype(column.type.to_pandas_dtype())))
    return pa.Table.from_arrays(arrays, schema=records.schema(records.FLOW))


def recorded_attempts(folder: Path) -> tuple[Attempts, pd.DataFrame]:
    """The attempts of a recorded case, and its lines; line_id is the row of the line."""
    lines = pd.read_parquet(folder / "lines.parquet")
    rows: list[tuple[int, ...]] = []
    for line, entry in enumerate(lines.to_dict("records")):
        if ":" not in str(entry["upstream_addr"]):
            continue
        addresses = entry["upstream_addr"].split(", ")
        lists = [
            str(entry[name]).split(", ")
            for name in (
                "upstream_bytes_sent",
                "upstream_bytes_received",
                "upstream_status",
                "upstream_connect_time",
                "upstream_response_time",
            )
        ]
        for number, address in enumerate(addresses):
            sent, received, status, connect, response = (values[number] for values in lists)
            rows.append(
                (
                    line,
                    number,
                    len(addresses),
                    *address_of(address),
                    _count(sent),
                    _count(received),
                    _count(status),
                    *(_count(entry[f"{n}_mono_ns"]) for n in ("access", "header_filter", "log")),
                    _ms(connect),
                    _ms(response),
                    int(entry["worker_pid"]),
                    entry.get("upstream_scheme") in ("https", "grpcs"),
                )
            )
    blank = Attempts.empty()
    columns = list(zip(*rows, strict=True))
    return Attempts(
        **{
            name: np.array(values, getattr(blank, name).dtype)
            for name, values in zip(Attempts.__slots__, columns, strict=True)
        }
    ), lines


def _count(text: object) -> int:
    return int(text) if str(text).isdigit() else -1


def _ms(text: str) -> int:
    return round(float(text) * 1000) if text.replace(".", "").isdigit() else -1


def conserved(flows: pa.Table, result: UpstreamResult) -> bool:
    """Whether what was given out is what the kernel counted, in total and flow by flow."""
    names = ("in_wire_bytes", "out_wire_bytes", "in_payload_bytes", "out_payload_bytes", "in_packets", "out_packets")
    kernel = flows.select(["flow", *names]).to_pandas().groupby("flow").max()
    rows = [
        pd.DataFrame({"flow": batch.flow, **{name: getattr(batch, name) for name in names}})
        for batch in (result.settled, result.parts)
    ]
    given = pd.concat(rows).groupby("flow").sum()
    given = given[given.index != 0]
    return bool(given.sort_index().eq(kernel.sort_index()).all(axis=None))


def measure(folder: Path) -> dict[str, object]:
    """The figures of one case."""
    flows = recorded_flows(folder)
    attempts, lines = recorded_attempts(folder)
    truth = pd.read_parquet(folder / "truth.parquet").dropna(subset="request_id").set_index("request_id")
    began = time.process_time()
    result = attribute_upstream(
        UpstreamState(), flows, attempts, now_mono_ns=1 << 62, settings=UpstreamSettings(), final=True
    )
    spent = time.process_time() - began
    settled = result.settled
    order = np.lexsort((attempts.try_no, attempts.line_id))
    given = attempts.take(order)
    wanted = _true_bytes(folder, lines, given)
    exact = (settled.out_payload_bytes == wanted[0]) & (settled.in_payload_bytes == wanted[1])
    exact &= settled.flow != 0
    last = given.try_no == given.n_tries - 1
    true_flow = truth.upstream_flow.reindex(lines.request_id.to_numpy()[given.line_id]).fillna(0).to_numpy()
    right = settled.flow.astype(np.int64) == true_flow.astype(np.int64)
    confidence = {c.name: int((settled.confidence == c).sum()) for c in Confidence}
    parts = result.parts
    return {
        "attempts": len(settled),
        "exact_bytes": round(float(exact.mean()), 6),
        "right_flow": round(float(right[last & (true_flow > 0)].mean()), 6),
        "conserved": conserved(flows, result),
        "confidence": {name: n for name, n in confidence.items() if n},
        "unattributed": int((parts.kind == 3).sum()),
        "unattributed_payload_bytes": int((parts.in_payload_bytes + parts.out_payload_bytes)[parts.kind == 3].sum()),
        "attempts_per_cpu_s": round(len(settled) / spent),
    }


def _true_bytes(folder: Path, lines: pd.DataFrame, attempts: Attempts) -> tuple[np.ndarray, np.ndarray]:
    """Bytes that the upstream itself read and wrote for each attempt; none where it refused the connection."""
    counted = pd.read_parquet(folder / "upstream.parquet").set_index(["id", "upstream_port"])
    labels = lines.request_uri.str.extract(r"[?&]id=([^&]+)")[0].to_numpy()[attempts.line_id]
    index = pd.MultiIndex.from_arrays([labels, attempts.port.astype(np.int64)])
    rows = counted.reindex(index)
    return (
        rows.upstream_read_bytes.fillna(0).to_numpy().astype(np.int64),
        rows.upstream_wrote_bytes.fillna(0).to_numpy().astype(np.int64),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of recorded cases")
    parser.add_argument("--case", action="append", help="only this case; may be repeated")
    options = parser.parse_args()
    cases = options.case or sorted(p.name for p in options.data.iterdir() if (p / "flows.parquet").is_file())
    print(json.dumps({case: measure(options.data / case) for case in cases}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
