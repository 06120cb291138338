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

from apicost.core.naming.paths import LITERAL, MULTI, ONE_PARAMETER, PARAMETER, Segment, fits

Node = dict[Any, Any]

# Integer keys of a node. Segments are str, so they can't collide.
PARAMETER_EDGE = 0  # the node behind one parameter; moved to the mixed edges where there are some
MIXED_EDGES = 1  # [(segment, node)], best first once settled
MULTI_EDGES = 2  # [MultiEdge]
ENTRIES = 3  # the entries of the templates that end here: a list while they are put in, a tuple afterwards
CLAIMS = 4  # [claim] of the base paths that end here
SURE_TAILS = 5  # [(segments, literal tail, node)], longest first, behind one multi-segment parameter that is sure
# From here on a number stands for a method, and leads to the finished answer that the walk by first choice may
# take without looking further. In the node itself: a dict of its own would be two more places to fetch from memory.
FIRST_METHOD = 8

NOWHERE: Node = {}  # a node without edges and answers, never put into a trie


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


def settle(nodes: Iterable[Node]) -> None:
    """Make nodes ready for the walk by first choice, once all templates are in them."""
    for node in nodes:
        if MIXED_EDGES in node:
            # Among mixed edges one parameter is one more: what stands alone at PARAMETER_EDGE has no rival.
            if PARAMETER_EDGE in node:
                node[MIXED_EDGES].append((ONE_PARAMETER, node.pop(PARAMETER_EDGE)))
            node[MIXED_EDGES].sort(key=lambda edge: (edge[0].rank, -edge[0].literal_chars))
        elif PARAMETER_EDGE not in node and [edge[:2] for edge in node.get(MULTI_EDGES, ())] == [("", "")]:
            tails = _literal_tails(node[MULTI_EDGES][0].node)
            if tails is not None:
                node[SURE_TAILS] = tails


def by_mixed(node: Node, text: str) -> Node:
    """The node behind the best mixed edge of a settled node; NOWHERE where none fits or several are as good."""
    best = NOWHERE
    rank = chars = 0
    for segment, child in node[MIXED_EDGES]:
        if best is not NOWHERE and (segment.rank, segment.literal_chars) != (rank, chars):
            break
        pieces = segment.pieces
        if text.endswith(pieces[-1]) and text.startswith(pieces[0]) and fits(pieces, text):
            if best is not NOWHERE:
                return NOWHERE
            best, rank, chars = child, segment.rank, segment.literal_chars
    return best


def merged(nodes: Sequence[Node], most: int) -> tuple[Node, list[Node]] | None:
    """Settled tries as one, with the nodes that had to be made; None where that takes more than `most`.

    What only one of them has below a node is shared, not copied, so mostly few nodes next to the root are made.
    The entries of a made node stand there as a list again.
    """
    made: list[Node] = []
    waiting: list[tuple[Node, Sequence[Node]]] = []

    def one(found: Sequence[Node]) -> Node:
        if len(found) == 1:
            return found[0]
        node: Node = {}
        made.append(node)
        waiting.append((node, found))
        return node

    root = one(nodes)
    while waiting:
        if len(made) > most:
            return None
        node, sources = waiting.pop()
        literal: dict[str, list[Node]] = {}
        mixed: dict[Segment, list[Node]] = {}
        multi: dict[tuple[str, str], list[Node]] = {}
        entries: dict[int, Any] = {}
        claims: list[Any] = []
        for source in sources:
            for key, value in source.items():
                if isinstance(key, str):
                    literal.setdefault(key, []).append(value)
            if PARAMETER_EDGE in source:
                mixed.setdefault(ONE_PARAMETER, []).append(source[PARAMETER_EDGE])
            for segment, child in source.get(MIXED_EDGES, ()):
                mixed.setdefault(segment, []).append(child)
            for edge in source.get(MULTI_EDGES, ()):
                multi.setdefault((edge.prefix, edge.suffix), []).append(edge.node)
            entries.update((id(entry), entry) for entry in source.get(ENTRIES, ()))
            claims.extend(source.get(CLAIMS, ()))
        node.update((text, one(found)) for text, found in literal.items())
        if list(mixed) == [ONE_PARAMETER]:
            node[PARAMETER_EDGE] = one(mixed[ONE_PARAMETER])
        elif mixed:
            node[MIXED_EDGES] = [(segment, one(found)) for segment, found in mixed.items()]
        if multi:
            node[MULTI_EDGES] = [MultiEdge(*ends, one(found)) for ends, found in multi.items()]
        if entries:
            node[ENTRIES] = list(entries.values())
        if claims:
            node[CLAIMS] = claims
    settle(made)
    return root, made


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


def by_tail(node: Node, rest: list[str]) -> Node:
    """The node of the best template behind a node's sure multi-segment parameter, for the segments left;
    NOWHERE where none fits."""
    for size, tail, end in node[SURE_TAILS]:
        left = len(rest) - size
        if left > 0 and rest[left:] == tail and (left > 1 or rest[0]):
            found: Node = end
            return found
    return NOWHERE


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
