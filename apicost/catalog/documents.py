"""OpenAPI documents read from disk: bounded, quick, and small in memory.

Rules of this file:
- JSON is read with everything skipped that names no operation (schemas, responses, examples): GitHub's 13 MB become
  a few hundred KB without the rest ever being built. Where that is not enough (an unusual $ref, a wrong type),
  the whole document is read instead.
- YAML, and what must be read whole and is large, is for a process of its own (`extract.py` starts it).
- Bounds hold on every path: bytes, depth, number of values.
- Nothing is ever fetched. A $ref may lead to files below the folder of the document that names it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import unquote

import msgspec
import orjson
import yaml

from apicost import yamlfile
from apicost.problems import InputError, Problem

MAX_BYTES = 64 << 20  # GitHub's whole document is 13 MB
MAX_FILES = 500  # that one document may refer to
LINES_UP_TO_BYTES = 4 << 20  # larger documents give JSON pointers instead of lines: about 0.5 s/MB for lines
# Deep nesting ends the process inside libyaml, so what is read in this process is checked first. Larger documents are
# read in a child, whose end is a problem of the document and no more.
CHECKED_UP_TO_BYTES = 1 << 20


# What is read of a JSON document; everything else is skipped without being built.
_Parameter = TypedDict("_Parameter", {"$ref": Any, "name": Any, "x-multi-segment": Any}, total=False)


class _Operation(TypedDict, total=False):
    operationId: Any
    deprecated: Any
    tags: Any
    servers: Any
    parameters: list[_Parameter]


_PathItem = TypedDict(
    "_PathItem",
    {
        "$ref": Any,
        "servers": Any,
        "parameters": list[_Parameter],
        "get": _Operation,
        "put": _Operation,
        "post": _Operation,
        "delete": _Operation,
        "options": _Operation,
        "head": _Operation,
        "patch": _Operation,
        "trace": _Operation,
        "query": _Operation,
        "additionalOperations": dict[str, _Operation],
    },
    total=False,
)


class _Components(TypedDict, total=False):
    parameters: dict[str, _Parameter]
    pathItems: dict[str, _PathItem]


class _Info(TypedDict, total=False):
    title: Any


class _Document(TypedDict, total=False):
    openapi: Any
    swagger: Any
    info: _Info
    servers: Any
    host: Any
    basePath: Any
    paths: dict[str, _PathItem]
    components: _Components
    parameters: dict[str, _Parameter]  # Swagger 2.0


_DECODER = msgspec.json.Decoder(_Document)


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """A file's content. Raises InputError: not readable, not a regular file, too large."""
    try:
        if not path.is_file():
            raise _problem(str(path), "is not a file", "name an OpenAPI document")
        with open(path, "rb") as stream:
            raw = stream.read(max_bytes + 1)
    except OSError as error:
        raise _problem(str(path), f"cannot be read: {error.strerror}", "name a file that is readable") from None
    if len(raw) > max_bytes:
        raise _problem(str(path), f"is larger than {max_bytes} bytes", "split the document") from None
    return raw


def digest(raw: bytes) -> str:
    """What tells one content from another."""
    return hashlib.sha256(raw).hexdigest()


