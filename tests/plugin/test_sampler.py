"""Sampled bodies: nothing without opt-in, nothing beyond the bounds, nothing that was to be removed."""

import base64
import gzip
import http.client
import http.server
import json
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog.bodies import REDACTED
from apicost.demo import traffic
from apicost.demo.gateway import CONSUMERS
from apicost.ingest import samples
from tests.plugin.sink import TOKEN, Sink

pytestmark = pytest.mark.gateway

SAMPLER = (Path(__file__).parents[2] / "apisix" / "plugins" / "apicost-logger" / "sampler.lua").read_text()
HOST = "bodies.example"
JSON = {"Content-Type": "application/json"}
# Says what the sampler makes of a text, and what the plugin says of a configuration.
LOOK = """
local core = require("apisix.core")
local sampler = require("apisix.plugins.apicost-logger.sampler")
local plugin = require("apisix.plugins.apicost-logger")
local _M = {version = 0.1, priority = 1, name = "look", schema = {type = "object"}}
function _M.check_schema() return true end
function _M.access()
    ngx.req.read_body()
    local asked = core.json.decode(ngx.req.get_body_data())
    if asked.conf then
        local ok, err = plugin.check_schema(asked.conf)
        return 200, core.json.encode({ok = ok and true or false, err = err})
    end
    if asked.state then
        local state = sampler.state()
        state.has_body_filter = plugin.body_filter ~= nil
        return 200, core.json.encode(state)
    end
    local pauses = 0
    local text = ngx.decode_base64(asked.text)
    if asked.times then
        text = "[" .. string.rep(text, asked.times, ",") .. "]"
    end
    text = sampler.redacted(text, asked.redact, function() pauses = pauses + 1 end)
    return 200, core.json.encode({text = text and ngx.encode_base64(text), pauses = pauses})
end
return _M
"""


class Backend:
    """Answers each request as `answer` says: (status, headers, pieces of the body)."""

    def __init__(self):
        backend = self
        self.answer = (200, JSON, [b'{"ok": true}'])

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self):
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    while size := int(self.rfile.readline(), 16):
                        self.rfile.read(size + 2)
                    self.rfile.readline()
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, pieces = backend.answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if len(pieces) == 1:
                    self.send_header("Content-Length", str(len(pieces[0])))
                    self.end_headers()
                    self.wfile.write(pieces[0])
                    return
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()
                    time.sleep(0.02)
                self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


ROUTES = {
    "all": {"rate": 1, "per_second": 1000},
    "off": {"rate": 0},
    "rateless": {"per_second": 100},
    "half": {"rate": 0.5, "per_second": 1000},
    "capped": {"rate": 1, "per_second": 2},
    "small": {"rate": 1, "per_second": 1000, "max_body_bytes": 100},
    "redact": {"rate": 1, "per_second": 1000, "redact": ["card", "customer.Email", "items.price"]},
    "requests": {"rate": 1, "per_second": 1000, "response": False},
    "responses": {"rate": 1, "per_second": 1000, "request": False},
}


@pytest.fixture(scope="module")
def backend():
    made = Backend()
    yield made
    made.close()


@pytest.fixture(scope="module")
def sampling(tmp_path_factory, upstreams, backend):
    """A gateway with a route for each of ROUTES, one without `sample`, and the global rule."""
    from tests.plugin.conftest import _maker

    folder = tmp_path_factory.mktemp("sampling")
    look = folder / "lua" / "apisix" / "plugins"
    look.mkdir(parents=True)
    (look / "look.lua").write_text(LOOK)

    def change(content):
        upstream = {"type": "roundrobin", "nodes": {backend.address: 1}}
        for name, sample in {**ROUTES, "plain": None}.items():
            plugins = {} if sample is None else {"plugins": {"apicost-logger": {"sample": sample}}}
            route = {"id": name, "name": name, "host": HOST, "uri": f"/{name}/*", "upstream": upstream}
            content["routes"].append({**route, **plugins})
        dead = {"id": "dead", "name": "dead", "host": HOST, "uri": "/dead/*"}
        nobody = {"type": "roundrobin", "nodes": {upstreams.refusing: 1}}
        content["routes"].append({**dead, "upstream": nobody, "plugins": {"apicost-logger": {"sample": ROUTES["all"]}}})
        guarded = {"key-auth": {}, "apicost-logger": {"sample": ROUTES["all"]}}
        where = {"host": HOST, "uri": "/guarded/*", "upstream": upstream}
        content["routes"].append({"id": "guarded", "name": "guarded", **where, "plugins": guarded})
        content["routes"].append({"id": "look", "name": "look", "host": HOST, "uri": "/look", "plugins": {"look": {}},
                                  "upstream": upstream})  # fmt: skip

    for make in _maker(folder, upstreams):
        plugins = ["key-auth", "proxy-rewrite", "apicost-logger", "look"]
        yield make(workers=1, change=change, plugins=plugins, more_lua=f"{folder}/lua/?.lua;")


