"""What holds for every month of money, as functions that fail where it does not: used by tests/laws and bench/.

Rules of this file:
- What is compared was made by different code: cells of the CSV, tables of the report, postings of the journal.
- Sums are of decimals and fractions: no tolerance anywhere.
"""

from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from beancount import loader
from beancount.core.data import Transaction
from beancount.ops import validation

from apicost.core.rating import money
from apicost.core.rating.bill import Bill
from apicost.core.rating.rate import MEASURES
from apicost.core.rating.usage_rows import UsageRows, gather
from apicost.report import export, journal
from apicost.report.month import monthly
from tests.money_months import Made, rearranged
from tests.usage_months import usage

APIS = {"shop": export.ApiInfo(title="Shop", owner="Ana", team="t1", tags={"tier": "gold"})}
_NUMBERS = (
    "quantity", "unit_price", "list_cost", "billed_cost", "contracted_cost", "contracted_unit_price", "fx_rate",
)  # fmt: skip
Rows = Sequence[Mapping[str, str]]


def bean_check(text: str) -> tuple[list[Any], list[str]]:
    """Entries of a journal and what `bean-check` would say of it: the same loader and validations."""
    entries, errors, _ = loader.load_string(text, extra_validations=validation.HARDCORE_VALIDATIONS)
    return entries, [error.message for error in errors]


def charges_csv(bill: Bill) -> bytes:
    """charges.csv of a bill, as the command writes it."""
    with tempfile.TemporaryDirectory(prefix="apicost-laws-") as folder:
        path = Path(folder) / "charges.csv"
        assert export.write_charges(bill, path, APIS) == len(bill)
        return path.read_bytes()


def journal_text(bill: Bill) -> str:
    """The journal of a bill."""
    return b"".join(journal.pieces(bill, APIS)).decode()


def conserved(made: Made) -> Bill:
    """All laws of this file, for one month; returns its bill."""
    bill = made.bill()
    content = charges_csv(bill)
    rows = list(csv.DictReader(content.decode().splitlines(keepends=True)))
    rows_sum_to_the_total(bill, rows)
    products_are_exact(bill, rows)
    daily = gather(usage(made.rows), made.month)
    figures = monthly.figures(bill, daily, apis=APIS)
    tables_sum_to_the_total(made, bill, rows, figures)
    days_sum_to_the_month(made, bill, figures)
    apis_are_parts_of_the_whole(bill, rows, daily)
    nothing_measured_is_missing(bill)
    corrections_lead_to_now(made, bill)
    order_changes_nothing(made, content, journal_text(bill))
    journal_agrees(bill)
    return bill


def rows_sum_to_the_total(bill: Bill, rows: Rows) -> None:
    """Billed costs of all rows of the CSV sum to the bill's total, those without a class to the statement's."""
    assert len(rows) == len(bill)
    assert sum((Decimal(row["billed_cost"] or 0) for row in rows), Decimal()) == Decimal(bill.total)
    own = [row for row in rows if not row["charge_class"]]
    assert sum((Decimal(row["billed_cost"] or 0) for row in own), Decimal()) == Decimal(bill.statement.total)
    assert len({row["charge_id"] for row in rows}) == len(rows), "two charges with one identity"
    assert {row["billing_month"] for row in rows} <= {bill.statement.period.name}


def products_are_exact(bill: Bill, rows: Rows) -> None:
    """quantity x unit price x rate is the cost, listed and contracted; billed is less than a unit from it, of the
    month's own rows; the exact costs sum to the exact total, and rounded half to even it is the total."""
    statement = bill.statement
    unit = Fraction(1, 10**statement.book.statement_scale)
    exact = Fraction()
    for row in rows:
        for name in _NUMBERS:
            assert set(row[name]) <= set("-0123456789."), (name, row[name])
        if not row["billed_cost"]:
            assert row["state"] == "unpriced" and row["reason"] and Fraction(row["quantity"])
            continue
        amount = Fraction(row["quantity"]) * Fraction(row["fx_rate"])
        assert Fraction(row["list_cost"]) == amount * Fraction(row["unit_price"])
        paid = amount * Fraction(row["contracted_unit_price"])
        assert Fraction(row["contracted_cost"]) == paid
        if not row["charge_class"]:
            exact += paid
            assert abs(Fraction(row["billed_cost"]) - paid) < unit
    assert exact == statement.total_exact
    assert money.half_even(exact / unit) == statement.total_minor


