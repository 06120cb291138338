"""What models cost per token by a list outside the price book, as plain data: resolved by `catalog/model_prices.py`.

Rules of this file:
- Prices are Decimal, for 10**6 tokens, in the currency of the list. A price of 0 says that a model is free; a price
  that is not there says nothing.
- A date is a calendar date; prices hold from it until the next one. None is "since ever".
- A model without prices says why: what has no price stays unpriced, with that reason.
- `to_json` and `from_json` keep what a closed month was rated with: the list may say something else later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

KINDS = ("prompt", "completion")
PER_TOKENS = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A price of the tokens of requests whose prompt has more than `over` and at most `upto` tokens; None: no bound."""

    over: int | None
    upto: int | None
    price: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class DatedPrices:
    """Prices of a model from a day on. bands: by KINDS, ascending and without a gap; a kind without a price has none.

    reason: why there are none at all.
    """

    since: date | None
    bands: Mapping[str, tuple[Band, ...]]
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a list says of a model by the name that usage has for it.

    provider: at whom the book has it looked up; "": who claims its name. source: the list and its version.
    known_as: PROVIDER/MODEL of the list; None where it knows none. prices: by rising date, the first since ever.
    reason: why there are none.
    """

    name: str
    provider: str
    source: str
    known_as: str | None
    prices: tuple[DatedPrices, ...] = ()
    reason: str | None = None

    def on(self, day: date) -> DatedPrices | None:
        """The prices in force on a day."""
        held = [prices for prices in self.prices if prices.since is None or prices.since <= day]
        return held[-1] if held else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrices:
    """The prices of the models of a month. source: the list and its version, "" where none was asked."""

    source: str = ""
    models: tuple[Model, ...] = ()

    @property
    def changes(self) -> tuple[date, ...]:
        """The days on which a price of some model begins."""
        return tuple(sorted({p.since for model in self.models for p in model.prices if p.since is not None}))

    def find(self, name: str, provider: str) -> Model | None:
        """What stands for a name of usage; None where nobody looked it up."""
        return next((m for m in self.models if (m.name, m.provider) == (name, provider)), None)


NO_MODELS = ModelPrices()


def to_json(prices: ModelPrices) -> dict[str, Any]:
    """As data that JSON can hold: amounts as decimal text, dates as YYYY-MM-DD."""
    return {
        "source": prices.source,
        "models": [
            {
                "name": model.name, "provider": model.provider, "source": model.source, "known_as": model.known_as,
                "reason": model.reason,
                "prices": [
                    {
                        "since": None if dated.since is None else dated.since.isoformat(), "reason": dated.reason,
                        **{kind: [[b.over, b.upto, f"{b.price:f}"] for b in dated.bands.get(kind, ())]
                           for kind in KINDS},
                    }
                    for dated in model.prices
                ],
            }
            for model in prices.models
        ],
    }  # fmt: skip


def from_json(data: Mapping[str, Any]) -> ModelPrices:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for data of another shape."""
    return ModelPrices(
        source=data["source"],
        models=tuple(
            Model(
                name=model["name"], provider=model["provider"], source=model["source"], known_as=model["known_as"],
                reason=model["reason"], prices=tuple(_dated(dated) for dated in model["prices"]),
            )
            for model in data["models"]
        ),
    )  # fmt: skip


def _dated(data: Mapping[str, Any]) -> DatedPrices:
    return DatedPrices(
        since=None if data["since"] is None else date.fromisoformat(data["since"]), reason=data["reason"],
        bands={kind: _bands(data[kind]) for kind in KINDS if data[kind]},
    )  # fmt: skip


def _bands(data: Sequence[Sequence[Any]]) -> tuple[Band, ...]:
    return tuple(Band(over=over, upto=upto, price=Decimal(price)) for over, upto, price in data)