def call(gateway, method, path, body=None, headers=None):
    """One request; its status and the body of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.http_port, timeout=10)
    try:
        connection.request(method, path, body, {"Host": HOST, **(headers or (JSON if body is not None else {}))})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def look(gateway, **asked):
    status, text = call(gateway, "POST", "/look", json.dumps(asked))
    assert status == 200, text
    return json.loads(text)


def taken(sink):
    """Samples that a receiver would take, by number of their lines; nothing in them may be refused."""
    found = {}
    for posted in sink.bodies(path="/v1/samples"):
        batch = samples.parse_samples(posted)
        assert batch.refused == () and json.loads(posted.split(b"\n")[0])["count"] == len(batch.lines)
        for line in batch.lines:
            found[samples.read_sample(line).line_no] = samples.read_sample(line)
    return found


def sampled(gateway, act, count, timeout_s=8.0):
    """The samples of what `act` does, in order, once there are so many."""
    before = set(taken(gateway.sink))
    act()
    deadline = time.monotonic() + timeout_s
    while len(new := sorted(set(taken(gateway.sink)) - before)) < count:
        assert time.monotonic() < deadline, f"{len(new)} of {count} samples came; {gateway.last_words()}"
        time.sleep(0.02)
    found = taken(gateway.sink)
    return [found[number] for number in new]


def settled(gateway):
    """Wait until the worker holds no sample any more."""
    deadline = time.monotonic() + 8
    while look(gateway, state=True)["waiting"] and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)


def test_a_sample_has_both_bodies_and_the_identity_of_its_line(sampling, backend):
    """Bodies byte by byte, names of the query alone, and the number of the usage line of the same request."""
    backend.answer = (201, {"Content-Type": "application/json; charset=utf-8"}, [b'{"id"', b": 7}"])
    body = b'{"caf\xc3\xa9": 1}'
    call(sampling, "POST", "/plain/x", body)  # has a line, but no sample
    act = lambda: call(sampling, "POST", "/all/orders/7?page=2&secret&q=s3cret", body)  # noqa: E731
    (one,) = sampled(sampling, act, 1)
    assert (one.request_body, one.response_body, one.request_cut, one.response_cut) == (
        body,
        b'{"id": 7}',
        False,
        False,
    )
    assert (one.method, one.host, one.path, one.query_names, one.status) == (
        "POST", HOST, "/all/orders/7", "page&*&q", 201,
    )  # fmt: skip
    assert (one.request_content_type, one.response_content_type) == ("application/json", "application/json")
    assert (one.route_id, one.service_id, one.consumer, one.response_source) == ("all", "", "", "upstream")
    assert abs(one.unix_ms - time.time() * 1000) < 60_000
    (line,) = [line for line in sampling.sink.lines() if line["line_no"] == str(one.line_no)]
    assert line["path"] == one.path
    assert (line["request_bytes"], line["response_bytes"]) == (str(one.request_bytes), str(one.response_bytes))
    posted = [headers for _, headers, _ in sampling.sink.posts if "samples" in headers[":request"]][-1]
    assert posted["authorization"] == f"Bearer {TOKEN}" and posted["content-type"] == "application/x-ndjson"
    header = json.loads(sampling.sink.bodies(path="/v1/samples")[-1].split(b"\n")[0])
    assert header["worker"]["pid"] == int(line["pid"]) and header["node"] == "test-node"


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["plain", "off", "rateless"]),
    st.text(st.characters(categories=["L", "N"]), min_size=12, max_size=40),
    st.sampled_from(["POST", "PUT"]),
)
def test_nothing_of_a_body_leaves_a_worker_without_opt_in(sampling, backend, route, secret, method):
    """Whatever a request or response holds: no post to anywhere, no log and no file has it, plain or encoded."""
    backend.answer = (200, JSON, [json.dumps({"theirs": secret[::-1]}, ensure_ascii=False).encode()])
    call(sampling, method, f"/{route}/x", json.dumps({"mine": secret}, ensure_ascii=False).encode())
    traces = []
    for text in (secret.encode(), secret[::-1].encode()):
        # Base64 depends on where in its body the text begins.
        inner = [base64.b64encode(b"x" * shift + text)[4:-4] for shift in range(3)]
        traces += [text, *(piece for piece in inner if len(piece) > 8)]
    seen = b"".join(body for _, _, body in list(sampling.sink.posts)) + sampling.error_log.read_bytes()
    seen += b"".join(path.read_bytes() for path in sampling.spool.rglob("*") if path.is_file())
    assert not [trace for trace in traces if trace in seen]


def test_routes_without_opt_in_post_no_samples(sampling, backend):
    """After requests to all of them, no further sample has come."""
    backend.answer = (200, JSON, [b'{"a": 1}'])
    settled(sampling)
    before = len(sampling.sink.bodies(status=None, path="/v1/samples"))
    for route in ("plain", "off", "rateless"):
        for _ in range(5):
            assert call(sampling, "POST", f"/{route}/x", b'{"b": 2}')[0] == 200
    time.sleep(1.5)  # samples go once a second
    assert len(sampling.sink.bodies(status=None, path="/v1/samples")) == before
    assert look(sampling, state=True)["waiting"] == 0


def test_the_rate_is_a_share_of_the_requests(sampling, backend):
    """Half of 200, within eight standard deviations."""
    backend.answer = (200, JSON, [b'{"a": 1}'])
    before = len(taken(sampling.sink))
    for _ in range(200):
        call(sampling, "POST", "/half/x", b"{}")
    settled(sampling)
    assert 100 - 8 * 7.1 < len(taken(sampling.sink)) - before < 100 + 8 * 7.1


def test_a_worker_takes_no_more_than_its_cap(sampling, backend):
    """Two a second, however many come."""
    backend.answer = (200, JSON, [b'{"a": 1}'])
    began_s = time.time()

    def act():
        for _ in range(60):
            call(sampling, "POST", "/capped/x", b"{}")

    found = sampled(sampling, act, 2)
    settled(sampling)
    seconds = int(time.time()) - int(began_s) + 1
    assert 2 <= len(found) <= 2 * seconds < 60


CUT = {
    "a long request": ("small", b'"' + b"x" * 99 + b'"', {}, JSON, [b"{}"], "request"),
    "a long response": ("small", b"{}", {}, JSON, [b'"' + b"x" * 99 + b'"'], "response"),
    "a response that grows": ("small", b"{}", {}, JSON, [b'"' + b"x" * 60, b"y" * 60, b'"'], "response"),
    "a compressed response": (
        "all", b"{}", {}, {**JSON, "Content-Encoding": "gzip"}, [gzip.compress(b'{"a": 1}')], "response",
    ),
    "a compressed request": (
        "all", gzip.compress(b"{}"), {**JSON, "Content-Encoding": "gzip"}, JSON, [b"{}"], "request",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut_or_compressed_is_marked_and_stays(sampling, backend, name):
    """The other body still goes; nothing of this one does."""
    route, body, headers, answered, pieces, side = CUT[name]
    backend.answer = (200, answered, pieces)
    (one,) = sampled(sampling, lambda: call(sampling, "POST", f"/{route}/x", body, headers or None), 1)
    assert getattr(one, f"{side}_cut") and getattr(one, f"{side}_body") is None
    other = "response" if side == "request" else "request"
    assert not getattr(one, f"{other}_cut") and getattr(one, f"{other}_body")


def test_an_upload_of_unknown_length_is_whole_or_marked(sampling, backend):
    """Chunked: a short one is in nginx's memory, a long one is not."""
    backend.answer = (200, JSON, [b'{"a": 1}'])
    wire = traffic.Connection(("127.0.0.1", sampling.http_port))

    def act():
        traffic.request(wire, "POST", HOST, "/all/x", body=b'{"b": 2}', chunked=True)
        traffic.request(wire, "POST", HOST, "/all/x", body=b'"' + b"x" * 70_000 + b'"', chunked=True)

    short, long = sampled(sampling, act, 2)
    wire.close()
    assert (short.request_cut, short.request_body) in ((False, b'{"b": 2}'), (True, None))
    assert (long.request_cut, long.request_body, long.response_body) == (True, None, b'{"a": 1}')


