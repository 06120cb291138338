"""Precedence, rule by rule (docs/matching.md), on documents small enough to see."""

import itertools

import pytest

from apicost.core.naming.match import Index
from tests.core.match_documents import api, found, index


def test_a_concrete_path_wins_over_a_templated_one():
    """/orders/latest before /orders/{id}, whatever the order ("Concrete definitions are matched before their
    templated counterparts", OpenAPI 3.1, Paths Object)."""
    for lines in itertools.permutations(["GET /orders/latest", "GET /orders/{id}"]):
        assert found(index(*lines), "GET", "/orders/latest") == "GET /orders/latest"
        assert found(index(*lines), "GET", "/orders/17") == "GET /orders/{id}"


def test_segments_rank_literal_mixed_parameter_multi():
    """At one place of the path: literal, then mixed, then one parameter, then multi-segment."""
    lines = ["GET /f/{+rest}", "GET /f/{name}", "GET /f/{name}.json", "GET /f/a.json"]
    matcher = index(*lines)
    assert found(matcher, "GET", "/f/a.json") == "GET /f/a.json"
    assert found(matcher, "GET", "/f/b.json") == "GET /f/{name}.json"
    assert found(matcher, "GET", "/f/b") == "GET /f/{name}"
    assert found(matcher, "GET", "/f/b/c") == "GET /f/{+rest}"


def test_of_two_mixed_segments_the_one_with_more_literal_text_wins():
    """report-{id}.json has twelve literal characters, {name}.json has five."""
    matcher = index("GET /f/{name}.json", "GET /f/report-{id}.json")
    assert found(matcher, "GET", "/f/report-7.json") == "GET /f/report-{id}.json"


def test_the_leftmost_segment_decides():
    """/a/{x} against /{y}/b on /a/b: the first segment is literal in the first."""
    matcher = index("GET /{y}/b", "GET /a/{x}")
    assert found(matcher, "GET", "/a/b") == "GET /a/{x}"


def test_a_dead_end_is_left_again():
    """/a/{x}/c is found though /a/b/... looked better at first."""
    matcher = index("GET /a/b/d", "GET /a/{x}/c")
    assert found(matcher, "GET", "/a/b/c") == "GET /a/{x}/c"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/jobs/7:cancel", "POST /v1/jobs/{id}:cancel"),
        ("/v1/jobs/a:b:cancel", "POST /v1/jobs/{id}:cancel"),
        ("/v1/jobs/:cancel", "POST /v1/jobs/{id}"),  # a parameter has at least one character
        ("/v1/jobs/7:resume", "POST /v1/jobs/{id}"),
        ("/v1/jobs/7%3Acancel", "POST /v1/jobs/{id}:cancel"),
    ],
)
def test_colon_verbs(path, expected):
    """/v1/jobs/{id}:cancel beside /v1/jobs/{id}."""
    matcher = index("POST /v1/jobs/{id}", "POST /v1/jobs/{id}:cancel")
    assert found(matcher, "POST", path) == expected


def test_a_parameter_is_never_empty():
    """/orders/ is no order; it is the list, loosely, where that exists."""
    assert found(index("GET /orders/{id}"), "GET", "/orders/") == "undocumented-path"
    assert found(index("GET /orders/{id}/lines"), "GET", "/orders//lines") == "undocumented-path"


def test_an_encoded_slash_stays_inside_its_segment():
    """/files/a%2Fb is one segment, so it is a file and not a folder's child."""
    matcher = index("GET /files/{name}", "GET /files/{folder}/{name}")
    assert found(matcher, "GET", "/files/a%2Fb") == "GET /files/{name}"
    assert found(matcher, "GET", "/files/a/b") == "GET /files/{folder}/{name}"


def test_literals_compare_decoded():
    """%6Frders is orders; a literal is better than a parameter however it is written."""
    matcher = index("GET /{anything}", "GET /orders", "GET /caf%C3%A9")
    assert found(matcher, "GET", "/%6Frders") == "GET /orders"
    assert found(matcher, "GET", "/caf\u00e9") == "GET /caf%C3%A9"


def test_paths_are_case_sensitive_and_hosts_are_not():
    """GET /Orders is not GET /orders; SHOP.example is shop.example."""
    matcher = Index([api("shop", ["GET /orders"], hosts=["shop.example"])])
    assert found(matcher, "GET", "/orders", "SHOP.Example") == "GET /orders"
    assert found(matcher, "GET", "/Orders", "shop.example") == "undocumented-path"


@pytest.mark.parametrize("path", ["/a/./b", "/a/x/../b", "/a/%2e/b", "/x/%2E%2e/a/b", "/../a/b", "/a/b?c=d", "/a/b#c"])
def test_dot_segments_query_and_fragment_are_no_part_of_the_path(path):
    """RFC 3986, sections 5.2.4 and 6.2.2.2."""
    assert found(index("GET /a/b", "GET /{p}/{q}/{r}"), "GET", path) == "GET /a/b"


