"""What the documents of all APIs promise: a contract for each operation, under the names that the matcher gives.

For short-lived processes (commands, reports): contracts of large documents take tens of MB.

Rules of this file:
- Operations, base paths and hosts come from the same code as the matcher's (`openapi.places_of`), so that the two
  can't name an operation differently.
- Requests that several operations share a name for ("#x" variants of a path, the same operation in two documents)
  are held only against what all of these forbid.
- Read once: what was read of large documents and of YAML is kept by content, as `extract.py` does.
"""

from __future__ import annotations

import hashlib
import itertools
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from apicost import durable
from apicost.catalog import documents
from apicost.catalog.extract import CHILD_BYTES, CHILD_SECONDS, IN_PROCESS_BYTES, extract
from apicost.catalog.faults import Found, Read, faults_of
from apicost.catalog.openapi import ApiSource, places_of
from apicost.catalog.promises import Promise, Promises, SchemeText, promises
from apicost.catalog.servers import configured_base
from apicost.core.conformance.contract import (
    AUTHORIZATION,
    QUERY,
    Contract,
    Contracts,
    QueryParameter,
    Scheme,
)
from apicost.core.conformance.finding import RULES
from apicost.core.conformance.twins import merged
from apicost.core.naming.operations import ANY_HOST, HostPattern, Place
from apicost.problems import InputError, Problem

_T = TypeVar("_T")

VERSION = 1  # of the cached form: a change of what is read makes old files unread

Key = tuple[str, str, str]  # API, method, path template


def load_contracts(
    apis: Sequence[ApiSource],
    *,
    cache_dir: Path | None = None,
    api_key_headers: Sequence[str] = ("apikey", "x-api-key"),
    api_key_query: Sequence[str] = ("apikey",),
) -> tuple[Contracts, tuple[Problem, ...]]:
    """What the documents of some APIs promise, and what of that can't be understood. Nothing is raised.

    cache_dir: as in `openapi.load_apis`, which also says what is wrong with documents as such: unreadable ones
        have no contracts here, and no problem either.
    api_key_headers, api_key_query: headers and query parameters that the gateway's plugin takes for API keys. A key in
        another header is one that no usage line shows; one in the query is known by the parameter's name.
    """
    read = read_documents(apis, cache_dir=cache_dir)
    keys = _Keys(frozenset(map(str.lower, api_key_headers)), frozenset(api_key_query))
    operations: dict[Key, Contract] = {}
    bases: dict[Key, int] = {}
    for document in read:
        schemes = {name: keys.scheme(name, text) for name, text in document.promises.schemes.items()}
        for extracted, places, promise in document.found:
            if promise is None:  # what lies beyond a bound: nothing is known, nothing is forbidden
                promise = Promise(extracted.pointer, query_open=True, request_types=("*/*",))
            for base, found in _contracts(places, promise, schemes):
                key = (found.api, found.method, found.path_template)
                if key not in operations:
                    operations[key], bases[key] = found, base
                elif base > bases[key]:  # of two equal templates the matcher takes the longer base
                    operations[key], bases[key] = merged(found, operations[key]), base
                else:
                    operations[key] = merged(operations[key], found)
    contracts = Contracts(
        operations=operations,
        faults=tuple(fault for fault in faults_of(read) if fault.rule in RULES),
        documents={api.id: tuple(str(file) for file in api.documents) for api in apis},
        prefixes={api.id: prefix for api in apis if (prefix := configured_base(api.strip_prefix)[0])},
    )
    return contracts, tuple(problem for document in read for problem in document.promises.problems)


def read_documents(apis: Sequence[ApiSource], *, cache_dir: Path | None = None) -> list[Read]:
    """The usable documents of some APIs, with their operations where the matcher finds them."""
    found = []
    for api in apis:
        for file in map(Path, api.documents):
            extraction = extract(file, cache_dir=cache_dir)
            if extraction.usable:
                promised = _read(file, cache_dir)
                by_pointer = {promise.pointer: promise for promise in promised.operations}
                operations = [
                    Found(extracted, places, by_pointer.get(extracted.pointer))
                    for extracted, places in places_of(api, extraction)
                ]
                found.append(Read(source=api, extraction=extraction, promises=promised, found=operations))
    return found


