"""The receiver is down, slow, wrong or full; the gateway stops: requests go on, and losses are counted."""

import os
import signal
import time

import psutil
import pytest

from apicost.demo import traffic
from tests.plugin.sink import TOKEN, Sink, read_batches

pytestmark = pytest.mark.gateway


def calls(gateway, count, path="/v1/products?size=10"):
    """So many requests, 500 on a connection; returns the slowest one's seconds."""
    slowest = 0.0
    for number in range(count):
        if number % 500 == 0:  # nginx closes a connection after 1,000 requests
            wire = traffic.Connection(("127.0.0.1", gateway.http_port))
        began = time.monotonic()
        assert traffic.request(wire, "GET", "shop.example", path).status == 200
        slowest = max(slowest, time.monotonic() - began)
    wire.close()
    return slowest


def spooled(gateway):
    return sorted(gateway.spool.glob("*.usage"))


def until(condition, timeout_s=8.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.02)


def numbers(lines):
    return sorted(int(line["line_no"]) for line in lines)


def test_secrets_never_leave_the_gateway(make_gateway):
    """Header values, query values, bodies and bare query words are in no byte that is posted."""
    gateway = make_gateway()
    secret = "s3cr3t-7f2a"
    headers = {
        "Authorization": f"Bearer {secret}1", "apikey": f"{secret}2", "Cookie": f"sid={secret}3",
        "X-Custom": f"{secret}4", "User-Agent": f"{secret}5", "Referer": f"http://x/{secret}6",
        "Content-Type": f"{secret}7", "X-Request-Id": f"{secret}8", "X-Real-IP": f"{secret}9",
    }  # fmt: skip
    wire = traffic.Connection(("127.0.0.1", gateway.http_port))
    for query in (f"a={secret}&b={secret}", secret, f"a=1&{secret}&c=2", f"a={secret}" * 400, f"x==={secret}=&"):
        wire.send(
            f"POST /files/a?{query} HTTP/1.1\r\nHost: media.example\r\nContent-Length: 20\r\n".encode()
            + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
            + b"\r\n"
            + f"{secret}body".ljust(20).encode()
        )
        traffic._read_response(wire, "POST")
    assert len(gateway.sink.wait_for(5)) == 5
    everything = b"".join(gateway.sink.bodies(None)).lower()
    assert secret.encode() not in everything
    assert b"s3cr3t" not in everything
    gateway.stop()
    assert secret not in gateway.error_log.read_text()
    assert not spooled(gateway)


def test_lines_are_numbered_without_holes(make_gateway):
    """Batches of at most batch_max_lines; numbers and batch numbers without a hole, two workers each their own."""
    gateway = make_gateway(workers=2, batch_max_lines=7)
    for _ in range(10):
        calls(gateway, 20)
    lines = gateway.sink.wait_for(200)
    batches = gateway.sink.batches()
    for pid in {key[0] for key in batches}:
        assert numbers(line for line in lines if line["pid"] == str(pid)) == list(
            range(1, 1 + sum(line["pid"] == str(pid) for line in lines))
        )
        mine = sorted(key[2] for key in batches if key[0] == pid)
        assert mine == list(range(1, len(mine) + 1))
    assert max(header["count"] for header, _ in batches.values()) == 7
    assert gateway.sink.connections <= 4  # kept alive: far fewer than batches
    assert len(batches) > 20


@pytest.mark.parametrize("trouble", ["refused", "stalled", "wrong token", "503", "hang up"])
def test_requests_do_not_notice_a_bad_receiver(make_gateway, tmp_path, trouble):
    """Whatever the receiver does, requests are answered as before, and afterwards nothing is missing."""
    sink = Sink()
    if trouble == "stalled":
        sink.answer = 0
    if trouble == "503":
        sink.answer = 503
    sink.hang_up = trouble == "hang up"
    token = tmp_path / "token"
    token.write_text("wrong" if trouble == "wrong token" else TOKEN)
    gateway = make_gateway(sink, token=None, token_file=str(token), timeout=300, batch_max_lines=10)
    if trouble == "refused":
        sink.refuse()
    slowest = calls(gateway, 60)
    time.sleep(0.6)
    slowest = max(slowest, calls(gateway, 20))
    assert slowest < 1.0  # the timeouts of three batches alone would be more
    assert not sink.lines()
    if trouble == "refused":
        gateway.stop()  # nobody will ever listen on that port again: everything is on disk
        batches = read_batches([file.read_bytes() for file in spooled(gateway)])
        assert numbers(line for _, part in batches.values() for line in part) == list(range(1, 81))
        return
    sink.answer, sink.hang_up = 200, False
    token.write_text(TOKEN + "\n")
    lines = sink.wait_for(80, timeout_s=12)
    assert numbers(lines) == list(range(1, 81))
    # A batch that was sent before had the same bytes then: read_batches compares them.
    assert read_batches(sink.bodies(None))
    assert "receiver" in gateway.error_log.read_text()


