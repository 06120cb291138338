"""The price book file: what is read, and every way in which it can be wrong."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from apicost.catalog import prices
from apicost.core.rating import period
from apicost.core.scopes import Scopes
from apicost.problems import InputError

ROOT = Path(__file__).parent.parent.parent
HEAD = "pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: Europe/Berlin}}\n"
CALL = "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: '1'}]}}\n"
USD = "currency: USD"
MODELS = "skus: {x: {meter: %s, unit: %s, %sprices: [{from: 2026-01-01, mode: external, source: genai-prices, %s}]}}"
FREE = 'free: {quantity: "1", share: pro_rata}'


def problems(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        prices.parse(text, "p.yaml")
    return [f"{problem.place}: {problem.fact}" for problem in caught.value.problems]


def test_the_sample_is_a_good_book():
    """specs/prices.yaml is read without a problem or remark, and its scopes compile for the meter."""
    book = prices.load(ROOT / "specs/prices.yaml")
    assert (book.currency, book.time_zone, book.remarks) == ("EUR", "Europe/Berlin", ())
    assert Scopes(book.scopes).names == ("host", "internal", "internet", "unknown")


def test_amounts_are_taken_as_written():
    """Quoted or not, 0.10 is the decimal 0.10: it never was a float."""
    for written in ("'0.10'", "0.10"):
        book = prices.parse(HEAD + CALL.replace("'1'}]", f"{written}}}]"))
        assert book.skus[0].prices[0].tiers[0].price == Decimal("0.10")
        assert str(book.skus[0].prices[0].tiers[0].price) == "0.10"


def test_quantities_become_base_units():
    """up_to and free are given in pricing units and kept in bytes; GiB is 2**30, GB is 10**9."""
    text = """
skus:
  out:
    meter: bytes
    where: {direction: egress}
    unit: %s
    free: {quantity: "0.5", share: pro_rata}
    prices: [{from: 2026-01-01, mode: graduated, tiers: [{up_to: "10", price: "2"}, {up_to: null, price: "1"}]}]
"""
    for unit, base in (("GB", 10**9), ("GiB", 1 << 30)):
        (sku,) = prices.parse(HEAD + text % unit).skus
        assert (sku.free, sku.prices[0].tiers[0].up_to) == (base // 2, 10 * base)


def test_where_names_the_columns_that_are_added_up():
    """direction, leg, byte_basis and both_directions choose the columns; scope is that of the leg."""
    text = """
scopes: {lan: {peers: ["10.0.0.0/8"]}}
skus:
  a: {meter: bytes, where: {direction: egress, scope: lan}, unit: GB, prices: [{from: 2026-01-01, price: 1}]}
  b:
    meter: bytes
    where: {leg: upstream, scope: lan}
    both_directions: true
    unit: GB
    prices: [{from: 2026-01-01, price: 1}]
  c: {meter: bytes, where: {direction: ingress}, byte_basis: app, unit: GB, prices: [{from: 2026-01-01, price: 1}]}
  d: {meter: tokens, where: {token: prompt, model: [m1, m2]}, unit: 1000 Tokens, prices: [{from: 2026-01-01, price: 1}]}
