"""Turns that stand for several requests, because snapshots between them were lost, and turns that must be kept short.

Rules of this file:
- A row is only ever replaced by rows whose counters sum to its own.
"""

from __future__ import annotations

import numpy as np

from apicost.core.join.upstream_columns import (
    COUNTERS,
    I64,
    IN_PAYLOAD,
    OUT_PAYLOAD,
    Bool,
    Counts,
)
from apicost.core.join.upstream_match import Owners, Pairs, Rows, Waiting
from apicost.core.join.upstream_turns import Turns, run_starts

OVERLAP_NS = 50_000_000  # a delayed acknowledgement, RFC 1122 section 4.2.3.2 allows 500 ms, Linux takes 40 ms
MOST_CANDIDATES = 24  # attempts that are looked at for one merged turn
MOST_STEPS = 4_000  # of the search in one merged turn
MOST_STEPS_IN_ALL = 400_000  # in one step of the correlator; what is left is tried again in the next
PLENTY = 16  # turns of an unclaimed tail that are kept apart: a stream's beginning is among them


def split_merged(
    turns: Turns, usable: Rows, attempts: Waiting, ripe: Bool, pairs: Pairs, owners: Owners
) -> tuple[Turns, Pairs]:
    """Give each merged turn that nobody took to the attempts whose bytes sum to it.

    ripe: attempts that may be settled in this step; a merged turn is given out to all its attempts at once.

    Returns the turns, merged ones replaced by one row for each attempt found, and the pairs with their turn
    rows renumbered and these attempts added. The payload of each is its attempt's own; headers and resent
    payload, which no count tells apart, are shared by payload.
    """
    free = np.zeros(len(turns), np.bool_)
    free[usable] = True
    free[pairs.turn] = False
    payload = turns.counts[:, IN_PAYLOAD] + turns.counts[:, OUT_PAYLOAD]
    rows = np.flatnonzero(free & (turns.n_turns > 1) & (payload > 0))
    waiting = ripe.copy()
    waiting[pairs.attempt] = False
    waiting &= ~attempts.tls & (attempts.sent_bytes > 0) & (attempts.received_bytes >= 0)
    if not len(rows) or not waiting.any():
        return turns, pairs
    found: dict[int, list[int]] = {}
    owner = owners.with_votes(turns.flow[pairs.turn], attempts.worker_pid[pairs.attempt]).of(turns.flow)
    steps = MOST_STEPS_IN_ALL
    for row in rows[np.argsort(turns.end_mono_ns[rows], kind="stable")].tolist():
        if steps <= 0:
            break
        chosen, spent = _members(turns, row, attempts, waiting, int(owner[row]))
        steps -= spent
        if chosen:
            found[row] = chosen
            waiting[chosen] = False
    return _replaced(turns, attempts, pairs, found) if found else (turns, pairs)


def _members(turns: Turns, row: int, attempts: Waiting, waiting: Bool, owner: int) -> tuple[list[int], int]:
    """Attempts, one after the other on the row's connection, that sum to its payload; and the steps taken."""
    counts = turns.counts[row]
    begin, end = int(turns.begin_mono_ns[row]) - OVERLAP_NS, int(turns.end_mono_ns[row])
    fits = waiting & (attempts.port == turns.peer_port[row]) & (attempts.addr_lo == turns.peer_lo[row])
    fits &= (attempts.addr_hi == turns.peer_hi[row]) & (attempts.low_mono_ns <= end) & (attempts.log_mono_ns >= begin)
    fits &= (attempts.low_mono_ns >= begin) & (attempts.sent_bytes <= counts[OUT_PAYLOAD])
    fits &= attempts.received_bytes <= counts[IN_PAYLOAD]
    if owner >= 0:
        fits &= attempts.worker_pid == owner
    rows = np.flatnonzero(fits)
    rows = rows[np.lexsort((attempts.log_mono_ns[rows], attempts.low_mono_ns[rows]))][:MOST_CANDIDATES].tolist()
    spent = 0

    def search(at: int, sent: int, received: int, room: int, chosen: list[int]) -> list[int]:
        nonlocal spent
        spent += 1
        if sent == 0 and received == 0:
            return chosen
        if spent > MOST_STEPS or room == 0:
            return []
        for index in range(at, len(rows)):
            attempt = rows[index]
            more_sent, more_received = int(attempts.sent_bytes[attempt]), int(attempts.received_bytes[attempt])
            if more_sent > sent or more_received > received:
                continue
            # One connection serves one worker, one request after the other.
            if chosen and attempts.worker_pid[attempt] != attempts.worker_pid[chosen[0]]:
                continue
            result = search(index + 1, sent - more_sent, received - more_received, room - 1, [*chosen, attempt])
            if result:
                return result
        return []

    chosen = search(0, int(counts[OUT_PAYLOAD]), int(counts[IN_PAYLOAD]), int(turns.n_turns[row]), [])
    return chosen, spent


