"""What a usage line says, against a client that counts its own sockets."""

import re
import time

import pytest

from apicost.demo import traffic
from apicost.demo.gateway import CONSUMERS
from tests.plugin.sink import COLUMNS, TOKEN, Sink

pytestmark = pytest.mark.gateway

KEY = {"apikey": CONSUMERS["acme"]}


def lines_after(shared, act, count):
    """The lines of what `act` does, in the order of their numbers."""
    before = len(shared.sink.lines())
    act()
    lines = shared.sink.wait_for(before + count)
    return sorted(lines, key=lambda line: int(line["line_no"]))[before:]


def plain(shared):
    return traffic.Connection(("127.0.0.1", shared.http_port))


def secure(shared, alpn="http/1.1"):
    return traffic.Connection(("127.0.0.1", shared.https_port), tls=True, alpn=alpn)


def test_each_column_says_what_the_schema_promises(shared):
    """Every column of x-columns has its value, in its place."""

    def act():
        wire = plain(shared)
        path = "/v1/orders/7?page=2&sort=desc"
        headers = {**KEY, "Cookie": "a=b", "Authorization": "Basic eA=="}
        act.sent = traffic.request(wire, "POST", "shop.example:8080", path, body=b"x" * 500, headers=headers)
        wire.close()

    (line,) = lines_after(shared, act, 1)
    upstream = shared.content["services"][0]["upstream"]["nodes"]
    assert line.items() >= {
        "connection_requests": "1", "peer_addr": "127.0.0.1", "peer_port": str(act.sent.client_port),
        "local_addr": "127.0.0.1", "local_port": str(shared.http_port), "tls_version": "", "tls_cipher": "",
        "http_version": "HTTP/1.1", "tls_read_bytes": "", "tls_written_bytes": "", "method": "POST",
        "host": "shop.example:8080", "path": "/v1/orders/7", "query_names": "page&sort", "upstream_path": "",
        "route_id": "orders", "route_name": "orders", "service_id": "shop", "consumer": "acme",
        "matched_uri": "/v1/orders/*", "status": "200", "response_source": "upstream",
        "request_bytes": str(act.sent.sent_bytes), "response_bytes": str(act.sent.received_bytes),
        "response_body_bytes": "420", "content_length": "500", "request_content_type": "application/json",
        "response_content_type": "application/json", "upstream_scheme": "http",
        "upstream_addr": next(iter(upstream)), "upstream_status": "200", "auth_kinds": "basic,apikey,cookie",
        "llm_model": "", "llm_prompt_tokens": "", "llm_completion_tokens": "",
    }.items()  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{32}", line["request_id"])
    assert re.fullmatch(r"\d+\.\d{3}", line["msec"]) and abs(float(line["msec"]) - time.time()) < 60
    assert 0 <= float(line["request_time"]) < 5
    assert 0 < int(line["header_before_us"]) <= int(line["access_before_us"]) < 5_000_000
    assert int(line["upstream_bytes_sent"]) > 500 and int(line["upstream_bytes_received"]) > 420
    assert float(line["upstream_connect_time"]) >= 0 and float(line["upstream_response_time"]) >= 0
    assert set(COLUMNS) < set(line)


def test_the_header_names_node_worker_and_clocks(shared):
    """base_mono_ns is CLOCK_MONOTONIC and base_unix_ns the wall clock, of the same moment."""
    act = lambda: traffic.request(plain(shared), "GET", "shop.example", "/v1/products")  # noqa: E731
    (line,) = lines_after(shared, act, 1)
    header = next(header for header, lines in shared.sink.batches().values() if line in lines)
    assert header["apicost"] == 1 and header["node"] == "test-node"
    assert header["worker"]["pid"] in shared.worker_pids()
    offset_ns = (time.time_ns() - time.monotonic_ns()) - (header["base_unix_ns"] - header["base_mono_ns"])
    assert abs(offset_ns) < 5_000_000
    assert 0 < time.monotonic_ns() - header["base_mono_ns"] < 60 * 10**9
    posted = next(headers for status, headers, _ in shared.sink.posts if status == 200)
    assert posted[":request"] == "POST /v1/usage HTTP/1.1"
    assert posted["authorization"] == f"Bearer {TOKEN}"
    assert posted["content-type"] == "text/x-apicost-usage"