"""
    found = {sku.id: (sku.columns, dict(sku.where)) for sku in prices.parse(HEAD + text).skus}
    assert found == {
        "a": (("downstream_out_wire_bytes",), {"scope": ("lan",)}),
        "b": (("upstream_in_wire_bytes", "upstream_out_wire_bytes"), {"upstream_scope": ("lan",)}),
        "c": (("downstream_in_app_bytes",), {}),
        "d": (("llm_prompt_tokens",), {"llm_model": ("m1", "m2")}),
    }


def test_a_price_without_an_end_ends_where_the_next_begins():
    """The price of a day is the one in force; days before the first have none."""
    text = CALL.replace("[{", "[{from: 2026-07-01, price: '2'}, {")
    (sku,) = prices.parse(HEAD + text).skus
    on = {day: sku.price_on(date.fromisoformat(day)) for day in ("2025-12-31", "2026-06-30", "2026-07-01")}
    assert [p and p.tiers[0].price for p in on.values()] == [None, Decimal(1), Decimal(2)]


def test_a_gap_between_prices_is_a_remark():
    """Days without a price are legal, and said: their usage stays unpriced."""
    text = CALL.replace("[{from: 2026-01-01", "[{from: 2026-07-01, price: '2'}, {from: 2026-01-01, to: 2026-06-01")
    (remark,) = prices.parse(HEAD + text).remarks
    assert "no price from 2026-06-01 to 2026-07-01" in remark


WRONG = {
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: O.09}]}}":
        "p.yaml:2: x: price 'O.09' is not a decimal number",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: 1e-7}]}}":
        "p.yaml:2: x: price '1e-7' is not a decimal number",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: -1}]}}":
        "p.yaml:2: x: price '-1' is not a decimal number",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-02-30, price: 1}]}}":
        "p.yaml:2: x: from '2026-02-30' is not a date",
    "skus: {x: {meter: calls, unit: Requests, prices: [{price: 1}]}}": "p.yaml:2: x: this price has no from: date",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-02-01, to: 2026-02-01, price: 1}]}}":
        "p.yaml:2: x: to 2026-02-01 is not after from 2026-02-01",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, to: 2026-03-01, price: 1}, "
    "{from: 2026-02-01, price: 1}]}}":
        "p.yaml:2: x: this price from 2026-01-01 and the one from 2026-02-01 overlap",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: volume}]}}":
        "p.yaml:2: x: a volume price has no tiers",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: stairs, price: 1}]}}":
        "p.yaml:2: x: mode 'stairs' is not known",
    "skus: {x: {meter: calls, unit: Requests, quantum: {bytes: 512}, prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: bytes '512' is not one of 32768, 65536, 524288",
    "skus: {x: {meter: calls, unit: Requests, quantum: {round: up}, prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: quantum has no 'bytes'",
    "skus: {x: {meter: calls, unit: Requests, quantum: {bytes: 32768, round: down}, "
    "prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: round 'down' is not one of up",
    "skus: {x: {meter: tokens, unit: Tokens, quantum: {bytes: 32768}, prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: x: quantum belongs to meter: calls",
    MODELS % ("tokens", "Tokens", "", ""): "p.yaml:2: x: prices of genai-prices are in USD, not in EUR",
    MODELS % ("calls", "Requests", "", USD): "p.yaml:2: x: mode external is of models' tokens, not of calls",
    MODELS % ("tokens", "Tokens", FREE + ", ", USD): "p.yaml:2: x: a free allowance of tokens that cost differently",
    MODELS % ("tokens", "Tokens", "", USD + ", on_unknown_model: zero"):
        "p.yaml:2: on_unknown_model 'zero' is not one of unpriced",
    MODELS % ("tokens", "Tokens", "", USD + ", price: 1"): "p.yaml:2: x: mode external has no 'price'",
    MODELS % ("tokens", "Tokens", "", USD + ", pool: api"): "p.yaml:2: x: models' prices have no tiers to be pooled",
    (MODELS % ("tokens", "Tokens", "", USD)).replace("genai-prices", "hearsay"):
        "p.yaml:2: source 'hearsay' is not one of genai-prices",
    (MODELS % ("tokens", "Tokens", "", USD)).replace("source: genai-prices, ", ""): "p.yaml:2: 0 has no 'source'",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: 1, source: y}]}}":
        "p.yaml:2: x: mode flat has no 'source'",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: package, price: 1}]}}":
        "p.yaml:2: x: there is no size",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: package, size: '0', price: 1}]}}":
        "p.yaml:2: x: a package of '0' units is none",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, size: '9', price: 1}]}}":
        "p.yaml:2: x: mode flat has no 'size'",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, window: day, price: 1}]}}":
        "p.yaml:2: x: window 'day' is not supported",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, pool: team, price: 1}]}}":
        "p.yaml:2: pool 'team' is not one of billing_account, consumer, api",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: 1}, "
    "{from: 2026-02-15, pool: api, price: 1}]}}":
        "p.yaml:2: x: pool billing_account becomes api within a month",
    "skus: {x: {meter: calls, unit: Requests, currency: dollar, prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: x: currency 'dollar' is not an ISO 4217 code",
    "skus: {x: {meter: calls, unit: GB, prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: unit 'GB' is not one of Requests, 1000 Requests, 1000000 Requests",
    "skus: {x: {meter: steps, unit: GB, prices: []}}": "p.yaml:2: meter 'steps' is not one of calls, bytes, tokens",
    "skus: {x: {meter: bytes, unit: GB, prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: x: which way its bytes go is not said",
    "skus: {x: {meter: bytes, where: {direction: egress}, both_directions: true, unit: GB, "
    "prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: x: both_directions and where.direction 'egress' disagree",
    "skus: {x: {meter: calls, where: {scope: lan}, unit: Requests, prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: x: scope 'lan' is not one of this book's scopes",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, tiers: [{up_to: 5, price: 1}]}]}}":
        "p.yaml:2: x: the last tier ends at '5': what lies above has no price",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, tiers: [{up_to: null, price: 1}, "
    "{up_to: null, price: 1}]}]}}":
        "p.yaml:2: x: tier 1 has no end, but more follow",
    "skus: {x: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, tiers: [{up_to: 5, price: 1}, "
    "{up_to: 5, price: 1}, {up_to: null, price: 1}]}]}}":
        "p.yaml:2: x: tier 2 ends at '5', not above the tier before",
    "skus: {x: {meter: calls, unit: Requests, free: {quantity: 1, share: first_come}, "
    "prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: share 'first_come' is not one of pro_rata",
    CALL + "fx: {}": "p.yaml:3: fx is not a list",
    CALL + "fx: [{from: USD, to: CHF, period: 2026-10, rate: 1}]": "p.yaml:3: fx: USD to CHF converts nothing",
    CALL + "fx: [{from: EUR, to: EUR, period: 2026-10, rate: 1}]": "p.yaml:3: fx: EUR to EUR converts nothing",
    CALL + "fx: [{from: USD, to: EUR, period: 2026-13, rate: 1}]": "p.yaml:3: fx: period '2026-13' is not a month",
    CALL + "fx: [{from: USD, to: EUR, period: 2026-10, rate: 0}]": "p.yaml:3: fx: a rate of 0 makes every cost 0",
    CALL + "fx: [{from: USD, to: EUR, period: 2026-10, rate: 1, locked: 1}]":
        "p.yaml:3: fx: locked '1' is not true or false",
    CALL + "fx: [{from: USD, to: EUR, period: 2026-10, rate: 1}, {from: USD, to: EUR, period: 2026-10, rate: 2}]":
        "p.yaml:3: fx: USD has two rates in 2026-10",
    CALL + "overrides: [{match: {consumer: p}, kind: gift}]": "p.yaml:3: kind 'gift' is not one of contracted, commit",
    CALL + "overrides: [{kind: contracted, discount_pct: 5}]": "p.yaml:3: contract: it does not say what it is for",
    CALL + "overrides: [{match: {custumer: p}, kind: contracted, discount_pct: 5}]":
        "p.yaml:3: unknown key 'custumer'",
    CALL + "overrides: [{match: {consumer: p}, kind: contracted}]":
        "p.yaml:3: contract: it has neither a discount nor a price",
    CALL + "overrides: [{match: {consumer: p}, sku: call, kind: contracted, discount_pct: 5, price: 1}]":
        "p.yaml:3: contract: it has both a discount and a price",
    CALL + "overrides: [{match: {consumer: p}, kind: contracted, price: 1}]":
        "p.yaml:3: contract: a price is of one SKU, not of all",
    CALL + "overrides: [{match: {consumer: p}, sku: cal, kind: contracted, price: 1}]":
        "p.yaml:3: contract: 'cal' is no SKU of this book",
    CALL + "overrides: [{match: {consumer: p}, kind: contracted, discount_pct: 101}]":
        "p.yaml:3: contract: a discount of 101 % is more than all",
    CALL + "overrides: [{match: {consumer: p}, kind: contracted, discount_pct: 5, minimum: 1}]":
        "p.yaml:3: a contracted override has no 'minimum'",
    CALL + "overrides: [{match: {consumer: [p, q]}, kind: commitment, minimum: 1}]":
        "p.yaml:3: commitment: 2 consumers, but one must bear it",
    CALL + "overrides: [{match: {consumer: p}, kind: commitment}]": "p.yaml:3: commitment: there is no minimum",
    CALL + "overrides: [{match: {consumer: p}, kind: commitment, minimum: 1, from: 2026-01-15}]":
        "p.yaml:3: commitment: from 2026-01-15 is not the first day of a month",
    CALL + "overrides: [{match: {consumer: p}, kind: commitment, minimum: 1, from: 2026-02-01}, "
    "{match: {consumer: p}, kind: commitment, minimum: 2}]":
        "p.yaml:3: commitment: 'p' has another one at the same time",
    CALL.replace("call:", "commitment:") + "overrides: [{match: {consumer: p}, kind: commitment, minimum: 1}]":
        "p.yaml:3: a SKU is called 'commitment'",
    CALL + "budgets: [{match: {squad: s}, month: 2026-10, amount: 1}]": "p.yaml:3: unknown key 'squad'",
    CALL + "budgets: [{match: {team: s}, month: October, amount: 1}]": "p.yaml:3: budget: month 'October' is not",
    CALL + "budgets: [{match: {team: s}, month: 2026-10}]": "p.yaml:3: budget: there is no amount",
    CALL + "tags: [{match: {api: a}, set: {cost-center: x}}]": "p.yaml:3: unknown key 'cost-center'",
    CALL + "tags: [{match: {api: a}, set: {}}]": "p.yaml:3: tags: nothing is set",
    CALL + "tags: [{match: {api: a}, set: {team: []}}]": "p.yaml:3: tags: team [] is not a text",
    CALL + "tags: [{match: {status_class: 5xx}, set: {team: x}}]": "p.yaml:3: unknown key 'status_class'",
    CALL + "shared_costs: [{id: n, amount: 1, period: monthly, method: by-magic, weights: {calls: 1}}]":
        "p.yaml:3: method 'by-magic' is not one of by-weight, gw-by-weight-v1",
    CALL + "shared_costs: [{id: n, amount: 1, period: monthly, fallback_when_zero: equal, weights: {calls: 1}}]":
        "p.yaml:3: fallback_when_zero 'equal' is not one of unallocated",
    CALL + "sku: {}": "p.yaml:3: unknown key 'sku'",
    CALL + "rounding: {mode: half_up}": "p.yaml:3: mode 'half_up' is not supported",
    CALL + "scopes: {unknown: {peers: [0.0.0.0/0]}}": "p.yaml:3: 'unknown' is what no scope matches",
    CALL + "scopes: {lan: {peers: [10.0.0.1/8]}}": "p.yaml:3: lan: '10.0.0.1/8' is no network",
    CALL + "shared_costs: [{id: n, amount: 1, period: monthly, weights: {calls: '0.5'}}]":
        "p.yaml:3: n: the weights do not sum to 1",
    CALL + "shared_costs: [{id: call, amount: 1, period: monthly, weights: {calls: 1}}]":
        "p.yaml:3: id 'call' stands twice",
    CALL + "shared_costs: [{id: n, amount: 1, period: monthly, from: 2026-01-15, weights: {calls: 1}}]":
        "p.yaml:3: n: from 2026-01-15 is not the first day of a month",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), WRONG.items(), ids=[fact.split(": ", 1)[1][:50] for fact in WRONG.values()]
)
def test_what_is_wrong_is_said_with_its_place(text, expected):
    """Each mistake is one problem with FILE:LINE and what stands there."""
    (problem,) = problems(HEAD + text)
    assert problem.startswith(expected)


def test_all_problems_of_a_file_come_at_once():
    """Four mistakes in four places are four problems, each with its line, effect and fix."""
    text = """pricebook: {id: t, version: 1, currency: Euro, calendar: {time_zone: Mars/Olympus}}
