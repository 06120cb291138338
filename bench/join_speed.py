"""How many exchanges a second of CPU time `correlate` joins, both legs, on recorded batches.

    python bench/join_speed.py [--data DIR] [--case NAME ...] [--copies N] [--repeat R]

DIR holds one folder for each recorded case (default: the excerpt in tests/data/join). The case is copied N times side
by side, with flows, client ports and connections of their own and N times the gateways (an upstream of its own each).
`at_once` is one step over all; `in_steps` feeds the same by time in steps of 2 s as the daemon does, the carry
going through its tables each time. Prints one JSON object, the best of R runs each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parent))

from join_accuracy import SETTINGS, STEP_NS
from join_recorded import EXCERPT, Recorded, cases, load

from apicost.core.join.correlate import Carry, correlate


def copies(case: Recorded, number: int) -> Recorded:
    """The case side by side with itself, each copy with clients, flows and workers of its own."""
    flows, lines = [], []
    for copy in range(number):
        part = case.flows
        for name in ("flow",):
            part = _added(part, name, copy << 32)
        flows.append(_added(_added(part, "peer_hi", copy), "local_hi", copy) if copy else part)
        rows = _added(_added(case.lines, "connection", copy << 32), "peer_hi", copy) if copy else case.lines
        lines.append(_added(rows, "worker_pid", copy * 1_000))
    if number > 1:
        # The upstream's address is text in a line: copies share it, so its flows must too.
        flows = [_upstream_as_before(part) for part in flows]
    return Recorded(
        name=case.name,
        flows=pa.concat_tables(flows),
        lines=pa.concat_tables(lines),
        truth=case.truth,
        clock=case.clock,
    )


def _upstream_as_before(flows: pa.Table) -> pa.Table:
    upstream = pc.equal(flows["role"], 2)
    place = flows.schema.get_field_index("peer_hi")
    values = pc.if_else(upstream, pa.scalar(0, pa.uint64()), flows["peer_hi"])
    return flows.set_column(place, flows.schema.field(place), values)


def _added(table: pa.Table, name: str, value: int) -> pa.Table:
    place = table.schema.get_field_index(name)
    column = table.column(name)
    return table.set_column(place, table.schema.field(place), pc.add(column, pa.scalar(value, column.type)))


def at_once(case: Recorded) -> float:
    begun = time.process_time()
    correlate(Carry.empty(), case.flows, case.lines, clock=case.clock, now_mono_ns=0, settings=SETTINGS, final=True)
    return time.process_time() - begun


def pieces(case: Recorded) -> list[tuple[pa.Table, pa.Table, int]]:
    """The case cut by time into steps of two seconds: (FLOW, LINE, the step's end)."""
    seen = case.flows.column("last_mono_ns").to_numpy()
    logged = case.lines.column("log_mono_ns").to_numpy()
    edges = np.arange(min(seen.min(), logged.min()), max(seen.max(), logged.max()) + STEP_NS, STEP_NS)
    return [
        (
            case.flows.filter(pa.array((seen >= edge) & (seen < edge + STEP_NS))),
            case.lines.filter(pa.array((logged >= edge) & (logged < edge + STEP_NS))),
            int(edge + STEP_NS),
        )
        for edge in edges
    ]


def in_steps(case: Recorded) -> tuple[float, int]:
    """CPU seconds, and how many steps."""
    batches = pieces(case)
    carry = Carry.empty()
    begun = time.process_time()
    for flows, lines, now in batches:
        step = correlate(carry, flows, lines, clock=case.clock, now_mono_ns=now, settings=SETTINGS)
        carry = Carry.from_tables(step.carry.to_tables())
    correlate(carry, flows[:0], lines[:0], clock=case.clock, now_mono_ns=now, settings=SETTINGS, final=True)
    return time.process_time() - begun, len(batches) + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=EXCERPT)
    parser.add_argument("--case", action="append")
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    found: dict[str, Any] = {}
    for name in options.case or cases(options.data):
        case = copies(load(options.data / name), options.copies)
        once = min(at_once(case) for _ in range(options.repeat))
        stepped = [in_steps(case) for _ in range(options.repeat)]
        found[name] = {
            "exchanges": len(case.lines),
            "snapshots": len(case.flows),
            "at_once_per_cpu_s": round(len(case.lines) / once),
            "in_steps_per_cpu_s": round(len(case.lines) / min(s for s, _ in stepped)),
            "steps": stepped[0][1],
        }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
