"""Up to when what was read is complete: the time that the join's waits are measured against.

Wall time would be wrong for it. A backlog in the spool is read long after it came, and on a busy machine one of the
two sources can be read later than the other; by wall time a line would then give up on a flow that lies in the spool,
and bytes on a line that does.

Rules of this file:
- Time here is when something was made durable on this node, CLOCK_MONOTONIC, not when it is worked off.
- The waits have room for what is always late: batches of a second, sweeps, sealing (`ALLOWED_NS`). What comes later
  than that holds the time back for both sides, by `MOST_LATE_NS` at most: a source that has stopped stops nothing.
- The time never goes back.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.join.segments import I64

ALLOWED_NS = 3_000_000_000
MOST_LATE_NS = 30_000_000_000


class Watermark:
    """The time of the join's next step. One for a session; not thread-safe.

    now_mono_ns: as of the last `advance`; 0 before the first.
    lines_late_ns: how long after they were logged lines became durable, of the worker that was last with it.
    """

    def __init__(self) -> None:
        self.now_mono_ns = 0
        self.lines_late_ns = 0
        self._read_mono_ns = 0

    def advance(self, read_mono_ns: int, flows_mono_ns: int, lines: pa.Table, arrived_mono_ns: I64) -> int:
        """The step's `now_mono_ns`, for what is read with it.

        read_mono_ns: all that was made durable up to then is read.
        flows_mono_ns: all packets up to then are in the flow snapshots that are read.
        lines: columns as in `records.LINE`. arrived_mono_ns: when each was durable.
        """
        passed_ns = max(read_mono_ns - self._read_mono_ns, 0)
        # What was late a moment ago may go on so: it is forgotten no faster than time goes on.
        self.lines_late_ns = max(lateness(lines, arrived_mono_ns), self.lines_late_ns - passed_ns, 0)
        self._read_mono_ns = max(read_mono_ns, self._read_mono_ns)
        late_ns = max(self._read_mono_ns - flows_mono_ns, self.lines_late_ns)
        behind_ns = min(max(late_ns - ALLOWED_NS, 0), MOST_LATE_NS)
        self.now_mono_ns = max(self.now_mono_ns, self._read_mono_ns - behind_ns)
        return self.now_mono_ns


def lateness(lines: pa.Table, arrived_mono_ns: I64) -> int:
    """How late the newest line of each worker came, in ns, of the one that is latest; 0 without lines.

    A worker that is later than `MOST_LATE_NS` sends what nobody waits for any more, such as the file of one that has
    stopped: it holds nothing back.
    """
    if len(lines) == 0:
        return 0
    worker = np.asarray(records.numbers(lines, "worker_pid"), np.int64)
    late: I64 = arrived_mono_ns - np.asarray(records.numbers(lines, "log_mono_ns"), np.int64)
    _, which = np.unique(worker, return_inverse=True)
    least = np.full(int(which.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, which, late)
    waited = least[least <= MOST_LATE_NS + ALLOWED_NS]
    return max(int(waited.max()), 0) if len(waited) else 0
