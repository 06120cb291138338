"""The charges of a month as files: complete, with corrections, and the same bytes for the same content."""

import csv
from decimal import Decimal
from pathlib import Path

import pytest

from apicost.catalog import prices
from apicost.core.rating.period import month
from apicost.report import csvfile, export
from tests import usage_months
from tests.report import bills

PRICES = Path(__file__).parents[2] / "specs/prices.yaml"
BOOK = prices.load(PRICES)
MONTH = month("2026-11", BOOK.time_zone)


@pytest.fixture(scope="module")
def bill():
    """A month with corrections of every tenth charge."""
    usage = usage_months.month(MONTH, seed=5, step_s=86_400)
    return bills.with_corrections(usage, BOOK, every=10)


def read(path: Path) -> list[dict]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_corrections_follow_the_charges_and_all_sum_to_the_total(bill, tmp_path):
    """charges.csv holds the statement's rows, then the corrections, their signs kept; billed costs are the total."""
    assert export.write_charges(bill, tmp_path / "c.csv", {}) == len(bill)
    rows = read(tmp_path / "c.csv")
    classes = [row["charge_class"] for row in rows]
    assert classes == [""] * len(bill.statement) + ["Correction"] * len(bill.corrections)
    assert bill.corrections_minor < 0
    assert sum(Decimal(row["billed_cost"] or 0) for row in rows) == Decimal(bill.total)


def test_corrections_of_one_api_are_with_its_charges(bill, tmp_path):
    """--api leaves the corrections of other APIs out."""
    export.write_charges(bill, tmp_path / "c.csv", {})
    export.write_charges(bill, tmp_path / "shop.csv", {}, "shop")
    mine = [row for row in read(tmp_path / "c.csv") if row["api"] == "shop"]
    assert read(tmp_path / "shop.csv") == mine and any(row["charge_class"] for row in mine)


@pytest.mark.parametrize("rows", [7, 1 << 15])
def test_the_file_is_that_of_the_charges_cell_by_cell(bill, tmp_path, monkeypatch, rows):
    """However many rows are put together at a time: the bytes are those of each charge written by itself."""
    info = {"shop": export.ApiInfo(owner="=o,", tags={"cost_center": "7", "x": "y"})}
    monkeypatch.setattr(export, "PIECE_ROWS", rows)
    export.write_charges(bill, tmp_path / "c.csv", info)
    tables = [export.with_owners(piece, info, BOOK.tags).select(list(export.CHARGE_COLUMNS)) for piece in bill.pieces()]
    head = ",".join(export.CHARGE_COLUMNS).encode() + b"\n"
    assert (tmp_path / "c.csv").read_bytes() == head + b"".join(map(csvfile.encode, tables))
