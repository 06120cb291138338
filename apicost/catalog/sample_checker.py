"""A child of the sidecar that holds sampled bodies against their documents: `python -m apicost.catalog.sample_checker`.

Frames come in by standard input and go out by standard output: four bytes of length, little-endian, then JSON. The
first frame is a `Setup`, answered with `Ready`; each further one is a `Task` followed by its samples, a line each, and
is answered with `Checked`. The end of standard input ends the process; so does the end of the sidecar.

Rules of this file:
- No value of a body leaves this process: rows have counts, keywords and places in the schema.
- Whatever a body or a document does costs this process, never the sidecar: memory is bounded, and who waits too long
  for an answer kills it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from apicost import memory
from apicost.catalog.openapi import Source
from apicost.ingest.samples import Sample, read_sample

FRAME = struct.Struct("<I")
DAY_MS = 86_400_000
FUTURE_MS = 300_000  # as for usage lines
_PR_SET_PDEATHSIG = 1  # prctl(2)
_WITH_BODY = ("POST", "PUT", "PATCH")


class Setup(msgspec.Struct):
    """Which documents, and how much address space. parent: the sidecar's process id."""

    apis: list[Source]
    cache: str
    memory_bytes: int
    parent: int


class Ready(msgspec.Struct):
    """Documents are loaded. problems: the first lines of what is wrong with them."""

    operations: int
    problems: list[str]


class Task(msgspec.Struct):
    """Head of a batch of samples."""

    identity: str
    node: str
    received_unix_ns: int


class Row(msgspec.Struct, array_like=True, frozen=True):
    """Columns of `records.SAMPLE`, in its order."""

    minute_unix_s: int
    node: str
    api: str
    operation_id: str
    method: str
    path_template: str
    route_id: str | None
    consumer: str | None
    status: str
    rule: str | None
    detail: str | None
    pointer: str | None
    samples: int
    app_bytes: int
    first_unix_ns: int
    last_unix_ns: int


class Checked(msgspec.Struct):
    """What became of a batch.

    checked: samples that were held against a document; deviating: those of them that do not fit. unmatched: of no
    operation, or of one that a query's value decides. unusable: neither body is here as a whole.
    problems: new ones, a sentence each.
    """

    rows: list[Row]
    checked: int = 0
    deviating: int = 0
    unmatched: int = 0
    unusable: int = 0
    problems: list[str] = []


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not stand between frames
    frames = _frames(sys.stdin.buffer)
    setup = msgspec.json.decode(next(frames), type=Setup, dec_hook=lambda kind, value: kind(value))
    _bound(setup)
    memory.lean()
    from apicost.catalog.bodies import Checker
    from apicost.catalog.openapi import load_apis

    catalog = load_apis(setup.apis, cache_dir=Path(setup.cache) if setup.cache else None)
    checking = Checking(Checker(setup.apis, index=catalog.index))
    _send(answers, Ready(len(catalog.operations), [str(problem).splitlines()[0] for problem in catalog.problems]))
    for frame in frames:
        head, _, rest = frame.partition(b"\n")
        task = msgspec.json.decode(head, type=Task)
        _send(answers, checking.check(task, [read_sample(line) for line in rest.split(b"\n")]))


