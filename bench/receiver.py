"""How many usage lines a core makes durable per second: batches of 1,000 over kept-alive connections.

The receiver runs in a process of its own; its CPU time (user + system, all threads, fsync's share included)
is what counts, since the machine is shared. The load comes from this process, prepared beforehand.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import receiver_workload as workload

TOKEN = "benchmark-token-0123456789"
TICKS = os.sysconf("SC_CLK_TCK")


def main(seconds: float = 20.0, connections: int = 4, lines: int = 1_000, retries: float = 0.01) -> dict[str, object]:
    """Post for `seconds` over `connections` gateway workers; figures of the receiver's process."""
    folder = Path(tempfile.mkdtemp(prefix="apicost-bench-receiver-"))
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "receiver_server.py"), str(folder), "0", "2"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        # A few bodies per worker; only the header's numbers change from batch to batch.
        tails = [workload.realistic(lines, seed=seed, retries=retries).partition(b"\n")[2] for seed in range(8)]
        done = [0] * connections
        latencies: list[float] = []
        stop = threading.Event()

        def worker(index: int) -> None:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                reader = connection.makefile("rb")
                batch = 0
                while not stop.is_set():
                    head = workload.header(pid=1_000 + index, batch=batch + 1, first=1 + batch * lines, count=lines)
                    body = json.dumps(head).encode() + b"\n" + tails[batch % len(tails)]
                    began = time.monotonic()
                    connection.sendall(
                        b"POST /v1/usage HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
                        + TOKEN.encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
                    )  # fmt: skip
                    connection.sendall(body)
                    answer = read_answer(reader)
                    latencies.append(time.monotonic() - began)
                    if answer["accepted"] != lines:
                        raise SystemExit(f"expected {lines} accepted, got {answer}")
                    batch += 1
                    done[index] += lines

        threads = [threading.Thread(target=worker, args=(index,), daemon=True) for index in range(connections)]
        for thread in threads:
            thread.start()
        time.sleep(2)  # warm
        start_lines, start_cpu, start_s = sum(done), cpu_s(server.pid), time.monotonic()
        latencies.clear()
        memory = []
        while time.monotonic() - start_s < seconds:
            time.sleep(0.5)
            memory.append(rss_mb(server.pid))
        total, cpu, wall = sum(done) - start_lines, cpu_s(server.pid) - start_cpu, time.monotonic() - start_s
        stop.set()
        for thread in threads:
            thread.join(timeout=10)
        ordered = sorted(latencies)
        body_bytes = len(tails[0])
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
    quarter = max(1, len(memory) // 4)
    return {
        "lines_per_cpu_second": round(total / cpu),
        "cpu_us_per_line": round(cpu / total * 1e6, 2),
        "lines_per_second_wall": round(total / wall),
        "cores_used": round(cpu / wall, 2),
        "lines": total,
        "lines_per_batch": lines,
        "bytes_per_line": round(body_bytes / lines),
        "connections": connections,
        "answer_ms_p50": round(ordered[len(ordered) // 2] * 1e3, 1),
        "answer_ms_p99": round(ordered[int(len(ordered) * 0.99)] * 1e3, 1),
        "rss_mb_first_quarter": round(max(memory[:quarter])),
        "rss_mb_last_quarter": round(max(memory[-quarter:])),
        "target_lines_per_second_on_one_core": 150_000,
    }


def read_answer(reader) -> dict[str, object]:
    """The JSON body of one HTTP answer with a Content-Length."""
    status = reader.readline()
    length = 0
    while (header := reader.readline()) not in (b"\r\n", b""):
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    body = reader.read(length)
    if b" 200 " not in status:
        raise SystemExit(f"{status!r} {body!r}")
    return json.loads(body)


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    print(json.dumps(main(*(float(a) for a in sys.argv[1:2]))))
