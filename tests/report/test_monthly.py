"""The month's report and exports, through the commands, from a real ledger."""

import csv
import html.parser
import json
import re
import shutil
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from apicost import cli
from apicost.catalog import prices
from apicost.core import records
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.usage_rows import gather
from apicost.report import explain, export, templating
from apicost.report.month import monthly, render
from apicost.store.lake import Lake
from tests import usage_months

ROOT = Path(__file__).parent.parent.parent
PRICES = ROOT / "specs/prices.yaml"
BOOK = prices.load(PRICES)
MONTH = period.month("2026-11", BOOK.time_zone)
EVIL = '<script>alert("x")</script>'


class Cells(html.parser.HTMLParser):
    """The tables of a page: id -> rows of cell texts, notes left out."""

    def __init__(self):
        super().__init__()
        self.tables, self.rows, self.cell, self.note, self.tags = {}, None, None, 0, set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attrs.get("id", ""), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag == "span" and self.cell is not None:
            self.note += 1

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(self.cell.split()))
            self.cell = None
        elif tag == "span" and self.note:
            self.note -= 1

    def handle_data(self, data):
        if self.cell is not None and not self.note:
            self.cell += data


def parsed(path: Path) -> Cells:
    cells = Cells()
    cells.feed(path.read_text("utf-8"))
    return cells


