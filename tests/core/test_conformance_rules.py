"""Each rule has traffic that it finds, and traffic that it must not find; both through the real matcher."""

import pytest

from apicost.core import records
from apicost.core.conformance.contract import DocumentFault, Former, Scheme
from apicost.core.conformance.finding import RULES, Settings
from tests.core.conformance_traffic import JSON, KEY, NOON_S, api_of, batch, contract, get, judged, rules

LIST = contract("GET /orders")
ONE = contract("GET /orders/{id}", responses=("200", "404"))
MAKE = contract("POST /orders", responses=(("201", JSON), "4XX"), request_types=(JSON,))
WEEK = {"window_days": 7.0}
FORMER = Former(
    api="shop",
    operation_id="GET /carts/{id}",
    method="GET",
    path_template="/v1/carts/{id}",
    spec="old.yaml",
    pointer="/paths/~1carts~1{id}/get",
    last_unix_s=NOON_S,
)
TWINS = DocumentFault(
    rule="spec-identical-templates",
    api="shop",
    operations=(("shop", "GET /orders/{id}"), ("shop", "GET /orders")),
    method="GET",
    path_template="/v1/orders/{id}",
    detail="/v1/orders/{id} and /v1/orders/{orderId} are one template",
    document="shop.yaml",
    pointer="/paths/~1orders~1{id}",
    fix="merge the two path items",
)
DOUBLE = DocumentFault(
    rule="cross-spec-duplicate",
    api="shop",
    operations=(("shop", "GET /orders"), ("other", "GET /orders")),
    method="GET",
    path_template="/v1/orders",
    detail="also in other.yaml",
    document="shop.yaml",
    pointer="/paths/~1orders",
    fix="describe it once",
)


def sampled(rule, detail="/total type", pointer="/components/schemas/Order/properties/total", samples=1, **more):
    """A row of SAMPLE; rule None for samples without a fault."""
    return {
        "minute_unix_s": NOON_S,
        "node": "n1",
        "api": "shop",
        "operation_id": "POST /orders",
        "method": "POST",
        "path_template": "/v1/orders",
        "status": "201",
        "rule": rule,
        "detail": detail if rule else None,
        "pointer": pointer if rule else None,
        "samples": samples,
        "first_unix_ns": NOON_S * 10**9 + 1,
        "last_unix_ns": NOON_S * 10**9 + 9,
        **more,
    }


def samples(*rows):
    return batch(records.SAMPLE, rows)


def sizes(*pairs, **more):
    """Answers of so many bytes, so often."""
    return [get("/v1/orders", downstream_out_app_bytes=size, calls=calls, **more) for size, calls in pairs]


POST = get("/v1/orders", method="POST", status=201, request_content_type=JSON, response_content_type=JSON)
DEAD = contract("GET /dead")

