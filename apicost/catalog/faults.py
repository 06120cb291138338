"""What in the documents themselves makes matching unsafe, found without traffic.

Rules of this file:
- Compared is what the matcher compares: base path and template under one pattern of hosts, parameter names aside.
- Nothing is compared pair by pair: what is equal meets in a dict, what overlaps is found by walking a trie against
  itself. The walk of one host is bounded; where it ends early, that is a fault of its own.
- Which operation wins is said by the matcher's own order, so that a fault never says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from apicost.catalog.extract import Extracted, Extraction
from apicost.catalog.openapi import ApiSource
from apicost.catalog.promises import Promise, Promises
from apicost.core.conformance.contract import DocumentFault
from apicost.core.conformance.finding import INFO, RULES, WARNING, Rule
from apicost.core.naming.operations import ANY_HOST, HostPattern, Operation, Place
from apicost.core.naming.paths import LITERAL, MULTI, Segment, fits, sort_key

LINT_RULES: Mapping[str, Rule] = {
    rule.id: rule
    for rule in (
        *(RULES[name] for name in ("ambiguous-operation", "cross-spec-duplicate", "spec-identical-templates")),
        Rule(id="server-mismatch", severity=WARNING, meaning="A server URL without a host stands for any host."),
        Rule(id="no-servers", severity=WARNING, meaning="The document names no server, so it stands for any host."),
        Rule(id="overlapping-templates", severity=INFO, meaning="Some paths fit two templates; one is preferred."),
        Rule(id="too-many-overlaps", severity=INFO, meaning="Not all templates could be compared."),
        Rule(id="missing-operation-id", severity=INFO, meaning="Without an id, an operation is its path."),
        Rule(id="duplicate-operation-id", severity=WARNING, meaning="One id names several operations."),
        Rule(id="adjacent-parameters", severity=WARNING, meaning="Values of {a}{b} can't be told apart."),
        Rule(
            id="undeclared-path-parameter",
            severity=WARNING,
            meaning="The template has a parameter that no one declares.",
        ),
        Rule(id="unused-path-parameter", severity=WARNING, meaning="A declared path parameter is not in the template."),
    )
}

MAX_STEPS = 2_000_000  # of the walk under one host: some 4 s; MS Graph's 16,000 operations take 40,000
MAX_NAMED = 10  # operations that one fault lists

_BRACES = re.compile(r"\{([^{}]*)\}")


class Found(NamedTuple):
    """One operation of a document, with its places and what is promised of it."""

    extracted: Extracted
    places: Sequence[Place]
    promise: Promise | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One document of an API, read."""

    source: ApiSource
    extraction: Extraction
    promises: Promises
    found: Sequence[Found]


def faults_of(documents: Sequence[Read]) -> Iterator[DocumentFault]:
    """All faults of some documents; of documents of one API and of several."""
    for document in documents:
        yield from _servers(document)
        yield from _ids(document)
        for found in document.found:
            yield from _parameters(found)
    yield from _overlapping(documents)


def named(operation: Operation) -> str:
    """An operation as a fault names it: by id as well where it has one, since variants share their path."""
    name = f"{operation.method} {operation.path_template}"
    own = operation.operation_id
    return name if own.startswith(f"{operation.method} /") else f"{name} ({own})"


def _fault(rule: str, operations: Sequence[Operation], detail: str, fix: str) -> DocumentFault:
    first = operations[0]
    return DocumentFault(
        rule=rule,
        api=first.api,
        operations=tuple(dict.fromkeys((one.api, one.operation_id) for one in operations)),
        method=first.method,
        path_template=first.path_template,
        detail=detail,
        document=first.spec,
        pointer=first.pointer,
        fix=fix,
    )


def _listed(operations: Sequence[Operation], of: str) -> str:
    """Some operations by name; with their file where that is another than `of`."""
    names = [named(one) + (f" ({one.spec})" if one.spec != of else "") for one in operations[:MAX_NAMED]]
    more = len(operations) - MAX_NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _servers(document: Read) -> Iterator[DocumentFault]:
    if document.source.hosts or document.source.route_ids or document.source.service_ids:
        return  # the configuration says whose traffic it is
    file, api = document.extraction.file, document.source.id
    fix = "write the URL that clients use, with its host, or give the API hosts in the configuration"

    def fault(rule: str, detail: str, pointer: str) -> DocumentFault:
        return DocumentFault(
            rule=rule, api=api, operations=(), method="", path_template="", detail=detail, document=file,
            pointer=pointer, fix=fix,
        )  # fmt: skip

    if not document.promises.servers_stated:
        yield fault("no-servers", "names no server: traffic of any host may be taken for this document's", "/servers")
        return
    urls = dict.fromkeys(server.url for servers in document.extraction.servers for server in servers)
    for url in urls:
        if not re.match(r"(?:[\w+.-]+:|\{[^{}]*\}:?)?//[^/]|\{", url.strip()):
            detail = f"server {url!r} names no host: traffic of any host may be taken for this document's"
            yield fault("server-mismatch", detail, "/servers")


