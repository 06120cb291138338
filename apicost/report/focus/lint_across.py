"""What must hold across the rows of a FOCUS file: of SKUs, prices, charges and shared costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.report.focus.piece import Mask, Piece, Texts

# What rows of one origin charge may differ in.
_OWN = ("Allocated", "BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "PricingQuantity",
        "PricingCurrencyEffectiveCost", "ConsumedQuantity", "x_")  # fmt: skip
_ORIGIN = ("SkuId", "ResourceId", "ChargePeriodStart", "ChargePeriodEnd", "ChargeClass")

_ONE_ELEMENT = (
    r'^\{"Elements":\[\{"AllocatedRatio":0\.(?P<part>[0-9]{1,15})'
    r'(?:,"UsageUnit":"[A-Za-z]+","UsageQuantity":[0-9]+(?:\.[0-9]+)?)?\}\]\}$'
)


class Across:
    """What was seen so far."""

    def __init__(self) -> None:
        self.sku_of: dict[str, str | None] = {}
        self.meter_of: dict[str, str | None] = {}
        self.currency_of: dict[str, str | None] = {}
        self.price_of: dict[Texts, str | None] = {}
        self.origins: dict[Texts, dict[str, str | None]] = {}
        self.ratios: dict[Texts, Fraction] = {}
        self.charges: list[npt.NDArray[np.uint64]] = []

    def of_piece(self, piece: Piece) -> Iterator[tuple[str, str, int, str]]:
        """What is wrong: rule, column, row of the piece, and detail."""
        all_rows = np.ones(piece.rows, np.bool_)
        yield from self._one(piece, "price-parent", self.sku_of, ("SkuPriceId", "SkuId"), all_rows)
        yield from self._one(piece, "meter-changes", self.meter_of, ("SkuId", "SkuMeter"), all_rows)
        account = ("BillingAccountId", "BillingCurrency")
        yield from self._one(piece, "currency-mixed", self.currency_of, account, all_rows)
        first = ~piece.equal("ChargeClass", "Correction")
        name = "PricingCurrencyListUnitPrice" if piece.has("PricingCurrencyListUnitPrice") else "ListUnitPrice"
        for row, (price_id, currency, start, price) in piece.distinct(
            ("SkuPriceId", "PricingCurrency", "BillingPeriodStart", name), first & piece.filled("SkuPriceId")
        ):
            known = self.price_of.setdefault((price_id, currency, start), price)
            if price is not None and known is not None and _number(price) != _number(known):
                yield "price-changes", name, row, f"{price_id} is {known} in a row above"
        if piece.has("AllocatedMethodId"):
            yield from self._allocated(piece)
        if piece.has("x_ChargeId"):
            self.charges.append(hashes(piece.texts("x_ChargeId").filter(first & piece.filled("x_ChargeId"))))

    def at_end(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the file as a whole: rule and detail."""
        for origin, ratio in self.ratios.items():
            if ratio != 1:
                yield "allocated-ratio", f"those of {origin[0]} sum to {float(ratio):.15f}"
        if self.charges:
            every = np.concatenate(self.charges)
            every.sort()
            twice = int((every[1:] == every[:-1]).sum())
            if twice:
                yield "charge-twice", f"{twice} rows repeat an x_ChargeId"

    def _one(
        self, piece: Piece, rule: str, seen: dict[str, str | None], names: tuple[str, str], rows: Mask
    ) -> Iterator[tuple[str, str, int, str]]:
        """The second column is decided by the first."""
        for row, (key, value) in piece.distinct(names, rows & piece.filled(names[0])):
            assert key is not None
            known = seen.setdefault(key, value)
            if known != value:
                yield rule, names[1], row, f"{names[0]} {key} has {known!r} in a row above"

    def _allocated(self, piece: Piece) -> Iterator[tuple[str, str, int, str]]:
        split = piece.filled("AllocatedMethodId")
        for name in ("AllocatedMethodDetails", "AllocatedResourceId", "AllocatedResourceName", "AllocatedTags"):
            for row in np.flatnonzero(piece.filled(name) & ~split).tolist():
                yield "allocated-alone", name, row, ""
        if not split.any():
            return
        dims = tuple(name for name in piece.columns if not name.startswith(_OWN))
        for row, texts in piece.distinct(dims, split):
            values = dict(zip(dims, texts, strict=True))
            known = self.origins.setdefault(tuple(values.get(name) for name in _ORIGIN), values)
            for name in dims:
                if values[name] != known[name]:
                    yield "allocated-origin", name, row, f"another row of {values.get('SkuId')} has {known[name]!r}"
        for row, (tags, allocated) in piece.distinct(("Tags", "AllocatedTags"), split):
            both = _keys(tags) & _keys(allocated)
            if both:
                yield "allocated-tags", "AllocatedTags", row, f"Tags have {', '.join(sorted(both))} too"
        first = ~piece.equal("ChargeClass", "Correction")
        detailed = split & first & piece.filled("AllocatedMethodDetails")
        origins = piece.groups(_ORIGIN, detailed)
        for rows, key in origins:
            yield from self._ratios(piece, rows, key)

    def _ratios(self, piece: Piece, rows: npt.NDArray[np.int64], key: Texts) -> Iterator[tuple[str, str, int, str]]:
        """Add up the ratios of one origin charge's rows."""
        texts: Any = piece.texts("AllocatedMethodDetails").take(pa.array(rows))
        found: Any = pc.extract_regex(texts, _ONE_ELEMENT)  # this project's own form: read by Arrow
        ours = pc.is_valid(found).to_numpy(zero_copy_only=False)
        parts = pc.utf8_rpad(pc.struct_field(found.filter(pa.array(ours)), "part"), 15, "0").cast(pa.int64())
        total = Fraction(sum(parts.to_numpy().astype(object).tolist()) if len(parts) else 0, 10**15)
        for at in np.flatnonzero(~ours).tolist():
            ratio, fault = ratio_of(texts[at].as_py())
            if ratio is None:
                yield "allocated-details", "AllocatedMethodDetails", int(rows[at]), fault
            else:
                total += ratio
        self.ratios[key] = self.ratios.get(key, Fraction()) + total


