"""How long the month report's questions take on rollups of 10^9 requests, and in how much memory.

The month is generated, as it stands after compaction and after its minutes have gone: quarter hours and
days, 30 of them. Traffic is Zipf-distributed over sets of dimensions (1,200 operations of 40 APIs, consumers,
status, scopes). Usual: 10,000 sets; in each quarter hour the 1,000 busiest and 1,000 others at random have
calls. `--wide`: 450,000 sets (3,000 consumers), 4,000 busy and 8,000 others; it takes minutes to make.
Each question runs in a process of its own, as reports do; rating and rendering come on top.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa

from apicost.core import meter, records
from apicost.store import segments
from apicost.store.catalogue import DAY_S, QUARTER_S, Catalogue, Segment, add

MONTH = 1_793_491_200  # 2026-11-01T00:00:00Z
DAYS = 30
REQUESTS = 10**9
WIDE = "--wide" in sys.argv
GROUPS, BUSY, OTHERS = (450_000, 4_000, 8_000) if WIDE else (10_000, 1_000, 1_000)
OPERATIONS, APIS, CONSUMERS = 1_200, 40, 3_000 if WIDE else 60


def dimensions(rng):
    """Code of each group in each text column, and the columns' values."""
    operation = np.minimum(rng.zipf(1.3, GROUPS), OPERATIONS) - 1
    columns = {
        "node": (np.zeros(GROUPS, int), ["gw1"]),
        "api": (operation % APIS, [f"api-{i}" for i in range(APIS)]),
        "operation_id": (operation, [f"operationNumber{i}" for i in range(OPERATIONS)]),
        "method": (operation % 4, ["GET", "POST", "PUT", "DELETE"]),
        "path_template": (operation, [f"/v1/resources{i}/{{id}}" for i in range(OPERATIONS)]),
        "match_state": (np.zeros(GROUPS, int), ["matched"]),
        "route_id": (operation % 200, [f"route-{i}" for i in range(200)]),
        "service_id": (operation % APIS, [f"service-{i}" for i in range(APIS)]),
        "consumer": (rng.integers(0, CONSUMERS, GROUPS), [f"consumer-{i}" for i in range(CONSUMERS)]),
        "status_class": (rng.choice(3, GROUPS, p=[0.6, 0.3, 0.1]), ["2xx", "4xx", "5xx"]),
        "scope": (rng.choice(3, GROUPS), ["internet", "intra-zone", "inter-zone"]),
        "upstream_scope": (rng.choice(2, GROUPS), ["intra-zone", "inter-zone"]),
        "llm_model": (np.full(GROUPS, -1), []),
        "llm_prompt_class": (np.full(GROUPS, -1), []),
    }
    assert tuple(columns) == meter.TEXT_KEYS
    return {name: (codes.astype(np.int32), values) for name, (codes, values) in columns.items()}


def quarters_of_day(rng, day, share, keys):
    """One day's usage by quarter hour. `share`: the busy groups' weights."""
    group = np.concatenate(
        [np.concatenate((np.arange(BUSY), rng.choice(GROUPS - BUSY, OTHERS, replace=False) + BUSY)) for _ in range(96)]
    )
    start = np.repeat(day + QUARTER_S * np.arange(96), BUSY + OTHERS)
    others = np.ones(OTHERS)  # one or two calls each; the busy ones share what is left
    weight = REQUESTS / DAYS / 96 - 1.5 * OTHERS
    calls = rng.poisson(np.tile(np.concatenate((share * weight, others * 0.5)), 96)) + (group >= BUSY)
    keep = calls > 0
    group, start, calls = group[keep], start[keep], calls[keep].astype(np.int64)
    return table(start, group, calls, keys, rng)


