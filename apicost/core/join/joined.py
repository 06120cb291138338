"""The rows of a step: JOINED and PART, from what both legs settled.

Wire columns of an exchange hold its share of the flow's overhead, which `*_overhead_bytes` tells; payload columns
hold the request's own payload, so that they can be compared with what its client counted. The overhead's
payload (a TLS handshake, say) is in its PART row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.clock import Clock
from apicost.core.join.downstream_state import Legs, LineParts, LooseParts
from apicost.core.join.segments import I64
from apicost.core.join.upstream import Parts, Settled
from apicost.core.join.upstream_columns import COUNTERS, U64, Counts
from apicost.core.records import JOINED, LEGS, PART, Confidence, Role, RowKind

# Columns of a line that its rows carry as they are.
SAME = [
    "worker_pid", "worker_started_unix_ms", "line_no", "request_id", "method", "host", "path", "query_names",
    "upstream_path", "route_id", "service_id", "consumer", "matched_uri", "status", "response_source",
    "http_version", "tls_version", "request_content_type", "response_content_type", "auth_kinds", "llm_model",
    "llm_prompt_tokens", "llm_completion_tokens", "peer_hi", "peer_lo",
]  # fmt: skip
_ABSENT = {
    "worker_pid": -1, "worker_started_unix_ms": -1, "line_no": -1, "status": -1, "http_version": 0,
    "llm_prompt_tokens": -1, "llm_completion_tokens": -1,
}  # fmt: skip
_SCHEMA = records.schema(JOINED)
_PART_SCHEMA = records.schema(PART)
_LEG_COUNTERS = (*COUNTERS[:6], "resent_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a step gives out."""

    exchanges: pa.Table
    parts: pa.Table
    overhead_rows: int
    unattributed_rows: int


def rows(
    *,
    lines: pa.Table,
    legs: Legs,
    parts: LineParts,
    tries: Settled,
    loose: LooseParts,
    upstream_loose: Parts,
    identities: pa.Table,
    identity_ids: I64,
    clock: Clock,
    with_parts: bool = True,
) -> Rows:
    """The rows of lines that are ready, and of bytes without a line.

    lines: as `held` has them, ascending, in one chunk; legs, parts, tries: may hold other lines' too.
    identities: where overhead rows find the request that they are booked to.
    """
    ids: I64 = np.asarray(records.numbers(lines, "line_id"), np.int64) if len(lines) else np.zeros(0, np.int64)
    exchanges, part_tables = _exchanges(lines, ids, legs, parts, tries, clock, with_parts)
    others = LooseParts.concat(
        [
            loose,
            LooseParts(
                line_id=upstream_loose.line_id,
                flow=upstream_loose.flow,
                role=np.full(len(upstream_loose), Role.UPSTREAM, np.uint8),
                kind=upstream_loose.kind,
                peer_hi=upstream_loose.peer_hi,
                peer_lo=upstream_loose.peer_lo,
                first_mono_ns=upstream_loose.first_mono_ns,
                last_mono_ns=upstream_loose.last_mono_ns,
                counts=upstream_loose.counts,
            ),
        ]
    )
    tables = [exchanges]
    overhead = others.kind == RowKind.OVERHEAD
    known = np.isin(others.line_id, identity_ids)
    booked = others.take(overhead & known)
    # Overhead of a request that is no longer known has no one to be booked to.
    free = others.take(~(overhead & known))
    free = free.replace(kind=np.full(len(free), RowKind.UNATTRIBUTED, np.uint8))
    offset = len(exchanges)
    for batch in (booked, free):
        if len(batch):
            tables.append(_loose(batch, identities if batch is booked else None, identity_ids, clock))
            if with_parts:
                row = offset + np.arange(len(batch))
                part_tables.append(_part_table(batch.flow, batch.role, batch.kind, row, batch.counts))
            offset += len(batch)
    return Rows(
        exchanges=pa.concat_tables(tables),
        parts=pa.concat_tables([_PART_SCHEMA.empty_table(), *part_tables]),
        overhead_rows=len(booked),
        unattributed_rows=len(free),
    )


