"""The shape of a JSON body as far as one schema can tell bodies apart, so that equal shapes are validated once.

A signature holds keys, types, and for each scalar the outcome of every keyword that looks at values (enum, pattern,
format, bounds). Only the keywords count that can meet a value under its property's name; so ids, names and numbers
seldom make two signatures of one. Elements of an array are a set where no keyword counts them or looks at their order.

Rules of this file:
- Two bodies of one signature have the same deviations, or there is no signature at all: a keyword that is not listed
  here, a reference that can't be followed, an enum of objects make `Shapes.of` return None.
- Outcomes come from the validator's own keyword functions, never from a second reading of JSON Schema.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

# Keywords whose value is a schema, or a list of schemas, for the same value.
_HERE = frozenset(("not", "if"))
_HERE_LISTS = frozenset(("allOf", "anyOf", "oneOf"))
_STRUCTURE = frozenset((
    "type", "required", "nullable", "readOnly", "writeOnly", "minProperties", "maxProperties", "dependentRequired",
))  # fmt: skip
_VALUES = frozenset((
    "enum", "const", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
))  # fmt: skip
_ARRAYS = frozenset(("minItems", "maxItems", "uniqueItems"))
_ORDER = frozenset(("prefixItems", "contains", "minContains", "maxContains", "unevaluatedItems"))
_SILENT = frozenset((
    "title", "description", "default", "example", "examples", "deprecated", "xml", "externalDocs", "$comment", "$defs",
    "definitions", "$schema", "contentEncoding", "contentMediaType", "contentSchema",
))  # fmt: skip
ANY_NAME = "\0any"  # stands for the names that no schema spells out
MAX_SCHEMAS = 20_000  # (schema, property name) pairs that one signature may look at
MAX_TEXTS = 1 << 12  # outcomes remembered of strings, for each property name
MAX_TEXT_CHARS = 256  # longer ones are not remembered

_Check = tuple[str, Any, dict[str, Any]]  # keyword, its value, the schema it stands in


class Unsound(Exception):
    """A schema whose outcome a signature can't hold."""


class _Name:
    """What values under one property's name can meet.

    ordered: the order of an array's elements counts. memory: outcomes of values that were seen.
    """

    __slots__ = ("checks", "memory", "ordered")

    def __init__(self, checks: tuple[_Check, ...], ordered: bool) -> None:
        self.checks, self.ordered = checks, ordered
        self.memory: dict[Hashable, int] = {}


