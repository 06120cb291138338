"""The journal: what `bean-check` accepts, what it refuses, and that a month's figures are in it."""

import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from beancount import loader
from beancount.core.data import Balance, Custom, Open, Transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog import prices
from apicost.core.rating import bill as bill_module
from apicost.core.rating import period
from apicost.core.rating.bill import Bill
from apicost.report import journal
from apicost.report.export import ApiInfo
from tests import usage_months
from tests.report.bills import statement, taken_back, with_corrections

SAMPLE = prices.parse((Path(__file__).parents[2] / "specs/prices.yaml").read_text())
MONTH = period.month("2026-11", SAMPLE.time_zone)
APIS = {"shop": ApiInfo(title='The "shop"', owner="Ana", team="commerce")}
SMALL = """
pricebook: {id: small, version: "1", currency: EUR, calendar: {time_zone: Europe/Berlin}}
rounding: {statement_scale: 2}
skus:
  call: {meter: calls, unit: Requests, where: {match_state: matched}, prices: [{from: 2026-01-01, mode: graduated,
    tiers: [{up_to: "50", price: "1.101"}, {up_to: null, price: "0.7"}]}]}
shared_costs: [{id: node, amount: "9.99", period: monthly, weights: {calls: "1"}, idle: {keep_unallocated: "0.25"}}]
"""


def small(text=SMALL, name="2026-11", *, last="billing"):
    """A bill of twelve charges, two of them without a price, and three corrections, of them one without a price."""
    start = period.month(name, "Europe/Berlin").starts[3]
    rows = [
        {"api": api, "consumer": who, "match_state": state, "calls": n, "minute_unix_s": start}
        for api, who, state, n in [
            ("shop", "acme", "matched", 31), ("shop", None, "matched", 7), (last, "acme", "matched", 41),
            ("shop", "acme", "undocumented-path", 3), (None, None, "unknown-host", 5),
        ]
    ]  # fmt: skip
    return with_corrections(usage_months.usage(rows), prices.parse(text), 4, name)


def text_of(bill, api=None):
    return b"".join(journal.pieces(bill, APIS, api)).decode()


def load(text):
    """Entries and error messages, as bean-check has them."""
    entries, errors, _ = loader.load_string(text)
    return entries, [error.message for error in errors]


def of_type(entries, kind):
    return [entry for entry in entries if isinstance(entry, kind)]


def rows_of(bill):
    return [row for piece in bill.pieces() for row in piece.to_pylist()]


