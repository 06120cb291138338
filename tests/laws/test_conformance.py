"""Laws of the judge: what follows a document is never found wanting, one deviation is found once, as what it is.

Documents and traffic are drawn; requests go through the real matcher and the real shapes.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog.contracts import load_contracts
from apicost.catalog.openapi import Source, load_apis
from apicost.core import records
from apicost.core.conformance.contract import Contract, DocumentFault, Former, QueryParameter, Response, Scheme
from apicost.core.conformance.finding import RULES, Settings
from apicost.core.conformance.judge import judge
from apicost.core.conformance.point import response_of
from apicost.core.conformance.shapes import merge, shapes
from apicost.core.naming.match import name_exchanges
from apicost.core.scopes import Scopes
from tests.core.conformance_traffic import NOON_S, api_of, batch, contracts, get, joined, shape

HOST = "s.example"
TYPES = ["application/json", "application/xml", "text/plain", "image/*", "*/*"]
SENT = {"image/*": "image/png", "*/*": "video/mp4"}  # a media type for each range; the others are their own
SCHEMES = [
    Scheme(name="basic", kind="basic"),
    Scheme(name="token", kind="bearer"),
    Scheme(name="raw", kind="authorization"),
    Scheme(name="key", kind="apikey"),
    Scheme(name="session", kind="cookie"),
    Scheme(name="cert", kind="mtls"),
    Scheme(name="q", kind="query", query_name="access_key"),
]
PARAMETER = re.compile(r"\{[^{}]*\}")
SENT_KINDS = {"authorization": "other", "query": None}
# Values of path parameters are no literal of any template, so that a request fits the template it was made from best.
LITERALS = st.sampled_from(["orders", "users", "a b", "2010-04-01", "v2"])
SEGMENTS = st.one_of(LITERALS, st.sampled_from(["{p}", "{p}", "{p}.json", "{p}:go"]))
VALUES = st.sampled_from(
    ["17", "-3", "0b9f2a3c-53a1-4c0f-9f61-0d7a2ab1c9de", "anna", "d41d8cd98f00b204e9800998ecf8427e", "a%20c", "1.2.3.4"]
)
# Strategies are made once: making them costs more than drawing from them.
YES = st.booleans()
METHODS = st.sampled_from(["GET", "POST", "PUT"])
NAMES = st.lists(st.sampled_from(["page", "limit", "a b", "ids[]", "ünï"]), unique=True, max_size=3)
SOME_STATUSES = st.lists(st.sampled_from(["201", "2XX", "404", "5XX"]), unique=True, max_size=3)
COMMON = st.lists(st.sampled_from(["200", "default"]), min_size=1, unique=True)
MEDIA = {
    rich: st.lists(st.sampled_from(TYPES[:4] if rich else TYPES), unique=True, min_size=rich, max_size=2).map(tuple)
    for rich in (False, True)
}
SECURITY = {
    rich: st.lists(
        st.lists(st.sampled_from(SCHEMES), unique=True, min_size=rich, max_size=2).map(tuple), min_size=rich, max_size=2
    ).map(tuple)
    for rich in (False, True)
}
SECONDS = st.integers(0, 86_400)
SIZES = st.integers(256, 1023)  # one size class
CLIENTS = st.integers(0, 9)
CALLS = st.integers(1, 3)
CONSUMERS = st.sampled_from([None, None, "anna"])
SOURCES = st.sampled_from(["upstream", "upstream", None])
TEMPLATES = st.lists(
    st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)), max_size=3, unique=True
)


@st.composite
def operations(draw, template, rich=False):
    """The contract of one operation. rich: with everything that a deviation needs, and nothing that allows any."""
    method = draw(METHODS)
    query = [QueryParameter(name=name, required=draw(YES), pointer=f"/{name}") for name in draw(NAMES)]
    if draw(YES):
        query.append(QueryParameter(name="filter", prefix=True, required=draw(YES)))
    if rich:
        query.append(QueryParameter(name="must", required=True, pointer="/must"))
    types = MEDIA[rich]
    statuses = [*draw(SOME_STATUSES), *(["200"] if rich else draw(COMMON))]
    pointer = f"/paths/{len(template)}/{method.lower()}"
    return Contract(
        api="shop",
        operation_id=f"{method} {template}",
        method=method,
        path_template=f"/v1{template}",
        spec="shop.yaml",
        pointer=f"{pointer}{template}",
        query=tuple(query),
        query_open=not rich and draw(YES),
        request_types=draw(types) if rich or (method != "GET" and draw(YES)) else None,
        responses=tuple(Response(status=status, types=draw(types), pointer="/responses") for status in statuses),
        security=draw(SECURITY[rich]),
        servers=(HOST,),
    )


def path_of(template, draw):
    """A path that a template was made for."""
    parts = []
    for segment in template.split("/")[1:]:
        parts.append(PARAMETER.sub(lambda _: draw(VALUES), segment).replace(" ", "%20"))
    return "/" + "/".join(parts)


@st.composite
def requests(draw, operation):
    """A request that an operation promises."""
    asked = [f"{p.name}[x]" if p.prefix else p.name for p in operation.query if p.required or draw(YES)]
    kinds = []
    if operation.security:
        for scheme in draw(st.sampled_from(operation.security)):
            kinds.append(SENT_KINDS.get(scheme.kind, scheme.kind))
            asked += [scheme.query_name] if scheme.query_name else []
    if operation.query_open and draw(YES):
        asked.append("whatever")
    described = draw(st.sampled_from(operation.responses))
    sent = {"2XX": 207, "5XX": 503}.get(described.status) or (418 if described.status == "default" else None)
    status = sent or int(described.status)
    response = response_of(operation, str(status))
    body = operation.request_types and draw(YES)
    with_content = response.types and draw(YES)
    escaped = ",".join(sorted({n.replace("[", "%5B").replace("]", "%5D").replace(" ", "+") for n in asked}))
    return get(
        path_of(operation.path_template, draw),
        method=operation.method,
        host=operation.servers[0],
        status=status,
        query_names=escaped or None,
        auth_kinds=",".join(sorted(filter(None, kinds))) or None,
        consumer=draw(CONSUMERS),
        request_content_type=_sent(draw(st.sampled_from(operation.request_types))) if body else None,
        response_content_type=_sent(draw(st.sampled_from(response.types))) if with_content else None,
        response_source=draw(SOURCES),
        downstream_out_app_bytes=draw(SIZES),
        client=draw(CLIENTS),
        calls=draw(CALLS),
        ended_unix_ns=(NOON_S + draw(SECONDS)) * 10**9,
    )


def _sent(media_type):
    return SENT.get(media_type, media_type)


@dataclass
class World:
    """A document and traffic that keeps to it. target: a rich operation that no other template comes near."""

    operations: list[Contract]
    target: Contract
    requests: list[dict]
    wanted: dict

    def judged(self, **more):
        """The judgement of what came; the window is too short for anything about what did not."""
        samples = more.pop("samples", None)
        held = contracts(*self.operations, **more)
        return judge(self.shape(), held, Settings(), window_days=0, samples=samples)

    def shape(self, *more):
        return shape([*self.requests, *more], api_of(*self.operations, hosts=[HOST]))


TARGET = "/target/{p}/of/all/deviations"


@st.composite
def worlds(draw):
    """A document of some operations and the target, and requests of them."""
    described = [draw(operations(template)) for template in draw(TEMPLATES)]
    target = draw(operations(TARGET, rich=True))
    described.insert(draw(YES) * len(described), target)
    made = [draw(requests(operation)) for operation in described if draw(YES)]
    wanted = draw(requests(target))
    good = next(r for r in target.responses if r.status == "200")
    # The request that is going to deviate is answered well, and by the backend.
    wanted |= {"status": 200, "response_source": "upstream", "consumer": None, "calls": 2 + draw(CALLS)}
    wanted["response_content_type"] = _sent(good.types[0]) if good.types else None
    return World(described, target, [*made, wanted], wanted)


NOISE = st.builds(
    get,
    st.sampled_from(
        ["/v1/orders", "/v1/.env", "/v1/target/1/of/all/deviations", "/wp-login.php", "/v1/orders/x/y/z/0"]
    ),
    method=st.sampled_from(["GET", "PATCH", "POST"]),
    host=st.sampled_from([HOST, "198.51.100.7", None]),
    status=st.sampled_from([200, 401, 403, 404, 429, 502]),
    response_source=st.sampled_from(["apisix", "nginx"]),
    query_names=st.sampled_from([None, "q,*"]),
    response_content_type=st.sampled_from([None, "text/html"]),
    calls=st.integers(1, 4),
)
SCANS = st.builds(
    get,
    st.sampled_from(["/v1/.env", "/v1/x/y/z/a/b/c", "/wp-login.php", "/v1/.git/config"]),
    host=st.sampled_from([HOST, "198.51.100.7"]),
    status=st.sampled_from([404, 405, 410]),
    calls=st.integers(1, 9),
)


@settings(max_examples=100)
@given(worlds(), st.lists(st.one_of(NOISE, SCANS), max_size=4))
def test_traffic_made_from_a_document_gives_no_finding(world, noise):
    """Whatever a document promises may come; what the gateway itself answers too, and scans that find nothing."""
    by_gateway = [r for r in noise if "response_source" in r]
    world.requests += [r for r in noise if r in by_gateway or not _documented(world, r)]
    judgement = world.judged()
    assert judgement.findings == ()
    assert judgement.requests == sum(r["calls"] for r in world.requests)
    assert judgement.gateway_calls == sum(r["calls"] for r in by_gateway)


SPECS = [
    Source(id=name, documents=(Path(__file__).parents[2] / "specs" / f"{name}.yaml",)) for name in ("shop", "media")
]
INDEX = load_apis(SPECS).index
PROMISED = load_contracts(SPECS)[0]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(list(PROMISED.operations.values())).flatmap(requests), min_size=1, max_size=5))
def test_traffic_made_from_real_documents_gives_no_finding_but_for_deprecated_operations(promised):
    """The samples in specs/, read by the same code as the daemon's and the command's."""
    named = name_exchanges(joined(promised), INDEX, node="n1")
    judgement = judge(shapes(named, Scopes()), PROMISED, Settings(), window_days=0)
    assert judgement.matched == judgement.requests
    assert {(f.rule, f.operation_id) for f in judgement.findings} <= {("deprecated-in-use", "getLegacyPrice")}


def _documented(world, request):
    """Whether a scan hit a template by chance: then it is no scan."""
    depth = request["path"].count("/")
    return request["host"] == HOST and any(c.path_template.count("/") == depth for c in world.operations)


def _changed(**columns):
    def change(world):
        world.wanted.update(columns)
        return {}

    return change


def _replaced(world, **fields):
    """The target's contract, changed in the document alone."""
    at = world.operations.index(world.target)
    world.operations[at] = world.target = replace(world.target, **fields)