def tables_sum_to_the_total(made: Made, bill: Bill, rows: Rows, figures: monthly.Figures) -> None:
    """Every table of the report sums to the bill, billed and exact, and its rows are sums of the CSV's rows."""
    scale = Decimal(10) ** bill.statement.book.statement_scale
    assert figures.total_minor == figures.whole_minor == bill.total_minor
    exact = figures.total_exact + figures.corrections.contracted_cost
    tables = {
        "api": figures.by_api, "operation_id": figures.by_operation, "consumer": figures.by_consumer,
        "status_class": figures.by_status, "team": figures.by_team,
    }  # fmt: skip
    own = [row for row in rows if not row["charge_class"]]
    for column, table in tables.items():
        if table is None:
            continue
        assert sum(row.billed_minor for row in table.rows) == bill.total_minor, column
        assert sum((row.contracted_cost for row in table.rows), Fraction()) == exact, column
        assert sum(row.calls for row in table.rows) == figures.calls == sum(row["calls"] for row in made.rows)
        shown: dict[str, int] = defaultdict(int)
        for line in table.rows:
            if not line.named:
                shown[line.label] += line.billed_minor
        listed: dict[str, int] = defaultdict(int)
        for row in own:
            listed[_name(row[column])] += int(Decimal(row["billed_cost"] or 0) * scale)
        listed.pop("", None)
        assert {name: cost for name, cost in shown.items() if cost} == {n: cost for n, cost in listed.items() if cost}
    skus: dict[str, Fraction] = defaultdict(Fraction)
    for row in own:
        skus[row["sku"]] += Fraction(row["contracted_cost"] or 0)
    by_sku: dict[str, Fraction] = defaultdict(Fraction)
    for line in figures.skus:
        by_sku[line.sku or ""] += line.contracted_cost or 0
    assert {n: cost for n, cost in skus.items() if cost} == {n: cost for n, cost in by_sku.items() if cost}
    for budget in figures.budgets:
        spent = [row for row in rows if all(_name(row[column]) in names for column, names in budget.match.items())]
        assert budget.billed_minor == sum(int(Decimal(row["billed_cost"] or 0) * scale) for row in spent)


def apis_are_parts_of_the_whole(bill: Bill, rows: Rows, daily: UsageRows) -> None:
    """The report of one API has the total of its rows in the CSV."""
    for api in {row["api"] for row in rows if row["api"]}:
        mine = [row for row in rows if row["api"] == api]
        part = monthly.figures(bill, daily, apis=APIS, api=api)
        total = money.fixed(part.total_minor, bill.statement.book.statement_scale)
        assert sum((Decimal(row["billed_cost"] or 0) for row in mine), Decimal()) == Decimal(total), api


def _name(cell: str) -> str:
    """A name from a cell: without the apostrophe that keeps spreadsheets from taking it for a formula."""
    return cell[1:] if cell.startswith("'") else cell


def days_sum_to_the_month(made: Made, bill: Bill, figures: monthly.Figures) -> None:
    """Days, and what belongs to none, sum to the statement; each day has the requests that its clock saw."""
    days = figures.days
    assert sum(day.billed_minor for day in days) + figures.no_day_minor == bill.statement.total_minor
    zone = ZoneInfo(made.month.time_zone)
    calls: dict[Any, int] = defaultdict(int)
    for row in made.rows:
        calls[datetime.fromtimestamp(row["minute_unix_s"], zone).date()] += row["calls"]
    assert {day.day: day.calls for day in days} == {day.day: calls[day.day] for day in days}
    assert set(calls) <= {day.day for day in days}


def nothing_measured_is_missing(bill: Bill) -> None:
    """What a key's usage measured is in a charge of the key, with a price or without, or in one of the month's."""
    statement = bill.statement
    basis = {sku.byte_basis for sku in statement.book.skus if sku.meter == "bytes"}
    packages = any(price.mode == "package" for sku in statement.book.skus for price in sku.prices)
    if basis - {"wire"} or packages or any(sku.quantum or sku.is_external for sku in statement.book.skus):
        return  # then a charge counts something else, or stands for the days before it: see docs/prices.md
    names = [set(line.meter.split("+")) for line in statement.lines]
    charged = {(key, name) for key, line in zip(statement.key.tolist(), statement.line.tolist(), strict=True)
               for name in names[line]}  # fmt: skip
    nobody = len(statement.keys) - 1
    for measure in MEASURES:
        values = money.add_by(statement.usage.key, statement.usage.sums[measure], len(statement.keys))
        for key in np.flatnonzero(values).tolist():
            assert (key, measure) in charged or (nobody, measure) in charged, measure


def corrections_lead_to_now(made: Made, bill: Bill) -> None:
    """What the closed month booked and its corrections come to what it would say now."""
    assert made.booked().total_minor + bill.corrections_minor == made.now().total_minor


def order_changes_nothing(made: Made, content: bytes, text: str) -> None:
    """The same usage in other rows, order and batches gives the same CSV and journal, byte for byte."""
    names = ("rows", "closed_rows", "former_rows")
    other = replace(made, **{name: rearranged(getattr(made, name)) for name in names}).bill()
    assert charges_csv(other) == content
    assert journal_text(other) == text


def journal_agrees(bill: Bill) -> None:
    """bean-check accepts the month at zero tolerance, and its postings come to the bill's total."""
    entries, errors = bean_check(journal_text(bill))
    assert not errors, errors
    postings = [p for entry in entries if isinstance(entry, Transaction) for p in entry.postings]
    costs = [p.units.number for p in postings if p.account.startswith("Expenses:")]
    assert sum(costs, Decimal()) == Decimal(bill.total)
    assert len(costs) == sum(cost is not None for piece in bill.pieces() for cost in piece["billed_cost"].to_pylist())
