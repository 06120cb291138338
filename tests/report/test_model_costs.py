"""Models' prices from a list, by the commands: from a ledger on, and after the list says something else."""

import copy
import csv
import json
from decimal import Decimal

import pytest

from apicost import cli
from apicost.catalog import model_prices
from tests.closing_ledgers import add, row

BOOK = """
pricebook: {id: llm, version: "1", currency: EUR, calendar: {time_zone: Europe/Berlin}}
skus:
  call: {meter: calls, unit: Requests, quantum: {bytes: 524288, round: up}, prices: [{from: 2026-01-01, price: "0.01"}]}
  own: {meter: tokens, where: {model: house}, unit: Tokens, prices: [{from: 2026-01-01, price: "0.001"}]}
  llm: {meter: tokens, unit: Tokens, prices: [{from: 2026-01-01, mode: external, source: genai-prices, currency: USD,
        on_unknown_model: unpriced}]}
fx:
  - {from: USD, to: EUR, period: 2026-06, rate: "0.5", locked: true}
  - {from: USD, to: EUR, period: 2026-07, rate: "0.5", locked: true}
  - {from: USD, to: EUR, period: 2026-08, rate: "0.5", locked: true}
"""


def tokens(month, model, prompt, completion, day=3, **more):
    return row(
        month, day, llm_model=model, llm_prompt_tokens=prompt, llm_completion_tokens=completion, calls=2,
        quanta_512k=3, llm_prompt_class="32000", consumer="c", **more,
    )  # fmt: skip


JULY = [
    tokens("2026-07", "gpt-4o", 1_000_000, 100_000),
    tokens("2026-07", "house", 10, 5),
    tokens("2026-07", "mystery", 7, 3),
    tokens("2026-07", "gpt-4o", 0, 0, llm_calls_without_tokens=2),
    tokens("2026-07", "gpt-5.6-luna", 1_000, 0, day=28),
    tokens("2026-07", "gpt-5.6-luna", 1_000, 0, day=29),  # its price changed on 30 July
]


@pytest.fixture
def made(tmp_path):
    (tmp_path / "prices.yaml").write_text(BOOK)
    add(tmp_path / "ledger", "first", [*JULY, tokens("2026-08", "gpt-4o", 2_000_000, 0)])
    return tmp_path


def run(folder, *arguments):
    return cli.main([*map(str, arguments), "--ledger", str(folder / "ledger"), "--prices", str(folder / "prices.yaml")])


def charges(folder, month, name="charges"):
    path = folder / f"{name}.csv"
    assert run(folder, "export", "charges", "--month", month, "-o", path) == 0
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def of_model(found, model):
    return {(c["tier"], c["quantity"], c["contracted_cost"]) for c in found
            if c["llm_model"] == model and "tokens" in c["meter"]}  # fmt: skip


def another_list(monkeypatch):
    """The list's next version: everything costs twice as much, since ever, and the house's model is OpenAI's."""
    from genai_prices.data import providers
    from genai_prices.types import ModelPrice

    changed = [copy.copy(next(p for p in providers if p.id == "openai"))]
    changed[0].models = copy.deepcopy(changed[0].models)
    for model in changed[0].models:
        if isinstance(model.prices, ModelPrice) and isinstance(getattr(model.prices, "input_mtok", None), Decimal):
            model.prices.input_mtok *= 2
    monkeypatch.setattr(model_prices, "_providers", lambda: changed)
    monkeypatch.setattr(model_prices, "source", lambda: "genai-prices 9.9.9")


