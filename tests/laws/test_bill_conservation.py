"""Money is conserved over random months: any usage, any price book, any time zone (tests/money_laws.py says how)."""

from hypothesis import HealthCheck, given, settings

from apicost.catalog import prices
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.usage_rows import gather
from apicost.report.month import monthly
from tests import money_laws
from tests.money_months import months
from tests.usage_months import usage


@given(months())
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_month_is_conserved(made):
    """Rows, statement, every grouping, days, corrections and journal agree to the last cent, in whatever order."""
    money_laws.conserved(made)


def test_a_month_without_charges_has_figures():
    """A month that bills nothing at all has a report whose every table sums to nothing."""
    book = prices.parse(
        "pricebook: {id: a, version: '1', currency: EUR, calendar: {time_zone: UTC}}\n"
        "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: '1'}]}}\n"
    )
    month = period.month("2026-11", "UTC")
    bill = Bill(statement=rate.rate(usage([]), book, month))
    figures = monthly.figures(bill, gather(usage([]), month))
    assert (figures.total_minor, figures.skus, figures.charges) == (0, (), 0)
