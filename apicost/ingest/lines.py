"""The body of one usage batch to columns: the wire format of specs/usage-line.schema.json, read with suspicion.

Rules of this file:
- A batch is read as a whole, column by column. Only when that fails (`Irregular`) does `careful.py` look at
  each line, refuse the bad ones with position and reason, and hand the rest back to be read as a whole.
  So good lines have one way only, and the two ways cannot differ in what they make of them.
- *Refused*: the line is not used, its position and reason go back to the gateway, and it is counted.
- *Contained*: the line is kept, since its call and its bytes are real, and a value that can't be trusted is
  replaced by one that claims nothing. Each kind is counted in `ParsedBatch.contained`.
- Nothing here grows with traffic: no caches between batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from apicost.core import records
from apicost.ingest import values
from apicost.ingest.line_form import (
    BOUNDS,
    CLOCK_TOLERANCE_NS,
    FUTURE_TOLERANCE_NS,
    HTTP_VERSIONS,
    INTEGER,
    LOST_VALUE,
    MAX_CLOCK_NS,
    MAX_COUNT,
    MAX_HEADER_BYTES,
    NAMES,
    NUMBER,
    NUMBER_BOUNDS,
    PLAIN,
    VERSION,
    WIRE,
    WORD,
    Header,
    Refusal,
)

_REQUIRED = tuple(name for name, _, required in WIRE if required)
_INTEGERS = tuple(name for name, kind, _ in WIRE if kind == INTEGER)
_LOW = np.array([[BOUNDS.get(name, (0, MAX_COUNT))[0]] for name in _INTEGERS], np.int64)
_HIGH = np.array([[BOUNDS.get(name, (0, MAX_COUNT))[1]] for name in _INTEGERS], np.int64)
_ABSENT = -(1 << 62)  # stands for an empty cell while bounds are checked
TEXTS = tuple(name for name, kind, _ in WIRE if kind == WORD)
_TYPES = {INTEGER: pa.int64(), NUMBER: pa.float64(), WORD: records.TEXT, PLAIN: pa.string()}
_PARSE = pyarrow.csv.ParseOptions(
    delimiter="\t",
    quote_char=False,
    double_quote=False,
    escape_char=False,
    newlines_in_values=False,
    ignore_empty_lines=False,
)
# By whether the text is ASCII: then there is no UTF-8 to check, which is a seventh of the reading.
_CONVERT = {
    is_ascii: pyarrow.csv.ConvertOptions(
        check_utf8=not is_ascii,
        column_types={name: _TYPES[kind] for name, kind, _ in WIRE},
        null_values=[""],
        strings_can_be_null=True,
    )
    for is_ascii in (False, True)
}
_SCHEMA = records.schema(records.LINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one batch may hold."""

    max_lines: int = 20_000
    max_path_bytes: int = 2_048  # longer paths are contained as LOST_VALUE
    max_text_bytes: int = 1_024  # the same for every other text


LIMITS = Limits()


class _Version(msgspec.Struct):
    apicost: int


_HEADER_BOUNDS = (
    ("batch", 1, MAX_COUNT),
    ("first", 1, MAX_COUNT),
    ("count", 0, MAX_COUNT),
    ("dropped", 0, MAX_COUNT),
    ("base_mono_ns", 0, MAX_CLOCK_NS),
    ("base_unix_ns", 0, MAX_CLOCK_NS),
)
_read_version = msgspec.json.Decoder(_Version)
_read_header = msgspec.json.Decoder(Header)


class BatchRefused(ValueError):
    """A batch of which nothing can be used. `status` is the HTTP status that tells the gateway so."""

    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.kind = kind
        self.reason = reason


