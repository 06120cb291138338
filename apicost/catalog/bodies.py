"""Sampled requests and responses held against the schemas of their operations, by openapi-core.

For short-lived processes: openapi-core and a large document take hundreds of MB. openapi-core is given this project's
matcher as its path finder; media types, parameters, forms and schemas are its own work.

Rules of this file:
- A deviation names a place in the schema and a keyword, never a value.
- What was cut off or removed is never held against anybody: a body that was cut is not looked at, and a removed value
  fits everything.
- Said here is only what usage lines can't tell. Undocumented statuses, media types and query names, missing query
  parameters and credentials are judged from those.
- Nothing is fetched, and nothing is raised: what can't be checked is a problem, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson
from jsonschema_path import SchemaPath
from openapi_core.casting.schemas.exceptions import CastError
from openapi_core.casting.schemas.factories import SchemaCastersFactory
from openapi_core.datatypes import RequestParameters
from openapi_core.templating.datatypes import TemplateResult
from openapi_core.templating.media_types.exceptions import MediaTypeFinderError
from openapi_core.templating.media_types.finders import MediaTypeFinder
from openapi_core.templating.paths.datatypes import PathOperationServer
from openapi_core.templating.paths.exceptions import OperationNotFound
from openapi_core.templating.paths.finders import BasePathFinder
from openapi_core.templating.responses.exceptions import ResponseFinderError
from openapi_core.templating.responses.finders import ResponseFinder
from openapi_core.validation.request import validators as of_request
from openapi_core.validation.request.exceptions import MissingParameterError, ParameterValidationError
from openapi_core.validation.response import validators as of_response
from openapi_core.validation.schemas.exceptions import InvalidSchemaValue
from openapi_core.validation.schemas.factories import SchemaValidatorsFactory
from openapi_core.validation.schemas.validators import SchemaValidator
from werkzeug.datastructures import Headers, ImmutableMultiDict

from apicost.catalog import documents
from apicost.catalog.body_errors import Place, locate, places_of
from apicost.catalog.body_shapes import Shapes, Unsound
from apicost.catalog.openapi import ApiSource, load_apis
from apicost.catalog.validate import Handlers
from apicost.core.naming.match import Index, Operation
from apicost.core.naming.paths import decode
from apicost.problems import InputError, Problem

REDACTED = "[redacted]"  # stands for a removed value
MAX_BODY_BYTES = 4 << 20
# Bodies whose outcome is remembered, by their sizes: their signatures are about four times as large.
REMEMBERED_BYTES = 8 << 20
MAX_VALUES = 1 << 10  # remembered of one parameter

_VERSIONS = {
    "3.0": (of_request.V30RequestParametersValidator, of_request.V30RequestBodyValidator,
            of_response.V30ResponseDataValidator),
    "3.1": (of_request.V31RequestParametersValidator, of_request.V31RequestBodyValidator,
            of_response.V31ResponseDataValidator),
    "3.2": (of_request.V32RequestParametersValidator, of_request.V32RequestBodyValidator,
            of_response.V32ResponseDataValidator),
}  # fmt: skip
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
# OpenAPI 3.1, Parameter Object: descriptions of these headers are ignored.
_NO_PARAMETERS = frozenset(("accept", "content-type", "authorization"))
_NAME = re.compile(r"\{\+?([^{}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One sampled request with its response. Header names in lower case.

    path: raw, without query. query: raw; None where it was not recorded. A body is None where it was not recorded, b""
    where there was none. request_cut, response_cut: the body goes on behind what is here.
    headers_complete: the request had no other headers than these.
    upstream_path, route_id, service_id: as in `Index.find`.
    """

    method: str
    host: str
    path: str
    status: int
    query: str | None = None
    request_headers: Mapping[str, str] = field(default_factory=dict)
    headers_complete: bool = False
    request_body: bytes | None = None
    request_cut: bool = False
    response_headers: Mapping[str, str] = field(default_factory=dict)
    response_body: bytes | None = None
    response_cut: bool = False
    upstream_path: str | None = None
    route_id: str | None = None
    service_id: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class Deviation:
    """rule: request-schema, response-schema or missing-required-param. detail: "/items/*/price type", "query page
    minimum". pointer: JSON pointer into the operation's document."""

    rule: str
    detail: str
    pointer: str


