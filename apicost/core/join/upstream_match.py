"""Which attempt carried which turn: by backend, exact payload bytes and time.

Rules of this file:
- An attempt may take a turn only inside its window: the turn begins after the gateway's access phase and
  has ended when the request is logged. Both clocks are CLOCK_MONOTONIC (docs/benchmarks.md has the spreads:
  the request goes out 15 us after the access phase at the median).
- Among equals the earliest attempt takes the earliest turn that fits, as one event loop serves them; turns of
  connections that are known to be another worker's come last.
- Every answer is a list of (turn row, attempt row); each turn stands in it once at most.
- Nothing here depends on the order of the rows: ties go by (flow, turn) and (line_id, try_no).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apicost.core.join.upstream_columns import I32, I64, IN_PAYLOAD, OUT_PAYLOAD, U64, Bool, Columns, hash_of
from apicost.core.join.upstream_turns import Turns, run_starts

MOST_VOTES = 50  # as many matches as a flow's owner remembers
CLOCK_SLACK_NS = 100_000  # the plugin writes its times in whole microseconds, some after the event

# After the access phase the request goes out within 15 us at the median, 86 us at p99, 1 ms at p99.9, measured on
# 20,000 requests at full load; reading a request's body comes between, too.
SOON_NS = (50_000, 250_000, 1_000_000, None)
ROUNDING_NS = 2_000  # a time in a line is the difference of two that were each cut to microseconds
NEIGHBOUR_ROUNDS = 4  # as many requests as one event loop begins before the first of them goes out

# How turns and attempts of equal bytes are paired, in order: as neighbours or in a queue, of one worker or of all,
# and how soon after the access phase the turn begins.
ROUNDS = (
    (True, True, SOON_NS[0]),
    *((False, True, soon) for soon in SOON_NS[1:3]),
    (True, False, SOON_NS[0]),
    *((False, False, soon) for soon in SOON_NS[1:3]),
    *((False, by_worker, None) for by_worker in (True, False)),
)

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Columns):
    """Attempts that wait for their bytes, in order of (line_id, try_no).

    low_mono_ns: the attempt can't have begun before; log_mono_ns: nor ended after.
    """

    line_id: I64
    try_no: I32
    addr_hi: U64
    addr_lo: U64
    port: I32
    sent_bytes: I64
    received_bytes: I64
    status: I32
    low_mono_ns: I64
    log_mono_ns: I64
    worker_pid: I32
    tls: Bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners(Columns):
    """Which gateway worker a flow belongs to: its connection pool is its own. Sorted by flow, each once."""

    flow: U64
    worker_pid: I32
    votes: I64

    def of(self, flow: U64) -> I32:
        """The worker of each of these flows; -1 where one vote is all there is: it may be the match in question."""
        if not len(self.flow):
            return np.full(len(flow), -1, np.int32)
        at = np.minimum(np.searchsorted(self.flow, flow), len(self.flow) - 1)
        return np.where((self.flow[at] == flow) & (self.votes[at] > 1), self.worker_pid[at], -1).astype(np.int32)

    def with_votes(self, flow: U64, worker_pid: I32) -> Owners:
        """These and what pairs of flow and worker say; a worker wins a flow by a majority of two thirds.

        A flow's earlier winner keeps its votes, at most `MOST_VOTES`, so that a mistake can be outvoted.
        """
        flows = np.concatenate([self.flow, flow])
        pids = np.concatenate([self.worker_pid, worker_pid]).astype(np.int64)
        weight = np.concatenate([self.votes, np.ones(len(flow), np.int64)])
        if not len(flows):
            return self
        order = np.lexsort((pids, flows))
        flows, pids, weight = flows[order], pids[order], weight[order]
        starts = run_starts(flows)
        each = starts.copy()
        each[1:] |= pids[1:] != pids[:-1]
        begins = np.flatnonzero(each)
        sums = np.add.reduceat(weight, begins)
        of_flow = (np.cumsum(starts) - 1)[begins]
        whole = np.bincount(of_flow, sums).astype(np.int64)
        wins = 3 * sums >= 2 * whole[of_flow]
        won = begins[wins]
        return Owners(flow=flows[won], worker_pid=pids[won].astype(np.int32), votes=np.minimum(sums[wins], MOST_VOTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs(Columns):
    """Turn rows and the attempt rows that take them; an attempt may take several turns.

    sure: no other attempt and no other turn came into question.
    proved: the sums of payload are equal to the byte.
    far: only the last resort among equals found it. While turns may still come, one of them may fit better.
    """

    turn: I64
    attempt: I64
    sure: Bool
    proved: Bool
    far: Bool


def match_equal(turns: Turns, attempts: Waiting, owners: Owners, late_ns: int = CLOCK_SLACK_NS) -> Pairs:
    """Attempts whose bytes are those of one turn, to the byte, at the same backend."""
    turn_key = hash_of(
        turns.counts[:, IN_PAYLOAD], turns.counts[:, OUT_PAYLOAD], turns.peer_port, turns.peer_lo, turns.peer_hi
    )
    attempt_key = hash_of(
        attempts.received_bytes, attempts.sent_bytes, attempts.port, attempts.addr_lo, attempts.addr_hi
    )
    return in_order(turn_key, turns, attempt_key, attempts, owners, late_ns)


def in_order(
    turn_key: U64, turns: Turns, attempt_key: U64, attempts: Waiting, owners: Owners, late_ns: int = CLOCK_SLACK_NS
) -> Pairs:
    """Pair turns and attempts of equal keys, earliest first, each within the attempt's window.

    late_ns: how long after the request was logged the turn may still have moved payload.

    Where there is a choice, a first round by time alone tells which worker each flow belongs to, and a second
    one keeps to it.
    """
    turn_group, attempt_group, turn_row, attempt_row = _groups(turn_key, attempt_key)
    if not len(turn_row):
        return Pairs.empty()
    table = _Table(
        turn_group=turn_group,
        begin=_begun_ns(turns)[turn_row],
        end=turns.end_mono_ns[turn_row],
        attempt_group=attempt_group,
        low=attempts.low_mono_ns[attempt_row],
        log=attempts.log_mono_ns[attempt_row] + late_ns,
    )
    turn, attempt, sure = _queue(table)
    far = np.zeros(len(turn), np.bool_)
    if not sure.all() or len(turn) < min(len(turn_row), len(attempt_row)):
        chosen = np.flatnonzero(sure)
        turn, attempt, far = _again(
            table,
            turns.flow[turn_row],
            attempts.worker_pid[attempt_row],
            owners,
            turn[chosen],
            attempt[chosen],
        )
        sure = np.arange(len(turn)) < len(chosen)
    proved = np.ones(len(turn), np.bool_)
    return Pairs(turn=turn_row[turn], attempt=attempt_row[attempt], sure=sure, proved=proved, far=far)


def _begun_ns(turns: Turns) -> I64:
    """When the gateway turned to the backend: on a new connection that was its SYN, not the payload behind it."""
    fresh = turns.first & turns.syn_sent
    return np.where(fresh, np.minimum(turns.born_mono_ns, turns.begin_mono_ns), turns.begin_mono_ns)


def _groups(turn_key: U64, attempt_key: U64) -> tuple[I64, I64, Rows, Rows]:
    """A small number for each key that both sides have, and the rows that have it, on either side."""
    both, number = np.unique(np.concatenate([turn_key, attempt_key]), return_inverse=True)
    of_turn, of_attempt = number[: len(turn_key)], number[len(turn_key) :]
    turns_in = np.bincount(of_turn, minlength=len(both))
    attempts_in = np.bincount(of_attempt, minlength=len(both))
    turn_rows = np.flatnonzero(attempts_in[of_turn] > 0)
    attempt_rows = np.flatnonzero(turns_in[of_attempt] > 0)
    return of_turn[turn_rows], of_attempt[attempt_rows], turn_rows, attempt_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Turns and attempts to be paired: those of one group have the same backend and bytes."""

    turn_group: I64
    begin: I64
    end: I64
    attempt_group: I64
    low: I64
    log: I64

    def narrowed(self, turns: Rows, attempts: Rows, turn_group: I64 | None = None, group: I64 | None = None) -> _Table:
        """Only these rows, perhaps in other groups."""
        return _Table(
            turn_group=self.turn_group[turns] if turn_group is None else turn_group,
            begin=self.begin[turns],
            end=self.end[turns],
            attempt_group=self.attempt_group[attempts] if group is None else group,
            low=self.low[attempts],
            log=self.log[attempts],
        )


