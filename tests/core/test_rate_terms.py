"""Cases of pools, volume and package prices, contracts, commitments, exchange rates, tags and budgets, by hand."""

from decimal import Decimal
from fractions import Fraction

import pytest

from apicost.catalog import prices
from apicost.core.rating import budget, compare, days, period, rate
from apicost.core.rating.usage_rows import gather
from apicost.report import explain
from tests.usage_months import usage

GB = 10**9
HEAD = "pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: Europe/Berlin}}\n"
MARCH = period.month("2026-03", "Europe/Berlin")
NOON = MARCH.start_unix_s + 12 * 3600
LATE = MARCH.starts[20]


def rated(text, *rows):
    """A statement of rows (consumer, calls, start); every charge's explanation agrees with it."""
    found = rate.rate(usage([row(*r) for r in rows]), prices.parse(HEAD + text), MARCH)
    for charge in found.charges.to_pylist():
        explanation = explain.explain(found, charge["charge_id"])
        assert explanation is not None and explanation.agrees, explanation
        if charge["state"] != "unpriced":
            factor = Fraction(charge["quantity"]) * Fraction(charge["fx_rate"])
            assert Fraction(charge["list_cost"]) == factor * Fraction(charge["unit_price"])
            assert Fraction(charge["contracted_cost"]) == factor * Fraction(charge["contracted_unit_price"])
    return found


def row(consumer, calls, start=NOON, **more):
    return {"minute_unix_s": start, "consumer": consumer, "calls": calls} | more


def brief(statement, *names):
    return [tuple(charge[name] for name in names) for charge in statement.charges.to_pylist()]


def call(price, more=""):
    return f"skus: {{call: {{meter: calls, unit: Requests, {more} prices: [{{from: 2026-01-01, {price}}}]}}}}\n"


VOLUME = "mode: volume, tiers: [{up_to: '10', price: '3'}, {up_to: '25', price: '2'}, {up_to: null, price: '1'}]"


@pytest.mark.parametrize(("calls", "unit_price"), [(1, 3), (10, 3), (11, 2), (25, 2), (26, 1), (1000, 1)])
def test_a_volume_price_is_that_of_the_tier_the_month_reaches(calls, unit_price):
    """All units cost what the tier of the last one costs; a tier still holds its up_to."""
    found = rated(call(VOLUME), ("p", calls))
    assert brief(found, "tier", "unit_price", "list_cost") == [
        (f"tier {4 - unit_price}", str(unit_price), str(calls * unit_price))
    ]


def test_a_volume_tier_is_reached_by_all_rows_and_days_together():
    """6 calls early and 6 late by two consumers are 12: each of them costs 2, although no row has more than 10."""
    found = rated(call(VOLUME), ("p", 6), ("q", 6, LATE))
    assert brief(found, "consumer", "tier", "list_cost") == [("p", "tier 2", "12"), ("q", "tier 2", "12")]


def test_the_free_allowance_counts_before_volume_tiers():
    """12 calls of which 4 are free are 8 billable: the first tier."""
    found = rated(call(VOLUME, "free: {quantity: '4', share: pro_rata},"), ("p", 6), ("q", 6))
    assert brief(found, "consumer", "tier", "quantity", "list_cost") == [
        ("p", "free", "2", "0"), ("p", "tier 1", "4", "12"), ("q", "free", "2", "0"), ("q", "tier 1", "4", "12"),
    ]  # fmt: skip


PACKAGE = "mode: package, size: '10', price: '5'"


