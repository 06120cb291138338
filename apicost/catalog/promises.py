"""What one OpenAPI document promises of each operation, as far as traffic without bodies can be held against it.

Rules of this file:
- Read is 3.0, 3.1, 3.2 and Swagger 2.0; what is wrong is a problem, what is sound beside it is used.
- In doubt nothing is forbidden: a part that can't be read promises "anything", so that it makes no finding.
- Everything is bounded: references by `documents.Resolver`, depth of schemas, and the number of parts looked at
  (YAML aliases and shared references can make a small document say very much).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from apicost.catalog import documents
from apicost.catalog.documents import Resolver, Unresolved, merged
from apicost.catalog.extract import METHODS
from apicost.core.conformance.contract import QueryParameter, Response
from apicost.problems import Problem

MAX_PARTS = 3_000_000  # parameters, properties, responses, ... of a document: GitHub's has 30,000
MAX_REFS = 16  # one behind the other
MAX_SCHEMA_DEPTH = 8  # of allOf, oneOf and anyOf, when property names are collected
ANYTHING = ("*/*",)
FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"

Where = tuple[str | int, ...]


class SchemeText(msgspec.Struct, frozen=True):
    """A Security Scheme Object as it stands: type, HTTP scheme (lower case), place and name of a key."""

    type: str
    scheme: str = ""
    place: str = ""
    key: str = ""


class Promise(msgspec.Struct, frozen=True):
    """What is promised of one operation; fields as in `core.conformance.contract.Contract`.

    security: alternatives of scheme names, to be looked up in `Promises.schemes`.
    path_parameters: names of the path parameters that are declared; for linting.
    """

    pointer: str
    query: tuple[QueryParameter, ...] = ()
    query_open: bool = False
    request_types: tuple[str, ...] | None = None
    request_required: bool = False
    responses: tuple[Response, ...] = ()
    security: tuple[tuple[str, ...], ...] = ()
    path_parameters: tuple[str, ...] = ()


class Promises(msgspec.Struct, frozen=True):
    """All of one document.

    servers_stated: whether it names any server. digests: of the other files that it refers to.
    """

    operations: list[Promise] = []
    schemes: dict[str, SchemeText] = {}
    problems: list[Problem] = []
    servers_stated: bool = True
    digests: dict[str, str] = {}


def promises(path: Path, raw: bytes, data: Any) -> Promises:
    """What a document's data (as `documents.whole` gives it) promises. Nothing is raised."""
    return _Reader(path, raw, data).read()


class _Full(Exception):
    """MAX_PARTS is reached."""