# rule -> (requests, operations, more of judged()), what it says: (method and template, detail).
FIRES = {
    "shadow-endpoint": (([get("/v1/debug/17", calls=3)], LIST), {}, "GET /v1/debug/{debugId}", ""),
    "undocumented-method": (([get("/v1/orders/8", method="DELETE")], LIST, ONE), {}, "DELETE /v1/orders/{id}", ""),
    "security-missing": (
        ([get("/v1/me")], contract("GET /me", security=(KEY,))),
        {},
        "GET /v1/me",
        "no credentials",
    ),
    "removed-operation-in-use": (([get("/v1/carts/8")], LIST), {"former": (FORMER,)}, "GET /v1/carts/{id}", ""),
    "request-schema": (
        ([POST], MAKE),
        {"samples": samples(sampled("request-schema"))},
        "POST /v1/orders",
        "/total type",
    ),
    "response-schema": (
        ([POST], MAKE),
        {"samples": samples(sampled("response-schema"))},
        "POST /v1/orders",
        "/total type",
    ),
    "deprecated-in-use": (([get("/v1/old")], contract("GET /old", deprecated=True)), {}, "GET /v1/old", ""),
    "undocumented-status": (([get("/v1/orders", status=418)], LIST), {}, "GET /v1/orders", "status 418"),
    "undocumented-content-type": (
        ([{**POST, "request_content_type": "text/csv"}], MAKE),
        {},
        "POST /v1/orders",
        "request text/csv",
    ),
    "undocumented-query-param": (([get("/v1/orders", query_names="sort")], LIST), {}, "GET /v1/orders", "query 'sort'"),
    "missing-required-param": (
        ([get("/v1/search", query_names="page")], contract("GET /search", query=("q!", "page"))),
        {},
        "GET /v1/search",
        "query 'q'",
    ),
    "server-mismatch": (
        ([get("/v1/orders", host="shop.internal")], LIST),
        {},
        "GET /v1/orders",
        "host shop.internal",
    ),
    "response-size-anomaly": (
        (sizes((300, 199), (300_000, 1)), LIST),
        {},
        "GET /v1/orders",
        "responses far above the usual size",
    ),
    "ambiguous-operation": (
        ([get("/v1/orders/8")], ONE, contract("GET /orders/{key}", responses=("200",))),
        {},
        "GET /v1/orders/{id}",
        "",
    ),
    "cross-spec-duplicate": (([get("/v1/orders")], LIST), {"faults": (DOUBLE,)}, "GET /v1/orders", DOUBLE.detail),
    "orphan-operation": (([get("/v1/orders")], LIST, DEAD), WEEK, "GET /v1/dead", ""),
    "never-seen-status": (([get("/v1/orders/8", calls=100)], ONE), WEEK, "GET /v1/orders/{id}", "status 404"),
    "loose-match": (([get("/v1//orders")], LIST), {}, "GET /v1/orders", ""),
    "method-fallthrough": (
        ([get("/v1/orders/new")], ONE, contract("POST /orders/new")),
        {},
        "GET /v1/orders/{id}",
        "",
    ),
    "spec-identical-templates": (
        ([get("/v1/orders")], LIST),
        {"faults": (TWINS,)},
        "GET /v1/orders/{id}",
        TWINS.detail,
    ),
}

GATEWAY = {"response_source": "apisix"}
BOUND = {"apis": [api_of(LIST, route_ids=("r1",))]}
SECRET = contract("GET /me", security=(KEY,))
PAGE = {"response_content_type": "text/html"}