skus:
  a: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: x}]}
  b: {meter: call, unit: Requests, prices: []}
"""
    with pytest.raises(InputError) as caught:
        prices.parse(text, "p.yaml")
    assert [p.place for p in caught.value.problems] == ["p.yaml:1", "p.yaml:1", "p.yaml:3", "p.yaml:4"]
    assert all(p.effect and p.fix for p in caught.value.problems)
    assert "did you mean 'calls'?" in caught.value.problems[3].fix


@pytest.mark.parametrize("text", ["", "[]", "a", "pricebook:", "skus: []", "pricebook: 1\nskus: 1\nscopes: 1"])
def test_a_file_of_another_shape_is_problems_not_a_crash(text):
    """Whatever YAML stands there, it comes back as problems."""
    assert problems(text)


def test_a_time_zone_is_no_path():
    """A zone name that would leave the zone folder is refused by its form."""
    assert problems(HEAD.replace("Europe/Berlin", "../../etc/passwd") + CALL) == [
        "p.yaml:1: time zone '../../etc/passwd' is not known"
    ]


TERMS = """
skus:
  call:
    meter: calls
    unit: 1000 Requests
    currency: USD
    prices:
      - {from: 2026-01-01, mode: package, size: "0.5", price: "1.00", pool: consumer, window: billing_month}
      - {from: 2026-03-01, mode: volume, currency: EUR, tiers: [{up_to: "2", price: "3"}, {up_to: null, price: "2"}]}
