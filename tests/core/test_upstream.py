"""The upstream leg of the join, case by case."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.join.upstream import Attempts, UpstreamSettings, UpstreamState, attempts_of, attribute_upstream
from apicost.core.records import Confidence, Role, RowKind, SnapshotKind

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


def test_a_refused_connection_is_an_attempt_of_its_own():
    """SYN and RST without payload are the refused try's bytes, all of them overhead; the next try has its own."""
    other = (0, 0xFFFF_0A00_0002, 8080)
    result = run(
        [
            snapshot(1, 0, SnapshotKind.OPEN, (40, 60, 0, 0, 1, 1), born=10, peer=other),
            snapshot(2, 0, SnapshotKind.CLOSED, (600, 204, 496, 100, 2, 2), (11, 11, 12, 12)),
        ],
        [
            attempt(70, 0, 0, 9, 13, try_no=0, n_tries=2, peer=other),
            attempt(70, 100, 496, 9, 13, try_no=1, n_tries=2),
        ],
    )
    settled = result.settled
    assert settled.flow.tolist() == [1, 2]
    assert (settled.in_wire_bytes + settled.out_wire_bytes).tolist() == [100, 804]
    assert settled.overhead_bytes.tolist() == [100, 0]
    assert settled.confidence.tolist() == [Confidence.EXACT] * 2


def test_the_handshake_is_counted_as_overhead():
    """SYN, SYN-ACK and acknowledgement (60, 60 and 52 B) are overhead of the flow's first attempt."""
    counts = (60 + 2 * HEADER + 496, 60 + 3 * HEADER + 100, 496, 100, 3, 4)
    result = run(
        [snapshot(1, 0, SnapshotKind.CLOSED, counts, (10, 10, 12, 12), flags=0x02)], [attempt(70, 100, 496, 9, 13)]
    )
    assert result.settled.overhead_bytes.tolist() == [172]


def test_a_websocket_takes_all_turns_of_its_flow():
    """Turns of one flow in a row whose sums are the attempt's bytes are its own, and proved by them."""
    turns = [
        snapshot(1, t, SnapshotKind.TURN if t < 4 else SnapshotKind.CLOSED, (100 * t, 90 * t, 50 * t, 40 * t, t, t),
                 (10 * t, 10 * t, 10 * t + 5, 10 * t + 5))
        for t in range(1, 5)
    ]  # fmt: skip
    for row in turns:
        row["turn"] -= 1
    result = run(turns, [attempt(70, 160, 200, 9, 60, status=101)])
    assert result.settled.in_wire_bytes.tolist() == [400]
    assert result.settled.confidence.tolist() == [Confidence.EXACT]
    assert len(result.parts) == 0


def test_a_stream_that_is_still_open_waits_for_its_line():
    """Turns at the end of an open flow wait longer than a line takes, and in bounded memory, for the end's line."""
    state, now = None, 0
    for t in range(1, 201):
        now = 1000 * t
        row = snapshot(1, t - 1, SnapshotKind.TURN, (100 * t, 90 * t, 50 * t, 40 * t, t, t),
                       (now, now, now + 5, now + 5), born=1000)  # fmt: skip
        result = run([row], [], final=False, state=state, now=(now + 100) * MS)
        assert len(result.parts) == 0
        state = result.state
    assert len(state.turns) < 40
    end = snapshot(1, 200, SnapshotKind.CLOSED, (20_100, 18_104, 10_000, 8_000, 202, 202), born=1000)
    end |= {"last_mono_ns": (now + 50) * MS}
    result = run([end], [attempt(70, 8_000, 10_000, 999, now + 49, status=101)], state=state)
    assert result.settled.confidence.tolist() == [Confidence.EXACT]
    assert total(result, "in_wire_bytes") == 20_100
    assert result.settled.in_payload_bytes.tolist() == [10_000]


def test_tls_records_are_counted_off():
    """Over TLS a turn is the attempt's when both surpluses are whole record overheads; the sums are not proved."""
    result = run(
        [
            snapshot(1, 0, SnapshotKind.TURN, (9_000, 1_000, 5_000, 700, 4, 4), (1, 1, 2, 2)),
            snapshot(1, 1, SnapshotKind.CLOSED, (9_644, 1_174, 5_540, 822, 6, 6), (10, 10, 12, 12)),
        ],
        [attempt(70, 100, 496, 9, 13, tls=True)],
    )
    assert result.settled.in_payload_bytes.tolist() == [540]
    assert result.settled.confidence.tolist() == [Confidence.ALIGNED]
    assert result.parts.in_payload_bytes.tolist() == [5_000]


