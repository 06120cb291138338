"""What shapes add to the CPU time of correlate + match + meter, on recorded batches.

    python bench/shape_speed.py [--data DIR] [--case NAME ...] [--copies N] [--repeat R]

Batches and steps are those of bench/pipeline_speed.py. Each step runs correlate, match, the meter alone and what the
pipeline does instead (shapes, and usage from them), one after the other in one process; `added` is what the latter
takes more, as a part of the first three. `undocumented` is the same with no document at all and a path of its own for
each request, as of a client that tries what it can find: each is folded. One thread; the median of R runs. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from join_accuracy import SETTINGS
from join_recorded import EXCERPT, Recorded, cases, load
from join_speed import copies, pieces
from pipeline_speed import DOCUMENT, SCOPES

from apicost.catalog import openapi
from apicost.core import meter, records
from apicost.core.conformance import shapes
from apicost.core.join.correlate import Carry, correlate
from apicost.core.naming import match

STAGES = ("correlate", "match", "meter", "shapes")


def measured(case: Recorded, index: match.Index, in_steps: bool) -> dict[str, float]:
    """CPU seconds of each stage over the whole case, and how many rows came out."""
    spent = dict.fromkeys(STAGES, 0.0)
    rows = {"exchanges": 0, "usage": 0, "shapes": 0}
    carry = Carry.empty()
    steps = [*pieces(case), (case.flows[:0], case.lines[:0], 0)] if in_steps else [(case.flows, case.lines, 0)]
    now = 0
    for number, (flows, lines, until) in enumerate(steps):
        now = max(now, until)
        final = number == len(steps) - 1
        clock = [time.process_time()]
        step = correlate(carry, flows, lines, clock=case.clock, now_mono_ns=now, settings=SETTINGS, final=final)
        clock.append(time.process_time())
        named = match.name_exchanges(step.exchanges, index, node="gw-1")
        clock.append(time.process_time())
        usage = meter.meter(named, SCOPES)
        clock.append(time.process_time())
        shape = shapes.shapes(named, SCOPES)
        assert shapes.usage_of(shape).equals(usage)
        clock.append(time.process_time())
        for name, begun, ended in zip(STAGES, clock, clock[1:], strict=False):
            spent[name] += ended - begun
        for name, table in (("exchanges", named), ("usage", usage), ("shapes", shape)):
            rows[name] += len(table)
        carry = Carry.from_tables(step.carry.to_tables())
    without = spent["correlate"] + spent["match"] + spent["meter"]
    return {"added": (spent["shapes"] - spent["meter"]) / without, **rows}


def numbered(case: Recorded) -> Recorded:
    """The case with a path of its own for each request."""
    paths = [f"{path}/{number}" for number, path in enumerate(case.lines["path"].to_pylist())]
    at = case.lines.schema.get_field_index("path")
    order = np.arange(len(paths), dtype=np.int32)
    lines = case.lines.set_column(at, case.lines.schema.field(at), records.text(order, paths))
    return Recorded(name=case.name, flows=case.flows, lines=lines, truth=case.truth, clock=case.clock)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=EXCERPT)
    parser.add_argument("--case", action="append")
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "recorded.yaml"
        document.write_text(DOCUMENT)
        documented = openapi.load_apis([openapi.Source(id="recorded", documents=(document,))]).index
    nothing = openapi.load_apis([]).index
    found: dict[str, Any] = {}
    for name in options.case or cases(options.data):
        case = copies(load(options.data / name), options.copies)
        for kind, batch, index in (("documented", case, documented), ("undocumented", numbered(case), nothing)):
            for way in ("at_once", "in_steps"):
                runs = [measured(batch, index, way == "in_steps") for _ in range(options.repeat)]
                added = round(statistics.median(run["added"] for run in runs), 3)
                found.setdefault(name, {}).setdefault(kind, {})[way] = {**runs[0], "added": added}
    worst = max(way["added"] for case in found.values() for way in case["documented"].values())
    print(json.dumps({"bench": "shape_speed", "worst_documented": worst, "target": 0.2, "cases": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