def test_multi_segment_parameters_span_slashes_and_may_be_followed():
    """{+path} takes one segment or more; text may follow it."""
    matcher = index("GET /repos/{r}/{+path}", "GET /repos/{r}/{+path}/raw", "GET /repos/{r}/{+path}:blame")
    assert found(matcher, "GET", "/repos/x/a") == "GET /repos/{r}/{+path}"
    assert found(matcher, "GET", "/repos/x/a/b/c") == "GET /repos/{r}/{+path}"
    assert found(matcher, "GET", "/repos/x/a/b/raw") == "GET /repos/{r}/{+path}/raw"
    assert found(matcher, "GET", "/repos/x/a/b:blame") == "GET /repos/{r}/{+path}:blame"
    assert found(matcher, "GET", "/repos/x/raw") == "GET /repos/{r}/{+path}"
    assert found(matcher, "GET", "/repos/x") == "undocumented-path"


def test_what_goes_on_behind_a_multi_segment_parameter_is_better():
    """The longest literal tail wins, and the parameter is never empty."""
    matcher = index("GET /b/{+x}", "GET /b/{+x}/raw", "GET /b/{+x}/a/raw", "POST /b/{+x}/raw")
    assert found(matcher, "GET", "/b/1/a/raw") == "GET /b/{+x}/a/raw"
    assert found(matcher, "GET", "/b/1/2/raw") == "GET /b/{+x}/raw"
    assert found(matcher, "GET", "/b/raw") == "GET /b/{+x}"
    assert found(matcher, "GET", "/b//raw") == "GET /b/{+x}"
    assert matcher.find("POST", "", "/b/1/a/raw").flags == ("method-fallthrough",)
    assert found(matcher, "GET", "/b/") == "undocumented-path"


def test_base_paths_end_on_segment_boundaries():
    """/v1 does not hold /v10/orders."""
    matcher = Index([api("shop", ["GET /orders"], base="/v1")])
    assert found(matcher, "GET", "/v1/orders") == "GET /orders"
    assert found(matcher, "GET", "/v10/orders") == "undocumented-path"


# Hosts (rule 1)


def test_hosts_rank_exact_pattern_any():
    """The host is compared before the path: even a parameter under the exact host beats a literal under any."""
    matcher = index(
        api("any", ["GET /a"], hosts=[""]),
        api("pattern", ["GET /{p}"], hosts=["*.example"]),
        api("exact", ["GET /{q}"], hosts=["shop.example"]),
    )
    assert matcher.find("GET", "shop.example", "/a").api == "exact"
    assert matcher.find("GET", "media.example", "/a").api == "pattern"
    assert matcher.find("GET", "other.test", "/a").api == "any"


def test_default_ports_and_root_dot_are_dropped():
    """shop.example:443 and shop.example. are shop.example; another port is another host."""
    matcher = index(api("shop", ["GET /a"], hosts=["shop.example"]))
    for host in ("shop.example:80", "shop.example:443", "shop.example.", "Shop.Example"):
        assert found(matcher, "GET", "/a", host) == "GET /a"
    assert found(matcher, "GET", "/a", "shop.example:8080") == "unknown-host"


def test_a_better_host_without_the_path_does_not_hide_a_worse_one_with_it():
    """Candidates are collected over all hosts that fit."""
    matcher = index(api("any", ["GET /health"]), api("shop", ["GET /orders"], hosts=["shop.example"]))
    assert matcher.find("GET", "shop.example", "/health").api == "any"


# Methods (rules 3 and 5)


def test_the_best_template_that_documents_the_method_wins_and_says_so():
    """DELETE /orders/latest is documented only as DELETE /orders/{id}."""
    matcher = index("GET /orders/latest", "DELETE /orders/{id}")
    match = matcher.find("DELETE", "", "/orders/latest")
    assert match.operation.operation_id == "DELETE /orders/{id}"
    assert match.flags == ("method-fallthrough",)


def test_no_template_documents_the_method():
    """The best template is named, so that its API gets the row."""
    match = index("GET /orders/latest", "DELETE /orders/{id}").find("PUT", "", "/orders/latest")
    assert (match.state, match.api, match.operation) == ("undocumented-method", "one", None)
    assert match.path_template == "/orders/latest"


def test_head_falls_back_to_get():
    """Only where no candidate documents HEAD."""
    assert found(index("GET /a"), "HEAD", "/a") == "GET /a"
    assert found(index("GET /a", "HEAD /a"), "HEAD", "/a") == "HEAD /a"
    assert found(index("POST /a"), "HEAD", "/a") == "undocumented-method"
    match = index("GET /a", "HEAD /{x}").find("HEAD", "", "/a")
    assert (match.operation.operation_id, match.flags) == ("HEAD /{x}", ("method-fallthrough",))


