"""What users of cost tools complain of: here the cases that no other file has.

Where each complaint is held, by its sentence:

- the total does not match the bill: laws/test_bill_conservation.py; reconcile/test_bridge.py names every cause
- egress is taken for internet, or an unknown network for a known one: here; core/test_meter_scopes.py
- usage is silently zero: here; core/test_rate.py, laws/test_bill_conservation.py (unpriced, never zero)
- streamed answers are billed 0: core/test_rate_models.py (requests without token counts stand in the statement)
- a key of repeats, claimed before the write, loses usage: ingest/test_receiver_killed.py, ingest/test_spool.py,
  store/test_lake.py
- days don't sum to the month because of time zones: here; laws/test_bill_conservation.py, core/test_rate.py
- closed history is priced anew, late data changes it or vanishes: report/test_closing.py, laws/test_corrections.py
- cents don't sum: here, with ten thousand rows; laws/test_money.py
- shared cost is unexplained: report/test_month_costs.py (to the last digit, and who bears how much)
- shared cost vanishes at zero weights: here, in the files; core/test_rate.py
- a currency is only a label: core/test_rate_terms.py (converted exactly, and a missing rate is never one)
- `3.5e-7` in a CSV: here
- formulas in a CSV: report/test_csvfile.py, report/test_tables_xlsx.py, report/test_tables_libreoffice.py
- the PDF differs from the screen: report/test_read_back.py
"""

import csv
import re
from collections import Counter
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from apicost.catalog import prices
from apicost.core import meter
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.usage_rows import gather
from apicost.core.records import Confidence
from apicost.core.scopes import Scopes
from apicost.report import export, journal
from apicost.report.month import monthly
from tests.money_laws import bean_check
from tests.money_months import ZONES
from tests.store.batches import exchange, table
from tests.usage_months import usage

HEAD = "pricebook: {id: a, version: '1', currency: EUR, calendar: {time_zone: Europe/Berlin}}\n"
EGRESS = prices.parse(
    HEAD
    + """
scopes:
  zone: {peers: ["10.1.0.0/16"]}
  internet: {peers: ["0.0.0.0/1", "128.0.0.0/1"]}
skus:
  egress-internet: {meter: bytes, where: {direction: egress, scope: internet}, unit: GB,
    prices: [{from: 2026-01-01, price: "0.09"}]}
  egress-zone: {meter: bytes, where: {direction: egress, scope: zone}, unit: GB,
    prices: [{from: 2026-01-01, price: "0.01"}]}
"""
)
GB = 10**9


def test_every_complaint_is_held_somewhere():
    """The files named above are there."""
    named = re.findall(r"[a-z]+/test_[a-z_]+\.py", __doc__)
    assert len(named) > 15
    assert [name for name in named if not (Path(__file__).parents[1] / name).is_file()] == []


def charged(peers, book=EGRESS):
    """Charges of an answer of 1 GB to each of some clients, from the exchange on."""
    rows = [
        exchange(
            peer=peer, downstream_out_wire_bytes=GB, downstream_confidence=Confidence.EXACT, line_no=n, consumer=peer
        )
        for n, peer in enumerate(peers)
    ]  # fmt: skip
    used = meter.meter(table(rows), Scopes(book.scopes))
    charges = rate.rate(used, book, period.month("2026-11", "Europe/Berlin")).charges.to_pylist()
    return {c["consumer"]: c for c in charges if c["meter"] == "downstream_out_wire_bytes"}


def test_egress_within_the_network_is_no_internet_egress():
    """What goes to a network of the book has that network's price; only what the book calls internet costs as such."""
    found = charged(["10.1.2.3", "198.51.100.7", "10.2.0.1"])
    assert (found["10.1.2.3"]["sku"], found["10.1.2.3"]["billed_cost"]) == ("egress-zone", "0.01")
    assert (found["198.51.100.7"]["sku"], found["198.51.100.7"]["billed_cost"]) == ("egress-internet", "0.09")
    assert found["10.2.0.1"]["sku"] == "egress-internet"  # 0.0.0.0/1 holds it: the book says so, nothing else does


def test_an_unknown_network_is_unpriced_and_shown():
    """A client in no network of the book is unknown: its bytes stand in the statement without a cost."""
    found = charged(["2001:db8::9", "198.51.100.7"])
    lost = found["2001:db8::9"]
    assert (lost["scope"], lost["state"], lost["sku"], lost["billed_cost"]) == ("unknown", "unpriced", None, None)
    assert (lost["quantity"], lost["unit"], lost["reason"]) == ("1", "GB", rate.NO_SKU)


def test_an_unknown_client_address_is_no_internet_either():
    """An exchange whose client is not known has no network, though the book lists every address."""
    everywhere = prices.parse(HEAD + "scopes: {internet: {peers: ['0.0.0.0/0', '::/0']}}\n" + SKU_INTERNET)
    found = charged([None], everywhere)
    assert (found[None]["scope"], found[None]["state"]) == ("unknown", "unpriced")


SKU_INTERNET = """
skus: {egress: {meter: bytes, where: {direction: egress, scope: internet}, unit: GB,
  prices: [{from: 2026-01-01, price: "0.09"}]}}
"""


