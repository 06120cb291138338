"""Request paths, hosts and path templates in the one form that they are compared in.

Rules of this file:
- A path is split on raw "/" and each segment percent-decoded afterwards, so "%2F" stays inside its segment
  (RFC 3986, section 2.2: an encoded delimiter is data).
- Dot segments are removed first (RFC 3986, section 5.2.4); "%2E" is "." (section 6.2.2.2: percent-encoded
  unreserved characters are equivalent to the characters themselves).
- Paths are case-sensitive, hosts are not (RFC 3986, section 6.2.2.1).
- A parameter stands for at least one character.
- No regular expression runs over traffic: `fits` is linear in the text, whatever the template says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple
from urllib.parse import unquote

LITERAL, MIXED, PARAMETER, MULTI = range(4)

_PARAMETER = re.compile(r"\{([^{}]*)\}")
_DEFAULT_PORT = re.compile(r":(?:80|443)?$")


class Segment(NamedTuple):
    """One segment of a path template.

    rank: LITERAL, MIXED (literal text and parameters), PARAMETER or MULTI (spans "/").
    literal_chars: how much literal text it has; 0 for LITERAL and PARAMETER, where it decides nothing.
    pieces: the literal text around the parameters: ("orders",) has none, ("", "") is one parameter, ("", ".json")
        is `{id}.json`. A segment of one piece with rank PARAMETER or MIXED comes from a server variable with an enum:
        it fits that text only, and yet a literal is better.
    """

    rank: int
    literal_chars: int
    pieces: tuple[str, ...]


@functools.lru_cache(maxsize=1 << 16)  # the same words stand in many templates: 1 << 16 x about 250 B = 16 MiB at most
def literal(text: str) -> Segment:
    """The segment that fits exactly `text`."""
    return Segment(LITERAL, 0, (text,))


ONE_PARAMETER = Segment(PARAMETER, 0, ("", ""))


def decode(segment: str) -> str:
    """A raw segment percent-decoded; bytes that are not UTF-8 stay apart from each other (surrogates)."""
    return unquote(segment, errors="surrogateescape") if "%" in segment else segment


def split_path(raw: str) -> list[str] | None:
    """Decoded segments of a raw request path, without the leading empty one; None where it has no leading "/".

    "/a/b" is ["a", "b"], "/a/" is ["a", ""], "/" is [""]. A query or fragment is cut off.
    """
    if not raw.startswith("/"):
        return None
    raw = raw.partition("?")[0].partition("#")[0]
    segments = [decode(segment) for segment in raw[1:].split("/")]
    if "." in segments or ".." in segments:
        segments = without_dots(segments)
    return segments


def without_dots(segments: Sequence[str]) -> list[str]:
    """Segments with "." and ".." taken out (RFC 3986, section 5.2.4)."""
    kept: list[str] = []
    for segment in segments:
        if segment not in (".", ".."):
            kept.append(segment)
        elif segment == ".." and kept:
            kept.pop()
    # RFC 3986, section 5.2.4: "/a/b/.." is "/a/": a dot segment at the end leaves its slash.
    if segments[-1] in (".", ".."):
        kept.append("")
    return kept or [""]


def repairs(segments: Sequence[str]) -> list[list[str]]:
    """What the path may have meant, the smallest repair first: without double slashes, then with the trailing slash
    put on or taken off. The path itself is not among them."""
    tried = [list(segments)]
    joined = [s for s in segments[:-1] if s] + [segments[-1]]
    toggled = joined[:-1] if joined[-1] == "" and len(joined) > 1 else [*joined, ""]
    if joined == [""]:
        toggled = joined
    for variant in (joined, toggled):
        if variant not in tried:
            tried.append(variant)
    return tried[1:]


def normal_host(host: str) -> str:
    """A host as it is compared: lower case, without default port (80, 443) and without a root dot."""
    host = host.lower()
    if ":" in host:
        host = _DEFAULT_PORT.sub("", host)
    if host.endswith("."):
        host = host[:-1]
    return host


def fits(pieces: Sequence[str], text: str) -> bool:
    """Whether literal pieces with at least one character between each make up the text.

    Taking each piece at its leftmost place is enough to decide, so this takes linear time.
    """
    if len(pieces) == 1:
        return text == pieces[0]
    if not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return False
    position = len(pieces[0]) + 1
    end = len(text) - len(pieces[-1])
    for piece in pieces[1:-1]:
        found = text.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece) + 1
    return position <= end


class Template(NamedTuple):
    """A path template, taken apart.

    discriminators: (name, value) pairs of a "?name=value" behind the path; value None where only the name stands.
    faults: what is wrong with it, in words; it is still usable.
    """

    segments: tuple[Segment, ...]
    discriminators: tuple[tuple[str, str | None], ...]
    faults: tuple[str, ...]


def parse_template(text: str, multi_segment: Sequence[str] = ()) -> Template:
    """Take a template such as "/files/{name}.json", "/v1/{+path}" or "/orders#create" apart.

    multi_segment: names of parameters that may span "/". The last ones taken apart are remembered, until
    `forget_templates`: each is asked for several times while its document is read.
    """
    return _parsed(text, tuple(multi_segment))


def forget_templates() -> None:
    """Give the memory of templates back, when all documents are read."""
    _parsed.cache_clear()


@functools.lru_cache(maxsize=1 << 14)  # the largest public document has 7,419
def _parsed(text: str, multi_segment: tuple[str, ...]) -> Template:
    path, query = _cut_suffixes(text)
    faults: list[str] = []
    # Braces may hold anything, a "/" too: they are set aside while splitting.
    names: list[str] = []

    def aside(found: re.Match[str]) -> str:
        names.append(found.group(1))
        return "{}"

    bare = _PARAMETER.sub(aside, path)
    rest = iter(names)
    segments = []
    for part in bare.removeprefix("/").split("/"):
        own = [next(rest) for _ in range(part.count("{}"))]
        segments.append(_segment(part, own, multi_segment, faults))
    discriminators = []
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        discriminators.append((decode_query(name), decode_query(value) if equals else None))
    return Template(tuple(segments), tuple(discriminators), tuple(faults))


def _segment(part: str, names: Sequence[str], multi_segment: Collection[str], faults: list[str]) -> Segment:
    pieces = tuple(decode(piece) for piece in part.split("{}"))
    if any("{" in piece or "}" in piece for piece in part.split("{}")):
        faults.append(f"a brace in {part!r} has no partner: it is read as literal text")
    chars = sum(map(len, pieces))
    multi = [name for name in names if name.startswith("+") or name in multi_segment]
    if "" in pieces[1:-1]:
        faults.append(f"parameters {'{' + '}{'.join(names) + '}'} stand side by side: no value can be told apart")
    if multi and len(names) > 1:
        faults.append(
            f"{'{' + multi[0] + '}'} spans '/' and shares its segment with another parameter: all of the "
            "segment between the first and the last is read as one"
        )
    if multi:
        return Segment(MULTI, len(pieces[0]) + len(pieces[-1]), (pieces[0], pieces[-1]))
    if len(pieces) == 1:
        return literal(pieces[0])
    if chars == 0 and len(pieces) == 2:
        return ONE_PARAMETER
    return Segment(MIXED, chars, pieces)


def _cut_suffixes(text: str) -> tuple[str, str]:
    """Path and query of a template key: "#x" makes a variant of the same path, "?k=v" a discriminator."""
    if "?" not in text and "#" not in text:
        return text, ""
    depth = 0
    cut = query_at = len(text)
    for position, character in enumerate(text):
        if character == "{":
            depth += 1
        elif character == "}":
            depth = max(0, depth - 1)
        elif depth == 0 and character == "#":
            cut = position
            break
        elif depth == 0 and character == "?" and query_at == len(text):
            query_at = position
    query_at = min(query_at, cut)
    return text[:query_at], text[query_at + 1 : cut]


def decode_query(text: str) -> str:
    """A name or value of a query string as it was meant: "+" is a space there."""
    return unquote(text.replace("+", " "), errors="surrogateescape")


def query_pairs(query: str) -> frozenset[tuple[str, str | None]]:
    """(name, value) and (name, None) of every parameter in a query string."""
    pairs: set[tuple[str, str | None]] = set()
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name:
            pairs.add((decode_query(name), decode_query(value)))
            pairs.add((decode_query(name), None))
    return frozenset(pairs)


def sort_key(segments: Sequence[Segment]) -> tuple[tuple[int, int], ...]:
    """Templates compare by this from the left: literal, mixed (more literal text first), parameter, multi-segment.

    A template that goes on after a multi-segment parameter is better than one that ends there.
    """
    return (*((s.rank, -s.literal_chars) for s in segments), (MULTI + 1, 0))