def test_plain_keep_alive_bytes_equal_the_sockets(shared):
    """request_bytes and response_bytes are what the client's socket carried, request by request."""
    sent = []

    def act():
        wire = plain(shared)
        for size in (0, 1, 900, 16_384, 200_000):
            sent.append(traffic.request(wire, "GET", "media.example", f"/files/a?size={size}"))
            sent.append(traffic.request(wire, "GET", "media.example", f"/files/a?size={size}&chunked=1"))
            sent.append(traffic.request(wire, "PUT", "media.example", "/files/a", body=b"p" * size))
            chunked = size > 0
            sent.append(traffic.request(wire, "PUT", "media.example", "/files/a", body=b"p" * size, chunked=chunked))
        wire.close()

    lines = lines_after(shared, act, 20)
    assert [int(line["request_bytes"]) for line in lines] == [each.sent_bytes for each in sent]
    assert [int(line["response_bytes"]) for line in lines] == [each.received_bytes for each in sent]
    assert [int(line["connection_requests"]) for line in lines] == list(range(1, 21))
    assert len({line["connection"] for line in lines}) == 1


def test_pipelined_requests_have_their_own_bytes(shared):
    """Ten requests in one write: ten lines whose bytes add up to the socket's."""
    wire = plain(shared)

    def act():
        paths = [f"/v1/products?size={size}" for size in range(0, 1000, 100)]
        assert traffic.pipelined(wire, "shop.example", paths) == [200] * 10

    lines = lines_after(shared, act, 10)
    assert sum(int(line["request_bytes"]) for line in lines) == wire.sent
    assert sum(int(line["response_bytes"]) for line in lines) == wire.received
    assert [line["connection_requests"] for line in lines] == [str(i) for i in range(1, 11)]


def test_tls_counters_are_the_sockets_own(shared):
    """tls_read_bytes and tls_written_bytes are the raw bytes of the connection when the request was logged."""
    marks = []

    def act():
        wire = secure(shared)
        for size in (0, 10, 5000, 100_000):
            body = b"b" * size
            traffic.request(wire, "PUT", "media.example", f"/files/a?size={size * 2}", body=body)
            marks.append((str(wire.sent), str(wire.received)))
        wire.close()

    lines = lines_after(shared, act, 4)
    assert [(line["tls_read_bytes"], line["tls_written_bytes"]) for line in lines] == marks
    assert {(line["tls_version"], line["http_version"]) for line in lines} == {("TLSv1.3", "HTTP/1.1")}
    assert lines[0]["tls_cipher"].startswith("TLS_")


def test_a_tls_counter_that_is_ahead_is_empty(shared):
    """Where the next request came in with a body that nginx threw away, the counter of bytes read would hold both."""

    def act():
        wire = secure(shared)
        body = b"b" * 200
        head = f"POST /v1/orders/1 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        wire.send(head)
        data = b""
        while b"\r\n\r\n" not in data:  # 401 without a key, before the body is there
            data += wire.read()
        wire._ssl.write(body)  # both leave in one piece
        wire._ssl.write(b"GET /v1/orders/2 HTTP/1.1\r\nHost: shop.example\r\n\r\n")
        wire._flush()
        while data.count(b"HTTP/1.1 401") < 2:
            data += wire.read()
        act.all = wire.sent
        wire.close()

    early, after = lines_after(shared, act, 2)
    assert (early["tls_read_bytes"], early["status"]) == ("", "401")
    assert int(early["tls_written_bytes"]) < int(after["tls_written_bytes"])
    assert after["tls_read_bytes"] == str(act.all)


