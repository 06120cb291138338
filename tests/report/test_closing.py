"""`apicost close` and `apicost verify`, and how every command shows a closed month: from a ledger on."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from apicost import cli
from apicost.catalog import prices
from apicost.commands import _closed, _closing
from apicost.core.rating import rate
from apicost.problems import InputError
from apicost.report.focus.settings import FocusSettings
from apicost.store import closed as store
from apicost.store import compact
from apicost.store.catalogue import LedgerError
from apicost.store.closed import closed_months
from apicost.store.lake import Lake
from apicost.store.query import Ledger
from tests.closing_ledgers import MONTHS, add, content, row, write_book
from tests.store.batches import completeness
from tests.usage_months import usage

ROOT = Path(__file__).parent.parent.parent
AUGUST = [
    row("2026-08", day=3, api="a", consumer="c", operation_id="x", calls=900, downstream_out_wire_bytes=3 << 29),
    row("2026-08", day=9, api="b", consumer="d", operation_id="y", calls=1_700, downstream_out_wire_bytes=1 << 30),
    row("2026-08", day=30, api=None, match_state="unattributed", calls=0, downstream_out_wire_bytes=5 << 20),
]
SEPTEMBER = [
    row("2026-09", day=2, api="a", consumer="c", operation_id="x", calls=77, downstream_out_wire_bytes=1 << 28)
]
LATE = [row("2026-08", day=9, api="b", consumer="d", operation_id="y", calls=400, downstream_out_wire_bytes=1 << 27)]
OPTIONS = ("--ledger", "ledger", "--prices", "prices.yaml")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """August closed, then late usage of it, then September closed with its correction."""
    folder = tmp_path_factory.mktemp("closed")
    write_book(folder / "prices.yaml")
    add(folder / "ledger", "first", [*AUGUST, *SEPTEMBER])
    with Lake.open(folder / "ledger") as lake:
        received = completeness((MONTHS["2026-09"].start_unix_s, "lines_received", 77))
        lake.commit(["counts"], {"completeness": received})
    run(folder, "close", "2026-08")
    add(folder / "ledger", "late", LATE)
    run(folder, "close", "2026-09")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """The same, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def run(folder, *arguments, options=OPTIONS):
    named = [str(folder / text) if text in ("ledger", "prices.yaml") else text for text in options]
    return cli.main([*map(str, arguments), *named])


def rows_of(folder, month, what="charges", *more):
    path = folder / f"{what}-{month}.csv"
    assert run(folder, "export", what, "--month", month, "-o", path, *more) == 0
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def billed(charges):
    return sum(Decimal(charge["billed_cost"] or 0) for charge in charges)


def test_late_usage_is_a_correction_in_the_next_month(made):
    """August's export keeps its total; September's has the correction, with its month, period and class; together
    they are what August would bill now."""
    august, september = rows_of(made, "2026-08"), rows_of(made, "2026-09")
    assert {charge["charge_class"] for charge in august} == {""}
    corrections = [charge for charge in september if charge["charge_class"] == "Correction"]
    assert {charge["billing_month"] for charge in corrections} == {"2026-09"}
    assert {charge["period_start"] for charge in corrections} == {"2026-07-31T22:00:00Z"}
    assert september[-len(corrections) :] == corrections
    now = rate.rate(usage([*AUGUST, *LATE]), book_of(made), MONTHS["2026-08"])
    assert billed(august) + billed(corrections) == Decimal(now.total)
    assert billed(corrections) != 0


def book_of(folder):
    return prices.load(folder / "prices.yaml")


def test_a_closed_month_is_shown_the_same_whatever_comes(copy, tmp_path):
    """With another price book, other owners, late usage, and a ledger that has forgotten all: the same bytes of
    charges, usage, usage by day and report."""
    before = shown(copy, tmp_path / "before")
    write_book(copy / "prices.yaml", price="9.99", tier="9", shared="1", team="others", version="3")
    add(copy / "ledger", "later", [row("2026-08", day=9, api="z", calls=10_000)])
    assert shown(copy, tmp_path / "priced") == before
    compact.compact(copy / "ledger", now_unix_s=1_900_000_000, keep_days=(0, 0, 0))
    assert shown(copy, tmp_path / "forgotten") == before
    assert run(copy, "verify") == 0


