"""The sidecar's side of the sample checker: starts it at the first sample, feeds it, and outlives whatever it does.

Rules of this file:
- Nothing here waits for the checker without a bound, and nobody waits for this: what can't be checked is dropped and
  counted.
- openapi-core is never imported here: it is the child's (`catalog/sample_checker.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa

from apicost.catalog.openapi import ApiSource
from apicost.catalog.sample_checker import FRAME, Checked, Ready, Row, Setup, Task
from apicost.core import records
from apicost.ingest.samples import SampleBatch, SampleQueue

log = logging.getLogger("apicost.samples")

START_S = 120.0  # for loading openapi-core and thousands of documents
ANSWER_S = 30.0  # for one batch; a pattern of a document may never end
FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0  # before the next start, after a checker has failed
LOOK_S = 0.5  # how soon a stop is noticed
MAX_RESULTS = 1_000  # batches that wait for the ledger; more is dropped
MAX_FRAME_BYTES = 64 << 20

_OUTCOMES = ("checked", "deviating", "unmatched", "unusable")
Answer = TypeVar("Answer", Ready, Checked)


class CheckerGone(Exception):
    """The checker ended, or did not answer in time."""


class SampleHost:
    """Runs the checker over what a queue holds, in a thread of its own, and keeps the rows for the ledger.

    counts: samples checked, deviating, unmatched, unusable, dropped, failures and starts of the checker.
    problem: what is wrong now, for people; "" where nothing is.
    """

    def __init__(
        self, queue: SampleQueue, *, cache: Path | None = None, memory_bytes: int = 768 << 20, idle_s: float = 300.0
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.problem = ""
        self._queue = queue
        self._cache, self._memory_bytes, self._idle_s = cache, memory_bytes, idle_s
        self._apis: Sequence[ApiSource] = ()
        self._generation = 0  # of the documents
        self._child: _Child | None = None
        self._results: list[tuple[str, list[Row]]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)
        self._failures = 0
        self._not_before_s = 0.0

    @property
    def running(self) -> bool:
        """Whether the checker lives now."""
        return self._child is not None

    def start(self, apis: Sequence[ApiSource]) -> None:
        """Be ready; the checker itself starts with the first sample."""
        self._apis = tuple(apis)
        self._thread.start()

    def use(self, apis: Sequence[ApiSource]) -> None:
        """From the next batch on check against these documents, read anew."""
        with self._lock:
            self._apis = tuple(apis)
            self._generation += 1
            self._failures, self._not_before_s = 0, 0.0

    def stop(self) -> None:
        """End the checker and drop what waits; results stay to be taken."""
        self._stopping.set()
        self._queue.close()
        if self._thread.ident is not None:
            self._thread.join()

    def figures(self) -> dict[str, int]:
        """For metrics: what became of samples since the start, all names known from the start."""
        names = ["received", "refused", "dropped", "dropped_by_gateways", "batches_duplicate", *_OUTCOMES]
        names += ["checker_starts", "checker_failures"]
        # Looked up one by one: other threads add to both.
        return {f"samples_{name}": self._queue.counts[name] + self.counts[name] for name in names}

    def take(self) -> list[tuple[str, list[Row]]]:
        """What was found since the last call: (identity of the batch, its rows)."""
        with self._lock:
            results, self._results = self._results, []
        return results

    def give_back(self, results: list[tuple[str, list[Row]]]) -> None:
        """Results that could not be committed now."""
        with self._lock:
            self._results[:0] = results

    def _run(self) -> None:
        used_s = time.monotonic()
        try:
            while not self._stopping.is_set():
                batch = self._queue.get(LOOK_S)
                if batch is not None:
                    used_s = time.monotonic()
                    try:
                        self._check(batch)
                    except Exception:  # a defect here must cost samples, and be seen
                        log.exception("a batch of samples is dropped")
                        self.counts["dropped"] += len(batch.lines)
                        self._end()
                elif self._child is not None and time.monotonic() - used_s >= self._idle_s:
                    self._end()
        finally:
            self._end()

    def _check(self, batch: SampleBatch) -> None:
        with self._lock:
            full = len(self._results) >= MAX_RESULTS
        if full or not self._apis or not self._ready():
            self.counts["dropped"] += len(batch.lines)
            return
        task = Task(identity=batch.identity, node=batch.node, received_unix_ns=batch.received_unix_ns)
        try:
            assert self._child is not None
            answer = self._child.ask([msgspec.json.encode(task), *batch.lines], Checked, ANSWER_S, self._stopping)
        except CheckerGone as gone:
            self.counts["dropped"] += len(batch.lines)
            self._failed(str(gone))
            return
        self._failures, self.problem = 0, ""
        for name in _OUTCOMES:
            self.counts[name] += getattr(answer, name)
        for problem in answer.problems:
            log.warning("%s", problem)
        if answer.rows:
            with self._lock:
                self._results.append((batch.identity, answer.rows))

    def _ready(self) -> bool:
        """A checker that knows the documents of now, started where there is none."""
        with self._lock:
            apis, generation = self._apis, self._generation
        if self._child is not None and self._child.generation != generation:
            self._end()
        if self._child is not None:
            return True
        if time.monotonic() < self._not_before_s:
            return False
        self.counts["checker_starts"] += 1
        known: Any = list(apis)  # configuration or `Source`: of the same fields
        setup = Setup(apis=known, cache=str(self._cache or ""), memory_bytes=self._memory_bytes, parent=os.getpid())
        try:
            self._child = _Child(generation)
            ready = self._child.ask([msgspec.json.encode(setup, enc_hook=str)], Ready, START_S, self._stopping)
        except (CheckerGone, OSError) as error:
            self._failed(str(error))
            return False
        log.info("sample checker started: %d operations", ready.operations)
        return True

    def _failed(self, reason: str) -> None:
        self._end()
        if self._stopping.is_set():
            return
        self.counts["checker_failures"] += 1
        pause_s = min(FIRST_PAUSE_S * 2**self._failures, LAST_PAUSE_S)
        self._failures += 1
        self._not_before_s = time.monotonic() + pause_s
        self.problem = f"sampled bodies are not checked for {pause_s:.0f} s: {reason}"
        log.warning("%s", self.problem)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    """The process and its two pipes."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        environment = {
            **os.environ,
            # Each arena and each thread of a library reserves address space, which is what the checker is bounded by.
            "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "apicost.catalog.sample_checker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, lines: Iterable[bytes], kind: type[Answer], timeout_s: float, stopping: threading.Event) -> Answer:
        """One frame there, one back. Raises CheckerGone."""
        deadline_s = time.monotonic() + timeout_s
        content = b"\n".join(lines)
        try:
            self._write(FRAME.pack(len(content)) + content, deadline_s, stopping)
            size = FRAME.unpack(self._read(FRAME.size, deadline_s, stopping))[0]
            if size > MAX_FRAME_BYTES:
                raise CheckerGone(f"an answer of {size} bytes")
            return msgspec.json.decode(self._read(size, deadline_s, stopping), type=kind)
        except msgspec.MsgspecError as error:
            raise CheckerGone(f"the checker's answer is not readable: {error}") from error
        except OSError as error:  # a broken pipe
            raise CheckerGone(f"the checker has ended ({self._how()})") from error

    def _write(self, content: bytes, deadline_s: float, stopping: threading.Event) -> None:
        rest = memoryview(content)
        while rest:
            self._wait(self._in, False, deadline_s, stopping)
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._in, rest) :]

    def _read(self, size: int, deadline_s: float, stopping: threading.Event) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._wait(self._out, True, deadline_s, stopping)
            with contextlib.suppress(BlockingIOError):
                piece = os.read(self._out, size - len(found))
                if not piece:
                    raise CheckerGone(f"the checker has ended ({self._how()})")
                found += piece
        return bytes(found)

    def _wait(self, descriptor: int, reading: bool, deadline_s: float, stopping: threading.Event) -> None:
        watch = select.poll()  # select(2) can't take descriptors above 1,023
        watch.register(descriptor, select.POLLIN if reading else select.POLLOUT)
        while not watch.poll(LOOK_S * 1_000):
            if stopping.is_set():
                raise CheckerGone("the sidecar stops")
            if time.monotonic() > deadline_s:
                raise CheckerGone("the checker did not answer in time")

    def _how(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        self._process.kill()  # it has nothing to finish
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        self._process.wait()


def sample_table(results: Iterable[Sequence[Row]]) -> pa.Table:
    """Rows of any number of batches as columns of `records.SAMPLE`, those of equal key added up, sorted by key."""
    sums: dict[tuple[Any, ...], list[int]] = {}
    keys = len(records.SAMPLE_KEYS)
    for rows in results:
        for row in rows:
            values = msgspec.structs.astuple(row)
            samples, size, first, last = values[keys:]
            found = sums.setdefault(values[:keys], [0, 0, first, last])
            found[:] = found[0] + samples, found[1] + size, min(found[2], first), max(found[3], last)
    ordered = sorted(sums.items(), key=lambda item: [("" if value is None else str(value)) for value in item[0]])
    schema = records.schema(records.SAMPLE)
    columns = list(zip(*((*key, *figures) for key, figures in ordered), strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays(
        [_array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _array(values: Sequence[Any], kind: pa.DataType) -> Any:
    if kind == records.TEXT:
        return pa.array(values, pa.string()).dictionary_encode()
    return pa.array(values, kind)
