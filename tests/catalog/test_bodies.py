"""Sampled bodies against the schemas of their operations: what deviates, where, and what is never held against them."""

import itertools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog.bodies import Checker, Deviation, Exchange
from apicost.catalog.body_errors import holds
from apicost.catalog.openapi import Source

SPECS = Path(__file__).parents[2] / "specs"
JSON = {"content-type": "application/json; charset=utf-8"}
ORDER = {"id": "7", "status": "open", "lines": [{"sku": "A", "count": 1}], "total": "1.00"}


@pytest.fixture(scope="module")
def shop():
    return Checker([Source(id="shop", documents=(SPECS / "shop.yaml",))])


def exchange(method="GET", path="/v1/orders", sent=None, got=None, **more):
    """An exchange of the shop; bodies are given as data."""
    fields = {"host": "shop.example", "status": 200, "query": "", "request_headers": JSON, "response_headers": JSON}
    if sent is not None:
        fields["request_body"] = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    if got is not None:
        fields["response_body"] = got if isinstance(got, bytes) else json.dumps(got).encode()
    return Exchange(method=method, path=path, **{**fields, **more})


def details(checker, one):
    found = [(deviation.rule, deviation.detail) for deviation in checker.check(one)]
    assert checker.problems == []
    return found


@pytest.fixture
def one(tmp_path):
    """A checker of one operation, POST /a/{id}, with a schema for both bodies."""

    def one(schema, version="3.1.0", parameters=(), content="application/json", **binding):
        described = {"content": {content: {"schema": schema}}}
        operation = {"requestBody": described, "responses": {"200": {"description": "d", **described}},
                     "parameters": list(parameters)}  # fmt: skip
        document = {
            "openapi": version,
            "info": {"title": "t", "version": "1"},
            "servers": [{"url": "https://shop.example"}],
            "paths": {"/a/{id}": {"post": operation}},
            "components": {"schemas": {"It": schema}},
        }
        path = tmp_path / "one.json"
        path.write_text(json.dumps(document))
        return Checker([Source(id="one", documents=(path,), **binding)])

    return one


def sent(checker, value, **more):
    """Details of what deviates in a request body."""
    return [detail for _, detail in details(checker, exchange("POST", "/a/1", value, **more))]


def test_what_conforms_gives_nothing(shop):
    """Both bodies, query parameters and a path parameter as the sample document says."""
    assert details(shop, exchange(query="page=2&status=open", got=[ORDER, ORDER])) == []
    new = {"lines": [{"sku": "A", "count": 1}]}
    assert details(shop, exchange("POST", sent=new, got=ORDER, status=201)) == []
    assert details(shop, exchange(path="/v1/products/A-1", got={"sku": "A", "name": "a", "price": "1"})) == []


def test_a_deviation_names_the_place_and_leads_into_the_document(shop):
    """Indexes are "*"; the pointer follows references to the keyword itself."""
    new = {"lines": [{"sku": "A", "count": 1}, {"count": 0}], "note": "n"}
    assert shop.check(exchange("POST", sent=new, got={**ORDER, "status": "lost"}, status=201)) == [
        Deviation(
            "request-schema",
            "/lines/* required sku",
            "/components/schemas/NewOrder/properties/lines/items/required",
        ),
        Deviation(
            "request-schema",
            "/lines/*/count minimum",
            "/components/schemas/NewOrder/properties/lines/items/properties/count/minimum",
        ),
        Deviation("response-schema", "/status enum", "/components/schemas/Order/properties/status/enum"),
    ]


def test_parameters(shop):
    """Of query and path, by openapi-core's deserialisation."""
    assert details(shop, exchange(query="page=0&status=shut")) == [
        ("request-schema", "query page minimum"),
        ("request-schema", "query status enum"),
    ]
    assert details(shop, exchange(query="page=two")) == [("request-schema", "query page type")]
    assert details(shop, exchange(path="/v1/products/a%20b")) == [("request-schema", "path sku pattern")]
    assert details(shop, exchange(query=None)) == []


