"""Routes as a standalone file or the Admin API gives them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from apicost import resources
from apicost.catalog import gateway_routes
from apicost.commands import routes as command
from apicost.problems import InputError

ROUTES = [
    {
        "id": "orders", "uris": ["/v1/orders", "/v1/orders/*"], "service_id": "shop", "methods": ["get", "POST"],
        "plugins": {"proxy-rewrite": {"regex_uri": ["^/v1/(.*)", "/$1"]}},
    },
    {"id": 2, "uri": "/off", "status": 0},
    {"id": 3, "uri": "/plain", "plugins": {"apicost-logger": {"_meta": {"disable": True}}}},
]  # fmt: skip
SERVICES = [{"id": "shop", "hosts": ["shop.example"], "plugins": {"apicost-logger": {}}}]


@contextlib.contextmanager
def admin(form: str) -> Iterator[str]:
    """An Admin API with one page's worth of objects, in the form of APISIX 3 or 2."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            kind = parts.path.rpartition("/")[2]
            objects = {"routes": ROUTES, "services": SERVICES}.get(kind)
            status = 401 if self.headers["X-API-KEY"] != "secret" else 200 if objects is not None else 404
            page, size = (int(parse_qs(parts.query)[name][0]) for name in ("page", "page_size"))
            shown = (objects or [])[(page - 1) * size : page * size] if form == "3" else objects or []
            listed: Any = [{"key": f"/apisix/{kind}/{o['id']}", "value": o} for o in shown]
            data: Any = {"total": len(listed), "list": listed} if form == "3" else {"node": {"nodes": listed}}
            body = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def check(routes: list[gateway_routes.Route]) -> None:
    orders, plain = routes
    assert orders.uris == ("/v1/orders", "/v1/orders/*") and orders.methods == ("GET", "POST")
    assert orders.hosts == ("shop.example",) and orders.logged  # both from its service
    assert orders.rewrite and orders.rewrite.pairs == (("^/v1/(.*)", "/$1"),)
    assert plain.id == "3" and not plain.logged and plain.hosts == ()


def test_a_standalone_file_gives_its_routes(tmp_path: Path) -> None:
    """Service, disabled plugin and switched-off route are read as the gateway reads them."""
    file = tmp_path / "apisix.yaml"
    file.write_text(json.dumps({"routes": ROUTES, "services": SERVICES}) + "\n#END\n")
    check(gateway_routes.from_file(file))


@pytest.mark.parametrize("form", ["3", "2"])
@pytest.mark.parametrize("page", [1, 2, 500])
def test_the_admin_api_gives_the_same_routes(form: str, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the list form of 3.x, page by page, and in the node form before."""
    monkeypatch.setattr(gateway_routes, "PAGE", page)
    with admin(form) as url:
        check(gateway_routes.from_admin(url, "secret"))


def test_a_wrong_key_is_said_without_showing_it() -> None:
    """The problem names address and remedy, never the key."""
    with admin("3") as url, pytest.raises(InputError) as caught:
        gateway_routes.from_admin(url, "wrong-key")
    assert "401" in str(caught.value) and "admin key" in str(caught.value) and "wrong-key" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:9180", "http://127.0.0.1:1"])
def test_an_address_that_is_no_admin_api_is_an_error(url: str) -> None:
    """Place, effect and fix, and exit code 2 by the command line."""
    with pytest.raises(InputError):
        gateway_routes.from_admin(url, "secret")


def test_the_command_tells_gaps_and_exits_by_their_severity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON names route and remedy; --fail-on decides the exit code."""
    file = tmp_path / "apisix.yaml"
    file.write_text(
        json.dumps({"routes": [{"id": "1", "uri": "/v1/*", "host": "shop.example"}, {"id": "2", "uri": "/x\u001b[2J"}],
                    "global_rules": [{"id": 1, "plugins": {"apicost-logger": {}}}]})
    )  # fmt: skip
    arguments = ["--file", str(file), "--spec", str(resources.folder("specs") / "shop.yaml")]
    assert command.main([*arguments, "--format", "json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [(f["kind"], f["route_id"]) for f in data["findings"]] == [("route-without-document", "2")]
    assert command.main([*arguments, "--fail-on", "error"]) == 0
    assert "\x1b" not in capsys.readouterr().out
