"""Templates of paths that no document describes, inferred from the paths alone.

Rules of this file:
- What the documents say comes first: where they have a parameter after the same beginning, so has the template, by
  its name; where they have that literal text, it stays.
- A folded marker ("{int}") is a parameter, or the one literal text that the documents have there and that folds to
  it ("2010-04-01" is "{date}"). Literal text beside others becomes one where it looks like a value (digits,
  or no word at all) and so do its siblings; or where there are `MANY` of them that are called a few times each or go
  on alike ("/alice/inbox", "/bob/inbox"): words that an API is made of go on each in its own way.
- Alone, a word stays a word: too many templates are mended by hand, a template too wide hides an endpoint.
- The outcome is the same for any order of the paths, and each path fits its own template.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

from apicost.core.conformance.fold import fold
from apicost.core.naming.paths import LITERAL, PARAMETER, parse_template

MANY = 10  # so many words at one place that no document names may be values
TOO_MANY = 100  # and so many are
SELDOM = 3  # a word that an API is made of is called more often than this
ALIKE = 0.25  # of the words that follow one of them, this share of the others has, too
FEW = 3  # so many that look like values are values
_MARKER = re.compile(r"\{([a-z]+)\}")
_PARAMETER = re.compile(r"\{([^{}]*)\}")
_VERSION = re.compile(r"[vV]\d{1,3}(?:\.\d{1,3})*|[a-zA-Z]{2,}v?\d|oauth2")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,5}$")
_NO_WORD = re.compile(r"%[0-9A-Fa-f]{2}|[@~$!*'(),;=+]|[a-z][A-Z]+[a-z]*[A-Z]{2}|[A-Z]{2,}-|\d")
_WORDS = re.compile(r"[A-Za-z0-9]+")
# The type and format that a schema has for values folded to a marker.
SCHEMA_OF = {
    "int": ("integer", ""), "uuid": ("string", "uuid"), "date": ("string", "date"), "email": ("string", "email"),
}  # fmt: skip


class Parameter(NamedTuple):
    """One parameter of a template. type, format: of its schema; format "" for none. documented: a document named it."""

    name: str
    type: str = "string"
    format: str = ""
    documented: bool = False


class Template(NamedTuple):
    """An inferred template and its parameters, from the left."""

    text: str
    parameters: tuple[Parameter, ...] = ()


@dataclass(slots=True)
class _Known:
    """What documents have after one beginning. parameter: its name and what follows it.

    folded: marker -> the literal texts that a folded path has as that marker.
    """

    literals: dict[str, _Known] = field(default_factory=dict)
    folded: dict[str, set[str]] = field(default_factory=dict)
    parameter: str = ""
    behind: _Known | None = None


@dataclass(slots=True)
class _Node:
    """Paths by segment. ends: numbers of the paths that end here."""

    children: dict[str, _Node] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    calls: int = 0  # of the paths that lead here


class Inference:
    """Infers templates in the light of what is documented; callable as the judge wants it.

    documented: templates of the documents as clients' paths have them: with base path and stripped prefix.
    """

    def __init__(self, documented: Iterable[str] = ()) -> None:
        self._known = _Known()
        for template in sorted(set(documented)):
            self._learn(template)

    def __call__(self, paths: Sequence[str], calls: Sequence[int] | None = None) -> list[str]:
        """Folded paths of one API or host and how often each was called -> their templates, one for each, in order."""
        return [template.text for template in self.templates(paths, calls)]

    def templates(self, paths: Sequence[str], calls: Sequence[int] | None = None) -> list[Template]:
        """The same with each template's parameters. calls: None for one each."""
        root = _Node()
        for number, path in enumerate(paths):
            node = root
            for segment in path.removeprefix("/").split("/"):
                node = node.children.setdefault(segment, _Node())
                node.calls += calls[number] if calls is not None else 1
            node.ends.append(number)
        found: dict[int, tuple[list[str], list[Parameter]]] = {}
        # What is left to do: a node, what the documents have there, the template so far.
        waiting: list[tuple[_Node, _Known | None, list[str], list[Parameter]]] = [(root, self._known, [], [])]
        while waiting:
            node, known, segments, parameters = waiting.pop()
            found.update(dict.fromkeys(node.ends, (segments, parameters)))
            for text, parameter, child, behind in _steps(node, known, segments, parameters):
                more = [*parameters, parameter] if parameter else parameters
                waiting.append((child, behind, [*segments, text], more))
        return [
            Template("/" + "/".join(segments) if paths[number].startswith("/") else paths[number], tuple(parameters))
            for number, (segments, parameters) in sorted(found.items())
        ]

    def _learn(self, template: str) -> None:
        node = self._known
        names = iter(_PARAMETER.findall(template))
        for segment in parse_template(template).segments:
            if segment.rank == LITERAL:
                text = segment.pieces[0]
                marker = fold("/" + quote(text, errors="surrogateescape"))[1:]
                if _MARKER.fullmatch(marker):
                    node.folded.setdefault(marker, set()).add(text)
                node = node.literals.setdefault(text, _Known())
                continue
            own = [next(names, "") for _ in segment.pieces[1:]]
            if segment.rank != PARAMETER or len(segment.pieces) != 2:
                return  # text and parameters in one segment are no rule for what stands beside them
            if node.behind is None:
                node.parameter, node.behind = own[0].lstrip("+"), _Known()
            node = node.behind


