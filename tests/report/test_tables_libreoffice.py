"""What a person sees who opens an export in LibreOffice: the columns sum to the statement's total.

LibreOffice itself reads the file and adds up: it types the cells of a CSV file as for a person who opens it, and
calculates formulas that have no value yet.
"""

import csv
import os
import shutil
import subprocess
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import openpyxl
import pyarrow as pa
import pytest

from apicost.catalog import prices
from apicost.core.rating.period import month
from apicost.report import export
from apicost.report.tables import charges, summary, xlsx
from tests import usage_months
from tests.report import bills

SOFFICE = shutil.which("soffice") or shutil.which("libreoffice")
pytestmark = pytest.mark.skipif(SOFFICE is None, reason="missing: soffice (package libreoffice-calc-nogui)")

BOOK = prices.load(Path(__file__).parents[2] / "specs/prices.yaml")
MONTH = month("2026-11", BOOK.time_zone)
# Field by comma, text by quotation mark, UTF-8, from the first line: what LibreOffice's dialog suggests for the file.
CSV_AS_IS = "--infilter=CSV:44,34,76,1"
EVIL = [
    "=1+1",
    "+SUM(1)",
    "@A1",
    "-2+3",
    "=cmd|' /C calc'!A0",
    "=HYPERLINK(A1)",
    "<r><t>x</t></r>",
    "{=1+1}",
    "a,b;c\td",
]
GERMAN = """<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry">
<item oor:path="/org.openoffice.Setup/L10N">
<prop oor:name="ooSetupSystemLocale" oor:op="fuse"><value>de-DE</value></prop></item>
</oor:items>
"""


