"""`apicost spec draft`: OpenAPI for the traffic that no document describes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from apicost import run
from apicost.catalog import draft_target
from apicost.commands import _conformance as gathering
from apicost.commands import _months, _windows
from apicost.core import records
from apicost.core.conformance import shapes
from apicost.core.conformance.contract import Contracts
from apicost.core.conformance.draft import Drafted, Target, draft
from apicost.core.conformance.undocumented import in_light_of
from apicost.ingest import recorded
from apicost.report.conformance.outcome import NS_PER_S

DESCRIPTION = """Write an OpenAPI 3.1 document of what the traffic does and no document describes: paths with inferred
templates, methods, path parameters, query names, statuses and media types, kinds of credentials; counts, consumers and
times as x-apicost-... fields. It holds only what is missing, so that it can stand beside the API's documents, and no
value of any request. Noise is left out as `apicost conformance` does: 404, 405 and 410, "not found" pages, what the
gateway answered itself, and what was called too seldom."""

EPILOG = """examples:
  apicost spec draft --api shop --since 30d -c apicost.yaml -o shop-missing.yaml
  apicost spec draft --host legacy.example --format json -c apicost.yaml
  apicost spec draft --api shop --spec shop.yaml --from traffic.har

exit codes: 0 written, 2 an option, document or file can't be used, 3 there is no traffic of that API or host"""

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    options = _parser().parse_args(argv)
    if options.api is None and options.host is None:
        raise _months.error("apicost spec draft", "neither --api nor --host is given", "nothing is drafted",
                            "name the API, or a host that no document names")  # fmt: skip
    if options.host is not None and not _HOST.fullmatch(options.host):
        raise _months.error("--host", f"{options.host!r} is no host", "nothing is drafted",
                            "write it as requests carry it: shop.example, or shop.example:8443")  # fmt: skip
    sources = gathering.sources(options)
    present, notes = gathering.promised_to(sources)
    target = _target(sources, present, options)
    found, requests = _drafted(sources, present, target, options)
    for note in (*notes, *found.notes):
        print(f"apicost: {note}", file=sys.stderr)
    if not requests:
        print("apicost: there is no traffic of that API or host in the window", file=sys.stderr)
        return 3
    _months.write_text(_rendered(found.document, _format(options)), options.output, "the draft is not kept")
    where = f" to {options.output}" if options.output else ""
    print(
        f"apicost: {found.operations} operations drafted{where}, of {found.calls:,} calls among {requests:,} requests",
        file=sys.stderr,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apicost spec draft", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--api", metavar="ID", help="the API whose documents lack something")
    parser.add_argument("--host", metavar="HOST", help="a host that no document names; with --api that host's alone")
    parser.add_argument("-c", "--config", type=Path, help="apicost.yaml (default: ./apicost.yaml if it is there)")
    parser.add_argument("--ledger", type=Path, help="the ledger's folder; replaces the configuration's")
    parser.add_argument(
        "--since", default="30d", metavar="T", help="start of the window: 7d, 36h, a day (default: 30d)"
    )
    parser.add_argument("--until", metavar="T", help="its end, exclusive (default: now)")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="a HAR, usage lines or a recorded run; no ledger"
    )
    parser.add_argument(
        "--spec", action="append", default=[], type=Path, metavar="FILE", help="an OpenAPI document; may be repeated"
    )
    parser.add_argument(
        "--min-calls", type=int, metavar="N",
        help="leave out operations with fewer calls (default: as conformance has it, and 1 with --from)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("yaml", "json"), help="default: by the name of -o, else yaml")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there, not to standard output")
    parser.set_defaults(prices=None)
    return parser


def _target(sources: gathering.Sources, present: Contracts, options: argparse.Namespace) -> Target:
    host = options.host.lower() if options.host is not None else None
    if options.api is None:
        assert host is not None
        return draft_target.of_host(host)
    for source in sources.apis:
        if source.id == options.api:
            return draft_target.of_api(source, present, getattr(source, "title", ""), host)
    known = ", ".join(sorted(source.id for source in sources.apis))
    raise _months.error("--api", f"there is no API {options.api!r}", "nothing is drafted", f"name one of {known}")


def _drafted(
    sources: gathering.Sources, present: Contracts, target: Target, options: argparse.Namespace
) -> tuple[Drafted, int]:
    """The draft, and how many requests were looked at."""
    settings = sources.settings.rules()
    if options.source:
        headers = {*sources.settings.api_key_headers, *gathering.key_headers(sources.apis)}
        found = recorded.load(options.source, api_key_headers=sorted(headers))
        for note in found.notes:
            print(f"apicost: {note}", file=sys.stderr)
        knowledge = run.load_knowledge(sources.apis, None)
        exchanges = run.seen_in(found.flows, found.lines, found.clock, knowledge, sources.config)
        seen = shapes.shapes(exchanges, knowledge.scopes)
        ended = records.numbers(exchanges, "ended_unix_ns")
        start, end = (int(ended.min()) // NS_PER_S, int(ended.max()) // NS_PER_S + 1) if len(ended) else (0, 0)
        settings = dataclasses.replace(settings, shadow_min_calls=1, shadow_min_clients=1)
    else:
        assert sources.ledger is not None
        start, end = _windows.window(options.since, options.until, time.time())
        with _months.open_ledger(sources.ledger) as ledger:
            former = ledger.former(present.operations, unreadable=present.unreadable)
            present = dataclasses.replace(present, former=former)
            where = {"api": target.api} | ({"host": target.host} if target.host is not None else {})
            seen = ledger.shapes(start, end, where=where)
            for damage in ledger.damaged:
                print(damage, file=sys.stderr)
    drafted = draft(
        seen, present, settings, target, in_light_of(present),
        start_unix_s=start, end_unix_s=end, least_calls=options.min_calls,
    )  # fmt: skip
    return drafted, _requests(seen, target)


def _requests(seen: pa.Table, target: Target) -> int:
    kept = records.numbers(seen, "calls").copy()
    for name, wanted in (("api", target.api), ("host", target.host)):
        if name == "api" or wanted is not None:
            codes, values = records.codes(seen, name)
            kept[codes != (values.index(wanted) if wanted in values else -1 if wanted is None else -2)] = 0
    return int(kept.sum())


def _format(options: argparse.Namespace) -> str:
    if options.format:
        return str(options.format)
    return "json" if options.output and options.output.suffix == ".json" else "yaml"


def _rendered(document: dict[str, Any], form: str) -> str:
    if form == "json":
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
