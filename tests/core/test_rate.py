"""Cases of rating: one price book and a few rows of usage each, worked out by hand."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from apicost.catalog import prices
from apicost.core.rating import days, period, rate
from apicost.core.rating.usage_rows import gather
from tests.usage_months import usage

GB = 10**9
HEAD = "pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: Europe/Berlin}}\n"


def book(text: str):
    return prices.parse(HEAD + text)


MARCH = period.month("2026-03", "Europe/Berlin")
NOON = MARCH.start_unix_s + 12 * 3600
DAY = 86_400


def charges(rows, price_book, month=MARCH):
    return rate.rate(usage(rows), price_book, month).charges.to_pylist()


def brief(found, *names):
    return [tuple(charge[name] for name in names) for charge in found]


def test_a_flat_price_times_the_quantity():
    """1,500 calls at 0.40 per 1,000 cost 0.60."""
    found = charges(
        [{"minute_unix_s": NOON, "api": "a", "match_state": "matched", "calls": 1_500}],
        book("skus: {call: {meter: calls, unit: 1000 Requests, prices: [{from: 2026-01-01, price: '0.40'}]}}"),
    )
    assert brief(found, "sku", "tier", "quantity", "unit_price", "list_cost", "billed_cost") == [
        ("call", "flat", "1.5", "0.4", "0.6", "0.60")
    ]
    assert (found[0]["period_start"], found[0]["period_end"]) == ("2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z")


def test_small_prices_stay_plain_decimals():
    """One call at 0.00000035 is 0.00000035 in the charge, not 3.5e-7."""
    found = charges(
        [{"minute_unix_s": NOON, "calls": 1}],
        book("skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: '0.00000035'}]}}"),
    )
    assert brief(found, "list_cost", "unit_price", "billed_cost") == [("0.00000035", "0.00000035", "0.00")]


GRADUATED = book(
    """
skus:
  call:
    meter: calls
    unit: Requests
    free: {quantity: "7", share: pro_rata}
    prices:
      - from: 2026-01-01
        mode: graduated
        tiers: [{up_to: "10", price: "3"}, {up_to: "25", price: "2"}, {up_to: null, price: "1"}]
"""
)


@pytest.mark.parametrize("calls", [0, 1, 6, 7, 8, 16, 17, 18, 31, 32, 33, 100])
def test_graduated_tiers_are_those_of_a_count_unit_by_unit(calls):
    """The month's total is what a count of each call in turn gives: 7 free, 10 at 3, 15 at 2, the rest at 1."""
    naive = sum(0 if n < 7 else 3 if n < 17 else 2 if n < 32 else 1 for n in range(calls))
    rows = [{"minute_unix_s": NOON + i * DAY, "api": "abc"[i % 3], "calls": 1} for i in range(calls % 31)]
    rows.append({"minute_unix_s": NOON, "api": "d", "calls": calls - calls % 31})
    statement = rate.rate(usage(rows), GRADUATED, MARCH)
    assert statement.total_exact == naive


def test_the_free_allowance_is_shared_by_quantity_not_by_who_came_first():
    """7 free of 14 calls: each API has half of its calls free, although one made all of its own on day one."""
    rows = [
        {"minute_unix_s": NOON, "api": "early", "calls": 8},
        {"minute_unix_s": NOON + 20 * DAY, "api": "late", "calls": 6},
    ]
    found = [c for c in charges(rows, GRADUATED) if c["tier"] == "free"]
    assert brief(found, "api", "quantity", "list_cost", "billed_cost") == [
        ("early", "4", "0", "0.00"),
        ("late", "3", "0", "0.00"),
    ]


