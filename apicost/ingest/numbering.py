"""Which lines of a gateway worker have come: each number counts once, and what is missing is known.

Rules of this file:
- A worker numbers its lines from 1 without holes, and `received + refused + missing = highest` always
  (tests/ingest/test_numbering.py).
- A number that is missing makes a *hole*. Batches may come out of order, so a hole is *open* until a grace
  has passed; then its numbers are counted as lost. A line that comes later all the same is taken, and the
  count taken back.
- Memory is bounded: past MAX_HOLES the oldest holes are *shut*. Their numbers are lost for good and a line
  that would fill one is treated as a duplicate, since the two can no longer be told apart.
- Values are frozen: a worker's next state replaces the last one only when it is durable.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_HOLES = 1_024  # per worker; 48 B each in memory
# Found time of a hole that is nobody's loss: what a worker wrote before this spool existed.
BEFORE_MEMORY = (1 << 63) - 1
# A leap in the numbers beyond this is no loss but a wrong number: an hour at 100,000 requests/s is 360 M.
MAX_LEAP = 1 << 32


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers first..last that have not come. counted: they stand in the counts as lost."""

    first: int
    last: int
    found_unix_ns: int
    counted: bool = False

    @property
    def size(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers of one worker so far.

    received, refused: numbers that have come and were used, and that were not usable.
    duplicates: lines that came again. dropped: the worker's own count of lines it gave up.
    holes: ascending, disjoint, all within 1..highest.
    shut: how many numbers will not be taken any more; shut_lost: of them, those counted as lost.
    """

    highest: int = 0
    received: int = 0
    refused: int = 0
    duplicates: int = 0
    dropped: int = 0
    shut: int = 0
    shut_lost: int = 0
    holes: tuple[Hole, ...] = ()

    @property
    def missing(self) -> int:
        """Numbers that have not come, whether or not their grace has passed."""
        return self.shut + sum(hole.size for hole in self.holes)

    @property
    def lost(self) -> int:
        """Numbers that are counted as lost."""
        return self.shut_lost + sum(hole.size for hole in self.holes if hole.counted)


@dataclass(slots=True)
class Taking:
    """One worker's numbers while batches are added.

    recovered: numbers that were counted as lost and have come after all.
    shut_uncounted: numbers shut before they were counted: to be counted now.
    """

    numbers: Numbers
    recovered: int = 0
    shut_uncounted: int = 0

    def take(self, runs: Iterable[tuple[int, int]], now_unix_ns: int) -> list[tuple[int, int]]:
        """Which of these runs (first, last) of numbers are new; they are known from now on."""
        fresh: list[tuple[int, int]] = []
        for first, last in runs:
            if first <= self.numbers.highest:
                fresh.extend(self._fill(first, min(last, self.numbers.highest)))
            first = max(first, self.numbers.highest + 1)
            if first <= last:
                self._extend(first, last, now_unix_ns)
                fresh.append((first, last))
        return fresh

    def _extend(self, first: int, last: int, now_unix_ns: int) -> None:
        numbers = self.numbers
        holes = numbers.holes
        if first > numbers.highest + 1:
            holes = (*holes, Hole(numbers.highest + 1, first - 1, now_unix_ns))
        self.numbers = dataclasses.replace(numbers, highest=last, holes=holes)
        self._bound()

    def _fill(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of first..last that lie in holes; the holes shrink by them."""
        holes = self.numbers.holes
        if not holes or last < holes[0].first or first > holes[-1].last:
            return []
        fresh: list[tuple[int, int]] = []
        start = bisect_right(holes, first, key=lambda hole: hole.last)
        # bisect_right leaves out a hole that ends at `first`; look one further back.
        start = max(0, start - 1)
        left = list(holes[:start])
        for index in range(start, len(holes)):
            hole = holes[index]
            low, high = max(first, hole.first), min(last, hole.last)
            if low > high:
                left.append(hole)
                continue
            fresh.append((low, high))
            if hole.counted:
                self.recovered += high - low + 1
            if hole.first < low:
                left.append(dataclasses.replace(hole, last=low - 1))
            if high < hole.last:
                left.append(dataclasses.replace(hole, first=high + 1))
        self.numbers = dataclasses.replace(self.numbers, holes=tuple(left))
        self._bound()
        return fresh

    def _bound(self) -> None:
        holes = self.numbers.holes
        extra = len(holes) - MAX_HOLES
        if extra <= 0:
            return
        ours = [hole for hole in holes[:extra] if hole.found_unix_ns != BEFORE_MEMORY]
        self.shut_uncounted += sum(hole.size for hole in ours if not hole.counted)
        self.numbers = dataclasses.replace(
            self.numbers,
            holes=holes[extra:],
            shut=self.numbers.shut + sum(hole.size for hole in holes[:extra]),
            shut_lost=self.numbers.shut_lost + sum(hole.size for hole in ours),
        )


def older_than_memory(first: int, dropped: int) -> Numbers:
    """The state of a worker that wrote lines before this spool existed, at its first batch here.

    Its earlier lines may still come, but are nobody's loss; nor is what it had dropped by then.
    """
    if first <= 1:
        return Numbers(dropped=dropped)
    return Numbers(highest=first - 1, dropped=dropped, holes=(Hole(1, first - 1, BEFORE_MEMORY),))


def ripe(numbers: Numbers, before_unix_ns: int) -> tuple[Numbers, list[Hole]]:
    """Count the holes found before a time as lost; returns the next state and those holes."""
    due = [hole for hole in numbers.holes if not hole.counted and hole.found_unix_ns <= before_unix_ns]
    if not due:
        return numbers, []
    holes = tuple(
        dataclasses.replace(hole, counted=True) if hole.found_unix_ns <= before_unix_ns else hole
        for hole in numbers.holes
    )
    return dataclasses.replace(numbers, holes=holes), due


def runs_of(line_no: npt.NDArray[np.int64], refused_no: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """The numbers as runs (first, last) without gaps, ascending."""
    if not len(refused_no) and len(line_no) and (np.diff(line_no) == 1).all():
        return [(int(line_no[0]), int(line_no[-1]))]
    numbers = np.unique(np.concatenate([line_no, refused_no]))
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    firsts = numbers[np.concatenate([[0], breaks + 1])]
    lasts = numbers[np.concatenate([breaks, [len(numbers) - 1]])]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def within(numbers: npt.NDArray[np.int64], runs: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Which numbers lie in one of these ascending runs."""
    if not runs or not len(numbers):
        return np.zeros(len(numbers), bool)
    firsts = np.array([first for first, _ in runs], np.int64)
    lasts = np.array([last for _, last in runs], np.int64)
    place = np.searchsorted(firsts, numbers, side="right") - 1
    inside: npt.NDArray[np.bool_] = (place >= 0) & (numbers <= lasts[np.maximum(place, 0)])
    return inside


def first_of_each(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which entries are the first with their number."""
    if len(numbers) < 2 or (np.diff(numbers) > 0).all():
        return np.ones(len(numbers), bool)
    first = np.zeros(len(numbers), bool)
    first[np.unique(numbers, return_index=True)[1]] = True
    return first
