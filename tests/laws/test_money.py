"""Money is conserved, exact, and the same whatever the order: core/rating/money.py and core/rating/rate.py."""

import ast
from decimal import Decimal
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core.rating import days, money, period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.usage_rows import gather
from apicost.report.month import monthly
from tests.usage_months import usage

ROOT = Path(__file__).parent.parent.parent
counts = st.lists(st.integers(0, 1 << 50), min_size=1, max_size=30)


EXACT = [*(ROOT / "apicost/core/rating").rglob("*.py"), *(ROOT / "apicost/report").glob("journal*.py")]
TABLES = ("charges", "focus", "jsonfile", "parquetfile", "summary")
EXACT += [ROOT / f"apicost/report/tables/{name}.py" for name in TABLES]


def test_what_is_exact_is_looked_at():
    """The files that make bills, corrections and journals are among those that are read for floats."""
    assert {"rate.py", "statement.py", "bill.py", "corrections.py", "journal.py"} <= {path.name for path in EXACT}


@pytest.mark.parametrize("path", sorted(EXACT), ids=lambda path: path.name)
def test_no_float_touches_money(path):
    """The code between a quantity and a cent has no float: no literal, no name, no division but whole ones."""
    for node in ast.walk(ast.parse(path.read_text())):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float | complex)), place
        assert not (isinstance(node, ast.Name) and node.id == "float"), place
        assert not (isinstance(node, ast.Attribute) and node.attr.startswith("float")), place
        assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)), place
        assert not (isinstance(node, ast.Attribute) and node.attr in ("bincount", "mean", "average", "divide")), place


@given(
    st.lists(st.integers(0, (1 << 62) - 1), min_size=1, max_size=8),
    st.integers(0, 1 << 70),
    st.integers(1, 1 << 70),
)
@example([0], 1 << 64, 1)  # nothing, at a price beyond 64 bits
@settings(deadline=None, max_examples=400)
def test_products_are_exact(values, numerator, denominator):
    """values * numerator / denominator comes out whole and rest, exactly, at any size."""
    whole, rest = money.product(np.array(values, np.int64), numerator, denominator)
    got = [Fraction(w) + Fraction(r, denominator) for w, r in zip(whole.tolist(), rest.tolist(), strict=True)]
    assert got == [Fraction(v * numerator, denominator) for v in values]
    assert all(0 <= r < denominator for r in rest.tolist())


@given(st.lists(st.integers(0, 1 << 57), min_size=1, max_size=8), st.integers(1, 1 << 57), st.integers(1, 1 << 57))
@settings(deadline=None)
def test_long_division_is_that_of_whole_numbers(values, numerator, denominator):
    """The limb-wise division gives the same as Python's integers, also where one multiplication would overflow."""
    if numerator > denominator:
        numerator, denominator = denominator, numerator
    whole, rest = money.product(np.array(values, np.int64), numerator, denominator)
    assert whole.tolist() == [v * numerator // denominator for v in values]
    assert rest.tolist() == [v * numerator % denominator for v in values]


@given(counts, st.integers(0, 1 << 60))
@settings(deadline=None)
def test_shares_sum_to_the_amount_and_are_nearly_proportional(weights, total):
    """No unit is lost or made, and each share is the floor of its exact value or one more."""
    if not sum(weights):
        with pytest.raises(ValueError, match="cannot split"):
            money.share(total, np.array(weights, np.int64))
        return
    shares = money.share(total, np.array(weights, np.int64)).tolist()
    assert sum(shares) == total
    for weight, share in zip(weights, shares, strict=True):
        assert share - total * weight // sum(weights) in (0, 1)


@given(counts, st.integers(0, 1000))
@settings(deadline=None)
def test_a_part_of_the_whole_never_exceeds_a_weight(weights, permille):
    """Where no more is shared than there is, no row gets more than it has: tiers can be peeled off rows."""
    total = sum(weights) * permille // 1000
    if sum(weights):
        assert all(s <= w for s, w in zip(money.share(total, np.array(weights)).tolist(), weights, strict=True))


@given(st.lists(st.tuples(st.integers(0, 10**15), st.integers(0, 10**12 - 1)), min_size=1, max_size=10))
@settings(deadline=None)
def test_decimal_text_is_plain_and_exact(numbers):
    """Text of an exact decimal reads back to the same number and never has an exponent."""
    whole, rest = (np.array(column, np.int64) for column in zip(*numbers, strict=True))
    texts = money.decimal_texts(whole, rest, 12).to_pylist()
    assert [Decimal(t) for t in texts] == [w + Decimal(r).scaleb(-12) for w, r in numbers]
    assert all(set(t) <= set("0123456789.") and not t.endswith(".") for t in texts)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**9)), min_size=1, max_size=40),
    st.integers(2, 10**6),
)
@settings(deadline=None)
def test_rounding_is_right_at_every_level(rows, divisor):
    """Rounded rows sum to the total, and every node of the tree gets the floor of its exact value or one more."""
    rows.sort()
    exact = [Fraction(value, divisor) for _, _, value in rows]
    upper = _numbered([r[:1] for r in rows])
    lower = _numbered([r[:2] for r in rows])
    whole, rest = (np.array(x, np.int64) for x in zip(*[divmod(r[2], divisor) for r in rows], strict=True))
    total = money.half_even(sum(exact))
    billed = money.round_tree(whole, rest, divisor, [upper, lower], total).tolist()
    assert sum(billed) == total
    for level in (upper, lower, np.arange(len(rows))):
        for node in set(level.tolist()):
            mine = [i for i in range(len(rows)) if level[i] == node]
            assert sum(billed[i] for i in mine) - floor(sum(exact[i] for i in mine)) in (0, 1)


