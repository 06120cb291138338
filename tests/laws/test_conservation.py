"""Laws of the correlator on made-up traffic: bytes are conserved, lines come once, splits don't matter."""

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apicost.core import records
from apicost.core.join.correlate import Carry, Settings, correlate
from apicost.core.records import Confidence, RowKind
from tests.strategies import CLOCK, MS, Traffic, schedules, traffic

COUNTERS = records.schema(records.PART).names[4:]
GENEROUS = Settings(line_wait_ns=1 << 60, flow_wait_ns=1 << 60, idle_wait_ns=1 << 60, stream_wait_ns=1 << 60)
HASTY = Settings(
    line_wait_ns=300 * MS, flow_wait_ns=200 * MS, idle_wait_ns=900 * MS, stream_wait_ns=2_000 * MS, grace_ns=60_000 * MS
)
# So few may wait that nearly every step gives out or merges what is more.
CROWDED = Settings(
    line_wait_ns=1 << 60, flow_wait_ns=1 << 60, idle_wait_ns=1 << 60, stream_wait_ns=1 << 60, most_lines=2, most_turns=3
)
slow = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))


def run(
    seen: Traffic, options: Settings, flow_steps: np.ndarray, line_steps: np.ndarray, shuffle: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rows and parts of a run in steps; the part's row is counted over the whole run."""
    carry = Carry.empty()
    rows, parts, offset = [], [], 0
    steps = int(max(flow_steps.max(initial=0), line_steps.max(initial=0))) + 1
    ends = np.asarray(seen.flows.column("last_mono_ns").to_numpy())
    for number in range(steps + 1):
        flows = seen.flows.filter(pa.array(flow_steps == number))
        lines = seen.lines.filter(pa.array(line_steps == number))
        if shuffle is not None:
            order = np.random.default_rng(shuffle + number)
            flows, lines = flows.take(order.permutation(len(flows))), lines.take(order.permutation(len(lines)))
        now = int(ends[flow_steps <= number].max(initial=0)) + 100 * MS * number
        step = correlate(carry, flows, lines, clock=CLOCK, now_mono_ns=now, settings=options, final=number == steps)
        records.check(step.exchanges, records.JOINED, "law")
        records.check(step.parts, records.PART, "law")
        carry = Carry.from_tables(step.carry.to_tables())
        rows.append(step.exchanges.to_pandas())
        part = step.parts.to_pandas()
        part["row"] += offset
        offset += len(step.exchanges)
        parts.append(part)
    assert len(carry.lines) == 0, "the last step gives out every line"
    return pd.concat(rows, ignore_index=True), pd.concat(parts, ignore_index=True)


def at_once(seen: Traffic) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(seen.flows), np.int64), np.zeros(len(seen.lines), np.int64)


def kernel(seen: Traffic) -> pd.DataFrame:
    frame = seen.flows.to_pandas()
    frame["resent_bytes"] = frame.in_resent_bytes + frame.out_resent_bytes
    return frame.groupby("flow")[COUNTERS].max()


def check_conserved(seen: Traffic, rows: pd.DataFrame, parts: pd.DataFrame) -> None:
    counted = kernel(seen)
    given_out = parts.groupby("flow")[COUNTERS].sum().reindex(counted.index, fill_value=0)
    pd.testing.assert_frame_equal(given_out, counted, check_dtype=False)
    assert (parts[COUNTERS] >= 0).all(axis=None), parts[(parts[COUNTERS] < 0).any(axis=1)]
    by_row = parts.groupby("row")[COUNTERS].sum().reindex(rows.index, fill_value=0)
    for counter in ("in_wire_bytes", "out_wire_bytes", "in_packets", "out_packets", "resent_bytes"):
        both = rows[f"downstream_{counter}"] + rows[f"upstream_{counter}"]
        assert (both == by_row[counter]).all(), counter
    overhead = rows.downstream_overhead_bytes + rows.upstream_overhead_bytes
    assert (overhead >= 0).all() and (overhead <= by_row.in_wire_bytes + by_row.out_wire_bytes).all()


