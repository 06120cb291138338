"""Finished turns on their way out of the kernel: each CPU gathers sixteen, which go to the ring together.

Rules of this file:
- A turn is given out once: from the ring, or from where its CPU gathers, whichever is read first.
- Turns of one CPU carry consecutive numbers. One that is missing is known to be lost.
- The kernel never waits for user space: a full ring refuses turns, and what is gathered is written over.
"""

from __future__ import annotations

import mmap
import resource
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apicost.ingest import wire

_NUMBER = np.uint64((1 << wire.BATCH_SHIFT) - 1)


def batch_count(possible: str | None = None) -> int:
    """How many places to gather turns there are: two for each CPU that this machine may ever have.

    possible: as in /sys/devices/system/cpu/possible, such as "0-3,8-11".
    """
    text = Path("/sys/devices/system/cpu/possible").read_text() if possible is None else possible
    return 2 * (int(text.strip().split(",")[-1].split("-")[-1]) + 1)


class Ring:
    """The kernel's ring, read in place."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        page = resource.getpagesize()
        self._size = size_bytes
        self._consumer_map = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The data area is mapped twice in a row, so that a record at its end reads on seamlessly.
        self._data_map = mmap.mmap(descriptor, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._data_map, np.uint64, 1)
        self._data_offset = page

    def drain(self) -> npt.NDArray[np.void]:
        """The turns of all finished records, oldest first, copied out; their room is the kernel's again.

        Raises RuntimeError where records have another size than this program's.
        """
        start, end = int(self._consumer[0]), int(self._producer[0])
        stride = wire.RING_RECORD.itemsize
        count = (end - start) // stride
        if count == 0:
            return np.empty(0, wire.TURN_EVENT)
        offset = self._data_offset + start % self._size
        found = np.frombuffer(self._data_map, wire.RING_RECORD, count, offset)
        lengths = found["header"]["length"]
        busy = np.flatnonzero(lengths & wire.RING_BUSY)
        if len(busy):  # being written at this moment: next time
            count = int(busy[0])
            found, lengths = found[:count], lengths[:count]
        wanted = stride - wire.RING_HEADER.itemsize
        if (lengths != wanted).any():
            raise RuntimeError(f"ring records of {set(lengths.tolist())} B, expected {wanted}")
        events: npt.NDArray[np.void] = found["turns"].copy().reshape(-1)
        self._consumer[0] = start + count * stride
        return events


class Batches:
    """Where the CPUs gather turns, in this process's memory."""

    def __init__(self, descriptor: int, count: int) -> None:
        size = count * wire.TURN_BATCH.itemsize
        self._map = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
        self.rows: npt.NDArray[np.void] = np.frombuffer(self._map, wire.TURN_BATCH, count)


class Turns:
    """The turns of the ring, and those that the CPUs still have."""

    def __init__(self, ring: Ring, batches: Batches) -> None:
        self._ring = ring
        self._rows = batches.rows
        self._given = np.zeros(len(self._rows), np.uint64)  # of each batch: turns below this are done with
        self.lost = 0  # turns that the ring refused and that were written over

    def ended(self) -> int:
        """How many turns have ended so far."""
        return int(self._rows["next"].sum())

    def read(self) -> npt.NDArray[np.void]:
        """TURN_EVENT rows of all turns that ended since the last call, by the time of their last packet."""
        # In this order: what the ring took before `sent` was read is there to be drained.
        gathered = self._rows["next"].copy()
        sent = self._rows["sent"].copy()
        found = [self._new(self._ring.drain())]
        for batch in np.flatnonzero((gathered > self._given) & (sent <= self._given)).tolist():
            found.append(self._gathered(batch, int(gathered[batch])))
        turns = np.concatenate(found) if len(found) > 1 else found[0]
        times = turns["last_ns"]
        # Those of a CPU are in order already, so that a stable sort has little to do.
        return turns[np.argsort(times, kind="stable")] if (times[1:] < times[:-1]).any() else turns

    def _new(self, turns: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Of the ring's turns those that were not given out before; counts those that are missing."""
        if len(turns) == 0:
            return turns
        number = turns["seq"] & _NUMBER
        batch = (turns["seq"] >> np.uint64(wire.BATCH_SHIFT)).astype(np.int64)
        new = number > self._given[batch]
        reached = self._given.copy()
        np.maximum.at(reached, batch, number)
        self.lost += int((reached - self._given).sum()) - int(new.sum())
        self._given = reached
        return turns if new.all() else turns[new]

    def _gathered(self, batch: int, end: int) -> npt.NDArray[np.void]:
        """The turns of one CPU below `end` that did not go to the ring yet."""
        given, begin = int(self._given[batch]), end - end % wire.TURNS_TOGETHER
        first = max(given, begin)
        turns: npt.NDArray[np.void] = self._rows["turns"][batch].copy()
        if int(self._rows["next"][batch]) >= first + wire.TURNS_TOGETHER:
            return turns[:0]  # the first of them may have been written over: all of them are in the ring
        self.lost += first - given  # the ring refused these
        self._given[batch] = end
        return turns[first - begin : end - begin]
