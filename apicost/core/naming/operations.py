"""What the matcher is given and what it answers: plain data, made by `catalog/openapi`.

An `Api` is an API with the places its operations are found at; a `Match` is the answer for one request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from apicost.core.naming.paths import Segment

MATCHED = "matched"
UNDOCUMENTED_PATH = "undocumented-path"
UNDOCUMENTED_METHOD = "undocumented-method"
UNKNOWN_HOST = "unknown-host"
UNATTRIBUTED = "unattributed"
CONTROL = "control"

LOOSE = "loose-match"
FALLTHROUGH = "method-fallthrough"
AMBIGUOUS = "ambiguous-operation"

PREFLIGHT = "cors-preflight"

EXACT_HOST, HOST_PATTERN, ANY_HOST = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of an OpenAPI document under one of its base paths.

    operation_id: the document's own, or "METHOD template" with the template as it stands in the document.
    path_template: base path and template.
    spec, pointer: the file and the JSON pointer in it.
    """

    api: str
    operation_id: str
    method: str
    path_template: str
    spec: str
    pointer: str
    deprecated: bool = False
    tags: tuple[str, ...] = ()


class HostPattern(NamedTuple):
    """Which hosts a server stands for.

    rank: EXACT_HOST, HOST_PATTERN (variable or wildcard) or ANY_HOST.
    pieces: literal text around the variables, lower case, as in `paths.Segment`; () for any.
    """

    rank: int
    pieces: tuple[str, ...]


ANY = HostPattern(ANY_HOST, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an operation is found: one path pattern under some host patterns.

    base_segments: how many of the segments are base path (a prefix that the gateway strips included).
    discriminators: (name, value) pairs that the query must have; value None: the name is enough.
    """

    operation: Operation
    hosts: tuple[HostPattern, ...]
    segments: tuple[Segment, ...]
    base_segments: int
    discriminators: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A host and base path under which traffic is the API's, documented or not."""

    host: HostPattern
    base: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One API: its operations, in the order of its documents, and the traffic that is its own.

    route_ids, service_ids: gateway routes and services whose traffic is this API's whatever the host. An API that
        has some takes other traffic only by hosts that it names, never as "any host".
    path_seen: "client" or "upstream": the side of the gateway's rewrite that the documents describe.
    """

    id: str
    places: tuple[Place, ...] = ()
    claims: tuple[Claim, ...] = ()
    priority: int = 0
    path_seen: str = "client"
    route_ids: tuple[str, ...] = ()
    service_ids: tuple[str, ...] = ()

    @property
    def bound(self) -> bool:
        """Whether gateway routes or services are named for it."""
        return bool(self.route_ids or self.service_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The answer for one request.

    state: MATCHED, UNDOCUMENTED_PATH, UNDOCUMENTED_METHOD or UNKNOWN_HOST.
    api: None where no document or binding claims the request.
    operation: None unless matched.
    path_template: of the operation; for UNDOCUMENTED_METHOD of the best template; else None.
    alternatives: the operations that fit as well as this one, where flagged ambiguous-operation.
    """

    state: str
    api: str | None = None
    operation: Operation | None = None
    path_template: str | None = None
    flags: tuple[str, ...] = ()
    alternatives: tuple[Operation, ...] = ()
