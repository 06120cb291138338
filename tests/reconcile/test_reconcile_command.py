"""`apicost reconcile` from a real ledger on: our own exports read back, exit codes, formats, closed months."""

import csv
import gzip
import io
import json
import re
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apicost import cli
from apicost.catalog import bill_rules, bills, model_prices, prices
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.core.reconcile.bridge import bridge
from apicost.core.reconcile.metered import metered
from apicost.report.focus import rows
from tests import usage_months
from tests.reconcile.made import BERLIN, GB, RULES, cur, focus, write_csv
from tests.report.test_monthly import PRICES, make_ledger
from tests.usage_months import usage

ROOT = Path(__file__).parent.parent.parent
OWN = "rules: [{match: {SkuId: '*'}, sku_column: SkuId}]\n"
SMALL = """pricebook: {id: small, version: '1', currency: EUR, calendar: {time_zone: Europe/Berlin}}
scopes:
  inter-zone: {peers: ["10.0.0.0/8"]}
  internet: {peers: ["0.0.0.0/0"]}
skus:
  net: {meter: bytes, unit: GB, where: {direction: egress, scope: internet}, prices: [{from: 2026-01-01, mode: flat,
    price: "0.09"}]}
  zone: {meter: bytes, unit: GB, where: {direction: egress, scope: inter-zone}, prices: [{from: 2026-01-01, mode: flat,
    price: "0.01"}]}
  call: {meter: calls, unit: 1000 Requests, prices: [{from: 2026-01-01, mode: flat, price: "0.001"}]}
"""
TERMS = """
overrides:
  - {match: {consumer: partner-x}, sku: gateway-call, kind: contracted, discount_pct: "20"}
  - {match: {consumer: acme}, kind: commitment, minimum: "500.00"}
fx: [{from: USD, to: EUR, period: 2026-11, rate: "0.8642", locked: true}]
"""


def own_focus(bill, version, folder):
    """Our own FOCUS export of a bill, as CSV and as Parquet."""
    table = pa.concat_tables([piece.cast(pa.schema([(n, pa.string()) for n in piece.column_names]))
                              for piece in rows.pieces(bill, {}, version)])  # fmt: skip
    pq.write_table(table, folder / "focus.parquet")
    return [write_csv(folder / "focus.csv", table.to_pylist()), folder / "focus.parquet"]


def with_terms(text):
    """The sample book with a package price in dollars, a contract, and a commitment that is not reached."""
    text = text.split("# What somebody agreed")[0]
    start, end = text.index("  gateway-call:"), text.index("  egress-internet:")
    package = ("  gateway-call: {meter: calls, unit: 1000 Requests, currency: USD, "
               'prices: [{from: 2026-01-01, mode: package, size: "7", price: "0.0123"}]}\n')  # fmt: skip
    return text[:start] + package + text[end:] + TERMS


@pytest.mark.parametrize("version", ["1.2", "1.4"])
@pytest.mark.parametrize("terms", [False, True], ids=["sample", "terms"])
def test_our_own_focus_export_reconciles_to_nothing(tmp_path, version, terms):
    """Tiers, free units, price changes, packages, dollars, contracts, commitments, shared costs: 0.00, no cause."""
    book = prices.parse(with_terms(PRICES.read_text())) if terms else prices.load(PRICES)
    month = period.month("2026-11", book.time_zone)
    bill = Bill(statement=rate.rate(usage_months.month(month, scale=900, step_s=86_400), book, month))
    rules = bill_rules.parse(OWN, book)
    for path in own_focus(bill, version, tmp_path):
        theirs = bills.read([path], rules, month)
        assert (theirs.start_unix_s, theirs.end_unix_s) == (month.start_unix_s, month.end_unix_s)
        found = bridge(metered(bill), theirs.currency, theirs.lines, named=rules.named)
        assert found.rows == () and found.apart == () and found.remarks == ()
        assert found.metered == found.billed == Fraction(bill.total)
        assert all(q.billed == q.metered for q in found.quantities)


