"""The systemd unit's rights, tried: enough to attach the probe, and none left afterwards."""

import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from configparser import RawConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def capabilities():
    """The unit's bounding set as setpriv writes it."""
    unit = RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string((ROOT / "deploy/apicost.service").read_text())
    names = unit["Service"]["CapabilityBoundingSet"].split()
    return ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)])


@pytest.fixture
def folder():
    """A folder that the user nobody can reach, too."""
    path = Path(tempfile.mkdtemp(prefix=f"apicost-deploy-{os.getpid()}-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def gateway(folder):
    """A process that listens, in a cgroup of its own, with a pid file."""
    from apicost.ingest import cgroups

    cgroup = cgroups.mount() / f"apicost-deploy-{os.getpid()}"
    cgroup.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f"echo $$ > {cgroup}/cgroup.procs; exec {sys.executable} -m http.server --bind 127.0.0.1 {port}"
    process = subprocess.Popen(["sh", "-c", script], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (folder / "gateway.pid").write_text(f"{process.pid}\n")
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield port
    process.kill()
    process.wait()
    cgroup.rmdir()


@pytest.mark.kernel
def test_the_units_capabilities_attach_the_probe_and_none_is_left(kernel_or_skip, folder, gateway):
    """Bounded as in the unit, with no way to gain rights, the daemon attaches and then holds no capability."""
    if not shutil.which("setpriv"):
        pytest.skip("setpriv (util-linux) is missing")
    (folder / "apicost.yaml").write_text(
        f"state_dir: {folder}/state\nweb: 127.0.0.1:0\nrun_as: nobody\n"
        f"receiver: {{listen: 127.0.0.1:0, token_file: {folder}/token, exit_spool_dir: {folder}/spool}}\n"
        f"probe: {{pid_file: {folder}/gateway.pid, gateway_ports: [{gateway}], map_entries: 1024}}\n"
    )
    (folder / "token").write_text("0123456789abcdef" * 4)
    (folder / "token").chmod(0o600)
    # It belongs to the gateway's user, not to root: reading it takes CAP_DAC_OVERRIDE.
    os.chown(folder / "token", pwd.getpwnam("daemon").pw_uid, -1)
    bounded = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set={capabilities()}"]
    with open(folder / "words", "wb") as words:
        daemon = subprocess.Popen(
            [*bounded, sys.executable, "-m", "apicost", "run", "-c", folder / "apicost.yaml"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=words,
        )  # fmt: skip
    try:
        assert select.select([daemon.stdout], [], [], 90)[0], "not ready after 90 s"
        line = daemon.stdout.readline()
        assert line, (folder / "words").read_text()
        assert json.loads(line)["probe"] == "attached", (folder / "words").read_text()
        status = dict(
            entry.split(":", 1) for entry in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if ":" in entry
        )
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
        assert set(map(int, status["Uid"].split())) == {pwd.getpwnam("nobody").pw_uid}
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            ended = daemon.wait(timeout=60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            raise
    assert ended == 0, (folder / "words").read_text()
