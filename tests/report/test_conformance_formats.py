"""Findings in every format: the same figures, and nothing from traffic acts in any of them."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as SarifLog

from apicost.core.conformance.accepted import IGNORED, KNOWN, Told
from apicost.core.conformance.finding import RULES, Coverage, Finding, Judgement
from apicost.problems import InputError
from apicost.report.conformance import accepted_files, formats
from apicost.report.conformance.outcome import Outcome, cost_text, cost_words

NASTY = "<script>alert(1)</script>|`=cmd()\x1b[2J\u202e\n# x"


def finding(rule: str = "shadow-endpoint", detail: str = "", path: str = "/v1/a", **more: object) -> Finding:
    values = {
        "api": "shop", "operation_id": None, "method": "GET", "path_template": path, "count": 7,
        "first_unix_ns": 1_795_428_000 * 10**9, "last_unix_ns": 1_795_428_060 * 10**9, "consumers": 2, "clients": 3,
        "wire_bytes": 1234, "sample": "GET /v1/a -> 200", "document": "specs/shop.yaml", "pointer": "/paths",
        "fix": "document it",
    } | more  # fmt: skip
    return Finding(rule=rule, severity=RULES[rule].severity, detail=detail, **values)  # type: ignore[arg-type]


def outcome(*findings: Finding, states: tuple[str, ...] = (), costs: tuple[Fraction | None, ...] = ()) -> Outcome:
    told = [
        Told(finding=f, state=states[n] if n < len(states) else "new", reason="agreed" if n < len(states) else "")
        for n, f in enumerate(findings)
    ]
    return Outcome(
        start_unix_s=1_795_392_000, end_unix_s=1_795_478_400, days=1.0,
        judgement=Judgement(
            requests=100, matched=90, findings=findings,
            coverage=(Coverage(api="shop", operations=4, operations_seen=3, statuses=9, statuses_seen=5,
                               unseen=("cancelOrder",)),),
        ),
        told=told, costs=costs or [Fraction(1, 3)] * len(findings), currency="EUR",
        lines={("specs/shop.yaml", "/paths"): 13}, notes=["a note"],
    )  # fmt: skip


def test_json_has_the_promised_shape() -> None:
    """One object; every finding with all its keys; costs as decimal text."""
    data = json.loads(formats.render(outcome(finding()), "json"))
    assert data["requests"] == 100 and data["matched"] == 90 and data["window"]["start"] == "2026-11-23T00:00:00Z"
    (found,) = data["findings"]
    assert (found["rule"], found["severity"], found["count"], found["consumers"], found["bytes"]) == (
        "shadow-endpoint", "error", 7, 2, 1234,
    )  # fmt: skip
    assert (found["cost"], found["currency"], found["first_seen"]) == ("0.3333333333", "EUR", "2026-11-23T10:00:00Z")
    assert (found["document"], found["pointer"], found["line"]) == ("specs/shop.yaml", "/paths", 13)
    assert data["coverage"]["operations"] == 4 and data["coverage"]["statuses_seen"] == 5
    rows = formats.render(outcome(finding()), "ndjson").splitlines()
    assert [json.loads(row) for row in rows] == data["findings"]


def test_sarif_fits_its_schema_and_keeps_its_fingerprints() -> None:
    """SARIF 2.1.0 by its schema's own model; the fingerprint does not change with counts; ignores are suppressions."""
    made = formats.render(outcome(finding(), finding("loose-match"), states=(IGNORED, KNOWN)), "sarif")
    SarifLog.model_validate_json(made)
    (run,) = json.loads(made)["runs"]
    first, second = run["results"]
    assert first["level"] == "error" and second["level"] == "note"
    assert first["suppressions"][0]["justification"] == "agreed" and second["baselineState"] == "unchanged"
    assert run["tool"]["driver"]["rules"][first["ruleIndex"]]["id"] == "shadow-endpoint"
    place = first["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "specs/shop.yaml"}, "region": {"startLine": 13}}
    more = json.loads(formats.render(outcome(finding(count=70)), "sarif"))["runs"][0]["results"][0]
    assert more["partialFingerprints"] == first["partialFingerprints"]


def test_sarif_of_an_orphan_fits_too() -> None:
    """A finding without traffic, place or method."""
    orphan = finding("orphan-operation", count=0, method=None, document="", pointer="", path_template=None)
    SarifLog.model_validate_json(formats.render(outcome(orphan, costs=(None,)), "sarif"))


def test_junit_fails_from_the_asked_severity_on() -> None:
    """Ignored is skipped, known passes, what is below passes with its text; counts agree with the cases."""
    found = outcome(finding(), finding(), finding(), finding("loose-match"), states=(IGNORED, KNOWN))
    root = ElementTree.fromstring(formats.render(found, "junit"))
    cases = [[child.tag for child in case] for case in root.iter("testcase")]
    assert cases == [["skipped"], ["system-out"], ["failure"], ["system-out"], []]
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("5", "1", "1")
    strict = ElementTree.fromstring(formats.render(found, "junit", fail_on="info"))
    assert strict.get("failures") == "2"


def test_csv_has_the_figures_of_the_json() -> None:
    """Cell by cell."""
    found = outcome(finding(), finding("loose-match"))
    data = json.loads(formats.render(found, "json"))["findings"]
    rows = list(csv.DictReader(io.StringIO(formats.render(found, "csv"))))
    assert [{k: v or None for k, v in row.items()} for row in rows] == [
        {k: None if row[k] is None or row[k] == "" else str(row[k]) for k in formats.CSV_COLUMNS} for row in data
    ]


@pytest.mark.parametrize("name", formats.NAMES)
def test_what_traffic_named_acts_nowhere(name: str) -> None:
    """Markup, formulas, escape sequences and line breaks from traffic stay text."""
    nasty = finding(detail=NASTY, path=NASTY, api=NASTY, sample=NASTY, fix=NASTY, operation_id="=1+1")
    text = formats.render(outcome(nasty), name)
    assert "\x1b" not in text or name == "csv"
    assert "<script>" not in text or name in ("json", "ndjson", "sarif", "csv", "table")
    if name in ("json", "ndjson", "sarif"):
        json.loads(text)
        assert "\x1b" not in text and text.count("\n# x") == 0
    if name == "junit":
        ElementTree.fromstring(text)
    if name == "csv":
        (row,) = csv.DictReader(io.StringIO(text))
        assert row["operation_id"] == "'=1+1"
    if name in ("table", "md"):
        assert "\u202e" not in text and "\n# x" not in text
    if name == "md":
        (row,) = [line for line in text.splitlines() if "shadow" in line]
        assert row.replace("\\|", "").count("|") == 8


@given(st.text(max_size=20), st.text(max_size=20))
def test_sarif_and_junit_hold_whatever_traffic_names(path: str, detail: str) -> None:
    """Any text is well-formed in them."""
    found = outcome(finding(path=path, detail=detail))
    SarifLog.model_validate_json(formats.render(found, "sarif").encode("utf-8", errors="replace"))
    ElementTree.fromstring(formats.render(found, "junit").encode("utf-8", errors="replace"))


def test_new_only_leaves_out_what_is_accepted() -> None:
    """In each format that lists findings."""
    found = outcome(finding(), finding("loose-match"), states=(KNOWN,))
    assert len(json.loads(formats.render(found, "json", new_only=True))["findings"]) == 1
    assert "shadow-endpoint" not in formats.render(found, "table", new_only=True)
    assert found.worst() == "info" and not found.fails("warning") and found.fails("info")


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Ignored findings are not part of it: they have an end of their own."""
    path = tmp_path / "known.json"
    found = outcome(finding(), finding("loose-match"), states=(IGNORED,))
    accepted_files.write(path, found)
    assert accepted_files.read(path) == {found.told[1].finding.fingerprint}
    path.write_text('{"apicost_baseline": 1, "findings": [{"fingerprint": "x"}]}')
    with pytest.raises(InputError, match="no fingerprint"):
        accepted_files.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"apicost_baseline": 2, "findings": []}'])
def test_a_file_that_is_no_baseline_is_said_so(tmp_path: Path, text: str) -> None:
    """Never taken as an empty one: every finding would be new, or none."""
    path = tmp_path / "known.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"known\.json"):
        accepted_files.read(path)


@pytest.mark.parametrize(
    ("cost", "text", "words"),
    [
        (None, None, "unpriced"),
        (Fraction(0), "0", "0 EUR"),
        (Fraction(1, 3), "0.3333333333", "0.333 EUR"),
        (Fraction(7), "7", "7.00 EUR"),
        (Fraction(1, 3_000), "0.0003333333", "0.000333 EUR"),
        (Fraction(1, 10**12), "0", "0.0000000000 EUR"),
    ],
)
def test_costs_are_plain_decimals(cost: Fraction | None, text: str | None, words: str) -> None:
    """No exponent; for people, as many places as say something."""
    assert cost_text(cost) == text and cost_words(cost, "EUR") == words


def test_the_worst_counts_alone() -> None:
    """No finding: nothing fails at any severity."""
    assert outcome().worst() is None and not outcome().fails("info")
    assert date(2026, 11, 23).isoformat() in formats.render(outcome(finding()), "html")
