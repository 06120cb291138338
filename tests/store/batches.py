"""Small exchange and usage batches for the tests of the meter and the ledger."""

import ipaddress

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from apicost.core import meter, records
from apicost.core.records import Confidence, Role, RowKind
from apicost.core.scopes import Scopes

NOON = 1_794_052_800  # 2026-11-07T12:00:00Z
SCOPES = Scopes([("office", ["10.0.0.0/8"]), ("internet", ["0.0.0.0/0", "::/0"])])


def halves(address: str) -> tuple[int, int]:
    """An address in the two columns that records carry."""
    ip = ipaddress.ip_address(address)
    number = int(ip) + (0xFFFF << 32 if ip.version == 4 else 0)
    return number >> 64, number & (1 << 64) - 1


def exchange(**fields) -> dict:
    """One row of EXCHANGE: a plain request of 2026-11-07 12:00:00, with some fields changed.

    `peer` and `upstream_peer` are addresses as text; `ended_s` and `took_ms` set the times.
    """
    row = {c.name: None if c.type in (records.TEXT, pa.string()) else 0 for c in records.EXCHANGE}
    row |= {
        "kind": RowKind.EXCHANGE,
        "node": "gw1",
        "method": "GET",
        "path_template": "/orders/{id}",
        "operation_id": "getOrder",
        "api": "orders",
        "match_state": "matched",
        "route_id": "r1",
        "consumer": "acme",
        "status": 200,
        "worker_pid": 1,
        "line_no": 1,
        "first_byte_ns": -1,
        "llm_prompt_tokens": -1,
        "llm_completion_tokens": -1,
        "role": Role.DOWNSTREAM,
    }
    ended_s, took_ms = fields.pop("ended_s", NOON), fields.pop("took_ms", 5)
    row["ended_unix_ns"] = ended_s * 1_000_000_000
    row["started_unix_ns"] = row["ended_unix_ns"] - took_ms * 1_000_000
    for name in ("peer", "upstream_peer"):
        address = fields.pop(name, None)
        if address:
            row[f"{name}_hi"], row[f"{name}_lo"] = halves(address)
    unknown = set(fields) - set(row)
    assert not unknown, f"no columns of EXCHANGE: {unknown}"
    return row | fields


def table(rows: list[dict], columns=records.EXCHANGE) -> pa.Table:
    return pa.Table.from_arrays(
        [pa.array([row[c.name] for row in rows], c.type) for c in columns], schema=records.schema(columns)
    )


def usage(*rows: dict) -> pa.Table:
    """The usage of some exchanges."""
    return meter.meter(table(list(rows)), SCOPES)


def completeness(*rows: tuple[int, str, int]) -> pa.Table:
    """COMPLETENESS from (minute, metric, value)."""
    return table(
        [{"minute_unix_s": t, "node": "gw1", "metric": m, "value": v} for t, m, v in rows], records.COMPLETENESS
    )


def same(one: pa.Table, other: pa.Table) -> bool:
    """Equal down to the bytes of an IPC file: order, dictionaries and all."""
    return ipc(one) == ipc(other)


