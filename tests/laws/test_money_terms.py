"""Money is conserved and exact under every term of a price book: pools, packages, contracts, commitments, rates."""

from collections import defaultdict
from fractions import Fraction
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core.rating import days, money, period, rate, tags
from apicost.core.rating.bill import Bill
from apicost.core.rating.usage_rows import gather
from apicost.report import explain, export
from apicost.report.month import monthly
from tests.usage_months import usage

HEAD = "pricebook: {id: law, version: '1', currency: EUR, calendar: {time_zone: America/Sao_Paulo}}\n"
BOOK = prices.parse(
    HEAD
    + """
scopes: {internet: {peers: ["0.0.0.0/0"]}}
skus:
  call:
    meter: calls
    unit: 1000 Requests
    currency: USD
    free: {quantity: "0.2", share: pro_rata}
    prices:
      - {from: 2026-01-01, to: 2026-10-10, mode: volume, pool: consumer,
         tiers: [{up_to: "1.5", price: "1.01"}, {up_to: null, price: "0.333"}]}
      - {from: 2026-10-12, mode: package, pool: consumer, size: "0.7", price: "0.37"}
  egress:
    meter: bytes
    where: {direction: egress, scope: internet}
    unit: GiB
    free: {quantity: "0.25", share: pro_rata}
    prices: [{from: 2026-01-01, mode: graduated, pool: api, tiers: [{up_to: "1", price: "0.09"}, {price: "0.07"}]}]
  ingress:
    meter: bytes
    where: {direction: ingress}
    unit: GB
    prices: [{from: 2026-01-01, mode: package, size: "0.3", price: "0.011"}]
fx: [{from: USD, to: EUR, period: 2026-10, rate: "0.86421", locked: true}]
overrides:
  - {match: {consumer: c}, sku: call, kind: contracted, price: "0.123", from: 2026-10-05}
  - {match: {consumer: [c, d], api: a}, kind: contracted, discount_pct: "33.3", to: 2026-10-20}
  - {match: {consumer: c}, kind: commitment, minimum: "9.99"}
  - {match: {consumer: never-seen}, kind: commitment, minimum: "1.005"}
tags:
  - {match: {api: a}, set: {team: t1, owner: o}}
  - {match: {consumer: d}, set: {team: t2}}
  - {match: {consumer: never-seen}, set: {team: t3}}
shared_costs:
  - {id: node, amount: "31.01", period: monthly, weights: {calls: "0.3", bytes: "0.7"}, idle: {keep_unallocated: "0.1"}}
""".replace("{price:", "{up_to: null, price:")
)
MONTH = period.month("2026-10", "America/Sao_Paulo")

rows = st.lists(
    st.fixed_dictionaries(
        {
            "minute_unix_s": st.integers(MONTH.start_unix_s, MONTH.end_unix_s - 1),
            "api": st.sampled_from(["a", "b", None]),
            "operation_id": st.sampled_from(["x", "y", None]),
            "consumer": st.sampled_from(["c", "d", None]),
            "match_state": st.sampled_from(["matched", "unattributed"]),
            "scope": st.sampled_from(["internet", "unknown"]),
            "calls": st.integers(0, 3_000),
            "downstream_out_wire_bytes": st.integers(0, 1 << 31),
            "downstream_in_wire_bytes": st.integers(0, 1 << 29),
        }
    ),
    min_size=1,
    max_size=20,
)