def _numbered(keys):
    order = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys])


BOOK = prices.parse(
    """
pricebook: {id: law, version: "1", currency: EUR, calendar: {time_zone: Europe/Berlin}}
scopes: {internet: {peers: ["0.0.0.0/0"]}}
skus:
  call:
    meter: calls
    unit: 1000 Requests
    free: {quantity: "2", share: pro_rata}
    prices:
      - {from: 2026-01-01, to: 2026-10-10, mode: flat, price: "0.37"}
      - {from: 2026-10-12, mode: graduated, tiers: [{up_to: "5", price: "1.01"}, {up_to: null, price: "0.333"}]}
  egress:
    meter: bytes
    where: {direction: egress, scope: internet}
    unit: GiB
    prices: [{from: 2026-01-01, mode: graduated, tiers: [{up_to: "1", price: "0.09"}, {up_to: null, price: "0.07"}]}]
shared_costs:
  - {id: node, amount: "31.01", period: monthly, weights: {calls: "0.3", bytes: "0.7"}, idle: {keep_unallocated: "0.1"}}
"""
)
MONTH = period.month("2026-10", "Europe/Berlin")

rows = st.lists(
    st.fixed_dictionaries(
        {
            "minute_unix_s": st.integers(MONTH.start_unix_s, MONTH.end_unix_s - 1),
            "api": st.sampled_from(["a", "b", None]),
            "operation_id": st.sampled_from(["x", "y", None]),
            "consumer": st.sampled_from(["c", "d", None]),
            "match_state": st.sampled_from(["matched", "undocumented-path", "unattributed"]),
            "status_class": st.sampled_from(["2xx", "5xx", None]),
            "scope": st.sampled_from(["internet", "unknown"]),
            "calls": st.integers(0, 5_000),
            "downstream_out_wire_bytes": st.integers(0, 10**9),
        }
    ),
    min_size=1,
    max_size=25,
)


@given(rows)
@settings(deadline=None)
def test_charges_sum_to_the_total_by_any_grouping(given_rows):
    """Billed costs of charges, and of every table of the report, sum to the statement's total to the last cent."""
    statement = rate.rate(usage(given_rows), BOOK, MONTH)
    assert int(statement.billed_minor.sum()) == statement.total_minor == money.half_even(statement.total_exact * 100)
    daily = gather(usage(given_rows), MONTH)
    figures = monthly.figures(Bill(statement=statement), daily)
    for table in (figures.by_api, figures.by_operation, figures.by_consumer, figures.by_status):
        assert sum(row.billed_minor for row in table.rows) == statement.total_minor, table.id
        assert sum(row.list_cost for row in table.rows) == statement.total_exact, table.id
        assert sum(row.calls for row in table.rows) == figures.calls
    by_day, no_day = days.by_day(statement, daily)
    assert sum(day.billed_minor for day in by_day) + no_day == statement.total_minor
    assert sum(day.calls for day in by_day) == figures.calls


@given(rows)
@settings(deadline=None)
def test_every_quantity_is_charged_once_or_said_to_be_unpriced(given_rows):
    """Calls and bytes of the charges, priced and unpriced, are the usage: nothing is dropped or doubled."""
    statement = rate.rate(usage(given_rows), BOOK, MONTH)
    for meter in ("calls", "downstream_out_wire_bytes"):
        charged = sum(
            int(q) for q, n in zip(statement.quantity, statement.line, strict=True)
            if statement.lines[n].meter == meter and statement.lines[n].unit != "EUR"
        )  # fmt: skip
        assert charged == sum(row[meter] for row in given_rows)
    shared = sum(line.cost_of(line.quantity) for line in statement.lines if line.sku == "node")
    assert shared == Fraction("31.01")


@given(rows, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_split_and_grain_of_usage_change_nothing(given_rows, random):
    """Shuffled rows, rows split in two, and dictionaries in another order give identical charges."""
    first = rate.rate(usage(given_rows), BOOK, MONTH).charges
    shuffled = given_rows.copy()
    random.shuffle(shuffled)
    split = [
        part
        for row in shuffled
        for part in (
            row | {"calls": row["calls"] // 3, "downstream_out_wire_bytes": 0},
            row | {"calls": row["calls"] - row["calls"] // 3},
        )
    ]
    again = pa.concat_tables([usage(split[::2]), usage(split[1::2])])
    assert rate.rate(again, BOOK, MONTH).charges.to_pydict() == first.to_pydict()


@given(rows)
@settings(deadline=None)
def test_list_cost_is_the_exact_product(given_rows):
    """quantity x unit_price = list_cost for every charge, and its billed cost is within a cent of it."""
    for charge in rate.rate(usage(given_rows), BOOK, MONTH).charges.to_pylist():
        if charge["state"] == "unpriced":
            assert charge["list_cost"] is charge["billed_cost"] is charge["unit_price"] is None
            continue
        exact = Fraction(charge["quantity"]) * Fraction(charge["unit_price"])
        assert Fraction(charge["list_cost"]) == exact
        assert abs(Fraction(charge["billed_cost"]) - exact) < Fraction(1, 100)
