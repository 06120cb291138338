"""Requests to OpenAPI operations: which documented operation a request belongs to, and whose it is when none.

Rules of this file (docs/matching.md has them with examples):
1. Host: exact before variable or wildcard before any.
2. Then base + template, segment by segment from the left: literal, mixed (more literal characters first), one
   parameter, multi-segment.
3. The best candidate that documents the method. None: undocumented-method on the best. A better template
   that lacked the method is flagged method-fallthrough.
4. Ties: longer base, higher priority of the API, order of the documents; flagged ambiguous-operation.
5. HEAD falls back to GET. OPTIONS that no candidate documents is the pseudo-operation cors-preflight.
6. Only where no template fits at all, slashes are repaired; flagged loose-match.

There is no cache of paths: an answer costs about as much as a cache's miss, and what is not kept can't grow
with a million distinct paths.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core.naming import trie
from apicost.core.naming.combine import CHUNK, Coded, code, combine
from apicost.core.naming.compile import Entry, Owner, compiled, finish, matched, method_keys, rank
from apicost.core.naming.operations import (
    AMBIGUOUS,
    ANY,
    ANY_HOST,
    EXACT_HOST,
    FALLTHROUGH,
    HOST_PATTERN,
    LOOSE,
    MATCHED,
    PREFLIGHT,
    UNDOCUMENTED_METHOD,
    UNDOCUMENTED_PATH,
    UNKNOWN_HOST,
    Api,
    Claim,
    HostPattern,
    Match,
    Operation,
    Place,
)
from apicost.core.naming.paths import fits, normal_host, query_pairs, repairs, split_path
from apicost.core.naming.trie import MIXED_EDGES, NOWHERE, PARAMETER_EDGE, SURE_TAILS, by_mixed, by_tail

Texts = Sequence[str | None] | pa.Array | pa.ChunkedArray

# Hosts come from clients: what is remembered of them is bounded, 1 << 12 x about 600 B = 2.4 MiB at most.
MAX_HOSTS = 1 << 12
MAX_HOST_CHARS = 255  # of a domain name, RFC 1035, section 2.3.4
# Answers are few (operations x flags), except for what an odd catalogue could make of alternatives.
MAX_ANSWERS = 1 << 16
# Answers by the nodes that fit a path, where several do: 1 << 15 x about 300 B = 10 MiB at most.
MAX_SETTLED = 1 << 15
# Hosts that several patterns fit get a trie made of theirs: 1 << 15 nodes x about 500 B = 16 MiB at most. These are
# kept as long as the index; what the bound leaves out is walked trie by trie.
MAX_MERGED_NODES = 1 << 15
MAX_METHOD_CHARS = 32  # longer ones, which no document has, are not remembered


class _Target(NamedTuple):
    """One trie that a host leads to."""

    rank: int
    root: trie.Node
    upstream: bool  # walked by the path sent upstream, where it differs
    apis: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What one host leads to in one scope: its tries, best class of hosts first; those of that class, and the rest.

    start: the root of the only trie of the best class: there the walk by first choice starts. NOWHERE where the
        best class has several tries.
    """

    targets: tuple[_Target, ...]
    best: tuple[_Target, ...]
    rest: tuple[_Target, ...]
    start: trie.Node
    upstream: bool
    alone: str | None  # the API that alone has this host by name, for paths outside of every base path


