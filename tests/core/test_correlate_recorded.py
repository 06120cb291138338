"""The correlator on excerpts of recorded runs of a real gateway, with what the client counted beside them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from apicost.core import records
from apicost.core.join.correlate import Carry, Settings, correlate
from bench.join_recorded import EXCERPT, Recorded, cases, load

SETTINGS = Settings(gateway_ports=(19080, 19443))
COUNTERS = records.schema(records.PART).names[4:]


def joined(case: Recorded, settings: Settings = SETTINGS) -> tuple[pd.DataFrame, pd.DataFrame]:
    step = correlate(
        Carry.empty(), case.flows, case.lines, clock=case.clock, now_mono_ns=0, settings=settings, final=True
    )
    records.check(step.exchanges, records.JOINED, "test")
    records.check(step.parts, records.PART, "test")
    return step.exchanges.to_pandas(), step.parts.to_pandas()


def kernel(flows: pa.Table) -> pd.DataFrame:
    frame = flows.to_pandas()
    frame["resent_bytes"] = frame.in_resent_bytes + frame.out_resent_bytes
    return frame.groupby("flow")[COUNTERS].max()


@pytest.mark.parametrize("name", cases(EXCERPT))
def test_every_byte_of_a_recorded_run_is_given_out_once(name: str) -> None:
    """The parts of each flow add up to the kernel's counters, and the rows to the parts."""
    case = load(EXCERPT / name)
    exchanges, parts = joined(case)
    counted = kernel(case.flows)
    given = parts.groupby("flow")[COUNTERS].sum().reindex(counted.index, fill_value=0)
    pd.testing.assert_frame_equal(given, counted, check_dtype=False)
    wire = parts.groupby("row")[["in_wire_bytes", "out_wire_bytes"]].sum().reindex(exchanges.index, fill_value=0)
    for way in ("in", "out"):
        rows = exchanges[f"downstream_{way}_wire_bytes"] + exchanges[f"upstream_{way}_wire_bytes"]
        assert (rows == wire[f"{way}_wire_bytes"]).all()


@pytest.mark.parametrize("name", [n for n in cases(EXCERPT) if not n.startswith("h2")])
def test_requests_get_the_bytes_their_client_counted(name: str) -> None:
    """Payload of each HTTP/1.x request, both ways, as the client's socket counted it; EXACT is never wrong."""
    case = load(EXCERPT / name)
    exchanges, _ = joined(case)
    both = exchanges[exchanges.kind == records.RowKind.EXCHANGE].merge(case.truth, on="request_id")
    assert len(both) == len(case.lines)
    more_out = both.client_received_bytes - both.downstream_out_payload_bytes
    # A WebSocket's client reads on until the end: half of the time it took the close_notify (24 B) for its own.
    alert = (both.tls_version.notna() & (both.kind_y == "ws") & (more_out == 24)) if name == "streams-tls" else False
    right = (both.downstream_in_payload_bytes == both.client_sent_bytes) & ((more_out == 0) | alert)
    assert (both.downstream_flow_x == both.downstream_flow_y).all()
    assert right.mean() >= (0.99 if name.startswith("early") else 1.0), both[~right].T
    assert right[both.downstream_confidence == records.Confidence.EXACT].all()


def test_frames_of_http2_are_shared_to_the_byte_or_nearly() -> None:
    """What an HTTP/2 stream's frames took, within 0.05 % of all frames, both ways."""
    case = load(EXCERPT / "h2-tls")
    exchanges, _ = joined(case)
    both = exchanges.merge(case.truth, on="request_id")
    for mine, true in (("in", "sent"), ("out", "received")):
        frames = both[f"h2_frame_bytes_{true}"]
        assert np.abs(both[f"downstream_{mine}_payload_bytes"] - frames).sum() <= frames.sum() * 0.0005


def test_lines_alone_are_app_only() -> None:
    """Without any flow each line is an exchange with its app bytes, and no wire byte is claimed."""
    case = load(EXCERPT / "h1-plain")
    step = correlate(
        Carry.empty(),
        records.empty(records.FLOW),
        case.lines,
        clock=case.clock,
        now_mono_ns=int(case.lines.column("log_mono_ns").to_numpy().max()) + SETTINGS.flow_wait_ns,
        settings=SETTINGS,
    )
    frame = step.exchanges.to_pandas()
    assert len(frame) == len(case.lines) and len(step.parts) == 0
    assert (frame.downstream_confidence == records.Confidence.APP_ONLY).all()
    assert (frame.downstream_in_wire_bytes + frame.downstream_out_wire_bytes == 0).all()
    assert frame.downstream_out_app_bytes.sum() == case.lines.column("response_bytes").to_pandas().sum()


def test_flows_alone_are_unattributed() -> None:
    """Without any line all bytes are unattributed, with the peer's address and the flow's side."""
    case = load(EXCERPT / "h1-plain")
    step = correlate(
        Carry.empty(),
        case.flows,
        records.empty(records.LINE),
        clock=case.clock,
        now_mono_ns=0,
        settings=SETTINGS,
        final=True,
    )
    frame = step.exchanges.to_pandas()
    assert (frame.kind == records.RowKind.UNATTRIBUTED).all()
    assert (frame.role == records.Role.DOWNSTREAM).all() and (frame.peer_lo > 0).all()
    assert frame.downstream_in_wire_bytes.sum() == kernel(case.flows).in_wire_bytes.sum()


def test_a_carry_survives_its_tables() -> None:
    """A carry written as tables and read again gives the same next step."""
    case = load(EXCERPT / "h1-tls")
    half = len(case.flows) // 2, len(case.lines) // 2
    options = {"clock": case.clock, "settings": SETTINGS}
    first = correlate(Carry.empty(), case.flows[: half[0]], case.lines[: half[1]], now_mono_ns=0, **options)
    again = Carry.from_tables(first.carry.to_tables())
    rest = case.flows[half[0] :], case.lines[half[1] :]
    one = correlate(first.carry, *rest, now_mono_ns=0, final=True, **options)
    two = correlate(again, *rest, now_mono_ns=0, final=True, **options)
    assert one.exchanges.to_pydict() == two.exchanges.to_pydict()
    assert one.parts.to_pydict() == two.parts.to_pydict()


def test_without_the_proof_the_rest_is_the_same() -> None:
    """Leaving out the parts, which only prove conservation, changes no row and no carry."""
    case = load(EXCERPT / "early-plain")
    options = {"clock": case.clock, "settings": SETTINGS, "now_mono_ns": 0, "final": True}
    proved = correlate(Carry.empty(), case.flows, case.lines, **options)
    bare = correlate(Carry.empty(), case.flows, case.lines, with_parts=False, **options)
    assert len(proved.parts) > 0 and len(bare.parts) == 0
    assert bare.exchanges.equals(proved.exchanges)
    assert bare.counts == proved.counts and bare.carry.to_tables() == proved.carry.to_tables()


assert Path(EXCERPT).is_dir()
