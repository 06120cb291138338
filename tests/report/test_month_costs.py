"""Where a month's cost comes from: the wire, shared costs, corrections, budgets."""

from decimal import Decimal
from fractions import Fraction

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core import records
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.corrections import corrections
from apicost.core.rating.usage_rows import gather
from apicost.report.month import monthly, render, words
from apicost.report.month.before import before_of
from apicost.report.month.labels import CORRECTIONS
from apicost.report.month.overhead import KINDS
from tests.usage_months import usage

BEFORE, NOW = period.month("2026-09", "Europe/Berlin"), period.month("2026-10", "Europe/Berlin")
BOOK = prices.parse(
    """
pricebook: {id: b, version: "1", currency: EUR, calendar: {time_zone: Europe/Berlin}}
scopes: {inside: {peers: ["10.0.0.0/8"]}, elsewhere: {peers: ["11.0.0.0/8"]}, internet: {peers: ["0.0.0.0/0"]}}
skus:
  call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: "0.01"}]}
  egress:
    meter: bytes
    where: {direction: egress, scope: internet}
    unit: GB
    prices: [{from: 2026-01-01, mode: graduated, tiers: [{up_to: "2", price: "1"}, {up_to: null, price: "0.5"}]}]
  both:
    meter: bytes
    where: {scope: inside}
    both_directions: true
    unit: GB
    prices: [{from: 2026-01-01, mode: flat, price: "0.31"}]
  asked:
    meter: bytes
    byte_basis: app
    where: {direction: egress, scope: elsewhere}
    unit: GB
    prices: [{from: 2026-01-01, mode: flat, price: "7"}]
shared_costs:
  - {id: nodes, amount: "100", period: monthly, weights: {calls: "0.5", bytes: "0.5"}, idle: {keep_unallocated: "0.3"}}
budgets:
  - {match: {api: shop}, month: 2026-10, amount: "50.00"}
"""
)


def row(month, **keys):
    known = {"api": "shop", "operation_id": "op", "match_state": "matched", "scope": "internet", "status_class": "2xx"}
    return known | {"minute_unix_s": month.start_unix_s} | keys


def figures_of(rows, **more):
    table = usage(rows)
    return monthly.figures(Bill(statement=rate.rate(table, BOOK, NOW)), gather(table, NOW), **more)


def test_a_sku_of_the_wire_is_cut_by_what_its_bytes_are():
    """1 GB out at 1.00: 600 MB asked for, 100 MB of TLS; of the 300 MB beside payload the leg sent a tenth again and
    used a fifth for handshakes, the rest is headers. The other direction is not sold and has no part in it."""
    figures = figures_of([row(
        NOW, calls=10, downstream_out_wire_bytes=10**9, downstream_out_payload_bytes=7 * 10**8,
        downstream_out_app_bytes=6 * 10**8, downstream_in_wire_bytes=10**8, downstream_in_payload_bytes=0,
        downstream_resent_bytes=4 * 10**7, downstream_overhead_bytes=8 * 10**7,
    )])  # fmt: skip
    (wire,) = figures.wire
    assert (wire.sku, wire.wire_bytes, wire.billed_minor) == ("egress", 10**9, 100)
    assert dict(zip(KINDS, wire.parts, strict=True)) == {
        "own": 60, "framing": 10, "headers": 21, "resent": 3, "handshakes": 6
    }  # fmt: skip
    assert figures.spend.overhead == 40


