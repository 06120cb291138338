"""What documents promise becomes contracts under the matcher's names; what can't be understood forbids nothing."""

import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from apicost.catalog import contracts as contracts_module
from apicost.catalog.contracts import load_contracts
from apicost.catalog.openapi import Source, load_apis
from tests.catalog.documents_made import openapi_documents

SPECS = Path(__file__).parents[2] / "specs"


@pytest.fixture
def promised(tmp_path):
    """The contracts of one document by (method, template), and its problems."""

    def promised(text, **binding):
        path = tmp_path / "api.yaml"
        path.write_text(textwrap.dedent(text) if isinstance(text, str) else json.dumps(text))
        found, problems = load_contracts([Source(id="api", documents=(path,), **binding)])
        return {key[1:]: contract for key, contract in found.operations.items()}, problems

    return promised


def operation(lines, version="3.1.0", more=""):
    """A document with one operation, GET /a, that says `lines`."""
    own = textwrap.indent(textwrap.dedent(lines), " " * 6)
    return f"openapi: {version}\n{textwrap.dedent(more)}\npaths:\n  /a:\n    get:\n      tags: []\n{own}"


def named(sources):
    """(API, method, template) -> operation id, as the matcher has them."""
    names = {}
    for api in load_apis(sources).index.apis:
        for place in sorted(api.places, key=lambda place: -place.base_segments):
            one = place.operation
            names.setdefault((one.api, one.method, one.path_template), one.operation_id)
    return names


def test_contracts_have_the_matchers_names():
    """Every operation of the sample documents, by API, method and template with base path."""
    sources = [Source(id=file.stem, documents=(file,)) for file in (SPECS / "shop.yaml", SPECS / "media.yaml")]
    found, problems = load_contracts(sources)
    assert problems == ()
    assert {key: one.operation_id for key, one in found.operations.items()} == named(sources)
    assert found.documents == {"shop": (str(SPECS / "shop.yaml"),), "media": (str(SPECS / "media.yaml"),)}


def test_a_sample_operation_in_full():
    """createOrder of specs/shop.yaml."""
    found, _ = load_contracts([Source(id="shop", documents=(SPECS / "shop.yaml",))])
    one = found.operations["shop", "POST", "/v1/orders"]
    assert (one.operation_id, one.pointer) == ("createOrder", "/paths/~1orders/post")
    assert (one.request_types, one.request_required) == (("application/json",), True)
    assert [(r.status, r.types) for r in one.responses] == [("201", ("application/json",)), ("400", ())]
    assert [[(s.name, s.kind) for s in way] for way in one.security] == [[("key", "apikey")]]
    assert one.servers == ("shop.example",)
    assert found.operations["shop", "GET", "/v1/products"].security == ()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(openapi_documents())
def test_any_document_gives_a_contract_for_every_operation(tmp_path, document):
    """Whatever a document says, nothing is raised, and the names are those of the index."""
    path = tmp_path / "api.json"
    path.write_text(json.dumps(document))
    for binding in ({}, {"base_path": "/edge", "hosts": ("*.edge.example",), "strip_prefix": "/gw"}):
        source = Source(id="api", documents=(path,), **binding)
        found, _ = load_contracts([source])
        assert {key: one.operation_id for key, one in found.operations.items()} == named([source])


def test_a_stripped_prefix_stands_beside_the_templates():
    """Names are the matcher's, without it; clients' paths have it, whatever slashes the configuration writes."""
    for prefix, text in (("/gw", "/gw/v1/orders"), ("gw/", "/gw/v1/orders"), ("/", "/v1/orders"), ("", "/v1/orders")):
        found, _ = load_contracts([Source(id="shop", documents=(SPECS / "shop.yaml",), strip_prefix=prefix)])
        assert found.client_template(found.operations["shop", "GET", "/v1/orders"]) == text


def test_each_base_path_has_a_contract_with_its_own_hosts(promised):
    """Servers with different base paths; a host pattern is written with "*", any host is ()."""
    found, _ = promised("""\
        openapi: 3.1.0
        servers: [{url: "https://One.example/v1"}, {url: "https://{t}.example/v1"}, {url: /v2}]
        paths: {/a: {get: {}}}
        """)
    assert found["GET", "/v1/a"].servers == ("one.example", "*.example")
    assert found["GET", "/v2/a"].servers == ()


