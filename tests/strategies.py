"""Made-up traffic for property tests: what the probe and the gateway's log would say of it.

`traffic()` draws connections of clients to a gateway (plain, TLS, HTTP/2; kept alive, pipelined, aborted, never logged,
older than the probe), plays them packet by packet, and gives the snapshots and usage lines that come of it,
with losses: lines that never arrive, ring records that are lost, sweeps at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.clock import Clock
from apicost.core.records import FLOW, LINE, Role, SnapshotKind

MS = 1_000_000
CLOCK = Clock(mono_ns=1_000 * MS, unix_ns=1_795_000_000_000 * MS)
HEADERS = 52
MAPPED = 0xFFFF << 32
GATEWAY_PORT, TLS_PORT, BACKEND_PORT = 9080, 9443, 8000
_COUNTERS = [
    f"{way}_{name}"
    for name in ("wire_bytes", "payload_bytes", "resent_bytes", "packets", "resent_packets")
    for way in ("in", "out")
]


class Traffic:
    """What was seen, and what was true of it.

    truth: per (connection, request) the payload that crossed the wire for it, in and out (plain HTTP/1 only).
    """

    def __init__(self, flows: pa.Table, lines: pa.Table, truth: dict[tuple[int, int], tuple[int, int]]) -> None:
        self.flows, self.lines, self.truth = flows, lines, truth

    def __repr__(self) -> str:
        shown = ["flow", "kind", "turn", "role", "born_mono_ns", "last_mono_ns", "in_wire_bytes", "in_payload_bytes",
                 "out_payload_bytes"]  # fmt: skip
        said = ["line_no", "connection", "connection_requests", "peer_port", "http_version", "tls_version",
                "tls_read_bytes", "request_bytes", "content_length", "response_bytes", "status", "access_mono_ns",
                "log_mono_ns"]  # fmt: skip
        frames = self.flows.select(shown).to_pandas(), self.lines.select(said).to_pandas()
        return "\n".join(["", *(frame.to_string() for frame in frames), f"{self.truth}"])


@dataclass
class _Flow:
    """A flow played packet by packet, with the snapshots that the probe would give."""

    cookie: int
    role: Role
    local_port: int
    peer: int
    peer_port: int
    born: int
    whole: bool = True
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))
    rows: list[dict[str, Any]] = field(default_factory=list)
    turn: int = 0
    last: int = 0
    times: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    answered: bool = False

    def packet(self, now: int, way: str, payload: int = 0, resent: int = 0, packets: int = 1) -> None:
        """Count packets; the first of a new turn gives the snapshot of the turn before."""
        asks = way == ("out" if self.role == Role.UPSTREAM else "in")
        if payload and asks and self.answered:
            self.snapshot(SnapshotKind.TURN)
            self.turn += 1
            self.times = [0, 0, 0, 0]
            self.answered = False
        if payload:
            at = 0 if asks else 2
            self.times[at] = self.times[at] or now
            self.times[at + 1] = now
            self.answered |= not asks
        self.counters[f"{way}_wire_bytes"] += payload + resent + HEADERS * packets
        self.counters[f"{way}_payload_bytes"] += payload
        self.counters[f"{way}_resent_bytes"] += resent
        self.counters[f"{way}_packets"] += packets
        self.last = now

    def snapshot(self, kind: SnapshotKind) -> None:
        self.rows.append(
            {
                "flow": self.cookie,
                "kind": kind,
                "turn": self.turn,
                "role": self.role,
                "protocol": 6,
                "local_lo": MAPPED | 0x0A000001,
                "local_port": self.local_port,
                "peer_lo": MAPPED | self.peer,
                "peer_port": self.peer_port,
                "born_mono_ns": self.born,
                "last_mono_ns": self.last,
                "request_first_mono_ns": self.times[0],
                "request_last_mono_ns": self.times[1],
                "response_first_mono_ns": self.times[2],
                "response_last_mono_ns": self.times[3],
                "in_tcp_flags": 0x1A if self.whole else 0x18,
                "out_tcp_flags": 0x1A if self.whole else 0x18,
                **self.counters,
            }
        )


@dataclass(frozen=True)
class Request:
    """One request as drawn."""

    head: int
    body: int
    answer: int
    gap_ms: int
    resent: int
    status: int
    logged: bool
    discarded: bool
    upstream: bool


requests = st.builds(
    Request,
    head=st.integers(40, 400),
    body=st.one_of(st.just(0), st.integers(1, 70_000)),
    answer=st.integers(60, 200_000),
    gap_ms=st.integers(1, 400),
    resent=st.one_of(st.just(0), st.integers(1, 1_448)),
    status=st.sampled_from([200, 200, 200, 404, 413]),
    logged=st.integers(0, 9).map(lambda n: n > 0),
    discarded=st.booleans(),
    upstream=st.booleans(),
)


@dataclass(frozen=True)
class Connection:
    """One client connection as drawn."""

    protocol: str  # plain, tls (with the layer's counters), tls-blind, h2
    requests: list[Request]
    pipelined: bool
    ending: str  # close, open, abort, switch, garbage
    older: bool  # than the probe
    peer: int
    peer_port: int
    first: int  # number of its first request in the log


@st.composite
def connections(draw: st.DrawFn, clean: bool = False) -> Connection:
    protocol = draw(st.sampled_from(["plain", "plain", "tls", "tls-blind", "h2"]))
    asked = draw(st.lists(requests, min_size=0 if not clean else 1, max_size=6))
    older = not clean and draw(st.integers(0, 5)) == 0
    if clean:
        asked = [Request(**{**r.__dict__, "logged": True}) for r in asked]
    endings = ["close", "open"] if clean else ["close", "close", "open", "abort", "switch", "garbage"]
    return Connection(
        protocol=protocol,
        requests=asked,
        pipelined=protocol == "plain" and draw(st.booleans()),
        ending=draw(st.sampled_from(endings)),
        older=older,
        peer=0x0A000100 + draw(st.integers(0, 1)),
        peer_port=draw(st.integers(40_000, 40_002)),
        first=draw(st.integers(2, 9)) if older else 1,
    )


@st.composite
def traffic(draw: st.DrawFn, clean: bool = False) -> Traffic:
    """Connections one after the other on few client ports, and side by side on others."""
    drawn = draw(st.lists(connections(clean=clean), min_size=1, max_size=5))
    sweeps = draw(st.booleans())
    lost = set() if clean else set(draw(st.lists(st.integers(0, 40), max_size=4)))
    free_at: dict[tuple[int, int], int] = {}
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    truth: dict[tuple[int, int], tuple[int, int]] = {}
    for number, connection in enumerate(drawn):
        place = (connection.peer, connection.peer_port)
        began = free_at.get(place, 2_000 * MS + number * 7 * MS)
        player = _Player(number, connection, began, sweeps)
        player.play()
        rows += player.rows()
        lines += player.lines
        truth |= player.truth
        free_at[place] = player.now + draw(st.integers(1, 3)) * MS
    turns = [row for row in rows if row["kind"] == SnapshotKind.TURN]
    gone = {id(turns[i]) for i in lost if i < len(turns)}
    kept = [row for row in rows if id(row) not in gone]
    for seq, row in enumerate(kept, 1):
        row["seq"] = seq
    return Traffic(flows=_table(kept, FLOW), lines=_table(lines, LINE), truth=truth)


class _Player:
    """Plays one connection."""

    def __init__(self, number: int, connection: Connection, began: int, sweeps: bool) -> None:
        self.number, self.drawn, self.now, self.sweeps = number, connection, began, sweeps
        self.tls = connection.protocol != "plain"
        self.flow = _Flow(
            cookie=100 + 2 * number,
            role=Role.DOWNSTREAM,
            local_port=TLS_PORT if self.tls else GATEWAY_PORT,
            peer=connection.peer,
            peer_port=connection.peer_port,
            born=began,
            whole=not connection.older,
        )
        self.up = _Flow(
            cookie=101 + 2 * number,
            role=Role.UPSTREAM,
            local_port=50_000 + number,
            peer=0x0A000201,
            peer_port=BACKEND_PORT,
            born=began,
        )
        self.lines: list[dict[str, Any]] = []
        self.truth: dict[tuple[int, int], tuple[int, int]] = {}
        self.read = self.written = 0  # the TLS layer's counters

    def rows(self) -> list[dict[str, Any]]:
        return self.flow.rows + self.up.rows

    def play(self) -> None:
        drawn = self.drawn
        if not drawn.older:
            self.flow.packet(self.now, "in")
            self.flow.packet(self.now, "out")
            self.flow.packet(self.now, "in")
            if self.tls:
                self._step()
                self._send("in", 517)
                self._step()
                self._send("out", 1_368)
                self._step()
                self._send("in", 80)
        elif self.tls:
            self.read, self.written = 5_000, 90_000
        if drawn.pipelined:
            for request in drawn.requests:
                self._ask(request)
        for place, request in enumerate(drawn.requests):
            last = place == len(drawn.requests) - 1
            self._exchange(place, request, last)
            if self.sweeps and place % 2:
                self.flow.snapshot(SnapshotKind.OPEN)
        self._end()

    def _exchange(self, place: int, request: Request, last: bool) -> None:
        drawn = self.drawn
        before = (self.read, self.written) if self.tls else (0, 0)
        began = self.now + MS
        if not drawn.pipelined:
            self._step(request.gap_ms)
            began = self.now
            self._ask(request)
        self._step()
        access = self.now
        answer = request.answer
        if request.upstream:
            self._call(request)
        if last and drawn.ending == "abort":
            answer = answer // 3
        half = answer // 2
        self._send("out", self._framed(half))
        self.flow.packet(self.now, "in")
        if request.resent:
            self.flow.packet(self.now, "out", resent=request.resent)
        self._step()
        self._send("out", self._framed(answer - half))
        status = request.status
        if last and drawn.ending == "switch":
            status = 101
            for size in (30, 600):
                self._step(5)
                self._send("in", size)
                self._step()
                self._send("out", size * 3)
        self.now += 20_000
        read_at = before[0] + self._framed(request.head + request.body)
        del read_at
        if drawn.protocol == "plain" and status != 101 and not (last and drawn.ending == "abort"):
            self.truth[self.number, drawn.first + place] = (request.head + request.body, request.answer)
        if request.logged:
            self._log(place, request, status, began, access)

    def _ask(self, request: Request) -> None:
        size = self._framed(request.head + request.body)
        first = min(size, request.head)
        self._send("in", first)
        if size > first:
            self._step()
            self._send("in", size - first)

    def _call(self, request: Request) -> None:
        """The upstream side of a request."""
        if not self.up.last:
            for way in ("out", "in", "out"):
                self.up.packet(self.now, way)
        self.up.packet(self.now, "out", request.head + 50 + request.body)
        self._step()
        self.up.packet(self.now, "in", request.answer - 11)
        self.up.packet(self.now, "out")

    def _framed(self, size: int) -> int:
        if not self.tls or size == 0:
            return size
        return size + 22 * -(-size // 16_384)

    def _send(self, way: str, size: int) -> None:
        if size <= 0:
            return
        self.flow.packet(self.now, way, size, packets=-(-size // 1_448))
        if way == "in":
            self.read += size
        else:
            self.written += size

    def _step(self, milliseconds: int = 1) -> None:
        self.now += milliseconds * MS

    def _log(self, place: int, request: Request, status: int, began: int, access: int) -> None:
        drawn = self.drawn
        counted = drawn.protocol == "tls"
        # nginx counts no body that it throws away. Behind others in a pipe a short one leaves no trace of its own.
        hidden = request.discarded and request.body > (request.head if drawn.pipelined else 0)
        tries = [f"10.0.2.1:{BACKEND_PORT}"] if request.upstream else []
        self.lines.append(
            {
                "worker_pid": 77 + self.number % 2,
                "worker_started_unix_ms": 1,
                "line_no": self.number * 100 + place + 1,
                "request_id": f"{self.number:016x}{place:016x}",
                "log_unix_ns": self.now + CLOCK.unix_ns - CLOCK.mono_ns,
                "log_mono_ns": self.now,
                "access_mono_ns": access,
                "header_mono_ns": access + 10_000,
                "started_unix_ns": began + CLOCK.unix_ns - CLOCK.mono_ns,
                "connection": 1_000 + self.number,
                "connection_requests": drawn.first + place,
                "peer_lo": MAPPED | drawn.peer,
                "peer_port": drawn.peer_port,
                "local_lo": MAPPED | 0x0A000001,
                "local_port": self.flow.local_port,
                "tls_version": "TLSv1.3" if self.tls else None,
                "tls_cipher": "TLS_AES_256_GCM_SHA384" if self.tls else None,
                "http_version": 20 if drawn.protocol == "h2" else 11,
                "tls_read_bytes": self.read if counted else -1,
                "tls_written_bytes": self.written if counted else -1,
                "method": "GET",
                "host": "api.example.com",
                "path": f"/v1/things/{place}",
                "status": status,
                "request_bytes": request.head if hidden else request.head + request.body,
                "response_bytes": request.answer,
                "response_body_bytes": request.answer - 40,
                "content_length": request.body or -1,
                "upstream_scheme": "http" if tries else None,
                "attempt_addr": tries,
                "attempt_status": [status] * len(tries),
                "attempt_sent_bytes": [request.head + 50 + request.body] * len(tries),
                "attempt_received_bytes": [request.answer - 11] * len(tries),
                "attempt_connect_ms": [0] * len(tries),
                "attempt_response_ms": [1] * len(tries),
                "llm_prompt_tokens": -1,
                "llm_completion_tokens": -1,
            }
        )

    def _end(self) -> None:
        drawn = self.drawn
        if drawn.ending == "garbage":
            self._step(3)
            self._send("in", 300)
            self._step()
            self._send("out", 150)
        if drawn.ending != "open":
            self._step()
            if self.tls and drawn.ending == "close":
                self._send("in", 24)
            self.flow.packet(self.now, "in")
            self.flow.packet(self.now, "out")
            self.flow.packet(self.now, "in")
        if self.flow.last:
            self.flow.snapshot(SnapshotKind.OPEN if drawn.ending == "open" else SnapshotKind.CLOSED)
        if self.up.last:
            self.up.snapshot(SnapshotKind.OPEN)


def _table(rows: list[dict[str, Any]], columns: tuple[records.Column, ...]) -> pa.Table:
    arrays = []
    for column in columns:
        text = pa.types.is_dictionary(column.type) or pa.types.is_string(column.type)
        missing: Any = [] if pa.types.is_list(column.type) else None if text else 0
        arrays.append(pa.array([row.get(column.name, missing) for row in rows], column.type))
    return pa.Table.from_arrays(arrays, schema=records.schema(columns))


@st.composite
def schedules(draw: st.DrawFn, rows: int) -> np.ndarray:
    """In which of a few steps each row arrives: mostly in order, sometimes not."""
    steps = draw(st.integers(1, 6))
    cuts = sorted(draw(st.lists(st.integers(0, max(rows, 1)), min_size=steps - 1, max_size=steps - 1)))
    step = np.searchsorted(cuts, np.arange(rows), side="right")
    strays = draw(st.lists(st.tuples(st.integers(0, max(rows - 1, 0)), st.integers(0, steps - 1)), max_size=5))
    for row, there in strays:
        if rows:
            step[row] = there
    return step