def _names(world):
    return (world.wanted["query_names"] or "").split(",")


def _shadow(world):
    world.wanted.update(path="/v1/s/h/a/d/o/w/17", query_names=None)
    return {}


def _bare(world):
    kept = [name for name in _names(world) if name != "access_key"]
    world.wanted.update(auth_kinds=None, query_names=",".join(kept))
    return {}


def _removed(world):
    world.operations.remove(world.target)
    fields = {name: getattr(world.target, name) for name in ("api", "operation_id", "method", "path_template", "spec")}
    world.requests[:] = [world.wanted]
    return {"former": (Former(pointer=world.target.pointer, **fields),)}


def _sampled(rule):
    def change(world):
        row = {
            "minute_unix_s": NOON_S, "api": "shop", "operation_id": world.target.operation_id,
            "method": world.target.method, "path_template": world.target.path_template, "status": "200",
            "samples": 1, "first_unix_ns": 1, "last_unix_ns": 2,
        }  # fmt: skip
        bad = {**row, "rule": rule, "detail": "/a type", "pointer": "/x", "samples": world.wanted["calls"]}
        return {"samples": batch(records.SAMPLE, [row, bad])}

    return change


def _deprecated(world):
    _replaced(world, deprecated=True)
    world.requests[:] = [world.wanted]
    return {}


