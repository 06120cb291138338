"""What moved between two months, and why: report/month/movers.py over charges that the rating made."""

from collections import defaultdict
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import model_prices, prices
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.usage_rows import gather
from apicost.report.export import tags_of
from apicost.report.month import labels, monthly, words
from apicost.report.month.before import before_of
from apicost.report.month.cells import cells_of, conditions
from apicost.report.month.movers import BookChange, decompose
from apicost.report.month.part import Part
from tests.usage_months import usage

BEFORE, NOW = period.month("2026-09", "UTC"), period.month("2026-10", "UTC")
HEAD = """
pricebook: {id: b, version: "1", currency: EUR, calendar: {time_zone: UTC}}
scopes: {internet: {peers: ["0.0.0.0/0"]}}
"""
CALLS = """
skus:
  call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: "0.01"}]}
"""
EGRESS = """
  egress:
    meter: bytes
    where: {direction: egress, scope: internet}
    unit: GB
    prices: [{from: 2026-01-01, mode: flat, price: "1"}]
"""


def book(text):
    return prices.parse(HEAD + text)


def row(month, calls=0, out=0, **keys):
    known = {"api": "shop", "operation_id": "op", "match_state": "matched", "scope": "internet", "status_class": "2xx"}
    return known | keys | {
        "minute_unix_s": month.start_unix_s, "calls": calls, "downstream_out_wire_bytes": out
    }  # fmt: skip


def compared(before, now, old_book, new_book=None, **more):
    """The figures of `now` beside `before`: rows without their time."""
    new_book = new_book or old_book
    first = usage([row(BEFORE, **each) for each in before])
    second = usage([row(NOW, **each) for each in now])
    former = before_of(Bill(statement=rate.rate(first, old_book, BEFORE)), new_book, {})
    bill = Bill(statement=rate.rate(second, new_book, NOW))
    return monthly.figures(bill, gather(second, NOW), before=former, **more)


def parts(figures, label="shop"):
    found = next(m for m in figures.movers.by_api if m.label.text == label)
    return {cause: amount for cause, amount in found.parts.items() if amount}, found


def test_more_calls_at_the_same_price_are_volume():
    """1,000 calls at 0.01, then 1,500: 5.00 more, all of it volume."""
    figures = compared([{"calls": 1_000}], [{"calls": 1_500}], book(CALLS))
    assert parts(figures)[0] == {"volume": 500}
    assert words.summary(figures) == (
        "In October 2026 the gateway's APIs cost 15.00 EUR, 5.00 (50.0 %) more than in September 2026, mostly because "
        "shop carried more traffic (+5.00 EUR)."
    )


def test_another_price_of_the_book_is_price():
    """1,000 calls at 0.01, then 1,000 at 0.012: 2.00 more by the price book."""
    found, mover = parts(compared([{"calls": 1_000}], [{"calls": 1_000}], book(CALLS),
                                  book(CALLS.replace('"0.01"', '"0.012"'))))  # fmt: skip
    assert found == {"price": 200} and mover.price_moved == "price book"


def test_a_contract_is_price():
    """A discount of 20 % from October on: 2.00 less by contracts, and no mix though a consumer is named."""
    contract = 'overrides: [{match: {consumer: c}, kind: contracted, discount_pct: "20", from: 2026-10-01}]\n'
    figures = compared([{"calls": 1_000, "consumer": "c"}], [{"calls": 1_000, "consumer": "c"}], book(CALLS),
                       book(CALLS + contract))  # fmt: skip
    found, mover = parts(figures)
    assert found == {"price": -200} and mover.price_moved == "contracts"


