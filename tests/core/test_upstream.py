"""The upstream leg of the join, case by case."""

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.records import Confidence, Role, RowKind, SnapshotKind
from apicost.core.upstream import Attempts, UpstreamSettings, UpstreamState, attempts_of, attribute_upstream

MS = 1_000_000
BACKEND = (0, 0xFFFF_0A00_0001, 8080)  # 10.0.0.1:8080
LATER = 10_000_000 * MS
HEADER = 52  # IPv4 and TCP with timestamps


def snapshot(flow, turn, kind, counts, times=(0, 0, 0, 0), born=None, peer=BACKEND, flags=0):
    """One FLOW row. counts: (in_wire, out_wire, in_payload, out_payload, in_packets, out_packets), cumulative.

    times: first and last payload out, first and last in, in ms.
    """
    row = {c.name: 0 for c in records.FLOW}
    names = ("in_wire_bytes", "out_wire_bytes", "in_payload_bytes", "out_payload_bytes", "in_packets", "out_packets")
    row.update(zip(names, counts, strict=True))
    stages = ("request_first", "request_last", "response_first", "response_last")
    row.update({f"{s}_mono_ns": int(t * MS) for s, t in zip(stages, times, strict=True)})
    known = [t for t in times if t]
    row.update(
        flow=flow,
        turn=turn,
        kind=kind,
        role=Role.UPSTREAM,
        protocol=6,
        born_mono_ns=int((born if born is not None else min(known)) * MS),
        last_mono_ns=int(max(known or [born]) * MS),
        peer_hi=peer[0],
        peer_lo=peer[1],
        peer_port=peer[2],
        out_tcp_flags=flags,
    )
    return row


def flow_table(*rows):
    return pa.Table.from_pylist(list(rows), schema=records.schema(records.FLOW))


def attempt(line_id, sent, received, access, log, *, try_no=0, n_tries=1, peer=BACKEND, pid=7, **more):
    """One attempt; times in ms."""
    row = {
        "line_id": line_id,
        "try_no": try_no,
        "n_tries": n_tries,
        "addr_hi": peer[0],
        "addr_lo": peer[1],
        "port": peer[2],
        "sent_bytes": sent,
        "received_bytes": received,
        "status": 200,
        "access_mono_ns": int(access * MS),
        "header_mono_ns": int(log * MS),
        "log_mono_ns": int(log * MS),
        "connect_ms": 0,
        "response_ms": int(log - access),
        "worker_pid": pid,
        "tls": False,
    }
    return row | more


def attempt_batch(*rows):
    blank = Attempts.empty()
    if not rows:
        return blank
    return Attempts(**{n: np.array([r[n] for r in rows], getattr(blank, n).dtype) for n in rows[0]})


def run(snapshots, attempts, *, final=True, state=None, now=LATER, settings=None):
    return attribute_upstream(
        state or UpstreamState(),
        flow_table(*snapshots),
        attempt_batch(*attempts),
        now_mono_ns=now,
        settings=settings or UpstreamSettings(),
        final=final,
    )


def total(result, name):
    return int(getattr(result.settled, name).sum() + getattr(result.parts, name).sum())


def test_an_attempt_takes_the_turn_with_its_bytes():
    """Backend, payload both ways and time name the turn; its wire bytes are the attempt's."""
    result = run(
        [
            snapshot(1, 0, SnapshotKind.TURN, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12)),
            snapshot(1, 1, SnapshotKind.CLOSED, (1500, 456, 1292, 248, 4, 4), (20, 20, 22, 22)),
        ],
        [attempt(71, 148, 796, 19, 23), attempt(70, 100, 496, 9, 13)],
    )
    settled = result.settled
    assert settled.line_id.tolist() == [70, 71]
    assert settled.flow.tolist() == [1, 1]
    assert settled.in_wire_bytes.tolist() == [600, 900]
    assert settled.out_wire_bytes.tolist() == [204, 252]
    assert settled.confidence.tolist() == [Confidence.EXACT] * 2
    assert len(result.parts) == 0


def test_a_turn_without_an_attempt_is_unattributed():
    """What no attempt claims is a part of its own, never dropped and never spread."""
    result = run([snapshot(1, 0, SnapshotKind.CLOSED, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12))], [])
    assert result.parts.kind.tolist() == [RowKind.UNATTRIBUTED]
    assert result.parts.in_wire_bytes.tolist() == [600]
    assert result.parts.line_id.tolist() == [-1]


def test_an_attempt_without_a_flow_has_no_wire_bytes():
    """Where the probe saw no flow, the attempt is app-only with counters of zero."""
    result = run([], [attempt(70, 100, 496, 9, 13)])
    assert result.settled.confidence.tolist() == [Confidence.APP_ONLY]
    assert result.settled.flow.tolist() == [0]
    assert result.settled.in_wire_bytes.tolist() == [0]


def test_tries_of_a_line_become_attempts():
    """Each try of a line is an attempt with its own backend and bytes; a name that is no address is 0."""
    columns = {
        "worker_pid": [5, 6, 7],
        "access_mono_ns": [1, 2, 3],
        "header_mono_ns": [4, 5, -1],
        "log_mono_ns": [7, 8, 9],
        "upstream_scheme": ["http", "https", None],
        "attempt_addr": [["10.0.0.1:80", "[2001:db8::1]:443"], ["unix:/run/b.sock"], []],
        "attempt_status": [[502, 200], [200], []],
        "attempt_sent_bytes": [[0, 5], [6], []],
        "attempt_received_bytes": [[0], [7], []],
        "attempt_connect_ms": [[-1, 2], [3], []],
        "attempt_response_ms": [[1, 2], [3], []],
    }
    blank = pa.Table.from_pylist([{}] * 3, schema=records.schema(records.LINE))
    for name, values in columns.items():
        field = blank.schema.field(name)
        array = pa.array(values, field.type.value_type if name == "upstream_scheme" else field.type)
        array = array.dictionary_encode() if name == "upstream_scheme" else array
        blank = blank.set_column(blank.schema.get_field_index(name), field, array)
    found = attempts_of(blank, np.array([100, 200, 300]))
    assert found.line_id.tolist() == [100, 100, 200]
    assert found.try_no.tolist() == [0, 1, 0]
    assert found.n_tries.tolist() == [2, 2, 1]
    assert found.addr_hi.tolist() == [0, 0x20010DB8_00000000, 0]
    assert found.addr_lo.tolist() == [0xFFFF_0A00_0001, 1, 0]
    assert found.port.tolist() == [80, 443, 0]
    assert found.sent_bytes.tolist() == [0, 5, 6]
    assert found.received_bytes.tolist() == [0, -1, 7]
    assert found.worker_pid.tolist() == [5, 5, 6]
    assert found.tls.tolist() == [False, False, True]