def test_options_that_is_not_documented_is_the_preflight_of_its_template():
    """An operation of its own, in the API of the best template."""
    matcher = index("GET /orders/{id}", "OPTIONS /own")
    match = matcher.find("OPTIONS", "", "/orders/7")
    assert (match.state, match.operation.operation_id) == ("matched", "cors-preflight")
    assert match.path_template == "/orders/{id}"
    assert found(matcher, "OPTIONS", "/own") == "OPTIONS /own"
    assert found(matcher, "OPTIONS", "/nowhere") == "undocumented-path"


def test_methods_are_case_sensitive():
    """RFC 9110, section 9.1."""
    assert found(index("GET /a"), "get", "/a") == "undocumented-method"


# Ties (rules 4 and 6)


def test_ties_go_to_the_longer_base_and_are_flagged_with_the_alternatives():
    """/v1 + /orders against / + /v1/orders."""
    whole = api("whole", ["GET /v1/orders"])
    based = api("based", ["GET /orders"], base="/v1")
    for apis in itertools.permutations([whole, based]):
        match = index(*apis).find("GET", "", "/v1/orders")
        assert match.api == "based"
        assert match.flags == ("ambiguous-operation",)
        assert [other.api for other in match.alternatives] == ["whole"]


def test_ties_go_to_the_higher_priority_then_to_the_order():
    """Both stay flagged: the documents overlap, whoever wins."""
    low, high = api("low", ["GET /a"]), api("high", ["GET /a"], priority=5)
    assert index(low, high).find("GET", "", "/a").api == "high"
    first, second = api("first", ["GET /a"]), api("second", ["GET /a"])
    match = index(first, second).find("GET", "", "/a")
    assert (match.api, match.flags) == ("first", ("ambiguous-operation",))


def test_identical_templates_merge_per_method():
    """/a/{x} with GET and /a/{y} with POST are one template: neither ambiguous nor a fall-through."""
    matcher = index("GET /a/{x}", "POST /a/{y}")
    for method, name in (("GET", "GET /a/{x}"), ("POST", "POST /a/{y}")):
        match = matcher.find(method, "", "/a/1")
        assert (match.operation.operation_id, match.flags) == (name, ())


def test_a_tie_between_different_mixed_segments_is_ambiguous():
    """{a}-x and y-{b} both fit y-x with two literal characters."""
    match = index("GET /{a}-x", "GET /y-{b}").find("GET", "", "/y-x")
    assert (match.operation.operation_id, match.flags) == ("GET /{a}-x", ("ambiguous-operation",))
    assert [other.operation_id for other in match.alternatives] == ["GET /y-{b}"]
    assert index("GET /{a}-x", "GET /y-{b}").find("GET", "", "/z-x").flags == ()


def test_mirrors_of_one_api_are_no_alternatives():
    """The same operation under two hosts that both fit is one operation."""
    matcher = index(api("shop", ["GET /a"], hosts=["*.example", "shop.*"]))
    assert matcher.find("GET", "shop.example", "/a").flags == ()


# Variants and discriminators


def test_a_key_with_a_hash_is_a_variant_of_the_key_without():
    """/orders#bulk is /orders with other methods."""
    matcher = index("GET /orders", "POST /orders#bulk")
    assert found(matcher, "POST", "/orders") == "POST /orders#bulk"
    assert found(matcher, "GET", "/orders") == "GET /orders"


def test_a_query_in_the_key_is_a_discriminator():
    """?action=search needs that query; ?verbose needs the name alone; more of them is better."""
    matcher = index("POST /orders", "POST /orders?action=search", "POST /orders?action=search&verbose")
    assert found(matcher, "POST", "/orders") == "POST /orders"
    assert found(matcher, "POST", "/orders?action=buy") == "POST /orders"
    assert found(matcher, "POST", "/orders?x=1&action=search") == "POST /orders?action=search"
    assert found(matcher, "POST", "/orders?verbose=&action=search") == "POST /orders?action=search&verbose"
    assert found(index("GET /only?a=b"), "GET", "/only") == "undocumented-path"


def test_where_only_names_are_known_a_value_is_a_guess_and_flagged():
    """Usage lines carry no query values."""
    matcher = index("POST /orders", "POST /orders?action=search", "GET /list?all")
    match = matcher.find("POST", "", "/orders", query_names="action,page")
    assert match.operation.operation_id == "POST /orders?action=search"
    assert match.flags == ("ambiguous-operation",)
    assert [other.operation_id for other in match.alternatives] == ["POST /orders"]
    assert matcher.find("POST", "", "/orders", query_names="page").flags == ()
    assert matcher.find("GET", "", "/list", query_names="all").flags == ()


