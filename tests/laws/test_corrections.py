"""Original charges and their corrections are a full recomputation, row by row: core/rating/corrections.py."""

from collections import Counter, defaultdict
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.corrections import TERMS, corrections, same_terms
from apicost.core.rating.usage_rows import KEYS
from tests.usage_months import usage

MONTH = period.month("2026-10", "America/Sao_Paulo")
COSTS = ("list_cost", "contracted_cost", "billed_cost")


@st.composite
def books(draw):
    """Price books of one account as it may be corrected: prices, tiers, rates, contracts, shared costs, SKUs."""
    pick = lambda *choices: draw(st.sampled_from(choices))  # noqa: E731
    egress = f"""
  egress:
    meter: bytes
    where: {{direction: egress, scope: internet}}
    unit: GiB
    free: {{quantity: "{pick("0.25", "0.5")}", share: pro_rata}}
    prices: [{{from: 2026-01-01, mode: graduated, pool: {pick("api", "billing_account")},
      tiers: [{{up_to: "{pick("1", "2")}", price: "{pick("0.09", "0.083")}"}}, {{up_to: null, price: "0.07"}}]}}]"""
    return prices.parse(f"""
pricebook: {{id: law, version: "{pick("1", "2")}", currency: EUR, calendar: {{time_zone: America/Sao_Paulo}}}}
scopes: {{internet: {{peers: ["0.0.0.0/0"]}}}}
skus:
  call:
    meter: calls
    unit: 1000 Requests
    currency: USD
    free: {{quantity: "0.2", share: pro_rata}}
    prices:
      - {{from: 2026-01-01, to: 2026-10-{pick("10", "09")}, mode: {pick("volume", "graduated")}, pool: consumer,
         tiers: [{{up_to: "1.5", price: "{pick("1.01", "0.9")}"}}, {{up_to: null, price: "0.333"}}]}}
      - {{from: 2026-10-12, to: {pick("null", "2027-01-01")}, mode: package, pool: consumer, size: "0.7",
         price: "0.37"}}
{egress if pick(True, True, False) else ""}
fx: [{{from: USD, to: EUR, period: 2026-10, rate: "{pick("0.86421", "0.91")}", locked: true}}]
overrides:
  - {{match: {{consumer: c}}, sku: call, kind: contracted, price: "{pick("0.123", "0.11")}", from: 2026-10-05}}
  - {{match: {{consumer: c}}, kind: commitment, minimum: "{pick("9.99", "0.01")}"}}
tags: [{{match: {{api: a}}, set: {{team: {pick("t1", "t2")}}}}}]
shared_costs:
  - {{id: node, amount: "{pick("31.01", "7.00")}", period: monthly, weights: {{calls: "0.3", bytes: "0.7"}},
     idle: {{keep_unallocated: "0.1"}}}}
""")


lots = st.lists(
    st.fixed_dictionaries(
        {
            "minute_unix_s": st.integers(MONTH.start_unix_s, MONTH.end_unix_s - 1),
            "api": st.sampled_from(["a", "b", None]),
            "operation_id": st.sampled_from(["x", None]),
            "consumer": st.sampled_from(["c", "d", None]),
            "match_state": st.sampled_from(["matched", "unattributed"]),
            "scope": st.sampled_from(["internet", "unknown"]),
            "calls": st.integers(0, 3_000),
            "downstream_out_wire_bytes": st.integers(0, 1 << 31),
            "downstream_in_wire_bytes": st.integers(0, 1 << 20),
        }
    ),
    max_size=8,
)


def by_identity(tables):
    """The sums of charges by identity: quantity and costs, exactly; identities of nothing are left out."""
    sums = defaultdict(lambda: [Fraction()] * 4)
    for charge in (charge for table in tables for charge in table.to_pylist()):
        numbers = [Fraction(charge[name] or 0) for name in ("quantity", *COSTS)]
        identity = tuple(charge[name] for name in (*KEYS, *TERMS))
        sums[identity] = [a + b for a, b in zip(sums[identity], numbers, strict=True)]
    return {identity: numbers for identity, numbers in sums.items() if any(numbers)}


@given(st.lists(st.tuples(lots, books()), min_size=2, max_size=4))
@settings(deadline=None, max_examples=25)
def test_original_and_corrections_are_a_full_recomputation(stages):
    """However often usage comes late and prices are corrected, what was booked adds up to the last statement:
    by identity, quantity, list, contracted and billed cost, without an error of a cent."""
    rows, booked, identities = [], [], Counter()
    for number, (late, book) in enumerate(stages):
        rows += late
        now = rate.rate(usage(rows), book, MONTH)
        if not booked:
            booked.append(now.charges)
            continue
        rest = corrections(booked, now, billing_month=f"2026-{10 + number}")
        bill = Bill(statement=rate.rate(usage([]), book, MONTH), corrections=rest)
        assert bill.corrections_minor == now.total_minor - sum(cents(table) for table in booked)
        booked.append(rest)
        assert by_identity(booked) == by_identity([now.charges])
        assert sum(cents(table) for table in booked) == now.total_minor
        assert len(corrections(booked, now, billing_month="2027-01")) == 0
        identities.update(rest.column("charge_id").to_pylist())
    assert all(count == 1 for count in identities.values())


def cents(charges: pa.Table) -> int:
    return int(sum(Fraction(text or 0) for text in charges.column("billed_cost").to_pylist()) * 100)


