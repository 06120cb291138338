"""What the judge makes of a window: whose requests they are, what is noise, figures, coverage, drift."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apicost.core import records
from apicost.core.conformance import noise
from apicost.core.conformance.contract import Former
from apicost.core.conformance.drift import drift
from apicost.core.conformance.finding import RULES, Coverage, Finding, Judgement, Settings
from apicost.core.conformance.judge import judge
from apicost.core.conformance.point import MOST_NAMED
from apicost.core.conformance.queries import asked
from apicost.core.conformance.templates import Templates
from apicost.core.conformance.traffic import CLIENT_BITS, estimated_clients
from tests.core.conformance_traffic import NOON_S, api_of, batch, contract, contracts, get, judged, rules, shape

LIST = contract("GET /orders")
ONE = contract("GET /orders/{id}", responses=("200", "404"))
FORMER = Former(
    api="shop",
    operation_id="old",
    method="GET",
    path_template="/v1/orders/{id}",
    spec="old.yaml",
    pointer="/paths/~1orders~1{id}/get",
    last_unix_s=NOON_S,
)


def test_the_page_of_rules_says_what_the_code_says():
    """docs/rules.md has each rule once, in order, with its severity and meaning, and no empty cell."""
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:3] == "| `"]
    assert [tuple(row[:3]) for row in rows] == [(f"`{r.id}`", r.severity, r.meaning) for r in RULES.values()]
    assert all(len(row) == 5 and all(row) for row in rows)
    numbers = f"the {MOST_NAMED} most", f"within {noise.SPREAD_BYTES} bytes", f"above\n{estimated_clients(2**63 - 1)}"
    assert all(number in page for number in numbers)


def test_findings_are_sorted_by_severity_then_calls():
    """Errors first, and of one severity the most called."""
    found = judged(
        [
            get("/v1/orders", status=418),
            get("/v1/orders/8", status=500, calls=2),
            get("/v1/orders", method="PUT"),
            get("/v1//orders", calls=9),
        ],
        LIST,
        ONE,
    )
    assert [(f.severity, f.count) for f in found.findings] == [
        ("error", 1),
        ("warning", 2),
        ("warning", 1),
        ("info", 9),
    ]


def test_nothing_in_nothing_out():
    """A window without traffic has no findings; a long one has orphans."""
    table = records.empty(records.SHAPE)
    empty = judge(table, contracts(LIST), Settings(), window_days=1)
    assert (empty.requests, empty.findings, empty.unjudged) == (0, (), ("never-seen-status", "orphan-operation"))
    long = judge(table, contracts(LIST), Settings(), window_days=7)
    assert (rules(long), long.unjudged) == ([("orphan-operation", "GET /v1/orders", "")], ())
    assert judge(table, contracts(), Settings(), window_days=7) == Judgement(
        requests=0, matched=0, findings=(), coverage=()
    )


def test_other_columns_are_refused():
    """A batch of another kind is a defect of the stage before."""
    with pytest.raises(records.BatchError, match="judge"):
        judge(records.empty(records.USAGE), contracts(), Settings(), window_days=1)


# Whose requests they are.


def test_a_former_operation_is_told_once_even_where_only_the_method_is_gone():
    """removed-operation-in-use instead of undocumented-method; other methods stay what they are."""
    change = contract("PUT /orders/{id}")
    found = judged([get("/v1/orders/8"), get("/v1/orders/8", method="PATCH")], change, former=(FORMER,))
    assert {name for name, _, _ in rules(found)} == {"removed-operation-in-use", "undocumented-method"}
    (removed,) = [f for f in found.findings if f.rule == "removed-operation-in-use"]
    assert (removed.operation_id, removed.document, removed.pointer) == ("old", "old.yaml", FORMER.pointer)


def test_what_the_matcher_knew_then_is_held_against_what_is_documented_now():
    """Documented then, not now: removed if it was called after that; nothing is known of earlier calls."""
    late = get("/v1/orders/8", ended_unix_ns=NOON_S * 10**9)
    early = get("/v1/orders/8", ended_unix_ns=(NOON_S - 100) * 10**9)
    found = judged([late, early], LIST, apis=[api_of(LIST, ONE)], former=(FORMER,))
    assert [(f.rule, f.count) for f in found.findings] == [("removed-operation-in-use", 1)]


def test_a_parameter_that_was_renamed_is_the_same_operation():
    """Old rows have the old template; they are held against today's operation."""
    renamed = contract("GET /orders/{orderId}")
    found = judged([get("/v1/orders/8", status=418)], renamed, apis=[api_of(ONE)])
    assert rules(found) == [("undocumented-status", "GET /v1/orders/{orderId}", "status 418")]


