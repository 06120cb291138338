"""The sidecar on bad days; without the probe, so that any machine can run these."""

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from apicost.demo import live
from bench import kill_daemon
from bench import receiver_workload as workload

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder(tmp_path):
    live.write_config(tmp_path, None)
    return tmp_path


def post(sidecar, folder, first: int, count: int, *, batch: int = 1, **changes) -> int:
    """Send a batch of plain requests; returns the receiver's status."""
    now = time.time_ns()
    head = workload.header(
        batch=batch, first=first, count=count, base_mono_ns=time.monotonic_ns(), base_unix_ns=now, **changes
    )
    lines = [workload.line(n=n, msec=f"{now / 1e9:.3f}") for n in range(count)]
    port = int(str(sidecar.ready["receiver"]).rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    token = (folder / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "text/x-apicost-usage"}
    connection.request("POST", "/v1/usage", workload.body(head, lines), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def health(sidecar) -> dict:
    with urllib.request.urlopen(f"{sidecar.ready['web']}/healthz", timeout=5) as answer:
        return json.load(answer)


def wait_for(what, seconds: float = 30.0):
    """Poll until `what()` is true; its last value."""
    deadline = time.monotonic() + seconds
    while not (got := what()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return got


def test_ready_line_says_where_and_why_no_probe(folder):
    """One line of JSON: receiver, probe state with its reason, pid."""
    with live.Sidecar(folder / "apicost.yaml") as sidecar:
        assert sidecar.ready["ready"] is True
        assert sidecar.ready["receiver"].startswith("http://127.0.0.1:")
        assert sidecar.ready["probe"] == "off: probe.enabled is false"
        assert sidecar.ready["pid"] == sidecar.process.pid
        assert sidecar.stop() == 0


def test_lines_without_a_probe_are_app_only(folder):
    """Calls count, bytes are the gateway's own and never wire bytes."""
    with live.Sidecar(folder / "apicost.yaml") as sidecar:
        assert post(sidecar, folder, first=1, count=50) == 200
        assert sidecar.settle(50)["apicost_calls_total"] == 50
    rows = kill_daemon.ledger_rows(
        folder / "state/ledger", ["kind", "downstream_confidence", "downstream_in_wire_bytes"]
    )
    assert len(rows) == 50
    assert set(rows) == {(1, 4, 0)}


def test_a_stop_loses_nothing_that_was_acknowledged(folder):
    """SIGTERM right after the answer: the next start has the lines."""
    with live.Sidecar(folder / "apicost.yaml") as sidecar:
        assert post(sidecar, folder, first=1, count=200) == 200
        assert sidecar.stop() == 0
    with live.Sidecar(folder / "apicost.yaml") as sidecar:
        wait_for(lambda: len(kill_daemon.ledger_lines(folder / "state/ledger")) == 200)
    assert sorted(kill_daemon.ledger_lines(folder / "state/ledger")) == [(4242, number) for number in range(1, 201)]


def test_kills_under_load_lose_and_double_nothing(kernel_or_skip):
    """Three kills at random moments; bench/kill_daemon.py does fifty."""
    command = [sys.executable, str(ROOT / "bench/kill_daemon.py"), "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    found = json.loads(done.stdout)
    assert found["acknowledged_lines"] > 0
    assert (found["counted_twice"], found["acknowledged_and_lost"], found["programs_left_attached"]) == (0, 0, 0)
    assert found["runs_with_programs_attached"] == 3


def test_a_bad_change_keeps_the_last_good_configuration(folder):
    """A broken file is named in /healthz while the old one goes on; mending it clears the problem."""
    config = folder / "apicost.yaml"
    good = config.read_text()
    with live.Sidecar(config) as sidecar:
        assert health(sidecar)["status"] == "ok"
        config.write_text(good + "nonsense: 1\n")
        sidecar.process.send_signal(signal.SIGHUP)
        told = wait_for(lambda: [p for p in health(sidecar)["problems"] if "last good configuration is kept" in p])
        assert "unknown key 'nonsense'" in told[0]
        assert post(sidecar, folder, first=1, count=5) == 200
        config.write_text(good)
        wait_for(lambda: health(sidecar)["status"] == "ok")
        assert health(sidecar)["status"] == "ok"


def test_a_bad_document_is_named_and_leaves_the_others(folder):
    """One API's broken document: the other API's requests still find their operations."""
    bad = folder / "broken.yaml"
    bad.write_text("openapi: 3.1.0\npaths: [not, a, mapping]\n")
    live.write_config(folder, None, extra=f"  - {{id: broken, documents: ['{bad}']}}\n")
    with live.Sidecar(folder / "apicost.yaml") as sidecar:
        told = health(sidecar)
        assert told["status"] == "degraded"
        assert any("broken.yaml" in problem for problem in told["problems"])


@pytest.mark.parametrize("section", ["receiver", "web"])
def test_a_taken_port_is_named_with_its_remedy(folder, section):
    """Exit 2, the address, and what to do."""
    config = folder / "apicost.yaml"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        old = "listen: '127.0.0.1:0'" if section == "receiver" else "web: 127.0.0.1:0"
        config.write_text(config.read_text().replace(old, old.replace("127.0.0.1:0", taken)))
        done = run_once(config)
    assert done.returncode == 2
    assert taken in done.stderr and "fix:" in done.stderr


def test_a_bad_configuration_exits_with_2_and_all_problems(folder):
    """Every problem with its line, effect and fix."""
    config = folder / "apicost.yaml"
    config.write_text("node: [1]\nprobe: {enabled: sometimes}\n")
    done = run_once(config)
    assert done.returncode == 2
    assert "apicost.yaml:1" in done.stderr and "apicost.yaml:2" in done.stderr


def test_a_second_sidecar_on_the_same_state_is_refused(folder):
    """Two writers of one ledger would count twice."""
    with live.Sidecar(folder / "apicost.yaml"):
        done = run_once(folder / "apicost.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_unwritable_state_folder_is_named(tmp_path):
    """A read-only place is said at the start, not at the first batch."""
    config = live.write_config(tmp_path, None)
    (tmp_path / "state").write_text("a file stands where the folder should be")
    done = run_once(config)
    assert done.returncode == 2
    assert "state" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_acknowledges_nothing_and_recovers(folder):
    """While nothing can be written the receiver answers 503; afterwards the same batch counts once."""
    with live.Sidecar(folder / "apicost.yaml") as sidecar:
        assert post(sidecar, folder, first=1, count=10) == 200
        assert sidecar.settle(10)["apicost_calls_total"] == 10
        pid = sidecar.process.pid
        free = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(
            pid, resource.RLIMIT_FSIZE, (1, free[1])
        )  # every write past the first byte fails, as on a full disk
        assert post(sidecar, folder, first=11, count=10, batch=2) == 503
        resource.prlimit(pid, resource.RLIMIT_FSIZE, free)
        assert wait_for(lambda: post(sidecar, folder, first=11, count=10, batch=2) == 200)
        assert sidecar.settle(20)["apicost_calls_total"] == 20
        assert wait_for(lambda: health(sidecar)["status"] == "ok")
    assert len(set(kill_daemon.ledger_lines(folder / "state/ledger"))) == 20


def run_once(config: Path) -> subprocess.CompletedProcess[str]:
    """`apicost run` that is expected to end by itself."""
    command = [sys.executable, "-m", "apicost", "run", "-c", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
