"""Sampled bodies on their way from gateway workers to the checker: read strictly, held in memory, never on disk.

Rules of this file:
- A sample is no usage: it may be dropped at any time, and what is dropped is counted.
- Fields that are not listed in `Sample` are refused, so that no header or query value can come in by a mistake.
- What is held is bounded by samples and by bytes, however many gateways post.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from apicost.ingest.line_form import MAX_CLOCK_NS, MAX_HEADER_BYTES, Refusal, Worker
from apicost.ingest.lines import BatchRefused

VERSION = 1
MAX_BODY_BYTES = 1 << 20  # of one request or response; the plugin's schema has the same bound
MAX_SAMPLES = 1_000  # in one batch
REMEMBERED = 4_096  # identities of batches, to know one that comes twice

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
_Path = Annotated[str, msgspec.Meta(max_length=2_048)]
_Text = Annotated[str, msgspec.Meta(max_length=1_024)]
_Method = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Status = Annotated[int, msgspec.Meta(ge=0, le=999)]


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One sampled request with its response; texts as in `records.LINE`.

    line_no: of the usage line that it belongs to. unix_ms: when the request ended.
    request_body, response_body: base64 on the wire; absent where not sampled, empty where there was none.
    request_cut, response_cut: there was a body that is not here as a whole: too long, compressed or not kept.
    """

    line_no: _Number
    unix_ms: _Count
    method: _Method
    host: _Text
    path: _Path
    status: _Status
    request_bytes: _Count
    response_bytes: _Count
    query_names: _Path = ""
    request_content_type: _Text = ""
    response_content_type: _Text = ""
    route_id: _Text = ""
    service_id: _Text = ""
    upstream_path: _Path = ""
    consumer: _Text = ""
    response_source: _Text = ""
    request_body: bytes | None = None
    response_body: bytes | None = None
    request_cut: bool = False
    response_cut: bool = False


class Header(msgspec.Struct, frozen=True):
    """First line of a batch. dropped: samples that the worker gave up since the batch before."""

    apicost: int
    node: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    worker: Worker
    batch: _Number
    count: _Count
    dropped: _Count = 0


class _Version(msgspec.Struct):
    apicost: int