fx: [{from: USD, to: EUR, period: 2026-01, rate: "0.8642", source: ECB, locked: true}]
overrides:
  - {match: {consumer: [p, q], api: a}, sku: call, from: 2026-01-10, to: 2026-02-10, kind: contracted, price: "0.5"}
  - {match: {consumer: p}, kind: contracted, discount_pct: "12.5"}
  - {match: {consumer: p}, kind: commitment, minimum: "500.00", to: 2026-07-01}
budgets: [{match: {team: shop, api: a}, month: 2026-10, amount: "4000.00"}]
tags: [{match: {api: a, route: r}, set: {team: shop, cost_center: "4711"}}]
"""


def test_the_terms_beside_prices_are_read():
    """Modes, pools, currencies, contracts, commitments, budgets and tags as they were written."""
    book = prices.parse(HEAD + TERMS)
    first, second = book.skus[0].prices
    assert (first.mode, first.size, first.pool, first.currency) == ("package", 500, "consumer", "USD")
    assert (second.mode, second.pool, second.currency) == ("volume", "billing_account", "EUR")
    assert [(r.currency, r.period, r.rate, r.locked) for r in book.fx] == [("USD", "2026-01", Decimal("0.8642"), True)]
    one, other = book.contracts
    assert (one.match, one.skus, one.price) == ({"consumer": ("p", "q"), "api": ("a",)}, ("call",), Decimal("0.5"))
    assert (other.skus, other.discount_pct, other.since) == ((), Decimal("12.5"), None)
    assert [(c.consumer, c.minimum, c.until) for c in book.commitments] == [("p", Decimal(500), date(2026, 7, 1))]
    assert [(b.match, b.month, b.amount) for b in book.budgets] == [
        ({"team": ("shop",), "api": ("a",)}, "2026-10", Decimal(4000))
    ]
    assert [(t.match, t.tags) for t in book.tags] == [
        ({"api": ("a",), "route_id": ("r",)}, {"team": "shop", "cost_center": "4711"})
    ]


def test_a_missing_exchange_rate_is_a_problem_of_the_months_that_need_it():
    """January has its rate; February has none, and is refused with place and fix; from March on nobody needs one."""
    book = prices.parse(HEAD + TERMS, "p.yaml")
    for name in ("2026-01", "2026-03"):
        prices.require(book, period.month(name, book.time_zone))
    with pytest.raises(InputError) as caught:
        prices.require(book, period.month("2026-02", book.time_zone))
    (problem,) = caught.value.problems
    assert problem.place == "p.yaml:9"
    assert "this price is in USD, and fx has no rate of 2026-02" in problem.fact
    assert "period: 2026-02" in problem.fix and problem.effect


def test_a_currency_without_any_rate_is_a_remark():
    """Such a book is right by itself, but no month can be rated with it: the check says so."""
    (remark,) = prices.parse(HEAD + CALL.replace("prices:", "currency: USD, prices:")).remarks
    assert "call is priced in USD, and fx has no rate for it" in remark


def test_problems_of_every_section_come_at_once():
    """One mistake in each section beside the SKUs: each is reported, with its line."""
    text = (
        CALL
        + """fx: [{from: USD, to: EUR, period: x, rate: 1}]