def test_requests_that_fit_two_operations_are_held_against_what_both_forbid():
    """Only the ambiguity is told of what one of them allows; what neither does is a finding of the first."""
    one = contract("GET /a/{x}", responses=("200",), query=("must!",))
    two = contract("GET /a/{y}", responses=("404",), query=("other",), deprecated=True)
    allowed = [get("/v1/a/1", query_names="must"), get("/v1/a/1", status=404, query_names="other")]
    assert [f.rule for f in judged(allowed, one, two).findings] == ["ambiguous-operation"]
    found = judged([*allowed, get("/v1/a/1", status=418)], one, two)
    assert rules(found)[1:] == [("undocumented-status", "GET /v1/a/{x}", "status 418")]
    assert "GET /v1/a/{y} of shop" in found.findings[0].fix
    assert [(c.operations, c.statuses, c.statuses_seen) for c in found.coverage] == [(2, 2, 1)]


def test_an_operation_of_another_host_of_the_same_api_is_a_server_mismatch():
    """Operations may have servers of their own."""
    upload = contract("POST /files", servers=("upload.example",))
    found = judged([get("/v1/files", method="POST")], LIST, upload, apis=[api_of(LIST)])
    assert rules(found) == [("server-mismatch", "POST /v1/files", "host shop.example")]


def test_traffic_bound_by_its_route_may_come_on_a_host_that_is_not_named():
    """It is held against the operation all the same, and the host is told."""
    found = judged(
        [get("/v1/orders", host="10.0.0.7", route_id="r1", status=418)], LIST, apis=[api_of(LIST, route_ids=("r1",))]
    )
    assert {(f.rule, f.detail) for f in found.findings} == {
        ("server-mismatch", "host 10.0.0.7"),
        ("undocumented-status", "status 418"),
    }


def test_any_host_of_an_api_that_is_bound_to_routes_is_not_every_host():
    """The matcher knew no such host; that the document names none does not make the path this API's."""
    anywhere = contract("GET /orders", servers=())
    found = judged([get("/v1/orders", host="x.y")], anywhere, apis=[api_of(anywhere, hosts=[""], route_ids=("r1",))])
    assert rules(found) == [("server-mismatch", "GET /v1/orders", "host x.y")]


def test_former_operations_of_any_api_are_looked_for_on_hosts_that_nobody_names():
    """An API whose documents are all gone; but a former "/{any}" says nothing."""
    for template, rule in (("/v1/carts/{id}", "removed-operation-in-use"), ("/{a}/{b}/{c}", "shadow-endpoint")):
        former = replace(FORMER, path_template=template)
        found = judged([get("/v1/carts/8", host="x.y", calls=3)], LIST, former=(former,))
        assert [f.rule for f in found.findings] == [rule]


def test_a_preflight_is_never_a_removed_operation():
    """Nobody calls OPTIONS on purpose."""
    former = replace(FORMER, method="OPTIONS", path_template="/v1/orders")
    assert judged([get("/v1/orders", method="OPTIONS", status=204)], LIST, former=(former,)).findings == ()


def test_an_undocumented_method_is_told_by_its_template():
    """A thousand ids are one finding, under the template that fits; so they are where no template can be told."""
    requests = [get(f"/v1/orders/{n}", method="DELETE") for n in range(20)]
    (finding,) = judged(requests, LIST, ONE).findings
    assert (finding.path_template, finding.count) == ("/v1/orders/{id}", 20)
    assert finding.pointer == "/paths/~1orders~1{id}"
    stripped = api_of(ONE, prefix="/shop")  # the gateway takes a prefix away that no contract has
    requests = [get(f"/shop/v1/orders/{n}", method="DELETE") for n in range(20)]
    (finding,) = judged(requests, ONE, apis=[stripped]).findings
    assert (finding.rule, finding.path_template) == ("undocumented-method", "/shop/v1/orders/{orderId}")


