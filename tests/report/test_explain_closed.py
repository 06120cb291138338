"""`apicost explain`: of closed months, of corrections, and the requests that a charge is for."""

import csv
import json
from pathlib import Path

import pytest

from apicost import cli
from apicost.commands import _closed
from apicost.store import compact
from apicost.store.catalogue import DAY_S
from apicost.store.lake import Lake
from tests.closing_ledgers import MONTHS, add, row, write_book
from tests.store.batches import exchange, table

SCOPED = {"api": "b", "consumer": "d", "operation_id": "y", "scope": "internet"}
AUGUST = [
    row("2026-08", day=3, api="a", consumer="c", operation_id="x", calls=900, downstream_out_wire_bytes=3 << 29),
    row("2026-08", day=9, **SCOPED, calls=1_700, downstream_out_wire_bytes=1 << 30),
]
LATE = [row("2026-08", day=9, **SCOPED, calls=400, downstream_out_wire_bytes=1 << 27)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """August closed; then late usage, and September closed with another price of tiers; then another rate of August."""
    folder = tmp_path_factory.mktemp("explained")
    write_book(folder / "prices.yaml")
    add(folder / "ledger", "first", AUGUST)
    assert run(folder, "close", "2026-08") == 0
    add(folder / "ledger", "late", LATE)
    write_book(folder / "prices.yaml", tier="2.02", version="2")
    assert run(folder, "close", "2026-09") == 0
    text = (
        (folder / "prices.yaml").read_text().replace('period: 2026-08, rate: "0.8642"', 'period: 2026-08, rate: "0.9"')
    )
    rates = 'fx:\n  - {from: USD, to: EUR, period: 2026-10, rate: "0.87", locked: true}\n'
    (folder / "prices.yaml").write_text(text.replace("fx:\n", rates))
    return folder


def run(folder, *arguments):
    where = ("--ledger", folder / "ledger", "--prices", folder / "prices.yaml")
    return cli.main([*map(str, (*arguments, *where))])


def rows_of(folder, month):
    path = folder / f"{month}.csv"
    assert run(folder, "export", "charges", "--month", month, "-o", path) == 0
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def explained(folder, capsys, charge, *more):
    capsys.readouterr()
    assert run(folder, "explain", charge["charge_id"], "--json", *more) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"]
    return found


def said(found, what):
    return [text for name, text in found["steps"] if name == what]


@pytest.mark.parametrize("month", ["2026-08", "2026-09", "2026-10"])
def test_every_row_of_a_bill_can_be_explained(made, capsys, month):
    """Charges of closed months, corrections in closed months and in the open one: each worked out again, the same."""
    charges = rows_of(made, month)
    assert charges
    for charge in charges:
        found = explained(made, capsys, charge)
        assert bool(said(found, "correction")) is (charge["charge_class"] == "Correction")


def test_a_correction_says_what_was_booked_and_why_it_is_another(made, capsys):
    """A price put right with late usage: the old quantity back with the charge that had it, the new one at the new."""
    august = rows_of(made, "2026-08")
    corrections = [c for c in rows_of(made, "2026-09") if c["charge_class"] and c["consumer"] == "d"]
    at = {c["unit_price"]: c for c in corrections if c["tier"] == "tier 1" and c["sku"] == "call"}
    original = next(
        c for c in august if (c["consumer"], c["tier"], c["sku"], c["unit_price"]) == ("d", "tier 1", "call", "1.01")
    )
    old = explained(made, capsys, at["1.01"])
    assert original["charge_id"] in said(old, "booked")[0] and original["quantity"] in said(old, "booked")[0]
    assert said(old, "now") == ["nothing at this price, with law 2"]
    assert "the price is no longer this one" in said(old, "why")[0]
    assert any("prices.yaml:" in text and "1.01" in text for text in said(old, "before: tier"))
    new = explained(made, capsys, at["2.02"])
    assert said(new, "booked") == ["nothing at this price"]
    assert "the price is this one now" in said(new, "why")[0]
    assert any("2.02" in text for text in said(new, "now: tier"))


def test_late_usage_and_rates_are_named(made, capsys):
    """Bytes that came late are said as usage, an exchange rate put right as a price."""
    late = next(
        c for c in rows_of(made, "2026-09") if c["charge_class"] and c["sku"] == "egress" and c["consumer"] == "d"
    )
    assert "usage: " in said(explained(made, capsys, late), "why")[0]
    again = [c for c in rows_of(made, "2026-10") if c["charge_class"] and c["sku"] == "egress" and c["consumer"] == "d"]
    assert {c["fx_rate"] for c in again} == {"0.8642", "0.9"}
    for charge in again:
        found = explained(made, capsys, charge)
        assert "the price is" in said(found, "why")[0] and "usage" not in said(found, "why")[0]
        if charge["fx_rate"] == "0.8642":  # booked in August, and corrected in September
            months = {text[-7:] for text in said(found, "booked")}
            assert months == {"2026-08", "2026-09"}


def test_a_correction_that_is_not_what_was_told_is_found(made, capsys, monkeypatch):
    """A correction whose amount is another than now less booked: exit 1."""
    charge = next(c for c in rows_of(made, "2026-10") if c["charge_class"] and c["sku"] == "egress")
    real = _closed.charges_about
    monkeypatch.setattr(_closed, "charges_about", lambda closed, about: real(closed, about).slice(0, 0))
    assert run(made, "explain", charge["charge_id"], "--month", "2026-10") == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_requests_of_a_charge_are_listed_while_they_are_kept(tmp_path, capsys):
    """Up to five of those with most bytes that have the charge's own keys; when they have gone, that is said."""
    write_book(tmp_path / "prices.yaml")
    at = MONTHS["2026-08"].starts[9] + 3_600
    own = {"api": "b", "operation_id": "y", "consumer": "d", "route_id": None, "path_template": None, "method": "GET"}
    requests = [
        exchange(**own, ended_s=at + n, downstream_out_wire_bytes=1_000 + n, request_id=f"r{n}", peer="192.0.2.1")
        for n in range(7)
    ]
    requests.append(exchange(**own, ended_s=at, downstream_out_wire_bytes=9_999, request_id="failed", status=500))
    keys = {"match_state": "matched", "method": "GET", "status_class": "2xx", "scope": "internet"}
    usage = [row("2026-08", day=9, **SCOPED, calls=7, downstream_out_wire_bytes=7_021) | keys]
    add(tmp_path / "ledger", "usage", usage)
    with Lake.open(tmp_path / "ledger") as lake:
        lake.commit(["exchanges"], {"exchanges": table(requests)})
    charge = next(c for c in rows_of(tmp_path, "2026-08") if c["sku"] == "call" and c["api"] == "b")
    samples = explained(tmp_path, capsys, charge)["samples"]
    assert [text.rpartition(" ")[2] for text in samples] == ["r6", "r5", "r4", "r3", "r2"]
    shared = next(c for c in rows_of(tmp_path, "2026-08") if c["tier"] == "idle")
    assert explained(tmp_path, capsys, shared)["samples"] == ["none: no usage bears this charge"]
    compact.compact(tmp_path / "ledger", now_unix_s=at + 40 * DAY_S, keep_days=(14, 1_000, 1_000))
    assert "none is left" in explained(tmp_path, capsys, charge)["samples"][0]


def test_a_charge_of_no_month_is_said(made, capsys):
    """An identity that no bill has: exit 2, with the months that were looked through."""
    assert run(made, "explain", "0" * 28) == 2
    assert "is no charge of 2026-10" in capsys.readouterr().err
    assert Path(made / "ledger" / "closed").is_dir()


def test_a_tier_that_is_shared_anew_is_no_other_price(tmp_path, capsys):
    """Where others' usage came late, a bearer's units move between tiers: the reason is tiers, not price or usage."""
    write_book(tmp_path / "prices.yaml")
    few = row("2026-08", day=3, api="a", consumer="e", operation_id="x", calls=900)
    more = row("2026-08", day=4, api="a", consumer="f", operation_id="x", calls=400)
    add(tmp_path / "ledger", "first", [few])
    assert run(tmp_path, "close", "2026-08") == 0
    add(tmp_path / "ledger", "late", [more])
    corrections = {
        (c["consumer"], c["tier"]): c for c in rows_of(tmp_path, "2026-09") if c["charge_class"] and c["sku"] == "call"
    }
    why = {at: said(explained(tmp_path, capsys, charge), "why")[0] for at, charge in corrections.items()}
    assert why["e", "tier 1"].startswith("tiers: ") and why["e", "tier 2"].startswith("tiers: ")
    assert why["f", "tier 1"] == why["f", "tier 2"] == "usage: 0.4 1000 Requests more than was booked"