overrides: [{match: {consumer: p}, kind: contracted}]
budgets: [{match: {team: t}, month: 2026-10, amount: x}]
tags: [{match: {api: a}, set: {team: ''}}]
shared_costs: [{id: n, amount: x, period: monthly, weights: {calls: 1}}]
"""
    )
    assert sorted(place.split(": ")[0] for place in problems(HEAD + text)) == [f"p.yaml:{n}" for n in range(3, 8)]


def test_all_problems_come_at_once_with_duplicate_keys_among_them():
    """A key that stands twice does not hide what else is wrong."""
    text = HEAD + "skus:\n  a: {meter: calls, unit: GB, prices: []}\n  a: {meter: calls, unit: GiB, prices: []}\nx: 1\n"
    found = problems(text)
    assert "p.yaml:4: key 'a' stands twice in this mapping" in found
    assert {fact.split(": ", 1)[0] for fact in found} == {"p.yaml:4", "p.yaml:5"} and len(found) == 4


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("status_class: 6xx", "x: status_class '6xx' is not one of 1xx, 2xx, 3xx, 4xx, 5xx"),
        ("status_class: [2xx, '404']", "x: status_class '404' is not one of 1xx, 2xx, 3xx, 4xx, 5xx"),
        ("match_state: mached", "x: match_state 'mached' is not one of matched, undocumented-path"),
        ("method: get", "x: no request has method 'get'"),
    ],
)
def test_a_value_that_no_usage_can_have_is_a_problem(where, told):
    """A typo in a closed set would match no row: the price would silently hold for nothing. In contracts, too."""
    sku = (
        f"skus: {{x: {{meter: calls, unit: Requests, where: {{{where}}}, prices: [{{from: 2026-01-01, price: '1'}}]}}}}"
    )
    assert problems(HEAD + sku)[0].startswith(f"p.yaml:2: {told}")
    contract = f"overrides: [{{match: {{{where}}}, kind: contracted, discount_pct: '5'}}]\n"
    told = told.replace("x:", "contract:", 1) if "match_state" not in where else "unknown key 'match_state'"
    assert problems(HEAD + CALL + contract)[0].startswith(f"p.yaml:3: {told}")


def test_a_currency_is_one_that_exists():
    """Three capitals are not enough; and a wrong currency of the book is told once, not by each rate again."""
    assert problems(HEAD.replace("EUR", "EUS") + CALL + "fx: [{from: USD, to: EUR, period: 2026-10, rate: '1'}]\n") == [
        "p.yaml:1: currency 'EUS' is not an ISO 4217 code"
    ]
    with pytest.raises(InputError) as caught:
        prices.parse(HEAD.replace("EUR", "eur") + CALL, "p.yaml")
    assert caught.value.problems[0].fix == "write EUR"


@pytest.mark.parametrize(
    ("scopes", "told"),
    [
        ("{all: {peers: ['0.0.0.0/0']}, az: {peers: ['10.1.0.0/20']}}", ["10.1.0.0/20 of scope az lies in 0.0.0.0/0"]),
        (
            "{a: {peers: ['fd00::/8']}, b: {peers: ['fd00::/8', '10.0.0.0/8']}}",
            ["fd00::/8 of scope b lies in fd00::/8"],
        ),
        ("{az: {peers: ['10.1.0.0/20']}, all: {peers: ['0.0.0.0/0', '::/0', '10.0.0.0/8']}}", []),
    ],
)
def test_a_network_that_an_earlier_scope_hides_is_a_remark(scopes, told):
    """The first match wins: a zone below "everything" never counts, and its traffic is priced as the internet's."""
    remarks = prices.parse(HEAD + f"scopes: {scopes}\n" + CALL, "p.yaml").remarks
    assert len(remarks) == len(told)
    assert all(text in remark for text, remark in zip(told, remarks, strict=True))


