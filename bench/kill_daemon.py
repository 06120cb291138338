"""Kill -9 of the sidecar at any moment, under load: no call counted twice, none lost that was acknowledged.

A writer posts numbered batches over and over, repeating each until it is acknowledged. The daemon runs with
its probe attached to a cgroup of its own and is killed at random moments. At the end the ledger is compared
with what was acknowledged, line by line, and the cgroup with nothing attached.

    python bench/kill_daemon.py [--kills 50] [--seed 1]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import receiver_workload as workload  # beside this file

from apicost.ingest import cgroups

LINES = 200


class Writer(threading.Thread):
    """One gateway worker: a batch is sent again with the same bytes until it is acknowledged."""

    def __init__(self, pid: int, where: dict[str, object]) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.where = where
        self.acknowledged: set[int] = set()
        self.sent = 0
        self.duplicates = 0
        self.stop = threading.Event()

    def run(self) -> None:
        batch = 0
        while not self.stop.is_set():
            batch += 1
            first = (batch - 1) * LINES + 1
            now = time.time_ns()
            head = workload.header(
                pid=self.pid,
                batch=batch,
                first=first,
                count=LINES,
                base_mono_ns=time.monotonic_ns(),
                base_unix_ns=now,
            )
            lines = [workload.line(n=n, msec=f"{now / 1e9:.3f}", peer_port=1024 + n) for n in range(LINES)]
            body = workload.body(head, lines)
            self.sent += LINES
            while not self._post(body):
                if self.stop.is_set():
                    return
                time.sleep(0.02)
            self.acknowledged |= set(range(first, first + LINES))
            time.sleep(0.005)

    def _post(self, body: bytes) -> bool:
        port = self.where.get("port")
        if not port:
            return False
        connection = http.client.HTTPConnection("127.0.0.1", int(str(port)), timeout=5)
        try:
            headers = {"Authorization": f"Bearer {self.where['token']}", "Content-Type": "text/x-apicost-usage"}
            connection.request("POST", "/v1/usage", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 200:
                self.duplicates += bool(json.loads(content).get("duplicate"))
            return answer.status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def attached(cgroup: Path) -> int:
    """Programs attached to a cgroup."""
    shown = subprocess.run(["bpftool", "cgroup", "show", str(cgroup)], capture_output=True, text=True, check=False)
    return sum(1 for line in shown.stdout.splitlines() if "cgroup_inet" in line or "sock_ops" in line)


def start(config: Path) -> tuple[subprocess.Popen[str], dict[str, object]]:
    command = [sys.executable, "-m", "apicost", "run", "-c", str(config)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    line = daemon.stdout.readline()
    return daemon, json.loads(line) if line else {}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    cgroup = cgroups.mount() / f"apicost-kill-{os.getpid()}"
    cgroup.mkdir()
    left_attached = attached_while_running = 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "apicost.yaml"
            config.write_text(
                f"node: gw-1\nstate_dir: {folder}/state\nweb: 127.0.0.1:0\n"
                f"receiver: {{listen: '127.0.0.1:0', token_file: {folder}/token, exit_spool_dir: {folder}/exit}}\n"
                f"probe: {{cgroup: {cgroup}}}\n"
                "correlate: {step_s: 0.3, line_wait_s: 1, flow_wait_s: 0.5}\n"
            )
            where: dict[str, object] = {}
            writers = [Writer(1000 + number, where) for number in range(2)]
            for writer in writers:
                writer.start()
            for _ in range(arguments.kills):
                daemon, ready = start(config)
                where["token"] = (Path(folder) / "token").read_text().strip()
                where["port"] = str(ready["receiver"]).rpartition(":")[2]
                attached_while_running += attached(cgroup) > 0
                time.sleep(rng.uniform(0.05, 1.5))
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
                where["port"] = None
                time.sleep(0.05)
                left_attached += attached(cgroup)
            daemon, ready = start(config)
            where["port"] = str(ready["receiver"]).rpartition(":")[2]
            time.sleep(1)
            for writer in writers:
                writer.stop.set()
            for writer in writers:
                writer.join()
            time.sleep(2.5)
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(timeout=60)
            left_attached += attached(cgroup)
            counted = ledger_lines(Path(folder) / "state" / "ledger")
    finally:
        cgroup.rmdir()
    expected = {(writer.pid, number) for writer in writers for number in writer.acknowledged}
    twice = len(counted) - len(set(counted))
    lost = len(expected - set(counted))
    print(
        json.dumps(
            {
                "kills": arguments.kills,
                "acknowledged_lines": len(expected),
                "counted_lines": len(counted),
                "counted_twice": twice,
                "acknowledged_and_lost": lost,
                "repeats_seen_as_duplicates": sum(writer.duplicates for writer in writers),
                "runs_with_programs_attached": attached_while_running,
                "programs_left_attached": left_attached,
                "clean_exit_code": code,
            }
        )
    )
    return int(bool(twice or lost or left_attached or code))


def ledger_lines(ledger: Path) -> list[tuple[int, ...]]:
    """(worker, line) of every exchange row that stands for a request."""
    rows = ledger_rows(ledger, ["kind", "worker_pid", "line_no"])
    return [row[1:] for row in rows if row[0] == 1]


def ledger_rows(ledger: Path, columns: list[str]) -> list[tuple[int, ...]]:
    """Some columns of all exchange rows, read through the ledger's catalogue."""
    import pyarrow.parquet as pq

    from apicost.store.catalogue import Catalogue

    found: list[tuple[int, ...]] = []
    with Catalogue.read(ledger) as catalogue:
        for segment in catalogue.segments():
            if segment.kind == "exchanges":
                table = pq.ParquetFile(ledger / segment.name).read(columns)
                found += zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