def test_a_stripped_prefix_is_part_of_clients_paths_and_of_no_template():
    """Shapes keep the path with the prefix: documented by now, gone, renamed, another method, host and name alike."""
    change = contract("PUT /carts/{cart}")
    behind = {"prefixes": {"shop": "/gw"}}

    def told(requests, *operations, known=(LIST,), **more):
        found = judged(requests, *operations, apis=[api_of(*known, prefix="/gw")], **behind, **more)
        return [(f.rule, f.path_template) for f in found.findings]

    # Documented by now, under the path that clients use and no other.
    assert told([get("/gw/v1/orders/8", status=418)], LIST, ONE) == [("undocumented-status", "/v1/orders/{id}")]
    assert told([get("/v1/orders/8", host="x.y", calls=3)], LIST, ONE) == [("shadow-endpoint", "/v1/orders/{orderId}")]
    # Gone: for the matcher of the time, too; and on a host that nobody names.
    removed = [("removed-operation-in-use", "/v1/orders/{id}")]
    assert told([get("/gw/v1/orders/8")], LIST, former=(FORMER,)) == removed
    assert told([get("/gw/v1/orders/8")], LIST, known=(LIST, ONE), former=(FORMER,)) == removed
    assert told([get("/gw/v1/orders/8", host="x.y")], LIST, former=(FORMER,)) == removed
    # Renamed: old rows have the old template, without the prefix.
    renamed = contract("GET /orders/{orderId}")
    late = [get("/gw/v1/orders/8", status=418)]
    assert told(late, renamed, known=(ONE,)) == [("undocumented-status", "/v1/orders/{orderId}")]
    # Another method of a documented path, and a name that the documents give.
    assert told([get("/gw/v1/carts/8")], change, known=(change,)) == [("undocumented-method", "/gw/v1/carts/{cart}")]
    assert told([get("/gw/v1/carts/8/x", calls=3)], change, known=(change,)) == [
        ("shadow-endpoint", "/gw/v1/carts/{cart}/x")
    ]
    # Another host.
    assert told([get("/gw/v1/orders", host="x.y")], LIST) == [("server-mismatch", "/v1/orders")]


def test_equal_templates_behind_different_prefixes_are_different_requests():
    """No request fits both: the one that was never called is an orphan, and neither is held against the other."""
    one, two = contract("GET /a"), contract("GET /a", api="other", responses=("404",))
    apis = [api_of(one, two, prefix="/gw"), api_of(one, two, id="other", prefix="/other")]
    requests, prefixes = [get("/gw/v1/a", status=404)], {"shop": "/gw", "other": "/other"}
    found = judged(requests, one, two, apis=apis, prefixes=prefixes, window_days=30)
    assert ("undocumented-status", "shop") in {(f.rule, f.api) for f in found.findings}
    assert ("orphan-operation", "other") in {(f.rule, f.api) for f in found.findings}


def test_shadows_are_grouped_by_template_of_the_api_or_of_the_host():
    """Ids fold; an API's hosts are one place; hosts that nobody names are each their own."""
    requests = [get(f"/v1/debug/{n}") for n in range(3)]
    requests += [get(f"/x/{n}", host=host) for n in range(3) for host in ("a.example", "b.example")]
    found = judged(requests, LIST)
    assert rules(found) == [
        ("shadow-endpoint", "GET /x/{xId}", "host a.example"),
        ("shadow-endpoint", "GET /x/{xId}", "host b.example"),
        ("shadow-endpoint", "GET /v1/debug/{debugId}", ""),
    ]
    assert [f.api for f in found.findings] == [None, None, "shop"]
    hosts = ["eu.example", "us.example"]
    both = judged([get("/v1/debug", host=host, calls=2) for host in hosts], LIST, apis=[api_of(LIST, hosts=hosts)])
    assert [(f.api, f.count) for f in both.findings] == [("shop", 4)]
    assert found.findings[0].sample == "GET a.example/x/{xId} -> 200"


