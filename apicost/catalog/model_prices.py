"""Prices of models from genai-prices: its offline data, looked up for the models of a month.

Rules of this file:
- Only the data that comes with the installed package is read; its online update never runs. The package is imported
  when it is asked, by short-lived processes: it holds some 40 MB.
- Which model a name stands for is the package's own rule. At which provider: the one that the price book names; else
  the one whose names these are by the package (`gpt-` is OpenAI's), since a model's maker sets its price. A name that
  nobody claims has no price without a provider: who sells it here, or whether somebody runs it himself, is not known.
- Its dates are taken as days of the book's time zone, as all dates of a book.
- A price that depends on what usage does not tell (the time of day, a fee for each request) is none, with the reason.
- Prices of what usage does not count apart (cached, reasoning, image and audio tokens; searches; batches) are left out:
  all prompt tokens are priced as prompt, all completion tokens as completion.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from apicost.core import prompts
from apicost.core.rating.models import Band, DatedPrices, Model, ModelPrices
from apicost.core.rating.pricebook import EXTERNAL, Price, PriceBook, Sku
from apicost.problems import InputError, Problem

PACKAGE = "genai-prices"
EFFECT = "tokens of its models stay unpriced"
_KINDS = {"prompt": "input_mtok", "completion": "output_mtok"}
_PER_REQUEST = "requests_kcount"


def source() -> str:
    """The list and its version. Raises InputError where the package is not installed."""
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            [
                Problem(
                    place=PACKAGE, fact="the package is not installed", effect="no price of a model can be looked up",
                    fix=f"install {PACKAGE}, or write the prices of your models into the price book",
                )
            ]
        ) from None  # fmt: skip


def problems(book: PriceBook) -> list[Problem]:
    """What a book's external prices ask that the list does not have. Raises InputError where it is not installed."""
    found = []
    for sku, price in _external(book):
        source()
        known = sorted(provider.id for provider in _providers())
        if price.provider and price.provider not in known:
            near = difflib.get_close_matches(price.provider, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            fact = f"{sku.id}: {source()} has no provider {price.provider!r}"
            found.append(Problem(place=price.place, fact=fact, effect=EFFECT, fix=fix))
    return found


def providers() -> list[str]:
    """The providers that the list has. Raises InputError where it is not installed."""
    source()
    return sorted(provider.id for provider in _providers())


def remarks(book: PriceBook) -> list[str]:
    """Models that a book's SKUs name and the list has no price for: legal, as they are unpriced, but seldom meant."""
    found = []
    for sku, price in _external(book):
        for name in sku.where.get("llm_model", ()):
            model = _model(name, price.provider)
            if model.reason:
                found.append(f"{price.place}: {sku.id}: model {name!r} stays unpriced: {model.reason}")
    return found


def is_needed(book: PriceBook) -> bool:
    """Whether a book has external prices, for which the models of a month must be looked up."""
    return next(iter(_external(book)), None) is not None


def resolve(book: PriceBook, names: Iterable[str]) -> ModelPrices:
    """What the list says of models, by the names that usage has for them, at each provider that the book names.

    What `book.models` has already stays as it is: prices that a month was closed with. Where that is all, the list is
    not even opened. Raises InputError where it is not installed or has no such provider.
    """
    asked = sorted({price.provider for _, price in _external(book)})
    wanted = [(provider, name) for provider in asked for name in sorted(set(names))]
    known = {(model.provider, model.name): model for model in book.models.models}
    if set(wanted) <= set(known):
        return ModelPrices(source=book.models.source, models=tuple(known[at] for at in wanted))
    if found := problems(book):
        raise InputError(found)
    return ModelPrices(source=source(), models=tuple(known.get(at) or _model(at[1], at[0]) for at in wanted))


def _external(book: PriceBook) -> list[tuple[Sku, Price]]:
    return [(sku, price) for sku in book.skus for price in sku.prices if price.mode == EXTERNAL]


def _providers() -> Sequence[Any]:
    from genai_prices.data import providers

    return providers


def _model(name: str, provider: str) -> Model:
    providers = _providers()
    if provider:
        at = next(p for p in providers if p.id == provider)
        return _found(name, provider, at, f"{source()} knows no model of this name at {provider}")
    claimed = [p for p in providers if p.model_match is not None and p.model_match.is_match(name.lower())]
    if len(claimed) == 1:
        return _found(name, "", claimed[0], f"{source()} knows no model of this name at {claimed[0].id}, whose it is")
    sellers = sorted(p.id for p in claimed or providers if p.find_model(name))
    reason = f"{source()} knows no model of this name"
    if sellers:
        reason += f" by itself, but at {', '.join(sellers)}: the price book must name the provider"
    return Model(name=name, provider="", source=source(), known_as=None, reason=reason)


def _found(name: str, asked: str, provider: Any, otherwise: str) -> Model:
    found = provider.find_model(name, all_providers=_providers())
    if found is None:
        return Model(name=name, provider=asked, source=source(), known_as=None, reason=otherwise)
    return Model(name=name, provider=asked, source=source(), known_as=f"{provider.id}/{found.id}", prices=_dated(found))


def _dated(model: Any) -> tuple[DatedPrices, ...]:
    """A model's prices by the day on which they begin."""
    from genai_prices.types import ModelPrice, StartDateConstraint, TimeOfDateConstraint

    if isinstance(model.prices, ModelPrice):
        return (_prices(None, model.prices),)
    starts = {c.constraint.start_date for c in model.prices if isinstance(c.constraint, StartDateConstraint)}
    dated: list[DatedPrices] = []
    for since in (None, *sorted(starts)):
        # The last in the list whose condition holds is in force; where none holds, the first.
        for conditional in reversed(model.prices):
            if isinstance(conditional.constraint, TimeOfDateConstraint):
                dated.append(_none(since, "its price depends on the time of day"))
                break
            if conditional.constraint is None or _has_begun(conditional.constraint.start_date, since):
                dated.append(_prices(since, conditional.prices))
                break
        else:
            dated.append(_prices(since, model.prices[0].prices))
    return tuple(dated)


def _has_begun(start: date, day: date | None) -> bool:
    return day is not None and start <= day


def _none(since: date | None, reason: str) -> DatedPrices:
    return DatedPrices(since=since, bands={}, reason=reason)


def _prices(since: date | None, prices: Any) -> DatedPrices:
    if getattr(prices, _PER_REQUEST, None):
        return _none(since, "its price has a fee for each request beside its tokens")
    bands = {}
    for kind, key in _KINDS.items():
        price = getattr(prices, key, None)
        if price is None:
            continue
        bands[kind] = found = _bands(price)
        strange = [band.upto for band in found if band.upto is not None and band.upto not in prompts.BOUNDS]
        if strange:
            return _none(since, f"its price changes at prompts of {strange[0]} tokens, where usage is not told apart")
    return DatedPrices(since=since, bands=bands)


def _bands(price: Any) -> tuple[Band, ...]:
    """A price per 10**6 tokens, or one that depends on the length of the prompt for all tokens of the request."""
    if isinstance(price, Decimal):
        return (Band(over=None, upto=None, price=price),)
    starts = [None, *(tier.start for tier in price.tiers)]
    amounts = [price.base, *(tier.price for tier in price.tiers)]
    return tuple(
        Band(over=over, upto=upto, price=amount)
        for over, upto, amount in zip(starts, [*starts[1:], None], amounts, strict=True)
    )
