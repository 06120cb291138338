"""The worked example of docs/reconcile.md is what the command prints."""

import re
from pathlib import Path

from apicost import cli
from tests.reconcile.made import BERLIN
from tests.report.test_monthly import make_ledger
from tests.usage_months import usage

PAGE = (Path(__file__).parent.parent.parent / "docs/reconcile.md").read_text()
GIB = 1 << 30


def block(name):
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w*\n(.*?)```\n", PAGE, re.DOTALL)
    assert found, name
    return found[1]


def row(start, scope, gib, state="matched", calls=0):
    return {"minute_unix_s": start, "scope": scope, "match_state": state, "calls": calls, "api": "shop",
            "downstream_out_wire_bytes": gib * GIB}  # fmt: skip


def test_the_worked_example_is_what_the_command_prints(tmp_path, capsys, monkeypatch):
    """From its ledger, book, bill and rules; to the letter."""
    monkeypatch.chdir(tmp_path)
    make_ledger(tmp_path / "ledger", [
        usage([
            row(BERLIN.start_unix_s + 600, "internet", 5),
            row(BERLIN.starts[9], "internet", 1995, calls=40_000_000),
            row(BERLIN.starts[9], "inter-zone", 300),
            row(BERLIN.starts[9], "internet", 12, "unattributed"),
            row(BERLIN.end_unix_s + 600, "internet", 8),
        ])
    ])  # fmt: skip
    for name in ("prices.yaml", "bill.csv", "reconcile.yaml"):
        (tmp_path / name).write_text(block(name))
    code = cli.main([
        "reconcile", "--ledger", "ledger", "--prices", "prices.yaml", "--bill", "bill.csv", "--rules",
        "reconcile.yaml", "--month", "2026-11", "--tolerance", "1%",
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 1
    assert printed == block("output"), printed
