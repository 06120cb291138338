"""What changed between two windows: findings that are new, fixed or worse."""

from __future__ import annotations

from dataclasses import dataclass

from apicost.core.conformance.finding import Finding, Judgement

# Worse is: more than twice the share of requests, and at least so many requests; fewer double by chance.
REGRESSED_FACTOR = 2
REGRESSED_CALLS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """new, regressed: as found after, in its order; fixed: as found before, in its order.

    A finding of a rule that one of the windows was too short for is neither new nor fixed.
    """

    new: tuple[Finding, ...]
    fixed: tuple[Finding, ...]
    regressed: tuple[Finding, ...]


def drift(before: Judgement, after: Judgement) -> Drift:
    """Compare two windows of any length by fingerprint."""
    earlier = {finding.fingerprint: finding for finding in before.findings}
    later = {finding.fingerprint: finding for finding in after.findings}
    return Drift(
        new=tuple(f for key, f in later.items() if key not in earlier and f.rule not in before.unjudged),
        fixed=tuple(f for key, f in earlier.items() if key not in later and f.rule not in after.unjudged),
        regressed=tuple(
            f
            for key, f in later.items()
            if key in earlier and _worse(earlier[key].count, before.requests, f.count, after.requests)
        ),
    )


def _worse(count_before: int, requests_before: int, count_after: int, requests_after: int) -> bool:
    """Whether the share of requests more than doubled, in whole numbers."""
    if count_after < REGRESSED_CALLS:
        return False
    return count_after * requests_before > REGRESSED_FACTOR * count_before * requests_after