@pytest.mark.parametrize(("calls", "packages"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_a_package_is_paid_when_it_is_begun(calls, packages):
    """The first of ten calls pays for all ten; the eleventh begins another package."""
    found = rated(call(PACKAGE), ("p", calls))
    assert brief(found, "tier", "quantity", "unit", "unit_price", "list_cost") == [
        ("package", str(packages), "package of 10 Requests", "5", str(packages * 5))
    ]


def test_packages_are_shared_by_quantity():
    """2 packages for 9 and 3 calls: three quarters and one quarter, exactly."""
    found = rated(call(PACKAGE), ("p", 9), ("q", 3))
    assert brief(found, "consumer", "quantity", "list_cost") == [("p", "1.5", "7.5"), ("q", "0.5", "2.5")]


def test_packages_go_on_through_a_price_change():
    """Of 15 calls before the change and 4 after it, the latter are in a package begun and paid before."""
    text = call(f"{PACKAGE}}}, {{from: 2026-03-15, mode: package, size: '10', price: '7'")
    assert brief(rated(text, ("p", 15), ("p", 4, LATE)), "period_start", "quantity", "list_cost") == [
        ("2026-02-28T23:00:00Z", "2", "10")
    ]
    assert brief(rated(text, ("p", 15), ("p", 6, LATE)), "quantity", "list_cost") == [("2", "10"), ("1", "7")]


def test_a_pool_by_consumer_counts_each_alone():
    """Allowance and tiers of 5 and 10 calls for everybody: what one makes is not counted for the other."""
    tiers = "mode: graduated, pool: consumer, tiers: [{up_to: '10', price: '3'}, {up_to: null, price: '1'}]"
    text = call(tiers, "free: {quantity: '5', share: pro_rata},")
    found = rated(text, ("p", 20), ("q", 7), (None, 6))
    assert brief(found, "consumer", "tier", "quantity", "list_cost") == [
        (None, "free", "5", "0"), (None, "tier 1", "1", "3"),
        ("p", "free", "5", "0"), ("p", "tier 1", "10", "30"), ("p", "tier 2", "5", "5"),
        ("q", "free", "5", "0"), ("q", "tier 1", "2", "6"),
    ]  # fmt: skip


def test_packages_and_volume_tiers_count_by_pool_too():
    """Each API begins its own packages, and reaches its own tier."""
    rows = [("p", 11, NOON), ("q", 3, NOON)]
    for price, costs in ((PACKAGE, ["10", "5"]), (VOLUME, ["22", "9"])):
        found = rated(call(f"{price}, pool: consumer"), *rows)
        assert brief(found, "list_cost") == [(cost,) for cost in costs]


def test_a_discount_is_a_contracted_cost_beside_the_list_cost():
    """20 % off for one consumer: its list cost stays, its contracted and billed costs are four fifths."""
    text = call("price: '0.10'") + "overrides: [{match: {consumer: p}, kind: contracted, discount_pct: '20'}]"
    names = ("consumer", "unit_price", "contracted_unit_price", "list_cost", "contracted_cost", "billed_cost")
    assert brief(rated(text, ("p", 10), ("q", 10)), *names) == [
        ("p", "0.1", "0.08", "1", "0.8", "0.80"),
        ("q", "0.1", "0.1", "1", "1", "1.00"),
    ]


def test_a_contract_does_not_change_how_tiers_are_counted():
    """The discounted consumer's calls fill tiers like others', and each tier is discounted."""
    tiers = "mode: graduated, tiers: [{up_to: '10', price: '3'}, {up_to: null, price: '1'}]"
    text = call(tiers) + "overrides: [{match: {consumer: p}, sku: call, kind: contracted, discount_pct: '50'}]"
    assert brief(rated(text, ("p", 10), ("q", 10)), "consumer", "tier", "list_cost", "contracted_cost") == [
        ("p", "tier 1", "15", "7.5"), ("p", "tier 2", "5", "2.5"),
        ("q", "tier 1", "15", "15"), ("q", "tier 2", "5", "5"),
    ]  # fmt: skip


def test_a_contracted_price_leaves_what_is_free():
    """5 calls free, the others at the agreed 0.5 whatever their tier; the first contract that matches is the one."""
    text = (
        call("price: '2'", "free: {quantity: '5', share: pro_rata},")
        + """
overrides:
  - {match: {consumer: p}, sku: call, kind: contracted, price: '0.5'}
  - {match: {consumer: [p, q]}, kind: contracted, discount_pct: '10'}
"""
    )
    assert brief(rated(text, ("p", 5), ("q", 5)), "consumer", "tier", "list_cost", "contracted_cost") == [
        ("p", "free", "0", "0"), ("p", "flat", "4", "1"), ("q", "free", "0", "0"), ("q", "flat", "6", "5.4"),
    ]  # fmt: skip


def test_a_contract_holds_on_its_days():
    """From the 15th on the price is halved: the month is cut there, and the day before pays the list price."""
    text = call("price: '2'") + (
        "overrides: [{match: {consumer: p}, from: 2026-03-15, to: 2026-03-25, kind: contracted, discount_pct: '50'}]"
    )
    rows = [("p", 1, MARCH.starts[14] - 60), ("p", 10, MARCH.starts[14]), ("p", 100, MARCH.starts[24])]
    assert brief(rated(text, *rows), "period_start", "quantity", "contracted_cost") == [
        ("2026-02-28T23:00:00Z", "1", "2"),
        ("2026-03-14T23:00:00Z", "10", "10"),
        ("2026-03-24T23:00:00Z", "100", "200"),
    ]


COMMITTED = "{match: {consumer: p}, kind: commitment, minimum: '50.00'}"


def test_a_shortfall_is_a_charge_of_the_consumer():
    """12.5 of 50 committed: 37.5 more, borne by the consumer, in a category of its own."""
    found = rated(call("price: '2.5'") + f"overrides: [{COMMITTED}]", ("p", 5), ("q", 5))
    charges = [c for c in found.charges.to_pylist() if c["sku"] == "commitment"]
    assert [(c["consumer"], c["api"], c["tier"], c["charge_category"], c["pricing_category"]) for c in charges] == [
        ("p", None, "commitment shortfall", "Purchase", "Other")
    ]
    assert [(c["quantity"], c["unit"], c["list_cost"], c["billed_cost"]) for c in charges] == [
        ("1", "Month", "37.5", "37.50")
    ]


def test_a_commitment_counts_contracted_costs_and_is_met_to_the_last_digit():
    """20 calls at 2.5 meet 50; with 10 % off they are 45 and fall 5 short. Without usage all of it is due."""
    met = rated(call("price: '2.5'") + f"overrides: [{COMMITTED}]", ("p", 20))
    assert [c for c in met.charges.to_pylist() if c["sku"] == "commitment"] == []
    text = call("price: '2.5'") + (
        f"overrides: [{COMMITTED}, {{match: {{consumer: p}}, kind: contracted, discount_pct: '10'}}]"
    )
    assert brief(rated(text, ("p", 20)), "sku", "contracted_cost") == [("call", "45"), ("commitment", "5")]
    assert brief(rated(text), "consumer", "sku", "contracted_cost") == [("p", "commitment", "50")]


def test_shares_of_shared_costs_do_not_meet_a_commitment():
    """A consumer that costs 5 and bears 100 of a shared cost is 45 short of 50."""
    shared = "shared_costs: [{id: node, amount: '100', period: monthly, weights: {calls: '1'}}]\n"
    found = rated(call("price: '1'") + shared + f"overrides: [{COMMITTED}]", ("p", 5))
    assert ("commitment", "45", "Purchase") in brief(found, "sku", "list_cost", "charge_category")
    assert ("node", "100", "Purchase") in brief(found, "sku", "list_cost", "charge_category")


def test_a_commitment_is_due_in_its_months_only():
    """One that ends with February is not asked for in March."""
    text = call("price: '1'") + f"overrides: [{COMMITTED[:-1]}, to: 2026-03-01}}]"
    assert brief(rated(text, ("p", 5)), "sku") == [("call",)]


FX = "fx: [{from: USD, to: EUR, period: 2026-03, rate: '0.8642', source: ECB, locked: %s}]\n"


def test_costs_are_converted_exactly_and_prices_are_not():
    """3 calls at 0.07 USD and 0.8642 EUR per USD: 0.181482 EUR; the unit price stays in dollars."""
    found = rated(call("price: '0.07', currency: USD") + FX % "true", ("p", 3))
    names = ("unit_price", "pricing_currency", "fx_rate", "list_cost", "billed_cost", "currency")
    assert brief(found, *names) == [("0.07", "USD", "0.8642", "0.181482", "0.18", "EUR")]
    assert found.unlocked_rates == ()


def test_an_unlocked_rate_is_carried_to_who_closes_the_month():
    """A rate that finance has not fixed is used, and named by the statement."""
    found = rated(call("price: '0.07'", "currency: USD,") + FX % "false", ("p", 3))
    assert [(r.currency, r.period, r.locked) for r in found.unlocked_rates] == [("USD", "2026-03", False)]


def test_a_missing_rate_is_never_one():
    """Without the month's rate nothing is rated, not even by the rate of another month."""
    text = call("price: '0.07', currency: USD") + (FX % "true").replace("2026-03", "2026-04")
    with pytest.raises(ValueError, match="no exchange rate of 2026-03"):
        rated(text, ("p", 3))


def test_a_contract_in_another_currency_is_converted_too():
    """Half of 2 USD at 0.8642 is 0.8642 EUR: the price is discounted, then converted."""
    text = (
        call("price: '2', currency: USD")
        + FX % "true"
        + ("overrides: [{match: {consumer: p}, kind: contracted, discount_pct: '50'}]")
    )
    names = ("contracted_unit_price", "list_cost", "contracted_cost")
    assert brief(rated(text, ("p", 1)), *names) == [("1", "1.7284", "0.8642")]


def test_the_longest_decimals_stay_exact():
    """Twelve places of price and rate, six of discount, bytes by GiB: every digit is in the cost."""
    text = """
skus:
  out: {meter: bytes, where: {direction: egress}, unit: GiB, prices: [{from: 2026-01-01, price: "0.000000000001",
        currency: USD}]}
fx: [{from: USD, to: EUR, period: 2026-03, rate: "999999999999.123456789012", locked: true}]
overrides: [{match: {consumer: p}, kind: contracted, discount_pct: "33.333333"}]
"""
    rows = [row(who, 0, downstream_out_wire_bytes=(1 << 60) + n) for n, who in enumerate("pq")]
    found = rate.rate(usage(rows), prices.parse(HEAD + text), MARCH)
    listed = [Fraction((1 << 60) + n, 1 << 30) * Fraction("0.999999999999123456789012") for n in range(2)]
    contracted = [listed[0] * Fraction("0.66666667"), listed[1]]
    assert brief(found, "list_cost") == [(str_of(cost),) for cost in listed]
    assert brief(found, "contracted_cost") == [(str_of(cost),) for cost in contracted]
    assert found.total_exact == sum(contracted)
    assert explain.explain(found, found.charges["charge_id"][0].as_py()).agrees


def str_of(amount):
    """All digits of a fraction whose denominator has no primes but 2 and 5."""
    digits = str(amount.numerator * 10**90 // amount.denominator).rjust(91, "0")
    assert amount * 10**90 == int(digits)
    return f"{digits[:-90]}.{digits[-90:]}".rstrip("0").rstrip(".")


TAGGED = """
tags:
  - {match: {api: shop}, set: {team: commerce, owner: Ana, cost_center: "1"}}
  - {match: {consumer: p}, set: {team: partners}}
  - {match: {route: r1}, set: {team: edge}}
  - {match: {route: r1, consumer: p}, set: {team: edge-partners}}
  - {match: {service: s1}, set: {team: services}}
  - {match: {operation: op}, set: {team: op-team}}
  - {match: {operation: op}, set: {team: too-late}}
"""


@pytest.mark.parametrize(
    ("key", "team", "owner"),
    [
        ({"api": "shop"}, "commerce", "Ana"),
        ({"consumer": "p"}, "partners", None),
        ({"api": "shop", "consumer": "p"}, "commerce", "Ana"),
        ({"api": "shop", "route_id": "r1"}, "edge", "Ana"),
        ({"api": "shop", "route_id": "r1", "consumer": "p"}, "edge-partners", "Ana"),
        ({"api": "shop", "route_id": "r1", "service_id": "s1"}, "edge", "Ana"),
        ({"api": "shop", "service_id": "s1", "consumer": "p"}, "services", "Ana"),
        ({"api": "shop", "route_id": "r1", "operation_id": "op"}, "op-team", "Ana"),
        ({"api": "billing"}, None, None),
    ],
)
def test_the_finest_rule_tags_a_charge(key, team, owner):
    """Operation before route, service, API and consumer; each tag by itself; of two equal rules the first."""
    price_book = prices.parse(HEAD + call("price: '1'") + TAGGED)
    found = rate.rate(usage([{"minute_unix_s": NOON, "calls": 1} | key]), price_book, MARCH)
    assert brief(found, "team", "owner", "cost_center") == [(team, owner, "1" if owner else None)]


def test_budgets_are_held_against_what_was_billed():
    """A team's and a consumer's budget: billed, left and used; budgets of other months are not asked."""
    text = (
        call("price: '1.5'")
        + TAGGED
        + """
budgets:
  - {match: {team: partners}, month: 2026-03, amount: "4.00"}
  - {match: {consumer: [p, q]}, month: 2026-03, amount: "20.00"}
  - {match: {team: nobody}, month: 2026-03, amount: "0"}
  - {match: {team: partners}, month: 2026-04, amount: "1.00"}
"""
    )
    statement = rated(text, ("p", 3), ("q", 5))
    found = budget.variance(statement, statement.book)
    assert [(v.label, v.billed_minor, v.left, v.used) for v in found] == [
        ("team partners", 450, Decimal("-0.5"), Fraction(9, 8)),
        ("consumer p or q", 1200, Decimal(8), Fraction(3, 5)),
        ("team nobody", 0, Decimal(0), None),
    ]


GRADUATED = "mode: graduated, tiers: [{up_to: '10', price: '3'}, {up_to: null, price: '1'}]"


@pytest.mark.parametrize(
    ("price", "overrides", "costs"),
    [
        # p's 10 calls at 1, q's 20 at 2: not 30 calls at the mean of what their lines come to
        ("price: '2'", "[{match: {consumer: p}, kind: contracted, discount_pct: '50'}]", {2: 1000, 3: 4000}),
        # tier 1 is 30 for each, and is shared out by the calls of both; only q reaches tier 2
        (f"{GRADUATED}, pool: consumer", "[]", {2: 2000, 3: 5000}),
    ],
)
def test_days_bear_the_contracts_and_pools_of_their_consumers(price, overrides, costs):
    """p calls on the 2nd only, q on the 3rd: what one of them alone pays, or a tier that one alone reaches, is on
    its own day."""
    rows = [row("p", 10, MARCH.starts[1]), row("q", 20, MARCH.starts[2])]
    price_book = prices.parse(HEAD + call(price) + f"overrides: {overrides}")
    needed = set(days.keys_needed(price_book))
    daily = [{k: v for k, v in r.items() if k in needed | {"minute_unix_s", "calls"}} for r in rows]
    statement = rate.rate(usage(rows), price_book, MARCH)
    found, no_day = days.by_day(statement, gather(usage(daily), MARCH))
    assert {d.day.day: d.billed_minor for d in found if d.billed_minor} == costs
    assert no_day == 0


def test_two_books_are_compared_by_sku_and_by_what_they_leave_unpriced():
    """The same calls at 1 and at 2; bytes that only the new book sells have no price in the old one."""
    new = call("price: '2'").replace(
        "}\n", ", out: {meter: bytes, where: {direction: egress}, unit: GB, prices: [{from: 2026-01-01, price: '1'}]}}"
    )
    rows = usage([row("p", 3, downstream_out_wire_bytes=5 * GB)])
    old, after = (rate.rate(rows, prices.parse(HEAD + text), MARCH) for text in (call("price: '1'"), new))
    found = compare.compare(old, after)
    assert [(c.sku, c.old, c.new, c.change) for c in found.costs] == [("call", 3, 6, 3), ("out", None, 5, 5)]
    assert [(u.meter, u.unit, u.old, u.new) for u in found.unpriced] == [("downstream_out_wire_bytes", "B", 5 * GB, 0)]
