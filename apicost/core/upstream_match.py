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

from apicost.core.upstream_columns import I32, I64, IN_PAYLOAD, OUT_PAYLOAD, U64, Bool, Columns, hash_of
from apicost.core.upstream_turns import Turns

CLOCK_SLACK_NS = 100_000  # the plugin writes its times in whole microseconds, some after the event

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
class Pairs(Columns):
    """Turn rows and the attempt rows that take them; an attempt may take several turns.

    sure: no other attempt and no other turn came into question.
    """

    turn: I64
    attempt: I64
    sure: Bool
    proved: Bool


def match_equal(turns: Turns, attempts: Waiting, worker_pid: I32) -> Pairs:
    """Attempts whose bytes are those of one turn, to the byte, at the same backend.

    worker_pid: for each turn, the worker that owns its flow; -1 unknown.
    """
    payload = turns.counts[:, IN_PAYLOAD], turns.counts[:, OUT_PAYLOAD]
    turn_key = hash_of(payload[0], payload[1], turns.peer_port, turns.peer_lo, turns.peer_hi)
    attempt_key = hash_of(
        attempts.received_bytes, attempts.sent_bytes, attempts.port, attempts.addr_lo, attempts.addr_hi
    )
    return in_order(turn_key, turns, attempt_key, attempts, worker_pid)


def in_order(turn_key: U64, turns: Turns, attempt_key: U64, attempts: Waiting, worker_pid: I32) -> Pairs:
    """Pair turns and attempts of equal keys, earliest first, each within the attempt's window."""
    group_of_turn, group_of_attempt, turn_rows, attempt_rows = _groups(turn_key, attempt_key)
    begin = turns.begin_mono_ns[turn_rows]
    end = turns.end_mono_ns[turn_rows]
    low = attempts.low_mono_ns[attempt_rows] - CLOCK_SLACK_NS
    log = attempts.log_mono_ns[attempt_rows] + CLOCK_SLACK_NS
    if not len(turn_rows) or not len(attempt_rows):
        return Pairs.empty()
    turn, attempt, sure = _queue(group_of_turn, begin, end, group_of_attempt, low, log)
    pairs = Pairs(
        turn=turn_rows[turn],
        attempt=attempt_rows[attempt],
        sure=sure,
        proved=np.ones(len(turn), np.bool_),
    )
    return pairs


def _groups(turn_key: U64, attempt_key: U64) -> tuple[I64, I64, Rows, Rows]:
    """A small number for each key that both sides have, and the rows that have it, on either side."""
    both, number = np.unique(np.concatenate([turn_key, attempt_key]), return_inverse=True)
    of_turn, of_attempt = number[: len(turn_key)], number[len(turn_key) :]
    turns_in = np.bincount(of_turn, minlength=len(both))
    attempts_in = np.bincount(of_attempt, minlength=len(both))
    turn_rows = np.flatnonzero(attempts_in[of_turn] > 0)
    attempt_rows = np.flatnonzero(turns_in[of_attempt] > 0)
    return of_turn[turn_rows], of_attempt[attempt_rows], turn_rows, attempt_rows


def _queue(turn_group: I64, begin: I64, end: I64, attempt_group: I64, low: I64, log: I64) -> tuple[Rows, Rows, Bool]:
    """Each attempt, earliest window first, takes the earliest turn of its group left that begins in its window.

    Returns rows of the turns, rows of the attempts, and whether neither had a choice.
    """
    turn_order = np.lexsort((begin, turn_group))
    attempt_order = np.lexsort((log, low, attempt_group))
    turn_group, begin, end = turn_group[turn_order], begin[turn_order], end[turn_order]
    attempt_group, low, log = attempt_group[attempt_order], low[attempt_order], log[attempt_order]
    place = _Places(begin, turn_group)
    turn_at, low_at, log_at = (
        place.of(turn_group, begin),
        place.of(attempt_group, low),
        place.of(attempt_group, log),
    )
    first = np.searchsorted(turn_at, low_at, "left")
    behind = np.searchsorted(turn_at, log_at, "right")
    # The queue in closed form: attempt i of its group gets max(first_i, position of i - 1 plus 1).
    step = np.arange(len(first))
    lift = attempt_group * np.int64(len(begin) + len(first) + 1)  # keeps one group from pushing the next
    position = np.maximum.accumulate(first - step + lift) - lift + step
    inside = position < behind
    at = np.minimum(position, len(begin) - 1)
    inside &= (turn_group[at] == attempt_group) & (end[at] <= log)
    low_sorted = low_at  # in order already
    log_sorted = np.sort(log_at)
    rivals = np.searchsorted(low_sorted, turn_at, "right") - np.searchsorted(log_sorted, turn_at, "left")
    sure = (behind - first == 1) & (rivals[at] == 1)
    taken = np.flatnonzero(inside)
    return turn_order[at[taken]], attempt_order[taken], sure[taken]


class _Places:
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
