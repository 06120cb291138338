"""What holds for the upstream leg whatever happens: lost snapshots, repeats, any order, any split."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.join.upstream import (
    Attempts,
    Parts,
    Settled,
    UpstreamSettings,
    UpstreamState,
    attribute_upstream,
)
from apicost.core.records import Confidence, Role, SnapshotKind

MS = 1_000_000
BACKENDS = [(0, 0xFFFF_0A00_0001, 8080), (0x2001_0DB8_0000_0000, 1, 443)]
FOREVER = UpstreamSettings(line_wait_ns=1 << 60, flow_wait_ns=1 << 60, stream_wait_ns=1 << 60, linger_ns=1 << 60)
COUNTS = ("in_wire_bytes", "out_wire_bytes", "in_payload_bytes", "out_payload_bytes", "in_packets", "out_packets")
SIZES = st.sampled_from([0, 1, 24, 100, 100, 100, 1460, 20_000])  # few, so that many requests are equal

turn = st.fixed_dictionaries(
    {
        "sent": SIZES,
        "received": SIZES,
        "wait": st.integers(1, 40),
        "sweep": st.booleans(),
        "lost": st.sampled_from([False, False, False, True]),  # its record
        "silent": st.sampled_from([False, False, False, True]),  # no usage line
        "resent": st.sampled_from([0, 0, 60]),
    }
)
flow = st.fixed_dictionaries(
    {
        "turns": st.lists(turn, min_size=1, max_size=6),
        "start": st.integers(1, 60),
        "backend": st.integers(0, 1),
        "pid": st.integers(7, 8),
        "closed": st.booleans(),
        "tls": st.sampled_from([False, False, True]),
    }
)
lone_attempt = st.tuples(SIZES, SIZES, st.integers(1, 200), st.integers(0, 1))
worlds = st.tuples(st.lists(flow, max_size=5), st.lists(lone_attempt, max_size=3))


def build(world):
    """Snapshots and attempts of a world; rows as dictionaries."""
    snapshots, attempts = [], []
    for number, each in enumerate(world[0], 1):
        hi, lo, port = BACKENDS[each["backend"]]
        base = dict.fromkeys((c.name for c in records.FLOW), 0) | {
            "flow": number,
            "role": Role.UPSTREAM,
            "protocol": 6,
            "peer_hi": hi,
            "peer_lo": lo,
            "peer_port": port,
            "born_mono_ns": each["start"] * MS,
            "out_tcp_flags": 2,
        }
        now, counts, resent = each["start"] * MS, np.zeros(6, np.int64), 0
        for index, one in enumerate(each["turns"]):
            begin, end = now + 100_000, now + one["wait"] * MS
            framing = 22 if each["tls"] else 0
            sent, received = one["sent"] + framing, one["received"] + framing
            added = np.array([received + 52, sent + 52 + one["resent"], received, sent, 1, 1 + (one["resent"] > 0)])
            times = {
                "request_first_mono_ns": begin if sent else 0,
                "request_last_mono_ns": begin if sent else 0,
                "response_first_mono_ns": end if received else 0,
                "response_last_mono_ns": end if received else 0,
            }
            if one["sweep"]:
                half = dict(zip(COUNTS, (counts + added // 2).tolist(), strict=True))
                snapshots.append(
                    base | times | half | {"turn": index, "kind": SnapshotKind.OPEN, "last_mono_ns": begin}
                    | {"out_resent_bytes": resent}
                )  # fmt: skip
            counts, resent = counts + added, resent + one["resent"]
            last = index + 1 == len(each["turns"])
            kind = SnapshotKind.TURN if not last else SnapshotKind.CLOSED if each["closed"] else SnapshotKind.OPEN
            if last or not one["lost"]:
                snapshots.append(
                    base | times | dict(zip(COUNTS, counts.tolist(), strict=True))
                    | {"turn": index, "kind": kind, "last_mono_ns": end, "out_resent_bytes": resent}
                )  # fmt: skip
            if not one["silent"]:
                attempts.append(
                    (one["sent"], one["received"], now, end + MS // 2, hi, lo, port, each["pid"], each["tls"])
                )
            now = end + MS
    for sent, received, at, backend in world[1]:
        attempts.append((sent, received, at * MS, at * MS + 5 * MS, *BACKENDS[backend], 7, False))
    return snapshots, attempts


def tables(snapshots, attempts, numbers):
    """The batches; `numbers` are the attempts' lines, which stay theirs in any order."""
    blank = Attempts.empty()
    rows = [
        {
            "line_id": number, "try_no": 0, "n_tries": 1, "addr_hi": hi, "addr_lo": lo, "port": port,
            "sent_bytes": sent, "received_bytes": received, "status": 200, "access_mono_ns": access,
            "header_mono_ns": log, "log_mono_ns": log, "connect_ms": 0, "response_ms": 1, "worker_pid": pid, "tls": tls,
        }
        for number, (sent, received, access, log, hi, lo, port, pid, tls) in zip(numbers, attempts, strict=True)
    ]  # fmt: skip
    batch = Attempts(**{n: np.array([r[n] for r in rows], getattr(blank, n).dtype) for n in Attempts.__slots__})
    return pa.Table.from_pylist(snapshots, schema=records.schema(records.FLOW)), batch