def ipc(batch: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_table(batch.combine_chunks())
    return sink.getvalue().to_pybytes()


def many(count: int, *, seed: int = 1, groups: int = 2_000, seconds: int = 120) -> pa.Table:
    """A batch of requests by the hundred thousand, as fast as columns can be made."""
    rng = np.random.default_rng(seed)
    columns = {}
    for c in records.EXCHANGE:
        if c.type == records.TEXT:
            columns[c.name] = records.text(np.full(count, -1, np.int32), [])
        elif c.type == pa.string():
            columns[c.name] = pa.nulls(count, pa.string())
        else:
            columns[c.name] = pa.array(np.zeros(count, c.type.to_pandas_dtype()))
    group = np.minimum(rng.zipf(1.2, count), groups) - 1
    operation, consumer = group % 120, group // 120

    def put(name, values):
        columns[name] = pa.array(np.asarray(values), next(c.type for c in records.EXCHANGE if c.name == name))

    def name_by(column, code, values):
        columns[column] = records.text(np.asarray(code, np.int32), values)

    ended = NOON * 10**9 + rng.integers(0, seconds * 10**9, count)
    put("ended_unix_ns", ended)
    put("started_unix_ns", ended - rng.integers(10**5, 10**9, count))
    put("kind", np.full(count, RowKind.EXCHANGE))
    put("role", np.full(count, Role.DOWNSTREAM))
    put("worker_pid", rng.integers(1, 9, count))
    put("line_no", np.arange(1, count + 1))
    put("status", rng.choice([200, 200, 200, 201, 304, 404, 500], count))
    put("attempts", np.ones(count))
    put("peer_lo", rng.integers(0, 50_000, count) + halves("10.0.0.0")[1])
    put("upstream_peer_lo", rng.integers(0, 9, count) + halves("192.0.2.0")[1])
    for leg in records.LEGS:
        for name in ("in", "out"):
            body = rng.integers(200, 20_000, count)
            put(f"{leg}_{name}_app_bytes", body)
            put(f"{leg}_{name}_payload_bytes", body + 30)
            put(f"{leg}_{name}_wire_bytes", body + 30 + 66 * (body // 1448 + 1))
            put(f"{leg}_{name}_packets", body // 1448 + 1)
        put(f"{leg}_confidence", rng.choice([Confidence.EXACT, Confidence.ALIGNED], count, p=[0.99, 0.01]))
        put(f"{leg}_flow", rng.integers(1, 5_000, count))
    operations = [f"operation{i}" for i in range(120)]
    name_by("node", np.zeros(count), ["gw1"])
    name_by("api", operation % 12, [f"api{i}" for i in range(12)])
    name_by("operation_id", operation, operations)
    name_by("path_template", operation, [f"/v1/{o}/{{id}}" for o in operations])
    name_by("method", operation % 4, ["GET", "POST", "PUT", "DELETE"])
    name_by("match_state", np.zeros(count), ["matched"])
    name_by("route_id", operation % 24, [f"route{i}" for i in range(24)])
    name_by("service_id", operation % 12, [f"service{i}" for i in range(12)])
    name_by("consumer", consumer, [f"consumer{i}" for i in range(groups // 120 + 1)])
    name_by("host", np.zeros(count), ["api.example.com"])
    name_by("path", operation, [f"/v1/{o}/7" for o in operations])
    return pa.Table.from_arrays([columns[c.name] for c in records.EXCHANGE], schema=records.schema(records.EXCHANGE))


_bytes = st.integers(0, 1 << 45)


@st.composite
def exchange_rows(draw) -> dict:
    """Any row that the stages before may hand over."""
    kind = draw(st.sampled_from(list(RowKind)))
    row = exchange(
        kind=kind,
        ended_s=draw(st.sampled_from([NOON, NOON + 59, NOON + 60, NOON + 43_200, 0])),
        took_ms=draw(st.integers(-5, 100_000)),
        node=draw(st.sampled_from(["gw1", "gw2"])),
        api=draw(st.sampled_from(["orders", "é", None])),
        match_state=draw(st.sampled_from(["matched", "undocumented-path", "control"])),
        method=draw(st.sampled_from(["GET", "COPY", "OTHER", "zap", None])),
        consumer=draw(st.sampled_from(["acme", "", None])),
        status=draw(st.sampled_from([-1, 0, 99, 101, 200, 404, 499, 503, 600])),
        attempts=draw(st.integers(-1, 3)),
        role=draw(st.sampled_from(list(Role))),
        llm_prompt_tokens=draw(st.integers(-1, 9)),
        peer=draw(st.sampled_from([None, "10.1.2.3", "192.0.2.1", "2001:db8::1"])),
        upstream_peer=draw(st.sampled_from([None, "10.1.2.3"])),
    )
    for leg in records.LEGS:
        row[f"{leg}_confidence"] = draw(st.sampled_from(list(Confidence)))
        for name in ("in_wire_bytes", "out_wire_bytes", "resent_bytes", "out_packets"):
            row[f"{leg}_{name}"] = draw(_bytes)
        row[f"{leg}_in_app_bytes"] = draw(st.integers(-1, 1 << 40))
    return row


exchange_batches = st.lists(exchange_rows(), min_size=1, max_size=12).map(table)


@st.composite
def spoken_rows(draw) -> dict:
    """The same, with everything that a document can speak about."""
    return draw(exchange_rows()) | {
        "host": draw(st.sampled_from(["a.example", "b.example", None])),
        "path": draw(st.sampled_from(["/users/1", "/users/22", "/users/me", "/" * 40, None])),
        "path_template": draw(st.sampled_from(["/users/{id}", None])),
        "query_names": draw(st.sampled_from(["page", "page,q", ",".join(f"n{i:02}" for i in range(20)), None])),
        "response_source": draw(st.sampled_from(["upstream", "apisix", None])),
        "request_content_type": draw(st.sampled_from(["application/json", "a/" + "b" * 120, None])),
        "response_content_type": draw(st.sampled_from(["application/json", None])),
        "auth_kinds": draw(st.sampled_from(["bearer", None])),
        "match_flags": draw(st.sampled_from(["loose-match", None])),
        "downstream_out_app_bytes": draw(st.sampled_from([-1, 0, 1, 3, 4, 17, 1 << 45])),
    }


spoken_batches = st.lists(spoken_rows(), min_size=1, max_size=12).map(table)
