"""`apicost export` of a month too large to be held: the file is the same."""

import re
import sys

import pytest

from apicost.commands import _lots, _months, _terminal
from apicost.store import lots
from tests import usage_months
from tests.report.test_export_command import MONTH, make_ledger, run


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """A ledger with a month in about two hundred rows."""
    usage = usage_months.month(MONTH, seed=8, step_s=30 * 86_400)
    return make_ledger(tmp_path_factory.mktemp("lots") / "ledger", [usage])


@pytest.mark.parametrize(
    "options", [("usage",), ("charges",), ("charges", "--api", "shop"), ("usage", "--api", "shop")]
)
def test_a_month_too_large_to_be_held_is_the_same_file(ledger, tmp_path, monkeypatch, options):
    """Read, rated and written lot by lot: the bytes of the whole, and nothing left beside them."""
    assert run(ledger, *options, "-o", tmp_path / "whole.csv") == 0
    with monkeypatch.context() as patch:
        patch.setattr(_lots, "MOST_KEYS", 50)
        patch.setattr(lots.split, "__kwdefaults__", lots.split.__kwdefaults__ | {"lot_rows": 40})
        patch.setattr(_months, "read_rows", refuse_unlimited(_months.read_rows))
        patch.setattr(_months, "bill_of", refuse_unlimited(_months.bill_of))
        assert run(ledger, *options, "-o", tmp_path / "lots.csv") == 0
    assert (tmp_path / "lots.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lots.csv", "whole.csv"]


def refuse_unlimited(ask):
    """What is held whole has a limit in these exports."""

    def asked(*arguments, most=None, **more):
        assert most == 50
        return ask(*arguments, most=most, **more)

    return asked


def test_no_api_in_lots_is_no_file(ledger, tmp_path, monkeypatch):
    """An API without usage is told as for a month that is held whole."""
    monkeypatch.setattr(_lots, "MOST_KEYS", 50)
    assert run(ledger, "charges", "--api", "none", "-o", tmp_path / "none.csv") == 3
    assert not list(tmp_path.iterdir())


def test_a_terminal_is_told_what_is_read_rated_and_written(ledger, tmp_path, monkeypatch, capsys):
    """Rows so far, of how many where that is known, and how many a second; the last line has all; a pipe has none."""
    monkeypatch.setattr(_lots, "MOST_KEYS", 50)
    monkeypatch.setattr(_terminal, "_SHOWN_EVERY_S", 0)
    assert run(ledger, "charges", "-o", tmp_path / "c.csv") == 0
    rows = len((tmp_path / "c.csv").read_bytes().splitlines()) - 1  # without the header; no cell has a line break
    assert capsys.readouterr().err == f"{tmp_path / 'c.csv'}: {rows:,} rows\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(ledger, "charges", "-o", tmp_path / "c.csv") == 0
    told = capsys.readouterr().err
    for pattern in (
        r"\rapicost: reading 2026-11: [1-9][\d,]* rows, [1-9][\d,]* rows/s\x1b\[K",
        r"apicost: rating [1-9][\d,]* usage rows of 2026-11 with sample",
        rf"\rapicost: c\.csv: {rows:,} of {rows:,} rows \(100 %\), [1-9][\d,]* rows/s\x1b\[K\r\x1b\[K",
    ):
        assert re.search(pattern, told), pattern
