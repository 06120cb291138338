"""What the probe counts, against traffic whose every number is known."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from apicost.commands import probe as command
from apicost.core import records
from apicost.core.records import Role, SnapshotKind
from apicost.ingest import probe as probing
from apicost.ingest.probe import Options, Probe
from tests.kernel import lab

pytestmark = pytest.mark.kernel

# (bytes up, bytes down) of 23 requests: none, one, around a segment, around the loopback's 64 KiB.
WORKLOAD = [
    (0, 1), (1, 0), (1, 1), (10, 100), (100, 10), (500, 1_447), (600, 1_448), (700, 1_449), (0, 5_000), (5_000, 0),
    (1, 20_000), (20_000, 1), (3, 30_000), (40_000, 4), (5, 65_000), (65_536, 6), (0, 65_537), (70_000, 70_000),
    (123, 456), (1_000, 100_000), (200_000, 2_000), (300_000, 300_000), (7, 7),
]  # fmt: skip
COUNTERS = command.COUNTERS


def connect(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=20)


def flows(rows: list[dict]) -> list[dict]:
    """The latest snapshot of each flow that a sweep saw."""
    return list({row["flow"]: row for row in rows if row["kind"] != SnapshotKind.TURN}.values())


def turns(rows: list[dict]) -> list[dict]:
    """Each turn's own share, by the command's arithmetic."""
    printer = command.Printer(0)
    batch = records.schema(records.FLOW).empty_table().from_pylist(rows, schema=records.schema(records.FLOW))
    return [item for item in [*printer.feed(batch), *printer.finish()] if item["type"] == "turn"]


@pytest.mark.parametrize(("host", "headers"), [("127.0.0.1", 20), ("::1", 40)], ids=["ipv4", "ipv6"])
def test_every_number_of_a_known_workload_is_right(folder, host, headers):
    """23 requests on one kept-alive connection: payload by turn, wire bytes, packets, flags, TTL, times."""
    began = time.monotonic_ns()
    with lab.server(folder, host) as port, Probe.open(Options(cgroup=folder)) as probe:
        with connect(host, port) as sock:
            sent = [lab.ask(sock, *sizes) for sizes in WORKLOAD]
            client_port = sock.getsockname()[1]
        time.sleep(0.3)
        rows = probe.read(final=True).to_pylist()
        losses = probe.losses()
    (flow,) = flows(rows)
    assert [(t["in_payload_bytes"], t["out_payload_bytes"]) for t in turns(rows)] == _by_turn(sent)
    assert flow["in_payload_bytes"] == sum(up for up, _ in sent)
    assert flow["out_payload_bytes"] == sum(down for _, down in sent)
    # Every segment has IP and TCP headers and a time stamp (12 B); SYN and SYN-ACK 8 B of options more.
    for way in ("in", "out"):
        per_packet = headers + 20 + 12
        assert flow[f"{way}_wire_bytes"] == flow[f"{way}_payload_bytes"] + flow[f"{way}_packets"] * per_packet + 8
        assert flow[f"{way}_resent_bytes"] == flow[f"{way}_resent_packets"] == 0
        assert flow[f"{way}_tcp_flags"] & 0x1B == 0x1B, "FIN, SYN, PSH and ACK were seen"
    assert (flow["role"], flow["protocol"], flow["kind"]) == (Role.DOWNSTREAM, 6, SnapshotKind.CLOSED)
    assert (flow["local_port"], flow["peer_port"]) == (port, client_port)
    local = command.endpoint(flow["local_hi"], flow["local_lo"], 1)
    assert local == (f"[{host}]:1" if ":" in host else f"{host}:1")
    assert (flow["ttl_min"], flow["ttl_max"]) == (64, 64)
    assert flow["srtt_us"] > 0
    assert began < flow["born_mono_ns"] < flow["last_mono_ns"] < time.monotonic_ns()
    assert not any(losses[name] for name in losses if name.endswith(("_bytes", "_lost", "_packets")))


def _by_turn(sent: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A request without an answer opens no turn after it: the next one joins it."""
    expected, up = [], 0
    for more, down in sent:
        up += more
        if down:
            expected.append((up, down))
            up = 0
    return [*expected, (up, 0)] if up else expected


