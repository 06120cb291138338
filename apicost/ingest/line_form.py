"""The wire form of a usage batch, as specs/usage-line.schema.json describes it for others: columns, bounds, header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

VERSION = 1
MAX_COUNT = 1 << 53  # largest integer that JSON readers agree on; no counter of a gateway comes near
MAX_HEADER_BYTES = 16 << 10
MAX_US = 10**15  # 31 years: no time within a gateway's life is longer
MAX_CLOCK_NS = 1 << 62  # year 2116; with MAX_US added it still fits int64
MAX_WALL_S = 1 << 32  # year 2106
MAX_REQUEST_S = 10**8
# The clock pair of the header and $msec (nginx's cached clock, at most 0.1 s late as measured) tell one
# time. Further apart than this, one of the two clocks was set in between.
CLOCK_TOLERANCE_NS = 2_000_000_000
# Nothing is logged after it was received; this much covers a node whose clock runs ahead.
FUTURE_TOLERANCE_NS = 300_000_000_000
LOST_VALUE = "(over-long)"  # stands for a text beyond its limit; begins without "/", so it matches no path

INTEGER, NUMBER, WORD, PLAIN = "integer", "number", "word", "plain"

# Columns of a request line in their order: name, how it is read, whether it must be there.
# A test compares this list with specs/usage-line.schema.json.
WIRE: tuple[tuple[str, str, bool], ...] = (
    ("n", INTEGER, True),
    ("log_us", INTEGER, True),
    ("access_before_us", INTEGER, False),
    ("header_before_us", INTEGER, False),
    ("msec", NUMBER, True),
    ("request_time", NUMBER, True),
    ("connection", INTEGER, True),
    ("connection_requests", INTEGER, True),
    ("peer_addr", WORD, True),
    ("peer_port", INTEGER, False),
    ("local_addr", WORD, False),
    ("local_port", INTEGER, False),
    ("tls_version", WORD, False),
    ("tls_cipher", WORD, False),
    ("http_version", WORD, True),
    ("tls_read_bytes", INTEGER, False),
    ("tls_written_bytes", INTEGER, False),
    ("method", WORD, True),
    ("host", WORD, False),
    ("path", WORD, True),
    ("query_names", WORD, False),
    ("upstream_path", WORD, False),
    ("route_id", WORD, False),
    ("route_name", WORD, False),
    ("service_id", WORD, False),
    ("consumer", WORD, False),
    ("matched_uri", WORD, False),
    ("status", INTEGER, True),
    ("response_source", WORD, False),
    ("request_bytes", INTEGER, True),
    ("response_bytes", INTEGER, True),
    ("response_body_bytes", INTEGER, True),
    ("content_length", INTEGER, False),
    ("request_content_type", WORD, False),
    ("response_content_type", WORD, False),
    ("upstream_scheme", WORD, False),
    ("upstream_addr", PLAIN, False),
    ("upstream_status", PLAIN, False),
    ("upstream_bytes_sent", PLAIN, False),
    ("upstream_bytes_received", PLAIN, False),
    ("upstream_connect_time", PLAIN, False),
    ("upstream_response_time", PLAIN, False),
    ("auth_kinds", WORD, False),
    ("llm_model", WORD, False),
    ("llm_prompt_tokens", INTEGER, False),
    ("llm_completion_tokens", INTEGER, False),
    ("request_id", PLAIN, False),
)

# Inclusive bounds of the integers; those not named here reach from 0 to MAX_COUNT.
BOUNDS: Mapping[str, tuple[int, int]] = {
    "n": (0, 1 << 31),
    "log_us": (0, MAX_US),
    "access_before_us": (0, MAX_US),
    "header_before_us": (0, MAX_US),
    "connection_requests": (0, (1 << 31) - 1),
    "peer_port": (0, 65_535),
    "local_port": (0, 65_535),
    "status": (0, 999),
}
NUMBER_BOUNDS: Mapping[str, tuple[float, float]] = {"msec": (0, MAX_WALL_S), "request_time": (0, MAX_REQUEST_S)}
HTTP_VERSIONS: Mapping[str, int] = {
    "HTTP/0.9": 10,  # like 1.0: one request, then close
    "HTTP/1.0": 10,
    "HTTP/1.1": 11,
    "HTTP/2": 20,
    "HTTP/2.0": 20,
    "HTTP/3": 30,
    "HTTP/3.0": 30,
}

NAMES = tuple(name for name, _, _ in WIRE)


class Worker(msgspec.Struct, frozen=True):
    """A gateway worker's identity within its node."""

    pid: int
    started_unix_ms: int


class Header(msgspec.Struct, frozen=True):
    """First line of a batch; the fields are described in specs/usage-line.schema.json."""

    apicost: int
    node: str
    worker: Worker
    batch: int
    first: int
    count: int
    dropped: int
    base_mono_ns: int
    base_unix_ns: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """One line that was not used.

    position: among the request lines, from 1. kind: a fixed word to count by. reason: for people.
    number: of the line in its worker, where it can be told; it is then known as refused, not lost.
    """

    position: int
    kind: str
    reason: str
    number: int | None = None