def _steps(
    node: _Node, known: _Known | None, segments: Sequence[str], parameters: Sequence[Parameter]
) -> Iterable[tuple[str, Parameter | None, _Node, _Known | None]]:
    """How the paths of a node go on: (the next segment, its parameter, the node behind it, what is known there)."""
    literals = known.literals if known else {}
    values, suffix = _values(node, known)
    taken = {parameter.name for parameter in parameters}
    for text in sorted(node.children.keys() - values):
        meant = _meant(text, known)
        if meant is not None:
            yield quote(meant, safe="", errors="surrogateescape"), None, node.children[text], literals.get(meant)
            continue
        # A brace that a client sent is no parameter: in a template it is written as what it stands for.
        written = text.replace("{", "%7B").replace("}", "%7D")
        yield written, None, node.children[text], literals.get(text)
    if not values:
        return
    merged = _merged(node.children[text] for text in sorted(values))
    documented = known is not None and known.behind is not None
    name = known.parameter if known is not None and documented else _name(segments)
    parameter = Parameter(_free(name, taken), *SCHEMA_OF.get(_kind(values), ("string", "")), documented=documented)
    yield f"{{{parameter.name}}}{suffix}", parameter, merged, known.behind if known else None


def _values(node: _Node, known: _Known | None) -> tuple[set[str], str]:
    """Which of the segments at one place are values of a parameter, and the file name's end that all of them have."""
    literals = known.literals if known else {}
    words = {text for text in node.children if text and not _MARKER.fullmatch(text) and text not in literals}
    markers = {text for text in node.children if _MARKER.fullmatch(text) and _meant(text, known) is None}
    if known is not None and known.behind is not None:
        return markers | words, ""
    alike = {text for text in words if _looks_like_a_value(text)}
    if len(words) >= MANY and _are_values([node.children[text] for text in sorted(words)]):
        values = words
    elif len(alike) >= FEW or (alike and markers):
        values = alike
    else:
        values = set()
    found = values | markers
    return found, "" if markers else _common_suffix(values)


def _meant(text: str, known: _Known | None) -> str | None:
    """The literal text that a marker stands for; None where the documents have a parameter there, or several such."""
    texts = known.folded.get(text, set()) if known is not None and known.behind is None else set()
    return next(iter(texts)) if len(texts) == 1 else None


def _are_values(nodes: Sequence[_Node]) -> bool:
    """Whether so many words at one place are values: too many, seldom called, or followed by the same words."""
    middle = sorted(node.calls for node in nodes)[len(nodes) // 2]
    if len(nodes) >= TOO_MANY or middle <= SELDOM:
        return True
    behind: list[set[str]] = [set(node.children) for node in nodes]
    beyond = [{text for child in node.children.values() for text in child.children} for node in nodes]
    return max(_alike(behind), _alike(beyond)) >= ALIKE


def _alike(followers: Sequence[set[str]]) -> float:
    """Of the words that follow one place, which share of the other places has, on average; markers say nothing."""
    counts = Counter(text for texts in followers for text in texts if text and not _MARKER.fullmatch(text))
    places = sum(any(not _MARKER.fullmatch(text) for text in texts) for texts in followers)
    if 2 * places < len(followers) or places < 2:
        return 0.0
    return sum(n * (n - 1) for n in counts.values()) / ((places - 1) * sum(counts.values()))


def _looks_like_a_value(text: str) -> bool:
    """Digits and signs that words don't have; versions ("v2", "oauth2") are words."""
    stem = _SUFFIX.sub("", text)
    return _NO_WORD.search(stem) is not None and not _VERSION.fullmatch(stem)


def _common_suffix(values: set[str]) -> str:
    suffixes = {found[0] if (found := _SUFFIX.search(text)) else "" for text in values}
    return suffixes.pop() if len(suffixes) == 1 else ""


def _kind(values: set[str]) -> str:
    """The marker that all values are, "" where they differ."""
    kinds = {found[1] if (found := _MARKER.fullmatch(text)) else "" for text in values}
    return kinds.pop() if len(kinds) == 1 else ""


def _merged(nodes: Iterable[_Node]) -> _Node:
    """One node for all: without recursion, since paths may be deep."""
    root = _Node()
    waiting = [(root, node) for node in nodes]
    while waiting:
        target, source = waiting.pop()
        target.ends.extend(source.ends)
        target.calls += source.calls
        for text, child in source.children.items():
            waiting.append((target.children.setdefault(text, _Node()), child))
    return root


def _name(segments: Sequence[str]) -> str:
    """A parameter's name from the word before it: "orders" has an "orderId"."""
    before = segments[-1] if segments else ""
    if before.startswith("{") or not (words := _WORDS.findall(before)):
        return "id"
    words[-1] = _singular(words[-1])
    name = words[0][:1].lower() + words[0][1:] + "".join(word[:1].upper() + word[1:] for word in words[1:])
    return f"{name}Id"


def _singular(word: str) -> str:
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + instead
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 2 else word


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}{number}"
    return free
