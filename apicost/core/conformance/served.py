"""The gateway's routes against the documents: what each lacks of the other, without any traffic.

Rules of this file:
- Patterns are compared, not paths: "/v1/*" and "/v1/orders/{id}" have requests in common, so the route serves the
  operation. Where two patterns may meet, they are taken to meet: what is reported is sure.
- Conditions that only a request can tell (`vars`, `remote_addrs`, `filter_func`) are taken as fulfilled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from apicost.core.conformance.finding import INFO, WARNING
from apicost.core.naming.operations import Api, HostPattern, Place
from apicost.core.naming.paths import LITERAL, MULTI, PARAMETER, Segment, fits, split_path

ROUTE_WITHOUT_DOCUMENT = "route-without-document"
DOCUMENT_WITHOUT_ROUTE = "document-without-route"
OPERATION_WITHOUT_ROUTE = "operation-without-route"
REWRITE_HIDES_DOCUMENT = "rewrite-hides-document"
ROUTE_NOT_LOGGED = "route-not-logged"
SEVERITY = {
    ROUTE_WITHOUT_DOCUMENT: WARNING,
    REWRITE_HIDES_DOCUMENT: WARNING,
    ROUTE_NOT_LOGGED: WARNING,
    DOCUMENT_WITHOUT_ROUTE: INFO,
    OPERATION_WITHOUT_ROUTE: INFO,
}
_EXAMPLE = "apicost-example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """What the gateway does to the path before it sends it on. uri: the new path; pairs: (regex, replacement),
    of which the first that fits is applied."""

    uri: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route. uris: as the gateway writes them ("/a", "/a/*", "/a/:id"); hosts, methods: () is any."""

    id: str
    uris: tuple[str, ...]
    name: str | None = None
    service_id: str | None = None
    hosts: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    rewrite: Rewrite | None = None
    logged: bool = True
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One thing that routes or documents lack. `kind` is a key of SEVERITY."""

    kind: str
    route: Route | None = None
    api: str | None = None
    operation_id: str | None = None
    method: str | None = None
    path_template: str | None = None
    document: str = ""
    pointer: str = ""
    detail: str = ""
    fix: str = ""

    @property
    def severity(self) -> str:
        return SEVERITY[self.kind]


class _Pattern(NamedTuple):
    """A route's uri. parts: literal segments, None for one of any text; tail: text that the next segment begins with
    when anything may follow, None where the path ends."""

    parts: tuple[str | None, ...]
    tail: str | None


def compare(routes: Sequence[Route], apis: Sequence[Api]) -> list[Gap]:
    """Everything that routes and documents lack of each other: by kind, then route or operation."""
    gaps: list[Gap] = []
    met: set[tuple[str, str, str]] = set()  # (api, spec, pointer) of operations that some route serves
    patterns = {route.id: tuple(map(_pattern, route.uris)) for route in routes}
    for route in routes:
        own = [api for api in apis if _binds(api, route)]
        served = [(api, place) for api in own for place in api.places if _serves(route, patterns[route.id], api, place)]
        met.update((api.id, place.operation.spec, place.operation.pointer) for api, place in served)
        hidden = [api for api in own if api.places and not any(a is api for a, _ in served) and _hides(route, api)]
        gaps += [_hidden(route, api) for api in hidden]
        if not served and not hidden:
            gaps.append(_undocumented(route))
        if not route.logged:
            fix = "add apicost-logger to the route, its service or a global rule"
            gaps.append(
                Gap(
                    kind=ROUTE_NOT_LOGGED,
                    route=route,
                    detail="its requests are not logged: their cost has no name",
                    fix=fix,
                )
            )
    for api in apis:
        gaps += _unserved(api, met)
    order = list(SEVERITY)
    return sorted(gaps, key=lambda gap: order.index(gap.kind))


def _undocumented(route: Route) -> Gap:
    return Gap(
        kind=ROUTE_WITHOUT_DOCUMENT,
        route=route,
        detail="no document describes a path that this route serves",
        fix="add its document to apicost.yaml, or bind the route: route_ids of the API it belongs to",
    )


def _hidden(route: Route, api: Api) -> Gap:
    document = api.places[0].operation.spec
    if api.path_seen == "client":
        return Gap(
            kind=REWRITE_HIDES_DOCUMENT, route=route, api=api.id, document=document,
            detail="the document describes paths after this route's rewrite, but is compared with those before it",
            fix=f"set path_seen: upstream for API {api.id}",
        )  # fmt: skip
    return Gap(
        kind=REWRITE_HIDES_DOCUMENT, route=route, api=api.id, document=document,
        detail="after this route's rewrite no request can have a path that the document describes",
        fix=f"mend the route's proxy-rewrite, or set path_seen: client for API {api.id}",
    )  # fmt: skip


def _unserved(api: Api, met: set[tuple[str, str, str]]) -> Iterator[Gap]:
    """Operations that no route serves; a document of which none is served is one gap."""
    by_document: dict[str, dict[str, Place]] = {}
    for place in api.places:
        by_document.setdefault(place.operation.spec, {}).setdefault(place.operation.pointer, place)
    for document, places in by_document.items():
        missing = [p for pointer, p in places.items() if (api.id, document, pointer) not in met]
        if len(missing) == len(places):
            yield Gap(
                kind=DOCUMENT_WITHOUT_ROUTE, api=api.id, document=document,
                detail=f"none of its {len(places)} operations is served by a route",
                fix="add a route, check servers and base path, or take the document out of apicost.yaml",
            )  # fmt: skip
            continue
        for place in missing:
            operation = place.operation
            yield Gap(
                kind=OPERATION_WITHOUT_ROUTE, api=api.id, operation_id=operation.operation_id,
                method=operation.method, path_template=operation.path_template, document=document,
                pointer=operation.pointer, detail="no route takes requests of this operation",
                fix="add it to a route, or take it out of the document",
            )  # fmt: skip


def _binds(api: Api, route: Route) -> bool:
    """Whether traffic of the route may be this API's: an API bound to routes has its own alone."""
    if not api.bound:
        return True
    return route.id in api.route_ids or (route.service_id is not None and route.service_id in api.service_ids)