def test_a_repeated_batch_has_the_same_bytes(make_gateway):
    """The receiver took the batch but its answer was lost: the same identity and bytes come again."""
    gateway = make_gateway()
    gateway.sink.hang_up = True
    calls(gateway, 30)
    until(lambda: len(gateway.sink.posts) >= 3)
    gateway.sink.hang_up = False
    gateway.sink.wait_for(30)
    first = gateway.sink.posts[0][2]
    assert gateway.sink.bodies(None).count(first) >= 3
    assert first in gateway.sink.bodies(200)


def test_one_flush_at_a_time(make_gateway):
    """While one batch is on its way no second connection is opened."""
    gateway = make_gateway(batch_max_lines=5, timeout=3000)
    gateway.sink.answer = 0
    calls(gateway, 100)
    time.sleep(0.5)
    assert gateway.sink.connections == 1 and len(gateway.sink.posts) == 1
    gateway.sink.answer = 200
    gateway.sink.wait_for(100)


def test_the_queue_is_bounded_and_drops_are_counted(make_gateway):
    """With the receiver away the memory stays; what is dropped shows as holes and in `dropped`."""
    gateway = make_gateway(max_queue_bytes=65_536, batch_max_lines=20)
    (worker,) = gateway.worker_pids()
    gateway.sink.answer = 503
    calls(gateway, 300)
    before = psutil.Process(worker).memory_info().rss
    calls(gateway, 3000)
    assert psutil.Process(worker).memory_info().rss - before < 6 << 20
    gateway.sink.answer = 200
    until(lambda: gateway.sink.lines(), timeout_s=20)
    time.sleep(0.3)
    calls(gateway, 1)
    until(lambda: 3301 in numbers(gateway.sink.lines()))
    lines = gateway.sink.lines()
    dropped = max(header["dropped"] for header, _ in gateway.sink.batches().values())
    assert numbers(lines)[-1] == 3301
    assert len(lines) + dropped == 3301
    kept_bytes = sum(len(body) for body in set(gateway.sink.bodies()))
    assert 30_000 < kept_bytes < 80_000
    assert gateway.error_log.read_text().count("apicost-logger") < 10


@pytest.mark.parametrize("status", [400, 413, 415])
def test_a_batch_that_will_never_be_taken_is_not_sent_again(make_gateway, status):
    """After 400, 413 or 415 the batch is given up, counted, and the next one goes its way."""
    gateway = make_gateway(flush_interval=0.5)
    gateway.sink.answer = status
    calls(gateway, 4)
    until(lambda: gateway.sink.posts)
    time.sleep(0.5)
    assert len(gateway.sink.posts) == 1
    gateway.sink.answer = 200
    calls(gateway, 3)
    assert numbers(gateway.sink.wait_for(3)) == [5, 6, 7]
    ((header, _),) = gateway.sink.batches().values()
    assert header["refused"] == 4


def test_reload_loses_nothing(make_gateway):
    """Reloads under load: the old workers send what they have, the new ones number anew."""
    gateway = make_gateway(workers=2, flush_interval=2)
    for _ in range(3):
        calls(gateway, 50)
        old = set(gateway.worker_pids())
        gateway.reload()
        until(lambda old=old: not old & set(gateway.worker_pids()))
    calls(gateway, 50)
    lines = gateway.sink.wait_for(200)
    assert len({(line["pid"], line["line_no"]) for line in lines}) == len(lines) == 200
    assert not spooled(gateway)


