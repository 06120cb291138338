"""Recorded runs of a gateway as the batches of the correlator, with the truth beside them.

A recorded case is a folder with flows.parquet (cumulative snapshots), lines.parquet (what the gateway's log phase
saw, nginx's variable names), truth.parquet (what the client counted) and clock.json. A converted case, as in
tests/data/join, holds flow.parquet and line.parquet in the project's own columns instead.

    python bench/join_recorded.py --data DIR --excerpt tests/data/join     writes the excerpt
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apicost.core import records
from apicost.core.clock import Clock
from apicost.core.records import FLOW, LINE, Role, SnapshotKind

EXCERPT = Path(__file__).resolve().parent.parent / "tests" / "data" / "join"
KINDS = {
    "turn": SnapshotKind.TURN,
    "open": SnapshotKind.OPEN,
    "closed": SnapshotKind.CLOSED,
    "handshake": SnapshotKind.TURN,
}
ROLES = {"downstream": Role.DOWNSTREAM, "upstream": Role.UPSTREAM, "control": Role.CONTROL}
SYN_ACK_PSH = 0x1A


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One case: batches, truth and clock."""

    name: str
    flows: pa.Table
    lines: pa.Table
    truth: pd.DataFrame
    clock: Clock


def cases(folder: Path) -> list[str]:
    """Names of the cases in a folder."""
    return sorted(p.parent.name for p in folder.glob("*/clock.json"))


def load(folder: Path) -> Recorded:
    """Read a recorded or a converted case."""
    clock = Clock(**json.loads((folder / "clock.json").read_text()))
    truth = pd.read_parquet(folder / "truth.parquet")
    if (folder / "flow.parquet").exists():
        flows = pq.read_table(folder / "flow.parquet").cast(records.schema(FLOW))
        lines = pq.read_table(folder / "line.parquet").cast(records.schema(LINE))
        return Recorded(name=folder.name, flows=flows, lines=lines, truth=truth, clock=clock)
    return Recorded(
        name=folder.name,
        flows=flow_table(pd.read_parquet(folder / "flows.parquet")),
        lines=line_table(pd.read_parquet(folder / "lines.parquet"), clock),
        truth=truth,
        clock=clock,
    )


def flow_table(frame: pd.DataFrame) -> pa.Table:
    """Recorded snapshots as FLOW."""
    frame = frame.reset_index(drop=True)
    columns: dict[str, Any] = {
        "kind": frame.kind.map(KINDS),
        "role": frame.role.map(ROLES).fillna(0),
        "protocol": np.full(len(frame), 6),
        "in_tcp_flags": np.full(len(frame), SYN_ACK_PSH),
        "out_tcp_flags": np.full(len(frame), SYN_ACK_PSH),
    }
    for side in ("local", "peer"):
        columns[f"{side}_hi"], columns[f"{side}_lo"] = addresses(frame[f"{side}_addr"])
    for way in ("in", "out"):
        columns[f"{way}_payload_bytes"] = frame[f"{way}_new_payload_bytes"]
        columns[f"{way}_resent_bytes"] = frame[f"{way}_resent_payload_bytes"]
        columns[f"{way}_packets"] = frame[f"{way}_segments"]
    arrays = []
    for column in FLOW:
        values = columns.get(column.name, frame[column.name] if column.name in frame else np.zeros(len(frame)))
        arrays.append(pa.array(pd.Series(values).fillna(0).astype(column.type.to_pandas_dtype())))
    return pa.Table.from_arrays(arrays, schema=records.schema(FLOW))


