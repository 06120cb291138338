"""Shapes of a window held against the documents: findings, each with its figures, and coverage.

Rules of this file:
- One judge for all: the command, the monthly page, the metrics, recorded files.
- Statuses that the gateway made are never held against a document (docs/rules.md says what is read by which rule).
- The order of rows and the length of their buckets change nothing but `Finding.rows`.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from apicost.core.conformance.assign import Assignment
from apicost.core.conformance.contract import Contracts
from apicost.core.conformance.finding import OFF, SEVERITIES, Finding, Judgement, Settings
from apicost.core.conformance.point import point_rules
from apicost.core.conformance.sampled import sampled_rules
from apicost.core.conformance.traffic import Draft, Traffic, finish
from apicost.core.conformance.undocumented import Infer, undocumented_rules
from apicost.core.conformance.window import NEEDS_A_WINDOW, Seen, window_rules


def judge(
    shapes: pa.Table,
    contracts: Contracts,
    settings: Settings,
    *,
    window_days: float,
    samples: pa.Table | None = None,
    infer: Infer | None = None,
) -> Judgement:
    """What a window's traffic does that the documents do not say.

    shapes: columns as in `records.SHAPE`, any order, any buckets. window_days: how long was looked, traffic or not.
    samples: columns as in `records.SAMPLE`; None where no bodies are sampled.
    infer: folded paths of one API or host -> their templates, one for each, in order; None: `infer.Inference` in the
        light of all documents.

    Ignores and baselines are not looked at. Raises records.BatchError when the columns are others.
    """
    traffic = Traffic(shapes)
    assignment = Assignment(traffic, contracts)
    seen = Seen(traffic, assignment)
    unknown, soft_404_calls = undocumented_rules(traffic, assignment, contracts, settings, infer)
    drafts: list[Draft] = [*unknown, *point_rules(traffic, assignment)]
    drafts += window_rules(traffic, assignment, contracts, settings, seen, window_days)
    if samples is not None and samples.num_rows:
        drafts += sampled_rules(traffic, assignment, samples)
    wanted = [draft for draft in drafts if settings.severity_of(draft.rule) != OFF]
    return Judgement(
        requests=int(traffic.calls[traffic.requests].sum()),
        matched=int(traffic.calls[traffic.matched | assignment.held].sum()),
        findings=in_order(finish(traffic, wanted, settings)),
        coverage=seen.coverage(contracts),
        soft_404_calls=soft_404_calls,
        gateway_calls=int(traffic.calls[traffic.gateway].sum()),
        unjudged=NEEDS_A_WINDOW if window_days < settings.orphan_days else (),
    )


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By severity, then count descending, then rule, API, template, method, detail."""
    return tuple(
        sorted(
            findings,
            key=lambda f: (
                SEVERITIES.index(f.severity),
                -f.count,
                f.rule,
                f.api or "",
                f.path_template or "",
                f.method or "",
                f.detail,
            ),
        )
    )