def test_a_client_that_goes_away_leaves_nothing_behind(sampling, backend):
    """What was collected of its response is let go of, and counts as cut."""
    backend.answer = (200, JSON, [b"x" * 1_000] * 20)
    for _ in range(3):
        wire = traffic.Connection(("127.0.0.1", sampling.http_port))
        wire.send(f"POST /all/gone HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
                  "Content-Length: 2\r\n\r\n{}".encode())  # fmt: skip
        wire.read()
        wire.close()
    time.sleep(0.8)
    assert look(sampling, state=True)["held_bytes"] == 0
    settled(sampling)
    gone = [one for one in taken(sampling.sink).values() if one.path == "/all/gone"]
    assert gone and all(one.response_cut and one.response_body is None for one in gone)


def test_a_body_that_nginx_put_into_a_file_is_marked(sampling, backend):
    """Below the bound, but beyond nginx's buffer: no file is read for a sample."""
    backend.answer = (200, JSON, [b'{"a": 1}'])
    (one,) = sampled(sampling, lambda: call(sampling, "POST", "/all/x", b'"' + b"x" * 40_000 + b'"'), 1)
    assert (one.request_cut, one.request_body, one.response_body) == (True, None, b'{"a": 1}')


def test_one_side_alone_and_empty_requests(sampling, backend):
    """`request: false`, `response: false`; a GET has an empty request."""
    backend.answer = (200, JSON, [b'{"a": 1}'])

    def act():
        call(sampling, "POST", "/requests/x", b'{"b": 2}')
        call(sampling, "POST", "/responses/x", b'{"b": 2}')
        call(sampling, "GET", "/all/x")

    bodies = [(one.request_body, one.response_body) for one in sampled(sampling, act, 3)]
    assert bodies == [(b'{"b": 2}', None), (None, b'{"a": 1}'), (b"", b'{"a": 1}')]