def test_a_provider_is_looked_up_with_everything_else():
    """`prices check` tells an unknown provider together with the file's other problems."""
    text = HEAD + MODELS % ("tokens", "GB", "currency: USD, ", "provider: openia") + "\n"
    with pytest.raises(InputError) as caught:
        prices._read(prices.yamlfile.parse(text, "p.yaml", exact=True), lambda: ["azure", "openai"])
    told = [(problem.fact, problem.fix) for problem in caught.value.problems]
    assert len(told) == 2 and told[1] == ("x: genai-prices has no provider 'openia'", "did you mean 'openai'?")


def _places(data, path=()):
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from _places(value, (*path, key))


def _with(data, path, value):
    if not path:
        return value
    out = dict(data) if isinstance(data, dict) else list(data)
    out[path[0]] = _with(data[path[0]], path[1:], value)
    return out


@pytest.mark.parametrize("file", ["prices.yaml", "prices-llm.yaml"])
def test_a_value_of_any_other_kind_anywhere_is_a_problem_or_read(file):
    """A list, a mapping, nothing or a truth in any place of a book: never anything but a book or its problems."""
    data = prices.yamlfile.load(ROOT / "specs" / file, exact=True).data
    for path in _places(data):
        for value in ([], ["x"], {}, {"a": "b"}, None, True, "", "x" * 300):
            text = json.dumps(_with(data, path, value))
            try:
                prices._read(prices.yamlfile.parse(text, "p.yaml", exact=True), lambda: ["openai"])
            except InputError as error:
                assert all(problem.fix and problem.effect for problem in error.problems)


def test_the_source_of_a_rate_is_a_text():
    """It is printed on the statement: a list is no source."""
    text = HEAD + CALL + "fx: [{from: USD, to: EUR, period: 2026-10, rate: '1', source: [ECB]}]\n"
    assert problems(text) == ["p.yaml:3: fx: source ['ECB'] is not a text"]
