"""HTTP archives (HAR 1.2) as usage lines, so that recorded traffic takes the same way as a gateway's.

Rules of this file:
- An entry becomes one line of the wire format; `lines.parse_batch` reads it with the same suspicion.
- An archive holds header values and bodies. Lines get none of them: names and kinds alone. Bodies are handed out apart,
  to be validated and dropped.
- What an archive does not say stays absent. A recorder that leaves out headers makes requests look unauthenticated;
  `Archive.bare` tells.
- Source: the HAR 1.2 specification (W3C Web Performance, historical draft).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from apicost.ingest import line_form
from apicost.problems import InputError, Problem

MAX_BYTES = 1 << 30
MAX_MS = 10**9  # twelve days: no request takes longer
API_KEY_HEADERS = ("apikey", "x-api-key")
_VERSIONS = {"http/0.9", "http/1.0", "http/1.1", "http/2", "http/2.0", "http/3", "http/3.0"}
_SAFE = "!$&'()*+,;=:@/%-._~[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One entry's request and response, for validation. Header names are lower case."""

    method: str
    url: str
    request_headers: Mapping[str, str]
    request_body: bytes | None
    status: int
    response_headers: Mapping[str, str]
    response_body: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """body: a usage batch, one line an entry, in the order of entries. messages: alike.

    left_out: entries without a response or with an address that is no HTTP URL. bare: no request shows any credential.
    first_unix_ns, last_unix_ns: of the entries, 0 where there are none.
    """

    body: bytes
    messages: Sequence[Message]
    left_out: int = 0
    bare: bool = False
    first_unix_ns: int = 0
    last_unix_ns: int = 0


@dataclass(slots=True)
class _Made:
    """Lines in the making."""

    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    left_out: int = 0
    credentials: int = 0


