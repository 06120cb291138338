"""Which documented operations a folded path fits, whatever the host: the matcher's rules, without its certainty.

Rules of this file:
- A marker ("{int}") stands for some value: it fits every parameter, mixed segments too, and the literal text that
  folds to it ("2010-04-01" is "{date}"). Where in doubt a path is taken for documented.
- The best of what fits is the matcher's best: segment by segment literal, mixed, parameter, multi-segment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

from apicost.core.conformance.fold import fold
from apicost.core.naming import trie
from apicost.core.naming.paths import LITERAL, MIXED, PARAMETER, Segment, fits, parse_template, sort_key, split_path

_MARKER = re.compile(r"\{[^{}]*\}")


class Templated(Protocol):
    """An operation, of today's documents or of former ones."""

    @property
    def path_template(self) -> str: ...
    @property
    def method(self) -> str: ...


_T = TypeVar("_T", bound=Templated)


class Fit(NamedTuple, Generic[_T]):
    """An operation whose template fits a path. said: some of the template is literal text, so that fitting it says
    something; "/{name}" fits anything."""

    operation: _T
    said: bool


def _own(operation: Templated) -> str:
    return operation.path_template


class Templates(Generic[_T]):
    """Operations by template. written: the template of an operation as the paths have it that are looked up."""

    def __init__(self, operations: Iterable[_T], written: Callable[[_T], str] = _own) -> None:
        self._root: trie.Node = {}
        folded: dict[Segment, Segment] = {}  # documents use the same words again and again
        for operation in operations:
            segments = parse_template(written(operation)).segments
            said = any(s.rank in (LITERAL, MIXED) and any(s.pieces) for s in segments)
            for segment in segments:
                if segment not in folded:
                    folded[segment] = _as_folded(segment)
            node = trie.insert(self._root, [folded[segment] for segment in segments])
            node.setdefault(trie.ENTRIES, []).append((sort_key(segments), Fit(operation, said)))

    def fitting(self, path: str, wanted: Callable[[_T], bool]) -> list[Fit[_T]]:
        """The operations that fit a folded path and are wanted, best first; equals in the order they were given."""
        segments = split_path(path)
        if segments is None:
            return []
        nodes = _collect(self._root, segments)
        found = [entry for node in nodes for entry in node[trie.ENTRIES] if wanted(entry[1].operation)]
        return [fit for _, fit in sorted(found, key=lambda entry: entry[0])]


def _as_folded(segment: Segment) -> Segment:
    """A literal that a folded path has as a marker, as that marker."""
    if segment.rank != LITERAL:
        return segment
    folded = fold("/" + quote(segment.pieces[0], safe="", errors="surrogateescape"))[1:]
    return Segment(LITERAL, 0, (folded,)) if _MARKER.fullmatch(folded) else segment


def _collect(root: trie.Node, segments: Sequence[str]) -> list[trie.Node]:
    """As `trie.collect`, but a marker follows every edge that a value can."""
    frontier = [root]
    running: dict[int, trie.MultiEdge] = {}
    for text in segments:
        marker = _MARKER.fullmatch(text) is not None
        following: dict[int, trie.Node] = {}
        for edge in running.values():
            if marker or text.endswith(edge.suffix):
                following[id(edge.node)] = edge.node
        for node in frontier:
            for child in _steps(node, text, marker):
                following[id(child)] = child
            for edge in node.get(trie.MULTI_EDGES, ()):
                if marker or text.startswith(edge.prefix):
                    running[id(edge)] = edge
                    if marker or fits((edge.prefix, edge.suffix), text):
                        following[id(edge.node)] = edge.node
        frontier = list(following.values())
        if not frontier and not running:
            return []
    return [node for node in frontier if trie.ENTRIES in node]


def _steps(node: trie.Node, text: str, marker: bool) -> Iterable[trie.Node]:
    if text in node:
        yield node[text]
    if text and trie.PARAMETER_EDGE in node:
        yield node[trie.PARAMETER_EDGE]
    for segment, child in node.get(trie.MIXED_EDGES, ()):
        if (marker and segment.rank in (MIXED, PARAMETER)) or fits(segment.pieces, text):
            yield child
