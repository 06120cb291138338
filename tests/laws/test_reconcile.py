"""Laws of the bridge: rows sum to the difference exactly, and neither order nor split of the bill's lines matters."""

import tempfile
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import bill_pieces, bill_rules, bills
from apicost.catalog.bill_files import NUMBER
from apicost.core.rating import rate
from apicost.core.rating.bill import Bill
from apicost.core.reconcile.bridge import bridge
from apicost.core.reconcile.metered import edge_quantities, metered
from apicost.report import bridge as output
from tests.reconcile.made import GB, UTC, book, decimal, focus, holds, used, write_csv
from tests.usage_months import usage

SKUS = """skus:
  net: {meter: bytes, unit: GB, where: {direction: egress, scope: internet}, free: {quantity: "40", share: pro_rata},
    currency: USD, prices: [{from: 2026-01-01, mode: graduated, tiers: [{up_to: "60", price: "0.09"},
    {up_to: null, price: "0.07"}]}]}
  zone: {meter: bytes, unit: GiB, where: {direction: egress, scope: inter-zone, match_state: matched}, prices: [{from:
    2026-01-01, mode: flat, price: "0.01"}]}
  call: {meter: calls, unit: 1000 Requests, prices: [{from: 2026-01-01, to: 2026-11-16, mode: flat, price: "0.001"}]}
"""
MORE = """fx: [{from: USD, to: EUR, period: 2026-11, rate: "0.8642", locked: true}]
shared_costs: [{id: nodes, amount: "48.01", period: monthly, method: by-weight, weights: {calls: "1"}}]
overrides: [{match: {consumer: x}, kind: contracted, discount_pct: "10"}]
"""
RULES = """groups: {egress: [zone, net]}
rules:
  - {match: {ResourceId: "other-*", SkuId: OUT}, sku: net, other_hosts: true}
  - {match: {SkuId: OUT}, sku: net}
  - {match: {SkuId: REGIONAL}, sku: zone, unit: GiB}
  - {match: {SkuId: REQUESTS}, sku: call}
  - {match: {SkuId: NODES}, sku: nodes}
  - {match: {ServiceName: Storage}, ignore: storage}
"""
BOOK = book(SKUS, MORE)
READ = bill_rules.parse(RULES, BOOK)
SKU = st.sampled_from(["OUT", "OUT", "REGIONAL", "REQUESTS", "NODES", "STRANGE"])
PRICES = st.sampled_from(["0.09", "0.07", "0.077778", "0.01", "0", "0.001", "0.1", ""])
QUANTITIES = st.decimals(-5, 200, places=3, allow_nan=False).map(str)
TIMES = st.sampled_from(["2026-11-05T00:00:00Z", "2026-11-30T23:59:59Z", "2026-10-31T23:00:00Z"])


@st.composite
def lines(draw):
    """A bill line: of any SKU, price, kind and time; sometimes with a cost of its own, or a price in dollars."""
    price, quantity = draw(PRICES), draw(QUANTITIES)
    cost = None if draw(st.booleans()) else draw(st.decimals(-3, 30, places=draw(st.integers(0, 4)), allow_nan=False))
    line = focus(draw(SKU), quantity, price, None if cost is None else str(cost), ChargePeriodStart=draw(TIMES))
    if price and draw(st.booleans()):
        foreign = draw(st.sampled_from(["0.09", "0.1", "0.0806"]))
        line |= {"PricingCurrency": draw(st.sampled_from(["USD", "GBP", "EUR"])),
                 "PricingCurrencyContractedUnitPrice": foreign}  # fmt: skip
    choices = {
        "ChargeCategory": ["Usage", "Usage", "Usage", "Tax", "Credit", "Adjustment", "Purchase"],
        "ResourceId": ["gateway-1", "gateway-1", "other-1"], "ServiceName": ["Network", "Network", "Storage"],
        "ChargeClass": ["", "", "", "Correction"],
    }  # fmt: skip
    return line | {name: draw(st.sampled_from(values)) for name, values in choices.items()}


@st.composite
def months(draw):
    """Usage rows of a month: bytes in and out of scopes, with and without a request, by contract or not."""
    rows = []
    amounts = st.integers(0, 120 * GB)
    for _ in range(draw(st.integers(0, 4))):
        more = {
            "match_state": draw(st.sampled_from(["matched", "unattributed", "control"])),
            "consumer": draw(st.sampled_from([None, "x"])),
        }
        start = draw(st.sampled_from([UTC.starts[1], UTC.starts[20]]))
        rows += used(draw(amounts), draw(amounts), draw(st.integers(0, 10**7)), start=start, **more)
    return rows or used(1)


