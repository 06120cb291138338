"""Routes of a gateway against documents: what is reported is sure, and each kind has a case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apicost.core.conformance import served
from apicost.core.conformance.served import Rewrite, Route, compare
from apicost.core.naming.operations import ANY, EXACT_HOST, Api, HostPattern, Operation, Place
from apicost.core.naming.paths import parse_template


def api(*templates: str, host: str = "", name: str = "shop", **more: object) -> Api:
    """An API of GET operations, or "METHOD /template"."""
    places = []
    for text in templates:
        method, _, template = text.rpartition(" ")
        pointer = f"/paths/{template}/{method or 'GET'}"
        operation = Operation(
            api=name, operation_id=text, method=method or "GET", path_template=template, spec="shop.yaml",
            pointer=pointer,
        )  # fmt: skip
        pattern = HostPattern(EXACT_HOST, (host,)) if host else ANY
        segments = parse_template(template).segments
        places.append(Place(operation=operation, hosts=(pattern,), segments=segments, base_segments=0))
    return Api(id=name, places=tuple(places), **more)  # type: ignore[arg-type]


def kinds(routes: list[Route], *apis: Api) -> list[str]:
    return [gap.kind for gap in compare(routes, apis)]


@pytest.mark.parametrize(
    ("uri", "template"),
    [
        ("/orders", "/orders"),
        ("/orders/*", "/orders/{id}"),
        ("/orders*", "/orders"),
        ("/*", "/orders/{id}/items"),
        ("/orders/:id", "/orders/{id}"),
        ("/orders/special", "/orders/{id}"),
        ("/orders/special/*", "/orders/{id}/items"),
        ("/files/*", "/files/{+path}"),
        ("/reports/7.pdf", "/reports/{id}.pdf"),
    ],
)
def test_a_route_serves_what_its_pattern_has_in_common_with_a_template(uri: str, template: str) -> None:
    """No gap where some path fits both the route's uri and the template."""
    assert kinds([Route(id="1", uris=(uri,))], api(template)) == []


@pytest.mark.parametrize(
    ("uri", "template"),
    [
        ("/orders", "/orders/{id}"),
        ("/orders/*", "/orders"),
        ("/order", "/orders"),
        ("/v2/*", "/v1/orders"),
        ("/reports/7.txt", "/reports/{id}.pdf"),
        ("/orders/:id", "/orders/{id}/items"),
    ],
)
def test_a_route_and_a_document_without_a_common_path_are_both_told(uri: str, template: str) -> None:
    """Both sides are gaps where no path fits both."""
    assert kinds([Route(id="1", uris=(uri,))], api(template)) == ["route-without-document", "document-without-route"]


def test_methods_and_hosts_part_a_route_from_an_operation() -> None:
    """A route for other methods or hosts does not serve it."""
    get = api("/a", host="shop.example")
    assert kinds([Route(id="1", uris=("/a",), methods=("POST",))], get)[0] == "route-without-document"
    assert kinds([Route(id="1", uris=("/a",), hosts=("media.example",))], get)[0] == "route-without-document"
    assert kinds([Route(id="1", uris=("/a",), hosts=("*.example",), methods=("GET",))], get) == []


def test_one_unserved_operation_is_told_by_itself() -> None:
    """A document that is served in part names the operations that are not, with their place."""
    (gap,) = compare([Route(id="1", uris=("/a",))], [api("/a", "DELETE /b")])
    assert (gap.kind, gap.method, gap.path_template, gap.pointer) == (
        "operation-without-route", "DELETE", "/b", "/paths//b/DELETE",
    )  # fmt: skip


def test_a_rewrite_that_the_document_does_not_expect_is_told_as_such() -> None:
    """The document describes paths behind the rewrite, but is compared with those before it, and the other way."""
    stripped = Route(id="1", uris=("/shop/*",), rewrite=Rewrite(pairs=(("^/shop/(.*)$", "/$1"),)))
    (gap, *rest) = compare([stripped], [api("/orders/{id}")])
    assert gap.kind == "rewrite-hides-document" and "path_seen: upstream" in gap.fix
    assert [g.kind for g in rest] == ["document-without-route"]
    assert kinds([stripped], api("/orders/{id}", path_seen="upstream")) == []
    elsewhere = Route(id="1", uris=("/orders/*",), rewrite=Rewrite(uri="/jobs"))
    assert kinds([elsewhere], api("/orders/{id}", path_seen="upstream"))[0] == "rewrite-hides-document"
    assert kinds([elsewhere], api("/orders/{id}")) == []


def test_a_rewrite_reaches_only_what_its_route_lets_in() -> None:
    """The replacement alone could make the path, but no path of the route leads to it."""
    narrow = Route(id="1", uris=("/shop/a/*",), rewrite=Rewrite(pairs=(("^/shop/(.*)$", "/$1"),)))
    assert kinds([narrow], api("/b/{id}", path_seen="upstream"))[0] == "route-without-document"
    assert kinds([narrow], api("/a/{id}", path_seen="upstream")) == []


def test_a_bound_api_takes_its_own_routes_alone() -> None:
    """An API with route_ids is neither served nor hidden by other routes."""
    bound = api("/a", route_ids=("7",))
    assert kinds([Route(id="7", uris=("/a",), hosts=("x.example",))], bound) == []
    assert kinds([Route(id="8", uris=("/a",))], bound) == ["route-without-document", "document-without-route"]


def test_a_route_without_the_plugin_is_told() -> None:
    """What is not logged can't be named."""
    assert kinds([Route(id="1", uris=("/a",), logged=False)], api("/a")) == [served.ROUTE_NOT_LOGGED]


# One segment of a request, how a document may write it, and how a route may.
SEGMENTS = st.sampled_from(
    [
        (text, template, uri)
        for text, templates in {"a": ("a", "{x}"), "b.pdf": ("b.pdf", "{x}", "{x}.pdf", "b.{y}")}.items()
        for template in templates
        for uri in (text, ":id")
    ]
)


@given(st.lists(SEGMENTS, min_size=1, max_size=5), st.integers(0, 5), st.sampled_from(["", "*", "a*", "b*"]))
def test_what_a_request_proves_is_never_reported(path: list[tuple[str, str, str]], kept: int, end: str) -> None:
    """Where one path fits the route and the template, neither is called without the other."""
    uri = [segment[2] for segment in path]
    if end and kept < len(path) and path[kept][0].startswith(end[:-1]):
        uri = [*uri[:kept], end]
    template = "/".join(segment[1] for segment in path)
    assert kinds([Route(id="1", uris=("/" + "/".join(uri),))], api("/" + template)) == []