def test_required_headers_are_missed_only_where_all_headers_are_known(one):
    """Partial headers say nothing; Authorization is no parameter; query names are for the usage lines to tell."""
    named = [("X-Tenant", "header"), ("sid", "cookie"), ("Authorization", "header"), ("q", "query")]
    parameters = [{"name": n, "in": place, "required": True, "schema": {"type": "string"}} for n, place in named]
    checker = one({}, parameters=parameters)
    assert details(checker, exchange("POST", "/a/1")) == []
    assert details(checker, exchange("POST", "/a/1", headers_complete=True)) == [
        ("missing-required-param", "cookie sid"),
        ("missing-required-param", "header X-Tenant"),
    ]
    headers = {"x-tenant": "t", "cookie": "a=b; sid=1"}
    assert details(checker, exchange("POST", "/a/1", headers_complete=True, request_headers=headers)) == []


def test_a_cut_body_is_never_held_against_anybody(shop):
    """Nor is one that was not recorded, one of a HEAD request, or one of a status or media type not described."""
    half = json.dumps([ORDER]).encode()[:-9]
    assert details(shop, exchange(got=half)) == [("response-schema", "/ syntax")]
    assert details(shop, exchange(got=half, response_cut=True)) == []
    assert details(shop, exchange("POST", sent=b'{"lines":', request_cut=True, status=201)) == []
    assert details(shop, exchange("POST", sent=b"", request_cut=True, status=201)) == []
    assert details(shop, exchange("POST", status=201)) == []
    assert details(shop, exchange("HEAD", got=half)) == []
    assert details(shop, exchange(got=half, status=418)) == []
    assert details(shop, exchange(got=half, response_headers={"content-type": "text/html"})) == []
    assert details(shop, exchange(got=half, response_headers={})) == []
    assert details(shop, exchange(got=b"\x1f\x8b", response_headers={**JSON, "content-encoding": "gzip"})) == []
    assert details(shop, exchange("OPTIONS", got=half)) == []
    assert details(shop, exchange(path="/elsewhere", got=half)) == []


def test_a_required_body_that_is_missing(shop):
    """b"" is known to be empty."""
    assert details(shop, exchange("POST", sent=b"", status=201)) == [("request-schema", "/ missing")]


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"properties": {"a": {"type": "integer"}}}, {"a": "[redacted]"}, []),
        ({"properties": {"a": {"enum": ["x"]}}}, {"a": "[redacted]"}, []),
        ({"properties": {"a": {"maxLength": 2}}}, {"a": "[redacted]", "b": 1}, []),
        ({"properties": {"a": {"enum": ["x"]}, "b": {"type": "integer"}}}, {"a": "[redacted]", "b": "no"}, ["/b type"]),
        ({"required": ["a", "b"]}, {"a": "[redacted]"}, ["/ required b"]),
        # Had the removed value been an integer, the first way would fit.
        ({"anyOf": [{"properties": {"a": {"type": "integer"}}}, {"required": ["z"]}]}, {"a": "[redacted]"}, []),
        ({"anyOf": [{"required": ["y"]}, {"required": ["z"]}]}, {"a": "[redacted]"}, ["/ anyOf"]),
        ({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, {"a": "[redacted]"}, []),
        ({"not": {"properties": {"a": {"type": "string"}}}}, {"a": "[redacted]"}, []),
        ({"if": {"properties": {"a": {"const": "[redacted]"}}}, "then": {"required": ["b"]}}, {"a": "[redacted]"}, []),
        ({"type": "array", "uniqueItems": True}, ["[redacted]", "[redacted]"], []),
        ({"type": "array", "maxItems": 1}, ["[redacted]", "[redacted]"], ["/ maxItems"]),
    ],
)
def test_a_removed_value_fits_everything(one, schema, value, expected):
    """A failure that the removed value may have caused does not stand; the others do."""
    assert sent(one(schema), value) == expected


def test_removed_parameters_fit(one):
    """As values of query, path and form fields."""
    number = {"type": "integer"}
    parameters = [{"name": n, "in": w, "required": True, "schema": number} for n, w in (("q", "query"), ("id", "path"))]
    checker = one(number, parameters=parameters)
    assert details(checker, exchange("POST", "/a/x", query="q=x")) == [
        ("request-schema", "path id type"),
        ("request-schema", "query q type"),
    ]
    assert details(checker, exchange("POST", "/a/[redacted]", query="q=[redacted]")) == []
    form = one(
        {"type": "object", "properties": {"n": {**number, "minimum": 1}}}, content="application/x-www-form-urlencoded"
    )
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert sent(form, b"n=1", request_headers=kind) == []
    assert sent(form, b"n=0", request_headers=kind) == ["/n minimum"]
    assert sent(form, b"n=x", request_headers=kind) == ["/* type"]
    assert sent(form, b"n=[redacted]", request_headers=kind) == []


