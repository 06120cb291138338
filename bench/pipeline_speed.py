"""Exchanges a second of CPU time through correlate + match + meter, on recorded batches.

    python bench/pipeline_speed.py [--data DIR] [--case NAME ...] [--copies N] [--repeat R]

DIR holds one folder for each recorded case (default: the excerpt in tests/data/join); each is copied N times side by
side. `at_once` is one step over all, as `apicost replay` does; `in_steps` feeds it by time in steps of 2 s as the
daemon does, the carry going through its tables each time. One thread. Prints one JSON object, the best of R runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from join_accuracy import SETTINGS
from join_recorded import EXCERPT, Recorded, cases, load
from join_speed import copies, pieces

from apicost.catalog import openapi
from apicost.core import meter, records
from apicost.core.join.correlate import Carry, correlate
from apicost.core.naming import match
from apicost.core.scopes import Scopes

# The recorded requests ask for /p/... and a few others; the document has two of them.
DOCUMENT = """openapi: 3.1.0
info: {title: Recorded, version: "1"}
servers: [{url: /}]
paths:
  /p/{name}: {get: {operationId: get}, post: {operationId: post}}
  /ws: {get: {operationId: socket}}
"""
SCOPES = Scopes([("near", ["127.0.0.0/8"]), ("internet", ["0.0.0.0/0", "::/0"])])


class Stages:
    """The three stages over pieces of a recording, with the CPU seconds of each."""

    def __init__(self, case: Recorded, index: match.Index) -> None:
        self.case = case
        self.index = index
        self.seconds = {"correlate": 0.0, "match": 0.0, "meter": 0.0}
        self.rows = 0

    def run(self, carry: Carry, flows: pa.Table, lines: pa.Table, now_mono_ns: int, final: bool) -> Carry:
        clock = [time.process_time()]
        step = correlate(
            carry, flows, lines, clock=self.case.clock, now_mono_ns=now_mono_ns, settings=SETTINGS, final=final
        )
        clock.append(time.process_time())
        named = match.name_exchanges(step.exchanges, self.index, node="gw-1")
        clock.append(time.process_time())
        meter.meter(named, SCOPES)
        clock.append(time.process_time())
        for name, begun, ended in zip(self.seconds, clock, clock[1:], strict=False):
            self.seconds[name] += ended - begun
        self.rows += int((records.numbers(named, "kind") == records.RowKind.EXCHANGE).sum())
        return Carry.from_tables(step.carry.to_tables())


def measured(case: Recorded, index: match.Index, in_steps: bool) -> dict[str, Any]:
    """One run: exchanges per CPU second in all, and the share of each stage."""
    stages = Stages(case, index)
    carry = Carry.empty()
    if in_steps:
        now = 0
        for flows, lines, now in pieces(case):
            carry = stages.run(carry, flows, lines, now, final=False)
        stages.run(carry, case.flows[:0], case.lines[:0], now, final=True)
    else:
        stages.run(carry, case.flows, case.lines, 0, final=True)
    assert stages.rows == len(case.lines), f"{stages.rows} exchanges of {len(case.lines)} lines"
    whole = sum(stages.seconds.values())
    shares = {name: round(seconds / whole, 2) for name, seconds in stages.seconds.items()}
    return {"per_cpu_s": round(stages.rows / whole), "shares": shares}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=EXCERPT)
    parser.add_argument("--case", action="append")
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "recorded.yaml"
        document.write_text(DOCUMENT)
        index = openapi.load_apis([openapi.Source(id="recorded", documents=(document,))]).index
    found: dict[str, Any] = {}
    for name in options.case or cases(options.data):
        case = copies(load(options.data / name), options.copies)
        found[name] = {
            "exchanges": len(case.lines),
            **{
                way: max((measured(case, index, way == "in_steps") for _ in range(options.repeat)), key=_speed)
                for way in ("at_once", "in_steps")
            },
        }
    print(json.dumps(found, indent=1))
    return 0


def _speed(run: dict[str, Any]) -> int:
    return int(run["per_cpu_s"])


if __name__ == "__main__":
    sys.exit(main())
