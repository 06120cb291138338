"""From APIs to tries: places ranked, templates put in, and answers that need no further look finished.

Rules 2 and 4 of `core/naming/index.py` are decided here, once, as numbers that a look-up compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from apicost.core.naming import trie
from apicost.core.naming.operations import AMBIGUOUS, MATCHED, Api, Claim, Match, Operation, Place
from apicost.core.naming.paths import sort_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A place, ranked: smaller is better within one class of hosts.

    group: the same for templates that compare equal; tie: the same where nothing but the base, the priority
    or the documents' order decides.
    """

    order: int
    group: int
    tie: int
    operation: Operation
    discriminators: tuple[tuple[str, str | None], ...]


class Owner(NamedTuple):
    """A claim in the trie: smaller rank is better; equal ranks of different APIs have no owner."""

    rank: tuple[object, ...]
    api: str


def rank(apis: Sequence[Api]) -> dict[int, Entry]:
    """An entry for each place (by its id()), ordered by rules 2 and 4."""
    places = [(place, api, number) for number, api in enumerate(apis) for place in api.places]
    keys = [
        (sort_key(place.segments), -len(place.discriminators), -place.base_segments, -api.priority, position)
        for position, (place, api, _) in enumerate(places)
    ]
    ranked: dict[int, Entry] = {}
    groups: dict[object, int] = {}
    ties: dict[object, int] = {}
    for order, index in enumerate(sorted(range(len(places)), key=keys.__getitem__)):
        place = places[index][0]
        ranked[id(place)] = Entry(
            order=order,
            # Numbered by their first entries: the same int objects, of which there are few.
            group=groups.setdefault(keys[index][0], order),
            tie=ties.setdefault(keys[index][:2], order),
            operation=place.operation,
            discriminators=place.discriminators,
        )
    return ranked


def method_keys(ranked: dict[int, Entry]) -> dict[str, int]:
    """The number that stands for each documented method in the nodes of tries.

    HEAD is GET's, unless some template documents HEAD: a HEAD on another path may fall through to it.
    """
    methods = dict.fromkeys(entry.operation.method for entry in ranked.values())
    keys = {method: key for key, method in enumerate(methods, trie.FIRST_METHOD)}
    if "GET" in keys:
        keys.setdefault("HEAD", keys["GET"])
    return keys


def compiled(
    items: Iterable[tuple[Place | Claim, Api]], ranked: dict[int, Entry], methods: dict[str, int]
) -> trie.Node:
    """The trie of all that is found under one host."""
    root: trie.Node = {}
    for item, api in items:
        if isinstance(item, Claim):
            owner = Owner((sort_key(item.base), -api.priority), api.id)
            trie.insert(root, item.base).setdefault(trie.CLAIMS, []).append(owner)
        else:
            trie.insert(root, item.segments).setdefault(trie.ENTRIES, []).append(ranked[id(item)])
    nodes = list(trie.nodes_of(root))
    trie.settle(nodes)
    finish(nodes, methods)
    return root


def finish(nodes: Iterable[trie.Node], methods: dict[str, int]) -> None:
    """Order the entries of nodes, and put in the answers that need no look at the query."""
    for node in nodes:
        if trie.ENTRIES in node:
            entries = tuple(sorted(node[trie.ENTRIES], key=lambda entry: entry.order))
            node[trie.ENTRIES] = entries
            asking = {entry.operation.method for entry in entries if entry.discriminators}
            fitting: dict[str, list[Entry]] = {}
            for entry in entries:
                if entry.operation.method not in asking:
                    fitting.setdefault(entry.operation.method, []).append(entry)
            for method, own in fitting.items():
                node[methods[method]] = matched(own[0], own[1:], ())


def matched(best: Entry, others: Iterable[Entry], flags: tuple[str, ...]) -> Match:
    own = (best.operation.spec, best.operation.pointer, best.operation.api)
    rivals = {
        (e.operation.spec, e.operation.pointer, e.operation.api): e.operation for e in others if e.tie == best.tie
    }
    rivals.pop(own, None)
    return Match(
        state=MATCHED,
        api=best.operation.api,
        operation=best.operation,
        path_template=best.operation.path_template,
        flags=(*flags, AMBIGUOUS) if rivals else flags,
        alternatives=tuple(rivals.values()),
    )
