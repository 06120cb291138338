"""HTTP/1.x: requests follow each other on the flow, so byte offsets cut it.

Two passes. `proved` cuts at the running sums of the gateway's own counts (plain), or at the TLS layer's counters,
and gives out a request only when a turn's cumulative payload equals them in both directions: that request
and all before it are exact. `placed` takes what has waited long enough without such a proof (lost lines,
connections older than the probe, aborts, TLS without counters) and places requests by the turn in which
they began.

What belongs to a request and what is the connection's own:
- TLS: the handshake up to the client's Finished is overhead. Session tickets come while the first request is
  answered and stay with it, as a client sees it.
- Plain: two packets in and one out open a connection; their headers are taken at the mean size.
- What comes after the last request's last byte (close_notify, closing packets that carry nothing) is overhead.
"""

from __future__ import annotations

import numpy as np

from apicost.core.join.downstream_state import Lines
from apicost.core.join.segments import I64, cumulate, ends_of, find, lengths_of, starts_of, sums_of
from apicost.core.join.tls_offsets import ALERTS, filled, proofs
from apicost.core.join.upstream_columns import U8, Bool, Counts
from apicost.core.join.work import Work
from apicost.core.records import Confidence, SnapshotKind

SWITCHED = 101  # from here on the connection speaks another protocol; nginx's counts say nothing of it
ALERT_BYTES = 64  # two close_notify records at most
_RECORD = 22  # TLS 1.3: header 5, content type 1, tag 16
# The client's Finished: a handshake message of 36 (SHA-256) or 52 bytes in a record, before it 6 bytes of
# ChangeCipherSpec or none (RFC 8446, section 4.4.4 and appendix D.4).
_FINISHED = ((58, 64), (74, 80))
_HELLO_PACKETS = (2, 1)  # SYN and ACK in, SYN-ACK out


def proved(work: Work) -> None:
    """Give out the requests whose end is proved by equal sums."""
    lines, flow, turns = work.lines, work.flow, work.turns
    if len(lines) == 0:
        return
    starts = starts_of(flow)
    lines = work.lines = _with_unread_bodies(work)
    counted, told, offset_in, offset_out = _offsets(work, starts)
    expected = work.next_request[flow]
    in_order = (expected >= 0) & (lines.request == expected + work.place) & counted
    in_row = cumulate((~in_order).astype(np.int64), starts) == 0
    at = find(work.first, work.end, turns.counts[:, 2] + turns.counts[:, 3], flow, offset_in + offset_out, "right")
    at -= 1
    hit = in_row & told & (at >= work.first[flow])
    at = np.maximum(at, 0)
    hit &= (turns.counts[at, 2] == offset_in) & (turns.counts[at, 3] == offset_out)
    # A turn that is missing may still come, and tell better where the requests before this one ended.
    hit &= ((turns.kind[at] != SnapshotKind.OPEN) & work.unbroken[at]) | work.timed
    lengths = lengths_of(starts, len(flow))
    is_last = work.place == np.repeat(lengths, lengths) - 1
    # A closed flow whose rest after the last request is alerts of TLS, or nothing at all.
    closed = in_row & is_last & work.flows.closed[flow]
    closed &= work.unbroken[work.end[flow] - 1] | work.timed
    latest = turns.counts[work.end[flow] - 1]
    closing = np.where(lines.tls, ALERT_BYTES, 0)
    rest_in, rest_out = latest[:, 2] - offset_in, latest[:, 3] - offset_out
    closed &= (rest_in >= 0) & (rest_in <= closing) & (rest_out >= 0) & (rest_out <= closing)
    alerts = closed & np.isin(rest_in, ALERTS) & np.isin(rest_out, ALERTS)
    reached = hit | alerts
    last_hit = np.maximum.reduceat(np.where(reached, work.place, -1), starts)
    last_hit = np.repeat(last_hit, lengths)
    finishes = closed & (hit | alerts)
    give = (work.place <= last_hit) & (~is_last | finishes | work.timed)
    rows = np.flatnonzero(give)
    if len(rows) == 0:
        return
    own_end = np.where(hit[rows, None], turns.counts[at[rows]], 0)
    inside = np.flatnonzero(~hit[rows])
    if len(inside):
        some = rows[inside]
        own_end[inside] = work.cut(flow[some], offset_in[some], offset_out[some])
    start = _starts(work, rows, own_end)
    ended = finishes[rows]
    end = np.where(ended[:, None], turns.counts[work.end[flow[rows]] - 1], own_end)
    before = hello(work, rows, start, own_end)
    confidence = _confidence(work, rows, start + before, own_end, told, reached)
    work.give(rows, start, end, confidence, before=before, after=end - own_end)
    work.drop_done()


