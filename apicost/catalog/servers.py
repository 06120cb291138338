"""Server URLs of OpenAPI documents as host patterns and base paths.

Rules of this file (OpenAPI 3.1, "Server Object" and "Server Variable Object"):
- A variable's enum is an exact set; without one it stands for one or more characters other than "/".
- A URL without a host ("/v1", "") stands for any host; "//host" for any scheme. The scheme is never compared:
  a usage line does not have it, and TLS may end before the gateway.
- A base path ends on a segment boundary: "/v1" does not hold "/v10".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from apicost.core.naming.operations import ANY, EXACT_HOST, HOST_PATTERN, HostPattern
from apicost.core.naming.paths import MIXED, PARAMETER, Segment, decode, literal, normal_host, parse_template

MAX_EXPANSIONS = 64  # combinations of enum values of one server

_VARIABLE = re.compile(r"\{([^{}]*)\}")
_AUTHORITY = re.compile(r"(?:([A-Za-z][\w+.-]*|\{[^{}]*\}):)?//")


class Server(NamedTuple):
    """One way to reach an API: a host pattern and a base path.

    base: as written in the document, without trailing slash; "" for none.
    """

    host: HostPattern
    base: str
    segments: tuple[Segment, ...]


def expand(url: str, variables: Mapping[str, Any], report: Callable[[str, str, str], None]) -> list[Server]:
    """What a server URL stands for: several servers where enums make it so, each once.

    variables: the Server Variable Objects by name. report: takes fact, effect and fix of what is wrong.
    """
    url = url.strip().partition("#")[0].partition("?")[0]
    values = {name: _values(variables.get(name), name, report) for name in _VARIABLE.findall(url)}
    for name in values:
        if name not in variables:
            report(
                f"server variable {name!r} of {url!r} is not defined",
                "it stands for one or more characters other than '/'",
                "define it under variables",
            )
    leading = _VARIABLE.match(url)
    if leading:
        whole = [v for v in _stated(variables.get(leading.group(1))) if "//" in v]
        if whole:  # a variable that holds scheme and host
            parts = [expand(v + url[leading.end() :], variables, report) for v in whole[:MAX_EXPANSIONS]]
            return list(dict.fromkeys(itertools.chain.from_iterable(parts)))
    combinations = 1
    for choices in values.values():
        combinations *= len(choices) or 1
    if combinations > MAX_EXPANSIONS:
        report(
            f"the enums of server {url!r} make {combinations} combinations, more than {MAX_EXPANSIONS}",
            "its variables stand for any text without '/'",
            "list fewer values, or give the API hosts and base_path in the configuration",
        )
        values = {name: [] for name in values}
    names = [name for name, choices in values.items() if choices]
    servers: dict[Server, None] = {}
    for chosen in itertools.product(*(values[name] for name in names)):
        for server in _servers(url, dict(zip(names, chosen, strict=True))):
            servers[server] = None
    return list(servers)


def _stated(variable: Any) -> list[str]:
    """The values that a variable's definition names: its enum, or its default."""
    if not isinstance(variable, Mapping):
        return []
    enum = variable.get("enum")
    if isinstance(enum, list) and enum:
        return [str(value) for value in enum]
    return [str(variable["default"])] if variable.get("default") is not None else []


def _values(variable: Any, name: str, report: Callable[[str, str, str], None]) -> list[str]:
    """The exact set that a variable stands for; empty for "anything without '/'"."""
    if not isinstance(variable, Mapping):
        return []
    enum = variable.get("enum")
    if isinstance(enum, list) and enum:
        return list(dict.fromkeys(str(value) for value in enum))
    default = variable.get("default")
    if isinstance(default, str) and "/" in default:
        report(
            f"server variable {name!r} has the default {default!r}, which holds '/', and no enum",
            "only the default is taken: a variable stands for text without '/'",
            "list the values as enum",
        )
        return [default]
    return []


def _servers(url: str, chosen: Mapping[str, str]) -> list[Server]:
    """The servers of one choice of enum values: two where a port variable may stand for the default port."""
    authority = _AUTHORITY.match(url)
    if not authority:
        base, segments = _base(url, chosen)
        return [Server(ANY, base, segments)]
    host, slash, path = url[authority.end() :].partition("/")
    base, segments = _base(slash + path, chosen)
    return [Server(pattern, base, segments) for pattern in _hosts(host.rpartition("@")[2], chosen)]


def _hosts(host: str, chosen: Mapping[str, str]) -> list[HostPattern]:
    text = ascii_host(_VARIABLE.sub(lambda found: chosen.get(found.group(1), "{}"), host))
    if not text:
        return [ANY]
    rank = HOST_PATTERN if _VARIABLE.search(host) else EXACT_HOST
    texts = [text, text.removesuffix(":{}")] if text.endswith(":{}") else [text]
    return [HostPattern(rank, tuple(one.split("{}"))) for one in texts]


def ascii_host(text: str) -> str:
    """A host as it is compared, and as it goes over the wire (RFC 5891) where it is written in Unicode.

    Port 80 and port 443 both go: a usage line does not say which scheme its request had.
    """
    text = normal_host(text)
    if text.isascii():
        return text
    try:
        return text.encode("idna").decode("ascii")
    except UnicodeError:
        return text


def _base(path: str, chosen: Mapping[str, str]) -> tuple[str, tuple[Segment, ...]]:
    written = [part for part in path.strip("/").split("/") if part not in ("", ".", "..")]
    segments: list[Segment] = []
    for part in written:
        segments.extend(_base_segments(part, chosen))
    return "".join(f"/{part}" for part in written), tuple(segments)


def _base_segments(part: str, chosen: Mapping[str, str]) -> list[Segment]:
    part = part.replace("{+", "{")  # a variable of a server never spans "/"
    names = _VARIABLE.findall(part)
    if not any(name in chosen for name in names):
        return list(parse_template(part).segments)
    text = _VARIABLE.sub(lambda found: chosen.get(found.group(1), found.group(0)), part)
    if "/" in text or not text:
        return [literal(decode(piece)) for piece in text.split("/") if piece]
    # A value of an enum is exact, and still not literal text of the document: a literal segment is better.
    rank = PARAMETER if _VARIABLE.fullmatch(part) else MIXED
    chars = 0 if rank == PARAMETER else len(_VARIABLE.sub("", part))
    return [Segment(rank, chars, tuple(decode(piece) for piece in _VARIABLE.split(text)[::2]))]


def configured_host(text: str) -> HostPattern:
    """A host of the configuration: "*" is any, "*.example.com" any name below, "shop.example:*" any port."""
    if text == "*":
        return ANY
    pieces = tuple(ascii_host(text).split("*"))
    return HostPattern(HOST_PATTERN if len(pieces) > 1 else EXACT_HOST, pieces)


def configured_base(text: str) -> tuple[str, tuple[Segment, ...]]:
    """A base path of the configuration, as written and as segments."""
    return _base(text, {})


def of_swagger(host: str | None, base_path: str | None) -> Sequence[Mapping[str, Any]]:
    """Swagger 2.0's host and basePath as a Server Object."""
    base = base_path or ""
    base = base if base.startswith("/") or not base else f"/{base}"
    return [{"url": f"//{host}{base}" if host else base or "/"}]
