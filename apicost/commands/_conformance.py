"""Where a judgement comes from: the ledger and its price book, or a file of recorded traffic."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from apicost import config, run, scratch
from apicost.catalog import contracts, documents, openapi
from apicost.catalog.given import sources_of
from apicost.catalog.openapi import ApiSource
from apicost.commands import _closed, _months
from apicost.commands._windows import months_touched
from apicost.config import Config, ConformanceSettings
from apicost.core import records
from apicost.core.conformance import drift, shapes
from apicost.core.conformance.accepted import Ignore, sort_out
from apicost.core.conformance.contract import Contracts
from apicost.core.conformance.finding import Finding, Judgement
from apicost.core.conformance.judge import judge
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.statement import Statement
from apicost.ingest import har, recorded
from apicost.problems import InputError
from apicost.report.conformance.cost import costs
from apicost.report.conformance.outcome import NS_PER_S, Drift, Outcome
from apicost.store.query import DAY_S, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a judgement needs. ledger: None where none is named. config: defaults where there is no file."""

    apis: Sequence[ApiSource]
    config: Config
    ledger: Path | None
    book: PriceBook | None

    @property
    def settings(self) -> ConformanceSettings:
        return self.config.conformance


def sources(options: argparse.Namespace) -> Sources:
    """As the options say: `--spec` documents come before the configuration's. Raises InputError."""
    given = options.spec and not options.config
    file = options.config or (_months.DEFAULT_CONFIG if _months.DEFAULT_CONFIG.is_file() and not given else None)
    settings = config.load(file) if file else Config()
    apis: list[ApiSource] = [*settings.apis, *sources_of(options.spec, [api.id for api in settings.apis])]
    if not apis:
        raise _months.error("apicost conformance", "no document given", "nothing can be compared",
                            "give -c apicost.yaml, or --spec FILE for each document")  # fmt: skip
    if options.source:
        return Sources(apis=apis, config=settings, ledger=None, book=None)
    where = _months.sources(options)
    return Sources(apis=apis, config=settings, ledger=where.ledger, book=where.book)


def from_ledger(sources: Sources, start_unix_s: int, end_unix_s: int, api: str | None) -> Outcome:
    """The findings of a window, with their cost. Raises InputError."""
    assert sources.ledger is not None
    with _months.open_ledger(sources.ledger) as ledger:
        return of_ledger(ledger, sources, start_unix_s, end_unix_s, api)


def of_ledger(
    ledger: Ledger,
    sources: Sources,
    start_unix_s: int,
    end_unix_s: int,
    api: str | None,
    statements: Sequence[Statement] | None = None,
) -> Outcome:
    """`from_ledger` for a ledger that is open. statements: of the months touched, where they are rated already."""
    book = sources.book
    present, notes = promised_to(sources)
    _known(present, api)
    present = dataclasses.replace(present, former=ledger.former(present.operations, unreadable=present.unreadable))
    seen, months = traffic_of(ledger, book, start_unix_s, end_unix_s, {} if api is None else {"api": api})
    days = observed_days(ledger, start_unix_s, end_unix_s)
    samples = _of_one(ledger.samples(start_unix_s, end_unix_s), api)
    judgement = _of_api(judge(seen, present, sources.settings.rules(), window_days=days, samples=samples), api)
    if statements is None:
        statements = statements_of(ledger, sources, months) if judgement.findings else []
    notes += [str(damage) for damage in ledger.damaged]
    return Outcome(
        start_unix_s=start_unix_s, end_unix_s=end_unix_s, days=days, judgement=judgement,
        told=sort_out(judgement.findings, (), (), date.min)[0],
        costs=costs(judgement.findings, seen, statements) if book else [None] * len(judgement.findings),
        currency=book.currency if book else None, source=f"ledger {ledger.folder}", notes=notes,
        lines=_lines(judgement.findings),
    )  # fmt: skip


def traffic_of(
    ledger: Ledger, book: PriceBook | None, start_unix_s: int, end_unix_s: int, where: Mapping[str, str | None]
) -> tuple[pa.Table, list[Period]]:
    """The shapes of a window, by the stretches that prices change at, so that each row has one price; and the months
    that the window lies in."""
    months = [_months.month_of(name, book) for name in months_touched(start_unix_s, end_unix_s, _zone(book))]
    _months.say(f"reading {ledger.folder}")
    cuts = {start_unix_s, end_unix_s}
    for month in months:
        rated_by = book and _closed.with_models(_closed.source_of(ledger, month), month, book)
        cuts.update(month.starts[day] for day in (rated_by.price_changes(month.days) if rated_by else (0,)))
    edges = sorted(cut for cut in cuts if start_unix_s <= cut <= end_unix_s)
    parts = [ledger.shapes(a, b, where=where) for a, b in itertools.pairwise(edges)]
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks(), months


