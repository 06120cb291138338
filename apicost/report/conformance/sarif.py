"""Findings as SARIF 2.1.0 (OASIS), for code scanning.

A finding's place is the document's line where it has one; the operation is its logical location.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from apicost.core.conformance.accepted import IGNORED, KNOWN, Told
from apicost.core.conformance.finding import ERROR, INFO, RULES, WARNING
from apicost.report.conformance.outcome import Outcome, cost_text

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVEL = {ERROR: "error", WARNING: "warning", INFO: "note"}
FINGERPRINT = "apicostFinding/v1"


def log(outcome: Outcome, *, version: str, new_only: bool = False) -> dict[str, Any]:
    """The SARIF log as plain data. version: of this program."""
    rows = list(outcome.rows(new_only=new_only))
    ids = list(RULES)
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "apicost",
                        "semanticVersion": version,
                        "rules": [
                            {
                                "id": rule.id,
                                "shortDescription": {"text": rule.meaning},
                                "defaultConfiguration": {"level": _LEVEL[rule.severity]},
                            }
                            for rule in RULES.values()
                        ],
                    }
                },
                "columnKind": "utf16CodeUnits",
                "results": [_result(outcome, told, cost_text(cost), ids) for told, cost in rows],
                "properties": {"requests": outcome.judgement.requests, "matched": outcome.judgement.matched},
            }
        ],
    }


def _result(outcome: Outcome, told: Told, cost: str | None, ids: list[str]) -> dict[str, Any]:
    finding = told.finding
    where = " ".join(text for text in (finding.method, finding.path_template) if text)
    told_of = f"{where}: " if where else ""
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": ids.index(finding.rule),
        "level": _LEVEL[finding.severity],
        "message": {"text": f"{told_of}{finding.detail or RULES[finding.rule].meaning} {finding.fix}".strip()},
        "locations": [_location(finding.document, outcome.lines.get((finding.document, finding.pointer)), where)],
        "partialFingerprints": {FINGERPRINT: finding.fingerprint},
        "baselineState": "unchanged" if told.state == KNOWN else "new",
        "occurrenceCount": max(finding.count, 1),
        "properties": {
            "api": finding.api,
            "operationId": finding.operation_id,
            "count": finding.count,
            "consumers": finding.consumers,
            "bytes": finding.wire_bytes,
            "cost": cost,
            "currency": outcome.currency,
            "pointer": finding.pointer or None,
        },
    }
    if told.state == IGNORED:
        result["suppressions"] = [{"kind": "external", "justification": told.reason}]
    return result


def _location(document: str, line: int | None, where: str) -> dict[str, Any]:
    location: dict[str, Any] = {}
    if document:
        physical: dict[str, Any] = {"artifactLocation": _artifact(document)}
        if line:
            physical["region"] = {"startLine": line}
        location["physicalLocation"] = physical
    if where:
        location["logicalLocations"] = [{"fullyQualifiedName": where, "kind": "resource"}]
    return location


def _artifact(document: str) -> Mapping[str, str]:
    """A path as a URI reference: relative as it was given, absolute as a file URI."""
    uri = quote(document)
    return {"uri": f"file://{uri}" if document.startswith("/") else uri}
