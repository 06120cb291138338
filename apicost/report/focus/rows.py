"""A month's bill as rows of FOCUS's cost and usage.

Rules of this file:
- One row per charge, in the bill's order; a charge without a price has no cost that could be told, so it has no row
  (`left_out` says which). The rows' BilledCost sums to the bill's total.
- Unit prices are in the billing currency: price x rate, exactly, so that unit price x PricingQuantity is the list or
  contracted cost to the last digit; the PricingCurrency columns have the book's own prices.
- A shared cost is one origin charge: its rows have the same SKU, price and description. FOCUS 1.4 wants all else the
  same too, and names who bears a row in the Allocated columns; 1.2 has none, there the row is its bearer's.
- Values are made once per distinct combination of what they are made of, never per row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.bill import PIECE_ROWS, Bill
from apicost.core.rating.period import utc_text
from apicost.core.rating.pricebook import COMMITMENT, UNITS
from apicost.core.rating.statement import CORRECTION, PURCHASE, UNPRICED, USAGE
from apicost.report.export import ApiInfo, tags_of
from apicost.report.focus import columns as focus_columns
from apicost.report.focus.columns import MADE, SERVICE_CATEGORY, SERVICE_SUBCATEGORY
from apicost.report.focus.quantities import Quantities
from apicost.report.focus.settings import FocusSettings

Values = tuple[str | None, ...]

# The category of fixed amounts. They are bought month by month, yet a Purchase is to FOCUS's validator what is paid in
# advance for later charges: its EffectiveCost must be 0, and the amounts would be missing from every effective total.
_FIXED = "Adjustment"


def columns(version: str) -> tuple[str, ...]:
    """Names of the columns of a file, in their order. Raises ValueError for a version that is not written."""
    return tuple(column.name for column in focus_columns.written(version))


def pieces(
    bill: Bill,
    apis: Mapping[str, ApiInfo],
    version: str = "1.2",
    settings: FocusSettings | None = None,
    rows: int = PIECE_ROWS,
) -> Iterator[pa.Table]:
    """The rows of a bill, from at most so many charges at a time; columns as `columns(version)` says, all of text.

    Decimals are plain and have a point. Columns are strings or dictionaries of strings, null is null.
    Raises ValueError for a version that is not written.
    """
    maker = _Maker(bill, apis, version, settings or FocusSettings())
    start = 0
    for charges in bill.pieces(rows):
        yield maker.table(charges, start)
        start += len(charges)


def left_out(bill: Bill) -> dict[tuple[str, str], int]:
    """How many charges have no row as they have no price, by what was measured (SKU or measure) and the reason."""
    counts: dict[tuple[str, str], int] = {}
    statement = bill.statement
    per_line = np.bincount(statement.line, minlength=len(statement.lines)).tolist()
    unpriced = [
        (line.sku or line.meter, line.reason or "", count)
        for line, count in zip(statement.lines, per_line, strict=True)
        if line.price is None and count
    ]
    late = bill.corrections.select(["sku", "meter", "reason", "state"]).to_pylist()
    unpriced += [(row["sku"] or row["meter"], row["reason"] or "", 1) for row in late if row["state"] == UNPRICED]
    for what, why, count in unpriced:
        counts[what, why] = counts.get((what, why), 0) + count
    return counts


class _Maker:
    """Makes rows of one bill, piece by piece."""

    def __init__(self, bill: Bill, apis: Mapping[str, ApiInfo], version: str, settings: FocusSettings) -> None:
        self.names = columns(version)
        self.bill = bill
        self.apis = apis
        self.splits = version != "1.2"  # whether shares of a shared cost are told in columns of their own
        self.meters = {sku.id: "+".join(sku.columns) for sku in bill.statement.book.skus}
        self.quantities = Quantities(bill, with_splits=self.splits)
        period, book = bill.statement.period, bill.statement.book
        issuer = settings.invoice_issuer_name or book.id
        provider = settings.provider_name or issuer
        account = settings.billing_account_id or book.id
        self.fixed: dict[str, str | None] = {
            "BillingAccountId": account,
            "BillingAccountName": settings.billing_account_name or account,
            "BillingPeriodStart": utc_text(period.start_unix_s),
            "BillingPeriodEnd": utc_text(period.end_unix_s),
            "CommitmentDiscountStatus": None,
            "HostProviderName": settings.host_provider_name or provider,
            "InvoiceId": settings.invoice_id or None,
            "InvoiceIssuerName": issuer,
            "ProviderName": provider,
            "PublisherName": settings.publisher_name or provider,
            "RegionId": settings.region_id or None,
            "RegionName": settings.region_name or settings.region_id or None,
            "ServiceCategory": SERVICE_CATEGORY,
            "ServiceName": settings.service_name,
            "ServiceProviderName": provider,
            "ServiceSubcategory": SERVICE_SUBCATEGORY,
        }

    def table(self, charges: pa.Table, start: int) -> pa.Table:
        """Rows of some charges, the first of which is the bill's number `start`."""
        priced = pc.is_valid(charges.column("billed_cost")).to_numpy(zero_copy_only=False)
        position = start + np.flatnonzero(priced)
        charges = charges.filter(pa.array(priced)).combine_chunks()
        made = self._money(charges, position) | self._sold(charges) | self._whose(charges, position)
        made |= {name: charges.column(source) for name, source in focus_columns.OURS.items() if name not in made}
        made |= {name: _constant(value, len(charges)) for name, value in self.fixed.items()}
        return pa.table([_coded(name, made[name]) for name in self.names], names=list(self.names))

    def _money(self, charges: pa.Table, position: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Costs, prices and quantities."""
        billed = decimal_texts(charges.column("billed_cost"))
        quantity = decimal_texts(charges.column("quantity"))
        prices = _by(
            charges, ("unit_price", "contracted_unit_price", "fx_rate"), _unit_prices,
            ("ListUnitPrice", "ContractedUnitPrice", "PricingCurrencyListUnitPrice",
             "PricingCurrencyContractedUnitPrice", "x_FxRate"),
        )  # fmt: skip
        consumed, consumed_unit = self.quantities.consumed(charges, position)
        foreign: Any = pc.not_equal(charges.column("pricing_currency").cast(pa.string()),
                               charges.column("currency").cast(pa.string()))  # fmt: skip
        effective = billed
        if pc.any(foreign).as_py():
            own = decimal_texts(self.quantities.in_pricing_currency(charges, position))
            effective = pc.if_else(foreign.combine_chunks(), own, billed)
        return {
            "BilledCost": billed, "EffectiveCost": billed, "BillingCurrency": charges.column("currency"),
            "ListCost": decimal_texts(charges.column("list_cost")),
            "ContractedCost": decimal_texts(charges.column("contracted_cost")),
            "PricingQuantity": quantity, "PricingCurrency": charges.column("pricing_currency"),
            "PricingCurrencyEffectiveCost": effective,
            "ConsumedQuantity": decimal_texts(consumed), "ConsumedUnit": consumed_unit, **prices,
        }  # fmt: skip

    def _sold(self, charges: pa.Table) -> dict[str, Any]:
        """What was sold, and when."""
        sold = _by(
            charges, ("sku", "sku_price_id", "tier", "meter", "unit", "unit_price", "contracted_unit_price",
                      "pricing_currency", "charge_category", "charge_class", "consumer"),
            partial(_sku_columns, self.meters),
            ("SkuId", "SkuPriceId", "SkuMeter", "SkuPriceDetails", "PricingUnit", "ChargeDescription",
             "ChargeFrequency", "ChargeCategory"),
            blank={"consumer": ("charge_category", USAGE)},
        )  # fmt: skip
        return sold | {
            "ChargeClass": charges.column("charge_class"),
            "ChargePeriodStart": charges.column("period_start"),
            "ChargePeriodEnd": charges.column("period_end"),
            "PricingCategory": charges.column("pricing_category"),
        }

    def _whose(self, charges: pa.Table, position: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Who and what bears the charges."""
        tagged = tags_of(charges, self.apis, self.bill.statement.book.tags)
        owned = pa.table([charges.column("api"), *tagged.columns], names=["api", *tagged.column_names])
        tag_texts = _by(owned, tuple(owned.column_names), self._tags, ("Tags",))
        resource = _by(
            charges, ("api", "operation_id", "method", "path_template", "match_state", "route_id", "service_id"),
            self._resource, ("ResourceId", "ResourceName", "ResourceType", "SubAccountId", "SubAccountName"),
        )  # fmt: skip
        if not self.splits:
            return resource | tag_texts
        is_share = _is_share(charges)
        split = _by(charges, ("sku", "sku_price_id", "tier", "meter", "state", "charge_category"), _split,
                    ("AllocatedMethodId", "shared", "bearer"))  # fmt: skip
        whole: dict[str, Any] = {name: _only(~is_share, column) for name, column in (resource | tag_texts).items()}
        whole["ResourceId"] = pc.coalesce(_plain(split["shared"]), _plain(whole["ResourceId"]))
        whole["ResourceType"] = pc.if_else(pa.array(is_share), "Shared Cost", _plain(whole["ResourceType"]))
        borne = pc.is_valid(_plain(split["bearer"])).to_numpy(zero_copy_only=False)
        bearer = pc.fill_null(_plain(resource["ResourceId"]), "unattributed")
        name = pc.coalesce(_plain(resource["ResourceName"]), bearer)
        return whole | {
            "AllocatedMethodId": split["AllocatedMethodId"],
            "AllocatedMethodDetails": self.quantities.split_details(position),
            "AllocatedResourceId": _only(borne, bearer),
            "AllocatedResourceName": _only(borne, name),
            "AllocatedTags": _only(borne, tag_texts["Tags"]),
        }

    def _tags(self, row: Values) -> Values:
        api, owner, team, cost_center = row
        info = self.apis.get(api or "", ApiInfo())
        tags = dict(info.tags)
        own = {"owner": owner, "team": team, "cost_center": cost_center}
        tags |= {name: value for name, value in own.items() if value}
        return (_json(dict(sorted(tags.items()))) if tags else None,)

    def _resource(self, row: Values) -> Values:
        api, operation, method, template, state, route, service = row
        title = self.apis.get(api or "", ApiInfo()).title or api
        if operation:
            resource, kind = f"{api}/{operation}" if api else operation, "API Operation"
            name = f"{method} {template}" if method and template else None
            name = None if name in (operation, resource) else name
        elif api:
            resource, kind, name = f"{api}/{state or 'no operation'}", "API", None
        elif route or service:
            resource, kind, name = (f"route/{route}" if route else f"service/{service}"), "Gateway Route", None
        elif state:
            resource, kind, name = f"gateway/{state}", "Gateway", None
        else:
            return (None, None, None, None, None)
        return (resource, name, kind, api, title)


def decimal_texts(texts: Any) -> Any:
    """Plain decimals as FOCUS wants them: a whole number has a point and a zero, null stays null."""
    texts = _plain(texts)
    return pc.if_else(pc.match_substring(texts, "."), texts, pc.binary_join_element_wise(texts, ".0", ""))


def unit_text(unit: str) -> str:
    """A pricing unit in FOCUS's form: a number and a plural, or the plural alone."""
    prefix = "package of "
    if unit == "Month":
        return "Months"
    if not unit.startswith(prefix):
        return unit
    size, _, sold = unit[len(prefix) :].partition(" ")
    base = {"calls": "Requests", "tokens": "Tokens"}.get(UNITS[sold][0], sold) if sold in UNITS else sold
    scale = UNITS[sold][1] if base != sold else 1
    count = Decimal(size) * scale
    if count != int(count):  # part of a gigabyte: FOCUS wants a whole number of units
        count, base = Decimal(size) * UNITS[sold][1], "B"
    return f"{int(count)} {base}"


def _unit_prices(row: Values) -> Values:
    """List and contracted price in the billing currency, then in the pricing currency, and the rate."""
    listed, contracted, rate = row
    if listed is None or contracted is None or rate is None:
        return (None,) * 5
    factor = Fraction(rate)
    here = (money.plain(money.exact_decimal(Fraction(price) * factor)) for price in (listed, contracted))
    return tuple(_pointed(text) for text in (*here, listed, contracted, rate))


def _pointed(text: str) -> str:
    return text if "." in text else text + ".0"


def _sku_columns(meters: Mapping[str, str], row: Values) -> Values:
    """SKU, its price and meter, details, unit, description and frequency."""
    sku, price_id, tier, meter, unit, listed, contracted, currency, category, class_, consumer = row
    unit = unit_text(unit or "")
    if category == USAGE:
        each = unit.removesuffix("s") if " " not in unit else unit
        paid = f"{listed} {currency} per {each}"
        if contracted != listed:
            paid = f"{contracted} {currency} per {each} by contract, listed at {listed}"
        description = f"{sku}, {tier}: {paid}"
        meter = meters.get(sku or "", meter)  # all that the SKU adds up, whatever of it this price is for
        details, frequency = _json({"x_Tier": tier}), "Usage-Based"
    elif sku == COMMITMENT:
        meter, details, frequency = "Minimum of a commitment", None, "Recurring"
        description = f"What the month of {consumer} falls short of its committed minimum"
    else:
        method = _method(sku, price_id, tier, meter)
        price_id, meter, details, frequency = f"{sku}/{method}", "Monthly amount", None, "Recurring"
        description = f"{sku}: a monthly amount, split by {method}"
    if class_ == CORRECTION:
        description = f"Correction of {description}"
    return (sku, price_id, meter, details, unit, description, frequency, USAGE if category == USAGE else _FIXED)


def _method(sku: str | None, price_id: str | None, tier: str | None, meter: str | None) -> str:
    """The method of a shared cost: its price id is cost/method, for a share cost/method/weight."""
    text = (price_id or "").removeprefix(f"{sku}/")
    return text.removesuffix(f"/{meter}") if (tier or "").startswith("share by ") else text


def _split(row: Values) -> Values:
    """Of a share: its method, the cost that is shared, and whether somebody bears it."""
    sku, price_id, tier, meter, state, category = row
    if category != PURCHASE or sku == COMMITMENT:
        return (None, None, None)
    return (_method(sku, price_id, tier, meter), sku, None if state == "unallocated" else "yes")


def _is_share(charges: pa.Table) -> npt.NDArray[np.bool_]:
    category, categories = records.codes(charges, "charge_category")
    sku, skus = records.codes(charges, "sku")
    fixed = np.array([name == PURCHASE for name in categories] + [False])[category]
    shared: npt.NDArray[np.bool_] = fixed & ~np.array([name == COMMITMENT for name in skus] + [False])[sku]
    return shared


def _by(
    table: pa.Table,
    names: Sequence[str],
    make: Callable[[Values], Values],
    made: Sequence[str],
    blank: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Columns made from each distinct combination of others, once.

    blank: a column that counts as null where another has a value, so that there are fewer combinations.
    """
    combined, of_column = np.zeros(len(table), np.int64), []
    for name in names:
        codes, values = records.codes(table, name)
        if blank and name in blank:
            other, text = blank[name]
            other_codes, other_values = records.codes(table, other)
            codes = np.where(np.array([v == text for v in other_values] + [False])[other_codes], -1, codes)
        of_column.append((codes, values))
        # Numbered anew at each step: the product of many columns' sizes would pass an int64.
        combined = np.unique(combined * (len(values) + 1) + codes + 1, return_inverse=True)[1]
    first = np.unique(combined, return_index=True)[1]
    rows = [[values[code] if code >= 0 else None for code in codes[first].tolist()] for codes, values in of_column]
    results = [make(row) for row in zip(*rows, strict=True)]
    out = {}
    for place, name in enumerate(made):
        texts = [result[place] for result in results]
        dictionary: Any = pa.array(texts, pa.string()).dictionary_encode()
        indices = dictionary.indices.fill_null(-1).to_numpy(zero_copy_only=False)[combined] if len(texts) else combined
        out[name] = pa.DictionaryArray.from_arrays(
            pa.array(indices, pa.int32(), mask=indices < 0), dictionary.dictionary
        )
    return out


def _plain(column: Any) -> Any:
    """A column as one array of strings."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no rows: Arrow keeps it chunked
        column = pa.array([], column.type)
    return column.cast(pa.string())


def _coded(name: str, column: Any) -> Any:
    """Texts of which there are few as a dictionary: whoever writes them looks at each once."""
    if name in MADE or name == "AllocatedMethodDetails" or pa.types.is_dictionary(column.type):
        return column
    return column.dictionary_encode()


def _only(keep: npt.NDArray[np.bool_], column: Any) -> Any:
    """A column with null where it is not kept."""
    return pc.if_else(pa.array(keep), _plain(column), pa.scalar(None, pa.string()))


def _constant(value: str | None, count: int) -> Any:
    code = np.full(count, -1 if value is None else 0, np.int32)
    return records.text(code, [] if value is None else [value])


def _json(content: Mapping[str, str | None]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
