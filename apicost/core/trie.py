"""The segment trie that path templates are compiled into, and the walk that finds all that fit a path.

Rules of this file:
- One node is one dict: decoded segments (str) lead to the nodes behind literal text; the small integers below
  lead to everything else. One dict per node is what makes a look-up cost one hash per segment.
- `collect` follows every edge that fits, as a set of states, so its cost is bounded by nodes x segments:
  there is no backtracking for a hostile path to feed.
- Which of the templates found is best is not decided here but by `Entry.order`, fixed at compile time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from apicost.core.paths import LITERAL, MULTI, PARAMETER, Segment, fits

Node = dict[Any, Any]

# Integer keys of a node. Segments are str, so they can't collide.
SURE_PARAMETER = 0  # the node behind one parameter, where nothing better than it can fit a non-literal segment
ANSWERS = 1  # method -> finished answer, for what the walk by first choice may take without looking further
PARAMETER_EDGE = 2  # the node behind one parameter
MIXED_EDGES = 3  # [(pieces, node)]
MULTI_EDGES = 4  # [MultiEdge]
ENTRIES = 5  # [entry] of the templates that end here
CLAIMS = 6  # [claim] of the base paths that end here


class MultiEdge(NamedTuple):
    """A parameter that spans "/": text before it in its first segment, after it in its last, and what follows."""

    prefix: str
    suffix: str
    node: Node


class Hits(NamedTuple):
    """What fits a path: the nodes that its last segment leads to, and the claims of the longest base path."""

    nodes: list[Node]
    claims: list[Any]
    claim_depth: int  # segments of that base path; -1: no base path holds this path


def insert(root: Node, segments: Sequence[Segment]) -> Node:
    """The node that a template ends at, made where it does not exist yet."""
    node = root
    for segment in segments:
        node = _step(node, segment)
    return node


def _step(node: Node, segment: Segment) -> Node:
    if segment.rank == LITERAL:
        found: Node = node.setdefault(segment.pieces[0], {})
        return found
    if segment.rank == PARAMETER and len(segment.pieces) == 2:
        return node.setdefault(PARAMETER_EDGE, {})
    if segment.rank == MULTI:
        multi: list[MultiEdge] = node.setdefault(MULTI_EDGES, [])
        for edge in multi:
            if (edge.prefix, edge.suffix) == segment.pieces:
                return edge.node
        multi.append(MultiEdge(segment.pieces[0], segment.pieces[-1], {}))
        return multi[-1].node
    mixed: list[tuple[Segment, Node]] = node.setdefault(MIXED_EDGES, [])
    for known, child in mixed:
        if known == segment:
            return child
    mixed.append((segment, {}))
    return mixed[-1][1]


def nodes_of(root: Node) -> Iterable[Node]:
    """Every node of a trie."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        for key, value in node.items():
            if isinstance(key, str) or key == PARAMETER_EDGE:
                waiting.append(value)
            elif key == MIXED_EDGES:
                waiting.extend(child for _, child in value)
            elif key == MULTI_EDGES:
                waiting.extend(edge.node for edge in value)


def mark_sure_parameters(root: Node) -> None:
    """Let the walk by first choice take a parameter where no mixed segment could be better."""
    for node in nodes_of(root):
        if PARAMETER_EDGE in node and MIXED_EDGES not in node:
            node[SURE_PARAMETER] = node[PARAMETER_EDGE]


def collect(root: Node, segments: Sequence[str]) -> Hits:
    """All templates and the longest base paths that fit the decoded segments of a path."""
    claims: list[Any] = root.get(CLAIMS, [])
    depth = 0 if claims else -1
    frontier = [root]
    running: dict[int, MultiEdge] = {}  # edges that have taken the segment before and may take on
    for position, text in enumerate(segments):
        following: list[Node] = []
        for edge in running.values():
            if text.endswith(edge.suffix):
                following.append(edge.node)
        for node in frontier:
            child = node.get(text)
            if child is not None:
                following.append(child)
            child = node.get(PARAMETER_EDGE)
            if child is not None and text:
                following.append(child)
            if MIXED_EDGES in node:
                following.extend(child for segment, child in node[MIXED_EDGES] if fits(segment.pieces, text))
            if MULTI_EDGES in node:
                _start(node[MULTI_EDGES], text, running, following)
        if not following and not running:
            return Hits([], claims, depth)
        # Two ways may lead to one node where a parameter spans "/".
        frontier = list({id(node): node for node in following}.values()) if running else following
        for node in frontier:
            if CLAIMS in node:
                if depth <= position:
                    claims, depth = [], position + 1
                claims = claims + node[CLAIMS]
    return Hits([node for node in frontier if ENTRIES in node], claims, depth)


def _start(edges: list[MultiEdge], text: str, running: dict[int, MultiEdge], following: list[Node]) -> None:
    for edge in edges:
        if text.startswith(edge.prefix):
            running[id(edge)] = edge
            if fits((edge.prefix, edge.suffix), text):
                following.append(edge.node)
