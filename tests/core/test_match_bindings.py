"""Whose a request is: claims by host and base path, bindings to routes and services, the side of the rewrite."""

import pytest

from apicost.core.naming.match import Index
from tests.core.match_documents import api, found, index


def owner(matcher, path, host="shop.example", **more):
    match = matcher.find("GET", host, path, **more)
    return match.state, match.api


def test_an_undocumented_path_under_a_base_path_is_that_apis():
    """The longest base path that holds it."""
    matcher = index(
        api("shop", ["GET /orders"], hosts=["shop.example"], base="/v1"),
        api("admin", ["GET /users"], hosts=["shop.example"], base="/v1/admin"),
    )
    assert owner(matcher, "/v1/nothing") == ("undocumented-path", "shop")
    assert owner(matcher, "/v1/admin/nothing") == ("undocumented-path", "admin")


def test_a_path_outside_of_every_base_is_nobodys_unless_one_api_has_the_host():
    """/v2 on a host of one API is that API's; on a shared host it is nobody's."""
    shop = api("shop", ["GET /orders"], hosts=["shop.example"], base="/v1")
    admin = api("admin", ["GET /users"], hosts=["shop.example"], base="/admin")
    assert owner(index(shop), "/v2") == ("undocumented-path", "shop")
    assert owner(index(shop, admin), "/v2") == ("undocumented-path", None)


def test_two_equal_claims_have_no_owner_and_priority_decides():
    """Nobody's is a row of its own; guessing would bill someone."""
    one, two = api("one", ["GET /a"]), api("two", ["GET /b"])
    assert owner(index(one, two), "/c") == ("undocumented-path", None)
    assert owner(index(one, api("two", ["GET /b"], priority=1)), "/c") == ("undocumented-path", "two")


def test_an_unknown_host_is_nobodys():
    """Only where every document names its hosts."""
    matcher = index(api("shop", ["GET /orders"], hosts=["shop.example"]))
    assert owner(matcher, "/orders", host="other.example") == ("unknown-host", None)
    assert owner(matcher, "/orders", host="") == ("unknown-host", None)
    assert owner(Index([]), "/orders") == ("unknown-host", None)


def test_traffic_of_a_bound_route_is_that_apis_whatever_the_host():
    """Documented or not: what the document lacks is the API's unmatched row."""
    matcher = index(
        api("shop", ["GET /orders"], hosts=["shop.example"], route_ids=("r1",)),
        api("media", ["GET /orders"], hosts=["media.example"]),
    )
    assert owner(matcher, "/orders", host="10.0.0.1:9080", route_id="r1") == ("matched", "shop")
    assert owner(matcher, "/orders", host="media.example", route_id="r1") == ("matched", "shop")
    assert owner(matcher, "/nothing", host="10.0.0.1:9080", route_id="r1") == ("undocumented-path", "shop")
    assert matcher.find("PUT", "x", "/orders", route_id="r1").state == "undocumented-method"
    # Other routes go by host.
    assert owner(matcher, "/orders", host="media.example", route_id="r2") == ("matched", "media")
    assert owner(matcher, "/orders", host="shop.example") == ("matched", "shop")


def test_a_bound_api_does_not_take_other_traffic_as_any_host():
    """A document without hosts that is bound to a route has that route's traffic and no other."""
    matcher = index(api("shop", ["GET /orders"], route_ids=("r1",)))
    assert owner(matcher, "/orders", route_id="r1") == ("matched", "shop")
    assert owner(matcher, "/orders", route_id="r2") == ("unknown-host", None)


def test_a_route_is_nearer_than_its_service():
    """An API bound to the route has it, though another is bound to the service."""
    matcher = index(api("route", ["GET /a"], route_ids=("r1",)), api("service", ["GET /a"], service_ids=("s1",)))
    assert owner(matcher, "/a", route_id="r1", service_id="s1") == ("matched", "route")
    assert owner(matcher, "/a", route_id="r2", service_id="s1") == ("matched", "service")


def test_apis_that_share_a_service_are_told_apart_by_host_then_path():
    """Within a binding, the host still counts where it is named."""
    matcher = index(
        api("shop", ["GET /a"], hosts=["shop.example"], service_ids=("s1",)),
        api("media", ["GET /a", "GET /m"], hosts=["media.example"], service_ids=("s1",)),
    )
    assert owner(matcher, "/a", host="media.example", service_id="s1") == ("matched", "media")
    assert owner(matcher, "/a", host="shop.example", service_id="s1") == ("matched", "shop")
    assert owner(matcher, "/m", host="shop.example", service_id="s1") == ("matched", "media")


def test_a_bound_api_without_documents_has_its_traffic():
    """Everything of it is undocumented, and its own."""
    matcher = index(api("dark", [], route_ids=("r1",)))
    assert owner(matcher, "/a", route_id="r1") == ("undocumented-path", "dark")


@pytest.mark.parametrize("host", ["shop.example", "elsewhere.example"])
def test_documents_behind_the_rewrite_are_matched_by_the_path_sent_upstream(host):
    """path_seen: upstream. Where the gateway sent the path on as it came, the client's path is the upstream's."""
    matcher = index(
        api("inner", ["GET /orders"], hosts=[host], path_seen="upstream"),
        api("outer", ["GET /shop/orders", "GET /users"], hosts=[host]),
    )
    assert owner(matcher, "/x/orders", host=host, upstream_path="/orders") == ("matched", "inner")
    assert owner(matcher, "/orders", host=host) == ("matched", "inner")
    assert owner(matcher, "/users", host=host, upstream_path="/u") == ("matched", "outer")
    alone = index(api("inner", ["GET /orders"], path_seen="upstream"))
    assert owner(alone, "/x/orders", upstream_path="/orders") == ("matched", "inner")
    assert owner(alone, "/orders", upstream_path="/y") == ("undocumented-path", "inner")


def test_a_stripped_prefix_is_part_of_the_path_and_not_of_the_template():
    """The gateway takes /shop away; the document begins at /v1."""
    matcher = index(api("shop", ["GET /orders"], prefix="/shop", base="/v1"))
    match = matcher.find("GET", "", "/shop/v1/orders")
    assert (match.state, match.path_template) == ("matched", "/v1/orders")
    assert found(matcher, "GET", "/v1/orders") == "undocumented-path"


def test_what_is_remembered_of_hosts_is_bounded():
    """A client may send any Host header."""
    matcher = index(api("shop", ["GET /a"], hosts=["*.example"]))
    for number in range(10_000):
        matcher.find("GET", f"h{number}.example", "/a")
        matcher.find("GET", "x" * 300 + str(number), "/a")
    assert len(matcher._default.views) <= 4096


def test_bases_under_two_host_patterns_that_both_fit_are_compared_by_length():
    """/v1/admin/x is the longer base's, whichever pattern names the host; an equal base of both is nobody's."""
    matcher = index(
        api("shop", ["GET /orders"], hosts=["*.example"], base="/v1"),
        api("admin", ["GET /users"], hosts=["shop.*"], base="/v1/admin"),
        api("other", ["GET /users"], hosts=["shop.*"], base="/v1"),
    )
    assert owner(matcher, "/v1/admin/x") == ("undocumented-path", "admin")
    assert owner(matcher, "/v1/x") == ("undocumented-path", None)
    assert owner(matcher, "/v1/x", host="mail.example") == ("undocumented-path", "shop")
