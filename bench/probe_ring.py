"""Figure: turn records taken without loss. Target: 100,000/s for 60 s at a quarter of a core.

The generator is a program in the kernel that writes whole turn records into the probe's own ring, sixteen at a time
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

LOOKUP = 1
KTIME = 5
RINGBUF_OUTPUT = 130
NO_WAKEUP = 1
BATCH = 1  # the second one of CPU 0, which takes turns only when the first is busy


def _op(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


def load_generator(ring: int, batches: int) -> int:
    """A socket-filter-like program whose every run is sixteen turns: times drawn from the clock, numbered, and sent
    to the ring together, as bpf/flow_probe.c does it."""
    field = {name: at for name, (_, at) in wire.TURN_BATCH.fields.items()}
    turn = {name: place[1] for name, place in wire.TURN_EVENT.fields.items()}
    code = _op(0x62, 10, 0, -4, BATCH)  # *(u32 *)(fp - 4) = BATCH
    code += _op(0x18, 1, 1, 0, batches) + _op(0) + _op(0xBF, 2, 10) + _op(0x07, 2, value=-4) + _op(0x85, value=LOOKUP)
    code += _op(0x55, 0, 0, 1) + _op(0x95)  # none: exit
    code += _op(0xBF, 9, 0) + _op(0x85, value=KTIME)  # r9 = the batch, r0 = now
    code += _op(0x79, 8, 9, field["next"])  # r8 = its next number
    code += _op(0x18, 5, 0, 0, 0) + _op(0, value=BATCH << wire.BATCH_SHIFT - 32) + _op(0x0F, 5, 8)
    for place in range(wire.TURNS_TOGETHER):
        begin = field["turns"] + place * wire.TURN_EVENT.itemsize
        code += b"".join(_op(0x7B, 9, 0, begin + turn[name]) for name in ("flow", "last_ns", "born_ns"))
        code += _op(0x07, 5, value=1) + _op(0x7B, 9, 5, begin + turn["seq"])
    code += _op(0x18, 1, 1, 0, ring) + _op(0) + _op(0xBF, 2, 9) + _op(0x07, 2, value=field["turns"])
    code += _op(0xB7, 3, value=wire.TURN_BATCH["turns"].itemsize) + _op(0xB7, 4, value=NO_WAKEUP)
    code += _op(0x85, value=RINGBUF_OUTPUT) + _op(0x07, 8, value=wire.TURNS_TOGETHER)
    code += _op(0x55, 0, 0, 1) + _op(0x7B, 9, 8, field["sent"])  # where it was not refused
    code += _op(0x7B, 9, 8, field["next"]) + _op(0x77, 0, value=63) + _op(0x95)  # 1 where it was
    text, terms = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attr = bpfsys.attributes("IIQQIIQ", 8, len(code) // 8, ctypes.addressof(text), ctypes.addressof(terms), 0, 0, 0)
    return bpfsys.bpf(bpfsys.PROG_LOAD, attr)


def generate(ring: int, batches: int, per_second: int, seconds: float, told) -> None:
    """Write at a pace; tells how many turns were written."""
    program = load_generator(ring, batches)
    packet = ctypes.create_string_buffer(64)
    end, start, written = time.monotonic() + seconds, time.monotonic(), 0
    while (now := time.monotonic()) < end:
        due = (int((now - start) * per_second) - written) // wire.TURNS_TOGETHER
        if due > 0:
            attr = bpfsys.attributes("IIIIQQII", program, 0, 64, 0, ctypes.addressof(packet), 0, due, 0)
            bpfsys.bpf(bpfsys.PROG_TEST_RUN, attr)
            written += due * wire.TURNS_TOGETHER
        time.sleep(0.005)
    told.send(written)


def measure(per_second: int, seconds: float, read_every_s: float) -> dict:
    with lab.cgroup() as folder, Probe.open(Options(cgroup=folder)) as probe:
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=generate,
            args=(probe._descriptors["ring"], probe._descriptors["batches"], per_second, seconds, theirs),
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