def test_of_equal_templates_the_one_with_the_longer_base_gives_its_name(promised):
    """As the matcher has it (rule 4), whichever comes first."""
    found, _ = promised("""\
        openapi: 3.1.0
        paths:
          /v1/a: {get: {operationId: whole}}
          /a: {servers: [{url: /v1}], get: {operationId: based}}
        """)
    assert found["GET", "/v1/a"].operation_id == "based"


def test_parameters_of_path_and_operation_are_merged(promised):
    """The operation's own parameter wins over the path's of that name and place; pointers lead to where it stands."""
    found, _ = promised("""\
        openapi: 3.0.3
        paths:
          /a:
            parameters:
              - {name: page, in: query, required: true}
              - $ref: "#/components/parameters/Size"
              - {name: page, in: header}
            get:
              parameters: [{name: page, in: query, deprecated: true}]
        components: {parameters: {Size: {name: size, in: query, required: true}}}
        """)
    query = {one.name: one for one in found["GET", "/a"].query}
    assert set(query) == {"page", "size"}
    assert (query["page"].required, query["page"].deprecated) == (False, True)
    assert query["page"].pointer == "/paths/~1a/get/parameters/0"
    assert query["size"].required and query["size"].pointer == "/paths/~1a/parameters/1"


@pytest.mark.parametrize(
    ("parameter", "names", "is_open"),
    [
        ("{name: f, in: query, style: deepObject, schema: {type: object}}", [("f", True, False)], False),
        ("{name: f, in: query, schema: {type: array}}", [("f", False, False)], False),
        (
            "{name: f, in: query, required: true, schema: {type: object, properties: {p: {}, q: {}}, required: [q]}}",
            [("p", False, False), ("q", False, True)],
            False,
        ),
        ("{name: f, in: query, explode: false, schema: {type: object, properties: {p: {}}}}",
         [("f", False, False)], False),
        ("{name: f, in: query, schema: {type: object, properties: {p: {}}, additionalProperties: {}}}",
         [("p", False, False)], True),
        ("{name: f, in: query, schema: {type: object}}", [], True),
        ("{name: f, in: query, schema: {$ref: '#/components/schemas/Both'}}",
         [("p", False, False), ("q", False, False)], False),
        ("{name: f, in: query, content: {application/json: {schema: {type: object}}}}", [("f", False, False)], False),
        ("{name: f, in: querystring, content: {}}", [], True),
    ],
)  # fmt: skip
def test_query_names_of_a_parameter(promised, parameter, names, is_open):
    """OpenAPI 3.2, "Style Values": what names a parameter takes in the query."""
    shared = """\
        components: {schemas: {Both: {allOf: [{properties: {p: {}}}, {oneOf: [{properties: {q: {}}, required: [q]}]}]}}}
        """
    found, problems = promised(operation(f"parameters: [{parameter}]", more=shared))
    one = found["GET", "/a"]
    assert [(q.name, q.prefix, q.required) for q in one.query] == names
    assert one.query_open is is_open and problems == ()


SCHEMES = """\
    components:
      securitySchemes:
        basic: {type: http, scheme: Basic}
        bearer: {type: http, scheme: bearer}
        hoba: {type: http, scheme: HOBA}
        oauth: {type: oauth2}
        oidc: {type: openIdConnect}
        mtls: {type: mutualTLS}
        cookie: {type: apiKey, in: cookie, name: sid}
        header: {type: apiKey, in: header, name: X-Api-Key}
        unseen: {type: apiKey, in: header, name: X-Other}
        authorization: {type: apiKey, in: header, name: Authorization}
        query: {type: apiKey, in: query, name: apikey}
        token: {type: apiKey, in: query, name: token}
        strange: {type: carrier-pigeon}
    security: [{bearer: []}]
    """


