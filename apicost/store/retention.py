"""What leaves the ledger: files past their days, files that compaction replaced, leftovers of crashes.

Rules of this file:
- A file goes in two steps: first out of the list (one transaction), then off the disk, when no reader can
  still have it in an older listing.
- Minutes of a day leave only when the day's rollups hold their sums: usage ages into coarser grain, it
  does not vanish before `hour_days`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apicost import durable
from apicost.store.catalogue import DAY_S, READERS_LOCK, Catalogue, Segment, lock, remove

GRACE_S = 300  # between the list and the disk, for readers that can't lock
LONGEST_READ_S = 86_400  # a reader that holds its lock longer than this loses its files
REMEMBER_S = 31 * DAY_S  # inputs consumed longer ago can't come again: the spool keeps nothing that long


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """How many segments were taken out of the list, and how many files off the disk."""

    segments: int
    files: int


def retire(catalogue: Catalogue, *, exchange_days: int, minute_days: int, hour_days: int, now_unix_s: int) -> Retired:
    """Take out what is older than its days, counted in whole UTC days before today; then `purge`.

    exchange_days: exchanges themselves. minute_days: usage and shapes by the minute. hour_days: both in rollups,
    samples and completeness.
    """
    today = now_unix_s // DAY_S * DAY_S

    def due(segment: Segment) -> bool:
        days = exchange_days if segment.kind == "exchanges" else hour_days
        if segment.rolled:
            days = min(minute_days, hour_days)
        return segment.day_unix_s < today - days * DAY_S

    old = [segment for segment in catalogue.segments() if due(segment)]
    with catalogue.transaction() as change:
        count = remove(change, old, now_unix_s) if old else 0
        change.execute("delete from consumed where consumed_unix_s < ?", (now_unix_s - REMEMBER_S,))
    return Retired(segments=count, files=purge(catalogue, now_unix_s=now_unix_s))


def purge(catalogue: Catalogue, *, now_unix_s: int, grace_s: int = GRACE_S) -> int:
    """Delete files that left the list long enough ago and that nobody reads; returns how many."""
    with lock(catalogue.folder / READERS_LOCK) as nobody_reads:
        wait_s = grace_s if nobody_reads else max(grace_s, LONGEST_READ_S)
        rows = catalogue.rows("select id, name from segment where removed_unix_s <= ?", (now_unix_s - wait_s,))
        for _, name in rows:
            (catalogue.folder / name).unlink(missing_ok=True)
        if rows:
            with catalogue.transaction() as change:
                change.executemany("delete from segment where id = ?", [(number,) for number, _ in rows])
    for folder in (catalogue.folder / "segments").iterdir():
        with contextlib.suppress(OSError):  # not empty: in use
            folder.rmdir()
    return len(rows)


def is_compacted(path: Path) -> bool:
    """Whether a file's name is one that compaction gives; see `compact.py`."""
    return "-c" in path.name


def sweep(catalogue: Catalogue, mine: Callable[[Path], bool]) -> list[str]:
    """Remove files that the list does not name, of those that are `mine` to remove; returns their names."""
    # Listed before the catalogue is read: a file that appears meanwhile is not in this list, and one
    # that is added to the catalogue meanwhile is in that one.
    files = [path for path in (catalogue.folder / "segments").glob("*/*") if mine(path)]
    named = {row[0] for row in catalogue.rows("select name from segment")}
    leftovers = [path for path in files if str(path.relative_to(catalogue.folder)) not in named]
    for path in leftovers:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in leftovers}:
        durable.sync_folder(folder)
    return sorted(str(path.relative_to(catalogue.folder)) for path in leftovers)
