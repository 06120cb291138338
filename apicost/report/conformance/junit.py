"""Findings as JUnit XML, as CI servers show it: a suite for each API, a failing case for each finding.

Operations without a finding that counts are passing cases, so that a clean run shows what was checked.
"""

from __future__ import annotations

import re
from fractions import Fraction
from xml.sax.saxutils import escape, quoteattr

from apicost.core.conformance.accepted import IGNORED, Told
from apicost.core.conformance.finding import SEVERITIES
from apicost.report.conformance.outcome import Outcome, cost_words

# What XML 1.0 has no way to write, not even as a reference.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(outcome: Outcome, *, new_only: bool = False, fail_on: str = "error") -> str:
    """The document. fail_on: findings below this severity pass, with their text as output."""
    suites: dict[str, list[tuple[Told, Fraction | None]]] = {c.api: [] for c in outcome.judgement.coverage}
    for told, cost in outcome.rows(new_only=new_only):
        suites.setdefault(told.finding.api or "(no API)", []).append((told, cost))
    passed = {c.api: c.operations_seen for c in outcome.judgement.coverage}
    blocks, totals = [], [0, 0, 0]
    for api, rows in sorted(suites.items()):
        cases = [_case(outcome, api, told, cost, fail_on) for told, cost in rows]
        if api in passed:
            cases.append(f'  <testcase classname={_attribute(api)} name="{passed[api]} operations seen"/>')
        failed = sum("<failure" in case for case in cases)
        skipped = sum("<skipped" in case for case in cases)
        totals = [a + b for a, b in zip(totals, (len(cases), failed, skipped), strict=True)]
        blocks.append(
            f' <testsuite name={_attribute(api)} tests="{len(cases)}" failures="{failed}" errors="0" '
            f'skipped="{skipped}">\n' + "\n".join(cases) + "\n </testsuite>"
        )
    numbers = f'tests="{totals[0]}" failures="{totals[1]}" errors="0" skipped="{totals[2]}"'
    head = f'<testsuites name="apicost conformance" {numbers}>'
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *blocks, "</testsuites>"]) + "\n"


def _case(outcome: Outcome, api: str, told: Told, cost: Fraction | None, fail_on: str) -> str:
    finding = told.finding
    where = " ".join(text for text in (finding.method, finding.path_template) if text)
    name = ": ".join(text for text in (finding.rule, where, finding.detail) if text)
    facts = [
        f"{finding.count} requests, {finding.wire_bytes} bytes", cost_words(cost, outcome.currency), finding.sample,
        f"{finding.document}#{finding.pointer}" if finding.document else "", finding.fix,
    ]  # fmt: skip
    text = _text("\n".join(fact for fact in facts if fact))
    message = _attribute(finding.detail or finding.rule)
    if told.state == IGNORED:
        body = f"<skipped message={_attribute(f'ignored: {told.reason}')}/>"
    elif told.counts and SEVERITIES.index(finding.severity) <= SEVERITIES.index(fail_on):
        body = f"<failure type={_attribute(finding.rule)} message={message}>{text}</failure>"
    else:
        body = f"<system-out>{text}</system-out>"
    return f"  <testcase classname={_attribute(api)} name={_attribute(name)}>{body}</testcase>"


def _text(text: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", text))


def _attribute(text: str) -> str:
    return quoteattr(_FORBIDDEN.sub("\ufffd", text))