def _ids(document: Read) -> Iterator[DocumentFault]:
    by_id: dict[str, list[Operation]] = {}
    for found in document.found:
        if not found.places:
            continue
        operation = found.places[0].operation
        if found.extracted.operation_id:
            by_id.setdefault(found.extracted.operation_id, []).append(operation)
        else:
            yield _fault(
                "missing-operation-id",
                [operation],
                f"{named(operation)} has no operationId: a change of its path makes another operation of it",
                "give it an operationId that never changes",
            )
    for name, operations in by_id.items():
        if len(operations) > 1:
            yield _fault(
                "duplicate-operation-id",
                operations,
                f"operationId {name!r} names {_listed(operations, operations[0].spec)}",
                "give each operation an id of its own",
            )


def _parameters(found: Found) -> Iterator[DocumentFault]:
    if not found.places:
        return
    operation = found.places[0].operation
    template = found.extracted.template
    path = re.split(r"[?#]", _BRACES.sub("{}", template))[0]
    if "{}{}" in path:
        yield _fault(
            "adjacent-parameters",
            [operation],
            f"{named(operation)} has parameters side by side: no value can be told from the next",
            "put text such as '/' or '-' between them",
        )
    if found.promise is None:
        return
    written = [name.removeprefix("+") for name in _BRACES.findall(template)]
    for name in written:
        if name not in found.promise.path_parameters:
            yield _fault(
                "undeclared-path-parameter",
                [operation],
                f"{named(operation)} has {{{name}}}, which no parameter with `in: path` declares",
                f"declare a parameter {name} with in: path and required: true",
            )
    for name in found.promise.path_parameters:
        if name not in written:
            yield _fault(
                "unused-path-parameter",
                [operation],
                f"{named(operation)} declares a path parameter {name} that its template has not",
                "put it into the template, or remove it",
            )


class _Here(NamedTuple):
    """One operation at one place."""

    place: Place
    source: ApiSource
    order: int


# (segments, discriminators): what tells one place from another under one host
_Shape = tuple[tuple[Segment, ...], tuple[tuple[str, str | None], ...]]


def _overlapping(documents: Sequence[Read]) -> Iterator[DocumentFault]:
    """Operations of one method that fit the same requests."""
    hosts: dict[tuple[HostPattern, str], dict[_Shape, list[_Here]]] = {}
    order = 0
    for document in documents:
        bound = bool(document.source.route_ids or document.source.service_ids)
        for found in document.found:
            order += 1
            for place in found.places:
                here = _Here(place, document.source, order)
                for host in place.hosts:
                    if bound and host.rank == ANY_HOST:
                        continue  # its routes tell its traffic
                    group = hosts.setdefault((host, place.operation.method), {})
                    group.setdefault((place.segments, place.discriminators), []).append(here)
    said: set[tuple[object, ...]] = set()
    for (_, method), shapes in hosts.items():
        faults = [*(fault for here in shapes.values() for fault in _identical(here)), *_ambiguous(method, shapes)]
        for fault in faults:
            # The same under each of several hosts is said once.
            key = (fault.rule, fault.document, fault.pointer, fault.path_template, fault.operations)
            if key not in said:
                said.add(key)
                yield fault


def _identical(here: Sequence[_Here]) -> Iterator[DocumentFault]:
    """What is wrong with operations at one and the same place."""
    if len(here) < 2:
        return
    ordered = sorted(here, key=lambda one: (-one.place.base_segments, -one.source.priority, one.order))
    of_api: dict[str, dict[tuple[str, str], _Here]] = {}
    for one in ordered:
        operation = one.place.operation
        of_api.setdefault(operation.api, {}).setdefault((operation.spec, operation.pointer), one)
    for own in of_api.values():
        operations = [one.place.operation for one in own.values()]
        if len(operations) > 1:
            first = operations[0]
            yield _fault(
                "spec-identical-templates",
                operations,
                f"{named(first)} fits the same requests as {_listed(operations[1:], first.spec)}: they count for "
                f"{first.operation_id!r}",
                "make one operation of them, or tell them apart by path or '?name=value'",
            )
    firsts = [next(iter(own.values())) for own in of_api.values()]
    rivals = [one for one in firsts[1:] if not _apart(firsts[0].source, one.source)]
    if rivals:
        operations = [firsts[0].place.operation, *(one.place.operation for one in rivals)]
        first = operations[0]
        yield _fault(
            "cross-spec-duplicate",
            operations,
            f"{named(first)} of {first.api!r} is also described by "
            + ", ".join(dict.fromkeys(f"{one.api!r}" for one in operations[1 : MAX_NAMED + 1]))
            + f": its requests count for {first.api!r}",
            "describe it in one of the documents, or tell the APIs apart by hosts, base_path, route_ids or priority",
        )


