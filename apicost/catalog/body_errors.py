"""What jsonschema says of a body, in words without values, with the place in the document.

Rules of this file:
- A path has the document's own property names; indexes and names that no schema spells out are "*".
- Where a removed value (the text `redacted`) may be why a keyword fails, the failure does not stand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from apicost.catalog.documents import json_pointer

MAX_PLACES = 20  # of one body
MAX_CHARS = 200  # of one place

# Keywords that look at types, names and numbers of parts alone, so that a removed value changes nothing.
_BLIND = frozenset((
    "type", "required", "properties", "additionalProperties", "dependentRequired", "minProperties", "maxProperties",
    "minItems", "maxItems", "readOnly", "writeOnly",
))  # fmt: skip


class Place(NamedTuple):
    """text: "/items/*/price type". pointer: of the keyword in the document, as far as it can be followed."""

    text: str
    pointer: str


def places_of(errors: Iterable[Any], names: set[str], redacted: str, data: Any, base: Sequence[Any]) -> list[Place]:
    """Where a value deviates, each place once, in the order of the text.

    errors: jsonschema's. names: properties that the schema spells out. data, base: the document, and the keys that lead
    to the schema in it.
    """
    found: dict[str, Place] = {}
    for error in errors:
        if not stands(error, redacted):
            continue
        for text in _texts(error, names):
            if text not in found:
                found[text] = Place(text[:MAX_CHARS], locate(data, (*base, *error.absolute_schema_path)))
    return sorted(found.values())[:MAX_PLACES]


def _texts(error: Any, names: set[str]) -> list[str]:
    steps = list(error.absolute_schema_path)
    spelled = names | {str(name) for word, name in itertools.pairwise(steps) if word == "properties"}
    path = "".join(f"/{step if isinstance(step, str) and step in spelled else '*'}" for step in error.absolute_path)
    keyword = str(error.validator or "false")
    text = f"{path or '/'} {keyword}"
    if keyword == "required" and isinstance(error.validator_value, list):
        # The message begins with the name that is missing; the names themselves are the document's.
        missing = [name for name in error.validator_value if error.message.startswith(f"{name!r} ")]
        return [f"{text} {name}" for name in missing[:1]] or [text]
    return [text]


def stands(error: Any, redacted: str) -> bool:
    """Whether a failure is certain, whatever the removed values were."""
    if isinstance(error.instance, str) and error.instance == redacted:
        return False
    # jsonschema leaves "if" out of the path; a property of that name is let go with it.
    if {"then", "else"}.intersection(error.absolute_schema_path) and holds(_root(error).instance, redacted):
        return False
    if error.validator in ("anyOf", "oneOf") and error.context:
        branches: dict[Any, bool] = {}
        for below in error.context:
            branch = below.relative_schema_path[0]
            branches[branch] = branches.get(branch, False) or stands(below, redacted)
        return all(branches.values())
    return error.validator in _BLIND or not holds(error.instance, redacted)


def _root(error: Any) -> Any:
    while error.parent is not None:
        error = error.parent
    return error


def holds(value: Any, redacted: str) -> bool:
    """Whether a removed value is somewhere in a value."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, str) and one == redacted:
            return True
    return False


def locate(data: Any, steps: Sequence[Any]) -> str:
    """The JSON pointer of what some steps lead to, references within the document followed as far as they lead."""
    node: Any = data
    tokens: list[Any] = []
    for step in steps:
        for _ in range(8):
            if not isinstance(node, dict) or step in node or not isinstance(node.get("$ref"), str):
                break
            target = _target(data, node["$ref"])
            if target is None:
                return json_pointer(tuple(tokens))
            node, tokens = target
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            break
        tokens = [*tokens, step]
    return json_pointer(tuple(tokens))


def _target(data: Any, ref: str) -> tuple[Any, list[Any]] | None:
    file, _, pointer = ref.partition("#")
    if file:
        return None
    node: Any = data
    tokens: list[Any] = []
    for part in unquote(pointer).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        step: Any = int(part) if isinstance(node, list) and part.isdecimal() else part
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            return None
        tokens.append(step)
    return node, tokens
