"""Everything that `apicost conformance` says, before any format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from apicost.core.conformance.accepted import Told
from apicost.core.conformance.finding import SEVERITIES, Coverage, Finding, Judgement
from apicost.core.rating import money

COST_SCALE = 10  # places of a cost as text
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What became of the findings of an earlier window. requests: in that window."""

    start_unix_s: float
    end_unix_s: float
    requests: int
    new: Sequence[Finding]
    fixed: Sequence[Finding]
    regressed: Sequence[Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Findings of a window with their state, cost and place.

    start_unix_s, end_unix_s: the window, end exclusive. days: how much of it was observed.
    told: one for each finding of `judgement`, in its order; costs: alike, None where nothing is priced.
    currency: None without a price book. lines: (document, pointer) -> line, where known.
    source: what was judged, in words. notes: what the reader must know, such as expired ignores.
    """

    start_unix_s: float
    end_unix_s: float
    days: float
    judgement: Judgement
    told: Sequence[Told]
    costs: Sequence[Fraction | None]
    currency: str | None = None
    source: str = ""
    notes: Sequence[str] = ()
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict)
    drift: Drift | None = None

    def rows(self, *, new_only: bool = False) -> Iterator[tuple[Told, Fraction | None]]:
        """Findings with their costs; new_only leaves out what is known or ignored."""
        for told, cost in zip(self.told, self.costs, strict=True):
            if told.counts or not new_only:
                yield told, cost

    def worst(self) -> str | None:
        """The highest severity among findings that count."""
        return next((s for s in SEVERITIES if any(t.counts and t.finding.severity == s for t in self.told)), None)

    def fails(self, fail_on: str) -> bool:
        """Whether a finding that counts is at or above a severity."""
        worst = self.worst()
        return worst is not None and SEVERITIES.index(worst) <= SEVERITIES.index(fail_on)


def as_data(outcome: Outcome, *, new_only: bool = False) -> dict[str, Any]:
    """The one object of --format json: bytes and counts as integers, costs as decimal text."""
    judgement = outcome.judgement
    return {
        "window": {
            "start": utc(outcome.start_unix_s),
            "end": utc(outcome.end_unix_s),
            "observed_days": round(outcome.days, 3),
            "source": outcome.source,
        },
        "requests": judgement.requests,
        "matched": judgement.matched,
        "gateway_answered": judgement.gateway_calls,
        "soft_404": judgement.soft_404_calls,
        "findings": list(finding_data(outcome, new_only=new_only)),
        "coverage": {
            **_sum(judgement.coverage),
            "apis": {c.api: {**_sum([c]), "unseen": list(c.unseen)} for c in judgement.coverage},
        },
        "notes": list(outcome.notes),
        **({"drift": _drift_data(outcome.drift)} if outcome.drift else {}),
    }


def _drift_data(drift: Drift) -> dict[str, Any]:
    def brief(findings: Sequence[Finding]) -> list[dict[str, Any]]:
        return [
            {"fingerprint": f.fingerprint, "rule": f.rule, "api": f.api, "method": f.method,
             "path_template": f.path_template, "detail": f.detail, "count": f.count}
            for f in findings
        ]  # fmt: skip

    return {
        "window": {"start": utc(drift.start_unix_s), "end": utc(drift.end_unix_s)},
        "requests": drift.requests,
        "new": brief(drift.new),
        "fixed": brief(drift.fixed),
        "regressed": brief(drift.regressed),
    }


def finding_data(outcome: Outcome, *, new_only: bool = False) -> Iterator[dict[str, Any]]:
    """One mapping for each finding."""
    for told, cost in outcome.rows(new_only=new_only):
        finding = told.finding
        yield {
            "rule": finding.rule,
            "severity": finding.severity,
            "state": told.state,
            "api": finding.api,
            "operation_id": finding.operation_id,
            "method": finding.method,
            "path_template": finding.path_template,
            "detail": finding.detail,
            "count": finding.count,
            "first_seen": utc(finding.first_unix_ns / NS_PER_S) if finding.count else None,
            "last_seen": utc(finding.last_unix_ns / NS_PER_S) if finding.count else None,
            "consumers": finding.consumers,
            "clients": finding.clients,
            "bytes": finding.wire_bytes,
            "cost": cost_text(cost),
            "currency": outcome.currency,
            "sample": finding.sample or None,
            "document": finding.document or None,
            "pointer": finding.pointer or None,
            "line": outcome.lines.get((finding.document, finding.pointer)),
            "fix": finding.fix,
            "fingerprint": finding.fingerprint,
            "reason": told.reason or None,
        }


def cost_text(cost: Fraction | None) -> str | None:
    """A cost as plain decimal text of at most ten places, half-even."""
    if cost is None:
        return None
    text = money.fixed(money.half_even(cost * 10**COST_SCALE), COST_SCALE)
    return text.rstrip("0").rstrip(".")


def cost_words(cost: Fraction | None, currency: str | None) -> str:
    """A cost for people: three places that say something."""
    if currency is None:
        return ""
    if cost is None:
        return "unpriced"
    if cost == 0:
        return f"0 {currency}"
    places = 2
    while places < COST_SCALE and cost < Fraction(1, 10 ** (places - 2)):
        places += 1
    text = money.fixed(money.half_even(cost * 10**places), places)
    return f"{text} {currency}"


def where(finding: Finding) -> str:
    """The operation or path of a finding in one piece."""
    return " ".join(text for text in (finding.method, finding.path_template) if text) or "–"


def summary(outcome: Outcome) -> str:
    """One sentence."""
    judgement = outcome.judgement
    counted = [told for told in outcome.told if told.counts]
    by_severity = {s: sum(t.finding.severity == s for t in counted) for s in SEVERITIES}
    found = ", ".join(f"{n} {s}{'s' if n != 1 and s != 'info' else ''}" for s, n in by_severity.items() if n)
    seen = sum(c.operations_seen for c in judgement.coverage)
    all_ = sum(c.operations for c in judgement.coverage)
    share = f"{100 * judgement.matched / judgement.requests:.1f} %" if judgement.requests else "none"
    others = _others(outcome.told)
    return (
        f"{judgement.requests:,} requests, {share} of them documented; {seen} of {all_} operations seen; "
        f"{found or 'no findings'}{others}."
    )


def _others(told: Sequence[Told]) -> str:
    states = [t.state for t in told if not t.counts]
    parts = [f"{states.count(name)} {name}" for name in ("known", "ignored") if name in states]
    return f" ({', '.join(parts)})" if parts else ""


def utc(unix_s: float) -> str:
    """A time as text, whole seconds, UTC."""
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sum(parts: Iterable[Coverage]) -> dict[str, int]:
    parts = list(parts)
    return {
        "operations": sum(c.operations for c in parts),
        "operations_seen": sum(c.operations_seen for c in parts),
        "statuses": sum(c.statuses for c in parts),
        "statuses_seen": sum(c.statuses_seen for c in parts),
    }
