"""`apicost match`: which operation of which OpenAPI document a request belongs to, as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import orjson

from apicost.catalog.given import sources_of
from apicost.catalog.openapi import ApiSource, Catalog, load_apis
from apicost.core.naming.match import Index, Match
from apicost.problems import InputError, Problem

DESCRIPTION = """Say which documented operation a request belongs to, by the rules that the running daemon uses.
One JSON object per request goes to standard output:

  {"api":"shop","operation_id":"getOrder","method":"GET","path_template":"/v1/orders/{orderId}",
   "spec":"shop.yaml","flags":[]}
  {"unmatched":"undocumented-path"}     or "undocumented-method", "unknown-host"

Problems of documents go to standard error and do not stop the others."""

EPILOG = """examples:
  apicost match --spec shop.yaml GET http://shop.example/v1/orders/17
  apicost match --spec shop.yaml --spec media.yaml --batch requests.txt
  apicost match -c apicost.yaml --route-id 12 GET /orders/17

exit codes: 0 answered (matched or not), 2 an unreadable line or option, or no usable document"""

CHUNK = 20_000  # lines answered at a time: memory stays flat on a file of any length
STANDARD = {"GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "QUERY", "CONNECT"}


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    options = _parser().parse_args(argv)
    if bool(options.batch) == bool(options.request) or (options.request and len(options.request) != 2):
        print("apicost match: give METHOD and URL, or --batch FILE", file=sys.stderr)
        return 2
    catalog = _catalog(options)
    for problem in catalog.problems:
        print(problem, file=sys.stderr)
    if catalog.documents and not any(document.usable for document in catalog.documents):
        return 2
    if options.batch:
        return _batch(catalog.index, options.batch, sys.stdout)
    try:
        method, host, path = request(*options.request)
    except ValueError as error:
        print(f"apicost match: {error}", file=sys.stderr)
        return 2
    match = catalog.index.find(
        method,
        host,
        path,
        upstream_path=options.upstream_path,
        route_id=options.route_id,
        service_id=options.service_id,
    )
    print(answer(match).decode())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apicost match",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--spec",
        action="append",
        default=[],
        metavar="FILE",
        type=Path,
        help="an OpenAPI document, JSON or YAML; may be given again. The API's id is the file's name without suffix",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="take the APIs of this apicost.yaml too")
    parser.add_argument("--batch", metavar="FILE", help="lines of METHOD URL; - for standard input")
    parser.add_argument("--route-id", metavar="ID", help="the gateway route that took the request")
    parser.add_argument("--service-id", metavar="ID", help="its gateway service")
    parser.add_argument("--upstream-path", metavar="PATH", help="the path sent upstream, where it was rewritten")
    parser.add_argument("request", nargs="*", metavar="METHOD URL", help="a request; the URL may be a path alone")
    return parser


def _catalog(options: argparse.Namespace) -> Catalog:
    sources: list[ApiSource] = []
    if options.config:
        from apicost import config

        sources.extend(config.load(options.config).apis)
    sources.extend(sources_of(options.spec, [source.id for source in sources]))
    if not sources:
        fix = "give --spec FILE for each document, or -c FILE"
        problem = Problem(place="apicost match", fact="no document given", effect="nothing can match", fix=fix)
        raise InputError([problem])
    return load_apis(sources)


def request(method: str, url: str) -> tuple[str, str, str]:
    """Method, host and raw path with query of a request line. Raises ValueError where it is none.

    Methods are case-sensitive; the standard ones are taken in any case, since nobody means "get" otherwise.
    """
    if method.upper() in STANDARD:
        method = method.upper()
    if url.startswith("/") and not url.startswith("//"):
        return method, "", url
    parts = urlsplit(url)
    if not parts.netloc:
        raise ValueError(f"{url!r} is neither an absolute URL nor a path that begins with '/'")
    query = f"?{parts.query}" if parts.query else ""
    return method, parts.netloc.rpartition("@")[2], (parts.path or "/") + query


def answer(match: Match) -> bytes:
    """The JSON line of one answer."""
    operation = match.operation
    if operation is None:
        return orjson.dumps({"unmatched": match.state})
    line: dict[str, Any] = {
        "api": operation.api,
        "operation_id": operation.operation_id,
        "method": operation.method,
        "path_template": operation.path_template,
        "spec": operation.spec,
        "flags": list(match.flags),
    }
    if match.alternatives:
        line["alternatives"] = [f"{other.api}:{other.operation_id}" for other in match.alternatives]
    return orjson.dumps(line)


def _batch(index: Index, name: str, out: TextIO) -> int:
    """Answer a file of requests; 2 where some line is not a request."""
    code = 0
    with _lines(name) as lines:
        numbered = enumerate(lines, 1)
        while chunk := list(islice(numbered, CHUNK)):
            answers, bad = _answers(index, name, chunk)
            out.write("".join(answers))
            code = 2 if bad else code
    return code


def _answers(index: Index, name: str, chunk: Sequence[tuple[int, str]]) -> tuple[list[str], bool]:
    requests: list[tuple[str, str, str]] = []
    faults: dict[int, str] = {}
    for number, line in chunk:
        words = line.split()
        if not words:
            continue
        try:
            if len(words) != 2:
                raise ValueError(f"{line.strip()!r} is not METHOD URL")
            requests.append(request(*words))
        except ValueError as error:
            faults[len(requests)] = f"{name}:{number}: {error}"
            requests.append(("", "", ""))
            print(f"{name}:{number}: {error}", file=sys.stderr)
    columns: Iterable[Any] = zip(*requests, strict=True) if requests else ((), (), ())
    methods, hosts, paths = map(list, columns)
    found = index.find_batch(methods, hosts, paths)
    texts = [answer(match).decode() + "\n" for match in found.matches]
    lines = [texts[code] for code in found.codes.tolist()]
    for position, fault in faults.items():
        # In its place, so that line N of the output stays the answer to request N.
        lines[position] = orjson.dumps({"error": fault}).decode() + "\n"
    return lines, bool(faults)


@contextmanager
def _lines(name: str) -> Iterator[TextIO]:
    if name == "-":
        yield sys.stdin
        return
    try:
        stream = open(name, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - closed below
    except OSError as error:
        problem = Problem(
            place=name, fact=f"cannot be read: {error.strerror}", effect="nothing is answered", fix="name a file"
        )
        raise InputError([problem]) from None
    with stream:
        yield stream
