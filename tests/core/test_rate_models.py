"""Tokens priced by a list outside the book: each model's own price, and a reason where there is none."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apicost.catalog import model_prices, prices
from apicost.core import prompts
from apicost.core.meter import meter
from apicost.core.rating import days, external, period, rate
from apicost.core.rating.models import Band, DatedPrices, Model, ModelPrices
from apicost.core.rating.usage_rows import gather
from apicost.report import explain
from tests.laws.test_money_lots import lots_of
from tests.store.batches import SCOPES, exchange, table
from tests.usage_months import usage

NOVEMBER = period.month("2026-11", "Europe/Berlin")
START = NOVEMBER.start_unix_s
SOURCE = "list 1"
LLM = "  llm: {meter: tokens, unit: Tokens, %sprices: [{from: 2026-01-01, mode: external, source: genai-prices%s}]}\n"


def bands(*amounts):
    """A price, or prices up to and over 200,000 tokens of prompt."""
    if len(amounts) == 1:
        return (Band(over=None, upto=None, price=Decimal(amounts[0])),)
    short, long = map(Decimal, amounts)
    return Band(over=None, upto=200_000, price=short), Band(over=200_000, upto=None, price=long)


def dated(prompt, completion, since=None):
    kinds = {"prompt": prompt, "completion": completion}
    return DatedPrices(since=since, bands={kind: bands(*p) for kind, p in kinds.items() if p})


def model(name, *found, provider="", known_as=None, reason=None):
    return Model(
        name=name, provider=provider, source=SOURCE, known_as=known_as or f"maker/{name}", prices=found, reason=reason
    )  # fmt: skip


MODELS = (
    model("big", dated(["2.5"], ["10"])),
    model("free", dated(["0"], ["0"])),
    model("long", dated(["1", "3"], ["10", "30"])),
    model("words", dated(["0.02"], None)),
    model("moved", dated(["4"], ["8"]), dated(["2"], ["8"], date(2026, 11, 11))),
    model("unknown", reason="list 1 knows no model of this name"),
    model("hourly", DatedPrices(since=None, bands={}, reason="its price depends on the time of day")),
    model("big", dated(["5"], ["20"]), provider="azure", known_as="azure/big"),
)


def book(skus, currency="USD", more="", models=MODELS):
    head = f"pricebook: {{id: t, version: '1', currency: {currency}, calendar: {{time_zone: Europe/Berlin}}}}\n"
    found = prices.parse(head + "skus:\n" + skus + more, "p.yaml")
    return replace(found, models=ModelPrices(source=SOURCE, models=models))


def row(name, prompt=0, completion=0, at=START, **more):
    return {"minute_unix_s": at, "llm_model": name, "llm_prompt_tokens": prompt, "llm_completion_tokens": completion,
            "llm_prompt_class": "32000", **more}  # fmt: skip


def rated(rows, book):
    """A statement's charges of tokens; every explanation agrees, and the days sum to the total."""
    rows = usage(rows) if isinstance(rows, list) else rows
    found = rate.rate(rows, book, NOVEMBER)
    for charge in found.charges.to_pylist():
        explanation = explain.explain(found, charge["charge_id"])
        assert explanation is not None and explanation.agrees, explanation
        if charge["state"] == "priced":
            factor = Fraction(charge["quantity"]) * Fraction(charge["fx_rate"])
            assert Fraction(charge["list_cost"]) == factor * Fraction(charge["unit_price"])
    daily = prompts.with_parts(rows, days.sums_needed(book))
    by_day, rest = days.by_day(found, gather(daily.select(
        ["minute_unix_s", *days.keys_needed(book), *days.sums_needed(book)]), NOVEMBER))  # fmt: skip
    assert sum(day.billed_minor for day in by_day) + rest == found.total_minor
    assert rest == 0, "each charge falls on the days of its tokens"
    return [charge for charge in found.charges.to_pylist() if "tokens" in charge["meter"]]


def brief(found, *names):
    return sorted(tuple(charge[name] for name in names) for charge in found)


def test_each_price_of_a_model_is_a_charge_of_its_own():
    """1,000 prompt tokens at 2.5 and 200 completion tokens at 10 per million, each with the id of its price."""
    found = rated([row("big", 1_000, 200)], book(LLM % ("", "")))
    assert brief(found, "sku_price_id", "tier", "quantity", "unit_price", "list_cost") == [
        ("llm/maker/big/completion/2026-01-01", "completion", "200", "0.00001", "0.002"),
        ("llm/maker/big/prompt/2026-01-01", "prompt", "1000", "0.0000025", "0.0025"),
    ]