def _confidence(work: Work, rows: I64, start: Counts, end: Counts, told: Bool, reached: Bool) -> U8:
    """How sure the bytes of lines are that come out by sums; notes where their flows' cuts are proved.

    told: the end of the line is the gateway's own; reached: a turn or the connection ends there.
    """
    lines, flow = work.lines.take(rows), work.flow[rows]
    starts = starts_of(flow)
    first = np.repeat(starts, lengths_of(starts, len(flow)))
    proved, anchor = proofs(lines, flow, end[:, 2], start[first, 2], told[rows], reached[rows], work.proved[flow])
    # Behind a switch of protocols all belongs to the request, and its end is the connection's.
    proved |= (lines.status == SWITCHED) & reached[rows] & np.append(True, anchor[:-1])
    last = ends_of(flow)
    work.proved[flow[last]] = (anchor | ~lines.tls)[last]
    return np.where(proved | ~lines.tls, Confidence.EXACT, Confidence.ALIGNED).astype(np.uint8)


def _with_unread_bodies(work: Work) -> Lines:
    """The lines, with bodies that nginx threw away unread where the turns show them.

    nginx's request_length leaves out a body that it discards. Where it is less than the Content-Length that is certain
    (`correlate.lines_of`); a short body behind a long header can't be told by the numbers alone. So compare with
    what came in from this request's turn up to the next request's.
    """
    lines, flow, turns = work.lines, work.flow, work.turns
    doubt = np.flatnonzero((lines.body_bytes > 0) & ~lines.unread & ~lines.tls & (lines.http < 20))
    if len(doubt) == 0:
        return lines
    after = np.minimum(doubt + 1, len(flow) - 1)
    followed = (after > doubt) & (flow[after] == flow[doubt])
    begins = turn_begins(work)
    here = find(work.first, work.end, begins, flow[doubt], lines.started_mono_ns[doubt], "right") - 1
    there = find(work.first, work.end, begins, flow[after], lines.started_mono_ns[after], "right") - 2
    until = np.where(followed, there, work.end[flow[doubt]] - 1)
    before = np.where(
        here > work.first[flow[doubt]], turns.counts[np.maximum(here - 1, 0), 2], work.given[flow[doubt], 2]
    )
    came = turns.counts[np.maximum(until, 0), 2] - before
    unread = (until >= here) & (came == lines.in_bytes[doubt] + lines.body_bytes[doubt])
    in_bytes = lines.in_bytes.copy()
    in_bytes[doubt[unread]] += lines.body_bytes[doubt[unread]]
    return lines.replace(in_bytes=in_bytes)


def _offsets(work: Work, starts: I64) -> tuple[Bool, Bool, I64, I64]:
    """Per line: whether its end can be told in bytes, whether the gateway told it, and the payload up to there."""
    lines, flow = work.lines, work.flow
    base, total = work.given[flow], work.turns.counts[work.end - 1]
    offset_in = base[:, 2] + cumulate(lines.in_bytes, starts)
    offset_out = base[:, 3] + cumulate(lines.out_bytes, starts)
    counted = told = (lines.http < 20) & ~lines.tls
    by_layer = (lines.http < 20) & lines.tls & (lines.out_offset >= 0) & work.flows.whole[flow]
    if by_layer.any():
        told = told | (by_layer & (lines.in_offset >= 0))
        ends, found = filled(
            lines, flow, starts, work.flows.closed, work.given[:, 2], total[:, 2],
            np.where(by_layer, lines.in_offset, -1), by_layer & ~told,
        )  # fmt: skip
        counted = counted | (by_layer & found)
        offset_in = np.where(by_layer, ends, offset_in)
        offset_out = np.where(by_layer, lines.out_offset, offset_out)
    switched = (lines.status == SWITCHED) & ~lines.tls
    if switched.any():
        offset_in = np.where(switched, total[flow, 2], offset_in)
        offset_out = np.where(switched, total[flow, 3], offset_out)
        counted = counted & (~switched | work.flows.closed[flow])
    return counted, told, offset_in, offset_out


def _starts(work: Work, rows: I64, end: Counts) -> Counts:
    """Each line begins where the one before it ended; the first where the flow stands."""
    start = np.empty_like(end)
    start[1:] = end[:-1]
    flow = work.flow[rows]
    first = starts_of(flow)
    start[first] = work.given[flow[first]]
    return start


