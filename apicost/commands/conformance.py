"""`apicost conformance`: what the traffic does that the OpenAPI documents do not say, and what it costs."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from apicost.commands import _conformance as gathering
from apicost.commands import _months, _windows
from apicost.core.conformance.finding import SEVERITIES
from apicost.report.conformance import accepted_files, formats
from apicost.report.conformance.outcome import Outcome, summary

DESCRIPTION = """Hold traffic against the OpenAPI documents: undocumented endpoints, methods, statuses, parameters
and media types, missing credentials, removed and deprecated operations that are still called, documented ones that
nobody calls; with calls, consumers, bytes and cost of each. docs/rules.md says what each rule means.

The traffic is the ledger's (--since), or that of a file (--from): an HTTP archive (HAR 1.2), usage lines of the gateway
plugin, or a recorded run. Documents are those of apicost.yaml, or given with --spec."""

EPILOG = """examples:
  apicost conformance --since 7d -c apicost.yaml
  apicost conformance --since 30d --api shop --format sarif -o shop.sarif --fail-on warning
  apicost conformance --since 7d --write-baseline known.json
  apicost conformance --since 1d --baseline known.json --new-only --format md
  apicost conformance --spec shop.yaml --from traffic.har

exit codes: 0 nothing at or above --fail-on, 1 something, 2 an option, document or file can't be used,
3 too little traffic to say (conformance.min_requests of apicost.yaml; one request with --from)"""


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    options = _parser().parse_args(argv)
    now = time.time()
    sources = gathering.sources(options)
    if options.source:
        outcome = gathering.from_file(sources, options.source, options.api)
    else:
        start, end = _windows.window(options.since, options.until, now)
        outcome = gathering.from_ledger(sources, start, end, options.api)
    baseline = accepted_files.read(options.baseline) if options.baseline else frozenset()
    today = datetime.fromtimestamp(now, UTC).date()
    outcome = gathering.sorted_out(outcome, sources.settings.ignore, baseline, today)
    if options.against:
        earlier = (_windows.moment("--against", options.against, now) // 60 * 60, int(outcome.start_unix_s))
        outcome = gathering.with_drift(outcome, sources, *earlier, options.api)
    if options.write_baseline:
        accepted_files.write(options.write_baseline, outcome)
    text = formats.render(outcome, options.format, new_only=options.new_only, fail_on=options.fail_on)
    _months.write_text(text, options.output, "the findings are not kept")
    if options.format != "table" or options.output:
        print(summary(outcome), file=sys.stderr)
        for note in outcome.notes:
            print(note, file=sys.stderr)
    if outcome.fails(options.fail_on):
        return 1
    return 3 if _too_little(outcome, _least(options, sources)) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apicost conformance", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _months.add_options(parser, month=False)
    parser.add_argument("--since", default="7d", metavar="T", help="start of the window: 7d, 36h, a day (default: 7d)")
    parser.add_argument("--until", metavar="T", help="its end, exclusive (default: now)")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="judge a HAR, usage lines or a recorded run"
    )
    parser.add_argument(
        "--spec", action="append", default=[], type=Path, metavar="FILE", help="an OpenAPI document; may be repeated"
    )
    parser.add_argument("--api", metavar="ID", help="this API alone")
    parser.add_argument("--format", choices=formats.NAMES, default="table")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there, not to standard output")
    parser.add_argument(
        "--fail-on", choices=SEVERITIES, default="error", help="exit with 1 from this severity on (default: error)"
    )
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="findings in this file are known and don't count")
    parser.add_argument("--new-only", action="store_true", help="show only what is neither known nor ignored")
    parser.add_argument("--write-baseline", type=Path, metavar="FILE", help="write what is found now as a baseline")
    parser.add_argument("--against", metavar="T", help="drift: compare with the earlier window from T to --since")
    parser.add_argument("--min-requests", type=int, metavar="N", help="fewer are too little to call it clean")
    return parser


def _least(options: argparse.Namespace, sources: gathering.Sources) -> int:
    """How many requests it takes to call traffic clean; a file holds what somebody chose to record."""
    if options.min_requests is not None:
        return int(options.min_requests)
    return 1 if options.source else sources.settings.min_requests


def _too_little(outcome: Outcome, least: int) -> bool:
    if outcome.judgement.requests >= least:
        return False
    print(
        f"apicost: {outcome.judgement.requests} requests are too few to say that traffic conforms "
        f"(--min-requests {least})", file=sys.stderr,
    )  # fmt: skip
    return True