def test_templates_can_be_inferred_by_others():
    """The inference is given all paths of one place at once, sorted, each once, with the calls of all its methods."""
    asked_for = []

    def infer(paths, calls):
        asked_for.append(list(zip(paths, calls, strict=True)))
        return ["/v1/{all}"] * len(paths)

    table = shape([get("/v1/b", calls=2), get("/v1/a", method="POST"), get("/v1/b")], api_of(LIST))
    found = judge(table, contracts(LIST), Settings(shadow_min_calls=1), window_days=1, infer=infer)
    assert asked_for == [[("/v1/a", 1), ("/v1/b", 3)]]
    assert [(f.method, f.path_template, f.count) for f in found.findings] == [
        ("GET", "/v1/{all}", 3),
        ("POST", "/v1/{all}", 1),
    ]


@pytest.mark.parametrize(
    ("path", "fitting"),
    [
        ("/v1/orders/{int}", ["/v1/orders/{id}", "/v1/{any}/{id}"]),
        ("/v1/orders/new", ["/v1/orders/new", "/v1/orders/{id}", "/v1/{any}/{id}"]),
        ("/{date}/Accounts/{hex}.json", ["/2010-04-01/Accounts/{sid}.json", "/2010-04-01/Accounts/{any}"]),
        ("/{date}/Accounts/{token}", ["/2010-04-01/Accounts/{sid}.json", "/2010-04-01/Accounts/{any}"]),
        ("/{date}/Accounts/a.json", ["/2010-04-01/Accounts/{sid}.json", "/2010-04-01/Accounts/{any}"]),
        ("/files/{int}/{uuid}/x", ["/files/{+path}"]),
        ("/files", []),
        ("/v1/orders/", []),
        ("*", []),
    ],
)
def test_folded_paths_fit_what_the_paths_themselves_would(path, fitting):
    """Markers stand for values, also where a template's literal folds; the best comes first."""
    lines = ["/files/{+path}", "/v1/{any}/{id}", "/v1/orders/{id}", "/v1/orders/new"]
    lines += ["/2010-04-01/Accounts/{any}", "/2010-04-01/Accounts/{sid}.json"]
    index = Templates([contract(f"GET {line}", base="") for line in lines])
    assert [fit.operation.path_template for fit in index.fitting(path, lambda _: True)] == fitting


# Noise.


def page(path, size=500, **more):
    return get(path, downstream_out_app_bytes=size, calls=3, response_content_type="text/html", **more)


def test_a_page_for_everything_is_no_endpoint():
    """Eight paths of a host that are answered alike are counted and not told; what is answered otherwise is."""
    pages = [page(f"/v1/p{chr(97 + n)}", size=500 + 16 * n) for n in range(8)]
    real = page("/v1/debug", size=5_000)
    found = judged([*pages, real], LIST)
    assert (rules(found), found.soft_404_calls) == ([("shadow-endpoint", "GET /v1/debug", "")], 24)


@pytest.mark.parametrize(
    "differing",
    [
        {"size": 700},  # one of eight is larger
        {"host": "other.example"},
        {"status": 500},
        {"response_content_type": "application/json"},
    ],
)
def test_seven_alike_are_not_enough(differing):
    """Size, host, media type and a 2xx status all have to agree."""
    pages = [page(f"/v1/p{chr(97 + n)}") for n in range(7)]
    odd = {**page("/v1/ph"), **{k if k != "size" else "downstream_out_app_bytes": v for k, v in differing.items()}}
    found = judged([*pages, odd], LIST)
    assert (len(found.findings), found.soft_404_calls) == (8, 0)


def test_ids_of_one_folded_path_are_one_path():
    """Eight numbers are no eight paths."""
    found = judged([page(f"/v1/debug/{n}") for n in range(8)], LIST)
    assert rules(found) == [("shadow-endpoint", "GET /v1/debug/{debugId}", "")]


def slow_alike(intervals, wanted):
    spans = [a for a, _ in intervals]
    good = []
    for begin in spans:
        inside = [i for i, (a, b) in enumerate(intervals) if begin <= a and b <= begin + noise.SPREAD_BYTES]
        good += inside if len(inside) >= wanted else []
    return [i in good for i in range(len(intervals))]