@pytest.mark.parametrize(
    ("name", "kind", "query_name"),
    [
        ("basic", "basic", ""), ("bearer", "bearer", ""), ("hoba", "other", ""), ("oauth", "bearer", ""),
        ("oidc", "bearer", ""), ("mtls", "mtls", ""), ("cookie", "cookie", ""), ("header", "apikey", ""),
        ("unseen", "", ""), ("authorization", "authorization", ""), ("query", "apikey", "apikey"),
        ("token", "query", "token"), ("strange", "", ""), ("undefined", "", ""),
    ],
)  # fmt: skip
def test_security_schemes_in_the_words_of_usage_lines(promised, name, kind, query_name):
    """What can't be told from a usage line is "", which no request fails; a key in the query is an allowed name."""
    found, problems = promised(operation(f"security: [{{{name}: []}}]", more=SCHEMES))
    one = found["GET", "/a"]
    assert [[(s.kind, s.query_name) for s in way] for way in one.security] == [[(kind, query_name)]]
    assert [q.name for q in one.query] == ([query_name] if query_name else [])
    assert any("'undefined' is not defined" in p.fact for p in problems) is (name == "undefined")


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ("summary: inherits", [["bearer"]]),
        ("security: []", []),
        ("security: [{}]", [[]]),
        ("security: [{basic: [], cookie: []}, {mtls: []}]", [["basic", "cookie"], ["mtls"]]),
    ],
)
def test_security_of_the_operation_replaces_the_documents(promised, said, kinds):
    """OpenAPI 3.1, Operation Object: an empty list removes what the document asks for."""
    found, _ = promised(operation(said, more=SCHEMES))
    assert [[scheme.kind for scheme in way] for way in found["GET", "/a"].security] == kinds


def test_the_gateways_own_key_header_is_a_key(tmp_path):
    """api_key_headers and api_key_query say what the plugin looks for, in any case."""
    path = tmp_path / "api.yaml"
    path.write_text(operation("security: [{unseen: [], token: []}]", more=SCHEMES))
    found, _ = load_contracts(
        [Source(id="api", documents=(path,))], api_key_headers=("x-OTHER",), api_key_query=("token",)
    )
    [way] = found.operations["api", "GET", "/a"].security
    assert [scheme.kind for scheme in way] == ["apikey", "apikey"]


def test_statuses_and_media_types(promised):
    """Ranges in upper case, numbers as text, media ranges lower-cased without parameters; "x-" is no status."""
    found, problems = promised(
        operation("""\
            responses:
              200: {content: {"Application/JSON; charset=utf-8": {}, application/json: {}, "text/*": {}}}
              4xx: {$ref: "#/components/responses/Bad"}
              default: {}
              x-more: {}
              2OO: {}
            """, more="components: {responses: {Bad: {content: {application/problem+json: {}}}}}")
    )  # fmt: skip
    assert [(r.status, r.types) for r in found["GET", "/a"].responses] == [
        ("200", ("application/json", "text/*")),
        ("4XX", ("application/problem+json",)),
        ("default", ()),
    ]
    [problem] = problems
    assert "'2OO' is not a status" in problem.fact and problem.place.endswith(":12")


def test_swagger_2(promised):
    """consumes, produces, `in: body`, formData and securityDefinitions."""
    found, problems = promised("""\
        swagger: "2.0"
        host: s.example
        basePath: /v1
        consumes: [application/xml]
        produces: [application/json]
        securityDefinitions: {user: {type: basic}}
        security: [{user: []}]
        paths:
          /a:
            post:
              parameters: [{in: body, name: it, required: true}, {in: query, name: q, type: array, items: {}}]
              responses: {200: {description: d, schema: {}}, 204: {description: d}}
            put:
              consumes: [multipart/form-data]
              parameters: [{in: formData, name: it, type: file}]
              produces: [text/csv]
              responses: {200: {description: d, schema: {}}}
            patch: {parameters: [{in: formData, name: it, type: string}]}
        """)
    post, put, patch = (found[method, "/v1/a"] for method in ("POST", "PUT", "PATCH"))
    assert problems == () and post.servers == ("s.example",)
    assert (post.request_types, post.request_required) == (("application/xml",), True)
    assert [(r.status, r.types) for r in post.responses] == [("200", ("application/json",)), ("204", ())]
    assert [q.name for q in post.query] == ["q"] and post.security[0][0].kind == "basic"
    assert put.request_types == ("multipart/form-data",) and put.responses[0].types == ("text/csv",)
    assert patch.request_types == ("application/x-www-form-urlencoded", "multipart/form-data")