def test_a_price_change_within_the_month_splits_the_usage_there():
    """Calls before 15 March cost 1, from then on 2; the charge periods meet at that midnight."""
    price_book = book(
        """
skus: {call: {meter: calls, unit: Requests,
  prices: [{from: 2026-01-01, price: "1"}, {from: 2026-03-15, price: "2"}]}}
"""
    )
    edge = MARCH.starts[14]
    rows = [
        {"minute_unix_s": edge - 60, "api": "a", "calls": 3},
        {"minute_unix_s": edge, "api": "a", "calls": 5},
    ]
    assert brief(charges(rows, price_book), "period_start", "period_end", "quantity", "list_cost") == [
        ("2026-02-28T23:00:00Z", "2026-03-14T23:00:00Z", "3", "3"),
        ("2026-03-14T23:00:00Z", "2026-03-31T22:00:00Z", "5", "10"),
    ]


def test_tiers_go_on_through_a_price_change():
    """6 calls before the change fill the first tier; of 6 after it, 4 are still in it by the new book."""
    price_book = book(
        """
skus: {call: {meter: calls, unit: Requests, prices: [
  {from: 2026-01-01, mode: graduated, tiers: [{up_to: "10", price: "3"}, {up_to: null, price: "1"}]},
  {from: 2026-03-15, mode: graduated, tiers: [{up_to: "10", price: "30"}, {up_to: null, price: "10"}]}]}}
"""
    )
    rows = [
        {"minute_unix_s": NOON, "calls": 6},
        {"minute_unix_s": MARCH.starts[20], "calls": 6},
    ]
    assert brief(charges(rows, price_book), "tier", "quantity", "list_cost") == [
        ("tier 1", "6", "18"),
        ("tier 1", "4", "120"),
        ("tier 2", "2", "20"),
    ]


def test_usage_without_a_price_is_unpriced_never_zero():
    """Days before the first price, scopes that no SKU names, and measures that no SKU sells keep their quantity."""
    price_book = book(
        """
scopes: {internet: {peers: ["0.0.0.0/0"]}}
skus:
  call: {meter: calls, unit: Requests, prices: [{from: 2026-03-20, price: "1"}]}
  egress:
    meter: bytes
    where: {direction: egress, scope: internet}
    unit: GB
    prices: [{from: 2026-01-01, price: "1"}]
"""
    )
    rows = [
        {
            "minute_unix_s": NOON, "api": "a", "scope": "unknown", "calls": 4, "downstream_out_wire_bytes": 3 * GB,
            "downstream_in_wire_bytes": GB,
        }
    ]  # fmt: skip
    assert brief(
        charges(rows, price_book), "api", "sku", "meter", "quantity", "unit", "state", "billed_cost", "reason"
    ) == [
        ("a", "call", "calls", "4", "Requests", "unpriced", None, rate.NO_PRICE),
        ("a", None, "downstream_out_wire_bytes", "3", "GB", "unpriced", None, rate.NO_SKU),
        (None, None, "downstream_in_wire_bytes", "1", "GB", "unpriced", None, rate.NOT_SOLD),
    ]


def test_bytes_that_only_the_gateway_counted_are_not_billed_as_wire_bytes():
    """Without a flow the wire bytes are 0; the app bytes are a charge without a cost, with their quantity."""
    price_book = book(
        "skus: {out: {meter: bytes, where: {direction: egress}, unit: GB, prices: [{from: 2026-01-01, price: '1'}]}}"
    )
    rows = [{"minute_unix_s": NOON, "api": "a", "calls": 1, "app_only_bytes": 5 * GB, "app_only_calls": 1}]
    found = [c for c in charges(rows, price_book) if c["meter"] == "app_only_bytes"]
    assert brief(found, "api", "quantity", "state", "billed_cost", "reason") == [
        ("a", "5", "unpriced", None, rate.APP_ONLY)
    ]