def test_names_that_the_document_does_not_have_are_no_places(one):
    """Keys of maps come from clients, so they are "*", and are not named as undocumented properties either."""
    schema = {
        "type": "object",
        "properties": {"map": {"additionalProperties": {"type": "integer"}}, "shut": {"additionalProperties": False}},
    }
    assert sent(one(schema), {"map": {"secret@example.test": "x"}, "shut": {"secret": 1}}) == [
        "/map/* type",
        "/shut additionalProperties",
    ]


@pytest.mark.parametrize(
    ("version", "got", "expected"),
    [("3.0.3", {"w": 1}, ["/w writeOnly"]), ("3.1.0", {"w": 1}, [])],
)
def test_read_only_and_write_only_are_openapi_cores(one, version, got, expected):
    """3.0 forbids a writeOnly property in a response and a readOnly one in a request; from 3.1 on both are hints."""
    properties = {"r": {"type": "integer", "readOnly": True}, "w": {"type": "integer", "writeOnly": True}}
    schema = {"type": "object", "required": ["r"], "properties": properties}
    checker = one(schema, version=version)
    found = details(checker, exchange("POST", "/a/1", got={"r": 1, **got}))
    assert [detail for _, detail in found] == expected


@pytest.mark.parametrize("kind", ["application/problem+json", "application/vnd.x+json; v=2"])
@pytest.mark.parametrize("content", ["application/*", "*/*"])
def test_json_by_any_name(one, kind, content):
    """Under a range of media types, and with a suffix (RFC 6839)."""
    checker = one({"type": "array"}, content=content)
    assert sent(checker, {}, request_headers={"content-type": kind}) == ["/ type"]
    assert sent(checker, b"<xml/>", request_headers={"content-type": "application/xml"}) == []


def test_routes_and_rewrites_reach_openapi_core(one):
    """What the matcher knows of gateway routes decides, not the URL."""
    checker = one({"type": "array"}, route_ids=("r1",), hosts=("inner.example",), path_seen="upstream")
    called = {"host": "edge.example", "route_id": "r1", "upstream_path": "/a/1"}
    assert [d.detail for d in checker.check(exchange("POST", "/outside/1", {}, **called))] == ["/ type"]
    assert checker.check(exchange("POST", "/outside/1", {}, **{**called, "route_id": "r2"})) == []


def test_odd_paths(tmp_path):
    """A key with "#", one with a discriminator, a path item by reference, and a method of 3.2."""
    body = {"content": {"application/json": {"schema": {"type": "array"}}}}
    document = {
        "openapi": "3.2.0",
        "info": {"title": "t", "version": "1"},
        "paths": {
            "/a.b/c#one": {"post": {"requestBody": body}},
            "/d?kind=x": {"post": {"requestBody": body}},
            "/e~/{x}": {"$ref": "#/components/pathItems/E"},
            "/f": {"additionalOperations": {"LINK": {"requestBody": body}}},
        },
        "components": {"pathItems": {"E": {"put": {"requestBody": body}}}},
    }
    path = tmp_path / "api.json"
    path.write_text(json.dumps(document))
    checker = Checker([Source(id="a", documents=(path,))])
    for method, target, query in [
        ("POST", "/a.b/c", ""),
        ("POST", "/d", "kind=x"),
        ("PUT", "/e~/1", ""),
        ("LINK", "/f", ""),
    ]:
        assert details(checker, exchange(method, target, {}, query=query)) == [("request-schema", "/ type")], target


def test_nothing_is_fetched_and_what_is_broken_is_a_problem_once(tmp_path):
    """Of other machines, of other folders and by schemes that libraries would follow by themselves."""
    (tmp_path / "other.json").write_text('{"type": "array"}')
    (tmp_path / "docs").mkdir()
    for ref in (
        "http://127.0.0.1:9/x",
        "ftp://127.0.0.1:9/x",
        "data:application/json,{}",
        "../other.json",
        "#/nowhere",
    ):
        body = {"content": {"application/json": {"schema": {"$ref": ref}}}}
        document = {"openapi": "3.1.0", "info": {}, "paths": {"/a": {"post": {"requestBody": body}}}}
        path = tmp_path / "docs" / "api.json"
        path.write_text(json.dumps(document))
        checker = Checker([Source(id="a", documents=(path,))])
        assert checker.check(exchange("POST", "/a", {})) == checker.check(exchange("POST", "/a", {})) == []
        [problem] = checker.problems
        assert problem.place.endswith("#/paths/~1a/post")


