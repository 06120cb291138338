"""`apicost prices`, and what a report does with contracts, currencies, budgets and tags, from a ledger on."""

import csv
import json
from decimal import Decimal

import pytest

from apicost import cli
from apicost.core.rating import period
from tests import usage_months
from tests.report.test_monthly import PRICES, make_ledger

MONTH = period.month("2026-11", "Europe/Berlin")
TERMS = """
overrides:
  - {match: {consumer: partner-x}, sku: gateway-call, kind: contracted, discount_pct: "20"}
  - {match: {consumer: partner-x}, kind: commitment, minimum: "500.00"}
budgets: [{match: {team: partners}, month: 2026-11, amount: "400.00"}]
tags: [{match: {consumer: partner-x}, set: {team: partners}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ledger of a month, and a second price book: calls dearer, terms added, bytes with backends not sold."""
    folder = tmp_path_factory.mktemp("prices")
    make_ledger(folder / "ledger", [usage_months.month(MONTH, seed=3, scale=300, step_s=43_200)])
    text = PRICES.read_text().split("# What somebody agreed")[0].replace('price: "0.0011"', 'price: "0.9"')
    start, end = text.index("  backend-internal:"), text.index("shared_costs:")
    (folder / "new.yaml").write_text(text[:start] + text[end:] + TERMS)
    return folder


def run(folder, *arguments):
    return cli.main([*map(str, arguments), "--ledger", str(folder / "ledger"), "--month", "2026-11"])


def exact(folder, book, capsys):
    """Contracted costs by SKU, and the billed total, of charges.csv."""
    assert run(folder, "export", "charges", "--prices", book, "-o", folder / "charges.csv") == 0
    capsys.readouterr()
    with open(folder / "charges.csv", newline="") as stream:
        charges = list(csv.DictReader(stream))
    costs = {}
    for charge in charges:
        if charge["contracted_cost"]:
            costs[charge["sku"]] = costs.get(charge["sku"], 0) + Decimal(charge["contracted_cost"])
    return costs, sum(Decimal(charge["billed_cost"] or 0) for charge in charges)


