"""Snapshots of upstream flows -> turns: what each stretch of a flow added to its counters.

Rules of this file:
- Counters are cumulative, so a turn is the difference of two snapshots, and no byte can be lost or
  counted twice: a lost snapshot only makes two turns one (`n_turns` says how many).
- A flow is cut at TURN and CLOSED snapshots. An OPEN one (a sweep) shows a turn that is still going
  on: it makes a *provisional* turn, and moves the flow's cut only when an attempt takes it.
- Where a snapshot is missing the next one waits `gap_wait_ns`: it may only be late.
- The same snapshot may come again, and any number of them in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.join.upstream_columns import (
    COUNTERS,
    I32,
    I64,
    IN_PACKETS,
    IN_PAYLOAD,
    IN_WIRE,
    OUT_PACKETS,
    OUT_PAYLOAD,
    OUT_WIRE,
    RESENT,
    U8,
    U64,
    Bool,
    Columns,
    Counts,
)
from apicost.core.records import SnapshotKind

_SYN = 0x02  # TCP flags, RFC 9293 section 3.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots(Columns):
    """Snapshots of flows, cut down to what this leg needs. Columns as in `records.FLOW`."""

    flow: U64
    turn: I64
    kind: U8
    peer_hi: U64
    peer_lo: U64
    peer_port: I32
    born_mono_ns: I64
    last_mono_ns: I64
    request_first_mono_ns: I64
    request_last_mono_ns: I64
    response_first_mono_ns: I64
    response_last_mono_ns: I64
    syn_sent: Bool  # the handshake was counted
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows(Columns):
    """What is known of a flow between steps. Sorted by `flow`, each once.

    next_turn: the turn that the next difference begins with.
    cut_mono_ns: the last packet before the cut.
    last_line, last_tls: the line that was given bytes of this flow last, -1 none yet, and whether over TLS.
    worker_pid, votes: the gateway worker that owns the connection, as far as attempts told, and how surely.
    claimed_turn: the highest turn that an attempt took, -1 none yet: what lies before it waits no longer than
        a late line may take.
    counts: the counters up to which bytes are cut into turns.
    """

    flow: U64
    next_turn: I64
    born_mono_ns: I64
    last_mono_ns: I64
    cut_mono_ns: I64
    last_line: I64
    last_tls: Bool
    worker_pid: I32
    votes: I32
    claimed_turn: I64
    closed: Bool
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns(Columns):
    """Bytes of a flow that wait for their attempt. In order of (flow, turn).

    begin_mono_ns: first payload towards the backend; where there is none, when the flow was born.
    end_mono_ns: last payload either way; where there is none, the last packet.
    last_mono_ns: the last packet counted here.
    first, last: the flow's first turn (the handshake is in it), its last one (the close is in it).
    provisional: still going on; stands for a sweep, and is taken whole or not at all.
    start_in, start_out: the flow's payload counters where this turn begins.
    """

    flow: U64
    turn: I64
    n_turns: I64
    peer_hi: U64
    peer_lo: U64
    peer_port: I32
    born_mono_ns: I64
    begin_mono_ns: I64
    end_mono_ns: I64
    last_mono_ns: I64
    first: Bool
    last: Bool
    provisional: Bool
    syn_sent: Bool
    start_in: I64
    start_out: I64
    counts: Counts


def snapshots_of(flows: pa.Table) -> Snapshots:
    """The snapshots of a FLOW batch; rows of other roles must have been taken out."""

    def column(name: str) -> npt.NDArray[np.generic]:
        return records.numbers(flows, name)

    counts = np.empty((len(flows), len(COUNTERS)), np.int64)
    for position, name in enumerate(COUNTERS[:-1]):
        counts[:, position] = column(name)
    counts[:, -1] = column("in_resent_bytes").astype(np.int64) + column("out_resent_bytes").astype(np.int64)
    times = ("born", "last", "request_first", "request_last", "response_first", "response_last")
    return Snapshots(
        flow=column("flow").astype(np.uint64, copy=False),
        turn=column("turn").astype(np.int64),
        kind=column("kind").astype(np.uint8, copy=False),
        peer_hi=column("peer_hi").astype(np.uint64, copy=False),
        peer_lo=column("peer_lo").astype(np.uint64, copy=False),
        peer_port=column("peer_port").astype(np.int32),
        syn_sent=(column("out_tcp_flags").astype(np.uint8) & _SYN) != 0,
        counts=counts,
        **{f"{name}_mono_ns": column(f"{name}_mono_ns").astype(np.int64, copy=False) for name in times},
    )


def cut(
    flows: Flows, snapshots: Snapshots, *, now_mono_ns: int, gap_wait_ns: int, final: bool
) -> tuple[Flows, Snapshots, Turns]:
    """Cut flows into turns as far as their snapshots allow.

    Returns the flows with their cuts moved, the snapshots that are kept for the next step (those behind a
    gap, and each flow's newest sweep), and the new turns in order of (flow, turn), provisional ones included.
    """
    if not len(snapshots):
        return flows, snapshots, Turns.empty()
    rows = _newest(snapshots)
    at, old = find(flows, rows.flow)
    base = np.zeros((len(rows), len(COUNTERS)), np.int64)
    base[old] = flows.counts[at[old]]
    next_turn = np.where(old, flows.next_turn[at], 0) if len(flows) else np.zeros(len(rows), np.int64)

    # What lies at or before the cut came before.
    sweep = rows.kind == SnapshotKind.OPEN
    news = (rows.counts > base).any(axis=1) | ((rows.turn >= next_turn) & ~sweep)
    if not news.all():
        rows, base, next_turn, sweep = rows.take(news), base[news], next_turn[news], sweep[news]
        if not len(rows):
            return flows, rows, Turns.empty()
    begins = run_starts(rows.flow)
    ends = np.append(begins[1:], True)
    # A sweep that a later snapshot follows is of a turn whose own record is missing, or late.
    expected = next_turn.copy()
    inner = ~begins[1:]
    expected[1:][inner] = (rows.turn[:-1] + np.where(sweep[:-1], 0, 1))[inner]
    gap = (rows.turn > expected) | (sweep & ~ends)
    waits = gap & (rows.last_mono_ns > now_mono_ns - gap_wait_ns) & (not final)
    held = _from_here_on(waits, begins)
    passing = ~held & (~sweep | ends)
    keep = rows.take(held | (sweep & ends))
    if not passing.any():
        return flows, keep, Turns.empty()
    rows, base, next_turn = rows.take(passing), base[passing], next_turn[passing]
    turns = _differences(flows, rows, base, next_turn)
    return _moved(flows, rows), keep, turns


def find(flows: Flows, flow: U64) -> tuple[npt.NDArray[np.int64], Bool]:
    """Where these flows stand in the table (some valid row where they don't), and whether they do."""
    if not len(flows):
        return np.zeros(len(flow), np.int64), np.zeros(len(flow), np.bool_)
    at = np.minimum(np.searchsorted(flows.flow, flow), len(flows) - 1)
    return at, flows.flow[at] == flow


def run_starts(values: npt.NDArray[np.generic]) -> Bool:
    """True where a value differs from the one before it."""
    starts = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=starts[1:])
    return starts


def _newest(snapshots: Snapshots) -> Snapshots:
    """One snapshot for each turn of each flow, in order of (flow, turn).

    A TURN record is a turn's last word; else the highest counters win, and CLOSED stays closed.
    """
    done = snapshots.kind == SnapshotKind.TURN
    order = np.lexsort((snapshots.turn, snapshots.flow))
    flow, turn = snapshots.flow[order], snapshots.turn[order]
    starts = run_starts(flow)
    starts[1:] |= turn[1:] != turn[:-1]
    if starts.all():
        return snapshots.take(order)
    counts = snapshots.counts
    order = np.lexsort((counts[:, IN_WIRE] + counts[:, OUT_WIRE], done, snapshots.turn, snapshots.flow))
    newest = snapshots.take(order[np.append(starts[1:], True)])
    over = np.logical_or.reduceat(snapshots.kind[order] == SnapshotKind.CLOSED, np.flatnonzero(starts))
    kind = np.where(over & (newest.kind == SnapshotKind.OPEN), SnapshotKind.CLOSED, newest.kind)
    return newest.replace(kind=kind.astype(np.uint8))


def _from_here_on(marked: Bool, begins: Bool) -> Bool:
    """True from the first marked row of each run on, to the run's end."""
    if not marked.any():
        return marked
    running = np.cumsum(marked)
    before: I64 = (running - marked)[begins][np.cumsum(begins) - 1]
    result: Bool = running > before
    return result


def _differences(flows: Flows, rows: Snapshots, base: Counts, next_turn: I64) -> Turns:
    """What each snapshot adds to the one before it. `base` and `next_turn`: the flow's cut, for each row."""
    begins = run_starts(rows.flow)
    inner = np.flatnonzero(~begins)
    before: Counts = base
    counts: Counts = rows.counts
    before[inner] = counts[inner - 1]
    if (counts < before).any():
        # A sweep may have read counters in the middle of an update: a counter never goes back.
        counts = _never_back(counts, before, begins)
        before[inner] = counts[inner - 1]
        rows.counts[:] = counts
    from_turn = next_turn
    from_turn[inner] = rows.turn[inner - 1] + 1
    n_turns = np.maximum(rows.turn - from_turn + 1, 1)
    added = counts - before
    # A turn's times are its own only if it has payload that was not taken before; those of a merged one
    # are the last turn's, and it began somewhere after the packet before it.
    at, old = find(flows, rows.flow)
    previous = np.where(old, flows.cut_mono_ns[at], rows.born_mono_ns) if len(flows) else rows.born_mono_ns.copy()
    previous[inner] = rows.last_mono_ns[inner - 1]
    payload = (added[:, IN_PAYLOAD] > 0) | (added[:, OUT_PAYLOAD] > 0)
    whole = payload & (n_turns == 1) & (rows.request_first_mono_ns > 0)
    end = np.maximum(rows.request_last_mono_ns, rows.response_last_mono_ns)
    turns = Turns(
        flow=rows.flow,
        turn=rows.turn,
        n_turns=n_turns,
        peer_hi=rows.peer_hi,
        peer_lo=rows.peer_lo,
        peer_port=rows.peer_port,
        born_mono_ns=rows.born_mono_ns,
        begin_mono_ns=np.where(whole, rows.request_first_mono_ns, previous),
        end_mono_ns=np.where(payload & (end > 0), end, rows.last_mono_ns),
        last_mono_ns=rows.last_mono_ns,
        first=before[:, IN_WIRE] + before[:, OUT_WIRE] == 0,
        last=rows.kind == SnapshotKind.CLOSED,
        provisional=rows.kind == SnapshotKind.OPEN,
        syn_sent=rows.syn_sent,
        start_in=before[:, IN_PAYLOAD],
        start_out=before[:, OUT_PAYLOAD],
        counts=added,
    )
    return turns.take(np.flatnonzero(added.any(axis=1)))


def _never_back(counts: Counts, before: Counts, begins: Bool) -> Counts:
    """The counters, each raised to the highest of its flow so far."""
    raised = counts.copy()
    starts = np.flatnonzero(begins)
    for start, end in zip(starts, np.append(starts[1:], len(counts)), strict=True):
        stretch = raised[start:end]
        stretch[0] = np.maximum(stretch[0], before[start])
        np.maximum.accumulate(stretch, axis=0, out=stretch)
    return raised


def _moved(flows: Flows, rows: Snapshots) -> Flows:
    """The flows with their cuts moved to their last final snapshot; flows not seen before are added."""
    last = rows.take(np.append(run_starts(rows.flow)[1:], True))
    fresh = last.take(~find(flows, last.flow)[1])
    added = Flows.blank(len(fresh)).replace(
        flow=fresh.flow,
        born_mono_ns=fresh.born_mono_ns,
        cut_mono_ns=fresh.born_mono_ns,
        last_line=np.full(len(fresh), -1, np.int64),
        claimed_turn=np.full(len(fresh), -1, np.int64),
        worker_pid=np.full(len(fresh), -1, np.int32),
    )
    merged = Flows.concat([flows, added])
    merged = merged.take(np.argsort(merged.flow, kind="stable"))  # a copy: the caller's batch stays as it was
    at, _ = find(merged, last.flow)
    merged.last_mono_ns[at] = np.maximum(merged.last_mono_ns[at], last.last_mono_ns)
    final = rows.take(np.flatnonzero(rows.kind != SnapshotKind.OPEN))
    if len(final):
        final = final.take(np.append(run_starts(final.flow)[1:], True))
        at, _ = find(merged, final.flow)
        merged.counts[at] = final.counts
        merged.cut_mono_ns[at] = final.last_mono_ns
        merged.next_turn[at] = np.maximum(merged.next_turn[at], final.turn + 1)
        merged.closed[at] |= final.kind == SnapshotKind.CLOSED
    return merged


def handshake_bytes(turns: Turns) -> I64:
    """Wire bytes that each turn spent on its connection's handshake; 0 where it is not in it.

    A turn without payload is all handshake: a connection that was refused. Else SYN, SYN-ACK and the
    acknowledgement are what the header bytes exceed those of the other packets by; where payload was sent again
    the headers can't be told from it, and the usual sizes stand for them.
    """
    counts = turns.counts
    wire = counts[:, IN_WIRE] + counts[:, OUT_WIRE]
    payload = counts[:, IN_PAYLOAD] + counts[:, OUT_PAYLOAD]
    bare = (payload == 0) & (counts[:, RESENT] == 0) & turns.first
    opened = turns.first & turns.syn_sent & ~bare
    result = np.where(bare, wire, 0)
    if not opened.any():
        return result
    rows = np.flatnonzero(opened)
    counts = counts[rows]
    mapped = (turns.peer_hi[rows] == 0) & (turns.peer_lo[rows] >> np.uint64(32) == 0xFFFF)
    plain = np.where(mapped, 40, 60)  # IP and TCP headers: RFC 791, RFC 8200, RFC 9293
    in_headers = counts[:, IN_WIRE] - counts[:, IN_PAYLOAD]
    out_headers = counts[:, OUT_WIRE] - counts[:, OUT_PAYLOAD]
    stamped = plain + 12  # timestamps, RFC 7323, in every packet but not always agreed on
    syn_ack = in_headers - (counts[:, IN_PACKETS] - 1) * stamped
    header = np.where(syn_ack >= plain + 4, stamped, plain)
    syn_ack = in_headers - (counts[:, IN_PACKETS] - 1) * header
    opening = out_headers - (counts[:, OUT_PACKETS] - 2) * header
    usual = (counts[:, RESENT] > 0) | (syn_ack > plain + 40) | (opening > 2 * plain + 80)
    guess = 3 * plain + 52  # options: 20 in each SYN, 12 in the third packet
    result[rows] = np.clip(np.where(usual, guess, syn_ack + opening), 0, np.maximum(in_headers + out_headers, 0))
    return result