_read_version = msgspec.json.Decoder(_Version)
_read_header = msgspec.json.Decoder(Header)
_read_sample = msgspec.json.Decoder(Sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """The good samples of one batch, as posted: one line of JSON each.

    identity: the same however often the batch is sent. refused: positions among the samples, from 1.
    """

    identity: str
    node: str
    lines: Sequence[bytes]
    dropped: int = 0
    refused: tuple[Refusal, ...] = ()
    received_unix_ns: int = 0

    @property
    def size(self) -> int:
        """Bytes of its samples."""
        return sum(map(len, self.lines))


def parse_samples(body: bytes, received_unix_ns: int = 0) -> SampleBatch:
    """Read one batch.

    Raises BatchRefused when the header can't be used (400), is of another version (415), or there are more samples
    than allowed (413). Never raises for what stands in a sample.
    """
    end = body.find(b"\n", 0, MAX_HEADER_BYTES + 1)
    if end < 0:
        raise BatchRefused(400, "header", f"no line end within the first {MAX_HEADER_BYTES} bytes")
    header = _header(body[:end])
    lines = body[end + 1 :].split(b"\n")
    unended = lines.pop()
    if len(lines) > MAX_SAMPLES:
        raise BatchRefused(413, "too-many-samples", f"{len(lines)} samples, at most {MAX_SAMPLES} are taken")
    good, refused = [], []
    for position, line in enumerate(lines, start=1):
        reason = _fault(line)
        if reason is None:
            good.append(line)
        else:
            refused.append(Refusal(position, "sample", reason))
    if unended:
        refused.append(Refusal(len(lines) + 1, "cut", "the last sample has no end: the body was cut off"))
    worker = header.worker
    return SampleBatch(
        identity=f"samples-{header.node}-{worker.pid}-{worker.started_unix_ms}-{header.batch}",
        node=header.node,
        lines=good,
        dropped=header.dropped,
        refused=tuple(refused),
        received_unix_ns=received_unix_ns,
    )


def read_sample(line: bytes) -> Sample:
    """One line of a `SampleBatch`."""
    return _read_sample.decode(line)


def _header(raw: bytes) -> Header:
    try:
        version = _read_version.decode(raw).apicost
        if version != VERSION:
            raise BatchRefused(415, "version", f"version {version} is not known here, {VERSION} is")
        header = _read_header.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BatchRefused(400, "header", f"the header is not readable: {error}") from None
    worker = header.worker
    if not 1 <= worker.pid < 1 << 31 or not 0 <= worker.started_unix_ms <= MAX_CLOCK_NS // 1_000_000:
        raise BatchRefused(400, "header", "the header's worker has an absurd pid or started_unix_ms")
    if not header.node.isprintable():
        raise BatchRefused(400, "header", "the header's node is not printable")
    return header


def _fault(line: bytes) -> str | None:
    """Why a sample is not taken."""
    try:
        sample = _read_sample.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"{error!s:.200}"
    for name in ("request_body", "response_body"):
        found = getattr(sample, name)
        if found is not None and len(found) > MAX_BODY_BYTES:
            return f"{name} has {len(found)} bytes, at most {MAX_BODY_BYTES} are taken"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What became of a batch. full: nothing of it was taken, it may come again."""

    accepted: int = 0
    dropped: int = 0
    duplicate: bool = False
    full: bool = False


@dataclass(slots=True)
class SampleQueue:
    """Batches between the receiver and the checker; safe between threads.

    counts: samples received, refused, dropped (here, and by gateways), since the start.
    """

    max_samples: int = 2_000
    max_bytes: int = 8 << 20
    counts: Counter[str] = field(default_factory=Counter)
    samples: int = 0  # waiting now
    bytes: int = 0
    _waiting: deque[SampleBatch] = field(default_factory=deque)
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False

    def offer(self, batch: SampleBatch) -> Offered:
        """Take as many samples of a batch as there is room for; the rest is dropped."""
        with self._changed:
            if batch.identity in self._seen:
                self.counts["batches_duplicate"] += 1
                return Offered(duplicate=True)
            fits, size = 0, self.bytes
            for line in batch.lines[: self.max_samples - self.samples]:
                size += len(line)
                if size > self.max_bytes:
                    break
                fits += 1
            self.counts["received"] += len(batch.lines)
            self.counts["dropped"] += len(batch.lines) - fits
            if (batch.lines and not fits) or self._closed:
                return Offered(dropped=len(batch.lines), full=True)
            self._seen[batch.identity] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            self.counts["refused"] += len(batch.refused)
            self.counts["dropped_by_gateways"] += batch.dropped
            if fits:
                taken = SampleBatch(
                    identity=batch.identity, node=batch.node, lines=batch.lines[:fits],
                    received_unix_ns=batch.received_unix_ns,
                )  # fmt: skip
                self._waiting.append(taken)
                self.samples += fits
                self.bytes += taken.size
                self._changed.notify()
            return Offered(accepted=fits, dropped=len(batch.lines) - fits)

    def get(self, timeout_s: float) -> SampleBatch | None:
        """The oldest batch; None when none came in time, or the queue is closed."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait(timeout_s)
            if self._closed or not self._waiting:
                return None
            batch = self._waiting.popleft()
            self.samples -= len(batch.lines)
            self.bytes -= batch.size
            return batch

    def close(self) -> None:
        """Drop what waits, and take no more."""
        with self._changed:
            self._closed = True
            self.counts["dropped"] += self.samples
            self._waiting.clear()
            self.samples = self.bytes = 0
            self._changed.notify_all()