class _Keys(msgspec.Struct, frozen=True):
    """Where the gateway's plugin sees API keys."""

    headers: frozenset[str]
    query: frozenset[str]

    def scheme(self, name: str, text: SchemeText) -> Scheme:
        """A scheme by the words of usage lines."""
        if text.type in ("oauth2", "openIdConnect"):
            return Scheme(name=name, kind="bearer")
        if text.type == "mutualTLS":
            return Scheme(name=name, kind="mtls")
        if text.type == "http":
            return Scheme(name=name, kind=text.scheme if text.scheme in ("basic", "bearer", "digest") else "other")
        if text.type == "apiKey" and text.place == "cookie":
            return Scheme(name=name, kind="cookie")
        if text.type == "apiKey" and text.place == "query":
            return Scheme(name=name, kind="apikey" if text.key in self.query else QUERY, query_name=text.key)
        if text.type == "apiKey" and text.place == "header":
            header = text.key.lower()
            known = "apikey" if header in self.headers else ""
            return Scheme(name=name, kind=AUTHORIZATION if header == "authorization" else known)
        return Scheme(name=name, kind="")


def _contracts(
    places: Sequence[Place], promise: Promise, schemes: Mapping[str, Scheme]
) -> Iterator[tuple[int, Contract]]:
    """The contracts of one operation, one for each base path, and how many segments that has."""
    security = tuple(tuple(schemes[name] for name in names) for names in promise.security)
    query = {one.name: one for one in promise.query}
    for scheme in itertools.chain.from_iterable(security):
        if scheme.query_name and scheme.query_name not in query:
            query[scheme.query_name] = QueryParameter(name=scheme.query_name, pointer=promise.pointer)
    by_template: dict[str, list[Place]] = {}
    for place in places:
        by_template.setdefault(place.operation.path_template, []).append(place)
    for template, found in by_template.items():
        operation = found[0].operation
        yield (
            found[0].base_segments,
            Contract(
                api=operation.api,
                operation_id=operation.operation_id,
                method=operation.method,
                path_template=template,
                spec=operation.spec,
                pointer=operation.pointer,
                deprecated=operation.deprecated,
                query=tuple(query.values()),
                query_open=promise.query_open,
                request_types=promise.request_types,
                request_required=promise.request_required,
                responses=promise.responses,
                security=security,
                servers=_hosts([host for place in found for host in place.hosts]),
            ),
        )


def _hosts(patterns: Sequence[HostPattern]) -> tuple[str, ...]:
    if any(pattern.rank == ANY_HOST for pattern in patterns):
        return ()
    return tuple(dict.fromkeys("*".join(pattern.pieces) for pattern in patterns))


def _read(path: Path, cache_dir: Path | None) -> Promises:
    """What one document promises, from the cache where that has it."""
    try:
        raw = documents.read_bytes(path)
    except InputError as error:
        return Promises(problems=list(error.problems))
    file = _cache_file(path, documents.digest(raw), cache_dir)
    found = _cached(path, file)
    if found is None:
        small = documents.looks_like_json(raw) or len(raw) <= IN_PROCESS_BYTES
        found = _whole(path, raw) if small else _in_child(path)
        if len(raw) > IN_PROCESS_BYTES:
            _keep(file, found)
    return found


def _whole(path: Path, raw: bytes) -> Promises:
    try:
        return promises(path, raw, documents.whole(raw, str(path)))
    except InputError as error:
        return Promises(problems=list(error.problems))


def _in_child(path: Path) -> Promises:
    """Read in a process of its own: deep YAML ends a process inside libyaml."""
    command = [sys.executable, "-m", "apicost.catalog.contracts", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHILD_SECONDS, check=False)
        return msgspec.json.decode(done.stdout, type=Promises)
    except subprocess.TimeoutExpired:
        reason = f"took longer than {CHILD_SECONDS} s to read"
    except msgspec.DecodeError:
        reason = f"is broken or nested too deeply: the process that read it ended with {done.returncode}"
    effect, fix = "nothing is held against its operations", "split it, or write it as JSON"
    return Promises(problems=[Problem(place=str(path), fact=reason, effect=effect, fix=fix)])


def main() -> int:
    """The child: read argv[1] under limits, print what it promises as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CHILD_SECONDS, CHILD_SECONDS))
    path = Path(sys.argv[1])
    try:
        found = _whole(path, documents.read_bytes(path))
    except InputError as error:
        found = Promises(problems=list(error.problems))
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


def _cache_file(path: Path, digest: str, cache_dir: Path | None) -> Path | None:
    if cache_dir is None:
        return None
    # The path is part of the name: problems name it.
    name = hashlib.sha256(f"{VERSION}\n{path}\n{digest}".encode()).hexdigest()
    return cache_dir / f"contracts-{name[:32]}.json"


def _cached(path: Path, file: Path | None) -> Promises | None:
    if file is None:
        return None
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Promises)
    except (OSError, msgspec.DecodeError):
        return None
    return found if documents.unchanged(path, found.digests) else None


def _keep(file: Path | None, found: Promises) -> None:
    if file is None or not found.operations:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(file, msgspec.json.encode(found))
    except OSError:
        return  # the next run reads the document again; nothing else is lost


if __name__ == "__main__":
    sys.exit(main())
