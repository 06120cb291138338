"""Months with every kind of charge that a FOCUS file can have, for its tests and for validators."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from apicost.catalog import prices
from apicost.core import records
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.statement import CHARGE, Statement
from apicost.report import csvfile
from apicost.report.export import ApiInfo
from apicost.report.focus import columns, rows
from tests import usage_months

BOOK = """
pricebook: {id: acme, version: '%(version)s', currency: EUR, calendar: {time_zone: Europe/Berlin}}
fx:
  - {from: USD, to: EUR, period: 2026-09, rate: "0.8511", locked: true}
  - {from: USD, to: EUR, period: 2026-10, rate: "0.8642", locked: true}
scopes: {internal: {peers: ["10.0.0.0/8"]}, internet: {peers: ["0.0.0.0/0"]}}
skus:
  call: {meter: calls, unit: Requests, where: {api: shop}, prices: [
    {from: 2026-01-01, to: 2026-10-12, mode: flat, price: "%(price)s"},
    {from: 2026-10-12, mode: graduated,
     tiers: [{up_to: "2000", price: "0.000013"}, {up_to: null, price: "0.0000119"}]}]}
  call-billing: {meter: calls, unit: 1000 Requests, where: {api: billing}, free: {quantity: "0.5", share: pro_rata},
    prices: [{from: 2026-01-01, mode: volume, currency: USD, tiers: [
      {up_to: "0.1", price: "0.01"}, {up_to: null, price: "0.0091"}]}]}
  call-chat: {meter: calls, unit: Requests, where: {api: chat}, free: {quantity: "10", share: pro_rata},
    prices: [{from: 2026-01-01, mode: package, size: "250", price: "1.90", pool: consumer}]}
  egress: {meter: bytes, where: {direction: egress, scope: internet}, unit: GB, free: {quantity: "0.01",
    share: pro_rata}, prices: [{from: 2026-01-01, mode: graduated, currency: USD, tiers: [
      {up_to: "0.05", price: "0.09"}, {up_to: null, price: "0.085"}]}]}
  inside: {meter: bytes, where: {leg: upstream, scope: internal}, both_directions: true, unit: GiB,
    prices: [{from: 2026-01-01, mode: flat, price: "0.01"}]}
shared_costs:
  - {id: nodes, amount: "812.40", period: monthly, method: gw-by-weight-v1, weights: {calls: "0.5", bytes: "0.5"},
     idle: {keep_unallocated: "0.30"}, fallback_when_zero: unallocated}
overrides:
  - {match: {consumer: partner-x}, sku: [call, egress], from: 2026-07-01, kind: contracted, discount_pct: "17.5"}
  - {match: {consumer: acme}, sku: call-chat, kind: contracted, price: "1.45"}
  - {match: {consumer: partner-x}, kind: commitment, minimum: "500.00"}
tags:
  - {match: {consumer: partner-x}, set: {team: partners, cost_center: "4711"}}
"""

APIS: Mapping[str, ApiInfo] = {
    "shop": ApiInfo(title="Shop", owner="ann@acme.example", team="shop", tags={"env": "prod", "tier": "gold, 1"}),
    "billing": ApiInfo(title="Billing", team="finance", tags={'say "hi"': "ja\tso"}),
}
OCTOBER = period.month("2026-10", "Europe/Berlin")


def statement(month: str = "2026-10", *, version: str = "1", price: str = "0.000015", seed: int = 1) -> Statement:
    """A month of the usual gateway, some of which has no price."""
    when = period.month(month, "Europe/Berlin")
    book = prices.parse(BOOK % {"version": version, "price": price})
    return rate.rate(usage_months.month(when, seed, scale=10, step_s=86_400), book, when)


def corrections(old: Statement, new: Statement, billing_month: str) -> pa.Table:
    """Old charges back, new ones instead: those of calls, some of a share and a package, and what has no price."""
    rows = []
    for found, sign in ((old, "-"), (new, "")):
        charges = found.charges
        texts = [charges.column(name).cast(pa.string()) for name in ("sku", "tier")]
        picked = pc.or_(pc.equal(texts[0], "call"), pc.is_in(texts[1], pa.array(["package", "share by calls", "free"])))
        picked = pc.or_(pc.fill_null(picked, False), pc.is_null(texts[0]))  # what has no SKU has no price
        for row in charges.filter(picked).to_pylist():
            for name in ("quantity", "list_cost", "contracted_cost", "billed_cost"):
                if sign and row[name] is not None and float(row[name]):
                    row[name] = sign + row[name]
            rows.append(row | {"charge_class": "Correction", "billing_month": billing_month})
    wanted = records.schema(CHARGE)
    columns = [pa.array([row[f.name] for row in rows], pa.string()).cast(f.type) for f in wanted]
    return pa.table(columns, schema=wanted)


def bill() -> Bill:
    """October with tiers, volumes, packages, contracts, a commitment, dollars, shared and idle cost, what has no price,
    and corrections of September, whose flat price was wrong."""
    september = [statement("2026-09", price=price, version=v) for price, v in (("0.00002", "0"), ("0.000015", "1"))]
    return Bill(statement=statement(), corrections=corrections(*september, "2026-10"))


def sample() -> Bill:
    """An ordinary month of three APIs with the sample price book."""
    book = prices.load(Path(__file__).parents[2] / "specs/prices.yaml")
    when = period.month("2026-10", book.time_zone)
    return Bill(statement=rate.rate(usage_months.month(when, 7, scale=300, step_s=43_200), book, when))


def write(folder: Path) -> list[Path]:
    """The sample month and the month of every kind as CSV, in both versions."""
    files = []
    for name, made in (("sample", sample()), ("every-kind", bill())):
        for version in columns.VERSIONS:
            files.append(folder / f"focus-{version}-{name}.csv")
            csvfile.write(files[-1], rows.columns(version), rows.pieces(made, APIS, version))
    return files


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    for file in write(Path(sys.argv[1])):
        print(file)
