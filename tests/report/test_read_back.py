"""Every figure of the page, the PDF and the workbook is read back and added up again from the CSV files beside them.

What a row stands for is worked out here anew from the CSV's columns, and money is added up as decimals.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from decimal import ROUND_HALF_EVEN, Decimal

import openpyxl
import pytest

from apicost.report import pdf
from tests.golden import test_report_sample as sample
from tests.report.pages import Page, cell, figures, pdf_text

UNNAMED = {
    "unknown-host": "(unknown host)", "unattributed": "(unattributed bytes)", "control": "(gateway's own traffic)",
    "undocumented-path": "(undocumented path)", "undocumented-method": "(undocumented method)",
}  # fmt: skip
CLIENT = ("downstream_in_wire_bytes", "downstream_out_wire_bytes")
TABLES = ("api", "operation", "consumer", "team", "status")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The sample month: three APIs, contracts, shared cost, and corrections of the month before."""
    out = tmp_path_factory.mktemp("read-back")
    sample.write(out, workbook=True)
    return out


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def charges(folder):
    with open(folder / "charges.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def usage(folder, charges):
    """Rows of usage, with the team that the charges of the same key name."""
    team = {(row["api"], row["consumer"]): row["team"] for row in charges if row["charge_class"] == ""}
    with open(folder / "usage.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["team"] = team.get((row["api"], row["consumer"]), "")
    return rows


def named(row, table):
    """The label and the note of the row that a charge or a row of usage belongs to."""
    if row.get("charge_class"):
        return "(corrections)"
    if row.get("state") == "unallocated":
        return "(unallocated)"
    state = UNNAMED.get(row["match_state"], "")
    if table == "api":
        return row["api"] or state or "(no API)"
    if table == "operation":
        return (row["operation_id"] or state or "(no operation)", row["api"], row["method"], row["path_template"])
    if table == "status":
        return row["status_class"] or "(no request)"
    if row[table]:
        return row[table]
    bare = row["match_state"] in ("unattributed", "control")
    return state if bare else f"(no {table})"


def label(table, row):
    """The same of a row of the page."""
    head = row[0]
    if table != "operation" or head.text in ("(corrections)", "(unallocated)"):
        return head.text
    # The note is "API · METHOD path", each part of it where there is one.
    parts = [part.strip() for part in head.note.split("·")] if head.note else []
    api = parts.pop(0) if len(parts) > 1 or (parts and " " not in parts[0] and not parts[0].isupper()) else ""
    method, _, path = (parts[0] if parts else "").partition(" ")
    return (head.text, api, method, path)


def places(amount, text):
    """An amount rounded to as many places as a text shows."""
    shown = len(text.partition(".")[2])
    return f"{amount.quantize(Decimal(1).scaleb(-shown), ROUND_HALF_EVEN):,f}"


def billed(rows):
    return sum((Decimal(row["billed_cost"]) for row in rows if row["billed_cost"]), Decimal("0.00"))


def grouped(rows, by):
    groups = defaultdict(list)
    for row in rows:
        groups[by(row)].append(row)
    return groups


@pytest.mark.parametrize("table", TABLES)
def test_each_table_is_the_sum_of_charges_and_usage(page, charges, usage, table):
    """Billed and exact cost, requests, bytes, unit costs and shares of every row are those of the CSV; no row is
    missing and none is invented."""
    paid = grouped(charges, lambda row: named(row, table))
    used = grouped(usage, lambda row: named(row, table))
    rows = page.tables[f"by-{table}"].rows
    assert {label(table, row) for row in rows} == set(paid) | set(used)
    total = billed(charges)
    for row in rows:
        name = label(table, row)
        mine, of_usage = paid.get(name, []), used.get(name, [])
        assert cell(row, "billed").text == f"{billed(mine):,}", name
        exact = sum((Decimal(r["contracted_cost"]) for r in mine if r["contracted_cost"]), Decimal(0))
        assert Decimal(cell(row, "billed").title.removeprefix("exactly ")) == exact, name
        calls = sum(int(r["calls"]) for r in of_usage)
        assert cell(row, "calls").text == f"{calls:,}", name
        sent = sum(int(r[column]) for r in of_usage for column in CLIENT)
        assert cell(row, "bytes").title == f"{sent} B", name
        for kind, divisor, size in (("per-1000", calls, 1_000), ("per-gb", sent, 10**9)):
            shown = cell(row, kind).text
            assert shown == (places(exact * size / divisor, shown) if divisor else "–"), (name, kind)
        share = cell(row, "share").text.removesuffix(" %")
        assert share == places(billed(mine) * 100 / total, share), name
    (foot,) = page.tables[f"by-{table}"].foot
    assert cell(foot, "billed").text == f"{total:,}"
    assert cell(foot, "calls").text == f"{sum(int(row['calls']) for row in usage):,}"


def test_what_changed_is_the_difference_of_what_stands(page):
    """In every table with the month before: this month's figure less that one is the change."""
    seen = 0
    for name in (*(f"by-{table}" for table in TABLES), "spend"):
        for row in (*page.tables[name].rows, *page.tables[name].foot):
            now, before, change = (Decimal(cell(row, k).text.replace(",", "")) for k in ("billed", "before", "change"))
            assert now - before == change, (name, row[0].text)
            seen += 1
    assert seen > 30


def test_the_reasons_of_a_change_add_up(page):
    """Volume, price, mix, fixed cost and corrections of every mover sum to its change, and movers to the total's."""
    for name in ("movers-api", "movers-operation"):
        table = page.tables[name]
        for row in (*table.rows, *table.foot):
            texts = [c.text.replace(",", "") for c in row[1:] if "n" in c.classes and c.text not in ("", "–")]
            before, now, change, *parts = map(Decimal, texts)
            assert now - before == change == sum(parts), (name, row[0].text)
        sums = [sum(Decimal(row[column].text.replace(",", "")) for row in table.rows) for column in (1, 2, 3)]
        assert sums == [Decimal(c.text.replace(",", "")) for c in table.foot[0][1:4]], name


def test_corrections_are_those_of_the_charges(page, charges):
    """By corrected month and API: how many and how much; with the month's own usage they are the total."""
    corrections = [row for row in charges if row["charge_class"] == "Correction"]
    assert corrections, "the sample has none: this test would prove nothing"
    by = grouped(corrections, lambda row: row["api"] or UNNAMED.get(row["match_state"], "(unallocated)"))
    rows = page.tables["corrections"].rows
    assert {row[1].text for row in rows} == set(by)
    for row in rows:
        assert Decimal(cell(row, "billed").text) == billed(by[row[1].text])
        assert cell(row, "count").text == str(len(by[row[1].text]))
    whole, own, everything = page.tables["corrections"].foot
    assert Decimal(cell(whole, "billed").text) == billed(corrections)
    assert Decimal(cell(own, "usage").text) == billed(row for row in charges if not row["charge_class"])
    assert Decimal(cell(everything, "total").text) == billed(charges) == Decimal(page.by_id["total"])


def test_spend_worth_a_question_is_that_of_the_charges(page, charges):
    """Undocumented, failing and unallocated spend, by the columns that say so."""
    own = [row for row in charges if not row["charge_class"]]
    undocumented = ("undocumented-path", "undocumented-method", "unknown-host")
    rows = page.tables["spend"].rows
    for row, mine in zip(
        (rows[0], rows[1], rows[2], rows[4]),
        (
            [r for r in own if r["match_state"] in undocumented],
            [r for r in own if r["status_class"] == "4xx"],
            [r for r in own if r["status_class"] == "5xx"],
            [r for r in own if r["state"] == "unallocated"],
        ),
        strict=True,
    ):
        assert Decimal(cell(row, "billed").text) == billed(mine) > 0, row[0].text


def test_prices_are_those_of_the_charges(page, charges):
    """Quantity and exact cost of each SKU, tier and price."""
    own = [r for r in charges if not r["charge_class"] and r["contracted_cost"]]
    by = grouped(own, lambda r: (r["sku"], r["tier"], r["unit"], r["contracted_unit_price"]))
    found = {}
    for row in page.tables["by-price"].rows:
        price = row[5].text.split(" ")[0]
        found[(row[0].text, row[1].text, row[4].text, price)] = (Decimal(row[3].title), Decimal(row[6].title))
    sums = {
        name: (sum(Decimal(r["quantity"]) for r in rows), sum(Decimal(r["contracted_cost"]) for r in rows))
        for name, rows in by.items()
    }
    assert found == sums


def test_days_are_those_of_their_file(page, folder):
    """Requests, bytes and cost of each day."""
    with open(folder / "days.csv", newline="") as file:
        days = {
            row["date"] or ("(corrections)" if row["charge_class"] else "(no day)"): row for row in csv.DictReader(file)
        }
    rows = page.tables["by-day"].rows
    for row in rows:
        known = days.pop(row[0].text)
        assert (row[1].text, row[3].text) == (f"{int(known['calls']):,}", known["billed_cost"])
        assert row[2].title == (f"{known['wire_bytes']} B" if known["date"] else "")
    assert not any(Decimal(row["billed_cost"]) or int(row["calls"]) for row in days.values())


def test_the_cost_of_the_wire_is_that_of_its_skus(page, charges):
    """What SKUs of wire bytes came to, and their parts, which sum to it."""
    own = grouped((r for r in charges if not r["charge_class"]), lambda r: r["sku"])
    for row in page.tables["wire"].rows:
        parts = [Decimal(c.text) for c in row if "part" in c.classes]
        assert sum(parts) == Decimal(cell(row, "billed").text) == billed(own[row[0].text]), row[0].text
    (foot,) = page.tables["wire"].foot
    assert Decimal(cell(foot, "billed").text) == sum(Decimal(cell(r, "billed").text) for r in page.tables["wire"].rows)


def test_the_pdf_has_the_figures_of_the_page(folder, tmp_path):
    """Each figure on the page is in the PDF, as often as there, and the PDF has no other."""
    html = (folder / "report.html").read_text()
    file = tmp_path / "report.pdf"
    file.write_bytes(pdf.pdf(html))
    on_page, in_pdf = figures(Page(html).text), figures(pdf_text(file))
    assert sum(on_page.values()) > 400
    assert in_pdf == on_page


def test_the_workbook_has_the_charges_of_the_csv(folder, charges):
    """Each row and column of charges.csv is on the sheet of its API: numbers as numbers, times as dates, all else as
    text; and no sheet has a row more."""
    book = openpyxl.load_workbook(folder / "charges.xlsx", data_only=True)
    known = grouped(charges, lambda row: row["api"] or "(no API)")
    assert sorted(book.sheetnames) == sorted(["Summary", *known])
    for name, expected in known.items():
        head, *rows = book[name].iter_rows(values_only=True)
        at = {column: place for place, column in enumerate(head) if column in expected[0]}
        assert set(at) == set(expected[0])
        assert len(rows) == len(expected)
        for row, mine in zip(rows, expected, strict=True):
            for column, place in at.items():
                value = row[place]
                if column in ("quantity", "list_cost", "contracted_cost", "billed_cost"):
                    assert isinstance(value, int | float) or (value is None and not mine[column]), (name, column)
                if column in ("period_start", "period_end"):
                    assert value.strftime("%Y-%m-%dT%H:%M:%SZ") == mine[column]
                elif isinstance(value, int | float):
                    assert value == float(Decimal(mine[column])), (name, column)
                else:
                    assert (value or "") == mine[column].removeprefix("'"), (name, column)


def test_the_workbook_adds_up_to_the_page(folder, page, charges):
    """The summary's total is the page's, and billed costs of the API sheets sum to it."""
    book = openpyxl.load_workbook(folder / "charges.xlsx", data_only=True)
    total = Decimal(0)
    for name in book.sheetnames[1:]:
        head, *rows = book[name].iter_rows(values_only=True)
        place = head.index("billed_cost")
        total += sum(Decimal(str(row[place])) for row in rows if row[place] is not None)
    assert total == Decimal(page.by_id["total"]) == billed(charges)
    cells = {value for row in book["Summary"].iter_rows(values_only=True) for value in row}
    assert float(total) in cells