def shown(folder, out):
    """Everything that commands write of the closed August and September."""
    for month in ("2026-08", "2026-09"):
        target = out / month
        formats = "html,csv,json" if month == "2026-09" else "csv"
        assert run(folder, "report", "--month", month, "--out", target, "--format", formats) == 0
        for what, more in (("charges", ()), ("usage", ()), ("usage", ("--by", "day"))):
            name = f"{what}{''.join(more)}.csv"
            assert run(folder, "export", what, "--month", month, "-o", target / name, *more) == 0
    return content(out)


def test_closing_changes_nothing_of_what_was_exported_before(tmp_path):
    """Charges, usage and days of a month are the same bytes the minute before it is closed and after."""
    write_book(tmp_path / "prices.yaml")
    add(tmp_path / "ledger", "first", AUGUST)
    files = ("charges.csv", "usage.csv", "days.csv")
    for out in ("before", "after"):
        assert run(tmp_path, "report", "--month", "2026-08", "--out", tmp_path / out) == 0
        run(tmp_path, "close", "2026-08")
    assert [(tmp_path / "before" / f).read_bytes() for f in files] == [
        (tmp_path / "after" / f).read_bytes() for f in files
    ]


REFUSED = {
    "not ended": ("2027-01", {}, "ends at"),
    "closed already": ("2026-09", {}, "closed already"),
    "out of order": ("2026-07", {}, "in order"),
    "with a gap": ("2026-11", {}, "close 2026-10"),
    "no month": ("2026-13", {}, "is not a month"),
    "another currency": ("2026-10", {"currency": "USD"}, "was closed with EUR"),
    "another scale": ("2026-10", {"scale": "3"}, "was closed with 2"),
    "another time zone": ("2026-10", {"zone": "UTC"}, "was closed with Europe/Berlin"),
    "prices forgotten": ("2026-10", {"since": "2026-10-01"}, "call has no price on 2026-08-01"),
    "a shared cost forgotten": ("2026-10", {"shared": ""}, "node has no amount in 2026-08"),
    "a commitment forgotten": ("2026-10", {"committed": ""}, "commitment of c has no minimum in 2026-08"),
    "a rate that may change": ("2026-10", {"rate": "2026-09"}, "is not locked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_closed(copy, name, capsys, monkeypatch):
    """Each says place, effect and fix, exits with 2, and leaves the folder as it was."""
    month, change, words = REFUSED[name]
    text = (copy / "prices.yaml").read_text()
    swaps = {
        "currency": [("currency: EUR", "currency: USD"), ("from: USD, to: EUR", "from: EUR, to: USD")],
        "scale": [("scopes:", "rounding: {statement_scale: 3}\nscopes:")],
        "zone": [("Europe/Berlin", "UTC")],
        "shared": [("period: monthly,", "period: monthly, from: 2026-10-01,")],
        "committed": [("kind: commitment,", "kind: commitment, from: 2026-10-01,")],
        "since": [("from: 2026-07-10", "from: 2026-10-01")],
        "rate": [('period: 2026-09, rate: "0.8642", locked: true', 'period: 2026-09, rate: "0.87", locked: false')],
    }
    for key in change:
        for old, new in swaps[key]:
            assert old in text
            text = text.replace(old, new)
    rates = 'fx:\n  - {from: USD, to: EUR, period: 2026-10, rate: "0.87", locked: true}\n'
    text = text.replace("fx:\n", rates if "currency" not in change else rates.replace("USD, to: EUR", "EUR, to: USD"))
    (copy / "prices.yaml").write_text(text)
    monkeypatch.setattr("time.time", lambda: 1_798_000_000)  # 2026-12-23
    before = content(copy / "ledger" / "closed")
    assert run(copy, "close", month) == 2
    told = capsys.readouterr().err
    assert words in told and "effect: " in told and "fix: " in told
    assert content(copy / "ledger" / "closed") == before


def test_a_damaged_ledger_is_not_closed(tmp_path, capsys):
    """A segment whose bytes have changed, though not their number, is found, and nothing is closed upon it."""
    write_book(tmp_path / "prices.yaml")
    add(tmp_path / "ledger", "first", AUGUST)
    segment = next((tmp_path / "ledger" / "segments").glob("*/*.parquet"))
    flip(segment)
    assert run(tmp_path, "close", "2026-08") == 2
    assert segment.name in capsys.readouterr().err
    assert not list((tmp_path / "ledger" / "closed").glob("2026*"))


def flip(path, at=None):
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_an_empty_month_is_closed(tmp_path, capsys):
    """A month without usage closes with its fixed costs, and late usage of it is corrected like any other."""
    write_book(tmp_path / "prices.yaml")
    add(tmp_path / "ledger", "first", SEPTEMBER)
    assert run(tmp_path, "close", "2026-08") == 0
    assert "no usage in 2026-08" in capsys.readouterr().err
    add(tmp_path / "ledger", "late", AUGUST)
    assert run(tmp_path, "close", "2026-09") == 0
    assert run(tmp_path, "verify") == 0
    charges = [c for m in ("2026-08", "2026-09") for c in rows_of(tmp_path, m) if c["period_start"] < "2026-08-31T22"]
    assert billed(charges) == Decimal(rate.rate(usage(AUGUST), book_of(tmp_path), MONTHS["2026-08"]).total)


def test_verify_finds_each_file_that_was_touched(copy, capsys):
    """A byte changed in any file of any month, a file too many and one too few: exit 1, and the file is named."""
    assert run(copy, "verify") == 0
    for path in sorted((copy / "ledger" / "closed").glob("*/*")):
        good = path.read_bytes()
        for at in (len(good) // 2, -1):
            flip(path, at)
            capsys.readouterr()
            assert run(copy, "verify") == 1, f"{path} at {at}"
            assert path.name in capsys.readouterr().out
            path.write_bytes(good)
        path.rename(path.with_suffix(".away"))
        assert run(copy, "verify") == 1
        assert path.name in capsys.readouterr().out
        path.with_suffix(".away").rename(path)
    assert run(copy, "verify") == 0
    (copy / "ledger" / "closed" / "2026-08" / "notes.txt").write_text("was here")
    assert run(copy, "verify", "2026-08") == 1
    assert "notes.txt: was not there" in capsys.readouterr().out


def test_verify_finds_a_manifest_that_was_sealed_anew(copy, capsys):
    """Whoever changes a total and the checksums with it is found by the chain, by rating again, and by the checksum
    that was noted when the month was closed."""
    noted = closed_months(copy / "ledger")[0].sha256
    path = copy / "ledger" / "closed" / "2026-08" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["totals"]["billed_cost"] = "1.00"
    manifest.pop("seal_sha256")
    path.chmod(0o644)
    path.write_bytes(store._sealed(manifest))
    assert run(copy, "verify", "2026-08", "--sha256", noted) == 1
    told = capsys.readouterr().out
    assert "billed_cost 1.00, and rating again gives" in told and f"not {noted}" in told
    assert run(copy, "verify", "2026-09") == 1
    assert "chain: follows 2026-08" in capsys.readouterr().out


def test_verify_finds_a_word_that_no_figure_depends_on(copy, capsys):
    """What nothing else is worked out from, such as the time of closing or an owner, is under the manifest's seal."""
    path = copy / "ledger" / "closed" / "2026-09" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.chmod(0o644)
    path.write_text(path.read_text().replace(manifest["closed_at"], "2026-10-01T08:00:00Z"))
    assert run(copy, "verify") == 1
    assert "its seal is of another content" in capsys.readouterr().out


def test_owners_of_a_closed_month_are_those_of_its_closing(tmp_path, capsys):
    """Whoever an API belongs to now, a closed month's exports and FOCUS files name those of then; an invoice number
    comes later and is shown."""
    write_book(tmp_path / "prices.yaml", team="null")
    text = (tmp_path / "prices.yaml").read_text()
    (tmp_path / "prices.yaml").write_text("\n".join(x for x in text.splitlines() if not x.startswith("tags:")) + "\n")
    add(tmp_path / "ledger", "first", AUGUST)
    settings = tmp_path / "apicost.yaml"

    def configure(team, name, invoice):
        settings.write_text(
            f"state_dir: {tmp_path}\nprices: prices.yaml\napis: [{{id: a, team: {team}}}]\n"
            f"focus: {{service_name: {name}, invoice_id: '{invoice}'}}\n"
        )

    def shown(what):
        path = tmp_path / f"{what}.csv"
        assert cli.main(["export", what, "--month", "2026-08", "-c", str(settings), "-o", str(path)]) == 0
        with open(path, newline="") as stream:
            return list(csv.DictReader(stream))

    configure("then", "Then", "")
    assert cli.main(["close", "2026-08", "-c", str(settings)]) == 0
    configure("now", "Now", "I-7")
    assert {c["team"] for c in shown("charges")} == {"then", ""}
    focus = shown("focus")
    assert {row["ServiceName"] for row in focus} == {"Then"}
    assert {row["InvoiceId"] for row in focus} == {"I-7"}


def test_verify_finds_a_month_that_was_taken_out(copy, capsys):
    """Without August, September's manifest names a month that is not there."""
    shutil.rmtree(copy / "ledger" / "closed" / "2026-08")
    assert run(copy, "verify") == 1
    assert "chain: follows 2026-08, and no month before 2026-09 is there" in capsys.readouterr().out


def test_verify_says_what_today_would_correct(copy, capsys):
    """A price put right is news, no difference: rows and amount by month, and where they are booked."""
    write_book(copy / "prices.yaml", tier="2.02")
    assert run(copy, "verify", "--json") == 0
    found = json.loads(capsys.readouterr().out)["months"]
    assert [month["good"] for month in found] == [True, True]
    assert [month["would_correct"]["in"] for month in found] == ["2026-10", "2026-10"]
    now = rate.rate(usage([*AUGUST, *LATE]), book_of(copy), MONTHS["2026-08"])
    august, september = rows_of(copy, "2026-08"), rows_of(copy, "2026-09")
    booked = billed(august) + billed([c for c in september if c["charge_class"]])
    assert Decimal(found[0]["would_correct"]["billed_cost"]) == Decimal(now.total) - booked != 0


def test_a_program_that_rates_otherwise_shows_no_closed_month(copy, capsys, monkeypatch):
    """Where this version comes to other charges than those that were booked, it says so and exits with 2."""
    monkeypatch.setattr("apicost.core.rating.rate.IDLE", "idle in other words")
    assert run(copy, "export", "charges", "--month", "2026-08", "-o", copy / "c.csv") == 2
    told = capsys.readouterr().err
    assert "reason idle in other words, not kept unallocated" in told and "never changes" in told
    assert run(copy, "verify", "2026-08") == 1


def test_usage_after_the_ledger_forgot_is_left_out_and_said(copy, capsys):
    """Of days that the ledger has forgotten what was booked stands; usage that comes for other days is corrected."""
    compact.compact(copy / "ledger", now_unix_s=MONTHS["2026-08"].starts[9], keep_days=(0, 0, 0))
    add(copy / "ledger", "later", [row("2026-08", day=20, api="b", consumer="d", calls=1_000)])
    write_book(copy / "prices.yaml")
    text = (copy / "prices.yaml").read_text()
    rates = 'fx:\n  - {from: USD, to: EUR, period: 2026-10, rate: "0.87", locked: true}\n'
    (copy / "prices.yaml").write_text(text.replace("fx:\n", rates))
    corrections = [c for c in rows_of(copy, "2026-10") if c["charge_class"] == "Correction"]
    assert "the ledger knows less of 1 days of 2026-08" in capsys.readouterr().err
    assert sum(Decimal(c["quantity"]) for c in corrections if c["sku"] == "call") == Decimal(1)  # 1000 requests
    assert run(copy, "close", "2026-10") == 0  # with what is known of August by ledger and folder together
    assert run(copy, "verify") == 0
    assert "today's ledger" not in capsys.readouterr().out


KILLED = """
import os, signal, sys
from apicost import cli
from apicost.catalog import prices
from apicost.store import closed
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
{where}
cli.main(sys.argv[1:])
"""
PLACES = {
    "while files are written": "closed.write_charges = die",
    "before the rename": "closed.os.rename = die",
    "right after the rename": "real = closed.os.rename; closed.os.rename = lambda *a: (real(*a), die())",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_closing_leaves_the_month_or_nothing(place, tmp_path):
    """Killed anywhere, the month is there whole or not at all; closing again finishes it, or says that it is done."""
    write_book(tmp_path / "prices.yaml")
    add(tmp_path / "ledger", "first", AUGUST)
    arguments = ["close", "2026-08", "--ledger", tmp_path / "ledger", "--prices", tmp_path / "prices.yaml"]
    code = KILLED.format(where=PLACES[place])
    ended = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    folder = tmp_path / "ledger" / "closed" / "2026-08"
    there = place == "right after the rename"
    assert folder.exists() is there
    assert run(tmp_path, "close", "2026-08") == (2 if there else 0)
    assert run(tmp_path, "verify") == 0
    assert not list(folder.parent.glob("*.tmp"))


def test_nothing_opens_a_closed_month(capsys):
    """There is no command `reopen`, and no option of `close` that does it."""
    assert cli.main(["reopen", "2026-08"]) == 2
    assert "reopen" not in cli.usage()
    with pytest.raises(SystemExit):
        cli.main(["close", "--help"])
    assert not {"--force", "--overwrite", "--reopen"} & set(capsys.readouterr().out.split())


def test_a_month_that_is_closed_twice_at_once_is_closed_once(copy, made):
    """While one process closes, another is refused."""
    with store.closing(copy / "ledger"), pytest.raises(LedgerError, match="another process"):  # noqa: SIM117
        with store.closing(copy / "ledger"):
            pass


def test_corrections_without_a_change_cost_no_rating(copy, monkeypatch):
    """Where usage and terms are those that were booked, nothing is rated: a book with a new version is no change."""
    book = book_of(copy)
    monkeypatch.setattr(_closed, "statement_of", lambda *_: pytest.fail("a closed month was rated"))
    monkeypatch.setattr(_closed, "present_usage", lambda *_: pytest.fail("usage of a closed month was read"))
    with Ledger.open(copy / "ledger") as ledger:
        months = closed_months(copy / "ledger")
        assert not len(_closed.corrections(ledger, months, book).rows)
    compact.compact(copy / "ledger", now_unix_s=MONTHS["2026-09"].end_unix_s)
    with Ledger.open(copy / "ledger") as ledger:
        assert not len(_closed.corrections(ledger, months, book).rows)


def test_closing_refuses_a_broken_chain(copy):
    """A month is not closed upon one that was touched."""
    flip(copy / "ledger" / "closed" / "2026-08" / "usage.parquet")
    broken = pytest.raises(InputError, match=r"usage\.parquet: is not what was written")
    with Ledger.open(copy / "ledger") as ledger, broken:
        _closing.close(ledger, "2026-10", book_of(copy), {}, FocusSettings(), now_unix_s=1_900_000_000)