def ratio_of(text: str) -> tuple[Fraction | None, str]:
    """The sum of the ratios of AllocatedMethodDetails; None, and why, where it has none."""
    try:
        content = json.loads(text, parse_float=Fraction, parse_int=Fraction)
    except ValueError:
        return None, "it is no JSON"
    elements = content.get("Elements") if isinstance(content, dict) else None
    if not isinstance(elements, list) or not elements:
        return None, "it has no Elements"
    total = Fraction()
    for element in elements:
        ratio = element.get("AllocatedRatio") if isinstance(element, dict) else None
        if not isinstance(ratio, Fraction) or not 0 <= ratio <= 1:
            return None, "an element has no AllocatedRatio from 0 to 1"
        if element.get("UsageQuantity") is not None and not isinstance(element.get("UsageUnit"), str):
            return None, "an element has a UsageQuantity without a UsageUnit"
        known = ("AllocatedRatio", "UsageQuantity", "UsageUnit")
        if any(key not in known and not key.startswith("x_") for key in element):
            return None, "an element has a key that is neither FOCUS's own nor begins with x_"
        total += ratio
    return total, ""


def hashes(texts: Any) -> npt.NDArray[np.uint64]:
    """64-bit hashes of texts; the same for the same text in every run."""
    lengths = np.diff(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1])
    found = np.zeros(len(texts), np.uint64)
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    starts = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts)]
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        value = np.full(len(rows), 0x9E3779B97F4A7C15 ^ length, np.uint64)
        for at in range(length):
            value = (value ^ data[starts[rows] + at]) * np.uint64(0x100000001B3)
            value ^= value >> np.uint64(29)
        found[rows] = value
    return found


def _keys(text: str | None) -> set[str]:
    try:
        content = json.loads(text) if text else {}
    except ValueError:
        return set()
    return set(content) if isinstance(content, dict) else set()


def _number(text: str) -> Fraction | str:
    try:
        return Fraction(text)
    except ValueError:
        return text
