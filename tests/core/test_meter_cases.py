"""What the meter makes of single exchanges."""

import pyarrow as pa
import pytest

from apicost.core import prompts, records
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
    row = one(usage(exchange(upstream_in_app_bytes=-1), exchange(upstream_in_app_bytes=9, llm_completion_tokens=4)))
    assert (row["upstream_in_app_bytes"], row["llm_prompt_tokens"], row["llm_completion_tokens"]) == (9, 0, 4)


KIB = 1 << 10
# App bytes in and out -> started blocks of 32, 64 and 512 KiB.
BLOCKS = {
    (0, 0): (1, 1, 1),
    (1, 0): (1, 1, 1),
    (32 * KIB, 0): (1, 1, 1),
    (32 * KIB, 1): (2, 1, 1),
    (400 * KIB, 112 * KIB): (16, 8, 1),
    (400 * KIB, 112 * KIB + 1): (17, 9, 2),
    (0, 1 << 40): (1 << 25, 1 << 24, 1 << 21),
}


@pytest.mark.parametrize(("sent", "wanted"), BLOCKS.items())
def test_a_request_begins_blocks_of_its_bytes_in_both_directions(sent, wanted):
    """What is sent and received counts together, and a request without a byte is one block."""
    row = one(usage(exchange(downstream_in_app_bytes=sent[0], downstream_out_app_bytes=sent[1])))
    assert tuple(row[name] for name in records.QUANTA.values()) == wanted
    assert row["calls_without_quanta"] == 0


def test_blocks_are_counted_by_request_and_not_by_sum():
    """Two requests of one byte are two blocks: a minute's sum of bytes can't tell."""
    row = one(usage(exchange(downstream_in_app_bytes=1), exchange(downstream_in_app_bytes=1)))
    assert (row["calls"], row["quanta_512k"]) == (2, 2)


def test_a_request_of_unknown_bytes_has_no_blocks():
    """Absent bytes are not one block: the request is counted as one without."""
    row = one(usage(exchange(downstream_in_app_bytes=-1), exchange(downstream_out_app_bytes=-1), exchange()))
    assert (row["calls"], row["quanta_32k"], row["calls_without_quanta"]) == (3, 1, 2)


def test_bytes_without_a_request_begin_no_block():
    """Overhead and unattributed bytes are nobody's calls."""
    other = {"downstream_in_app_bytes": 1 << 30}
    rows = usage(exchange(kind=RowKind.OVERHEAD, **other), exchange(kind=RowKind.UNATTRIBUTED, **other)).to_pylist()
    assert {row[name] for row in rows for name in (*records.QUANTA.values(), "calls_without_quanta")} == {0}


# Model, prompt and completion tokens -> whether the request is one without its tokens.
TOLD = {
    ("m", 5, 7): 0, ("m", 5, 0): 0, ("m", 0, 0): 1, ("m", 0, 7): 1, ("m", -1, 7): 1, ("m", 5, -1): 1,
    ("m", -1, -1): 1, (None, -1, -1): 0, (None, 0, 0): 0,
}  # fmt: skip


@pytest.mark.parametrize(("said", "wanted"), TOLD.items())
def test_a_model_without_token_counts_is_no_request_of_0_tokens(said, wanted):
    """A stream that was cut off, or has no usage at its end, leaves APISIX's variables at 0: no prompt has 0 tokens,
    so the request is counted as one without them. An embedding has a prompt and no completion: that is told."""
    row = one(usage(exchange(llm_model=said[0], llm_prompt_tokens=said[1], llm_completion_tokens=said[2])))
    assert row["llm_calls_without_tokens"] == wanted


CLASSES_OF_PROMPTS = {
    -1: None, 0: None, 1: "32000", 32_000: "32000", 32_001: "100000", 199_999: "199999", 200_000: "200000",
    272_000: "272000", 272_001: "512000", 524_289: "longer",
}  # fmt: skip


@pytest.mark.parametrize(("tokens", "wanted"), CLASSES_OF_PROMPTS.items())
def test_prompts_are_classed_by_their_length(tokens, wanted):
    """A bound holds its last token; without a count there is no class."""
    assert one(usage(exchange(llm_model="m", llm_prompt_tokens=tokens)))["llm_prompt_class"] == wanted


def test_parts_of_tokens_add_up_to_all():
    """At every bound, what is up to it, over it and of unknown length is the whole."""
    lengths = [-1, 1, 31_000, 100_001, 199_999, 200_000, 200_001, 300_000, 600_000]
    found = usage(*(exchange(llm_model="m", llm_prompt_tokens=n, llm_completion_tokens=10) for n in lengths))
    for bound in prompts.BOUNDS:
        for column, short in (
            ("llm_prompt_tokens", sum(n for n in lengths if 0 <= n <= bound)),
            ("llm_completion_tokens", sum(10 for n in lengths if 0 <= n <= bound)),
        ):
            names = (prompts.part(column, None, bound), prompts.part(column, bound, None), prompts.unclassed(column))
            split = prompts.with_parts(found, names)
            parts = [sum(split.column(name).to_pylist()) for name in names]
            assert parts[0] == short
            assert sum(parts) == sum(found.column(column).to_pylist())


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