def hello(work: Work, rows: I64, start: Counts, end: Counts) -> Counts:
    """How much of each line's bytes opened the connection: for the first line of a flow seen from its first packet."""
    lines, flow = work.lines, work.flow[rows]
    result = np.zeros_like(start)
    first = (lines.request[rows] == 1) & work.flows.whole[flow] & (start == 0).all(axis=1)
    plain = np.flatnonzero(first & ~lines.tls[rows])
    if len(plain):
        got = end[plain]
        for wire, payload, packets, some in ((0, 2, 4, _HELLO_PACKETS[0]), (1, 3, 5, _HELLO_PACKETS[1])):
            number = np.minimum(got[:, packets], some)
            result[plain, wire] = (got[:, wire] - got[:, payload]) * number // np.maximum(got[:, packets], 1)
            result[plain, packets] = number
    secure = np.flatnonzero(first & lines.tls[rows])
    if len(secure):
        own = flow[secure]
        turns = work.turns
        least_in = lines.in_bytes[rows[secure]] + _RECORD
        limit = end[secure, 2] - least_in
        # The last turn that ended before the request can have begun.
        at = find(work.first, work.end, turns.counts[:, 2], own, limit, "right") - 1
        began = find(work.first, work.end, turn_begins(work), own, lines.started_mono_ns[rows[secure]], "right") - 1
        at = np.minimum(at, began - 1)
        there = at >= work.first[own]
        at = np.maximum(at, 0)
        in_payload = np.where(there, turns.counts[at, 2], 0)
        # TLS 1.3 sends Finished with the first request where the client is quick: what is left over is it. What
        # comes after a switch of protocols says nothing of its size.
        switched = lines.status[rows[secure]] == SWITCHED
        until = np.where(switched, turns.counts[np.maximum(began, 0), 2], end[secure, 2])
        rest = until - in_payload - least_in
        finished = np.zeros(len(secure), np.int64)
        for sizes in zip(*_FINISHED, strict=True):
            size = np.where(lines.sha384[rows[secure]], sizes[1], sizes[0])
            fits = (rest >= size) & ((rest - size) % _RECORD == 0) & (rest % _RECORD != 0)
            finished = np.where(fits, size, finished)
        hello_at = work.first[own]
        out_payload = np.where(there, turns.counts[hello_at, 3], 0)
        cut = work.cut(own, in_payload + finished, out_payload)
        result[secure] = np.where(there[:, None], np.minimum(cut, end[secure]), 0)
    return result


def turn_begins(work: Work) -> I64:
    """When each turn began."""
    turns = work.turns
    return np.where(turns.request_first_mono_ns > 0, turns.request_first_mono_ns, turns.last_mono_ns)


