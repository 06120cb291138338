"""Prices of models in closed months: what a list said when a month was closed is what it costs."""

import csv
import dataclasses

import pytest

from apicost import cli
from apicost.core.rating.models import ModelPrices
from tests.closing_ledgers import add, row, write_book
from tests.core.test_rate_models import dated, model

LLM = """  llm:
    {meter: tokens, unit: Tokens, currency: USD, prices: [{from: 2026-01-01, mode: external, source: genai-prices}]}
"""
AUGUST = [
    row("2026-08", day=3, api="chat", llm_model="big", llm_prompt_tokens=4_000_000, llm_completion_tokens=1_000_000),
    row("2026-08", day=4, api="chat", llm_model="new", llm_prompt_tokens=2_000_000, llm_completion_tokens=0),
]
FIRST = (model("big", dated(["2.5"], ["10"])), model("new", reason="list 1 knows no model of this name"))
SECOND = (model("big", dated(["5"], ["20"])), model("new", dated(["1"], ["1"])))


@pytest.fixture
def listed(monkeypatch):
    """Says what the list has from now on."""

    def say(found):
        def resolve(book, names):
            by_name = {one.name: one for one in found}
            return ModelPrices(models=tuple(by_name[name] for name in sorted(set(names))))

        monkeypatch.setattr("apicost.catalog.model_prices.resolve", resolve)

    return say


def run(folder, *arguments):
    where = ("--ledger", folder / "ledger", "--prices", folder / "prices.yaml")
    return cli.main([*map(str, (*arguments, *where))])


def rows_of(folder, month):
    path = folder / f"{month}.csv"
    assert run(folder, "export", "charges", "--month", month, "-o", path) == 0
    with open(path, newline="") as stream:
        return [charge for charge in csv.DictReader(stream) if charge["llm_model"] and "llm_" in charge["meter"]]


def test_a_list_that_changes_corrects_no_booked_price(tmp_path, listed, capsys):
    """A model that was booked at a price keeps it, whatever a later list says; one that had none gets its first price
    as a correction; and a closed month is shown without the list."""
    write_book(tmp_path / "prices.yaml")
    text = (tmp_path / "prices.yaml").read_text()
    (tmp_path / "prices.yaml").write_text(text.replace("fx:\n", f"{LLM}fx:\n"))
    add(tmp_path / "ledger", "first", AUGUST)
    listed(FIRST)
    assert run(tmp_path, "close", "2026-08") == 0
    august = rows_of(tmp_path, "2026-08")
    assert {(c["llm_model"], c["unit_price"]) for c in august} == {
        ("big", "0.0000025"),
        ("big", "0.00001"),
        ("new", ""),
    }
    listed(SECOND)
    assert run(tmp_path, "close", "2026-09") == 0
    corrections = rows_of(tmp_path, "2026-09")
    assert {c["charge_class"] for c in corrections} == {"Correction"}
    assert sorted((c["llm_model"], c["quantity"], c["unit_price"]) for c in corrections) == [
        ("new", "-2000000", ""), ("new", "2000000", "0.000001"),
    ]  # fmt: skip
    listed(())  # the list has gone
    assert rows_of(tmp_path, "2026-08") == august
    listed(SECOND)
    assert run(tmp_path, "verify", "2026-08") == 0
    assert run(tmp_path, "verify", "2026-09") == 0
    for charge in (*august, *corrections):
        assert run(tmp_path, "explain", charge["charge_id"], "--month", charge["billing_month"]) == 0


def test_the_list_of_the_closing_is_told_by_its_name(tmp_path, listed):
    """A new version of the list that says the same is no change of terms."""
    from apicost.catalog import prices
    from apicost.core.rating.corrections import same_terms
    from tests.closing_ledgers import MONTHS

    book = prices.load(write_book(tmp_path / "prices.yaml"))
    one, two = (
        dataclasses.replace(book, models=ModelPrices(models=(dataclasses.replace(FIRST[0], source=name),)))
        for name in ("list 1", "list 2")
    )
    assert same_terms(one, two, MONTHS["2026-08"])
    three = dataclasses.replace(book, models=ModelPrices(models=SECOND[:1]))
    assert not same_terms(one, three, MONTHS["2026-08"])