def test_spans_of_alike_sizes_are_found_as_by_trying_all():
    """Against all spans tried one by one, on sizes that crowd."""
    random = np.random.default_rng(7)
    for _ in range(300):
        least = random.integers(0, 600, random.integers(1, 25))
        most = least + random.integers(0, 200, len(least))
        got = noise._alike(least, most, 4).tolist()
        assert got == slow_alike(list(zip(least.tolist(), most.tolist(), strict=True)), 4)


# Names and hosts that clients make up.


def test_made_up_names_and_hosts_are_bounded():
    """The most called by name, the rest together; no call is lost."""
    requests = [get("/v1/orders", query_names=f"n{n:03}", calls=2 if n == 77 else 1) for n in range(80)]
    found = judged(requests, LIST).findings
    assert len(found) == MOST_NAMED + 1
    assert sum(f.count for f in found) == 81
    assert found[0].detail.startswith("query further names") and found[1].detail == "query 'n077'"
    requests = [get("/v1/orders", host=f"h{n:03}.example") for n in range(80)]
    found = judged(requests, LIST).findings
    assert (len(found), sum(f.count for f in found)) == (MOST_NAMED + 1, 80)
    assert found[0].detail.startswith("host further hosts")


def test_one_name_written_in_two_ways_is_one_finding():
    """Percent-encoding and repetition change nothing."""
    requests = [get("/v1/orders", query_names=names) for names in ("sort", "%73ort", "%73ort,sort")]
    (finding,) = judged(requests, LIST).findings
    assert (finding.detail, finding.count) == ("query 'sort'", 3)


@pytest.mark.parametrize(
    ("text", "names", "whole"),
    [
        (None, [], True),
        ("a+b,c%2Cd,%FF", ["a b", "c%2Cd", "%FF"], True),
        ("*,a", ["a"], False),
        ("(more),a", ["a"], False),
        ("(other)", [], False),
        ("(a)", ["(a)"], True),
        (",".join("abcdefghijklmnop"), list("abcdefghijklmnop"), False),
        ("n" * 40, ["n" * 40], False),
        ("n" * 38 + "%C", ["n" * 38], False),
        ("n" * 39 + "%", ["n" * 39], False),
    ],
)
def test_names_of_a_shape(text, names, whole):
    """Decoded where that can be shown; what may be missing is known."""
    found = asked(text)
    assert ([name.shown for name in found.names], found.whole) == (names, whole)


# Figures.


def test_clients_and_consumers_are_counted_apart_from_calls():
    """Ten calls of five addresses and two names."""
    requests = [get("/v1/old", client=n % 5 + 1, consumer=["anna", "ben", None][n % 3]) for n in range(10)]
    (finding,) = judged(requests, contract("GET /old", deprecated=True)).findings
    assert (finding.count, finding.consumers) == (10, 2)
    assert finding.clients in (4, 5, 6)  # an estimate: two may share a bit


def test_clients_are_estimated_by_linear_counting():
    """Small numbers come out as they are, if no two share a bit; all bits set is 300 or more."""
    assert [estimated_clients((1 << n) - 1) for n in range(6)] == [0, 1, 2, 3, 4, 5]
    random = np.random.default_rng(3)
    for true in (10, 30, 60, 120):
        tried = []
        for _ in range(200):
            bits = 0
            for bit in random.integers(0, CLIENT_BITS, true).tolist():
                bits |= 1 << bit
            tried.append(estimated_clients(bits))
        assert abs(np.mean(tried) / true - 1) < 0.1
    assert estimated_clients((1 << 63) - 1) == 305


def test_bytes_are_those_of_the_wire_where_a_flow_was_seen():
    """A row with calls of both kinds has wire bytes, and app bytes for the calls without a flow."""
    seen = {"downstream_confidence": records.Confidence.EXACT, "downstream_in_wire_bytes": 250}
    operation = contract("GET /old", deprecated=True)
    assert judged([get("/v1/old", **seen, downstream_out_wire_bytes=350)], operation).findings[0].wire_bytes == 600
    assert judged([get("/v1/old")], operation).findings[0].wire_bytes == 400
    both = judged([get("/v1/old", **seen), get("/v1/old")], operation).findings
    assert (len(both[0].rows), both[0].wire_bytes) == (1, 250 + 400)