class Checker:
    """Holds exchanges against the documents of some APIs; documents are read when first needed.

    problems: documents that can't be used for this, and parts of them. index: the matcher, where it is loaded already.
    redacted: the text that stands for a removed value.
    """

    def __init__(self, apis: Sequence[ApiSource], *, index: Index | None = None, redacted: str = REDACTED) -> None:
        self.problems: list[Problem] = []
        if index is None:
            catalog = load_apis(apis)
            index = catalog.index
            self.problems.extend(catalog.problems)
        self.index = index
        self._redacted = redacted
        self._documents: dict[str, _Document | None] = {}

    def operation(self, exchange: Exchange) -> Operation | None:
        """The operation that an exchange belongs to, as the running daemon names it."""
        return self.index.find(
            exchange.method,
            exchange.host,
            f"{exchange.path}?{exchange.query}" if exchange.query else exchange.path,
            upstream_path=exchange.upstream_path,
            route_id=exchange.route_id,
            service_id=exchange.service_id,
        ).operation

    def check(self, exchange: Exchange) -> list[Deviation]:
        """Where an exchange deviates from its operation, sorted; nothing where it belongs to none."""
        operation = self.operation(exchange)
        if operation is None:
            return []
        document = self._document(operation.spec)
        if document is None:
            return []
        try:
            return sorted(set(document.check(operation, exchange)))
        except RecursionError:
            self._say(operation, "is nested too deeply to be validated")
        except BaseException as error:  # the libraries raise whatever they like on a broken document
            # Recursion without end may meet its bound inside a library in Rust, whose panic is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            self._say(operation, f"can't be validated: {type(error).__name__}")
        return []

    def _say(self, operation: Operation, fact: str) -> None:
        problem = Problem(
            place=f"{operation.spec}#{operation.pointer}",
            fact=fact,
            effect="some samples of this operation are not validated",
            fix="`apicost spec lint` and a validator of OpenAPI documents may tell what is wrong with it",
        )
        if problem not in self.problems:
            self.problems.append(problem)

    def _document(self, file: str) -> _Document | None:
        if file not in self._documents:
            try:
                self._documents[file] = _Document(Path(file), self._redacted)
            except InputError as error:
                self.problems.extend(error.problems)
                self._documents[file] = None
        return self._documents[file]


class _Remembering:
    """A factory of schema validators that makes each once: making one costs more than a body."""

    def __init__(self, factory: SchemaValidatorsFactory) -> None:
        self._factory = factory
        self._made: dict[Hashable, SchemaValidator] = {}

    def create(self, spec: SchemaPath, schema: SchemaPath, **settings: Any) -> SchemaValidator:
        if schema.accessor is not spec.accessor:  # a schema that openapi-core makes up
            return self._factory.create(spec, schema, **settings)
        made = self._made.get(schema.parts)
        if made is None:
            made = self._made[schema.parts] = self._factory.create(spec, schema, **settings)
        return made