def test_http2_streams_share_a_connection(shared):
    """Twenty streams: one connection, each with its own bytes, counters within the connection's."""

    def act():
        calls = [("GET", f"/files/a?size={i * 500}", b"") for i in range(20)]
        traffic.http2(("127.0.0.1", shared.https_port), "media.example", calls, {})

    lines = lines_after(shared, act, 20)
    assert {line["http_version"] for line in lines} == {"HTTP/2.0"}
    assert len({line["connection"] for line in lines}) == 1
    assert sorted(int(line["connection_requests"]) for line in lines) == list(range(1, 21))
    assert sorted(int(line["response_body_bytes"]) for line in lines) == [i * 500 for i in range(20)]
    assert max(int(line["tls_written_bytes"]) for line in lines) > sum(int(line["response_bytes"]) for line in lines)


def test_requests_that_the_gateway_answers_itself(shared):
    """401 and 404 have lines too: no upstream, no route where none matched, source apisix."""

    def act():
        wire = plain(shared)
        traffic.request(wire, "GET", "shop.example", "/v1/orders/7")
        traffic.request(wire, "GET", "nobody.example", "/nothing")
        wire.close()

    refused, lost = lines_after(shared, act, 2)
    assert (refused["status"], refused["route_id"], refused["consumer"]) == ("401", "orders", "")
    assert (lost["status"], lost["route_id"], lost["service_id"], lost["matched_uri"]) == ("404", "", "", "")
    for line in (refused, lost):
        assert line["response_source"] == "apisix"
        assert [line[name] for name in COLUMNS if name.startswith("upstream_")] == [""] * 8


def test_retries_show_each_try(shared):
    """A refused and a closed upstream before the good one: three tries, each with its bytes."""

    def act():
        wire = plain(shared)
        for number in range(3):
            traffic.request(wire, "GET", "shop.example", f"/v1/products/sku-{number}")
        wire.close()

    lines = lines_after(shared, act, 3)
    longest = max(lines, key=lambda line: line["upstream_addr"].count(","))
    assert longest["upstream_status"] == "502, 502, 200" and longest["status"] == "200"
    sent = longest["upstream_bytes_sent"].split(", ")
    received = longest["upstream_bytes_received"].split(", ")
    assert sent.count("0") == 1 and received.count("0") == 2
    assert longest["response_source"] == "upstream"


def test_bytes_that_ai_proxy_hides_are_absent(make_gateway, tmp_path):
    """Where ai-proxy spoke to the backend by itself, its bytes are unknown, not what nginx has for them."""
    # What ai-proxy of APISIX 3.13 to 3.18 leaves in the context of a request that it takes.
    stub = tmp_path / "ai" / "apisix" / "plugins"
    stub.mkdir(parents=True)
    (stub / "as-ai-proxy.lua").write_text(
        'local schema = {type = "object", properties = {}}\n'
        "local function check_schema() return true end\n"
        'local _M = {version = 1, priority = 1, name = "as-ai-proxy", schema = schema, check_schema = check_schema}\n'
        'function _M.access(conf, ctx) if ngx.var.arg_ai then ctx.picked_ai_instance = {name = "one"} end end\n'
        "return _M\n"
    )

    def use(content):
        content["routes"][1]["plugins"] = {"as-ai-proxy": {}}

    plugins = ("as-ai-proxy", "key-auth", "proxy-rewrite", "apicost-logger")
    gateway = make_gateway(change=use, more_lua=f"{tmp_path}/ai/?.lua;", plugins=plugins)
    wire = plain(gateway)
    for path in ("/v1/products", "/v1/products?ai=1"):
        traffic.request(wire, "GET", "shop.example", path)
    nginx_s, ai_s = sorted(gateway.sink.wait_for(2), key=lambda line: line["line_no"])
    assert int(nginx_s["upstream_bytes_sent"]) > 0 and int(nginx_s["upstream_bytes_received"]) > 0
    assert (ai_s["upstream_bytes_sent"], ai_s["upstream_bytes_received"]) == ("", "")
    same = ("upstream_addr", "upstream_status", "upstream_scheme", "route_id", "response_source")
    assert [ai_s[name] for name in same] == [nginx_s[name] for name in same]


