"""Made-up steady traffic of one gateway, column by column: what the probe and the plugin would say of it.

Clients on kept-alive connections ask one after the other at an even rate; each request goes to one backend over a
pool of kept-alive connections. All bodies are equal, as in bench/daemon_memory.py. Used by benches and tests that need
thousands of requests a second without a gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.records import FLOW, LINE, Role, SnapshotKind

SECOND = 1_000_000_000
_MAPPED = 0xFFFF << 32
_HEADERS = 52  # IP and TCP with timestamps
_UNIX_NS = 1_795_000_000 * SECOND  # wall clock less monotonic clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """So many requests a second for so long.

    clients: connections of clients, an even number for two workers; backends: connections to the backend. Both stay
        open to the end.
    start_mono_ns: when the first request comes.
    """

    rate: int = 5_000
    seconds: float = 10.0
    clients: int = 100
    backends: int = 40
    start_mono_ns: int = 1_000 * SECOND

    def __post_init__(self) -> None:
        if self.clients % 2:
            raise ValueError(f"{self.clients} clients: a connection would have two workers")

    def batches(self) -> tuple[pa.Table, np.ndarray, pa.Table, np.ndarray]:
        """FLOW with the times at which the probe has its snapshots, LINE with the times of the posts; each in order."""
        count = int(self.rate * self.seconds)
        number = np.arange(count, dtype=np.int64)
        began = self.start_mono_ns + number * SECOND // self.rate
        ended = began + 400_000
        digits = 1 + (number % 500 >= 10) + (number % 500 >= 100)
        asked, answered = 90 + digits, np.full(count, 1_100, np.int64)
        client = self._flows(number % self.clients, began, ended, asked, answered, Role.DOWNSTREAM)
        backend = self._flows(
            number % self.backends, began + 60_000, ended - 60_000, asked + 60, answered - 80, Role.UPSTREAM
        )
        flows = {name: np.concatenate([client[name], backend[name]]) for name in client}
        seen = flows.pop("seen")
        order = np.argsort(seen, kind="stable")
        flows = {name: values[order] for name, values in flows.items()}
        flows["seq"] = np.arange(1, len(order) + 1)
        lines = self._lines(number, began, ended, asked, answered)
        # A worker posts once a second what it has.
        posted = (ended // SECOND + 1) * SECOND
        return _table(flows, FLOW), seen[order], _table(lines, LINE), posted

    def _flows(
        self, connection: np.ndarray, began: np.ndarray, ended: np.ndarray, asked: np.ndarray, answered: np.ndarray,
        role: Role,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """One finished turn for each request but the last of its connection; that one is an open snapshot."""
        order = np.argsort(connection, kind="stable")
        own = connection[order]
        first = np.flatnonzero(np.append(True, own[1:] != own[:-1]))
        last = np.append(own[1:] != own[:-1], True)
        turn = np.arange(len(own)) - np.repeat(first, np.diff(np.append(first, len(own))))

        def running(values: np.ndarray) -> np.ndarray:
            whole = np.cumsum(values[order])
            before = whole[first] - values[order][first]
            return whole - np.repeat(before, np.diff(np.append(first, len(own))))

        requests, replies = running(asked), running(answered)
        packets = turn + 3
        client = role == Role.DOWNSTREAM
        to, back = ("in", "out") if client else ("out", "in")
        seen = np.append(began[order][1:], 0)  # the next turn's begin ends this one
        seen[last] = ended[order][last] + SECOND
        size = len(own)
        return {
            "flow": own + (1_000 if client else 100_000),
            "kind": np.where(last, SnapshotKind.OPEN, SnapshotKind.TURN),
            "turn": turn,
            "role": np.full(size, role),
            "protocol": np.full(size, 6),
            "local_lo": np.full(size, _MAPPED | 0x0A000001),
            "local_port": np.full(size, 9080) if client else 30_000 + own,
            "peer_lo": np.full(size, _MAPPED | (0x0A000101 if client else 0x0A000201)),
            "peer_port": 40_000 + own if client else np.full(size, 8000),
            "born_mono_ns": np.full(size, self.start_mono_ns - SECOND),
            "last_mono_ns": ended[order],
            "request_first_mono_ns": began[order],
            "request_last_mono_ns": began[order],
            "response_first_mono_ns": ended[order] - 10_000,
            "response_last_mono_ns": ended[order],
            f"{to}_wire_bytes": requests + packets * _HEADERS,
            f"{back}_wire_bytes": replies + packets * _HEADERS,
            f"{to}_payload_bytes": requests,
            f"{back}_payload_bytes": replies,
            "in_packets": packets,
            "out_packets": packets,
            "in_tcp_flags": np.full(size, 0x1A),
            "out_tcp_flags": np.full(size, 0x1A),
            "seen": seen,
        }

    def _lines(
        self, number: np.ndarray, began: np.ndarray, ended: np.ndarray, asked: np.ndarray, answered: np.ndarray
    ) -> dict[str, Any]:
        size = len(number)
        connection = number % self.clients

        def each(value: int) -> Any:
            return pa.ListArray.from_arrays(np.arange(size + 1, dtype=np.int32), np.full(size, value))

        return {
            "worker_pid": 77 + number % 2,
            "worker_started_unix_ms": np.full(size, 1),
            "line_no": number // 2 + 1,
            "request_id": pa.array([f"{i:032x}" for i in range(size)]),
            "log_unix_ns": ended + 20_000 + _UNIX_NS,
            "log_mono_ns": ended + 20_000,
            "access_mono_ns": began + 50_000,
            "header_mono_ns": ended - 20_000,
            "started_unix_ns": began + _UNIX_NS,
            "connection": 1_000 + connection,
            "connection_requests": number // self.clients + 1,
            "peer_lo": np.full(size, _MAPPED | 0x0A000101),
            "peer_port": 40_000 + connection,
            "local_lo": np.full(size, _MAPPED | 0x0A000001),
            "local_port": np.full(size, 9080),
            "http_version": np.full(size, 11),
            "tls_read_bytes": np.full(size, -1),
            "tls_written_bytes": np.full(size, -1),
            "method": _text(np.zeros(size, np.int32), ["GET"]),
            "host": _text(np.zeros(size, np.int32), ["shop.example"]),
            "path": _text(number % 500, [f"/v1/products/sku-{i}" for i in range(500)]),
            "status": np.full(size, 200),
            "request_bytes": asked,
            "response_bytes": answered,
            "response_body_bytes": answered - 200,
            "content_length": np.full(size, -1),
            "upstream_scheme": _text(np.zeros(size, np.int32), ["http"]),
            "attempt_addr": pa.ListArray.from_arrays(
                np.arange(size + 1, dtype=np.int32), pa.array(["10.0.2.1:8000"] * size)
            ),
            "attempt_status": each(200),
            "attempt_sent_bytes": pa.ListArray.from_arrays(np.arange(size + 1, dtype=np.int32), asked + 60),
            "attempt_received_bytes": pa.ListArray.from_arrays(np.arange(size + 1, dtype=np.int32), answered - 80),
            "attempt_connect_ms": each(0),
            "attempt_response_ms": each(1),
            "llm_prompt_tokens": np.full(size, -1),
            "llm_completion_tokens": np.full(size, -1),
        }


def _text(codes: np.ndarray, values: list[str]) -> Any:
    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(values))


def _table(columns: dict[str, Any], wanted: tuple[records.Column, ...]) -> pa.Table:
    size = len(next(iter(columns.values())))
    arrays = []
    for column in wanted:
        values = columns.get(column.name)
        if values is None:
            text = pa.types.is_dictionary(column.type) or pa.types.is_string(column.type)
            values = pa.nulls(size, column.type) if text else np.zeros(size, np.int64)
        array = values if isinstance(values, pa.Array) else pa.array(values)
        arrays.append(array.cast(column.type))
    return pa.Table.from_arrays(arrays, schema=records.schema(wanted))