def of_month(ledger: Ledger, settings: Config, statement: Statement, api: str | None) -> Outcome:
    """The findings of a month that is rated; ignores are taken as of its last day. Raises InputError."""
    given = Sources(apis=settings.apis, config=settings, ledger=ledger.folder, book=statement.book)
    month = statement.period
    found = of_ledger(ledger, given, month.start_unix_s, month.end_unix_s, api, [statement])
    return sorted_out(found, settings.conformance.ignore, (), month.days[-1])


def from_file(sources: Sources, path: Path, api: str | None) -> Outcome:
    """The findings of recorded traffic: thresholds against noise are 1, nothing has a cost. Raises InputError."""
    known = sources.settings
    with _cache() as cache:
        headers = sorted({*known.api_key_headers, *key_headers(sources.apis, cache)})
        found = recorded.load(path, api_key_headers=headers)
        # An archive shows every header, so that a key in any of them can be told.
        looked_for = headers if found.messages else known.api_key_headers
        present, notes = promised(sources.apis, looked_for, known.api_key_query, cache)
        _known(present, api)
        knowledge = run.load_knowledge(sources.apis, None, cache)
    exchanges = run.seen_in(found.flows, found.lines, found.clock, knowledge, sources.config)
    seen = shapes.shapes(exchanges, knowledge.scopes)
    seen = _of_one(seen, api)
    ended = records.numbers(exchanges, "ended_unix_ns")
    first, last = (int(ended.min()), int(ended.max())) if len(ended) else (0, 0)
    rules = dataclasses.replace(sources.settings.rules(), shadow_min_calls=1, shadow_min_clients=1)
    days = (last - first) / NS_PER_S / DAY_S
    samples = None
    if found.messages:
        from apicost.catalog import bodies, sampled  # slow to load, and needed for bodies alone

        checker = bodies.Checker(sources.apis, index=knowledge.index)
        samples = _of_one(sampled.of_messages(checker, found.messages, exchanges), api)
        notes += [str(problem) for problem in checker.problems]
    judgement = _of_api(judge(seen, present, rules, window_days=days, samples=samples), api)
    return Outcome(
        start_unix_s=first // NS_PER_S, end_unix_s=last // NS_PER_S + 1, days=days, judgement=judgement,
        told=sort_out(judgement.findings, (), (), date.min)[0], costs=[None] * len(judgement.findings),
        source=f"{found.kind} {path}", notes=[*notes, *found.notes], lines=_lines(judgement.findings),
    )  # fmt: skip


def sorted_out(outcome: Outcome, ignores: Sequence[Ignore], baseline: Collection[str], today: date) -> Outcome:
    """The outcome with what people have accepted; expired ignores are noted."""
    told, late = sort_out(outcome.judgement.findings, ignores, baseline, today)
    notes = [
        f"{ignore.place}: this ignore of {ignore.rule} ended on {ignore.expires}: {ignore.reason}" for ignore in late
    ]  # fmt: skip
    return dataclasses.replace(outcome, told=told, notes=[*outcome.notes, *notes])


def with_drift(outcome: Outcome, sources: Sources, start_unix_s: int, end_unix_s: int, api: str | None) -> Outcome:
    """The outcome with what became of the findings of an earlier window. Raises InputError."""
    if sources.ledger is None or start_unix_s >= end_unix_s:
        raise _months.error("--against", "is not before the window", "nothing is compared",
                            "name a time before --since, and a ledger")  # fmt: skip
    before = from_ledger(sources, start_unix_s, end_unix_s, api)
    found = drift.drift(before.judgement, outcome.judgement)
    return dataclasses.replace(
        outcome,
        drift=Drift(
            start_unix_s=start_unix_s,
            end_unix_s=end_unix_s,
            requests=before.judgement.requests,
            new=found.new,
            fixed=found.fixed,
            regressed=found.regressed,
        ),
    )