def test_bean_check_accepts_a_month(tmp_path):
    """A month of the sample book, with corrections, passes bean-check, which says nothing."""
    path = tmp_path / "month.beancount"
    bill = with_corrections(usage_months.month(MONTH), SAMPLE, 7)
    assert journal.write(bill, path, APIS) == len(bill)
    assert path.read_bytes() == b"".join(journal.pieces(bill, APIS))
    done = subprocess.run(
        [sys.executable, "-m", "beancount.scripts.check", "--no-cache", str(path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("api", [None, "shop"])
def test_every_charge_stands_in_it_once(api):
    """Each charge is a posting of its billed cost, or a custom directive with its quantity where it has no price."""
    bill = with_corrections(usage_months.month(MONTH), SAMPLE, 7)
    entries, errors = load(text_of(bill, api))
    assert not errors
    posted = [
        (posting.meta["charge-id"], posting.units.number, posting.units.currency)
        for entry in of_type(entries, Transaction)
        for posting in entry.postings
        if not posting.account.startswith("Liabilities:")
    ]
    unpriced = [(e.meta["charge-id"], e.values[2].value, e.values[3].value) for e in of_type(entries, Custom)]
    rows = [row for row in rows_of(bill) if api in (None, row["api"])]
    priced = [row for row in rows if row["billed_cost"] is not None]
    assert sorted(posted) == sorted((r["charge_id"], Decimal(r["billed_cost"]), r["currency"]) for r in priced)
    without = [(r["charge_id"], r["quantity"], r["unit"]) for r in rows if r["billed_cost"] is None]
    assert sorted(unpriced) == sorted(without)
    assert (priced and without) if api is None else priced


def test_each_posting_says_what_its_charge_says():
    """Keys, tags and exact figures of a charge are metadata of its posting or transaction, in the charge's own text."""
    bill = with_corrections(usage_months.month(MONTH), SAMPLE, 7)
    entries, _ = load(text_of(bill))
    rows = {row["charge_id"]: row for row in rows_of(bill)}
    seen = 0
    for entry in of_type(entries, Transaction):
        for posting in entry.postings[:-1]:
            row = rows[posting.meta["charge-id"]]
            told = entry.meta | posting.meta
            for key, column in [
                ("api", "api"), ("sku", "sku"), ("sku-price-id", "sku_price_id"), ("tier", "tier"), ("unit", "unit"),
                ("unit-price", "unit_price"), ("fx-rate", "fx_rate"), ("quantity", "quantity"), ("reason", "reason"),
                ("exact-cost", "contracted_cost"), ("consumer", "consumer"), ("operation", "operation_id"),
                ("path", "path_template"), ("status", "status_class"), ("route", "route_id"), ("scope", "scope"),
                ("period-start", "period_start"), ("period-end", "period_end"), ("cost-center", "cost_center"),
            ]:  # fmt: skip
                assert told.get(key) == row[column], key
            assert told.get("contracted-unit-price", row["unit_price"]) == row["contracted_unit_price"]
            assert told.get("team") == (row["team"] or ("commerce" if row["api"] == "shop" else None))
            seen += 1
    assert seen > 100


def test_totals_are_asserted_at_the_months_end():
    """The bill's total, the liability and each API's figure of the statement are asserted as the next month begins."""
    bill = small()
    entries, errors = load(text_of(bill))
    assert not errors
    found = {e.account: (e.date.isoformat(), str(e.amount), e.tolerance) for e in of_type(entries, Balance)}
    root = "Expenses:Gateway:2026-11"
    assert found[root] == ("2026-12-01", f"{bill.total} EUR", Decimal(0))
    assert found["Liabilities:Gateway:2026-11"] == ("2026-12-01", f"-{bill.total} EUR", Decimal(0))
    for api, name in [("shop", "API:Shop"), ("billing", "API:Billing"), (None, "No-API")]:
        figure = sum(
            Decimal(row["billed_cost"] or 0) for row in bill.statement.charges.to_pylist() if row["api"] == api
        )
        assert found[f"{root}:{name}"] == ("2026-12-01", f"{figure} EUR", Decimal(0)), name
    corrected = sum(Decimal(row["billed_cost"] or 0) for row in bill.corrections.to_pylist())
    assert corrected and found[f"{root}:Corrections"] == ("2026-12-01", f"{corrected} EUR", Decimal(0))


def test_a_price_line_of_an_api_is_one_transaction():
    """All charges of an API and price line are in one transaction: no two are alike but for their postings."""
    entries, _ = load(text_of(with_corrections(usage_months.month(MONTH), SAMPLE, 7)))
    about = [
        (e.date, e.payee, e.narration, *((k, v) for k, v in e.meta.items() if isinstance(v, str)))
        for e in of_type(entries, Transaction)
    ]
    assert len(set(about)) == len(about) > 30


def test_the_file_tolerates_nothing():
    """The journal says that a transaction must balance to the last digit, and in which currency it is."""
    _, _, options = loader.load_string(text_of(small()))
    assert (options["tolerance_multiplier"], options["operating_currency"]) == (0, ["EUR"])


@pytest.mark.parametrize("scale", [0, 2, 3])
def test_one_changed_cent_is_refused(scale):
    """bean-check refuses the journal with any amount changed by the smallest unit, or any transaction left out."""
    text = text_of(small(SMALL.replace("scale: 2", f"scale: {scale}")))
    assert not load(text)[1]
    lines = text.splitlines()
    amounts = [n for n, line in enumerate(lines) if re.search(r"[0-9](?: ~ 0)? EUR$", line)]
    assert len(amounts) > 30
    for number in amounts:
        for unit in (1, -1):
            assert load("\n".join(changed(lines, number, scale, unit)))[1], lines[number]
    blocks = text.split("\n\n")
    transactions = [n for n, block in enumerate(blocks) if " * " in block]
    costly = [n for n in transactions if re.search(r"[1-9]", blocks[n].rpartition("Liabilities:Gateway:2026-11")[2])]
    assert len(costly) > 5
    for number in costly:
        assert load("\n\n".join(blocks[:number] + blocks[number + 1 :]))[1], blocks[number]


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_errors_that_cancel_are_refused(data):
    """A cent moved from one transaction to another, each balanced, is refused unless both are of one account."""
    lines = text_of(small()).splitlines()
    charges = [n for n, line in enumerate(lines) if line.startswith("  Expenses:")]
    more, less = data.draw(st.lists(st.sampled_from(charges), min_size=2, max_size=2, unique=True))
    for number, unit in ((more, 1), (less, -1)):
        lines = changed(lines, number, 2, unit)
        closing = next(n for n in range(number, len(lines)) if lines[n].startswith("  Liabilities:"))
        lines = changed(lines, closing, 2, -unit)
    same = lines[more].split()[0] == lines[less].split()[0]
    assert bool(load("\n".join(lines))[1]) is not same


def changed(lines, number, scale, unit):
    """The lines with one amount so many smallest units higher."""
    found = re.search(r"(-?[0-9.]+)((?: ~ 0)? EUR)$", lines[number])
    other = Decimal(found[1]) + Decimal(unit).scaleb(-scale)
    return [*lines[:number], lines[number][: found.start()] + f"{other:f}" + found[2], *lines[number + 1 :]]


def test_corrections_are_of_the_open_month():
    """A correction is dated in the month that bills it, in accounts of its own, and says the period of its charge."""
    entries, errors = load(text_of(small()))
    assert not errors
    corrections = [e for e in of_type(entries, Transaction) if "correction" in e.tags]
    assert len(corrections) == 3
    for entry in corrections:
        assert entry.date.isoformat() == "2026-11-30" and entry.narration.startswith("Correction: ")
        assert entry.meta["period-start"] == "2026-09-30T22:00:00Z" and entry.meta["price-book-version"] == "1"
        assert all(p.account.startswith("Expenses:Gateway:2026-11:Corrections:") for p in entry.postings[:-1])
    assert sum(p.units.number for e in corrections for p in e.postings[:-1]) == Decimal(small().corrections_minor) / 100


def test_charges_are_dated_where_their_stretch_ends():
    """A price that ends within the month is booked on its last day, in the calendar of the price book."""
    text = SMALL.replace("from: 2026-01-01, mode", "from: 2026-11-16, mode").replace('version: "1"', 'version: "2"')
    text = text.replace("prices: [", 'prices: [{from: 2026-01-01, to: 2026-11-16, price: "1"}, ')
    entries, errors = load(text_of(replace(small(text), corrections=small().corrections[:0])))
    assert not errors
    dates = {(e.meta["sku"], e.date.isoformat()) for e in of_type(entries, Transaction)}
    assert dates == {("call", "2026-11-15"), ("node", "2026-11-30")}


def test_order_of_input_changes_nothing(monkeypatch):
    """Usage and corrections in another order, and rows written a few at a time, give the same bytes."""
    usage = usage_months.month(MONTH)
    made = statement(usage, SAMPLE)
    corrections = taken_back(made, list(range(0, len(made), 9)))
    first = text_of(Bill(statement=made, corrections=corrections))
    backwards = pa.array(range(len(usage) - 1, -1, -1))
    again = statement(usage.take(backwards), SAMPLE)
    turned = corrections.take(pa.array(range(len(corrections) - 1, -1, -1)))
    assert text_of(Bill(statement=again, corrections=turned)) == first
    monkeypatch.setattr(bill_module.Bill.pieces, "__defaults__", (5,))
    assert len(list(journal.pieces(Bill(statement=made, corrections=corrections), APIS))) > 50
    assert text_of(Bill(statement=made, corrections=corrections)) == first


def test_months_fit_in_one_ledger(tmp_path):
    """Journals of several months, and of other APIs, are included in one ledger without an error."""
    for name in ("2026-09", "2026-10", "2026-11"):
        journal.write(small(name=name, last=f"api-{name}"), tmp_path / f"{name}.beancount", APIS)
    main = tmp_path / "main.beancount"
    main.write_text("".join(f'include "2026-{n}.beancount"\n' for n in ("09", "10", "11")))
    entries, errors, _ = loader.load_file(str(main))
    assert not errors and len(of_type(entries, Open)) > 30
    lenient = 'option "tolerance_multiplier" "9"\n' + main.read_text()
    for number, line in enumerate(lines := (tmp_path / "2026-10.beancount").read_text().splitlines()):
        if line.startswith("  Expenses:"):
            (tmp_path / "2026-10.beancount").write_text("\n".join(changed(lines, number, 2, 1)))
            assert loader.load_string(lenient.replace('include "', f'include "{tmp_path}/'))[1], line


def test_one_apis_journal_has_its_own_sums():
    """With one API alone the total is that of its charges and corrections."""
    entries, errors = load(text_of(small(), "billing"))
    assert not errors
    (total,) = [e.amount for e in of_type(entries, Balance) if e.account == "Expenses:Gateway:2026-11"]
    mine = [Decimal(r["billed_cost"] or 0) for r in rows_of(small()) if r["api"] == "billing"]
    assert total.number == sum(mine) > 0


def test_a_month_of_nothing_is_a_journal():
    """No charges at all: a total of nothing is asserted."""
    bill = Bill(statement=statement(usage_months.usage([]), replace(SAMPLE, shared_costs=())))
    entries, errors = load(text_of(bill))
    assert not errors and len(bill) == 0
    assert {str(e.amount) for e in of_type(entries, Balance)} == {"0.00 EUR"}


def test_what_has_no_price_alone_is_a_journal():
    """A month that no price covers has its quantities and no transaction."""
    book = replace(SAMPLE, shared_costs=(), skus=())
    bill = Bill(statement=statement(usage_months.month(MONTH), book))
    entries, errors = load(text_of(bill))
    assert not errors and not of_type(entries, Transaction)
    assert len(of_type(entries, Custom)) == len(bill) > 0
    assert f"{len(bill)} of them have no price" in text_of(bill)


def test_a_currency_that_beancount_cannot_name_is_refused():
    """A currency outside Beancount's rules is an error before anything is written."""
    bill = Bill(statement=statement(usage_months.usage([]), replace(SAMPLE, currency="eur")))
    with pytest.raises(ValueError, match="'eur'"):
        text_of(bill)


def test_a_closed_month_says_so():
    """The heading tells whether the figures may still change."""
    assert "is not closed" in text_of(small())
    assert "is closed: these figures never change" in text_of(replace(small(), closed=True))


HOSTILE = [
    'a"b', "a\\", "\\", '\\"', "a\nb", "\n2026-11-30 * \"x\"\n  Expenses:Gateway:2026-11  9.00 EUR", "a\r\nb", "\t",
    "x\x00y", "\x1b[31mred", "\u202edetrever", "a\u2028b", "; comment", "  ", "", "*", "#tag ^link", '" "', "\\n",
    "\\u{a}", "\u00e9\u0301", "\U0001f600", "(no API)", "null", "TRUE", "Expenses:Gateway:2026-11:API", "x" * 3000,
    "\n" * 100, "{}%s{0}",
]  # fmt: skip


def test_hostile_names_stay_names():
    """Names from traffic, with quotes, line ends, controls or directives in them, are read back as what they are."""
    start = MONTH.starts[3]
    rows = [
        {
            "api": HOSTILE[(n + 1) % len(HOSTILE)], "consumer": name, "operation_id": name, "path_template": name,
            "route_id": name, "match_state": "matched", "calls": 5 + n, "minute_unix_s": start,
        }
        for n, name in enumerate(HOSTILE)
    ]  # fmt: skip
    bill = Bill(statement=statement(usage_months.usage(rows), prices.parse(SMALL)))
    apis = {name: ApiInfo(title=name, owner=name, team=name) for name in HOSTILE}
    text = b"".join(journal.pieces(bill, apis)).decode()
    entries, errors = load(text)
    assert not errors
    opened = [entry.meta["api"] for entry in of_type(entries, Open) if "api" in entry.meta]
    assert sorted(map(read_back, opened)) == sorted(HOSTILE)
    charges = {row["charge_id"]: row for row in bill.statement.charges.to_pylist()}
    postings = [p for e in of_type(entries, Transaction) for p in e.postings if "charge-id" in p.meta]
    assert len(postings) == sum(row["billed_cost"] is not None for row in charges.values())
    for posting in postings:
        row = charges[posting.meta["charge-id"]]
        for key, column in (("consumer", "consumer"), ("operation", "operation_id"), ("path", "path_template")):
            assert (key in posting.meta) == (row[column] is not None)
            assert row[column] is None or read_back(posting.meta[key]) == row[column]
    assert all(line.isprintable() for line in text.split("\n"))
    for name in HOSTILE:
        assert not load(b"".join(journal.pieces(bill, apis, name)).decode())[1], name


def read_back(text):
    return re.sub(r"\\u\{([0-9a-f]+)\}", lambda found: chr(int(found[1], 16)), text)