# Loose matches


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/orders/", "GET /orders"),
        ("//orders", "GET /orders"),
        ("/orders//7", "GET /orders/{id}"),
        ("/orders/7/", "GET /orders/{id}"),
        ("/orders//7///", "GET /orders/{id}"),
        ("/slash", "GET /slash/"),
        ("//slash//", "GET /slash/"),
    ],
)
def test_slashes_are_repaired_in_a_second_pass_and_flagged(path, expected):
    """Only where nothing fits as it stands."""
    match = index("GET /orders", "GET /orders/{id}", "GET /slash/").find("GET", "", path)
    assert match.operation.operation_id == expected
    assert match.flags == ("loose-match",)


def test_what_fits_as_it_stands_is_not_repaired():
    """/orders/ and /orders as two templates; an undocumented method is no reason to repair."""
    matcher = index("GET /orders/", "POST /orders")
    assert matcher.find("GET", "", "/orders/").flags == ()
    assert found(matcher, "POST", "/orders/") == "undocumented-method"


def test_a_loose_match_may_lack_the_method():
    """The template is known, the method is not."""
    match = index("GET /orders").find("PUT", "", "/orders/")
    assert (match.state, match.flags, match.api) == ("undocumented-method", ("loose-match",), "one")


@pytest.mark.parametrize("path", ["", "*", "orders", "x/orders", "http://shop.example/orders"])
def test_what_is_no_path_is_undocumented(path):
    """A request target without a leading slash ("OPTIONS *", RFC 9112, section 3.2.4)."""
    assert found(index("GET /orders", "GET /{x}"), "GET", path) == "undocumented-path"


# Hosts that several patterns of one class fit: their tries are walked as one


TWO_PATTERNS = (
    api("front", ["GET /a/{id}", "GET /a/{id}.json", "POST /a/{id}", "GET /f/{+rest}", "GET /on"], hosts=["*.example"]),
    api("back", ["GET /a/{key}", "GET /a/list", "DELETE /a/{key}", "GET /f/{one}", "PUT /b"], hosts=["shop.*"]),
)  # fmt: skip
ACROSS = [
    ("GET", "/a/7", "GET /a/{id}", ("ambiguous-operation",)),
    ("GET", "/a/list", "GET /a/list", ()),
    ("GET", "/a/7.json", "GET /a/{id}.json", ()),
    ("POST", "/a/7", "POST /a/{id}", ()),
    ("POST", "/a/list", "POST /a/{id}", ("method-fallthrough",)),
    ("DELETE", "/a/7", "DELETE /a/{key}", ()),
    ("DELETE", "/a/7.json", "DELETE /a/{key}", ("method-fallthrough",)),
    ("GET", "/f/7", "GET /f/{one}", ()),
    ("GET", "/f/7/8", "GET /f/{+rest}", ()),
    ("GET", "/on", "GET /on", ()),
    ("PUT", "/b", "PUT /b", ()),
]


@pytest.mark.parametrize("nodes", [1 << 15, 0])
def test_templates_under_host_patterns_that_both_fit_compare_with_each_other(monkeypatch, nodes):
    """The answers do not depend on whether the bound of made nodes lets the tries become one."""
    monkeypatch.setattr("apicost.core.naming.index.MAX_MERGED_NODES", nodes)
    matcher = index(*TWO_PATTERNS)
    for method, path, operation, flags in ACROSS:
        match = matcher.find(method, "shop.example", path)
        assert (match.operation.operation_id, match.flags) == (operation, flags), (method, path)


def test_the_same_operation_under_two_patterns_that_both_fit_is_no_tie():
    """It is one place, found twice."""
    both = api("one", ["GET /a"], hosts=["*.example", "shop.*"])
    more = api("two", ["GET /b"], hosts=["*.example"])
    match = index(both, more).find("GET", "shop.example", "/a")
    assert (match.operation.operation_id, match.flags) == ("GET /a", ())


@pytest.mark.parametrize("path", ["/a/7?x=1", "/a/7?x=/y", "/a/7?x=/../y", "/a/7?q=%2F#c"])
def test_a_query_does_not_lead_to_another_template(path):
    """Whatever stands in it."""
    matcher = index("GET /a/{id}", "GET /a/{id}/y", "GET /{x}/y", "GET /y")
    assert found(matcher, "GET", path) == "GET /a/{id}"


def test_mixed_segments_of_equal_literal_text_are_compared_by_what_follows():
    """{p}b and a{p} are equal up to there; the literal behind decides, the order of documents only a tie."""
    matcher = index("GET /{p}b/{q}", "GET /a{p}/go")
    assert found(matcher, "GET", "/acb/go") == "GET /a{p}/go"
    assert found(matcher, "GET", "/acb/other") == "GET /{p}b/{q}"
