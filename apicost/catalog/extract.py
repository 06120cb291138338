"""What the matcher needs of one OpenAPI document: its operations, servers and what is wrong with it.

Rules of this file:
- Every problem of a document is found in one go; what is sound of it is used.
- Read is 3.0, 3.1 and 3.2 alike; Swagger 2.0 by giving its host and basePath as a server.
- A document that needs much memory or time (YAML, unusual JSON) is read in a child process that ends
  afterwards, and the result is kept in a cache by content, so the daemon neither grows nor waits twice.
"""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from apicost import durable
from apicost.catalog import documents
from apicost.catalog.documents import Resolver, Unresolved, merged
from apicost.catalog.servers import expand, of_swagger
from apicost.core.naming.paths import parse_template
from apicost.problems import InputError, Problem

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace", "query")
_UPPER = {method: method.upper() for method in METHODS}  # one text for all operations of a method
MAX_OPERATIONS = 200_000  # the largest public document has 16,000
MAX_DOUBLES = 5  # of one document
VERSION = 3  # of the cached form: a change of what is extracted makes old files unread

IN_PROCESS_BYTES = 128 << 10  # what must be read whole is read here up to this size, beyond in a child
CHILD_BYTES = 4 << 30  # address space of that child
CHILD_SECONDS = 120


class Server(msgspec.Struct, frozen=True):
    """A Server Object as it stands."""

    url: str
    variables: dict[str, Any]


class Extracted(msgspec.Struct, frozen=True):
    """One operation as it stands in a document.

    template: the key under paths, "#x" and "?k=v" included. operation_id: None where it has none.
    servers: which list of `Extraction.servers` applies. multi_segment: names of parameters that span "/".
    """

    method: str
    template: str
    operation_id: str | None
    pointer: str
    deprecated: bool
    tags: tuple[str, ...]
    servers: int
    multi_segment: tuple[str, ...]


class Extraction(msgspec.Struct, frozen=True):
    """What one document says.

    usable: False where nothing could be read of it. doubles: operations and ids that stand twice.
    digests: of the other files that it refers to.
    """

    file: str
    digest: str
    usable: bool
    title: str
    operations: list[Extracted]
    servers: list[list[Server]]
    problems: list[Problem]
    doubles: list[Problem] = []
    digests: dict[str, str] = {}


def extract(path: Path, *, cache_dir: Path | None = None) -> Extraction:
    """Read one document; what is wrong is in `problems`, nothing is raised.

    cache_dir: where the result is kept by content; a folder that can't be written to is the same as none.
    """
    try:
        raw = documents.read_bytes(path)
    except InputError as error:
        return _unusable(path, "", error)
    digest = documents.digest(raw)
    cached = _cached(path, digest, cache_dir)
    if cached:
        return cached
    extraction = _of_json(path, raw, digest) if documents.looks_like_json(raw) else None
    if extraction is None:
        small = len(raw) <= IN_PROCESS_BYTES
        extraction = read_whole(path, raw) if small else _in_child(path, digest)
        _keep(path, extraction, cache_dir)
    return extraction


def read_whole(path: Path, raw: bytes) -> Extraction:
    """Extract from the whole document, in this process."""
    digest = documents.digest(raw)
    try:
        data = documents.whole(raw, str(path))
    except InputError as error:
        return _unusable(path, digest, error)
    return _Walk(path, raw, data, whole=True).extraction(digest)


def _of_json(path: Path, raw: bytes, digest: str) -> Extraction | None:
    """Extract from JSON without building all of it; None where that is not enough."""
    data = documents.pruned(raw)
    if data is None:
        return None
    try:
        return _Walk(path, raw, data, whole=False).extraction(digest)
    except _NeedsWhole:
        return None


def _unusable(path: Path, digest: str, error: InputError) -> Extraction:
    return Extraction(str(path), digest, False, "", [], [], list(error.problems))