def test_tokens_of_models_and_calls_by_block_reconcile_to_nothing(tmp_path):
    """Prices of a list by model and kind of token, and calls by started block: our export read back has no cause."""
    text = SMALL + (
        "  llm: {meter: tokens, unit: 1000 Tokens, prices: [{from: 2026-01-01, mode: external, source: genai-prices, "
        "currency: USD}]}\n"
        "  block: {meter: calls, quantum: {bytes: 524288, round: up}, unit: Requests, prices: [{from: 2026-01-01, "
        'mode: package, size: "1000", price: "1.00"}]}\n'
        'fx: [{from: USD, to: EUR, period: 2026-11, rate: "0.8642", locked: true}]\n'
    )
    tokens = {"llm_prompt_tokens": 123_457, "llm_completion_tokens": 7_654, "minute_unix_s": BERLIN.starts[3]}
    table = usage([
        {"llm_model": "gpt-4o", "calls": 3_210, "quanta_512k": 3_333, **tokens},
        {"llm_model": "gpt-4o-mini", "calls": 17, "quanta_512k": 17, "consumer": "x", **tokens},
        {"llm_model": "nobody-knows", "calls": 1, "quanta_512k": 1, **tokens},
    ])  # fmt: skip
    book = prices.parse(text)
    book = replace(book, models=model_prices.resolve(book, ["gpt-4o", "gpt-4o-mini", "nobody-knows"]))
    bill = Bill(statement=rate.rate(table, book, BERLIN))
    assert {line.sku for line in bill.statement.lines if line.price} >= {"llm", "block"}
    rules = bill_rules.parse(OWN, book)
    for path in own_focus(bill, "1.2", tmp_path):
        theirs = bills.read([path], rules, BERLIN)
        found = bridge(metered(bill), theirs.currency, theirs.lines, named=rules.named)
        assert found.rows == () and found.metered == Fraction(bill.total)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ledger of an October and a November in Berlin: bytes on both sides of UTC's midnights."""
    folder = tmp_path_factory.mktemp("reconcile")
    october = period.month("2026-10", "Europe/Berlin")

    def at(start, net, zone=0, calls=0):
        more = {"api": "shop", "method": "GET", "match_state": "matched", "minute_unix_s": start}
        return [
            {"scope": "internet", "downstream_out_wire_bytes": net, "calls": calls, **more},
            {"scope": "inter-zone", "downstream_out_wire_bytes": zone, **more},
        ]

    table = usage([
        *at(october.start_unix_s + 86_400, 50 * GB, calls=1_000_000),
        *at(BERLIN.start_unix_s + 1800, 2 * GB),  # 31 October 23:30 in UTC
        *at(BERLIN.starts[9], 91 * GB, 17 * GB, 3_000_000),
        *at(BERLIN.end_unix_s + 1800, 7 * GB),  # 30 November 23:30 in UTC
    ])  # fmt: skip
    make_ledger(folder / "ledger", [table])
    (folder / "prices.yaml").write_text(SMALL)
    (folder / "rules.yaml").write_text(RULES)
    (folder / "own.yaml").write_text(OWN)
    # The provider: 91 + 7 of the internet, 3 of them metered as inter-zone; calls as they are.
    write_csv(folder / "bill.csv", [
        focus(quantity="101"), focus("REGIONAL", "14", "0.01"), focus("REQUESTS", "3000", "0.001"),
    ])  # fmt: skip
    return folder


def run(folder, *more, bill="bill.csv", rules="rules.yaml", month="2026-11"):
    return cli.main([
        "reconcile", "--ledger", str(folder / "ledger"), "--prices", str(folder / "prices.yaml"),
        "--rules", str(folder / rules), "--bill", *(str(folder / b) for b in bill.split()), "--month", month, *more,
    ])  # fmt: skip


def bridged(folder, capsys, **more):
    code = run(folder, "--json", **more)
    return code, json.loads(capsys.readouterr().out)