def test_a_schema_in_a_file_beside_it_is_read(tmp_path):
    """Below the document's folder."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "it.yaml").write_text("type: object\nproperties: {a: {type: integer}}\n")
    path = tmp_path / "api.yaml"
    path.write_text(textwrap.dedent("""\
        openapi: 3.0.3
        info: {title: t, version: "1"}
        paths:
          /a: {post: {requestBody: {content: {application/json: {schema: {$ref: parts/it.yaml}}}}}}
        """))  # fmt: skip
    checker = Checker([Source(id="a", documents=(path,))])
    assert details(checker, exchange("POST", "/a", {"a": "x"})) == [("request-schema", "/a type")]


def test_swagger_2_is_a_problem(tmp_path):
    """openapi-core does not read it."""
    path = tmp_path / "api.yaml"
    path.write_text('swagger: "2.0"\npaths: {/a: {get: {responses: {}}}}\n')
    checker = Checker([Source(id="a", documents=(path,))])
    assert checker.check(exchange("GET", "/a", got={})) == []
    assert [problem.fact for problem in checker.problems] == ["is no OpenAPI 3.0, 3.1 or 3.2 document"]


def test_deep_bodies_are_no_crash(one):
    """A schema that refers to itself, and a body that follows it beyond what Python can recurse."""
    checker = one({"type": "array", "items": {"$ref": "#/components/schemas/It"}})
    deep = b"[" * 900 + b"]" * 900
    assert checker.check(exchange("POST", "/a/1", deep)) == []


@pytest.mark.parametrize(
    "loop", [{"$ref": "#/components/schemas/It"}, {"allOf": [{"$ref": "#/components/schemas/It"}]}]
)
def test_a_schema_that_is_itself_is_a_problem(one, loop):
    """It has no end for a validator, whatever the body."""
    checker = one(loop)
    assert checker.check(exchange("POST", "/a/1", {})) == checker.check(exchange("POST", "/a/1", {})) == []
    [problem] = {problem.place for problem in checker.problems}
    assert problem.endswith("#/paths/~1a~1{id}/post")


@pytest.mark.parametrize(
    ("parameter", "query"),
    [
        ({"style": "deepObject", "schema": {"type": "object"}}, "f[n]=1"),
        ({"schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}, "n=1&f=x"),
        ({"schema": {"type": ["integer", "null"]}}, "f=1"),
        ({"schema": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]}}, "f=true"),
        ({"style": "pipeDelimited", "explode": True, "schema": {"type": "array", "items": {"type": "integer"}}}, "f=1"),
        ({"schema": {"type": "array", "items": {"type": "integer"}}}, "f=1&f=2"),
        ({"content": {"application/json": {"schema": {"type": "object"}}}}, "f={}"),
    ],
)
def test_what_openapi_core_does_not_read_is_not_held_against_anybody(one, parameter, query):
    """Styles of objects, several types, and ways to write arrays that it has no code for."""
    checker = one({}, parameters=[{"name": "f", "in": "query", **parameter}])
    assert details(checker, exchange("POST", "/a/1", query=query)) == []


def test_each_value_of_a_parameter_is_looked_at(one):
    """What was remembered of one value says nothing of another, nor of several."""
    items = {"type": "array", "items": {"type": "integer"}, "maxItems": 2}
    checker = one({}, parameters=[{"name": "f", "in": "query", "schema": items}])
    for query, expected in [("f=1", []), ("f=x", ["query f type"]), ("f=1&f=x", ["query f type"]), ("f=1", []),
                            ("f=1&f=1&f=1", ["query f maxItems"])]:  # fmt: skip
        assert [detail for _, detail in details(checker, exchange("POST", "/a/1", query=query))] == expected


def test_the_daemon_never_imports_openapi_core():
    """It takes tens of MB: what the daemon imports has no way to it."""
    code = "import sys, apicost.daemon, apicost.run; print([m for m in sys.modules if m.startswith('openapi_core')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


leaves = st.sampled_from([
    {"type": "string"}, {"type": "integer"}, {"type": ["number", "null"]}, {"enum": ["a", 1, None]}, {"const": "a"},
    {"type": "string", "minLength": 2}, {"maxLength": 1}, {"pattern": "^a"}, {"minimum": 1}, {"exclusiveMaximum": 2},
    {"multipleOf": 2}, {"type": "string", "format": "byte"}, {"format": "int32"}, True, False, {},
    {"$ref": "#/components/schemas/It"},
])  # fmt: skip
names = st.sampled_from(["a", "b", "c", ""])
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries({}, optional={
            "type": st.sampled_from(["object", "array", ["object", "string"]]),
            "properties": st.dictionaries(names, inner, max_size=2),
            "required": st.lists(names, max_size=2, unique=True),
            "additionalProperties": inner,
            "patternProperties": st.dictionaries(st.just("^a"), inner, max_size=1),
            "minProperties": st.integers(0, 2),
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "contains": inner,
            "minItems": st.integers(0, 2), "maxItems": st.integers(0, 2), "uniqueItems": st.booleans(),
            "not": inner, "if": inner, "then": inner, "else": inner,
            "dependentSchemas": st.dictionaries(names, inner, max_size=1),
            "propertyNames": st.sampled_from([{"maxLength": 0}, {"enum": ["a"]}]),
            "unevaluatedProperties": inner, "unevaluatedItems": inner,
        }),
        st.dictionaries(st.sampled_from(["allOf", "anyOf", "oneOf"]), st.lists(inner, min_size=1, max_size=2),
                        min_size=1, max_size=2),
    ),
    max_leaves=5,
)  # fmt: skip
values = st.recursive(
    st.sampled_from(["a", "ab", "", "=", 0, 1, 2, 1.0, 1.5, True, False, None, "[redacted]", 1 << 40]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


ALIKE = [["a", "ab", "", "="], [0, 1, 2, 1 << 40], [1.0, 2.0], [1.5, 2.5], [True, False]]


def near(value):
    """Values that differ from one in one scalar of the same type, or in the order of one array."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from ({**value, key: other} for other in near(below))
    elif isinstance(value, list):
        yield from ([*value[:n], other, *value[n + 1 :]] for n, below in enumerate(value) for other in near(below))
        yield from [value[::-1], [*value, *value[-1:]]]
    else:
        yield from next((alike for alike in ALIKE if type(alike[0]) is type(value)), [])