def test_prices_are_converted_by_the_months_rate():
    """The list is in USD, the book in EUR: unit prices stay, costs are converted, exactly."""
    fx = "fx: [{from: USD, to: EUR, period: 2026-11, rate: '0.8642', locked: true}]\n"
    found = rated([row("big", 1_000_000)], book(LLM % ("currency: USD, ", ""), "EUR", fx))
    assert brief(found, "unit_price", "pricing_currency", "fx_rate", "list_cost", "currency") == [
        ("0.0000025", "USD", "0.8642", "2.1605", "EUR")
    ]


@pytest.mark.parametrize("unit", ["Tokens", "1000 Tokens", "1000000 Tokens"])
def test_the_pricing_unit_changes_no_cost(unit):
    """A price per million is carried to the SKU's unit without a digit lost."""
    (found,) = rated([row("words", 123_457)], book(LLM.replace("unit: Tokens", f"unit: {unit}") % ("", "")))
    assert found["list_cost"] == "0.00246914" and found["unit"] == unit


def test_what_has_no_price_is_unpriced_with_its_quantity_and_reason():
    """Unknown, unnamed, priced by the hour, or without a price of this kind: never 0."""
    rows = [row("unknown", 10, 5), row(None, 7), row("hourly", 3), row("words", 0, 4)]
    found = rated(rows, book(LLM % ("", "")))
    assert {charge["state"] for charge in found} == {"unpriced"}
    assert {charge["list_cost"] for charge in found} == {None} == {charge["unit_price"] for charge in found}
    assert {charge["sku"] for charge in found} == {"llm"}
    wanted = [
        ("", "7", external.NO_MODEL),
        ("hourly", "3", "its price depends on the time of day"),
        ("unknown", "10", "list 1 knows no model of this name"),
        ("unknown", "5", "list 1 knows no model of this name"),
        ("words", "4", "list 1 has no price per completion token of this model"),
    ]
    assert sorted((c["llm_model"] or "", c["quantity"], c["reason"]) for c in found) == wanted


def test_a_free_model_is_priced_0():
    """A price of 0 is a price."""
    found = rated([row("free", 9, 9)], book(LLM % ("", "")))
    assert brief(found, "state", "unit_price", "list_cost", "billed_cost") == [("priced", "0", "0", "0.00")] * 2


def test_long_prompts_are_priced_apart():
    """All tokens of a request cost what its prompt's length says; of unknown length they have no price."""
    rows = [
        row("long", 1_000, 10, llm_prompt_class="32000"),
        row("long", 200_000, 20, llm_prompt_class="200000"),
        row("long", 200_001, 30, llm_prompt_class="256000"),
        row("long", 5_000, 40, llm_prompt_class=None),
    ]
    found = rated(rows, book(LLM % ("", "")))
    assert {tuple(c[n] for n in ("tier", "quantity", "list_cost", "reason")) for c in found} == {
        ("prompt up to 200000", "201000", "0.201", None),
        ("prompt over 200000", "200001", "0.600003", None),
        ("completion up to 200000", "30", "0.0003", None),
        ("completion over 200000", "30", "0.0009", None),
        (None, "5000", None, external.NOT_CLASSED),
        (None, "40", None, external.NOT_CLASSED),
    }
    assert len(found) == 6
    assert {c["sku_price_id"] for c in found if c["tier"] == "prompt over 200000"} == {
        "llm/maker/long/prompt-over-200000/2026-01-01"
    }


def test_a_price_that_begins_within_the_month_cuts_its_own_model_alone():
    """Tokens before 11 November at 4, from then on at 2; another model's charge stays whole."""
    late = NOVEMBER.starts[10]
    rows = [row("moved", 1_000_000, at=late - 60), row("moved", 1_000_000, at=late), row("big", 1, at=START),
            row("big", 1, at=late)]  # fmt: skip
    found = rated(rows, book(LLM % ("", "")))
    assert brief(found, "llm_model", "sku_price_id", "period_start", "quantity", "list_cost") == [
        ("big", "llm/maker/big/prompt/2026-01-01", "2026-10-31T23:00:00Z", "2", "0.000005"),
        ("moved", "llm/maker/moved/prompt/2026-01-01", "2026-10-31T23:00:00Z", "1000000", "4"),
        ("moved", "llm/maker/moved/prompt/2026-11-11", "2026-11-10T23:00:00Z", "1000000", "2"),
    ]