def test_a_turn_has_the_times_of_its_own_payload(folder):
    """Request and response times of each turn lie in order, and between the client's own."""
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder)) as probe:
        with connect("127.0.0.1", port) as sock:
            spans = []
            for _ in range(5):
                start = time.monotonic_ns()
                lab.ask(sock, 50_000, 50_000)
                spans.append((start, time.monotonic_ns()))
                time.sleep(0.02)
        time.sleep(0.3)
        rows = probe.read(final=True).to_pylist()
    moments = ("request_first_mono_ns", "request_last_mono_ns", "response_first_mono_ns", "response_last_mono_ns")
    assert [row["turn"] for row in rows] == [0, 1, 2, 3, 4]
    for row, (start, end) in zip(rows, spans, strict=True):
        times = [row[name] for name in moments]
        assert times == sorted(times)
        assert start < times[0] and times[-1] < end


def test_the_gateways_own_connections_are_upstream(folder):
    """A connection that the cgroup opens is upstream, its requests go out, and its peer may be control."""
    client = (
        "import socket,sys; s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n"
        "for n in (10,20,30):\n"
        "  s.sendall(b'%d %d\\n'%(n,n)+b'y'*n)\n"
        "  while n: n-=len(s.recv(n))\n"
    )
    with lab.server(None) as port, Probe.open(Options(cgroup=folder, control_ports=(port,))) as control:
        with Probe.open(Options(cgroup=folder)) as probe:
            process = lab.start([sys.executable, "-c", client, str(port)], folder)
            assert process.wait(20) == 0
            time.sleep(0.3)
            rows = probe.read(final=True).to_pylist()
        assert {row["role"] for row in control.read(final=True).to_pylist()} == {Role.CONTROL}
    assert {row["role"] for row in rows} == {Role.UPSTREAM}
    assert [(t["out_payload_bytes"], t["in_payload_bytes"]) for t in turns(rows)] == [(16, 10), (26, 20), (36, 30)]


def test_both_ends_of_a_connection_count_the_same(folder):
    """What goes out of one socket of the cgroup comes into the other, packet for packet."""
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder)) as probe:
        code = "import socket,sys; s=socket.create_connection(('127.0.0.1',int(sys.argv[1])));"
        code += "s.sendall(b'100000 400000\\n'+b'y'*100000); n=400000\nwhile n: n-=len(s.recv(n))"
        assert lab.start([sys.executable, "-c", code, str(port)], folder).wait(20) == 0
        time.sleep(0.3)
        one, other = flows(probe.read(final=True).to_pylist())
    assert {one["role"], other["role"]} == {Role.UPSTREAM, Role.DOWNSTREAM}
    for name in ("wire_bytes", "payload_bytes", "packets"):
        assert (one[f"in_{name}"], one[f"out_{name}"]) == (other[f"out_{name}"], other[f"in_{name}"])


def test_a_connection_older_than_the_probe_is_counted_from_then_on(folder):
    """Its side is told by the gateway's listening port, and its turns are those after attaching."""
    with lab.server(folder) as port, connect("127.0.0.1", port) as sock:
        lab.ask(sock, 5, 5)
        with Probe.open(Options(cgroup=folder)) as probe:
            sent = [lab.ask(sock, up, down) for up, down in ((10, 20), (30, 40))]
            rows = probe.read(final=True).to_pylist()
    assert [(t["in_payload_bytes"], t["out_payload_bytes"]) for t in turns(rows)] == sent
    (flow,) = flows(rows)
    assert (flow["role"], flow["kind"]) == (Role.DOWNSTREAM, SnapshotKind.OPEN)


def test_a_closed_flow_is_reported_closed_once(folder):
    """However often the probe is read, a flow ends with one snapshot that has its final totals."""
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder, sweep_s=0.05)) as probe:
        seen = []
        for _ in range(40):
            with connect("127.0.0.1", port) as sock:
                lab.ask(sock, 10, 1_000)
            seen += probe.read().to_pylist()
        assert lab.until(lambda: seen.extend(probe.read().to_pylist()) or probe.losses()["map_used"] == 0)
        seen += probe.read(final=True).to_pylist()
    closed = [row["flow"] for row in seen if row["kind"] == SnapshotKind.CLOSED]
    assert len(closed) == len(set(closed)) == 40
    assert all(row["out_payload_bytes"] == 1_000 for row in seen if row["kind"] == SnapshotKind.CLOSED)
    assert {row["flow"] for row in seen} == set(closed)


