"""The client's side of the join, case by case, on flows of a few packets."""

from typing import Any

import pandas as pd
import pyarrow as pa

from apicost.core import records
from apicost.core.join.correlate import Carry, Settings, Step, correlate
from apicost.core.records import FLOW, LINE, Confidence, Role, RowKind, SnapshotKind
from tests.strategies import CLOCK, MAPPED, MS

S = 1_000 * MS
SETTINGS = Settings()
CLIENT = MAPPED | 0x0A000107
COUNTERS = records.schema(records.PART).names[4:]


def flow(turn: int, kind: SnapshotKind, at_ms: int, payload: tuple[int, int], **more: Any) -> dict[str, Any]:
    """A snapshot: two packets each way and 52 bytes of headers each, for every turn so far."""
    packets = 2 * (turn + 1)
    return {
        "flow": 7, "kind": kind, "turn": turn, "role": Role.DOWNSTREAM, "protocol": 6, "local_lo": MAPPED | 1,
        "local_port": 9080, "peer_lo": CLIENT, "peer_port": 40_000, "born_mono_ns": 1_000 * MS,
        "last_mono_ns": at_ms * MS, "request_first_mono_ns": at_ms * MS - 4 * MS,
        "request_last_mono_ns": at_ms * MS - 3 * MS, "response_first_mono_ns": at_ms * MS - 2 * MS,
        "response_last_mono_ns": at_ms * MS - MS, "in_wire_bytes": payload[0] + 52 * packets,
        "out_wire_bytes": payload[1] + 52 * packets, "in_payload_bytes": payload[0],
        "out_payload_bytes": payload[1], "in_packets": packets, "out_packets": packets, "in_tcp_flags": 0x1A,
        "out_tcp_flags": 0x1A, **more,
    }  # fmt: skip


def line(request: int, at_ms: int, app: tuple[int, int], **more: Any) -> dict[str, Any]:
    """A usage line of the flow's connection, logged at `at_ms`, its access phase 3 ms earlier."""
    log = at_ms * MS
    return {
        "worker_pid": 77, "worker_started_unix_ms": 1, "line_no": request, "log_mono_ns": log,
        "log_unix_ns": log + CLOCK.unix_ns - CLOCK.mono_ns, "access_mono_ns": log - 3 * MS, "header_mono_ns": log,
        "started_unix_ns": log - 4 * MS + CLOCK.unix_ns - CLOCK.mono_ns, "connection": 50,
        "connection_requests": request, "peer_lo": CLIENT, "peer_port": 40_000, "local_port": 9080,
        "http_version": 11, "tls_read_bytes": -1, "tls_written_bytes": -1, "method": "GET", "path": f"/{request}",
        "status": 200, "request_bytes": app[0], "response_bytes": app[1], "content_length": -1,
        "llm_prompt_tokens": -1, "llm_completion_tokens": -1, **more,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], columns: tuple[records.Column, ...]) -> pa.Table:
    arrays = []
    for column in columns:
        plain = pa.types.is_integer(column.type)
        missing: Any = 0 if plain else [] if pa.types.is_list(column.type) else None
        arrays.append(pa.array([row.get(column.name, missing) for row in rows], column.type))
    return pa.Table.from_arrays(arrays, schema=records.schema(columns))


def step(carry: Carry, flows: list[dict], lines: list[dict], now_ms: int, final: bool = False) -> Step:
    return correlate(
        carry, table(flows, FLOW), table(lines, LINE), clock=CLOCK, now_mono_ns=now_ms * MS, settings=SETTINGS,
        final=final,
    )  # fmt: skip


def rows(done: Step) -> pd.DataFrame:
    return done.exchanges.to_pandas()


