"""Attempts of which the gateway did not count the bytes, such as ai-proxy's towards a model.

Rules of this file:
- Without bytes there is nothing to compare: an attempt is given what moved between the gateway and its backend while it
  ran, where that is one flow's, and no other attempt towards that backend that waits for its bytes ran at that time.
  Where anything else comes into question, nobody gets it.
- It is asked last, when every attempt with bytes had its turn, and its pairs are never proved.
"""

from __future__ import annotations

import numpy as np

from apicost.core.join.upstream_columns import IN_PAYLOAD, OUT_PAYLOAD, Bool, hash_of
from apicost.core.join.upstream_match import CLOCK_SLACK_NS, Pairs, Places, Rows, Waiting
from apicost.core.join.upstream_turns import Turns

LATE_NS = 50_000_000  # how long after the log phase payload may still move, as for attempts with bytes


def is_unsized(attempts: Waiting) -> Bool:
    """Which attempts have no count of bytes in either direction."""
    return (attempts.sent_bytes < 0) & (attempts.received_bytes < 0)


def match_unsized(turns: Turns, free: Bool, usable: Bool, attempts: Waiting, asking: Rows) -> Pairs:
    """Attempts with all turns of the one flow that moved payload in their window.

    turns: in order of (flow, turn). free: which of them nobody has taken; usable: which may be taken now.
    attempts: all that wait and have no turn. asking: the rows of those to be answered now; others are rivals.
    """
    asking = asking[is_unsized(attempts)[asking] & (attempts.port[asking] > 0)]
    rows = np.flatnonzero(free & ((turns.counts[:, IN_PAYLOAD] > 0) | (turns.counts[:, OUT_PAYLOAD] > 0)))
    if not len(asking) or not len(rows):
        return Pairs.empty()
    at_backend = hash_of(turns.peer_port[rows], turns.peer_lo[rows], turns.peer_hi[rows])
    towards = hash_of(attempts.port, attempts.addr_lo, attempts.addr_hi)
    group = np.unique(np.concatenate([at_backend, towards]), return_inverse=True)[1].astype(np.int64)
    of_turn, of_attempt = group[: len(rows)], group[len(rows) :]
    low_mono_ns = attempts.low_mono_ns - CLOCK_SLACK_NS
    log_mono_ns = attempts.log_mono_ns + CLOCK_SLACK_NS

    # The turns of each backend in order of time, and for each attempt those that begin in its window.
    begin = turns.begin_mono_ns[rows]
    place = Places(begin, of_turn)
    order = np.argsort(place.of(of_turn, begin), kind="stable")
    rows, turn_at = rows[order], place.of(of_turn[order], begin[order])
    own = of_attempt[asking]
    first = np.searchsorted(turn_at, place.of(own, low_mono_ns[asking]), "left")
    behind = np.searchsorted(turn_at, place.of(own, log_mono_ns[asking]), "right")
    there = behind > first
    asking, own, first, behind = asking[there], own[there], first[there], behind[there]

    flow, last = turns.flow[rows], behind - 1
    others = np.cumsum(np.append(False, flow[1:] != flow[:-1]))
    withheld = np.append(0, np.cumsum(~usable[rows]))
    end = turns.end_mono_ns[rows[last]]  # a flow's turns end in order
    good = (
        (others[last] == others[first]) & (withheld[behind] == withheld[first]) & (end <= log_mono_ns[asking] + LATE_NS)
    )
    # Which attempts ran while these turns moved: those that began before they ended, less those logged before.
    window = Places(np.concatenate([low_mono_ns, log_mono_ns]), np.concatenate([of_attempt, of_attempt]))
    began = np.sort(window.of(of_attempt, low_mono_ns))
    logged = np.sort(window.of(of_attempt, log_mono_ns))
    ran = np.searchsorted(began, window.of(own, end), "right")
    ran -= np.searchsorted(logged, window.of(own, turns.begin_mono_ns[rows[first]]), "left")
    good &= ran == 1
    asking, first, behind = asking[good], first[good], behind[good]
    many = behind - first
    at = np.repeat(first - np.cumsum(many) + many, many) + np.arange(int(many.sum()))
    nothing = np.zeros(len(at), np.bool_)
    return Pairs(turn=rows[at], attempt=np.repeat(asking, many), sure=nothing, proved=nothing, far=nothing)