def test_the_bridge_from_a_ledger(folder, capsys):
    """Metered 93 + 17 GB in Berlin's month; the bill has 7 GB of the last hour and not 2 of the first."""
    code, found = bridged(folder, capsys)
    assert code == 1
    assert (found["metered"], found["billed"], found["difference"]) == ("11.54", "12.23", "0.69")
    assert [(row["cause"], row["sku"], row["amount"], row["quantity"]) for row in found["rows"]] == [
        ("timing", "net", "0.45", "5"),
        ("scope classification", "net", "0.27", "3"), ("scope classification", "zone", "-0.03", "-3"),
    ]  # fmt: skip
    assert found["exact_unexplained"] == "0"
    net = next(q for q in found["quantities"] if q["sku"] == "net")
    assert (net["metered"], net["billed"], net["unit"]) == ("93", "101", "GB")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_export_command_and_this_one_agree(folder, tmp_path, capsys, form):
    """`apicost export focus` of a month, given back as the bill: exit 0 at no tolerance, and no row."""
    options = ["--ledger", str(folder / "ledger"), "--prices", str(folder / "prices.yaml"), "--month", "2026-11"]
    path = tmp_path / f"focus.{form}"
    assert cli.main(["export", "focus", *options, "--format", form, "-o", str(path)]) == 0
    capsys.readouterr()
    assert cli.main(["reconcile", *options, "--rules", str(folder / "own.yaml"), "--bill", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metered"], found["difference"], found["rows"]) == ("11.54", "0.00", [])


def test_hours_that_the_ledger_has_not_are_noted(folder, tmp_path, capsys):
    """Before the hour after the month's end is metered, timing can't be told: a note says for which hours."""
    row = {"minute_unix_s": BERLIN.starts[9], "scope": "internet", "downstream_out_wire_bytes": GB}
    make_ledger(tmp_path / "ledger", [usage([row])])
    for name in ("prices.yaml", "rules.yaml", "bill.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    run(tmp_path)
    noted = capsys.readouterr().err
    assert "no usage from 2026-11-30T23:00:00Z to 2026-12-01T00:00:00Z" in noted
    run(folder)
    assert "no usage from" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tolerance", "code"), [("0", 1), ("0.68", 1), ("0.69", 0), ("5.9%", 1), ("6%", 0), ("0.69 ", 0)]
)
def test_the_exit_code_is_that_of_the_tolerance(folder, capsys, tolerance, code):
    """An amount, or a percentage of what is metered (11.54); the tolerance itself is within."""
    assert run(folder, "--tolerance", tolerance) == code
    assert ("within" in capsys.readouterr().out) == (code == 0)


def test_what_is_known_may_be_left_out_of_the_judgement(folder, capsys):
    """--judge unexplained: timing and scope are known, nothing else is left."""
    assert run(folder, "--judge", "unexplained") == 0


def test_all_formats_have_the_same_figures(folder, tmp_path, capsys):
    """Text, JSON and CSV; the CSV's causes sum to its billed less its metered, and -o writes what is printed."""
    _, found = bridged(folder, capsys)
    assert run(folder, "--format", "csv", "-o", str(tmp_path / "out.csv")) == 1
    with open(tmp_path / "out.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [row["cause"] for row in lines][:: len(lines) - 1] == ["metered", "billed"]
    causes = lines[1:-1]
    for name in ("amount", "exact_amount"):
        assert sum(Decimal(row[name]) for row in causes) == Decimal(lines[-1][name]) - Decimal(lines[0][name])
    assert [(r["cause"], r["sku"], r["amount"]) for r in causes] == [
        (r["cause"], r["sku"], r["amount"]) for r in found["rows"]
    ]
    capsys.readouterr()
    run(folder)
    text = capsys.readouterr().out
    assert all(row["amount"].lstrip("-") in text for row in found["rows"])
    assert "timing" in text and "+0.69" in text and "above the tolerance" in text
    run(folder, "-o", str(tmp_path / "out.txt"))
    assert (tmp_path / "out.txt").read_text() == text


def test_many_unmapped_lines_are_shown_by_the_largest(folder, tmp_path, capsys):
    """20 by name, the others as one row before what follows; amounts still sum, and JSON names them all."""
    strange = [focus(f"S{n:02}", "1", f"{n}.5") for n in range(1, 31)]
    tax = focus("T", cost="1.90", price="", ChargeCategory="Tax")
    write_csv(folder / "strange.csv", [focus(quantity="101"), *strange, tax])
    run(folder, bill="strange.csv")
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if line.startswith("unmapped")]
    assert len(shown) == 21 and "10 more" in shown[-1] and "+60.00" in shown[-1] and "S30" in shown[-2]
    table = lines[lines.index(next(x for x in lines if x.startswith("metered"))) :]
    amounts = [Decimal(re.search(r"[-+]\d[\d,]*\.\d\d\b", x)[0].replace(",", "")) for x in
               table[1 : next(n for n, x in enumerate(table) if x.startswith("billed"))]]  # fmt: skip
    _, found = bridged(folder, capsys, bill="strange.csv")
    assert sum(amounts) == Decimal(found["difference"])
    assert len([row for row in found["rows"] if row["cause"] == "unmapped"]) == 30


def test_a_closed_month_is_compared_as_it_was_signed(folder, tmp_path, capsys):
    """October is closed; late usage changes nothing of it, and falls to November as a correction."""
    ledger = tmp_path / "ledger"
    october = period.month("2026-10", "Europe/Berlin")
    row = {"scope": "internet", "match_state": "matched", "api": "shop"}
    make_ledger(ledger, [
        usage([
            {"minute_unix_s": october.start_unix_s + 86_400, "downstream_out_wire_bytes": 50 * GB, **row},
            {"minute_unix_s": BERLIN.starts[3], "downstream_out_wire_bytes": 10 * GB, **row},
        ])
    ])  # fmt: skip
    for name in ("prices.yaml", "rules.yaml", "own.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    options = ["--ledger", str(ledger), "--prices", str(tmp_path / "prices.yaml")]
    assert cli.main(["close", "2026-10", *options]) == 0
    from apicost.store.lake import Lake

    with Lake.open(ledger) as lake:
        late = {"minute_unix_s": october.start_unix_s + 90_000, "downstream_out_wire_bytes": 3 * GB, **row}
        lake.commit(["late"], {"usage": usage([late])})
    write_csv(tmp_path / "bill.csv", [
        focus(quantity="50", ChargePeriodStart="2026-10-05T00:00:00Z", BillingPeriodStart="2026-09-30T22:00:00Z",
              BillingPeriodEnd="2026-10-31T23:00:00Z"),
    ])  # fmt: skip
    capsys.readouterr()
    code, found = bridged(tmp_path, capsys, month="2026-10")
    assert (code, found["metered"], found["difference"], found["rows"]) == (0, "4.50", "0.00", [])

    november = {"BillingPeriodStart": "2026-10-31T23:00:00Z", "BillingPeriodEnd": "2026-11-30T23:00:00Z"}
    charges = [focus(quantity="10", **november)]
    write_csv(tmp_path / "bill.csv", charges)
    code, found = bridged(tmp_path, capsys)
    assert (found["metered"], found["difference"]) == ("1.17", "-0.27")
    assert [(row["cause"], row["amount"]) for row in found["rows"]] == [("corrections", "-0.27")]
    corrected = focus(quantity="3", ChargeClass="Correction", ChargePeriodStart="2026-09-30T22:00:00Z", **november)
    write_csv(tmp_path / "bill.csv", [*charges, corrected])
    assert bridged(tmp_path, capsys)[0] == 0


def test_a_closed_month_keeps_what_its_own_book_counts(folder, tmp_path, capsys):
    """The book that closed October prices payload bytes; that of today does not. October is compared all the same."""
    october = period.month("2026-10", "Europe/Berlin")
    payload = {"minute_unix_s": october.start_unix_s + 86_400, "downstream_out_payload_bytes": 50 * GB}
    make_ledger(tmp_path / "ledger", [usage([{"scope": "internet", "match_state": "matched", **payload}])])
    then = SMALL.replace("net: {meter: bytes,", "net: {meter: bytes, byte_basis: payload,")
    (tmp_path / "prices.yaml").write_text(then)
    options = ["--ledger", str(tmp_path / "ledger"), "--prices", str(tmp_path / "prices.yaml")]
    assert cli.main(["close", "2026-10", *options]) == 0
    (tmp_path / "prices.yaml").write_text(SMALL)
    (tmp_path / "rules.yaml").write_text(RULES)
    write_csv(tmp_path / "bill.csv", [
        focus(quantity="50", ChargePeriodStart="2026-10-05T00:00:00Z", BillingPeriodStart="2026-09-30T22:00:00Z",
              BillingPeriodEnd="2026-10-31T23:00:00Z"),
    ])  # fmt: skip
    capsys.readouterr()
    code, found = bridged(tmp_path, capsys, month="2026-10")
    assert (code, found["metered"], found["rows"]) == (0, "4.50", [])


def test_nothing_to_compare_is_too_little_data(folder, capsys):
    """A month without usage, or a bill without a line of it: 3."""
    assert run(folder, month="2025-01") == 3
    assert run(folder, month="2026-10") == 3
    assert "the bill has no line of 2026-10" in capsys.readouterr().err


def test_wrong_input_is_two(folder, tmp_path, capsys):
    """A tolerance that is none, no bill, one in another currency, rules with problems: 2, with a fix."""
    write_csv(folder / "usd.csv", [focus(quantity="1", BillingCurrency="USD")])
    (folder / "bad.yaml").write_text("rules: [{match: {SkuId: OUT}, sku: nett}]\n")
    for more in (
        {"bill": "none.csv"}, {"bill": "usd.csv"}, {"rules": "bad.yaml"}, {"rules": "none.yaml"}, {"month": "2026-13"},
    ):  # fmt: skip
        assert run(folder, **more) == 2, more
        assert "fix:" in capsys.readouterr().err
    for tolerance in ("a lot", "-1", "1e3", ""):
        assert run(folder, f"--tolerance={tolerance}") == 2
    assert run(folder, "-o", str(tmp_path / "no" / "such" / "x.txt")) in (0, 1, 2)


def test_a_rate_of_the_rules_converts_a_bill(folder, capsys):
    """A Cost and Usage Report in dollars against a book in euros that has no rate: the rules say what was paid."""
    lines = [cur(quantity="101"), cur("DataTransfer-Regional-Bytes", "14", "0.01")]
    (folder / "paid.yaml").write_text(
        'fx: {USD: "0.9"}\ngroups: {egress: [net, zone]}\nrules:\n'
        "  - {use: aws-internet-egress, sku: net, unit: GB}\n  - {use: aws-inter-zone, sku: zone, unit: GB}\n"
    )
    raw = io.StringIO(write_csv(folder / "cur.csv", lines).read_text()).read()
    (folder / "cur.csv.gz").write_bytes(gzip.compress(raw.encode()))
    code, found = bridged(folder, capsys, bill="cur.csv.gz", rules="paid.yaml")
    assert code == 1 and found["billed"] == "8.31"  # 9.23 USD
    assert {row["cause"] for row in found["rows"]} == {"timing", "scope classification", "price"}
    assert [x["what"] for x in found["not_compared"]] == ["call"]


def test_the_sample_rules_fit_the_sample_book():
    """specs/reconcile.yaml is read with specs/prices.yaml without a problem, and names its SKUs."""
    rules = bill_rules.load(ROOT / "specs/reconcile.yaml", prices.load(PRICES))
    assert "egress-internet" in rules.named and "gateway-nodes" in rules.named
