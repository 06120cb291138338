"""CPU time of one judgement of 100,000 shapes: traffic that keeps to its documents, and traffic that keeps to none."""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.conformance.finding import Settings
from apicost.core.conformance.judge import judge
from tests.core.conformance_traffic import JSON, contract, contracts

OPERATIONS = 400


def picked(values, codes):
    """A TEXT column from codes."""
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    of_code = np.array([-1 if value is None else distinct.index(value) for value in values], np.int32)
    return records.text(of_code[codes], distinct)


def table(rows, hostile, operations):
    """Shapes. hostile: a third of the paths undocumented, many query names, undocumented statuses and media types."""
    rng = np.random.default_rng(1)
    operation = rng.integers(0, len(operations), rows)
    unmatched = rng.random(rows) < (0.3 if hostile else 0.0)
    columns = {}
    for column in records.SHAPE:
        if column.type == records.TEXT:
            columns[column.name] = pa.nulls(rows, pa.string()).dictionary_encode().cast(records.TEXT)
        else:
            columns[column.name] = pa.array(rng.integers(1, 1000, rows)).cast(column.type)
    known = np.where(unmatched, len(operations), operation)
    paths = [f"/v1/shadow{n}/{{int}}" for n in range(20_000)]
    hidden = np.where(unmatched, rng.integers(0, len(paths), rows), len(paths))
    if hostile:
        names = [",".join(sorted({f"q{k}" for k in rng.integers(0, 300, 3)})) for _ in range(20_000)]
        statuses, types, classes = ["200", "404", "418"], [JSON, "text/html"], [2, 9]
    else:
        names, statuses, types, classes = ["limit", "limit,page"], ["200", "404"], [JSON], [4, 5]
    sizes = rng.integers(100, 100_000, rows)
    columns |= {
        "api": picked(["shop"], np.zeros(rows, np.int64)),
        "host": picked(["shop.example"], np.zeros(rows, np.int64)),
        "response_source": picked(["upstream"], np.zeros(rows, np.int64)),
        "status_class": picked(["2xx"], np.zeros(rows, np.int64)),
        "operation_id": picked([*(o.operation_id for o in operations), None], known),
        "path_template": picked([*(o.path_template for o in operations), None], known),
        "method": picked([o.method for o in operations], operation),
        "path": records.text(np.where(unmatched, hidden, -1), paths),
        "match_state": picked(["matched", "undocumented-path"], unmatched.astype(np.int64)),
        "status": picked(statuses, rng.integers(0, len(statuses), rows)),
        "query_names": picked(names, rng.integers(0, len(names), rows)),
        "response_content_type": picked(types, rng.integers(0, len(types), rows)),
        "size_class": picked([f"{k:02}" for k in range(10)], rng.integers(*classes, rows)),
        "consumer": picked([f"c{k}" for k in range(200)], rng.integers(0, 200, rows)),
        "least_out_app_bytes": pa.array(sizes),
        "most_out_app_bytes": pa.array(sizes),
    }
    return pa.table([columns[c.name] for c in records.SHAPE], schema=records.schema(records.SHAPE))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    operations = [
        contract(f"{method} /r{n}/{{id}}", responses=(("200", JSON), ("404", JSON)), query=("page", "limit!"))
        for n in range(OPERATIONS // 2)
        for method in ("GET", "POST")
    ]
    held = contracts(*operations)
    figures = {"bench": "judge_speed", "shapes": rows, "operations": OPERATIONS}
    for kind, hostile in (("conforming", False), ("hostile", True)):
        shapes = table(rows, hostile, operations)
        took = []
        for _ in range(3):
            began = time.process_time()
            found = judge(shapes, held, Settings(), window_days=7)
            took.append(time.process_time() - began)
        figures[f"{kind}_cpu_s"] = round(min(took), 2)
        figures[f"{kind}_findings"] = len(found.findings)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
