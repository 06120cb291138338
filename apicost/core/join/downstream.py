"""The client side: which bytes of a client's connection belong to which request.

Rules of this file:
- All that is given out of a flow is the difference of two cuts of its cumulative counters (`cuts`), so the parts
  of a flow add up to its counters whatever happens (law 1).
- A request is given out when nothing that is still to come can change its share: its end is proved by
  equal sums and the next request of its connection is known, or the connection is closed and accounted
  for, or it has waited long enough. So splits and orders of the input don't matter (law 4).
- HTTP/1.x is cut by byte offsets (`http1`), HTTP/2 shared by bytes (`http2`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from apicost.core.join import http1, http2
from apicost.core.join.connections import connections_of, matched
from apicost.core.join.downstream_state import (
    Flows,
    Legs,
    LineParts,
    Lines,
    LooseParts,
    Turns,
    merged,
    past_given_turns,
    place_in_run,
    snapshots,
    unbroken,
)
from apicost.core.join.segments import I64, bounds, overflow
from apicost.core.join.settings import Settings
from apicost.core.join.upstream_columns import Bool
from apicost.core.join.work import Work
from apicost.core.records import Confidence, Role, RowKind, SnapshotKind

TCP = 6
RESYNCS = 8  # how often in a step a connection may lose and find its sums again before all is placed by turns
CLOSE_NOTIFY_BYTES = 64  # two alerts of TLS 1.2 or 1.3 at most


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamState:
    """What stays between steps."""

    flows: Flows
    turns: Turns

    @classmethod
    def empty(cls) -> DownstreamState:
        return cls(flows=Flows.empty(), turns=Turns.empty())


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamResult:
    """What was settled in this step.

    legs: one row per settled line; lines that are not here wait.
    parts: the bytes of these lines. loose: bytes with a row of their own.
    counts: what was met, for the metrics.
    """

    legs: Legs
    parts: LineParts
    loose: LooseParts
    state: DownstreamState
    counts: dict[str, int]


def attribute_downstream(
    state: DownstreamState, flows: pa.Table, lines: Lines, *, now_mono_ns: int, settings: Settings, final: bool
) -> DownstreamResult:
    """Give the bytes of the gateway's client-side flows to the lines that wait.

    flows: columns as in `records.FLOW`, all but those of upstream flows; flows that can't carry a request
    (control traffic, UDP, unknown roles) come back as unattributed.
    lines: all lines whose downstream leg is not settled yet, any order.
    """
    known, turns, owner = merged(state.flows, state.turns, *snapshots(flows))
    size = len(known)
    first, end = bounds(owner, size)
    latest = end - 1
    last_seen = turns.last_mono_ns[latest] if size else np.zeros(0, np.int64)
    quiet_ns = now_mono_ns - last_seen
    over: Bool = known.closed & (quiet_ns >= settings.line_wait_ns) | final
    usable: Bool = (known.role == Role.DOWNSTREAM) & (known.protocol == TCP)
    if size:
        # A closed flow whose bytes are all given out has nothing for a line that comes now.
        usable &= ~(known.closed & (turns.counts[latest] == known.given).all(axis=1))

    # Lines logged up to then wait no longer: they are more than may wait.
    crowded_mono_ns = overflow(lines.log_mono_ns, settings.most_lines)
    crowded = lines.log_mono_ns <= crowded_mono_ns
    found = connections_of(lines)
    overdue_mono_ns = max(now_mono_ns - settings.flow_wait_ns, crowded_mono_ns)
    position, carried = matched(known, turns, latest, usable, found, final | (found.logged_mono_ns <= overdue_mono_ns))
    known = known.replace(connection=carried)
    flow_of_line = position[found.row] if len(lines) else np.zeros(0, np.int64)
    late = crowded | (now_mono_ns - lines.log_mono_ns >= settings.line_wait_ns)
    alone = flow_of_line < 0
    homeless = alone & (final | (lines.log_mono_ns <= overdue_mono_ns))

    chosen = np.flatnonzero(~alone)
    # One key for (flow, request): flows are far fewer than 2^31.
    key = (flow_of_line[chosen] << 32) | lines.request[chosen].astype(np.int64)
    order = chosen[np.lexsort((lines.log_mono_ns[chosen], key))]
    ordered, flow = lines.take(order), flow_of_line[order]
    # A number that was given out already, or comes twice: its bytes are elsewhere by now.
    repeated = np.zeros(len(order), np.bool_)
    repeated[1:] = (flow[1:] == flow[:-1]) & (ordered.request[1:] == ordered.request[:-1])
    spare = repeated | ((known.next_request[flow] > ordered.request) & (ordered.http < 20))
    if spare.any():
        homeless[order[spare]] = True
        ordered, flow, order = ordered.take(~spare), flow[~spare], order[~spare]

    work = Work(
        flows=known,
        turns=turns,
        first=first,
        end=end,
        unbroken=unbroken(known, turns, owner),
        over=over,
        lines=ordered,
        flow=flow,
        place=place_in_run(flow),
        timed=late[order] | final | over[flow],
        final=final,
    )
    http1.proved(work)
    for _ in range(RESYNCS):
        if not http1.placed(work, first_only=True):
            break
        http1.proved(work)
    http1.placed(work)
    http2.shared(work)
    _release(work, usable, quiet_ns, now_mono_ns, settings)

    state, crowded_out = _kept(work, quiet_ns, now_mono_ns, settings, final)
    lost = lines.take(homeless)
    legs = [*work.legs, _without_flow(lost)]
    counts = {
        "connections_matched": int((position >= 0).sum()),
        "connections_waiting": int((position < 0).sum()),
        "lines_without_flow": int(homeless.sum()),
        "lines_repeated": int(spare.sum()),
        "flows_open": int((~known.closed).sum()),
        "lines_crowded_out": int(crowded.sum()),
        "turns_crowded_out": crowded_out,
    }
    return DownstreamResult(
        legs=Legs.concat(legs),
        parts=LineParts.concat(work.parts),
        loose=LooseParts.concat(work.loose),
        state=state,
        counts=counts,
    )


def _without_flow(lines: Lines) -> Legs:
    """Legs of lines whose flow was never seen."""
    size = len(lines)
    return Legs(
        line_id=lines.line_id,
        flow=np.zeros(size, np.uint64),
        confidence=np.full(size, Confidence.APP_ONLY, np.uint8),
        started_mono_ns=np.full(size, -1, np.int64),
        ended_mono_ns=np.full(size, -1, np.int64),
        first_byte_ns=np.full(size, -1, np.int64),
    )


def _release(work: Work, usable: Bool, quiet_ns: I64, now_mono_ns: int, settings: Settings) -> None:
    """Give out what no line can claim any more, with rows of its own."""
    if len(work.flows) == 0:
        return
    flows, latest = work.flows, work.turns.counts[work.end - 1]
    rest = latest - work.given
    something = (rest != 0).any(axis=1)
    waiting = np.zeros(len(flows), np.bool_)
    waiting[work.flow[~work.done]] = True
    pending_ns = now_mono_ns - work.pending_mono_ns
    # A request may still run on an open flow: its bytes stay as long as they move, within reason.
    idle = quiet_ns >= np.where(usable, settings.idle_wait_ns, settings.line_wait_ns)
    old = pending_ns >= np.where(usable, settings.stream_wait_ns, settings.line_wait_ns)
    chosen = np.flatnonzero(something & ~waiting & (work.over | idle | old))
    if len(chosen) == 0:
        return
    part = rest[chosen]
    small = (part[:, 2] <= CLOSE_NOTIFY_BYTES) & (part[:, 3] <= CLOSE_NOTIFY_BYTES)
    bare = (part[:, 2] == 0) & (part[:, 3] == 0)
    overhead = (work.last_line[chosen] >= 0) & (bare | (small & work.last_tls[chosen]))
    work.add_loose(chosen, part, np.where(overhead, RowKind.OVERHEAD, RowKind.UNATTRIBUTED))
    # What of a request was given away is not there for its line: offsets of this flow hold no more.
    work.next_request[chosen[~overhead & ~flows.closed[chosen]]] = -1


def _kept(work: Work, quiet_ns: I64, now_mono_ns: int, settings: Settings, final: bool) -> tuple[DownstreamState, int]:
    """The state for the next step: open flows, and closed ones until nothing more can come of them.

    Returns also how many turns were more than may wait.
    """
    flows = work.carried()
    if len(flows) == 0:
        return DownstreamState.empty(), 0
    latest = work.turns.counts[work.end - 1]
    empty = (latest == flows.given).all(axis=1)
    forget = flows.closed & empty & (final | (quiet_ns >= settings.line_wait_ns + settings.grace_ns))
    wire = work.turns.counts[:, 0] + work.turns.counts[:, 1]
    owner = np.repeat(np.arange(len(flows)), work.end - work.first)
    # Before such turns are forgotten: else the next ones would seem to follow a missing turn.
    flows = past_given_turns(flows, work.turns, owner)
    given = flows.given[:, 0] + flows.given[:, 1]
    newest = np.zeros(len(owner), np.bool_)
    newest[work.end - 1] = True
    useful = newest | ((wire > given[owner]) & (work.turns.kind != SnapshotKind.OPEN))
    useful &= ~forget[owner]
    crowded = _crowded(work, useful, owner, now_mono_ns, settings)
    if crowded.any():
        flows = _past_crowded(flows, work.turns, crowded, owner)
        useful &= ~crowded
    return DownstreamState(flows=flows.take(~forget), turns=work.turns.take(useful)), int(crowded.sum())


def _crowded(work: Work, useful: Bool, owner: I64, now_mono_ns: int, settings: Settings) -> Bool:
    """Turns that are more than may wait: traffic that has no lines, or a WebSocket of a million messages.

    Of each flow the newest that is old stays: counters are cumulative, so it stands for all before it and no byte is
    lost, only where in it a request began. Those older than a late line are old, and the oldest beyond what may wait.
    """
    waiting = np.flatnonzero(useful)
    if len(waiting) <= settings.most_turns:
        return np.zeros(len(useful), np.bool_)
    seen = work.turns.last_mono_ns[waiting]
    until = max(now_mono_ns - settings.line_wait_ns, overflow(seen, settings.most_turns))
    old = waiting[(seen <= until) & (work.turns.kind[waiting] == SnapshotKind.TURN)]
    last_old = np.full(len(work.flows), -1, np.int64)
    np.maximum.at(last_old, owner[old], old)
    return useful & (np.arange(len(useful)) < last_old[owner])


def _past_crowded(flows: Flows, turns: Turns, crowded: Bool, owner: I64) -> Flows:
    """The flows as if the turns that go had never been apart from the next one that stays: none is missing."""
    last = np.full(len(flows), -1, np.int64)
    np.maximum.at(last, owner[crowded], turns.turn[crowded])
    return flows.replace(next_turn=np.maximum(flows.next_turn, last + 1))
