"""All ways in which attempts find their turns, from the surest to the last resort.

Rules of this file:
- Each pass sees only the turns and attempts that the passes before left over, and only passes that compare whole
  columns see many of them; the later ones look at few rows each.
- What a pass gives is proved (sums of payload equal to the byte) or says that it is not.

| pass | what it is for |
|---|---|
| equal | one request, one turn, plain HTTP: nearly all |
| equal, late | payload that left the host after the request was logged |
| runs | WebSockets, early answers, gRPC: several turns of one flow in a row |
| tls | payload is what nginx counted plus so many bytes for each TLS record |
| first use | a new TLS connection: handshake and first request together |
| closed | aborted requests and backends that went away: the flow ends with the attempt |
| near | nginx stopped reading a little before the backend's last byte |

Attempts of which the gateway counted no bytes are not asked here, but at the very end (`upstream_unsized`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from apicost.core.join.upstream_columns import I64, IN_PAYLOAD, OUT_PAYLOAD, U64, Bool, Columns, hash_of
from apicost.core.join.upstream_match import (
    CLOCK_SLACK_NS,
    SOON_NS,
    Owners,
    Pairs,
    Rows,
    Waiting,
    in_order,
    match_equal,
)
from apicost.core.join.upstream_turns import Turns, run_starts

Batch = TypeVar("Batch", bound=Columns)

LATE_NS = 50_000_000  # how long after the log phase payload may still leave the host: 0.1 ms was seen on loopback
CLOSE_NS = 1_000_000_000  # how far from the log phase a flow's last packet may lie that ended with its attempt
MOST_STARTS = 64  # turns that are tried as the beginning of one attempt
STATUS_SWITCHED = 101  # from here on nginx counts no requests: RFC 9110 section 15.2.2

# Bytes that TLS adds to each record: header, content type or explicit nonce, tag.
# TLS 1.3 (RFC 8446 section 5.2): 5 + 1 + 16. TLS 1.2 with AES-GCM (RFC 5288): 5 + 8 + 16, with ChaCha20
# (RFC 7905): 5 + 16.
RECORD_BYTES = (22, 29, 21)
RECORD_PAYLOAD_BYTES = 16_384  # RFC 8446 section 5.1
MORE_RECORDS = 3  # beyond the fewest: a head apart from its body, a session ticket's remainder
SMALL_RECORD_BYTES = 1_024  # a response may come in pieces this small, on average
# A client's handshake: ClientHello, ChangeCipherSpec, Finished, perhaps a certificate; a server's the same and tickets.
HELLO_OUT_BYTES = (150, 20_000)
HELLO_IN_BYTES = (90, 40_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """What is still free: rows of the whole batches."""

    turns: Rows
    attempts: Rows

    def without(self, pairs: Pairs) -> _Left:
        return _Left(turns=_minus(self.turns, pairs.turn), attempts=_minus(self.attempts, pairs.attempt))


def match(turns: Turns, usable: Rows, attempts: Waiting, ready: Rows, owners: Owners) -> Pairs:
    """Every pair that any pass finds; rows of the batches given.

    turns: in order of (flow, turn). usable, ready: rows of turns that may be taken, of attempts that may take.
    """
    left = _Left(turns=usable, attempts=ready)
    found: list[Pairs] = []

    def run(step: Callable[[Turns, Waiting, Owners], Pairs], secure: bool) -> None:
        nonlocal left
        chosen = left.attempts[attempts.tls[left.attempts] == secure]
        if not len(chosen) or not len(left.turns):
            return
        pairs = step(_rows(turns, left.turns), _rows(attempts, chosen), owners)
        if len(pairs):
            pairs = pairs.replace(turn=left.turns[pairs.turn], attempt=chosen[pairs.attempt])
            found.append(pairs)
            left = left.without(pairs)

    run(match_equal, False)
    run(_equal_late, False)
    run(_runs, False)
    for limits in (SOON_NS[:-1], SOON_NS[-1:]):
        for record_bytes in RECORD_BYTES:
            run(functools.partial(_tls, record_bytes=record_bytes, limits=limits), True)
        run(_first_use, True)
    run(_closed, False)
    run(_closed, True)
    run(_near, False)
    return _handshakes(turns, attempts, usable, Pairs.concat(found))


def _rows(batch: Batch, rows: Rows) -> Batch:
    return batch if len(rows) == len(batch) else batch.take(rows)


def _minus(rows: Rows, taken: Rows) -> Rows:
    if not len(taken):
        return rows
    gone = np.zeros(int(max(rows.max(initial=0), taken.max())) + 1, np.bool_)
    gone[taken] = True
    return rows[~gone[rows]]


def _equal_late(turns: Turns, attempts: Waiting, owners: Owners) -> Pairs:
    pairs = match_equal(turns, attempts, owners, LATE_NS)
    # What is alone here may be alone because others chose wrong before.
    return pairs.replace(sure=np.zeros(len(pairs), np.bool_))


def _near(turns: Turns, attempts: Waiting, owners: Owners) -> Pairs:
    """What was sent is equal to the byte; of the response the kernel saw about as much as nginx read, or more.

    More: the last chunk's five bytes came after nginx was done. Less: seen once in 400 streams, by 4 %.
    """
    pairs = in_order(
        hash_of(turns.counts[:, OUT_PAYLOAD], turns.peer_port, turns.peer_lo, turns.peer_hi),
        turns,
        hash_of(attempts.sent_bytes, attempts.port, attempts.addr_lo, attempts.addr_hi),
        attempts,
        owners,
        LATE_NS,
    )
    enough = 10 * turns.counts[pairs.turn, IN_PAYLOAD] >= 9 * attempts.received_bytes[pairs.attempt]
    return pairs.take(enough).replace(proved=np.zeros(int(enough.sum()), np.bool_))


def _tls(turns: Turns, attempts: Waiting, owners: Owners, record_bytes: int, limits: tuple[int | None, ...]) -> Pairs:
    """One turn whose payload is the attempt's and so many whole record overheads, both ways.

    Sizes alone leave more choice here than over plain TCP, so that the soonest turn goes first, and a second round
    keeps to the workers that the first one showed the flows to belong to.
    """
    fewest_out = np.maximum(-(-attempts.sent_bytes // RECORD_PAYLOAD_BYTES), 1)
    fewest_in = -(-attempts.received_bytes // RECORD_PAYLOAD_BYTES)
    # A response may be flushed in small pieces, each a record; a request is written at once.
    most_in = fewest_in + MORE_RECORDS + attempts.received_bytes // SMALL_RECORD_BYTES
    window = _windows(turns, attempts)

    def fits(rows: Rows, tries: Rows) -> Bool:
        more_out = turns.counts[rows, OUT_PAYLOAD] - attempts.sent_bytes[tries]
        more_in = turns.counts[rows, IN_PAYLOAD] - attempts.received_bytes[tries]
        records_out, records_in = more_out // record_bytes, more_in // record_bytes
        good = (more_out == records_out * record_bytes) & (more_in == records_in * record_bytes)
        good &= (records_out >= fewest_out[tries]) & (records_out <= fewest_out[tries] + MORE_RECORDS)
        good &= (records_in >= fewest_in[tries]) & (records_in <= most_in[tries])
        return good & (turns.end_mono_ns[rows] <= attempts.log_mono_ns[tries] + CLOCK_SLACK_NS)

    first = _soonest(turns, attempts, window, fits, limits)
    owner = owners.with_votes(turns.flow[first[0]], attempts.worker_pid[first[1]]).of(turns.flow)

    def fits_owner(rows: Rows, tries: Rows) -> Bool:
        same = (owner[rows] < 0) | (owner[rows] == attempts.worker_pid[tries])
        return same & fits(rows, tries)

    turn, attempt = _soonest(turns, attempts, window, fits_owner, limits)
    return Pairs(
        turn=turn,
        attempt=attempt,
        sure=np.zeros(len(turn), np.bool_),
        proved=np.zeros(len(turn), np.bool_),
        far=np.zeros(len(turn), np.bool_),
    )


def _soonest(
    turns: Turns,
    attempts: Waiting,
    window: _Window,
    fits: Callable[[Rows, Rows], Bool],
    limits: tuple[int | None, ...],
) -> tuple[Rows, Rows]:
    """Each attempt, earliest window first, takes the soonest turn of its window that fits and is free.

    limits: how soon after the window's begin the turn must begin, in ns, one round for each.
    """
    size = len(turns)
    taken = np.zeros(size, np.bool_)
    left = window.attempts
    found: list[tuple[Rows, Rows]] = []
    for limit in limits:
        waiting = np.zeros(len(attempts), np.bool_)
        waiting[left] = True
        tries = left
        for further in range(MOST_STARTS):
            tries = tries[waiting[tries] & (window.low[tries] + further < window.high[tries])]
            if not len(tries):
                break
            rows = window.order[window.low[tries] + further]
            if limit is not None:
                near = turns.begin_mono_ns[rows] <= attempts.low_mono_ns[tries] + limit
                rows, tries = rows[near], tries[near]
            chosen = np.flatnonzero(~taken[rows] & fits(rows, tries))
            # Attempts are in order of their windows' begin, and the first of those that want a turn gets it.
            winner = np.full(size, -1, np.int64)
            winner[rows[chosen][::-1]] = chosen[::-1]
            chosen = chosen[winner[rows[chosen]] == chosen]
            taken[rows[chosen]] = True
            waiting[tries[chosen]] = False
            found.append((rows[chosen], tries[chosen]))
        left = left[waiting[left]]
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


def _handshakes(turns: Turns, attempts: Waiting, usable: Rows, pairs: Pairs) -> Pairs:
    """Give a TLS handshake that was a turn of its own to the attempt that used its connection first."""
    secure = np.flatnonzero(attempts.tls[pairs.attempt])
    if not len(secure):
        return pairs
    free = np.zeros(len(turns), np.bool_)
    free[usable] = True
    free[pairs.turn] = False
    before = np.append(0, np.cumsum(free))
    stretch = _stretches(turns)
    head = np.flatnonzero(run_starts(stretch))[stretch[pairs.turn[secure]]]
    turn, attempt = pairs.turn[secure], pairs.attempt[secure]
    good = (head < turn) & turns.first[head] & (before[turn] - before[head] == turn - head)
    good &= turns.begin_mono_ns[head] >= attempts.low_mono_ns[attempt] - CLOCK_SLACK_NS
    added = [
        (np.arange(begin, end), np.full(end - begin, who))
        for begin, end, who in zip(head[good].tolist(), turn[good].tolist(), attempt[good].tolist(), strict=True)
    ]
    if not added:
        return pairs
    rows = np.concatenate([each[0] for each in added])
    more = Pairs(
        turn=rows,
        attempt=np.concatenate([each[1] for each in added]),
        sure=np.zeros(len(rows), np.bool_),
        proved=np.zeros(len(rows), np.bool_),
        far=np.zeros(len(rows), np.bool_),
    )
    return Pairs.concat([pairs, more])


def _runs(turns: Turns, attempts: Waiting, owners: Owners) -> Pairs:
    """Turns of one flow in a row whose sums are the attempt's bytes, to the byte.

    The flow's own cumulative counters say where such a run would end, so one look finds it, however long it is.
    """
    end_in = turns.start_in + turns.counts[:, IN_PAYLOAD]
    end_out = turns.start_out + turns.counts[:, OUT_PAYLOAD]
    ends = hash_of(turns.flow, end_in, end_out)
    order = np.argsort(ends, kind="stable")
    sorted_ends = ends[order]
    stretch = _stretches(turns)

    def reach(rows: Rows, tries: Rows) -> tuple[Rows, Bool]:
        target_in = turns.start_in[rows] + attempts.received_bytes[tries]
        target_out = turns.start_out[rows] + attempts.sent_bytes[tries]
        wanted = hash_of(turns.flow[rows], target_in, target_out)
        last = order[np.minimum(np.searchsorted(sorted_ends, wanted, "right") - 1, len(order) - 1)]
        good = (ends[last] == wanted) & (last >= rows) & (stretch[last] == stretch[rows])
        good &= (end_in[last] == target_in) & (end_out[last] == target_out)
        good &= turns.end_mono_ns[last] <= attempts.log_mono_ns[tries] + LATE_NS
        return last, good

    return _stretched(turns, attempts, reach, proved=True)


def _closed(turns: Turns, attempts: Waiting, owners: Owners) -> Pairs:
    """A run of turns to the end of a flow that closed when the attempt ended.

    An aborted request: less may have left than nginx meant to send, and more may have come than it read. After
    101 nginx's counts say nothing.
    """
    stretch = _stretches(turns)
    final = np.flatnonzero(np.append(run_starts(stretch)[1:], True))
    last_of = final[stretch]
    sums = np.zeros((len(turns) + 1, 2), np.int64)
    np.cumsum(turns.counts[:, [IN_PAYLOAD, OUT_PAYLOAD]], axis=0, out=sums[1:])

    def reach(rows: Rows, tries: Rows) -> tuple[Rows, Bool]:
        last = last_of[rows]
        received = sums[last + 1, 0] - sums[rows, 0]
        sent = sums[last + 1, 1] - sums[rows, 1]
        log = attempts.log_mono_ns[tries]
        switched = attempts.status[tries] == STATUS_SWITCHED
        framing = np.where(attempts.tls[tries], HELLO_OUT_BYTES[1], 0)
        good = turns.last[last] & (np.abs(turns.last_mono_ns[last] - log) <= CLOSE_NS)
        likely = (sent <= attempts.sent_bytes[tries] + framing) & (received >= attempts.received_bytes[tries])
        good &= (sent > 0) & (switched | (likely & (turns.end_mono_ns[last] <= log + LATE_NS)))
        return last, good

    return _stretched(turns, attempts, reach, proved=False)


def _first_use(turns: Turns, attempts: Waiting, owners: Owners) -> Pairs:
    """The first turns of a new TLS flow: handshake and first request, up to what was taken by others."""
    stretch = _stretches(turns)
    final = np.flatnonzero(np.append(run_starts(stretch)[1:], True))
    last_of = final[stretch]
    sums = np.zeros((len(turns) + 1, 2), np.int64)
    np.cumsum(turns.counts[:, [IN_PAYLOAD, OUT_PAYLOAD]], axis=0, out=sums[1:])

    def reach(rows: Rows, tries: Rows) -> tuple[Rows, Bool]:
        last = last_of[rows]
        more_in = sums[last + 1, 0] - sums[rows, 0] - attempts.received_bytes[tries]
        more_out = sums[last + 1, 1] - sums[rows, 1] - attempts.sent_bytes[tries]
        good = turns.first[rows] & (turns.end_mono_ns[last] <= attempts.log_mono_ns[tries] + LATE_NS)
        good &= (more_in >= HELLO_IN_BYTES[0]) & (more_in <= HELLO_IN_BYTES[1])
        good &= (more_out >= HELLO_OUT_BYTES[0]) & (more_out <= HELLO_OUT_BYTES[1])
        return last, good

    return _stretched(turns, attempts, reach, proved=False)


def _stretches(turns: Turns) -> I64:
    """A number for each stretch of rows that follow each other in one flow without a hole."""
    breaks = run_starts(turns.flow)
    end_in = turns.start_in + turns.counts[:, IN_PAYLOAD]
    end_out = turns.start_out + turns.counts[:, OUT_PAYLOAD]
    breaks[1:] |= (turns.start_in[1:] != end_in[:-1]) | (turns.start_out[1:] != end_out[:-1])
    # Turns without payload leave no hole in these sums; the turn's number shows it.
    breaks[1:] |= turns.turn[1:] - turns.n_turns[1:] > turns.turn[:-1]
    return np.cumsum(breaks) - 1


def _stretched(
    turns: Turns, attempts: Waiting, reach: Callable[[Rows, Rows], tuple[Rows, Bool]], *, proved: bool
) -> Pairs:
    """Let each attempt try the turns that begin in its window, soonest first, as the start of a run.

    reach: for turn rows and attempt rows, the run's last row, and whether the run may be the attempt's.
    """
    window = _windows(turns, attempts)
    low, high, order, tries = window.low, window.high, window.order, window.attempts
    found: list[tuple[Rows, Rows, Rows]] = []
    for further in range(MOST_STARTS):
        tries = tries[low[tries] + further < high[tries]]
        if not len(tries):
            break
        rows = order[low[tries] + further]
        last, good = reach(rows, tries)
        if good.any():
            found.append((tries[good], rows[good], last[good]))
            tries = tries[~good]
    return _disjoint(turns, attempts, found, proved)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """Which turns each attempt may try: order[low[i]:high[i]] for attempt i, soonest first.

    attempts: those that have any, in order of their windows' begin.
    """

    order: Rows
    low: Rows
    high: Rows
    attempts: Rows


def _windows(turns: Turns, attempts: Waiting) -> _Window:
    """The turns of each attempt's backend that begin between its access phase and its log phase."""
    turn_at, attempt_at = _by_backend(turns, attempts)
    order = np.lexsort((turns.begin_mono_ns, turn_at))
    # One number for (backend, time): backends are few, so that nanoseconds have room.
    start = int(turns.begin_mono_ns.min())
    span = int(turns.begin_mono_ns.max()) - start + 2
    bits = span.bit_length() + 1

    def place(group: I64, times: I64) -> I64:
        return (group << bits) | np.clip(times - start + 1, 0, span)

    places = place(turn_at, turns.begin_mono_ns)[order]
    low = np.searchsorted(places, place(attempt_at, attempts.low_mono_ns - CLOCK_SLACK_NS), "left")
    high = np.searchsorted(places, place(attempt_at, attempts.log_mono_ns + LATE_NS), "right")
    by_begin = np.argsort(attempts.low_mono_ns, kind="stable")
    return _Window(order=order, low=low, high=high, attempts=by_begin[((attempt_at >= 0) & (high > low))[by_begin]])


