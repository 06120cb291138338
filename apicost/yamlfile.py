"""YAML and JSON files read safely: bounded, without tags or merges of code, with a line for each value.

Rules of this file:
- Only plain data comes out: dict, list, str, int, float, bool, None. Dates stay text; numbers that
  a price book writes unquoted stay text too when the caller asks for `exact=True`.
- Bounds: file size, depth, number of nodes after aliases are expanded (a "billion laughs" document
  ends here), each a Problem naming the bound.
- Duplicate keys are problems: YAML would silently keep the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from apicost.problems import InputError, Problem

MAX_BYTES = 64 << 20  # GitHub's whole document is 12 MB of JSON
MAX_DEPTH = 200
MAX_NODES = 1_000_000  # about 300 B each with its line = 300 MB at the very most

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALARS = {"tag:yaml.org,2002:" + t for t in ("int", "float", "bool", "null", "str", "timestamp")}


@dataclass(slots=True)
class Document:
    """A file's data and where each value stands.

    lines: from a path of keys and indexes, such as ("skus", "call", "prices", 0), to its line.
    problems: keys that stand twice and values with tags, where the caller goes on to look for more; else none.
    """

    file: str
    data: Any
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, *path: str | int) -> str:
        """FILE:LINE of a value, or of the nearest enclosing one that exists."""
        for end in range(len(path), -1, -1):
            line = self.lines.get(tuple(path[:end]))
            if line is not None:
                return f"{self.file}:{line}"
        return self.file


def load(path: Path | str, *, exact: bool = False, max_bytes: int = MAX_BYTES, collect: bool = False) -> Document:
    """Read one YAML or JSON file with the lines of its values.

    exact: leave unquoted numbers as the text that was written, so that 0.09 never becomes a float.
    collect: leave duplicate keys and unknown tags in `problems`, for a caller that tells them with its own findings.

    Raises InputError: not readable, too large, too deep, not YAML, an unknown tag, a duplicate key.
    """
    name = str(path)
    try:
        with open(path, "rb") as stream:
            raw = stream.read(max_bytes + 1)
    except OSError as error:
        raise _one(name, f"cannot be read: {error.strerror}", "name a file that exists and is readable") from None
    if len(raw) > max_bytes:
        raise _one(name, f"is larger than {max_bytes} bytes", "split the file")
    return parse(raw, name, exact=exact, collect=collect)


def parse(raw: bytes | str, name: str, *, exact: bool = False, collect: bool = False) -> Document:
    """The same for text at hand; `name` stands in the places of problems."""
    try:
        bound_depth(raw, name)
        node = yaml.compose(raw, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise _one(place, f"is not valid YAML: {what}", "mend the syntax here or just above") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _one(name, f"is not valid YAML: {error}", "write UTF-8 text, less deeply nested") from None
    builder = _Builder(name, exact)
    data = None if node is None else builder.build(node, (), 0)
    if builder.problems and not collect:
        raise InputError(builder.problems)
    return Document(name, data, builder.lines, builder.problems)


def bound_depth(raw: bytes | str, name: str) -> None:
    """Refuse text that is nested deeper than MAX_DEPTH before it is composed.

    libyaml composes by recursion on the C stack: some 30,000 brackets would end the process. Its events come one by
    one, so this stops at the bound. Raises InputError, and yaml.YAMLError where the text is not YAML that far.
    """
    depth = 0
    for event in yaml.parse(raw, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark = event.start_mark
                place = f"{name}:{mark.line + 1}" if mark else name
                raise _one(place, f"is nested deeper than {MAX_DEPTH}", "nest less deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _one(place: str, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=place, fact=fact, effect="the file is not used", fix=fix)])


class _Builder:
    """Plain data from YAML nodes, counting what it makes."""

    def __init__(self, name: str, exact: bool) -> None:
        self.name = name
        self.exact = exact
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.problems: list[Problem] = []
        self.nodes = 0
        self._scalar = yaml.SafeLoader("").construct_object

    def build(self, node: yaml.Node, path: tuple[str | int, ...], depth: int) -> Any:
        self.nodes += 1
        line = node.start_mark.line + 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            bound = f"nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else f"more than {MAX_NODES} values"
            raise _one(f"{self.name}:{line}", f"is {bound} (aliases expanded)", "use fewer aliases or split the file")
        self.lines[path] = line
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._plain(node, line)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in out:
                self.problems.append(
                    Problem(
                        place=f"{self.name}:{key_node.start_mark.line + 1}",
                        fact=f"key {key!r} stands twice in this mapping",
                        effect="the file is not used: one of the two would silently win",
                        fix="remove one of them",
                    )
                )
            out[key] = self.build(value_node, (*path, key), depth + 1)
        return out

    def _plain(self, node: yaml.ScalarNode, line: int) -> Any:
        tag = node.tag
        if tag not in _SCALARS:
            self.problems.append(
                Problem(
                    place=f"{self.name}:{line}",
                    fact=f"tag {tag!r} is not plain data",
                    effect="the file is not used",
                    fix="write plain text, numbers, lists and mappings",
                )
            )
            return None
        kind = tag.rsplit(":", 1)[1]
        if kind in ("str", "timestamp") or (self.exact and kind in ("int", "float")):
            return node.value
        try:
            return self._scalar(node)
        except (ValueError, yaml.YAMLError):
            return node.value