def _seated(probe: Probe) -> set[int]:
    """Flows that have a seat, by socket cookie."""
    rows = probe._seats._rows
    return set(rows["flow"][rows["sock"] != 0].tolist())


def test_connections_are_seated(folder):
    """Of 50 connections at once nearly all are found by their socket's address; the others by their cookie, and
    what is counted is the same."""
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder)) as probe, contextlib.ExitStack() as stack:
        for number in range(50):
            lab.ask(stack.enter_context(connect("127.0.0.1", port)), number, 1_000)
        seated = _seated(probe)
        open_flows = flows(probe.read(final=True).to_pylist())
    assert len(seated) >= 40
    assert seated <= {flow["flow"] for flow in open_flows}
    assert sorted(flow["in_payload_bytes"] - len(f"{number} 1000\n") for number, flow in enumerate(
        sorted(open_flows, key=lambda flow: flow["in_payload_bytes"])
    )) == list(range(50))  # fmt: skip


def test_a_socket_at_the_address_of_a_closed_one_is_another_flow(folder):
    """300 connections one after the other, most in the memory of the one before, unread meanwhile: each is a flow
    of its own with its own bytes, closed, and the seats are free again."""
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder)) as probe:
        places = set()
        for number in range(300):
            with connect("127.0.0.1", port) as sock:
                lab.ask(sock, 10, 1_000 + number)
                rows = probe._seats._rows
                places |= set(rows["sock"][rows["sock"] != 0].tolist())
        seen = []
        assert lab.until(
            lambda: (
                seen.extend(probe.read(int(time.monotonic_ns()) + 10**9).to_pylist()) or not probe.losses()["map_used"]
            )
        )
        assert not _seated(probe)
        assert not any(probe.losses()[f"overflow_{way}_bytes"] for way in ("in", "out"))
    assert len(places) < 250, "no socket came back at an address: the test shows nothing"
    closed = [row for row in seen if row["kind"] == SnapshotKind.CLOSED]
    assert sorted(row["out_payload_bytes"] for row in closed) == [1_000 + number for number in range(300)]
    assert len({row["flow"] for row in closed}) == 300


def test_a_seat_given_up_for_silence_is_reported_with_all_its_bytes(folder, monkeypatch):
    """An old connection that was silent for too long closes with what it had; what it says later is counted anew."""
    monkeypatch.setattr(probing, "UNWATCHED_IDLE_NS", 0)
    with lab.server(folder) as port, connect("127.0.0.1", port) as sock:
        lab.ask(sock, 5, 5)
        with Probe.open(Options(cgroup=folder, sweep_s=0)) as probe:
            first = lab.ask(sock, 10, 2_000)
            time.sleep(0.05)
            assert len(_seated(probe)) == 1
            probe.read()  # finds it silent
            assert not _seated(probe)
            (closed,) = flows(probe.read().to_pylist())
            assert closed["kind"] == SnapshotKind.CLOSED
            second = lab.ask(sock, 20, 3_000)
            time.sleep(0.05)
            assert len(_seated(probe)) == 1
            probe.read()
            (again,) = flows(probe.read().to_pylist())
    assert (closed["in_payload_bytes"], closed["out_payload_bytes"]) == first
    assert (again["in_payload_bytes"], again["out_payload_bytes"]) == second


@pytest.mark.parametrize(("host", "extra"), [("127.0.0.1", 4), ("::1", 8)], ids=["ip options", "ipv6 extensions"])
def test_options_and_extension_headers_are_counted_as_headers(folder, host, extra):
    """IP options and a destination options header lengthen every packet and leave the payload as it is."""
    with lab.server(folder, host) as port, Probe.open(Options(cgroup=folder)) as probe:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as sock:
            if extra == 4:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x00")
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, b"\0\0\1\4\0\0\0\0")
            sock.connect((host, port))
            sent = [lab.ask(sock, up, 100) for up in (10, 2_000, 0)]
        time.sleep(0.3)
        (flow,) = flows(probe.read(final=True).to_pylist())
    assert flow["in_payload_bytes"] == sum(up for up, _ in sent)
    headers = (20 if extra == 4 else 40) + 32 + extra
    assert flow["in_wire_bytes"] == flow["in_payload_bytes"] + flow["in_packets"] * headers + 8