@settings(max_examples=60, deadline=None)
@given(schemas, values)
def test_bodies_of_one_shape_deviate_alike(tmp_path_factory, schema, body):
    """What is remembered of a shape is what validating each body says, for bodies that hardly differ."""
    path = tmp_path_factory.getbasetemp() / "law.json"
    said = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/It"}}}}
    document = {"openapi": "3.1.0", "info": {}, "paths": {"/a/{id}": {"post": {"requestBody": said}}},
                "components": {"schemas": {"It": schema}}}  # fmt: skip
    path.write_text(json.dumps(document))
    remembering, forgetting = (Checker([Source(id="a", documents=(path,))]) for _ in range(2))
    for one in itertools.islice([body, *near(body)], 12):
        forgetting._documents.clear()
        assert remembering.check(exchange("POST", "/a/1", one)) == forgetting.check(exchange("POST", "/a/1", one))


@settings(max_examples=60, deadline=None)
@given(schemas, values)
def test_taking_values_away_adds_no_deviation(tmp_path_factory, schema, body):
    """Of a body that conforms, one with a removed value conforms."""
    path = tmp_path_factory.getbasetemp() / "law.json"
    said = {"content": {"application/json": {"schema": schema}}}
    document = {"openapi": "3.1.0", "info": {}, "paths": {"/a/{id}": {"post": {"requestBody": said}}},
                "components": {"schemas": {"It": {"type": "string"}}}}  # fmt: skip
    path.write_text(json.dumps(document))
    checker = Checker([Source(id="a", documents=(path,))])
    if holds(body, "[redacted]") or checker.check(exchange("POST", "/a/1", body)):
        return
    for removed in without(body):
        assert checker.check(exchange("POST", "/a/1", removed)) == []


def without(value):
    """The value with each of its scalars removed, one at a time."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from ({**value, key: other} for other in without(below))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from ([*value[:number], other, *value[number + 1 :]] for other in without(below))
    else:
        yield "[redacted]"