def _in_child(path: Path, digest: str) -> Extraction:
    """Extract in a process of its own, which gives its memory back when it ends."""
    command = [sys.executable, "-m", "apicost.catalog.extract", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        reason = f"took longer than {CHILD_SECONDS} s to read"
    else:
        try:
            return msgspec.json.decode(done.stdout, type=Extraction)
        except msgspec.DecodeError:
            reason = f"is broken or nested too deeply: the process that read it ended with {done.returncode}"
    problem = Problem(
        place=str(path), fact=reason, effect="the document is not used", fix="split it, or write it as JSON"
    )
    return _unusable(path, digest, InputError([problem]))


def main() -> int:
    """The child: extract argv[1] under limits, print the extraction as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CHILD_SECONDS, CHILD_SECONDS))
    path = Path(sys.argv[1])
    try:
        extraction = read_whole(path, documents.read_bytes(path))
    except InputError as error:
        extraction = _unusable(path, "", error)
    sys.stdout.buffer.write(msgspec.json.encode(extraction))
    return 0


def _cache_file(path: Path, digest: str, cache_dir: Path) -> Path:
    # The path is part of the name: problems name it.
    name = hashlib.sha256(f"{VERSION}\n{path}\n{digest}".encode()).hexdigest()
    return cache_dir / f"openapi-{name[:32]}.json"


def _cached(path: Path, digest: str, cache_dir: Path | None) -> Extraction | None:
    if cache_dir is None:
        return None
    try:
        found = msgspec.json.decode(_cache_file(path, digest, cache_dir).read_bytes(), type=Extraction)
    except (OSError, msgspec.DecodeError):
        return None
    return found if documents.unchanged(path, found.digests) else None


def _keep(path: Path, extraction: Extraction, cache_dir: Path | None) -> None:
    if cache_dir is None or not extraction.usable:
        return
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(_cache_file(path, extraction.digest, cache_dir), msgspec.json.encode(extraction))
    except OSError:
        return  # the next start reads the document again; nothing else is lost


def _text(value: Any) -> str | None:
    """A scalar as text; None for anything else, since the text of a list full of aliases has no bound."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else None


def _variables(variables: Any) -> dict[str, Any]:
    """What counts of Server Variable Objects: their enums and defaults."""
    kept: dict[str, Any] = {}
    for name, variable in variables.items() if isinstance(variables, Mapping) else ():
        own: dict[str, Any] = {}
        kept[str(name)] = own
        if isinstance(variable, Mapping):
            enum, default = variable.get("enum"), _text(variable.get("default"))
            if isinstance(enum, list):
                own["enum"] = [text for text in map(_text, enum) if text is not None]
            if default is not None:
                own["default"] = default
    return kept


class _NeedsWhole(Exception):
    """The document refers to a part that was skipped."""


class _Walk:
    """One pass over a document's data, collecting operations and problems."""

    def __init__(self, path: Path, raw: bytes, data: Any, *, whole: bool) -> None:
        self.path = path
        self.resolved = path.resolve()
        self.raw = raw
        self.data = data
        self.whole = whole
        self.resolver = Resolver(path, data)
        self.problems: list[tuple[tuple[str | int, ...], str, str, str]] = []
        self.operations: list[Extracted] = []
        self.servers: list[list[Server]] = []
        self._server_numbers: dict[bytes, int] = {}

    def extraction(self, digest: str) -> Extraction:
        usable = self._document()
        single = len(self.problems)
        self._twice()
        places = documents.places(self.path, self.raw, [where for where, *_ in self.problems])
        problems = [
            Problem(place=place, fact=fact, effect=effect, fix=fix)
            for place, (_, fact, effect, fix) in zip(places, self.problems, strict=True)
        ]
        info = self.data.get("info") if isinstance(self.data, Mapping) else None
        title = _text(info.get("title")) if isinstance(info, Mapping) else ""
        return Extraction(
            str(self.path),
            digest,
            usable,
            title or "",
            self.operations,
            self.servers,
            problems[:single],
            problems[single:],
            self.resolver.digests,
        )

    def _problem(self, where: tuple[str | int, ...], fact: str, effect: str, fix: str) -> None:
        self.problems.append((where, fact, effect, fix))

    def _document(self) -> bool:
        unused = "the document is not used"
        data = self.data
        if not isinstance(data, Mapping):
            self._problem((), "is not a mapping", unused, "write an OpenAPI document")
            return False
        version = _text(data.get("openapi")) or _text(data.get("swagger")) or ""
        if not version.startswith("3." if "openapi" in data else "2."):
            fact = f"openapi: {version!r} is not a version read here" if version else "names no OpenAPI version"
            fix = "write such as 'openapi: 3.1.0' at the top; 3.0, 3.1, 3.2 and Swagger 2.0 are read"
            self._problem(("openapi",) if "openapi" in data else (), fact, unused, fix)
            return False
        paths = data.get("paths")
        if paths is None and not version.startswith(("2.", "3.0")):
            return True  # 3.1 on: a document may consist of components or webhooks
        if not isinstance(paths, Mapping):
            self._problem(("paths",), "paths is not a mapping", unused, "write one key for each path")
            return False
        root = data.get("servers")
        if "swagger" in data:
            root = of_swagger(_text(data.get("host")), _text(data.get("basePath")))
        inherited = self._server_list(root, ("servers",), None)
        for key, item in merged(paths).items():
            self._path(str(key), item, inherited)
            if len(self.operations) > MAX_OPERATIONS:
                fact = f"documents more than {MAX_OPERATIONS} operations"
                self._problem(("paths", key), fact, "what follows is not read", "split the document")
                break
        return True

    def _path(self, key: str, item: Any, inherited: int) -> None:
        where = ("paths", key)
        if key.startswith("x-") or item is None:
            return
        if not key.startswith("/"):
            self._problem(where, f"path {key!r} does not begin with '/'", f"it is read as '/{key}'", f"write '/{key}'")
            key = "/" + key
        item = self._resolved(item, where)
        if item is None:
            return
        servers = self._server_list(item.get("servers"), (*where, "servers"), inherited)
        faults: dict[str, None] = {}
        spans = self._spanning(item.get("parameters"))
        for method, pointer, operation in self._operations_of(item, where):
            if not isinstance(operation, Mapping):
                self._problem(pointer, f"{method} is not a mapping", "it is not read", "write an operation")
                continue
            operation = merged(operation)
            multi = {**spans, **self._spanning(operation.get("parameters"))}
            own = tuple(sorted(name for name, spanning in multi.items() if spanning))
            faults.update(dict.fromkeys(parse_template(key, own).faults))
            tags = operation.get("tags")
            self.operations.append(
                Extracted(
                    method,
                    key,
                    _text(operation.get("operationId")) or None,
                    documents.json_pointer(pointer),
                    operation.get("deprecated") is True,
                    tuple(filter(None, map(_text, tags))) if isinstance(tags, list) else (),
                    self._server_list(operation.get("servers"), (*pointer, "servers"), servers),
                    own,
                )
            )
        for fault in faults:
            self._problem(where, f"path {key!r}: {fault}", "requests may match that were not meant", "mend it")

    def _operations_of(
        self, item: Mapping[str, Any], where: tuple[str | int, ...]
    ) -> Iterator[tuple[str, tuple[str | int, ...], Any]]:
        for method in METHODS:
            if item.get(method) is not None:
                yield _UPPER[method], (*where, method), item[method]
        more = item.get("additionalOperations")
        if isinstance(more, Mapping):
            for method, operation in more.items():
                yield str(method), (*where, "additionalOperations", str(method)), operation

    def _resolved(self, item: Any, where: tuple[str | int, ...]) -> Mapping[str, Any] | None:
        """A path item with what it refers to; its own fields win. None where that can't be used."""
        source = self.resolved
        chain: list[Mapping[str, Any]] = []
        seen = set()
        effect = "its operations are not read: their requests are undocumented-path"
        while True:
            if not isinstance(item, Mapping):
                self._problem(where, "is not a path item", effect, "write a mapping of methods")
                return None
            item = merged(item)
            chain.append(item)
            ref = item.get("$ref")
            if ref is None:
                break
            if (source, ref) in seen:
                self._problem(where, f"$ref {ref!r} leads back to itself", effect, "end the circle")
                return None
            seen.add((source, ref))
            try:
                item, source = self.resolver.follow(str(ref), source)
            except Unresolved as error:
                if not self.whole:
                    raise _NeedsWhole from None
                self._problem(where, f"$ref {str(ref)!r} {error}", effect, "bundle the document into one file")
                return None
        return {key: value for part in reversed(chain) for key, value in part.items()}

    def _spanning(self, parameters: Any) -> dict[str, bool]:
        """Parameters by name: whether x-multi-segment is set on them."""
        found = {}
        for parameter in parameters if isinstance(parameters, list) else ():
            source = self.resolved
            for _ in range(8):  # a parameter behind more references than this has no say here
                if not isinstance(parameter, Mapping) or "$ref" not in parameter:
                    break
                try:
                    parameter, source = self.resolver.follow(str(parameter["$ref"]), source)
                except Unresolved:
                    # Validation reports it; for paths it matters only where it spans "/".
                    parameter = None
            if isinstance(parameter, Mapping) and isinstance(parameter.get("name"), str):
                found[parameter["name"]] = parameter.get("x-multi-segment") is True
        return found

    def _server_list(self, servers: Any, where: tuple[str | int, ...], inherited: int | None) -> int:
        """The number of the list that applies: its own, else the inherited one, else "/"."""
        listed = []
        for number, server in enumerate(servers if isinstance(servers, list) else ()):
            url = server.get("url") if isinstance(server, Mapping) else None
            if not isinstance(url, str):
                self._problem((*where, number), "this server has no url", "it is not used", "write url: ...")
                continue
            listed.append(Server(url, _variables(server.get("variables"))))
        if not listed:
            if inherited is not None:
                return inherited
            listed = [Server("/", {})]
        key = msgspec.json.encode(listed)
        if key not in self._server_numbers:
            self._server_numbers[key] = len(self.servers)
            self.servers.append(listed)
            self._check_servers(listed, where)
        return self._server_numbers[key]

    def _check_servers(self, listed: list[Server], where: tuple[str | int, ...]) -> None:
        for number, server in enumerate(listed):
            report = functools.partial(self._problem, (*where, number))
            expand(server.url, server.variables, report)

    def _twice(self) -> None:
        """Operations that can't be told apart, and operation ids that stand twice.

        The first MAX_DOUBLES are told: documents with "#" in their keys have one for each operation. `lint` has all.
        """
        single = len(self.problems)
        self._all_twice()
        more = len(self.problems) - single - MAX_DOUBLES
        if more > 0:
            del self.problems[single + MAX_DOUBLES :]
            fact = f"has {more} more operations or ids that stand twice"
            self._problem((), fact, "as said of the others", "`apicost spec lint` names them all")

    def _all_twice(self) -> None:
        by_shape: dict[object, Extracted] = {}
        by_id: dict[str, Extracted] = {}
        for operation in self.operations:
            template = parse_template(operation.template, operation.multi_segment)
            shape = (operation.method, operation.servers, template.segments, template.discriminators)
            first = by_shape.setdefault(shape, operation)
            if first is not operation:
                self._problem(
                    ("paths", operation.template),
                    f"{operation.method} {operation.template!r} fits the same requests as {first.template!r}",
                    f"they count for {first.template!r}, flagged ambiguous-operation",
                    "give one operation for them, or tell them apart by path or '?name=value'",
                )
            if operation.operation_id:
                first = by_id.setdefault(operation.operation_id, operation)
                if first is not operation:
                    self._problem(
                        ("paths", operation.template),
                        f"operationId {operation.operation_id!r} of {operation.method} {operation.template!r} "
                        f"also names {first.method} {first.template!r}",
                        "their rows differ by path template only",
                        "give each operation an id of its own",
                    )


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
