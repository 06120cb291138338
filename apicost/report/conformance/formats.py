"""Findings as text: for terminals, programs, spreadsheets and merge requests.

Rules of this file:
- Names come from traffic: each format escapes what could act in it (control characters, Markdown, formulas, XML).
- The same outcome gives the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

import pyarrow as pa

from apicost import __version__
from apicost.core.conformance.accepted import NEW
from apicost.report import csvfile
from apicost.report.conformance import junit, page, sarif
from apicost.report.conformance.outcome import Drift, Outcome, as_data, cost_words, finding_data, summary, utc, where
from apicost.report.terminal import plain, table

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~-])")
CSV_COLUMNS = (
    "rule", "severity", "state", "api", "operation_id", "method", "path_template", "detail", "count", "first_seen",
    "last_seen", "consumers", "clients", "bytes", "cost", "currency", "sample", "document", "pointer", "fix",
    "fingerprint",
)  # fmt: skip


def render(outcome: Outcome, name: str, *, new_only: bool = False, fail_on: str = "error") -> str:
    """The outcome in one of FORMATS. fail_on: for JUnit, from which severity on a finding is a failure."""
    if name == "junit":
        return junit.render(outcome, new_only=new_only, fail_on=fail_on)
    return FORMATS[name](outcome, new_only)


def as_json(outcome: Outcome, new_only: bool) -> str:
    """One object."""
    return json.dumps(as_data(outcome, new_only=new_only), ensure_ascii=False, indent=1) + "\n"


def as_ndjson(outcome: Outcome, new_only: bool) -> str:
    """One object a finding."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in finding_data(outcome, new_only=new_only))


def as_csv(outcome: Outcome, new_only: bool) -> str:
    """A header and one row a finding, safe in spreadsheets."""
    rows = list(finding_data(outcome, new_only=new_only))
    counts = ("count", "consumers", "clients", "bytes")
    columns = {
        name: pa.array([row[name] for row in rows], pa.int64() if name in counts else pa.string())
        for name in CSV_COLUMNS
    }
    return ",".join(CSV_COLUMNS) + "\n" + csvfile.encode(pa.table(columns)).decode()


def as_table(outcome: Outcome, new_only: bool) -> str:
    """For a terminal: a summary, one row a finding, and how to mend each kind."""
    rows = list(outcome.rows(new_only=new_only))
    lines = [summary(outcome), ""]
    if rows:
        cells = [
            (
                told.finding.severity + ("" if told.state == NEW else f" ({told.state})"), told.finding.rule,
                told.finding.api or "–", where(told.finding), f"{told.finding.count:,}",
                cost_words(cost, outcome.currency), told.finding.detail,
            )
            for told, cost in rows
        ]  # fmt: skip
        head = ("severity", "rule", "api", "operation", "calls", "cost", "what")
        lines += [table(head, cells, right=(4, 5), width=48), "", "how to mend:"]
        fixes: dict[str, str] = {}
        for told, _ in rows:
            fixes.setdefault(told.finding.rule, told.finding.fix)
        lines += [f"  {rule}: {plain(fix)}" for rule, fix in fixes.items()]
        lines.append("")
    if outcome.drift:
        lines += [_drift_words(outcome.drift), *_drift_lines(outcome.drift), ""]
    lines += [plain(note) for note in outcome.notes]
    return "\n".join(lines).rstrip() + "\n"


def as_markdown(outcome: Outcome, new_only: bool) -> str:
    """A summary and a table, for a merge request's comment."""
    rows = list(outcome.rows(new_only=new_only))
    lines = ["## API conformance", "", _escaped(summary(outcome)), ""]
    if rows:
        lines += ["| severity | rule | API | operation | calls | cost | what |", "|---|---|---|---|---:|---:|---|"]
    for told, cost in rows:
        finding = told.finding
        cells = (
            finding.severity + ("" if told.state == NEW else f" ({told.state})"), finding.rule, finding.api or "–",
            where(finding), f"{finding.count:,}", cost_words(cost, outcome.currency), finding.detail,
        )  # fmt: skip
        lines.append("| " + " | ".join(map(_escaped, cells)) + " |")
    if outcome.drift:
        lines += ["", _escaped(_drift_words(outcome.drift)), ""]
        lines += [f"- {_escaped(line.strip())}" for line in _drift_lines(outcome.drift)]
    lines += ["", *(f"- {_escaped(note)}" for note in outcome.notes)]
    return "\n".join(lines).rstrip() + "\n"


def as_sarif(outcome: Outcome, new_only: bool) -> str:
    """SARIF 2.1.0."""
    data = sarif.log(outcome, version=__version__, new_only=new_only)
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def as_html(outcome: Outcome, new_only: bool) -> str:
    """One self-contained page."""
    return page.html(outcome, new_only=new_only)


def _drift_words(drift: Drift) -> str:
    return (
        f"since {utc(drift.start_unix_s)} to {utc(drift.end_unix_s)} ({drift.requests:,} requests): "
        f"{len(drift.new)} new, {len(drift.fixed)} fixed, {len(drift.regressed)} regressed"
    )


def _drift_lines(drift: Drift) -> list[str]:
    kinds = (("new", drift.new), ("fixed", drift.fixed), ("regressed", drift.regressed))
    return [plain(f"  {word}: {f.rule} {where(f)} {f.detail}") for word, found in kinds for f in found]


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", plain(text))


FORMATS: Mapping[str, Callable[[Outcome, bool], str]] = {
    "table": as_table,
    "json": as_json,
    "ndjson": as_ndjson,
    "sarif": as_sarif,
    "html": as_html,
    "md": as_markdown,
    "csv": as_csv,
}
NAMES = ("table", "json", "ndjson", "sarif", "junit", "html", "md", "csv")
