"""Documents with extensions added to their operations, everything else as it was written.

Rules of this file:
- YAML keeps its comments, order and style: text is put in and taken out at the places that the parser names, and the
  outcome is read again and compared. Only where that can't be right (an operation that is an alias of another, or
  merged in) is the document dumped anew, and that is said.
- JSON stays JSON: its order, its indentation, and escapes where it has them.
- An operation behind a $ref is annotated where it stands, once, be that in another file.
- Writing twice is the same as once: extensions of the same names are replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from apicost.catalog import documents
from apicost.catalog.documents import Resolver, Unresolved, merged
from apicost.catalog.extract import extract
from apicost.problems import InputError

Tokens = tuple[str, ...]  # a JSON pointer's steps
Fields = Mapping[str, Any]  # extension -> value, plain data
JSON, TEXT, DUMPED = "json", "text", "dumped"

_Loader = documents._Loader
_INDENT = re.compile(r"\{\r?\n([ \t]+)\"")


@dataclass(frozen=True, slots=True)
class Location:
    """Where something stands: a file and a JSON pointer in it."""

    file: Path
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Written:
    """A document's new text. how: JSON, TEXT (put into the text) or DUMPED (written anew: comments are lost)."""

    text: str
    how: str


def locations(file: Path) -> tuple[dict[str, Location], set[Path]]:
    """Where each operation of a document stands, by its pointer as the catalogue has it; and all files that it needs.

    Files are resolved paths. Raises InputError where the document can't be read.
    """
    data = documents.whole(documents.read_bytes(file), str(file))
    resolver = Resolver(file, data)
    found = {}
    for operation in extract(file).operations:
        steps = tuple(step.replace("~1", "/").replace("~0", "~") for step in operation.pointer.split("/")[1:])
        place = _standing(resolver, data, steps)
        if place is not None:
            found[operation.pointer] = place
    return found, _files(resolver)


def annotated(raw: bytes, name: str, fields: Mapping[Tokens, Fields], names: Collection[str]) -> Written:
    """A document with extensions at some places; others of these names are taken out there.

    name: for problems. fields: by place. names: of all extensions that may be replaced.
    Raises InputError where the document can't be read.
    """
    data = documents.whole(raw, name)
    wanted = _with_fields(data, fields, names)
    text = raw.decode("utf-8-sig", errors="surrogateescape")
    if documents.looks_like_json(raw) and (written := _as_json(text, wanted)) is not None:
        return Written(written, JSON)
    edited = _edited(text, fields, names)
    if edited is not None and _reads_as(edited, wanted, name):
        return Written(edited, TEXT)
    # Dumped without them, so that they are written as they are into any other text.
    bare = _dump(_with_fields(data, {tokens: {} for tokens in fields}, names))
    return Written(_edited(bare, fields, names) or _dump(wanted), DUMPED)


def _dump(data: Any) -> str:
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    return text


# -- where operations stand ----------------------------------------------------------------------------


def _standing(resolver: Resolver, data: Any, steps: Tokens) -> Location | None:
    """The place that "paths", a path and a method lead to, references of path items followed."""
    where, rest = steps[:2], steps[2:]
    source, item = resolver.root, _at(data, where)
    for _ in range(documents.MAX_FILES):
        if not isinstance(item, Mapping):
            return None
        item = merged(item)
        if isinstance(_at(item, rest), Mapping):
            return Location(source, (*where, *rest))
        if not isinstance(item.get("$ref"), str):
            return None
        pointer = unquote(item["$ref"].partition("#")[2])
        try:
            item, source = resolver.follow(item["$ref"], source)
        except Unresolved:
            return None
        where = tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])
    return None


def _at(data: Any, steps: Iterable[str]) -> Any:
    for step in steps:
        if isinstance(data, list):
            data = data[int(step)] if step.isdigit() and int(step) < len(data) else None
        else:
            data = next((v for k, v in data.items() if str(k) == step), None) if isinstance(data, Mapping) else None
    return data


def _files(resolver: Resolver) -> set[Path]:
    """The document's files and all that they refer to, below the document's folder."""
    looked: set[Path] = set()
    while left := [file for file in resolver.files if file not in looked]:
        for file in left:
            looked.add(file)
            for ref in _refs(resolver.files[file]):
                try:
                    resolver.follow(ref.partition("#")[0] + "#", file)
                except Unresolved:
                    continue  # it leads nowhere in the original, too
    return looked


def _refs(data: Any) -> set[str]:
    """References to other files; each shared part is looked at once."""
    found: set[str] = set()
    waiting, seen = [data], set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))
        waiting.extend(value.values() if isinstance(value, dict) else value)
        ref = value.get("$ref") if isinstance(value, dict) else None
        if isinstance(ref, str) and not ref.startswith("#"):
            found.add(ref)
    return found


# -- data ----------------------------------------------------------------------------------------------


