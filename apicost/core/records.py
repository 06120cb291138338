"""The columns that stages hand to each other, each written down once.

Rules of this file:
- A batch is a `pyarrow.Table`; its columns are one of the tuples below, in that order.
- Counters are int64 and never null. An absent count is -1 where zero would be a statement;
  the meaning says so.
- Text is dictionary-encoded; absent text is null, never "".
- Times end in their clock: `_mono_ns` is CLOCK_MONOTONIC of the node, `_unix_ns` is wall clock, UTC.
- `in` and `out` are as the gateway sees them: on a downstream flow a request comes `in`, on an
  upstream flow it goes `out`.
- Addresses are 128 bits in two columns, most significant first; IPv4 is mapped (::ffff:a.b.c.d).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

TEXT = pa.dictionary(pa.int32(), pa.string())


class Role(IntEnum):
    """Which side of the gateway a flow is on."""

    UNKNOWN = 0
    DOWNSTREAM = 1  # a client connected to the gateway
    UPSTREAM = 2  # the gateway connected to a backend
    CONTROL = 3  # etcd, the plugin's posts, metrics: the gateway's own traffic


class SnapshotKind(IntEnum):
    """Why a flow snapshot was taken."""

    TURN = 1  # the next turn began: the counters are those of all turns up to `turn`
    OPEN = 2  # a sweep of the flow table
    CLOSED = 3  # the connection is gone: these are its totals


class RowKind(IntEnum):
    """What a row of EXCHANGE stands for."""

    EXCHANGE = 1  # one request
    OVERHEAD = 2  # handshake, close and the like of a flow, booked to the flow's last exchange
    UNATTRIBUTED = 3  # bytes of a flow that no usage line claims


class Confidence(IntEnum):
    """How sure the bytes of one leg of an exchange are. Higher is less sure; 0 is no claim."""

    NONE = 0  # no request here (no upstream leg, or an unattributed row)
    EXACT = 1  # payload proved by equal sums
    ALIGNED = 2  # placed by order and time, sums agree within the protocol's overhead
    APPORTIONED = 3  # the connection's bytes shared out by weight, largest remainder
    APP_ONLY = 4  # no flow seen: the gateway's own counts, never shown as wire bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a batch: its name, Arrow type, unit and meaning."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str


def _columns(*rows: tuple[str, pa.DataType, str, str]) -> tuple[Column, ...]:
    return tuple(Column(name=n, type=t, unit=u, meaning=m) for n, t, u, m in rows)


_U8, _U16, _U32, _U64 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
_I16, _I32, _I64 = pa.int16(), pa.int32(), pa.int64()

FLOW = _columns(
    ("flow", _U64, "", "socket cookie: unique while the kernel runs"),
    ("seq", _U64, "", "finished turns: batch of a CPU << 40 | number in it, from 1; 0 for a sweep"),
    ("kind", _U8, "SnapshotKind", "why this snapshot was taken"),
    ("turn", _U32, "", "index of the turn that these counters end with, from 0"),
    ("role", _U8, "Role", "side of the gateway"),
    ("protocol", _U8, "IANA", "6 TCP, 17 UDP"),
    ("local_hi", _U64, "", "gateway's address, upper half"),
    ("local_lo", _U64, "", "gateway's address, lower half"),
    ("local_port", _U16, "", "gateway's port"),
    ("peer_hi", _U64, "", "other side's address, upper half"),
    ("peer_lo", _U64, "", "other side's address, lower half"),
    ("peer_port", _U16, "", "other side's port"),
    ("born_mono_ns", _I64, "ns", "first packet or establishment, whichever came first"),
    ("last_mono_ns", _I64, "ns", "last packet counted here, bare acknowledgements coming in aside"),
    (
        "request_first_mono_ns",
        _I64,
        "ns",
        "first new payload of this turn in the direction of requests; 0 none",
    ),
    ("request_last_mono_ns", _I64, "ns", "last one"),
    (
        "response_first_mono_ns",
        _I64,
        "ns",
        "first new payload of this turn in the direction of responses; 0 none",
    ),
    ("response_last_mono_ns", _I64, "ns", "last one"),
    # All counters are cumulative since the flow began.
    ("in_wire_bytes", _I64, "B", "IP packet lengths, as segmented on the wire"),
    ("out_wire_bytes", _I64, "B", "same, out"),
    ("in_payload_bytes", _I64, "B", "new TCP payload: beyond the highest sequence end so far"),
    ("out_payload_bytes", _I64, "B", "same, out"),
    ("in_resent_bytes", _I64, "B", "payload at or below the highest sequence end: sent again"),
    ("out_resent_bytes", _I64, "B", "same, out"),
    ("in_packets", _I64, "packets", "segments on the wire"),
    ("out_packets", _I64, "packets", "same, out"),
    ("in_resent_packets", _I64, "packets", "segments that carried only payload sent before"),
    ("out_resent_packets", _I64, "packets", "same, out"),
    ("ttl_min", _U8, "hops", "smallest TTL or hop limit seen inbound; 0 none seen"),
    ("ttl_max", _U8, "hops", "largest"),
    ("in_tcp_flags", _U8, "bits", "all TCP flags seen in, or-ed"),
    ("out_tcp_flags", _U8, "bits", "all TCP flags seen out, or-ed"),
    ("srtt_us", _U32, "us", "kernel's smoothed round-trip time at the last look; 0 unknown"),
)

LINE = _columns(
    ("worker_pid", _I32, "", "gateway worker that wrote the line"),
    ("worker_started_unix_ms", _I64, "ms", "when that worker started: with the pid its identity"),
    ("line_no", _I64, "", "number of the line in that worker, from 1, without holes at the source"),
    ("request_id", pa.string(), "", "nginx's $request_id, 32 hex digits; null when absent"),
    ("log_unix_ns", _I64, "ns", "when the request was logged, wall clock"),
    ("log_mono_ns", _I64, "ns", "the same on the monotonic clock"),
    ("access_mono_ns", _I64, "ns", "when the access phase ran; -1 absent"),
    ("header_mono_ns", _I64, "ns", "when response headers were sent; -1 absent"),
    (
        "started_unix_ns",
        _I64,
        "ns",
        "first byte of the request by nginx's clock ($msec - $request_time); ms grain",
    ),
    ("connection", _I64, "", "nginx's $connection"),
    ("connection_requests", _I32, "", "number of the request on its connection, from 1"),
    ("peer_hi", _U64, "", "the socket's peer, upper half; 0 unknown"),
    ("peer_lo", _U64, "", "lower half"),
    ("peer_port", _I32, "", "-1 absent"),
    ("local_hi", _U64, "", "the socket's own address, upper half; 0 unknown"),
    ("local_lo", _U64, "", "lower half"),
    ("local_port", _I32, "", "-1 absent"),
    ("tls_version", TEXT, "", "TLSv1.3 and so on; null on plain connections"),
    ("tls_cipher", TEXT, "", "null on plain connections"),
    ("http_version", _U8, "", "10, 11, 20 or 30"),
    (
        "tls_read_bytes",
        _I64,
        "B",
        "read from the connection's socket by the TLS layer so far; -1 not readable, or ahead of the request",
    ),
    ("tls_written_bytes", _I64, "B", "written to it so far; -1 not readable"),
    ("method", TEXT, "", ""),
    ("host", TEXT, "", "lower case, without port where it is the default"),
    ("path", TEXT, "", "raw path, no query"),
    ("query_names", TEXT, "", "names of query parameters, sorted, comma-separated; never values"),
    ("upstream_path", TEXT, "", "raw path sent upstream, where it differs"),
    ("route_id", TEXT, "", ""),
    ("route_name", TEXT, "", ""),
    ("service_id", TEXT, "", ""),
    ("consumer", TEXT, "", ""),
    ("matched_uri", TEXT, "", "the route's uri pattern"),
    ("status", _I16, "", "HTTP status; 499 client went away"),
    ("response_source", TEXT, "", "apisix, nginx or upstream"),
    ("request_bytes", _I64, "B", "nginx's request_length: app bytes in"),
    ("response_bytes", _I64, "B", "nginx's bytes_sent: app bytes out"),
    ("response_body_bytes", _I64, "B", "nginx's body_bytes_sent"),
    ("content_length", _I64, "B", "request's Content-Length; -1 absent"),
    ("request_content_type", TEXT, "", "media type without parameters"),
    ("response_content_type", TEXT, "", "media type without parameters"),
    ("upstream_scheme", TEXT, "", "http, https, grpc, grpcs; null when no upstream"),
    ("attempt_addr", pa.list_(pa.string()), "", "per upstream try: ADDR:PORT as nginx names it"),
    ("attempt_status", pa.list_(_I16), "", "per try; -1 where nginx has none"),
    ("attempt_sent_bytes", pa.list_(_I64), "B", "per try: app bytes towards the upstream; -1 absent"),
    ("attempt_received_bytes", pa.list_(_I64), "B", "per try: app bytes from the upstream; -1 absent"),
    ("attempt_connect_ms", pa.list_(_I32), "ms", "per try: $upstream_connect_time; -1 absent"),
    ("attempt_response_ms", pa.list_(_I32), "ms", "per try: $upstream_response_time; -1 absent"),
    ("auth_kinds", TEXT, "", "kinds of credentials present, comma-separated; never values"),
    ("llm_model", TEXT, "", "null where the gateway has none"),
    ("llm_prompt_tokens", _I64, "tokens", "-1 absent"),
    ("llm_completion_tokens", _I64, "tokens", "-1 absent"),
)

LEGS = ("downstream", "upstream")


def _leg(leg: str) -> tuple[tuple[str, pa.DataType, str, str], ...]:
    return (
        (f"{leg}_flow", _U64, "", "flow that carried it (the last, where there were several); 0 none"),
        (f"{leg}_in_wire_bytes", _I64, "B", "wire bytes, its share of the flow's overhead included"),
        (f"{leg}_out_wire_bytes", _I64, "B", "same, out"),
        (f"{leg}_in_payload_bytes", _I64, "B", "its own new TCP payload, TLS framing included; overhead's is in PART"),
        (f"{leg}_out_payload_bytes", _I64, "B", "same, out"),
        (f"{leg}_in_app_bytes", _I64, "B", "what nginx counted"),
        (f"{leg}_out_app_bytes", _I64, "B", "same, out"),
        (f"{leg}_in_packets", _I64, "packets", ""),
        (f"{leg}_out_packets", _I64, "packets", ""),
        (f"{leg}_resent_bytes", _I64, "B", "payload sent again, both directions"),
        (
            f"{leg}_overhead_bytes",
            _I64,
            "B",
            "of the wire bytes: handshake, close, connection's own; both directions",
        ),
        (f"{leg}_confidence", _U8, "Confidence", "how sure the payload bytes are"),
    )


# What `core/join/correlate` makes: one row per request, and rows for what belongs to none.
JOINED = _columns(
    ("kind", _U8, "RowKind", "what the row stands for"),
    ("worker_pid", _I32, "", "identity of the usage line; -1 for an unattributed row"),
    ("worker_started_unix_ms", _I64, "ms", "identity of the usage line; -1"),
    ("line_no", _I64, "", "identity of the usage line; -1"),
    ("request_id", pa.string(), "", "null when absent"),
    ("started_unix_ns", _I64, "ns", "first byte of the request (kernel's time where a flow was seen)"),
    ("ended_unix_ns", _I64, "ns", "last byte of the response, or when it was logged"),
    ("first_byte_ns", _I64, "ns", "from the request's start to the response's first byte; -1 unknown"),
    ("method", TEXT, "", "null for unattributed rows, as all text below"),
    ("host", TEXT, "", ""),
    ("path", TEXT, "", ""),
    ("query_names", TEXT, "", ""),
    ("upstream_path", TEXT, "", ""),
    ("route_id", TEXT, "", ""),
    ("service_id", TEXT, "", ""),
    ("consumer", TEXT, "", ""),
    ("matched_uri", TEXT, "", ""),
    ("status", _I16, "", "-1 for an unattributed row"),
    ("response_source", TEXT, "", ""),
    ("http_version", _U8, "", "10, 11, 20, 30; 0 unknown"),
    ("tls_version", TEXT, "", ""),
    ("request_content_type", TEXT, "", ""),
    ("response_content_type", TEXT, "", ""),
    ("auth_kinds", TEXT, "", ""),
    ("llm_model", TEXT, "", ""),
    ("llm_prompt_tokens", _I64, "tokens", "-1 absent"),
    ("llm_completion_tokens", _I64, "tokens", "-1 absent"),
    ("peer_hi", _U64, "", "client's address as the socket has it, upper half; 0 unknown"),
    ("peer_lo", _U64, "", "lower half"),
    ("upstream_peer_hi", _U64, "", "backend's address (last try), upper half; 0 none"),
    ("upstream_peer_lo", _U64, "", "lower half"),
    ("attempts", _I16, "", "tries towards the upstream"),
    ("role", _U8, "Role", "for unattributed rows: side of the flow; else 1"),
    *_leg("downstream"),
    *_leg("upstream"),
)

# What `core/naming/match` adds.
NAMING = _columns(
    ("api", TEXT, "", "id of the API; null when no document or binding claims the request"),
    (
        "operation_id",
        TEXT,
        "",
        "operationId, or 'METHOD template' where the document has none; null when unmatched",
    ),
    (
        "path_template",
        TEXT,
        "",
        "template with its base path; of the best template where only the method is undocumented; else null",
    ),
    (
        "match_state",
        TEXT,
        "",
        "matched, undocumented-path, undocumented-method, unknown-host, "
        "unattributed (no usage line) or control (the gateway's own traffic)",
    ),
    (
        "match_flags",
        TEXT,
        "",
        "comma-separated: loose-match, method-fallthrough, ambiguous-operation, ...; null none",
    ),
)

EXCHANGE = (*_columns(("node", TEXT, "", "gateway node")), *JOINED, *NAMING)

# How the bytes of one flow were given out; `correlate` proves law 1 with it.
PART = _columns(
    ("flow", _U64, "", ""),
    ("role", _U8, "Role", ""),
    ("kind", _U8, "RowKind", "exchange, overhead or unattributed"),
    ("row", _I64, "", "row of the JOINED batch that got these bytes"),
    ("in_wire_bytes", _I64, "B", ""),
    ("out_wire_bytes", _I64, "B", ""),
    ("in_payload_bytes", _I64, "B", ""),
    ("out_payload_bytes", _I64, "B", ""),
    ("in_packets", _I64, "packets", ""),
    ("out_packets", _I64, "packets", ""),
    ("resent_bytes", _I64, "B", "both directions"),
)

USAGE_KEYS = _columns(
    ("minute_unix_s", _I64, "s", "start of the minute (or hour, in rollups), UTC; by the exchange's end"),
    ("node", TEXT, "", ""),
    ("api", TEXT, "", "null: none"),
    ("operation_id", TEXT, "", "null: none"),
    ("method", TEXT, "", "documented method; the request's own for unmatched rows"),
    ("path_template", TEXT, "", "null: none"),
    ("match_state", TEXT, "", "as in NAMING"),
    ("route_id", TEXT, "", ""),
    ("service_id", TEXT, "", ""),
    ("consumer", TEXT, "", ""),
    ("status_class", TEXT, "", "1xx to 5xx; null for bytes without a request"),
    ("scope", TEXT, "", "network scope of the client by the price book; 'unknown' where none matches"),
    ("upstream_scope", TEXT, "", "network scope of the backend; null without an upstream leg"),
    ("llm_model", TEXT, "", ""),
    (
        "llm_prompt_class",
        TEXT,
        "tokens",
        "of a request's prompt tokens: the smallest of core/prompts' bounds that holds them; null: not counted",
    ),
)

# Calls per started block of this many bytes -> the column that counts them: 32 KiB (messages of WebSocket APIs),
# 64 KiB (queues and event buses), 512 KiB (HTTP APIs).
QUANTA = {32 << 10: "quanta_32k", 64 << 10: "quanta_64k", 512 << 10: "quanta_512k"}

_SUMMED_LEG = (
    "in_wire_bytes", "out_wire_bytes", "in_payload_bytes", "out_payload_bytes", "in_app_bytes", "out_app_bytes",
    "in_packets", "out_packets", "resent_bytes", "overhead_bytes",
)  # fmt: skip

USAGE_SUMS = _columns(
    ("calls", _I64, "requests", ""),
    ("attempts", _I64, "tries", ""),
    *((f"{leg}_{name}", _I64, "", "sum of the exchanges' column") for leg in LEGS for name in _SUMMED_LEG),
    # exact + aligned + apportioned + unattributed = all wire bytes of both legs and directions.
    ("exact_bytes", _I64, "B", "wire bytes of legs that are exact"),
    ("aligned_bytes", _I64, "B", "wire bytes of legs that are aligned"),
    ("apportioned_bytes", _I64, "B", "wire bytes of legs that are apportioned"),
    ("unattributed_bytes", _I64, "B", "wire bytes that no request claims"),
    ("app_only_bytes", _I64, "B", "app bytes of legs without a flow: not part of the wire bytes"),
    ("app_only_calls", _I64, "requests", "requests whose downstream leg had no flow"),
    ("duration_ms", _I64, "ms", "sum of the requests' durations"),
    ("llm_prompt_tokens", _I64, "tokens", "sum of the known"),
    ("llm_completion_tokens", _I64, "tokens", "sum of the known"),
    # Each request's app bytes with the client, in and out together, in started blocks, one at least. Requests
    # whose bytes or blocks were not counted are in `calls_without_quanta` alone.
    *((name, _I64, "blocks", f"started blocks of {size >> 10} KiB") for size, name in QUANTA.items()),
    ("calls_without_quanta", _I64, "requests", "those in no quanta_ column"),
    ("llm_calls_without_tokens", _I64, "requests", "with a model, and without its prompt or completion tokens"),
)

USAGE = (*USAGE_KEYS, *USAGE_SUMS)

# What a document can speak about: usage, told apart further. Kept like usage, judged by `core/conformance`.
SHAPE_KEYS = (
    *USAGE_KEYS,
    *_columns(
        ("host", TEXT, "", "as in LINE; null for bytes without a request"),
        ("path", TEXT, "", "of requests that no operation matched: folded by `core/conformance/fold`; else null"),
        ("query_names", TEXT, "", "as in LINE, at most 16 names of 40 characters"),
        ("status", TEXT, "", "HTTP status as three digits; null for bytes without a request"),
        ("response_source", TEXT, "", "apisix, nginx or upstream"),
        ("request_content_type", TEXT, "", "media type without parameters"),
        ("response_content_type", TEXT, "", "media type without parameters"),
        ("auth_kinds", TEXT, "", "kinds of credentials present, comma-separated"),
        ("match_flags", TEXT, "", "as in NAMING"),
        ("size_class", TEXT, "", "of the response's app bytes n: k with 4**k <= n < 4**(k+1), two digits; null none"),
    ),
)

# How a column merges where rows of equal key meet, other than by sum.
SHAPE_MERGED = _columns(
    ("first_unix_ns", _I64, "ns", "min: end of the first exchange"),
    ("last_unix_ns", _I64, "ns", "max: end of the last exchange"),
    ("least_out_app_bytes", _I64, "B", "min: smallest response, headers included; -1 no request"),
    ("most_out_app_bytes", _I64, "B", "max: largest response; -1 no request"),
    ("clients", _I64, "bits", "or: one of 63 bits by a hash of the client's address; 0 no address"),
)
SHAPE = (*SHAPE_KEYS, *USAGE_SUMS, *SHAPE_MERGED)

# Outcome of validating sampled bodies: counts alone, never values.
SAMPLE_KEYS = _columns(
    ("minute_unix_s", _I64, "s", "start of the minute, UTC, by the request's end"),
    ("node", TEXT, "", ""),
    ("api", TEXT, "", "null: none"),
    ("operation_id", TEXT, "", "null: none"),
    ("method", TEXT, "", ""),
    ("path_template", TEXT, "", ""),
    ("route_id", TEXT, "", ""),
    ("consumer", TEXT, "", ""),
    ("status", TEXT, "", "HTTP status as three digits"),
    ("rule", TEXT, "", "request-schema, response-schema, missing-required-param, ...; null: the samples themselves"),
    ("detail", TEXT, "", "where in the body and which keyword, such as '/items/*/price type'; null as rule"),
    ("pointer", TEXT, "", "JSON pointer of that part of the document; null as rule"),
)
SAMPLE = (
    *SAMPLE_KEYS,
    *_columns(
        ("samples", _I64, "requests", "sum"),
        ("app_bytes", _I64, "B", "sum: app bytes of both directions"),
        ("first_unix_ns", _I64, "ns", "min"),
        ("last_unix_ns", _I64, "ns", "max"),
    ),
)

# How complete the data is: additive counts by minute. Reports print them beside every figure.
COMPLETENESS = _columns(
    ("minute_unix_s", _I64, "s", "start of the minute, UTC"),
    ("node", TEXT, "", ""),
    (
        "metric",
        TEXT,
        "",
        "lines_received, lines_lost, lines_duplicate, lines_refused, lines_dropped, ring_lost, "
        "overflow_in_bytes, overflow_out_bytes, kernel_in_wire_bytes, kernel_out_wire_bytes, ...",
    ),
    ("value", _I64, "", "additive"),
)


class BatchError(ValueError):
    """A batch whose columns are not what its stage was promised: a defect in the stage before."""


def schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of a column list, in its order."""
    return pa.schema([pa.field(c.name, c.type) for c in columns])


