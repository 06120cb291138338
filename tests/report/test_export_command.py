"""`apicost export`: every format of every kind from one ledger, the same bytes for the same month."""

import csv
import json
import os
import pty
import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost import cli
from apicost.catalog import prices
from apicost.commands import export as command
from apicost.core.rating.period import month
from apicost.problems import InputError
from apicost.report import export
from apicost.report.focus import lint_files
from apicost.store.lake import Lake
from tests import usage_months

PRICES = Path(__file__).parents[2] / "specs/prices.yaml"
MONTH = month("2026-11", prices.load(PRICES).time_zone)
FORMATS = "csv,parquet,xlsx,json"
KINDS = [
    ("usage",),
    ("usage", "--by", "day"),
    ("charges",),
    ("focus",),
    ("focus", "--focus-version", "1.4"),
    ("journal",),
]


@pytest.fixture(scope="module")
def month_usage():
    """A month's usage in some hundred rows."""
    return usage_months.month(MONTH, seed=8, step_s=14 * 86_400, scale=300)


def make_ledger(folder: Path, tables: list[pa.Table]) -> Path:
    with Lake.open(folder) as lake:
        for number, table in enumerate(tables):
            lake.commit([f"in-{number}"], {"usage": table})
    return folder


@pytest.fixture(scope="module")
def ledger(tmp_path_factory, month_usage):
    """A ledger with that month."""
    return make_ledger(tmp_path_factory.mktemp("export") / "ledger", [month_usage])


def run(ledger: Path, *arguments: object) -> int:
    common = ["--month", "2026-11", "--ledger", ledger, "--prices", PRICES]
    return cli.main([str(argument) for argument in ("export", *arguments, *common)])


def export_all(ledger: Path, out: Path) -> dict[str, bytes]:
    """Every kind in every format, by file name."""
    for number, (kind, *options) in enumerate(KINDS):
        formats = [] if kind == "journal" else ["--format", FORMATS]
        assert run(ledger, kind, *options, *formats, "-o", out / f"{number}-{kind}") == 0
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def exported(ledger, tmp_path_factory):
    """The folder of all exports, and what is in it."""
    out = tmp_path_factory.mktemp("all")
    return out, export_all(ledger, out)


def test_every_kind_has_every_format(exported):
    """Five kinds in four formats each, and the journal."""
    names = [f"{n}-{kind[0]}.{f}" for n, kind in enumerate(KINDS[:-1]) for f in FORMATS.split(",")]
    assert sorted(exported[1]) == sorted([*names, "5-journal"])


def test_every_format_has_the_total(exported):
    """Billed cost adds up to the same total in CSV, Parquet, JSON, XLSX, FOCUS and the journal's balance."""
    out, files = exported
    sums = {}
    for stem, column in (("2-charges", "billed_cost"), ("3-focus", "BilledCost"), ("4-focus", "BilledCost")):
        rows = list(csv.DictReader(files[f"{stem}.csv"].decode().splitlines()))
        sums[stem, "csv"] = sum(Decimal(row[column] or 0) for row in rows)
        table = pq.read_table(out / f"{stem}.parquet", columns=[column])
        sums[stem, "parquet"] = sum(value or 0 for value in table.column(0).to_pylist())
        sums[stem, "json"] = sum(Decimal(row[column] or 0) for row in json.loads(files[f"{stem}.json"]))
        book = openpyxl.load_workbook(out / f"{stem}.xlsx", data_only=True)
        sums[stem, "xlsx"] = round(Decimal(book["Summary"]["B4"].value), 2)
    (total,) = set(sums.values())
    assert total > 40
    assert f"balance Expenses:Gateway:2026-11  {total} ~ 0 EUR" in files["5-journal"].decode()


@pytest.mark.parametrize("version", ["1.2", "1.4"])
def test_focus_passes_the_linter_in_csv_and_parquet(exported, version):
    """The project's own FOCUS linter finds no error in either format."""
    stem = "3-focus" if version == "1.2" else "4-focus"
    for suffix in ("csv", "parquet"):
        findings, rows = lint_files.lint_file(exported[0] / f"{stem}.{suffix}", version, None)
        assert rows and not [finding for finding in findings if finding.rule.is_error], suffix


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=2)
def test_the_same_usage_in_any_order_gives_the_same_files(tmp_path_factory, month_usage, exported, seed, lots):
    """Rows shuffled and split over commits: all of them are byte-identical, XLSX and Parquet too."""
    order = np.random.default_rng(seed).permutation(month_usage.num_rows)
    folder = tmp_path_factory.mktemp("order")
    tables = [month_usage.take(chunk) for chunk in np.array_split(order, lots)]
    again = export_all(make_ledger(folder / "ledger", tables), folder / "out")
    assert [name for name in exported[1] if again[name] != exported[1][name]] == [] and len(again) == len(exported[1])