def test_the_sample_is_what_was_seen_most_and_names_no_value():
    """Method, template, names and status; many names are cut."""
    requests = [
        get("/v1/old/8", query_names="a"),
        get("/v1/old/9", query_names="b", calls=2),
        get("/v1/old/anna", query_names="c"),
    ]
    operation = contract("GET /old/{id}", deprecated=True, query_open=True)
    assert judged(requests, operation).findings[0].sample == "GET /v1/old/{id}?b -> 200"
    many = get("/v1/old/8", query_names=",".join("abcdefghij"))
    assert judged([many], operation).findings[0].sample == "GET /v1/old/{id}?a,b,c,d,e,f,g,h,... -> 200"


def test_bytes_without_a_request_are_nobodys():
    """Unattributed bytes and the gateway's own traffic are no requests."""
    for state in ("unattributed", "control"):
        rows = shape([get("/v1/orders")], api_of(LIST)).to_pylist()
        table = batch(records.SHAPE, [{**row, "match_state": state} for row in rows])
        assert judge(table, contracts(LIST), Settings(), window_days=1).requests == 0


def test_requests_are_counted_by_who_answered_and_whether_they_matched():
    """requests, matched, gateway_calls."""
    found = judged(
        [get("/v1/orders"), get("/v1/x", calls=2), get("/v1/orders", status=429, response_source="apisix", calls=4)],
        LIST,
    )
    assert (found.requests, found.matched, found.gateway_calls) == (7, 5, 4)


def test_what_is_documented_by_now_counts_as_matched():
    """The documents of today speak about all of the window."""
    found = judged([get("/v1/debug", calls=9)], LIST, contract("GET /debug"), apis=[api_of(LIST)])
    assert (found.matched, found.findings, found.coverage[0].operations_seen) == (9, (), 1)


def test_the_usual_size_is_that_of_the_middle_call():
    """Neither the smallest answer nor the average decides what is far above."""
    sizes = ((20, 1), (300, 198), (300_000, 1))
    found = judged([get("/v1/orders", downstream_out_app_bytes=size, calls=calls) for size, calls in sizes], LIST)
    assert [(f.rule, f.count) for f in found.findings] == [("response-size-anomaly", 1)]
    assert "below 1 KiB" in found.findings[0].fix


# Sampled bodies.


def sample(rule=None, samples=1, detail="/a type", **more):
    return {
        "minute_unix_s": NOON_S, "api": "shop", "operation_id": "GET /orders", "method": "GET",
        "path_template": "/v1/orders", "status": "200", "rule": rule, "detail": detail if rule else None,
        "pointer": "/x" if rule else None, "samples": samples, "first_unix_ns": 1, "last_unix_ns": 9, **more,
    }  # fmt: skip


