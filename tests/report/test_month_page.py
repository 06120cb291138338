"""The month's report through the command, two months in the ledger: page, JSON and CSV files beside each other."""

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest

from apicost import cli
from apicost.catalog import prices
from apicost.core.rating import period
from apicost.store.lake import Lake
from tests import closing_ledgers, usage_months
from tests.report.test_monthly import ROOT, amount, parsed, read, sums

BOOK = prices.load(ROOT / "specs/prices.yaml")
MONTHS = [period.month(name, BOOK.time_zone) for name in ("2026-10", "2026-11")]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("months") / "ledger"
    with Lake.open(folder) as lake:
        for number, month in enumerate(MONTHS):
            table = usage_months.month(month, seed=number, scale=1_000 + 400 * number, step_s=43_200)
            lake.commit([f"in-{number}"], {"usage": table})
    return folder


def report(ledger: Path, month: str, out: Path, *more: str, book: Path = ROOT / "specs/prices.yaml") -> int:
    common = ["report", "--month", month, "--ledger", str(ledger), "--prices", str(book), "--out", str(out)]
    return cli.main([*common, "--format", "html,json,csv", *more])


@pytest.fixture(scope="module")
def out(ledger):
    folder = ledger.parent / "out"
    for month in MONTHS:
        assert report(ledger, month.name, folder / month.name) == 0
    return folder


def test_the_month_before_on_the_page_is_its_own_report(out):
    """The column of the month before, table by table, is what that month's charges.csv sums to."""
    tables = parsed(out / "2026-11/report.html").tables
    then = read(out / "2026-10/charges.csv")
    total = sum(Decimal(c["billed_cost"] or 0) for c in then)
    for name, column in (("by-api", "api"), ("by-consumer", "consumer"), ("by-status", "status_class")):
        rows = {row[0]: amount(row[7]) for row in tables[name][1:]}
        assert rows.pop("Total") == total == sum(rows.values())
        assert {k: v for k, v in rows.items() if not k.startswith("(")} == {
            k: v for (k,), v in sums(then, column).items() if k
        }
    page = json.loads((out / "2026-11/report.json").read_text())
    assert Decimal(page["previous"]["billed_cost"]) == total
    assert json.loads((out / "2026-10/report.json").read_text())["previous"] is None


def test_the_page_and_the_json_have_one_set_of_figures(out):
    """What moved, the wire, the shared cost and spend on the page are the texts of report.json, row by row."""
    page, tables = json.loads((out / "2026-11/report.json").read_text()), parsed(out / "2026-11/report.html").tables
    for name in ("api", "operation"):
        shown = [[row[0], *map(amount, row[1:4])] for row in tables[f"movers-{name}"][1:-1]]
        keys = ("previous_billed_cost", "billed_cost", "change")
        listed = [[row["label"], *(Decimal(row[key]) for key in keys)] for row in page["movers"][f"by_{name}"]]
        assert shown == [row for row in listed if row[1] or row[2]]
    wire = [[row[0], *map(amount, row[2:8])] for row in tables["wire"][1:-1]]
    kinds = ("own", "framing", "headers", "resent", "handshakes")
    assert wire == [
        [row["sku"], *(Decimal(row[f"{kind}_billed_cost"]) for kind in kinds), Decimal(row["billed_cost"])]
        for row in page["wire"]
    ]
    (shared,) = page["shared_costs"]
    assert [(row[0], amount(row[4])) for row in tables["shared-1"][1:-1]] == [
        (row["label"], Decimal(row["billed_cost"])) for row in shared["borne"]
    ]
    assert sum(Decimal(row["cost"]) for row in shared["borne"]) == Decimal(shared["amount"])
    spend = [[amount(row[1]), amount(row[3])] for row in tables["spend"][1:]]
    assert spend == [[Decimal(v["billed_cost"]), Decimal(v["previous_billed_cost"])] for v in page["spend"].values()]


def test_the_cost_of_the_wire_is_that_of_its_charges(out):
    """A SKU's row on the page is the sum of its charges in charges.csv."""
    of_sku = sums(read(out / "2026-11/charges.csv"), "sku")
    tables = parsed(out / "2026-11/report.html").tables
    rows = {row[0]: amount(row[7]) for row in tables["wire"][1:-1]}
    assert rows == {sku: of_sku[(sku,)] for sku in rows} and len(rows) == 4


def test_every_key_of_the_json_is_documented(out):
    """docs/report-json.md names each key of report.json, those within as well."""
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/report-json.md").read_text()))

    def keys(value):
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    page = json.loads((out / "2026-11/report.json").read_text())
    data = {"completeness", "confidence_wire_bytes", "weights"}  # their keys are metrics, states and measures
    found = keys({name: value for name, value in page.items() if name not in data}) | set(page)
    found -= set(page["shared_costs"][0]["weights"])
    assert not found - documented