def _status(world):
    world.wanted["status"] = next(s for s in (219, 319, 419) if not response_of(world.target, str(s)))
    return {}


def _more_names(world):
    world.wanted["query_names"] = ",".join(sorted([*filter(None, _names(world)), "zz"]))
    return {}


def _fewer_names(world):
    world.wanted["query_names"] = ",".join(name for name in _names(world) if name != "must") or None
    return {}


def _size(world):
    world.wanted.update(downstream_out_app_bytes=1_000_000, calls=1)
    world.requests.append({**world.wanted, "downstream_out_app_bytes": 500, "calls": 120})
    return {}


def _ambiguous(world):
    twin = world.target.path_template.replace("{p}", "{twin}")
    world.operations.append(replace(world.target, path_template=twin, operation_id="twin", pointer="/twin"))
    world.requests[:] = [world.wanted]
    return {}


def _fallthrough(world):
    world.wanted["path"] = TARGET.replace("{p}", "special").replace("/target", "/v1/target")
    nearer = f"/v1{TARGET.replace('{p}', 'special')}"
    more = replace(world.target, method="DELETE", path_template=nearer, operation_id="nearer", pointer="/nearer")
    world.operations.append(more)
    return {}


def _fault(rule):
    def change(world):
        target = world.target
        world.requests[:] = [world.wanted]
        return {
            "faults": (
                DocumentFault(
                    rule=rule, api="shop", operations=(("shop", target.operation_id),), method=target.method,
                    path_template=target.path_template, detail="twice", document="shop.yaml", pointer="/x", fix="once",
                ),
            )
        }  # fmt: skip

    return change