def _apart(one: ApiSource, other: ApiSource) -> bool:
    """Whether gateway routes or services tell two APIs' traffic apart."""
    ours, theirs = ({*source.route_ids, *source.service_ids} for source in (one, other))
    return bool(ours and theirs and not ours & theirs)


@dataclass(slots=True)
class _Node:
    """A trie of segments as they stand; here: the shapes that end at a node."""

    below: dict[Segment, _Node] = field(default_factory=dict)
    here: list[_Here] = field(default_factory=list)


def _ambiguous(method: str, shapes: dict[_Shape, list[_Here]]) -> Iterator[DocumentFault]:
    """Templates that both fit some path while neither is more specific, whether or not the matcher prefers one.

    Left out are templates with parameters that span "/", and those with discriminators.
    """
    root = _Node()
    for (segments, discriminators), here in shapes.items():
        if discriminators or any(segment.rank == MULTI for segment in segments):
            continue
        node = root
        for segment in segments:
            node = node.below.setdefault(segment, _Node())
        node.here.append(min(here, key=lambda one: one.order))
    steps = 0
    rivals: dict[int, tuple[_Here, list[_Here]]] = {}
    # Pairs of nodes that some text leads to both of; which of the two is narrower somewhere (1 the first, 2 the other).
    waiting: list[tuple[_Node, _Node, int]] = [(root, root, 0)]
    while waiting:
        one, other, narrower = waiting.pop()
        steps += 1
        if steps > MAX_STEPS:
            first = next(here for own in shapes.values() for here in own).place.operation
            yield _fault(
                "too-many-overlaps",
                [first],
                f"so many {method} templates overlap that after {MAX_STEPS} comparisons the rest was not compared",
                "write literal text further left in the templates",
            )
            break
        if one.here and other.here and narrower == 3:
            winner, loser = sorted((one.here[0], other.here[0]), key=_rank)
            rivals.setdefault(loser.order, (loser, []))[1].append(winner)
        for ours, theirs, difference in _meeting(one, other):
            waiting.append((one.below[ours], other.below[theirs], narrower | difference))
    for loser, winners in rivals.values():
        for tied in (True, False):
            own = sorted((one for one in winners if _ties(one, loser) is tied), key=_rank)
            if own:
                operations = [loser.place.operation, *(one.place.operation for one in own)]
                yield _fault(
                    "ambiguous-operation" if tied else "overlapping-templates",
                    operations,
                    f"some paths fit {named(operations[0])} and {_listed(operations[1:], operations[0].spec)}; they "
                    f"count for the one that {'comes first' if tied else 'has the literal text further left'}",
                    "change a path so that no request fits both",
                )


def _ties(one: _Here, other: _Here) -> bool:
    return sort_key(one.place.segments) == sort_key(other.place.segments)


def _rank(one: _Here) -> tuple[object, ...]:
    """The matcher's order (docs/matching.md, rules 2 and 4)."""
    return (sort_key(one.place.segments), -one.place.base_segments, -one.source.priority, one.order)


def _meeting(one: _Node, other: _Node) -> Iterable[tuple[Segment, Segment, int]]:
    """Pairs of segments below two nodes that some text fits both of, and which is narrower: 0 none, 1, 2, 3 each
    somewhere. Of a node with itself each pair once."""
    same = one is other
    open_ones = [segment for segment in one.below if segment.rank != LITERAL]
    open_others = [segment for segment in other.below if segment.rank != LITERAL]
    few, many = (one.below, other.below) if len(one.below) <= len(other.below) else (other.below, one.below)
    for segment in few:
        if segment in many:
            yield segment, segment, 0
    for mine in open_ones:
        for theirs in other.below:
            if theirs != mine and not (same and theirs.rank != LITERAL and theirs < mine):
                difference = _narrower(mine, theirs)
                if difference is not None:
                    yield mine, theirs, difference
    if not same:
        for theirs in open_others:
            for mine in one.below:
                if mine.rank == LITERAL:
                    difference = _narrower(mine, theirs)
                    if difference is not None:
                        yield mine, theirs, difference


def _narrower(one: Segment, other: Segment) -> int | None:
    """How two different segments compare: 1 or 2, the narrower; 3 where each fits what the other doesn't; None where
    no text fits both."""
    # A parameter is written as a character that no literal text has: what fits that, fits whatever stands for it.
    texts = ["\0".join(segment.pieces) for segment in (one, other)]
    if len(one.pieces) == 1:
        return 1 if fits(other.pieces, texts[0]) else None
    if len(other.pieces) == 1:
        return 2 if fits(one.pieces, texts[1]) else None
    ends = (one.pieces[0], other.pieces[0]), (one.pieces[-1][::-1], other.pieces[-1][::-1])
    if not all(a.startswith(b) or b.startswith(a) for a, b in ends):
        return None
    inside = (1 if fits(other.pieces, texts[0]) else 0) | (2 if fits(one.pieces, texts[1]) else 0)
    return inside if inside in (1, 2) else 3
