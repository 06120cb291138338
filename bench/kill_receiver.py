"""kill -9 of the receiver at any moment, many times under load: no line counted twice, none lost that was acknowledged.

Gateway workers of this process number their lines and send each batch until it is acknowledged, over
whatever receiver answers; the receiver is killed and started again on the same folder, and segments are
consumed in between as the correlation step does. At the end every acknowledged line must have been consumed
exactly once, and every consumed line must have been sent.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import receiver_workload as workload  # noqa: E402

from apicost.ingest.spool import Spool  # noqa: E402

TOKEN = "benchmark-token-0123456789"
LINES = 40


class Gateway(threading.Thread):
    """One worker: sends its batches in order, each until it is acknowledged; sometimes one again."""

    def __init__(self, pid: int, where: dict[str, int], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.pid, self.where, self.stop = pid, where, stop
        self.acknowledged = 0  # lines 1..acknowledged
        self.sent = 0
        self.resends = 0
        self.started_ms = time.time_ns() // 1_000_000
        self.tail = workload.realistic(LINES, seed=pid).partition(b"\n")[2]
        self.pick = random.Random(pid)

    def run(self) -> None:
        batch = 0
        while not self.stop.is_set():
            head = workload.header(
                pid=self.pid,
                started_unix_ms=self.started_ms,
                batch=batch + 1,
                first=1 + batch * LINES,
                count=LINES,
                base_unix_ns=time.time_ns(),
            )
            body = json.dumps(head).encode() + b"\n" + self.tail
            self.sent = (batch + 1) * LINES
            if self.post(body):
                self.acknowledged = self.sent
                batch += 1
                if self.pick.random() < 0.1:
                    self.resends += 1
                    self.post(body)

    def post(self, body: bytes) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.where["port"], timeout=5)
        try:
            connection.request("POST", "/v1/usage", body, {"Authorization": f"Bearer {TOKEN}"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            time.sleep(0.01)
            return False
        finally:
            connection.close()


def start(folder: Path) -> tuple[subprocess.Popen[str], int]:
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "receiver_server.py"), str(folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise SystemExit("the receiver did not start")
    return server, int(line)


def consume(folder: Path, seen: Counter[tuple[int, int]], counts: Counter[str]) -> list[str]:
    """What a correlation step does, here between two lives of the receiver."""
    spool = Spool.open(folder)
    repairs = list(spool.repairs)
    refs = spool.sealed()
    _, lines, completeness = spool.read(refs)
    for pid, number in zip(lines["worker_pid"].to_pylist(), lines["line_no"].to_pylist(), strict=True):
        seen[pid, number] += 1
    for row in completeness.to_pylist():
        counts[row["metric"]] += row["value"]
    spool.drop(refs)
    spool.close()
    return repairs


def main(rounds: int = 50, workers: int = 3, seed: int = 1) -> dict[str, object]:
    """Kill `rounds` times; the counts of everything that must be zero, and of what was at stake."""
    pick = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="apicost-kill-receiver-"))
    seen: Counter[tuple[int, int]] = Counter()
    counts: Counter[str] = Counter()
    repairs: Counter[str] = Counter()
    stop = threading.Event()
    try:
        server, port = start(folder)
        where = {"port": port}
        gateways = [Gateway(1_000 + n, where, stop) for n in range(workers)]
        for gateway in gateways:
            gateway.start()
        for number in range(rounds):
            time.sleep(pick.uniform(0.05, 0.6))
            server.kill()
            server.wait()
            if number % 3 == 2:
                repairs.update(
                    text.split(";")[0].split(": ", 1)[1].lstrip("0123456789 ") for text in consume(folder, seen, counts)
                )
            server, where["port"] = start(folder)
        time.sleep(0.5)
        stop.set()
        for gateway in gateways:
            gateway.join(timeout=15)
        server.kill()
        server.wait()
        repairs.update(
            text.split(";")[0].split(": ", 1)[1].lstrip("0123456789 ") for text in consume(folder, seen, counts)
        )
    finally:
        stop.set()
        shutil.rmtree(folder, ignore_errors=True)
    acknowledged = {(g.pid, n) for g in gateways for n in range(1, g.acknowledged + 1)}
    sent = {(g.pid, n) for g in gateways for n in range(1, g.sent + 1)}
    return {
        "kills": rounds,
        "lines_acknowledged": len(acknowledged),
        "acknowledged_but_lost": len(acknowledged - set(seen)),
        "counted_twice": sum(1 for times in seen.values() if times > 1),
        "never_sent": len(set(seen) - sent),
        "counts_received": counts["lines_received"],
        "lines_consumed": sum(seen.values()),
        "lines_lost_counted": counts["lines_lost"],
        "resends_on_purpose": sum(g.resends for g in gateways),
        "durable_but_not_acknowledged": len(set(seen) - acknowledged),
        "repairs": dict(repairs),
    }


if __name__ == "__main__":
    figures = main(*(int(argument) for argument in sys.argv[1:2]))
    print(json.dumps(figures))
    sys.exit(bool(figures["acknowledged_but_lost"] or figures["counted_twice"] or figures["never_sent"]))