def convert(profile: Path, to: str, out: Path, *files: Path, more: tuple[str, ...] = ()) -> list[Path]:
    """Files as LibreOffice reads and writes them."""
    command = [SOFFICE, f"-env:UserInstallation=file://{profile}", "--headless", "--convert-to", to, *more]
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    done = subprocess.run(
        [*command, "--outdir", out, *files], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    made = [out / f"{file.stem}.{to.partition(':')[0]}" for file in files]
    assert all(path.exists() for path in made), done.stdout + done.stderr
    return made


@pytest.fixture(scope="module")
def bill():
    """A month with corrections, and with names that try to be formulas."""
    usage = usage_months.month(MONTH, seed=5, step_s=86_400)
    evil = [
        {"minute_unix_s": MONTH.start_unix_s, "api": "shop", "method": "GET", "consumer": text, "route_id": text,
         "match_state": "matched", "status_class": "2xx", "scope": "internet", "calls": 7_000_000}
        for text in EVIL
    ]  # fmt: skip
    both = pa.concat_tables([usage, usage_months.usage(evil)]).unify_dictionaries()
    return bills.with_corrections(both, BOOK, every=10)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """A LibreOffice of this test's own: no setting of the user's, and none to collide with."""
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def opened(bill, profile, tmp_path_factory):
    """charges.csv as LibreOffice types its cells, and the workbook."""
    folder = tmp_path_factory.mktemp("office")
    export.write_charges(bill, folder / "charges.csv", {})
    xlsx.write(charges.charges(bill, {}), folder / "book.xlsx", lambda _: None, summary.of_bill(bill))
    (typed,) = convert(profile, "xlsx", folder / "typed", folder / "charges.csv", more=(CSV_AS_IS,))
    return folder, typed


def without_values(source: Path, target: Path, sums: dict[str, str]) -> Path:
    """A workbook whose formulas have lost their values, and with more formulas in a first sheet of its own."""
    book = openpyxl.load_workbook(source)
    sheet = book.create_sheet("Sums", 0)
    for name, formula in sums.items():
        sheet.append([name, formula])
    book.save(target)
    return target


def column_of(sheet, name: str) -> str:
    return next(cell.column_letter for cell in sheet[1] if cell.value == name)


def calculated(path: Path) -> dict[str, str]:
    """Names and values of a first sheet."""
    with open(path, newline="") as stream:
        return {row[0]: row[1] for row in csv.reader(stream) if len(row) > 1}


@pytest.fixture(scope="module")
def recalculated(opened, profile, tmp_path_factory):
    """What LibreOffice works out: sums over the cells of charges.csv, and the workbook's own formulas."""
    folder = tmp_path_factory.mktemp("sums")
    sheet = openpyxl.load_workbook(opened[1]).active
    whole = range_of(sheet)
    of_csv = {"total": f"=SUM({whole})", "numbers": f"=COUNT({whole})", "texts": f"=SUMPRODUCT(ISTEXT({whole})*1)"}
    book = openpyxl.load_workbook(opened[0] / "book.xlsx")
    totals = [cell.row for cell in book["Summary"]["A"] if cell.value == "Total"]
    of_book = {
        "sheets": f"=SUM({','.join(map(range_of, book.worksheets[1:]))})", "stated": "=Summary!B4",
        "by API": f"=Summary!F{totals[1]}", "by SKU": f"=Summary!H{totals[2]}",
    }  # fmt: skip
    made = [
        without_values(opened[1], folder / "csv.xlsx", of_csv),
        without_values(opened[0] / "book.xlsx", folder / "book.xlsx", of_book),
    ]
    return [calculated(path) for path in convert(profile, "csv", folder / "out", *made)]


def range_of(sheet) -> str:
    """The cells of billed_cost."""
    letter = column_of(sheet, "billed_cost")
    return f"'{sheet.title}'!{letter}2:{letter}{sheet.max_row}"


def test_columns_of_the_csv_sum_to_the_total_in_libreoffice(bill, opened, recalculated):
    """SUM over billed_cost, worked out by LibreOffice over the cells that it made of the CSV, is the bill's total."""
    with open(opened[0] / "charges.csv", newline="") as stream:
        billed = [Decimal(row["billed_cost"]) for row in csv.DictReader(stream) if row["billed_cost"]]
    found = recalculated[0]
    assert round(Decimal(found["total"]), 9) == Decimal(bill.total) == sum(billed)
    assert (found["numbers"], found["texts"]) == (str(len(billed)), "0")
    assert openpyxl.load_workbook(opened[1]).active.max_row == len(bill) + 1


def test_texts_of_the_csv_are_no_formulas_in_libreoffice(opened):
    """What tries to be a formula stands in its cell as text, with the apostrophe before it."""
    sheet = openpyxl.load_workbook(opened[1]).active
    assert all(cell.data_type != "f" for row in sheet.iter_rows() for cell in row)
    consumers = {cell.value for cell in sheet[column_of(sheet, "consumer")]}
    assert {"'" + text if text.startswith(("=", "+", "-", "@")) else text for text in EVIL} <= consumers


def test_the_workbook_sums_to_the_total_in_libreoffice(bill, recalculated):
    """Its own formulas, recalculated by LibreOffice without their values, and a SUM over each sheet: the total."""
    found = {name: round(Decimal(value), 9) for name, value in recalculated[1].items()}
    assert found == dict.fromkeys(("sheets", "stated", "by API", "by SKU"), Decimal(bill.total))


def test_libreoffice_shows_the_workbook_as_it_was_written(opened, profile, tmp_path):
    """Read and written again by LibreOffice: the same numbers, dates, texts; no formula but those of the summary."""
    (back,) = convert(profile, "xlsx", tmp_path, opened[0] / "book.xlsx")
    ours, theirs = (openpyxl.load_workbook(path) for path in (opened[0] / "book.xlsx", back))
    assert ours.sheetnames == theirs.sheetnames
    for sheet in ours.worksheets[1:]:
        for row in sheet.iter_rows():
            for cell in row:
                other = theirs[sheet.title][cell.coordinate]
                assert other.data_type != "f"
                same = other.value == cell.value or (
                    float(f"{other.value:.15g}") == float(f"{cell.value:.15g}") if isinstance(cell.value, float | int)
                    else isinstance(cell.value, datetime) and abs((other.value - cell.value).total_seconds()) < 1
                )  # fmt: skip
                assert same, (sheet.title, cell.coordinate, cell.value, other.value)
    consumers = {cell.value for cell in theirs["shop"][column_of(theirs["shop"], "consumer")]}
    assert set(EVIL) <= consumers


@pytest.fixture(scope="module")
def german(tmp_path_factory):
    """A LibreOffice whose decimal sign is a comma."""
    folder = tmp_path_factory.mktemp("german")
    (folder / "user").mkdir()
    (folder / "user/registrymodifications.xcu").write_text(GERMAN)
    return folder


def test_a_german_libreoffice_reads_the_workbook_alike(bill, opened, german, tmp_path):
    """Where the decimal sign is a comma, numbers of the workbook are the same numbers."""
    book = without_values(opened[0] / "book.xlsx", tmp_path / "s.xlsx", {"total": "=Summary!B4", "one": "=1.5"})
    found = calculated(convert(german, "csv", tmp_path / "out", book)[0])
    assert found == {"total": bill.total.replace(".", ","), "one": "1,5"}


def test_a_german_libreoffice_reads_the_csv_as_english(bill, opened, german, tmp_path):
    """With English as the language of the import, as the documentation says, billed costs are numbers there too."""
    (typed,) = convert(german, "xlsx", tmp_path, opened[0] / "charges.csv", more=(CSV_AS_IS + ",,1033",))
    sheet = openpyxl.load_workbook(typed).active
    billed = [cell.value for cell in sheet[column_of(sheet, "billed_cost")][1:] if cell.value is not None]
    assert sum(Decimal(repr(value)) for value in billed) == Decimal(bill.total)