def test_what_can_not_be_checked_is_no_sample(sampling, backend):
    """The gateway's own answers, and exchanges whose bodies no schema describes."""
    settled(sampling)
    before = len(taken(sampling.sink))
    backend.answer = (200, {"Content-Type": "image/png"}, [b"\x89PNG"])
    call(sampling, "GET", "/all/x")
    call(sampling, "POST", "/all/x", b"\x89PNG", {"Content-Type": "image/png"})
    assert call(sampling, "POST", "/guarded/x", b'{"a": 1}')[0] == 401
    assert call(sampling, "POST", "/dead/x", b'{"a": 1}')[0] == 502
    backend.answer = (200, JSON, [b'{"last": 1}'])
    (one,) = sampled(sampling, lambda: call(sampling, "GET", "/all/last"), 1)
    assert one.path == "/all/last" and len(taken(sampling.sink)) == before + 1
    key = {**JSON, "apikey": CONSUMERS["acme"]}
    (one,) = sampled(sampling, lambda: call(sampling, "POST", "/guarded/x", b'{"a": 1}', key), 1)
    assert one.consumer == "acme"


def test_removed_fields_are_gone_before_anything_leaves(sampling, backend):
    """By name at any depth, by path, whatever the case of letters; the rest as it was, number by number."""
    body = (
        b'{"card": {"number": "4111", "n": [1]}, "keep": 12345678901234567890.10, "Email": "keep@x", '
        b'"customer": {"email" : "a@b", "CARD":4111, "\\u0063ard": "4112"}, "items": [{"price": 4113, "sku": []}]}'
    )
    backend.answer = (200, JSON, [b'[{"card": "4114"}]'])
    (one,) = sampled(sampling, lambda: call(sampling, "POST", "/redact/x", body), 1)
    assert one.request_body == (
        b'{"card": "[redacted]", "keep": 12345678901234567890.10, "Email": "keep@x", '
        b'"customer": {"email" : "[redacted]", "CARD":"[redacted]", "\\u0063ard": "[redacted]"}, '
        b'"items": [{"price": "[redacted]", "sku": []}]}'
    )
    assert one.response_body == b'[{"card": "[redacted]"}]'


