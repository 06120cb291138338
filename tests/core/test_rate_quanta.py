"""Calls by started block: what a SKU with a quantum counts, in every mode, and what it can't know."""

from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core import records
from apicost.core.meter import meter
from apicost.core.rating import days, period, rate
from apicost.core.rating.usage_rows import gather
from apicost.report import explain
from tests.store.batches import NOON, SCOPES, exchange, table
from tests.usage_months import usage

HEAD = "pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: Europe/Berlin}}\n"
NOVEMBER = period.month("2026-11", "Europe/Berlin")
KIB = 1 << 10


def book(price, size=512, more=""):
    return prices.parse(
        HEAD + f"skus: {{call: {{meter: calls, quantum: {{bytes: {size * KIB}, round: up}}, unit: Requests, {more} "
        f"prices: [{{from: 2026-01-01, {price}}}]}}}}\n"
    )  # fmt: skip


def rated(rows, price, size=512, more=""):
    """The charges of the SKU's statement; every explanation agrees, and days sum to the total."""
    found = rate.rate(rows, book(price, size, more), NOVEMBER)
    for charge in found.charges.to_pylist():
        explanation = explain.explain(found, charge["charge_id"])
        assert explanation is not None and explanation.agrees, explanation
    by_day, rest = days.by_day(found, gather(rows, NOVEMBER))
    assert sum(day.billed_minor for day in by_day) + rest == found.total_minor
    return [charge for charge in found.charges.to_pylist() if charge["meter"] in ("calls", *COUNTED)]


COUNTED = (*records.QUANTA.values(), "calls_without_quanta")


def metered(*sizes):
    """The usage of requests of so many bytes."""
    return meter(table([exchange(downstream_out_app_bytes=n) for n in sizes]), SCOPES)


def test_each_started_block_of_a_request_is_a_call():
    """1 B, 512 KiB and 512 KiB + 1 are 1, 1 and 2 calls: 4 in all, although three requests came."""
    (charge,) = rated(metered(1, 512 * KIB, 512 * KIB + 1), "price: '0.5'")
    assert (charge["meter"], charge["quantity"], charge["unit"]) == ("quanta_512k", "4", "Requests")
    assert charge["list_cost"] == "2"


TIERS = "[{up_to: '5', price: '3'}, {up_to: null, price: '1'}]"
PRICES = {
    "flat": ("mode: flat, price: '2'", "", [("flat", "7", "14")]),
    "graduated": (f"tiers: {TIERS}", "", [("tier 1", "5", "15"), ("tier 2", "2", "2")]),
    "volume": (f"mode: volume, tiers: {TIERS}", "", [("tier 2", "7", "7")]),
    "package": ("mode: package, size: '5', price: '4'", "", [("package", "2", "8")]),
    "free": ("price: '2'", "free: {quantity: '6', share: pro_rata},", [("free", "6", "0"), ("flat", "1", "2")]),
    "pool": (f"pool: consumer, tiers: {TIERS}", "", [("tier 1", "5", "15"), ("tier 2", "2", "2")]),
}  # fmt: skip


@pytest.mark.parametrize(("price", "more", "wanted"), PRICES.values(), ids=PRICES)
def test_blocks_are_priced_in_every_mode(price, more, wanted):
    """Requests of 1, 32, 33 and 95 KiB in blocks of 32 KiB are 1 + 1 + 2 + 3 calls."""
    found = rated(metered(KIB, 32 * KIB, 33 * KIB, 95 * KIB), price, 32, more)
    assert [(c["tier"], c["quantity"], c["list_cost"]) for c in found] == wanted


def test_requests_without_counted_blocks_are_unpriced():
    """Usage from before blocks were counted is no charge of 0 or of one block each: it stays as what it is."""
    start = NOVEMBER.start_unix_s
    rows = usage([
        {"minute_unix_s": start, "api": "a", "calls": 10, "calls_without_quanta": 10},
        {"minute_unix_s": start + 60, "api": "a", "calls": 2, "quanta_512k": 3},
    ])  # fmt: skip
    priced, unpriced = rated(rows, "price: '1'")
    assert (priced["quantity"], priced["list_cost"]) == ("3", "3")
    assert (unpriced["state"], unpriced["quantity"], unpriced["meter"]) == ("unpriced", "10", "calls_without_quanta")
    assert (unpriced["sku"], unpriced["reason"], unpriced["list_cost"]) == ("call", rate.NO_BLOCKS, None)


def test_only_what_a_sku_picks_lacks_its_blocks():
    """Requests of another API that no SKU covers are not this SKU's: they have no SKU, and that is said."""
    start = NOVEMBER.start_unix_s
    rows = usage([{"minute_unix_s": start, "api": api, "calls": 1, "calls_without_quanta": 1} for api in ("a", "b")])
    found = rated(rows, "price: '1'", more="where: {api: a},")
    assert [(c["api"], c["sku"], c["meter"], c["reason"]) for c in found] == [
        ("a", "call", "calls_without_quanta", rate.NO_BLOCKS), ("b", None, "calls", rate.NO_SKU),
    ]  # fmt: skip


def test_a_statement_asks_for_no_more_than_it_needs():
    """Blocks of other sizes are not read."""
    assert set(rate.sums_needed(book("price: '1'"))) & set(COUNTED) == {"quanta_512k", "calls_without_quanta"}


SIZES = st.lists(st.tuples(st.integers(0, 1 << 22), st.integers(0, 1 << 22), st.sampled_from("ab"), st.integers(0, 3)),
                 min_size=1, max_size=30)  # fmt: skip


@given(requests=SIZES, size=st.sampled_from([32, 64, 512]), cut=st.integers(0, 30))
def test_every_request_pays_for_the_blocks_that_it_begins(requests, size, cut):
    """Whatever the requests, minutes and batches: the cost is one price for each started block of each request."""
    rows = [
        exchange(downstream_in_app_bytes=read, downstream_out_app_bytes=sent, consumer=consumer, ended_s=NOON + 60 * at)
        for read, sent, consumer, at in requests
    ]
    batches = [meter(table(lot), SCOPES) for lot in (rows[:cut], rows[cut:]) if lot]
    blocks = sum(max(1, -(-(read + sent) // (size * KIB))) for read, sent, _, _ in requests)
    found = rated(pa.concat_tables(batches).unify_dictionaries(), "price: '0.25'", size)
    assert sum(Fraction(c["list_cost"]) for c in found) == Fraction(blocks, 4)
    assert sum(Fraction(c["billed_cost"]) for c in found) == Fraction(blocks * 25, 100)