def test_udp_is_counted_by_peer(folder):
    """Datagrams of one socket are apart by peer; those to port 53 are the gateway's own."""
    echo = (
        "import socket; s=socket.socket(2,2); s.bind(('127.0.0.1',0)); print(s.getsockname()[1],flush=True)\n"
        "while True:\n  d,a=s.recvfrom(65536); s.sendto(d+d,a)\n"
    )
    process = lab.start([sys.executable, "-c", echo], folder, stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())
        with Probe.open(Options(cgroup=folder, gateway_ports=(port,))) as probe:
            peers = {}
            for size in (10, 1_000):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(5)
                    for _ in range(3):
                        sock.sendto(b"u" * size, ("127.0.0.1", port))
                        sock.recv(65536)
                    peers[sock.getsockname()[1]] = size
            rows = flows(probe.read(final=True).to_pylist())
    finally:
        lab.stop(process)
    assert {row["peer_port"]: row["in_payload_bytes"] // 3 for row in rows} == peers
    for row in rows:
        assert (row["role"], row["protocol"], row["turn"], row["in_packets"]) == (Role.DOWNSTREAM, 17, 0, 3)
        assert row["in_wire_bytes"] == row["in_payload_bytes"] + 3 * 28
        assert row["out_wire_bytes"] == 2 * row["in_payload_bytes"] + 3 * 28
        assert row["flow"] >> 63


def _sniff(port: int) -> socket.socket:
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sniffer.bind(("lo", 0))
    sniffer.settimeout(5)
    return sniffer


def test_payload_sent_again_is_resent_and_opens_no_turn(folder):
    """A segment that arrives a second time, after the answer, counts as wire bytes and as nothing new."""
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder)) as probe, _sniff(port) as sniffer:
        with connect("127.0.0.1", port) as sock:
            lab.ask(sock, 321, 10)
            while True:
                frame = sniffer.recv(70_000)
                if len(frame) > 321 and b"321 10\n" in frame and struct.unpack_from("!H", frame, 36)[0] == port:
                    break
            sniffer.send(frame)
            time.sleep(0.1)
            lab.ask(sock, 5, 10)
        time.sleep(0.3)
        rows = probe.read(final=True).to_pylist()
    (flow,) = flows(rows)
    assert (flow["in_resent_bytes"], flow["in_resent_packets"]) == (321 + 7, 1)
    assert flow["in_payload_bytes"] == 321 + 7 + 5 + 5
    assert len(turns(rows)) == 2
    assert flow["in_wire_bytes"] == flow["in_payload_bytes"] + flow["in_resent_bytes"] + 52 * flow["in_packets"] + 8


def _checksum(data: bytes) -> int:
    words = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~(words % 0xFFFF) & 0xFFFF


def test_a_handshake_that_comes_to_nothing_is_still_counted(folder):
    """SYN, SYN-ACK and the reset after it are the listener's packets and come out as a flow without payload."""
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder)) as probe:
        source, target = socket.inet_aton("127.0.0.9"), socket.inet_aton("127.0.0.1")
        syn = struct.pack("!HHIIBBHHH", 40_001, port, 7, 0, 5 << 4, 0x02, 1_000, 0, 0)
        pseudo = source + target + struct.pack("!BBH", 0, 6, len(syn))
        syn = syn[:16] + struct.pack("!H", _checksum(pseudo + syn)) + syn[18:]
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 61, 6, 0, source, target)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(ip + syn, ("127.0.0.1", 0))
        time.sleep(0.3)
        assert probe.read(final=False).num_rows == 0, "it may yet become a connection"
        (flow,) = flows(probe.read(final=True).to_pylist())
    assert command.endpoint(flow["peer_hi"], flow["peer_lo"], flow["peer_port"]) == "127.0.0.9:40001"
    assert (flow["in_packets"], flow["in_wire_bytes"]) == (2, 80), "SYN, and the reset for the SYN-ACK"
    assert (flow["out_packets"], flow["out_wire_bytes"]) == (1, 44)
    assert (flow["role"], flow["in_payload_bytes"], flow["ttl_min"]) == (Role.DOWNSTREAM, 0, 61)