def _queue(table: _Table, soon_ns: int | None = None) -> tuple[Rows, Rows, Bool]:
    """Each attempt, earliest window first, takes the earliest turn of its group left that begins in its window.

    soon_ns: only turns that begin so soon after the window does.

    Returns rows of the turns, rows of the attempts, and whether neither had a choice.
    """
    if not len(table.begin) or not len(table.low):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    place = Places(table.begin, table.turn_group)
    turn_at = place.of(table.turn_group, table.begin)
    low_at = place.of(table.attempt_group, table.low - CLOCK_SLACK_NS)
    turn_order, attempt_order = np.argsort(turn_at, kind="stable"), np.argsort(low_at, kind="stable")
    turn_at, low_at = turn_at[turn_order], low_at[attempt_order]
    sorted_table = table.narrowed(turn_order, attempt_order)
    turn_group, group, log = sorted_table.turn_group, sorted_table.attempt_group, sorted_table.log
    log_at = place.of(group, log)
    first = np.searchsorted(turn_at, low_at, "left")
    behind = np.searchsorted(turn_at, log_at, "right")
    # The queue in closed form: attempt i of its group stands at max(first_i, place of i - 1 plus 1).
    step = np.arange(len(first))
    lift = group * np.int64(len(turn_at) + len(first) + 1)  # keeps one group from pushing the next
    position = np.maximum.accumulate(first - step + lift) - lift + step
    at = np.minimum(position, len(turn_at) - 1)
    fits = (position < behind) & (turn_group[at] == group) & (sorted_table.end[at] <= log)
    if soon_ns is not None:
        fits &= sorted_table.begin[at] <= sorted_table.low + soon_ns
    rivals = np.searchsorted(low_at, turn_at, "right") - np.searchsorted(np.sort(log_at), turn_at, "left")
    sure = (behind - first == 1) & (rivals[at] == 1)
    taken = np.flatnonzero(fits)
    return turn_order[at[taken]], attempt_order[taken], sure[taken]


