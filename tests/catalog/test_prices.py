"""The price book file: what is read, and every way in which it can be wrong."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from apicost.catalog import prices
from apicost.core.scopes import Scopes
from apicost.problems import InputError

ROOT = Path(__file__).parent.parent.parent
HEAD = "pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: Europe/Berlin}}\n"
CALL = "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, price: '1'}]}}\n"
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
        "p.yaml:2: x: mode 'volume' is not supported",
    "skus: {x: {meter: calls, unit: Requests, quantum: {bytes: 512}, prices: [{from: 2026-01-01, price: 1}]}}":
        "p.yaml:2: key 'quantum' is not supported by this version",
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
    CALL + "fx: []": "p.yaml:3: key 'fx' is not supported by this version",
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
