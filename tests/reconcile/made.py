"""Months and bills for tests of the bridge: a price book, usage by hand, bill lines as dictionaries."""

from __future__ import annotations

import csv
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq

from apicost.catalog import bill_rules, bills, prices
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.reconcile.bridge import bridge
from apicost.core.reconcile.metered import edge_quantities, metered
from tests.usage_months import usage

GB = 10**9
BERLIN = period.month("2026-11", "Europe/Berlin")
UTC = period.month("2026-11", "UTC")
HEAD = "pricebook: {{id: t, version: '1', currency: {currency}, calendar: {{time_zone: {zone}}}}}\n"
SCOPES = """scopes:
  inter-zone: {peers: ["10.0.0.0/8"]}
  internet: {peers: ["0.0.0.0/0"]}
"""
SKUS = """skus:
  net: {meter: bytes, unit: GB, where: {direction: egress, scope: internet}, prices: [{from: 2026-01-01, mode: flat,
    price: "0.09"}]}
  zone: {meter: bytes, unit: GB, where: {direction: egress, scope: inter-zone}, prices: [{from: 2026-01-01, mode: flat,
    price: "0.01"}]}
  call: {meter: calls, unit: 1000 Requests, prices: [{from: 2026-01-01, mode: flat, price: "0.001"}]}
"""
RULES = """groups: {egress: [net, zone]}
rules:
  - {match: {ResourceId: "other-*"}, sku: net, other_hosts: true}
  - {match: {SkuId: "OUT"}, sku: net}
  - {match: {SkuId: "REGIONAL"}, sku: zone}
  - {match: {SkuId: "REQUESTS"}, sku: call}
  - {match: {ServiceName: Storage}, ignore: no traffic}
"""


def book(skus=SKUS, more="", *, currency="EUR", zone="UTC"):
    return prices.parse(HEAD.format(currency=currency, zone=zone) + SCOPES + skus + more)


def used(net=0, zone=0, calls=0, *, month=UTC, start=None, **more):
    """Usage rows: so many bytes to each scope, and calls."""
    at = month.start_unix_s + 3600 if start is None else start
    rows = [{"minute_unix_s": at, "scope": "internet", "downstream_out_wire_bytes": net, "calls": calls, **more}]
    if zone:
        rows.append({"minute_unix_s": at, "scope": "inter-zone", "downstream_out_wire_bytes": zone, **more})
    return rows


def focus(sku="OUT", quantity="0", price="0.09", cost=None, **more):
    """A line of FOCUS in November, in EUR; the cost is quantity x price where none is given."""
    exact = Fraction(quantity) * Fraction(price or 0) if cost is None else Fraction(cost)
    unit = {"REQUESTS": "1000 Requests"}.get(sku, "GB")
    return {
        "BilledCost": decimal(exact), "BillingCurrency": "EUR", "ChargePeriodStart": "2026-11-05T00:00:00Z",
        "ChargePeriodEnd": "2026-11-05T01:00:00Z", "BillingPeriodStart": "2026-11-01T00:00:00Z",
        "BillingPeriodEnd": "2026-12-01T00:00:00Z", "ChargeCategory": "Usage", "ChargeClass": "", "SkuId": sku,
        "PricingQuantity": str(quantity), "PricingUnit": unit, "ContractedUnitPrice": price or "",
        "ServiceName": "Network", "ResourceId": "gateway-1", **more,
    }  # fmt: skip


