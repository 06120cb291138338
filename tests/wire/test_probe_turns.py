"""Turns on their way out of the kernel, whose side of it is played here in plain memory."""

import mmap
import os
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apicost.ingest import turns as turning
from apicost.ingest import wire
from apicost.ingest.turns import Batches, Ring, Turns

PAGE = resource.getpagesize()
TOGETHER = wire.TURNS_TOGETHER


class Kernel:
    """What bpf/flow_probe.c does with finished turns, and the reader that shares its memory."""

    def __init__(self, ring_pages: int = 4, batches: int = 4) -> None:
        ring, gathering = os.memfd_create("ring"), os.memfd_create("batches")
        os.ftruncate(ring, PAGE * (2 + 2 * ring_pages))
        os.ftruncate(gathering, batches * wire.TURN_BATCH.itemsize)
        self.size = PAGE * ring_pages
        self.memory = mmap.mmap(ring, PAGE * (2 + 2 * ring_pages))
        self.consumer = np.frombuffer(self.memory, np.uint64, 1)
        self.producer = np.frombuffer(self.memory, np.uint64, 1, PAGE)
        self.batches = np.frombuffer(mmap.mmap(gathering, batches * wire.TURN_BATCH.itemsize), wire.TURN_BATCH)
        self.clock = 0
        self.turns = Turns(Ring(ring, self.size), Batches(gathering, batches))
        for file in (ring, gathering):
            os.close(file)

    def end_turn(self, index: int = 0) -> int:
        """A turn ends on the CPU that gathers in this batch; returns its number."""
        batch = self.batches[index]
        number = int(batch["next"])
        turn = batch["turns"][number % TOGETHER : number % TOGETHER + 1]
        self.clock += 1
        turn["last_ns"], turn["seq"] = self.clock, index << wire.BATCH_SHIFT | number + 1
        if number % TOGETHER == TOGETHER - 1 and self.send(batch["turns"]):
            batch["sent"] = number + 1
        batch["next"] = number + 1
        return self.clock

    def send(self, turns: np.ndarray) -> bool:
        """Write a ring record, on both views of the data where it runs over the end."""
        begin, length = int(self.producer[0]), wire.RING_RECORD.itemsize
        if begin + length - int(self.consumer[0]) > self.size:
            return False
        record = np.zeros(1, wire.RING_RECORD)
        record["turns"], record["header"]["length"] = turns, length - wire.RING_HEADER.itemsize
        for place in (begin % self.size, begin % self.size + self.size, begin % self.size - self.size):
            data = record.tobytes()
            low, high = max(place, 0), min(place + length, 2 * self.size)
            if low < high:
                self.memory[2 * PAGE + low : 2 * PAGE + high] = data[low - place : high - place]
        self.producer[0] = begin + length
        return True

    def header(self, record: int) -> np.ndarray:
        return np.frombuffer(self.memory, wire.RING_RECORD, record + 1, 2 * PAGE)["header"][record:]

    def read(self) -> list[int]:
        return self.turns.read()["last_ns"].tolist()


def test_a_turn_is_given_out_at_once():
    """Nobody waits for sixteen: what a CPU has gathered is read where it lies, and not again from the ring."""
    kernel = Kernel()
    assert kernel.read() == []
    ended = [kernel.end_turn() for _ in range(3)]
    assert kernel.read() == ended
    assert kernel.read() == []
    ended = [kernel.end_turn() for _ in range(20)]
    assert kernel.read() == ended
    assert (kernel.turns.ended(), kernel.turns.lost) == (23, 0)


def test_turns_of_several_cpus_come_by_time():
    """A connection's turns may end on one CPU and then on another."""
    kernel = Kernel()
    ended = [kernel.end_turn(number % 3) for number in range(40)]
    assert kernel.read() == ended


def test_what_a_full_ring_refused_is_counted():
    """Sixteen turns that found the ring full are lost; those before and after are not."""
    kernel = Kernel(ring_pages=1)  # one record
    ended = [kernel.end_turn() for _ in range(2 * TOGETHER + 5)]
    assert kernel.read() == ended[:TOGETHER] + ended[2 * TOGETHER :]
    assert kernel.turns.lost == TOGETHER
    assert kernel.read() == []


def test_a_record_that_is_being_written_waits():
    """The ring is read up to the first record that the kernel has not finished, and from there next time. Turns that
    were gathered after it wait too: they would pass for the sign that it was refused."""
    kernel = Kernel()
    ended = [kernel.end_turn() for _ in range(3 * TOGETHER + 1)]
    kernel.header(1)["length"] |= wire.RING_BUSY
    assert kernel.read() == ended[:TOGETHER]
    assert kernel.read() == []
    kernel.header(1)["length"] &= ~wire.RING_BUSY
    assert kernel.read() == ended[TOGETHER:]
    assert kernel.turns.lost == 0


def test_turns_written_over_while_they_are_read_come_by_the_ring(monkeypatch):
    """The kernel goes on gathering in the same place: nothing is given out that may be of two turns."""
    kernel = Kernel()
    ended = [kernel.end_turn() for _ in range(5)]
    drain = kernel.turns._ring.drain

    def slowly():
        found = drain()
        ended.extend(kernel.end_turn() for _ in range(TOGETHER))
        return found

    monkeypatch.setattr(kernel.turns._ring, "drain", slowly)
    assert kernel.read() == []
    monkeypatch.undo()
    assert kernel.read() == ended
    assert kernel.turns.lost == 0


def test_a_ring_of_another_layout_is_refused():
    """Records of another size are no data to be guessed at."""
    kernel = Kernel()
    for _ in range(TOGETHER):
        kernel.end_turn()
    kernel.header(0)["length"] = 64
    with pytest.raises(RuntimeError, match=f"expected {TOGETHER * wire.TURN_EVENT.itemsize}"):
        kernel.read()


@pytest.mark.parametrize(("possible", "count"), [("0\n", 2), ("0-1\n", 4), ("0-3,8-11\n", 24)])
def test_each_cpu_has_two_batches(possible, count):
    """As many as the highest number of a CPU says, whether it is there today or not."""
    assert turning.batch_count(possible) == count


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=40), st.integers(1, 3))
def test_each_turn_is_given_out_once_or_counted_as_lost(steps, pages):
    """On whichever CPUs turns end, however seldom they are read and however small the ring is."""
    kernel = Kernel(ring_pages=pages)
    ended, got = [], []
    for index, count, read in [*steps, (0, 0, True), (0, 0, True)]:
        ended += [kernel.end_turn(index) for _ in range(count)]
        got += kernel.read() if read else []
    assert len(set(got)) == len(got)
    assert set(got) <= set(ended)
    assert len(got) + kernel.turns.lost == len(ended) == kernel.turns.ended()
