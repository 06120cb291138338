"""FOCUS rows of random months: any usage, price book, currency and time zone, corrections included."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import HealthCheck, given, settings

from apicost.core.rating.statement import UNPRICED
from apicost.report.focus import rows
from apicost.report.focus.columns import VERSIONS
from apicost.report.focus.lint import lint
from tests.money_months import months
from tests.report.focus_months import APIS


@given(months())
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_month_is_right_and_whole(made):
    """The linter finds nothing wrong, rows are the priced charges in their order, and they sum to the bill."""
    bill = made.bill()
    charges = [row for piece in bill.pieces() for row in piece.to_pylist() if row["state"] != UNPRICED]
    for version in VERSIONS:
        found = [row for piece in rows.pieces(bill, APIS, version) for row in piece.to_pylist()]
        wrong = [str(finding) for finding in lint(rows.pieces(bill, APIS, version), version, bill.total)]
        assert wrong == []
        assert [row["x_ChargeId"] for row in found] == [row["charge_id"] for row in charges]
        for row, charge in zip(found, charges, strict=True):
            for name, source in (
                ("BilledCost", "billed_cost"), ("ListCost", "list_cost"), ("ContractedCost", "contracted_cost"),
                ("PricingQuantity", "quantity"), ("PricingCurrencyListUnitPrice", "unit_price"),
                ("PricingCurrencyContractedUnitPrice", "contracted_unit_price"),
            ):  # fmt: skip
                assert Fraction(row[name]) == Fraction(charge[source])
        assert sum(rows.left_out(bill).values()) == len(bill) - len(found)
