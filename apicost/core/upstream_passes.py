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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from apicost.core.upstream_columns import I64, IN_PAYLOAD, OUT_PAYLOAD, U64, Bool, Columns, hash_of
from apicost.core.upstream_match import CLOCK_SLACK_NS, Owners, Pairs, Rows, Waiting, in_order, match_equal
from apicost.core.upstream_turns import Turns, run_starts

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
    for record_bytes in RECORD_BYTES:
        for more in range(3):
            run(lambda t, a, o, r=record_bytes, m=more: _tls(t, a, o, r, m), True)  # type: ignore[misc]
    run(_first_use, True)
    run(_closed, False)
    run(_closed, True)
    run(_near, False)
    return Pairs.concat(found)


def _rows(batch: Batch, rows: Rows) -> Batch:
    return batch if len(rows) == len(batch) else batch.take(rows)


def _minus(rows: Rows, taken: Rows) -> Rows:
    if not len(taken):
        return rows
    gone = np.zeros(int(max(rows.max(initial=0), taken.max())) + 1, np.bool_)
    gone[taken] = True
    return rows[~gone[rows]]


def _equal_late(turns: Turns, attempts: Waiting, owners: Owners) -> Pairs:
    return match_equal(turns, attempts, owners, LATE_NS)


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


def _tls(turns: Turns, attempts: Waiting, owners: Owners, record_bytes: int, more: int) -> Pairs:
    """One turn whose payload is the attempt's and so many whole record overheads, both ways.

    more: records towards the backend beyond the fewest that could carry what was sent.
    """
    records = np.maximum(-(-attempts.sent_bytes // RECORD_PAYLOAD_BYTES), 1) + more
    pairs = in_order(
        hash_of(
            turns.counts[:, OUT_PAYLOAD],
            turns.counts[:, IN_PAYLOAD] % record_bytes,
            turns.peer_port,
            turns.peer_lo,
            turns.peer_hi,
        ),
        turns,
        hash_of(
            attempts.sent_bytes + records * record_bytes,
            attempts.received_bytes % record_bytes,
            attempts.port,
            attempts.addr_lo,
            attempts.addr_hi,
        ),
        attempts,
        owners,
    )
    received = attempts.received_bytes[pairs.attempt]
    fewest = received + record_bytes * -(-received // RECORD_PAYLOAD_BYTES)
    pairs = pairs.take(turns.counts[pairs.turn, IN_PAYLOAD] >= fewest)
    return pairs.replace(proved=np.zeros(len(pairs), np.bool_))


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
    tries = np.flatnonzero((attempt_at >= 0) & (high > low))
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
    )


def _by_backend(turns: Turns, attempts: Waiting) -> tuple[I64, I64]:
    """A small number for each backend, for turns and for attempts; -1 for a backend that has no turn."""
    of_turn: U64 = hash_of(turns.peer_port, turns.peer_lo, turns.peer_hi)
    of_attempt: U64 = hash_of(attempts.port, attempts.addr_lo, attempts.addr_hi)
    known = np.unique(of_turn)
    at = np.minimum(np.searchsorted(known, of_attempt), len(known) - 1)
    return np.searchsorted(known, of_turn), np.where(known[at] == of_attempt, at, -1)