def test_where_and_when_it_is_written_is_not_in_a_file(exported, ledger, tmp_path):
    """Another folder, umask, time zone and day: the same bytes. Members of a workbook have one fixed date."""
    with zipfile.ZipFile(exported[0] / "2-charges.xlsx") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None
    command = ["export", "charges", "--format", "xlsx,parquet", "-o", str(tmp_path / "deep" / "c")]
    command += ["--month", "2026-11", "--ledger", str(ledger), "--prices", str(PRICES)]
    program = f"import os; os.umask(0o077); from apicost import cli; raise SystemExit(cli.main({command!r}))"
    environment = {**os.environ, "TZ": "Pacific/Kiritimati", "TMPDIR": str(tmp_path), "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, capture_output=True)
    for suffix in ("xlsx", "parquet"):
        assert (tmp_path / "deep" / f"c.{suffix}").read_bytes() == exported[1][f"2-charges.{suffix}"], suffix


def test_the_report_has_the_workbook_too(exported, ledger, tmp_path):
    """`report --format xlsx` writes what the export writes."""
    common = ["--month", "2026-11", "--ledger", str(ledger), "--prices", str(PRICES)]
    assert cli.main(["report", *common, "--format", "xlsx", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "charges.xlsx").read_bytes() == exported[1]["2-charges.xlsx"]


def test_the_suffix_tells_the_format(exported, ledger, tmp_path):
    """FILE.parquet is Parquet; no suffix is CSV; a list replaces a known suffix and follows any other."""
    assert run(ledger, "charges", "-o", tmp_path / "a.parquet") == 0
    assert (tmp_path / "a.parquet").read_bytes() == exported[1]["2-charges.parquet"]
    assert run(ledger, "charges", "-o", tmp_path / "acme-2026.11") == 0
    assert (tmp_path / "acme-2026.11").read_bytes() == exported[1]["2-charges.csv"]
    assert run(ledger, "charges", "--format", "csv,json", "-o", tmp_path / "b.csv") == 0
    assert run(ledger, "charges", "--format", "json,csv,json", "-o", tmp_path / "acme-2026.11") == 0
    assert run(ledger, "journal", "-o", tmp_path / "j.beancount") == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "a.parquet", "acme-2026.11", "acme-2026.11.csv", "acme-2026.11.json", "b.csv", "b.json", "j.beancount",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["charges", "--format", "pdf", "-o", "x"], "charges has no format pdf"),
        (["charges", "--format", ",", "-o", "x"], "no format is named"),
        (["charges", "--format", "xlsx", "-o", "x.csv"], "ends in .csv, but the format is xlsx"),
        (["charges", "-o", "x.beancount"], "charges has no format beancount"),
        (["journal", "--format", "csv", "-o", "x"], "journal has no format csv"),
        (["journal", "-o", "x.csv"], "ends in .csv, but the format is beancount"),
        (["charges", "--focus-version", "1.4", "-o", "x"], "charges is not FOCUS"),
        (["focus", "--by", "day", "-o", "x"], "focus is by month"),
        (["charges", "-o", "/proc/none/x.xlsx"], "can't be written"),
    ],
)
def test_what_can_not_be_is_said(ledger, arguments, said, tmp_path, monkeypatch):
    """An option that fits nothing is an input error with its fact, and no file appears."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as failure:
        command.main([*arguments, "--month", "2026-11", "--ledger", str(ledger), "--prices", str(PRICES)])
    assert said in str(failure.value)
    assert not list(tmp_path.iterdir())


def test_an_api_alone(exported, ledger, tmp_path):
    """--api gives its rows in every format; an API without usage is too little data."""
    for kind, suffix in (("charges", "json"), ("focus", "json"), ("usage", "json"), ("charges", "xlsx")):
        assert run(ledger, kind, "--api", "shop", "-o", tmp_path / f"{kind}.{suffix}") == 0
        assert run(ledger, kind, "--api", "none", "-o", tmp_path / f"none.{suffix}") == 3
    for kind, number, name in (("charges", 2, "api"), ("focus", 3, "x_Api"), ("usage", 0, "api")):
        whole = json.loads(exported[1][f"{number}-{kind}.json"])
        mine = [row for row in whole if row[name] == "shop"]
        assert mine and json.loads((tmp_path / f"{kind}.json").read_text()) == mine
    assert openpyxl.load_workbook(tmp_path / "charges.xlsx").sheetnames == ["Summary", "shop"]
    assert not list(tmp_path.glob("none.*"))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "xlsx", "json"])
def test_a_file_is_there_whole_or_not_at_all(ledger, tmp_path, monkeypatch, suffix):
    """A failure while rows are written leaves the file of before, and nothing beside it."""
    target = tmp_path / f"usage.{suffix}"
    target.write_text("before")

    def broken(*_):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(export, "usage_tables", broken)
    assert run(ledger, "usage", "-o", target) == 2
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]


def test_a_terminal_is_told_how_far_it_is(ledger, tmp_path):
    """On a terminal each format says how many rows are written; a pipe is told the result alone."""
    command = [sys.executable, "-m", "apicost", "export", "charges", "--format", FORMATS, "--month", "2026-11",
               "--ledger", str(ledger), "--prices", str(PRICES), "-o", str(tmp_path / "c")]  # fmt: skip
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0
    rows = len(json.loads((tmp_path / "c.json").read_text()))
    for suffix in FORMATS.split(","):
        assert f"\rapicost: c.{suffix}: {rows:,} of {rows:,} rows".encode() in said
    quiet = subprocess.run(command, capture_output=True, check=True).stderr.decode()
    assert "\r" not in quiet and len(quiet.splitlines()) == 4