@given(lots, lots, books(), books())
@settings(deadline=None, max_examples=25)
def test_each_correction_is_its_product(first, late, book, corrected):
    """quantity x unit price x rate is a correction's list and contracted cost, exactly; what has no price has no cost;
    texts are plain decimals."""
    before, now = rate.rate(usage(first), book, MONTH), rate.rate(usage(first + late), corrected, MONTH)
    for row in corrections([before.charges], now, billing_month="2026-11").to_pylist():
        assert (row["charge_class"], row["billing_month"]) == ("Correction", "2026-11")
        assert MONTH.start_unix_s <= stamp(row["period_start"]) < stamp(row["period_end"]) <= MONTH.end_unix_s
        texts = [row[name] for name in ("quantity", *COSTS) if row[name] is not None]
        assert all(text.count("-") == text.startswith("-") and set(text) <= set("-.0123456789") for text in texts)
        assert "-0" not in texts and "-0.00" not in texts
        if row["unit_price"] is None:
            assert [row[name] for name in COSTS] == [None] * 3 and row["state"] == "unpriced"
            continue
        converted = Fraction(row["quantity"]) * Fraction(row["fx_rate"])
        assert Fraction(row["list_cost"]) == converted * Fraction(row["unit_price"])
        assert Fraction(row["contracted_cost"]) == converted * Fraction(row["contracted_unit_price"])


def stamp(text: str) -> int:
    return next(second for second in MONTH.starts if period.utc_text(second) == text)


@given(lots, books(), books())
@settings(deadline=None, max_examples=25)
def test_books_of_the_same_terms_rate_the_same(rows, book, other):
    """Where two books are said to have the same terms in a month, no charge of it is another."""
    one, two = (rate.rate(usage(rows), given_book, MONTH) for given_book in (book, other))
    if same_terms(book, other, MONTH):
        assert len(corrections([one.charges], two, billing_month="2026-11")) == 0
    assert same_terms(book, book, MONTH)


BOOK = """
pricebook: {id: law, version: "1", currency: EUR, calendar: {time_zone: America/Sao_Paulo}}
skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: "0.003"}]}}
"""


def charges(book: str, **calls: int) -> rate.Statement:
    made = [{"minute_unix_s": MONTH.start_unix_s, "consumer": who, "calls": n} for who, n in calls.items()]
    return rate.rate(usage(made), prices.parse(book), MONTH)


def test_a_shift_of_a_cent_is_a_row_without_quantity():
    """Late usage of one moves the rounding of another: quantity 0, cost 0, and the cent."""
    fine = BOOK.replace("0.003", "0.001")
    before, now = charges(fine, p=6), charges(fine, p=6, r=7)  # 0.006 is a cent; of 0.013 the larger part has it
    rows = corrections([before.charges], now, billing_month="2026-11").to_pylist()
    assert [(row["consumer"], row["quantity"], row["list_cost"], row["billed_cost"]) for row in rows] == [
        ("p", "0", "0", "-0.01"), ("r", "7", "0.007", "0.01"),
    ]  # fmt: skip


def test_what_gets_a_price_late_gives_its_quantity_back_without_one():
    """An unpriced row that becomes priced is two: the quantity back without a cost, and the row with its cost."""
    free = BOOK.replace("2026-01-01", "2027-01-01")
    rows = corrections([charges(free, p=5).charges], charges(BOOK, p=5), billing_month="2026-11").to_pylist()
    assert [(row["state"], row["quantity"], row["billed_cost"]) for row in rows] == [
        ("unpriced", "-5", None), ("priced", "5", "0.02"),
    ]  # fmt: skip


def test_a_version_or_an_owner_is_no_correction():
    """A book with another version, id and tags that costs the same corrects nothing."""
    other = BOOK.replace('version: "1"', 'version: "2"').replace("id: law", "id: now")
    other += "tags: [{match: {consumer: p}, set: {team: t}}]\n"
    assert len(corrections([charges(BOOK, p=5).charges], charges(other, p=5), billing_month="2026-11")) == 0


def test_a_list_price_alone_is_corrected_too():
    """Where a contract sets what is paid, a corrected list price moves the list cost and no cent."""
    agreed = BOOK + 'overrides: [{match: {consumer: p}, sku: call, kind: contracted, price: "0.002"}]\n'
    now = charges(agreed.replace('price: "0.003"', 'price: "0.004"'), p=500)
    rows = corrections([charges(agreed, p=500).charges], now, billing_month="2026-11").to_pylist()
    assert [(row["list_cost"], row["contracted_cost"], row["billed_cost"]) for row in rows] == [
        ("-1.5", "-1", "-1.00"), ("2", "1", "1.00"),
    ]  # fmt: skip


def test_costs_of_another_scale_are_refused():
    """Booked costs with other places than the statement's are no cents of it."""
    fine = charges(BOOK + "rounding: {statement_scale: 3}\n", p=5)
    with pytest.raises(ValueError, match="has not 3 places"):
        corrections([charges(BOOK, p=5).charges], fine, billing_month="2026-11")


def test_terms_are_those_of_the_month():
    """A price that ends within the month is another term; one that ends after it is none, nor is a later price."""
    ends = {day: BOOK.replace("2026-01-01,", f"2026-01-01, to: {day},") for day in ("2026-10-20", "2026-11-01")}
    later = BOOK.replace('"0.003"}', '"0.003", to: 2027-01-01}, {from: 2027-01-01, mode: flat, price: "0.004"}')
    book, within, after, next_year = (prices.parse(text) for text in (BOOK, *ends.values(), later))
    assert not same_terms(book, within, MONTH)
    assert same_terms(book, after, MONTH)
    assert same_terms(book, next_year, MONTH)