def run(world, *, order=None, steps=1, waits=FOREVER, now_step=0):
    """Feed a world in so many calls and in the order given; everything that came out, and the last state."""
    snapshots, attempts = build(world)
    numbers = np.arange(len(attempts))
    if order is not None:
        order.shuffle(snapshots)
        order.shuffle(numbers)
    state, settled, parts = UpstreamState(), [], []
    for step in range(steps):
        chosen = numbers[step::steps]
        flows, batch = tables(snapshots[step::steps], [attempts[n] for n in chosen], chosen)
        state = UpstreamState.from_tables(state.to_tables())
        result = attribute_upstream(
            state, flows, batch, now_mono_ns=step * now_step, settings=waits, final=step + 1 == steps
        )
        state = result.state
        settled.append(result.settled)
        parts.append(result.parts)
    out = Settled.concat(settled)
    return out.take(np.lexsort((out.try_no, out.line_id))), Parts.concat(parts), state


def counted(world):
    """What the kernel counted of each flow: its highest counters."""
    most = {}
    for row in build(world)[0]:
        counts = (*(row[name] for name in COUNTS), row["in_resent_bytes"] + row["out_resent_bytes"])
        most[row["flow"]] = np.maximum(most.get(row["flow"], 0), counts)
    return {flow: counts.tolist() for flow, counts in most.items()}


def given_out(settled, parts):
    """The same of what came out."""
    sums = {}
    for batch in (settled, parts):
        for flow, counts in zip(batch.flow.tolist(), batch.counts, strict=True):
            sums[flow] = sums.get(flow, 0) + counts
    return {flow: counts.tolist() for flow, counts in sums.items() if flow}


short_waits = st.builds(
    UpstreamSettings,
    line_wait_ns=st.integers(0, 100 * MS),
    flow_wait_ns=st.integers(0, 100 * MS),
    stream_wait_ns=st.integers(0, 400 * MS),
    linger_ns=st.just(1 << 60),
)


@settings(max_examples=80, deadline=None)
@given(worlds, st.randoms(use_true_random=False), st.integers(1, 5), short_waits, st.integers(0, 120))
def test_bytes_of_each_flow_are_conserved(world, order, steps, waits, step_ms):
    """Settled attempts, overhead and unattributed bytes of a flow sum to the kernel's counters, for all counters."""
    settled, parts, _ = run(world, order=order, steps=steps, waits=waits, now_step=step_ms * MS)
    assert given_out(settled, parts) == counted(world)
    assert (settled.counts >= 0).all() and (parts.counts >= 0).all()


@settings(max_examples=50, deadline=None)
@given(worlds, st.randoms(use_true_random=False), st.integers(1, 5), short_waits, st.integers(0, 120))
def test_each_attempt_is_settled_once(world, order, steps, waits, step_ms):
    """Every attempt comes out once, with a flow and its bytes or as app-only without."""
    settled, _, state = run(world, order=order, steps=steps, waits=waits, now_step=step_ms * MS)
    assert settled.line_id.tolist() == list(range(len(build(world)[1])))
    assert len(state.waiting) == 0 and len(state.turns) == 0
    app_only = settled.confidence == Confidence.APP_ONLY
    assert (app_only == (settled.flow == 0)).all()
    assert (settled.counts[app_only] == 0).all()
    assert (settled.overhead_bytes <= settled.in_wire_bytes + settled.out_wire_bytes).all()


@settings(max_examples=50, deadline=None)
@given(worlds, st.randoms(use_true_random=False), st.integers(2, 5))
def test_order_and_split_change_nothing(world, order, steps):
    """With waits longer than the delays, what comes out is the same for any order and any number of calls."""
    at_once, parts_at_once, _ = run(world)
    settled, parts, _ = run(world, order=order, steps=steps)
    assert settled.to_table().equals(at_once.to_table())
    assert parts.to_table().equals(parts_at_once.to_table())


@settings(max_examples=30, deadline=None)
@given(worlds)
def test_exact_means_equal_sums(world):
    """An attempt that is called exact has exactly its payload bytes, both ways."""
    settled, _, _ = run(world)
    attempts = build(world)[1]
    for row in np.flatnonzero(settled.confidence == Confidence.EXACT):
        sent, received = attempts[settled.line_id[row]][:2]
        assert (settled.out_payload_bytes[row], settled.in_payload_bytes[row]) == (sent, received)