def test_a_streamed_answer_of_a_model_has_the_tokens_of_its_end(make_gateway, tmp_path):
    """Tokens that only the last event of a stream tells are in its line; a stream that ends or is left before that has
    what APISIX says then, 0, which usage takes for a request without counts."""
    # As ai-proxy: the model is known before the answer, tokens when an event of it tells them.
    stub = tmp_path / "ai" / "apisix" / "plugins"
    stub.mkdir(parents=True)
    (stub / "as-ai-proxy.lua").write_text(
        'local schema = {type = "object", properties = {}}\n'
        "local function check_schema() return true end\n"
        'local _M = {version = 1, priority = 1, name = "as-ai-proxy", schema = schema, check_schema = check_schema}\n'
        'function _M.access(conf, ctx) ngx.var.llm_model = "gpt-4o"; ctx.picked_ai_instance = {name = "one"} end\n'
        "function _M.body_filter(conf, ctx)\n"
        '    if (ngx.arg[1] or ""):find("tick 4", 1, true) then\n'
        "        ngx.var.llm_prompt_tokens, ngx.var.llm_completion_tokens = 1234567, 89\n"
        "    end\n"
        "end\n"
        "return _M\n"
    )

    def use(content):
        stream = next(route for route in content["routes"] if route["id"] == "stream")
        stream["plugins"] = {"as-ai-proxy": {}}

    plugins = ("as-ai-proxy", "key-auth", "proxy-rewrite", "apicost-logger")
    gateway = make_gateway(change=use, more_lua=f"{tmp_path}/ai/?.lua;", plugins=plugins)
    wire = plain(gateway)
    for events in (5, 3):
        traffic.request(wire, "GET", "media.example", f"/stream?events={events}&interval_ms=5")
    traffic.request(wire, "GET", "media.example", "/files/a")
    wire.close()
    traffic.abort(("127.0.0.1", gateway.http_port), "media.example", "/stream?events=500&interval_ms=50", {}, 150)
    told, untold, other, left = sorted(gateway.sink.wait_for(4), key=lambda line: int(line["line_no"]))
    names = ("llm_model", "llm_prompt_tokens", "llm_completion_tokens")
    assert [told[name] for name in names] == ["gpt-4o", "1234567", "89"]
    assert [[line[name] for name in names] for line in (untold, left)] == [["gpt-4o", "0", "0"]] * 2
    assert [other[name] for name in names] == ["", "", ""]


def test_no_answer_from_any_upstream_is_nginx_own(make_gateway, upstreams):
    """A 502 that nginx made has response_source nginx, emulated 3.18 and 3.2 alike."""

    def break_it(content):
        content["services"][0]["upstream"]["nodes"] = {upstreams.refusing: 1}

    for version in ("3.18.0", "3.2.0"):
        gateway = make_gateway(change=lambda c, v=version: (break_it(c), c.update(apisix_version=v)))
        assert traffic.request(plain(gateway), "GET", "shop.example", "/v1/products").status == 502
        (line,) = gateway.sink.wait_for(1)
        assert (line["status"], line["response_source"], line["upstream_status"]) == ("502", "nginx", "502")


def test_an_aborting_client_is_499_with_its_port(shared):
    """A client that goes away has a line with status 499."""

    def act():
        act.sent = traffic.abort(
            ("127.0.0.1", shared.http_port), "media.example", "/files/a?size=20000000", {}, after_bytes=50_000
        )

    (line,) = lines_after(shared, act, 1)
    assert (line["peer_port"], line["path"]) == (str(act.sent.client_port), "/files/a")
    assert line["status"] in ("200", "499")  # the head had gone out already
    assert int(line["response_bytes"]) < 20_000_000


def test_the_peer_is_the_socket_even_behind_real_ip(shared):
    """X-Real-IP changes whom APISIX sees, not the connection that the kernel counts."""

    def act():
        wire = plain(shared)
        traffic.request(wire, "GET", "shop.example", "/v1/products", headers={"X-Real-IP": "203.0.113.9"})
        act.port = wire.port
        traffic.request(wire, "GET", "shop.example", "/v1/products")
        wire.close()

    lines = lines_after(shared, act, 2)
    assert {(line["peer_addr"], line["peer_port"]) for line in lines} == {("127.0.0.1", str(act.port))}