def test_a_request_comes_out_when_the_next_one_is_known() -> None:
    """On a kept-alive connection a proved request is given out with the next line, the last one after the wait."""
    turns = [flow(0, SnapshotKind.TURN, 1_010, (100, 500)), flow(1, SnapshotKind.OPEN, 1_020, (150, 900))]
    first = step(Carry.empty(), turns, [line(1, 1_009, (100, 500))], 1_100)
    assert len(rows(first)) == 0
    second = step(first.carry, [], [line(2, 1_019, (50, 400))], 1_200)
    assert rows(second).line_no.tolist() == [1]
    assert rows(second).downstream_out_wire_bytes.tolist() == [500 + 104]
    third = step(second.carry, [], [], 1_019 + 10_000)
    assert rows(third).line_no.tolist() == [2]
    assert rows(third).downstream_confidence.tolist() == [Confidence.EXACT]


def test_what_follows_the_last_exchange_is_booked_to_it_as_overhead() -> None:
    """A close after the last exchange was given out becomes an OVERHEAD row with that request's identity."""
    first = step(Carry.empty(), [flow(0, SnapshotKind.OPEN, 1_010, (100, 500))], [line(1, 1_009, (100, 500))], 12_000)
    assert rows(first).kind.tolist() == [RowKind.EXCHANGE]
    closed = flow(0, SnapshotKind.CLOSED, 30_000, (100, 500), in_wire_bytes=308, in_packets=4)
    last = rows(step(first.carry, [closed], [], 60_000))
    assert last.kind.tolist() == [RowKind.OVERHEAD]
    assert (last.line_no[0], last.path[0], last.method[0]) == (1, "/1", "GET")
    assert (last.downstream_in_wire_bytes[0], last.downstream_overhead_bytes[0]) == (104, 104)


def test_bytes_of_a_lost_line_are_unattributed() -> None:
    """Where the second of three lines is lost, its turn's bytes are unattributed and the third is still exact."""
    turns = [
        flow(0, SnapshotKind.TURN, 1_010, (100, 500)),
        flow(1, SnapshotKind.TURN, 1_020, (150, 900)),
        flow(2, SnapshotKind.CLOSED, 1_030, (180, 1_000)),
    ]
    found = rows(step(Carry.empty(), turns, [line(1, 1_009, (100, 500)), line(3, 1_029, (30, 100))], 1_100, final=True))
    by_kind = found.groupby("kind")
    lost = by_kind.get_group(RowKind.UNATTRIBUTED)
    assert (lost.downstream_in_payload_bytes.sum(), lost.downstream_out_payload_bytes.sum()) == (50, 400)
    assert lost.peer_lo.tolist() == [CLIENT]
    requests = by_kind.get_group(RowKind.EXCHANGE).sort_values("line_no")
    assert requests.downstream_out_payload_bytes.tolist() == [500, 100]
    assert requests.downstream_confidence.tolist() == [Confidence.EXACT, Confidence.EXACT]


def test_an_abort_takes_what_crossed_the_wire() -> None:
    """nginx's bytes_sent counts what the client never got; the exchange has the kernel's count, not called exact."""
    closed = [flow(0, SnapshotKind.CLOSED, 1_010, (100, 2_000))]
    found = rows(step(Carry.empty(), closed, [line(1, 1_015, (100, 5_800), status=499)], 1_100, final=True))
    assert found.downstream_out_payload_bytes.tolist() == [2_000]
    assert found.downstream_out_app_bytes.tolist() == [5_800]
    assert found.downstream_confidence.tolist() == [Confidence.APPORTIONED]


def test_a_running_request_keeps_its_bytes_waiting() -> None:
    """Bytes of an open connection wait for their line while they move; when it comes it has them all."""
    carry = Carry.empty()
    for second in range(1, 60):
        done = step(carry, [flow(0, SnapshotKind.OPEN, second * 1_000 + 500, (100, second * 900))], [], second * 1_000)
        assert len(done.exchanges) == 0
        carry = done.carry
    end = [flow(0, SnapshotKind.CLOSED, 61_000, (100, 60_000))]
    found = rows(step(carry, end, [line(1, 60_999, (100, 60_000), access_mono_ns=1_500 * MS)], 61_100))
    assert found.downstream_out_payload_bytes.tolist() == [60_000]
    assert found.downstream_confidence.tolist() == [Confidence.EXACT]


