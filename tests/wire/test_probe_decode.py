"""Kernel records to FLOW columns, and FLOW columns to what `apicost probe` prints."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apicost.commands import probe as command
from apicost.core import records
from apicost.core.records import Role, SnapshotKind
from apicost.ingest import wire

MAPPED = 0xFFFF00000000


def event(**fields) -> np.ndarray:
    """One flow of the kernel; dotted names reach into a direction."""
    made = np.zeros(1, wire.FLOW_EVENT)
    made["flow"], made["protocol"], made["role"] = 7, wire.TCP, Role.DOWNSTREAM
    for name, value in fields.items():
        side, _, field = name.partition("__")
        if field:
            made[side][field] = value
        else:
            made[name] = value
    return made


def test_every_column_has_its_own_field():
    """No two columns are mixed up: each field of a record has a value of its own, and each column shows it."""
    made = np.zeros(1, wire.FLOW_EVENT)
    number = iter(range(1, 200))
    for side in ("in", "out"):
        for field in wire.DIRECTION.names:
            made[side][field] = next(number)
    for field in wire.FLOW_EVENT.names:
        if field not in ("in", "out", "reserved"):
            made[field] = next(number)
    made["role"], made["protocol"] = Role.DOWNSTREAM, wire.TCP
    (row,) = wire.decode(made, SnapshotKind.TURN).to_pylist()
    for way in ("in", "out"):
        for field in ("wire_bytes", "payload_bytes", "resent_bytes", "packets", "resent_packets", "tcp_flags"):
            assert row[f"{way}_{field}"] == made[way][field][0], field
    for field in ("flow", "seq", "turn", "protocol", "local_port", "peer_port", "srtt_us"):
        assert row[field] == made[field][0]
    for field in ("local_hi", "local_lo", "peer_hi", "peer_lo"):
        assert row[field] == int(made[field][0])
    assert (row["ttl_min"], row["ttl_max"]) == (made["in"]["ttl_min"][0], made["in"]["ttl_max"][0])
    assert (row["born_mono_ns"], row["last_mono_ns"]) == (made["born_ns"][0], made["last_ns"][0])
    assert row["kind"] == SnapshotKind.TURN
    assert row["request_first_mono_ns"] == made["in"]["turn_first_ns"][0]
    assert row["response_last_mono_ns"] == made["out"]["turn_last_ns"][0]


def test_requests_go_out_on_an_upstream_flow():
    """The request's times are those of the direction that requests go in."""
    (row,) = wire.decode(event(role=Role.UPSTREAM, in__turn_first_ns=5, out__turn_first_ns=3)).to_pylist()
    assert (row["request_first_mono_ns"], row["response_first_mono_ns"]) == (3, 5)


def test_a_sweep_has_no_record_number():
    """`seq` is of ring records only: an entry keeps that of its last turn."""
    assert wire.decode(event(seq=9), SnapshotKind.OPEN).column("seq").to_pylist() == [0]


@pytest.mark.parametrize(
    ("fields", "role"),
    [
        ({"role": Role.UPSTREAM, "peer_port": 2379}, Role.CONTROL),
        ({"role": Role.UPSTREAM, "peer_port": 80, "local_port": 2379}, Role.UPSTREAM),
        ({"role": Role.DOWNSTREAM, "local_port": 2379}, Role.CONTROL),
        ({"role": Role.DOWNSTREAM, "peer_port": 2379}, Role.DOWNSTREAM),
        ({"role": Role.UPSTREAM, "peer_port": 53, "protocol": wire.UDP}, Role.CONTROL),
        ({"role": Role.UPSTREAM, "peer_port": 53}, Role.UPSTREAM),
        ({"role": Role.UNKNOWN}, Role.UNKNOWN),
    ],
)
def test_control_traffic_is_told_by_the_port_that_answers(fields, role):
    """The port of whoever answers decides, never the caller's own port, which is drawn."""
    assert wire.roles(event(**fields), (2379,)).tolist() == [role]


def test_a_udp_peer_that_comes_back_is_another_flow():
    """The kernel's key of a UDP peer repeats after it was called gone; the flow's number does not."""
    key = 1 << 63 | 12345
    first, again = event(flow=key, born_ns=1_000), event(flow=key, born_ns=2_000)
    numbers = wire.identities(np.concatenate([first, again, first])).tolist()
    assert numbers[0] == numbers[2] != numbers[1]
    assert all(number >> 63 for number in numbers)
    assert wire.identities(event(flow=12345)).tolist() == [12345]


def test_failed_handshakes_get_numbers_of_their_own():
    """They share their listener's cookie, so peer and birth tell them apart; no connection has such a number."""
    made = np.concatenate([event(peer_port=port, born_ns=5) for port in range(1, 500)])
    wire.name_handshakes(made)
    numbers = wire.identities(made).tolist()
    assert len(set(numbers)) == len(numbers)
    assert all(number >> 62 == 1 for number in numbers)


def test_an_endpoint_reads_as_people_write_it():
    """Mapped IPv4 as IPv4, IPv6 in brackets."""
    assert command.endpoint(0, MAPPED | 0x7F000001, 9080) == "127.0.0.1:9080"
    assert command.endpoint(0x20010DB8 << 32, 1, 443) == "[2001:db8::1]:443"


counts = st.lists(st.integers(0, 10**6), min_size=6, max_size=6)


@given(st.lists(st.tuples(counts, st.booleans()), min_size=1, max_size=12), st.booleans())
def test_turns_are_a_partition_of_their_flow(turns, closed):
    """Whichever ring records are lost, the turns' counters add up to the flow's, and the totals to both."""
    total = np.zeros(6, int)
    rows = []
    for number, (share, kept) in enumerate(turns):
        total += share
        last = number == len(turns) - 1
        if kept or last:
            row = wire.decode(event(turn=number), SnapshotKind.TURN).to_pylist()[0]
            row |= dict(zip(command.COUNTERS, total.tolist(), strict=True))
            if last:
                row["kind"] = SnapshotKind.CLOSED if closed else SnapshotKind.OPEN
            rows.append(row)
    schema = records.schema(records.FLOW)
    printer = command.Printer(0)
    items = list(printer.feed(schema.empty_table().from_pylist(rows, schema=schema))) + list(printer.finish())
    flows = [item for item in items if item["type"] == "flow"]
    assert [flow["closed"] for flow in flows] == [closed]
    assert len(items) - 1 == len(rows) == printer.totals["turns"]
    for name, count in zip(command.COUNTERS, total.tolist(), strict=True):
        assert sum(item[name] for item in items if item["type"] == "turn") == flows[0][name] == count
        assert printer.totals[name] == count
