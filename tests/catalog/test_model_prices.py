"""Prices of models out of genai-prices: what is looked up, and what is none. The package's data is pinned."""

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from apicost.catalog import model_prices, prices
from apicost.commands import prices as command
from apicost.core import prompts
from apicost.core.rating import models
from apicost.core.rating.models import Band
from apicost.problems import InputError

ROOT = Path(__file__).parent.parent.parent
HEAD = "pricebook: {id: t, version: '1', currency: USD}\n"
SKU = "  %s: {meter: tokens, unit: Tokens, prices: [{from: 2026-01-01, mode: external, source: genai-prices%s}]}\n"


def book(*providers):
    """A book with an external price at each provider; "" names none."""
    lines = [SKU % (f"llm-{n}", f", provider: {at}" if at else "") for n, at in enumerate(providers)]
    return prices.parse(HEAD + "skus:\n" + "".join(lines), "p.yaml")


def resolved(name, provider=""):
    (model,) = model_prices.resolve(book(provider), [name]).models
    return model


def test_a_model_has_its_makers_price():
    """gpt- is OpenAI's name: others sell the model too, and the maker's price holds without a provider."""
    model = resolved("gpt-4o")
    assert (model.known_as, model.reason, model.source) == ("openai/gpt-4o", None, "genai-prices 0.2.3")
    (dated,) = model.prices
    assert dated.since is None
    assert {kind: bands[0].price for kind, bands in dated.bands.items()} == {
        "prompt": Decimal("2.5"), "completion": Decimal(10),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gpt-4o-2024-08-06", "GPT-4o"])
def test_names_of_a_model_are_the_packages(name):
    """A dated name and another case are the same model by the package's rules."""
    assert resolved(name).known_as == "openai/gpt-4o"


def test_a_book_can_name_the_provider():
    """The same name at another provider, which sells others' models too."""
    assert resolved("gpt-4o", "azure").known_as.startswith("azure/")
    assert resolved("openai/gpt-4o", "openrouter").known_as == "openrouter/openai/gpt-4o"
    assert resolved("gemini-2.5-pro", "google").known_as == "google/gemini-2.5-pro"


UNPRICED = {
    ("no-such-model", ""): "genai-prices 0.2.3 knows no model of this name",
    ("gpt-99-imaginary", ""): "genai-prices 0.2.3 knows no model of this name at openai, whose it is",
    ("no-such-model", "groq"): "genai-prices 0.2.3 knows no model of this name at groq",
    ("llama-3.3-70b-versatile", ""): "genai-prices 0.2.3 knows no model of this name by itself, but at groq: ",
    (
        "openai/gpt-4o",
        "",
    ): "genai-prices 0.2.3 knows no model of this name by itself, but at openrouter: ",
}


@pytest.mark.parametrize(("asked", "reason"), UNPRICED.items(), ids=[name for name, _ in UNPRICED])
def test_an_unknown_model_has_no_price_and_a_reason(asked, reason):
    """Unknown, unknown at its provider, or sold by some of which none is named: never a guess."""
    model = resolved(*asked)
    assert (model.known_as, model.prices) == (None, ())
    assert model.reason.startswith(reason)


def test_a_price_by_the_length_of_the_prompt_has_bands():
    """The package's tiers are cliffs: all tokens of a request cost what its prompt's length says."""
    (dated,) = resolved("gemini-2.5-pro").prices
    assert dated.bands["prompt"] == (
        Band(over=None, upto=200_000, price=Decimal("1.25")), Band(over=200_000, upto=None, price=Decimal("2.5")),
    )  # fmt: skip
    assert [band.price for band in dated.bands["completion"]] == [Decimal(10), Decimal(15)]


def test_prices_have_the_days_on_which_they_begin():
    """o3 became cheaper on 2025-06-10: before, since ever; from then on, the new price."""
    model = resolved("o3")
    assert [dated.since for dated in model.prices] == [None, date(2025, 6, 10)]
    before, after = (model.on(date(2025, 6, day)).bands["prompt"][0].price for day in (9, 10))
    assert before == Decimal(10) and after == Decimal(2)


def test_a_price_by_the_time_of_day_is_none():
    """Usage is not kept apart by the hour: such a model stays unpriced, and the reason says why."""
    assert {dated.reason for dated in resolved("deepseek-chat").prices} == {"its price depends on the time of day"}


def test_a_fee_for_each_request_makes_the_price_of_tokens_half_a_price():
    """Tokens alone would be too little, for certain."""
    assert resolved("sonar-pro", "perplexity").prices[0].reason == (
        "its price has a fee for each request beside its tokens"
    )


def test_every_bound_of_the_list_is_one_that_usage_tells():
    """A bound that a new version of the list brings must be counted before it can be priced."""
    from genai_prices.data import providers

    reasons = {
        dated.reason
        for provider in providers
        for model in provider.models
        for dated in model_prices._dated(model)
        if dated.reason
    }
    assert reasons == {
        "its price depends on the time of day", "its price has a fee for each request beside its tokens",
    }  # fmt: skip
    assert set(prompts.BOUNDS) == {
        band.over
        for provider in providers
        for model in provider.models
        for dated in model_prices._dated(model)
        for bands in dated.bands.values()
        for band in bands
        if band.over is not None
    }


def test_prices_go_through_json_unchanged():
    """What a closed month keeps is what it was rated with, digit by digit."""
    found = model_prices.resolve(
        book("", "azure"), ["gpt-4o", "o3", "gemini-2.5-pro", "no-such-model", "deepseek-chat"]
    )
    assert len(found.models) == 10
    assert models.from_json(json.loads(json.dumps(models.to_json(found)))) == found


def test_prices_at_hand_are_not_looked_up_again(monkeypatch):
    """A closed month is rated with what it was closed with, whatever the installed list says, or without any."""
    known = model_prices.resolve(book(""), ["gpt-4o"])
    monkeypatch.setattr(model_prices, "_providers", lambda: pytest.fail("the list was opened"))
    assert model_prices.resolve(replace(book(""), models=known), ["gpt-4o"]) == known


def test_a_new_model_is_looked_up_beside_those_at_hand():
    """Late usage of a closed month may have a model that nobody priced then."""
    (old,) = model_prices.resolve(book(""), ["gpt-4o"]).models
    kept = replace(old, source="genai-prices 0.1.0")
    known = models.ModelPrices(source="genai-prices 0.1.0", models=(kept,))
    found = model_prices.resolve(replace(book(""), models=known), ["gpt-4o", "o3"])
    assert found.models[0] == kept
    assert [model.source for model in found.models] == ["genai-prices 0.1.0", "genai-prices 0.2.3"]


def test_a_provider_that_the_list_does_not_have_is_a_problem(tmp_path):
    """It is found by `prices check`, with place, effect and fix, and nothing is rated with it."""
    with pytest.raises(InputError) as caught:
        model_prices.resolve(book("antropic"), ["m"])
    (problem,) = caught.value.problems
    assert problem.place == "p.yaml:3"
    assert problem.fact == "llm-0: genai-prices 0.2.3 has no provider 'antropic'"
    assert problem.fix == "did you mean 'anthropic'?" and problem.effect
    file = tmp_path / "prices.yaml"
    file.write_text(HEAD + "skus:\n" + SKU % ("x", ", provider: antropic"))
    with pytest.raises(InputError):
        command.main(["check", str(file)])


def test_a_list_that_is_not_installed_is_a_problem(monkeypatch):
    """The program runs without it, and says what to install when a book asks for it."""
    monkeypatch.setattr(model_prices, "PACKAGE", "no-such-package")
    with pytest.raises(InputError) as caught:
        model_prices.resolve(book(""), ["m"])
    assert "install no-such-package" in caught.value.problems[0].fix


def test_a_book_without_external_prices_asks_no_list(monkeypatch):
    """Nothing is imported, and nothing is looked up."""
    monkeypatch.setattr(model_prices, "_providers", lambda: pytest.fail("the list was opened"))
    plain = prices.parse(
        HEAD + "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: 1}]}}\n"
    )
    assert not model_prices.is_needed(plain)
    assert model_prices.resolve(plain, ["gpt-4o"]) == models.NO_MODELS


def test_the_sample_of_models_is_a_good_book(capsys):
    """specs/prices-llm.yaml is read without a problem or remark, and its provider is one of the list's."""
    assert command.main(["check", str(ROOT / "specs/prices-llm.yaml")]) == 0
    said = capsys.readouterr().err
    assert "note:" not in said
    assert "but for what house-prompt and house-completion and azure-tokens price" in said


def test_the_check_says_what_a_book_prices_by_a_list(tmp_path, capsys):
    """The SKUs whose models the list leaves alone are named: nothing is charged twice unseen."""
    own = "  own: {meter: tokens, where: {model: m}, unit: Tokens, prices: [{from: 2026-01-01, price: 1}]}\n"
    calls = "  call: {meter: calls, where: {model: m}, unit: Requests, prices: [{from: 2026-01-01, price: 1}]}\n"
    file = tmp_path / "prices.yaml"
    file.write_text(HEAD + "skus:\n" + calls + own + SKU % ("llm", ", provider: azure"))
    assert command.main(["check", str(file)]) == 0
    assert "each model's prices at azure by genai-prices, but for what own prices" in capsys.readouterr().err


def test_a_model_that_a_book_names_and_the_list_does_not_know_is_a_remark():
    """`prices check` says so before a month is unpriced."""
    book = prices.parse(
        "pricebook: {id: t, version: '1', currency: USD}\n"
        "skus: {x: {meter: tokens, unit: Tokens, where: {model: [gpt-4o, gpt-99-imaginary]}, "
        "prices: [{from: 2026-01-01, mode: external, source: genai-prices}]}}",
        "p.yaml",
    )
    (remark,) = model_prices.remarks(book)
    assert remark.startswith("p.yaml:2: x: model 'gpt-99-imaginary' stays unpriced: genai-prices")