def test_bytes_that_no_request_claims_are_charges_of_their_own():
    """Unattributed and control bytes are priced like others, on rows that have no API."""
    price_book = book(
        """
skus:
  out: {meter: bytes, where: {direction: egress}, unit: GB, prices: [{from: 2026-01-01, price: "2"}]}
  back:
    {meter: bytes, where: {leg: upstream}, both_directions: true, unit: GB, prices: [{from: 2026-01-01, price: "3"}]}
"""
    )
    rows = [
        {"minute_unix_s": NOON, "match_state": "unattributed", "downstream_out_wire_bytes": GB},
        {"minute_unix_s": NOON, "match_state": "control", "upstream_out_wire_bytes": GB, "upstream_in_wire_bytes": GB},
    ]
    assert brief(charges(rows, price_book), "api", "match_state", "sku", "billed_cost") == [
        (None, "control", "back", "6.00"),
        (None, "unattributed", "out", "2.00"),
    ]


SHARED = """
skus: {{call: {{meter: calls, unit: Requests, prices: [{{from: 2026-01-01, price: "0"}}]}}}}
shared_costs:
  - {{id: node, amount: "{amount}", period: monthly, weights: {{{weights}}}, idle: {{keep_unallocated: "0.2"}}}}
"""


def test_a_shared_cost_follows_its_weights_and_keeps_its_idle_part():
    """100 with 20 % idle: 80 by calls 3 to 1 is 60 and 20; the 20 idle are on a row of their own."""
    rows = [
        {"minute_unix_s": NOON, "api": "a", "calls": 3},
        {"minute_unix_s": NOON, "api": "b", "calls": 1},
    ]
    found = [c for c in charges(rows, book(SHARED.format(amount="100", weights='calls: "1"'))) if c["sku"] == "node"]
    assert brief(found, "api", "state", "billed_cost") == [
        ("a", "priced", "60.00"),
        ("b", "priced", "20.00"),
        (None, "unallocated", "20.00"),
    ]


def test_a_part_without_weight_stays_unallocated():
    """Half by bytes, but there were no bytes: that half is unallocated with its reason, not lost and not spread."""
    rows = [{"minute_unix_s": NOON, "api": "a", "calls": 3}]
    price_book = book(SHARED.format(amount="100", weights='calls: "0.5", bytes: "0.5"'))
    found = [c for c in charges(rows, price_book) if c["sku"] == "node"]
    assert brief(found, "api", "state", "billed_cost", "reason") == [
        ("a", "priced", "40.00", None),
        (None, "unallocated", "20.00", rate.IDLE),
        (None, "unallocated", "40.00", rate.NO_WEIGHT),
    ]


def test_a_shared_cost_is_due_in_its_months_only():
    """A cost until 1 March is not borne in March."""
    text = SHARED.format(amount="100", weights='calls: "1"').replace(
        "period: monthly", "period: monthly, to: 2026-03-01"
    )
    rows = [{"minute_unix_s": NOON, "api": "a", "calls": 3}]
    assert [c for c in charges(rows, book(text)) if c["sku"] == "node"] == []


@pytest.mark.parametrize(("month", "hours"), [("2026-03", 743), ("2026-10", 745), ("2026-11", 720)])
def test_months_of_a_clock_change_have_all_their_hours(month, hours):
    """March lacks an hour, October has one more; each hour is in exactly one day and none is lost."""
    found = period.month(month, "Europe/Berlin")
    assert found.end_unix_s - found.start_unix_s == hours * 3600
    every = np.arange(found.start_unix_s, found.end_unix_s, 3600)
    rows = gather(usage([{"minute_unix_s": int(t), "calls": 1} for t in every]), found)
    assert int(rows.sums["calls"].sum()) == hours
    by_day = dict(zip(rows.day.tolist(), rows.sums["calls"].tolist(), strict=True))
    assert sorted(by_day.values())[0] == min(24, hours - 24 * (len(found.days) - 1))
    assert sorted(by_day.values())[-1] == max(24, hours - 24 * (len(found.days) - 1))


