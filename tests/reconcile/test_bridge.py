"""One planted cause at a time gives exactly that cause and amount; several give their sum."""

from fractions import Fraction

import pyarrow as pa
import pytest

from apicost.core import records
from apicost.core.rating import period, rate
from apicost.core.rating.statement import CHARGE
from apicost.core.reconcile.metered import edge_spans
from tests.reconcile.made import BERLIN, GB, RULES, SKUS, UTC, book, causes, compare, focus, holds, used
from tests.usage_months import usage

CALLS = 1_000_000
METERED = used(100 * GB, 10 * GB, CALLS)  # 9.00 + 0.10 + 1.00
BILLED = [focus(quantity="100"), focus("REGIONAL", "10", "0.01"), focus("REQUESTS", "1000", "0.001")]
FREE = SKUS.replace("net: {meter: bytes,", 'net: {meter: bytes, free: {quantity: "40", share: pro_rata},')
DOLLARS = SKUS.replace("net: {meter: bytes,", "net: {meter: bytes, currency: USD,")
RATE = 'fx: [{from: USD, to: EUR, period: 2026-11, rate: "0.8", locked: true}]\n'


def bridged(folder, lines=BILLED, rows=METERED, **more):
    return holds(compare(folder, rows, lines, **more))


def of_sku(found, cause):
    return {row.sku: (row.amount, row.quantity) for row in found.rows if row.cause == cause}


def test_equal_sides_have_no_cause(tmp_path):
    """The same quantities at the same prices: no difference and no row."""
    found = bridged(tmp_path)
    assert (found.metered, found.billed, found.rows) == (Fraction("10.10"), Fraction("10.10"), ())


def test_what_was_billed_as_another_scope_moves_at_the_price_difference(tmp_path):
    """Billed 103 internet and 7 zone, metered 100 and 10: 3 GB cost 0.08 more each, and nothing else."""
    lines = [focus(quantity="103"), focus("REGIONAL", "7", "0.01"), BILLED[2]]
    found = bridged(tmp_path, lines)
    assert causes(found) == {"scope classification": Fraction("0.24")}
    assert of_sku(found, "scope classification") == {
        "net": (Fraction("0.27"), 3 * GB), "zone": (Fraction("-0.03"), -3 * GB),
    }  # fmt: skip


def test_only_the_smaller_surplus_is_moved(tmp_path):
    """5 GB too much of one and 3 GB too little of the other: 3 move, 2 are unexplained; without a group all is."""
    lines = [focus(quantity="105"), focus("REGIONAL", "7", "0.01"), BILLED[2]]
    found = bridged(tmp_path, lines)
    assert causes(found) == {"scope classification": Fraction("0.24"), "unexplained": Fraction("0.18")}
    assert of_sku(found, "unexplained") == {"net": (Fraction("0.18"), 2 * GB)}
    found = bridged(tmp_path, lines, rules=RULES.replace("[net, zone]", "[net]").replace("groups: {egress: [net]}", ""))
    assert causes(found) == {"unexplained": Fraction("0.42")}
    assert of_sku(found, "unexplained") == {"net": (Fraction("0.45"), 5 * GB), "zone": (Fraction("-0.03"), -3 * GB)}


def test_pooled_free_units_are_tier_pooling(tmp_path):
    """The book gives this gateway 40 GB free; the provider gave them to others: 40 x 0.09."""
    found = bridged(tmp_path, [focus(quantity="100"), *BILLED[1:]], of=book(FREE))
    assert causes(found) == {"tier pooling": Fraction("3.60")}
    found = bridged(tmp_path, [focus(quantity="70"), focus(quantity="30", price="0"), *BILLED[1:]], of=book(FREE))
    assert causes(found) == {"tier pooling": Fraction("0.90")}
    found = bridged(tmp_path, [focus(quantity="60"), focus(quantity="40", price="0"), *BILLED[1:]], of=book(FREE))
    assert causes(found) == {}


def test_a_free_line_that_the_book_has_not_is_tier_pooling(tmp_path):
    """A line at 0 is free units of the account, also where the book knows none."""
    lines = [focus(quantity="95"), focus(quantity="5", price="0"), *BILLED[1:]]
    assert causes(bridged(tmp_path, lines)) == {"tier pooling": Fraction("-0.45")}


def test_an_unknown_unit_price_is_the_price(tmp_path):
    """0.10 instead of 0.09 is not in the book: 100 x 0.01."""
    assert causes(bridged(tmp_path, [focus(quantity="100", price="0.10"), *BILLED[1:]])) == {"price": 1}


