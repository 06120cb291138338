"""Workbooks: the figures of the CSV as real numbers and dates; text in them stays text."""

import csv
import os
import re
import resource
import zipfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import openpyxl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core.rating.bill import Bill
from apicost.core.rating.period import month
from apicost.report import export
from apicost.report.focus.settings import FocusSettings
from apicost.report.tables import charges, focus, sheet_names, summary, xlsx, xlsx_cells, xlsx_summary
from apicost.report.tables.rows import Column, Kind, Rows
from tests import usage_months
from tests.report import bills

BOOK = prices.load(Path(__file__).parents[2] / "specs/prices.yaml")
MONTH = month("2026-11", BOOK.time_zone)
EVIL = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r\n=1", "=cmd|' /C calc'!A0", "{=1}", "http://example.org/",
    "internal:A1", "<r><t>x</t></r>", "<r></r>", "</t></is></c>", "&amp;", '"', "'", "1e5", "00017", "TRUE", "_x0041_",
    "a\x00b\x07c\x1b", "\ufffe\uffff", "  spaces  ", "😀" * 3, "\u202e", "\x85", "x" * 32_767,
]  # fmt: skip


def unseen(_):
    """No one looks at the progress."""


ABOUT = xlsx.About(title="Test", dated=datetime(2026, 12, 1), blocks=lambda parts, sum_of: ())  # noqa: DTZ001


@pytest.fixture(scope="module")
def bill():
    """A month with corrections of every tenth charge."""
    return bills.with_corrections(usage_months.month(MONTH, seed=5, step_s=86_400), BOOK, every=10)


@pytest.fixture(scope="module")
def written(bill, tmp_path_factory):
    """The bill as a workbook and as CSV, which it must say the same as."""
    folder = tmp_path_factory.mktemp("xlsx")
    xlsx.write(charges.charges(bill, {}), folder / "c.xlsx", unseen, summary.of_bill(bill))
    export.write_charges(bill, folder / "c.csv", {})
    return folder


def table_of(sheet) -> list[dict]:
    head, *rows = sheet.iter_rows(values_only=True)
    return [dict(zip(head, row, strict=True)) for row in rows]


def said(row: dict, column: Column) -> object:
    """A cell as the CSV says it: numbers exactly, by exact_digits where there are too many."""
    value = row[column.name]
    if value is None:
        return ""
    if column.kind is Kind.TIME:
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if column.kind is Kind.AMOUNT:
        exact = dict(text.split("=") for text in (row["exact_digits"] or "").split("; ") if text)
        return Decimal(exact.get(column.name, repr(value)))
    return value


def test_a_workbook_says_what_the_csv_says(bill, written):
    """A sheet per API with its charges, then its corrections; every cell is the CSV's, to the last digit."""
    book = openpyxl.load_workbook(written / "c.xlsx")
    assert book.sheetnames == ["Summary", "billing", "chat", "shop", "(no API)"]
    with open(written / "c.csv", newline="") as stream:
        expected = list(csv.DictReader(stream))
    columns = charges.charges(bill, {}).columns
    for name in book.sheetnames[1:]:
        rows = table_of(book[name])
        api = "" if name == "(no API)" else name
        mine = [row for row in expected if row["api"] == api]
        assert len(rows) == len(mine)
        for column in columns:
            found = [said(row, column) for row in rows]
            wanted = [row[column.name] for row in mine]
            wanted = [text and Decimal(text) for text in wanted] if column.kind is Kind.AMOUNT else wanted
            assert found == wanted, (name, column.name)
        assert [row["charge_class"] for row in rows] == [row["charge_class"] or None for row in mine]