OWN = "  own: {meter: tokens, where: {model: big%s}, unit: Tokens, prices: [{from: 2026-01-01, price: '1'}]}\n"


@pytest.mark.parametrize("first", [True, False])
def test_the_books_own_price_of_a_model_comes_first(first):
    """Wherever it stands in the file, the model is charged once, by the book's price; other models by the list's."""
    lines = [OWN % "", LLM % ("", "")]
    found = rated([row("big", 3), row("words", 1)], book("".join(lines if first else lines[::-1])))
    assert brief(found, "llm_model", "sku", "list_cost") == [("big", "own", "3"), ("words", "llm", "0.00000002")]


def test_an_own_price_of_one_kind_leaves_the_other_to_the_list():
    """Prompt tokens by the book, completion tokens by the list."""
    found = rated([row("big", 3, 4)], book(OWN % ", token: prompt" + LLM % ("", "")))
    assert brief(found, "sku", "quantity") == [("llm", "4"), ("own", "3")]


def test_an_own_price_for_a_consumer_leaves_the_others_to_the_list():
    """Whatever else the SKU asks, it keeps what it picks, and no more."""
    rows = [row("big", 3, consumer="p"), row("big", 4, consumer="q")]
    found = rated(rows, book(OWN % ", consumer: p" + LLM % ("", "")))
    assert brief(found, "consumer", "sku", "quantity") == [("p", "own", "3"), ("q", "llm", "4")]


def test_a_fee_on_every_token_is_charged_beside():
    """A SKU that names no model is no price of a model: its charge comes in addition."""
    fee = "  fee: {meter: tokens, unit: Tokens, prices: [{from: 2026-01-01, price: '0.5'}]}\n"
    found = rated([row("big", 2)], book(fee + LLM % ("", "")))
    assert brief(found, "sku", "quantity") == [("fee", "2"), ("llm", "2")]


def test_the_first_of_two_lists_prices_what_both_pick():
    """One route goes to another provider: its tokens are charged there, once."""
    at_azure = LLM.replace("llm:", "azure:") % ("where: {route: az}, ", ", provider: azure")
    found = rated([row("big", 10, route_id="az"), row("big", 10)], book(at_azure + LLM % ("", "")))
    assert brief(found, "sku", "sku_price_id", "quantity", "list_cost") == [
        ("azure", "azure/azure/big/prompt/2026-01-01", "10", "0.00005"),
        ("llm", "llm/maker/big/prompt/2026-01-01", "10", "0.000025"),
    ]


def test_a_list_that_names_models_comes_before_one_that_does_not():
    """Wherever it stands in the file: the narrower of two lists prices its model."""
    named = LLM.replace("llm:", "azure:") % ("where: {model: big}, ", ", provider: azure")
    found = rated([row("big", 10), row("words", 10)], book(LLM % ("", "") + named))
    assert brief(found, "llm_model", "sku") == [("big", "azure"), ("words", "llm")]


def test_a_models_cost_falls_on_the_days_of_its_tokens():
    """Two models on two days: each day bears its own model's price, and the own price of a third its own."""
    rows = usage([
        row("big", 4_000_000, at=NOVEMBER.starts[2]),
        row("free", 9_000_000, at=NOVEMBER.starts[2]),
        row("moved", 1_000_000, at=NOVEMBER.starts[20]),
        row("words", 0, 5, at=NOVEMBER.starts[21]),
    ])  # fmt: skip
    found = book(LLM % ("", "") + "  own: {meter: tokens, where: {model: words}, unit: Tokens, prices: [{from: "
                 "2026-01-01, price: '1'}]}\n")  # fmt: skip
    by_day, rest = days.by_day(rate.rate(rows, found, NOVEMBER), gather(rows, NOVEMBER))
    assert rest == 0
    assert {day.day.day: day.billed_minor for day in by_day if day.billed_minor} == {3: 1_000, 21: 200, 22: 500}


def test_tokens_with_an_own_price_draw_no_cost_of_a_list_to_their_day():
    """One consumer's tokens are the book's own on the 3rd, another's the list's on the 21st: each day has its own."""
    rows = usage([
        row("big", 4_000_000, at=NOVEMBER.starts[2], consumer="p"),
        row("big", 4_000_000, at=NOVEMBER.starts[20], consumer="q"),
    ])  # fmt: skip
    statement = rate.rate(rows, book(OWN % ", consumer: p" + LLM % ("", "")), NOVEMBER)
    by_day, rest = days.by_day(statement, gather(rows, NOVEMBER))
    assert {day.day.day: day.billed_minor for day in by_day if day.billed_minor} == {3: 400_000_000, 21: 1_000}
    assert rest == 0