def test_a_fault_in_samples_stands_for_its_share_of_the_operation():
    """2 of 10 samples fail: 20 % of the bytes of all 50 calls."""
    table = batch(records.SAMPLE, [sample(samples=10), sample("response-schema", samples=2, consumer=None)])
    (finding,) = judged([get("/v1/orders", calls=50)], LIST, samples=table).findings
    assert (finding.count, finding.share, finding.wire_bytes) == (2, (2, 10), 50 * 400 // 5)
    assert (finding.first_unix_ns, finding.last_unix_ns, finding.pointer) == (1, 9, "/x")
    assert "2 of 10 samples" in finding.fix


def test_a_sample_that_fails_twice_is_one_sample():
    """Two faults of the same three samples are three of three, not three of six."""
    faults = [sample("response-schema", samples=3, detail=d) for d in ("/a type", "/b type")]
    table = batch(records.SAMPLE, [sample(samples=3), *faults])
    found = judged([get("/v1/orders")], LIST, samples=table).findings
    assert [(f.detail, f.share) for f in found] == [("/a type", (3, 3)), ("/b type", (3, 3))]


def test_samples_are_counted_by_the_rows_without_a_rule():
    """Whatever minutes and consumers the faults have; where those rows are gone, the faults alone say how many."""
    faults = [
        sample("response-schema", detail="/a type", consumer="anna"),
        sample("response-schema", detail="/b type", consumer="ben"),
        sample("response-schema", detail="/a type", minute_unix_s=NOON_S + 60),
    ]
    whole = batch(records.SAMPLE, [sample(samples=4), sample(minute_unix_s=NOON_S + 60), *faults])
    found = judged([get("/v1/orders")], LIST, samples=whole).findings
    assert [(f.detail, f.share, f.consumers) for f in found] == [("/a type", (2, 5), 1), ("/b type", (1, 5), 1)]
    found = judged([get("/v1/orders")], LIST, samples=batch(records.SAMPLE, faults)).findings
    assert [(f.detail, f.share) for f in found] == [("/a type", (2, 2)), ("/b type", (1, 1))]


def test_samples_of_an_operation_that_is_gone_are_told_without_rows():
    """There is no traffic to estimate from."""
    gone = sample("request-schema", path_template="/v1/gone", operation_id="gone")
    (finding,) = judged([get("/v1/orders")], LIST, samples=batch(records.SAMPLE, [gone])).findings
    assert (finding.count, finding.rows, finding.share, finding.operation_id) == (1, (), None, "gone")


# Coverage.


def test_coverage_counts_operations_and_statuses_of_each_document():
    """A range and a default are seen by any of their statuses; an operation under two base paths is one."""
    wide = contract("GET /wide", responses=("200", "4XX", "default"))
    twin = contract("GET /wide", responses=("200", "4XX", "default"), base="/v2")
    requests = [get("/v1/wide", status=status) for status in (404, 410, 503)] + [get("/v1/orders", method="HEAD")]
    found = judged(requests, LIST, wide, twin, contract("GET /x", api="empty"), apis=[api_of(LIST, wide)])
    assert found.coverage == (
        Coverage(api="empty", operations=1, operations_seen=0, statuses=1, statuses_seen=0, unseen=("GET /x",)),
        Coverage(api="shop", operations=2, operations_seen=2, statuses=4, statuses_seen=3),
    )


def test_an_api_without_operations_has_a_coverage_of_nothing():
    """Documents that can't be used are not passed over."""
    held = contracts(LIST)
    held = type(held)(operations=held.operations, documents={"broken": ("b.yaml",), **held.documents})
    found = judge(records.empty(records.SHAPE), held, Settings(), window_days=1)
    assert [(c.api, c.operations) for c in found.coverage] == [("broken", 0), ("shop", 1)]


# Drift.


def window(requests, *findings, unjudged=()):
    made = tuple(
        Finding(
            rule=rule,
            severity="error",
            api="shop",
            operation_id=None,
            method="GET",
            path_template="/a",
            detail="",
            count=n,
        )
        for rule, n in findings
    )
    return Judgement(requests=requests, matched=0, findings=made, coverage=(), unjudged=unjudged)


def kinds(found):
    return [[f.rule for f in part] for part in (found.new, found.fixed, found.regressed)]


def test_drift_is_new_fixed_and_regressed():
    """By fingerprint; worse is more than twice the share, of ten requests at least."""
    before = window(1_000, ("loose-match", 10), ("shadow-endpoint", 4), ("undocumented-method", 1))
    after = window(2_000, ("loose-match", 41), ("shadow-endpoint", 9), ("deprecated-in-use", 1))
    assert kinds(drift(before, after)) == [["deprecated-in-use"], ["undocumented-method"], ["loose-match"]]
    assert kinds(drift(before, window(2_000, ("loose-match", 40))))[2] == []
    assert kinds(drift(before, window(1_000, ("undocumented-method", 9))))[2] == []


def test_a_window_that_is_too_short_fixes_nothing():
    """Orphans of a week are not fixed because a day says nothing of them; nor are they new after a day."""
    week, day = window(9, ("orphan-operation", 0)), window(9, unjudged=("orphan-operation",))
    assert kinds(drift(week, day)) == kinds(drift(day, week)) == [[], [], []]
    assert kinds(drift(week, window(9))) == [[], ["orphan-operation"], []]


def test_fingerprints_stay_when_counts_change():
    """The same deviation in another window is the same finding; places in `rows` and figures have no say."""
    some = judged([get("/v1/orders", status=418)], LIST).findings
    more = judged([get("/v1/orders"), get("/v1/orders", status=418, calls=7, client=9)], LIST).findings
    assert [f.fingerprint for f in some] == [f.fingerprint for f in more]
    assert re.fullmatch("[0-9a-f]{32}", some[0].fingerprint)
