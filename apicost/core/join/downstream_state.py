"""What the downstream leg knows between two steps, as batches of NumPy columns.

A *flow* here is one life of a socket cookie under one probe: (cookie, birth). When the probe is loaded
anew its counters begin at zero again with a new birth, so the pair tells the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from apicost.core.join.segments import I64, cumulate, ends_of, starts_of
from apicost.core.join.upstream_columns import COUNTERS, I32, U8, U64, Bool, Columns, Counts
from apicost.core.records import SnapshotKind, numbers

_TURN_TIMES = ("request_first_mono_ns", "request_last_mono_ns", "response_first_mono_ns", "response_last_mono_ns")
_SYN = 2  # TCP flag


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows(Columns):
    """Flows that are open, or closed with bytes still to be given out. Sorted by (flow, born)."""

    flow: U64
    born_mono_ns: I64
    role: U8
    protocol: U8
    local_hi: U64
    local_lo: U64
    local_port: I32
    peer_hi: U64
    peer_lo: U64
    peer_port: I32
    whole: Bool  # its first packet was seen
    closed: Bool
    given: Counts  # given out so far
    given_mono_ns: I64  # time of the last packet that was given out
    proved: Bool  # what was given out ends where a request ends, to the byte
    pending_mono_ns: I64  # time of the first snapshot with bytes not given out; 0 none
    connection: U64  # hash of the gateway's connection that it carries; 0 not known
    next_request: I32  # number of the next request expected on it; -1 not known
    last_line: I64  # line_id of the last exchange given out; -1 none
    last_tls: Bool
    next_turn: I64  # the first turn that is not wholly given out
    turn_in_bytes: I64  # payload that had come in when that turn began


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns(Columns):
    """Snapshots that end a turn, and the latest of each flow. Sorted by flow, then as they grew."""

    flow: U64
    born_mono_ns: I64
    kind: U8
    turn: I64
    last_mono_ns: I64
    request_first_mono_ns: I64
    request_last_mono_ns: I64
    response_first_mono_ns: I64
    response_last_mono_ns: I64
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines(Columns):
    """The numbers of usage lines that the downstream leg needs. Absent is -1."""

    line_id: I64
    connection: U64  # hash of the connection's identity
    place: U64  # hash of peer address, peer port, local port
    request: I32  # number on the connection, from 1
    http: U8
    tls: Bool
    status: I32
    in_bytes: I64  # app bytes that the request took in, a discarded body included
    out_bytes: I64
    in_offset: I64  # TLS layer's counter after this request; -1 with the other there: it is ahead of the request
    out_offset: I64
    body_bytes: I64  # request's Content-Length
    unread: Bool  # the body is known to be discarded, and is in in_bytes already
    record_bytes: I64  # what TLS adds to each record; 0 unknown
    sha384: Bool  # the cipher's hash: tells how long the client's Finished is
    started_mono_ns: I64  # the latest time at which the request is known to be there
    header_mono_ns: I64
    log_mono_ns: I64


@dataclass(frozen=True, slots=True, kw_only=True)
class Legs(Columns):
    """What is known of a request's downstream leg, one row per line."""

    line_id: I64
    flow: U64  # 0: no flow was seen
    confidence: U8
    started_mono_ns: I64
    ended_mono_ns: I64
    first_byte_ns: I64


@dataclass(frozen=True, slots=True, kw_only=True)
class LineParts(Columns):
    """Bytes of a flow that belong to a line: its own, or overhead booked with it."""

    line_id: I64
    flow: U64
    role: U8
    kind: U8
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class LooseParts(Columns):
    """Bytes of a flow that make a row of their own: overhead after its last exchange, or unattributed."""

    line_id: I64  # whose identity an overhead row carries; -1
    flow: U64
    role: U8
    kind: U8
    peer_hi: U64
    peer_lo: U64
    first_mono_ns: I64
    last_mono_ns: I64
    counts: Counts


def snapshots(table: pa.Table) -> tuple[Flows, Turns]:
    """The FLOW batch as one `Flows` row (nothing given out yet) and one `Turns` row for each snapshot."""

    def column(name: str, dtype: Any) -> Any:
        return numbers(table, name).astype(dtype, copy=False)

    size = len(table)
    cookie, born = column("flow", np.uint64), column("born_mono_ns", np.int64)
    kind = column("kind", np.uint8)
    counts = np.empty((size, len(COUNTERS)), np.int64)
    for position, name in enumerate(COUNTERS[:-1]):
        counts[:, position] = numbers(table, name)
    counts[:, -1] = column("in_resent_bytes", np.int64) + column("out_resent_bytes", np.int64)
    zero = np.zeros(size, np.int64)
    flows = Flows(
        flow=cookie,
        born_mono_ns=born,
        role=column("role", np.uint8),
        protocol=column("protocol", np.uint8),
        local_hi=column("local_hi", np.uint64),
        local_lo=column("local_lo", np.uint64),
        local_port=column("local_port", np.int32),
        peer_hi=column("peer_hi", np.uint64),
        peer_lo=column("peer_lo", np.uint64),
        peer_port=column("peer_port", np.int32),
        whole=(column("in_tcp_flags", np.uint8) & _SYN) > 0,
        closed=kind == SnapshotKind.CLOSED,
        given=np.zeros((size, len(COUNTERS)), np.int64),
        given_mono_ns=born,
        proved=np.ones(size, np.bool_),
        pending_mono_ns=zero,
        connection=np.zeros(size, np.uint64),
        next_request=np.full(size, -1, np.int32),
        last_line=np.full(size, -1, np.int64),
        last_tls=np.zeros(size, np.bool_),
        next_turn=zero,
        turn_in_bytes=zero,
    )
    turns = Turns(
        flow=cookie,
        born_mono_ns=born,
        kind=kind,
        turn=column("turn", np.int64),
        last_mono_ns=column("last_mono_ns", np.int64),
        counts=counts,
        **{name: column(name, np.int64) for name in _TURN_TIMES},
    )
    return flows, turns


