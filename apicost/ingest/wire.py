"""The kernel's records as columns.

Rules of this file:
- DIRECTION, FLOW_EVENT, HANDSHAKE_KEY, TURN_BATCH and SLOT state the layout of bpf/flow_events.h;
  tests/wire/test_layout.py compiles the header and compares.
- Decoding is whole-column: no Python object per record.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.records import Role, SnapshotKind

WIRE_VERSION = 3

DIRECTION = np.dtype(
    [
        ("wire_bytes", "<u8"),
        ("packets", "<u8"),
        ("payload_bytes", "<u8"),
        ("resent_bytes", "<u8"),
        ("turn_first_ns", "<u8"),
        ("turn_last_ns", "<u8"),
        ("resent_packets", "<u4"),
        ("sequence_base", "<u4"),
        ("hole_bytes", "<u4"),
        ("state", "u1"),
        ("tcp_flags", "u1"),
        ("ttl_min", "u1"),
        ("ttl_max", "u1"),
    ]
)

_RECORD = [
    ("last_ns", "<u8"),
    ("flow", "<u8"),
    ("seq", "<u8"),
    ("local_hi", ">u8"),
    ("local_lo", ">u8"),
    ("peer_hi", ">u8"),
    ("peer_lo", ">u8"),
    ("in", DIRECTION),
    ("out", DIRECTION),
    ("local_port", "<u2"),
    ("peer_port", "<u2"),
    ("protocol", "u1"),
    ("role", "u1"),
    ("kind", "u1"),
    ("watched", "u1"),
    ("turn", "<u4"),
    ("srtt_us", "<u4"),
    ("born_ns", "<u8"),
]
# A finished turn: the flow's first part, without the kernel's address of the socket.
TURN_EVENT = np.dtype(_RECORD)
# Where a CPU gathers them, and how many go to the ring together.
TURNS_TOGETHER = 16
BATCH_SHIFT = 40  # `seq` of a turn: its batch above this bit, its number in that batch below it, from 1
TURN_BATCH = np.dtype(
    [
        ("busy", "<u8"),
        ("next", "<u8"),
        ("sent", "<u8"),
        ("unused", "<u8", (5,)),
        ("turns", TURN_EVENT, (TURNS_TOGETHER,)),
    ]
)
FLOW_EVENT = np.dtype(
    [("sock", "<u8"), *_RECORD, ("closed_ns", "<u8"), ("close_state", "u1"), ("reserved", "u1", (31,))]
)

HANDSHAKE_KEY = np.dtype(
    [
        ("local", "<u8", (2,)),
        ("peer", "<u8", (2,)),
        ("local_port", "<u2"),
        ("peer_port", "<u2"),
        ("zero", "<u4"),
    ]
)

SLOT = np.dtype(
    [
        ("in_wire_bytes", "<u8"),
        ("out_wire_bytes", "<u8"),
        ("in_payload_bytes", "<u8"),
        ("out_payload_bytes", "<u8"),
        ("in_packets", "<u8"),
        ("out_packets", "<u8"),
    ]
)

# Rows of `slots`, enum slot_index.
SLOT_NAMES = ("overflow", "handshake", "no_socket", "other", "ring")

# linux/bpf.h, struct bpf_ringbuf_hdr: the length carries two flags.
RING_HEADER = np.dtype([("length", "<u4"), ("page", "<u4")])
RING_BUSY = np.uint32(1 << 31)
RING_DISCARD = np.uint32(1 << 30)
RING_RECORD = np.dtype([("header", RING_HEADER), ("turns", TURN_EVENT, (TURNS_TOGETHER,))])

TCP = 6
UDP = 17
DNS_PORT = 53
FIN = 0x01
RST = 0x04

_MIX = np.uint64(0x9E3779B97F4A7C15)


def decode(
    events: npt.NDArray[np.void], kind: SnapshotKind = SnapshotKind.TURN, control_ports: Sequence[int] = ()
) -> pa.Table:
    """Kernel records as a FLOW batch, in order.

    events: FLOW_EVENT or TURN_EVENT rows.
    kind: what they are; all rows of a call are of one kind. Only TURN rows keep their `seq`.
    control_ports: a flow to such a port of a peer, or from a client to such a port of the gateway, is
    control traffic. UDP to port 53 is the gateway's own name resolution: control as well.
    """
    role = roles(events, control_ports)
    upstream = events["role"] == Role.UPSTREAM
    inward, outward = events["in"], events["out"]
    count = len(events)

    def times(name: str) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        first, second = inward[name], outward[name]
        return np.where(upstream, second, first), np.where(upstream, first, second)

    request_first, response_first = times("turn_first_ns")
    request_last, response_last = times("turn_last_ns")
    columns = {
        "flow": identities(events),
        "seq": events["seq"] if kind == SnapshotKind.TURN else np.zeros(count, np.uint64),
        "kind": np.full(count, kind, np.uint8),
        "turn": events["turn"],
        "role": role,
        "protocol": events["protocol"],
        "local_hi": events["local_hi"].astype(np.uint64),
        "local_lo": events["local_lo"].astype(np.uint64),
        "local_port": events["local_port"],
        "peer_hi": events["peer_hi"].astype(np.uint64),
        "peer_lo": events["peer_lo"].astype(np.uint64),
        "peer_port": events["peer_port"],
        "born_mono_ns": events["born_ns"],
        "last_mono_ns": events["last_ns"],
        "request_first_mono_ns": request_first,
        "request_last_mono_ns": request_last,
        "response_first_mono_ns": response_first,
        "response_last_mono_ns": response_last,
        "in_wire_bytes": inward["wire_bytes"],
        "out_wire_bytes": outward["wire_bytes"],
        "in_payload_bytes": inward["payload_bytes"],
        "out_payload_bytes": outward["payload_bytes"],
        "in_resent_bytes": inward["resent_bytes"],
        "out_resent_bytes": outward["resent_bytes"],
        "in_packets": inward["packets"],
        "out_packets": outward["packets"],
        "in_resent_packets": inward["resent_packets"],
        "out_resent_packets": outward["resent_packets"],
        "ttl_min": inward["ttl_min"],
        "ttl_max": inward["ttl_max"],
        "in_tcp_flags": inward["tcp_flags"],
        "out_tcp_flags": outward["tcp_flags"],
        "srtt_us": events["srtt_us"],
    }
    arrays = []
    for column in records.FLOW:
        wanted = column.type.to_pandas_dtype()
        arrays.append(pa.array(np.ascontiguousarray(columns[column.name], dtype=wanted), column.type))
    return pa.Table.from_arrays(arrays, schema=records.schema(records.FLOW))


def roles(events: npt.NDArray[np.void], control_ports: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The role of each flow, control traffic told apart by port."""
    role = events["role"].copy()
    far_port = np.where(role == Role.DOWNSTREAM, events["local_port"], events["peer_port"])
    control = np.isin(far_port, np.asarray(control_ports, np.uint16))
    control |= (events["protocol"] == UDP) & (role == Role.UPSTREAM) & (events["peer_port"] == DNS_PORT)
    role[control] = Role.CONTROL
    return role


def identities(events: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """A number for each flow that no other flow of this kernel has.

    TCP: the socket cookie. A UDP peer that comes back after it was called gone has the same key in the
    kernel, so its birth is mixed in (bit 63 set). A handshake that came to nothing has only its
    listener's cookie: `name_handshakes` has given it a number with bit 62 set.
    """
    flow = events["flow"].astype(np.uint64)
    loose = (flow >> np.uint64(63)).astype(bool)
    if loose.any():
        mixed = (flow ^ events["born_ns"] * _MIX) | np.uint64(1 << 63)
        flow = np.where(loose, mixed & ~np.uint64(1 << 62), flow)
    return flow


def name_handshakes(events: npt.NDArray[np.void]) -> None:
    """Give handshakes that never became a connection a number of their own, in place."""
    mixed = (events["flow"] ^ events["born_ns"]) * _MIX
    mixed = (mixed ^ events["peer_lo"].astype(np.uint64)) * _MIX ^ events["peer_port"].astype(np.uint64)
    # Bit 62 without bit 63: neither a cookie (they count up from 1) nor a UDP peer.
    events["flow"] = mixed & ~np.uint64(1 << 63) | np.uint64(1 << 62)