@given(rows)
@settings(deadline=None, max_examples=60)
def test_charges_sum_to_the_total_by_any_grouping(given_rows):
    """Billed costs by charge, table, day and team sum to the total to the last cent, exact ones to the last digit."""
    statement = rate.rate(usage(given_rows), BOOK, MONTH)
    assert int(statement.billed_minor.sum()) == statement.total_minor == money.half_even(statement.total_exact * 100)
    daily = gather(usage(given_rows), MONTH)
    figures = monthly.figures(Bill(statement=statement), daily)
    assert figures.by_team is not None
    for table in (figures.by_api, figures.by_operation, figures.by_consumer, figures.by_status, figures.by_team):
        assert sum(row.billed_minor for row in table.rows) == statement.total_minor, table.id
        assert sum(row.contracted_cost for row in table.rows) == statement.total_exact, table.id
        assert sum(row.list_cost for row in table.rows) == figures.total_list, table.id
    assert sum(row.contracted_cost for row in figures.skus) == statement.total_exact
    by_day, no_day = days.by_day(statement, daily)
    assert sum(day.billed_minor for day in by_day) + no_day == statement.total_minor
    charges = statement.charges.to_pylist()
    by_team = defaultdict(Fraction)
    for charge in charges:
        by_team[charge["team"]] += Fraction(charge["billed_cost"] or 0)
    assert sum(by_team.values()) == Fraction(statement.total)
    shown = {row.label: Fraction(row.billed_minor, 100) for row in figures.by_team.rows if not row.named}
    named = {team: cost for team, cost in by_team.items() if team}
    assert shown == dict.fromkeys(shown, 0) | named  # a team whose usage has no charge is listed with 0
    assert by_team["t3"] == Fraction("1.00") or by_team["t3"] == Fraction("1.01")  # 1.005, to one of its neighbours
    assert sum(Fraction(c["contracted_cost"] or 0) for c in charges) == statement.total_exact


@given(rows)
@settings(deadline=None, max_examples=60)
def test_each_charge_is_its_product(given_rows):
    """quantity x unit price x rate is the cost, listed and contracted, and a cent is all that rounding moves."""
    for charge in rate.rate(usage(given_rows), BOOK, MONTH).charges.to_pylist():
        if charge["state"] == "unpriced":
            empty = ("list_cost", "contracted_cost", "billed_cost", "unit_price", "contracted_unit_price", "fx_rate")
            assert [charge[name] for name in empty] == [None] * len(empty)
            continue
        converted = Fraction(charge["quantity"]) * Fraction(charge["fx_rate"])
        assert Fraction(charge["list_cost"]) == converted * Fraction(charge["unit_price"])
        paid = converted * Fraction(charge["contracted_unit_price"])
        assert Fraction(charge["contracted_cost"]) == paid
        assert abs(Fraction(charge["billed_cost"]) - paid) < Fraction(1, 100)


