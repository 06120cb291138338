"""Which flow carries which connection of the gateway's log.

The log names a connection by the client's address and port, the gateway's port and nginx's `$connection`; a
client port is used again and again, so one such place has had many flows. Both sides are in order: flows
by birth, connections by their number. Time decides nearly always: every request of a connection is seen by
the gateway's worker while the flow is alive, on the same monotonic clock. What is left (a worker so busy
that it takes up a request after its client has gone and come back from the same port) is settled by
aligning both orders at that place with byte sums, one place at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apicost.core.join.downstream_state import Flows, Lines, Turns
from apicost.core.join.segments import I64, ends_of, starts_of, sums_of
from apicost.core.join.upstream_columns import U64, Bool

WINDOW_NS = 5_000_000  # a request may be logged this long after its flow's last packet
_MISS = 10  # cost of a flow without a connection, or a connection without a flow


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """The connections of a batch of lines. `row` gives for each line the position of its connection."""

    row: I64
    name: U64
    place: U64
    first_mono_ns: I64  # its first line's request was there
    last_mono_ns: I64  # its last line's request was there
    logged_mono_ns: I64  # its last line
    in_bytes: I64
    out_bytes: I64
    plain: Bool
    whole: Bool  # lines 1 to n, each once


def connections_of(lines: Lines) -> Connections:
    """Sum the lines of each connection up."""
    name, first, row = np.unique(lines.connection, return_index=True, return_inverse=True)
    order = np.argsort(row, kind="stable")
    starts = starts_of(row[order])

    def over(how: np.ufunc, values: I64) -> I64:
        return how.reduceat(values[order], starts) if len(starts) else np.zeros(0, np.int64)

    request = lines.request.astype(np.int64)
    count = sums_of(np.ones(len(order), np.int64), starts)
    return Connections(
        row=row,
        name=name,
        place=lines.place[first],
        first_mono_ns=over(np.minimum, lines.started_mono_ns),
        last_mono_ns=over(np.maximum, lines.started_mono_ns),
        logged_mono_ns=over(np.maximum, lines.log_mono_ns),
        in_bytes=over(np.add, lines.in_bytes),
        out_bytes=over(np.add, lines.out_bytes),
        plain=~(over(np.maximum, (lines.tls | (lines.http >= 20)).astype(np.int64)) > 0),
        whole=(over(np.minimum, request) == 1) & (over(np.maximum, request) == count),
    )


def matched(
    flows: Flows, turns: Turns, latest: I64, usable: Bool, found: Connections, overdue: Bool
) -> tuple[I64, U64]:
    """The flow of each connection, as a position in `flows`; -1 not known (yet).

    usable: flows that may carry a connection.
    overdue: connections that have waited long enough: a doubtful match is made now.

    Returns (positions, the flows' connections with what was learnt).
    """
    carried = flows.connection.copy()
    position = _by_name(carried, found.name)
    # Flows without a connection, and connections without a flow, by place and time.
    place_of = _place_hash(flows)
    free = np.flatnonzero(usable & (carried == 0))
    lost = np.flatnonzero(position < 0)
    if len(free) == 0 or len(lost) == 0:
        return position, carried
    here = np.isin(place_of[free], found.place[lost])
    free = free[here]
    if len(free) == 0:
        return position, carried
    last_seen = turns.last_mono_ns[latest]
    candidate = _latest_born(place_of[free], flows.born_mono_ns[free], found.place[lost], found.first_mono_ns[lost])
    inside = candidate >= 0
    carrier = free[np.maximum(candidate, 0)]
    # An open flow may be seen later than its lines, and a busy connection always has a line ahead of it: there it is
    # enough that packets were seen on both sides of the first.
    until = np.where(flows.closed[carrier], found.last_mono_ns[lost], found.first_mono_ns[lost])
    inside &= until <= last_seen[carrier]
    # Each flow once: two connections that fall into one flow are both in doubt.
    times = np.bincount(np.maximum(candidate, 0)[inside], minlength=len(free))
    sure = inside & (times[np.maximum(candidate, 0)] == 1)
    # Where a place has had several flows, the sums must agree as well.
    alone = np.bincount(np.unique(place_of[free], return_inverse=True)[1])[
        np.unique(place_of[free], return_inverse=True)[1]
    ]
    shared = alone[np.maximum(candidate, 0)] > 1
    payload = turns.counts[latest][carrier, 2:4] - flows.given[carrier, 2:4]
    proved = (payload[:, 0] == found.in_bytes[lost]) & (payload[:, 1] == found.out_bytes[lost])
    sure &= ~shared | proved | ~(found.plain[lost] & flows.closed[carrier] & found.whole[lost])
    position[lost[sure]] = carrier[sure]
    carried[carrier[sure]] = found.name[lost[sure]]
    doubtful = lost[~sure & overdue[lost]]
    if len(doubtful):
        _align(flows, turns, latest, usable, found, doubtful, place_of, position, carried)
    return position, carried


def _align(
    flows: Flows,
    turns: Turns,
    latest: I64,
    usable: Bool,
    found: Connections,
    doubtful: I64,
    place_of: U64,
    position: I64,
    carried: U64,
) -> None:
    """Settle doubtful connections place by place; writes into `position` and `carried`."""
    free = np.flatnonzero(usable & (carried == 0))
    free = free[np.lexsort((flows.born_mono_ns[free], place_of[free]))]
    doubtful = doubtful[np.lexsort((found.first_mono_ns[doubtful], found.place[doubtful]))]
    starts, ends = starts_of(found.place[doubtful]), ends_of(found.place[doubtful]) + 1
    low = np.searchsorted(place_of[free], found.place[doubtful][starts], side="left")
    high = np.searchsorted(place_of[free], found.place[doubtful][starts], side="right")
    for start, end, left, right in zip(starts, ends, low, high, strict=True):
        if left == right:
            continue
        here, there = free[left:right], doubtful[start:end]
        payload = turns.counts[latest[here], 2:4] - flows.given[here, 2:4]
        pairs = _monotone(
            flows.born_mono_ns[here],
            turns.last_mono_ns[latest[here]],
            payload,
            found.first_mono_ns[there],
            found.last_mono_ns[there],
            np.stack((found.in_bytes[there], found.out_bytes[there]), axis=1),
        )
        for flow, connection in pairs:
            position[there[connection]] = here[flow]
            carried[here[flow]] = found.name[there[connection]]


def _monotone(born: I64, died: I64, payload: I64, first: I64, last: I64, wanted: I64) -> list[tuple[int, int]]:
    """The cheapest pairing of flows and connections that keeps both orders; either may stay alone.

    A pair that is impossible in time (the request was there before the flow, or long after it) is not made.
    """
    flows, connections = len(born), len(first)
    cost = np.full((flows + 1, connections + 1), np.inf)
    cost[:, 0] = np.arange(flows + 1) * _MISS
    cost[0, :] = np.arange(connections + 1) * _MISS
    pair = np.full((flows, connections), np.inf)
    for i in range(flows):
        possible = (first >= born[i]) & (last <= died[i] + 200 * WINDOW_NS)
        near = last <= died[i] + WINDOW_NS
        same = (payload[i] == wanted).all(axis=1)
        enough = (payload[i] >= wanted).all(axis=1)
        pair[i] = np.where(possible, np.where(same, 0, np.where(enough, 3, 6)) + np.where(near, 0, 4), np.inf)
    for i in range(1, flows + 1):
        row, above, pairs = cost[i], cost[i - 1], pair[i - 1]
        for j in range(1, connections + 1):
            row[j] = min(above[j] + _MISS, row[j - 1] + _MISS, above[j - 1] + pairs[j - 1])
    made: list[tuple[int, int]] = []
    i, j = flows, connections
    while i and j:
        if cost[i, j] == cost[i - 1, j - 1] + pair[i - 1, j - 1]:
            i, j = i - 1, j - 1
            made.append((i, j))
        elif cost[i, j] == cost[i - 1, j] + _MISS:
            i -= 1
        else:
            j -= 1
    return made


def _by_name(carried: U64, names: U64) -> I64:
    """The flow that is known to carry each connection; -1."""
    if len(carried) == 0:
        return np.full(len(names), -1, np.int64)
    order = np.argsort(carried, kind="stable")
    at = np.minimum(np.searchsorted(carried[order], names), len(carried) - 1)
    return np.where((carried[order][at] == names) & (names != 0), order[at], -1)


def _latest_born(places: U64, born: I64, wanted_places: U64, times: I64) -> I64:
    """Per query the flow at its place that was born last before its time; -1 none."""
    count = len(places)
    place = np.concatenate((places, wanted_places))
    time = np.concatenate((born, times))
    asks = np.concatenate((np.zeros(count, np.bool_), np.ones(len(times), np.bool_)))
    order = np.lexsort((asks, time, place))
    seen = np.maximum.accumulate(np.where(asks[order], -1, np.arange(len(order))))
    result = np.full(len(times), -1, np.int64)
    asking = asks[order] & (seen >= 0)
    source = order[seen[asking]]
    query = order[asking] - count
    result[query] = np.where(places[source] == wanted_places[query], source, -1)
    return result


def _place_hash(flows: Flows) -> U64:
    from apicost.core.join.upstream_columns import hash_of

    return hash_of(flows.peer_hi, flows.peer_lo, flows.peer_port, flows.local_port)
