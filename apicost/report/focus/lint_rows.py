"""What must hold between the cells of one row of a FOCUS file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow.compute as pc

from apicost.report.focus.columns import SERVICE_CATEGORY, SERVICE_SUBCATEGORY
from apicost.report.focus.piece import Mask, Piece, distance_reaches

Wrong = tuple[str, str, Mask]

_INTEGRATION = (SERVICE_SUBCATEGORY, "Messaging", "Workflow Orchestration", "Other (Integration)")
_PRICED = ("SkuId", "SkuPriceId", "ListUnitPrice", "ContractedUnitPrice", "PricingCategory", "PricingQuantity")
# Name or type -> the id it belongs to, and whether an id must have it.
_NAMES = {
    "SubAccountName": ("SubAccountId", True), "RegionName": ("RegionId", True), "ResourceType": ("ResourceId", True),
    "ResourceName": ("ResourceId", False), "AllocatedResourceName": ("AllocatedResourceId", True),
    "SkuMeter": ("SkuId", False), "CommitmentDiscountName": ("CommitmentDiscountId", False),
}  # fmt: skip
_UNITS = {
    "PricingUnit": "PricingQuantity", "ConsumedUnit": "ConsumedQuantity",
    "CommitmentDiscountUnit": "CommitmentDiscountQuantity",
}  # fmt: skip


def of_rows(piece: Piece) -> Iterator[Wrong]:
    """What is wrong: rule, the column to look at, and rows."""
    usage, purchase, tax = (piece.equal("ChargeCategory", name) for name in ("Usage", "Purchase", "Tax"))
    correction = piece.equal("ChargeClass", "Correction")
    yield from _periods(piece, correction)
    yield from _costs(piece, correction)
    for name in _PRICED:
        if piece.has(name):
            yield "usage-incomplete", name, (usage | purchase) & ~correction & piece.null(name)
            yield "tax-priced", name, tax & piece.filled(name)
    if piece.has("ConsumedQuantity"):
        consumes = usage & ~piece.equal("CommitmentDiscountStatus", "Unused")
        yield "consumed-missing", "ConsumedQuantity", consumes & ~correction & piece.null("ConsumedQuantity")
        for name in ("ConsumedQuantity", "ConsumedUnit"):
            yield "consumed-elsewhere", name, ~consumes & piece.filled(name)
    for unit, quantity in _UNITS.items():
        if piece.has(unit, quantity):
            yield "unit-alone", unit, piece.filled(unit) != piece.filled(quantity)
    for name, (of, must) in _NAMES.items():
        if piece.has(name, of):
            yield "name-alone", name, piece.filled(name) & piece.null(of)
            if must:
                yield "name-missing", name, piece.null(name) & piece.filled(of)
    if piece.has("ResourceId", "ResourceName"):
        same = piece.filled("ResourceId") & ~piece.differ("ResourceName", "ResourceId")
        yield "name-repeats", "ResourceName", same
    yield "frequency-purchase", "ChargeFrequency", purchase & piece.equal("ChargeFrequency", "Usage-Based")
    yield "details-alone", "SkuPriceDetails", piece.filled("SkuPriceDetails") & piece.null("SkuPriceId")
    status = piece.filled("CommitmentDiscountStatus") & piece.null("CommitmentDiscountId")
    yield "commitment-status", "CommitmentDiscountStatus", status
    integration = piece.equal("ServiceCategory", SERVICE_CATEGORY)
    of_it = piece.equal("ServiceSubcategory", *_INTEGRATION)
    yield "subcategory", "ServiceSubcategory", piece.filled("ServiceSubcategory") & (integration != of_it)
    yield "unpriced", "x_State", piece.equal("x_State", "unpriced")


def _periods(piece: Piece, correction: Mask) -> Iterator[Wrong]:
    for kind in ("Billing", "Charge"):
        start, end = f"{kind}PeriodStart", f"{kind}PeriodEnd"
        both = piece.filled(start) & piece.filled(end)
        yield "period-order", end, both & ~piece.later(end, start)
        yield "period-end", end, piece.matches(end, r":59(\.9+)?Z$")
    outside = piece.later("BillingPeriodStart", "ChargePeriodStart") | piece.later(
        "ChargePeriodEnd", "BillingPeriodEnd"
    )
    yield "charge-outside", "ChargePeriodStart", outside & ~correction
    late = piece.later("ChargePeriodEnd", "BillingPeriodStart")
    yield "correction-period", "ChargePeriodEnd", late & correction


def _costs(piece: Piece, correction: Mask) -> Iterator[Wrong]:
    yield "list-product", "ListCost", piece.no_product("ListUnitPrice", "PricingQuantity", "ListCost")
    contracted = piece.no_product("ContractedUnitPrice", "PricingQuantity", "ContractedCost")
    yield "contracted-product", "ContractedCost", contracted
    local = piece.filled("PricingCurrency") & ~piece.differ("PricingCurrency", "BillingCurrency")
    for name in ("ListUnitPrice", "ContractedUnitPrice"):
        own = f"PricingCurrency{name}"
        if piece.has(own, name):
            wrong = local & piece.filled(own) & _unequal(piece, own, name)
            if piece.has("x_FxRate"):
                wrong |= piece.no_product(own, "x_FxRate", name)
            yield "pricing-currency-price", own, wrong
    if piece.has("PricingCurrencyEffectiveCost"):
        other = local & _unequal(piece, "PricingCurrencyEffectiveCost", "EffectiveCost")
        yield "pricing-currency-cost", "PricingCurrencyEffectiveCost", other
    billed_other = _unequal(piece, "EffectiveCost", "BilledCost")
    apart = piece.equal("ChargeCategory", "Tax", "Credit", "Adjustment")
    yield "effective-other", "EffectiveCost", apart & billed_other
    owed = piece.matches("EffectiveCost", "[1-9]")
    yield "purchase-effective", "EffectiveCost", piece.equal("ChargeCategory", "Purchase") & owed
    negative = piece.matches("BilledCost", r"^-[0-9.]*[1-9]") | piece.matches("PricingQuantity", r"^-[0-9.]*[1-9]")
    yield "usage-negative", "BilledCost", negative & piece.equal("ChargeCategory", "Usage") & ~correction
    if piece.has("x_ChargeId"):  # elsewhere BilledCost may hold credits
        yield "billed-far", "BilledCost", _far(piece, correction)


def _unequal(piece: Piece, left: str, right: str) -> Mask:
    """Rows in which two numbers differ; 1.0 and 1.00 do not."""
    wrong = piece.differ(left, right) & piece.filled(left) & piece.filled(right)
    rows = np.flatnonzero(wrong & piece.numbers(left, right))
    if len(rows):
        texts = [piece.texts(name).take(rows) for name in (left, right)]
        trimmed = [pc.utf8_rtrim(pc.utf8_rtrim(_pointed(text), characters="0"), characters=".") for text in texts]
        wrong[rows] = pc.not_equal(*trimmed).to_numpy(zero_copy_only=False)
    return wrong


def _pointed(texts: Any) -> Any:
    return pc.if_else(pc.match_substring(texts, "."), texts, pc.binary_join_element_wise(texts, ".", ""))


def _far(piece: Piece, correction: Mask) -> Mask:
    """Rows whose BilledCost is a unit of its last place or more from ContractedCost; of corrections, which are
    differences of two roundings, two units."""
    rows = np.flatnonzero(piece.numbers("BilledCost", "ContractedCost"))
    found = np.zeros(piece.rows, np.bool_)
    if not len(rows):
        return found
    billed, exact = (piece.texts(name).take(rows) for name in ("BilledCost", "ContractedCost"))
    length, at = pc.utf8_length(billed).to_numpy(), pc.find_substring(billed, ".").to_numpy()
    whole = (at < 0) | pc.match_substring_regex(billed, r"^-?[0-9]+\.0$").to_numpy(zero_copy_only=False)
    places = np.where(whole, 0, length - at - 1) * 2 + correction[rows]
    for kind in np.unique(places).tolist():
        mine = np.flatnonzero(places == kind)
        limit = Fraction(1 + kind % 2, 10 ** (kind // 2))
        found[rows[mine]] = distance_reaches(billed.take(mine), exact.take(mine), limit)
    return found
