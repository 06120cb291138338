"""The catalogue: APIs with their OpenAPI documents and bindings, compiled into the matcher's index.

Rules of this file:
- A document that can't be used is a Problem and stops no other; the API keeps its claim to its traffic.
- Servers: operation > path > document > "/", replacing, never merging. `hosts` and `base_path` of the configuration
  replace theirs.
- Loading twice the same gives the same index and the same `content_hash`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from apicost.catalog.extract import Extracted, Extraction, extract
from apicost.catalog.extract import Server as ServerObject
from apicost.catalog.servers import Server, configured_base, configured_host, expand
from apicost.core.naming.match import Api, Claim, Index, Operation, Place
from apicost.core.naming.operations import ANY, HostPattern
from apicost.core.naming.paths import Segment, forget_templates, parse_template
from apicost.problems import Problem

_T = TypeVar("_T", bound=Hashable)


class ApiSource(Protocol):
    """What describes one API: `config.ApiSettings` is one, `Source` another."""

    @property
    def id(self) -> str: ...
    @property
    def documents(self) -> tuple[Path, ...]: ...
    @property
    def hosts(self) -> tuple[str, ...]: ...
    @property
    def base_path(self) -> str | None: ...
    @property
    def strip_prefix(self) -> str: ...
    @property
    def route_ids(self) -> tuple[str, ...]: ...
    @property
    def service_ids(self) -> tuple[str, ...]: ...
    @property
    def path_seen(self) -> str: ...
    @property
    def multi_segment(self) -> tuple[str, ...]: ...
    @property
    def priority(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One API, given by hand; fields as in `config.ApiSettings`."""

    id: str
    documents: tuple[Path, ...] = ()
    title: str = ""
    owner: str = ""
    team: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    base_path: str | None = None
    strip_prefix: str = ""
    route_ids: tuple[str, ...] = ()
    service_ids: tuple[str, ...] = ()
    path_seen: str = "client"
    multi_segment: tuple[str, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One document as it was loaded."""

    api: str
    file: str
    usable: bool
    title: str
    operations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All APIs, compiled.

    operations: each once, in the order of APIs and documents, under the first base path of its servers.
    named: each under every base path, as requests are named by it; once for each (api, method, path template).
    problems: all, unusable documents first. content_hash: changes when a document or a binding does.
    """

    index: Index
    operations: tuple[Operation, ...]
    named: tuple[Operation, ...]
    documents: tuple[Loaded, ...]
    problems: tuple[Problem, ...]
    content_hash: str


def load_apis(apis: Sequence[ApiSource], *, cache_dir: Path | None = None) -> Catalog:
    """Read the documents of all APIs and compile them; what is wrong is in `problems`, nothing is raised.

    cache_dir: keeps what was extracted of YAML documents, by content, so that the next start need not parse them.
    """
    read: list[tuple[ApiSource, list[Extraction]]] = []
    built: list[Api] = []
    loaded: list[Loaded] = []
    for api in apis:
        found = [extract(Path(file), cache_dir=cache_dir) for file in api.documents]
        built.append(_api(api, found))
        loaded.extend(
            Loaded(api=api.id, file=e.file, usable=e.usable, title=e.title, operations=len(e.operations)) for e in found
        )
        # What was extracted takes as much memory as what is made of it, so it goes document by document.
        read.append((api, [msgspec.structs.replace(e, operations=[], servers=[]) for e in found]))
    forget_templates()
    extractions = [extraction for _, found in read for extraction in found]
    problems = [problem for e in extractions if not e.usable for problem in e.problems]
    problems += [problem for e in extractions if e.usable for problem in (*e.problems, *e.doubles)]
    operations: dict[tuple[str, str, str], Operation] = {}
    named: dict[tuple[str, str, str], Operation] = {}
    for made in built:
        for place in made.places:
            operation = place.operation
            named.setdefault((operation.api, operation.method, operation.path_template), operation)
            operations.setdefault((operation.api, operation.spec, operation.pointer), operation)
    return Catalog(
        index=Index(built),
        operations=tuple(operations.values()),
        named=tuple(named.values()),
        documents=tuple(loaded),
        problems=tuple(problems),
        content_hash=_hash(read),
    )


def _hash(read: Sequence[tuple[ApiSource, Sequence[Extraction]]]) -> str:
    state = hashlib.sha256()
    for api, extractions in read:
        binding = (
            api.id, api.hosts, api.base_path, api.strip_prefix, api.route_ids, api.service_ids, api.path_seen,
            api.multi_segment, api.priority,
        )  # fmt: skip
        files = [(e.file, e.digest, sorted(e.digests.items())) for e in extractions]
        state.update(repr((binding, files)).encode())
    return state.hexdigest()


def _api(source: ApiSource, extractions: Sequence[Extraction]) -> Api:
    places: list[Place] = []
    claims: dict[Claim, None] = {}
    prefix = configured_base(source.strip_prefix)[1]
    for extraction in extractions:
        for servers in extraction.servers:
            reached = _reached(source, servers)
            claims.update(dict.fromkeys(Claim(host=s.host, base=(*prefix, *s.segments)) for s in reached))
        places.extend(place for _, found in places_of(source, extraction) for place in found)
    if not claims:
        claims.update(dict.fromkeys(_configured_claims(source, prefix)))
    return Api(
        id=source.id,
        places=tuple(places),
        claims=tuple(claims),
        priority=source.priority,
        path_seen=source.path_seen,
        route_ids=tuple(source.route_ids),
        service_ids=tuple(source.service_ids),
    )


def _configured_claims(source: ApiSource, prefix: tuple[Segment, ...]) -> Iterator[Claim]:
    """What an API without a usable document claims: its routes, services, hosts and base path."""
    if source.hosts or source.base_path or source.route_ids or source.service_ids:
        base = configured_base(source.base_path or "")[1]
        for host in map(configured_host, source.hosts) if source.hosts else (ANY,):
            yield Claim(host=host, base=(*prefix, *base))


def _reached(source: ApiSource, servers: Sequence[ServerObject]) -> list[Server]:
    """The servers of a list, with what the configuration replaces, each once."""
    found: dict[Server, None] = {}
    for server in servers:
        for one in expand(server.url, server.variables, lambda *_: None):
            host, base, segments = one
            if source.base_path is not None:
                base, segments = configured_base(source.base_path)
            hosts = [configured_host(text) for text in source.hosts] or [host]
            found.update(dict.fromkeys(Server(h, base, segments) for h in hosts))
    return list(found)


def places_of(source: ApiSource, extraction: Extraction) -> Iterator[tuple[Extracted, list[Place]]]:
    """Each operation of a document with the places that it is found at; one `Operation` for each base path."""
    prefix = configured_base(source.strip_prefix)[1]
    reached = [_reached(source, servers) for servers in extraction.servers]
    shared: dict[Hashable, Any] = {}
    for operation in extraction.operations:
        servers = reached[operation.servers]
        yield operation, list(_places(source, extraction.file, operation, servers, prefix, shared))


def _places(
    source: ApiSource,
    file: str,
    extracted: Extracted,
    servers: Sequence[Server],
    prefix: tuple[Segment, ...],
    shared: dict[Hashable, Any],
) -> Iterator[Place]:
    """One place for each base path. shared: one object for all that is equal; a document says most things often."""
    spans = (*extracted.multi_segment, *source.multi_segment)
    template = parse_template(extracted.template, spans)
    written = _without_variant(extracted.template)
    operations: dict[str, Operation] = {}
    hosts: dict[tuple[str, tuple[Segment, ...]], dict[HostPattern, None]] = {}
    seen = set()
    for server in servers:
        if (server.host, server.segments) in seen:
            continue
        seen.add((server.host, server.segments))
        hosts.setdefault((server.base, server.segments), {})[server.host] = None
    for (base_path, base_segments), patterns in hosts.items():
        if base_path not in operations:
            operations[base_path] = Operation(
                api=source.id,
                operation_id=extracted.operation_id or f"{extracted.method} {extracted.template}",
                method=extracted.method,
                path_template=_one(shared, base_path + written),
                spec=file,
                pointer=extracted.pointer,
                deprecated=extracted.deprecated,
                tags=_one(shared, extracted.tags),
            )
        base = (*prefix, *base_segments)
        yield Place(
            operation=operations[base_path],
            hosts=_one(shared, tuple(patterns)),
            segments=_one(shared, (*base, *template.segments)),
            base_segments=len(base),
            discriminators=_one(shared, template.discriminators),
        )


def _one(shared: dict[Hashable, Any], value: _T) -> _T:
    """The first object that was equal to this one."""
    found: _T = shared.setdefault(value, value)
    return found


def _without_variant(template: str) -> str:
    """The template without its "#x": a variant is the same path."""
    head, hash_sign, tail = template.rpartition("#")
    return head if hash_sign and "}" not in tail else template
