"""`apicost routes`: the gateway's routes against the OpenAPI documents, without any traffic."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from apicost import config
from apicost.catalog import gateway_routes
from apicost.catalog.given import sources_of
from apicost.catalog.openapi import ApiSource, load_apis
from apicost.core.conformance import served
from apicost.core.conformance.finding import SEVERITIES
from apicost.core.conformance.served import Gap, Route
from apicost.problems import InputError, Problem
from apicost.report.terminal import table

DESCRIPTION = """Compare the gateway's routes with the OpenAPI documents:

  route-without-document   a route serves paths that no document describes
  rewrite-hides-document   the route's proxy-rewrite makes a document unreachable
  route-not-logged         the route lacks the apicost-logger plugin
  document-without-route   no route serves any operation of a document
  operation-without-route  no route serves this operation

Routes come from the Admin API or from the apisix.yaml of a standalone gateway; nothing is written to the gateway.
Documents are those of apicost.yaml, or given with --spec."""

EPILOG = """examples:
  APICOST_ADMIN_KEY=... apicost routes --admin http://127.0.0.1:9180 -c apicost.yaml
  apicost routes --file /usr/local/apisix/conf/apisix.yaml --spec shop.yaml

exit codes: 0 nothing at or above --fail-on, 1 something, 2 an option, document or gateway that can't be read"""

DEFAULT_CONFIG = Path("apicost.yaml")
KEY_VARIABLE = "APICOST_ADMIN_KEY"


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    options = _parser().parse_args(argv)
    catalog = load_apis(_sources(options))
    for problem in catalog.problems:
        print(problem, file=sys.stderr)
    if not any(document.usable for document in catalog.documents):
        return 2
    if options.admin:
        routes = gateway_routes.from_admin(options.admin, _key(options.admin_key_file))
    else:
        routes = gateway_routes.from_file(options.file)
    gaps = served.compare(routes, catalog.index.apis)
    if options.format == "json":
        print(json.dumps(_as_data(routes, len(catalog.operations), gaps), ensure_ascii=False, indent=1))
    else:
        _print(routes, len(catalog.operations), gaps)
    worst = SEVERITIES[: SEVERITIES.index(options.fail_on) + 1]
    return 1 if any(gap.severity in worst for gap in gaps) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apicost routes", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--admin", metavar="URL", help="the gateway's Admin API, such as http://127.0.0.1:9180")
    where.add_argument("--file", type=Path, metavar="FILE", help="apisix.yaml of a standalone gateway")
    parser.add_argument(
        "--admin-key-file", type=Path, metavar="FILE", help=f"file with the admin key (default: {KEY_VARIABLE})"
    )
    parser.add_argument("-c", "--config", type=Path, help=f"apicost.yaml (default: ./{DEFAULT_CONFIG} if it is there)")
    parser.add_argument(
        "--spec", action="append", default=[], type=Path, metavar="FILE", help="an OpenAPI document; may be repeated"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument(
        "--fail-on", choices=SEVERITIES, default="warning", help="exit with 1 from this severity on (default: warning)"
    )
    return parser


def _sources(options: argparse.Namespace) -> list[ApiSource]:
    file = options.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() and not options.spec else None)
    sources: list[ApiSource] = [*config.load(file).apis] if file else []
    sources += sources_of(options.spec, [source.id for source in sources])
    if not sources:
        raise _error("apicost routes", "no document given", "give -c apicost.yaml, or --spec FILE for each document")
    return sources


def _key(file: Path | None) -> str:
    """The admin key: never an option, since other users of the host see those."""
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "")
        if not key:
            raise _error("--admin", "no admin key is given", f"set {KEY_VARIABLE}, or name a file: --admin-key-file")
        return key
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as failure:
        raise _error(str(file), f"can't be read: {failure}", "name a text file that holds the admin key") from None


def _error(place: str, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=place, fact=fact, effect="nothing is compared", fix=fix)])


def _as_data(routes: list[Route], operations: int, gaps: list[Gap]) -> dict[str, Any]:
    return {
        "routes": len(routes),
        "operations": operations,
        "findings": [
            {
                "kind": gap.kind,
                "severity": gap.severity,
                "route_id": gap.route.id if gap.route else None,
                "route_name": gap.route.name if gap.route else None,
                "uris": list(gap.route.uris) if gap.route else [],
                "hosts": list(gap.route.hosts) if gap.route else [],
                "methods": list(gap.route.methods) if gap.route else [],
                "api": gap.api,
                "operation_id": gap.operation_id,
                "method": gap.method,
                "path_template": gap.path_template,
                "document": gap.document,
                "pointer": gap.pointer,
                "detail": gap.detail,
                "fix": gap.fix,
            }
            for gap in gaps
        ],
    }


def _print(routes: list[Route], operations: int, gaps: list[Gap]) -> None:
    rows = [(gap.severity, gap.kind, _subject(gap), gap.detail, gap.fix) for gap in gaps]
    if rows:
        print(table(("severity", "kind", "route or operation", "what", "how to mend"), rows))
    print(f"{len(routes)} routes, {operations} documented operations, {len(gaps)} findings", file=sys.stderr)


def _subject(gap: Gap) -> str:
    if gap.route is None:
        named = f"{gap.api}: {gap.method} {gap.path_template}" if gap.method else f"{gap.api}: {gap.document}"
        return named
    name = f" ({gap.route.name})" if gap.route.name and gap.route.name != gap.route.id else ""
    methods = f"{','.join(gap.route.methods)} " if gap.route.methods else ""
    hosts = f"{','.join(gap.route.hosts)} " if gap.route.hosts else ""
    return f"route {gap.route.id}{name}: {methods}{hosts}{' '.join(gap.route.uris)}"