def test_a_list_can_follow_a_price_of_the_book():
    """Until 10 November the book's own price, then the list's: one SKU, and no day twice."""
    text = (
        "  llm: {meter: tokens, where: {model: big}, unit: Tokens, prices: [{from: 2026-01-01, price: '1'}, "
        "{from: 2026-11-11, mode: external, source: genai-prices}]}\n"
    )
    rows = [row("big", 1), row("big", 1, at=NOVEMBER.starts[10])]
    assert brief(rated(rows, book(text)), "sku_price_id", "list_cost") == [
        ("llm/2026-01-01/1", "1"), ("llm/maker/big/prompt/2026-11-11", "0.0000025"),
    ]  # fmt: skip


def test_days_without_a_price_are_unpriced_for_what_the_sku_prices():
    """Before the SKU begins, the tokens that it would price are unpriced once, and none of those with an own price."""
    late = LLM.replace("2026-01-01", "2026-11-11") % ("", "")
    found = rated([row("big", 3), row("words", 5)], book(OWN % "" + late))
    assert brief(found, "llm_model", "sku", "quantity", "state") == [
        ("big", "own", "3", "priced"), ("words", "llm", "5", "unpriced"),
    ]  # fmt: skip


def test_a_contract_takes_its_discount_off_each_models_price():
    """A tenth off for a consumer: list costs stay, contracted costs are less."""
    contract = "overrides: [{match: {consumer: p}, sku: llm, kind: contracted, discount_pct: '10'}]\n"
    rows = [row("big", 1_000_000, consumer="p"), row("big", 1_000_000, consumer="q")]
    found = rated(rows, book(LLM % ("", ""), more=contract))
    assert brief(found, "consumer", "list_cost", "contracted_cost") == [("p", "2.5", "2.25"), ("q", "2.5", "2.5")]


def test_requests_without_token_counts_stand_in_the_statement():
    """A stream that was cut off has no counts: its requests are an unpriced row with their number, not 0 tokens."""
    rows = [row("big", 10) | {"llm_calls_without_tokens": 3, "calls": 5}, row("big", consumer="p")]
    own = "  own: {meter: tokens, unit: Tokens, prices: [{from: 2026-01-01, price: '1'}]}\n"
    for skus in (LLM % ("", ""), own):
        found = [c for c in rated(rows, book(skus)) if c["meter"] == "llm_calls_without_tokens"]
        assert brief(found, "llm_model", "quantity", "unit", "state", "reason", "list_cost") == [
            ("big", "3", "Requests", "unpriced", rate.NO_TOKENS, None)
        ]


def test_a_model_that_nobody_looked_up_is_no_unknown_model():
    """Rating with prices of other models is a mistake of the program, and says so."""
    with pytest.raises(ValueError, match="'other' were not looked up"):
        rated([row("other", 1)], book(LLM % ("", "")))


def test_two_names_of_one_model_share_its_price():
    """Each row keeps its name, the price id is the model's, and the quantities stay apart by name."""
    two = (model("big", dated(["2.5"], ["10"])), model("big-dated", dated(["2.5"], ["10"]), known_as="maker/big"))
    found = rated([row("big", 1), row("big-dated", 2)], book(LLM % ("", ""), models=two))
    assert brief(found, "llm_model", "sku_price_id", "quantity") == [
        ("big", "llm/maker/big/prompt/2026-01-01", "1"), ("big-dated", "llm/maker/big/prompt/2026-01-01", "2"),
    ]  # fmt: skip
    assert len({charge["charge_id"] for charge in found}) == 2


NAMES = ["gpt-4o", "gpt-4o-mini", "o3", "gemini-2.5-pro", "claude-sonnet-4-5", "claude-3-5-haiku-latest", "grok-4.3",
         "gpt-5.6-sol", "mistral-large-latest", "command-r"]  # fmt: skip
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.one_of(st.integers(1, 600_000), st.sampled_from([199_999, 200_000, 200_001, 272_000, 272_001])),
        st.integers(0, 100_000),
        st.integers(0, NOVEMBER.end_unix_s - START - 1),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25)