def test_rewritten_paths_are_told(shared):
    """The path sent upstream stands in upstream_path where it differs."""
    act = lambda: traffic.request(plain(shared), "POST", "media.example", "/transcode?a=1", body=b"x")  # noqa: E731
    (line,) = lines_after(shared, act, 1)
    assert (line["path"], line["upstream_path"], line["query_names"]) == ("/transcode", "/jobs/transcode", "a")


@pytest.mark.parametrize(
    ("target", "path", "names"),
    [
        ("/files/a%20b", "/files/a%20b", ""),
        ("/files/%2F%2f%41%42%43%44%45%46", "/files/%2F%2f%41%42%43%44%45%46", ""),
        ("/files/caf\u00e9", "/files/caf%C3%A9", ""),
        ("/files/a{b}|c", "/files/a{b}|c", ""),
        ("/files/a?", "/files/a", ""),
        ("/files/a?b", "/files/a", "*"),
        ("/files/a?b=", "/files/a", "b"),
        ("/files/a?x=1&y=2&x=3", "/files/a", "x&y&x"),
        ("/files/a?x=1?2=3&y=4=5", "/files/a", "x&y"),
        ("/files/a?f%5Ba%5D=1&\u00fc=2", "/files/a", "f%5Ba%5D&%C3%BC"),
        ("/files/a?" + "&".join(f"p{i}=v" for i in range(12)), "/files/a", "&".join(f"p{i}" for i in range(12))),
        ("/files/a?long=" + "v" * 5000 + "&hidden=1", "/files/a", "long"),
        ("/files/" + "y" * 4000, "/files/" + "y" * 2041, ""),
        ("//files/../files/a", "//files/../files/a", ""),
    ],
)
def test_paths_stay_raw_and_queries_lose_their_values(shared, target, path, names):
    """The path is the client's own, as printable ASCII; of the query only names are left."""

    def act():
        wire = plain(shared)
        wire.send(f"GET {target} HTTP/1.1\r\nHost: media.example\r\nConnection: close\r\n\r\n".encode())
        while wire.read():
            pass

    (line,) = lines_after(shared, act, 1)
    assert (line["path"], line["query_names"]) == (path, names)


def test_a_name_cannot_break_the_line(make_gateway):
    """TAB, line break and DEL of a route's name or a content type are written as %XX or left out."""

    def rename(content):
        content["routes"][1]["name"] = "a\tb\nc\x7f<script>\u00e9"

    gateway = make_gateway(change=rename)
    wire = plain(gateway)
    wire.send(b"GET /v1/products HTTP/1.1\r\nHost: shop.example\r\nContent-Type: te\tst/x; y\r\n\r\n")
    wire.read()
    (line,) = gateway.sink.wait_for(1)
    assert line["route_name"] == "a%09b%0Ac%7F<script>\u00e9"
    assert line["request_content_type"] == ""


@pytest.mark.parametrize(
    ("headers", "query", "kinds"),
    [
        ({"Authorization": "Bearer t0ken"}, "", "bearer"),
        ({"Authorization": "bEaReR t0ken"}, "", "bearer"),
        ({"Authorization": 'Digest username="u"'}, "", "digest"),
        ({"Authorization": "AWS4-HMAC-SHA256 x"}, "", "other"),
        ({"Authorization": "naked-secret"}, "", "other"),
        ({"X-Api-Key": "k"}, "", "apikey"),
        ({}, "?apikey=k", "apikey"),
        ({}, "?notapikey=k", ""),
        ({"Cookie": "s=1", "apikey": "k", "Authorization": "Basic eA=="}, "", "basic,apikey,cookie"),
        ({}, "", ""),
    ],
)
def test_kinds_of_credentials_are_named(shared, headers, query, kinds):
    """auth_kinds names the kinds that are there."""
    act = lambda: traffic.request(plain(shared), "GET", "media.example", f"/files/a{query}", headers=headers)  # noqa: E731
    (line,) = lines_after(shared, act, 1)
    assert line["auth_kinds"] == kinds