def cur(usage_type="DataTransfer-Out-Bytes", quantity="0", price="0.09", cost=None, number=[0], **more):  # noqa: B006
    """A line of a Cost and Usage Report with the newer names, in USD."""
    number[0] += 1
    exact = Fraction(quantity) * Fraction(price or 0) if cost is None else Fraction(cost)
    return {
        "identity_line_item_id": f"line-{number[0]}", "identity_time_interval": "2026-11-05T00:00:00Z/2026-11-05T01:00",
        "bill_billing_period_start_date": "2026-11-01T00:00:00.000Z",
        "bill_billing_period_end_date": "2026-12-01T00:00:00.000Z", "line_item_line_item_type": "Usage",
        "line_item_usage_start_date": "2026-11-05T00:00:00.000Z",
        "line_item_usage_end_date": "2026-11-05T01:00:00.000Z",
        "line_item_product_code": "AWSDataTransfer", "line_item_usage_type": f"EUC1-{usage_type}",
        "line_item_resource_id": "i-gateway", "line_item_usage_amount": str(quantity), "line_item_currency_code": "USD",
        "line_item_unblended_rate": price or "", "line_item_unblended_cost": decimal(exact), "pricing_unit": "GB",
        **more,
    }  # fmt: skip


OLDER = {
    "identity_line_item_id": "identity/LineItemId", "identity_time_interval": "identity/TimeInterval",
    "bill_billing_period_start_date": "bill/BillingPeriodStartDate",
    "bill_billing_period_end_date": "bill/BillingPeriodEndDate", "line_item_line_item_type": "lineItem/LineItemType",
    "line_item_usage_start_date": "lineItem/UsageStartDate", "line_item_usage_end_date": "lineItem/UsageEndDate",
    "line_item_product_code": "lineItem/ProductCode", "line_item_usage_type": "lineItem/UsageType",
    "line_item_resource_id": "lineItem/ResourceId", "line_item_usage_amount": "lineItem/UsageAmount",
    "line_item_currency_code": "lineItem/CurrencyCode", "line_item_unblended_rate": "lineItem/UnblendedRate",
    "line_item_unblended_cost": "lineItem/UnblendedCost", "pricing_unit": "pricing/unit",
}  # fmt: skip


def decimal(amount):
    """All digits of a fraction that is a decimal."""
    whole = amount * 10**30
    assert whole.denominator == 1, amount
    digits = str(abs(int(whole))).rjust(31, "0")
    return ("-" if amount < 0 else "") + digits[:-30] + "." + (digits[-30:].rstrip("0") or "0")


def write_csv(path, lines, names=None):
    """A CSV file of lines; gzipped by the caller."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    names = names or {}
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([names.get(name, name) for name in columns])
        writer.writerows([line.get(name, "") for name in columns] for line in lines)
    return path


def write_parquet(path, lines):
    pq.write_table(pa.Table.from_pylist(lines), path)
    return path


def read(folder, lines, rules=RULES, of=None, month=UTC):
    path = write_csv(folder / "bill.csv", lines)
    return bills.read([path], bill_rules.parse(rules, of or book()), month)


def compare(folder, rows, lines, *, rules=RULES, of=None, month=UTC, edges=(), corrections=None):
    """The bridge of usage rows and bill lines; edges: (usage rows, sign)."""
    of = of or book()
    read_rules = bill_rules.parse(rules, of)
    path = write_csv(folder / "bill.csv", lines)
    theirs = bills.read([path], read_rules, month)
    statement = rate.rate(usage(rows), of, month)
    ours = Bill(statement=statement) if corrections is None else Bill(statement=statement, corrections=corrections)
    edge = edge_quantities(of, [(usage(more), sign) for more, sign in edges])
    paid = read_rules.paid.get(theirs.currency)
    return bridge(
        metered(ours, edge), theirs.currency, theirs.lines, named=read_rules.named, groups=read_rules.groups,
        paid_rate=None if paid is None else Fraction(paid),
    )  # fmt: skip


def causes(found):
    """Cause -> its amount, of those that have one."""
    out = {}
    for row in found.rows:
        out[row.cause] = out.get(row.cause, Fraction()) + row.amount
    return {cause: amount for cause, amount in out.items() if amount}


def holds(found):
    """The law: in money the rows sum to the difference, and SKU by SKU in quantity."""
    assert sum((row.amount for row in found.rows), Fraction()) == found.difference
    for q in found.quantities:
        parts = [row.quantity for row in found.rows if row.sku == q.sku and row.quantity is not None]
        assert sum(parts, Fraction()) == q.billed - q.metered, q
    return found
