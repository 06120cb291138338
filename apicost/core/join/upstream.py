"""The upstream leg of the join: which bytes towards the backends belong to which attempt.

nginx does not tell its own port towards a backend, so an attempt is found by backend address, exact payload
bytes and time (`upstream_match`), in flows that are cut into turns (`upstream_turns`).

Rules of this file:
- Bytes are conserved: of each flow, settled attempts + overhead + unattributed = the kernel's counters,
  as soon as nothing of it is in the state any more; integers, exact.
- An attempt is decided once its rivals had time to arrive (`UpstreamSettings.match_wait_ns`), so that the
  answer does not depend on which of them came first.
- Nothing is read but what is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from apicost.core.join.segments import overflow
from apicost.core.join.upstream_attempts import Attempts, attempts_of
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
from apicost.core.join.upstream_match import Owners, Pairs, Rows, Waiting, match_equal
from apicost.core.join.upstream_merged import shortened, split_merged
from apicost.core.join.upstream_passes import match
from apicost.core.join.upstream_turns import (
    Flows,
    Snapshots,
    Turns,
    cut,
    find,
    handshake_bytes,
    run_starts,
    snapshots_of,
)
from apicost.core.join.upstream_unsized import is_unsized, match_unsized
from apicost.core.records import Confidence, RowKind

__all__ = [
    "COUNTERS",
    "Attempts",
    "Parts",
    "Settled",
    "UpstreamResult",
    "UpstreamSettings",
    "UpstreamState",
    "attempts_of",
    "attribute_upstream",
]


CACHED_CLOCK_NS = 100_000_000  # nginx's durations are by its event loop's clock: 91 ms late at most was seen
NEIGHBOUR_NS = 5_000_000_000  # how far in time equal bytes may be taken for each other, when nobody else claims them
FORGOTTEN_NS = 7 * 86_400 * 1_000_000_000  # a flow without a packet for a week, whose close the probe missed
CLOSE_NOTIFY_BYTES = 64  # a TLS alert is 24 or 31 bytes with its record, either way: RFC 8446 section 6.1


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """How long each side waits for the other.

    line_wait_ns: after its last packet, how long a turn waits for an attempt.
    flow_wait_ns: after it was logged, how long an attempt waits for its turn.
    stream_wait_ns: how long the newest turns of an open flow wait, since they may be a WebSocket's, whose
        line comes when it ends.
    linger_ns: how long a closed flow is remembered, so that a late snapshot of it is known as such.
    most_attempts, most_turns: so many of each wait at most: beyond that the oldest are settled as they stand.
    """

    line_wait_ns: int = 10_000_000_000
    flow_wait_ns: int = 5_000_000_000
    stream_wait_ns: int = 3_600_000_000_000
    linger_ns: int = 60_000_000_000
    most_attempts: int = 60_000
    most_turns: int = 100_000

    @property
    def match_wait_ns(self) -> int:
        """After it was logged, how long an attempt waits for its rivals."""
        return self.flow_wait_ns * 2 // 5

    @property
    def gap_wait_ns(self) -> int:
        """How long a snapshot behind a missing one waits for it; then the two turns are one.

        Less than `match_wait_ns`: else attempts would choose while turns are still held back.
        """
        return self.flow_wait_ns // 5


class _WithCounts(Columns):
    """Columns with a matrix `counts`, readable by the counters' names."""

    __slots__ = ()
    counts: Counts

    in_wire_bytes = property(lambda self: self.counts[:, IN_WIRE])
    out_wire_bytes = property(lambda self: self.counts[:, OUT_WIRE])
    in_payload_bytes = property(lambda self: self.counts[:, IN_PAYLOAD])
    out_payload_bytes = property(lambda self: self.counts[:, OUT_PAYLOAD])
    in_packets = property(lambda self: self.counts[:, IN_PACKETS])
    out_packets = property(lambda self: self.counts[:, OUT_PACKETS])
    resent_bytes = property(lambda self: self.counts[:, RESENT])