def test_a_body_whose_fields_can_not_be_found_stays(sampling, backend):
    """With fields to remove: no other media type, and no text that is not JSON through and through."""
    backend.answer = (200, JSON, [b'{"a": 1}'])
    broken = [b"card=4111", b'{"card": 4111', b'{"card": "41\\"}', b'{"a": 1} {"card": 4111}', b"{card: 4111}"]

    def act():
        for body in broken:
            call(sampling, "POST", "/redact/x", body)
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            call(sampling, "POST", "/redact/x", b"card=4111", {"Content-Type": kind})

    found = sampled(sampling, act, 7)
    assert [(one.request_body, one.response_body) for one in found] == [(None, b'{"a": 1}')] * 7


NAMES = st.sampled_from(["card", "Card", "email", "customer", "a.b", "b", "a", "\u00e9", 'q"uote', "back\\slash", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=4),
    max_leaves=12,
)
WANTED = st.lists(
    st.sampled_from(["card", "customer.email", "a.b", "B", "\u00e9", 'q"uote', "customer.a.b"]), min_size=1
)


def lower(text):
    """Letters of ASCII alone, as the gateway does."""
    return re.sub("[A-Z]", lambda found: found[0].lower(), text)


def removed(value, wanted, above=()):
    """What a body is without the fields, slowly: by names and by ends of paths."""
    if isinstance(value, list):
        return [removed(each, wanted, above) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, below in value.items():
        path = (*above, lower(name))
        hit = any(".".join(path[start:]) in wanted for start in range(len(path)))
        found[name] = REDACTED if hit else removed(below, wanted, path)
    return found


@settings(max_examples=60, deadline=None)
@given(VALUES, WANTED, st.booleans(), st.sampled_from([None, 1]))
def test_removing_is_what_a_slow_reader_would_do(sampling, value, redact, ascii_only, indent):
    """Any JSON text: the fields hold the marker, the rest is unchanged."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    got = look(sampling, text=base64.b64encode(text.encode()).decode(), redact=redact)["text"]
    assert json.loads(base64.b64decode(got)) == removed(value, {lower(name) for name in redact})


@settings(max_examples=60, deadline=None)
@given(VALUES, st.data())
def test_no_half_of_a_text_passes(sampling, value, data):
    """A text cut anywhere, or with a byte too many, is given back only if it still is JSON."""
    text = json.dumps({"card": value, "x": [value]})
    cut = data.draw(st.integers(0, len(text) - 1))
    extra = data.draw(st.sampled_from(["", "}", "]", ",", '"', "x", "\x00", "//", "'"]))
    asked = (text[:cut] + extra).encode()
    got = look(sampling, text=base64.b64encode(asked).decode(), redact=["card"]).get("text")
    if got is not None:
        assert json.loads(base64.b64decode(got)).get("card", REDACTED) == REDACTED


def test_long_texts_give_others_their_turn(sampling):
    """Half a megabyte is read in pieces of 64 KiB."""
    one = base64.b64encode(json.dumps({"card": "x" * 20, "b": "y" * 470}).encode()).decode()
    answer = look(sampling, text=one, times=1_000, redact=["card"])
    assert answer["pauses"] == 1_000 * 512 // 65_536
    assert json.loads(base64.b64decode(answer["text"])) == [{"card": REDACTED, "b": "y" * 470}] * 1_000


def test_misspelt_and_unbounded_settings_are_refused(sampling):
    """A typing error in `redact` must not send what was to be removed."""
    for sample in (
        {"redacted": ["card"]}, {"rate": 2}, {"rate": -0.1}, {"max_body_bytes": 1_048_577}, {"per_second": 0},
        {"redact": "card"}, {"redact": [""]}, {"request": "yes"},
    ):  # fmt: skip
        answer = look(sampling, conf={"sample": sample})
        assert not answer["ok"] and answer["err"], sample
    for sample in ROUTES.values():
        assert look(sampling, conf={"sample": sample})["ok"]


def test_a_worker_without_samples_has_no_phase_for_bodies(make_gateway, backend, tmp_path):
    """The phase that is called for each piece of a response comes with the first request that could be sampled."""
    (tmp_path / "lua/apisix/plugins").mkdir(parents=True)
    (tmp_path / "lua/apisix/plugins/look.lua").write_text(LOOK)
    backend.answer = (200, JSON, [b'{"a": 1}'])

    def change(content):
        upstream = {"type": "roundrobin", "nodes": {backend.address: 1}}
        for name, plugins in (("all", {"apicost-logger": {"sample": ROUTES["all"]}}), ("look", {"look": {"x": 1}})):
            uri = {"uris": [f"/{name}", f"/{name}/*"]}
            content["routes"].append({"id": name, "host": HOST, **uri, "upstream": upstream, "plugins": plugins})

    gateway = make_gateway(workers=1, change=change, plugins=["key-auth", "proxy-rewrite", "apicost-logger", "look"],
                           more_lua=f"{tmp_path}/lua/?.lua;")  # fmt: skip
    assert look(gateway, state=True)["has_body_filter"] is False
    (one,) = sampled(gateway, lambda: call(gateway, "POST", "/all/x", b"{}"), 1)
    assert one.response_body == b'{"a": 1}'
    assert look(gateway, state=True)["has_body_filter"] is True


def test_requests_do_not_care_where_samples_go(make_gateway, backend):
    """A receiver that is away or refuses: answers as always, samples dropped and told in the next header."""
    backend.answer = (200, JSON, [b'{"a": 1}'])
    sink = Sink(answer=503)

    def change(content):
        upstream = {"type": "roundrobin", "nodes": {backend.address: 1}}
        rule = {"apicost-logger": {"sample": ROUTES["all"]}}
        content["routes"].append({"id": "all", "name": "all", "host": HOST, "uri": "/all/*", "upstream": upstream,
                                  "plugins": rule})  # fmt: skip
        content["global_rules"][0]["plugins"] = {"apicost-logger": {"sample": ROUTES["all"]}}

    gateway = make_gateway(sink, workers=1, change=change)
    for _ in range(20):
        assert call(gateway, "POST", "/all/x", b'{"b": 2}') == (200, b'{"a": 1}')
    deadline = time.monotonic() + 8
    while not sink.bodies(status=503, path="/v1/samples") and time.monotonic() < deadline:
        time.sleep(0.05)
    lost = samples.parse_samples(sink.bodies(status=503, path="/v1/samples")[0])
    found = [samples.read_sample(line) for line in lost.lines]
    # The route and the global rule both sample: each request once, and each piece of its body once.
    assert [(one.request_body, one.response_body) for one in found] == [(b'{"b": 2}', b'{"a": 1}')] * 20
    assert "apicost-logger: " in gateway.error_log.read_text()
    assert gateway.worker_pids()


def test_bounds_and_marker_are_those_of_the_other_side():
    """The plugin sends nothing that the receiver refuses, and the marker is the checker's."""
    assert f'local MARKER = "{REDACTED}"' in SAMPLER
    assert f"maximum = {samples.MAX_BODY_BYTES}," in SAMPLER
    waiting = int(re.search(r"MAX_WAITING = (\d+)", SAMPLER)[1])
    assert waiting <= samples.MAX_SAMPLES
    # The last sample of a batch may reach beyond the batch's own bound, in base64.
    batch = int(re.search(r"MAX_BATCH_BYTES = (\d+)", SAMPLER)[1])
    from apicost.ingest.receiver import Options

    assert batch + 2 * samples.MAX_BODY_BYTES * 4 // 3 + 20_000 < Options(token="x" * 16).max_body_bytes