def test_a_request_is_one_line_even_with_the_plugin_twice(make_gateway):
    """On a global rule and on the route as well: still one line each."""

    def twice(content):
        for route in content["routes"]:
            route["plugins"] = {**route.get("plugins", {}), "apicost-logger": {}}

    gateway = make_gateway(change=twice)
    wire = plain(gateway)
    for _ in range(5):
        traffic.request(wire, "GET", "shop.example", "/v1/products")
    gateway.sink.wait_for(5)
    time.sleep(0.4)
    assert [line["line_no"] for line in gateway.sink.lines()] == ["1", "2", "3", "4", "5"]


def test_streams_and_websockets_have_a_line_at_their_end(shared):
    """Server-sent events and a WebSocket: one line each, when they are over."""

    def act():
        wire = plain(shared)
        traffic.request(wire, "GET", "media.example", "/stream?events=3&interval_ms=10")
        wire.close()
        traffic.websocket(("127.0.0.1", shared.http_port), "media.example", "/ws", {}, 3)

    events, socket_line = lines_after(shared, act, 2)
    assert (events["status"], events["response_content_type"]) == ("200", "text/event-stream")
    assert (socket_line["status"], socket_line["route_id"]) == ("101", "ws")


def test_a_unix_socket_takes_lines_too(make_gateway, tmp_path):
    """receiver: unix:PATH."""
    gateway = make_gateway(Sink(path=str(tmp_path / "r.sock")))
    traffic.request(plain(gateway), "GET", "shop.example", "/v1/products")
    assert len(gateway.sink.wait_for(1)) == 1


def test_without_ffi_reads_the_lines_are_the_same(make_gateway, tmp_path):
    """Where nginx's FFI entry is missing, ngx.var gives the same columns (TLS counters apart)."""
    # A base module without get_request, as the plugin sees it; everybody else gets the real one.
    stub = tmp_path / "slow" / "apisix" / "plugins"
    stub.mkdir(parents=True)
    (stub / "no-ffi.lua").write_text(
        'local real = package.loaded["resty.core.base"]\n'
        "local copy = {} for k, v in pairs(real) do copy[k] = v end copy.get_request = nil\n"
        'local line = require("apisix.plugins.apicost-logger.line")\n'
        "local configure = line.configure\n"
        "function line.configure(settings)\n"
        '    package.loaded["resty.core.base"] = copy\n'
        "    configure(settings)\n"
        '    package.loaded["resty.core.base"] = real\n'
        "end\n"
        'local schema = {type = "object", properties = {}}\n'
        "local function check_schema() return true end\n"
        'return {version = 1, priority = 1, name = "no-ffi", schema = schema, check_schema = check_schema}\n'
    )

    def both(gateway):
        wire = secure(gateway)
        path = "/v1/orders/a%20b?x=1&y&z=%20"
        traffic.request(wire, "POST", "shop.example:99", path, body=b"z" * 99, headers={**KEY, "Cookie": "a=b"})
        traffic.request(wire, "GET", "shop.example", "/v1/orders")
        return sorted(gateway.sink.wait_for(2), key=lambda line: line["line_no"])

    fast = both(make_gateway())

    gateway = make_gateway(
        more_lua=f"{tmp_path}/slow/?.lua;",
        plugins=("no-ffi", "key-auth", "proxy-rewrite", "apicost-logger"),
    )
    slow = both(gateway)
    varying = {"connection", "log_us", "access_before_us", "header_before_us", "msec", "request_time", "peer_port"}
    varying |= {"local_port", "request_id", "pid", "tls_read_bytes", "tls_written_bytes", "upstream_response_time"}
    varying |= {"upstream_connect_time"}
    for one, other in zip(fast, slow, strict=True):
        assert {k: v for k, v in one.items() if k not in varying} == {
            k: v for k, v in other.items() if k not in varying
        }
        assert one["tls_read_bytes"] and not other["tls_read_bytes"]