def test_a_new_tls_connection_belongs_to_its_first_request():
    """Handshake turns and the first request's are one attempt's, later turns those of later attempts."""
    result = run(
        [
            snapshot(1, 0, SnapshotKind.TURN, (3_200, 700, 3_000, 517, 3, 3), (10, 10, 11, 11)),
            snapshot(1, 1, SnapshotKind.TURN, (4_500, 1_000, 4_190, 719, 5, 5), (11.5, 11.5, 12, 12)),
            snapshot(1, 2, SnapshotKind.CLOSED, (5_200, 1_300, 4_730, 841, 7, 7), (20, 20, 22, 22)),
        ],
        [attempt(70, 100, 640, 9, 13, tls=True), attempt(71, 100, 496, 19, 23, tls=True)],
    )
    assert result.settled.in_wire_bytes.tolist() == [4_500, 700]
    assert result.settled.out_wire_bytes.tolist() == [1_000, 300]


def test_an_aborted_request_takes_the_flow_that_closed_with_it():
    """Less may have left than was meant to, and more may have come than was read: the flow's end names it."""
    result = run(
        [snapshot(1, 0, SnapshotKind.CLOSED, (30_000, 300, 29_000, 100, 5, 4), (10, 10, 12, 30))],
        [attempt(70, 5_000, 8_000, 9, 30.1, status=499)],
    )
    assert result.settled.flow.tolist() == [1]
    assert result.settled.confidence.tolist() == [Confidence.ALIGNED]
    assert result.settled.in_wire_bytes.tolist() == [30_000]


def test_a_lost_record_makes_one_turn_of_two_requests():
    """Where a turn's record was lost, the attempts whose bytes sum to the merged turn share it by payload."""
    for last in (SnapshotKind.CLOSED, SnapshotKind.OPEN):
        result = run(
            [
                snapshot(1, 0, SnapshotKind.TURN, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12)),
                snapshot(1, 2, last, (2_600, 808, 2_296, 400, 6, 6), (30, 30, 32, 32)),
            ],
            [
                attempt(70, 100, 496, 9, 13),
                attempt(71, 150, 1_000, 19, 23),
                attempt(72, 150, 800, 29, 33),
                attempt(73, 150, 900, 29, 33),
            ],
        )
        settled = result.settled
        assert settled.in_payload_bytes.tolist() == [496, 1_000, 800, 0]
        assert settled.out_payload_bytes.tolist() == [100, 150, 150, 0]
        assert total(result, "in_wire_bytes") == 2_600
        assert len(result.parts) == 0


def test_a_merged_turn_that_goes_on_is_counted_once():
    """A sweep that stood for two requests moves the flow's cut by both: what comes later is only the rest."""
    first = run(
        [snapshot(1, 1, SnapshotKind.OPEN, (2_000, 604, 1_800, 300, 4, 4), (30, 30, 32, 32), born=9)],
        [attempt(71, 150, 1_000, 19, 23), attempt(72, 150, 800, 29, 33)],
    )
    assert first.settled.in_payload_bytes.tolist() == [1_000, 800]
    close = snapshot(1, 1, SnapshotKind.CLOSED, (2_052, 656, 1_800, 300, 5, 5), (30, 30, 32, 32), born=9)
    second = run([close], [], state=first.state)
    assert second.parts.kind.tolist() == [RowKind.OVERHEAD]
    assert second.parts.in_wire_bytes.tolist() == [52]
    assert second.parts.line_id.tolist() == [72]


def test_a_close_after_the_answer_is_overhead_of_the_last_line():
    """What a flow moves without payload after its attempt was settled is overhead, booked to that line."""
    settings = UpstreamSettings(flow_wait_ns=1_000 * MS)
    first = run(
        [snapshot(1, 0, SnapshotKind.OPEN, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12))],
        [attempt(70, 100, 496, 9, 13)],
        final=False,
        now=3_000 * MS,
        settings=settings,
    )
    assert first.settled.flow.tolist() == [1]
    closed = snapshot(1, 0, SnapshotKind.CLOSED, (652, 256, 496, 100, 3, 3), (10, 10, 12, 12))
    second = run([closed], [], final=False, state=first.state, now=4_000 * MS, settings=settings)
    assert second.parts.kind.tolist() == [RowKind.OVERHEAD]
    assert second.parts.line_id.tolist() == [70]
    assert (second.parts.in_wire_bytes + second.parts.out_wire_bytes).tolist() == [104]