def _replaced(turns: Turns, attempts: Waiting, pairs: Pairs, found: dict[int, list[int]]) -> tuple[Turns, Pairs]:
    """The turns with merged rows split, and the pairs that name them."""
    copies = np.ones(len(turns), np.int64)
    for row, chosen in found.items():
        copies[row] = len(chosen)
    begins = np.cumsum(copies) - copies
    result = turns.take(np.repeat(np.arange(len(turns)), copies))
    new_turns: list[int] = []
    new_attempts: list[int] = []
    for row, chosen in found.items():
        at = int(begins[row])
        members = np.array(chosen)
        rows = slice(at, at + len(chosen))
        result.counts[rows] = _shared(turns.counts[row], attempts.received_bytes[members], attempts.sent_bytes[members])
        result.start_in[rows] += np.append(0, np.cumsum(result.counts[rows, IN_PAYLOAD])[:-1])
        result.start_out[rows] += np.append(0, np.cumsum(result.counts[rows, OUT_PAYLOAD])[:-1])
        result.n_turns[rows] = 1
        result.first[at + 1 : at + len(chosen)] = False
        new_turns += range(at, at + len(chosen))
        new_attempts += chosen
    added = Pairs(
        turn=np.array(new_turns, np.int64),
        attempt=np.array(new_attempts, np.int64),
        sure=np.zeros(len(new_turns), np.bool_),
        proved=np.ones(len(new_turns), np.bool_),
        far=np.zeros(len(new_turns), np.bool_),
    )
    return result, Pairs.concat([pairs.replace(turn=begins[pairs.turn]), added])


def _shared(counts: Counts, received: I64, sent: I64) -> Counts:
    """One row of counters as many, which sum to it: payload as given, the rest by payload, largest remainder."""
    rows = np.zeros((len(sent), len(COUNTERS)), np.int64)
    rows[:, IN_PAYLOAD], rows[:, OUT_PAYLOAD] = received, sent
    for column in range(len(COUNTERS)):
        if column in (IN_PAYLOAD, OUT_PAYLOAD):
            continue
        # Wire bytes are the payload of their direction and headers; the headers are shared.
        own = rows[:, column + 2] if column < 2 else np.zeros(len(sent), np.int64)
        rest = int(counts[column] - own.sum())
        weights = received + sent + 1
        share = [rest * int(weight) // int(weights.sum()) for weight in weights]
        behind = [rest * int(weight) % int(weights.sum()) for weight in weights]
        for index in sorted(range(len(share)), key=lambda i: (-behind[i], i))[: rest - sum(share)]:
            share[index] += 1
        rows[:, column] = own + np.array(share, np.int64)
    return rows


def shortened(turns: Turns, aged: Bool) -> Turns:
    """Waiting turns, with those that only a long stream can still claim added up.

    A flow's first `PLENTY` waiting turns stay as they are, since a stream may begin with any of them; aged ones
    behind become one row. So a WebSocket of a million messages takes a few rows of memory.
    """
    if not aged.any():
        return turns
    starts = run_starts(turns.flow)
    begins = np.flatnonzero(starts)
    number = np.arange(len(turns)) - begins[np.cumsum(starts) - 1]
    fold = aged & (number >= PLENTY)
    joins = fold.copy()
    joins[0] = False
    joins[1:] &= fold[:-1] & ~starts[1:]
    # Only rows without a hole between them: else a run over them would be no run.
    joins[1:] &= turns.turn[1:] - turns.n_turns[1:] <= turns.turn[:-1]
    if not joins.any():
        return turns
    heads = np.flatnonzero(~joins)
    tails = np.append(heads[1:], len(turns)) - 1
    kept = turns.take(heads)
    return kept.replace(
        turn=turns.turn[tails],
        n_turns=np.add.reduceat(turns.n_turns, heads),
        end_mono_ns=turns.end_mono_ns[tails],
        last_mono_ns=turns.last_mono_ns[tails],
        last=turns.last[tails],
        counts=np.add.reduceat(turns.counts, heads, axis=0),
    )