def test_a_graceful_stop_with_the_receiver_away_spools(make_gateway):
    """QUIT while the receiver refuses: what is left lies in the spool folder, in the form of a post."""
    gateway = make_gateway(flush_interval=5)
    gateway.sink.answer = 503
    calls(gateway, 25)
    gateway.stop()
    (file,) = spooled(gateway)
    ((key, (header, lines)),) = read_batches([file.read_bytes()]).items()
    assert file.name == "test-node-{}-{}-{}.usage".format(*key)
    assert header["count"] == 25 and numbers(lines) == list(range(1, 26))
    # It was tried first, with these very bytes.
    assert file.read_bytes() in gateway.sink.bodies(None)


def test_an_old_worker_spools_before_its_last_connection_ends(make_gateway):
    """Reload with the receiver away and a stream open: the old worker's lines are on disk at once, not at its end."""
    gateway = make_gateway(flush_interval=5)
    gateway.sink.answer = 503
    calls(gateway, 5)
    (old,) = gateway.worker_pids()
    stream = traffic.Connection(("127.0.0.1", gateway.http_port))
    stream.send(b"GET /stream?events=40&interval_ms=100 HTTP/1.1\r\nHost: media.example\r\n\r\n")
    stream.read()
    gateway.reload()
    until(lambda: spooled(gateway), timeout_s=3)
    assert old in gateway.worker_pids()
    ((_, lines),) = read_batches([file.read_bytes() for file in spooled(gateway)]).values()
    assert numbers(lines) == [1, 2, 3, 4, 5]
    stream.close()


def test_terminating_spools_what_is_pending(make_gateway):
    """TERM with lines not yet sent: no timer runs any more, a file is written."""
    gateway = make_gateway(flush_interval=30, batch_max_lines=10)
    gateway.sink.answer = 0  # one batch is on its way and never answered
    calls(gateway, 34)
    until(lambda: gateway.sink.posts)
    gateway.stop(graceful=False)
    assert not list(gateway.spool.glob("*.tmp"))
    batches = read_batches([file.read_bytes() for file in spooled(gateway)])
    assert numbers(line for _, lines in batches.values() for line in lines) == list(range(1, 35))
    # The one on its way is among them, with the same identity and bytes: it counts once.
    assert read_batches([*gateway.sink.bodies(None), *(file.read_bytes() for file in spooled(gateway))])


def test_a_spool_folder_that_cannot_be_written_is_said(make_gateway, tmp_path):
    """Nothing hangs, and the log counts what was lost."""
    gateway = make_gateway(flush_interval=30, spool_dir=str(tmp_path / "missing"))
    calls(gateway, 3)
    gateway.stop(graceful=False)
    assert "3 lines are lost" in gateway.error_log.read_text()


def test_an_error_in_the_plugin_costs_a_line_and_nothing_else(make_gateway, tmp_path):
    """The writer raises for one path: that request is answered, its line a counted hole, the others whole."""
    stub = tmp_path / "lua" / "apisix" / "plugins"
    stub.mkdir(parents=True)
    (stub / "saboteur.lua").write_text(
        'local line = require("apisix.plugins.apicost-logger.line")\n'
        "local configure = line.configure\n"
        "function line.configure(settings)\n"
        "    configure(settings)\n"
        "    local write = line.write\n"
        "    function line.write(buf, ctx, ...)\n"
        '        if ngx.var.arg_boom then buf:put("half a li") error("boom") end\n'
        "        return write(buf, ctx, ...)\n"
        "    end\n"
        "end\n"
        'local schema = {type = "object", properties = {}}\n'
        "local function check_schema() return true end\n"
        'return {version = 1, priority = 1, name = "saboteur", schema = schema, check_schema = check_schema}\n'
    )
    gateway = make_gateway(
        more_lua=f"{tmp_path}/lua/?.lua;", plugins=("saboteur", "key-auth", "proxy-rewrite", "apicost-logger")
    )
    calls(gateway, 3)
    calls(gateway, 2, "/v1/products?boom=1")
    calls(gateway, 3)
    lines = gateway.sink.wait_for(6)
    assert numbers(lines) == [1, 2, 3, 6, 7, 8]
    calls(gateway, 1)
    gateway.sink.wait_for(7)
    assert max(header["failed"] for header, _ in gateway.sink.batches().values()) == 2
    assert "boom" in gateway.error_log.read_text()