def test_the_same_snapshots_again_change_nothing():
    """A repeated snapshot, also of a closed flow, gives no byte a second time."""
    rows = [snapshot(1, 0, SnapshotKind.CLOSED, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12))]
    first = run(rows * 2, [attempt(70, 100, 496, 9, 13)], now=20 * MS)
    second = run(rows, [], state=first.state, now=30 * MS)
    assert total(first, "in_wire_bytes") == 600
    assert len(second.settled) == 0
    assert len(second.parts) == 0


def test_a_sweep_after_the_close_adds_its_last_packets():
    """A packet that came after the close was recorded is not lost, whichever of the two arrives first."""
    rows = [
        snapshot(1, 0, SnapshotKind.CLOSED, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12)),
        snapshot(1, 0, SnapshotKind.OPEN, (652, 204, 496, 100, 3, 2), (10, 10, 12, 12)),
    ]
    for order in (rows, rows[::-1]):
        result = run(order, [attempt(70, 100, 496, 9, 13)])
        assert total(result, "in_wire_bytes") == 652
        assert len(result.state.snapshots) == 0


def test_nothing_is_settled_before_its_rivals_could_come():
    """An attempt waits a moment after its log line, then takes its turn; without one it waits `flow_wait_ns`."""
    rows = [snapshot(1, 0, SnapshotKind.CLOSED, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12))]
    tries = [attempt(70, 100, 496, 9, 13), attempt(71, 77, 77, 9, 13)]
    early = run(rows, tries, final=False, now=1_000 * MS)
    assert len(early.settled) == 0
    later = run([], [], final=False, now=2_500 * MS, state=early.state)
    assert later.settled.line_id.tolist() == [70]
    last = run([], [], final=False, now=5_100 * MS, state=later.state)
    assert last.settled.line_id.tolist() == [71]
    assert last.settled.confidence.tolist() == [Confidence.APP_ONLY]


def test_equal_requests_go_to_their_own_workers_connections():
    """Among requests of equal size, a flow that served one worker before serves no other's request."""
    rows, tries = [], []
    counts = np.array([600, 204, 496, 100, 2, 2])
    for t in range(6):  # worker 7 has flow 1, worker 8 has flow 2, one after the other
        for flow in (1, 2):
            at = 100 * t + 40 * flow
            kind = SnapshotKind.TURN
            rows.append(snapshot(flow, t, kind, tuple(counts * (t + 1)), (at, at, at + 2, at + 2), born=1))
            tries.append(attempt(10 * t + flow, 100, 496, at - 0.02, at + 3, pid=6 + flow))
    # Worker 8 is first through the access phase, worker 7 first on the wire.
    for flow, at in ((1, 1000.01), (2, 1000.02)):
        rows.append(snapshot(flow, 6, SnapshotKind.CLOSED, tuple(counts * 7), (at, at, at + 2, at + 2), born=1))
    tries += [attempt(98, 100, 496, 1000.0, 1003, pid=8), attempt(99, 100, 496, 1000.005, 1003, pid=7)]
    settled = run(rows, tries).settled
    assert settled.flow[settled.line_id == 98].tolist() == [2]
    assert settled.flow[settled.line_id == 99].tolist() == [1]


def test_a_wrong_size_or_backend_is_no_match():
    """Bytes of another size or another backend are never an attempt's, however near in time."""
    rows = [snapshot(1, 0, SnapshotKind.TURN, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12))]
    other = (0, 0xFFFF_0A00_0002, 8080)
    result = run(rows, [attempt(70, 101, 496, 9, 13), attempt(71, 100, 496, 9, 13, peer=other)])
    assert result.settled.flow.tolist() == [0, 0]
    assert result.parts.kind.tolist() == [RowKind.UNATTRIBUTED]


def test_a_last_chunk_that_nginx_did_not_read_is_aligned():
    """Where only the request's bytes are equal and the response's nearly, the turn is taken but not called exact."""
    rows = [snapshot(1, 0, SnapshotKind.TURN, (605, 204, 501, 100, 2, 2), (10, 10, 12, 12))]
    settled = run(rows, [attempt(70, 100, 496, 9, 13)]).settled
    assert settled.in_payload_bytes.tolist() == [501]
    assert settled.confidence.tolist() == [Confidence.ALIGNED]


