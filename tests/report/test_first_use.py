"""What the commands say to somebody who has not used them before: places, fixes and causes that are true."""

import re

import pytest

from apicost import cli
from tests.closing_ledgers import add, row, write_book

AUGUST = [row("2026-08", day=3, consumer="c", operation_id="x", calls=900, downstream_out_wire_bytes=3 << 30)]
SEPTEMBER = [row("2026-09", day=3, consumer="c", operation_id="x", calls=900, downstream_out_wire_bytes=3 << 30)]


@pytest.fixture
def folder(tmp_path):
    """A ledger and a price book, nothing closed."""
    add(tmp_path / "ledger", "first", [*AUGUST, *SEPTEMBER])
    return tmp_path


def run(folder, *arguments, ledger="ledger", **changed):
    book = write_book(folder / "prices.yaml", **changed)
    return cli.main([*map(str, arguments), "--ledger", str(folder / ledger), "--prices", str(book)])


def test_a_refused_closing_names_the_given_book(folder, capsys):
    """The place is the file that can be mended, not the copy that goes away."""
    assert run(folder, "close", "2026-05") == 2
    told = capsys.readouterr().err
    assert f"{folder / 'prices.yaml'}:" in told and ".tmp" not in told


def test_nothing_is_said_of_a_month_before_the_ledger(folder, capsys):
    """No exchange rate is asked for where there is no usage to compare."""
    (folder / "ledger2").mkdir()
    text = write_book(folder / "prices.yaml").read_text()
    (folder / "p.yaml").write_text("".join(x for x in text.splitlines(True) if "period: 2026-07" not in x))
    arguments = ["report", "--month", "2026-08", "--out", folder / "r"]
    named = ["--ledger", folder / "ledger", "--prices", folder / "p.yaml"]
    assert cli.main([str(part) for part in [*arguments, *named]]) == 0
    assert "not compared" not in capsys.readouterr().err
    add(folder / "ledger", "july", [row("2026-07", day=3, calls=5, downstream_out_wire_bytes=1 << 30)])
    assert cli.main([str(part) for part in [*arguments, *named]]) == 0
    assert "not compared with 2026-07" in capsys.readouterr().err


def test_a_wrong_day_is_told_with_its_fix(folder, capsys):
    """--as-of says what to write, as --month does."""
    assert run(folder, "report", "--month", "2026-08", "--as-of", "2026-8-10", "--out", folder / "r") == 2
    assert "fix: write YYYY-MM-DD" in capsys.readouterr().err


def test_a_missing_ledger_is_named_once(folder, capsys):
    """The place stands before the fact alone."""
    assert run(folder, "report", "--month", "2026-08", "--out", folder / "r", ledger="nope") == 2
    assert capsys.readouterr().err.count(str(folder / "nope")) == 1


def test_a_cut_checksum_is_a_wrong_option(folder, capsys):
    """Part of a checksum is not said to be a month that was forged; with no month closed, close one."""
    assert run(folder, "verify") == 2
    assert "fix: close one" in capsys.readouterr().err
    assert run(folder, "close", "2026-08") == 0
    assert run(folder, "verify", "2026-08", "--sha256", "4be1") == 2
    assert run(folder, "verify", "2026-08", "--sha256", "0" * 64) == 1
    assert "1 difference;" in capsys.readouterr().out


def test_an_option_that_was_not_given_is_not_to_be_removed(folder, capsys):
    """A journal by the name of a CSV file is told its right name."""
    assert run(folder, "export", "journal", "--month", "2026-08", "-o", folder / "j.csv") == 2
    told = capsys.readouterr().err
    assert "j.beancount" in told and "--format" not in told


def test_a_shortfall_is_no_share(folder, capsys):
    """What moved of (no API) is what usage falls short of commitments."""
    assert run(folder, "close", "2026-08", minimum="100") == 0
    text = folder / "r"
    assert run(folder, "report", "--month", "2026-09", "--out", text, minimum="100") == 0
    add(folder / "ledger", "more", [row("2026-09", day=4, consumer="c", operation_id="x", calls=30_000)])
    assert run(folder, "report", "--month", "2026-09", "--out", text, minimum="100") == 0
    page = (text / "report.html").read_text()
    assert "smaller shortfalls of commitments" in page


def test_the_month_to_close_next_can_be_looked_at_before(folder, capsys):
    """Its fixed costs are billed without any usage: the report shows what closing would book; a month further on has
    nothing to show."""
    add(folder / "june", "first", [row("2026-06", day=3, consumer="c", operation_id="x", calls=900)])

    def ask(*arguments):
        return run(folder, *arguments, ledger="june", minimum="0")

    assert ask("close", "2026-06") == 0
    assert ask("report", "--month", "2026-07", "--out", folder / "r") == 0
    (cost,) = re.findall(r"2026 the gateway's APIs cost ([\d.,]+) EUR", capsys.readouterr().err)
    assert float(cost) > 0
    assert "largest API" not in (folder / "r" / "report.html").read_text()
    assert ask("export", "charges", "--month", "2026-07", "-o", folder / "c.csv") == 0
    assert ask("report", "--month", "2026-08", "--out", folder / "r") == 3
    capsys.readouterr()
    assert ask("close", "2026-07") == 0
    assert f"total        {cost} EUR" in capsys.readouterr().out
