"""What a run left open, read by an apicost that knows another form of it: no acknowledged call is lost silently."""

import pyarrow as pa
import pytest

from apicost import run
from apicost.core import records
from apicost.core.clock import Clock
from apicost.core.join.correlate import Settings
from apicost.core.naming.index import Index
from apicost.core.records import Confidence
from apicost.core.scopes import Scopes
from apicost.problems import InputError
from apicost.store.lake import Lake
from bench import kill_daemon
from bench.steady_traffic import SECOND, Steady

TRAFFIC = Steady(rate=100, seconds=4, clients=4, backends=2)
CLOCK = Clock(mono_ns=0, unix_ns=1_795_000_000 * SECOND)
NOTHING = run.Knowledge(Index([]), Scopes())


@pytest.fixture
def ledger(tmp_path):
    """A ledger that 400 requests went into; most of them are still open."""
    with Lake.open(tmp_path) as lake:
        flows, _, lines, _ = TRAFFIC.batches()
        step(run.Pipeline(lake, Settings(), node="n"), flows, lines)
    return tmp_path


def step(pipeline: run.Pipeline, flows: pa.Table, lines: pa.Table) -> None:
    nothing = records.empty(records.COMPLETENESS)
    now = TRAFFIC.start_mono_ns + 3 * SECOND
    pipeline.step(NOTHING, flows, lines, nothing, inputs=["first"], clock=CLOCK, now_mono_ns=now)


def rewrite(folder, change) -> None:
    """Store the carry as `change` makes it."""
    with Lake.open(folder) as lake:
        lake.commit([], {}, change(lake.carry()))


def with_form(form: int):
    def change(tables):
        numbers = tables["numbers"].drop_columns("form")
        return tables | {"numbers": numbers.append_column("form", pa.array([form], pa.int64())) if form else numbers}

    return change


def lost_column(table: str, column: str):
    return lambda tables: tables | {table: tables[table].drop_columns(column)}


def calls(folder) -> list[tuple[int, ...]]:
    rows = kill_daemon.ledger_rows(
        folder, ["kind", "worker_pid", "line_no", "downstream_confidence", "upstream_confidence", "attempts"]
    )
    return [row[1:] for row in rows if row[0] == records.RowKind.EXCHANGE]


@pytest.mark.parametrize(
    "change", [with_form(9), lost_column("downstream_flows", "next_turn"), lost_column("upstream_turns", "n_turns")]
)
def test_calls_of_a_carry_of_another_form_are_app_only(ledger, change):
    """Each call counts once, with the gateway's own bytes; what is lost of its flows is told and counted."""
    before = len(calls(ledger))
    assert 0 < before < 300
    rewrite(ledger, change)
    with Lake.open(ledger) as lake:
        pipeline = run.Pipeline(lake, Settings(), node="n")
        (told,) = pipeline.repairs
        assert f"{400 - before} calls" in told and str(ledger) in told
        pipeline.end_session(NOTHING, CLOCK)
        pipeline.end_session(NOTHING, CLOCK)
    after = calls(ledger)[before:]
    assert {row[2:] for row in after} == {(Confidence.APP_ONLY, Confidence.APP_ONLY, 1)}
    assert len({row[:2] for row in calls(ledger)}) == len(calls(ledger)) == 400
    lost = [row for row in completeness(ledger) if row["metric"] == "flows_lost"]
    assert len(lost) == 1 and lost[0]["value"] > 0


def completeness(folder) -> list[dict]:
    import pyarrow.parquet as pq

    from apicost.store.catalogue import Catalogue

    with Catalogue.read(folder) as catalogue:
        files = [folder / segment.name for segment in catalogue.segments("completeness")]
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def test_a_carry_without_a_form_number_is_read_if_it_fits(ledger):
    """Forms began to be numbered without another change."""
    rewrite(ledger, with_form(0))
    with Lake.open(ledger) as lake:
        pipeline = run.Pipeline(lake, Settings(), node="n")
        assert pipeline.repairs == []
        pipeline.end_session(NOTHING, CLOCK)
    assert {row[2] for row in calls(ledger)} == {Confidence.EXACT}
    assert len(calls(ledger)) == 400


def test_calls_that_cannot_be_read_stop_the_start(ledger):
    """Place, number of calls, and both ways on; the ledger stays as it was."""
    rewrite(ledger, lost_column("lines", "route_id"))
    with Lake.open(ledger) as lake:
        with pytest.raises(InputError) as caught:
            run.Pipeline(lake, Settings(), node="n")
        assert len(lake.carry()["lines"]) > 0
    text = str(caught.value)
    assert str(ledger) in text and "acknowledged calls" in text
    assert "version of apicost that wrote it" in text and "delete from carry" in text
