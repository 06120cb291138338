"""HTTP/2 and gRPC: streams are interleaved, so a connection's bytes are shared out by weight.

What a stream's own frames took is known to the byte or nearly so: nginx counts HEADERS and DATA frames on the way
out; on the way in it counts their payload, to which each frame adds 9 bytes. The rest of the connection's
payload (handshake, SETTINGS, PING, WINDOW_UPDATE, TLS records) is one pot, shared in proportion to these
bytes and kept visible as overhead. Turns say nothing here: sharing by them was measured to err by 41 to 68 %.
"""

from __future__ import annotations

import numpy as np

from apicost.core.join.allocate import allocate_groups
from apicost.core.join.segments import I64, find, lengths_of, starts_of, sums_of
from apicost.core.join.upstream_columns import COUNTERS
from apicost.core.join.work import Work
from apicost.core.records import Confidence

FRAME_BYTES = 9
MAX_FRAME_BYTES = 16_384  # what clients send unless the gateway says otherwise, and nginx does not
# What a pot may hold before bytes of a request without a line are suspected in it.
_POT_BYTES = 65_536
_POT_PER_STREAM = 512


def frames_in(request_bytes: I64, body_bytes: I64) -> I64:
    """Bytes of a request's frames: nginx's count and a header for each frame."""
    body = np.clip(body_bytes, 0, np.maximum(request_bytes, 0))
    return request_bytes + FRAME_BYTES * (1 + (body + MAX_FRAME_BYTES - 1) // MAX_FRAME_BYTES)


def shared(work: Work) -> None:
    """Give out streams that have waited long enough, and the connection's rest with them."""
    lines = work.lines
    overdue = ~work.done & (lines.http >= 20) & work.timed
    if not overdue.any():
        return
    rows = np.flatnonzero(overdue)
    flow = work.flow[rows]
    starts = starts_of(flow)
    group = np.repeat(np.arange(len(starts)), lengths_of(starts, len(flow)))
    whose = flow[starts]
    turns = work.turns
    own = np.stack((frames_in(lines.in_bytes[rows], lines.body_bytes[rows]), lines.out_bytes[rows]), axis=1)
    wanted = sums_of(own, starts)
    # An open connection: what it had when the last of these streams was logged. A closed one: all.
    logged = np.maximum.reduceat(lines.log_mono_ns[rows], starts)
    ends = work.over[whose] | work.final
    until = find(work.first, work.end, turns.last_mono_ns, whose, logged, "right")
    until = np.where(ends, work.end[whose], np.minimum(until + 1, work.end[whose])) - 1
    there = turns.counts[until]
    given = work.given[whose]
    had = np.maximum(there[:, 2:4] - given[:, 2:4], 0)
    count = lengths_of(starts, len(flow))
    pot = had - wanted
    most = _POT_BYTES + _POT_PER_STREAM * count[:, None] + wanted.sum(axis=1, keepdims=True) // 16
    pot = np.clip(pot, 0, most)
    taken = np.minimum(had, wanted + pot)
    cut = work.cut(whose, given[:, 2] + taken[:, 0], given[:, 3] + taken[:, 1])
    reached = (taken == had).all(axis=1)
    cut = np.where(reached[:, None], np.maximum(there, given), np.maximum(cut, given))
    whole = cut - given
    share = np.zeros((len(rows), len(COUNTERS)), np.int64)
    extra = np.zeros_like(share)
    for way in (0, 1):
        payload, wire, packets = 2 + way, way, 4 + way
        weight = own[:, way]
        enough = taken[:, way] >= wanted[:, way]
        exact = np.where(enough[group], weight, allocate_groups(np.minimum(taken, wanted)[:, way], group, weight))
        rest = np.where(enough, taken[:, way] - wanted[:, way], 0)
        extra[:, payload] = allocate_groups(rest, group, weight)
        share[:, payload] = exact + extra[:, payload]
        headers = whole[:, wire] - whole[:, payload]
        share[:, wire] = share[:, payload] + allocate_groups(headers, group, weight)
        extra[:, wire] = extra[:, payload]
        share[:, packets] = allocate_groups(whole[:, packets], group, weight)
    share[:, 6] = allocate_groups(whole[:, 6], group, own.sum(axis=1))
    position = np.cumsum(share, axis=0)
    base = position[starts] - share[starts]
    end = position - base[group] + given[group]
    confidence = np.full(len(rows), Confidence.APPORTIONED, np.uint8)
    work.give(rows, end - share, end, confidence, before=extra)