def looks_like(head: bytes) -> bool:
    """Whether a file that begins so may be an archive: a usage batch begins with a header that names apicost."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return text.startswith(b"{") and b'"apicost"' not in text.partition(b"\n")[0][:4096]


def read(path: Path, api_key_headers: Sequence[str] = API_KEY_HEADERS) -> Archive:
    """Read an archive.

    api_key_headers: lower case; a request that carries one of them carries an API key.
    Raises InputError where it is none.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _error(path, f"is larger than {MAX_BYTES >> 20} MiB", "split it")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise _error(path, f"can't be read: {error.strerror}", "name a readable file") from None
    except (ValueError, RecursionError) as error:
        raise _error(path, f"is no JSON: {error}", "name a HAR file or usage lines") from None
    log = data.get("log") if isinstance(data, Mapping) else None
    entries = log.get("entries") if isinstance(log, Mapping) else None
    if not isinstance(entries, list):
        raise _error(path, "has no log.entries", "name a HAR 1.2 file, as browsers and proxies save it")
    made = _Made()
    for entry in entries:
        _add(made, entry, frozenset(api_key_headers))
    base = min((start for start, _ in made.rows), default=0)
    header = {
        "apicost": line_form.VERSION, "node": "har", "worker": {"pid": 1, "started_unix_ms": base // 1_000_000},
        "batch": 1, "first": 1, "count": len(made.rows), "dropped": 0, "base_mono_ns": base, "base_unix_ns": base,
    }  # fmt: skip
    order = sorted(range(len(made.rows)), key=lambda number: made.rows[number][0])
    text = [json.dumps(header)]
    for number, at in enumerate(order):
        end, columns = made.rows[at]
        columns[0], columns[1] = str(number), str((end - base) // 1_000)
        text.append("\t".join(columns))
    return Archive(
        body=("\n".join(text) + "\n").encode(), messages=[made.messages[at] for at in order], left_out=made.left_out,
        bare=bool(made.rows) and not made.credentials, first_unix_ns=base,
        last_unix_ns=max((end for end, _ in made.rows), default=0),
    )  # fmt: skip


def _add(made: _Made, entry: Any, api_keys: frozenset[str]) -> None:
    request, response = _mapping(entry, "request"), _mapping(entry, "response")
    url, status = _split(_word(request.get("url"))), _count(response.get("status"))
    started = _time(entry.get("startedDateTime")) if isinstance(entry, Mapping) else None
    if url.scheme not in ("http", "https") or not url.hostname or started is None or not 100 <= status <= 599:
        made.left_out += 1
        return
    asked, answered = _headers(request), _headers(response)
    content, posted = _mapping(response, "content"), _mapping(request, "postData")
    took_ms = min(max(_number(entry.get("time")), 0.0), MAX_MS)
    end = started + int(took_ms * 1_000_000)
    version = _word(request.get("httpVersion")).lower()
    sent = max(_count(request.get("bodySize")), 0)
    got = max(_count(response.get("bodySize")), _count(content.get("size")), 0)
    kinds = _auth_kinds(asked, api_keys)
    made.credentials += bool(kinds)
    values = {
        "n": "0", "log_us": "0", "msec": f"{end / 1e9:.3f}", "request_time": f"{took_ms / 1e3:.3f}",
        "connection": str(_count(entry.get("connection")) if str(entry.get("connection", "")).isdigit() else 0),
        "connection_requests": "1", "peer_addr": "0.0.0.0",
        "http_version": version.upper() if version in _VERSIONS else "HTTP/1.1",
        "tls_version": "TLS" if url.scheme == "https" else "", "method": _plain(_word(request.get("method"))),
        "host": _host(url.scheme, url.netloc), "path": quote(url.path or "/", safe=_SAFE),
        "query_names": _query_names(url.query), "status": str(status), "response_source": "upstream",
        "request_bytes": str(sent + max(_count(request.get("headersSize")), 0)),
        "response_bytes": str(got + max(_count(response.get("headersSize")), 0)), "response_body_bytes": str(got),
        "request_content_type": _media_type(_word(posted.get("mimeType")) or asked.get("content-type", "")),
        "response_content_type": _media_type(answered.get("content-type") or _word(content.get("mimeType"))),
        "auth_kinds": kinds,
    }  # fmt: skip
    made.rows.append((end, [values.get(name, "") for name in line_form.NAMES]))
    made.messages.append(
        Message(
            method=_word(request.get("method")).upper(),
            url=url.geturl(),
            request_headers=asked,
            request_body=_body(posted),
            status=status,
            response_headers=answered,
            response_body=_body(content),
        )
    )


def _auth_kinds(headers: Mapping[str, str], api_keys: frozenset[str]) -> str:
    """The words of usage lines for the credentials that a request carries."""
    kinds = []
    if "authorization" in headers:
        scheme = headers["authorization"].partition(" ")[0].lower()
        kinds.append(scheme if scheme in ("basic", "bearer", "digest") else "other")
    if api_keys & headers.keys():
        kinds.append("apikey")
    if "cookie" in headers:
        kinds.append("cookie")
    return ",".join(kinds)


def _query_names(query: str) -> str:
    """Names as a gateway sends them: "*" for a word without "="."""
    return "&".join(quote(name, safe="%+") if equals else "*" for name, equals, _ in _pairs(query))


def _pairs(query: str) -> Iterator[tuple[str, str, str]]:
    return (pair.partition("=") for pair in query.split("&") if pair)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # an unfinished IPv6 address
        return urlsplit("")


def _host(scheme: str, netloc: str) -> str:
    host = netloc.rpartition("@")[2].lower()
    return _plain(host.removesuffix(":80" if scheme == "http" else ":443"))


def _headers(message: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    listed = message.get("headers")
    for header in listed if isinstance(listed, list) else ():
        if isinstance(header, Mapping):
            name = _word(header.get("name")).lower()
            if name and not name.startswith(":"):
                found.setdefault(name, _word(header.get("value")))
    return found


def _body(part: Mapping[str, Any]) -> bytes | None:
    """The body as bytes; None where the archive has none."""
    text = part.get("text")
    if not isinstance(text, str):
        return None
    if part.get("encoding") == "base64":
        try:
            return base64.b64decode(text, validate=False)
        except (binascii.Error, ValueError):
            return None
    return text.encode("utf-8", errors="surrogatepass")


def _media_type(text: str) -> str:
    return _plain(text.partition(";")[0].strip().lower())


def _plain(text: str) -> str:
    """Text without anything that ends a column or a line."""
    return "".join(character if " " <= character != "\x7f" else quote(character) for character in text)


def _time(value: Any) -> int | None:
    """An ISO 8601 time in nanoseconds since the epoch."""
    try:
        at = datetime.fromisoformat(_word(value))
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    whole = int(at.replace(microsecond=0).timestamp())
    return whole * 10**9 + at.microsecond * 1_000 if whole >= 0 else None


def _mapping(parent: Any, name: str) -> Mapping[str, Any]:
    value = parent.get(name) if isinstance(parent, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1 << 53 else 0.0


def _count(value: Any) -> int:
    """A whole number; -1 where there is none (HAR's own word for "not known")."""
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 53
    return int(value) if whole else -1


def _error(path: Path, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=str(path), fact=fact, effect="its traffic is not judged", fix=fix)])
