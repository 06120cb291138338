"""`apicost export focus` looks at what it writes."""

from __future__ import annotations

import csv
from fractions import Fraction

import pytest

from apicost import cli
from apicost.core.rating.period import month
from apicost.store.lake import Lake
from tests import usage_months

BOOK = """
pricebook: {id: acme, version: '1', currency: %s, calendar: {time_zone: UTC}}
skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: '0.0012'}]}}
shared_costs: [{id: nodes, amount: '10.00', period: monthly, method: by-weight, weights: {calls: '1'},
  fallback_when_zero: unallocated}]
"""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("focus") / "ledger"
    usage = usage_months.month(month("2026-10", "UTC"), seed=3, step_s=10 * 86_400)
    with Lake.open(folder) as lake:
        lake.commit(["in-1"], {"usage": usage})
    return folder


def run(ledger, folder, currency, *more, config="{}"):
    (folder / "prices.yaml").write_text(BOOK % currency)
    (folder / "apicost.yaml").write_text(config)
    common = ["export", "focus", "--month", "2026-10", "--ledger", ledger, "--prices", folder / "prices.yaml"]
    return cli.main([str(a) for a in (*common, "-c", folder / "apicost.yaml", "-o", folder / "f.csv", *more)])


def test_rules_that_are_broken_are_told(ledger, tmp_path, capsys):
    """A control character in a name: the file is written, rule, column, effect and fix are told, and exit is 1."""
    assert run(ledger, tmp_path, "EUR", config='focus: {service_name: "API\\x07"}') == 1
    said = capsys.readouterr().err
    assert "ServiceName 'API\\x07'" in said and "text-control" in said and "fix: remove them, or write %XX" in said
    assert (tmp_path / "f.csv").stat().st_size > 1000


def test_what_is_right_says_what_it_left_out(ledger, tmp_path, capsys):
    """No finding, exit 0; what has no price is counted with its reason."""
    assert run(ledger, tmp_path, "EUR") == 0
    said = capsys.readouterr().err
    assert "charges without a price have no row in FOCUS" in said and "fix:" not in said


def test_names_of_the_configuration_are_written(ledger, tmp_path, capsys):
    """The account is that of apicost.yaml; that it is a number is a warning, as readers guess."""
    assert run(ledger, tmp_path, "EUR", config="focus: {billing_account_id: 4711, provider_name: Platform}") == 0
    with open(tmp_path / "f.csv", newline="") as stream:
        (row, *_) = csv.DictReader(stream)
    assert (row["BillingAccountId"], row["ProviderName"], row["InvoiceIssuerName"]) == ("4711", "Platform", "acme")
    assert "text-guessed" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["1.2", "1.4"])
def test_the_rows_of_one_api_are_a_part_of_the_right_file(ledger, tmp_path, capsys, version):
    """Only that API's rows are written; what must hold of all of them is still looked at, and does."""
    assert run(ledger, tmp_path, "EUR", "--api", "shop", "--focus-version", version) == 0
    with open(tmp_path / "f.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["x_Api"] for row in rows} == {"shop"}
    assert sum(Fraction(row["BilledCost"]) for row in rows) > 0
    assert "allocated-ratio" not in capsys.readouterr().err
