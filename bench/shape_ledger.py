"""What shapes cost in the ledger: a month's question, and a day on which a scanner asked for a million paths.

The month is 30 day rollups of the same shapes (35,000 of 1,200 sets of dimensions, statuses and sizes), as compaction
leaves them. The scan is a day of minutes with 1,000,000 undocumented requests, each for a path of its own that can't be
folded, beside 100,000 documented ones: asked as it is, compacted, asked again. Each question and the compaction
run in processes of their own: CPU seconds and peak memory. Prints one JSON object.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.conformance import shapes
from apicost.store import segments
from apicost.store.catalogue import DAY_S, Catalogue, add
from apicost.store.lake import Lake
from tests.store.batches import NOON, SCOPES, many

DAY = NOON // DAY_S * DAY_S
DAYS = 30
STEPS, OF_STEP = 20, 50_000


def month(folder):
    """Thirty equal days; how many rows and calls."""
    shape = shapes.merge([shapes.shapes(many(500_000, groups=1_200), SCOPES)], bucket_s=DAY_S)
    at = shape.schema.get_field_index("minute_unix_s")
    with Catalogue.open(folder) as catalogue:
        made = []
        for day in range(DAY, DAY + DAYS * DAY_S, DAY_S):
            rows = shape.set_column(at, shape.schema.field(at), pa.array(np.full(len(shape), day)))
            name = f"{segments.day_folder(day)}/shapes-{DAY_S}-c000000001-1.parquet"
            made.append(segments.write(folder, name, "shapes", day, rows, grain_s=DAY_S))
        with catalogue.transaction() as change:
            add(change, made, DAY)
    return {"rows": DAYS * len(shape), "bytes_per_row": round(sum(s.bytes for s in made) / DAYS / len(shape), 1)}


def scan(folder):
    """A day of steps; how many rows the shapes of its minutes have."""
    rows = 0
    with Lake.open(folder) as lake:
        for step in range(STEPS):
            batch = many(OF_STEP + 5_000, seed=step, seconds=DAY_S // 4)
            unknown = np.arange(len(batch)) < OF_STEP
            paths = [f"/{word:x}-x/y{step}" for word in range(OF_STEP)]
            columns = {
                "path": records.text(np.where(unknown, np.arange(len(batch)) % OF_STEP, -1), paths),
                "match_state": records.text(unknown.astype(np.int32), ["matched", "undocumented-path"]),
                "path_template": records.text(np.where(unknown, -1, 0), ["/v1/x"]),
                "operation_id": records.text(np.where(unknown, -1, 0), ["x"]),
                "api": records.text(np.zeros(len(batch), np.int32), ["api"]),
            }
            for name, column in columns.items():
                at = batch.schema.get_field_index(name)
                batch = batch.set_column(at, batch.schema.field(at), column)
            shape = shapes.shapes(batch, SCOPES)
            lake.commit([f"{step}"], {"shapes": shape, "usage": shapes.usage_of(shape)})
            rows += len(shape)
    return rows


# Not ru_maxrss: that of a child begins with its parent's.
PEAK_MB = "int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) >> 10"
ASK = """
import json, sys, time
from apicost.store.query import Ledger
began = time.process_time()
with Ledger.open(sys.argv[1]) as ledger:
    found = ledger.shapes(int(sys.argv[2]), int(sys.argv[3]))
print(json.dumps({"rows": len(found), "calls": sum(found["calls"].to_pylist()),
    "cpu_s": round(time.process_time() - began, 1),
    "peak_mb": PEAK}))
""".replace("PEAK", PEAK_MB)


def ask(folder, end):
    done = subprocess.run(
        [sys.executable, "-c", ASK, folder, str(DAY), str(end)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def compacted(folder):
    """One run of compaction: CPU seconds and peak memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = f"import sys; from apicost.store.compact import main; main([sys.argv[1]]); print({PEAK_MB})"
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": round(spent, 1), "peak_mb": int(done.stdout.split()[-1])}


def main():
    figures = {"bench": "shape_ledger"}
    with tempfile.TemporaryDirectory() as folder:
        figures["month"] = month(Path(folder))
        figures["month_asked"] = ask(folder, DAY + DAYS * DAY_S)
    assert time.time() > DAY + DAY_S + 3_600, "the day is over"
    with tempfile.TemporaryDirectory() as folder:
        figures["scan_minute_rows"] = scan(folder)
        figures["scan_asked"] = ask(folder, DAY + DAY_S)
        figures["scan_compacted"] = compacted(folder)
        figures["scan_asked_again"] = ask(folder, DAY + DAY_S)
        assert {k: figures["scan_asked"][k] for k in ("rows", "calls")} == {
            k: figures["scan_asked_again"][k] for k in ("rows", "calls")
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
