"""OpenAPI documents become operations; what is wrong is said with its place, and stops nothing else."""

import json
import textwrap

import pytest
import yaml

from apicost.catalog import documents, extract
from apicost.catalog.openapi import Source, load_apis
from apicost.config import ApiSettings


@pytest.fixture
def write(tmp_path):
    def write(text, name="api.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text) if isinstance(text, str) else json.dumps(text))
        return path

    return write


def catalogue(*paths, **binding):
    return load_apis([Source(id=path.stem, documents=(path,), **binding) for path in paths])


def answer(catalog, method, url, **more):
    """API and operation id, or the state."""
    host, slash, path = url.partition("/")
    match = catalog.index.find(method, host, slash + path, **more)
    return (match.api, match.operation.operation_id) if match.operation else match.state


ORDERS = """\
    openapi: 3.1.0
    info: {title: Orders, version: "1"}
    servers: [{url: "https://shop.example/v1"}]
    paths:
      /orders:
        get: {operationId: list, tags: [a, b], deprecated: true}
        post: {}
"""


def test_an_operation_carries_what_the_reports_need(write):
    """Id (or method and template), base path, file, JSON pointer, deprecation and tags."""
    path = write(ORDERS)
    listed, created = catalogue(path).operations
    assert (listed.api, listed.operation_id, listed.method) == ("api", "list", "GET")
    assert listed.path_template == "/v1/orders"
    assert (listed.spec, listed.pointer) == (str(path), "/paths/~1orders/get")
    assert listed.deprecated and listed.tags == ("a", "b")
    assert created.operation_id == "POST /orders" and not created.deprecated


@pytest.mark.parametrize("version", ["3.0.4", "3.1.0", "3.2.0"])
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_versions_and_forms(write, version, form):
    """3.0, 3.1 and 3.2, JSON and YAML, say the same."""
    data = yaml.safe_load(ORDERS) | {"openapi": version}
    path = write(json.dumps(data) if form == "json" else yaml.safe_dump(data), f"api.{form}")
    found = catalogue(path)
    assert found.problems == ()
    assert answer(found, "GET", "shop.example/v1/orders") == ("api", "list")


def test_openapi_3_2_has_query_and_additional_operations(write):
    """OpenAPI 3.2, Path Item Object."""
    path = write("""\
        openapi: 3.2.0
        paths:
          /a:
            query: {operationId: ask}
            additionalOperations: {LINK: {operationId: link}}
        """)
    found = catalogue(path)
    assert answer(found, "QUERY", "h/a") == ("api", "ask")
    assert answer(found, "LINK", "h/a") == ("api", "link")


def test_swagger_2(write):
    """host and basePath become the server."""
    text = 'swagger: "2.0"\nhost: shop.example\nbasePath: /v1\npaths: {/orders: {get: {operationId: list}}}'
    found = catalogue(write(text))
    assert found.problems == ()
    assert answer(found, "GET", "shop.example/v1/orders") == ("api", "list")
    assert answer(found, "GET", "other.example/v1/orders") == "unknown-host"
    anywhere = catalogue(write('swagger: "2.0"\nbasePath: v1\npaths: {/orders: {get: {operationId: list}}}'))
    assert answer(anywhere, "GET", "any/v1/orders") == ("api", "list")


def test_nearer_servers_replace_and_never_merge(write):
    """Operation before path before document."""
    path = write("""\
        openapi: 3.1.0
        servers: [{url: "https://root.example/r"}]
        paths:
          /a:
            servers: [{url: "https://path.example/p"}]
            get: {servers: [{url: "https://op.example/o"}]}
            put: {}
          /b: {get: {}, servers: []}
        """)
    found = catalogue(path)
    assert answer(found, "GET", "op.example/o/a") == ("api", "GET /a")
    assert answer(found, "PUT", "path.example/p/a") == ("api", "PUT /a")
    assert answer(found, "GET", "root.example/r/b") == ("api", "GET /b")
    for url in ("path.example/p/a", "root.example/r/a"):
        assert answer(found, "GET", url) in ("undocumented-path", "undocumented-method")


def test_x_multi_segment_on_a_parameter_lets_it_span_slashes(write):
    """On the path item, the operation, behind a $ref, or by name in the configuration."""
    path = write("""\
        openapi: 3.1.0
        paths:
          /a/{p}: {parameters: [{$ref: "#/components/parameters/p"}], get: {}}
          /b/{p}: {get: {parameters: [{name: p, in: path, x-multi-segment: true}]}, put: {}}
          /c/{q}: {get: {}}
        components: {parameters: {p: {name: p, in: path, x-multi-segment: true}}}
        """)
    found = catalogue(path)
    assert answer(found, "GET", "h/a/1/2") == ("api", "GET /a/{p}")
    assert answer(found, "GET", "h/b/1/2") == ("api", "GET /b/{p}")
    assert answer(found, "PUT", "h/b/1/2") == "undocumented-method"
    assert answer(found, "PUT", "h/b/1") == ("api", "PUT /b/{p}")
    assert answer(found, "GET", "h/c/1/2") == "undocumented-path"
    assert answer(catalogue(path, multi_segment=("q",)), "GET", "h/c/1/2") == ("api", "GET /c/{q}")


# References


def test_path_items_behind_references(write):
    """Within the document, to a component, and to a file below its folder; the item's own fields win."""
    write("orders:\n  get: {operationId: fromFile}\n", "parts/orders.yaml")
    path = write("""\
        openapi: 3.1.0
        paths:
          /a: {$ref: "#/components/pathItems/shared"}
          /b: {$ref: "#/paths/~1a", put: {operationId: own}}
          /c: {$ref: "parts/orders.yaml#/orders"}
          /d: {$ref: "#/x-parts/d"}
        components: {pathItems: {shared: {get: {operationId: shared}}}}
        x-parts: {d: {get: {operationId: odd}}}
        """)
    found = catalogue(path)
    assert answer(found, "GET", "h/a") == ("api", "shared")
    assert answer(found, "GET", "h/b") == ("api", "shared")
    assert answer(found, "PUT", "h/b") == ("api", "own")
    assert answer(found, "GET", "h/c") == ("api", "fromFile")
    assert answer(found, "GET", "h/d") == ("api", "odd")


@pytest.mark.parametrize(
    ("ref", "fact"),
    [
        ("http://192.0.2.1/x.yaml#/a", "nothing is fetched"),
        ("//192.0.2.1/x.yaml", "nothing is fetched"),
        ("../outside.yaml", "leads out of the folder"),
        ("/etc/hostname", "leads out of the folder"),
        ("missing.yaml", "can't be used"),
        ("#/nowhere", "leads to nothing"),
        ("#/paths/~1b", "leads back to itself"),
    ],
)
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_references_that_lead_nowhere_are_problems_and_stop_nothing(write, ref, fact, form):
    """Remote ones are not fetched, circles don't hang, files outside of the folder are not opened."""
    data = {
        "openapi": "3.1.0",
        "paths": {"/a": {"get": {}}, "/b": {"$ref": "#/paths/~1c"}, "/c": {"$ref": ref}},
    }
    found = catalogue(write(json.dumps(data, indent=1) if form == "json" else yaml.safe_dump(data), f"api.{form}"))
    assert any(fact in problem.fact for problem in found.problems)
    assert all(f"api.{form}:" in problem.place for problem in found.problems)
    assert answer(found, "GET", "h/a") == ("api", "GET /a")


# Bad documents


def test_every_problem_of_a_document_is_said_with_its_line_and_the_sound_parts_are_used(write):
    """
    1  openapi: 3.1.0
    2  servers: [{description: no url}]
    3  paths:
    4    orders: {get: {}}
    5    /a/{x}{y}: {get: {}}
    6    /b: {get: 5, put: {}}
    7    /c/{x}: {get: {operationId: same}}
    8    /c/{y}: {get: {operationId: same}}
    """
    text = test_every_problem_of_a_document_is_said_with_its_line_and_the_sound_parts_are_used.__doc__
    path = write("\n".join(line[7:] for line in text.strip("\n").splitlines() if line.strip()))
    found = catalogue(path)
    said = sorted((int(p.place.rpartition(":")[2]), p.fact) for p in found.problems)
    assert [line for line, _ in said] == [2, 4, 5, 6, 8, 8]
    for (_, fact), part in zip(said, ("no url", "begin", "side by side", "get is", "'/c/{x}'", "'same'"), strict=True):
        assert part.lower() in fact.lower()
    assert all(p.effect and p.fix for p in found.problems)


@pytest.mark.parametrize(
    ("name", "text", "fact"),
    [
        ("a.yaml", "openapi: 3.1.0\npaths: [", "not valid YAML"),
        ("a.json", '{"openapi": "3.1.0",\n "paths": ', "not valid JSON"),
        ("a.yaml", "- just\n- a list", "not a mapping"),
        ("a.yaml", "title: no version", "no OpenAPI version"),
        ("a.yaml", "openapi: 4.0.0\npaths: {}", "'4.0.0'"),
        ("a.yaml", "openapi: 3.0.0", "paths is not a mapping"),
        ("a.json", '{"openapi": "3.1.0", "paths": [1]}', "paths is not a mapping"),
        ("a.yaml", "openapi: 3.1.0\npaths: {/a: {}, /a: {}}", "stands twice"),
        ("a.yaml", "openapi: 3.1.0\nx: !!python/object:os.system {}", "not valid YAML"),
        ("a.yaml", "openapi: 3.1.0\nx: " + "[" * 50_000, "nested deeper"),
        ("a.json", '{"openapi": "3.1.0", "x": ' + "[" * 50_000 + "]" * 50_000 + "}", "depth"),
        ("a.yaml", b"openapi: 3.1.0\nx: \xff\xfe", "not valid YAML"),
        ("a.yaml", "", "not a mapping"),
    ],
)
def test_a_bad_document_is_named_and_stops_no_other(tmp_path, write, name, text, fact):
    """File and place, effect and fix; the good document beside it is used."""
    bad = tmp_path / "bad" / name
    bad.parent.mkdir()
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = catalogue(bad, write(ORDERS, "good.yaml"))
    assert [(d.file, d.usable) for d in found.documents] == [
        (str(bad), False),
        (str(bad.parent.parent / "good.yaml"), True),
    ]
    [problem] = found.problems
    assert problem.place.startswith(str(bad)) and fact in problem.fact
    assert problem.effect and problem.fix
    assert answer(found, "GET", "shop.example/v1/orders") == ("good", "list")


def test_a_missing_document_and_a_folder_are_problems(tmp_path):
    """Neither raises."""
    found = catalogue(tmp_path / "none.yaml", tmp_path)
    assert [problem.fact for problem in found.problems] == ["is not a file"] * 2


def test_a_document_of_aliases_of_aliases_does_not_grow(write):
    """A "billion laughs": ten levels of ten aliases each, wherever text or a list is expected."""
    levels = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    for n in range(1, 11):
        levels += f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n"
    text = f"openapi: 3.1.0\n{levels}servers: [{{url: /v, variables: {{x: {{enum: *a10}}}}}}]\ninfo: {{title: *a10}}\n"
    text += "paths: {/a: {get: {operationId: *a10, tags: *a10, parameters: *a10, servers: *a10}}}\n"
    found = catalogue(write(text))
    assert answer(found, "GET", "h/v/a") == ("api", "GET /a")


def test_yaml_merge_keys_are_worked_in(write):
    """As most writers of YAML expect; the item's own keys win."""
    path = write("""\
        openapi: 3.1.0
        x-common: &common {get: {operationId: common}, put: {operationId: put}}
        paths:
          /a: {<<: *common, put: {operationId: own}}
        """)
    found = catalogue(path)
    assert answer(found, "GET", "h/a") == ("api", "common")
    assert answer(found, "PUT", "h/a") == ("api", "own")


# Reading quickly


UNUSUAL = {
    "openapi": "3.1.0",
    "info": {"title": "t", "x": [1, {"y": None}]},
    "servers": [{"url": "https://{r}.example/v", "variables": {"r": {"enum": ["a"], "default": "a", "x": 1}}}],
    "paths": {
        "/a/{p}": {
            "summary": "s",
            "parameters": [{"name": "p", "in": "path", "x-multi-segment": True, "schema": {"type": "string"}}],
            "get": {"operationId": "g", "tags": ["t"], "responses": {"200": {"description": "d"}}, "deprecated": True},
            "trace": {"parameters": []},
            "additionalOperations": {"COPY": {}},
        },
        "/b": {"$ref": "#/components/pathItems/b"},
        "x-no": {"get": {}},
    },
    "components": {"pathItems": {"b": {"query": {"operationId": "q"}}}, "schemas": {"deep": {"a": [[[{}]]]}}},
}


def test_reading_part_of_a_json_document_says_what_reading_all_of_it_says(write):
    """The quick way skips what names no operation; the result is the same."""
    path = write(UNUSUAL, "api.json")
    quick, slow = extract.extract(path), extract.read_whole(path, path.read_bytes())
    assert quick == slow
    assert len(quick.operations) == 4


def test_json_with_unexpected_types_is_read_whole(write):
    """A parameter list that is a mapping makes the quick way give up, not the document."""
    data = {"openapi": "3.1.0", "paths": {"/a": {"get": {"parameters": {}}, "put": 5}}}
    path = write(data, "api.json")
    assert documents.pruned(path.read_bytes()) is None
    found = catalogue(path)
    assert answer(found, "GET", "h/a") == ("api", "GET /a")
    assert [problem.fact.lower() for problem in found.problems] == ["put is not a mapping"]


def test_a_large_yaml_document_is_read_in_a_process_of_its_own_and_cached(write, tmp_path, monkeypatch):
    """By content: a changed document is read again, a cached one without another process."""
    monkeypatch.setattr(extract, "IN_PROCESS_BYTES", 0)
    path, cache = write(ORDERS), tmp_path / "cache"
    source = [Source(id="api", documents=(path,))]
    first = load_apis(source, cache_dir=cache)
    assert answer(first, "GET", "shop.example/v1/orders") == ("api", "list")
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patched:
        patched.setattr(extract, "_in_child", lambda *_: pytest.fail("read again"))
        assert load_apis(source, cache_dir=cache).operations == first.operations
    path.write_text(path.read_text().replace("/orders", "/sales"))
    again = load_apis(source, cache_dir=cache)
    assert answer(again, "GET", "shop.example/v1/sales") == ("api", "list")
    assert again.content_hash != first.content_hash


def test_a_cached_document_is_read_again_when_a_file_it_refers_to_changes(write, tmp_path):
    """The cache knows the content of every file that went in."""
    part = write("get: {operationId: one}", "part.yaml")
    path = write('openapi: 3.1.0\npaths: {/a: {$ref: "part.yaml"}}')
    source = [Source(id="api", documents=(path,))]
    first = load_apis(source, cache_dir=tmp_path / "cache")
    assert answer(first, "GET", "h/a") == ("api", "one")
    part.write_text("get: {operationId: two}")
    second = load_apis(source, cache_dir=tmp_path / "cache")
    assert answer(second, "GET", "h/a") == ("api", "two")
    assert first.content_hash != second.content_hash


def test_a_cache_that_is_broken_or_read_only_costs_time_and_nothing_else(write, tmp_path):
    """The document is read again."""
    path, cache = write(ORDERS), tmp_path / "cache"
    source = [Source(id="api", documents=(path,))]
    load_apis(source, cache_dir=cache)
    next(cache.iterdir()).write_text("{")
    assert answer(load_apis(source, cache_dir=cache), "GET", "shop.example/v1/orders") == ("api", "list")
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert load_apis(source, cache_dir=blocked / "cache").problems == ()


# Bindings


def test_the_configuration_s_settings_load_as_they_are(write):
    """`config.ApiSettings` needs no conversion."""
    path = write(ORDERS)
    settings = ApiSettings(id="shop", documents=(path,), hosts=("*.test",), base_path="/api/", strip_prefix="/gw")
    found = load_apis([settings])
    match = found.index.find("GET", "a.test", "/gw/api/orders")
    assert (match.api, match.path_template) == ("shop", "/api/orders")
    assert answer(found, "GET", "shop.example/v1/orders") == "unknown-host"


def test_hosts_replace_hosts_and_keep_base_paths(write):
    """Each override replaces its own part."""
    found = catalogue(write(ORDERS), hosts=("*",))
    assert answer(found, "GET", "whatever/v1/orders") == ("api", "list")
    found = catalogue(write(ORDERS), base_path="")
    assert answer(found, "GET", "shop.example/orders") == ("api", "list")


def test_an_api_whose_document_is_bad_keeps_its_claims(write):
    """Its traffic is its unmatched row, by route or by configured host."""
    bad = write("openapi: [")
    found = catalogue(bad, route_ids=("r1",))
    assert found.index.find("GET", "h", "/a", route_id="r1").api == "api"
    found = catalogue(bad, hosts=("shop.example",))
    assert found.index.find("GET", "shop.example", "/a").api == "api"


def test_two_files_for_one_api_and_one_file_for_two(write):
    """An API is any number of documents; operations of each name their own file."""
    one, two = write(ORDERS, "one.yaml"), write(ORDERS.replace("/orders", "/users"), "two.yaml")
    found = load_apis([Source(id="both", documents=(one, two))])
    assert answer(found, "GET", "shop.example/v1/users") == ("both", "list")
    assert {operation.spec for operation in found.operations} == {str(one), str(two)}


def test_the_same_in_gives_the_same_hash_and_a_binding_is_part_of_it(write):
    """What a reload compares."""
    path = write(ORDERS)
    assert catalogue(path).content_hash == catalogue(path).content_hash
    assert catalogue(path).content_hash != catalogue(path, priority=1).content_hash