QUIET = {
    "shadow-endpoint": [
        (([get("/v1/debug", calls=2)], LIST), {}),  # too few
        (([get("/v1/debug", calls=9)], LIST), {"settings": Settings(shadow_min_clients=2)}),  # of too few
        (([get("/v1/debug", calls=9, status=404)], LIST), {}),
        (([get("/v1/debug", calls=9, status=405)], LIST), {}),
        (([get("/v1/debug", calls=9, status=410)], LIST), {}),
        (([get("/v1/debug", calls=9, status=403, **GATEWAY)], LIST), {}),
        (([get("/v1/debug", calls=9, status=502, response_source="nginx")], LIST), {}),
        (([get("/v1/debug", calls=9, method="OPTIONS", status=204)], LIST), {}),
        (([get(f"/v1/{name}", calls=9, **PAGE) for name in "abcdefgh"], LIST), {}),  # a page for everything
        # Documented by now, and documented for that host by another API.
        (([get("/v1/debug", calls=9)], LIST, contract("GET /debug")), {"apis": [api_of(LIST)]}),
        (([get("/v1/debug", calls=9)], LIST, contract("GET /debug", api="other")), {"apis": [api_of(LIST)]}),
    ],
    "undocumented-method": [
        (([get("/v1/orders", method="PUT", status=status)], LIST), {}) for status in (404, 405, 501)
    ]
    + [
        (([get("/v1/orders", method="PUT", status=403, **GATEWAY)], LIST), {}),
        (([get("/v1/orders", method="OPTIONS", status=418)], LIST), {}),  # a preflight, whatever comes of it
        (([get("/v1/orders", method="HEAD")], LIST), {}),
        (([POST], LIST, MAKE), {"apis": [api_of(LIST)]}),  # documented by now
    ],
    "security-missing": [
        (([get("/v1/me", auth_kinds="apikey")], SECRET), {}),
        (([get("/v1/me", consumer="anna")], SECRET), {}),  # the gateway knew who it was
        (([get("/v1/me", status=401)], contract("GET /me", security=(KEY,), responses=("401",))), {}),
        (([get("/v1/me", status=200, **GATEWAY)], SECRET), {}),
        (([get("/v1/me")], contract("GET /me", security=(KEY, ()))), {}),  # or nothing at all
        (
            (
                [get("/v1/me", query_names="(more)")],
                contract("GET /me", query_open=True, security=((Scheme(name="k", kind="query", query_name="k"),),)),
            ),
            {},
        ),
        (([get("/v1/me")], contract("GET /me", security=((Scheme(name="k", kind=""),),))), {}),
        (
            (
                [get("/v1/me", query_names="k")],
                contract("GET /me", security=((Scheme(name="k", kind="query", query_name="k"),),)),
            ),
            {},
        ),
        (
            ([get("/v1/me", auth_kinds="other")], contract("GET /me", security=((Scheme(name="b", kind="bearer"),),))),
            {},
        ),
        (
            (
                [get("/v1/me", auth_kinds="bearer")],
                contract("GET /me", security=((Scheme(name="a", kind="authorization"),),)),
            ),
            {},
        ),
    ],
    "removed-operation-in-use": [
        (([get("/v1/carts/8", status=410)], LIST), {"former": (FORMER,)}),
        (([get("/v1/carts/8", status=404)], LIST), {"former": (FORMER,)}),
        (([get("/v1/carts/8", status=200, **GATEWAY)], LIST), {"former": (FORMER,)}),
        # Called while it was documented.
        (
            ([get("/v1/carts/8", ended_unix_ns=(NOON_S - 1) * 10**9)], LIST),
            {"former": (FORMER,), "apis": [api_of(LIST, contract("GET /carts/{id}"))]},
        ),
        # Back in the documents.
        (([get("/v1/carts/8")], LIST, contract("GET /carts/{cartId}")), {"former": (FORMER,), "apis": [api_of(LIST)]}),
    ],
    "request-schema": [(([POST], MAKE), {"samples": samples(sampled(None))})],
    "response-schema": [(([POST], MAKE), {"samples": samples(sampled(None))})],
    "deprecated-in-use": [
        (([get("/v1/orders")], LIST, contract("GET /old", deprecated=True)), {}),
        (([get("/v1/old", status=429, **GATEWAY)], contract("GET /old", deprecated=True)), {}),
        (([get("/v1/orders", query_names="new")], contract("GET /orders", query=("old?", "new"))), {}),
    ],
    "undocumented-status": [
        (([get("/v1/orders", status=404)], contract("GET /orders", responses=("200", "4XX"))), {}),
        (([get("/v1/orders", status=503)], contract("GET /orders", responses=("200", "default"))), {}),
        (([get("/v1/orders", status=418)], contract("GET /orders", responses=())), {}),  # nothing is described
        (([get("/v1/orders", status=401, **GATEWAY)], LIST), {}),
        (([get("/v1/orders", status=502, response_source="nginx")], LIST), {}),
        (([get("/v1/orders", status=499)], LIST), {}),  # the client went away
        (([get("/v1/orders", method="OPTIONS", status=204)], LIST), {}),
    ],
    "undocumented-content-type": [
        (([{**POST, "request_content_type": "text/csv"}], contract("POST /orders", responses=("201",))), {}),
        (
            (
                [{**POST, "request_content_type": "text/csv"}],
                contract("POST /orders", responses=("201",), request_types=("text/*",)),
            ),
            {},
        ),
        (([{**POST, "response_content_type": "text/html", **GATEWAY}], MAKE), {}),
        (([{**POST, "status": 400, "response_content_type": "text/html"}], MAKE), {}),  # 4XX has no content described
        (([get("/v1/a", method="HEAD", **PAGE)], contract("GET /a", responses=(("200", JSON),))), {}),
        (([get("/v1/a", status=304, **PAGE)], contract("GET /a", responses=(("304", JSON),))), {}),
        (([get("/v1/a", **PAGE)], contract("GET /a", responses=(("200", JSON, "*/*"),))), {}),
        (([get("/v1/a", **PAGE)], contract("GET /a", responses=(("200", "*"),))), {}),
        (
            (
                [get("/v1/a", response_content_type="application/hal+json")],
                contract("GET /a", responses=(("200", "application/*+json"),)),
            ),
            {},
        ),
        (([get("/v1/a")], contract("GET /a", responses=(("200", JSON),))), {}),  # no media type was sent
    ],
    "undocumented-query-param": [
        (([get("/v1/orders", query_names="page")], contract("GET /orders", query=("page",))), {}),
        (([get("/v1/orders", query_names="x")], contract("GET /orders", query_open=True)), {}),
        (([get("/v1/orders", query_names="f%5Bcolour%5D")], contract("GET /orders", query=("f[",))), {}),
        (([get("/v1/orders", query_names="a+b,c%2Cd")], contract("GET /orders", query=("a b", "c,d"))), {}),
        (([get("/v1/orders", query_names="*,(more)")], LIST), {}),
        (([get("/v1/orders", query_names="x", **GATEWAY, status=400)], LIST), {}),
        (([get("/v1/orders", query_names="n" * 50)], contract("GET /orders", query=("n" * 50,))), {}),
        (
            (
                [get("/v1/orders", query_names="k")],
                contract("GET /orders", security=((Scheme(name="k", kind="query", query_name="k"),),)),
            ),
            {},
        ),
    ],
    "missing-required-param": [
        (([get("/v1/search", query_names="q")], contract("GET /search", query=("q!",))), {}),
        (([get("/v1/search", query_names="q%5Bx%5D")], contract("GET /search", query=("q[",))), {}),
        (([get("/v1/search")], contract("GET /search", query=("q",))), {}),
        (([get("/v1/search", query_names="*")], contract("GET /search", query=("q!",))), {}),
        (([get("/v1/search", status=400, **GATEWAY)], contract("GET /search", query=("q!",))), {}),
    ],
    "server-mismatch": [
        (([get("/v1/orders", host="SHOP.example:443")], LIST), {}),
        (([get("/v1/orders", host="eu.shop.example")], contract("GET /orders", servers=("*.shop.example",))), BOUND),
        (([get("/v1/orders", host="x.y", route_id="r1")], contract("GET /orders", servers=())), BOUND),
        (([get("/v1/orders", host="x.y", status=404)], LIST), {}),
        (([get("/v1/orders", host="x.y", status=403, **GATEWAY)], LIST), {}),
        (([get("/wp-login.php", host="x.y")], contract("GET /{any}", base="")), {"apis": [api_of(LIST)]}),
        (([get("/v1/orders", host=None)], LIST), {}),
    ],
    "response-size-anomaly": [
        ((sizes((300, 98), (300_000, 1)), LIST), {}),  # too few calls
        ((sizes((300, 195), (300_000, 5)), LIST), {}),  # too many to be odd
        ((sizes((300, 199), (300_000, 1)), LIST), {"settings": Settings(anomaly_min_calls=201)}),
        ((sizes((300, 199), (2_000, 1)), LIST), {}),  # not far enough
        ((sizes((300_000, 199), (300, 1)), LIST), {}),  # far below
        ((sizes((300, 199)) + sizes((300_000, 1), method="HEAD"), LIST), {}),
        ((sizes((300, 199)) + sizes((300_000, 1), **GATEWAY), LIST), {}),
    ],
    "ambiguous-operation": [(([get("/v1/orders/8"), get("/v1/orders")], ONE, LIST), {})],
    "cross-spec-duplicate": [(([get("/v1/orders")], LIST), {})],
    "orphan-operation": [
        (([get("/v1/orders")], LIST, DEAD), {"window_days": 6.9}),
        (([get("/v1/orders"), get("/v1/dead", status=429, **GATEWAY)], LIST, DEAD), WEEK),
        (([get("/v1/orders"), get("/v1/dead", host="x.y", status=404)], LIST, DEAD), WEEK),
        (([get("/v1/orders/8", calls=9)], ONE, contract("GET /orders/{key}")), WEEK),  # either may be meant
    ],
    "never-seen-status": [
        (([get("/v1/orders/8", calls=99)], ONE), WEEK),
        (([get("/v1/orders/8", calls=100)], ONE), {"window_days": 6.9}),
        (([get("/v1/orders/8", calls=99), get("/v1/orders/8", status=404, **GATEWAY)], ONE), WEEK),
        (([get("/v1/a", calls=100)], contract("GET /a", responses=("200", "default"))), WEEK),
    ],
    "loose-match": [(([get("/v1/orders")], LIST), {})],
    "method-fallthrough": [
        (([get("/v1/orders/8")], ONE, contract("POST /orders/new")), {}),
        (([get("/v1/orders/new")], ONE, contract("GET /orders/new")), {}),
    ],
    "spec-identical-templates": [(([get("/v1/orders")], LIST), {})],
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_what_it_is_for_and_nothing_else_does(rule):
    """The traffic of a rule's own case gives its finding, and that alone."""
    arguments, more, operation, detail = FIRES[rule]
    assert rules(judged(*arguments, **more)) == [(rule, operation, detail)]


QUIET_CASES = [
    pytest.param(rule, *arguments, more, id=f"{rule}-{number}")
    for rule, cases in QUIET.items()
    for number, ((requests, *operations), more) in enumerate(cases)
    for arguments in [(requests, operations or [LIST])]
]


@pytest.mark.parametrize(("rule", "requests_", "operations", "more"), QUIET_CASES)
def test_each_rule_leaves_alone_what_it_is_not_for(rule, requests_, operations, more):
    """What comes near to a rule and is none of its business gives no finding of it, nor a shadow in its place."""
    found = {name for name, _, _ in rules(judged(requests_, *operations, **more))}
    assert not found & {rule, "shadow-endpoint", "undocumented-status", "undocumented-method"}


def test_every_rule_has_both_kinds_of_cases():
    """A new rule comes with a case that fires and one that must not."""
    assert set(FIRES) == set(QUIET) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_can_be_switched_off_and_turned_into_another_severity(rule):
    """Severity "off" drops the finding; any other replaces the rule's own."""
    arguments, more, _, _ = FIRES[rule]
    assert judged(*arguments, **more, settings=Settings(severity={rule: "off"})).findings == ()
    (finding,) = judged(*arguments, **more, settings=Settings(severity={rule: "info"})).findings
    assert finding.severity == "info"


@pytest.mark.parametrize("rule", RULES)
def test_every_finding_is_complete(rule):
    """Figures, a sample where there is traffic, a place in the document, and what to do."""
    arguments, more, _, _ = FIRES[rule]
    (finding,) = judged(*arguments, **more).findings
    assert finding.document
    assert finding.pointer.startswith("/")
    assert len(finding.fix) > 10
    if finding.rows:
        assert finding.count > 0
        assert NOON_S * 10**9 < finding.first_unix_ns <= finding.last_unix_ns
        assert finding.clients == (0 if finding.share else 1)
        assert finding.wire_bytes > 0
        assert " -> " in finding.sample
    else:
        assert rule in ("orphan-operation", "never-seen-status")
        assert (finding.count, finding.sample) == (0, "")