def looks_like_json(raw: bytes) -> bool:
    """Whether the content begins as a JSON object does."""
    return raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def pruned(raw: bytes) -> Any:
    """What a JSON document says of operations, servers and parameter names, as plain data.

    None where it must be read whole to say more: types are unusual, or it is not JSON.
    """
    try:
        return _DECODER.decode(raw.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def whole(raw: bytes, name: str) -> Any:
    """A document's data, JSON or YAML. Raises InputError with the place: syntax, bounds, duplicate keys."""
    if looks_like_json(raw):
        try:
            return _bounded(orjson.loads(raw.removeprefix(b"\xef\xbb\xbf")), name)
        except json.JSONDecodeError as error:
            # A YAML document may begin with a brace too.
            if name.endswith(".json"):
                fact = f"is not valid JSON: {error.msg}"
                raise _problem(f"{name}:{error.lineno}", fact, "mend the syntax here or just above") from None
    try:
        if len(raw) <= CHECKED_UP_TO_BYTES:
            yamlfile.bound_depth(raw, name)
        return _bounded(yaml.load(raw, Loader=_Loader), name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = f"{name}:{mark.line + 1}" if mark else name
        raise _problem(place, f"is not valid YAML: {what}", "mend the syntax here or just above") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _problem(name, f"is not valid YAML: {error}", "write UTF-8 text, less deeply nested") from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's speed, with what it leaves out: duplicate keys are errors, and dates stay text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and type are PyYAML's
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        written = set()
        for key, _ in node.value:
            if key.value in written and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice in this mapping", key.start_mark
                )
            written.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep=deep)  # type: ignore[no-any-return]


def _bounded(data: Any, name: str) -> Any:
    """The data, if it is not nested deeper than MAX_DEPTH. Shared parts (aliases) are looked at once."""
    level, depth = [data], 0
    seen: set[int] = set()
    while level:
        if depth > yamlfile.MAX_DEPTH:
            raise _problem(name, f"is nested deeper than {yamlfile.MAX_DEPTH}", "nest less deeply")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict | list) and id(value) not in seen:
                seen.add(id(value))
                below.extend(value.values() if isinstance(value, dict) else value)
        level, depth = [v for v in below if isinstance(v, dict | list)], depth + 1
    return data


class Unresolved(Exception):
    """A $ref that leads nowhere; the text says why, in words for a person."""


class Resolver:
    """Follows $ref within a document and to files below its folder, never further."""

    def __init__(self, path: Path, data: Any) -> None:
        self.folder = path.resolve().parent
        self.root = path.resolve()
        self.files: dict[Path, Any] = {self.root: data}
        self.digests: dict[str, str] = {}  # of the other files, by path relative to the folder
        self._bytes = 0

    def follow(self, ref: str, source: Path) -> tuple[Any, Path]:
        """What a reference in the file `source` stands for, and the file that holds it. Raises Unresolved."""
        file, _, pointer = ref.partition("#")
        if "://" in file or file.startswith("//"):
            raise Unresolved("leads to another machine, and nothing is fetched")
        target = self._file(unquote(file), source) if file else source
        data = self.files[target]
        for token in unquote(pointer).split("/")[1:]:
            token = token.replace("~1", "/").replace("~0", "~")
            try:
                data = data[int(token)] if isinstance(data, list) else data[token]
            except (KeyError, IndexError, ValueError, TypeError):
                raise Unresolved("leads to nothing") from None
        return data, target

    def _file(self, name: str, source: Path) -> Path:
        target = (source.parent / name).resolve()
        if target in self.files:
            return target
        if not target.is_relative_to(self.folder):
            raise Unresolved(f"leads out of the folder {str(self.folder)!r}")
        if len(self.files) > MAX_FILES:
            raise Unresolved(f"is one file more than {MAX_FILES}")
        try:
            raw = read_bytes(target, max_bytes=MAX_BYTES - self._bytes)
            self.files[target] = whole(raw, str(target))
        except InputError as error:
            raise Unresolved(f"leads to a file that can't be used: {error.problems[0].fact}") from None
        self._bytes += len(raw)
        self.digests[str(target.relative_to(self.folder))] = digest(raw)
        return target


def unchanged(path: Path, digests: Mapping[str, str]) -> bool:
    """Whether the other files that a document refers to (`Resolver.digests`) are as they were."""
    folder = path.resolve().parent
    try:
        return all(digest(read_bytes(folder / name)) == expected for name, expected in digests.items())
    except InputError:
        return False


