"""Posted samples through a running sidecar: checker process, ledger, and what `apicost conformance` says of them."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apicost.catalog import sample_host
from apicost.catalog.openapi import Source
from apicost.catalog.sample_checker import Checking, Row, Task
from apicost.catalog.sample_host import SampleHost, sample_table
from apicost.core import records
from apicost.demo import live
from apicost.ingest.samples import Sample, SampleQueue, parse_samples, read_sample
from apicost.run import keep_samples
from apicost.store.lake import Lake
from apicost.store.query import Ledger
from bench import receiver_workload as lines
from bench.samples_workload import GOOD_ORDER, body, sample

SPECS = Path(__file__).parents[2] / "specs"
SHOP = Source(id="shop", documents=(SPECS / "shop.yaml",), service_ids=("shop",))
SECRET = "4111-1111-1111-1111"


def wait_for(what, seconds=60.0):
    """Poll until `what()` is true; its last value."""
    deadline = time.monotonic() + seconds
    while not (got := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return got


def alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    """Checkers below a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return [pid for pid in found if b"sample_checker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture
def host():
    """A host of the sample shop's checker, not started; `queue` is what it reads."""
    queue = SampleQueue()
    made = SampleHost(queue)
    made.queue = queue
    yield made
    made.stop()


def offer(host, samples, batch=1):
    host.queue.offer(parse_samples(body(samples, batch=batch), time.time_ns()))


def outcome(host, count):
    """Rows of the first `count` batches, as dictionaries, once they are there."""
    results = []
    assert wait_for(lambda: results.extend(host.take()) or len(results) >= count), (host.counts, host.problem)
    return sample_table(rows for _, rows in results).to_pylist()


@pytest.fixture(scope="module")
def checking():
    """The checker in this process."""
    from apicost.catalog.bodies import Checker

    return Checking(Checker([SHOP]))


def check(checking, *samples, received_unix_ns=0):
    task = Task(identity="b", node="gw", received_unix_ns=received_unix_ns or time.time_ns())
    return checking.check(task, [read_sample(json.dumps(one).encode()) for one in samples])


def test_each_sample_is_a_row_and_each_fault_one(checking):
    """Every sample counts without a rule; what fails, once for each place, with the app bytes of both directions."""
    answer = check(
        checking, sample(1), sample(2), sample(3, sent={"lines": []}), sample(4, got={"id": 7, "status": "lost"})
    )
    found = {(row.rule, row.detail): (row.samples, row.app_bytes) for row in answer.rows}
    assert found == {
        (None, None): (4, 2800),
        ("request-schema", "/lines minItems"): (1, 700),
        ("response-schema", "/id type"): (1, 700),
        ("response-schema", "/ required lines"): (1, 700),
        ("response-schema", "/status enum"): (1, 700),
    }
    assert (answer.checked, answer.deviating, answer.unmatched, answer.unusable) == (4, 2, 0, 0)
    row = answer.rows[0]
    assert (row.node, row.api, row.operation_id, row.method, row.path_template, row.status, row.consumer) == (
        "gw", "shop", "createOrder", "POST", "/v1/orders", "201", "acme",
    )  # fmt: skip


CUT = {
    "a removed value": sample(sent={"lines": [{"sku": "A", "count": "[redacted]"}], "note": "[redacted]"}),
    "a removed object": sample(sent={"lines": "[redacted]"}),
    "a cut request": sample(sent=b'{"lines": [', request_cut=True),
    "a cut response": sample(got=b'{"id": ', response_cut=True),
    "an absent request": sample(sent=None),
}


@pytest.mark.parametrize("name", CUT)
def test_what_was_cut_or_removed_is_no_fault(checking, name):
    """The other body is still looked at, and fits."""
    answer = check(checking, CUT[name])
    assert (answer.checked, answer.deviating) == (1, 0), answer


def test_what_can_not_be_told_is_no_sample(checking):
    """No body as a whole, the gateway's own answer, or no operation: counted apart, without a row."""
    answer = check(
        checking,
        sample(1, None, None),
        sample(2, b"{", b"{", request_cut=True, response_cut=True),
        sample(3, sent={}, status=503, response_source="apisix"),
        sample(4, path="/v1/nothing"),
        sample(5, host="elsewhere.example", service_id=""),
        sample(6, b"", b"{", response_cut=True, method="GET", path="/v1/orders/7", status=200),
    )
    assert (answer.rows, answer.checked, answer.unusable, answer.unmatched) == ([], 0, 4, 2)


def test_a_request_without_its_body_is_a_fault(checking):
    """The document requires one."""
    rows = check(checking, sample(sent=b"", got=None)).rows
    assert [(row.rule, row.detail) for row in rows] == [(None, None), ("request-schema", "/ missing")]


def test_operations_told_apart_by_a_query_value_are_left_alone(tmp_path):
    """Values are not in a sample, so that it can't be told which of them it was."""
    from apicost.catalog.bodies import Checker

    document = tmp_path / "rpc.yaml"
    schema = "{content: {application/json: {schema: {type: %s}}}}"
    paths = "".join(
        f"  /rpc?action={name}:\n    post:\n      operationId: {name}\n      requestBody: {schema % kind}\n"
        "      responses: {'200': {description: ok}}\n"
        for name, kind in (("list", "array"), ("get", "object"), ("plain", "string"))
    ).replace("?action=plain", "")
    document.write_text(f"openapi: 3.1.0\ninfo: {{title: t, version: '1'}}\npaths:\n{paths}")
    checking = Checking(Checker([Source(id="rpc", documents=(document,), hosts=("rpc.example",))]))
    answer = check(checking, sample(host="rpc.example", path="/rpc", query_names="action", sent=[], service_id=""))
    assert (answer.checked, answer.unmatched) == (0, 1)


def test_an_absurd_clock_is_the_time_of_receipt(checking):
    """A gateway that claims 1970 or next year fills no other month."""
    now_ns = time.time_ns()
    for unix_ms in (0, now_ns // 1_000_000 + 400_000):
        (row,) = check(checking, sample(unix_ms=unix_ms), received_unix_ns=now_ns).rows
        assert abs(row.first_unix_ns - now_ns) < 1_000_000


def test_rows_have_the_columns_of_the_ledger():
    """`Row` and `records.SAMPLE` name the same columns in the same order."""
    assert list(Row.__struct_fields__) == [column.name for column in records.SAMPLE]
    assert sample_table([]).schema == records.schema(records.SAMPLE)
    assert "unix_ms" in Sample.__struct_fields__


def test_the_checker_starts_with_the_first_sample_and_ends_when_idle(host):
    """No process before; none after the idle time; a new one for the next sample."""
    host._idle_s = 1.0
    host.start([SHOP])
    time.sleep(0.2)
    assert not children(os.getpid())
    offer(host, [sample()])
    assert outcome(host, 1)[0]["samples"] == 1
    assert wait_for(lambda: not host.running) and wait_for(lambda: not children(os.getpid()))
    offer(host, [sample()], batch=2)
    assert outcome(host, 1)[0]["samples"] == 1
    assert host.counts["checker_starts"] == 2


def test_a_killed_checker_costs_its_batch_and_is_started_again(host, monkeypatch):
    """The batch that finds it dead is dropped and counted; after a pause the next is checked."""
    monkeypatch.setattr(sample_host, "FIRST_PAUSE_S", 0.2)
    host.start([SHOP])
    offer(host, [sample()])
    outcome(host, 1)
    (pid,) = children(os.getpid())
    # Where memory runs out, it goes before the sidecar.
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not alive(pid))
    offer(host, [sample()], batch=2)
    assert wait_for(lambda: "killed by signal 9" in host.problem)
    assert (host.counts["dropped"], host.counts["checker_failures"]) == (1, 1)
    time.sleep(0.3)
    offer(host, [sample()], batch=3)
    assert outcome(host, 1)[0]["samples"] == 1 and host.problem == ""


def test_a_checker_that_hangs_is_given_up(host, monkeypatch):
    """A pattern without end, say: the sidecar waits no longer than its bound."""
    host.start([SHOP])
    offer(host, [sample()])
    outcome(host, 1)
    monkeypatch.setattr(sample_host, "ANSWER_S", 0.5)
    (pid,) = children(os.getpid())
    os.kill(pid, signal.SIGSTOP)
    offer(host, [sample()] * 3, batch=2)
    assert wait_for(lambda: host.counts["dropped"] == 3), host.counts
    assert wait_for(lambda: "did not answer" in host.problem) and not alive(pid)


def test_new_documents_are_used_from_the_next_batch_on(host, tmp_path):
    """The same body fits no more once the document says so."""
    document = tmp_path / "shop.yaml"
    document.write_text((SPECS / "shop.yaml").read_text())
    api = Source(id="shop", documents=(document,))
    host.start([api])
    offer(host, [sample()])
    assert [row["rule"] for row in outcome(host, 1)] == [None]
    document.write_text(document.read_text().replace("maxLength: 500", "maxLength: 3"))
    host.use([api])
    offer(host, [sample(sent={**GOOD_ORDER, "note": "long"})], batch=2)
    assert [row["detail"] for row in outcome(host, 1)] == [None, "/note maxLength"]


def test_memory_is_bounded(host):
    """A checker that may not take what it needs ends, and the sidecar says so."""
    host._memory_bytes = 64 << 20
    host.start([SHOP])
    offer(host, [sample()])
    assert wait_for(lambda: "has ended" in host.problem)
    assert (host.counts["dropped"], host.counts["checker_failures"]) == (1, 1)


def test_a_batch_is_in_the_ledger_once(checking, tmp_path):
    """Committed twice, alone or among others, it counts once."""
    rows = check(checking, sample(), sample(sent={})).rows
    with Lake.open(tmp_path) as ledger:
        assert keep_samples(ledger, [("a", rows)]) == ["a"]
        assert keep_samples(ledger, [("a", rows), ("b", rows)]) == ["b"]
        assert keep_samples(ledger, [("b", rows)]) == []
    with Ledger.open(tmp_path) as read:
        found = read.samples(0, 1 << 40).to_pylist()
    assert sorted((row["rule"] or "", row["samples"]) for row in found) == [("", 4), ("request-schema", 2)]


def post(sidecar, folder, path, content, kind="application/x-ndjson"):
    port = int(str(sidecar.ready["receiver"]).rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    token = (folder / "token").read_text().strip()
    connection.request("POST", path, content, {"Authorization": f"Bearer {token}", "Content-Type": kind})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_samples_become_findings_with_an_estimate_of_bytes_and_cost(tmp_path):
    """Usage lines and samples in; `apicost conformance` tells request-schema and response-schema, their share of the
    operation's bytes and cost, and no value; nothing of a body is on disk; the checker ends with a killed sidecar."""
    live.write_config(tmp_path, None)
    now_ns = time.time_ns()
    head = lines.header(first=1, count=40, base_mono_ns=time.monotonic_ns(), base_unix_ns=now_ns)
    line = {
        "msec": f"{now_ns / 1e9:.3f}", "method": "POST", "host": "shop.example", "path": "/v1/orders", "status": 201,
        "route_id": "orders", "service_id": "shop", "consumer": "acme", "response_bytes": 50_000_000,
    }  # fmt: skip
    wrong = {"lines": "none", "note": SECRET}
    sampled = [sample(1), sample(2), sample(3, sent=wrong), sample(4, got={"id": 1, "note": SECRET}, consumer="globex")]
    with live.Sidecar(tmp_path / "apicost.yaml") as sidecar:
        usage = lines.body(head, [lines.line(n=n, **line) for n in range(40)])
        assert post(sidecar, tmp_path, "/v1/usage", usage) == 200
        assert post(sidecar, tmp_path, "/v1/samples", body(sampled, node="demo")) == 200
        assert post(sidecar, tmp_path, "/v1/samples", body(sampled, node="demo")) == 200  # again: counts once
        assert sidecar.settle(40)["apicost_calls_total"] == 40
        assert wait_for(lambda: sidecar.metrics()["apicost_samples_checked_total"] == 4)
        told = sidecar.metrics()
        assert told["apicost_samples_deviating_total"] == 2 and told["apicost_samples_received_total"] == 4
        assert told["apicost_samples_checker_running"] == 1
        (pid,) = children(sidecar.process.pid)
        ledger = tmp_path / "state" / "ledger"
        assert wait_for(lambda: list(ledger.rglob("samples-*.parquet")))
        sidecar.process.kill()
        sidecar.process.wait()
        assert wait_for(lambda: not alive(pid), 10)
    command = [sys.executable, "-m", "apicost", "conformance", "-c", str(tmp_path / "apicost.yaml"), "--since", "1h"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, timeout=120, check=False)
    findings = {finding["rule"]: finding for finding in json.loads(done.stdout)["findings"]}
    request, response = findings["request-schema"], findings["response-schema"]
    assert (request["operation_id"], request["count"], request["detail"]) == ("createOrder", 1, "/lines type")
    assert (response["operation_id"], response["count"]) == ("createOrder", 1)
    for finding in (request, response):  # one of four samples: a quarter of the operation's
        assert float(finding["cost"]) > 0 and "seen in 1 of 4 samples" in finding["fix"]
    assert SECRET not in done.stdout
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_sidecar_without_samples_has_no_checker(tmp_path):
    """Nobody pays for what nobody asked for: no process, and metrics at 0."""
    live.write_config(tmp_path, None)
    with live.Sidecar(tmp_path / "apicost.yaml") as sidecar:
        told = sidecar.metrics()
        assert told["apicost_samples_received_total"] == 0 and told["apicost_samples_checker_running"] == 0
        assert children(sidecar.process.pid) == []