@dataclass(frozen=True, kw_only=True)
class Settled(_WithCounts):
    """Attempts that are decided, each once; sorted by (line_id, try_no).

    flow: 0 where none was found; then all counters are 0 and the confidence is APP_ONLY.
    overhead_bytes: of the wire bytes, those of the connection's handshake.
    first_mono_ns, last_mono_ns: first payload towards the backend, last payload; 0 without a flow.
    counts: columns `COUNTERS`, also as properties of their names.
    """

    line_id: I64
    try_no: I32
    flow: U64
    confidence: U8
    overhead_bytes: I64
    first_mono_ns: I64
    last_mono_ns: I64
    peer_hi: U64
    peer_lo: U64
    peer_port: I32
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class Parts(_WithCounts):
    """Bytes of upstream flows that no attempt took; sorted by flow, in the flow's order.

    kind: RowKind.OVERHEAD (the flow's own, such as a close after its last attempt was settled) or UNATTRIBUTED.
    line_id: the line that had bytes of this flow last; -1 none.
    """

    flow: U64
    kind: U8
    line_id: I64
    first_mono_ns: I64
    last_mono_ns: I64
    peer_hi: U64
    peer_lo: U64
    peer_port: I32
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamState:
    """What waits from step to step: flows, snapshots behind a gap, turns and attempts without each other."""

    flows: Flows = field(default_factory=Flows.empty)
    snapshots: Snapshots = field(default_factory=Snapshots.empty)
    turns: Turns = field(default_factory=Turns.empty)
    waiting: Waiting = field(default_factory=Waiting.empty)

    def to_tables(self) -> dict[str, pa.Table]:
        """Plain Arrow tables by name."""
        return {
            "upstream_flows": self.flows.to_table(),
            "upstream_snapshots": self.snapshots.to_table(),
            "upstream_turns": self.turns.to_table(),
            "upstream_waiting": self.waiting.to_table(),
        }

    @classmethod
    def from_tables(cls, tables: Mapping[str, pa.Table]) -> UpstreamState:
        """The inverse of `to_tables`; raises KeyError when a table or a column is missing."""
        return cls(
            flows=Flows.from_table(tables["upstream_flows"]),
            snapshots=Snapshots.from_table(tables["upstream_snapshots"]),
            turns=Turns.from_table(tables["upstream_turns"]),
            waiting=Waiting.from_table(tables["upstream_waiting"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamResult:
    """What a step decided, and what waits on."""

    settled: Settled
    parts: Parts
    state: UpstreamState
    crowded_attempts: int = 0  # that were more than may wait, as were turns
    crowded_turns: int = 0


def attribute_upstream(
    state: UpstreamState,
    flows: pa.Table,
    attempts: Attempts,
    *,
    now_mono_ns: int,
    settings: UpstreamSettings,
    final: bool = False,
) -> UpstreamResult:
    """Give the bytes of upstream flows to the attempts that moved them, as far as both are known by now.

    state: of the step before; it is not changed.
    flows: columns as in `records.FLOW`, only rows whose role is UPSTREAM, in any order, repeats allowed.
    attempts: the new ones, all tries of a line together, in any order.
    final: decide everything now; only closed or idle flows' memory is left in the state.
    """
    snapshots = Snapshots.concat([state.snapshots, snapshots_of(flows)])
    known, kept, fresh = cut(
        state.flows, snapshots, now_mono_ns=now_mono_ns, gap_wait_ns=settings.gap_wait_ns, final=final
    )
    turns = _in_order(state.turns, fresh)
    waiting = _waiting(state.waiting, attempts)
    if known is state.flows:
        known = known.take(np.arange(len(known)))  # it is written to below

    usable = _usable(turns, now_mono_ns, settings, final)
    # Attempts logged up to then wait no longer: they are more than may wait.
    crowded_mono_ns = overflow(waiting.log_mono_ns, settings.most_attempts)
    ripe_mono_ns = max(now_mono_ns - settings.match_wait_ns, crowded_mono_ns)
    ripe = final | (waiting.log_mono_ns <= ripe_mono_ns)
    owners = _owners(known)
    # Attempts that are not ripe are there as rivals only; those logged much later can't be.
    soon = final | (waiting.log_mono_ns <= ripe_mono_ns + settings.match_wait_ns // 4)
    # Without bytes nothing proves a pair: such attempts are asked last.
    pairs = match(turns, usable, waiting, np.flatnonzero(soon & ~is_unsized(waiting)), owners)
    turns, pairs = split_merged(turns, usable, waiting, ripe, pairs, owners)
    late = final | (waiting.log_mono_ns <= max(now_mono_ns - settings.flow_wait_ns, crowded_mono_ns))
    pairs = pairs.take(np.where(pairs.far, late[pairs.attempt], ripe[pairs.attempt]))
    pairs = Pairs.concat([pairs, _left_over(turns, usable, waiting, late, pairs, owners)])
    pairs = Pairs.concat([pairs, _unsized(turns, usable, waiting, late, pairs)])
    settled = _settled(turns, waiting, pairs)
    claimed = np.zeros(len(turns), np.bool_)
    claimed[pairs.turn] = True
    line_before = _line_before(turns, waiting, pairs, known)
    _remember(known, turns, waiting, pairs)

    turns_crowded_mono_ns = overflow(turns.last_mono_ns[~claimed], settings.most_turns)
    aged = turns.last_mono_ns <= max(now_mono_ns - settings.line_wait_ns, turns_crowded_mono_ns)
    parts, given = _rest(turns, claimed, line_before, known, aged, now_mono_ns, settings, final)
    gone = claimed | given
    _move_provisional(known, turns, gone)
    stays = ~gone & ~turns.provisional
    left = shortened(turns.take(stays), aged[stays])

    answered = np.zeros(len(waiting), np.bool_)
    answered[pairs.attempt] = True
    late &= ~answered
    everything = Settled.concat([settled, _without_flow(waiting.take(late))])
    state = UpstreamState(
        flows=_pruned(known, left, kept, now_mono_ns, settings),
        snapshots=kept,
        turns=left,
        waiting=waiting.take(~answered & ~late),
    )
    return UpstreamResult(
        settled=everything.take(np.lexsort((everything.try_no, everything.line_id))),
        parts=parts,
        state=state,
        crowded_attempts=int((waiting.log_mono_ns <= crowded_mono_ns).sum()),
        crowded_turns=int((turns.last_mono_ns[~claimed] <= turns_crowded_mono_ns).sum()),
    )


def _left_over(
    turns: Turns, usable: Rows, waiting: Waiting, late: Bool | np.bool_, pairs: Pairs, owners: Owners
) -> Pairs:
    """Pairs of what nobody else wants: same backend, same bytes, near in time.

    Where many requests move equal bytes and a turn is seen too late, another attempt has taken its neighbour. The
    bytes of the two are the same, so the cost is right whichever of them it is.
    """
    unanswered = np.ones(len(waiting), np.bool_) & late
    unanswered[pairs.attempt] = False
    attempts = np.flatnonzero(unanswered & ~waiting.tls)
    free = np.ones(len(turns), np.bool_)
    free[pairs.turn] = False
    rows = usable[free[usable]]
    if not len(attempts) or not len(rows):
        return Pairs.empty()
    asking = waiting.take(attempts)
    asking = asking.replace(
        low_mono_ns=asking.low_mono_ns - NEIGHBOUR_NS, log_mono_ns=asking.log_mono_ns + NEIGHBOUR_NS
    )
    found = match_equal(turns.take(rows), asking, owners)
    return found.replace(turn=rows[found.turn], attempt=attempts[found.attempt], sure=np.zeros(len(found), np.bool_))


def _unsized(turns: Turns, usable: Rows, waiting: Waiting, late: Bool | np.bool_, pairs: Pairs) -> Pairs:
    """Pairs of attempts of which nobody counted the bytes."""
    if not is_unsized(waiting).any():
        return Pairs.empty()
    unanswered = np.ones(len(waiting), np.bool_)
    unanswered[pairs.attempt] = False
    free = np.ones(len(turns), np.bool_)
    free[pairs.turn] = False
    may = np.zeros(len(turns), np.bool_)
    may[usable] = True
    open_ = np.flatnonzero(unanswered)
    found = match_unsized(turns, free, may, waiting.take(open_), np.flatnonzero((unanswered & late)[open_]))
    return found.replace(attempt=open_[found.attempt])


def _in_order(old: Turns, fresh: Turns) -> Turns:
    """Turns that wait and new ones together, in order of (flow, turn), what is provisional last."""
    if not len(old):
        return fresh
    if not len(fresh):
        return old
    turns = Turns.concat([old, fresh])
    return turns.take(np.lexsort((turns.provisional, turns.start_in + turns.start_out, turns.turn, turns.flow)))


def _waiting(old: Waiting, attempts: Attempts) -> Waiting:
    """Attempts with their windows, after those that wait already."""
    new = attempts.take(np.lexsort((attempts.try_no, attempts.line_id)))
    low = new.access_mono_ns
    if (low < 0).any():
        # Where the access phase left no time, the durations of the line's tries say when the first began.
        starts = run_starts(new.line_id)
        spent = np.add.reduceat(np.maximum(new.response_ms, 0), np.flatnonzero(starts))[np.cumsum(starts) - 1]
        low = np.where(low < 0, new.log_mono_ns - spent * 1_000_000 - CACHED_CLOCK_NS, low)
    fresh = Waiting(
        line_id=new.line_id,
        try_no=new.try_no,
        addr_hi=new.addr_hi,
        addr_lo=new.addr_lo,
        port=new.port,
        sent_bytes=new.sent_bytes,
        received_bytes=new.received_bytes,
        status=new.status,
        low_mono_ns=low,
        log_mono_ns=new.log_mono_ns,
        worker_pid=new.worker_pid,
        tls=new.tls,
    )
    if not len(old):
        return fresh
    both = Waiting.concat([old, fresh])
    return both.take(np.lexsort((both.try_no, both.line_id)))


def _usable(turns: Turns, now_mono_ns: int, settings: UpstreamSettings, final: bool) -> Rows:
    """Rows that an attempt may take now.

    A turn that is still going on must have been quiet for a while. One without payload can only be a
    connection that was refused: later ones are what came after a turn was settled, such as a close.
    """
    bare = (turns.counts[:, IN_PAYLOAD] == 0) & (turns.counts[:, OUT_PAYLOAD] == 0)
    good = ~bare | turns.first
    if not final:
        good &= ~turns.provisional | (turns.last_mono_ns <= now_mono_ns - settings.match_wait_ns)
    return np.flatnonzero(good)


def _owners(known: Flows) -> Owners:
    voted = known.votes > 0
    return Owners(flow=known.flow[voted], worker_pid=known.worker_pid[voted], votes=known.votes[voted].astype(np.int64))


def _settled(turns: Turns, waiting: Waiting, pairs: Pairs) -> Settled:
    """One row for each attempt that took turns, with the sums of their counters."""
    if not len(pairs):
        return Settled.empty()
    order = np.lexsort((pairs.turn, pairs.attempt))
    turn, attempt = pairs.turn[order], pairs.attempt[order]
    starts = np.flatnonzero(run_starts(attempt))
    ends = np.append(starts[1:], len(attempt)) - 1
    first, last, who = turn[starts], turn[ends], attempt[starts]
    single = len(starts) == len(turn)
    sure = pairs.sure[order] & pairs.proved[order]
    sure = sure if single else np.logical_and.reduceat(sure, starts)
    counts = turns.counts[turn]
    return Settled(
        line_id=waiting.line_id[who],
        try_no=waiting.try_no[who],
        flow=turns.flow[first],
        confidence=np.where(sure, Confidence.EXACT, Confidence.ALIGNED).astype(np.uint8),
        overhead_bytes=handshake_bytes(turns.take(first)),
        first_mono_ns=turns.begin_mono_ns[first],
        last_mono_ns=turns.end_mono_ns[last],
        peer_hi=turns.peer_hi[first],
        peer_lo=turns.peer_lo[first],
        peer_port=turns.peer_port[first],
        counts=counts if single else np.add.reduceat(counts, starts, axis=0),
    )


def _remember(known: Flows, turns: Turns, waiting: Waiting, pairs: Pairs) -> None:
    """Write to the flows who took their bytes last, and which worker they belong to."""
    if not len(pairs):
        return
    order = np.argsort(pairs.turn, kind="stable")
    turn, attempt = pairs.turn[order], pairs.attempt[order]
    last = np.append(run_starts(turns.flow[turn])[1:], True)
    turn, attempt = turn[last], attempt[last]
    at, there = find(known, turns.flow[turn])
    newer = there & (known.claimed_turn[at] <= turns.turn[turn])
    at, turn, attempt = at[newer], turn[newer], attempt[newer]
    known.last_line[at] = waiting.line_id[attempt]
    known.last_tls[at] = waiting.tls[attempt]
    known.claimed_turn[at] = turns.turn[turn]
    owners = _owners(known).with_votes(turns.flow[pairs.turn], waiting.worker_pid[pairs.attempt])
    at, there = find(known, owners.flow)
    at, owners = at[there], owners.take(there)
    known.worker_pid[at] = owners.worker_pid
    known.votes[at] = owners.votes


def _rest(
    turns: Turns,
    claimed: Bool,
    line_before: I64,
    known: Flows,
    aged: Bool,
    now_mono_ns: int,
    settings: UpstreamSettings,
    final: bool,
) -> tuple[Parts, Bool]:
    """Turns that no attempt will take any more: overhead of their flow, or unattributed.

    aged: turns that wait no longer for an attempt, but those of a stream.
    """
    if not len(turns):
        return Parts.empty(), np.zeros(0, np.bool_)
    at, there = find(known, turns.flow)
    closed = there & known.closed[at] if len(known) else there
    passed = there & (known.claimed_turn[at] >= turns.turn) if len(known) else there
    payload = turns.counts[:, IN_PAYLOAD] + turns.counts[:, OUT_PAYLOAD]
    notify = closed & turns.last & (payload <= CLOSE_NOTIFY_BYTES) & there
    if len(known):
        notify &= known.last_tls[at]
    overhead = (line_before >= 0) & ((payload == 0) | notify)
    old = turns.last_mono_ns <= now_mono_ns - settings.stream_wait_ns
    given = ((aged & (closed | passed)) | (overhead & (payload == 0))) & ~turns.provisional
    given = ~claimed & (given | old | final)
    rows = np.flatnonzero(given)
    parts = Parts(
        flow=turns.flow[rows],
        kind=np.where(overhead[rows], RowKind.OVERHEAD, RowKind.UNATTRIBUTED).astype(np.uint8),
        line_id=line_before[rows],
        first_mono_ns=turns.begin_mono_ns[rows],
        last_mono_ns=turns.last_mono_ns[rows],
        peer_hi=turns.peer_hi[rows],
        peer_lo=turns.peer_lo[rows],
        peer_port=turns.peer_port[rows],
        counts=turns.counts[rows],
    )
    return parts, given


def _line_before(turns: Turns, waiting: Waiting, pairs: Pairs, known: Flows) -> I64:
    """For each turn, the line that had bytes of its flow last, up to that turn; -1 none."""
    if not len(turns):
        return np.zeros(0, np.int64)
    at, there = find(known, turns.flow)
    before = np.where(there, known.last_line[at], -1) if len(known) else np.full(len(turns), -1, np.int64)
    here = np.full(len(turns), -1, np.int64)
    here[pairs.turn] = pairs.turn
    newest = np.maximum.accumulate(here)
    line = np.full(len(turns), -1, np.int64)
    line[pairs.turn] = waiting.line_id[pairs.attempt]
    same = (newest >= 0) & (turns.flow[newest] == turns.flow)
    return np.where(same, line[newest], before)


def _move_provisional(known: Flows, turns: Turns, gone: Bool) -> None:
    """Where a provisional turn was given out, its flow's cut moves to what was given."""
    rows = np.flatnonzero(gone & turns.provisional)
    if not len(rows):
        return
    at, _ = find(known, turns.flow[rows])
    np.add.at(known.counts, at, turns.counts[rows])  # a merged one may have become several rows
    known.next_turn[at] = turns.turn[rows]
    known.cut_mono_ns[at] = turns.last_mono_ns[rows]


def _without_flow(waiting: Waiting) -> Settled:
    """Attempts whose flow the probe never saw: the gateway's own counts are all there is."""
    return Settled.blank(len(waiting)).replace(
        line_id=waiting.line_id,
        try_no=waiting.try_no,
        confidence=np.full(len(waiting), Confidence.APP_ONLY, np.uint8),
        peer_hi=waiting.addr_hi,
        peer_lo=waiting.addr_lo,
        peer_port=waiting.port,
    )


def _pruned(known: Flows, left: Turns, kept: Snapshots, now_mono_ns: int, settings: UpstreamSettings) -> Flows:
    """The flows without those that are closed, given out, and forgotten by the probe."""
    over = known.closed & (known.last_mono_ns <= now_mono_ns - settings.linger_ns)
    over |= known.last_mono_ns <= now_mono_ns - FORGOTTEN_NS
    if not over.any():
        return known
    over &= ~np.isin(known.flow, left.flow) & ~np.isin(known.flow, kept.flow)
    return known.take(~over)