MUTATIONS = {
    "shadow-endpoint": _shadow,
    "undocumented-method": _changed(method="PATCH"),
    "security-missing": _bare,
    "removed-operation-in-use": _removed,
    "request-schema": _sampled("request-schema"),
    "response-schema": _sampled("response-schema"),
    "deprecated-in-use": _deprecated,
    "undocumented-status": _status,
    "undocumented-content-type": _changed(request_content_type="font/odd"),
    "undocumented-query-param": _more_names,
    "missing-required-param": _fewer_names,
    "server-mismatch": _changed(host="elsewhere.example"),
    "response-size-anomaly": _size,
    "ambiguous-operation": _ambiguous,
    "cross-spec-duplicate": _fault("cross-spec-duplicate"),
    "loose-match": lambda world: world.wanted.update(path=world.wanted["path"].replace("/of/", "//of/")) or {},
    "method-fallthrough": _fallthrough,
    "spec-identical-templates": _fault("spec-identical-templates"),
}


@pytest.mark.parametrize("rule", MUTATIONS)
@settings(max_examples=20)
@given(data=st.data())
def test_one_deviation_gives_exactly_its_finding(rule, data):
    """Among traffic that keeps to the document one that does not is found once, with its calls and no others."""
    world = data.draw(worlds())
    more = MUTATIONS[rule](world)
    (finding,) = world.judged(**more).findings
    assert (finding.rule, finding.severity) == (rule, RULES[rule].severity)
    assert finding.count == world.wanted["calls"]
    if rule not in ("request-schema", "response-schema"):
        assert finding.wire_bytes == world.wanted["calls"] * (100 + world.wanted["downstream_out_app_bytes"])
        assert finding.first_unix_ns == finding.last_unix_ns == world.wanted["ended_unix_ns"]


def test_every_rule_of_traffic_has_its_deviation():
    """Only the rules about what did not come have none."""
    assert set(RULES) - set(MUTATIONS) == {"orphan-operation", "never-seen-status"}


@settings(max_examples=20)
@given(worlds(), st.integers(0, 400))
def test_what_was_never_called_is_all_that_a_long_window_adds(world, calls):
    """Orphans are the operations without a call; statuses are missed only where there were calls enough."""
    world.wanted["calls"] = calls or 1
    judgement = judge(world.shape(), contracts(*world.operations), Settings(), window_days=7)
    (coverage,) = judgement.coverage
    orphans = sorted(f.operation_id for f in judgement.findings if f.rule == "orphan-operation")
    assert orphans == list(coverage.unseen)
    assert coverage.operations == coverage.operations_seen + len(orphans)
    called = {f.operation_id for f in judgement.findings if f.rule == "never-seen-status"}
    assert {f.rule for f in judgement.findings} <= {"orphan-operation", "never-seen-status"}
    if called:
        assert sum(r["calls"] for r in world.requests) >= 100


# Anything at all: what the laws below hold for needs no sense in it.
ANYTHING = st.builds(
    get,
    st.sampled_from(
        ["/v1/target/1/of/all/deviations", "/v1/target/x/of/all/deviations/", "/v1/odd/7", "/v1/odd/8", "/q"]
    ),
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS"]),
    host=st.sampled_from([HOST, "other.example", None]),
    status=st.sampled_from([200, 201, 204, 404, 418, 499]),
    response_source=st.sampled_from(["upstream", "upstream", None, "apisix"]),
    query_names=st.sampled_from([None, "a", "a,must", "must,%61", "*"]),
    consumer=st.sampled_from([None, "anna", "ben"]),
    auth_kinds=st.sampled_from([None, "bearer", "apikey,mtls"]),
    request_content_type=st.sampled_from([None, "font/odd"]),
    response_content_type=st.sampled_from([None, "font/odd"]),
    downstream_out_app_bytes=st.integers(1, 100_000),
    client=st.integers(0, 99),
    calls=st.integers(1, 4),
    ended_unix_ns=st.integers(0, 3 * 86_400).map(lambda s: (NOON_S + s) * 10**9),
)


@settings(max_examples=40)
@given(worlds(), st.lists(ANYTHING, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_the_length_of_buckets_changes_a_finding(world, anything, random):
    """Minutes, and days put together of shuffled minutes, say the same; each finding's rows add up to its figures."""
    table = world.shape(*anything)
    held = contracts(*world.operations)
    shuffled = table.take(random.sample(range(table.num_rows), table.num_rows))
    days = merge([shuffled], bucket_s=86_400)
    judgements = [judge(rows, held, Settings(), window_days=30) for rows in (table, shuffled, days)]
    plain = [replace(j, findings=tuple(replace(f, rows=()) for f in j.findings)) for j in judgements]
    assert plain[0] == plain[1] == plain[2]
    for rows, judgement in zip((table, shuffled, days), judgements, strict=True):
        calls = np.array(rows["calls"].to_pylist())
        assert len({f.fingerprint for f in judgement.findings}) == len(judgement.findings)
        for finding in judgement.findings:
            assert finding.count == calls[list(finding.rows)].sum()
            assert len(set(finding.rows)) == len(finding.rows)