def _exchanges(
    lines: pa.Table, ids: I64, legs: Legs, parts: LineParts, tries: Settled, clock: Clock, with_parts: bool
) -> tuple[pa.Table, list[pa.Table]]:
    size = len(ids)
    part_tables: list[pa.Table] = []
    if size == 0:
        return _SCHEMA.empty_table(), part_tables
    columns: dict[str, Any] = {name: lines.column(name) for name in SAME}
    columns["kind"] = np.full(size, RowKind.EXCHANGE, np.uint8)
    columns["role"] = np.full(size, Role.DOWNSTREAM, np.uint8)

    at, here = _rows_of(ids, legs.line_id)
    order = np.empty(size, np.int64)
    order[at] = np.flatnonzero(here)
    leg = legs.take(order)
    started = np.asarray(records.numbers(lines, "started_unix_ns"), np.int64)
    logged = np.asarray(records.numbers(lines, "log_unix_ns"), np.int64)
    header = np.asarray(records.numbers(lines, "header_mono_ns"), np.int64)
    seen = leg.started_mono_ns >= 0
    columns["started_unix_ns"] = np.where(seen, clock.unix(leg.started_mono_ns), started)
    columns["ended_unix_ns"] = np.where(seen, clock.unix(leg.ended_mono_ns), logged)
    told = np.where(header >= 0, np.maximum(clock.unix(header) - started, 0), -1)
    columns["first_byte_ns"] = np.where(seen, leg.first_byte_ns, told)

    at, here = _rows_of(ids, parts.line_id)
    own = parts.kind[here] == RowKind.EXCHANGE
    total, overhead = np.zeros((size, len(COUNTERS)), np.int64), np.zeros((size, len(COUNTERS)), np.int64)
    np.add.at(total, at, parts.counts[here])
    np.add.at(overhead, at[~own], parts.counts[here][~own])
    down = total.copy()
    down[:, 2:4] -= overhead[:, 2:4]
    columns |= _leg("downstream", leg.flow, down, overhead[:, 0] + overhead[:, 1], leg.confidence)
    columns["downstream_in_app_bytes"] = lines.column("request_bytes")
    columns["downstream_out_app_bytes"] = lines.column("response_bytes")
    if with_parts:
        chosen = parts.take(here)
        part_tables.append(_part_table(chosen.flow, chosen.role, chosen.kind, at, chosen.counts))

    at, here = _rows_of(ids, tries.line_id)
    tries = tries.take(here)
    up = np.zeros((size, len(COUNTERS)), np.int64)
    np.add.at(up, at, tries.counts)
    booked = np.zeros(size, np.int64)
    np.add.at(booked, at, tries.overhead_bytes)
    columns["attempts"] = np.bincount(at, minlength=size).astype(np.int16)
    flow, peer_hi, peer_lo = (np.zeros(size, np.uint64) for _ in range(3))
    # In the order of the tries, so that the last one stays.
    turn = np.lexsort((tries.try_no, at))
    peer_hi[at[turn]], peer_lo[at[turn]] = tries.peer_hi[turn], tries.peer_lo[turn]
    with_flow = turn[tries.flow[turn] > 0]
    flow[at[with_flow]] = tries.flow[with_flow]
    columns["upstream_peer_hi"], columns["upstream_peer_lo"] = peer_hi, peer_lo
    columns |= _leg("upstream", flow, up, booked, _worst(size, at, tries))
    columns["upstream_out_app_bytes"] = lines.column("attempts_sent_bytes")
    columns["upstream_in_app_bytes"] = lines.column("attempts_received_bytes")
    found = tries.flow > 0
    if with_parts:
        some = tries.take(found)
        part_tables.append(
            _part_table(
                some.flow,
                np.full(len(some), Role.UPSTREAM, np.uint8),
                np.full(len(some), RowKind.EXCHANGE, np.uint8),
                at[found],
                some.counts,
            )
        )
    return _table(columns), part_tables


def _worst(size: int, at: I64, tries: Settled) -> np.ndarray:
    """The confidence of an upstream leg: its least sure try; app-only when no try's flow was seen."""
    confidence = np.zeros(size, np.uint8)
    found = tries.flow > 0
    np.maximum.at(confidence, at[found], tries.confidence[found])
    missing = np.zeros(size, np.bool_)
    missing[at[~found]] = True
    seen = np.zeros(size, np.bool_)
    seen[at[found]] = True
    confidence[missing & ~seen] = Confidence.APP_ONLY
    confidence[missing & seen] = np.maximum(confidence[missing & seen], Confidence.ALIGNED)
    return confidence


