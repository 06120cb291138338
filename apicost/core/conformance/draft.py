"""OpenAPI for traffic that no document describes: a document of its own that holds only what is missing.

Rules of this file:
- What is drafted is what the judge tells: the same rows, the same templates, the same noise left out. A draft that is
  added to its API's documents ends the findings it was made of.
- Names and kinds alone: no value of a path, query, header or body is written.
- What OpenAPI 3.1 can't say (methods of its own, paths that are none) is left out, and said.
- The same traffic in any order gives the same document.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from apicost.core.conformance.assign import Assignment
from apicost.core.conformance.contract import Contracts
from apicost.core.conformance.finding import Settings
from apicost.core.conformance.fold import MORE, printable
from apicost.core.conformance.infer import SCHEMA_OF, Inference, Parameter
from apicost.core.conformance.queries import asked
from apicost.core.conformance.templates import Templates
from apicost.core.conformance.traffic import Groups, Ints, Mask, Traffic
from apicost.core.conformance.undocumented import (
    OTHER_PATHS,
    Unknown,
    sifted,
    unknown_methods,
    unknown_paths,
    worth_telling,
)
from apicost.core.conformance.written import Written
from apicost.core.naming.paths import Segment, decode, fits, normal_host, parse_template

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")  # of a Path Item Object in 3.1
MOST_NAMES = 50  # of the query names of an operation, the most called: clients can make up any number
WITHOUT_CONTENT = ("204", "205", "304")
# Kinds of credentials that a document can describe from the kind alone: a key's place and name are not known.
SCHEMES: Mapping[str, Mapping[str, str]] = {
    "basic": {"type": "http", "scheme": "basic"},
    "bearer": {"type": "http", "scheme": "bearer"},
    "digest": {"type": "http", "scheme": "digest"},
    "mtls": {"type": "mutualTLS"},
}
_MARKER = re.compile(r"\{([a-z]+)\}")
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9*][a-z0-9!#$&^_.+-]{0,63}")
_STATUS = re.compile(r"[1-5][0-9]{2}")
_ORIGIN = re.compile(r"(?:[^/?#]*:)?//[^/?#]*")
_WORDS = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server of the API. url, variables: as its document writes them. host: as in `Contract.servers`, "" for any.
    base: the segments of its base path."""

    url: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    host: str = ""
    base: tuple[Segment, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whose traffic is drafted.

    api: None for a host that no document names. host: traffic of this host alone; None for any.
    servers: of the document. others: what the documents' paths and operations have besides.
    prefix: segments that the gateway strips from a path before documents speak of it.
    fixed_base: the configuration replaces base paths, so that a document can't speak of what lies outside of them.
    taken: operation ids that are in use.
    """

    api: str | None
    host: str | None = None
    title: str = ""
    servers: tuple[Server, ...] = ()
    others: tuple[Server, ...] = ()
    prefix: tuple[Segment, ...] = ()
    fixed_base: bool = False
    taken: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """document: plain data of an OpenAPI 3.1 document. operations: how many it has. calls: that they stand for.
    notes: what was left out, one sentence each; also in the document."""

    document: dict[str, Any]
    operations: int
    calls: int
    notes: tuple[str, ...] = ()


def draft(
    shapes: pa.Table,
    contracts: Contracts,
    settings: Settings,
    target: Target,
    inference: Inference,
    *,
    start_unix_s: float,
    end_unix_s: float,
    least_calls: int | None = None,
) -> Drafted:
    """What the documents lack of an API's traffic, or of a host's that no document names.

    shapes: columns as in `records.SHAPE`, any order; other APIs' rows are not looked at. contracts: of all APIs: what
        one of them describes for that host is not missing.
    least_calls: of an operation, fewer are noise; None: as the judge has it.
    Raises records.BatchError when the columns are others.
    """
    traffic = Traffic(shapes)
    assignment = Assignment(traffic, contracts)
    own = traffic.among("api", (target.api,))
    if target.host is not None:
        own &= traffic.among("host", (target.host,))
    sieve = sifted(traffic, assignment, settings)
    typed: dict[str, tuple[Parameter, ...]] = {}

    def infer(paths: Sequence[str], calls: Sequence[int]) -> list[str]:
        found = inference.templates(paths, calls)
        for template in found:
            typed.setdefault(template.text, template.parameters)
        return [template.text for template in found]

    methods = unknown_methods(traffic, sieve.methods & own, infer)
    paths = unknown_paths(traffic, sieve.paths & own, infer)
    told = [one for one in methods if int(traffic.calls[one.rows].sum()) >= (least_calls or 1)]
    told += [one for one in paths if worth_telling(traffic, one.rows, settings, least_calls)]
    writer = _Writer(traffic, target, typed)
    answers = _Answers(traffic, assignment, own, told)
    for one in sorted(told, key=lambda one: (one.template, one.method)):
        writer.add(one, answers.of(one))
    writer.note(len(methods) + len(paths) - len(told), "operations too seldom called to be told from noise")
    writer.note(int(traffic.calls[sieve.soft & own].sum()), 'calls answered by a "not found" page with a 2xx status')
    return writer.drafted(start_unix_s, end_unix_s)


class _Answers:
    """All rows that a backend answered of each operation: those that say "not found", too, for their statuses."""

    def __init__(self, traffic: Traffic, assignment: Assignment, own: Mask, told: Sequence[Unknown]) -> None:
        self._more: dict[tuple[str, str], list[Ints]] = {}
        self._groups: Groups | None = None
        if not told:
            return
        drafted = Templates([_Drafted(one.template, one.method) for one in told])
        counted = np.zeros(traffic.size, np.bool_)
        for one in told:
            counted[one.rows] = True
        rest = (assignment.path | assignment.method) & traffic.upstream & own & ~counted
        groups = traffic.groups(rest, "method", "path")
        for number, (method, path) in enumerate(groups.values):
            # A HEAD that nobody describes is held against the GET of its path.
            for wanted in ("HEAD", "GET") if method == "HEAD" else (method,):
                fitting = drafted.fitting(path or "", lambda one, wanted=wanted: one.method == wanted)  # type: ignore[misc]
                if fitting:
                    break
            if fitting:
                key = (fitting[0].operation.path_template, fitting[0].operation.method)
                self._more.setdefault(key, []).append(groups.rows(number))

    def of(self, one: Unknown) -> Ints:
        return np.concatenate([one.rows, *self._more.get((one.template, one.method), ())])


@dataclass(frozen=True, slots=True)
class _Drafted:
    path_template: str
    method: str


class _Writer:
    """Operations as OpenAPI says them."""

    def __init__(self, traffic: Traffic, target: Target, typed: Mapping[str, tuple[Parameter, ...]]) -> None:
        self.traffic, self.target, self.typed = traffic, target, typed
        self.items: dict[tuple[object, ...], tuple[str, dict[str, Any]]] = {}
        self.taken = {name.lower() for name in target.taken}
        self.schemes: set[str] = set()
        self.hosts: Counter[str] = Counter()
        self.notes: list[str] = []
        self.left: Counter[str] = Counter()
        self.strange: Counter[str] = Counter()  # methods that OpenAPI does not have
        self.operations = self.calls = 0

    def add(self, one: Unknown, answered: Ints) -> None:
        """Write one operation, or note why not."""
        calls = int(self.traffic.calls[one.rows].sum())
        method = one.method.lower()
        if not one.template.startswith("/") or one.template == OTHER_PATHS:
            rest = one.template == OTHER_PATHS
            self.left["calls of paths too many to be kept apart" if rest else "calls whose target is no path"] += calls
            return
        if one.method != method.upper() or method not in METHODS:
            self.strange[printable(one.method)[:20]] += calls
            return
        segments = Written.of(one.template)
        rest_of = self._below_prefix(segments)
        if rest_of is None:
            self.left["calls outside of the prefix that the gateway strips"] += calls
            return
        place = self._place(rest_of, one.rows)
        if place is None:
            self.left["calls outside of the base path that the configuration gives"] += calls
            return
        written, servers = place
        structure = (tuple(map(repr, servers)), *(parse_template(written.text).segments))
        key, item = self.items.setdefault(structure, (written.text, {}))
        if servers:
            item["servers"] = servers
        if method not in item:
            item[method] = self._operation(one, Written.of(key), segments, answered)
            self.operations, self.calls = self.operations + 1, self.calls + calls

    def note(self, count: int, what: str) -> None:
        """Say that something was left out, if there was any."""
        if count:
            self.left[what] += count

    def drafted(self, start_unix_s: float, end_unix_s: float) -> Drafted:
        """The whole document."""
        target = self.target
        notes = [f"left out: {count} {what}" for what, count in sorted(self.left.items())]
        if self.strange:
            what = f"calls of methods that OpenAPI 3.1 does not have: {_most(self.strange)}"
            notes.append(f"left out: {self.strange.total()} {what}")
        if self.hosts:
            notes.append(f"{self.hosts.total()} calls came to hosts that the servers don't name: {_most(self.hosts)}")
        name = target.title or target.api or target.host or ""
        document: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {
                "title": f"{name}: what the documents lack",
                "version": "draft",
                "description": (
                    "Drafted by apicost from observed traffic: paths, names and kinds, no values. Read it before you "
                    "merge it: what is called is not always what is meant to be."
                ),
            },
            "servers": _as_servers(target.servers) or [{"url": "/"}],
            "paths": {key: _in_order(item) for key, item in sorted(self._unique())},
        }
        if self.schemes:
            document["components"] = {"securitySchemes": {name: dict(SCHEMES[name]) for name in sorted(self.schemes)}}
        document["x-apicost-window"] = {"start": _utc(start_unix_s), "end": _utc(end_unix_s)}
        if notes:
            document["x-apicost-notes"] = notes
        return Drafted(document=document, operations=self.operations, calls=self.calls, notes=tuple(notes))

    def _unique(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """Path items by key; where the same key has other servers, the parameters are called otherwise."""
        taken: set[str] = set()
        for key, item in self.items.values():
            free, number = key, 1
            while free in taken:
                number += 1
                free = f"{key}#{number}"  # a variant of the same path, as our own reader has it
            taken.add(free)
            yield free, item

    # -- where it stands ----------------------------------------------------------------------------

    def _below_prefix(self, written: Written) -> Written | None:
        return written.without(self.target.prefix) if self.target.prefix else written

    def _place(self, written: Written, rows: Ints) -> tuple[Written, list[dict[str, Any]]] | None:
        """The path below the base of its servers, and those servers where they are not the document's.

        None where the document can't speak of it. Hosts that no server names have no say: they are noted.
        """
        target = self.target
        own = _as_servers(target.servers)
        hosts = [normal_host(host) for host in self._sums(rows, "host") if host is not None]
        hosts = [host for host in hosts if any(_names(server, host) for server in (*target.servers, *target.others))]
        for pool in (target.servers, (*target.servers, *target.others)):
            below = [(server, written.without(server.base)) for server in pool]
            for length in sorted({len(server.base) for server, rest in below if rest is not None}, reverse=True):
                fitting = [server for server, rest in below if rest is not None and len(server.base) == length]
                if all(any(_names(server, host) for server in fitting) for host in hosts):
                    servers = _as_servers(s for s in fitting if not hosts or any(_names(s, h) for h in hosts))
                    whole = _as_servers(fitting) == own
                    return Written(written.parts[length:]), [] if whole else servers
        if not target.servers:
            return written, []
        if target.fixed_base:
            return None
        naming = [s for s in (*target.servers, *target.others) if any(_names(s, host) for host in hosts)]
        servers = _as_servers(map(_origin, naming or target.servers))
        return written, [] if servers == own else servers

    # -- what it says -------------------------------------------------------------------------------

    def _operation(self, one: Unknown, key: Written, whole: Written, answered: Ints) -> dict[str, Any]:
        """key: the path of the path item, which parameters are called by. whole: with base path and prefix."""
        traffic = self.traffic
        method = one.method.lower()
        operation: dict[str, Any] = {"operationId": self._id(method, key)}
        parameters = [*self._path_parameters(one, key, whole), *self._query(one.rows)]
        if parameters:
            operation["parameters"] = parameters
        bodies = self._by_type(answered, "request_content_type")
        if bodies:
            operation["requestBody"] = {"content": {name: {} for name in bodies}}
        operation["responses"] = self._responses(answered, method)
        operation |= self._security(one.rows)
        first, last = traffic.numbers("first_unix_ns")[one.rows], traffic.numbers("last_unix_ns")[one.rows]
        seen = first > 0
        operation["x-apicost-calls"] = int(traffic.calls[one.rows].sum())
        if seen.any():
            operation["x-apicost-first-seen"] = _utc(int(first[seen].min()) / 1e9)
            operation["x-apicost-last-seen"] = _utc(int(last.max()) / 1e9)
        operation["x-apicost-consumers"] = len(self._sums(one.rows, "consumer").keys() - {None})
        self._note_hosts(one.rows)
        return operation

    def _path_parameters(self, one: Unknown, key: Written, whole: Written) -> Iterable[dict[str, Any]]:
        own = {parameter.name: parameter for parameter in self.typed.get(one.template, ())}
        paths = sorted(path for path in self._sums(one.rows, "path") if path)
        offset = len(whole.parts) - len(key.parts)
        for position, part in enumerate(key.parts):
            for number, name in enumerate(part.names):
                # The same place in the template, where the parameter may have another name.
                known = own.get(whole.parts[position + offset].raw_names[number])
                kind = (known.type, known.format) if known else _kind(paths, position + offset)
                schema = {"type": kind[0], **({"format": kind[1]} if kind[1] else {})}
                written: dict[str, Any] = {"name": name, "in": "path", "required": True, "schema": schema}
                last = position == len(key.parts) - 1
                if last and any(path.endswith(f"/{MORE}") for path in paths):
                    written["x-multi-segment"] = True
                yield written

    def _query(self, rows: Ints) -> Iterable[dict[str, Any]]:
        calls: Counter[str] = Counter()
        for text, count in self._sums(rows, "query_names").items():
            for one in asked(text).names:
                if not one.cut and one.meant and one.shown == one.meant:
                    calls[one.meant] += count
        most = sorted(calls.items(), key=lambda one: (-one[1], one[0]))[:MOST_NAMES]
        if len(calls) > len(most):
            self.left["query names beyond the most called of their operation"] += len(calls) - len(most)
        for name, count in sorted(most):
            yield {"name": name, "in": "query", "schema": {"type": "string"}, "x-apicost-calls": count}

    def _responses(self, rows: Ints, method: str) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        for status, count in sorted(self._sums(rows, "status").items(), key=lambda one: one[0] or ""):
            if status is None or not _STATUS.fullmatch(status):
                self.left[f"answers with status {status or 'unknown'}"] += count
                continue
            found[status] = {"description": "Seen in traffic.", "x-apicost-calls": count}
            of_status = rows[self.traffic.among("status", (status,))[rows]]
            types = self._by_type(of_status, "response_content_type")
            if types and status not in WITHOUT_CONTENT and status[0] != "1" and method != "head":
                found[status]["content"] = {name: {} for name in types}
        return found or {"default": {"description": "No status was seen that OpenAPI can describe."}}

    def _security(self, rows: Ints) -> dict[str, Any]:
        """The kinds of credentials seen; as alternatives where each successful call carried one that is clear."""
        seen = self._sums(rows, "auth_kinds")
        if not seen.keys() - {None}:
            return {}
        good = rows[self.traffic.among("status_class", ("2xx",))[rows]]
        needed = [_clear(kinds) for kinds in self._sums(good, "auth_kinds")]
        said: dict[str, Any] = {}
        if needed and all(needed):
            self.schemes.update(name for name in needed if name)
            said["security"] = [{name: []} for name in sorted({name for name in needed if name})]
        said["x-apicost-credentials"] = {kinds or "none": count for kinds, count in sorted(
            seen.items(), key=lambda one: (-one[1], one[0] or ""))[:MOST_NAMES]}  # fmt: skip
        return said

    def _id(self, method: str, key: Written) -> str:
        """getInternalUsersByUserId; with a number behind it where that is taken, letters' case aside."""
        words = [method]
        for part in key.parts:
            for text, name in zip(part.pieces, [*part.names, ""], strict=True):
                words += [word[:1].upper() + word[1:] for word in _WORDS.findall(decode(text))]
                words += ["By", *(word[:1].upper() + word[1:] for word in _WORDS.findall(name))] if name else []
        name = "".join(word for word in words)[:120]
        free, number = name, 1
        while free.lower() in self.taken:
            number += 1
            free = f"{name}{number}"
        self.taken.add(free.lower())
        return free

    def _by_type(self, rows: Ints, column: str) -> list[str]:
        names = {name.lower() for name in self._sums(rows, column) if name}
        good = {name for name in names if _MEDIA_TYPE.fullmatch(name)}
        self.note(len(names - good), "media types that are none")
        return sorted(good)

    def _note_hosts(self, rows: Ints) -> None:
        """Count calls to hosts that the draft's servers lack: they are on another server than any document says."""
        servers = (*self.target.servers, *self.target.others)
        for host, count in self._sums(rows, "host").items() if servers else ():
            if host is not None and not any(_names(server, normal_host(host)) for server in servers):
                self.hosts[host] += count

    def _sums(self, rows: Ints, column: str) -> dict[str | None, int]:
        """Calls of some rows by the value of a column; those with no call are left out."""
        mask = np.zeros(self.traffic.size, np.bool_)
        mask[rows] = True
        groups = self.traffic.groups(mask & (self.traffic.calls > 0), column)
        return {value: int(sum_) for (value,), sum_ in zip(groups.values, groups.sums(self.traffic.calls), strict=True)}


def _kind(paths: Sequence[str], position: int) -> tuple[str, str]:
    """The type and format of a documented template's parameter, by what stood in its place."""
    segments = [path.removeprefix("/").split("/") for path in paths]
    texts = [own[position] if position < len(own) else "" for own in segments]
    kinds = {found[1] if (found := _MARKER.fullmatch(text)) else "" for text in texts}
    return SCHEMA_OF.get(kinds.pop(), ("string", "")) if len(kinds) == 1 else ("string", "")


def _in_order(item: Mapping[str, Any]) -> dict[str, Any]:
    """A path item with its servers first and its methods as OpenAPI lists them."""
    return {name: item[name] for name in ("servers", *METHODS) if name in item}


def _names(server: Server, host: str) -> bool:
    return not server.host or fits(tuple(server.host.split("*")), host)


def _origin(server: Server) -> Server:
    """The same server without its base path."""
    found = _ORIGIN.match(server.url)
    url = found[0] if found else "/"
    return Server(url=url, variables={n: v for n, v in server.variables.items() if f"{{{n}}}" in url})


def _as_servers(servers: Iterable[Server]) -> list[dict[str, Any]]:
    """Server Objects, each once."""
    written: dict[str, dict[str, Any]] = {}
    for server in servers:
        variables = {"variables": dict(server.variables)} if server.variables else {}
        written.setdefault(server.url, {"url": server.url, **variables})
    return list(written.values())


def _clear(kinds: str | None) -> str | None:
    """The one kind of credentials that a request carried, where a document can describe it; cookies say nothing."""
    known = set(kinds.split(",")) - {"cookie"} if kinds else set()
    return known.pop() if len(known) == 1 and known <= SCHEMES.keys() else None


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _most(counted: Counter[str]) -> str:
    """The five most called, and how many more there are."""
    names = sorted(counted, key=lambda name: (-counted[name], name))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