def test_cells_have_the_types_of_their_columns(written):
    """Costs are numbers with the statement's places, times are dates, the rest is text; the header is frozen."""
    sheet = openpyxl.load_workbook(written / "c.xlsx")["shop"]
    head = {cell.value: cell.column - 1 for cell in sheet[1]}
    assert list(head)[:2] == ["api", "operation_id"] and list(head)[-1] == "exact_digits"
    assert sheet.freeze_panes == "A2" and sheet.auto_filter.ref == sheet.dimensions
    for row in sheet.iter_rows(min_row=2):
        billed = row[head["billed_cost"]]
        assert billed.value is None or (billed.data_type == "n" and billed.number_format == "#,##0.00;[Red]-#,##0.00")
        assert row[head["period_start"]].is_date
        sku, charge = row[head["sku"]], row[head["charge_id"]]
        assert charge.data_type in ("s", "inlineStr") and sku.data_type in ("s", "inlineStr" if sku.value else "n")
    widths = [sheet.column_dimensions[letter].width for letter in ("A", "P")]
    assert all(6 <= width <= 45 for width in widths)


def test_the_summary_adds_up(bill, written):
    """Total, sums by API and by SKU are the bill's; formulas carry the value that they come to."""
    values = openpyxl.load_workbook(written / "c.xlsx", data_only=True)["Summary"]
    formulas = openpyxl.load_workbook(written / "c.xlsx")["Summary"]
    assert values["B4"].value == float(bill.total) and values["C4"].value == "EUR"
    assert values["B5"].value == float(Decimal(bill.corrections_minor) / 100)
    cells = {values.cell(row, 1).value: row for row in range(1, values.max_row + 1)}
    shop = cells["shop"]
    assert formulas.cell(shop, 6).value == f"=SUM(shop!P2:P{values.cell(shop, 3).value + 1})"
    totals = [row for row in range(1, values.max_row + 1) if values.cell(row, 1).value == "Total"]
    assert [
        round(Decimal(values.cell(row, column).value), 2) for row, column in zip(totals[1:], (6, 8), strict=True)
    ] == [Decimal(bill.total)] * 2
    listed = {
        row: round(Decimal(values.cell(row, column).value), 9) for row, column in zip(totals[1:], (4, 5), strict=True)
    }
    assert len(set(listed.values())) == 1
    every = [cell.value for row in values.iter_rows() for cell in row if cell.value is not None]
    assert "no SKU of the price book covers this row" in every and "sample 2026-11.2" in every


def blocks_of(sheet) -> dict[str, list[dict]]:
    """The tables of the summary by title: rows by the names in their heads."""
    found, title, head = {}, None, None
    for row in sheet.iter_rows(values_only=True):
        filled = [cell for cell in row if cell is not None]
        if not filled:
            title = head = None
        elif title is None:
            title, head = row[0], None
            found[title] = []
        elif head is None and title not in ("Bill", "How to read this"):
            head = row
        elif head is not None:
            found[title].append({name: cell for name, cell in zip(head, row, strict=True) if name is not None})
    return found