def _loose(batch: LooseParts, identities: pa.Table | None, identity_ids: I64, clock: Clock) -> pa.Table:
    """One row for each part without an exchange of its own."""
    size = len(batch)
    columns: dict[str, Any]
    if identities is None:
        columns = {name: np.full(size, _ABSENT[name], np.int64) if name in _ABSENT else None for name in SAME}
        columns["peer_hi"], columns["peer_lo"] = batch.peer_hi, batch.peer_lo
        upstream = batch.role == Role.UPSTREAM
        columns["upstream_peer_hi"] = np.where(upstream, batch.peer_hi, np.uint64(0))
        columns["upstream_peer_lo"] = np.where(upstream, batch.peer_lo, np.uint64(0))
        columns["peer_hi"] = np.where(upstream, np.uint64(0), batch.peer_hi)
        columns["peer_lo"] = np.where(upstream, np.uint64(0), batch.peer_lo)
    else:
        order = np.argsort(identity_ids, kind="stable")
        where = order[np.searchsorted(identity_ids[order], batch.line_id)]
        taken = identities.select(SAME).take(where)
        columns = {name: taken.column(name) for name in SAME}
        for name in ("llm_prompt_tokens", "llm_completion_tokens"):
            columns[name] = np.full(size, -1, np.int64)
        upstream = batch.role == Role.UPSTREAM
        columns["upstream_peer_hi"] = np.where(upstream, batch.peer_hi, np.uint64(0))
        columns["upstream_peer_lo"] = np.where(upstream, batch.peer_lo, np.uint64(0))
    columns["kind"], columns["role"] = batch.kind, batch.role
    columns["started_unix_ns"] = clock.unix(batch.first_mono_ns)
    columns["ended_unix_ns"] = clock.unix(batch.last_mono_ns)
    columns["first_byte_ns"] = np.full(size, -1, np.int64)
    columns["attempts"] = np.zeros(size, np.int16)
    grade = np.where(batch.kind == RowKind.OVERHEAD, Confidence.ALIGNED, Confidence.NONE).astype(np.uint8)
    wire = batch.counts[:, 0] + batch.counts[:, 1]
    booked = np.where(batch.kind == RowKind.OVERHEAD, wire, 0)
    nothing = np.zeros(size, np.int64)
    for leg in LEGS:
        mine = upstream if leg == "upstream" else ~upstream
        columns |= _leg(
            leg,
            np.where(mine, batch.flow, np.uint64(0)),
            np.where(mine[:, None], batch.counts, 0),
            np.where(mine, booked, 0),
            np.where(mine, grade, np.uint8(0)),
        )
        columns[f"{leg}_in_app_bytes"] = columns[f"{leg}_out_app_bytes"] = nothing
    return _table(columns)


def _leg(leg: str, flow: U64, counts: Counts, overhead: I64, confidence: np.ndarray) -> dict[str, Any]:
    columns: dict[str, Any] = {f"{leg}_{name}": counts[:, i] for i, name in enumerate(_LEG_COUNTERS)}
    columns[f"{leg}_flow"] = flow
    columns[f"{leg}_overhead_bytes"] = overhead
    columns[f"{leg}_confidence"] = confidence
    return columns


def _rows_of(ids: I64, wanted: I64) -> tuple[I64, np.ndarray]:
    """Which rows of `wanted` are in `ids` (ascending): (their positions in `ids`, mask over `wanted`)."""
    at = np.minimum(np.searchsorted(ids, wanted), max(len(ids) - 1, 0))
    here = ids[at] == wanted if len(ids) else np.zeros(len(wanted), np.bool_)
    return at[here], here


def _table(columns: dict[str, Any]) -> pa.Table:
    size = len(columns["kind"])
    arrays = []
    for field in _SCHEMA:
        values = columns[field.name]
        if values is None:
            arrays.append(pa.nulls(size, field.type))
        elif isinstance(values, np.ndarray):
            arrays.append(pa.array(values).cast(field.type))
        else:
            arrays.append(values)
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)


def _part_table(flow: U64, role: np.ndarray, kind: np.ndarray, row: I64, counts: Counts) -> pa.Table:
    arrays = [pa.array(flow), pa.array(role), pa.array(kind), pa.array(row.astype(np.int64))]
    arrays += [pa.array(np.ascontiguousarray(counts[:, i])) for i in range(len(COUNTERS))]
    return pa.Table.from_arrays(arrays, schema=_PART_SCHEMA)