def line_table(frame: pd.DataFrame, clock: Clock) -> pa.Table:
    """Recorded log variables as LINE, as the receiver would make them of the plugin's lines."""
    frame = frame.replace("nan", None)
    frame = frame.reset_index(drop=True).sort_values("log_mono_ns", key=lambda s: s.astype("int64"))
    frame = frame.reset_index(drop=True)
    size = len(frame)

    def number(name: str, absent: int = -1) -> np.ndarray:
        if name not in frame:
            return np.full(size, absent, np.int64)
        # Through text and Python's integers: nanoseconds don't fit a float.
        return np.array(
            [
                int(float(v)) if "." in v else int(v) if v.lstrip("-").isdigit() else absent
                for v in frame[name].fillna("").astype(str)
            ],
            np.int64,
        )

    def text(name: str) -> list[str | None]:
        if name not in frame:
            return [None] * size
        return [v or None for v in frame[name].fillna("").astype(str)]

    log = number("log_mono_ns")
    msec = np.array([int(v.replace(".", "")) for v in frame.msec.astype(str)], np.int64)
    took = np.array([round(float(v) * 1000) for v in frame.request_time.astype(str)], np.int64)
    peer, local = addresses(frame.realip_remote_addr), addresses(frame.server_addr)
    pid = number("worker_pid")
    tries = [tries_of(v) for v in frame.upstream_addr.fillna("").astype(str)]

    def per_try(name: str, convert: Callable[[str], int]) -> list[list[int]]:
        values = [tries_of(v) for v in frame[name].fillna("").astype(str)]
        return [[convert(v) for v in row] for row in values]

    columns: dict[str, Any] = {
        "worker_pid": pid,
        "worker_started_unix_ms": np.full(size, clock.unix_ns // 1_000_000 - 3_600_000),
        "line_no": pd.Series(pid).groupby(pid).cumcount().to_numpy() + 1,
        "request_id": text("request_id"),
        "log_unix_ns": clock.unix(log),
        "log_mono_ns": log,
        "access_mono_ns": number("access_mono_ns"),
        "header_mono_ns": number("header_filter_mono_ns"),
        "started_unix_ns": (msec - took) * 1_000_000,
        "connection": number("connection"),
        "connection_requests": number("connection_requests"),
        "peer_hi": peer[0],
        "peer_lo": peer[1],
        "peer_port": number("realip_remote_port"),
        "local_hi": local[0],
        "local_lo": local[1],
        "local_port": number("server_port"),
        "tls_version": text("ssl_protocol"),
        "tls_cipher": text("ssl_cipher"),
        "http_version": [{"HTTP/1.0": 10, "HTTP/1.1": 11, "HTTP/2.0": 20}[v] for v in frame.server_protocol],
        "tls_read_bytes": number("tls_bytes_read"),
        "tls_written_bytes": number("tls_bytes_written"),
        "method": text("request_method"),
        "host": ["api.example.com"] * size,
        "path": [v.split("?")[0] for v in frame.request_uri],
        "query_names": [None] * size,
        "route_id": ["1"] * size,
        "status": number("status"),
        "request_bytes": number("request_length"),
        "response_bytes": number("bytes_sent"),
        "response_body_bytes": number("body_bytes_sent"),
        "content_length": number("content_length"),
        "upstream_scheme": text("upstream_scheme"),
        "attempt_addr": tries,
        "attempt_status": per_try("upstream_status", whole),
        "attempt_sent_bytes": per_try("upstream_bytes_sent", whole),
        "attempt_received_bytes": per_try("upstream_bytes_received", whole),
        "attempt_connect_ms": per_try("upstream_connect_time", milliseconds),
        "attempt_response_ms": per_try("upstream_response_time", milliseconds),
        "llm_prompt_tokens": np.full(size, -1),
        "llm_completion_tokens": np.full(size, -1),
    }
    arrays = []
    for column in LINE:
        values = columns.get(column.name, [None] * size)
        arrays.append(
            pa.array(values, type=column.type)
            if not isinstance(values, np.ndarray)
            else pa.array(values).cast(column.type)
        )
    return pa.Table.from_arrays(arrays, schema=records.schema(LINE))


def addresses(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Addresses as upper and lower half."""
    code, names = pd.factorize(column.astype(str))
    both = []
    for name in names:
        address = ipaddress.ip_address(name)
        number = int(address) if address.version == 6 else int(address) | 0xFFFF << 32
        both.append((number >> 64, number & (1 << 64) - 1))
    high, low = np.array([b[0] for b in both], np.uint64), np.array([b[1] for b in both], np.uint64)
    return high[code], low[code]


def tries_of(value: str) -> list[str]:
    """nginx's list of tries: commas, and colons where an internal redirect lies between."""
    return [part.strip() for part in value.replace(" : ", ", ").split(", ")] if value else []


def whole(value: str) -> int:
    return int(value) if value.isdigit() else -1


def milliseconds(value: str) -> int:
    return round(float(value) * 1000) if value and value != "-" else -1


def excerpt(case: Recorded, flows_wanted: int) -> Recorded:
    """The lines of the first client connections that had any, and all flows that carried bytes of them."""
    truth = case.truth[case.truth.downstream_flow.notna()]
    lines = case.lines.to_pandas()[["request_id"]]
    mine = truth[truth.request_id.isin(lines.request_id) | truth.request_id.isna()]
    chosen = pd.unique(mine.downstream_flow)[:flows_wanted]
    kept = truth[truth.downstream_flow.isin(chosen)]
    cookies = case.flows.column("flow").to_pandas().astype("int64")
    return Recorded(
        name=case.name,
        flows=case.flows.filter(pa.array(cookies.isin(chosen).to_numpy())),
        lines=case.lines.filter(pa.array(lines.request_id.isin(kept.request_id).to_numpy())),
        truth=kept.drop(columns=["id"], errors="ignore"),
        clock=case.clock,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--excerpt", type=Path, required=True)
    options = parser.parse_args()
    sizes = {
        "h1-plain": 1,
        "h1-tls": 1,
        "h1-pipelined": 1,
        "h2-tls": 1,
        "early-plain": 90,
        "port-reuse": 400,
        "streams-plain": 20,
        "streams-tls": 15,
    }
    for name in cases(options.data):
        if name not in sizes:
            continue
        part = excerpt(load(options.data / name), sizes[name])
        folder = options.excerpt / name
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(part.flows, folder / "flow.parquet", compression="zstd")
        pq.write_table(part.lines, folder / "line.parquet", compression="zstd")
        part.truth.to_parquet(folder / "truth.parquet", compression="zstd", index=False)
        clock = {"mono_ns": part.clock.mono_ns, "unix_ns": part.clock.unix_ns}
        (folder / "clock.json").write_text(json.dumps(clock) + "\n")
        print(name, len(part.flows), len(part.lines), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
