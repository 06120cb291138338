"""Paths that no document describes, with the parts that only name one thing folded: "/users/17" is "/users/{int}".

Rules of this file:
- What a segment is, is told by its decoded text; a segment that stays, stays as it was sent.
- A word stays a word: the inference of templates needs what may be a literal. What is folded too little only
  makes more rows, and those are bounded when a day is done (`store/daycut`).
- Dot segments are taken out and a query is cut off as `core/naming/paths` does, so that the index finds the
  same operations for a folded path as for the path itself, parameters with an enum aside.
- Folding a folded path changes nothing. The outcome is at most `LONGEST` characters, all of them printable.
- Regular expressions here run over what clients send: none can go back (possessive quantifiers throughout).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.core.naming import paths

MOST_SEGMENTS = 24
LONGEST_SEGMENT = 64  # characters
MORE = "{more}"
LONGEST = MOST_SEGMENTS * (1 + LONGEST_SEGMENT) + 1 + len(MORE)

# Most segments by far: a short word, which is none of the rest. Hashes need 16 characters.
_WORD = re.compile(r"[A-Za-z_-]{0,15}+")
_INT = r"[+-]?[0-9]++"
_UUID = r"\{?[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}?"
_HEX = r"(?:(?:sha[0-9]{1,3}+|md5)[:_-])?+[0-9A-Fa-f]{16,}+|0[xX][0-9A-Fa-f]{8,}+"
_DATE = (
    r"[0-9]{4}-(?:0[1-9]|1[0-2])(?:-(?:0[1-9]|[12][0-9]|3[01]))?+"
    r"|[0-9]{4}-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12][0-9]|3[01])[Tt _]"
    r"[0-2][0-9](?::?[0-5][0-9](?::?[0-6][0-9](?:[.,][0-9]{1,9}+)?+)?+)?+(?:[Zz]|[+-][0-2][0-9](?::?[0-5][0-9])?+)?+"
)
_EMAIL = r"[^@/\s]++@[^@/\s.]++(?:\.[^@/\s.]++)++"
_KINDS = re.compile(
    rf"(?P<int>{_INT})|(?P<uuid>{_UUID})|(?P<hex>{_HEX})|(?P<date>{_DATE})|(?P<email>{_EMAIL})", re.ASCII
)
_ADDRESS = re.compile(
    r"[0-9.]{7,15}+(?::[0-9]{1,5})?+|\[?[0-9A-Fa-f:.]{2,45}+(?:%[0-9A-Za-z]{1,16})?+\]?(?::[0-9]{1,5})?+"
)
# Base64, base64url, base62 and the three parts of a JWT; 26 of Crockford's base32 are a ULID.
_TOKEN = re.compile(
    r"(?=[^a-z]*+[a-z])(?=[^A-Z]*+[A-Z])(?=[^0-9]*+[0-9])[A-Za-z0-9+_~-]{20,}+(?:\.[A-Za-z0-9+_-]++){0,2}+={0,2}+"
    r"|[A-Za-z0-9_-]{16,}+(?:\.[A-Za-z0-9_-]{16,}+){2}"
    r"|[0-7][0-9A-HJKMNP-TV-Z]{25}"
)
# "getOrderByCustomerIdV2" and "Release-Notes-For-2024" have all that a token has, and can be read: few numbers, and
# small letters in runs. Of random base62, 22 characters long, 1 in 25 is taken for words, and stays.
_NUMBER = re.compile(r"[0-9]++")
_SMALL = re.compile(r"[a-z]++")
_MOST_NUMBERS = 2
_LEAST_RUN = 3  # small letters in a row, on average


def fold(path: str) -> str:
    """A raw request path with its variable segments folded.

    Integers become {int}, UUIDs {uuid}, 16 and more hex digits {hex}, dates and timestamps {date}, e-mail
    addresses {email}, IP addresses {ip}, what looks like base64 of 20 and more characters {token}, any other
    segment of more than 64 characters {long}; what follows the 24th segment becomes "/{more}". A path without
    a leading "/" ("*" of OPTIONS, the authority of CONNECT) is folded segment by segment as well.
    """
    path = path.partition("?")[0].partition("#")[0]
    rooted = path.startswith("/")
    segments = (path[1:] if rooted else path).split("/")
    if "." in path or "%2" in path:
        decoded = [paths.decode(segment) for segment in segments]
        if "." in decoded or ".." in decoded:
            dots = (".", "..")
            segments = paths.without_dots([d if d in dots else s for s, d in zip(segments, decoded, strict=True)])
    folded = [_segment(segment) for segment in segments[:MOST_SEGMENTS]]
    if len(segments) > MOST_SEGMENTS:
        folded.append(MORE)
    return ("/" if rooted else "") + "/".join(folded)


# What a whole column can be rid of at once: a segment between slashes, or at the end. Neighbours share a slash, so
# that each goes twice. All digits are an integer, whatever their number: integers come first.
_INTS = "/{int}\\1"
_EVERYWHERE = (
    *(("/[0-9]+(/|$)", _INTS),) * 2,
    *(("/[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(/|$)", "/{uuid}\\1"),) * 2,
    *(("/[0-9A-Fa-f]{16,}(/|$)", "/{hex}\\1"),) * 2,
)
_FEW = 64  # so many different paths are folded one by one in less time


def fold_all(texts: pa.Array) -> tuple[npt.NDArray[np.int32], list[str]]:
    """`fold` of each of many paths, in order: the place of each in a list of folded paths, which may repeat.

    texts: strings, none null. Thousands of paths are mostly a few with other numbers: those are made equal first,
    by Arrow.
    """
    found: Any = texts.dictionary_encode()
    for pattern, kind in _EVERYWHERE:
        if len(found.dictionary) <= _FEW:
            break
        # Integers always, since what follows would take those of 16 digits for hashes; the others where some of
        # the paths have them: a pass costs a tenth of folding each.
        some = found.dictionary[:: len(found.dictionary) // _FEW]
        if kind != _INTS and not pc.any(pc.match_substring_regex(some, pattern)).as_py():
            continue
        shorter: Any = pc.replace_substring_regex(found.dictionary, pattern, kind).dictionary_encode()
        codes = shorter.indices.to_numpy()[found.indices.to_numpy()]
        found = pa.DictionaryArray.from_arrays(pa.array(codes), shorter.dictionary)
    return found.indices.to_numpy(), [fold(text) for text in found.dictionary.to_pylist()]


def printable(text: str) -> str:
    """The text with control characters and whatever else can't be shown percent-encoded."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else quote(c, safe="", errors="surrogatepass") for c in text)


def _segment(raw: str) -> str:
    if _WORD.fullmatch(raw):
        return raw
    text = paths.decode(raw)
    if found := _KINDS.fullmatch(text):
        return f"{{{found.lastgroup}}}"
    if ("." in text or ":" in text) and _is_address(text):
        return "{ip}"
    if _TOKEN.fullmatch(text) and not _is_words(text):
        return "{token}"
    kept = printable(raw)
    return kept if len(kept) <= LONGEST_SEGMENT else "{long}"


def _is_words(text: str) -> bool:
    runs = _SMALL.findall(text)
    return sum(map(len, runs)) >= _LEAST_RUN * max(len(runs), 1) and len(_NUMBER.findall(text)) <= _MOST_NUMBERS


def _is_address(text: str) -> bool:
    """IPv4 or IPv6, with or without brackets, zone and port."""
    if not _ADDRESS.fullmatch(text):
        return False
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