class Shapes:
    """Signatures of bodies under one schema.

    validator: the schema's validator, of jsonschema's protocol. redacted: the text that stands for a removed value.
    Raises Unsound.
    """

    def __init__(self, validator: Any, redacted: str) -> None:
        self._validator = validator
        self._redacted = redacted
        self._checks: dict[str, dict[str, _Check]] = {}
        self._ordered: set[str] = set()
        self.names: set[str] = set()  # every property name that the schema spells out
        self._collect()
        every = self._checks.get(ANY_NAME, {})
        all_ordered = ANY_NAME in self._ordered
        self._any = _Name(tuple(every.values()), all_ordered)
        self._of_name = {
            name: _Name(tuple((every | self._checks.get(name, {})).values()), all_ordered or name in self._ordered)
            for name in self._checks.keys() | self._ordered
        }

    def of(self, value: Any) -> Hashable:
        """The signature of a body."""
        return self._of(value, self._of_name.get("", self._any))

    def _of(self, value: Any, name: _Name) -> Hashable:
        kind: type = type(value)
        if kind is str:
            if value == self._redacted:
                return "redacted"
            return ("s", self._outcomes(name, value)) if name.checks else "s"
        if kind is dict:
            get, other, of = self._of_name.get, self._any, self._of
            return tuple([(key, of(below, get(key, other))) for key, below in value.items()])
        if value is None or kind is bool:
            return None if value is None else bool(value)
        if kind is list:
            of = self._of
            elements = [of(below, name) for below in value]
            return ("l", tuple(elements) if name.ordered else frozenset(elements), self._mask(name.checks, value))
        whole = "i" if kind is int else "w" if value.is_integer() else "n"
        return (whole, self._outcomes(name, value)) if name.checks else whole

    def _outcomes(self, name: _Name, value: Any) -> int:
        if type(value) is str and len(value) > MAX_TEXT_CHARS:
            return self._mask(name.checks, value)
        memory = name.memory
        key = (type(value), value)
        found = memory.get(key)
        if found is None:
            if len(memory) >= MAX_TEXTS:
                memory.clear()
            found = memory[key] = self._mask(name.checks, value)
        return found

    def _mask(self, checks: tuple[_Check, ...], value: Any) -> int:
        """One bit for each keyword: whether the value fails it."""
        mask = 0
        keywords = self._validator.VALIDATORS
        for number, (keyword, own, schema) in enumerate(checks):
            errors = keywords[keyword](self._validator, own, value, schema)
            if errors is not None and next(iter(errors), None) is not None:
                mask |= 1 << number
        return mask

    def _collect(self) -> None:
        """Visit every schema that a value can meet, under the property name that leads to it."""
        root = (self._validator.schema, self._validator._resolver, "")
        waiting: list[tuple[Any, Any, str]] = [root]
        seen: set[tuple[int, str]] = set()
        self._held: list[Any] = []  # what an id() was taken of must live on
        while waiting:
            schema, resolver, name = waiting.pop()
            if isinstance(schema, bool) or (id(schema), name) in seen:
                continue
            if not isinstance(schema, dict) or len(seen) >= MAX_SCHEMAS:
                raise Unsound
            if seen and ("$id" in schema or "id" in schema):
                raise Unsound  # references below it are relative to that
            seen.add((id(schema), name))
            self._held.append(schema)
            for keyword, own in schema.items():
                if keyword in self._validator.VALIDATORS:
                    waiting.extend(self._keyword(str(keyword), own, schema, resolver, name))

    def _keyword(self, keyword: str, own: Any, schema: dict[str, Any], resolver: Any, name: str) -> list[Any]:
        """Take one keyword in; gives the schemas below it."""
        if keyword in _STRUCTURE or keyword in _SILENT:
            return []
        if keyword == "discriminator":
            return []  # looked at by oneOf, anyOf and allOf
        if keyword in _VALUES or keyword in _ARRAYS:
            self._check(keyword, own, schema, name)
            return []
        if keyword == "$ref":
            try:
                found = resolver.lookup(own)
            except Exception as error:  # a reference into nothing raises whatever its libraries do
                raise Unsound from error
            return [(found.contents, found.resolver, name)]
        if keyword in _HERE:
            branches = [schema[word] for word in ("then", "else") if keyword == "if" and word in schema]
            return [(one, resolver, name) for one in (own, *branches)]
        if keyword in _HERE_LISTS and isinstance(own, list):
            if "discriminator" in schema:
                raise Unsound  # the value of a property names the schema
            return [(one, resolver, name) for one in own]
        if keyword == "properties" and isinstance(own, dict):
            self.names.update(map(str, own))
            return [(below, resolver, str(key)) for key, below in own.items()]
        if keyword in ("additionalProperties", "unevaluatedProperties"):
            return [(own, resolver, ANY_NAME)]
        if keyword == "patternProperties" and isinstance(own, dict):
            return [(below, resolver, ANY_NAME) for below in own.values()]
        if keyword == "propertyNames":
            return []  # names stand in the signature as they are
        if keyword == "dependentSchemas" and isinstance(own, dict):
            return [(below, resolver, name) for below in own.values()]
        if keyword == "items":
            return [(one, resolver, name) for one in (own if isinstance(own, list) else [own])]
        if keyword in _ORDER:
            self._ordered.add(name)
            below = own if isinstance(own, list) else [own]
            return [(one, resolver, name) for one in below if isinstance(one, dict | bool)]
        raise Unsound

    def _check(self, keyword: str, own: Any, schema: dict[str, Any], name: str) -> None:
        checker = self._validator.format_checker
        if keyword == "format" and (checker is None or own not in checker.checkers):
            return  # a format that nobody looks at
        values = own if keyword == "enum" else [own] if keyword == "const" else []
        if any(isinstance(value, dict | list) for value in values):
            raise Unsound
        # OpenAPI 3.0 writes exclusiveMinimum: true beside minimum, so the neighbours count.
        near: dict[str, Any] = {
            word: schema[word] for word in ("exclusiveMinimum", "exclusiveMaximum") if word in schema
        }
        self._checks.setdefault(name, {}).setdefault(f"{keyword} {own!r} {near!r}", (keyword, own, near))