def _serves(route: Route, patterns: Sequence[_Pattern], api: Api, place: Place) -> bool:
    """Whether some request of the operation comes through the route and is seen as such."""
    operation = place.operation
    if route.methods and operation.method not in route.methods:
        return False
    if not api.bound and not any(_hosts_meet(route.hosts, host) for host in place.hosts):
        return False
    if api.path_seen == "upstream" and route.rewrite:
        return _reached(route.rewrite, patterns, place.segments)
    return any(_meet(pattern, place.segments) for pattern in patterns)


def _hides(route: Route, api: Api) -> bool:
    """Whether the document would be served if it were read on the other side of the rewrite."""
    if not route.rewrite:
        return False
    patterns = tuple(map(_pattern, route.uris))
    for place in api.places:
        if (route.methods and place.operation.method not in route.methods) or (
            not api.bound and not any(_hosts_meet(route.hosts, host) for host in place.hosts)
        ):
            continue
        if api.path_seen == "client":
            if _reached(route.rewrite, patterns, place.segments):
                return True
        elif any(_meet(pattern, place.segments) for pattern in patterns):
            return True
    return False


def _pattern(uri: str) -> _Pattern:
    """A uri of a route, taken apart. Parameters (":id", "*rest") are those of radixtree_uri_with_parameter."""
    parts: list[str | None] = []
    segments = uri.removeprefix("/").split("/")
    for number, text in enumerate(segments):
        star = text.find("*")
        if star >= 0 and (number == len(segments) - 1):
            return _Pattern(tuple(parts), text[:star])
        parts.append(None if text.startswith(":") and len(text) > 1 else text)
    return _Pattern(tuple(parts), None)