def _nearest(table: _Table, soon_ns: int) -> tuple[Rows, Rows]:
    """Pair each attempt with the first turn of its group behind its access phase, if no other attempt is between.

    soon_ns: how soon after the access phase the turn must begin.

    An event loop begins one request after the other, so such neighbours belong together; once they are gone, others
    are neighbours. Unlike in a queue, an attempt whose own turn is missing pushes nobody from his.
    """
    turns, attempts = np.arange(len(table.begin)), np.arange(len(table.low))
    found: list[tuple[Rows, Rows]] = [(turns[:0], attempts[:0])]
    if len(turns) and len(attempts):
        place = Places(table.begin, table.turn_group)
        turn_at = place.of(table.turn_group, table.begin)
        low_at = place.of(table.attempt_group, table.low - ROUNDING_NS)
        turns, attempts = np.argsort(turn_at, kind="stable"), np.argsort(low_at, kind="stable")
        turn_at, low_at = turn_at[turns], low_at[attempts]
    for _ in range(NEIGHBOUR_ROUNDS):
        if not len(turns) or not len(attempts):
            break
        # The last attempt before each turn, and of each attempt's turns the first.
        before = np.searchsorted(low_at, turn_at, "right") - 1
        first = np.append(True, before[1:] != before[:-1])
        behind = np.flatnonzero(first & (before >= 0))
        turn, attempt = turns[behind], attempts[before[behind]]
        good = table.turn_group[turn] == table.attempt_group[attempt]
        good &= table.begin[turn] <= table.low[attempt] + soon_ns
        good &= table.end[turn] <= table.log[attempt]
        if not good.any():
            break
        found.append((turn[good], attempt[good]))
        stay_turns, stay_attempts = np.ones(len(turns), np.bool_), np.ones(len(attempts), np.bool_)
        stay_turns[behind[good]] = False
        stay_attempts[before[behind[good]]] = False
        turns, turn_at = turns[stay_turns], turn_at[stay_turns]
        attempts, low_at = attempts[stay_attempts], low_at[stay_attempts]
    return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


