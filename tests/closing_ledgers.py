"""Small ledgers and price books for tests of closing: months of 2026 by the clocks of Berlin."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from pathlib import Path

from apicost.commands import _closing, _months
from apicost.core.rating import period
from apicost.core.rating.corrections import TERMS
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.usage_rows import KEYS
from apicost.report.focus.settings import FocusSettings
from apicost.store.closed import ClosedMonth
from apicost.store.lake import Lake
from apicost.store.query import Ledger
from tests.usage_months import usage

ZONE = "Europe/Berlin"
MONTHS = {name: period.month(name, ZONE) for name in ("2026-06", "2026-07", "2026-08", "2026-09")}
LATER = 1_800_000_000  # 2027-01-15: each of them has ended
COSTS = ("list_cost", "contracted_cost", "billed_cost")

BOOK = """
pricebook: {{id: law, version: "{version}", currency: EUR, calendar: {{time_zone: Europe/Berlin}}}}
scopes: {{internet: {{peers: ["0.0.0.0/0"]}}}}
skus:
  call:
    meter: calls
    unit: 1000 Requests
    free: {{quantity: "0.2", share: pro_rata}}
    prices:
      - {{from: 2026-01-01, to: 2026-07-10, mode: flat, price: "{price}"}}
      - {{from: 2026-07-10, mode: graduated, tiers: [{{up_to: "1", price: "{tier}"}}, {{up_to: null, price: "0.333"}}]}}
  egress:
    meter: bytes
    where: {{direction: egress, scope: internet}}
    unit: GiB
    currency: USD
    prices:
      - {{from: 2026-01-01, mode: graduated, tiers: [{{up_to: "1", price: "0.09"}}, {{up_to: null, price: "0.07"}}]}}
fx:
  - {{from: USD, to: EUR, period: 2026-06, rate: "0.86421", locked: {locked}}}
  - {{from: USD, to: EUR, period: 2026-07, rate: "{rate}", locked: true}}
  - {{from: USD, to: EUR, period: 2026-08, rate: "0.8642", locked: true}}
  - {{from: USD, to: EUR, period: 2026-09, rate: "0.8642", locked: true}}
overrides:
  - {{match: {{consumer: c}}, sku: call, kind: contracted, discount_pct: "{discount}", from: 2026-06-05}}
  - {{match: {{consumer: c}}, kind: commitment, minimum: "{minimum}"}}
tags: [{{match: {{api: a}}, set: {{team: {team}}}}}]
shared_costs:
  - {{id: node, amount: "{shared}", period: monthly, weights: {{calls: "0.3", bytes: "0.7"}},
     idle: {{keep_unallocated: "0.1"}}}}
"""
FIRST = {
    "version": "1", "price": "0.37", "tier": "1.01", "rate": "0.9", "locked": "true", "discount": "20",
    "minimum": "0.50", "team": "t1", "shared": "31.01",
}  # fmt: skip


def write_book(path: Path, **changed: str) -> Path:
    """A price book file, some of FIRST changed."""
    path.write_text(BOOK.format(**(FIRST | changed)))
    return path


def row(month: str, day: int = 0, **what) -> dict:
    """A usage row of a day of a month, from 0."""
    given = {"match_state": "matched", "api": "a", "scope": "internet", "calls": 1}
    return given | {"minute_unix_s": MONTHS[month].starts[day] + 3_600} | what


def add(folder: Path, name: str, rows: list[dict]) -> None:
    """Put usage rows into a ledger; made where there is none."""
    with Lake.open(folder) as lake:
        if rows:
            lake.commit([name], {"usage": usage(rows)})


def close(folder: Path, month: str, book: PriceBook, **apis) -> ClosedMonth:
    with Ledger.open(folder) as ledger:
        return _closing.close(ledger, month, book, apis, FocusSettings(), now_unix_s=LATER)


def bill(folder: Path, month: Period, book: PriceBook | None):
    with Ledger.open(folder) as ledger:
        return _months.bill_of(ledger, month, _months.Sources(ledger=folder, book=book, apis={}))


def by_identity(tables):
    """The sums of charges by identity: quantity and costs, exactly; identities of nothing are left out."""
    sums = defaultdict(lambda: [Fraction()] * 4)
    for charge in (charge for table in tables for charge in table.to_pylist()):
        numbers = [Fraction(charge[name] or 0) for name in ("quantity", *COSTS)]
        identity = tuple(charge[name] for name in (*KEYS, *TERMS))
        sums[identity] = [a + b for a, b in zip(sums[identity], numbers, strict=True)]
    return {identity: numbers for identity, numbers in sums.items() if any(numbers)}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