class _Scope:
    """The APIs that a request may belong to: all (by host), or those bound to its route or service."""

    def __init__(self, apis: Sequence[Api], ranked: dict[int, Entry], methods: dict[str, int], *, bound: bool) -> None:
        self._methods = methods
        self.sole_api = apis[0].id if bound and len(apis) == 1 else None
        by_host: dict[tuple[HostPattern, bool], list[tuple[Place | Claim, Api]]] = {}
        for api in apis:
            upstream = api.path_seen == "upstream"
            for item in itertools.chain[Place | Claim](api.places, api.claims):
                found = (item, api)
                for host in dict.fromkeys((*_hosts(item), ANY)) if bound else _hosts(item):
                    if bound or not api.bound or host.rank != ANY_HOST:
                        by_host.setdefault((host, upstream), []).append(found)
        shared: dict[tuple[Hashable, ...], tuple[trie.Node, frozenset[str]]] = {}
        self._exact: dict[str, list[_Target]] = {}
        self._patterns: list[tuple[tuple[str, ...], _Target]] = []
        self._any: list[_Target] = []
        for (host, upstream), members in by_host.items():
            # Hosts with the same operations share one trie, so a list of mirrors costs nothing.
            key = tuple(dict.fromkeys(_identity(item, api) for item, api in members))
            if key not in shared:
                shared[key] = (compiled(members, ranked, methods), frozenset(api.id for _, api in members))
            root, names = shared[key]
            target = _Target(host.rank, root, upstream, names)
            if host.rank == EXACT_HOST:
                self._exact.setdefault(host.pieces[0], []).append(target)
            elif host.rank == HOST_PATTERN:
                self._patterns.append((host.pieces, target))
            else:
                self._any.append(target)
        self._merged: dict[tuple[int, ...], trie.Node | None] = {}
        self._nodes_left = MAX_MERGED_NODES
        self._elsewhere = self._view(self._any)
        self.views: dict[str, _View] = {}
        self.has_upstream = any(api.path_seen == "upstream" for api in apis)

    def resolve(self, host: str) -> _View:
        """What a host leads to, remembered up to a bound."""
        normal = normal_host(host)
        named = [
            *self._exact.get(normal, ()),
            *(target for pieces, target in self._patterns if fits(pieces, normal)),
        ]
        view = self._view([*named, *self._any]) if named else self._elsewhere
        if len(host) <= MAX_HOST_CHARS:
            if len(self.views) >= MAX_HOSTS:
                self.views.clear()
            self.views[host] = view
        return view

    def _view(self, targets: Sequence[_Target]) -> _View:
        ordered = sorted(targets, key=lambda target: target.rank)
        best = tuple(target for target in ordered if target.rank == ordered[0].rank)
        rest = tuple(ordered[len(best) :])
        best = self._as_one(best)
        apis = {api for target in best if target.rank < ANY_HOST for api in target.apis}
        return _View(
            targets=best + rest,
            best=best,
            rest=rest,
            start=best[0].root if len(best) == 1 else NOWHERE,
            upstream=len(best) == 1 and best[0].upstream,
            alone=apis.pop() if len(apis) == 1 else None,
        )

    def _as_one(self, best: tuple[_Target, ...]) -> tuple[_Target, ...]:
        """The targets of one class as one, where all are walked by the same path and the bound allows it."""
        if len(best) < 2 or len({target.upstream for target in best}) > 1:
            return best
        # Another host that the same patterns fit shares the trie, so clients can't make more than the patterns allow.
        roots = {id(target.root): target.root for target in best}
        key = tuple(roots)
        if key not in self._merged:
            if len(self._merged) >= MAX_HOSTS:
                return best
            found = trie.merged(list(roots.values()), self._nodes_left)
            self._merged[key] = None
            if found is not None:
                root, made = found
                finish(made, self._methods)
                self._nodes_left -= len(made)
                self._merged[key] = root
        union = self._merged[key]
        if union is None:
            return best
        apis = frozenset(api for target in best for api in target.apis)
        return (_Target(best[0].rank, union, best[0].upstream, apis),)


def _identity(item: Place | Claim, api: Api) -> Hashable:
    """What tells items of one host from each other: the same claim under two hosts is two objects."""
    return id(item) if isinstance(item, Place) else (api.id, item.base)


def _hosts(item: Place | Claim) -> tuple[HostPattern, ...]:
    return item.hosts if isinstance(item, Place) else (item.host,)


class Batch(NamedTuple):
    """Answers for many requests: `codes` has one per row, an index into `matches`."""

    codes: npt.NDArray[np.int32]
    matches: tuple[Match, ...]


