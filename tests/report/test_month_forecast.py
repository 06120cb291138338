"""The forecast to month end: report/month/forecast.py, and how the command finds which days are complete."""

import json
from datetime import date, timedelta
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost import cli
from apicost.catalog import prices
from apicost.core.rating import days, period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.usage_rows import gather
from apicost.report.month import monthly, words
from apicost.report.month.forecast import DayQuantity, forecast, outlook, scenario, weekday_index
from apicost.store.lake import Lake
from tests.usage_months import usage

BEFORE, NOW = period.month("2026-09", "Europe/Berlin"), period.month("2026-10", "Europe/Berlin")
TEXT = """
pricebook: {id: b, version: "1", currency: EUR, calendar: {time_zone: Europe/Berlin}}
scopes: {internet: {peers: ["0.0.0.0/0"]}}
skus:
  call:
    meter: calls
    unit: Requests
    prices:
      - {from: 2026-01-01, to: 2026-10-21, mode: graduated, tiers: [{up_to: "20000", price: "0.01"}, {price: "0.005"}]}
      - {from: 2026-10-21, mode: flat, price: "0.02"}
overrides: [{match: {consumer: c}, kind: commitment, minimum: "130.00"}]
shared_costs: [{id: n, amount: "31", period: monthly, weights: {calls: "1"}, idle: {keep_unallocated: "0.5"}}]
budgets: [{match: {api: a}, month: 2026-10, amount: "300.00"}]
""".replace("{price:", "{up_to: null, price:")
BOOK = prices.parse(TEXT)


def of_days(month, calls, **keys):
    """Usage of so many calls on each day, and the days."""
    known = {"api": "a", "consumer": "c", "match_state": "matched"} | keys
    rows = [known | {"minute_unix_s": start, "calls": n} for start, n in zip(month.starts, calls, strict=False) if n]
    return usage(rows), [DayQuantity(day=d, calls=n, wire_bytes=0) for d, n in zip(month.days, calls, strict=False)]


def figures_of(calls, past, book=BOOK, **more):
    table, _ = of_days(NOW, calls)
    bill = Bill(statement=rate.rate(table, book, NOW))
    daily = gather(table.select(["minute_unix_s", *days.keys_needed(book), *days.sums_needed(book)]), NOW)
    return monthly.figures(bill, daily, complete_days=len(calls), past=past, **more)


def test_traffic_that_goes_on_is_rated_as_the_whole_month_would_be():
    """1,000 calls a day: the forecast after 12 days is the month's bill to the cent: tiers that are not reached yet, a
    price that begins on the 21st, a shared cost that is there once, a commitment that the rest of the month fills."""
    past = of_days(BEFORE, [1_000] * 30)[1]
    whole = rate.rate(of_days(NOW, [1_000] * 31)[0], BOOK, NOW)
    found = figures_of([1_000] * 12, past).forecast
    assert found.point_minor == found.low_minor == found.high_minor == whole.total_minor
    assert (found.as_of, found.days_left, found.days_known) == (date(2026, 10, 12), 19, 42)
    short = rate.rate(of_days(NOW, [1_000] * 12)[0], BOOK, NOW)
    assert found.so_far_minor == short.total_minor < whole.total_minor
    assert any(line.sku == "commitment" for line in short.lines) and not any(x.sku == "commitment" for x in whole.lines)


def test_a_weekday_has_its_own_level():
    """Saturdays and Sundays with half the calls: found, and expected of the weekends to come."""
    first = BEFORE.days[0]
    known = [(d, 500 if d.weekday() >= 5 else 1_000) for d in (first + timedelta(days=n) for n in range(40))]
    index = weekday_index(known)
    assert (round(index[0] / index[5], 9), round(sum(index), 9)) == (2, 7)
    coming = [known[-1][0] + timedelta(days=n) for n in range(1, 15)]
    found = outlook(known, coming)
    assert [round(day) for day in found.expected] == [500 if d.weekday() >= 5 else 1_000 for d in coming]
    assert found.error < 1


def test_few_days_say_nothing():
    """With less than a week known in all there is no forecast, nor where nothing was; a week alone is enough."""
    assert figures_of([1_000] * 6, []).forecast is None
    assert figures_of([1_000] * 7, []).forecast is not None
    assert figures_of([0] * 8 + [1], [], BOOK).forecast is not None
    table, here = of_days(NOW, [0] * 9 + [5])
    statement, daily = rate.rate(table, BOOK, NOW), gather(table, NOW)
    assert forecast(statement, daily, here, of_days(BEFORE, [9] * 30)[1], 8) is None


@given(st.lists(st.integers(0, 5_000), min_size=8, max_size=30), st.integers(1, 7))
@settings(deadline=None, max_examples=60)
def test_an_interval_holds_its_middle_and_scatter_widens_it(calls, at):
    """Low, expected and high are in this order, none below 0, and more scatter never makes them closer."""
    past = of_days(BEFORE, [1_000] * 30)[1]
    found = figures_of(calls, past).forecast
    if found is None:
        assert not any(calls)
        return
    assert 0 <= found.low_minor <= found.point_minor <= found.high_minor
    known = [(BEFORE.days[n], 1_000) for n in range(28)]
    rough = [(day, 1_000 + (700 if n % 2 else -700) * (n % 7 == at % 7)) for n, (day, _) in enumerate(known)]
    coming = [BEFORE.days[28], BEFORE.days[29]]
    assert outlook(rough, coming).error >= outlook(known, coming).error