def places(path: Path, raw: bytes, pointers: Sequence[tuple[str | int, ...]]) -> list[str]:
    """FILE:LINE of values, or of the nearest enclosing one; FILE#POINTER where finding lines would take too long."""
    if not pointers:
        return []
    if looks_like_json(raw):
        try:
            text = raw.decode("utf-8-sig")
            return [f"{path}:{line}" for line in _json_lines(text, pointers)]
        except (ValueError, RecursionError, StopIteration):
            pass  # YAML may begin with a brace too
    root: Any = None
    if len(raw) <= LINES_UP_TO_BYTES:
        try:
            yamlfile.bound_depth(raw, str(path))
            root = yaml.compose(raw, Loader=_Loader)
        except (yaml.YAMLError, InputError, ValueError):
            pass
    if root is None:
        return [f"{path}#{json_pointer(pointer)}" if pointer else str(path) for pointer in pointers]
    return [f"{path}:{_line(root, pointer)}" for pointer in pointers]


# Takes a text and a place in it; gives the value that begins there and where it ends. In C.
_SCAN: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_SPACE = re.compile(r"[ \t\n\r]*")


def _json_lines(text: str, pointers: Sequence[tuple[str | int, ...]]) -> list[int]:
    """The lines of values of a JSON text: of their keys, in objects. Raises ValueError, StopIteration: not JSON.

    What no pointer leads into is stepped over by the standard library's scanner.
    """
    found = dict.fromkeys(pointers, 0)
    begin = _after(text, 0)
    waiting: list[tuple[int, tuple[str | int, ...], list[tuple[str | int, ...]]]] = [(begin, (), list(found))]
    while waiting:
        at, here, wanted = waiting.pop()
        below: dict[str | int, list[tuple[str | int, ...]]] = {}
        for pointer in wanted:
            if len(pointer) > len(here):
                below.setdefault(pointer[len(here)], []).append(pointer)
        if not below or text[at] not in "{[":
            continue
        is_object = text[at] == "{"
        at = _after(text, at + 1)
        number = 0
        while below and text[at] not in "}]":
            key: str | int = number
            shown = at
            if is_object:
                key, at = scanstring(text, at + 1, True)
                at = _after(text, _after(text, at) + 1)  # behind the colon
            if key in below:
                inside = below.pop(key)
                found.update(dict.fromkeys(inside, shown))
                waiting.append((at, (*here, key), inside))
            at = _after(text, _SCAN(text, at)[1])
            if text[at] == ",":
                at = _after(text, at + 1)
            number += 1
    lines: dict[int, int] = {}
    line, last = 1, 0
    for at in sorted({begin, *found.values()}):
        line += text.count("\n", last, at)
        lines[at], last = line, at
    return [lines[found[pointer] or begin] for pointer in pointers]


def _after(text: str, at: int) -> int:
    """Behind the white space of a JSON text."""
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _line(node: Any, pointer: Sequence[str | int]) -> int:
    """The line of a value in a composed document; following one path costs no expansion of aliases."""
    line: int = node.start_mark.line + 1
    for token in pointer:
        if isinstance(node, yaml.SequenceNode) and isinstance(token, int) and token < len(node.value):
            node = node.value[token]
            line = node.start_mark.line + 1
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        found = next(((key, value) for key, value in pairs if key.value == str(token)), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def json_pointer(tokens: tuple[str | int, ...]) -> str:
    """RFC 6901."""
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


def merged(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """A mapping with its YAML merge key ("<<") worked in, as most writers of YAML expect."""
    if "<<" not in mapping:
        return mapping
    sources = mapping["<<"] if isinstance(mapping["<<"], list) else [mapping["<<"]]
    out: dict[str, Any] = {}
    for source in reversed(sources):
        if isinstance(source, Mapping):
            out.update(source)
    out.update({key: value for key, value in mapping.items() if key != "<<"})
    return out


def _problem(where: str, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=where, fact=fact, effect="the document is not used", fix=fix)])