def bridged(rows, bill, edges=()):
    """The bridge of usage rows and bill lines in this order."""
    with tempfile.TemporaryDirectory(prefix="apicost-reconcile-") as folder:
        theirs = bills.read([write_csv(Path(folder) / "bill.csv", bill)], READ, UTC)
    ours = Bill(statement=rate.rate(usage(rows), BOOK, UTC))
    edge = edge_quantities(BOOK, [(usage(more), sign) for more, sign in edges])
    return bridge(metered(ours, edge), theirs.currency, theirs.lines, named=READ.named, groups=READ.groups)


@settings(max_examples=60, deadline=None)
@given(months(), st.lists(lines(), min_size=1, max_size=8), st.lists(months(), max_size=1))
def test_rows_sum_to_the_difference(rows, bill, before):
    """Causes and what is unexplained come to billed less metered, in money and by SKU in quantity; and so do the
    rounded amounts that are shown. Bill and statement are whole: what is compared, and what is set apart."""
    found = holds(bridged(rows, bill, [(more, -1) for more in before]))
    minor = 10**found.scale
    shown = output.figures(found)
    assert shown.metered + sum(shown.rows) == shown.billed
    assert all(abs(row.amount * minor - amount) < 1 for row, amount in zip(found.rows, shown.rows, strict=True))
    assert sum(Fraction(line["BilledCost"]) for line in bill) == found.bill_total
    sides = {side: sum(x.amount for x in found.apart if x.side == side) for side in ("bill", "statement")}
    assert found.billed == found.bill_total - sides["bill"]
    assert found.metered == found.statement_total - sides["statement"]


@settings(max_examples=25, deadline=None)
@given(months(), st.lists(lines(), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_lines_changes_nothing(rows, bill, random):
    """Any order gives the same bridge, to the last digit."""
    again = bill.copy()
    random.shuffle(again)
    assert bridged(rows, again) == bridged(rows, bill)


@settings(max_examples=25, deadline=None)
@given(months(), st.lists(lines(), min_size=1, max_size=5), st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_splitting_lines_changes_nothing(rows, bill, parts):
    """A line in equal parts is the same line: amounts, quantities, causes. Costs in parts have as many places."""
    bill = [line | {"BilledCost": str(line["BilledCost"])} for line in bill]
    # Parts of a power of two have decimals; a line of 12 places fixes how exact a cost is held to be.
    fixed = focus("STRANGE", "1", "", cost="0.000000000001")
    split = []
    for line, halvings in zip(bill, parts, strict=False):
        count = 2**halvings
        part = {name: decimal(Fraction(line[name]) / count) for name in ("BilledCost", "PricingQuantity")}
        split += [line | part] * count
    whole, cut = bridged(rows, [fixed, *bill]), bridged(rows, [fixed, *split])

    def brief(found):
        return [(row.cause, row.sku, row.note, row.amount, row.quantity) for row in found.rows]

    assert brief(whole) == brief(cut) and whole.quantities == cut.quantities


digits = st.integers(-(10**6), 10**6)


@settings(max_examples=100, deadline=None)
@given(digits, digits, st.integers(0, 10**6), st.integers(0, 14), st.sampled_from([2, 6, 17, 20]))
def test_agreement_of_a_cost_is_that_of_exact_arithmetic(cost, quantity, price, cost_places, price_places):
    """How close a cost is to quantity x unit price, by columns of decimals or digit by digit, is what fractions say."""
    exact = [Fraction(cost, 10**cost_places), Fraction(quantity, 1000), Fraction(price, 10**price_places)]
    near = exact[1] * exact[2]
    for amount in (exact[0], near, near + Fraction(1, 10**cost_places)):
        texts = [decimal(value) for value in (amount, exact[1], exact[2])]
        columns = [pa.array([text], pa.string()) for text in texts]
        (found,) = bill_pieces.agreement_of(columns[0].cast(NUMBER), columns[1].cast(NUMBER), columns[2])
        away = abs(amount - near)
        expected = (
            max((p for p in range(2, 13) if away < Fraction(1, 10**p)), default=-1) if away else bill_pieces.EXACT
        )
        assert found == expected