def test_a_cost_without_a_unit_price_is_unexplained(tmp_path):
    """9.50 for 100 GB, and the line doesn't say at what price; or it says one that does not come to 9.50."""
    for price in ("", "0.09"):
        found = bridged(tmp_path, [focus(quantity="100", price=price, cost="9.50"), *BILLED[1:]])
        assert causes(found) == {"unexplained": Fraction("0.50")}
        assert [row.note for row in found.rows] == ["price"]


def test_contracts_are_a_cause_of_their_own(tmp_path):
    """The consumer pays 10 % less by contract; the provider bills the list price: 9.00 - 8.10."""
    terms = "overrides: [{match: {consumer: x}, sku: net, kind: contracted, discount_pct: '10'}]\n"
    rows = used(100 * GB, 0, 0, consumer="x")
    found = bridged(tmp_path, [focus(quantity="100")], rows, of=book(SKUS, terms))
    assert causes(found) == {"contracts": Fraction("0.90")}
    found = bridged(tmp_path, [focus(quantity="100", price="0.081")], rows, of=book(SKUS, terms))
    assert causes(found) == {}


def test_another_exchange_rate_is_fx(tmp_path):
    """A price of 0.09 USD, 0.8 EUR in the book; the bill converted at 0.85: 100 x 0.09 x 0.05."""
    line = focus(quantity="100", price="0.0765", PricingCurrency="USD", PricingCurrencyContractedUnitPrice="0.09")
    same = focus(quantity="100", price="0.072", PricingCurrency="USD", PricingCurrencyContractedUnitPrice="0.09")
    rows = used(100 * GB, 0, 0)
    assert causes(bridged(tmp_path, [line], rows, of=book(DOLLARS, RATE))) == {"FX": Fraction("0.45")}
    assert causes(bridged(tmp_path, [same], rows, of=book(DOLLARS, RATE))) == {}


def test_the_rate_is_implied_by_costs_where_prices_do_not_say_it(tmp_path):
    """EffectiveCost over PricingCurrencyEffectiveCost is the bill's rate."""
    line = focus(quantity="100", price="0.0765", PricingCurrency="USD", EffectiveCost="7.65",
                 PricingCurrencyEffectiveCost="9.00")  # fmt: skip
    assert causes(bridged(tmp_path, [line], used(100 * GB), of=book(DOLLARS, RATE))) == {"FX": Fraction("0.45")}


def test_a_currency_without_a_rate_is_said(tmp_path):
    """Prices in pounds, no rate of pounds in the book: the rate is taken as it is, and a remark says so."""
    line = focus(quantity="100", PricingCurrency="GBP", PricingCurrencyContractedUnitPrice="0.08")
    found = bridged(tmp_path, [line, *BILLED[1:]])
    assert causes(found) == {} and "GBP" in found.remarks[0]


def test_a_bill_in_another_currency_is_converted_at_the_books_rate(tmp_path):
    """Dollars at 0.8: no cause. Paid at 0.83 by the rules: 9.00 USD x 0.03."""
    line = focus(quantity="100", BillingCurrency="USD")
    rows, of = used(100 * GB), book(DOLLARS, RATE)
    found = bridged(tmp_path, [line], rows, of=of)
    assert (found.billed, causes(found)) == (Fraction("7.20"), {})
    paid = bridged(tmp_path, [line], rows, of=of, rules='fx: {USD: "0.83"}\n' + RULES)
    assert (paid.billed, causes(paid)) == (Fraction("7.47"), {"FX": Fraction("0.27")})
    with pytest.raises(ValueError, match="USD"):
        compare(tmp_path, METERED, [line])


def test_hours_between_two_months_are_timing(tmp_path):
    """The bill's month is UTC's, ours Berlin's: it has an hour more at the end, and one less at the start."""
    assert edge_spans(BERLIN, UTC.start_unix_s, UTC.end_unix_s) == (
        (BERLIN.start_unix_s, UTC.start_unix_s, -1), (BERLIN.end_unix_s, UTC.end_unix_s, 1),
    )  # fmt: skip
    assert edge_spans(UTC, UTC.start_unix_s, UTC.end_unix_s) == ()
    west = period.month("2026-11", "America/New_York")  # its clocks change on 1 November
    assert edge_spans(west, UTC.start_unix_s, UTC.end_unix_s) == (
        (UTC.start_unix_s, UTC.start_unix_s + 4 * 3600, 1), (UTC.end_unix_s, UTC.end_unix_s + 5 * 3600, -1),
    )  # fmt: skip
    rows = used(100 * GB, 0, 0, start=BERLIN.start_unix_s + 7200)
    edges = [(used(2 * GB, start=BERLIN.start_unix_s), -1), (used(7 * GB, start=BERLIN.end_unix_s), 1)]
    found = bridged(tmp_path, [focus(quantity="105")], rows, of=book(zone="Europe/Berlin"), month=BERLIN, edges=edges)
    assert causes(found) == {"timing": Fraction("0.45")}
    assert of_sku(found, "timing") == {"net": (Fraction("0.45"), 5 * GB)}


