"""Rules and findings: what conformance says, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

ERROR, WARNING, INFO, OFF = "error", "warning", "info", "off"
SEVERITIES = (ERROR, WARNING, INFO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """id is stable: people write it into baselines and configurations. meaning: one sentence, also in docs/rules.md."""

    id: str
    severity: str
    meaning: str


def _rules(severity: str, *rows: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(id=name, severity=severity, meaning=meaning) for name, meaning in rows)


RULES: Mapping[str, Rule] = {
    rule.id: rule
    for rule in (
        *_rules(
            ERROR,
            ("shadow-endpoint", "No document of that host describes this path, and a backend answers it."),
            ("undocumented-method", "The path is documented, this method on it is not."),
            ("security-missing", "The operation requires credentials, the request carried none and was answered 2xx."),
            ("removed-operation-in-use", "An earlier version of the document had this operation; it is still called."),
            ("request-schema", "Sampled request bodies do not fit the documented schema."),
            ("response-schema", "Sampled response bodies do not fit the documented schema."),
        ),
        *_rules(
            WARNING,
            ("deprecated-in-use", "The document calls this operation deprecated; it is still called."),
            ("undocumented-status", "The operation answers with a status that the document does not have."),
            ("undocumented-content-type", "A body came in a media type that the document does not have."),
            ("undocumented-query-param", "Requests carry a query parameter that the document does not have."),
            ("missing-required-param", "Requests lack a query parameter that the document requires."),
            ("server-mismatch", "A documented operation is called on a host that its servers do not name."),
            ("response-size-anomaly", "Some responses are far larger than this operation's usual ones."),
            ("ambiguous-operation", "Two documented operations fit the same requests equally well."),
            ("cross-spec-duplicate", "Documents of two APIs describe the same operation."),
        ),
        *_rules(
            INFO,
            ("orphan-operation", "Documented, and not called once in the window."),
            ("never-seen-status", "A documented status that was not seen in the window."),
            ("loose-match", "Matched only after repair of a trailing or double slash."),
            ("method-fallthrough", "A better fitting template lacks the method; a less specific one took the request."),
            ("spec-identical-templates", "Two templates of one document differ in parameter names alone."),
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """When a finding is worth telling.

    severity: rule id -> error, warning, info or off, where it is not the rule's own.
    shadow_min_calls, shadow_min_clients: fewer are noise. orphan_days: a window shorter than this says nothing
        about what was not called. status_min_calls: calls of an operation before a status counts as never seen.
    soft_404_paths: so many undocumented paths of a host with the same answer are taken for a "not found" page.
    anomaly_factor: a response is anomalous from this many times the usual size on (in steps of 4).
    """

    severity: Mapping[str, str] = field(default_factory=dict)
    shadow_min_calls: int = 3
    shadow_min_clients: int = 1
    orphan_days: float = 7.0
    status_min_calls: int = 100
    soft_404_paths: int = 8
    anomaly_factor: int = 16
    anomaly_min_calls: int = 100

    def severity_of(self, rule: str) -> str:
        return self.severity.get(rule, RULES[rule].severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One deviation, over the whole window.

    path_template: of the operation, or inferred ("{id}") for undocumented traffic; with base path. That of an
        undocumented path or method has the prefix, too, that the gateway strips.
    detail: what makes this finding this one, in words that do not change with counts (part of the fingerprint).
    count: requests. first_unix_ns, last_unix_ns: of those; 0 where there was none (orphans).
    consumers: distinct named consumers. clients: estimate of distinct client addresses.
    wire_bytes: on the client side, both directions; app bytes where no flow was seen.
    rows: positions in the SHAPE table that show it, for the cost; () where there are none.
    share: None, or (numerator, denominator): the part of the rows' usage that is meant (sampled bodies).
    sample: one example without values, such as "GET /v1/orders/{int}?page,status -> 418".
    document, pointer: where the document speaks of it, "" where it does not.
    fix: what to do.
    """

    rule: str
    severity: str
    api: str | None
    operation_id: str | None
    method: str | None
    path_template: str | None
    detail: str
    count: int = 0
    first_unix_ns: int = 0
    last_unix_ns: int = 0
    consumers: int = 0
    clients: int = 0
    wire_bytes: int = 0
    rows: tuple[int, ...] = ()
    share: tuple[int, int] | None = None
    sample: str = ""
    document: str = ""
    pointer: str = ""
    fix: str = ""

    @property
    def fingerprint(self) -> str:
        """32 hex digits that stay while rule, API, operation and detail do; counts and line numbers change nothing."""
        # Names come from traffic, so the parts are told apart by their lengths, not by a separator.
        parts = [text or "" for text in (self.rule, self.api, self.method, self.path_template, self.detail)]
        return hashlib.sha256("".join(f"{len(p)}:{p}" for p in parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of one API's documents the window saw.

    statuses: documented (operation, status) pairs; statuses_seen: of those, seen at least once.
    unseen: operation ids never called, sorted.
    """

    api: str
    operations: int
    operations_seen: int
    statuses: int
    statuses_seen: int
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Everything that a window says. requests, matched: calls in it.

    findings: sorted by severity, then count descending, then rule, API, template, method, detail.
    unjudged: rules that the window was too short for: that they found nothing says nothing.
    """

    requests: int
    matched: int
    findings: tuple[Finding, ...]
    coverage: tuple[Coverage, ...]
    soft_404_calls: int = 0  # undocumented calls that were taken for a "not found" page
    gateway_calls: int = 0  # calls answered by the gateway itself: never held against a document
    unjudged: tuple[str, ...] = ()