def test_packets_to_time_wait_sockets_are_known_to_be_unseen(folder):
    """When the gateway closes first and the peer's FIN comes later, that FIN is not seen; the loss is counted."""
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder)) as probe:
        with connect("127.0.0.1", port) as sock:
            lab.ask(sock, 5, 5)
            sock.sendall(b"0 -1\n")
            assert sock.recv(1) == b""
            time.sleep(0.4)
        time.sleep(0.1)
        (flow,) = flows(probe.read(final=True).to_pylist())
        losses = probe.losses()
    assert flow["kind"] == SnapshotKind.CLOSED
    assert flow["out_tcp_flags"] & lab.FIN and not flow["in_tcp_flags"] & lab.FIN
    assert losses["timewait_closes"] == 1


def test_the_command_prints_a_partition(folder):
    """`apicost probe --json`: the shapes that scripts rely on; turns add up to flows, flows to totals."""
    with lab.server(folder) as port:
        process = subprocess.Popen(
            [sys.executable, "-m", "apicost.cli", "probe", "--cgroup", str(folder), "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=lab.ROOT,
        )  # fmt: skip
        assert "attached" in process.stderr.readline()
        with connect("127.0.0.1", port) as open_sock:
            lab.ask(open_sock, 1, 1)
            with connect("127.0.0.1", port) as sock:
                for sizes in WORKLOAD:
                    lab.ask(sock, *sizes)
            time.sleep(0.2)
            process.terminate()
            out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    items = [json.loads(line) for line in out.splitlines()]
    kinds = {kind: [item for item in items if item["type"] == kind] for kind in ("turn", "flow", "totals")}
    assert list(kinds["turn"][0]) == [
        "type", "flow", "seq", "role", "local", "peer", "first_unix_ns", "last_unix_ns", *COUNTERS,
    ]  # fmt: skip
    assert list(kinds["flow"][0]) == [
        "type", "flow", "role", "protocol", "local", "peer", "closed", "ttl_min", "ttl_max",
        "retransmitted_segments", "srtt_us", *COUNTERS,
    ]  # fmt: skip
    (total,) = kinds["totals"]
    assert list(total) == ["type", "flows", "turns", *COUNTERS, "overflow_bytes", "ring_lost"]
    assert items[-1] is total
    assert (total["flows"], total["overflow_bytes"], total["ring_lost"]) == (2, 0, 0)
    assert total["turns"] == len(kinds["turn"])
    assert sorted(flow["closed"] for flow in kinds["flow"]) == [False, True]
    for name in COUNTERS:
        assert total[name] == sum(flow[name] for flow in kinds["flow"])
        for flow in kinds["flow"]:
            assert flow[name] == sum(t[name] for t in kinds["turn"] if t["flow"] == flow["flow"])
    assert all(abs(turn["first_unix_ns"] - time.time_ns()) < 60e9 for turn in kinds["turn"])


def test_the_command_stops_by_itself(folder):
    """`--seconds` ends it, and the totals come last even without traffic."""
    done = lab.run(
        sys.executable, "-m", "apicost.cli", "probe", "--cgroup", str(folder), "--seconds", "0.2", "--json",
        cwd=lab.ROOT,
    )  # fmt: skip
    assert json.loads(done.stdout)["flows"] == 0


def _drop_some(device: str, share: float) -> int:
    """An XDP program on a device that drops a share of what comes in; returns the link."""
    from apicost.ingest import bpfsys

    code = struct.pack("<BBhi", 0x85, 0, 0, 7)  # call get_prandom_u32
    code += struct.pack("<BBhi", 0xBC, 0x00, 0, 0)  # w0 = w0
    code += struct.pack("<BBhi", 0xB7, 1, 0, int(share * (1 << 31)))  # r1 = share
    code += struct.pack("<BBhi", 0x57, 0, 0, 0x7FFFFFFF)  # r0 &= 2**31 - 1
    code += struct.pack("<BBhi", 0x2D, 0x01, 2, 0)  # if r1 > r0 goto drop
    code += struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # pass
    code += struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # drop
    import ctypes

    text, terms = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    attr = bpfsys.attributes("IIQQIIQ", 6, len(code) // 8, ctypes.addressof(text), ctypes.addressof(terms), 0, 0, 0)
    program = bpfsys.bpf(bpfsys.PROG_LOAD, attr)
    try:
        return bpfsys.bpf(bpfsys.LINK_CREATE, bpfsys.attributes("IIII", program, socket.if_nametoindex(device), 37, 2))
    finally:
        os.close(program)


@pytest.mark.parametrize("lossy", ["near", "far"])
def test_on_a_lossy_line_payload_is_the_stream_and_wire_is_the_wire(folder, tools, lossy):
    """With 3 % of the packets lost on either side: payload is what the applications sent and received, resent
    payload is apart, and wire bytes are what a capture at the gateway shows."""
    tools("ip", "ethtool", "tcpdump")
    with lab.wire() as wire, lab.server(folder, wire.near_ipv4, wire.near) as port:
        side = (wire.near, wire.near_device) if lossy == "near" else (wire.far, wire.far_device)
        with (
            Probe.open(Options(cgroup=folder)) as probe,
            lab.capture(wire.near, wire.near_device, f"tcp port {port}") as captured,
        ):
            with lab.inside(wire.far):
                sock = connect(wire.near_ipv4, port)
            with lab.inside(side[0]):
                link = _drop_some(side[1], 0.03)
            with sock:
                sent = [lab.ask(sock, 400_000, 400_000) for _ in range(2)]
                os.close(link)  # a lost FIN would keep the connection for a while
                lab.ask(sock, 1, 1)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
            time.sleep(0.3)
            captured.finish()
            rows = probe.read(final=True).to_pylist()
            (uses,) = lab.connections(captured.packets(), port).values()
    (seen,) = uses
    assert captured.dropped == 0
    (flow,) = flows(rows)
    assert flow["in_payload_bytes"] == sum(up for up, _ in sent) + 5
    assert flow["out_payload_bytes"] == sum(down for _, down in sent) + 1
    for way in ("in", "out"):
        assert flow[f"{way}_wire_bytes"] == getattr(seen, f"{way}_wire_bytes")
        assert flow[f"{way}_packets"] == getattr(seen, f"{way}_packets")
        shown = getattr(seen, f"{way}_payload_bytes")
        assert flow[f"{way}_payload_bytes"] + flow[f"{way}_resent_bytes"] == shown
    if lossy == "far":
        assert flow["out_resent_packets"] > 5, "what got lost behind the gateway went out again"
    assert len(turns(rows)) == 3


def test_wire_bytes_equal_a_capture(tools):
    """Bulk, small, churn, uploads, aborts, TLS and HTTP/2 over IPv4 and IPv6: 0 bytes of difference, and what
    the hooks can't see is named: empty packets answered from time-wait sockets."""
    tools("ip", "ethtool", "tcpdump", "nginx", "h2load", "openssl")
    from bench.probe_wire_exact import measure

    result = measure(0.02)
    assert result["capture_dropped"] == 0
    assert result["captured_bytes"] > 10_000_000
    assert result["connections_captured"] == result["connections_probed"]
    for name in ("in_difference_bytes", "out_difference_bytes", "packets_difference", "payload_difference_bytes"):
        assert result[name] == 0, (name, result["examples"])
    assert set(result["unseen"]) <= {"time-wait", "reset"}
    unseen = result["unseen"].get("time-wait", {"payload_bytes": 0, "connections": 1, "packets": 2})
    assert unseen["payload_bytes"] == 0 and unseen["packets"] == 2 * unseen["connections"]


def test_super_packets_are_counted_as_the_wire_segments_them(folder, tools):
    """With segmentation left to the device, the sender's count and the receiver's agree with the MSS: headers of
    every segment are counted, though the stack passed 64 KiB pieces."""
    tools("ip")
    with (
        lab.wire(segment=False) as wire,
        lab.server(folder, wire.near_ipv4, wire.near) as port,
        Probe.open(Options(cgroup=folder)) as probe,
    ):
        with lab.inside(wire.far), contextlib.closing(connect(wire.near_ipv4, port)) as sock:
            up, down = lab.ask(sock, 3_000_000, 3_000_000)
        time.sleep(0.3)
        (flow,) = flows(probe.read(final=True).to_pylist())
    for way, payload in (("in", up), ("out", down)):
        assert flow[f"{way}_payload_bytes"] == payload
        packets = flow[f"{way}_packets"]
        assert packets >= np.ceil(payload / 1_448)
        headers = flow[f"{way}_wire_bytes"] - payload - flow[f"{way}_resent_bytes"]
        # On a busy machine the pair may drop or reorder some; acknowledgements then carry up to 28 B of SACK.
        assert 52 * packets + 8 <= headers <= 80 * packets + 8