@given(requests=REQUESTS, cut=st.integers(0, 12))
@example(requests=[("gpt-5.6-sol", 272_001, 5, 0)], cut=0)
def test_the_cost_of_every_request_is_what_the_package_computes(requests, cut):
    """Metered by minute, rated by month: the sum is genai-prices' own price of each request, to the last digit."""
    from genai_prices import Usage, calc_price

    rows = [
        exchange(llm_model=name, llm_prompt_tokens=prompt, llm_completion_tokens=completion, ended_s=START + at)
        for name, prompt, completion, at in requests
    ]
    found = book(LLM % ("", ""), models=())
    found = replace(found, models=model_prices.resolve(found, NAMES))
    batches = [meter(table(lot), SCOPES) for lot in (rows[:cut], rows[cut:]) if lot]
    charges = rated(pa.concat_tables(batches).unify_dictionaries(), found)
    wanted = Decimal(0)
    for name, prompt, completion, at in requests:
        # Dates of the package are taken as days of the book's time zone: noon of that day is in it by any clock.
        day = NOVEMBER.days[int(np.searchsorted(NOVEMBER.starts, START + at, side="right")) - 1]
        when = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
        tokens = Usage(input_tokens=prompt, output_tokens=completion)
        wanted += calc_price(tokens, name, genai_request_timestamp=when).total_price
    assert {charge["state"] for charge in charges} <= {"priced"}
    assert sum(Fraction(charge["list_cost"]) for charge in charges) == Fraction(wanted)
    assert sum(int(c["quantity"]) for c in charges) == sum(prompt + completion for _, prompt, completion, _ in requests)


ANY = st.lists(
    st.tuples(
        st.sampled_from([m.name for m in MODELS if not m.provider] + [None]), st.integers(0, 10**9),
        st.integers(0, 10**9), st.sampled_from([*prompts.CLASSES, None]), st.sampled_from(["p", "q", None]),
        st.integers(0, 29),
    ),
    min_size=1, max_size=20,
)  # fmt: skip


@settings(max_examples=25)
@given(found=ANY, order=st.randoms(use_true_random=False))
def test_every_token_is_charged_once_or_unpriced_once(found, order):
    """Whatever models, kinds, lengths, consumers and days: quantities of the charges are those of the usage, in any
    order of rows, and no token is in two charges of lists or of own prices."""
    rows = [
        row(name, prompt, completion, NOVEMBER.starts[day], consumer=consumer, llm_prompt_class=length)
        for name, prompt, completion, length, consumer, day in found
    ]
    text = OWN % ", consumer: p" + LLM.replace("llm:", "q:") % ("where: {consumer: q}, ", "") + LLM % ("", "")
    charges = rated(rows, book(text))
    for column, at in (("llm_prompt_tokens", 1), ("llm_completion_tokens", 2)):
        own = [int(c["quantity"]) for c in charges if c["meter"].startswith(column) and "+" not in c["meter"]]
        both = [int(c["quantity"]) for c in charges if "+" in c["meter"]]
        others = sum(each[at] for each in found if not (each[0] == "big" and each[4] == "p"))
        assert sum(own) == others
        assert sum(both) == sum(each[1] + each[2] for each in found if each[0] == "big" and each[4] == "p")
    order.shuffle(rows)
    assert rated(rows, book(text)) == charges


CALLS = "  call: {meter: calls, quantum: {bytes: 524288}, unit: Requests, prices: [{from: 2026-01-01, price: '0.1'}]}\n"
DISCOUNT = "overrides: [{match: {consumer: p}, sku: llm, kind: contracted, discount_pct: '10'}]\n"


@settings(max_examples=40)
@given(found=ANY, cut=st.integers(0, 1 << 6))
def test_lots_of_models_make_the_charges_of_the_whole(found, cut):
    """A month that is rated lot by lot has the same lines and charges, of models and of blocks too."""
    rows = [
        row(name, prompt, completion, NOVEMBER.starts[day], consumer=consumer, llm_prompt_class=length,
            operation_id=f"operation{day % 4}", calls=2, quanta_512k=day, calls_without_quanta=day % 2)
        for name, prompt, completion, length, consumer, day in found
    ]  # fmt: skip
    asked = book(CALLS + OWN % ", consumer: q" + LLM % ("", ""), more=DISCOUNT)
    parts = prompts.with_parts(usage(rows), external.columns_needed(asked))
    whole = gather(parts, NOVEMBER, asked.price_changes(NOVEMBER.days))
    statement = rate.rate_rows(whole, asked, NOVEMBER)
    in_lots = rate.rate_lots(lots_of(whole, cut), asked, NOVEMBER)
    assert (in_lots.lines, in_lots.total_minor) == (statement.lines, statement.total_minor)
    assert [charge for lot in in_lots.parts() for charge in lot.charges.to_pylist()] == statement.charges.to_pylist()