def test_equal_bytes_seen_too_late_are_still_shared_out():
    """A request takes the turn of another like it, whose line comes late: that one gets what is left, not nothing."""
    settings = UpstreamSettings()
    counts = (304, 152, 200, 100, 2, 1)

    def seen(flow, *times):
        return [
            snapshot(flow, turn, kind, counts, times) for turn, kind in ((0, SnapshotKind.TURN), (1, SnapshotKind.OPEN))
        ]

    soon = 1_150 + settings.match_wait_ns // MS + 1
    taken = run(
        seen(1, 1_102, 1_102, 1_104, 1_104), [attempt(0, 100, 200, 1_000, 1_150)],
        final=False, now=soon * MS, settings=settings,
    )  # fmt: skip
    assert taken.settled.flow.tolist() == [1]
    late = 1_150 + settings.flow_wait_ns // MS + 1
    done = run(
        seen(2, 1_020, 1_020, 1_030, 1_030), [attempt(1, 100, 200, 1_100, 1_106)],
        final=False, state=taken.state, now=late * MS, settings=settings,
    )  # fmt: skip
    assert done.settled.flow.tolist() == [2]
    assert done.settled.confidence.tolist() == [Confidence.ALIGNED]
    assert total(taken, "in_payload_bytes") + total(done, "in_payload_bytes") == 400


def _burst(flows, *, late=0.0):
    """Requests of equal bytes, 20 us after each other on a connection each; answered 2 ms later, logged 3 ms later."""
    rows, tries = [], []
    for number, flow in enumerate(flows):
        at = 1_000 + 0.02 * number
        end = at + 2 + late
        counts = (600, 204, 496, 100, 2, 2)
        rows.append(snapshot(flow, 0, SnapshotKind.CLOSED, counts, (at + 0.004, at + 0.004, end, end), born=at))
        tries.append(attempt(number, 100, 496, at, at + 3 + 0.02 * number))
    return rows, tries


def test_a_turn_that_comes_late_pushes_nobody_from_his():
    """Where one of a burst of equal requests has to wait for its turn, each of the others takes its own at once."""
    settings = UpstreamSettings()
    flows = [11, 12, 13, 14, 15]
    rows, tries = _burst(flows)
    soon = 1_004 + settings.match_wait_ns // MS
    early = run(rows[:1] + rows[2:], tries, final=False, now=soon * MS, settings=settings)
    assert early.settled.line_id.tolist() == [0, 2, 3, 4]
    assert early.settled.flow.tolist() == [11, 13, 14, 15]
    done = run(rows[1:2], [], final=False, now=(soon + 1_000) * MS, state=early.state, settings=settings)
    assert (done.settled.line_id.tolist(), done.settled.flow.tolist()) == ([1], [12])


def test_a_burst_behind_a_turn_of_nobody_is_not_pushed():
    """A turn without a line, before a long row of equal requests, is left over itself; all others find their own."""
    flows = list(range(20, 60))
    rows, tries = _burst(flows)
    stray = snapshot(9, 0, SnapshotKind.CLOSED, (600, 204, 496, 100, 2, 2), (999.95, 999.95, 1_001, 1_001), born=999)
    result = run([stray, *rows], tries)
    assert result.settled.flow.tolist() == flows
    assert result.parts.flow.tolist() == [9]


def test_a_distant_turn_is_taken_only_when_the_wait_is_over():
    """Among equals, a turn that begins long after the access phase may be another's: it is taken last."""
    settings = UpstreamSettings()
    counts = (600, 204, 496, 100, 2, 2)
    rows = [snapshot(1, 0, SnapshotKind.CLOSED, counts, (1_050, 1_050, 1_060, 1_060), born=1)]
    tries = [attempt(0, 100, 496, 1_000, 1_100), attempt(1, 100, 496, 1_001, 1_101)]
    soon, late = 1_102 + settings.match_wait_ns // MS, 1_102 + settings.flow_wait_ns // MS
    early = run(rows, tries, final=False, now=soon * MS, settings=settings)
    assert len(early.settled) == 0
    done = run([], [], final=False, now=late * MS, state=early.state, settings=settings)
    assert done.settled.flow.tolist() == [1, 0]
    assert done.settled.confidence.tolist() == [Confidence.ALIGNED, Confidence.APP_ONLY]