def test_a_silent_open_connection_is_released_at_last() -> None:
    """After ten silent minutes the bytes of an open connection without lines are unattributed."""
    opened = [flow(0, SnapshotKind.OPEN, 2_000, (100, 900))]
    first = step(Carry.empty(), opened, [], 500_000)
    assert len(first.exchanges) == 0
    second = rows(step(first.carry, [], [], 603_000))
    assert second.kind.tolist() == [RowKind.UNATTRIBUTED]
    assert second.downstream_out_payload_bytes.tolist() == [900]


def test_a_line_after_its_bytes_were_given_away_is_app_only() -> None:
    """A line that comes after its flow was settled as unattributed has app bytes only: nothing counts twice."""
    closed = [flow(0, SnapshotKind.CLOSED, 1_010, (100, 500))]
    first = step(Carry.empty(), closed, [], 60_000)
    assert rows(first).kind.tolist() == [RowKind.UNATTRIBUTED]
    found = rows(step(first.carry, [], [line(1, 1_009, (100, 500))], 60_000))
    assert found.downstream_confidence.tolist() == [Confidence.APP_ONLY]
    assert found.downstream_in_wire_bytes.tolist() == [0]


def test_control_traffic_and_udp_are_unattributed_with_their_role() -> None:
    """Flows that carry no request come out without waiting for a line, with the role they have."""
    others = [
        flow(0, SnapshotKind.CLOSED, 1_010, (10, 20), flow=8, role=Role.UPSTREAM, peer_port=2379, local_port=1),
        flow(0, SnapshotKind.CLOSED, 1_010, (30, 40), flow=9, role=Role.UNKNOWN, protocol=17, peer_port=53),
    ]
    found = rows(step(Carry.empty(), others, [], 12_000)).sort_values("downstream_flow")
    assert found.role.tolist() == [Role.CONTROL, Role.UNKNOWN]
    assert (found.kind == RowKind.UNATTRIBUTED).all()


def test_a_cookie_whose_counters_begin_again_is_another_flow() -> None:
    """After the probe was loaded anew, the same cookie with a later birth counts from zero and nothing is lost."""
    first = step(Carry.empty(), [flow(0, SnapshotKind.OPEN, 1_010, (100, 500))], [], 1_100, final=True)
    again = flow(0, SnapshotKind.CLOSED, 2_010, (30, 40), born_mono_ns=2_000 * MS, in_tcp_flags=0x18)
    second = step(first.carry, [again], [], 2_100, final=True)
    assert rows(first).downstream_out_payload_bytes.tolist() == [500]
    assert rows(second).downstream_out_payload_bytes.tolist() == [40]


def test_a_connection_older_than_the_probe_is_taken_up() -> None:
    """The first line seen on an older connection is placed by its turn; those after it are proved again."""
    turns = [
        flow(0, SnapshotKind.TURN, 1_010, (100, 500), in_tcp_flags=0x18),
        flow(1, SnapshotKind.TURN, 1_020, (150, 900), in_tcp_flags=0x18),
        flow(2, SnapshotKind.CLOSED, 1_030, (180, 1_000), in_tcp_flags=0x18),
    ]
    lines = [line(8, 1_009, (100, 500)), line(9, 1_019, (50, 400)), line(10, 1_029, (30, 100))]
    found = rows(step(Carry.empty(), turns, lines, 1_100, final=True)).sort_values("line_no")
    assert found.downstream_out_payload_bytes.tolist() == [500, 400, 100]
    assert (found.downstream_confidence == Confidence.EXACT).all()


