"""The kinds of bills that are read, and where each says what.

Rules of this file:
- Columns have the names that `bill_rules.column_name` gives: of the older Cost and Usage Report as of the newer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apicost.catalog.bill_files import EFFECT, BillFile, problem
from apicost.catalog.bill_rules import Rules
from apicost.core.reconcile import lines as kinds
from apicost.problems import InputError, Problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialect:
    """Where a kind of bill says what. Of several columns the first that a line has a value in.

    prices: pairs of unit price and the same in the pricing currency. quantities: pairs of quantity and unit.
    kind_of: what the column `kind` says -> of `lines.KINDS`; another text is usage.
    """

    name: str
    cost: str
    currency: str
    start: str
    needed: tuple[str, ...]
    billing_start: str
    billing_end: str
    kind: str
    kind_of: Mapping[str, str]
    quantities: tuple[tuple[str, str], ...]
    prices: tuple[tuple[str, str], ...]
    priced_quantity: tuple[str, str]
    correction: str = ""
    pricing_currency: str = ""
    costs_by_rate: tuple[str, str] = ("", "")
    labels: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()


FOCUS = Dialect(
    name="FOCUS cost and usage", cost="BilledCost", currency="BillingCurrency", start="ChargePeriodStart",
    needed=("BilledCost", "BillingCurrency", "ChargePeriodStart"),
    billing_start="BillingPeriodStart", billing_end="BillingPeriodEnd", kind="ChargeCategory",
    kind_of={"Tax": kinds.TAX, "Credit": kinds.CREDIT, "Adjustment": kinds.ADJUSTMENT},
    quantities=(("ConsumedQuantity", "ConsumedUnit"), ("PricingQuantity", "PricingUnit")),
    prices=(
        ("ContractedUnitPrice", "PricingCurrencyContractedUnitPrice"),
        ("ListUnitPrice", "PricingCurrencyListUnitPrice"),
    ),
    priced_quantity=("PricingQuantity", "PricingUnit"), correction="ChargeClass", pricing_currency="PricingCurrency",
    costs_by_rate=("EffectiveCost", "PricingCurrencyEffectiveCost"), labels=("ServiceName", "x_UsageType", "SkuId"),
    identity=("x_ChargeId",),
)  # fmt: skip
CUR = Dialect(
    name="AWS Cost and Usage Report", cost="line_item_unblended_cost", currency="line_item_currency_code",
    start="line_item_usage_start_date",
    needed=("line_item_unblended_cost", "line_item_currency_code", "line_item_usage_start_date"),
    billing_start="bill_billing_period_start_date", billing_end="bill_billing_period_end_date",
    kind="line_item_line_item_type",
    kind_of={
        "Tax": kinds.TAX, "Credit": kinds.CREDIT, "Refund": kinds.REFUND,
        **dict.fromkeys(("EdpDiscount", "BundledDiscount", "PrivateRateDiscount", "SppDiscount", "RiVolumeDiscount",
                         "Discount"), kinds.DISCOUNT),
    },
    quantities=(("line_item_usage_amount", "pricing_unit"),), prices=(("line_item_unblended_rate", ""),),
    priced_quantity=("line_item_usage_amount", "pricing_unit"),
    labels=("line_item_product_code", "line_item_usage_type"),
    identity=("identity_line_item_id", "identity_time_interval"),
)  # fmt: skip


def dialect_of(files: Sequence[BillFile], rules: Rules) -> Dialect:
    """The kind of bill that all files are. Raises InputError with every missing column."""
    found = {_closest(file): file for file in files}
    if len(found) > 1:
        names = " and ".join(f"{file.path} ({dialect.name})" for dialect, file in found.items())
        raise problem(str(files[0].path), f"the files are of several kinds: {names}", "name the files of one bill")
    (dialect,) = found
    problems = []
    for file in files:
        needed = [dialect.cost if rules.cost_column is None else rules.cost_column, *dialect.needed[1:], *rules.columns]
        missing = [name for name in dict.fromkeys(needed) if name not in file.columns]
        here = sorted(file.columns)
        shown = ", ".join(here[:8]) + (f" and {len(here) - 8} more" if len(here) > 8 else "")
        problems += [
            Problem(place=str(file.path), fact=f"there is no column {name}; the file has {shown}", effect=EFFECT,
                    fix=f"export it as {FOCUS.name} or as {CUR.name} with this column"
                    if name in dialect.needed else "add the column to the export, or mend the rules")
            for name in missing
        ]  # fmt: skip
    if problems:
        raise InputError(problems)
    return dialect


def _closest(file: BillFile) -> Dialect:
    """The kind of which the file has most columns."""
    return max((FOCUS, CUR), key=lambda dialect: len({*dialect.needed, dialect.kind} & set(file.columns)))
