"""How good the forecast to month end is: generated months, forecast at every fifth day, held against their ends.

Each course of traffic is 61 days (a month before and the month) of requests and bytes: a level, weekdays, day-to-day
scatter, and on top what its kind says. The share of ends inside the 80 % interval is the coverage, the median of
|forecast - end| / end the error. Cost is rated with a book of a free allowance, tiers and a shared cost.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from apicost.catalog import prices
from apicost.core.rating import period, rate
from apicost.core.rating.usage_rows import gather
from apicost.report.month.forecast import DayQuantity, forecast
from tests.usage_months import usage

BOOK = prices.parse(
    """
pricebook: {id: bench, version: "1", currency: EUR, calendar: {time_zone: Europe/Berlin}}
scopes: {internet: {peers: ["0.0.0.0/0"]}}
skus:
  call:
    meter: calls
    unit: 1000 Requests
    prices:
      - from: 2026-01-01
        mode: graduated
        tiers: [{up_to: "20000", price: "0.001"}, {up_to: null, price: "0.0009"}]
  egress:
    meter: bytes
    where: {direction: egress, scope: internet}
    unit: GB
    free: {quantity: "100", share: pro_rata}
    prices:
      - from: 2026-01-01
        mode: graduated
        tiers: [{up_to: "1024", price: "0.09"}, {up_to: null, price: "0.085"}]
shared_costs:
  - {id: nodes, amount: "50.00", period: monthly, weights: {calls: "1"}, idle: {keep_unallocated: "0.30"}}
"""
)
MONTH, BEFORE = (period.month(name, "Europe/Berlin") for name in ("2026-10", "2026-09"))
# kind -> (scatter of a day, growth over the 61 days, daily random walk of the level, what else happens)
KINDS = {
    "steady": (0.03, 0.0, 0.0, ""),
    "scattered": (0.15, 0.0, 0.0, ""),
    "growing": (0.05, 0.5, 0.0, ""),
    "wandering": (0.05, 0.0, 0.03, ""),
    "with a holiday": (0.05, 0.0, 0.0, "holiday"),
    "with a jump": (0.05, 0.0, 0.0, "jump"),
}
ORIGINS = (3, 8, 13, 18, 23, 28)


def course(rng, kind):
    """Requests of 61 days."""
    scatter, growth, walk, event = KINDS[kind]
    days = [BEFORE.days[0] + timedelta(days=n) for n in range(len(BEFORE.days) + len(MONTH.days))]
    weekend = rng.uniform(0.2, 1.1)
    level = rng.uniform(2e5, 3e6) * np.exp(np.cumsum(rng.normal(0, walk, len(days))) if walk else np.zeros(len(days)))
    level = level * np.linspace(1, 1 + growth, len(days))
    index = np.array([weekend if day.weekday() >= 5 else 1.0 for day in days])
    if event == "holiday":
        index[len(BEFORE.days) + rng.integers(0, len(MONTH.days))] = weekend / 2
    if event == "jump":
        index[len(BEFORE.days) + rng.integers(0, len(MONTH.days)) :] *= rng.uniform(0.7, 1.5)
    return days, np.maximum(rng.normal(level * index, scatter * level * index), 0).astype(np.int64)


def rated(days, calls, size, complete):
    """Statement, usage by day and day quantities of the month, its first so many days alone."""
    rows = [
        {
            "minute_unix_s": MONTH.starts[at], "api": "a", "scope": "internet", "match_state": "matched",
            "calls": int(calls[len(BEFORE.days) + at]),
            "downstream_out_wire_bytes": int(calls[len(BEFORE.days) + at] * size),
        }
        for at in range(complete)
    ]  # fmt: skip
    table = usage(rows)
    return rate.rate(table, BOOK, MONTH), gather(table, MONTH)


def main():
    rng = np.random.default_rng(7)  # the method was chosen on other courses than these
    courses = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    figures = {
        "bench": "forecast_backtest",
        "cpus": os.cpu_count(),
        "courses_of_each_kind": courses,
        "coverage_pct": 80,
    }
    every = []
    for kind in KINDS:
        errors, inside, widths = [], [], []
        for _ in range(courses):
            days, calls = course(rng, kind)
            size = int(rng.integers(2_000, 60_000))
            end = rated(days, calls, size, len(MONTH.days))[0].total_minor
            quantities = [
                DayQuantity(day=day, calls=int(n), wire_bytes=int(n) * size) for day, n in zip(days, calls, strict=True)
            ]
            past, here = quantities[: len(BEFORE.days)], quantities[len(BEFORE.days) :]
            for complete in ORIGINS:
                statement, daily = rated(days, calls, size, complete)
                found = forecast(statement, daily, here, past, complete)
                errors.append(abs(found.point_minor - end) / end)
                inside.append(found.low_minor <= end <= found.high_minor)
                widths.append((found.high_minor - found.low_minor) / end)
                every.append((complete, errors[-1], inside[-1]))
        figures[kind] = {
            "inside_pct": round(100 * sum(inside) / len(inside)), "median_error_pct": round(100 * median(errors), 2),
            "median_width_pct": round(100 * median(widths), 1),
        }  # fmt: skip
    for complete in ORIGINS:
        mine = [(error, ok) for at, error, ok in every if at == complete]
        figures[f"all kinds, after {complete} days"] = {
            "inside_pct": round(100 * sum(ok for _, ok in mine) / len(mine)),
            "median_error_pct": round(100 * median(error for error, _ in mine), 2),
        }
    figures["all"] = {
        "forecasts": len(every), "inside_pct": round(100 * sum(ok for _, _, ok in every) / len(every)),
        "median_error_pct": round(100 * median(error for _, error, _ in every), 2),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