def test_an_exchange_rate_is_price():
    """1,000 calls at 0.01 USD, worth 0.8 and then 0.9 EUR: 1.00 more by the exchange rate."""
    fx = (
        CALLS.replace('price: "0.01"', 'currency: USD, price: "0.01"')
        + 'fx: [{from: USD, to: EUR, period: 2026-09, rate: "0.8", locked: true}, '
        + '{from: USD, to: EUR, period: 2026-10, rate: "0.9", locked: true}]\n'
    )
    found, mover = parts(compared([{"calls": 1_000}], [{"calls": 1_000}], book(fx)))
    assert found == {"price": 100} and mover.price_moved == "exchange rate"


def test_a_tier_that_is_reached_is_price():
    """1,000 calls in a tier of 0.01, then 2,000 of which half at 0.005: 10.00 more by volume, 5.00 less by tiers."""
    tiers = CALLS.replace('mode: flat, price: "0.01"', 'mode: graduated, tiers: [{up_to: "1000", price: "0.01"}, '
                          '{up_to: null, price: "0.005"}]')  # fmt: skip
    found, mover = parts(compared([{"calls": 1_000}], [{"calls": 2_000}], book(tiers)))
    assert found == {"volume": 1_000, "price": -500} and mover.price_moved == "tiers"


def test_a_shift_to_dearer_operations_is_mix():
    """The same calls, 100 of them moved from an operation at 0.01 to one at 0.03: 2.00 more, all of it mix."""
    two = """
skus:
  cheap: {meter: calls, where: {operation: a}, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: "0.01"}]}
  dear: {meter: calls, where: {operation: b}, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: "0.03"}]}
"""
    found, _ = parts(compared([{"calls": 500, "operation_id": "a"}, {"calls": 100, "operation_id": "b"}],
                              [{"calls": 400, "operation_id": "a"}, {"calls": 200, "operation_id": "b"}],
                              book(two)))  # fmt: skip
    assert found == {"mix": 200}


def test_a_shift_to_consumers_without_a_contract_is_mix():
    """The same calls, 100 of them moved from a consumer at half price to another: 0.50 more, all of it mix."""
    contract = 'overrides: [{match: {consumer: c}, kind: contracted, discount_pct: "50"}]\n'
    found, _ = parts(compared([{"calls": 200, "consumer": "c"}, {"calls": 100, "consumer": "d"}],
                              [{"calls": 100, "consumer": "c"}, {"calls": 200, "consumer": "d"}],
                              book(CALLS + contract)))  # fmt: skip
    assert found == {"mix": 50}


def test_what_costs_nothing_is_no_volume():
    """Uploads that are free do not make egress look as if more of it were sold."""
    free = (
        EGRESS
        + """
  ingress:
    meter: bytes
    where: {direction: ingress}
    unit: GB
    prices: [{from: 2026-01-01, mode: flat, price: "0"}]
"""
    )
    figures = compared([{"out": 10**10, "downstream_in_wire_bytes": 10**9}],
                       [{"out": 2 * 10**10, "downstream_in_wire_bytes": 10**12}], book("\nskus:" + free))  # fmt: skip
    assert parts(figures)[0] == {"volume": 1_000}


def test_a_shift_between_models_and_kinds_of_tokens_is_mix():
    """As many tokens, more of them of completions and of the dearer model: mix, no price and no volume."""
    tokens = """
skus:
  tokens:
    meter: tokens
    unit: Tokens
    prices: [{from: 2026-01-01, mode: external, source: genai-prices, currency: USD, on_unknown_model: unpriced}]
fx:
  - {from: USD, to: EUR, period: 2026-09, rate: "0.9", locked: true}
  - {from: USD, to: EUR, period: 2026-10, rate: "0.9", locked: true}
"""
    model = book(tokens)
    names = ("gpt-4o", "gpt-4o-mini")
    model = replace(model, models=model_prices.resolve(model, names))

    def used(prompts, completions):
        return [
            {"calls": 1, "llm_model": name, "llm_prompt_tokens": p * 10**6, "llm_completion_tokens": c * 10**6}
            for name, p, c in zip(names, prompts, completions, strict=True)
        ]

    found, _ = parts(compared(used((10, 10), (5, 5)), used((8, 10), (5, 7)), model))
    assert set(found) == {"mix"}
    found, _ = parts(compared(used((10, 10), (5, 5)), used((8, 8), (7, 7)), model))
    assert set(found) == {"mix"} and found["mix"] > 0