def test_no_measured_quantity_goes_without_a_charge(tmp_path):
    """Whatever a gateway measured that can be sold stands in charges.csv, even where the book prices none of it."""
    book = prices.parse(HEAD + "skus: {x: {meter: calls, unit: Requests, where: {api: none}, "
                        "prices: [{from: 2026-01-01, price: '1'}]}}")  # fmt: skip
    month = period.month("2026-11", "Europe/Berlin")
    for measure in rate.MEASURES:
        made = usage([{"minute_unix_s": month.starts[9], "api": "shop", "match_state": "matched", measure: 3}])
        rows = written(Bill(statement=rate.rate(made, book, month)), tmp_path)
        (row,) = [row for row in rows if row["meter"] == measure]
        assert Decimal(row["quantity"]) * {"GB": GB}.get(row["unit"], 1) == 3
        assert (row["state"], row["billed_cost"]) == ("unpriced", "")


@pytest.mark.parametrize("zone", ZONES)
def test_days_of_all_time_zones_sum_to_their_months(zone):
    """Requests at the edges of each half hour of two months are each in one day of one month, as its clock tells."""
    book = prices.parse(HEAD.replace("Europe/Berlin", zone) + SKU_CALLS)
    first, second = period.month("2026-10", zone), period.month("2026-11", zone)
    assert first.end_unix_s == second.start_unix_s
    times = range(first.start_unix_s, second.end_unix_s, 1_800)
    rows = [{"minute_unix_s": at + late, "calls": 1} for at in times for late in (0, 1_799)]
    seen, days = 0, {}
    for month in (first, second):
        mine = [row for row in rows if month.start_unix_s <= row["minute_unix_s"] < month.end_unix_s]
        bill = Bill(statement=rate.rate(usage(mine), book, month))
        figures = monthly.figures(bill, gather(usage(mine), month))
        assert sum(day.billed_minor for day in figures.days) == bill.total_minor
        assert sum(day.calls for day in figures.days) == figures.calls == len(mine)
        days |= {day.day: day.calls for day in figures.days}
        seen += len(mine)
    assert seen == len(rows) and len(days) == 61
    assert days == Counter(datetime.fromtimestamp(row["minute_unix_s"], ZoneInfo(zone)).date() for row in rows)


SKU_CALLS = "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: '0.0123'}]}}\n"


def test_ten_thousand_rows_sum_to_the_cent(tmp_path):
    """Ten thousand small charges sum to the statement's total; rounded row by row they would miss it by dollars."""
    month = period.month("2026-11", "Europe/Berlin")
    made = usage(
        [{"minute_unix_s": month.starts[n % 30], "consumer": f"c{n:05}", "calls": 1 + n % 7} for n in range(10_000)]
    )
    bill = Bill(statement=rate.rate(made, prices.parse(HEAD + SKU_CALLS), month))
    rows = written(bill, tmp_path)
    exact = sum((Decimal(row["contracted_cost"]) for row in rows), Decimal())
    cent = Decimal("0.01")
    assert len(rows) == 10_000
    assert sum((Decimal(row["billed_cost"]) for row in rows), Decimal()) == Decimal(bill.total)
    assert Decimal(bill.total) == exact.quantize(cent, ROUND_HALF_EVEN)
    drift = sum((Decimal(row["contracted_cost"]).quantize(cent) for row in rows), Decimal()) - Decimal(bill.total)
    assert abs(drift) > 1
    assert max(abs(Decimal(row["billed_cost"]) - Decimal(row["contracted_cost"])) for row in rows) < cent


def test_shared_cost_of_a_quiet_month_is_in_every_file(tmp_path):
    """A month without one request bears its shared cost: unallocated, in the CSV, in the report and in the journal."""
    book = prices.parse(
        HEAD + SKU_CALLS + "shared_costs: [{id: node, amount: '812.40', period: monthly, weights: {calls: '1'}}]"
    )
    month = period.month("2026-11", "Europe/Berlin")
    bill = Bill(statement=rate.rate(usage([]), book, month))
    (row,) = written(bill, tmp_path)
    assert (row["sku"], row["state"], row["billed_cost"], row["reason"]) == (
        "node", "unallocated", "812.40", rate.NO_WEIGHT,
    )  # fmt: skip
    figures = monthly.figures(bill, gather(usage([]), month))
    assert [(r.label, r.billed_minor) for r in figures.by_api.rows] == [("(unallocated)", 81_240)]
    text = b"".join(journal.pieces(bill, {})).decode()
    assert not bean_check(text)[1]
    assert "Expenses:Gateway:2026-11:No-API:Node  812.40 EUR" in text


def test_small_and_large_numbers_are_plain_in_every_file(tmp_path):
    """A price of 0.000000000001 and a quantity of 10**18 are written out in the CSV and the journal: no exponent."""
    book = prices.parse(
        HEAD + "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: '0.000000000001'}]}}\n"
    )
    month = period.month("2026-11", "Europe/Berlin")
    made = usage([{"minute_unix_s": month.starts[0], "consumer": c, "calls": n} for c, n in (("a", 1), ("b", 10**18))])
    bill = Bill(statement=rate.rate(made, book, month))
    small, large = written(bill, tmp_path)
    assert (small["list_cost"], small["unit_price"]) == ("0.000000000001", "0.000000000001")
    assert (large["quantity"], large["list_cost"], large["billed_cost"]) == (str(10**18), "1000000", "1000000.00")
    text = b"".join(journal.pieces(bill, {})).decode()
    assert 'exact-cost: "0.000000000001"' in text and f'quantity: "{10**18}"' in text
    numbers = [cell for row in (small, large) for name, cell in row.items() if name.endswith(("cost", "price", "ity"))]
    assert all(set(cell) <= set("0123456789.") for cell in numbers)


def written(bill, folder):
    """Rows of charges.csv."""
    path = folder / "charges.csv"
    export.write_charges(bill, path, {})
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))
