"""The rules of matching read straight from the page, with no index: every template against every request.

Shares nothing with `core/naming/index.py` and `core/naming/trie.py`; templates are compared by regular expressions,
where the index uses a trie and string searches.
"""

import re
from dataclasses import dataclass
from functools import cmp_to_key
from urllib.parse import unquote


@dataclass(frozen=True)
class Line:
    """One operation: API, method, base, template key, host ("" any, "*" wildcard) and priority."""

    api: str
    method: str
    base: str
    template: str
    host: str
    priority: int

    @property
    def path(self):
        return self.base + self.template

    @property
    def name(self):
        return f"{self.method} {self.template}"


def host_rank(pattern, host):
    """0 exact, 1 wildcard, 2 any; None: does not fit."""
    host = re.sub(r":(80|443)$", "", host.lower())
    if pattern == "":
        return 2
    if "*" in pattern:
        return 1 if re.fullmatch(re.escape(pattern).replace(r"\*", ".+"), host) else None
    return 0 if pattern == host else None


def segment_kind(segment):
    """(class, -literal characters): smaller is better."""
    parameters = re.findall(r"\{[^}]*\}", segment)
    literal_chars = len(unquote(re.sub(r"\{[^}]*\}", "", segment)))
    if not parameters:
        return (0, 0)
    if any(parameter.startswith("{+") for parameter in parameters):
        return (3, -literal_chars)
    return (2, 0) if literal_chars == 0 else (1, -literal_chars)


def segments_of(path):
    """Decoded segments without dot segments; None for what does not begin with "/"."""
    path = re.split(r"[?#]", path)[0]
    if not path.startswith("/"):
        return None
    out = []
    parts = path[1:].split("/")
    for number, part in enumerate(parts):
        part = unquote(part, errors="surrogateescape")
        if part in (".", ".."):
            if part == ".." and out:
                out.pop()
            if number == len(parts) - 1:
                out.append("")
        else:
            out.append(part)
    return out or [""]


SLASH = "\ud800"  # stands for a raw "/", which decoded segments can't hold


def pattern_of(template):
    """A regular expression over segments joined by SLASH."""
    out = []
    for segment in template[1:].split("/"):
        pieces = re.split(r"(\{[^}]*\})", segment)
        text = ""
        for piece in pieces:
            if piece.startswith("{+"):
                text += "(?s:.+)"
            elif piece.startswith("{"):
                text += f"[^{SLASH}]+"
            else:
                text += re.escape(unquote(piece))
        out.append(text)
    return SLASH.join(out)


def fits(template, segments):
    return re.fullmatch(pattern_of(template), SLASH.join(segments)) is not None


def better(one, other):
    """Rule 1 and 2: negative where `one` (rank, line) is better, 0 where they compare equal."""
    if one[0] != other[0]:
        return one[0] - other[0]
    ours = [segment_kind(s) for s in one[1].path[1:].split("/")]
    theirs = [segment_kind(s) for s in other[1].path[1:].split("/")]
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            return -1 if a < b else 1
    # Only behind a multi-segment parameter can one go on where the other ends.
    return len(theirs) - len(ours)


def settle(one, other):
    """Rule 4 on top."""
    difference = better(one, other)
    if difference:
        return difference
    a, b = one[1], other[1]
    return (b.base.count("/") - a.base.count("/")) or (b.priority - a.priority) or (one[2] - other[2])


def slow_find(lines, method, host, path):
    """(state, API, operation name, flags)."""
    hosts = [(host_rank(line.host, host), line, number) for number, line in enumerate(lines)]
    hosts = [one for one in hosts if one[0] is not None]
    if not hosts:
        return ("unknown-host", None, None, ())
    segments = segments_of(path)
    flags = ()
    candidates = []
    if segments is not None:
        candidates = [one for one in hosts if fits(one[1].path, segments)]
        if not candidates:
            collapsed = [s for s in segments[:-1] if s] + segments[-1:]
            toggled = collapsed[:-1] if collapsed[-1] == "" and len(collapsed) > 1 else [*collapsed, ""]
            for repaired in [collapsed] + ([toggled] if collapsed != [""] else []):
                candidates = [one for one in hosts if fits(one[1].path, repaired)]
                if candidates:
                    flags = ("loose-match",)
                    break
    if not candidates:
        return ("undocumented-path", None, None, ())
    candidates.sort(key=cmp_to_key(settle))
    with_method = [one for one in candidates if one[1].method == method]
    if not with_method and method == "HEAD":
        with_method = [one for one in candidates if one[1].method == "GET"]
    if with_method:
        chosen = with_method[0]
        if better(candidates[0], chosen) < 0:
            flags += ("method-fallthrough",)
        others = [one for one in with_method[1:] if better(chosen, one) == 0]
        if any((one[1].api, one[1].name) != (chosen[1].api, chosen[1].name) for one in others):
            flags += ("ambiguous-operation",)
        return ("matched", chosen[1].api, chosen[1].name, flags)
    best = candidates[0][1]
    if method == "OPTIONS":
        return ("matched", best.api, "cors-preflight", flags)
    return ("undocumented-method", best.api, None, flags)