class _Candidate(NamedTuple):
    """An entry under the class of the host that led to it."""

    rank: int
    order: int
    entry: Entry


class Index:
    """All operations of all documents, compiled for look-up. Immutable but for a bounded memory of hosts.

    Made once per catalogue; a look-up allocates nothing where it takes the common way.
    """

    def __init__(self, apis: Sequence[Api]) -> None:
        self.apis = tuple(apis)
        ranked = rank(apis)
        self._methods = method_keys(ranked)
        self._default = _Scope(apis, ranked, self._methods, bound=False)
        self._views = self._default.views
        self._by_route = _bindings(apis, ranked, self._methods, "route_ids")
        self._by_service = _bindings(apis, ranked, self._methods, "service_ids")
        self.has_bindings = bool(self._by_route or self._by_service)
        self.has_discriminators = any(place.discriminators for api in apis for place in api.places)
        scopes = (self._default, *self._by_route.values(), *self._by_service.values())
        self.has_upstream = any(scope.has_upstream for scope in scopes)
        self._answers: dict[object, Match] = {}
        self._settled: dict[tuple[object, ...], Match] = {}

    def find(
        self,
        method: str,
        host: str,
        path: str,
        *,
        upstream_path: str | None = None,
        route_id: str | None = None,
        service_id: str | None = None,
        query_names: str | None = None,
    ) -> Match:
        """The operation of one request.

        method: as sent; methods are case-sensitive.
        host: as sent, with a port where one was sent; "" where none.
        path: raw, percent-encoded; a query may follow.
        upstream_path: what the gateway sent upstream, where it differs.
        query_names: names of query parameters, comma-separated, for when the path has no query with it. Values
            are unknown then: an answer that depends on one is flagged ambiguous-operation.
        """
        if self.has_bindings:
            scope = self._scope(route_id, service_id)
            view = scope.views.get(host) or scope.resolve(host)
        else:
            scope = self._default
            view = self._views.get(host) or scope.resolve(host)
        node = view.start
        raw = upstream_path if upstream_path and view.upstream else path
        if "?" in raw:
            raw = raw[: raw.index("?")]
        # What must be decoded or repaired takes the long way.
        if "%" not in raw and "/." not in raw and "#" not in raw:
            rest = iter(raw.split("/"))
            if not next(rest):
                for segment in rest:
                    if segment in node:
                        node = node[segment]
                    elif PARAMETER_EDGE in node and segment:
                        node = node[PARAMETER_EDGE]
                    elif MIXED_EDGES in node:
                        node = by_mixed(node, segment)
                    else:
                        node = by_tail(node, [segment, *rest]) if SURE_TAILS in node else NOWHERE
                        break
                answer: Match | None = node.get(self._methods.get(method))
                if answer is not None:
                    return answer
        return self._search(scope, view, method, path, upstream_path, query_names)

    def find_batch(
        self,
        methods: Texts,
        hosts: Texts,
        paths: Texts,
        *,
        upstream_paths: Texts | None = None,
        route_ids: Texts | None = None,
        service_ids: Texts | None = None,
        query_names: Texts | None = None,
    ) -> Batch:
        """The operations of many requests, each distinct request looked up once.

        Columns are lists of text or Arrow arrays (plain or dictionary), of one length; null counts as absent. The
        optional ones are read only where this index needs them.
        """
        where = {"host": code(hosts)}
        if self.has_bindings:
            given = {"route_id": route_ids, "service_id": service_ids}
            where.update((name, code(column)) for name, column in given.items() if column is not None)
        destination, answered_alike = self._destinations(where)
        what = {"method": code(methods), "path": code(paths)}
        if self.has_upstream and upstream_paths is not None:
            what["upstream_path"] = code(upstream_paths)
        if self.has_discriminators and query_names is not None:
            what["query_names"] = code(query_names)
        distinct = combine(
            [destination, *(column.codes for column in what.values())],
            [len(answered_alike), *(len(column.values) for column in what.values())],
        )
        # Host by host, so that a trie is still in the CPU's caches when its next request comes.
        by_destination = np.argsort(destination[distinct.rows], kind="stable")
        answers = np.empty(len(distinct.rows), np.int32)
        kept: list[Match] = []
        numbers: dict[int, int] = {}
        for start in range(0, len(distinct.rows), CHUNK):
            taken = by_destination[start : start + CHUNK]
            rows = distinct.rows[taken]
            columns = {**{name: where[name].at(answered_alike[destination[rows]]) for name in where}}
            columns.update((name, column.at(rows)) for name, column in what.items())
            required = zip(columns.pop("method"), columns.pop("host"), columns.pop("path"), strict=True)
            if columns:
                optional = (dict(zip(columns, texts, strict=True)) for texts in zip(*columns.values(), strict=True))
                matches = [self.find(*r, **o) for r, o in zip(required, optional, strict=True)]
            else:
                matches = list(itertools.starmap(self.find, required))
            # By identity: answers are few objects, and comparing them by value would cost more than finding them.
            objects, first, inverse = np.unique(
                np.fromiter(map(id, matches), np.int64, len(matches)), return_index=True, return_inverse=True
            )
            for key, position in zip(objects.tolist(), first.tolist(), strict=True):
                if key not in numbers:
                    numbers[key] = len(kept)
                    kept.append(matches[position])
            answers[taken] = np.array([numbers[key] for key in objects.tolist()])[inverse]
        return Batch(answers[distinct.codes], tuple(kept))

    def _destinations(self, where: dict[str, Coded]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Hosts, routes and services that lead to the same tries, as one: each row's destination, and for
        each destination a row that has it."""
        distinct = combine([c.codes for c in where.values()], [len(c.values) for c in where.values()])
        numbers: dict[tuple[int, int], int] = {}
        rows: list[int] = []
        of_combination = np.empty(len(distinct.rows), np.int32)
        held = []  # a view that is forgotten in between must not lend its identity to another
        columns = {name: column.at(distinct.rows) for name, column in where.items()}
        nothing = [""] * len(distinct.rows)
        routes, services = columns.get("route_id", nothing), columns.get("service_id", nothing)
        for number, (host, route, service) in enumerate(zip(columns["host"], routes, services, strict=True)):
            scope = self._scope(route, service)
            view = scope.views.get(host) or scope.resolve(host)
            held.append(view)
            key = (id(scope), id(view))
            if key not in numbers:
                numbers[key] = len(rows)
                rows.append(int(distinct.rows[number]))
            of_combination[number] = numbers[key]
        return of_combination[distinct.codes], np.array(rows, np.int64)

    def _scope(self, route_id: str | None, service_id: str | None) -> _Scope:
        if route_id is not None and route_id in self._by_route:
            return self._by_route[route_id]
        if service_id is not None and service_id in self._by_service:
            return self._by_service[service_id]
        return self._default

    def _search(
        self,
        scope: _Scope,
        view: _View,
        method: str,
        path: str,
        upstream_path: str | None,
        query_names: str | None,
    ) -> Match:
        """The long way: all candidates, ranked."""
        if not view.targets:
            return self._intern(Match(state=UNKNOWN_HOST, api=scope.sole_api))
        segments = split_path(path)
        behind = split_path(upstream_path) if upstream_path else segments
        asked = _asked(path, query_names)
        # What a worse class of hosts has matters only where the best one does not document the method.
        hits = _walk(view.best, segments, behind)
        if view.rest:
            match = self._best(hits, method, asked, (), sure=True)
            if match is not None:
                return match
            hits.extend(_walk(view.rest, segments, behind))
        match = self._best(hits, method, asked, ())
        if match is not None:
            return match
        for ours, theirs in _repaired(segments, behind):
            match = self._best(_walk(view.targets, ours, theirs), method, asked, (LOOSE,))
            if match is not None:
                return match
        api = _owner(view, segments, behind) or view.alone or scope.sole_api
        return self._intern(Match(state=UNDOCUMENTED_PATH, api=api))

    def _best(
        self, hits: _Hits, method: str, asked: _Asked, flags: tuple[str, ...], *, sure: bool = False
    ) -> Match | None:
        """The answer from what fits the path; None where no template does.

        sure: None too where no template documents the method itself: another class of hosts may then.
        """
        node = None if flags else _first(hits)
        if node is not None:
            answer: Match | None = node.get(self._methods.get(method))
            if answer is not None:
                return answer
        if len(hits) == 1:
            key = (method, flags, sure, *map(id, hits[0].nodes))
        else:
            key = (method, flags, sure, *(number for hit in hits for number in (hit.rank, *map(id, hit.nodes))))
        settled = self._settled.get(key)
        if settled is not None:
            return settled
        entries = [(hit.rank, entry) for hit in hits for node in hit.nodes for entry in node[trie.ENTRIES]]
        found = [
            _Candidate(rank, entry.order, entry)
            for rank, entry in entries
            if not entry.discriminators or asked.satisfies(entry.discriminators)
        ]
        if not found or (sure and not any(candidate.entry.operation.method == method for candidate in found)):
            return None
        found.sort(key=lambda candidate: candidate[:2])
        match = self._intern(_choose(found, method, flags, asked.exact))
        if len(method) <= MAX_METHOD_CHARS and not any(entry.discriminators for _, entry in entries):
            # Nothing but the nodes decided, and these live as long as the index.
            if len(self._settled) >= MAX_SETTLED:
                self._settled.clear()
            self._settled[key] = match
        return match

    def _intern(self, match: Match) -> Match:
        """One object per distinct answer, so that a batch has few of them."""
        if len(self._answers) >= MAX_ANSWERS:
            self._answers.clear()
        return self._answers.setdefault(match, match)


class _Hit(NamedTuple):
    """What fits a path in one of the tries that its host leads to."""

    rank: int
    nodes: list[trie.Node]


_Hits = Sequence[_Hit]


def _walk(targets: Sequence[_Target], segments: list[str] | None, behind: list[str] | None) -> list[_Hit]:
    """What fits in each trie; `behind` is the path sent upstream."""
    hits = []
    for target in targets:
        walked = behind if target.upstream else segments
        if walked is not None:
            hits.append(_Hit(target.rank, trie.collect(target.root, walked)))
    return hits


def _first(hits: _Hits) -> trie.Node | None:
    """The node of the best template, where nothing ties with it."""
    if not hits:
        return None
    if len(hits) == 1 or hits[1].rank != hits[0].rank:
        nodes = hits[0].nodes
    else:
        nodes = [node for hit in hits if hit.rank == hits[0].rank for node in hit.nodes]
    if len(nodes) < 2:
        return nodes[0] if nodes else None
    # The entries of one node compare equal, so the first stands for all.
    ranked = sorted((node[trie.ENTRIES][0].order, at) for at, node in enumerate(nodes))
    best, next_best = nodes[ranked[0][1]], nodes[ranked[1][1]]
    return best if best[trie.ENTRIES][0].group != next_best[trie.ENTRIES][0].group else None


def _owner(view: _View, segments: list[str] | None, behind: list[str] | None) -> str | None:
    """The API of the longest base path under the best class of hosts; None where two claim it equally."""
    claims: list[tuple[int, int, Owner]] = []
    for target in view.targets:
        walked = behind if target.upstream else segments
        depth, owners = trie.longest_claims(target.root, walked or ())
        claims.extend((target.rank, -depth, owner) for owner in owners)
    if not claims:
        return None
    best = min((rank, depth, owner.rank) for rank, depth, owner in claims)
    apis = {owner.api for rank, depth, owner in claims if (rank, depth, owner.rank) == best}
    return apis.pop() if len(apis) == 1 else None


class _Asked(NamedTuple):
    """The query of a request: (name, value) and (name, None) of each parameter.

    exact: False where only the names are known; then (name, None) is all there is.
    """

    pairs: frozenset[tuple[str, str | None]]
    exact: bool

    def satisfies(self, discriminators: tuple[tuple[str, str | None], ...]) -> bool:
        """Whether the query has all of them, as far as it is known."""
        return all(((name, value) if self.exact else (name, None)) in self.pairs for name, value in discriminators)


_NOTHING_ASKED = _Asked(frozenset(), True)


def _asked(path: str, query_names: str | None) -> _Asked:
    if "?" in path:
        query = path.partition("#")[0].partition("?")[2]
        return _Asked(query_pairs(query), True)
    if query_names:
        return _Asked(frozenset((name, None) for name in query_names.split(",")), False)
    return _NOTHING_ASKED


def _repaired(
    segments: list[str] | None, behind: list[str] | None
) -> Iterable[tuple[list[str] | None, list[str] | None]]:
    ours = repairs(segments) if segments else []
    if behind is segments:
        return [(path, path) for path in ours]
    theirs = repairs(behind) if behind else []
    return [
        (ours[i] if i < len(ours) else segments, theirs[i] if i < len(theirs) else behind)
        for i in range(max(len(ours), len(theirs)))
    ]


def _choose(found: Sequence[_Candidate], method: str, flags: tuple[str, ...], exact: bool) -> Match:
    """Rules 3 to 5 over ranked candidates, of which there is at least one."""
    best = found[0]
    fitting = [candidate for candidate in found if candidate.entry.operation.method == method]
    if not fitting and method == "HEAD":
        fitting = [candidate for candidate in found if candidate.entry.operation.method == "GET"]
    if fitting:
        chosen = fitting[0]
        if (best.rank, best.entry.group) < (chosen.rank, chosen.entry.group):
            flags = (*flags, FALLTHROUGH)
        rivals = [c.entry for c in fitting[1:] if c.rank == chosen.rank]
        match = matched(chosen.entry, rivals, flags)
        if not exact and any(value is not None for _, value in chosen.entry.discriminators):
            match = _unseen_value(match, chosen.entry, rivals)
        return match
    operation = best.entry.operation
    if method == "OPTIONS":
        preflight = Operation(
            api=operation.api,
            operation_id=PREFLIGHT,
            method="OPTIONS",
            path_template=operation.path_template,
            spec=operation.spec,
            pointer=operation.pointer.rpartition("/")[0],
        )
        return Match(
            state=MATCHED,
            api=operation.api,
            operation=preflight,
            path_template=operation.path_template,
            flags=flags,
        )
    return Match(state=UNDOCUMENTED_METHOD, api=operation.api, path_template=operation.path_template, flags=flags)


def _unseen_value(match: Match, chosen: Entry, rivals: Iterable[Entry]) -> Match:
    """The answer hangs on the value of a query parameter that usage lines don't carry: say so."""
    others = tuple(e.operation for e in rivals if e.group == chosen.group and e.operation != chosen.operation)
    flags = match.flags if AMBIGUOUS in match.flags else (*match.flags, AMBIGUOUS)
    return Match(
        state=match.state,
        api=match.api,
        operation=match.operation,
        path_template=match.path_template,
        flags=flags,
        alternatives=others,
    )


def _bindings(apis: Sequence[Api], ranked: dict[int, Entry], methods: dict[str, int], kind: str) -> dict[str, _Scope]:
    """A scope for each bound route or service; the same APIs share one."""
    bound: dict[str, list[Api]] = {}
    for api in apis:
        for key in getattr(api, kind):
            bound.setdefault(key, []).append(api)
    shared: dict[tuple[str, ...], _Scope] = {}
    scopes = {}
    for key, members in bound.items():
        names = tuple(api.id for api in members)
        if names not in shared:
            shared[names] = _Scope(members, ranked, methods, bound=True)
        scopes[key] = shared[names]
    return scopes
