"""Drafts of what the documents lack, case by case."""

from apicost.core.conformance.draft import Server, Target, draft
from apicost.core.conformance.finding import Settings
from apicost.core.conformance.undocumented import in_light_of
from apicost.core.naming.paths import parse_template
from tests.core.conformance_traffic import NOON_S, api_of, contract, contracts, get, shape

LIST = contract("GET /orders")
ORDER = contract("GET /orders/{order_id}")
V1 = Server(url="https://shop.example/v1", host="shop.example", base=parse_template("/v1").segments)
SHOP = Target(api="shop", title="Shop", servers=(V1,), taken=("listOrders", "getReports"))


def drafted(requests, *operations, target=SHOP, least_calls=None, settings=None):
    operations = operations or (LIST, ORDER)
    table, held = shape(requests, api_of(*operations)), contracts(*operations)
    rules = settings or Settings(shadow_min_calls=1)
    return draft(
        table, held, rules, target, in_light_of(held),
        start_unix_s=NOON_S, end_unix_s=NOON_S + 60, least_calls=least_calls,
    )  # fmt: skip


def paths(found):
    """{"GET /key": operation}."""
    items = found.document["paths"].items()
    return {f"{m.upper()} {key}": op for key, item in items for m, op in item.items() if m != "servers"}


def test_an_operation_says_what_was_seen_and_no_value():
    """Template, types, query names, statuses with media types, bodies, counts, times and consumers."""
    requests = [
        get("/v1/orders/17/notes", calls=2, consumer="anna", query_names="page", response_content_type="text/plain"),
        get("/v1/orders/18/notes", status=404, response_content_type="application/json"),
        get("/v1/orders/18/notes", status=201, query_names="ids%5B%5D,page", request_content_type="application/json"),
    ]  # fmt: skip
    found = drafted(requests)
    assert paths(found) == {
        "GET /orders/{order_id}/notes": {
            "operationId": "getOrdersByOrderIdNotes",
            "parameters": [
                {"name": "order_id", "in": "path", "required": True, "schema": {"type": "integer"}},
                {"name": "ids[]", "in": "query", "schema": {"type": "string"}, "x-apicost-calls": 1},
                {"name": "page", "in": "query", "schema": {"type": "string"}, "x-apicost-calls": 3},
            ],
            "requestBody": {"content": {"application/json": {}}},
            "responses": {
                "200": {"description": "Seen in traffic.", "x-apicost-calls": 2, "content": {"text/plain": {}}},
                "201": {"description": "Seen in traffic.", "x-apicost-calls": 1},
                "404": {"description": "Seen in traffic.", "x-apicost-calls": 1, "content": {"application/json": {}}},
            },
            "x-apicost-calls": 3,
            "x-apicost-first-seen": "2026-11-23T12:00:00Z",
            "x-apicost-last-seen": "2026-11-23T12:00:00Z",
            "x-apicost-consumers": 1,
        }
    }
    assert found.document["servers"] == [{"url": "https://shop.example/v1"}]
    assert (found.operations, found.calls, found.notes) == (1, 3, ())


def test_a_missing_method_stands_under_the_documented_template():
    """Its parameter keeps the document's name, and its type is what came."""
    found = drafted([get("/v1/orders/0b9f2a3c-53a1-4c0f-9f61-0d7a2ab1c9de", method="DELETE", status=204)])
    operation = paths(found)["DELETE /orders/{order_id}"]
    assert operation["parameters"][0]["schema"] == {"type": "string", "format": "uuid"}
    assert operation["operationId"] == "deleteOrdersByOrderId"


def test_a_head_that_is_not_drafted_answers_for_its_get():
    """The judge holds it against the GET, so the GET has its statuses."""
    found = drafted([get("/v1/x"), get("/v1/x", method="HEAD", status=404)])
    assert list(paths(found)) == ["GET /x"]
    assert list(paths(found)["GET /x"]["responses"]) == ["200", "404"]


def test_bodies_of_requests_that_found_nothing_are_bodies_all_the_same():
    """The draft would be held against them as well."""
    found = drafted([get("/v1/x/17"), get("/v1/x/18", status=404, request_content_type="text/plain")])
    assert paths(found)["GET /x/{xId}"]["requestBody"] == {"content": {"text/plain": {}}}


