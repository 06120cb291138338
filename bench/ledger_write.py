"""How fast steps become part of the ledger, durable each: CPU and wall time, bytes per row; then compaction."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import pyarrow as pa

from apicost.core import records
from apicost.core.conformance import shapes
from apicost.store.catalogue import DAY_S
from apicost.store.lake import Lake
from tests.store.batches import NOON, SCOPES, completeness, many

STEPS = 60


def commits(folder, rows):
    """Figures of `STEPS` steps of `rows` exchanges each; a carry of a tenth of them."""
    batch = yesterday(many(rows))
    shape = shapes.shapes(batch, SCOPES)
    outputs = {
        "exchanges": batch,
        "usage": shapes.usage_of(shape),
        "shapes": shape,
        "completeness": completeness((NOON, "lines_received", rows)),
    }
    carry = {"lines": batch.slice(0, rows // 10)}
    took = []
    with Lake.open(folder) as lake:
        cpu = time.process_time()
        for number in range(STEPS):
            began = time.perf_counter()
            lake.commit([f"{rows}-{number}"], outputs, carry)
            took.append(time.perf_counter() - began)
        cpu = time.process_time() - cpu
        stats = lake.stats()
    took.sort()
    return {
        "exchanges_per_cpu_s": round(rows * STEPS / cpu),
        "cpu_ms_per_step": round(cpu / STEPS * 1e3, 1),
        "wall_ms_p50": round(took[STEPS // 2] * 1e3, 1),
        "wall_ms_p99": round(took[-1] * 1e3, 1),
        "bytes_per_exchange": round(stats["exchanges_bytes"] / stats["exchanges_rows"], 1),
        "usage_rows_per_step": outputs["usage"].num_rows,
        "shape_rows_per_step": shape.num_rows,
        "bytes_per_shape": round(stats["shapes_bytes"] / stats["shapes_rows"], 1),
    }


def yesterday(batch):
    """The batch as if it had ended two days ago, so that its day is finished."""
    shift = int((time.time() // DAY_S - 2) * DAY_S - NOON // DAY_S * DAY_S) * 1_000_000_000
    for name in ("started_unix_ns", "ended_unix_ns"):
        at = batch.schema.get_field_index(name)
        moved = records.numbers(batch, name) + shift
        batch = batch.set_column(at, batch.schema.field(at), pa.array(moved))
    return batch


def compaction(folder):
    """One compaction of all of them as a finished day, in a process of its own, as the daemon runs it."""
    code = (
        "import sys\nfrom apicost.store.compact import main\nmain(sys.argv[1:])\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    told, peak_kb = done.stdout.splitlines()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "files_before": json.loads(told)["merged"],
        "files_after": json.loads(told)["made"],
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": int(peak_kb) // 1024,
    }


def main():
    figures = {"bench": "ledger_write"}
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        for rows in (100, 10_000):
            figures[f"steps_of_{rows}"] = commits(Path(scratch) / str(rows), rows)
        figures["peak_mb_while_writing"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        figures["compaction_of_600000_exchanges"] = compaction(Path(scratch) / "10000")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