@given(rows, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_and_split_of_usage_change_nothing(given_rows, random):
    """Shuffled rows, and rows cut in two, give identical charges and tags."""
    first = rate.rate(usage(given_rows), BOOK, MONTH).charges
    shuffled = given_rows.copy()
    random.shuffle(shuffled)
    measured = ("calls", "downstream_out_wire_bytes", "downstream_in_wire_bytes")
    parts = [row | {name: row[name] // 3 for name in measured} for row in shuffled]
    rest = [row | {name: row[name] - row[name] // 3 for name in measured} for row in shuffled]
    again = rate.rate(usage([*parts, *rest]), BOOK, MONTH).charges
    assert again.to_pydict() == first.to_pydict()


@given(rows, st.data())
@settings(deadline=None, max_examples=40)
def test_explanations_come_to_the_same(given_rows, data):
    """Any charge, worked out again by other code, is the same."""
    statement = rate.rate(usage(given_rows), BOOK, MONTH)
    charge = data.draw(st.sampled_from(statement.charges["charge_id"].to_pylist()))
    explanation = explain.explain(statement, charge)
    assert explanation is not None and explanation.agrees, explanation


@given(rows)
@settings(deadline=None, max_examples=60)
def test_a_commitment_makes_usage_its_minimum_at_least(given_rows):
    """A committed consumer pays the larger of its usage and its minimum, exactly."""
    charges = rate.rate(usage(given_rows), BOOK, MONTH).charges.to_pylist()
    mine = [c for c in charges if c["consumer"] == "c" and c["contracted_cost"] is not None]
    used = sum((Fraction(c["contracted_cost"]) for c in mine if c["charge_category"] == "Usage"), Fraction())
    short = sum((Fraction(c["contracted_cost"]) for c in mine if c["sku"] == "commitment"), Fraction())
    assert used + short == max(used, Fraction("9.99"))


ONE = """
skus:
  call:
    meter: calls
    unit: Requests
    free: {quantity: "13", share: pro_rata}
    prices: [{from: 2026-01-01, %s}]
"""
GRADUATED = (
    "mode: graduated, "
    "tiers: [{up_to: '100', price: '0.03'}, {up_to: '400', price: '0.02'}, {up_to: null, price: '0.007'}]"
)
VOLUME = GRADUATED.replace("graduated", "volume")
PACKAGE = "mode: package, size: '37', price: '0.5'"
calls = st.lists(st.tuples(st.sampled_from("pqrs"), st.integers(0, 400), st.integers(0, 30)), max_size=12)


def total(price, given_calls):
    """The month's exact cost of (consumer, calls, day)."""
    made = [{"minute_unix_s": MONTH.starts[day], "consumer": who, "calls": n} for who, n, day in given_calls]
    return rate.rate(usage(made), prices.parse(HEAD + ONE % price), MONTH).total_exact


@given(calls)
@settings(deadline=None, max_examples=60)
def test_modes_are_those_of_a_count_by_hand(given_calls):
    """Volume: all billable units at one price; package: started packages; graduated: unit by unit."""
    billable = max(sum(n for _, n, _ in given_calls) - 13, 0)
    reached = "0.03" if billable <= 100 else "0.02" if billable <= 400 else "0.007"
    assert total(VOLUME, given_calls) == billable * Fraction(reached)
    assert total(PACKAGE, given_calls) == -(-billable // 37) * Fraction("0.5")
    first, second = min(billable, 100), min(max(billable - 100, 0), 300)
    rest = billable - first - second
    assert total(GRADUATED, given_calls) == Fraction(30 * first + 20 * second + 7 * rest, 1000)


@given(calls)
@settings(deadline=None, max_examples=20)
def test_pools_are_as_if_each_were_alone(given_calls):
    """By consumer, every mode costs what each consumer's month costs by itself, and no cost is negative."""
    for price in (GRADUATED, VOLUME, PACKAGE):
        alone = [total(price, [c for c in given_calls if c[0] == who]) for who in "pqrs"]
        assert total(f"{price}, pool: consumer", given_calls) == sum(alone)
        assert min(alone) >= 0


def test_costs_do_not_fall_as_usage_grows():
    """Graduated and package prices never fall with one call more; a volume price falls only where a tier is reached."""
    months = [{"minute_unix_s": MONTH.starts[0], "consumer": f"{n:03}", "calls": n} for n in range(460)]
    for price, may_fall in ((GRADUATED, []), (PACKAGE, []), (VOLUME, [114, 414])):
        statement = rate.rate(usage(months), prices.parse(HEAD + ONE % f"{price}, pool: consumer"), MONTH)
        costs = [Fraction()] * 460
        for charge in statement.charges.to_pylist():
            costs[int(charge["consumer"])] += Fraction(charge["list_cost"])
        assert [n for n, (less, more) in enumerate(pairwise(costs), 1) if more < less] == may_fall


@given(rows)
@settings(deadline=None, max_examples=30)
def test_configured_owners_stand_behind_the_books(given_rows):
    """What the configuration says of an API holds where no rule of the book tags a charge, and nowhere else."""
    keys = gather(usage(given_rows), MONTH).keys
    info = {"a": export.ApiInfo(team="configured"), "b": export.ApiInfo(team="configured", tags={"cost_center": "7"})}
    both = export.with_owners(keys, info, BOOK.tags).to_pylist()
    for row, ruled in zip(both, tags.of_keys(keys, BOOK.tags).to_pylist(), strict=True):
        assert row["team"] == (ruled["team"] or ("configured" if row["api"] else None))
        assert row["cost_center"] == ("7" if row["api"] == "b" else None)