def empty(columns: Sequence[Column]) -> pa.Table:
    """A batch without rows."""
    return schema(columns).empty_table()


def check(table: pa.Table, columns: Sequence[Column], stage: str) -> pa.Table:
    """The batch, if its columns are those promised; what every stage does at its door.

    Raises BatchError naming the stage and the first difference, both sides given.
    """
    wanted = schema(columns)
    if table.schema.equals(wanted, check_metadata=False):
        return table
    for position, field in enumerate(wanted):
        if position >= len(table.schema):
            raise BatchError(f"{stage}: column {field.name!r} is missing")
        got = table.schema.field(position)
        if got.name != field.name or got.type != field.type:
            raise BatchError(
                f"{stage}: column {position} is {got.name!r} {got.type}, expected {field.name!r} {field.type}"
            )
    raise BatchError(f"{stage}: unexpected columns {table.schema.names[len(wanted) :]}")


def numbers(table: pa.Table, name: str) -> npt.NDArray[np.generic]:
    """A numeric column as one NumPy array, without a copy where it is one chunk."""
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    values: npt.NDArray[np.generic] = array.to_numpy(zero_copy_only=False)
    return values


def codes(table: pa.Table, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
    """A TEXT column as (codes, values): code -1 is null. Values are distinct."""
    column = table.column(name).unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no rows: Arrow keeps it chunked
        return np.empty(0, np.int32), []
    dictionary: Any = column
    array: npt.NDArray[np.int32] = dictionary.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return array, dictionary.dictionary.to_pylist()


def text(code: npt.NDArray[np.integer], values: Iterable[str]) -> pa.DictionaryArray:
    """The inverse of `codes`: a TEXT array from codes (-1 null) and values."""
    indices = pa.array(code, pa.int32(), mask=np.asarray(code) < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(values), pa.string()))
