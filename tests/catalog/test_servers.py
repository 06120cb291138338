"""Server URLs as host patterns and base paths."""

import pytest

from apicost.catalog.servers import configured_host, expand
from apicost.core.naming.operations import ANY_HOST, EXACT_HOST, HOST_PATTERN
from apicost.core.naming.paths import LITERAL, MIXED, PARAMETER


def reached(url, **variables):
    """(host rank, host with * for variables, base) of each server that a URL stands for."""
    said = []
    servers = expand(url, variables, lambda *problem: said.append(problem))
    return [(s.host.rank, "*".join(s.host.pieces), s.base) for s in servers], said


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://shop.example/v1", (EXACT_HOST, "shop.example", "/v1")),
        ("https://Shop.Example:443/v1/", (EXACT_HOST, "shop.example", "/v1")),
        ("http://shop.example:8080", (EXACT_HOST, "shop.example:8080", "")),
        ("//shop.example/a/b", (EXACT_HOST, "shop.example", "/a/b")),
        ("{scheme}://shop.example/v1", (EXACT_HOST, "shop.example", "/v1")),
        ("https://user@shop.example/v1?x#y", (EXACT_HOST, "shop.example", "/v1")),
        ("https://b\u00fccher.example", (EXACT_HOST, "xn--bcher-kva.example", "")),
        ("https://[2001:db8::1]:8443/v1", (EXACT_HOST, "[2001:db8::1]:8443", "/v1")),
        ("/v1", (ANY_HOST, "", "/v1")),
        ("/", (ANY_HOST, "", "")),
        ("", (ANY_HOST, "", "")),
        ("./v1/", (ANY_HOST, "", "/v1")),
        ("https://{tenant}.shop.example", (HOST_PATTERN, "*.shop.example", "")),
    ],
)
def test_a_url_stands_for_a_host_and_a_base_path(url, expected):
    """Scheme, default port, case, credentials and trailing slash don't count."""
    assert reached(url)[0] == [expected]


def test_an_enum_is_an_exact_set():
    """{region} stands for eu and us and nothing else; it stays worse than a host that is written out."""
    servers, said = reached("https://{region}.example/v1", region={"enum": ["eu", "us"], "default": "eu"})
    assert servers == [(HOST_PATTERN, "eu.example", "/v1"), (HOST_PATTERN, "us.example", "/v1")]
    assert said == []


def test_a_variable_without_an_enum_is_anything_without_a_slash():
    """Its default is only a suggestion."""
    servers, _ = reached("https://{tenant}.example/{version}", tenant={"default": "x"}, version={"default": "v1"})
    assert servers == [(HOST_PATTERN, "*.example", "/{version}")]


def test_a_port_variable_may_stand_for_the_default_port():
    """A Host header leaves port 443 out."""
    servers, _ = reached("https://shop.example:{port}", port={"default": "443"})
    assert servers == [(HOST_PATTERN, "shop.example:*", ""), (HOST_PATTERN, "shop.example", "")]
    servers, _ = reached("https://shop.example:{port}", port={"enum": ["443", "8443"]})
    assert [host for _, host, _ in servers] == ["shop.example", "shop.example:8443"]


def test_an_enum_in_the_base_path_is_worse_than_a_literal():
    """The segments keep the class of what is written in the document."""
    [server] = expand("/{v}/x", {"v": {"enum": ["v1"]}}, print)
    assert [(s.rank, s.pieces) for s in server.segments] == [(PARAMETER, ("v1",)), (LITERAL, ("x",))]
    [server] = expand("/api-{v}", {"v": {"enum": ["1"]}}, print)
    assert [(s.rank, s.literal_chars, s.pieces) for s in server.segments] == [(MIXED, 4, ("api-1",))]
    [server] = expand("/{path}", {"path": {"enum": ["a/b"]}}, print)
    assert [(s.rank, s.pieces) for s in server.segments] == [(LITERAL, ("a",)), (LITERAL, ("b",))]


def test_a_variable_that_holds_the_whole_url():
    """{server}/v1 with a default of scheme and host."""
    servers, _ = reached("{server}/v1", server={"default": "https://shop.example"})
    assert servers == [(EXACT_HOST, "shop.example", "/v1")]


def test_what_a_variable_can_not_be_is_said():
    """Undefined variables, defaults with a slash, and more combinations than are kept."""
    assert "is not defined" in reached("https://{who}.example")[1][0][0]
    servers, said = reached("/{base}", base={"default": "api/v1"})
    assert servers == [(ANY_HOST, "", "/{base}")] and "holds '/'" in said[0][0]
    many = {"enum": [str(n) for n in range(9)]}
    servers, said = reached("https://{a}-{b}.example", a=many, b=many)
    assert servers == [(HOST_PATTERN, "*-*.example", "")] and "81 combinations" in said[0][0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", (ANY_HOST, ())),
        ("Shop.example:443", (EXACT_HOST, ("shop.example",))),
        ("*.shop.example", (HOST_PATTERN, ("", ".shop.example"))),
        ("shop.example:*", (HOST_PATTERN, ("shop.example:", ""))),
    ],
)
def test_configured_hosts(text, expected):
    """Wildcards as in the gateway's own routes."""
    assert configured_host(text) == expected