@pytest.mark.parametrize("api", [None, "shop"])
def test_every_figure_of_the_summary_is_a_sum_of_the_csv(bill, tmp_path, api):
    """By API and by SKU, rows, quantities and costs are those of the CSV's rows; what has no price has none."""
    xlsx.write(charges.charges(bill, {}, api), tmp_path / "c.xlsx", unseen, summary.of_bill(bill, api))
    export.write_charges(bill, tmp_path / "c.csv", {}, api)
    with open(tmp_path / "c.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    blocks = blocks_of(openpyxl.load_workbook(tmp_path / "c.xlsx", data_only=True)["Summary"])

    def total(of: list[dict], name: str) -> float:
        return float(sum(Decimal(row[name] or 0) for row in of))

    costs = {"List cost": "list_cost", "Contracted cost": "contracted_cost", "Billed cost": "billed_cost"}
    for line in blocks["By API"]:
        of = [row for row in rows if line["API"] in ("Total", row["api"] or "(no API)")]
        assert line["Rows"] == len(of) > 0
        assert {title: line[title] for title in costs} == {title: total(of, name) for title, name in costs.items()}
    assert len(blocks["By API"]) == len({row["api"] for row in rows}) + 1
    priced = [row for row in rows if row["sku"]]
    for line in blocks["By SKU"]:
        of = [
            row for row in priced if line["SKU"] == "Total" or (line["SKU"], line["Unit"]) == (row["sku"], row["unit"])
        ]
        used, corrected = ([row for row in of if bool(row["charge_class"]) is late] for late in (False, True))
        assert line["Rows"] == len(of) > 0
        assert line["Billed by usage"] == total(used, "billed_cost")
        assert line["Corrections"] == total(corrected, "billed_cost")
        assert line["Billed cost"] == total(of, "billed_cost")
        assert line["List cost"] == total(of, "list_cost")
        assert line["SKU"] == "Total" or line["Quantity"] == total(of, "quantity")
    (unpriced,) = blocks["Without a price: not in the total"]
    of = [row for row in rows if not row["billed_cost"]]
    assert (unpriced["Rows"], unpriced["Quantity"]) == (len(of), total(of, "quantity"))
    assert {unpriced["Reason"]} == {row["reason"] for row in of}


def test_a_workbook_that_does_not_sum_to_its_bill_is_not_written(bill, tmp_path):
    """Rows of another list than the bill: an error, no file."""
    rows = charges.charges(bill, {}, "shop")
    with pytest.raises(AssertionError, match="rows that sum to"):
        xlsx.write(rows, tmp_path / "c.xlsx", unseen, summary.of_bill(bill))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_of_the_system(bill, tmp_path, monkeypatch):
    """What XlsxWriter says of a failed write is told as what the system said, and no file is left."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xlsxwriter.workbook.Workbook._store_workbook", full)
    with pytest.raises(OSError, match="No space left"):
        xlsx.write(charges.charges(bill, {}), tmp_path / "c.xlsx", unseen, summary.of_bill(bill))
    assert not list(tmp_path.iterdir())


def test_a_date_on_the_summary_has_room(tmp_path):
    """A date in the last column of a table is not shown as ###: the column is as wide as it."""
    about = xlsx.About(title="Test", dated=datetime(2026, 12, 1), blocks=lambda *_: (  # noqa: DTZ001
        xlsx_summary.Block(title="Facts", rows=[("From", datetime(2026, 11, 1)), ("Note", "x" * 99)]),))  # noqa: DTZ001  # fmt: skip
    xlsx.write(text_rows(["a"]), tmp_path / "a.xlsx", unseen, about)
    width = openpyxl.load_workbook(tmp_path / "a.xlsx")["Summary"].column_dimensions["B"].width
    assert 17 <= width < 20


def test_a_month_without_a_price_for_anything_is_a_workbook_too(tmp_path):
    """Sheets without rows, tables without lines: totals are 0, and no sum is of itself."""
    nothing = {"minute_unix_s": MONTH.start_unix_s, "match_state": "matched", "scope": "unknown", "api": "quiet",
               "downstream_out_wire_bytes": 10**9}  # fmt: skip
    book = prices.parse("""
pricebook: {id: none, version: "1", currency: EUR, calendar: {time_zone: Europe/Berlin}}
scopes: {internet: {peers: ["0.0.0.0/0", "::/0"]}}
skus: {egress: {meter: bytes, where: {direction: egress, scope: internet}, unit: GB,
  prices: [{from: 2026-01-01, mode: flat, price: "1"}]}}
""")
    bill = Bill(statement=bills.statement(usage_months.usage([nothing]), book))
    assert len(bill) > 0 and bill.total == "0.00"
    for rows, about in (
        (charges.charges(bill, {}), summary.of_bill(bill)),
        (focus.focus(bill, {}, "1.4", FocusSettings()), summary.of_focus(bill, "1.4")),
    ):
        xlsx.write(rows, tmp_path / "a.xlsx", unseen, about)
        made = openpyxl.load_workbook(tmp_path / "a.xlsx")
        assert made.sheetnames == ["Summary", "quiet"]
        for row in made["Summary"].iter_rows():
            for cell in row:
                own = re.escape(cell.column_letter)
                found = re.fullmatch(rf"=SUM\({own}(\d+):{own}(\d+)\)", str(cell.value))
                assert not found or int(found[1]) <= int(found[2]) < cell.row


def text_rows(values: list[str | None], split: bool = False) -> Rows:
    table = pa.table({"consumer": pa.array(values, pa.string()), "n": pa.array(range(len(values)), pa.int64())})
    columns = (Column(name="consumer"), Column(name="n", kind=Kind.COUNT, added=True))
    return Rows(columns=columns, pieces=lambda: iter([table]), split="consumer" if split else None)


def read_texts(path: Path) -> list[object]:
    with zipfile.ZipFile(path) as archive:
        sheet = archive.read("xl/worksheets/sheet2.xml").decode()
    assert "<f>" not in sheet and "hyperlink" not in sheet
    cells = list(openpyxl.load_workbook(path).worksheets[1].iter_rows(min_row=2, max_col=1))
    assert all(cell[0].data_type != "f" and cell[0].hyperlink is None for cell in cells)
    return [cell[0].value for cell in cells]


def test_no_text_becomes_anything_else(tmp_path):
    """Formulas, links, markup, numbers as text, control characters: each is the text that it is, or an escape of it."""
    xlsx.write(text_rows(EVIL), tmp_path / "a.xlsx", unseen, ABOUT)
    assert [openpyxl.utils.escape.unescape(text) for text in read_texts(tmp_path / "a.xlsx")] == EVIL


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
@settings(max_examples=20)
def test_every_text_comes_back(tmp_path_factory, values):
    """Any text is read back as it went, with the standard's own escapes."""
    path = tmp_path_factory.mktemp("x") / "a.xlsx"
    xlsx.write(text_rows(values), path, unseen, ABOUT)
    assert [openpyxl.utils.escape.unescape(text or "") for text in read_texts(path)] == values


def test_a_text_that_is_too_long_shows_that_it_is_cut():
    """A cell holds 32,767 UTF-16 units: a longer text ends in an ellipsis, and no letter is halved."""
    assert xlsx_cells.shortened("x" * 32_767) == "x" * 32_767
    assert xlsx_cells.shortened("x" * 32_768) == "x" * 32_766 + "…"
    cut = xlsx_cells.shortened("a" + "😀" * 20_000)
    assert cut == "a" + "😀" * 16_382 + "…" and len(cut.encode("utf-16-le")) <= 2 * 32_767


@pytest.mark.parametrize(
    ("text", "exact"),
    [("0.00000035", True), ("123456789012345", True), ("1234567890123456", False), ("-0.1234567890123456", False),
     ("1200000000000000000", True), ("0.10000000000000000", True), ("9999999999999.99", True)],
)  # fmt: skip
def test_digits_beyond_fifteen_are_told(text, exact, tmp_path):
    """A number that a spreadsheet can't hold is the nearest one, and all its digits are text beside it."""
    assert xlsx_cells.is_exact(text) is exact
    xlsx.write(bills.text_rows([text]), tmp_path / "a.xlsx", unseen, ABOUT)
    _, row = openpyxl.load_workbook(tmp_path / "a.xlsx").worksheets[1].iter_rows(values_only=True)
    assert row[0] == float(text) and row[1] == (None if exact else f"list_cost={text}")
    assert not exact or Decimal(repr(row[0])) == Decimal(text)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=20))