def test_new_and_gone_are_named_so():
    """An API without a charge last month is new, one without a charge now is gone and still listed."""
    figures = compared([{"calls": 700, "api": "old"}, {"calls": 10}], [{"calls": 300, "api": "young"}, {"calls": 10}],
                       book(CALLS))  # fmt: skip
    assert parts(figures, "old")[0] == {"gone": -700} and parts(figures, "young")[0] == {"new": 300}
    assert words.summary(figures).endswith("less than in September 2026, mostly because old is gone (-7.00 EUR).")
    assert [(r.label, r.billed_minor, r.before_minor) for r in figures.by_api.rows if not r.named] == [
        ("young", 300, 0), ("shop", 10, 10), ("old", 0, 700),
    ]  # fmt: skip


def test_a_renamed_sku_is_a_change_of_the_book():
    """The same calls under a SKU of another name and price: price, neither gone nor new nor mix."""
    found, mover = parts(compared([{"calls": 1_000}], [{"calls": 1_000}], book(CALLS),
                                  book(CALLS.replace("call:", "request:").replace('"0.01"', '"0.011"'))))  # fmt: skip
    assert found == {"price": 100} and mover.price_moved == "price book"


def test_fixed_cost_is_told_apart():
    """A shared cost that began this month is fixed cost of who bears it, not volume."""
    shared = "shared_costs: [{id: n, amount: '10', period: monthly, weights: {calls: '1'}, from: 2026-10-01}]\n"
    assert parts(compared([{"calls": 100}], [{"calls": 100}], book(CALLS + shared)))[0] == {"fixed": 1_000}


def test_no_month_before_is_said_without_a_comparison():
    """Without a month before there is nothing to compare: no movers, no columns, and the sentence says the cost."""
    table = usage([row(NOW, calls=100)])
    figures = monthly.figures(Bill(statement=rate.rate(table, book(CALLS), NOW)), gather(table, NOW))
    assert figures.movers is None and figures.by_api.rows[0].before_minor is None
    assert words.summary(figures) == "In October 2026 the gateway's APIs cost 1.00 EUR for 100 requests."


OLD = book(
    CALLS
    + EGRESS
    + """
overrides: [{match: {consumer: c}, kind: contracted, discount_pct: "33.3"}]
shared_costs: [{id: n, amount: "31.01", period: monthly, weights: {calls: "0.3", bytes: "0.7"}}]
"""
)
NEW = book(
    """
skus:
  call:
    meter: calls
    unit: 1000 Requests
    free: {quantity: "0.2", share: pro_rata}
    prices:
      - {from: 2026-01-01, to: 2026-10-10, mode: flat, price: "9.7"}
      - {from: 2026-10-10, mode: graduated, tiers: [{up_to: "1", price: "11"}, {up_to: null, price: "3.33"}]}
  other:
    meter: calls
    where: {operation: x}
    unit: Requests
    prices: [{from: 2026-01-01, mode: package, size: "70", price: "0.37"}]
"""
    + EGRESS
    + """
overrides:
  - {match: {consumer: [c, d], api: a}, kind: contracted, discount_pct: "12.5"}
  - {match: {consumer: d}, kind: commitment, minimum: "9.99"}
shared_costs: [{id: n, amount: "30.99", period: monthly, weights: {calls: "1"}, idle: {keep_unallocated: "0.1"}}]
"""
)
several = st.lists(
    st.fixed_dictionaries(
        {
            "api": st.sampled_from(["a", "b", None]),
            "operation_id": st.sampled_from(["x", "y", None]),
            "consumer": st.sampled_from(["c", "d", None]),
            "match_state": st.sampled_from(["matched", "unattributed"]),
            "scope": st.sampled_from(["internet", "unknown"]),
            "calls": st.integers(0, 3_000),
            "out": st.integers(0, 1 << 33),
        }
    ),
    min_size=1,
    max_size=12,
)