class Checking:
    """Batches of samples made rows."""

    def __init__(self, checker: object) -> None:
        from apicost.catalog.bodies import Checker

        assert isinstance(checker, Checker)
        self.checker: Checker = checker
        self._told = 0

    def check(self, task: Task, samples: list[Sample]) -> Checked:
        """Rows of the operations' samples: one without a rule for each sample, and one for each deviation."""
        from apicost.catalog.bodies import Exchange

        answer = Checked([])
        sums: dict[tuple[object, ...], list[int]] = {}
        for sample in samples:
            if not _usable(sample):
                answer.unusable += 1
                continue
            exchange = Exchange(
                method=sample.method,
                host=sample.host,
                path=sample.path,
                status=sample.status,
                request_headers=_headers(sample.request_content_type),
                request_body=sample.request_body,
                request_cut=sample.request_cut,
                response_headers=_headers(sample.response_content_type),
                response_body=sample.response_body,
                response_cut=sample.response_cut,
                upstream_path=sample.upstream_path or None,
                route_id=sample.route_id or None,
                service_id=sample.service_id or None,
            )
            operation = self.checker.operation(exchange)
            if operation is None or not self._certain(sample, operation):
                answer.unmatched += 1
                continue
            deviations = self.checker.check(exchange)
            answer.checked += 1
            answer.deviating += bool(deviations)
            at_ns = _ended_ms(sample, task) * 1_000_000
            key = (
                at_ns // 60_000_000_000 * 60, task.node, operation.api, operation.operation_id, operation.method,
                operation.path_template, sample.route_id or None, sample.consumer or None, f"{sample.status:03}",
            )  # fmt: skip
            size = sample.request_bytes + sample.response_bytes
            said: list[tuple[str | None, str | None, str | None]] = [(d.rule, d.detail, d.pointer) for d in deviations]
            for place in [(None, None, None), *said]:
                row = sums.setdefault((*key, *place), [0, 0, at_ns, at_ns])
                row[:] = row[0] + 1, row[1] + size, min(row[2], at_ns), max(row[3], at_ns)
        answer.rows = [msgspec.convert((*key, *row), Row) for key, row in sums.items()]
        answer.problems = [str(problem).splitlines()[0] for problem in self.checker.problems[self._told :]]
        self._told = len(self.checker.problems)
        return answer

    def _certain(self, sample: Sample, operation: object) -> bool:
        """Whether the names of the query lead to the same operation, whatever their values are."""
        if not self.checker.index.has_discriminators:
            return True
        found = self.checker.index.find(
            sample.method,
            sample.host,
            sample.path,
            upstream_path=sample.upstream_path or None,
            route_id=sample.route_id or None,
            service_id=sample.service_id or None,
            query_names=sample.query_names.replace("&", ",") or None,
        )
        return found.operation == operation and "ambiguous-operation" not in found.flags


def _usable(sample: Sample) -> bool:
    """Whether the backend answered, and a body is here as a whole, or missing where there could be one."""
    if sample.response_source not in ("", "upstream"):
        return False
    if sample.response_body and not sample.response_cut:
        return True
    if sample.request_body is None or sample.request_cut:
        return False
    return bool(sample.request_body) or sample.method in _WITH_BODY


def _headers(media_type: str) -> dict[str, str]:
    return {"content-type": media_type} if media_type else {}


def _ended_ms(sample: Sample, task: Task) -> int:
    """A gateway's clock is believed within a day behind and five minutes ahead of this one."""
    received_ms = task.received_unix_ns // 1_000_000
    return sample.unix_ms if received_ms - DAY_MS <= sample.unix_ms <= received_ms + FUTURE_MS else received_ms


def _bound(setup: Setup) -> None:
    """End with the sidecar, take no more memory than allowed, and let it go first."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != setup.parent:  # it has ended in between
        raise SystemExit
    for number in (signal.SIGINT, signal.SIGHUP):  # of a terminal, meant for the sidecar
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (setup.memory_bytes, setup.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold bodies
    os.nice(5)
    with contextlib.suppress(OSError):  # where memory runs out, this process goes before the sidecar
        Path("/proc/self/oom_score_adj").write_text("1000")


def _frames(stream: BinaryIO) -> Iterator[bytes]:
    while len(head := stream.read(FRAME.size)) == FRAME.size:
        size = FRAME.unpack(head)[0]
        frame = stream.read(size)
        if len(frame) < size:
            return
        yield frame


def _send(stream: BinaryIO, answer: msgspec.Struct) -> None:
    content = msgspec.json.encode(answer)
    rest = memoryview(FRAME.pack(len(content)) + content)
    while rest:
        rest = rest[stream.write(rest) :]


if __name__ == "__main__":
    main()