def check_lines(seen: Traffic, rows: pd.DataFrame) -> None:
    requests = rows[rows.kind == RowKind.EXCHANGE]
    assert sorted(requests.line_no) == sorted(seen.lines.column("line_no").to_pylist())


@slow
@given(st.data())
def test_bytes_and_lines_are_conserved_however_they_come(data: st.DataObject) -> None:
    """Whatever is lost, late or split: each flow's parts add up to its counters, and each line comes out once."""
    seen = data.draw(traffic())
    steps = data.draw(schedules(len(seen.flows))), data.draw(schedules(len(seen.lines)))
    rows, parts = run(seen, data.draw(st.sampled_from([HASTY, GENEROUS, CROWDED])), *steps)
    check_conserved(seen, rows, parts)
    check_lines(seen, rows)


def difference(whole: pd.DataFrame, split: pd.DataFrame) -> str:
    """What differs between two sets of rows, whatever their order: the columns that do, of both sides."""
    left, right = (frame.astype(object).where(frame.notna(), None) for frame in (whole, split))
    left = left.sort_values(list(left.columns), key=lambda c: c.map(repr)).reset_index(drop=True)
    right = right.sort_values(list(right.columns), key=lambda c: c.map(repr)).reset_index(drop=True)
    if left.equals(right):
        return ""
    if len(left) != len(right):
        names = ["kind", "line_no", "role", "downstream_flow", "upstream_flow", "downstream_in_wire_bytes"]
        return f"whole\n{left[names].to_string()}\nsplit\n{right[names].to_string()}"
    differs = [name for name in left if not left[name].equals(right[name])]
    rows = (left[differs] != right[differs]).any(axis=1)
    shown = ["kind", "line_no", "upstream_flow", *differs]
    return f"whole\n{left[rows][shown].to_string()}\nsplit\n{right[rows][shown].to_string()}"


@slow
@given(st.data())
def test_splits_and_orders_do_not_matter(data: st.DataObject) -> None:
    """With generous waits the rows are the same however the input is split over steps and shuffled."""
    seen = data.draw(traffic())
    whole, _ = run(seen, GENEROUS, *at_once(seen))
    steps = data.draw(schedules(len(seen.flows))), data.draw(schedules(len(seen.lines)))
    split, parts = run(seen, GENEROUS, *steps, shuffle=data.draw(st.integers(0, 99)))
    found = difference(whole, split)
    assert not found, found
    check_conserved(seen, split, parts)


@slow
@given(traffic(clean=True))
def test_plain_requests_get_exactly_their_bytes(seen: Traffic) -> None:
    """With nothing lost, each plain HTTP/1.1 request has the payload that crossed the wire for it, and says EXACT."""
    rows, _ = run(seen, GENEROUS, *at_once(seen))
    requests = rows[rows.kind == RowKind.EXCHANGE]
    for row in requests.itertuples():
        connection, place = int(row.request_id[:16], 16), int(row.request_id[16:], 16)
        wanted = seen.truth.get((connection, place + 1))
        if wanted is not None:
            assert (row.downstream_in_payload_bytes, row.downstream_out_payload_bytes) == wanted
            assert row.downstream_confidence == Confidence.EXACT


@slow
@given(traffic())
def test_exact_is_never_wrong(seen: Traffic) -> None:
    """Whatever is lost, a plain request that claims EXACT has the payload that crossed the wire for it."""
    rows, _ = run(seen, GENEROUS, *at_once(seen))
    first = {
        int(i[:16], 16): r - int(i[16:], 16)
        for i, r in zip(
            seen.lines.column("request_id").to_pylist(),
            seen.lines.column("connection_requests").to_pylist(),
            strict=True,
        )
    }
    for row in rows[(rows.kind == RowKind.EXCHANGE) & (rows.downstream_confidence == Confidence.EXACT)].itertuples():
        connection, place = int(row.request_id[:16], 16), int(row.request_id[16:], 16)
        wanted = seen.truth.get((connection, place + first[connection]))
        if wanted is not None:
            assert (row.downstream_in_payload_bytes, row.downstream_out_payload_bytes) == wanted