def test_the_difference_of_two_books_is_that_of_their_charges(folder, capsys):
    """By SKU and in total, `prices diff` says what the two exports of charges sum to; what is sold no more is named."""
    before, total_before = exact(folder, PRICES, capsys)
    after, total_after = exact(folder, folder / "new.yaml", capsys)
    assert run(folder, "prices", "diff", PRICES, folder / "new.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["sku"]: row for row in found["by_sku"]}
    assert {sku: Decimal(row["old"]) for sku, row in rows.items() if row["old"] is not None} == before
    assert {sku: Decimal(row["new"]) for sku, row in rows.items() if row["new"] is not None} == after
    assert all(Decimal(r["change"]) == Decimal(r["new"] or 0) - Decimal(r["old"] or 0) for r in rows.values())
    assert Decimal(found["billed_change"]) == total_after - total_before
    assert rows["backend-internal"]["new"] is None and rows["commitment"]["old"] is None
    assert {row["meter"] for row in found["unpriced"]} == {"upstream_in_wire_bytes", "upstream_out_wire_bytes"}
    assert all(row["new"] > row["old"] for row in found["unpriced"])


def test_the_difference_is_a_table_for_people(folder, capsys):
    """Both books, each SKU, the change in percent, the billed total, and quantities that lost their price."""
    assert run(folder, "prices", "diff", PRICES, folder / "new.yaml") == 0
    text = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert rows["backend-internal"].split()[2:4] == ["no", "price"]
    assert run(folder, "prices", "diff", PRICES, folder / "new.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    totals = [f"{Decimal(found[book]['billed_cost']):,}" for book in ("old", "new")]
    assert rows["billed"].split()[1:3] == totals and "," in totals[1]  # written as the rows above are
    assert rows["billed"].rstrip().endswith("%") and "+" in rows["billed"]
    assert "Without a price, so in no total:" in text
    assert run(folder, "prices", "diff", PRICES, PRICES) == 0
    assert {line.split()[3] for line in capsys.readouterr().out.splitlines() if line[:6] == "billed"} == {"0.00"}


def test_wrong_questions_are_said(folder, tmp_path, capsys):
    """Two files for a check, one for a comparison, no month, two currencies: 2 with a fix; no usage: 3."""
    dollars = tmp_path / "usd.yaml"
    dollars.write_text(PRICES.read_text().replace("currency: EUR", "currency: USD"))
    ledger = ["--ledger", str(folder / "ledger")]
    for arguments in (
        ["check", str(PRICES), str(PRICES)],
        ["diff", str(PRICES), "--month", "2026-11", *ledger],
        ["diff", str(PRICES), str(PRICES), *ledger],
        ["diff", str(PRICES), str(dollars), "--month", "2026-11", *ledger],
    ):
        assert cli.main(["prices", *arguments]) == 2, arguments
        assert "fix:" in capsys.readouterr().err
    assert cli.main(["prices", "diff", str(PRICES), str(PRICES), "--month", "2020-01", *ledger]) == 3


def test_a_check_tells_the_terms(folder, capsys):
    """Contracts, commitments and budgets stand in the check's text and JSON."""
    assert cli.main(["prices", "check", str(folder / "new.yaml")]) == 0
    text = capsys.readouterr().err
    assert "contract for consumer partner-x, gateway-call: 20 % off" in text
    assert "partner-x is committed to 500.00 EUR a month" in text
    assert "budget of team partners in 2026-11: 400.00 EUR" in text
    assert cli.main(["prices", "check", str(folder / "new.yaml"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["commitments"] == [{"consumer": "partner-x", "minimum": "500", "from": None, "to": None}]
    assert data["contracts"][0]["discount_pct"] == "20"


def test_a_report_shows_contracts_and_budgets(folder, tmp_path):
    """The page says what contracts save and how a budget stands; figures are those of the CSV."""
    out = tmp_path / "out"
    book = ["--prices", folder / "new.yaml"]
    assert run(folder, "report", *book, "--out", out, "--format", "html,csv,json") == 0
    with open(out / "charges.csv", newline="") as stream:
        charges = list(csv.DictReader(stream))
    team = sum(Decimal(c["billed_cost"] or 0) for c in charges if c["team"] == "partners")
    assert team >= 500  # committed
    data, page = json.loads((out / "report.json").read_text()), (out / "report.html").read_text()
    (row,) = data["budgets"]
    assert (row["for"], Decimal(row["billed_cost"]), Decimal(row["left"])) == ("team partners", team, 400 - team)
    assert {r["label"]: Decimal(r["billed_cost"]) for r in data["by_team"]}["partners"] == team
    assert 'id="by-team"' in page and 'id="budgets"' in page and "team partners" in page
    saved = Decimal(data["list_cost"]) - Decimal(data["contracted_cost"])
    assert saved == sum(Decimal(c["list_cost"] or 0) - Decimal(c["contracted_cost"] or 0) for c in charges) > 0
    assert f"Contracts make this {saved:,.2f} EUR less" in page
    assert "(list 0.9)" in page


def test_a_month_without_its_exchange_rate_is_refused(folder, tmp_path, capsys):
    """No report, export or comparison comes of a book whose rate of the month is missing: 2, with place and fix."""
    foreign = tmp_path / "foreign.yaml"
    foreign.write_text(
        PRICES.read_text().replace("unit: 1000 Requests", "unit: 1000 Requests\n    currency: USD")
        + 'fx: [{from: USD, to: EUR, period: 2026-12, rate: "0.86", locked: true}]\n'
    )
    for arguments in (
        ["report", "--prices", foreign, "--out", tmp_path / "out"],
        ["export", "charges", "--prices", foreign, "-o", tmp_path / "out.csv"],
        ["prices", "diff", PRICES, foreign],
        ["prices", "check", foreign],
    ):
        assert run(folder, *arguments) == 2, arguments
        assert "fx has no rate of 2026-11" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.csv").exists()
    foreign.write_text(foreign.read_text().replace("period: 2026-12", "period: 2026-11"))
    assert run(folder, "report", "--prices", foreign, "--out", tmp_path / "out") == 0
    assert "0.0011 USD" in (tmp_path / "out/report.html").read_text()