def table(start, group, calls, keys, rng):
    """Usage of so many calls by time and group: bytes, packets and durations drawn for each row."""
    sums = dict.fromkeys(meter.SUMS, np.zeros(len(calls), np.int64))
    sums |= {"calls": calls, "attempts": calls, "duration_ms": calls * rng.integers(5, 500, len(calls))}
    for leg in records.LEGS:
        for way, size in (("in", 900), ("out", 14_000)):
            body = calls * rng.integers(size // 2, size * 2, len(calls))
            packets = body // 1_400 + 2 * calls
            sums |= {
                f"{leg}_{way}_app_bytes": body,
                f"{leg}_{way}_payload_bytes": body + 29 * calls,
                f"{leg}_{way}_wire_bytes": body + 29 * calls + 66 * packets,
                f"{leg}_{way}_packets": packets,
            }
    sums["exact_bytes"] = sum(sums[name] for name in segments.WIRE)
    texts = [records.text(codes[group], values) for codes, values in keys.values()]
    columns = [pa.array(start), *texts, *(pa.array(sums[name]) for name in meter.SUMS)]
    return pa.Table.from_arrays(columns, schema=records.schema(records.USAGE))


def generate(folder):
    """The ledger of the month; what it holds."""
    rng = np.random.default_rng(2026)
    keys = dimensions(rng)
    share = 1 / np.arange(1, BUSY + 1)
    share /= share.sum()
    made: list[Segment] = []
    with Catalogue.open(folder) as catalogue:
        for day in range(MONTH, MONTH + DAYS * DAY_S, DAY_S):
            quarters = meter.merge([quarters_of_day(rng, day, share, keys)])
            for grain_s in (QUARTER_S, DAY_S):
                rows = quarters if grain_s == QUARTER_S else meter.coarsen(quarters, bucket_s=DAY_S)
                # The order that compaction leaves: dictionaries are sorted, so codes sort as their values.
                order = [records.numbers(rows, "minute_unix_s")]
                order += [records.codes(rows, key)[0] for key in ("consumer", "api")]
                rows = rows.take(np.lexsort(order))
                name = f"{segments.day_folder(day)}/usage-{grain_s}-c000000001-1.parquet"
                made.append(segments.write(folder, name, "usage", day, rows, grain_s=grain_s))
        with catalogue.transaction() as change:
            add(change, made, MONTH)
    by_day = [s for s in made if s.grain_s == DAY_S]
    return {
        "requests": sum(s.calls for s in by_day),
        "quarter_rows": sum(s.row_count for s in made if s.grain_s == QUARTER_S),
        "day_rows": sum(s.row_count for s in by_day),
        "bytes_on_disk": sum(s.bytes for s in made),
    }


BERLIN = [MONTH - 3_600 + DAY_S * i for i in range(DAYS)]  # local midnights; the first day lies in October
BY_OPERATION = ("api", "operation_id", "method", "path_template", "match_state")
LOCAL_DAYS = tuple(range(MONTH, MONTH + (DAYS + 1) * DAY_S, DAY_S))
# The first is what the usual month's report asks; of a wide one that answer alone would be 8 million rows.
QUESTIONS = ({} if WIDE else {"days_by_all_keys": (LOCAL_DAYS, meter.TEXT_KEYS[1:])}) | {
    "month_by_all_keys": ((MONTH, MONTH + DAYS * DAY_S), meter.TEXT_KEYS),
    "month_by_operation_consumer_scope": (
        (MONTH, MONTH + DAYS * DAY_S),
        (*BY_OPERATION, "consumer", "scope", "upstream_scope"),
    ),
    "month_by_operation_and_scope": ((MONTH, MONTH + DAYS * DAY_S), (*BY_OPERATION, "scope", "upstream_scope")),
    "days_by_operation_and_scope": (
        LOCAL_DAYS,
        (*BY_OPERATION, "scope", "upstream_scope"),
    ),
    "days_by_api": (LOCAL_DAYS, ("api",)),
    "berlin_days_by_api": (tuple(BERLIN), ("api",)),
    "berlin_month_by_operation_and_scope": (
        (BERLIN[0], BERLIN[-1]),
        (*BY_OPERATION, "scope", "upstream_scope"),
    ),
}


def peak_mb():
    """This process's largest resident size; ru_maxrss would count its parent's at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def ask(folder, name):
    """One question in this process; its figures."""
    import resource

    from apicost.store.query import Ledger

    edges, by = QUESTIONS[name]
    began = time.monotonic()
    with Ledger.open(folder) as ledger:
        found = ledger.usage(edges, by=by)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": found.num_rows,
        "calls": sum(found.column("calls").to_pylist()),
        "wall_s": round(time.monotonic() - began, 2),
        "process_cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": peak_mb(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ledger", type=Path, help="use this ledger, made by an earlier run; made where missing")
    parser.add_argument("--wide", action="store_true", help="450,000 sets of dimensions")
    parser.add_argument("--ask", choices=QUESTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(ask(options.ledger, options.ask)))
        return
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        folder = options.ledger or Path(scratch) / "ledger"
        figures = {"bench": "month_report_usage", "sets_of_dimensions": GROUPS}
        if not folder.exists():
            began = time.process_time()
            figures |= generate(folder)
            figures["generating_cpu_s"] = round(time.process_time() - began)
        for name in QUESTIONS:
            command = [sys.executable, __file__, "--ledger", str(folder), "--ask", name, *(["--wide"] if WIDE else [])]
            figures[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