class Irregular(Exception):
    """A body that can't be read as a whole: some line in it is not as the wire format says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedBatch:
    """One batch: its good lines as columns and what became of the others.

    table: columns as in `records.LINE`, in the order of the body.
    contained: how many values of each kind were replaced.
    received_unix_ns: when it came in.
    """

    header: Header
    table: pa.Table
    refused: tuple[Refusal, ...] = ()
    contained: Mapping[str, int] = field(default_factory=dict)
    received_unix_ns: int = 0
    half: bool = False  # fewer or more lines than the header says

    @property
    def lines(self) -> int:
        """Request lines in the body, good and bad."""
        return self.table.num_rows + len(self.refused)


def parse_batch(
    body: bytes, limits: Limits = LIMITS, received_unix_ns: int = 0, *, careful_always: bool = False
) -> ParsedBatch:
    """Read one batch.

    received_unix_ns: wall clock; bounds what a gateway's clock may claim. 0: not known, no bound.
    careful_always: for tests: take each line the careful way even if the whole is regular.

    Raises BatchRefused when the header can't be used (400), is of another version (415), or the batch
    has more lines than allowed (413). Never raises for what stands in a line.
    """
    header, start = read_header(body)
    text = memoryview(body)[start:]
    ends = _ends(text)
    if len(ends) > limits.max_lines:
        raise BatchRefused(413, "too-many-lines", f"{len(ends)} lines, at most {limits.max_lines} are taken")
    refused: tuple[Refusal, ...] = ()
    contained: dict[str, int] = {}
    table = None
    if not careful_always:
        try:
            table = _columns(text, ends, header, limits, received_unix_ns, contained)
        except Irregular:
            contained = {}
    if table is None:
        table, refused, contained = _sifted(body[start:], header, limits, received_unix_ns)
    lines = table.num_rows + len(refused)
    return ParsedBatch(
        header=header,
        table=table,
        refused=refused,
        contained={kind: n for kind, n in contained.items() if n},
        received_unix_ns=received_unix_ns,
        half=lines != header.count,
    )


def _sifted(
    text: bytes, header: Header, limits: Limits, received_unix_ns: int
) -> tuple[pa.Table, tuple[Refusal, ...], dict[str, int]]:
    """LINE of the good lines, refusals of the others, and what was contained."""
    from apicost.ingest import careful

    sifted = careful.sift(text, header)
    contained = dict(sifted.contained)
    good = memoryview(sifted.body)
    try:
        table = _columns(good, _ends(good), header, limits, received_unix_ns, contained)
        return table, sifted.refused, contained
    except Irregular:
        pass
    # The two ways disagree about some line: a defect, which must not cost the lines around it.
    bad = {refusal.position for refusal in sifted.refused}
    tables, refused = [records.empty(records.LINE)], list(sifted.refused)
    contained = dict(sifted.contained)
    position = 0
    for line in sifted.body.split(b"\n")[:-1]:
        position = next(p for p in range(position + 1, len(text) + 2) if p not in bad)
        one = memoryview(line + b"\n")
        try:
            tables.append(_columns(one, _ends(one), header, limits, received_unix_ns, contained))
        except Irregular as problem:
            refused.append(Refusal(position, "unreadable", f"the line cannot be read: {problem!s:.100}"))
    refused.sort(key=lambda refusal: refusal.position)
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks(), tuple(refused), contained


def _ends(text: memoryview) -> npt.NDArray[np.intp]:
    """Where lines end."""
    return np.flatnonzero(np.frombuffer(text, np.uint8) == 10)


def read_header(body: bytes) -> tuple[Header, int]:
    """The header and where the request lines begin. Raises BatchRefused."""
    end = body.find(b"\n", 0, MAX_HEADER_BYTES + 1)
    if end < 0:
        raise BatchRefused(400, "header", f"no line end within the first {MAX_HEADER_BYTES} bytes")
    raw = body[:end]
    try:
        version = _read_version.decode(raw).apicost
        if version != VERSION:
            raise BatchRefused(415, "version", f"version {version} is not known here, {VERSION} is")
        header = _read_header.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BatchRefused(400, "header", f"the header is not readable: {error}") from None
    for name, low, high in _HEADER_BOUNDS:
        value = getattr(header, name)
        if not low <= value <= high:
            raise BatchRefused(400, "header", f"the header's {name} is {value}, expected {low} to {high}")
    worker = header.worker
    if not 1 <= worker.pid < 1 << 31 or not 0 <= worker.started_unix_ms <= MAX_CLOCK_NS // 1_000_000:
        raise BatchRefused(400, "header", "the header's worker has an absurd pid or started_unix_ms")
    if not 1 <= len(header.node) <= 128 or not header.node.isprintable():
        raise BatchRefused(400, "header", "the header's node is not 1 to 128 printable characters")
    return header, end + 1


def _columns(
    text: memoryview,
    ends: npt.NDArray[np.intp],
    header: Header,
    limits: Limits,
    received_unix_ns: int,
    contained: dict[str, int],
) -> pa.Table:
    """LINE of request lines that are all good; adds to `contained`.

    ends: where the lines end in `text`. Raises Irregular when any of them is not.
    """
    if len(text) == 0:
        return records.empty(records.LINE)
    octets = np.frombuffer(text, np.uint8)
    longest = _look_over(octets, ends)
    try:
        source: Any = pa.BufferReader(pa.py_buffer(text))
        wire = pyarrow.csv.read_csv(
            source,
            # One block: the columns come out as one chunk each.
            pyarrow.csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=list(NAMES)),
            _PARSE,
            _CONVERT[int(octets.max()) < 128],
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
        raise Irregular(str(error)) from None
    if wire.num_rows != len(ends):
        raise Irregular("empty lines")
    raw: dict[str, Any] = {name: column.chunk(0) for name, column in zip(NAMES, wire.columns, strict=True)}
    for name in _REQUIRED:
        if raw[name].null_count:
            raise Irregular(f"{name} is empty")
    integers = _checked_integers(raw)
    out: dict[str, Any] = {name: raw[name] for name in TEXTS}
    if longest > min(limits.max_path_bytes, limits.max_text_bytes):
        for name in TEXTS:
            limit = limits.max_path_bytes if name in values.PATHS else limits.max_text_bytes
            out[name], over = values.cut_long(out[name], limit, LOST_VALUE)
            contained["long-text"] = contained.get("long-text", 0) + over
    out |= {name: integers[name] for name in _INTEGERS}
    _numbering_and_times(out, raw, integers, header, received_unix_ns, contained)
    _connection(out, contained)
    out["host"] = values.hosts(out["host"], out["tls_version"])
    out["query_names"] = values.query_names(out["query_names"])
    out["request_content_type"] = values.media_types(out["request_content_type"])
    out["response_content_type"] = values.media_types(out["response_content_type"])
    out["request_id"], bad = values.request_ids(raw["request_id"])
    contained["request-id"] = contained.get("request-id", 0) + bad
    attempts = values.attempts([raw[name] for name in values.ATTEMPT_COLUMNS])
    if attempts is None:
        raise Irregular("upstream tries")
    out |= attempts
    return pa.Table.from_arrays([_array(out[f.name], f.type) for f in _SCHEMA], schema=_SCHEMA)


def _array(value: Any, kind: pa.DataType) -> Any:
    return value if isinstance(value, pa.Array) else pa.array(value, kind)


def _look_over(text: npt.NDArray[np.uint8], ends: npt.NDArray[np.intp]) -> int:
    """Length of the longest line in bytes. Raises Irregular for control characters and an unended line."""
    if text[-1] != 10:
        raise Irregular("the last line has no end")
    controls = np.count_nonzero(text < 32) + np.count_nonzero(text == 127)
    if controls != len(NAMES) * len(ends):  # one TAB between columns, one LF at the end, nothing else
        raise Irregular("control characters or a wrong number of columns")
    return int(np.diff(ends, prepend=-1).max()) - 1


def _checked_integers(raw: Mapping[str, Any]) -> dict[str, npt.NDArray[np.int64]]:
    """Each integer column, -1 for absent. Raises Irregular where one is out of its bounds."""
    table = np.empty((len(_INTEGERS), len(raw["n"])), np.int64)
    absent_cells = 0
    for row, name in enumerate(_INTEGERS):
        absent_cells += raw[name].null_count
        table[row] = values.plain(raw[name], _ABSENT)
    absent = table == _ABSENT
    wrong = ((table < _LOW) & ~absent) | (table > _HIGH)
    if wrong.any() or np.count_nonzero(absent) != absent_cells:
        raise Irregular("an integer is out of bounds")
    table[absent] = -1
    return {name: table[row] for row, name in enumerate(_INTEGERS)}


def _numbering_and_times(
    out: dict[str, Any],
    raw: Mapping[str, Any],
    integers: Mapping[str, npt.NDArray[np.int64]],
    header: Header,
    received_unix_ns: int,
    contained: dict[str, int],
) -> None:
    rows = len(integers["n"])
    msec = raw["msec"].to_numpy(zero_copy_only=False)
    request_time = raw["request_time"].to_numpy(zero_copy_only=False)
    for name, seconds in (("msec", msec), ("request_time", request_time)):
        low, high = NUMBER_BOUNDS[name]
        if not ((seconds >= low) & (seconds <= high)).all():  # also catches NaN
            raise Irregular(f"{name} is out of bounds")
    out["worker_pid"] = np.full(rows, header.worker.pid, np.int32)
    out["worker_started_unix_ms"] = np.full(rows, header.worker.started_unix_ms, np.int64)
    out["line_no"] = header.first + integers["n"]
    since_base_ns = integers["log_us"] * 1_000
    log_mono = header.base_mono_ns + since_base_ns
    out["log_mono_ns"] = log_mono
    for name in ("access", "header"):
        before_us = integers[f"{name}_before_us"]
        at = np.where(before_us >= 0, log_mono - before_us * 1_000, -1)
        early = (before_us >= 0) & (at < 0)
        contained["before-boot"] = contained.get("before-boot", 0) + int(early.sum())
        out[f"{name}_mono_ns"] = np.where(early, -1, at)
    log_unix = header.base_unix_ns + since_base_ns
    by_msec = np.rint(msec * 1e3).astype(np.int64) * 1_000_000
    apart = np.abs(log_unix - by_msec) > CLOCK_TOLERANCE_NS
    if apart.any():
        # One of the two was read before the clock was set: the one nearer to the time of receipt holds.
        contained["clock-jump"] = contained.get("clock-jump", 0) + int(apart.sum())
        if received_unix_ns:
            nearer = np.abs(by_msec - received_unix_ns) < np.abs(log_unix - received_unix_ns)
            log_unix = np.where(apart & nearer, by_msec, log_unix)
        by_msec = np.where(apart, log_unix, by_msec)
    if received_unix_ns:
        ahead = log_unix > received_unix_ns + FUTURE_TOLERANCE_NS
        if ahead.any():
            contained["clock-future"] = contained.get("clock-future", 0) + int(ahead.sum())
            log_unix = np.where(ahead, received_unix_ns, log_unix)
            by_msec = np.where(ahead, received_unix_ns, by_msec)
    out["log_unix_ns"] = log_unix
    out["started_unix_ns"] = by_msec - np.rint(request_time * 1e3).astype(np.int64) * 1_000_000


def _connection(out: dict[str, Any], contained: dict[str, int]) -> None:
    for side in ("peer", "local"):
        high, low, bad = values.addresses(out[f"{side}_addr"])
        out[f"{side}_hi"], out[f"{side}_lo"] = high, low
        contained["address"] = contained.get("address", 0) + bad
    versions = out["http_version"]
    known = [HTTP_VERSIONS.get(text) for text in versions.dictionary.to_pylist()]
    if None in known:
        raise Irregular("an unknown http_version")
    out["http_version"] = np.array(known, np.uint8)[versions.indices.to_numpy()]
