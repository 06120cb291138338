"""FOCUS cost and usage as rows for every format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa

from apicost.core.rating.bill import Bill
from apicost.report import export
from apicost.report.export import ApiInfo
from apicost.report.focus import columns as focus_columns
from apicost.report.focus import rows as focus_rows
from apicost.report.focus.lint import Finding, Linter
from apicost.report.focus.settings import FocusSettings
from apicost.report.tables import charges
from apicost.report.tables.rows import Column, Kind, Rows

_API = "x_Api"
_COSTS = ("ListCost", "ContractedCost", "EffectiveCost", "BilledCost")
_ROUNDED = ("EffectiveCost", "BilledCost")
_FIRST = (
    _API, "ResourceName", "x_Consumer", "ChargeDescription", "PricingQuantity", "PricingUnit", "ListUnitPrice",
    "ListCost", "ContractedCost", "EffectiveCost", "BilledCost", "BillingCurrency", "ChargeCategory", "ChargeClass",
    "ChargePeriodStart", "ChargePeriodEnd",
)  # fmt: skip


def focus(
    bill: Bill,
    apis: Mapping[str, ApiInfo],
    version: str,
    settings: FocusSettings,
    api: str | None = None,
    told: Callable[[tuple[Finding, ...]], None] | None = None,
) -> Rows:
    """A bill as FOCUS has it: every charge with a cost; of one API if named.

    told: called once, with what the linter says of all rows as they are written for the first time.
    Raises ValueError for a version that is not written.
    """
    looked = told is None

    def pieces() -> Iterator[pa.Table]:
        nonlocal looked
        linter = None if looked else Linter(version, bill.total, is_csv=False)
        for piece in focus_rows.pieces(bill, apis, version, settings):
            if linter is not None:
                linter.feed(piece)
            keep = None if api is None else pa.array(export.keys_of(piece.rename_columns(_as_api(piece)), api))
            yield piece if keep is None else piece.filter(keep)
        if linter is not None and told is not None:
            looked = True
            told(linter.finish())

    scale = bill.statement.book.statement_scale
    columns = tuple(_column(column, scale) for column in focus_columns.written(version))
    return Rows(
        columns=columns, pieces=pieces, split=_API, sheets=charges.charges(bill, apis, api).sheets, first=_FIRST
    )


def _as_api(piece: pa.Table) -> list[str]:
    return ["api" if name == _API else name for name in piece.column_names]


def _column(column: focus_columns.Column, scale: int) -> Column:
    if column.kind == focus_columns.TIME:
        return Column(name=column.name, kind=Kind.TIME)
    if not column.is_decimal:
        return Column(name=column.name)
    places = scale if column.name in _ROUNDED else charges.SHOWN_PLACES if column.name in _COSTS else None
    return Column(name=column.name, kind=Kind.AMOUNT, places=places, added=column.name in _COSTS)
