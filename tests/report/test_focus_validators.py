"""What others' validators say of the FOCUS files: the official one of 1.2, and focus-data-toolkit of 1.4."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from apicost.report.focus import lint_files
from tests.report import focus_months

ROOT = Path(__file__).parents[2]
loader = SourceFileLoader("focus_check", str(ROOT / "deploy/focus-check"))
focus_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("focus_check", loader))
loader.exec_module(focus_check)

PASSED = 284  # of 578 rules: the validator has no check for the others, or a gateway has nothing of theirs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The sample month and the month of every kind, in both versions, as CSV."""
    return {file.stem: file for file in focus_months.write(tmp_path_factory.mktemp("focus"))}


def spoilt(source, target, changes):
    """A file with other values: (row from 1, column) -> value."""
    with open(source, newline="", encoding="utf-8") as stream:
        found = list(csv.reader(stream))
    for (row, name), value in changes.items():
        found[row][found[0].index(name)] = value
    with open(target, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(found)
    return target


@pytest.fixture(scope="module")
def official(files, tmp_path_factory):
    """The official validator's results for a month, and for one with faults that it should find or lets pass."""
    program = focus_check.validator()
    if program is None:
        pytest.skip("the official FOCUS validator is not installed: deploy/focus-check install, with a Python 3.12")
    with open(files["focus-1.2-every-kind"], newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    at = next(n for n, row in enumerate(rows, 1) if row["SkuId"] == "inside" and len(row["ListCost"]) > 12)
    faults = {
        (at, "ListCost"): rows[at - 1]["ListCost"][:11],
        (at + 1, "Tags"): '{"team":{"name":"shop"}}',
        (at + 2, "ChargePeriodStart"): "2026-10-01T00:00:00+02:00",
        (at + 3, "BilledCost"): "",
    }  # fmt: skip
    bad = spoilt(files["focus-1.2-every-kind"], tmp_path_factory.mktemp("bad") / "bad.csv", faults)
    given = {"every-kind": files["focus-1.2-every-kind"], "bad": bad}
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda path: focus_check.validate(path, program), given.values())
        return dict(zip(given, results, strict=True)), bad, faults


def test_the_official_validator_accepts_1_2(official):
    """No rule fails but the one of two alternatives that can't pass, and as many pass as ever did."""
    results = official[0]["every-kind"]
    assert focus_check.failed(results) == []
    assert [rule for rule, result in results.items() if result[0] == "FAIL"] == ["InvoiceId-C-005-C"]
    assert sum(result[0] == "PASS" for result in results.values()) == PASSED


def test_the_linter_names_what_the_official_validator_passes(official):
    """A cost cut short, nested tags and a time with an offset pass there, no billed cost does not; here none does."""
    results, bad, faults = official
    failed = focus_check.failed(results["bad"])
    assert "BilledCost-C-003-M" in failed and {rule.split("-")[0] for rule in failed} <= {"BilledCost", "CostAndUsage"}
    found, _ = lint_files.lint_file(bad, "1.2")
    assert {(f.row, f.column) for f in found if f.rule.is_error} >= set(faults)


def toolkit(file):
    command = [str(Path(sys.executable).parent / "focus-toolkit"), "validate", str(file), "--dataset", "cost-and-usage"]
    supports = ["--supports", "SupportsUnitPricing", "--supports", "SupportsMultiplePricingCategories"]
    return subprocess.run([*command, *supports], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["sample", "every-kind"])
def test_the_toolkit_accepts_1_4(files, name):
    """Structure and rules between the cells of a row, with unit prices declared."""
    run = toolkit(files[f"focus-1.4-{name}"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert "structural+semantic lint OK" in run.stdout


def test_the_toolkit_finds_faults(files, tmp_path):
    """It does look: a usage row without a SKU is refused."""
    bad = spoilt(files["focus-1.4-every-kind"], tmp_path / "bad.csv", {(9, "SkuId"): "", (9, "SkuPriceId"): ""})
    assert toolkit(bad).returncode != 0


def test_what_can_not_pass_is_one_of_two():
    """One of the two rules of InvoiceId may fail, not both, and no other."""
    good, bad = ("PASS", 0, ""), ("FAIL", 3, "")
    assert focus_check.failed({"InvoiceId-C-004-C": bad, "InvoiceId-C-005-C": good}) == []
    assert focus_check.failed({"InvoiceId-C-004-C": bad, "InvoiceId-C-005-C": bad}) == ["InvoiceId-C-005-C"]
    assert focus_check.failed({"InvoiceId-C-005-C": bad, "ListCost-C-009-C": bad}) == ["ListCost-C-009-C"]


def test_without_python_3_12_it_says_what_is_missing(monkeypatch, tmp_path, capsys):
    """Exit 3, what can't run and how to name an interpreter; nothing is made."""
    monkeypatch.setattr(focus_check, "python", lambda: None)
    monkeypatch.setattr(focus_check, "ENVIRONMENT", tmp_path / "none")
    assert focus_check.install() == 3
    assert "FOCUS_PYTHON=" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_validator_that_breaks_is_no_success(tmp_path):
    """A program that prints no total, or fewer rules than it counts, did not validate."""
    for said in ("", "Total: 2 | Pass: 1\nX A-1: PASS  (violations=0, 1ms)"):
        folder = tmp_path / str(len(said))
        (folder / "bin").mkdir(parents=True)
        (folder / "lib/python3.12/site-packages").mkdir(parents=True)
        program = folder / "bin/focus-validator"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
        program.chmod(0o755)
        with pytest.raises(RuntimeError, match="did not finish"):
            focus_check.validate(tmp_path / "f.csv", program)