def test_what_is_alone_only_because_others_chose_is_not_exact():
    """A turn that moved payload after its request was logged may be another's whose own was taken by mistake."""
    counts = (600, 204, 496, 100, 2, 2)
    rows = [
        snapshot(1, 0, SnapshotKind.CLOSED, counts, (10.01, 10.01, 12, 12), born=1),
        snapshot(2, 0, SnapshotKind.CLOSED, counts, (10.1, 10.1, 14, 14), born=1),
    ]
    settled = run(rows, [attempt(70, 100, 496, 10, 13), attempt(71, 100, 496, 10.09, 13.5)]).settled
    assert settled.flow.tolist() == [1, 2]
    assert settled.confidence.tolist() == [Confidence.ALIGNED] * 2


def unsized(line_id, access, log, **more):
    """An attempt of which the gateway counted no bytes, as ai-proxy's."""
    return attempt(line_id, -1, -1, access, log, **more)


def one_turn(flow, begin, end, **more):
    """A flow of one request of 100 B and its answer of 496 B; times in ms."""
    counts = (600, 204, 496, 100, 2, 2)
    return snapshot(flow, 0, SnapshotKind.CLOSED, counts, (begin, begin, end, end), **more)


def test_an_attempt_without_bytes_takes_what_moved_while_it_ran():
    """The only flow to its backend in its time, at most aligned: nothing proves it."""
    result = run([one_turn(1, 10, 20), one_turn(2, 30, 40)], [unsized(70, 9, 21)])
    assert (result.settled.flow.tolist(), result.settled.confidence.tolist()) == ([1], [Confidence.ALIGNED])
    assert (result.settled.in_wire_bytes.tolist(), result.parts.flow.tolist()) == ([600], [2])


def test_a_handshake_and_the_request_behind_it_are_one_attempts():
    """On a new TLS connection several turns of one flow lie in the window: all are the attempt's."""
    flow = [
        snapshot(1, 0, SnapshotKind.TURN, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12)),
        snapshot(1, 1, SnapshotKind.CLOSED, (1500, 456, 1292, 248, 4, 4), (14, 14, 20, 20)),
    ]
    settled = run(flow, [unsized(70, 9, 21, tls=True)]).settled
    assert (settled.in_wire_bytes.tolist(), settled.out_payload_bytes.tolist()) == ([1500], [248])


def test_attempts_without_bytes_at_the_same_time_get_nothing():
    """Two requests and two flows: nobody knows whose is whose, and the bytes stay unattributed."""
    result = run([one_turn(1, 10, 20), one_turn(2, 11, 19)], [unsized(70, 9, 21), unsized(71, 9, 22)])
    assert result.settled.confidence.tolist() == [Confidence.APP_ONLY] * 2
    assert sorted(result.parts.flow.tolist()) == [1, 2]


def test_one_flow_and_two_attempts_without_bytes_is_no_match():
    """The probe missed one of the two flows: the other may be either's."""
    result = run([one_turn(1, 10, 20)], [unsized(70, 9, 21), unsized(71, 15, 22)])
    assert result.settled.confidence.tolist() == [Confidence.APP_ONLY] * 2


def test_attempts_without_bytes_one_after_the_other_share_a_connection():
    """A kept connection: each has the turn of its own time."""
    flow = [
        snapshot(1, 0, SnapshotKind.TURN, (600, 204, 496, 100, 2, 2), (10, 10, 12, 12)),
        snapshot(1, 1, SnapshotKind.CLOSED, (1500, 456, 1292, 248, 4, 4), (210, 210, 220, 220)),
    ]
    settled = run(flow, [unsized(70, 9, 13), unsized(71, 209, 221)]).settled
    assert (settled.line_id.tolist(), settled.in_wire_bytes.tolist()) == ([70, 71], [600, 900])


def test_what_an_attempt_with_bytes_takes_is_not_in_question():
    """Its turn is proved by its sums; the other flow is left for the attempt without."""
    known = attempt(71, 100, 496, 9, 22)
    other = snapshot(2, 0, SnapshotKind.CLOSED, (900, 300, 700, 150, 3, 3), (11, 11, 19, 19))
    settled = run([one_turn(1, 10, 20), other], [unsized(70, 9, 21), known]).settled
    assert settled.flow.tolist() == [2, 1]
    assert settled.confidence.tolist() == [Confidence.ALIGNED, Confidence.EXACT]


