"""Drafts of what is missing: whatever came, they are valid documents, and they end the findings they were made of."""

import json
import tempfile
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from apicost.catalog import draft_target
from apicost.catalog.contracts import load_contracts
from apicost.catalog.openapi import Source, load_apis
from apicost.core.conformance.draft import METHODS as METHODS_31
from apicost.core.conformance.draft import draft
from apicost.core.conformance.finding import Settings
from apicost.core.conformance.fold import fold
from apicost.core.conformance.judge import judge
from apicost.core.conformance.shapes import shapes
from apicost.core.conformance.undocumented import in_light_of
from apicost.core.naming.match import name_exchanges
from apicost.core.scopes import Scopes
from tests.core.conformance_traffic import NOON_S, get, joined

UNKNOWN = ("shadow-endpoint", "undocumented-method")
ODD_TYPES = ("b c", "*", "xxx")
# Every operation is told, and nothing is taken for a "not found" page: both would leave a rest that is no draft's.
ALL = Settings(shadow_min_calls=1, shadow_min_clients=1, soft_404_paths=1_000)
SHOP = """
openapi: 3.1.0
info: {title: Shop, version: '1'}
servers:
- {url: 'https://shop.example/v1'}
- {url: 'https://shop.example/{edition}', variables: {edition: {enum: [v2], default: v2}}}
paths:
  /orders: {get: {operationId: listOrders, responses: {'200': {description: d}}}}
  /orders/{order id}:
    get:
      operationId: getOrder
      parameters: [{name: order id, in: path, required: true}]
      responses: {default: {description: d}}
  /files/{name}.json:
    get: {parameters: [{name: name, in: path, required: true}], responses: {'200': {description: d}}}
  /moved/{x!r}: {servers: [{url: 'https://old.example'}], get: {responses: {'200': {description: d}}}}
"""
UUID = "0b9f2a3c-53a1-4c0f-9f61-0d7a2ab1c9de"
WORDS = st.one_of(
    st.sampled_from(["orders", "files", "moved", "17", "x.json", "", "v1", "v2", "inner", UUID]),
    st.sampled_from(["{id}", "{", "}", "a{b}c", "{}", "{0!r:x}", "%7Bq%7D", "%2F", "a%20b", "~1", "$ref", "(other)"]),
    st.text(st.characters(blacklist_characters="/?#", blacklist_categories=["Cs"]), max_size=6),
)  # fmt: skip
PATHS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=5).map(lambda words: "/" + "/".join(words)),
    st.lists(WORDS, min_size=1, max_size=3).map(lambda words: "/v1/" + "/".join(words)),
    st.integers(0, 30).map(lambda n: "/v1/deep" + "/a" * n),
    st.sampled_from(["*", "/", "/v1", "/v1/", "/v2", "x:443", "/v1/(other)"]),
)
METHODS = st.one_of(
    st.sampled_from(["GET"] * 5 + ["POST", "HEAD", "DELETE", "PATCH", "TRACE", "QUERY", "get"]),
    st.sampled_from(["ü", "A B", "\x7f"]),
)
TYPES = st.sampled_from(
    [None, "application/json", "text/html", "a/b c", "*/*", "image/*", "x" * 200, "application/x+y"]
)
REQUESTS = st.builds(
    get,
    st.integers(0, 5),  # which of the paths
    method=METHODS,
    host=st.sampled_from(["shop.example", "shop.example", "old.example", "shop.example:80", "x.example"]),
    status=st.sampled_from([200, 201, 204, 301, 404, 405, 418, 500, 599, 200, 999, 100]),
    query_names=st.one_of(st.none(), st.sampled_from(["page,limit", "*", "a%20b,ids%5B%5D", "x" * 40, "%FF,,"])),
    auth_kinds=st.sampled_from([None, "bearer", "basic", "apikey", "basic,cookie", "mtls", "bearer,mtls"]),
    consumer=st.sampled_from([None, "anna", "bert"]),
    request_content_type=TYPES,
    response_content_type=TYPES,
    response_source=st.sampled_from(["upstream", "upstream", "upstream", "apisix", None]),
    client=st.integers(0, 9),
    calls=st.integers(1, 3),
    ended_unix_ns=st.integers(0, 86_400).map(lambda s: (NOON_S + s) * 10**9),
)  # fmt: skip


