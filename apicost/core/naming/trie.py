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

from apicost.core.naming.paths import LITERAL, MULTI, PARAMETER, Segment, fits

Node = dict[Any, Any]

# Integer keys of a node. Segments are str, so they can't collide.
SURE_PARAMETER = 0  # the node behind one parameter, where nothing better than it can fit a non-literal segment
ANSWERS = 1  # method -> finished answer, for what the walk by first choice may take without looking further
PARAMETER_EDGE = 2  # the node behind one parameter
MIXED_EDGES = 3  # [(pieces, node)]
MULTI_EDGES = 4  # [MultiEdge]
ENTRIES = 5  # the entries of the templates that end here: a list while they are put in, a tuple afterwards
CLAIMS = 6  # [claim] of the base paths that end here
SURE_TAILS = 7  # [(segments, literal tail, node)], longest first, behind one multi-segment parameter that is sure


class MultiEdge(NamedTuple):
    """A parameter that spans "/": text before it in its first segment, after it in its last, and what follows."""

    prefix: str
    suffix: str
    node: Node


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


def mark_sure(root: Node) -> None:
    """Let the walk by first choice go on where only one non-literal edge leads on and nothing better can fit."""
    for node in nodes_of(root):
        if MIXED_EDGES in node:
            continue
        if PARAMETER_EDGE in node:
            node[SURE_PARAMETER] = node[PARAMETER_EDGE]
        elif [(edge.prefix, edge.suffix) for edge in node.get(MULTI_EDGES, ())] == [("", "")]:
            tails = _literal_tails(node[MULTI_EDGES][0].node)
            if tails is not None:
                node[SURE_TAILS] = tails


def _literal_tails(node: Node) -> list[tuple[int, list[str], Node]] | None:
    """What may follow a multi-segment parameter, best first, where all of it is literal; None where it is not.

    Of two templates the one that goes on after the parameter is better, so the longest tail is.
    """
    tails = []
    waiting: list[tuple[list[str], Node]] = [([], node)]
    while waiting:
        tail, end = waiting.pop()
        if any(edge in end for edge in (PARAMETER_EDGE, MIXED_EDGES, MULTI_EDGES)):
            return None
        if ENTRIES in end:
            tails.append((len(tail), tail, end))
        waiting.extend(([*tail, text], child) for text, child in end.items() if isinstance(text, str))
    return sorted(tails, key=lambda found: -found[0])


def by_tail(node: Node, rest: list[str]) -> Node | None:
    """The node of the best template behind a node's sure multi-segment parameter, for the segments left."""
    for size, tail, end in node[SURE_TAILS]:
        left = len(rest) - size
        if left > 0 and rest[left:] == tail and (left > 1 or rest[0]):
            found: Node = end
            return found
    return None


def collect(root: Node, segments: Sequence[str]) -> list[Node]:
    """The nodes of all templates that fit the decoded segments of a path."""
    frontier = [root]
    running: dict[int, MultiEdge] = {}  # edges that have taken the segment before and may take on
    for text in segments:
        following: list[Node] = []
        if running:
            following.extend(edge.node for edge in running.values() if text.endswith(edge.suffix))
        for node in frontier:
            if text in node:
                following.append(node[text])
            if PARAMETER_EDGE in node and text:
                following.append(node[PARAMETER_EDGE])
            if MIXED_EDGES in node:
                for segment, child in node[MIXED_EDGES]:
                    pieces = segment.pieces
                    # The ends are looked at first: most do not fit, and a call costs more than both.
                    if text.endswith(pieces[-1]) and text.startswith(pieces[0]) and fits(pieces, text):
                        following.append(child)
            if MULTI_EDGES in node:
                for edge in node[MULTI_EDGES]:
                    if text.startswith(edge.prefix):
                        running[id(edge)] = edge
                        if fits((edge.prefix, edge.suffix), text):
                            following.append(edge.node)
        if not following and not running:
            return following
        if running and len(following) > 1:  # two ways may lead to one node
            following = list({id(node): node for node in following}.values())
        frontier = following
    return [node for node in frontier if ENTRIES in node]


def longest_claims(root: Node, segments: Sequence[str]) -> tuple[int, list[Any]]:
    """The claims of the longest base paths that hold a path, behind their length in segments; -1 where none does.

    Base paths have no parameters that span "/".
    """
    depth, claims = -1, []
    frontier = [root]
    for level, text in enumerate((*segments, None)):
        here = [claim for node in frontier for claim in node.get(CLAIMS, ())]
        if here:
            depth, claims = level, here
        if text is None:
            break
        frontier = [child for node in frontier for child in _children(node, text)]
    return depth, claims


def _children(node: Node, text: str) -> Iterable[Node]:
    if text in node:
        yield node[text]
    if PARAMETER_EDGE in node and text:
        yield node[PARAMETER_EDGE]
    for segment, child in node.get(MIXED_EDGES, ()):
        if fits(segment.pieces, text):
            yield child