def test_an_attempt_with_bytes_that_still_waits_is_a_rival():
    """Its own turn may have been lost, or merged into this one."""
    result = run([one_turn(1, 10, 20)], [unsized(70, 9, 21), attempt(71, 5_000, 9_000, 9, 22)])
    assert result.settled.confidence.tolist() == [Confidence.APP_ONLY] * 2


def test_only_turns_within_the_attempts_time_and_backend_count():
    """Too early, too late, going on behind it, or at another backend: no match."""
    elsewhere = (0, 0xFFFF_0A00_0002, 8080)
    for other in (one_turn(1, 5, 20), one_turn(1, 10, 90), one_turn(1, 80, 90), one_turn(1, 10, 20, peer=elsewhere)):
        settled = run([other], [unsized(70, 9, 21)]).settled
        assert settled.confidence.tolist() == [Confidence.APP_ONLY], other


def test_an_attempt_without_bytes_waits_for_its_rivals():
    """As long as another attempt or turn may still come, nothing is decided."""
    early = run([one_turn(1, 10, 20)], [unsized(70, 9, 21)], final=False, now=23 * MS)
    assert len(early.settled) == 0
    late = run([], [], final=False, now=21 * MS + UpstreamSettings().flow_wait_ns, state=early.state)
    assert late.settled.flow.tolist() == [1]


def test_an_attempt_that_is_decided_early_takes_no_turn_that_goes_on():
    """Where more wait than may, the oldest is decided at once: a turn that may not be over is not its to take."""
    going_on = snapshot(1, 0, SnapshotKind.OPEN, (600, 204, 496, 100, 2, 2), (10, 10, 20, 20))
    elsewhere = unsized(71, 9, 22, peer=(0, 0xFFFF_0A00_0002, 8080))
    few = UpstreamSettings(most_attempts=1)
    result = run([going_on], [unsized(70, 9, 21), elsewhere], final=False, now=23 * MS, settings=few)
    assert (result.settled.line_id.tolist(), result.settled.flow.tolist()) == ([70], [0])


BACKENDS = (BACKEND, (0, 0xFFFF_0A00_0002, 443))
SLACK_MS, LATE_MS = 0.1, 50


@settings(max_examples=60)
@given(
    flows=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 120), st.sampled_from([0, 1])), max_size=6),
    attempts=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 200), st.sampled_from([0, 1])), max_size=6),
)
def test_an_attempt_without_bytes_has_a_flow_only_where_there_is_no_choice(flows, attempts):
    """Against a plain search: one flow in the window, ended in it, and no other attempt that ran meanwhile."""
    snapshots = [
        one_turn(number, begin, begin + took, peer=BACKENDS[at]) for number, (begin, took, at) in enumerate(flows, 1)
    ]
    asked = [
        unsized(number, low, low + took, peer=BACKENDS[at], tls=bool(at))
        for number, (low, took, at) in enumerate(attempts)
    ]
    found = run(snapshots, asked).settled
    wanted = []
    for low, took, at in attempts:
        window = (low - SLACK_MS, low + took + SLACK_MS)
        here = [(n, begin, begin + t) for n, (begin, t, where) in enumerate(flows, 1) if where == at]
        inside = [turn for turn in here if window[0] <= turn[1] <= window[1]]
        alone = len(inside) == 1 and inside[0][2] <= window[1] + LATE_MS
        if alone:
            _, begin, end = inside[0]
            ran = [1 for a, t, where in attempts if where == at and a - SLACK_MS <= end and a + t + SLACK_MS >= begin]
            alone = len(ran) == 1
        wanted.append(inside[0][0] if alone else 0)
    assert found.flow.tolist() == wanted


def test_a_new_connection_belongs_to_whoever_opened_it():
    """A busy event loop opens connections long before it writes to them, in any order: the SYN tells whose they are."""
    counts = (800, 324, 496, 100, 4, 4)
    rows, tries = [], []
    for number in range(4):
        opened, at = 1_000 + 0.03 * number, 1_009 - 0.01 * number
        kind, times = SnapshotKind.CLOSED, (at, at, at + 0.1, at + 0.1)
        rows.append(snapshot(31 + number, 0, kind, counts, times, born=opened + 0.01, flags=0x02))
        tries.append(attempt(number, 100, 496, opened, 1_012 + 0.01 * number))
    settled = run(rows, tries).settled
    assert settled.flow.tolist() == [31, 32, 33, 34]