def merged(old: Flows, old_turns: Turns, new: Flows, new_turns: Turns) -> tuple[Flows, Turns, I64]:
    """What is known after new snapshots, in any order and with repetitions.

    Returns the flows, their turns, and for each turn the position of its flow. Of snapshots within a
    turn (sweeps of the flow table) only the latest of a flow is kept: the cut between two requests must
    not depend on when a sweep happened to pass. A snapshot that says less than what was given out
    already says nothing new.
    """
    flows, turns = Flows.concat([old, new]), Turns.concat([old_turns, new_turns])
    known = len(old)
    order = np.lexsort((flows.born_mono_ns, flows.flow))
    flows = flows.take(order)
    starts = starts_of_pairs(flows.flow, flows.born_mono_ns)
    if len(starts) == len(flows):
        joined = flows
    else:
        # What was known comes first (the sort is stable), so `take(starts)` keeps what it carries.
        joined = flows.take(starts).replace(
            closed=np.logical_or.reduceat(flows.closed, starts),
            whole=np.logical_or.reduceat(flows.whole, starts),
            role=np.maximum.reduceat(flows.role, starts),
        )
    fresh = order[starts] >= known if len(starts) else np.zeros(0, np.bool_)
    joined = joined.replace(next_request=np.where(fresh & joined.whole, 1, joined.next_request).astype(np.int32))
    wire = turns.counts[:, 0] + turns.counts[:, 1]
    turns = turns.take(np.lexsort((turns.kind, wire, turns.born_mono_ns, turns.flow)))
    turn_starts = starts_of_pairs(turns.flow, turns.born_mono_ns)
    owner = cumulate_ones(turn_starts, len(turns))
    latest = np.zeros(len(turns), np.bool_)
    latest[ends_of(owner)] = True
    given = joined.given[owner, 0] + joined.given[owner, 1]
    wire = turns.counts[:, 0] + turns.counts[:, 1]
    joined = past_given_turns(joined, turns, owner)
    keep = latest | ((turns.kind != SnapshotKind.OPEN) & (wire > given))
    if not keep.all():
        turns, owner = turns.take(keep), owner[keep]
    return joined, _never_less(turns, owner), owner


def past_given_turns(flows: Flows, turns: Turns, owner: I64) -> Flows:
    """The flows with `next_turn` and `turn_in_bytes` behind the turns that are wholly given out."""
    wire = turns.counts[:, 0] + turns.counts[:, 1]
    given = flows.given[owner, 0] + flows.given[owner, 1]
    over = (turns.kind == SnapshotKind.TURN) & (wire <= given)
    next_turn = flows.next_turn.copy()
    np.maximum.at(next_turn, owner[over], turns.turn[over] + 1)
    begun = flows.turn_in_bytes.copy()
    np.maximum.at(begun, owner[over], turns.counts[over, 2])
    return flows.replace(next_turn=next_turn, turn_in_bytes=begun)


def unbroken(flows: Flows, turns: Turns, owner: I64) -> Bool:
    """Per snapshot: no turn before it is missing, be it lost or not here yet."""
    if len(turns) == 0:
        return np.zeros(0, np.bool_)
    starts = starts_of(owner)
    missing = np.zeros(len(turns), np.int64)
    missing[1:] = turns.turn[1:] > turns.turn[:-1] + 1
    missing[starts] = flows.whole[owner[starts]] & (turns.turn[starts] > flows.next_turn[owner[starts]])
    return cumulate(missing, starts) == 0


def starts_of_pairs(first: U64, second: I64) -> I64:
    """First position of each run of equal pairs."""
    if len(first) == 0:
        return np.zeros(0, np.int64)
    new = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return np.flatnonzero(np.concatenate(([True], new))).astype(np.int64)


def cumulate_ones(starts: I64, size: int) -> I64:
    """The number of its run for each row, from 0."""
    marks = np.zeros(size, np.int64)
    marks[starts] = 1
    return np.cumsum(marks) - 1


def place_in_run(group: I64) -> I64:
    """Position of each row within its run, from 0."""
    return cumulate(np.ones(len(group), np.int64), starts_of(group)) - 1


def _never_less(turns: Turns, owner: I64) -> Turns:
    """Counters that never fall within a flow.

    A sweep reads the counters of a flow one after the other while packets go on; one of them can be a
    packet ahead of the others, and the next snapshot of the ring a packet behind it.
    """
    if len(turns) < 2:
        return turns
    same = owner[1:] == owner[:-1]
    falls = same & (np.diff(turns.counts, axis=0) < 0).any(axis=1)
    if not falls.any():
        return turns
    counts = turns.counts.copy()
    for number in np.unique(owner[1:][falls]):
        rows = slice(np.searchsorted(owner, number), np.searchsorted(owner, number, side="right"))
        counts[rows] = np.maximum.accumulate(counts[rows], axis=0)
    return turns.replace(counts=counts)
