"""Usage tables of a month for tests: made from a seed, shaped as the ledger gives them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.rating.period import Period

_SUMS = [column.name for column in records.USAGE_SUMS]
_KEYS = [column.name for column in records.USAGE_KEYS if column.type == records.TEXT]


def usage(rows: list[dict]) -> pa.Table:
    """A USAGE table of rows that name only what matters; the rest is null or 0."""
    columns = {"minute_unix_s": pa.array([row["minute_unix_s"] for row in rows], pa.int64())}
    for name in _KEYS:
        columns[name] = pa.array([row.get(name) for row in rows], pa.string()).dictionary_encode()
    for name in _SUMS:
        columns[name] = pa.array([row.get(name, 0) for row in rows], pa.int64())
    for row in rows:
        unknown = set(row) - {"minute_unix_s", *_KEYS, *_SUMS}
        assert not unknown, f"no such usage columns: {unknown}"
    wanted = records.schema(records.USAGE)
    return pa.table([columns[f.name].cast(f.type) for f in wanted], schema=wanted)


# (api, operation, method, template, match state, share of the calls, bytes out per call)
OPERATIONS = [
    ("shop", "listOrders", "GET", "/v1/orders", "matched", 40, 18_000),
    ("shop", "getOrder", "GET", "/v1/orders/{id}", "matched", 90, 2_400),
    ("shop", "createOrder", "POST", "/v1/orders", "matched", 12, 900),
    ("shop", "uploadImage", "PUT", "/v1/images/{id}", "matched", 2, 700),
    ("shop", None, "GET", None, "undocumented-path", 3, 1_100),
    ("billing", "getInvoice", "GET", "/invoices/{id}", "matched", 20, 240_000),
    ("billing", "listInvoices", "GET", "/invoices", "matched", 9, 31_000),
    ("billing", None, "DELETE", None, "undocumented-method", 1, 300),
    ("chat", "complete", "POST", "/chat/completions", "matched", 6, 5_200),
    (None, None, "GET", None, "unknown-host", 2, 500),
    (None, None, None, None, "unattributed", 0, 60_000),
    (None, None, None, None, "control", 0, 9_000),
]
# (consumer, share of the calls, scope of its network)
CONSUMERS = [
    ("acme", 6, "internet"),
    ("partner-x", 3, "internal"),
    ("mobile-app", 9, "internet"),
    (None, 1, "unknown"),
]
STATUSES = [("2xx", 90, None), ("4xx", 7, ("getOrder", "createOrder")), ("5xx", 3, ("complete",))]


def month(period: Period, seed: int = 1, scale: int = 40, step_s: int = 21_600) -> pa.Table:
    """A month of an ordinary gateway: three APIs, four consumers, weekends quieter, bytes as wire bytes."""
    random = np.random.default_rng(seed)
    rows = []
    for start in range(period.start_unix_s, period.end_unix_s, step_s):
        quiet = 2 if (start // 86_400 + 4) % 7 in (0, 6) else 5
        for api, operation, method, template, state, weight, out_bytes in OPERATIONS:
            if not weight:
                total = int(random.integers(out_bytes, 3 * out_bytes)) * quiet
                leg = "upstream" if state == "control" else "downstream"
                rows.append(
                    {
                        "minute_unix_s": start,
                        "match_state": state,
                        "scope": "internet" if leg == "downstream" else None,
                        "upstream_scope": "internal" if leg == "upstream" else None,
                        f"{leg}_in_wire_bytes": total // 3,
                        f"{leg}_out_wire_bytes": total,
                        f"{leg}_overhead_bytes": total // 10,
                        "unattributed_bytes": total + total // 3,
                    }
                )
                continue
            for consumer, consumer_weight, scope in CONSUMERS:
                for status, status_weight, only in STATUSES:
                    mean = weight * consumer_weight * status_weight * quiet * scale / 9_000
                    calls = int(random.poisson(mean))
                    if calls and (only is None or operation in only):
                        rows.append(
                            _requests(random, start, calls, out_bytes, api, operation, method, template, state)
                            | {"consumer": consumer, "status_class": status, "scope": scope}
                        )
    return usage(rows)


def _requests(random, start, calls, out_bytes, api, operation, method, template, state) -> dict:
    out_app = calls * out_bytes + int(random.integers(0, out_bytes))
    in_app = calls * (90_000 if operation == "uploadImage" else 480)
    down_in, down_out = in_app * 11 // 10 + 54 * calls, out_app * 21 // 20 + 120 * calls
    legs = down_in + down_out
    rejected = state == "unknown-host"
    return {
        "minute_unix_s": start,
        "node": "gw-1" if random.random() < 0.6 else "gw-2",
        "api": api,
        "operation_id": operation,
        "method": method,
        "path_template": template,
        "match_state": state,
        "route_id": api and f"r-{api}",
        "service_id": api and f"s-{api}",
        "upstream_scope": None if rejected else "internal",
        "calls": calls,
        "attempts": 0 if rejected else calls,
        "downstream_in_wire_bytes": down_in,
        "downstream_out_wire_bytes": down_out,
        "downstream_in_app_bytes": in_app,
        "downstream_out_app_bytes": out_app,
        "downstream_in_payload_bytes": in_app + 22 * calls,
        "downstream_out_payload_bytes": out_app + 22 * calls,
        "downstream_resent_bytes": out_app // 400,
        "downstream_overhead_bytes": 120 * calls,
        "upstream_in_wire_bytes": 0 if rejected else down_out,
        "upstream_out_wire_bytes": 0 if rejected else down_in,
        "upstream_in_payload_bytes": 0 if rejected else out_app,
        "upstream_out_payload_bytes": 0 if rejected else in_app,
        "upstream_in_app_bytes": 0 if rejected else out_app,
        "upstream_out_app_bytes": 0 if rejected else in_app,
        "exact_bytes": legs if rejected else legs + legs * 9 // 10,
        "aligned_bytes": 0 if rejected else legs - legs * 9 // 10,
        "duration_ms": calls * 23,
        **{name: calls * -(-(out_app + in_app) // (calls * size)) for size, name in records.QUANTA.items()},
    }