def _meet(pattern: _Pattern, segments: Sequence[Segment]) -> bool:
    """Whether some path fits both."""
    for number, part in enumerate(pattern.parts):
        if number >= len(segments):
            return False
        segment = segments[number]
        if segment.rank == MULTI:
            return True  # it may span whatever the pattern goes on with
        if part is not None and not _segment_fits(segment, part):
            return False
        if part is None and segment.pieces == ("",):
            return False
    rest = segments[len(pattern.parts) :]
    if pattern.tail is None:
        return not rest
    if not rest:
        return False  # "/a/*" begins with "/a/", which "/a" does not
    first = rest[0]
    return first.rank != LITERAL or first.pieces[0].startswith(pattern.tail)


def _segment_fits(segment: Segment, text: str) -> bool:
    return bool(text) if segment.rank == PARAMETER and len(segment.pieces) == 2 else fits(segment.pieces, text)


def _hosts_meet(hosts: Iterable[str], pattern: HostPattern) -> bool:
    hosts = tuple(hosts)
    if not hosts or not pattern.pieces:
        return True
    return any(_host_meets(host.lower(), pattern.pieces) for host in hosts)


def _host_meets(host: str, pieces: tuple[str, ...]) -> bool:
    if "*" not in host:
        return fits(pieces, host)
    wild = tuple(host.split("*"))
    if len(pieces) == 1:
        return fits(wild, pieces[0])
    # Two patterns: they meet unless their ends exclude each other.
    heads, tails = (wild[0], pieces[0]), (wild[-1], pieces[-1])
    return (heads[0].startswith(heads[1]) or heads[1].startswith(heads[0])) and (
        tails[0].endswith(tails[1]) or tails[1].endswith(tails[0])
    )


def _reached(rewrite: Rewrite, patterns: Sequence[_Pattern], segments: Sequence[Segment]) -> bool:
    """Whether some request of the route has a path of the template after the rewrite. Unsure is yes."""
    wanted = "/" + "/".join(_example(segment) for segment in segments)
    if rewrite.uri is not None:
        text = rewrite.uri.partition("?")[0]
        if "$" in text:  # a variable of the request: anything may stand there
            return re.fullmatch(_open_ends(text, r"\$\{?\w+\}?"), wanted) is not None
        path = split_path(text)
        return path is not None and _meet(_Pattern(tuple(path), None), segments)
    return any(_regex_reaches(regex, made, wanted, patterns) for regex, made in rewrite.pairs)


def _example(segment: Segment) -> str:
    if len(segment.pieces) == 1:
        return segment.pieces[0]
    return _EXAMPLE.join(segment.pieces)


def _open_ends(text: str, variable: str) -> str:
    """A regular expression of what a text with variables may become."""
    return "(.*)".join(re.escape(piece) for piece in re.split(variable, text))


def _regex_reaches(regex: str, made: str, wanted: str, patterns: Sequence[_Pattern]) -> bool:
    """Whether a replacement can make `wanted` of a path of the route."""
    found = re.fullmatch(_open_ends(made.partition("?")[0], r"\$\d"), wanted)
    if found is None:
        return False
    numbers = [int(number) for number in re.findall(r"\$(\d)", made)]
    values = dict(zip(numbers, found.groups(), strict=True))
    before = _inverted(regex, values)
    if before is None:
        return True
    path = split_path(before)
    return path is not None and any(_meet(p, [Segment(LITERAL, 0, (text,)) for text in path]) for p in patterns)


def _inverted(regex: str, values: dict[int, str]) -> str | None:
    """A path that the expression fits with these groups; None where it is not simple enough to tell."""
    text = regex.removeprefix("^").removesuffix("$")
    number = 0

    def put(_: re.Match[str]) -> str:
        nonlocal number
        number += 1
        return values.get(number, _EXAMPLE)

    path = re.sub(r"\((?!\?)[^()]*\)", put, text).replace("\\.", ".").replace("\\/", "/")
    try:
        fitting = re.fullmatch(f"{text}", path)
    except re.error:
        return None
    return path if fitting and path.startswith("/") else None