def promised(
    apis: Sequence[ApiSource],
    api_key_headers: Sequence[str] = har.API_KEY_HEADERS,
    api_key_query: Sequence[str] = ("apikey",),
    cache: Path | None = None,
) -> tuple[Contracts, list[str]]:
    """What the documents promise, with their own faults; and what is wrong with them, in words.

    api_key_headers, api_key_query: where API keys are looked for. cache: keeps what was read of documents, so that
        reading them again costs little.
    Raises InputError where no document can be used.
    """
    catalog = openapi.load_apis(apis, cache_dir=cache)
    if catalog.documents and not any(document.usable for document in catalog.documents):
        raise InputError(catalog.problems)
    found, problems = contracts.load_contracts(
        apis, cache_dir=cache, api_key_headers=api_key_headers, api_key_query=api_key_query
    )
    found = dataclasses.replace(found, unreadable=tuple(d.file for d in catalog.documents if not d.usable))
    return found, [str(problem) for problem in (*catalog.problems, *problems)]


def key_headers(apis: Sequence[ApiSource], cache: Path | None = None) -> set[str]:
    """The headers that documents want API keys in, lower case. cache: as in `promised`."""
    read = contracts.read_documents(apis, cache_dir=cache)
    schemes = (scheme for document in read for scheme in document.promises.schemes.values())
    return {s.key.lower() for s in schemes if s.type == "apiKey" and s.place == "header"}


def promised_to(sources: Sources) -> tuple[Contracts, list[str]]:
    """`promised` for what the gateway logs. Raises InputError."""
    with _cache() as cache:
        return promised(sources.apis, sources.settings.api_key_headers, sources.settings.api_key_query, cache)


@contextlib.contextmanager
def _cache() -> Iterator[Path | None]:
    """A folder that keeps what was read of documents, for one command; None where none can be made."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch.folder("documents"))
        except OSError:
            folder = None
        yield folder


def _of_one(rows: pa.Table, api: str | None) -> pa.Table:
    """The rows of one API; all where none is named."""
    if api is None:
        return rows
    codes, values = records.codes(rows, "api")
    return rows.filter(pa.array(codes == values.index(api) if api in values else np.zeros(len(codes), bool)))


def _known(found: Contracts, api: str | None) -> None:
    """Raises InputError where there is no API of that name."""
    if api is not None and api not in found.documents:
        raise _months.error("--api", f"there is no API {api!r}", "nothing can be compared",
                            f"name one of {', '.join(sorted(found.documents))}")  # fmt: skip


def _of_api(judgement: Judgement, api: str | None) -> Judgement:
    """What concerns one API. It was held against the documents of all: what another describes is no shadow."""
    if api is None:
        return judgement
    return dataclasses.replace(
        judgement,
        findings=tuple(finding for finding in judgement.findings if finding.api == api),
        coverage=tuple(coverage for coverage in judgement.coverage if coverage.api == api),
    )


def statements_of(ledger: Ledger, sources: Sources, months: Sequence[Period]) -> list[Statement]:
    """Months rated; none without a price book, and none for a month without usage."""
    if sources.book is None:
        return []
    rated = (_months.statement_of(ledger, month, sources.book) for month in months)
    return [statement for statement in rated if statement is not None]


def observed_days(ledger: Ledger, start_unix_s: int, end_unix_s: int) -> float:
    """How much of a window the ledger can speak of: what lies before its first day was not observed."""
    span = ledger.span()
    if span is None:
        return 0.0
    first, last = max(start_unix_s, span[0]), min(end_unix_s, span[1] + DAY_S)
    return max(last - first, 0) / DAY_S


def _zone(book: PriceBook | None) -> str:
    return book.time_zone if book else "UTC"


def _lines(findings: Sequence[Finding]) -> Mapping[tuple[str, str], int]:
    """Lines of the places in documents that findings name."""
    asked: dict[str, dict[str, None]] = {}
    for finding in findings:
        if finding.document and finding.pointer:
            asked.setdefault(finding.document, {})[finding.pointer] = None
    found: dict[tuple[str, str], int] = {}
    for document, pointers in asked.items():
        try:
            raw = documents.read_bytes(Path(document))
        except InputError:
            continue
        names = list(pointers)
        for name, place in zip(names, documents.places(Path(document), raw, [_steps(n) for n in names]), strict=True):
            line = place.rpartition(":")[2]
            if line.isdigit():
                found[document, name] = int(line)
    return found


def _steps(pointer: str) -> tuple[str | int, ...]:
    """A JSON pointer's steps; numbers are positions in lists."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.lstrip("#").split("/")[1:]]
    return tuple(int(step) if step.isdigit() and not (number and steps[number - 1] == "responses") else step
                 for number, step in enumerate(steps))  # fmt: skip
