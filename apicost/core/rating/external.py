"""Tokens priced by a list outside the book: each model's prices by kind of token, date and length of prompt.

Rules of this file:
- Each price is a charge line of its own. What has no price is a line with its quantity and the reason.
- The book's own prices come first: a SKU that names models and has prices of its own keeps its models. Of two SKUs
  with external prices the one that names models comes before the one that doesn't, then the first in the file.
  A SKU of tokens that names no model (a fee on every token) is charged beside.
- Nothing is guessed: a price that depends on the length of prompts prices only tokens whose prompt was counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import prompts, records
from apicost.core.rating import money
from apicost.core.rating.match import Mask, matches
from apicost.core.rating.models import KINDS, PER_TOKENS, Band, DatedPrices, Model
from apicost.core.rating.pricebook import EXTERNAL, Price, PriceBook, Sku
from apicost.core.rating.usage_rows import UsageRows

Ints = npt.NDArray[np.int64]

COLUMNS = {"llm_prompt_tokens": "prompt", "llm_completion_tokens": "completion"}
NO_MODEL = "the gateway names no model"
NOT_CLASSED = "its price depends on the length of each prompt, which is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStep:
    """What one price of a model, or one reason for having none, takes of some days; the end is exclusive.

    column: what was added up. keys: those that have any, ascending, and the quantity of each.
    price: per pricing unit of the SKU; None with `reason`.
    """

    first_day: int
    end_day: int
    column: str
    keys: Ints
    quantity: Ints
    label: str | None = None
    price: Decimal | None = None
    price_id: str | None = None
    reason: str | None = None


def covers(book: PriceBook, sku: Sku, keys: pa.Table, column: str) -> Mask:
    """Which keys a SKU with external prices prices by its list, of one column."""
    mine = matches(sku.where, keys)
    for other in book.skus:
        if other is not sku and column in other.columns and comes_before(book, other, sku):
            mine &= ~matches(other.where, keys)
    return mine


def comes_before(book: PriceBook, other: Sku, sku: Sku) -> bool:
    """Whether a SKU with external prices leaves what another SKU of tokens picks to that one."""
    if other.meter != sku.meter:
        return False
    if not other.is_external:
        return "llm_model" in other.where
    names = ["llm_model" in each.where for each in (other, sku)]
    return names[0] if names[0] != names[1] else book.skus.index(other) < book.skus.index(sku)


def columns_needed(book: PriceBook) -> tuple[str, ...]:
    """The parts of token columns that external prices tell apart, beside the columns themselves."""
    if not any(sku.is_external for sku in book.skus):
        return ()
    found: set[str] = set()
    for model in book.models.models:
        for dated in model.prices:
            for column, kind in COLUMNS.items():
                bands = dated.bands.get(kind, ())
                if len(bands) > 1:
                    found |= {prompts.unclassed(column), *(prompts.part(column, b.over, b.upto) for b in bands)}
    return tuple(sorted(found))


def steps(
    book: PriceBook, sku: Sku, price: Price, usage: UsageRows, days: Sequence[date], first: int, end: int
) -> Iterator[ModelStep]:
    """The charges of days with one external price: by model, kind and date, then what has no price by its reason.

    days: of the month; [first, end) of them are priced. Raises ValueError for a model that nobody looked up.
    """
    assert price.mode == EXTERNAL
    codes, names = records.codes(usage.keys, "llm_model")
    within = (usage.day >= first) & (usage.day < end)
    priced: dict[tuple[str, str, int, int], ModelStep] = {}
    unpriced: dict[tuple[str, str, int, int], ModelStep] = {}
    for column in sku.columns:
        mine = covers(book, sku, usage.keys, column)
        rows = np.flatnonzero(within & mine[usage.key] & (usage.sums[column] != 0))
        of_row = codes[usage.key[rows]]
        for code in sorted(set(of_row.tolist()), key=lambda code: "" if code < 0 else names[code]):
            own = rows[of_row == code]
            name = names[code] if code >= 0 else None
            for step in _of_model(book, sku, price, usage, own, days, (first, end), column, name):
                if not len(step.keys):
                    continue
                found = unpriced if step.price is None else priced
                at = (step.price_id or step.reason or "", step.column, step.first_day, step.end_day)
                before = found.get(at)
                found[at] = step if before is None else _both(before, step)
    yield from (priced[at] for at in sorted(priced))
    yield from (unpriced[at] for at in sorted(unpriced))


def _both(one: ModelStep, other: ModelStep) -> ModelStep:
    """Two names of one model, or two models without a price for one reason, share a line: their keys are others."""
    keys, quantity = np.concatenate((one.keys, other.keys)), np.concatenate((one.quantity, other.quantity))
    order = np.argsort(keys)
    return replace(one, keys=keys[order], quantity=quantity[order])


def _of_model(
    book: PriceBook, sku: Sku, price: Price, usage: UsageRows, rows: Ints, days: Sequence[date],
    stretch: tuple[int, int], column: str, name: str | None,
) -> Iterator[ModelStep]:  # fmt: skip
    first, end = stretch
    if name is None:
        yield _step(usage, rows, column, first, end, reason=NO_MODEL)
        return
    model = book.models.find(name, price.provider)
    if model is None:
        raise ValueError(f"{sku.id}: the prices of model {name!r} were not looked up")
    begins = [n for n in range(first, end) if n == first or model.on(days[n]) is not model.on(days[n - 1])]
    for start, stop in zip(begins, [*begins[1:], end], strict=True):
        own = rows[(usage.day[rows] >= start) & (usage.day[rows] < stop)]
        dated = model.on(days[start])
        if dated is None or dated.reason is not None:
            reason = model.reason if dated is None else dated.reason
            yield _step(usage, own, column, start, stop, reason=reason or f"{model.source} has no price of it")
            continue
        yield from _of_prices(book, sku, price, usage, own, (start, stop), column, model, dated)


def _of_prices(
    book: PriceBook, sku: Sku, price: Price, usage: UsageRows, rows: Ints, stretch: tuple[int, int], column: str,
    model: Model, dated: DatedPrices,
) -> Iterator[ModelStep]:  # fmt: skip
    first, end = stretch
    kind = COLUMNS[column]
    bands = dated.bands.get(kind, ())
    if not bands:
        yield _step(
            usage, rows, column, first, end, reason=f"{model.source} has no price per {kind} token of this model"
        )
        return
    since = price.since if dated.since is None else max(price.since, dated.since)
    for band in bands:
        of_band = column if len(bands) == 1 else prompts.part(column, band.over, band.upto)
        yield _step(
            usage, rows, of_band, first, end, label=label(kind, band), price=unit_price(sku, band),
            price_id="/".join((sku.id, model.known_as or model.name, label(kind, band).replace(" ", "-"), str(since))),
        )  # fmt: skip
    if len(bands) > 1:
        yield _step(usage, rows, prompts.unclassed(column), first, end, reason=NOT_CLASSED)


def label(kind: str, band: Band) -> str:
    """What a charge's tier says: the kind of token, and the lengths of prompts that the price is for."""
    bounds = [f"{word} {n}" for word, n in (("over", band.over), ("up to", band.upto)) if n is not None]
    return " ".join([kind, *bounds])


def unit_price(sku: Sku, band: Band) -> Decimal:
    """The price per pricing unit of a SKU, exactly."""
    return money.exact_decimal(Fraction(band.price) * Fraction(sku.unit_base, PER_TOKENS))


def _step(
    usage: UsageRows, rows: Ints, column: str, first: int, end: int, *, label: str | None = None,
    price: Decimal | None = None, price_id: str | None = None, reason: str | None = None,
) -> ModelStep:  # fmt: skip
    rows = rows[usage.sums[column][rows] != 0]
    keys, place = np.unique(usage.key[rows], return_inverse=True)
    quantity = money.add_by(place, usage.sums[column][rows], len(keys))
    return ModelStep(
        first_day=first, end_day=end, column=column, keys=keys, quantity=quantity, label=label, price=price,
        price_id=price_id, reason=reason,
    )  # fmt: skip


assert set(COLUMNS.values()) == set(KINDS)