def test_a_month_in_another_currency_is_not_compared(ledger, tmp_path, capsys):
    """What can't be held against this month is said, and the report is written without it."""
    book = tmp_path / "prices.yaml"
    text = (ROOT / "specs/prices.yaml").read_text()
    fx = 'fx: [{from: USD, to: EUR, period: 2026-11, rate: "0.8", locked: true}]\n'
    book.write_text(text.replace('mode: flat, price: "0"', 'mode: flat, currency: USD, price: "0"') + fx)
    assert report(ledger, "2026-11", tmp_path / "out", book=book) == 0
    assert "not compared with 2026-10" in capsys.readouterr().err
    page = json.loads((tmp_path / "out/report.json").read_text())
    assert page["movers"] is None and page["previous"] is None


def test_a_second_report_is_the_same_bytes(ledger, out, tmp_path):
    """The same ledger gives the same page, JSON and CSV files."""
    assert report(ledger, "2026-11", tmp_path) == 0
    for file in sorted((out / "2026-11").iterdir()):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_one_api_is_compared_with_itself(ledger, out, tmp_path):
    """--api holds the API's part of this month against its part of the month before."""
    assert report(ledger, "2026-11", tmp_path, "--api", "billing") == 0
    page = json.loads((tmp_path / "report.json").read_text())
    then = sums(read(out / "2026-10/charges.csv"), "api")[("billing",)]
    assert Decimal(page["previous"]["billed_cost"]) == then
    assert {row["label"] for row in page["movers"]["by_api"]} >= {"billing"}
    assert sum(Decimal(row["change"]) for row in page["movers"]["by_api"]) == Decimal(page["billed_cost"]) - then


def closing(folder: Path, *months: str) -> tuple[Path, Path]:
    """A ledger of June and July 2026, some of them closed, and its price book."""
    file = closing_ledgers.write_book(folder / "prices.yaml")
    for month in ("2026-06", "2026-07"):
        rows = [closing_ledgers.row(month, day, calls=700, consumer="c") for day in range(30)]
        closing_ledgers.add(folder / "ledger", month, rows)
    for month in months:
        closing_ledgers.close(folder / "ledger", month, prices.load(file))
    return folder / "ledger", file


def test_the_report_of_a_closed_month_never_changes(tmp_path):
    """Late usage of two closed months, and another price book: each file of July's report is the same bytes."""
    ledger, book = closing(tmp_path, "2026-06", "2026-07")
    assert report(ledger, "2026-07", tmp_path / "first", book=book) == 0
    closing_ledgers.add(
        ledger, "late", [closing_ledgers.row(m, 9, calls=5_000, api="b") for m in ("2026-06", "2026-07")]
    )
    closing_ledgers.write_book(book, price="0.99", version="2", team="t2")
    assert report(ledger, "2026-07", tmp_path / "again", book=book) == 0
    for file in sorted((tmp_path / "first").iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    page = json.loads((tmp_path / "first/report.json").read_text())
    assert page["closed"] and page["previous"]["month"] == "2026-06" and page["forecast"] is None


def test_an_open_month_is_compared_with_the_closed_one_and_carries_its_corrections(tmp_path):
    """July stands beside June as it was closed, and late calls of June are July's corrections, in every file."""
    ledger, book = closing(tmp_path, "2026-06")
    assert report(ledger, "2026-06", tmp_path / "june", book=book) == 0
    closing_ledgers.add(ledger, "late", [closing_ledgers.row("2026-06", 9, calls=5_000)])
    assert report(ledger, "2026-07", tmp_path / "july", book=book) == 0
    then, page = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("june", "july"))
    assert page["previous"]["billed_cost"] == then["billed_cost"]
    assert {row["month"] for row in page["corrections"]} == {"2026-06"}
    charges = read(tmp_path / "july/charges.csv")
    corrected = sum(Decimal(c["billed_cost"] or 0) for c in charges if c["charge_class"] == "Correction")
    assert corrected == Decimal(page["corrections_billed_cost"]) > 0
    assert sum(Decimal(c["billed_cost"] or 0) for c in charges) == Decimal(page["billed_cost"])
    days = read(tmp_path / "july/days.csv")
    assert sum(Decimal(day["billed_cost"]) for day in days) == Decimal(page["billed_cost"])
    assert page["charges"] == len(charges)


def test_a_closed_month_is_not_compared_with_an_open_one(tmp_path, capsys):
    """What a closed month's report says would change with the other."""
    ledger, book = closing(tmp_path, "2026-07")
    assert report(ledger, "2026-07", tmp_path / "out", book=book) == 0
    assert "not compared with 2026-06: it was not closed" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/report.json").read_text())["previous"] is None
