"""Findings as a page for people, and as the section of the monthly report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction

from apicost.core.conformance.finding import RULES, SEVERITIES, Coverage
from apicost.report import templating
from apicost.report.conformance.outcome import NS_PER_S, Outcome, cost_words, summary, utc, where
from apicost.report.terminal import plain

TOP_ROWS = 40
_FEW = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingRow:
    """One row of the table, as text."""

    rule: str
    severity: str
    state: str
    api: str
    where: str
    detail: str
    count: int
    cost: str
    size: int
    consumers: int
    seen: str
    sample: str
    place: str
    fix: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the templates print. folded: findings beyond the first rows."""

    summary: str
    window: str
    rows: tuple[FindingRow, ...]
    folded: int
    coverage: tuple[Coverage, ...]
    rules: tuple[tuple[str, str, str, int], ...]
    notes: tuple[str, ...]
    soft_404: int
    gateway: int
    few: int


def view(outcome: Outcome, *, new_only: bool = False, most: int = TOP_ROWS) -> View:
    """The outcome as text, at most `most` rows."""
    rows = []
    for told, cost in outcome.rows(new_only=new_only):
        finding = told.finding
        line = outcome.lines.get((finding.document, finding.pointer))
        place = f"{finding.document}:{line}" if line else finding.document
        rows.append(
            FindingRow(
                rule=finding.rule, severity=finding.severity, state=told.state, api=plain(finding.api or "–"),
                where=plain(where(finding)), detail=plain(finding.detail), count=finding.count,
                cost=_cost(cost, outcome.currency, finding.count), size=finding.wire_bytes,
                consumers=finding.consumers, seen=_seen(finding.first_unix_ns, finding.last_unix_ns),
                sample=plain(finding.sample), place=place, fix=plain(finding.fix), reason=plain(told.reason),
            )
        )  # fmt: skip
    counted = [told.finding.rule for told in outcome.told if told.counts]
    return View(
        summary=summary(outcome),
        window=f"{utc(outcome.start_unix_s)} to {utc(outcome.end_unix_s)}",
        rows=tuple(rows[:most]),
        folded=max(len(rows) - most, 0),
        coverage=tuple(outcome.judgement.coverage),
        rules=tuple((r.id, r.severity, r.meaning, counted.count(r.id)) for r in RULES.values() if r.id in counted),
        notes=tuple(outcome.notes),
        soft_404=outcome.judgement.soft_404_calls,
        gateway=outcome.judgement.gateway_calls,
        few=_FEW,
    )


def html(outcome: Outcome, *, new_only: bool = False) -> str:
    """One self-contained page."""
    template = templating.environment().get_template("conformance.html.j2")
    return template.render(c=view(outcome, new_only=new_only, most=2_000), severities=SEVERITIES)


def _cost(cost: Fraction | None, currency: str | None, count: int) -> str:
    return cost_words(cost, currency) if count else ""


def _seen(first_ns: int, last_ns: int) -> str:
    if not last_ns:
        return ""
    first, last = (datetime.fromtimestamp(ns // NS_PER_S, UTC) for ns in (first_ns, last_ns))
    if first.date() == last.date():
        return f"{first:%Y-%m-%d}"
    return f"{first:%Y-%m-%d} to {last:%m-%d}" if first.year == last.year else f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