def test_a_month_of_models_is_charged_by_every_price(made):
    """By the list in USD, by the book, without a price, without counts: each its own row; blocks beside them."""
    found = charges(made, "2026-07")
    assert of_model(found, "gpt-4o") == {
        ("prompt", "1000000", "1.25"), ("completion", "100000", "0.5"), ("", "2", ""),
    }  # fmt: skip
    assert of_model(found, "house") == {("flat", "15", "0.015")}
    assert of_model(found, "mystery") == {("", "7", ""), ("", "3", "")}
    ids = sorted(c["sku_price_id"] for c in found if c["llm_model"] == "gpt-5.6-luna" and "tokens" in c["meter"])
    assert ids == ["llm/openai/gpt-5.6-luna/prompt-up-to-272000/2026-01-01",
                   "llm/openai/gpt-5.6-luna/prompt-up-to-272000/2026-07-30"]  # fmt: skip
    assert sum(int(c["quantity"]) for c in found if c["sku"] == "call") == 3 * len(JULY)


def test_every_command_knows_the_months_models(made, capsys):
    """explain, the report, usage beside charges, and a comparison of two books."""
    for charge in charges(made, "2026-07"):
        assert run(made, "explain", charge["charge_id"], "--month", "2026-07") == 0
    said = capsys.readouterr().out
    assert "genai-prices 0.2.3, openai/gpt-4o: 2.5 USD per 1,000,000 prompt tokens" in said
    assert run(made, "report", "--month", "2026-07", "--out", made / "report", "--format", "json,html,csv") == 0
    told = json.loads((made / "report" / "report.json").read_text())
    page = (made / "report" / "report.html").read_text()
    total = sum(Decimal(c["billed_cost"] or 0) for c in charges(made, "2026-07"))
    assert Decimal(told["billed_cost"]) == total
    assert "Requests to a model without token counts" in page
    usage = made / "usage.csv"
    assert run(made, "export", "usage", "--month", "2026-07", "-o", usage) == 0
    with open(usage, newline="") as stream:
        periods = {line["period_start"] for line in csv.DictReader(stream)}
    assert "2026-07-29T22:00:00Z" in periods, "usage is cut where a model's price begins, as the charges are"
    other = made / "other.yaml"
    other.write_text(BOOK.replace("0.001", "0.002"))
    assert cli.main(["prices", "diff", str(made / "prices.yaml"), str(other), "--month", "2026-07", "--ledger",
                     str(made / "ledger"), "--json"]) == 0  # fmt: skip


def test_a_closed_month_keeps_the_prices_that_it_was_closed_with(made, monkeypatch):
    """The list says something else later: the closed month stays, to the byte, and is verified; late usage of it is
    corrected at its own prices, a model that came late at those of now, and the open month has the new prices."""
    before = charges(made, "2026-07", "before")
    assert run(made, "close", "2026-07") == 0
    another_list(monkeypatch)
    assert charges(made, "2026-07", "after") == before
    assert (made / "before.csv").read_bytes() == (made / "after.csv").read_bytes()
    add(made / "ledger", "late", [tokens("2026-07", "gpt-4o", 1_000, 0), tokens("2026-07", "gpt-4o-mini", 1_000, 0)])
    august = charges(made, "2026-08")
    corrections = [c for c in august if c["charge_class"] == "Correction" and c["llm_model"].startswith("gpt")
                   and "tokens" in c["meter"]]  # fmt: skip
    assert {(c["llm_model"], c["quantity"], c["unit_price"], c["contracted_cost"]) for c in corrections} == {
        ("gpt-4o", "1000", "0.0000025", "0.00125"), ("gpt-4o-mini", "1000", "0.0000003", "0.00015"),
    }  # fmt: skip
    open_month = [c for c in august if not c["charge_class"] and c["meter"] == "llm_prompt_tokens"]
    assert [(c["llm_model"], c["unit_price"], c["contracted_cost"]) for c in open_month] == [
        ("gpt-4o", "0.000005", "5")
    ]  # fmt: skip
    assert run(made, "close", "2026-08") == 0
    monkeypatch.setattr(model_prices, "_providers", lambda: pytest.fail("a closed month asks no list"))
    assert charges(made, "2026-08", "closed") == august
    assert cli.main(["verify", "2026-08", "--ledger", str(made / "ledger")]) == 0
