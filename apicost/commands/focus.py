"""`apicost focus`: files of FOCUS, the FinOps Foundation's cost and usage columns."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from apicost.problems import InputError, Problem
from apicost.report.focus.columns import VERSIONS
from apicost.report.focus.lint import Finding
from apicost.report.focus.lint_files import UnreadableError, lint_file, version_of
from apicost.report.focus.lint_rules import RULES

DESCRIPTION = """Check a FOCUS cost-and-usage file, CSV or Parquet, against the rules of its version and against what
validators of FOCUS let pass: costs that are not quantity x price to the last digit, times that are not UTC, nested
tags, numbers that a reader takes for others. `apicost export focus` writes such files.

  lint FILE    each problem with rule, row, column, effect and fix"""

EPILOG = """examples:
  apicost focus lint focus-2026-10.csv
  apicost focus lint focus.parquet --focus-version 1.4 --total 1325.20
  apicost focus lint focus.csv --json | jq '.findings[].rule'

exit codes: 0 nothing wrong but warnings, 1 something is wrong, 2 an option is wrong or the file can't be read"""


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost focus", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", choices=("lint",))
    parser.add_argument("file", type=Path, metavar="FILE", help="CSV in UTF-8, or Parquet")
    parser.add_argument("--focus-version", choices=VERSIONS, help="default: by its columns")
    parser.add_argument("--total", metavar="AMOUNT", help="what BilledCost must sum to, such as 1325.20")
    parser.add_argument("--json", action="store_true", help="findings as one JSON object on standard output")
    options = parser.parse_args(argv)
    try:
        version = options.focus_version or version_of(options.file)
        findings, rows = lint_file(options.file, version, options.total)
    except OSError as failure:
        raise _error(str(options.file), f"can't be read: {failure.strerror}", "nothing is checked",
                            "name a file that can be read") from None  # fmt: skip
    except UnreadableError as failure:
        raise _error(str(options.file), f"is neither CSV in UTF-8 nor Parquet: {failure}",
                            "nothing is checked", "write it as CSV or Parquet") from None  # fmt: skip
    except ValueError:
        raise _error("--total", f"{options.total!r} is not an amount", "nothing is checked",
                            "write a plain decimal, such as 1325.20") from None  # fmt: skip
    errors = sum(finding.count for finding in findings if finding.rule.is_error)
    warnings = sum(finding.count for finding in findings if not finding.rule.is_error)
    if options.json:
        print(
            json.dumps(_as_json(options.file, version, findings, rows, errors, warnings), indent=1, ensure_ascii=False)
        )
    else:
        for finding in findings:
            print(f"{options.file}: {'' if finding.rule.is_error else 'warning: '}{finding}")
    said = f"{rows:,} rows, {len(RULES)} rules of FOCUS {version}"
    print(f"{options.file}: {said}: {errors:,} errors, {warnings:,} warnings", file=sys.stderr)
    return 1 if errors else 0


def _as_json(
    file: Path, version: str, findings: tuple[Finding, ...], rows: int, errors: int, warnings: int
) -> dict[str, object]:
    listed = [
        asdict(finding) | {
            "rule": finding.rule.id, "level": "error" if finding.rule.is_error else "warning",
            "meaning": finding.rule.meaning, "effect": finding.rule.effect, "fix": finding.rule.fix,
        }
        for finding in findings
    ]  # fmt: skip
    return {
        "file": str(file), "focus_version": version, "rows": rows, "errors": errors,
        "warnings": warnings, "findings": listed,
    }  # fmt: skip


def _error(place: str, fact: str, effect: str, fix: str) -> InputError:
    return InputError([Problem(place=place, fact=fact, effect=effect, fix=fix)])
