"""Where a flow's counters stood when its payload had reached a given point.

All that `correlate` gives out is the difference of two such cuts of one flow, so whatever the cuts are, the
differences of a flow add up to its counters.
"""

from __future__ import annotations

import numpy as np

from apicost.core.join.segments import I64, find
from apicost.core.join.upstream_columns import Counts

# Columns of the counters that go with each direction's payload; the resent bytes go with the way out.
_WITH = ((2, (0, 4)), (3, (1, 5, 6)))


def cut(first: I64, end: I64, counts: Counts, given: Counts, flow: I64, in_payload: I64, out_payload: I64) -> Counts:
    """The counters at these payload offsets, one row per query.

    first, end: runs of `counts` (snapshots, cumulative) per flow. given: per flow, where it begins.
    flow, in_payload, out_payload: the queries; offsets beyond what was counted give the last snapshot's.

    Within a turn the headers and what was sent again are taken in proportion to the payload.
    """
    result = given[flow].copy()
    for payload, columns in _WITH:
        wanted = in_payload if payload == 2 else out_payload
        at = find(first, end, counts[:, payload], flow, wanted)
        some = end[flow] > first[flow]
        upper = np.minimum(at, np.maximum(end[flow] - 1, 0))
        above = np.where(some[:, None], counts[upper] if len(counts) else 0, given[flow])
        below = np.where(
            (upper > first[flow])[:, None], counts[np.maximum(upper - 1, 0)] if len(counts) else 0, given[flow]
        )
        place = np.clip(wanted, below[:, payload], above[:, payload])
        size = above[:, payload] - below[:, payload]
        part = (place - below[:, payload]) / np.maximum(size, 1)
        # Nothing grew in this direction: what else was counted belongs to what came before.
        part = np.where(size == 0, 1.0, part)
        result[:, payload] = place
        for column in columns:
            extra = above[:, column] - below[:, column]
            own = place - below[:, payload] if column < 2 else np.int64(0)
            rest = extra - (size if column < 2 else 0)
            share = np.clip(np.floor(rest * part).astype(np.int64), 0, np.maximum(rest, 0))
            result[:, column] = below[:, column] + own + np.where(place == above[:, payload], rest, share)
    return result