@given(st.lists(st.integers(0, 9_999), min_size=31, max_size=31), st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_a_scenario_keeps_what_was_measured(calls, complete):
    """The complete days stand as they were; without growth nothing is added, with it each stretch gets its days."""
    table, _ = of_days(NOW, calls)
    daily = gather(table, NOW)
    left = len(NOW.days) - complete
    cuts = BOOK.price_changes(NOW.days)
    flat = scenario(daily, BOOK, 31, complete, [0] * left, [0] * left, cuts)
    assert int(flat.sums["calls"].sum()) == sum(calls[:complete])
    grown = scenario(daily, BOOK, 31, complete, [10**9] * left, [0] * left, cuts)
    assert int(grown.sums["calls"].sum()) == sum(calls[:complete]) * (1 + left)
    later = grown.day == 20
    assert int(grown.sums["calls"][later].sum()) == sum(calls[:complete]) * min(left, 11) + sum(calls[20:complete])


def test_budgets_are_forecast_and_sentences_say_so():
    """A budget's usage grows as all usage does; the first sentence holds the forecast against the month before."""
    past = of_days(BEFORE, [1_000] * 30)[1]
    figures = figures_of([1_000] * 12, past)
    (held,) = figures.forecast.budgets
    so_far = figures.budgets[0]
    added = figures.forecast.point_minor - figures.forecast.so_far_minor
    assert so_far.billed_minor < held.point_minor
    assert abs(held.point_minor - so_far.billed_minor - added) <= 2 * 130 * 100  # the commitment's shortfall goes
    assert words.summary(figures).startswith("In October 2026 the gateway's APIs cost ")
    assert " so far; about " in words.summary(figures)
    assert any("complete to 2026-10-12" in line for line in words.attention(figures))


def write_ledger(folder, calls, hour=0):
    """A ledger of September and the first days of October, a bucket a day at an hour."""
    with Lake.open(folder) as lake:
        for number, (month, amounts) in enumerate(((BEFORE, [1_000] * 30), (NOW, calls))):
            rows = [
                {"minute_unix_s": start + 3_600 * hour, "api": "a", "match_state": "matched", "calls": n}
                for start, n in zip(month.starts, amounts, strict=False)
                if n
            ]
            lake.commit([f"in-{number}"], {"usage": usage(rows)})
    return folder


def reported(folder, ledger, *more):
    book = folder / "prices.yaml"
    book.write_text(TEXT)
    arguments = ["report", "--month", "2026-10", "--ledger", str(ledger), "--prices", str(book), "--format", "json"]
    code = cli.main([*arguments, "--out", str(folder / "out"), *more])
    return json.loads((folder / "out/report.json").read_text())["forecast"] if code == 0 else code


@pytest.mark.parametrize(
    ("days_with_data", "hour", "as_of"),
    [(12, 0, "2026-10-11"), (12, 23, "2026-10-12"), (31, 0, None), (30, 23, "2026-10-30")],
)
def test_the_command_finds_the_last_complete_day(tmp_path, days_with_data, hour, as_of):
    """A day is complete where data reach into its last hour; a month whose last day has data has ended."""
    ledger = write_ledger(tmp_path / "ledger", [1_000] * days_with_data, hour)
    found = reported(tmp_path, ledger)
    assert (found and found["as_of"]) == as_of


def test_the_command_takes_the_last_complete_day(tmp_path):
    """--as-of says it; a day of another month is refused, and a month that is followed by data has ended."""
    ledger = write_ledger(tmp_path / "ledger", [1_000] * 12)
    found = reported(tmp_path, ledger, "--as-of", "2026-10-08")
    assert (found["as_of"], found["days_left"], found["coverage_pct"]) == ("2026-10-08", 23, 80)
    assert Decimal(found["low"]) <= Decimal(found["billed_cost"]) <= Decimal(found["high"])
    assert reported(tmp_path, ledger, "--as-of", "8") == 2
    assert reported(tmp_path, ledger, "--as-of", "2026-09-08") == 2
    book = tmp_path / "prices.yaml"
    arguments = ["report", "--month", "2026-09", "--ledger", str(ledger), "--prices", str(book), "--format", "json"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/report.json").read_text())["forecast"] is None


def test_the_forecast_does_not_depend_on_the_order_of_usage():
    """Usage shuffled: the same figures."""
    rng = np.random.default_rng(4)
    calls = rng.integers(500, 1_500, 12).tolist()
    past = of_days(BEFORE, rng.integers(500, 1_500, 30).tolist())[1]
    table, here = of_days(NOW, calls)
    mixed = table.take(rng.permutation(table.num_rows))
    found = [
        forecast(rate.rate(each, BOOK, NOW), gather(each, NOW), here, past, 12, budgets=()) for each in (table, mixed)
    ]
    assert found[0] == found[1] and found[0].low_minor < found[0].high_minor