@st.composite
def traffic(draw):
    """Requests of few paths, so that several meet at one operation."""
    paths = draw(st.lists(PATHS, min_size=1, max_size=4))
    return [one | {"path": paths[one["path"] % len(paths)]} for one in draw(st.lists(REQUESTS, min_size=1, max_size=9))]


def shop(folder, *more, prefix=""):
    file = Path(folder) / "shop.yaml"
    file.write_text(SHOP)
    return Source(id="shop", documents=(file, *more), strip_prefix=prefix)


def shape(requests, source):
    named = name_exchanges(joined(requests), load_apis([source]).index, node="n1")
    return shapes(named, Scopes())


def drafted(table, source, target=None, settings=ALL, **more):
    held, _ = load_contracts([source])
    target = target or draft_target.of_api(source, held)
    return draft(table, held, settings, target, in_light_of(held), start_unix_s=NOON_S, end_unix_s=NOON_S + 60, **more)


def faults(document):
    return [str(error.message) for error in OpenAPIV31SpecValidator(document).iter_errors()]


def written(folder, found, name="draft"):
    """The draft as a file, in YAML, which has more ways to go wrong."""
    file = Path(folder) / f"{name}.yaml"
    file.write_text(yaml.safe_dump(found.document, sort_keys=False, allow_unicode=True))
    return file


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(traffic(), st.sampled_from(["", "/gw"]))
def test_a_draft_is_valid_and_ends_what_it_was_made_of(requests, prefix):
    """Whatever clients send: the draft is a valid document, holds no more than came, and beside the API's documents
    leaves no undocumented endpoint, method, status or media type of it; behind a prefix that is stripped, too."""
    requests = [one | {"path": prefix + one["path"]} if one["path"][0] == "/" else one for one in requests]
    # With enough ".." a path is outside of the prefix, where no document can speak of it.
    requests = [one for one in requests if one["path"][0] != "/" or fold(one["path"]).startswith(f"{prefix}/")]
    with tempfile.TemporaryDirectory() as folder:
        source = shop(folder, prefix=prefix)
        table = shape(requests, source)
        found = drafted(table, source)
        assert faults(found.document) == []
        assert faults(json.loads(json.dumps(found.document))) == []
        together = shop(folder, written(folder, found), prefix=prefix)
        catalog = load_apis([together])
        assert [problem for problem in catalog.problems if "draft.yaml" in problem.place] == []
        held, problems = load_contracts([together])
        assert [problem for problem in problems if "draft.yaml" in problem.place] == []
        ids = [operation.operation_id.lower() for operation in catalog.operations]
        assert len(set(ids)) == len(ids)
        told = _told(table, held)
        assert [one for one in told if one[0] in UNKNOWN and _can_be_drafted(one)] == []
        of_draft = [f for f in judge(table, held, ALL, window_days=0).findings if f.document.endswith("draft.yaml")]
        assert [f.detail for f in of_draft if f.rule == "undocumented-status" and f.detail != "status 999"] == []
        types = [f.detail for f in of_draft if f.rule == "undocumented-content-type"]
        assert [detail for detail in types if not any(odd in detail for odd in ODD_TYPES)] == []


def _told(table, held):
    return [(f.rule, f.api, f.method, f.path_template) for f in judge(table, held, ALL, window_days=0).findings]


def _can_be_drafted(one):
    """What is an API's, of a method that OpenAPI has, and no path that is none."""
    _, api, method, template = one
    return api is not None and template.startswith("/") and method.lower() in METHODS_31 and method == method.upper()