def test_usage_of_another_month_on_the_bill_is_timing(tmp_path):
    """A line used in October, on November's bill: its cost and quantity. Another month's bill is set apart."""
    late = focus(quantity="3", ChargePeriodStart="2026-10-31T23:00:00Z")
    found = bridged(tmp_path, [*BILLED, late])
    assert causes(found) == {"timing": Fraction("0.27")}
    december = focus(quantity="50", BillingPeriodStart="2026-12-01T00:00:00Z", BillingPeriodEnd="2027-01-01T00:00:00Z")
    found = bridged(tmp_path, [*BILLED, december])
    assert causes(found) == {} and [(x.what, x.amount) for x in found.apart] == [
        ("other billing periods", Fraction("4.50"))
    ]


def test_traffic_of_other_hosts_is_told_by_resource(tmp_path):
    """Lines of other resources, by rule: their cost, and their quantity beside the SKU's."""
    found = bridged(tmp_path, [*BILLED, focus(quantity="30", ResourceId="other-7")])
    assert causes(found) == {"traffic of other hosts": Fraction("2.70")}
    assert of_sku(found, "traffic of other hosts") == {"net": (Fraction("2.70"), 30 * GB)}


def test_unattributed_bytes_without_a_price_explain_a_surplus(tmp_path):
    """The book prices matched requests alone; the provider bills what no request claims, too: up to what was seen."""
    matched = SKUS.replace("scope: internet}", "scope: internet, match_state: matched}")
    rows = used(100 * GB, 10 * GB, CALLS, match_state="matched")
    rows += used(4 * GB, match_state="unattributed") + used(2 * GB, match_state="control")
    rows += used(1 * GB, match_state="unknown-host")
    lines = [focus(quantity="108"), *BILLED[1:]]
    found = bridged(tmp_path, lines, rows, of=book(matched))
    assert causes(found) == {
        "unattributed": Fraction("0.54"), "unpriced": Fraction("0.09"), "unexplained": Fraction("0.09"),
    }  # fmt: skip
    found = bridged(tmp_path, [focus(quantity="105"), *BILLED[1:]], rows, of=book(matched))
    assert causes(found) == {"unattributed": Fraction("0.45")}


def test_bytes_without_a_price_are_taken_once(tmp_path):
    """4 GB without a price, and two SKUs billed 3 GB beyond each: the group's first takes 3, the second 1."""
    matched = SKUS.replace("egress, ", "egress, match_state: matched, ")
    rows = used(100 * GB, 10 * GB, CALLS, match_state="matched") + used(4 * GB, match_state="unattributed")
    lines = [focus(quantity="103"), focus("REGIONAL", "13", "0.01"), BILLED[2]]
    found = bridged(tmp_path, lines, rows, of=book(matched))
    assert of_sku(found, "unattributed") == {"net": (Fraction("0.27"), 3 * GB), "zone": (Fraction("0.01"), GB)}
    assert of_sku(found, "unexplained") == {"zone": (Fraction("0.02"), 2 * GB)}


def test_unattributed_bytes_with_a_price_are_told_of(tmp_path):
    """They are metered and billed alike: no cause, but the bridge says how much of the metered cost they are."""
    rows = used(90 * GB, 10 * GB, CALLS, match_state="matched") + used(10 * GB, match_state="unattributed")
    found = bridged(tmp_path, BILLED, rows)
    assert causes(found) == {} and found.without_request == Fraction("0.90")


def test_a_sku_without_a_price_on_some_days_is_unpriced(tmp_path):
    """Bytes of days on which the book has no price are measured without one."""
    gap = SKUS.replace('price: "0.09"}', 'price: "0.09", to: 2026-11-16}')
    rows = used(100 * GB) + used(20 * GB, start=UTC.starts[20])
    found = bridged(tmp_path, [focus(quantity="120")], rows, of=book(gap))
    assert causes(found) == {"unpriced": Fraction("1.80")}


