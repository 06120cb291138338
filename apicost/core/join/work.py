"""One step of the downstream leg while it is being worked on.

Rules of this file: `Work` is the only thing here that changes. Each method of cutting (`http1`, `http2`) takes the
lines that are not done, gives some of them their bytes by `give`, and leaves the rest to the next.
"""

from __future__ import annotations

import numpy as np

from apicost.core.join.cuts import cut
from apicost.core.join.downstream_state import Flows, Legs, LineParts, Lines, LooseParts, Turns, place_in_run
from apicost.core.join.segments import I64, ends_of, find, starts_of
from apicost.core.join.upstream_columns import COUNTERS, U8, Bool, Counts
from apicost.core.records import RowKind


class Work:
    """Flows, their turns and the lines that are known to be theirs.

    flows: sorted; turns: runs `first` to `end` per flow. lines: sorted by flow and number on the connection.
    flow: per line the position of its flow. place: its place among the flow's lines, from 0.
    timed: the line has waited long enough, or nothing more can come. over: the same for a flow.
    unbroken: per turn, that none before it is missing.
    given: per flow, what has been given out so far; grows. proved: that a request ends there, to the byte.
    """

    def __init__(
        self,
        *,
        flows: Flows,
        turns: Turns,
        first: I64,
        end: I64,
        unbroken: Bool,
        over: Bool,
        lines: Lines,
        flow: I64,
        place: I64,
        timed: Bool,
        final: bool,
    ) -> None:
        self.flows, self.turns, self.first, self.end, self.over = flows, turns, first, end, over
        self.unbroken = unbroken
        self.lines, self.flow, self.place, self.timed, self.final = lines, flow, place, timed, final
        self.done: Bool = np.zeros(len(lines), np.bool_)
        self.given = flows.given.copy()
        self.given_mono_ns = flows.given_mono_ns.copy()
        self.proved = flows.proved.copy()
        self.next_request = flows.next_request.copy()
        self.last_line = flows.last_line.copy()
        self.last_tls = flows.last_tls.copy()
        self.pending_mono_ns = _pending(flows, turns, first)
        self.legs: list[Legs] = []
        self.parts: list[LineParts] = []
        self.loose: list[LooseParts] = []

    def cut(self, flow: I64, in_payload: I64, out_payload: I64) -> Counts:
        """The flows' counters at these payload offsets."""
        return cut(self.first, self.end, self.turns.counts, self.given, flow, in_payload, out_payload)

    def give(
        self,
        rows: I64,
        start: Counts,
        end: Counts,
        confidence: U8,
        *,
        before: Counts | None = None,
        after: Counts | None = None,
    ) -> None:
        """Give lines their bytes: from cut `start` to cut `end`, one row per line, in order.

        before, after: of these, how much is overhead. Bytes between the end of one line and the start of the
        next of its flow, and between what was given before and the first, become unattributed.
        """
        if len(rows) == 0:
            return
        flow = self.flow[rows]
        starts, ends = starts_of(flow), ends_of(flow)
        previous = np.empty_like(start)
        previous[1:] = end[:-1]
        previous[starts] = self.given[flow[starts]]
        between = start - previous
        gap = np.flatnonzero((between != 0).any(axis=1))
        if len(gap):
            self.add_loose(flow[gap], between[gap], np.full(len(gap), RowKind.UNATTRIBUTED), moved=False)
        overhead = np.zeros_like(start)
        for extra in (before, after):
            if extra is not None:
                overhead += extra
        self._add_parts(rows, end - start - overhead, RowKind.EXCHANGE)
        some = np.flatnonzero((overhead != 0).any(axis=1))
        if len(some):
            self._add_parts(rows[some], overhead[some], RowKind.OVERHEAD)
        begins = start if before is None else start + before
        finishes = end if after is None else end - after
        self._add_legs(rows, begins, finishes, confidence)
        self.done[rows] = True
        whose, last = flow[ends], rows[ends]
        self.given[whose] = end[ends]
        self.pending_mono_ns[whose] = 0
        self.given_mono_ns[whose] = self.lines.log_mono_ns[last]
        self.next_request[whose] = self.lines.request[last] + 1
        self.last_line[whose] = self.lines.line_id[last]
        self.last_tls[whose] = self.lines.tls[last]

    def drop_done(self) -> None:
        """Forget the lines that have their bytes; the places of the others are counted anew."""
        left = ~self.done
        self.lines, self.flow, self.timed = self.lines.take(left), self.flow[left], self.timed[left]
        self.place = place_in_run(self.flow)
        self.done = np.zeros(len(self.flow), np.bool_)

    def add_loose(self, flow: I64, counts: Counts, kind: I64, *, moved: bool = True) -> None:
        """Give bytes of flows a row of their own. moved: they reach up to the flow's latest snapshot."""
        line = np.where(kind == RowKind.OVERHEAD, self.last_line[flow], -1)
        last = self.turns.last_mono_ns[self.end[flow] - 1]
        began = self.given_mono_ns[flow]
        self.loose.append(
            LooseParts(
                line_id=line,
                flow=self.flows.flow[flow],
                role=self.flows.role[flow],
                kind=kind.astype(np.uint8),
                peer_hi=self.flows.peer_hi[flow],
                peer_lo=self.flows.peer_lo[flow],
                first_mono_ns=np.minimum(began, last),
                last_mono_ns=last,
                counts=counts,
            )
        )
        if moved:
            self.given[flow] = self.turns.counts[self.end[flow] - 1]
            self.pending_mono_ns[flow] = 0
            self.given_mono_ns[flow] = last

    def carried(self) -> Flows:
        """The flows as they stand after the step."""
        return self.flows.replace(
            given=self.given,
            given_mono_ns=self.given_mono_ns,
            proved=self.proved,
            pending_mono_ns=self.pending_mono_ns,
            next_request=self.next_request,
            last_line=self.last_line,
            last_tls=self.last_tls,
        )

    def _add_parts(self, rows: I64, counts: Counts, kind: RowKind) -> None:
        flow = self.flow[rows]
        self.parts.append(
            LineParts(
                line_id=self.lines.line_id[rows],
                flow=self.flows.flow[flow],
                role=self.flows.role[flow],
                kind=np.full(len(rows), kind, np.uint8),
                counts=counts,
            )
        )

    def _add_legs(self, rows: I64, start: Counts, end: Counts, confidence: U8) -> None:
        flow = self.flow[rows]
        turns, last = self.turns, self.end[flow] - 1
        # The turn in which the request begins: the first that goes beyond its start.
        one = find(self.first, self.end, turns.counts[:, 2], flow, start[:, 2], "right")
        other = find(self.first, self.end, turns.counts[:, 3], flow, end[:, 3], "left")
        one, other = np.minimum(one, last), np.minimum(other, last)
        log = self.lines.log_mono_ns[rows]
        # Within a turn that several requests share, the gateway's own times are nearer.
        begins_turn = (
            np.where(one > self.first[flow], turns.counts[np.maximum(one - 1, 0), 2], self.flows.turn_in_bytes[flow])
            == start[:, 2]
        )
        seen = turns.request_first_mono_ns[one]
        began = np.where(begins_turn & (seen > 0) & (seen <= log), seen, self.lines.started_mono_ns[rows])
        ends_turn = turns.counts[other, 3] == end[:, 3]
        answered = turns.response_last_mono_ns[other]
        ended = np.where(ends_turn & (answered >= began), answered, log)
        reply = turns.response_first_mono_ns[one]
        header = self.lines.header_mono_ns[rows]
        first_byte = np.where(
            begins_turn & (one == other) & (reply >= began), reply, np.where(header >= began, header, -1)
        )
        self.legs.append(
            Legs(
                line_id=self.lines.line_id[rows],
                flow=self.flows.flow[flow],
                confidence=confidence.astype(np.uint8),
                started_mono_ns=began,
                ended_mono_ns=np.maximum(ended, began),
                first_byte_ns=np.where(first_byte >= 0, first_byte - began, -1),
            )
        )


def _pending(flows: Flows, turns: Turns, first: I64) -> I64:
    """When the first bytes came that are not given out yet; 0 none."""
    if len(flows) == 0:
        return np.zeros(0, np.int64)
    more = (turns.counts[first, :2] > flows.given[:, :2]).any(axis=1)
    return np.where(more, np.where(flows.pending_mono_ns > 0, flows.pending_mono_ns, turns.last_mono_ns[first]), 0)


assert len(COUNTERS) == 7  # the counters' positions are written out in this package