def _disjoint(turns: Turns, attempts: Waiting, found: list[tuple[Rows, Rows, Rows]], proved: bool) -> Pairs:
    """The runs that don't overlap, earliest attempt first; one pair for each turn of a run."""
    if not found:
        return Pairs.empty()
    tries, rows, last = (np.concatenate([each[i] for each in found]) for i in range(3))
    order = np.lexsort((attempts.try_no[tries], attempts.line_id[tries], attempts.low_mono_ns[tries]))
    taken = np.zeros(len(turns), np.bool_)
    pairs: list[tuple[Rows, Rows]] = []
    for attempt, begin, end in zip(tries[order].tolist(), rows[order].tolist(), last[order].tolist(), strict=True):
        if not taken[begin : end + 1].any():
            taken[begin : end + 1] = True
            pairs.append((np.arange(begin, end + 1), np.full(end + 1 - begin, attempt)))
    turn = np.concatenate([pair[0] for pair in pairs])
    return Pairs(
        turn=turn,
        attempt=np.concatenate([pair[1] for pair in pairs]),
        sure=np.ones(len(turn), np.bool_),
        proved=np.full(len(turn), proved),
        far=np.zeros(len(turn), np.bool_),
    )


def _by_backend(turns: Turns, attempts: Waiting) -> tuple[I64, I64]:
    """A small number for each backend, for turns and for attempts; -1 for a backend that has no turn."""
    of_turn: U64 = hash_of(turns.peer_port, turns.peer_lo, turns.peer_hi)
    of_attempt: U64 = hash_of(attempts.port, attempts.addr_lo, attempts.addr_hi)
    known = np.unique(of_turn)
    at = np.minimum(np.searchsorted(known, of_attempt), len(known) - 1)
    return np.searchsorted(known, of_turn), np.where(known[at] == of_attempt, at, -1)