def test_sums_that_broke_are_found_again() -> None:
    """After a request whose sums don't agree the next ones are proved from its end, a body across turns included."""
    turns = [
        flow(0, SnapshotKind.TURN, 1_010, (130, 500)),  # 30 B more than the line says
        flow(1, SnapshotKind.TURN, 1_020, (190, 600)),  # answered after 60 B of the second request
        flow(2, SnapshotKind.CLOSED, 1_030, (280, 700)),  # its other 40 B, and the third request
    ]
    lines = [line(1, 1_009, (100, 500)), line(2, 1_019, (100, 100)), line(3, 1_029, (50, 100))]
    found = rows(step(Carry.empty(), turns, lines, 1_100, final=True)).sort_values("line_no")
    assert found.downstream_in_payload_bytes.tolist() == [130, 100, 50]
    assert found.downstream_confidence.tolist() == [Confidence.APPORTIONED, Confidence.EXACT, Confidence.EXACT]


def test_a_short_body_that_nginx_threw_away_is_found() -> None:
    """A discarded body behind a longer header is not in request_length; the turn shows it, and the sums are proved."""
    turns = [flow(0, SnapshotKind.TURN, 1_010, (300, 500)), flow(1, SnapshotKind.CLOSED, 1_020, (350, 900))]
    lines = [line(1, 1_009, (200, 500), status=401, content_length=100), line(2, 1_019, (50, 400))]
    found = rows(step(Carry.empty(), turns, lines, 1_100, final=True)).sort_values("line_no")
    assert found.downstream_in_payload_bytes.tolist() == [300, 50]
    assert (found.downstream_confidence == Confidence.EXACT).all()


def test_a_busy_worker_does_not_mix_up_two_lives_of_a_port() -> None:
    """A request taken up only after its client came back from the same port still gets its own flow."""
    flows = [
        flow(0, SnapshotKind.CLOSED, 1_010, (100, 500), flow=7),
        flow(0, SnapshotKind.CLOSED, 1_030, (60, 80), flow=8, born_mono_ns=1_012 * MS),
    ]
    lines = [
        line(1, 1_016, (100, 500), line_no=1, connection=50, access_mono_ns=1_013 * MS),
        line(1, 1_029, (60, 80), line_no=2, connection=51),
    ]
    found = rows(step(Carry.empty(), flows, lines, 1_100, final=True)).sort_values("line_no")
    assert found.downstream_flow.tolist() == [7, 8]
    assert found.downstream_out_payload_bytes.tolist() == [500, 80]


def test_a_repeated_snapshot_changes_nothing() -> None:
    """A closed flow's last snapshot that comes again later gives no bytes a second time."""
    closed = [flow(0, SnapshotKind.CLOSED, 1_010, (100, 500))]
    first = step(Carry.empty(), closed, [line(1, 1_009, (100, 500))], 1_100)
    assert len(rows(first)) == 1
    assert len(rows(step(first.carry, closed, [], 20_000))) == 0


def test_turns_given_out_before_a_sweep_are_not_missing_later() -> None:
    """A flow whose latest snapshot was a sweep when its turns were given out is proved on, without waiting."""
    turns = [
        flow(0, SnapshotKind.TURN, 1_010, (100, 500)),
        flow(1, SnapshotKind.TURN, 1_020, (150, 900)),
        flow(2, SnapshotKind.OPEN, 1_030, (210, 1_000)),
    ]
    lines = [line(1, 1_009, (100, 500)), line(2, 1_019, (50, 400)), line(3, 1_029, (60, 100))]
    first = step(Carry.empty(), turns, lines, 1_100)
    assert rows(first).line_no.tolist() == [1, 2]
    later = [flow(2, SnapshotKind.TURN, 1_030, (210, 1_000)), flow(3, SnapshotKind.TURN, 1_040, (260, 1_200))]
    second = step(first.carry, later, [line(4, 1_039, (50, 200)), line(5, 1_049, (50, 200))], 1_200)
    assert rows(second).line_no.tolist() == [3, 4]
    assert set(rows(second).downstream_confidence) == {Confidence.EXACT}