def test_variants_of_a_path_forbid_only_what_all_forbid(promised):
    """`#x` keys share a name, so a request may be any of them."""
    found, _ = promised("""\
        openapi: 3.1.0
        paths:
          /a#one:
            get:
              deprecated: true
              parameters: [{name: p, in: query, required: true}, {name: q, in: query, required: true}]
              responses: {200: {content: {a/b: {}}}}
          /a#two:
            get:
              parameters: [{name: p, in: query, required: true}, {name: r, in: query}]
              requestBody: {required: true, content: {c/d: {}}}
              responses: {200: {content: {e/f: {}}}, 404: {}}
        """)
    one = found["GET", "/a"]
    assert one.pointer == "/paths/~1a#one/get" and not one.deprecated
    assert {q.name: q.required for q in one.query} == {"p": True, "q": False, "r": False}
    assert (one.request_types, one.request_required) == (("c/d",), False)
    assert [(r.status, r.types) for r in one.responses] == [("200", ("a/b", "e/f")), ("404", ())]


def test_references_lead_into_other_files(tmp_path):
    """A path item of another file, with parameters relative to that file; the cache notices when that file changes."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "api.yaml").write_text(
        "openapi: 3.1.0\npaths: {/a: {$ref: parts/a.yaml}}\n" + "#" * contracts_module.IN_PROCESS_BYTES
    )
    part = tmp_path / "parts" / "a.yaml"
    part.write_text("get: {parameters: [{$ref: 'q.yaml#/q'}]}\n")
    (tmp_path / "parts" / "q.yaml").write_text("q: {name: page, in: query}\n")

    def names():
        found, problems = load_contracts(
            [Source(id="api", documents=(tmp_path / "api.yaml",))], cache_dir=tmp_path / "cache"
        )
        assert problems == ()
        return [q.name for q in found.operations["api", "GET", "/a"].query]

    assert names() == ["page"] == names()
    assert len(list((tmp_path / "cache").glob("contracts-*"))) == 1
    part.write_text("get: {parameters: [{name: size, in: query}]}\n")
    assert names() == ["size"]


def test_what_cannot_be_followed_is_said_and_forbids_nothing(promised):
    """Circles and missing parts are problems with their place."""
    found, problems = promised(
        operation("""\
            parameters: [{$ref: "#/components/parameters/Round"}, {name: f, in: query, schema: {$ref: "#/nowhere"}}]
            requestBody: {$ref: "#/nowhere"}
            responses: {200: {$ref: "https://other.test/r"}}
            security: [{k: []}, 7]
            """, more="components: {parameters: {Round: {$ref: '#/components/parameters/Round'}}}")
    )  # fmt: skip
    one = found["GET", "/a"]
    assert [q.name for q in one.query] == ["f"] and one.request_types == ("*/*",)
    assert [(r.status, r.types) for r in one.responses] == [("200", ("*/*",))]
    facts = " | ".join(problem.fact for problem in problems)
    for part in ("back to itself", "leads to nothing", "another machine", "'k' is not defined", "not a security req"):
        assert part in facts
    assert all(":" in problem.place for problem in problems)


def test_a_document_that_says_too_much_is_cut(promised, monkeypatch):
    """What lies beyond the bound is a problem, and nothing is held against it."""
    monkeypatch.setattr("apicost.catalog.promises.MAX_PARTS", 20)
    paths = {f"/p{n}": {"get": {"responses": {"200": {"description": "d"}}}} for n in range(50)}
    found, problems = promised({"openapi": "3.1.0", "paths": paths})
    assert len(found) == 50
    last = found["GET", "/p49"]
    assert last.query_open and last.responses == () and last.request_types == ("*/*",)
    assert [p.fact for p in problems] == ["describes more than 20 parts"]