def test_months_meet():
    """A month ends where the next begins, at local midnight."""
    names = [f"2026-{n:02}" for n in range(1, 13)]
    for zone in ("Europe/Berlin", "America/Sao_Paulo", "Asia/Kolkata", "UTC"):
        months = [period.month(name, zone) for name in names]
        assert [m.end_unix_s for m in months[:-1]] == [m.start_unix_s for m in months[1:]]


def test_usage_of_another_month_is_refused():
    """Rows outside the period are a defect of the reader, not something to drop in silence."""
    with pytest.raises(ValueError, match="1 of 1 usage rows lie outside 2026-03"):
        rate.rate(usage([{"minute_unix_s": MARCH.end_unix_s, "calls": 1}]), GRADUATED, MARCH)


def test_an_empty_month_bears_its_fixed_cost():
    """Without any usage the fixed amount is still a cost, all of it unallocated."""
    statement = rate.rate(usage([]), book(SHARED.format(amount="100", weights='calls: "1"')), MARCH)
    assert statement.total == "100.00"
    assert set(statement.charges["state"].to_pylist()) == {"unallocated"}


def test_charge_identities_survive_what_else_the_month_holds():
    """A charge keeps its identity when rows are added elsewhere, and gets another in another book version."""
    rows = [{"minute_unix_s": NOON, "api": "a", "calls": 3}]
    text = "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: '1'}]}}"
    (alone,) = charges(rows, book(text))
    both = charges([*rows, {"minute_unix_s": NOON, "api": "b", "calls": 9}], book(text))
    assert alone["charge_id"] == both[0]["charge_id"] != both[1]["charge_id"]
    (other,) = charges(rows, prices.parse((HEAD + text).replace("version: '1'", "version: '2'")))
    assert other["charge_id"] != alone["charge_id"]


def test_quantities_beyond_a_float_are_exact():
    """3 PB and one byte at 0.09 per GB: the last byte is in the list cost."""
    found = charges(
        [{"minute_unix_s": NOON, "downstream_out_wire_bytes": 3 * 10**15 + 1}],
        book(
            "skus: {out: {meter: bytes, where: {direction: egress}, unit: GB, "
            "prices: [{from: 2026-01-01, price: '0.09'}]}}"
        ),
    )
    assert Decimal(found[0]["list_cost"]) == Decimal("270000.00000000009")


def test_days_follow_the_quantity_of_their_price():
    """Days carry the cost of their own usage at the price of their days; the unallocated part is on none."""
    price_book = book(
        """
skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: "1"}, {from: 2026-03-15, price: "2"}]}}
shared_costs: [{id: node, amount: "10", period: monthly, weights: {calls: "1"}, idle: {keep_unallocated: "1"}}]
"""
    )
    rows = [
        {"minute_unix_s": MARCH.starts[2], "api": "a", "calls": 3},
        {"minute_unix_s": MARCH.starts[2], "api": "b", "calls": 4},
        {"minute_unix_s": MARCH.starts[20], "api": "a", "calls": 5},
    ]
    found, no_day = days.by_day(rate.rate(usage(rows), price_book, MARCH), gather(usage(rows), MARCH))
    assert {d.day.day: d.billed_minor for d in found if d.billed_minor} == {3: 700, 21: 1000}
    assert no_day == 1000


def test_a_group_of_many_small_charges_is_not_starved():
    """100 rows of 0.4 cents in one API and 40 rows of 0.5 in another: each API gets its exact cost, although
    the 40 largest remainders are all the other's."""
    rows = [{"minute_unix_s": NOON, "api": "many", "operation_id": f"op{i}", "calls": 4} for i in range(100)]
    rows += [{"minute_unix_s": NOON, "api": "other", "operation_id": f"op{i}", "calls": 5} for i in range(40)]
    text = "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: '0.001'}]}}"
    found = charges(rows, book(text))
    billed = {api: sum(Fraction(c["billed_cost"]) for c in found if c["api"] == api) for api in ("many", "other")}
    assert billed == {"many": Fraction("0.40"), "other": Fraction("0.20")}
