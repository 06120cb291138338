"""The daemon's child that counts the findings of the current calendar month (UTC): `apicost.web.findings` starts it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from apicost import config
from apicost.commands import _conformance as gathering
from apicost.commands import _months
from apicost.core.conformance.accepted import sort_out
from apicost.core.conformance.judge import judge
from apicost.problems import InputError
from apicost.web.findings import Count, Findings, Seen

NICE = 10  # the gateway and the daemon come first


def main(argv: list[str]) -> int:
    """Print `Findings` as JSON. What can't be used is said on standard error, with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m apicost.commands._conformance_metrics", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    options = parser.parse_args(argv)
    os.nice(NICE)
    try:
        found = count(config.load(options.config), options.ledger, time.time())
    except InputError as error:
        print(" ".join(str(error.problems[0]).split()), file=sys.stderr)
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


def count(settings: config.Config, folder: Path, now_unix_s: float) -> Findings:
    """The findings from the start of the month on, ignored ones left out. Raises InputError."""
    now = datetime.fromtimestamp(now_unix_s, UTC)
    start = int(now.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())
    end = int(now_unix_s // 60 * 60) + 60
    sources = gathering.Sources(apis=settings.apis, config=settings, ledger=folder, book=None)
    present, _ = gathering.promised_to(sources)
    with _months.open_ledger(folder) as ledger:
        former = ledger.former(present.operations, unreadable=present.unreadable)
        judgement = judge(
            ledger.shapes(start, end), dataclasses.replace(present, former=former), settings.conformance.rules(),
            window_days=gathering.observed_days(ledger, start, end), samples=ledger.samples(start, end),
        )  # fmt: skip
    findings: Counter[tuple[str, str, str]] = Counter()
    calls: Counter[tuple[str, str, str]] = Counter()
    for told in sort_out(judgement.findings, settings.conformance.ignore, (), now.date())[0]:
        if told.counts:
            key = (told.finding.rule, told.finding.severity, told.finding.api or "")
            findings[key] += 1
            calls[key] += told.finding.count
    return Findings(
        counts=tuple(Count(*key, findings[key], calls[key]) for key in sorted(findings)),
        coverage=tuple(Seen(c.api, c.operations, c.operations_seen) for c in judgement.coverage),
        judged_unix_s=now_unix_s,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
