"""Findings that people have accepted: ignores with a reason and an end, baselines of what was there before."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date

from apicost.core.conformance.finding import Finding

NEW, KNOWN, IGNORED = "new", "known", "ignored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignore:
    """What not to tell until a day. An empty text fits anything; path is a template, as findings show it.

    expires: the first day on which the finding is told again. place: where the entry stands, FILE:LINE.
    """

    rule: str
    reason: str
    expires: date
    api: str = ""
    method: str = ""
    path: str = ""
    detail: str = ""
    place: str = ""

    def fits(self, finding: Finding) -> bool:
        wanted = (self.rule, self.api, self.method, self.path, self.detail)
        found = (finding.rule, finding.api, finding.method, finding.path_template, finding.detail)
        return all(not want or want == "*" or want == text for want, text in zip(wanted, found, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A finding and whether it counts. state: new, known (in the baseline) or ignored. reason: of the ignore."""

    finding: Finding
    state: str = NEW
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Whether it decides the exit code."""
        return self.state == NEW


def sort_out(
    findings: Sequence[Finding], ignores: Sequence[Ignore], baseline: Collection[str], today: date
) -> tuple[list[Told], list[Ignore]]:
    """Each finding with its state, in their order; and the ignores that have expired and would still fit something.

    baseline: fingerprints. today: the day by which ignores expire.
    """
    told = []
    late: dict[Ignore, None] = {}
    for finding in findings:
        fitting = [ignore for ignore in ignores if ignore.fits(finding)]
        valid = next((ignore for ignore in fitting if today < ignore.expires), None)
        if valid is not None:
            told.append(Told(finding=finding, state=IGNORED, reason=valid.reason))
            continue
        late.update(dict.fromkeys(fitting))
        told.append(Told(finding=finding, state=KNOWN if finding.fingerprint in baseline else NEW))
    return told, list(late)