@given(several, several, st.sampled_from([(OLD, OLD), (OLD, NEW), (NEW, OLD), (NEW, NEW)]))
@settings(deadline=None, max_examples=100)
def test_parts_sum_to_the_change_of_each_row_and_of_the_total(before, now, books):
    """Whatever two months hold: the parts of a row are its change to the cent, the rows are the change of the total,
    and so are the columns of the tables beside the month before."""
    figures = compared(before, now, *books)
    change = figures.total_minor - figures.before.total_minor
    for rows in (figures.movers.by_api, figures.movers.by_operation):
        for mover in rows:
            assert sum(mover.parts.values()) == mover.change_minor
        assert sum(mover.change_minor for mover in rows) == change
    for table in (figures.by_api, figures.by_operation, figures.by_consumer, figures.by_status):
        assert sum(r.before_minor for r in table.rows) == figures.before.total_minor, table.id
        assert sum(r.change_minor for r in table.rows) == change, table.id
    assert (figures.movers.main is None) == (change == 0)


@given(several, several, st.sampled_from([(OLD, OLD), (OLD, NEW), (NEW, OLD)]))
@settings(deadline=None, max_examples=60)
def test_exact_parts_sum_exactly(before, now, books):
    """Before any rounding, volume, price, mix and fixed cost are the difference of the exact costs."""
    sides = []
    for month, rows, its in zip((BEFORE, NOW), (before, now), books, strict=True):
        statement = rate.rate(usage([row(month, **each) for each in rows]), its, month)
        part = Part(statement, None, tags_of(statement.keys, {}, its.tags))
        sides.append(cells_of(part, conditions(books)))
        assert sum((cell.cost for cell in sides[-1].values()), Fraction()) == statement.total_exact
    found = decompose(*sides, BookChange(one_sided=frozenset({"other"})))
    old, new = (sum((cell.cost for cell in side.values()), Fraction()) for side in sides)
    assert found.total == new - old
    assert sum(found.of_price.values(), Fraction()) == found.price


def test_what_was_listed_last_month_is_what_that_month_said():
    """The column of the month before is that month's own table, row by row."""
    rows = [{"calls": 100 + 7 * i, "api": f"api-{i % 5}", "operation_id": f"op-{i}"} for i in range(40)]
    figures = compared(rows, rows[:20], OLD)
    table = usage([row(BEFORE, **each) for each in rows])
    own = monthly.figures(Bill(statement=rate.rate(table, OLD, BEFORE)), gather(table, BEFORE))
    then = {(r.label, r.note): r.billed_minor for r in own.by_api.rows}
    assert {(r.label, r.note): r.before_minor for r in figures.by_api.rows} == then
    listed = defaultdict(int)
    for r in figures.by_operation.rows:
        listed[r.label] += r.before_minor
    assert sum(listed.values()) == own.total_minor


@pytest.mark.parametrize("by", labels.GROUPINGS, ids=lambda by: by.id)
def test_every_table_of_an_api_is_compared_with_its_own_part(by):
    """--api compares that API's part of the two months, not the whole."""
    rows = [{"calls": 100, "api": "a"}, {"calls": 200, "api": "b"}]
    first, second = (usage([row(month, **each) for each in rows]) for month in (BEFORE, NOW))
    former = before_of(Bill(statement=rate.rate(first, OLD, BEFORE)), OLD, {}, "a")
    figures = monthly.figures(
        Bill(statement=rate.rate(second, OLD, NOW)), gather(second, NOW), before=former, api="a"
    )  # fmt: skip
    assert figures.total_minor == former.total_minor == sum(former.tables[by.id].values())
