"""One live run on this machine: upstreams, a gateway with the plugin, the sidecar with its probe, mixed traffic.

Everything lies below one folder and ends with the run: processes, cgroup, temporary files.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apicost import resources
from apicost.demo import gateway, traffic
from apicost.demo.upstreams import Upstreams
from apicost.ingest import cgroups, probe

READY_S = 60.0
SETTLE_S = 30.0
GATEWAY_NAMES = {
    "Gateway": "nginx with the Lua module and the small host for APISIX plugins",
    "ApisixGateway": "Apache APISIX in standalone mode",
}


@dataclass(slots=True, kw_only=True)
class Run:
    """What a live run left: where its configuration and ledger lie, and what its client sent."""

    config: Path
    sent: list[traffic.Sent] = field(default_factory=list)
    probe: str = ""
    gateway: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


def why_no_probe() -> str:
    """Why eBPF can't be loaded on this machine; empty when it can."""
    for check, good, what, fix in probe.diagnose():
        if not good:
            return f"{check}: {what} ({fix})"
    try:
        with own_cgroup("apicost-check"):
            return ""
    except OSError as error:
        return f"cgroup2: {error}"


@contextlib.contextmanager
def own_cgroup(name: str) -> Iterator[Path]:
    """A cgroup for the gateway, removed at the end."""
    path = cgroups.mount() / f"{name}-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        for _ in range(100):
            try:
                path.rmdir()
                break
            except OSError:  # the last process is still leaving
                time.sleep(0.05)


def write_config(folder: Path, cgroup: Path | None, *, record: bool = False, extra: str = "") -> Path:
    """The sidecar's configuration for a run in `folder`."""
    specs = resources.folder("specs")
    probe_section = f"{{cgroup: {cgroup}}}" if cgroup else "{enabled: false}"
    path = folder / "apicost.yaml"
    path.write_text(
        "# Written for one run of the demo.\n"
        "node: demo\n"
        "state_dir: state\n"
        "web: 127.0.0.1:0\n"
        f"prices: {specs}/prices.yaml\n"
        "receiver: {listen: '127.0.0.1:0', token_file: token, exit_spool_dir: exit-spool}\n"
        f"probe: {probe_section}\n"
        "correlate: {step_s: 1, line_wait_s: 12, flow_wait_s: 8}\n"
        + ("record_dir: recorded\n" if record else "")
        + "apis:\n"
        f"  - {{id: shop, title: Shop, owner: Ada Example, team: shop, documents: ['{specs}/shop.yaml'], "
        "service_ids: [shop]}\n"
        f"  - {{id: media, title: Media, owner: Bo Example, team: media, documents: ['{specs}/media.yaml'], "
        "service_ids: [media]}\n" + extra
    )
    return path


class Sidecar:
    """`apicost run` as a child process."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.ready: dict[str, object] = {}
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Sidecar:
        command = [sys.executable, "-m", "apicost", "run", "-c", str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the sidecar did not start (exit code {self.process.wait()})")
        self.ready = json.loads(line)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM and wait until it has drained; returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise RuntimeError("the sidecar did not stop within 60 s of SIGTERM") from None

    def plugin_metadata(self) -> dict[str, Any]:
        """What the plugin has to know to send its lines here; makes the folder for what is left at its exit."""
        folder = self.config.parent
        (folder / "exit-spool").mkdir(exist_ok=True)
        return {
            "receiver": self.ready["receiver"],
            "token": (folder / "token").read_text().strip(),
            "node": "demo",
            "spool_dir": str(folder / "exit-spool"),
        }

    def metrics(self) -> dict[str, float]:
        """Its metrics, summed over labels."""
        with urllib.request.urlopen(f"{self.ready['web']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name = line.partition("{")[0].partition(" ")[0]
                found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        return found

    def settle(self, calls: int) -> dict[str, float]:
        """Wait until that many calls are in the ledger, or nothing more comes; returns the last metrics."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            now = self.metrics()
            if now.get("apicost_calls_total", 0) >= calls or time.monotonic() > deadline:
                return now
            time.sleep(0.3)


def run(folder: Path, *, rounds: int = 6, use_probe: bool = True, record: bool = False) -> Run:
    """Start everything, send the traffic, stop everything in order.

    folder: an existing, empty folder. Raises GatewayError where no gateway can be started.
    """
    with contextlib.ExitStack() as stack:
        upstreams = stack.enter_context(Upstreams())
        cgroup = stack.enter_context(own_cgroup("apicost-demo")) if use_probe else None
        config = write_config(folder, cgroup, record=record)
        sidecar = stack.enter_context(Sidecar(config))
        (folder / "gateway").mkdir()
        kind = gateway.best_gateway()
        served = kind(folder / "gateway", gateway.resources(upstreams, sidecar.plugin_metadata()), cgroup=cgroup)
        with served:
            sent = traffic.mixed(
                ("127.0.0.1", served.http_port), ("127.0.0.1", served.https_port), gateway.CONSUMERS, rounds=rounds
            )
            metrics = sidecar.settle(len(sent))
        code = sidecar.stop()
        if code:
            raise RuntimeError(f"the sidecar ended with exit code {code}")
        name = GATEWAY_NAMES[kind.__name__]
        return Run(config=config, sent=sent, probe=str(sidecar.ready["probe"]), gateway=name, metrics=metrics)