leg_counts = st.fixed_dictionaries(
    {
        f"{leg}_{name}": st.integers(0, 1 << 33)
        for leg in records.LEGS
        for name in (
            "in_wire_bytes", "out_wire_bytes", "in_payload_bytes", "out_payload_bytes", "in_app_bytes",
            "out_app_bytes", "resent_bytes", "overhead_bytes",
        )
    }
)  # fmt: skip
anything = st.lists(
    st.builds(
        lambda counts, calls, scope, api: counts | {"calls": calls, "scope": scope, "api": api},
        leg_counts, st.integers(0, 10_000), st.sampled_from(["internet", "inside", "elsewhere"]),
        st.sampled_from(["shop", "billing", None]),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(anything)
@settings(deadline=None, max_examples=60)
def test_kinds_of_bytes_sum_to_what_was_billed(rows):
    """Whatever the counters say, even more payload than wire bytes: a SKU's kinds sum to its billed cost and to its
    bytes, none is negative; SKUs of app bytes are not among them."""
    figures = figures_of([row(NOW, **each) for each in rows])
    for wire in figures.wire:
        assert sum(wire.parts) == wire.billed_minor and min(wire.parts) >= 0
        assert sum(wire.shares) == 1 and min(wire.shares) >= 0
        assert wire.wire_bytes == sum(
            each["downstream_out_wire_bytes"] + (each["downstream_in_wire_bytes"] if wire.sku == "both" else 0)
            for each in rows if each["scope"] == {"both": "inside", "egress": "internet"}[wire.sku]
        )  # fmt: skip
    assert {wire.sku for wire in figures.wire} <= {"egress", "both"}


@given(anything)
@settings(deadline=None, max_examples=60)
def test_a_shared_cost_is_explained_to_the_last_digit(rows):
    """What APIs bear, what stays idle and what no weight could carry sum to the amount, and the parts of a weight to
    one; billed costs are those of its charges."""
    figures = figures_of([row(NOW, **each) for each in rows])
    (shared,) = figures.shared
    assert shared.allocated + shared.idle == Fraction(shared.amount) == 100
    assert sum(r.billed_minor for r in shared.rows) == shared.billed_minor
    for measure in shared.weights:
        parts = [r.weights[measure] for r in shared.rows if measure in r.weights]
        assert not parts or sum(parts) == 1


def test_a_shared_cost_names_who_bears_how_much():
    """A quarter of the calls and half of the bytes bear 0.7 x (0.5 x 1/4 + 0.5 x 1/2) of the amount."""
    figures = figures_of([
        row(NOW, calls=25, downstream_out_wire_bytes=10**9),
        row(NOW, api="billing", calls=75, downstream_out_wire_bytes=10**9),
    ])  # fmt: skip
    (shared,) = figures.shared
    assert {r.label.text: (r.cost, r.weights) for r in shared.rows if not r.label.named} == {
        "shop": (Fraction("26.25"), {"calls": Fraction(1, 4), "bytes": Fraction(1, 2)}),
        "billing": (Fraction("43.75"), {"calls": Fraction(3, 4), "bytes": Fraction(1, 2)}),
    }
    assert (shared.idle, shared.allocated) == (30, 70)
    assert render.View(figures).shared_words(shared) == (
        "100 EUR a month, split by by-weight: 50.0 % by calls and 50.0 % by bytes; 30.0 % of it is kept "
        "unallocated as idle."
    )


def corrected_bill(late):
    """October's bill, where so many calls of shop in September came after it was closed."""
    then = [row(BEFORE, calls=1_000), row(BEFORE, api="billing", calls=500)]
    closed = rate.rate(usage(then), BOOK, BEFORE)
    whole = rate.rate(usage([*then, row(BEFORE, calls=late)]), BOOK, BEFORE)
    rows = corrections([closed.charges], whole, billing_month="2026-10")
    table = usage([row(NOW, calls=2_000), row(NOW, api="billing", calls=100)])
    former = before_of(Bill(statement=closed, closed=True), BOOK, {})
    return Bill(statement=rate.rate(table, BOOK, NOW), corrections=rows), gather(table, NOW), former


def test_corrections_are_part_of_the_total_and_a_row_of_every_table():
    """300 late calls of September: 3.00 and the shift of its shared cost stand in October, by month and API, in the
    total, in each table as one row, in the budget and in the sentence."""
    bill, daily, former = corrected_bill(300)
    figures = monthly.figures(bill, daily, before=former)
    assert figures.total_minor == bill.total_minor == figures.usage_minor + figures.corrections.billed_minor
    assert {r.month for r in figures.corrections.rows} == {"2026-09"}
    assert sum(r.billed_minor for r in figures.corrections.rows) == figures.corrections.billed_minor == 300
    by_api = {r.label.text: r.billed_minor for r in figures.corrections.rows}
    assert by_api["shop"] > 300 and by_api["billing"] < 0  # shop bears more of the shared cost than was booked
    for table in (figures.by_api, figures.by_operation, figures.by_consumer, figures.by_status):
        assert sum(r.billed_minor for r in table.rows) == figures.total_minor, table.id
        assert [r.billed_minor for r in table.rows if r.label == CORRECTIONS.text] == [300], table.id
        assert sum(r.before_minor for r in table.rows) == former.total_minor, table.id
    (moved,) = [m for m in figures.movers.by_api if m.label == CORRECTIONS]
    assert moved.parts["corrections"] == moved.change_minor == 300
    shop = next(r for r in figures.by_api.rows if r.label == "shop")
    (held,) = figures.budgets
    assert held.billed_minor == shop.billed_minor + by_api["shop"]
    assert "corrections of closed months come to +3.00 EUR" in " ".join(words.details(figures))
    days = render.day_table(figures).to_pylist()
    assert sum(Decimal(day["billed_cost"]) for day in days) == Decimal(bill.total)
    assert [day["billed_cost"] for day in days if day["charge_class"] == "Correction"] == ["3.00"]


def test_corrections_of_one_api_are_its_own():
    """--api shows that API's corrections alone."""
    bill, daily, _ = corrected_bill(300)
    figures = monthly.figures(bill, daily, api="billing")
    assert [r.label.text for r in figures.corrections.rows] == ["billing"]
    assert figures.total_minor == figures.usage_minor + figures.corrections.billed_minor < figures.usage_minor
    assert figures.charges == int((pa.array(bill.corrections["api"].to_pylist()).to_pylist()).count("billing")) + sum(
        api == "billing" for api in bill.statement.charges["api"].to_pylist()
    )


def test_a_month_before_that_carried_corrections_is_compared_with_them():
    """Corrections of the month before are a row of the tables, too: its column sums to what it billed."""
    bill, daily, _ = corrected_bill(300)
    former = before_of(bill, BOOK, {})
    figures = monthly.figures(Bill(statement=bill.statement), daily, before=former)
    (gone,) = [r for r in figures.by_api.rows if r.label == CORRECTIONS.text]
    assert (gone.billed_minor, gone.before_minor) == (0, 300)
    assert figures.movers.main[1] == "corrections" and words.summary(figures).endswith(
        "mostly because October 2026 bore corrections of closed months and this month bears none (-3.00 EUR)."
    )


def test_failing_and_undocumented_spend_is_told_by_kind():
    """4xx, 5xx and undocumented traffic have their cost, and that of the month before beside it."""
    kinds = [{"status_class": "4xx"}, {"status_class": "5xx"}, {"match_state": "undocumented-path"}]
    then = rate.rate(usage([row(BEFORE, calls=100, **kind) for kind in kinds[:2]]), BOOK, BEFORE)
    figures = figures_of(
        [row(NOW, calls=100 * (1 + n), **kind) for n, kind in enumerate(kinds)],
        before=before_of(Bill(statement=then), BOOK, {}),
    )  # fmt: skip
    rows = {name: (billed, before) for name, _, _, billed, before in render.View(figures).spend}
    of_status = {r.label: r.billed_minor for r in figures.by_status.rows}
    assert rows["client_errors"][0] == of_status["4xx"] and rows["server_errors"][0] == of_status["5xx"]
    assert rows["undocumented"][0] == of_status["2xx"] and rows["undocumented"][1] == 0
    assert figures.failing_minor == of_status["4xx"] + of_status["5xx"]
    assert min(before for name, (_, before) in rows.items() if name.endswith("errors")) > 0


def test_a_rate_that_may_change_is_said():
    """An exchange rate that finance has not locked stands above the figures."""
    text = """
pricebook: {id: b, version: "1", currency: EUR, calendar: {time_zone: Europe/Berlin}}
skus:
  call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: "0.01", currency: USD}]}
fx: [{from: USD, to: EUR, period: 2026-10, rate: "0.9", locked: LOCKED}]
"""
    table = usage([row(NOW, calls=100)])
    for locked, said in (("true", False), ("false", True)):
        statement = rate.rate(table, prices.parse(text.replace("LOCKED", locked)), NOW)
        figures = monthly.figures(Bill(statement=statement), gather(table, NOW))
        assert any("not locked: USD" in line for line in words.attention(figures)) is said