@pytest.mark.parametrize(
    ("category", "cause"), [("Tax", "taxes"), ("Credit", "credits"), ("Adjustment", "adjustments")]
)
def test_categories_that_are_no_usage_have_their_own_cause(tmp_path, category, cause):
    """Also where a rule names the SKU that they are about."""
    for sku in ("OUT", "SOMETHING"):
        line = focus(sku, cost="-1.23", price="", ChargeCategory=category)
        assert causes(bridged(tmp_path, [*BILLED, line])) == {cause: Fraction("-1.23")}


def test_a_discount_may_be_said_to_belong_to_its_usage(tmp_path):
    """`as: usage` with no quantity: it lowers the SKU's price. 0.09 less a tenth is the 0.081 of the book; against a
    book that has 0.09 the price is 0.90 less."""
    rule = "  - {match: {ChargeCategory: Credit, SkuId: OUT}, sku: net, as: usage, quantity_column: none}\n"
    rules = RULES.replace("rules:\n", "rules:\n" + rule)
    lines = [focus(quantity="100"), focus(cost="-0.90", price="", ChargeCategory="Credit"), *BILLED[1:]]
    cheap = book(SKUS.replace('"0.09"', '"0.081"'))
    found = bridged(tmp_path, lines, rules=rules, of=cheap)
    assert causes(found) == {}
    assert causes(bridged(tmp_path, lines, rules=rules)) == {"price": Fraction("-0.90")}


def test_corrections_of_the_bill_stand_against_ours(tmp_path):
    """-0.50 on the bill and -0.20 of ours: -0.30; equal ones have no row."""
    row = dict.fromkeys([column.name for column in CHARGE])
    row |= {"sku": "net", "billed_cost": "-0.20", "charge_class": "Correction"}
    schema = records.schema(CHARGE)
    ours = pa.table({f.name: pa.array([row[f.name]], pa.string()).cast(f.type) for f in schema}, schema=schema)
    lines = [*BILLED, focus(quantity="-5", cost="-0.50", ChargeClass="Correction")]
    found = bridged(tmp_path, lines, corrections=ours)
    assert causes(found) == {"corrections": Fraction("-0.30")} and found.metered == Fraction("9.90")
    lines[-1] = focus(quantity="-5", cost="-0.20", ChargeClass="Correction")
    assert causes(bridged(tmp_path, lines, corrections=ours)) == {}


def test_rounded_lines_and_our_rounding_are_rounding(tmp_path):
    """0.333 GB at 0.09 is 0.02997, billed as 0.03; our statement rounds 0.027 to 0.03."""
    third = focus(quantity="0.333", price="0.09", cost="0.03")
    found = bridged(tmp_path, [third], used(333 * 10**6))
    assert causes(found) == {}
    found = bridged(tmp_path, [third] * 3, used(3 * 333 * 10**6))  # 0.09 is 0.08991 rounded, both ways
    assert causes(found) == {}
    found = bridged(tmp_path, [focus(quantity="0.3")], used(300 * 10**6))
    assert causes(found) == {"rounding": Fraction("-0.003")}
    found = bridged(tmp_path, [focus(quantity="0.334", cost="0.03"), focus(quantity="99.666", cost="8.96")],
                    used(100 * GB))  # fmt: skip
    assert causes(found) == {"rounding": Fraction("-0.01")}


def test_a_cost_that_is_a_cent_away_is_no_rounding(tmp_path):
    """Costs with two places may be rounded by less than a cent, costs with four by less than a hundredth of one."""
    found = bridged(tmp_path, [focus(quantity="100", cost="9.01")], used(100 * GB))
    assert causes(found) == {"unexplained": Fraction("0.01")}
    lines = [focus(quantity="99", cost="8.915"), focus(quantity="1", cost="0.0901")]
    assert set(causes(bridged(tmp_path, lines, used(100 * GB)))) == {"unexplained"}