def test_bad_settings_are_refused_and_the_former_stay(make_gateway):
    """Metadata that the schema refuses, at the start and later, is named in the log; the former settings stay."""
    gateway = make_gateway(receiver="ftp://nowhere", flush_interval=0.1)
    calls(gateway, 2)
    assert "apicost-logger" in gateway.error_log.read_text()
    gateway.stop(graceful=False)

    gateway = make_gateway(flush_interval=0.05)
    (good,) = gateway.content["plugin_metadata"]
    calls(gateway, 1)
    gateway.sink.wait_for(1)
    assert node_becomes(gateway, {**good, "node": "second"}) == {"test-node", "second"}
    gateway.content["plugin_metadata"] = [{**good, "node": "third", "receiver": "ftp://nowhere"}]
    gateway.write_resources()
    until(lambda: "receiver" in gateway.error_log.read_text())
    before = len(gateway.sink.lines())
    calls(gateway, 1)
    gateway.sink.wait_for(before + 1)
    assert node_becomes(gateway, {**good, "node": "fourth"}) == {"test-node", "second", "fourth"}


def node_becomes(gateway, metadata):
    """Put this metadata in force in a running gateway; gives all nodes that batches came from until it was."""
    gateway.content["plugin_metadata"] = [metadata] if metadata["id"] else []
    gateway.write_resources()

    def nodes():
        calls(gateway, 1)
        time.sleep(0.1)
        return {header["node"] for header, _ in gateway.sink.batches().values()}

    until(lambda: metadata["node"] in nodes())
    return nodes()


def test_metadata_that_is_taken_away_leaves_the_nodes_settings(make_gateway):
    """Without metadata plugin_attr and the defaults are in force again."""

    def attr(content):
        (metadata,) = content["plugin_metadata"]
        content["plugin_attr"] = {"apicost-logger": {k: v for k, v in metadata.items() if k != "id"}}
        metadata["node"] = "of-metadata"

    gateway = make_gateway(change=attr)
    calls(gateway, 1)
    gateway.sink.wait_for(1)
    assert node_becomes(gateway, {"id": None, "node": "test-node"}) == {"of-metadata", "test-node"}


def test_plugin_attr_is_the_node_and_metadata_wins(make_gateway):
    """config.yaml's plugin_attr is in force where the metadata says nothing."""

    def attr(content):
        content["plugin_attr"] = {"apicost-logger": {"node": "from-attr", "batch_max_lines": 3, "unknown": 1}}

    gateway = make_gateway(change=attr, node=None, batch_max_lines=2)
    calls(gateway, 4)
    gateway.sink.wait_for(4)
    headers = [header for header, _ in gateway.sink.batches().values()]
    assert {header["node"] for header in headers} == {"from-attr"}
    assert {header["count"] for header in headers} == {2}


def test_metadata_hides_only_what_it_sets(make_gateway):
    """plugin_attr stays in force for a setting that has a default and that the metadata leaves out."""

    def attr(content):
        content["plugin_attr"] = {"apicost-logger": {"batch_max_lines": 3, "api_key_headers": ["x-node"]}}

    gateway = make_gateway(change=attr)
    wire = traffic.Connection(("127.0.0.1", gateway.http_port))
    for _ in range(6):
        traffic.request(wire, "GET", "shop.example", "/v1/products", headers={"X-Node": "k", "X-Api-Key": "k"})
    lines = gateway.sink.wait_for(6)
    assert {header["count"] for header, _ in gateway.sink.batches().values()} == {3}
    assert {line["auth_kinds"] for line in lines} == {"apikey"}
    traffic.request(wire, "GET", "shop.example", "/v1/products", headers={"X-Api-Key": "k"})
    assert gateway.sink.wait_for(7)[-1]["auth_kinds"] == ""


def test_a_killed_worker_loses_only_what_was_not_sent(make_gateway):
    """kill -9 of a worker: what was acknowledged is there once, the new worker counts anew."""
    gateway = make_gateway()
    calls(gateway, 10)
    gateway.sink.wait_for(10)
    (worker,) = gateway.worker_pids()
    os.kill(worker, signal.SIGKILL)
    until(lambda: gateway.worker_pids() and gateway.worker_pids() != [worker])
    calls(gateway, 10)
    lines = gateway.sink.wait_for(20)
    assert len({line["pid"] for line in lines}) == 2
    assert numbers(lines) == sorted([*range(1, 11), *range(1, 11)])