def _with_fields(data: Any, fields: Mapping[Tokens, Fields], names: Collection[str]) -> Any:
    """The data with extensions; what is not on the way to one is shared with the data, not copied."""
    root = dict(data)
    for tokens, own in fields.items():
        parent: Any = root
        for number, step in enumerate(tokens):
            key = int(step) if isinstance(parent, list) else next(k for k in parent if str(k) == step)
            value = parent[key]
            if number == len(tokens) - 1:
                parent[key] = {**own, **{k: v for k, v in value.items() if k not in names}}
            else:
                parent[key] = parent = list(value) if isinstance(value, list) else dict(value)
    return root


def _as_json(text: str, data: Any) -> str | None:
    """JSON text as the original is laid out; None where that is no JSON."""
    try:
        json.loads(text)
    except ValueError:
        return None
    indented = _INDENT.search(text)
    indent = indented[1] if indented else None
    colon = ":" if indent is None and '": ' not in text[:10_000] else ": "
    comma = "," if indent is not None or colon == ":" else ", "
    written = json.dumps(data, ensure_ascii=text.isascii(), indent=indent, separators=(comma, colon))
    return written + ("\n" if text.endswith("\n") else "")


# -- text ----------------------------------------------------------------------------------------------


def _edited(text: str, fields: Mapping[Tokens, Fields], names: Collection[str]) -> str | None:
    """YAML text with extensions put in where the parser says that mappings begin; None where it can't be."""
    root = yaml.compose(text, Loader=_Loader)
    edits: list[tuple[int, int, str]] = []  # from, to, instead
    touched: set[int] = set()
    for tokens, own in fields.items():
        node = _node(root, tokens)
        if node is None or id(node) in touched or not node.value:
            return None
        touched.add(id(node))
        found = _edits(text, node, own, names)
        if found is None:
            return None
        edits += found
    edits.sort(key=lambda edit: edit[:2])
    parts, position = [], 0
    for begin, end, instead in edits:
        if begin < position:
            return None
        parts += [text[position:begin], instead]
        position = end
    return "".join([*parts, text[position:]])


def _node(node: yaml.Node | None, tokens: Tokens) -> yaml.MappingNode | None:
    """The mapping at a place; None where it is merged in from elsewhere."""
    for token in tokens:
        if isinstance(node, yaml.SequenceNode):
            node = node.value[int(token)]
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        found = [value for key, value in pairs if key.value == token]
        if len(found) != 1:
            return None
        node = found[0]
    return node if isinstance(node, yaml.MappingNode) else None


def _edits(
    text: str, node: yaml.MappingNode, fields: Fields, names: Collection[str]
) -> list[tuple[int, int, str]] | None:
    """What to take out of a mapping and what to put in."""
    old = [number for number, (key, _) in enumerate(node.value) if key.value in names]
    kept = [key for key, _ in node.value if key.value not in names]
    if not kept:
        return None
    first = kept[0].start_mark
    if node.flow_style:
        written = "".join(f"{json.dumps(k)}: {_inline(v)}, " for k, v in fields.items())
        spans = [_flow_span(node, number, names) for number in old]
        return [*((a, b, "") for a, b in spans), (first.index, first.index, written)]
    line = first.index - first.column
    if text[line : first.index].strip(" "):
        return None  # a complex key ("? ") or a list's dash stands before it
    indent = text[line : first.index]
    end = "\r\n" if "\r\n" in text else "\n"
    written = "".join(f"{indent}{k}: {_inline(v)}{end}" for k, v in fields.items())
    spans = [_block_span(text, *node.value[number]) for number in old]
    return [*((a, b, "") for a, b in spans), (line, line, written)]


def _inline(value: Any) -> str:
    """A value on one line, as JSON, which is YAML."""
    return json.dumps(value, ensure_ascii=False)


def _flow_span(node: yaml.MappingNode, number: int, names: Collection[str]) -> tuple[int, int]:
    """A pair of {...}, with the comma that goes with it: the one before it where all that follow go as well."""
    if any(key.value not in names for key, _ in node.value[number:]):
        return node.value[number][0].start_mark.index, node.value[number + 1][0].start_mark.index
    return node.value[number - 1][1].end_mark.index, node.value[number][1].end_mark.index


def _block_span(text: str, key: yaml.Node, value: yaml.Node) -> tuple[int, int]:
    """The lines of a pair."""
    begin = key.start_mark.index - key.start_mark.column
    last = len(text[: _end(value)].rstrip())
    newline = text.find("\n", last)
    return begin, len(text) if newline < 0 else newline + 1


def _end(node: yaml.Node) -> int:
    """Where a value's own text ends: a block's end as the parser has it lies at what comes next."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end


def _reads_as(text: str, wanted: Any, name: str) -> bool:
    """Whether the text gives that data."""
    try:
        return _same(documents.whole(text.encode("utf-8", errors="surrogateescape"), name), wanted)
    except InputError:
        return False


def _same(one: Any, other: Any) -> bool:
    """Equality that looks at each pair of shared parts once."""
    waiting, seen = [(one, other)], set()
    while waiting:
        a, b = waiting.pop()
        if (id(a), id(b)) in seen:
            continue
        seen.add((id(a), id(b)))
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            waiting.extend((a[key], b[key]) for key in a)
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            waiting.extend(zip(a, b, strict=True))
        elif type(a) is not type(b) or (a != b and a == a):
            return False
    return True