def test_noise_is_no_operation():
    """404, the gateway's own answers, "not found" pages and what is too seldom called; said where it was left out."""
    pages = [get(f"/v1/p-{n}x", method="GET", response_content_type="text/html") for n in "abcdefghij"]
    requests = [
        *(get("/v1/none", status=404), get("/v1/key", status=401, response_source="apisix")),
        *(get("/v1/seldom", calls=2, status=500), get("/v1/real", calls=3, status=500), *pages),
    ]
    found = drafted(requests, settings=Settings())
    assert list(paths(found)) == ["GET /real"]
    assert found.notes == (
        'left out: 10 calls answered by a "not found" page with a 2xx status',
        "left out: 1 operations too seldom called to be told from noise",
    )
    assert list(paths(drafted(requests, settings=Settings(), least_calls=2))) == ["GET /real", "GET /seldom"]


def test_ids_do_not_clash_with_those_of_the_documents_nor_with_each_other():
    """Letters' case aside, since generated code often has none."""
    found = drafted([get("/v1/reports"), get("/v1/re-ports"), get("/v1/re.Ports")])
    ids = {key: operation["operationId"] for key, operation in paths(found).items()}
    assert ids == {"GET /re-ports": "getRePorts2", "GET /re.Ports": "getRePorts3", "GET /reports": "getReports4"}


def test_security_is_said_only_where_each_successful_call_carried_one_clear_kind():
    """A cookie beside it says nothing; a key's name is in no usage line; one call without any makes it open."""
    bearer = [get("/v1/a", auth_kinds="bearer"), get("/v1/a", auth_kinds="basic,cookie"), get("/v1/a", status=401)]
    found = drafted([*bearer, get("/v1/b", auth_kinds="apikey"), get("/v1/c", auth_kinds="bearer"), get("/v1/c")])
    a, b, c = (paths(found)[f"GET /{name}"] for name in "abc")
    assert a["security"] == [{"basic": []}, {"bearer": []}]
    assert found.document["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert "security" not in b and b["x-apicost-credentials"] == {"apikey": 1}
    assert "security" not in c and c["x-apicost-credentials"] == {"bearer": 1, "none": 1}


def test_what_openapi_can_not_say_is_left_out_and_said():
    """A method of its own and a target that is no path."""
    found = drafted([get("/v1/dav", method="PROPFIND"), get("shop.example:443", method="CONNECT"), get("/v1/ok")])
    assert list(paths(found)) == ["GET /ok"]
    assert any("methods that OpenAPI 3.1 does not have" in note for note in found.notes)
    assert found.document["x-apicost-notes"] == list(found.notes)


def test_a_path_outside_of_the_base_has_servers_of_its_own():
    """The API's routes may serve what its base path does not hold; a base path of the configuration can't be left."""
    requests = [get("/internal/health", route_id="r1")]
    operations, api = (LIST,), api_of(LIST, route_ids=("r1",))
    table, held = shape(requests, api), contracts(*operations)
    rules = Settings(shadow_min_calls=1)
    times = {"start_unix_s": NOON_S, "end_unix_s": NOON_S + 60}
    found = draft(table, held, rules, SHOP, in_light_of(held), **times)
    assert found.document["paths"]["/internal/health"]["servers"] == [{"url": "https://shop.example"}]
    fixed = Target(api="shop", servers=(V1,), fixed_base=True)
    found = draft(table, held, rules, fixed, in_light_of(held), **times)
    assert found.operations == 0 and "base path that the configuration gives" in found.notes[0]


def test_a_prefix_that_the_gateway_strips_is_not_written():
    """Documents speak of the path without it."""
    target = Target(api="shop", servers=(V1,), prefix=parse_template("/gw").segments)
    table = shape([get("/gw/v1/x", calls=1), get("/other", route_id="r")], api_of(LIST, prefix="/gw", route_ids=("r",)))
    held = contracts(LIST)
    found = draft(
        table, held, Settings(shadow_min_calls=1), target, in_light_of(held), start_unix_s=0, end_unix_s=60
    )  # fmt: skip
    assert list(paths(found)) == ["GET /x"]
    assert "prefix that the gateway strips" in found.notes[0]


def test_an_unknown_host_has_a_draft_of_its_own():
    """Other hosts and APIs are not in it."""
    requests = [get("/a/17", host="old.example"), get("/b", host="new.example"), get("/v1/c")]
    target = Target(api=None, host="old.example", servers=(Server(url="https://old.example", host="old.example"),))
    found = drafted(requests, target=target)
    assert list(paths(found)) == ["GET /a/{aId}"]
    assert found.document["servers"] == [{"url": "https://old.example"}]


def test_no_operation_has_names_without_end():
    """The fifty most called; the rest is a number."""
    found = drafted(
        [get("/v1/x", query_names=",".join(f"n{k:03}" for k in range(i, i + 15))) for i in range(0, 60, 15)]
    )
    names = [parameter["name"] for parameter in paths(found)["GET /x"]["parameters"]]
    assert names == [f"n{k:03}" for k in range(50)]
    assert "left out: 10 query names beyond the most called of their operation" in found.notes