def placed(work: Work, *, first_only: bool = False) -> bool:
    """Give out requests that have waited long enough, by the turn in which they began.

    first_only: of each flow only those of its first such turn. Where it was this turn that broke the sums, what
    follows can be proved again from its end.

    Returns whether there were any.
    """
    lines = work.lines
    open_ = ~work.done & (lines.http < 20)
    overdue = open_ & work.timed
    if not overdue.any():
        return False
    # All waiting lines of such flows: those that are not overdue yet bound the others.
    reach = np.zeros(len(work.flows), np.int64) - 1
    np.maximum.at(reach, work.flow[overdue], work.place[overdue])
    rows = np.flatnonzero(open_ & (reach[work.flow] >= 0))
    flow, turns = work.flow[rows], work.turns
    begins = find(work.first, work.end, turn_begins(work), flow, lines.started_mono_ns[rows], "right") - 1
    begins = np.maximum.accumulate(np.maximum(begins, work.first[flow]))
    # Requests that begin in one turn share it: a run.
    new_run = np.concatenate(([True], (flow[1:] != flow[:-1]) | (begins[1:] != begins[:-1])))
    run_starts = np.flatnonzero(new_run)
    run_of = np.cumsum(new_run) - 1
    run_flow, run_turn = flow[run_starts], begins[run_starts]
    run_ends = np.concatenate((run_starts[1:], [len(rows)])) - 1
    request = lines.request[rows].astype(np.int64)
    same_next = np.concatenate((run_flow[1:] == run_flow[:-1], [False]))
    next_turn = np.concatenate((run_turn[1:], [0]))
    limit = np.where(same_next, next_turn - 1, work.end[run_flow] - 1)
    follows = np.zeros(len(run_starts), np.bool_)
    follows[:-1] = same_next[:-1] & (request[run_starts[1:]] == request[run_ends[:-1]] + 1)
    opens = np.concatenate(([True], ~same_next[:-1]))
    continues = np.concatenate(([False], follows[:-1]))
    expected = work.next_request[run_flow]
    continues |= opens & (expected == request[run_starts])
    before = np.where(
        (run_turn > work.first[run_flow])[:, None], turns.counts[np.maximum(run_turn - 1, 0)], work.given[run_flow]
    )
    before = np.maximum(before, work.given[run_flow])
    wanted_in = sums_of(lines.in_bytes[rows], run_starts)
    wanted_out = sums_of(lines.out_bytes[rows], run_starts)
    reached_in = find(work.first, work.end, turns.counts[:, 2], run_flow, before[:, 2] + wanted_in)
    reached_out = find(work.first, work.end, turns.counts[:, 3], run_flow, before[:, 3] + wanted_out)
    enough = np.maximum(np.maximum(reached_in, reached_out), run_turn)
    # A run goes up to the next request if none is missing between, else as far as its sums ask.
    absorbs = lines.status[rows][run_ends] == SWITCHED
    last = np.where(follows | absorbs, limit, np.minimum(enough, limit))
    last = np.maximum(last, run_turn)
    run_end = np.maximum(turns.counts[last], work.given[run_flow])
    run_start = before.copy()
    previous_end = np.concatenate((work.given[run_flow[:1]], run_end[:-1]))
    previous_end[opens] = work.given[run_flow[opens]]
    run_start = np.where(continues[:, None], previous_end, np.maximum(before, previous_end))
    run_end = np.maximum(run_end, run_start)

    # Within a run: in proportion to the gateway's counts.
    span_in, span_out = run_end[:, 2] - before[:, 2], run_end[:, 3] - before[:, 3]
    sum_in, sum_out = cumulate(lines.in_bytes[rows], run_starts), cumulate(lines.out_bytes[rows], run_starts)
    end = run_end[run_of]
    inner = np.flatnonzero(~np.isin(np.arange(len(rows)), run_ends))
    if len(inner):
        run = run_of[inner]
        offset_in = before[run, 2] + _scaled(sum_in[inner], span_in[run], wanted_in[run])
        offset_out = before[run, 3] + _scaled(sum_out[inner], span_out[run], wanted_out[run])
        between = work.cut(flow[inner], offset_in, offset_out)
        end[inner] = np.clip(between, run_start[run], run_end[run])
    start = np.empty_like(end)
    start[1:] = end[:-1]
    start[run_starts] = run_start

    first_of_tls = lines.tls[rows][run_starts] & (request[run_starts] == 1)
    surplus_in, surplus_out = span_in - wanted_in, span_out - wanted_out
    exact = (surplus_in == 0) & (surplus_out == 0) & ~lines.tls[rows][run_starts]
    near = (surplus_in >= 0) & (surplus_out >= 0) & lines.tls[rows][run_starts]
    near &= (surplus_in <= 128 + (wanted_in >> 5)) & (surplus_out <= 384 + (wanted_out >> 5))
    grade = np.where(
        exact, Confidence.EXACT, np.where(near | first_of_tls, Confidence.ALIGNED, Confidence.APPORTIONED)
    )[run_of]
    # The close, where the flow's last line has its bytes and nothing else is left.
    latest = turns.counts[work.end[flow] - 1]
    tail = latest - end
    is_last = np.concatenate((flow[1:] != flow[:-1], [True]))
    small = np.where(lines.tls[rows], ALERT_BYTES, 0)
    closes = is_last & work.over[flow] & (tail[:, 2] <= small) & (tail[:, 3] <= small) & (tail >= 0).all(axis=1)
    after = np.where(closes[:, None], tail, 0)
    chosen = work.place[rows] <= reach[flow]
    if first_only:
        chosen &= opens[run_of]
    keep = np.flatnonzero(chosen)
    rows, start, end, after, grade = rows[keep], start[keep], end[keep], after[keep], grade[keep]
    own = hello(work, rows, start, end)
    work.proved[work.flow[rows]] = ~work.lines.tls[rows]
    work.give(rows, start, end + after, grade, before=np.minimum(own, end - start), after=after)
    work.drop_done()
    return True


def _scaled(value: I64, span: I64, whole: I64) -> I64:
    """value * span / whole, exact where they are equal."""
    share = np.floor(value * (span / np.maximum(whole, 1))).astype(np.int64)
    return np.where(span == whole, value, np.clip(share, 0, np.maximum(span, 0)))