@settings(max_examples=200)
def test_a_number_or_its_exact_digits_are_the_amount(value):
    """What is_exact lets pass is held by a double: its 15 digits come back."""
    text = format(value, "f")
    assert not xlsx_cells.is_exact(text) or Decimal(f"{float(text):.15g}") == value


def test_what_is_not_zero_does_not_look_like_it():
    """An amount below its column's places is shown with those that it needs; no last zeros where none are asked for."""
    texts = pa.array(["0", "0.5", "0.0000004", "-0.00000000012", "12.0000001", "0.0000000", None])
    assert xlsx_cells.shown_places(texts, 6).tolist() == [6, 6, 7, 10, 6, 6, 6]
    assert xlsx_cells.shown_places(pa.array(["0.4", "0.9", "3", "0"]), 0).tolist() == [1, 1, 0, 0]
    assert xlsx_cells.shown_places(pa.array(["0.250", "7", "100", "1.0", None]), None).tolist() == [2, 0, 0, 0, 0]


def test_more_rows_than_a_sheet_holds_continue_on_another(tmp_path):
    """Each sheet has its header; the sum on the summary takes both."""
    made = {}

    def blocks(parts, sum_of):
        made["number"] = sum_of(parts[0], "n")
        return (xlsx_summary.Block(title="Sums", rows=[("all", made["number"])]),)

    about = xlsx.About(title="Test", dated=datetime(2026, 12, 1), blocks=blocks)  # noqa: DTZ001
    assert xlsx.write(text_rows(["it's"] * 10, split=True), tmp_path / "a.xlsx", unseen, about, rows_max=5) == 10
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    assert book.sheetnames == ["Summary", "it's", "it's (2)", "it's (3)"]
    assert [row["n"] for name in book.sheetnames[1:] for row in table_of(book[name])] == list(range(10))
    assert made["number"].value == 45
    assert made["number"].formula == "=SUM('it''s'!B2:B5,'it''s (2)'!B2:B5,'it''s (3)'!B2:B3)"


