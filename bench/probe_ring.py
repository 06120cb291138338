"""Figure: ring records taken without loss. Target: 100,000/s for 60 s at a quarter of a core.

The generator is a program in the kernel that writes whole turn records into the probe's own ring
(BPF_PROG_TEST_RUN, paced every 5 ms), in a process of its own. The reader is the daemon's: `Probe.read()`
with its sweeps and the conversion to columns. Its CPU time is what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from apicost.core import records
from apicost.ingest import bpfsys, wire
from apicost.ingest.probe import Options, Probe
from tests.kernel import lab

RINGBUF_OUTPUT = 130
KTIME = 5
NO_WAKEUP = 1


def _op(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


def load_generator(ring: int) -> int:
    """A socket-filter-like program that writes one turn record per run, its times drawn from the clock."""
    size = wire.TURN_EVENT.itemsize
    code = b"".join(_op(0x7A, 10, 0, -size + at, 1) for at in range(0, size, 8))  # *(u64 *)(fp - size + at) = 1
    code += _op(0x85, value=KTIME)
    for name in ("flow", "last_ns", "born_ns"):
        code += _op(0x7B, 10, 0, -size + wire.TURN_EVENT.fields[name][1])  # = r0
    code += _op(0x18, 1, 1, 0, ring) + _op(0)  # r1 = the ring
    code += _op(0xBF, 2, 10) + _op(0x07, 2, 0, 0, -size)  # r2 = the record
    code += _op(0xB7, 3, 0, 0, size) + _op(0xB7, 4, 0, 0, NO_WAKEUP)
    code += _op(0x85, value=RINGBUF_OUTPUT)
    code += _op(0x77, 0, 0, 0, 63) + _op(0x95)  # 1 where it was refused
    text, terms = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attr = bpfsys.attributes("IIQQIIQ", 8, len(code) // 8, ctypes.addressof(text), ctypes.addressof(terms), 0, 0, 0)
    return bpfsys.bpf(bpfsys.PROG_LOAD, attr)


def generate(ring: int, per_second: int, seconds: float, told) -> None:
    """Write at a pace; tells how many records were written."""
    program = load_generator(ring)
    packet = ctypes.create_string_buffer(64)
    end, start, written = time.monotonic() + seconds, time.monotonic(), 0
    while (now := time.monotonic()) < end:
        due = int((now - start) * per_second) - written
        if due > 0:
            attr = bpfsys.attributes("IIIIQQII", program, 0, 64, 0, ctypes.addressof(packet), 0, due, 0)
            bpfsys.bpf(bpfsys.PROG_TEST_RUN, attr)
            written += due
        time.sleep(0.005)
    told.send(written)


def measure(per_second: int, seconds: float, read_every_s: float) -> dict:
    with lab.cgroup() as folder, Probe.open(Options(cgroup=folder)) as probe:
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=generate, args=(probe._descriptors["ring"], per_second, seconds, theirs)
        )
        probe.read()
        child.start()
        cpu, wall, taken, longest = time.process_time(), time.monotonic(), 0, 0.0
        while child.is_alive() or not ours.poll():
            time.sleep(read_every_s)
            begin = time.monotonic()
            batch = probe.read()
            records.check(batch, records.FLOW, "ring benchmark")
            taken += batch.num_rows
            longest = max(longest, time.monotonic() - begin)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        taken += probe.read().num_rows
        written = ours.recv()
        child.join()
    with contextlib.suppress(OSError):
        memory = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
    return {
        "written": written, "taken": taken, "lost": written - taken, "records_per_s": round(written / wall),
        "seconds": round(wall, 1), "cpu_share_of_a_core": round(cpu / wall, 3),
        "us_per_record": round(cpu / max(taken, 1) * 1e6, 3), "longest_read_ms": round(longest * 1e3, 1),
        "rss_mb": int(memory) // 1024, "target": "100,000/s for 60 s, 0 lost, 0.25 of a core",
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-second", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--read-every", type=float, default=0.05, help="seconds between reads")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.per_second, asked.seconds, asked.read_every), indent=1))