def read(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def make_ledger(folder: Path, tables: list[pa.Table]) -> Path:
    counts = {"lines_received": 4_321, "lines_lost": 7, "kernel_in_wire_bytes": 10**9, "kernel_out_wire_bytes": 10**10}
    completeness = pa.table(
        [
            pa.array([MONTH.start_unix_s + 3_600] * len(counts)),
            pa.array(["gw-1"] * len(counts)).dictionary_encode(),
            pa.array(list(counts)).dictionary_encode(),
            pa.array(list(counts.values())),
        ],
        schema=records.schema(records.COMPLETENESS),
    )
    with Lake.open(folder) as lake:
        for number, table in enumerate(tables):
            lake.commit([f"in-{number}"], {"usage": table} | ({"completeness": completeness} if number == 0 else {}))
    return folder


@pytest.fixture(scope="module")
def month_usage():
    return usage_months.month(MONTH, scale=1_500, step_s=43_200)


@pytest.fixture(scope="module")
def written(tmp_path_factory, month_usage):
    folder = tmp_path_factory.mktemp("report")
    ledger = make_ledger(folder / "ledger", [month_usage])
    arguments = ["report", "--month", "2026-11", "--ledger", str(ledger), "--prices", str(PRICES)]
    assert cli.main([*arguments, "--out", str(folder / "out"), "--format", "html,csv,json"]) == 0
    return folder


def amount(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def sums(charges, *columns):
    found = defaultdict(Decimal)
    for charge in charges:
        found[tuple(charge[c] for c in columns)] += Decimal(charge["billed_cost"] or 0)
    return found


def test_the_page_and_the_csv_show_the_same_costs(written):
    """Total, APIs, operations, consumers, statuses and days of report.html are sums of the CSV files."""
    tables = parsed(written / "out/report.html").tables
    charges, days = read(written / "out/charges.csv"), read(written / "out/days.csv")
    total = sum(Decimal(c["billed_cost"] or 0) for c in charges)
    assert amount(re.search(r'id="total">([^<]*)<', (written / "out/report.html").read_text())[1]) == total
    for name, column in (("by-api", "api"), ("by-consumer", "consumer"), ("by-status", "status_class")):
        of_csv = sums(charges, column)
        rows = {row[0]: amount(row[5]) for row in tables[name][1:]}
        assert rows.pop("Total") == total
        assert sum(rows.values()) == total
        assert {k: v for k, v in rows.items() if not k.startswith("(")} == {k: v for (k,), v in of_csv.items() if k}
        assert sum(v for k, v in rows.items() if k.startswith("(")) == of_csv[("",)]
    operations = {row[0]: amount(row[5]) for row in tables["by-operation"][1:]}
    assert {k: v for (k,), v in sums(charges, "operation_id").items() if k}.items() <= operations.items()
    assert {row[0]: amount(row[3]) for row in tables["by-day"][1:-1]} == {
        d["date"] or "(no day)": Decimal(d["billed_cost"]) for d in days
    }
    assert sum(Decimal(d["billed_cost"]) for d in days) == total


def test_the_page_and_the_csv_show_the_same_usage(written):
    """Requests by API and by day on the page are sums of usage.csv; unpriced quantities are those of charges.csv."""
    tables, usage = parsed(written / "out/report.html").tables, read(written / "out/usage.csv")
    by_api = defaultdict(int)
    for row in usage:
        by_api[row["api"]] += int(row["calls"])
    shown = {row[0]: int(row[1].replace(",", "")) for row in tables["by-api"][1:]}
    assert {api: shown[api] for api in ("shop", "billing", "chat")} == {a: n for a, n in by_api.items() if a}
    assert shown["Total"] == sum(by_api.values())
    common = ["--month", "2026-11", "--ledger", str(written / "ledger"), "--prices", str(PRICES)]
    assert cli.main(["export", "usage", *common, "--by", "day", "-o", str(written / "daily.csv")]) == 0
    by_start = defaultdict(int)
    for row in read(written / "daily.csv"):
        by_start[row["period_start"]] += int(row["calls"])
    days = {d["period_start"]: int(d["calls"]) for d in read(written / "out/days.csv") if d["date"]}
    assert days == dict(by_start)
    unpriced = [c for c in read(written / "out/charges.csv") if c["state"] == "unpriced"]
    assert unpriced and not any(c["billed_cost"] or c["list_cost"] for c in unpriced)
    page = json.loads((written / "out/report.json").read_text())
    assert sum(Decimal(row["quantity"]) for row in page["unpriced"]) == sum(Decimal(c["quantity"]) for c in unpriced)


def test_states_without_a_name_have_rows_of_their_own(written):
    """Undocumented, unknown host, unattributed, the gateway's own and unallocated stand on the page."""
    tables = parsed(written / "out/report.html").tables
    assert {r[0] for r in tables["by-api"]} >= {
        "(unknown host)", "(unattributed bytes)", "(gateway's own traffic)", "(unallocated)",
    }  # fmt: skip
    assert {r[0] for r in tables["by-operation"]} >= {"(undocumented path)", "(undocumented method)"}
    assert any(r[0].startswith("Usage lines lost") and r[1] == "7" for r in tables["completeness"])


def test_the_page_needs_nothing_else(written):
    """One file: no script, no picture or style from elsewhere, and a policy that forbids them."""
    text = (written / "out/report.html").read_text()
    assert not parsed(written / "out/report.html").tags & {"script", "img", "link", "iframe", "object"}
    assert "default-src 'none'" in text
    assert not re.search(r"(https?:)?//\w", text)


def test_usage_export_has_its_promised_columns(written):
    """The columns that scripts rely on come first and in this order."""
    leg = [f"{leg}_{c}" for leg in records.LEGS for c in ("in_wire", "out_wire", "in_app", "out_app")]
    assert (written / "out/usage.csv").read_text().split("\n", 1)[0].split(",")[: 11 + 11] == [
        "period_start", "api", "operation_id", "method", "path_template", "route_id", "service_id", "consumer",
        "status_class", "scope", "calls", *(f"{name}_bytes" for name in leg), "exact_bytes", "aligned_bytes",
        "apportioned_bytes",
    ]  # fmt: skip


def test_exports_are_the_files_of_the_report(written):
    """`apicost export` writes byte for byte what `apicost report` does."""
    common = ["--month", "2026-11", "--ledger", str(written / "ledger"), "--prices", str(PRICES)]
    for what in ("usage", "charges"):
        assert cli.main(["export", what, *common, "-o", str(written / f"{what}.csv")]) == 0
        assert (written / f"{what}.csv").read_bytes() == (written / f"out/{what}.csv").read_bytes()


def test_the_same_usage_in_any_order_and_batches_gives_the_same_bytes(written, tmp_path, month_usage):
    """Rows shuffled and split over five commits: every file of the report is byte-identical."""
    order = np.random.default_rng(3).permutation(month_usage.num_rows)
    parts = [month_usage.take(chunk) for chunk in np.array_split(order, 5)]
    ledger = make_ledger(tmp_path / "ledger", parts)
    arguments = ["report", "--month", "2026-11", "--ledger", str(ledger), "--prices", str(PRICES)]
    assert cli.main([*arguments, "--out", str(tmp_path / "out"), "--format", "html,csv,json"]) == 0
    for path in sorted((written / "out").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_one_api_is_its_part_of_the_whole(written, tmp_path):
    """--api writes that API's charges as they stand in the whole statement, and a page that sums to them."""
    common = ["--month", "2026-11", "--ledger", str(written / "ledger"), "--prices", str(PRICES)]
    assert cli.main(["report", *common, "--api", "billing", "--out", str(tmp_path)]) == 0
    whole = [c for c in read(written / "out/charges.csv") if c["api"] == "billing"]
    assert read(tmp_path / "charges.csv") == whole
    total = sum(Decimal(c["billed_cost"] or 0) for c in whole)
    tables = parsed(tmp_path / "report.html").tables
    assert amount(tables["by-operation"][-1][5]) == amount(tables["by-day"][-1][3]) == total
    assert cli.main(["report", *common, "--api", "none", "--out", str(tmp_path)]) == 3


def test_names_from_traffic_are_text(tmp_path):
    """A consumer, route, operation or tag that is markup or a formula stays text on the page and in the CSV."""
    row = {
        "minute_unix_s": MONTH.start_unix_s, "api": EVIL, "operation_id": '"><img src=x onerror=1>', "method": "GET",
        "match_state": "matched", "consumer": "=1+1", "route_id": "@SUM(A1)", "service_id": "a,b\n\"c\"",
        "path_template": "/{{7*7}}", "scope": "internet", "calls": 5_000, "downstream_out_wire_bytes": 10**12,
        "status_class": "2xx",
    }  # fmt: skip
    statement = rate.rate(usage_months.usage([row]), BOOK, MONTH)
    info = {EVIL: export.ApiInfo(title="<b>", owner="</html>", tags={"x": "=2"})}
    figures = monthly.figures(
        Bill(statement=statement), gather(usage_months.usage([row]), MONTH), apis=info, damaged=["<i>day</i>"]
    )
    (tmp_path / "r.html").write_text(render.html(figures))
    cells = parsed(tmp_path / "r.html")
    assert not cells.tags & {"script", "img", "i "}
    assert EVIL in [r[0] for r in cells.tables["by-api"]]
    assert "<script" not in (tmp_path / "r.html").read_text() and "<i>day" not in (tmp_path / "r.html").read_text()
    export.write_charges(Bill(statement=statement), tmp_path / "c.csv", info)
    charge = read(tmp_path / "c.csv")[0]
    assert (charge["consumer"], charge["route_id"], charge["service_id"]) == ("'=1+1", "'@SUM(A1)", 'a,b\n"c"')
    assert charge["tags"] == "x==2"


def test_a_name_can_not_pass_for_a_state(tmp_path):
    """A consumer called "(unallocated)" has a row beside the one that is."""
    row = {"minute_unix_s": MONTH.start_unix_s, "api": "a", "consumer": "(unallocated)", "calls": 1}
    table = usage_months.usage([row])
    figures = monthly.figures(Bill(statement=rate.rate(table, BOOK, MONTH)), gather(table, MONTH))
    assert sorted(r.named for r in figures.by_consumer.rows if r.label == "(unallocated)") == [False, True]


def test_many_operations_are_folded_into_one_row():
    """The page lists the largest; the rest is one row that says how many, and the table still sums."""
    rows = [
        {"minute_unix_s": MONTH.start_unix_s, "api": "a", "operation_id": f"op{i}", "calls": 1000 + i}
        | {"match_state": "matched"}
        for i in range(200)
    ]
    usage = usage_months.usage(rows)
    figures = monthly.figures(Bill(statement=rate.rate(usage, BOOK, MONTH)), gather(usage, MONTH))
    table = figures.by_operation
    assert table.rows[-1].label == f"({200 - monthly.TOP_ROWS} others)"
    assert sum(r.billed_minor for r in table.rows) == figures.total_minor
    assert sum(r.calls for r in table.rows) == figures.calls


def test_every_charge_can_be_explained(month_usage):
    """Worked out a second time by other code, each charge of a month comes out the same."""
    small = month_usage.slice(0, 400)
    statement = rate.rate(small, BOOK, MONTH)
    ids = statement.charge_ids(np.arange(len(statement)))
    assert len(set(ids)) == len(ids)
    assert {line.tier for line in statement.lines} >= {"free", "flat", "idle", "share by calls", None}
    for charge_id in ids:
        explanation = explain.explain(statement, charge_id)
        assert explanation is not None and explanation.agrees, explanation


def test_an_explanation_finds_a_wrong_charge(month_usage):
    """A charge whose quantity or billed cost was tampered with does not agree."""
    statement = rate.rate(month_usage.slice(0, 400), BOOK, MONTH)
    at = int(np.flatnonzero(statement.quantity > 1)[0])
    (charge_id,) = statement.charge_ids(np.array([at]))
    statement.quantity[at] += 1
    assert not explain.explain(statement, charge_id).agrees
    statement.quantity[at] -= 1
    other = int(np.argmax(statement.billed_minor))
    statement.billed_minor[at] += 2
    statement.billed_minor[other] -= 2  # the sum of all is right, but these two are not
    assert not explain.explain(statement, charge_id).agrees


def test_explain_names_quantity_price_line_and_rounding(written, capsys):
    """The command shows the measured units, the price book's file and line, the product and the cent."""
    charge = next(
        c for c in read(written / "out/charges.csv") if c["tier"] == "tier 1" and c["sku"] == "egress-internet"
    )
    arguments = ["--ledger", str(written / "ledger"), "--prices", str(PRICES)]
    assert cli.main(["explain", charge["charge_id"], "--month", "2026-11", *arguments]) == 0
    text = capsys.readouterr().out
    line = next(n for n, row in enumerate(PRICES.read_text().splitlines(), 1) if 'price: "0.09"' in row)
    for part in (
        f"prices.yaml:{line}",
        f"x 0.09 = {charge['list_cost']} EUR",
        "worked out again",
        charge["billed_cost"],
    ):
        assert part in text
    assert cli.main(["explain", charge["charge_id"], *arguments]) == 0  # without a month it looks for it


def test_exit_codes_say_what_is_missing(written, tmp_path, capsys):
    """2 for a wrong option, price book or identity, 3 for a month without usage."""
    ledger, out = str(written / "ledger"), str(tmp_path / "o")
    good = ["--ledger", ledger, "--prices", str(PRICES)]
    assert cli.main(["report", "--month", "2026-10", *good, "--out", out]) == 3
    assert cli.main(["export", "usage", "--month", "2026-12", "--ledger", ledger, "-o", out]) == 3
    assert cli.main(["explain", "0" * 28, "--month", "2026-10", *good]) == 3
    assert cli.main(["explain", "0" * 28, "--month", "2026-11", *good]) == 2
    assert cli.main(["explain", "nonsense", "--month", "2026-11", *good]) == 2
    assert cli.main(["report", "--month", "2026-13", *good, "--out", out]) == 2
    assert cli.main(["report", "--month", "2026-11", "--ledger", ledger, "--out", out]) == 2
    assert cli.main(["report", "--month", "2026-11", "--ledger", str(tmp_path / "none"), "--prices", str(PRICES),
                     "--out", out]) == 2  # fmt: skip
    assert cli.main(["report", "--month", "2026-11", *good, "--out", out, "--format", "docx"]) == 2
    assert not Path(out).exists()
    assert "fix:" in capsys.readouterr().err


def test_a_price_book_is_checked_by_command(tmp_path, capsys):
    """0 for a good book; 2 with every problem and its place for a bad one."""
    assert cli.main(["prices", "check", str(PRICES)]) == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text(PRICES.read_text().replace('"0.09"', '"O.09"').replace("EUR", "Euro"))
    capsys.readouterr()
    assert cli.main(["prices", "check", str(bad)]) == 2
    assert capsys.readouterr().err.count("\n  fix: ") == 2
    assert cli.main(["prices", "check", str(PRICES), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["currency"] == "EUR"


def test_a_lost_part_of_the_ledger_is_said_on_the_page(written, tmp_path):
    """A segment that can't be read is named in the report, not silently zero."""
    ledger = tmp_path / "ledger"
    shutil.copytree(written / "ledger", ledger)
    victim = sorted(ledger.rglob("usage-*.parquet"))[3]
    victim.unlink()
    arguments = ["--month", "2026-11", "--ledger", str(ledger), "--prices", str(PRICES), "--out", str(tmp_path / "out")]
    assert cli.main(["report", *arguments]) == 0
    assert "Part of the ledger could not be read" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(0), "0.0000"),
        (Fraction(1234567, 100), "12,345.6700"),
        (Fraction(1, 3 * 10**6), "0.000000333"),
        (None, "–"),
    ],
)
def test_small_unit_costs_show_digits(value, text):
    """Four places, or as many as show three digits: a price per request is never 0.0000."""
    assert templating.short(value) == text
