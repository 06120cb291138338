"""What a finding costs is its share of the statement: by hand, and as a law."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core import records
from apicost.core.conformance.finding import Finding
from apicost.core.rating import period, rate
from apicost.core.rating.statement import Statement
from apicost.core.rating.usage_rows import gather
from apicost.report.conformance.cost import costs
from tests import usage_months

MARCH = period.month("2026-03", "Europe/Berlin")
NOON = MARCH.start_unix_s + 12 * 3600
BOOK = prices.parse(
    """
pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: Europe/Berlin}}
scopes: {internal: {peers: [10.0.0.0/8]}, internet: {peers: [0.0.0.0/0, '::/0']}}
skus:
  call:
    meter: calls
    unit: Requests
    free: {quantity: '100', share: pro_rata}
    prices:
      - from: 2026-01-01
        to: 2026-03-16
        mode: graduated
        tiers: [{up_to: '1000', price: '0.02'}, {up_to: null, price: '0.01'}]
      - {from: 2026-03-16, price: '0.03'}
  egress:
    meter: bytes
    where: {direction: egress, scope: internet}
    unit: GB
    prices: [{from: 2026-01-01, price: '0.08'}]
"""
)


def shapes(usage: pa.Table) -> pa.Table:
    """SHAPE rows of usage: what documents speak of is null."""
    columns = {name: usage[name] for name in usage.column_names}
    for field in records.schema(records.SHAPE):
        if field.name not in columns:
            columns[field.name] = pa.array([None if field.type == records.TEXT else 0] * len(usage), field.type)
    return pa.table([columns[f.name] for f in records.schema(records.SHAPE)], schema=records.schema(records.SHAPE))


def finding(rows: tuple[int, ...], **more: object) -> Finding:
    return Finding(
        rule="deprecated-in-use", severity="warning", api=None, operation_id=None, method=None, path_template=None,
        detail="", rows=rows, **more,
    )  # type: ignore[arg-type]  # fmt: skip


def statement(usage: pa.Table) -> Statement:
    return rate.rate_rows(gather(usage, MARCH, BOOK.price_changes(MARCH.days)), BOOK, MARCH)


def test_a_finding_bears_its_share_of_tiers_and_free_allowance_alike() -> None:
    """400 of 1,600 calls of one key: a quarter of 100 free, 1,000 at 0.02 and 500 at 0.01."""
    row = {"minute_unix_s": NOON, "api": "a", "match_state": "matched"}
    table = usage_months.usage([{**row, "calls": 400}, {**row, "calls": 1_200}])
    (cost,) = costs([finding((0,))], shapes(table), [statement(table)])
    assert cost == Fraction(1000 * 2 + 500 * 1, 100) / 4


def test_another_key_keeps_its_own_cost() -> None:
    """Bytes of an API that no finding speaks of cost it nothing, and days have the price of their days."""
    late = NOON + 20 * 86_400
    rows = [
        {"minute_unix_s": NOON, "api": "a", "scope": "internet", "downstream_out_wire_bytes": 10**9},
        {"minute_unix_s": NOON, "api": "b", "scope": "internet", "downstream_out_wire_bytes": 3 * 10**9},
        {"minute_unix_s": late, "api": "a", "calls": 200},
    ]
    table = usage_months.usage(rows)
    assert costs([finding((0,)), finding((2,))], shapes(table), [statement(table)]) == [Fraction(8, 100), Fraction(3)]


def test_what_has_no_price_has_no_cost_and_no_traffic_costs_nothing() -> None:
    """Unpriced is None; a finding without traffic (an orphan) is 0; half of the rows' usage is half the cost."""
    rows = [
        {"minute_unix_s": NOON, "api": "a", "scope": "internal", "downstream_out_wire_bytes": 10**9},
        {"minute_unix_s": NOON, "api": "a", "scope": "internet", "downstream_out_wire_bytes": 10**9},
    ]
    table = usage_months.usage(rows)
    asked = [finding((0,)), finding(()), finding((1,), share=(1, 2))]
    assert costs(asked, shapes(table), [statement(table)]) == [None, Fraction(), Fraction(4, 100)]
    assert costs(asked[:1], shapes(table), []) == [None]


@functools.cache
def month(seed: int) -> tuple[pa.Table, Statement]:
    """A month's shapes and their statement."""
    table = usage_months.month(MARCH, seed=seed, scale=40, step_s=86_400 * 8)
    return shapes(table), statement(table)


@pytest.mark.parametrize("seed", [1, 2])
@given(data=st.data())
def test_findings_that_part_the_month_cost_the_month(seed: int, data: st.DataObject) -> None:
    """Whatever the partition, the parts' costs sum to the statement's, exactly."""
    table, whole = month(seed)
    number = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(table), max_size=len(table))))
    parts = [finding(tuple(np.flatnonzero(number == n).tolist())) for n in range(5)]
    found = costs(parts, table, [whole])
    assert sum((cost for cost in found if cost is not None), Fraction()) == whole.total_exact