def test_each_of_many_apis_has_its_sheet(tmp_path):
    """As many sheets as there are APIs, more than the process may have open files."""
    names = [f"api{number:02}" for number in range(80)]
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, allowed[1]))
    try:
        xlsx.write(text_rows(names, split=True), tmp_path / "a.xlsx", unseen, ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
    with zipfile.ZipFile(tmp_path / "a.xlsx") as archive:
        assert re.findall(r'<sheet name="(api\d+)"', archive.read("xl/workbook.xml").decode()) == names
        assert b">api79<" in archive.read("xl/worksheets/sheet81.xml")


def test_rows_of_one_api_that_lie_apart_are_on_one_sheet(tmp_path):
    """Corrections at the end of a bill are among the rows of their API."""
    xlsx.write(text_rows(["a", "b", None, "a", None, "b"], split=True), tmp_path / "a.xlsx", unseen, ABOUT)
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    assert {name: [row["n"] for row in table_of(book[name])] for name in book.sheetnames[1:]} == {
        "a": [0, 3], "b": [1, 5], "(none)": [2, 4],
    }  # fmt: skip


names = st.text(st.sampled_from("aAbB'[]:*?/\\ (2)ß\n😀") | st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(names, max_size=12))
@settings(max_examples=25)
def test_every_name_gives_a_legal_sheet_of_its_own(tmp_path_factory, wished):
    """Whatever APIs are called, the workbook has a sheet for each, with a name that Excel takes."""
    given_names = sheet_names.SheetNames()
    made = [given_names.new(name) for name in ["Summary", *wished]]
    assert len({name.lower() for name in made}) == len({name.casefold() for name in made}) == len(made)
    for name in made:
        assert 1 <= len(name.encode("utf-16-le")) // 2 <= 31
        assert not set(name) & set("[]:*?/\\") and name[0] != "'" != name[-1] and name.lower() != "history"
        assert name.strip() == name
    path = tmp_path_factory.mktemp("n") / "a.xlsx"
    distinct = sorted(set(wished))
    xlsx.write(text_rows(distinct, split=True), path, unseen, ABOUT)
    assert len(openpyxl.load_workbook(path).sheetnames) == len(distinct) + 1


def test_the_document_is_dated_by_its_month(written):
    """Created and changed: the end of the month, not the day of the export."""
    properties = openpyxl.load_workbook(written / "c.xlsx").properties
    end = datetime.fromtimestamp(MONTH.end_unix_s, UTC).replace(tzinfo=None)
    assert properties.created == properties.modified == end
