"""JOINED rows become EXCHANGE rows: the same rows, named."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from apicost.core import records
from apicost.core.naming.match import name_exchanges
from tests.core.match_documents import api, index


def joined(rows):
    """A JOINED batch from dicts; what is left out is null or zero."""
    columns = {}
    for column in records.JOINED:
        values = [row.get(column.name) for row in rows]
        if column.type == records.TEXT:
            columns[column.name] = pa.array(values, pa.string()).dictionary_encode()
        elif column.type == pa.string():
            columns[column.name] = pa.array(values, pa.string())
        else:
            columns[column.name] = pa.array([value or 0 for value in values]).cast(column.type)
    return pa.table(columns, schema=records.schema(records.JOINED))


def request(path, method="GET", host="shop.example", **more):
    return {"kind": records.RowKind.EXCHANGE, "role": 1, "method": method, "host": host, "path": path, **more}


SHOP = api("shop", ["GET /orders/{id}", "GET /orders"], hosts=["shop.example"], base="/v1")


def named(rows, *apis):
    table = name_exchanges(joined(rows), index(*(apis or (SHOP,))), node="n1")
    records.check(table, records.EXCHANGE, "test")
    return table.select(["api", "operation_id", "path_template", "match_state", "match_flags"]).to_pylist()


def row(*values):
    return dict(zip(["api", "operation_id", "path_template", "match_state", "match_flags"], values, strict=True))


def test_each_row_gets_its_name():
    """Matched, loose, undocumented path and method, unknown host; nothing unknown is empty text."""
    rows = [
        request("/v1/orders/7"),
        request("/v1/orders/"),
        request("/v1/nothing"),
        request("/v1/orders", method="PUT"),
        request("/v1/orders", host="other.example"),
        request("/v1/orders", host=None),
    ]
    assert named(rows) == [
        row("shop", "GET /orders/{id}", "/v1/orders/{id}", "matched", None),
        row("shop", "GET /orders", "/v1/orders", "matched", "loose-match"),
        row("shop", None, None, "undocumented-path", None),
        row("shop", None, "/v1/orders", "undocumented-method", None),
        row(None, None, None, "unknown-host", None),
        row(None, None, None, "unknown-host", None),
    ]


def test_bytes_without_a_request_are_unattributed_or_control():
    """Rows of kind UNATTRIBUTED carry no text; the gateway's own traffic is told from the rest."""
    bare = {"kind": records.RowKind.UNATTRIBUTED}
    rows = [{**bare, "role": records.Role.DOWNSTREAM}, {**bare, "role": records.Role.CONTROL}, request("/v1/orders")]
    states = [r["match_state"] for r in named(rows)]
    assert states == ["unattributed", "control", "matched"]


def test_overhead_is_named_like_its_exchange():
    """Handshakes and closes carry the exchange's text."""
    rows = [request("/v1/orders"), {**request("/v1/orders"), "kind": records.RowKind.OVERHEAD}]
    first, second = named(rows)
    assert first == second


def test_rows_and_columns_are_kept_and_the_node_is_added():
    """Only names are added: the counters come through untouched, in order."""
    table = joined([request("/v1/orders", line_no=n) for n in (3, 1, 2)])
    out = name_exchanges(table, index(SHOP), node="gw-7")
    assert out.column("line_no").to_pylist() == [3, 1, 2]
    assert set(out.column("node").to_pylist()) == {"gw-7"}
    for name in records.schema(records.JOINED).names:
        assert out.column(name).to_pylist() == table.column(name).to_pylist()


def test_an_empty_batch_and_a_batch_in_pieces():
    """No rows, and chunks whose dictionaries differ."""
    assert name_exchanges(joined([]), index(SHOP), node="n").num_rows == 0
    pieces = pa.concat_tables([joined([request("/v1/orders")]), joined([request("/v1/orders/1")])])
    out = name_exchanges(pieces, index(SHOP), node="n")
    assert out.column("operation_id").to_pylist() == ["GET /orders", "GET /orders/{id}"]


def test_routes_services_and_upstream_paths_are_used_where_the_index_needs_them():
    """The same host and path on two routes are two APIs."""
    one = api("one", ["GET /a"], route_ids=("r1",))
    two = api("two", ["GET /b"], service_ids=("s2",), path_seen="upstream")
    rows = [
        request("/a", route_id="r1"),
        request("/a", service_id="s2", upstream_path="/b"),
        request("/a", service_id="s2"),
        request("/a"),
    ]
    assert [(r["api"], r["match_state"]) for r in named(rows, one, two)] == [
        ("one", "matched"),
        ("two", "matched"),
        ("two", "undocumented-path"),
        (None, "unknown-host"),
    ]


def test_query_names_choose_between_discriminated_operations():
    """A usage line has names without values."""
    orders = api("shop", ["POST /orders", "POST /orders?dry-run"])
    rows = [request("/orders", method="POST", query_names=q) for q in (None, "dry-run", "a,dry-run", "a")]
    assert [r["operation_id"] for r in named(rows, orders)] == [
        "POST /orders",
        "POST /orders?dry-run",
        "POST /orders?dry-run",
        "POST /orders",
    ]


def test_a_batch_with_other_columns_is_refused():
    """What every stage does at its door."""
    with pytest.raises(records.BatchError, match="match"):
        name_exchanges(joined([]).drop_columns(["path"]), index(SHOP), node="n")


def test_batches_answer_as_single_requests_do():
    """Lists, Arrow arrays and dictionaries alike."""
    matcher = index(SHOP, api("any", ["GET /{x}"]))
    methods = ["GET", "GET", "PUT", None, "GET"]
    hosts = ["shop.example", None, "shop.example", "x", "shop.example"]
    paths = ["/v1/orders", "/a", "/v1/orders", "/b", None]
    expected = [matcher.find(m or "", h or "", p or "") for m, h, p in zip(methods, hosts, paths, strict=True)]
    for form in (list, pa.array, lambda v: pa.array(v).dictionary_encode(), lambda v: pa.chunked_array([v[:2], v[2:]])):
        batch = matcher.find_batch(form(methods), form(hosts), form(paths))
        assert [batch.matches[code] for code in batch.codes] == expected
    assert len(matcher.find_batch([], [], []).codes) == 0


def test_paths_that_match_nothing_leave_nothing_behind():
    """20,000 distinct undocumented paths: the index does not grow, and they are one answer."""
    matcher = index(SHOP)
    matcher.find("GET", "shop.example", "/v1/nothing")
    methods = pa.array(["GET"]).take(pa.array(np.zeros(20_000, np.int32)))
    hosts = pa.array(["shop.example"]).take(pa.array(np.zeros(20_000, np.int32)))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    batch = matcher.find_batch(methods, hosts, pa.array([f"/scan/{n}.php" for n in range(20_000)]))
    assert [match.state for match in batch.matches] == ["undocumented-path"]
    del batch
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
