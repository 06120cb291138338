"""`apicost spec lint`: what in OpenAPI documents makes the naming of requests unsafe."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from apicost.catalog.faults import LINT_RULES
from apicost.catalog.lint import lint
from apicost.core.conformance.contract import DocumentFault
from apicost.core.conformance.finding import ERROR, SEVERITIES, WARNING
from apicost.problems import Problem

DESCRIPTION = """Look for what makes it unsafe to say which operation a request belongs to: templates that fit the same
requests, operations without an id, servers without a host, the same operation in two documents. Works on
OpenAPI 3.0, 3.1, 3.2 and Swagger 2.0; no traffic is needed. Whether a document is valid is another question.

rules:
{rules}"""

EPILOG = (
    """exit codes: 0 no fault at or above --fail-on, 1 there are some, 2 a document can't be used, or a wrong option"""
)


def main(argv: list[str]) -> int:
    """Run the command; the faults go to standard output, problems of documents to standard error."""
    options = _parser().parse_args(argv)
    faults, problems = lint(options.file)
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.format == "json":
        sys.stdout.write(_as_json(options.file, faults, problems))
    else:
        sys.stdout.write(_as_table(faults))
    if any(problem.effect == "the document is not used" for problem in problems):
        return 2
    if options.fail_on == "never":
        return 0
    counted = SEVERITIES[: SEVERITIES.index(options.fail_on) + 1]
    return int(any(_severity(fault) in counted for fault in faults))


def _parser() -> argparse.ArgumentParser:
    rules = "\n".join(f"  {name:<26} {rule.severity:<8} {rule.meaning}" for name, rule in LINT_RULES.items())
    parser = argparse.ArgumentParser(
        prog="apicost spec lint",
        description=DESCRIPTION.format(rules=rules),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", nargs="+", type=Path, help="an OpenAPI document, JSON or YAML")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: %(default)s")
    parser.add_argument(
        "--fail-on",
        choices=(*SEVERITIES, "never"),
        default=WARNING,
        help="exit with 1 from this severity on (default: %(default)s)",
    )
    return parser


def _severity(fault: DocumentFault) -> str:
    return LINT_RULES[fault.rule].severity if fault.rule in LINT_RULES else ERROR


def _as_table(faults: Sequence[DocumentFault]) -> str:
    """One fault in three lines, and the counts."""
    lines = [
        f"{fault.place}: {_severity(fault)}: {fault.rule}\n  {fault.detail}\n  fix: {fault.fix}\n" for fault in faults
    ]
    counts = Counter(map(_severity, faults))
    said = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
    return "".join(lines) + (f"{len(faults)} faults: {said}\n" if faults else "no faults\n")


def _as_json(files: Sequence[Path], faults: Sequence[DocumentFault], problems: Sequence[Problem]) -> str:
    rows: list[dict[str, Any]] = [
        {
            "rule": fault.rule,
            "severity": _severity(fault),
            "api": fault.api,
            "operations": [{"api": api, "operation_id": name} for api, name in fault.operations],
            "method": fault.method or None,
            "path_template": fault.path_template or None,
            "detail": fault.detail,
            "document": fault.document,
            "pointer": fault.pointer,
            "place": fault.place,
            "fix": fault.fix,
        }
        for fault in faults
    ]
    data = {"documents": [str(file) for file in files], "faults": rows, "problems": list(problems)}
    return msgspec.json.format(msgspec.json.encode(data), indent=1).decode() + "\n"
