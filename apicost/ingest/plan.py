"""What one transaction of the spool will change, put together before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.ingest import numbering
from apicost.ingest.lines import ParsedBatch
from apicost.ingest.numbering import Numbers, Taking
from apicost.ingest.register import Counts, WorkerKey


@dataclass(frozen=True, slots=True)
class Added:
    """What became of one batch.

    accepted: lines that are now durable and had not come before. duplicates: lines that had.
    problem: why nothing of the batch was taken, or "".
    """

    accepted: int = 0
    duplicates: int = 0
    duplicate: bool = False
    problem: str = ""


@dataclass(slots=True)
class Plan:
    """Tables to write, workers' next numbers, and counts by (minute_unix_s, metric)."""

    now_unix_ns: int
    tables: list[pa.Table] = field(default_factory=list)
    workers: dict[WorkerKey, Taking] = field(default_factory=dict)
    counts: dict[tuple[int, str], int] = field(default_factory=dict)
    urgent: bool = False  # something is acknowledged with it; else it may wait for the next transaction

    def count(self, metric: str, value: int, minute_unix_s: int | None = None) -> None:
        """Add to a metric, in the current minute unless told."""
        if value:
            minute = minute_of(self.now_unix_ns) if minute_unix_s is None else minute_unix_s
            self.counts[minute, metric] = self.counts.get((minute, metric), 0) + value

    def take(self, batch: ParsedBatch, numbers_of: Callable[[WorkerKey, ParsedBatch], Numbers]) -> Added:
        """Add one batch; `numbers_of` gives what was known of a worker before this plan."""
        header = batch.header
        key = (header.node, header.worker.pid, header.worker.started_unix_ms)
        taking = self.workers.get(key) or Taking(numbers_of(key, batch))
        before = taking.numbers
        line_no = records.numbers(batch.table, "line_no").astype(np.int64, copy=False)
        refused_no = np.unique(np.array([r.number for r in batch.refused if r.number is not None], np.int64))
        refused_no = refused_no[~np.isin(refused_no, line_no)]
        runs = numbering.runs_of(line_no, refused_no)
        leap = runs[-1][1] - before.highest if runs else 0
        if leap > numbering.MAX_LEAP:
            return Added(problem=f"line {runs[-1][1]} is {leap} beyond the last one of this worker")
        fresh = taking.take(runs, self.now_unix_ns)
        first_time = numbering.within(line_no, fresh) & numbering.first_of_each(line_no)
        accepted = int(first_time.sum())
        duplicates = len(line_no) - accepted
        refused = int(numbering.within(refused_no, fresh).sum())
        dropped = max(0, header.dropped - before.dropped)
        again = accepted == 0 and refused == 0 and duplicates + len(refused_no) > 0
        taking.numbers = dataclasses.replace(
            taking.numbers,
            received=taking.numbers.received + accepted,
            refused=taking.numbers.refused + refused,
            duplicates=taking.numbers.duplicates + duplicates,
            dropped=taking.numbers.dropped + dropped,
        )
        self.workers[key] = taking
        self.count("lines_duplicate", duplicates)
        self.count("lines_dropped", dropped)
        if again:
            self.count("batches_duplicate", 1)
            return Added(0, duplicates, True)
        self.count("batches_received", 1)
        self.count("batches_half", int(batch.half))
        self.count("lines_received", accepted)
        self.count("lines_refused", refused + sum(1 for r in batch.refused if r.number is None))
        self.count("lines_contained", sum(batch.contained.values()))
        self.urgent = self.urgent or batch.lines > 0
        if accepted:
            all_new = accepted == len(line_no)
            self.tables.append(batch.table if all_new else batch.table.filter(pa.array(first_time)))
        return Added(accepted, duplicates)


def minute_of(unix_ns: int) -> int:
    """Start of the minute, in seconds."""
    return unix_ns // 60_000_000_000 * 60


def added_up(one: Counts, other: Counts) -> dict[tuple[int, str], int]:
    """Sums of two sets of counts."""
    total = dict(one)
    for key, value in other.items():
        total[key] = total.get(key, 0) + value
    return total
