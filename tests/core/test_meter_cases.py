"""What the meter makes of single exchanges."""

import pyarrow as pa
import pytest

from apicost.core import records
from apicost.core.meter import coarsen, merge, meter
from apicost.core.records import Confidence, Role, RowKind
from tests.store.batches import NOON, SCOPES, completeness, exchange, table, usage


def one(batch: pa.Table) -> dict:
    assert batch.num_rows == 1, batch.to_pylist()
    return batch.to_pylist()[0]


def test_two_calls_of_one_minute_are_one_row():
    """Rows of equal key in one minute add up; the next minute is a row of its own."""
    rows = usage(exchange(), exchange(ended_s=NOON + 59), exchange(ended_s=NOON + 60)).to_pylist()
    assert [(r["minute_unix_s"], r["calls"]) for r in rows] == [(NOON, 2), (NOON + 60, 1)]


def test_the_minute_is_that_of_the_exchanges_end():
    """A request that began before midnight and ended after it belongs to the new day."""
    row = one(usage(exchange(ended_s=NOON, took_ms=120_000)))
    assert (row["minute_unix_s"], row["duration_ms"]) == (NOON, 120_000)


CLASSES = {101: "1xx", 200: "2xx", 304: "3xx", 404: "4xx", 499: "4xx", 503: "5xx", 0: None, -1: None, 600: None}


@pytest.mark.parametrize(("status", "wanted"), CLASSES.items())
def test_status_class(status, wanted):
    """499 is the client's doing; a request without a status has no class."""
    assert one(usage(exchange(status=status)))["status_class"] == wanted


def test_overhead_and_unattributed_rows_bring_bytes_and_no_calls():
    """Calls, tries and durations count requests alone."""
    other = {"downstream_in_wire_bytes": 100, "attempts": 2, "took_ms": 9}
    row = one(
        usage(
            exchange(attempts=1, took_ms=5),
            exchange(kind=RowKind.OVERHEAD, **other),
            exchange(kind=RowKind.UNATTRIBUTED, **other),
        )
    )
    assert (row["calls"], row["attempts"], row["duration_ms"]) == (1, 1, 5)
    assert row["downstream_in_wire_bytes"] == 200


def test_wire_bytes_by_confidence_of_their_leg():
    """Each leg's bytes count under its own confidence; app-only legs have app bytes, never wire bytes."""
    row = one(
        usage(
            exchange(
                downstream_confidence=Confidence.EXACT, downstream_in_wire_bytes=1, downstream_out_wire_bytes=2,
                upstream_confidence=Confidence.ALIGNED, upstream_in_wire_bytes=10, upstream_out_wire_bytes=20,
                upstream_peer="10.0.0.1",
            ),
            exchange(
                downstream_confidence=Confidence.APP_ONLY, downstream_in_app_bytes=7, downstream_out_app_bytes=8,
                upstream_confidence=Confidence.APPORTIONED, upstream_in_wire_bytes=100, upstream_peer="10.0.0.1",
            ),
            exchange(
                kind=RowKind.OVERHEAD, downstream_confidence=Confidence.EXACT, downstream_in_wire_bytes=1_000,
                upstream_in_wire_bytes=2_000, upstream_peer="10.0.0.1",
            ),
            exchange(kind=RowKind.UNATTRIBUTED, upstream_out_wire_bytes=10_000, upstream_peer="10.0.0.1"),
        )
    )  # fmt: skip
    assert row["exact_bytes"] == 1_003
    assert row["aligned_bytes"] == 30
    assert row["apportioned_bytes"] == 2_100, "overhead without a confidence was shared out"
    assert row["unattributed_bytes"] == 10_000
    assert (row["app_only_bytes"], row["app_only_calls"]) == (15, 1)


def test_an_app_only_upstream_leg_is_no_app_only_call():
    """app_only_calls tells the requests whose client side the probe missed."""
    row = one(usage(exchange(upstream_confidence=Confidence.APP_ONLY, upstream_in_app_bytes=5)))
    assert (row["app_only_bytes"], row["app_only_calls"]) == (5, 0)


def test_absent_app_counts_and_tokens_add_nothing():
    """-1 stands for absent: it must not take one away from the sum."""
    row = one(usage(exchange(upstream_in_app_bytes=-1), exchange(upstream_in_app_bytes=9, llm_prompt_tokens=4)))
    assert (row["upstream_in_app_bytes"], row["llm_prompt_tokens"], row["llm_completion_tokens"]) == (9, 4, 0)


def test_an_unmatched_row_has_no_template_and_a_known_method():
    """What clients make up must not make rows: an undocumented method is OTHER, a documented one stays."""
    wild = exchange(match_state="undocumented-method", method="X-ZAP", operation_id=None)
    rows = usage(wild, wild | {"method": "PATCH"}, exchange(method="COPY")).to_pylist()
    assert sorted((r["method"], r["path_template"], r["calls"]) for r in rows if r["path_template"] is None) == [
        ("OTHER", None, 1),
        ("PATCH", None, 1),
    ]
    assert [r["method"] for r in rows if r["path_template"]] == ["COPY"]


def test_scopes_of_client_and_backend():
    """The client's scope is always named; the backend's is null where there was no upstream leg."""
    near = one(usage(exchange(peer="10.1.1.1", upstream_peer="192.0.2.7")))
    assert (near["scope"], near["upstream_scope"]) == ("office", "internet")
    alone = one(usage(exchange(peer="2001:db8::1")))
    assert (alone["scope"], alone["upstream_scope"]) == ("internet", None)
    unix_socket = one(usage(exchange(attempts=1)))
    assert (unix_socket["scope"], unix_socket["upstream_scope"]) == ("unknown", "unknown")
    upstream_rest = one(usage(exchange(kind=RowKind.UNATTRIBUTED, role=Role.UPSTREAM, upstream_peer="10.0.0.1")))
    assert (upstream_rest["scope"], upstream_rest["upstream_scope"]) == ("unknown", "office")


def test_an_empty_batch_has_the_columns():
    """No rows in, no rows out, and the right schema."""
    assert meter(records.empty(records.EXCHANGE), SCOPES).schema.equals(records.schema(records.USAGE))
    assert merge([]).schema.equals(records.schema(records.USAGE))


def test_other_columns_are_refused():
    """The meter checks its door."""
    with pytest.raises(records.BatchError, match="meter: column 0"):
        meter(completeness((NOON, "lines_lost", 1)), SCOPES)


def test_quarter_hours_of_minutes():
    """Coarser buckets begin at multiples of their length and lose nothing."""
    minutes = usage(*(exchange(ended_s=NOON + 60 * i) for i in range(20)))
    quarters = coarsen(minutes, bucket_s=900).to_pylist()
    assert [(r["minute_unix_s"], r["calls"]) for r in quarters] == [(NOON, 15), (NOON + 900, 5)]


def test_a_million_keys_fit_one_integer():
    """Keys whose combinations exceed 64 bits are renumbered on the way, and nothing runs together."""
    names = [f"{i:05}" for i in range(3_000)]
    rows = table([exchange() for _ in names])
    for column in ("api", "operation_id", "path_template", "route_id", "service_id", "consumer"):
        at = rows.schema.get_field_index(column)
        rows = rows.set_column(at, column, pa.array(names).dictionary_encode())
    assert meter(rows, SCOPES).num_rows == len(names)