def test_fixed_amounts_are_compared_as_money(tmp_path):
    """A shared cost of the book against the bill's lines of it, whatever unit these have."""
    nodes = "shared_costs: [{id: nodes, amount: '48.00', period: monthly, method: by-weight, weights: {calls: '1'}}]\n"
    rules = RULES + "  - {match: {SkuId: NODE}, sku: nodes}\n"
    line = focus("NODE", "720", "0.07", PricingUnit="Hrs")
    found = bridged(tmp_path, [*BILLED, line], rules=rules, of=book(SKUS, nodes))
    assert causes(found) == {"fixed amounts": Fraction("2.40")} and found.metered == Fraction("58.10")
    line = focus("NODE", "480", "0.1", PricingUnit="Hrs")
    assert causes(bridged(tmp_path, [*BILLED, line], rules=rules, of=book(SKUS, nodes))) == {}


def test_what_no_rule_maps_is_kept(tmp_path):
    """An unmapped line has a row with its cost, named in the bill's words, also where it costs nothing."""
    lines = [*BILLED, focus("STRANGE", "7", "0.3"), focus("GRATIS", "7", "0")]
    found = bridged(tmp_path, lines)
    assert causes(found) == {"unmapped": Fraction("2.10")}
    assert [(row.note, row.count) for row in found.rows] == [("Network / GRATIS", 1), ("Network / STRANGE", 1)]
    assert found.unexplained == Fraction("2.10")


def test_skus_that_no_rule_names_are_not_compared(tmp_path):
    """Calls are no matter of this provider: their cost is set apart, on the statement's side."""
    rules = "".join(line for line in RULES.splitlines(keepends=True) if "REQUESTS" not in line)
    found = bridged(tmp_path, BILLED[:2], rules=rules)
    assert (found.metered, causes(found)) == (Fraction("9.10"), {})
    assert [(x.side, x.what, x.amount) for x in found.apart] == [("statement", "call", 1)]
    assert found.statement_total == Fraction("10.10")


def test_ignored_lines_are_set_apart_with_their_reason(tmp_path):
    """They are in the file's total, not in what is compared."""
    found = bridged(tmp_path, [*BILLED, focus("S", "5", "2", ServiceName="Storage")])
    assert causes(found) == {} and found.bill_total == Fraction("20.10")
    assert [(x.side, x.what, x.amount, x.count) for x in found.apart] == [("bill", "ignored: no traffic", 10, 1)]


def test_a_sku_that_only_one_side_has(tmp_path):
    """Nothing billed of what was metered, or the reverse: unexplained, at the book's price."""
    assert causes(bridged(tmp_path, BILLED[1:])) == {"unexplained": Fraction("-9.00")}
    assert causes(bridged(tmp_path, BILLED, used(0, 10 * GB, CALLS))) == {"unexplained": Fraction("9.00")}


def test_packages_compare_usage_not_packages(tmp_path):
    """1.5 million calls are two packages of 2.00; a bill of consumed requests and packages has no cause."""
    skus = "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: package, size: '1000000', "
    of = book(skus + "price: '2.00'}]}}\n")
    rules = "rules: [{match: {SkuId: REQUESTS}, sku: call}]\n"
    line = focus("REQUESTS", "2", "2.00", PricingUnit="1000000 Requests", ConsumedQuantity="1500000",
                 ConsumedUnit="Requests")  # fmt: skip
    assert causes(bridged(tmp_path, [line], used(0, 0, 1_500_000), rules=rules, of=of)) == {}


def test_planted_causes_add_up(tmp_path):
    """Scope, other hosts, price, late usage, tax and an unmapped line at once: each as it is alone."""
    lines = [
        focus(quantity="103"), focus("REGIONAL", "7", "0.01"), focus("REQUESTS", "1000", "0.0012"),
        focus(quantity="30", ResourceId="other-7"), focus(quantity="3", ChargePeriodStart="2026-10-31T23:00:00Z"),
        focus("T", cost="1.90", price="", ChargeCategory="Tax"), focus("STRANGE", "7", "0.3"),
    ]  # fmt: skip
    assert causes(bridged(tmp_path, lines)) == {
        "scope classification": Fraction("0.24"), "traffic of other hosts": Fraction("2.70"),
        "price": Fraction("0.20"), "timing": Fraction("0.27"), "taxes": Fraction("1.90"),
        "unmapped": Fraction("2.10"),
    }  # fmt: skip


def test_the_metered_side_is_the_statement(tmp_path):
    """Metered is what the statement bills, and the quantities are those of its charges."""
    statement = rate.rate(usage(METERED), book(), UTC)
    found = bridged(tmp_path)
    assert found.metered == Fraction(statement.total_minor, 100)
    assert {q.sku: q.metered for q in found.quantities} == {"net": 100 * GB, "zone": 10 * GB, "call": CALLS}