def _again(
    table: _Table, flow: U64, worker_pid: I32, owners: Owners, turn: Rows, attempt: Rows
) -> tuple[Rows, Rows, Bool]:
    """Pair what had a choice, after the pairs given: neighbours first, within workers before all; then whoever is left.

    Returns rows of the turns, rows of the attempts, and which of them are far.
    """
    turns_left, attempts_left = _others(len(table.begin), turn), _others(len(table.low), attempt)
    likely = _nearest(table.narrowed(turns_left, attempts_left), SOON_NS[0])
    owners = owners.with_votes(
        flow[np.append(turn, turns_left[likely[0]])], worker_pid[np.append(attempt, attempts_left[likely[1]])]
    )
    owner = owners.of(flow)
    answer = [(turn, attempt)]
    far = [np.zeros(len(turn), np.bool_)]
    for neighbours, by_worker, soon_ns in ROUNDS:
        rows = turns_left[owner[turns_left] >= 0] if by_worker else turns_left
        tries = attempts_left
        if by_worker:
            # A worker's number stands beside the group's: process ids fit 22 bits (PID_MAX_LIMIT).
            group_of_turn = (table.turn_group[rows] << 22) | owner[rows]
            group = (table.attempt_group[tries] << 22) | (worker_pid[tries] & 0x3FFFFF)
            narrowed = table.narrowed(rows, tries, group_of_turn, group)
        else:
            narrowed = table.narrowed(rows, tries)
        found = _nearest(narrowed, SOON_NS[0]) if neighbours else _queue(narrowed, soon_ns)[:2]
        answer.append((rows[found[0]], tries[found[1]]))
        far.append(np.full(len(found[0]), soon_ns is None))
        turns_left = np.setdiff1d(turns_left, answer[-1][0], assume_unique=True)
        attempts_left = np.setdiff1d(attempts_left, answer[-1][1], assume_unique=True)
        if not len(turns_left) or not len(attempts_left):
            break
    turns, attempts = (np.concatenate([pair[side] for pair in answer]) for side in (0, 1))
    return turns, attempts, np.concatenate(far)


def _others(size: int, rows: Rows) -> Rows:
    there = np.ones(size, np.bool_)
    there[rows] = False
    return np.flatnonzero(there)


class Places:
    """One sortable number for (group, time): as fine as 63 bits allow, nanoseconds where they do."""

    def __init__(self, times: I64, groups: I64) -> None:
        self.start = int(times.min())
        self.span = int(times.max()) - self.start + 2
        self.time_bits = self.span.bit_length()
        group_bits = int(groups.max() + 1).bit_length()
        self.shift = max(0, self.time_bits + group_bits - 62)
        self.time_bits -= min(self.shift, self.time_bits)

    def of(self, groups: I64, times: I64) -> I64:
        clipped = np.clip(times - (self.start - 1), 0, self.span) >> self.shift
        placed: I64 = (groups << np.int64(self.time_bits + 1)) | clipped
        return placed