def _maybe(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _media_range(text: Any) -> str:
    """A media range as it is compared: lower case, without parameters."""
    return str(text).partition(";")[0].strip().lower()


def _status(text: Any) -> str | None:
    """A key under responses as "200", "4XX" or "default"; None where it is none of them."""
    status = str(text).strip()
    if status == "default":
        return status
    status = status.upper()
    good = len(status) == 3 and status.isascii() and status[0] in "12345" and (status[1:] == "XX" or status.isdigit())
    return status if good else None


class _Reader:
    """One pass over a document's data."""

    def __init__(self, path: Path, raw: bytes, data: Any) -> None:
        self.path = path
        self.root = path.resolve()
        self.raw = raw
        self.data = data if isinstance(data, Mapping) else {}
        self.swagger = "swagger" in self.data
        self.resolver = Resolver(path, data)
        self.problems: dict[tuple[Where, str], tuple[str, str]] = {}
        self.schemes: dict[str, SchemeText] = {}
        self._parts = 0

    def read(self) -> Promises:
        found: list[Promise] = []
        self._read_schemes()
        try:
            found.extend(self._operations())
        except _Full:
            effect = "nothing is held against the operations that follow"
            self._problem(("paths",), f"describes more than {MAX_PARTS} parts", effect, "split the document")
        where = [place for place, _ in self.problems]
        places = documents.places(self.path, self.raw, where)
        problems = [
            Problem(place=place, fact=fact, effect=effect, fix=fix)
            for place, ((_, fact), (effect, fix)) in zip(places, self.problems.items(), strict=True)
        ]
        words = ("host", "basePath") if self.swagger else ("servers",)
        stated = any(self.data.get(word) for word in words)
        return Promises(found, self.schemes, problems, stated, self.resolver.digests)

    def _problem(self, where: Where, fact: str, effect: str, fix: str) -> None:
        self.problems.setdefault((where, fact), (effect, fix))

    def _count(self, parts: int = 1) -> None:
        self._parts += parts
        if self._parts > MAX_PARTS:
            raise _Full

    def _follow(self, value: Any, source: Path, where: Where) -> tuple[Any, Path]:
        """What a value stands for, through its $refs; (None, source) and a problem where that is nothing."""
        seen: set[tuple[Path, str]] = set()
        while isinstance(value, Mapping) and "$ref" in value:
            ref = str(value["$ref"])
            effect, fix = "this part promises nothing", "bundle the document into one file"
            self._count()
            if (source, ref) in seen or len(seen) > MAX_REFS:
                self._problem(where, f"$ref {ref!r} leads back to itself", effect, "end the circle")
                return None, source
            seen.add((source, ref))
            try:
                value, source = self.resolver.follow(ref, source)
            except Unresolved as error:
                self._problem(where, f"$ref {ref!r} {error}", effect, fix)
                return None, source
        return (merged(value) if isinstance(value, Mapping) else value), source

    def _operations(self) -> Iterator[Promise]:
        paths = self.data.get("paths")
        if not isinstance(paths, Mapping):
            return
        for key, item in merged(paths).items():
            parts = self._path_item(item)
            where = ("paths", str(key))
            if str(key).startswith("x-") or not parts:
                continue
            fields: dict[str, tuple[Any, Path]] = {}
            for part, source in parts:
                for name, value in part.items():
                    fields.setdefault(str(name), (value, source))
            shared = self._parameters(*fields.get("parameters", (None, self.root)), (*where, "parameters"))
            for name in METHODS:
                value, source = fields.get(name, (None, self.root))
                if isinstance(value, Mapping):
                    yield self._operation(merged(value), source, (*where, name), shared)
            more, source = fields.get("additionalOperations", (None, self.root))
            for name, value in _maybe(more).items():
                if isinstance(value, Mapping):
                    pointer = (*where, "additionalOperations", str(name))
                    yield self._operation(merged(value), source, pointer, shared)

    def _path_item(self, item: Any) -> list[tuple[Mapping[str, Any], Path]]:
        """A path item and what it refers to, its own fields first; what can't be followed, extraction reports."""
        source = self.root
        found: list[tuple[Mapping[str, Any], Path]] = []
        seen: set[tuple[Path, str]] = set()
        while isinstance(item, Mapping):
            item = merged(item)
            found.append((item, source))
            ref = item.get("$ref")
            if ref is None:
                return found
            if (source, str(ref)) in seen:
                return []
            seen.add((source, str(ref)))
            try:
                item, source = self.resolver.follow(str(ref), source)
            except Unresolved:
                return []
        return []

    def _operation(self, operation: Mapping[str, Any], source: Path, where: Where, shared: _Named) -> Promise:
        self._count()
        own = self._parameters(operation.get("parameters"), source, (*where, "parameters"))
        parameters = {**shared, **own}
        query: dict[str, QueryParameter] = {}
        query_open = False
        for (place, _), (parameter, origin, pointer) in parameters.items():
            if place == "querystring":
                query_open = True
            elif place == "query":
                names, is_open = self._query(parameter, origin, pointer)
                query_open |= is_open
                query.update((one.name, one) for one in names)
        if self.swagger:
            types, required = self._swagger_body(operation, parameters)
        else:
            types, required = self._body(operation, source, where)
        security = operation.get("security", self.data.get("security"))
        at = (*where, "security") if "security" in operation else ("security",)
        return Promise(
            documents.json_pointer(where),
            tuple(query.values()),
            query_open,
            types,
            required,
            self._responses_of(operation, source, where),
            self._security(security, at),
            tuple(name for place, name in parameters if place == "path"),
        )

    def _parameters(self, listed: Any, source: Path, where: Where) -> _Named:
        """Parameters by (in, name), references followed."""
        found: _Named = {}
        if listed is not None and not isinstance(listed, list):
            fix = "write a list of parameters"
            self._problem(where, "parameters is not a list", "none of them is known", fix)
            return found
        for number, value in enumerate(listed or ()):
            self._count()
            pointer = (*where, number)
            parameter, origin = self._follow(value, source, pointer)
            if parameter is None and value is not None:
                continue  # said by _follow
            place, name = _maybe(parameter).get("in"), _maybe(parameter).get("name")
            if not isinstance(place, str) or not isinstance(name, str):
                fix = "write name: and in:"
                self._problem(pointer, "this parameter lacks a name or its place", "it is not known", fix)
                continue
            found[(place, name)] = (parameter, origin, pointer)
        return found

    def _query(self, parameter: Mapping[str, Any], source: Path, where: Where) -> tuple[list[QueryParameter], bool]:
        """The query names of one parameter, and whether it allows any others."""
        name, required = parameter["name"], parameter.get("required") is True
        deprecated, pointer = parameter.get("deprecated") is True, documents.json_pointer(where)
        plain = QueryParameter(name=name, required=required, deprecated=deprecated, pointer=pointer)
        style = parameter.get("style", "form")
        if style == "deepObject":
            whole = QueryParameter(name=name, required=required, deprecated=deprecated, prefix=True, pointer=pointer)
            return [whole], False
        if self.swagger or "schema" not in parameter or style != "form" or parameter.get("explode") is False:
            return [plain], False
        shape = _Shape()
        self._shape(parameter["schema"], source, (*where, "schema"), shape, 0)
        if not shape.is_object:
            return [plain], False
        names = [
            QueryParameter(
                name=one, required=required and one in shape.required, deprecated=deprecated, pointer=pointer
            )
            for one in shape.properties
        ]
        if shape.is_scalar:
            names.append(QueryParameter(name=name, deprecated=deprecated, pointer=pointer))
        return names, shape.is_open or not shape.properties

    def _shape(self, schema: Any, source: Path, where: Where, shape: _Shape, depth: int, sure: bool = True) -> None:
        """Add what a schema says of an object's properties. sure: False below oneOf and anyOf."""
        schema, source = self._follow(schema, source, where)
        self._count()
        if not isinstance(schema, Mapping):
            return
        if depth > MAX_SCHEMA_DEPTH:
            shape.is_open = shape.is_object = True
            return
        types = schema.get("type")
        types = set(map(str, types)) if isinstance(types, list) else {str(types)} if types is not None else set()
        properties = _maybe(schema.get("properties"))
        more = schema.get("additionalProperties")
        if "object" in types or (not types and (properties or more)):
            shape.is_object = True
        if types - {"object", "null"}:
            shape.is_scalar = True
        self._count(len(properties))
        shape.properties.update(dict.fromkeys(map(str, properties)))
        # Left out, it would allow any name; but then no document could ever say which names there are.
        if more is True or isinstance(more, Mapping) or "patternProperties" in schema:
            shape.is_open = True
        required = schema.get("required")
        if sure and isinstance(required, list):
            shape.required.update(str(one) for one in required if isinstance(one, str))
        for word in ("allOf", "oneOf", "anyOf"):
            parts = schema.get(word)
            for number, part in enumerate(parts if isinstance(parts, list) else ()):
                self._shape(part, source, (*where, word, number), shape, depth + 1, sure and word == "allOf")

    def _body(self, operation: Mapping[str, Any], source: Path, where: Where) -> tuple[tuple[str, ...] | None, bool]:
        if operation.get("requestBody") is None:
            return None, False
        body, _ = self._follow(operation["requestBody"], source, (*where, "requestBody"))
        if not isinstance(body, Mapping):
            return ANYTHING, False
        types = self._types(body.get("content"))
        return types or ANYTHING, body.get("required") is True

    def _types(self, content: Any) -> tuple[str, ...]:
        keys = list(_maybe(content))
        self._count(len(keys))
        return tuple(dict.fromkeys(filter(None, map(_media_range, keys))))

    def _swagger_types(self, operation: Mapping[str, Any], word: str) -> tuple[str, ...]:
        listed = operation.get(word, self.data.get(word))
        listed = [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
        self._count(len(listed))
        return tuple(dict.fromkeys(filter(None, map(_media_range, listed))))

    def _swagger_body(self, operation: Mapping[str, Any], parameters: _Named) -> tuple[tuple[str, ...] | None, bool]:
        bodies = [parameter for (place, _), (parameter, *_) in parameters.items() if place in ("body", "formData")]
        if not bodies:
            return None, False
        types = self._swagger_types(operation, "consumes")
        if any(body["in"] == "formData" for body in bodies):
            types = tuple(one for one in types if one in (FORM, MULTIPART)) or (FORM, MULTIPART)
        return types or ANYTHING, any(body.get("required") is True for body in bodies)

    def _responses_of(self, operation: Mapping[str, Any], source: Path, where: Where) -> tuple[Response, ...]:
        where = (*where, "responses")
        listed, source = self._follow(operation.get("responses"), source, where)
        if listed is not None and not isinstance(listed, Mapping):
            self._problem(where, "responses is not a mapping", "any status is taken for documented", "write a mapping")
        found: dict[str, Response] = {}
        produces = self._swagger_types(operation, "produces") if self.swagger else ()
        for key, value in merged(_maybe(listed)).items():
            self._count()
            status = _status(key)
            if status is None:
                if not str(key).startswith("x-"):
                    fix = "write a status such as '200', a range such as '4XX', or default"
                    self._problem((*where, str(key)), f"{str(key)!r} is not a status", "it is not known", fix)
                continue
            pointer = (*where, str(key))
            response, _ = self._follow(value, source, pointer)
            if not isinstance(response, Mapping):
                types: tuple[str, ...] = ANYTHING
            elif self.swagger:
                types = (produces or ANYTHING) if "schema" in response else ()
            else:
                types = self._types(response.get("content"))
            found.setdefault(status, Response(status=status, types=types, pointer=documents.json_pointer(pointer)))
        return tuple(found.values())

    def _security(self, listed: Any, where: Where) -> tuple[tuple[str, ...], ...]:
        if listed is None:
            return ()
        if not isinstance(listed, list):
            fix = "write a list of mappings, or [] for none"
            self._problem(where, "security is not a list", "no credentials are asked for", fix)
            return ()
        found: dict[tuple[str, ...], None] = {}
        for number, alternative in enumerate(listed):
            self._count()
            if not isinstance(alternative, Mapping):
                fix = "write a mapping of scheme names"
                self._problem((*where, number), "is not a security requirement", "credentials are optional", fix)
                found[()] = None
                continue
            names = tuple(map(str, alternative))
            self._count(len(names))
            for name in names:
                self._scheme(name, (*where, number))
            found[names] = None
        return tuple(found)

    def _read_schemes(self) -> None:
        root = ("securityDefinitions",) if self.swagger else ("components", "securitySchemes")
        listed: Any = self.data
        for word in root:
            listed = _maybe(listed).get(word)
        for name, value in _maybe(listed).items():
            scheme, _ = self._follow(value, self.root, (*root, str(name)))
            self.schemes[str(name)] = self._scheme_text(scheme, (*root, str(name)))

    def _scheme(self, name: str, where: Where) -> None:
        """Make sure that a scheme is known: since 3.2 a requirement may name one by reference."""
        if name in self.schemes:
            return
        try:
            value, source = self.resolver.follow(name, self.root) if "/" in name or "#" in name else (None, self.root)
            value, _ = self._follow(value, source, where)
        except Unresolved:
            value = None
        if value is None:
            fix = "define it under components.securitySchemes (Swagger 2.0: securityDefinitions)"
            effect = "requests without it are not found wanting"
            self._problem(where, f"security scheme {name!r} is not defined", effect, fix)
            self.schemes[name] = SchemeText("")
        else:
            self.schemes[name] = self._scheme_text(value, where)

    def _scheme_text(self, scheme: Any, where: Where) -> SchemeText:
        scheme = _maybe(scheme)
        kind = scheme.get("type")
        words = {"http", "basic", "apiKey", "oauth2", "openIdConnect", "mutualTLS"}
        if not isinstance(kind, str) or kind not in words:
            fix = "write type: apiKey, http, oauth2, openIdConnect or mutualTLS"
            effect = "requests without it are not found wanting"
            self._problem(where, f"security scheme of type {kind if isinstance(kind, str) else None!r}", effect, fix)
            return SchemeText("")
        texts = [scheme.get(word) for word in ("scheme", "in", "name")]
        http, place, key = (text if isinstance(text, str) else "" for text in texts)
        if kind == "basic":  # Swagger 2.0
            return SchemeText("http", "basic")
        return SchemeText(kind, http.lower(), place, key)


# (in, name) -> (parameter, the file it stands in, where it is listed)
_Named = dict[tuple[str, str], tuple[Mapping[str, Any], Path, Where]]


class _Shape:
    """What a schema says of an object's names."""

    def __init__(self) -> None:
        self.is_object = self.is_scalar = self.is_open = False
        self.properties: dict[str, None] = {}
        self.required: set[str] = set()