class _Finder(BasePathFinder):
    """openapi-core's path finder, which takes the operation that the matcher has found.

    The "path" of a request is the operation's JSON pointer, so that what gateway routes and rewrites say is not lost.
    """

    def __init__(self, spec: SchemaPath, base_url: str | None = None) -> None:
        super().__init__(spec, base_url)
        self._found: dict[str, PathOperationServer] = {}

    def find(self, method: str, name: str) -> PathOperationServer:
        if name not in self._found:
            tokens = [token.replace("~1", "/").replace("~0", "~") for token in name.split("/")[1:]]
            nodes = [self.spec]
            for token in tokens:
                try:
                    nodes.append(nodes[-1] // token)
                except KeyError:
                    raise OperationNotFound(name, method) from None
            key = tokens[1]
            server = SchemaPath.from_dict({"url": "/"})
            result = TemplateResult(key, {})
            self._found[name] = PathOperationServer(nodes[2], nodes[-1], server, result, TemplateResult("/", {}))
        return self._found[name]


class _Request:
    """A request in openapi-core's terms."""

    host_url = ""

    def __init__(self, pointer: str, exchange: Exchange, variables: Mapping[str, str]) -> None:
        self.path = pointer
        self.method = exchange.method.lower()
        self.body = exchange.request_body
        self.content_type = exchange.request_headers.get("content-type", "")
        cookies = [pair.strip().partition("=") for pair in exchange.request_headers.get("cookie", "").split(";")]
        self.parameters = RequestParameters(
            query=ImmutableMultiDict(parse_qsl(exchange.query or "", keep_blank_values=True)),
            header=Headers(exchange.request_headers),
            cookie=ImmutableMultiDict([(name, value) for name, equals, value in cookies if equals]),
            path=dict(variables) or {"": ""},
        )


class _OneByOne:
    """A validator of parameters that takes one, so that values seen before need not be looked at again."""

    _get_parameter: Callable[..., Any]

    def one(self, given: RequestParameters, parameter: SchemaPath) -> None:
        """Raises ParameterValidationError."""
        self._get_parameter(given, parameter)


@dataclass(slots=True)
class _Parameter:
    """One parameter of an operation. known: openapi-core can tell what its values are.

    memory: what was said of values seen before.
    """

    path: SchemaPath
    place: str
    name: str
    required: bool
    known: bool
    memory: dict[Hashable, Sequence[str]] = field(default_factory=dict)


_Checks = Callable[[bytes], Sequence[Place]]


class _Document:
    """One document with what was prepared of it. Raises InputError where it can't be used."""

    def __init__(self, path: Path, redacted: str) -> None:
        raw = documents.read_bytes(path)
        self.data = documents.whole(raw, str(path))
        self.redacted = redacted
        version = str(self.data.get("openapi", ""))[:3] if isinstance(self.data, dict) else ""
        if version not in _VERSIONS:
            raise InputError(
                [
                    Problem(
                        place=str(path),
                        fact="is no OpenAPI 3.0, 3.1 or 3.2 document",
                        effect="sampled bodies of its operations are not validated",
                        fix="convert it to OpenAPI 3",
                    )
                ]
            )
        self.spec = SchemaPath.from_dict(
            self.data,
            base_uri=path.resolve().as_uri(),
            handlers=Handlers(path),
            resolved_cache_maxsize=1 << 16,  # places; GitHub's whole document has some 40,000 in its operations
        )
        parameters, body, data = _VERSIONS[version]
        writing: Any = _Remembering(parameters.schema_validators_factory)
        self._writing = writing
        self._reading: Any = _Remembering(data.schema_validators_factory)
        casters = SchemaCastersFactory(writing, parameters.schema_casters_factory.types_caster)
        common: dict[str, Any] = {
            "path_finder_cls": _Finder,
            "schema_validators_factory": self._writing,
            "schema_casters_factory": casters,
        }
        self._parameters: Any = type("_OneByOne", (_OneByOne, parameters), {})(self.spec, **common)
        self._forms = body(self.spec, **common)
        self._finder = self._parameters.path_finder
        self._prepared_parameters: dict[str, list[_Parameter]] = {}
        self._variables: dict[str, tuple[re.Pattern[str], list[str]]] = {}
        self._request_checks: dict[tuple[str, str], _Checks | None] = {}
        self._response_checks: dict[tuple[str, int, str], _Checks | None] = {}
        self._schemas: dict[tuple[Any, ...], _Schema] = {}

    def check(self, operation: Operation, exchange: Exchange) -> list[Deviation]:
        try:
            node = self._finder.find(operation.method, operation.pointer)
        except OperationNotFound:
            return []  # a preflight, which no document describes
        found = [*self._parameter_deviations(operation, node, exchange)]
        found += self._request_body(operation.pointer, node.operation, exchange)
        # HEAD answers as GET would, without the body.
        if exchange.method != "HEAD":
            found += self._response_body(operation.pointer, node.operation, exchange)
        return found

    def _parameter_deviations(
        self, operation: Operation, node: PathOperationServer, exchange: Exchange
    ) -> list[Deviation]:
        pointer = operation.pointer
        prepared = self._prepared_parameters.get(pointer)
        if prepared is None:
            prepared = self._prepared_parameters[pointer] = self._parameters_of(node)
        if not prepared:
            return []
        given = _Request(pointer, exchange, self._path_variables(operation, exchange)).parameters
        found = []
        for parameter in prepared:
            location = given[parameter.place]
            if parameter.name not in location:
                # Paths always have theirs, and which query names there were the usage line tells.
                if parameter.required and parameter.place in ("header", "cookie") and exchange.headers_complete:
                    name = f"{parameter.place} {parameter.name}"
                    found.append(Deviation("missing-required-param", name, pointer))
                continue
            values = location.getlist(parameter.name) if hasattr(location, "getlist") else [location[parameter.name]]
            key = tuple(values)
            outcome = parameter.memory.get(key) if parameter.known else ()
            if outcome is None:
                outcome = self._outcome(parameter, given)
                if len(parameter.memory) >= MAX_VALUES:
                    parameter.memory.clear()
                parameter.memory[key] = outcome
            if outcome and not self._redacted_parameter(location, parameter.name):
                words = f"{parameter.place} {parameter.name}"
                found.extend(Deviation("request-schema", words + text.removeprefix("/"), pointer) for text in outcome)
        return found

    def _parameters_of(self, node: PathOperationServer) -> list[_Parameter]:
        """The parameters of an operation, its own before the path's, those left out that are never looked at."""
        found: dict[tuple[str, str], _Parameter] = {}
        for owner in (node.operation, node.path):
            for path in owner / "parameters" if "parameters" in owner else ():
                place, name = (path / "in").read_str(), (path / "name").read_str()
                required = (path / "required").read_bool(default=False)
                known = "content" in path or _is_plain(path)
                found.setdefault((place, name), _Parameter(path, place, name, required, known))
        return [
            one
            for one in found.values()
            if one.place in ("query", "header", "path", "cookie")
            and not (one.place == "header" and one.name.lower() in _NO_PARAMETERS)
        ]

    def _outcome(self, parameter: _Parameter, given: RequestParameters) -> Sequence[str]:
        """Where the value of one parameter deviates: keywords behind a place."""
        try:
            self._parameters.one(given, parameter.path)
        except MissingParameterError:
            return ()
        except ParameterValidationError as error:
            return [place.text for place in self._of_parameter(error)]
        return ()

    def _of_parameter(self, error: ParameterValidationError) -> list[Place]:
        cause = error.__cause__
        if isinstance(cause, CastError):
            return [Place(" type", "")]
        if not isinstance(cause, InvalidSchemaValue):
            return []  # a style that openapi-core does not read
        places = places_of(cause.schema_errors, set(), self.redacted, None, ())
        return [Place(one.text if one.text.startswith("/ ") else f"/{one.text}", "") for one in places]

    def _redacted_parameter(self, location: Any, name: str) -> bool:
        values = location.getlist(name) if hasattr(location, "getlist") else [location.get(name, "")]
        return any(self.redacted in str(value) for value in values)

    def _path_variables(self, operation: Operation, exchange: Exchange) -> dict[str, str]:
        """Path parameters by name; none where the path has another form (a repaired slash, an escaped literal)."""
        template = operation.path_template
        if template not in self._variables:
            key = template.partition("?")[0]
            pieces = _NAME.split(key)
            spans = re.findall(r"\{\+([^{}]*)\}", key)
            pattern = "".join(
                re.escape(piece) if number % 2 == 0 else "(.+)" if piece in spans else "([^/]+)"
                for number, piece in enumerate(pieces)
            )
            self._variables[template] = (re.compile(f"{pattern}$"), pieces[1::2])
        expression, names = self._variables[template]
        path = exchange.upstream_path.partition("?")[0] if exchange.upstream_path else exchange.path
        found = expression.search(path)
        return dict(zip(names, map(decode, found.groups()), strict=True)) if found else {}

    def _request_body(self, pointer: str, operation: SchemaPath, exchange: Exchange) -> list[Deviation]:
        if exchange.request_body is None or "requestBody" not in operation:
            return []
        if not exchange.request_body:
            required = (operation / "requestBody" / "required").read_bool(default=False)
            missing = Deviation("request-schema", "/ missing", f"{pointer}/requestBody")
            return [missing] if required and not exchange.request_cut else []
        kind = _media_type(exchange.request_headers)
        if exchange.request_cut or kind is None:
            return []
        if kind in _FORMS:
            return self._form(pointer, exchange)
        if (pointer, kind) not in self._request_checks:
            body = operation / "requestBody"
            check = self._prepared(body, kind, self._writing) if "content" in body else None
            self._request_checks[(pointer, kind)] = check
        return _said("request-schema", self._request_checks[(pointer, kind)], exchange.request_body,
                     exchange.request_headers)  # fmt: skip

    def _form(self, pointer: str, exchange: Exchange) -> list[Deviation]:
        """Forms go through openapi-core as a whole: it decodes and casts their fields by the schema."""
        if self.redacted.encode() in (exchange.request_body or b""):
            return []
        request: Any = _Request(pointer, exchange, {})
        found: list[Deviation] = []
        for error in self._forms.iter_errors(request):
            cause = error.__cause__
            if isinstance(cause, InvalidSchemaValue):
                base = (*_tokens(pointer), "requestBody")
                places = places_of(cause.schema_errors, set(), self.redacted, self.data, base)
                found.extend(Deviation("request-schema", one.text, f"{pointer}/requestBody") for one in places)
            elif isinstance(cause, CastError):  # which does not say of which field
                found.append(Deviation("request-schema", "/* type", f"{pointer}/requestBody"))
        return found

    def _response_body(self, pointer: str, operation: SchemaPath, exchange: Exchange) -> list[Deviation]:
        kind = _media_type(exchange.response_headers)
        if exchange.response_body is None or exchange.response_cut or kind is None or not exchange.response_body:
            return []
        key = (pointer, exchange.status, kind)
        if key not in self._response_checks:
            self._response_checks[key] = None
            try:
                response = ResponseFinder(operation / "responses").find(str(exchange.status))
            except (ResponseFinderError, KeyError):
                pass  # undocumented-status, which usage lines tell
            else:
                if "content" in response:
                    self._response_checks[key] = self._prepared(response, kind, self._reading)
        return _said("response-schema", self._response_checks[key], exchange.response_body, exchange.response_headers)

    def _prepared(self, owner: SchemaPath, kind: str, factory: Any) -> _Checks | None:
        """What bodies of one media type are held against; None where nothing is described, or nothing can be told."""
        try:
            media_type = MediaTypeFinder(owner / "content").find(kind).media_type
        except MediaTypeFinderError:
            return None  # undocumented-content-type, which usage lines tell
        is_json = kind == "application/json" or kind.endswith("+json")
        if "schema" not in media_type or not (is_json or kind == "text/plain"):
            return None
        schema = media_type // "schema"
        key = (id(factory), is_json, *schema.parts)
        if key not in self._schemas:
            self._schemas[key] = _Schema(self, factory.create(self.spec, schema), schema.parts)
        return self._schemas[key].of_json if is_json else self._schemas[key].of_text


class _Schema:
    """One schema, with the outcomes of the shapes that were seen."""

    def __init__(self, document: _Document, validator: SchemaValidator, parts: Sequence[Any]) -> None:
        self._document = document
        self._validator = validator
        self._parts = parts
        self._outcomes: dict[Hashable, Sequence[Place]] = {}
        self._bytes = 0

    @cached_property
    def _shapes(self) -> Shapes | None:
        try:
            return Shapes(self._validator.validator, self._document.redacted)
        except Unsound:
            return None

    def of_json(self, raw: bytes) -> Sequence[Place]:
        """Where a JSON body deviates."""
        try:
            value = orjson.loads(raw.removeprefix(b"\xef\xbb\xbf"))
        except orjson.JSONDecodeError:
            return [Place("/ syntax", locate(self._document.data, self._parts))]
        if self._shapes is None:
            return self._places(value, set())
        signature = self._shapes.of(value)
        found = self._outcomes.get(signature)
        if found is None:
            found = self._places(value, self._shapes.names)
            self._bytes += len(raw)
            if self._bytes > REMEMBERED_BYTES:
                self._outcomes.clear()
                self._bytes = len(raw)
            self._outcomes[signature] = found
        return found

    def of_text(self, raw: bytes) -> Sequence[Place]:
        """Where a text deviates."""
        return self._places(raw.decode(errors="replace"), set())

    def _places(self, value: Any, names: set[str]) -> Sequence[Place]:
        try:
            self._validator.validate(value)
        except InvalidSchemaValue as error:
            return places_of(error.schema_errors, names, self._document.redacted, self._document.data, self._parts)
        return ()


def _is_plain(parameter: SchemaPath) -> bool:
    """Whether openapi-core deserialises a parameter as the document means it.

    It takes objects apart by styles that it reads only in part, and casts nothing where several types are allowed.
    """
    plain = ("string", "integer", "number", "boolean")
    kind = (parameter / "schema" / "type").read_str_or_list("") if "schema" in parameter else ""
    if kind == "array":
        kind = (parameter / "schema" / "items" / "type").read_str_or_list("")
    return kind in plain


def _said(rule: str, check: _Checks | None, raw: bytes, headers: Mapping[str, str]) -> list[Deviation]:
    if check is None or len(raw) > MAX_BODY_BYTES:
        return []
    found = check(raw)
    if not found:
        return []
    if headers.get("content-encoding", "identity").lower() != "identity" and found[0].text == "/ syntax":
        return []  # compressed still
    return [Deviation(rule, place.text, place.pointer) for place in found]


def _media_type(headers: Mapping[str, str]) -> str | None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind or None


def _tokens(pointer: str) -> tuple[str, ...]:
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])
