"""Closing a month, and holding a closed one against what it was made from.

Rules of this file:
- A month is closed from the files that its folder will have: its charges are rated from the frozen usage with the
  frozen price book, so that rating them again can only give the same.
- Nothing is closed that may still change by itself: a month that has not ended, an exchange rate that is not locked, a
  ledger of which parts can't be read, a chain that is broken.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from apicost import __version__
from apicost.catalog import prices
from apicost.commands import _closed
from apicost.commands._closed import Corrected
from apicost.commands._terminal import error, say
from apicost.core import records
from apicost.core.rating import corrections, models, money, period
from apicost.core.rating.bill import Bill, fingerprint
from apicost.core.rating.period import Period, utc_text
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.rate import WIRE_BYTES
from apicost.core.rating.statement import CHARGE, UNALLOCATED, Statement
from apicost.problems import InputError
from apicost.report.export import ApiInfo
from apicost.report.focus.settings import FocusSettings
from apicost.store import closed as store
from apicost.store.catalogue import LedgerError
from apicost.store.closed import ClosedMonth, DaySums, FrozenUsage, UsageSource
from apicost.store.query import Ledger


def close(
    ledger: Ledger,
    name: str,
    book: PriceBook,
    apis: Mapping[str, ApiInfo],
    focus: FocusSettings,
    *,
    now_unix_s: int,
) -> ClosedMonth:
    """Close a month.

    book: as the file named by `book.file` has it. apis, focus: of the configuration.
    Raises InputError for what must be mended first, LedgerError and OSError where the folder can't be written; then
    nothing of the month is there.
    """
    month = period.month(name, book.time_zone)
    _ended(month, now_unix_s)
    with store.closing(ledger.folder):
        months = store.closed_months(ledger.folder)
        _next(months, name)
        broken = [f"{closed.month}: {told}" for closed in months for told in store.problems(months, closed)]
        if broken:
            raise error(str(ledger.folder / store.FOLDER), "; ".join(broken), f"{name} is not closed upon it",
                        "put the folder back from a backup; `apicost verify` says more")  # fmt: skip

        def fill(folder: Path) -> Mapping[str, Any]:
            try:
                return _fill(folder, ledger, months, month, book, apis, focus, now_unix_s)
            except InputError as failure:  # what is to be mended is the given file, not the copy that goes
                copy = str(folder / store.PRICES)
                raise InputError(
                    [replace(told, place=told.place.replace(copy, book.file)) for told in failure.problems]
                ) from None

        return store.write(ledger.folder, name, fill)


def _ended(month: Period, now_unix_s: int) -> None:
    if now_unix_s < month.end_unix_s:
        raise error(month.name, f"this month ends at {utc_text(month.end_unix_s)}", "it is not closed: usage of it is "
                    "still to come", "close it when it has ended")  # fmt: skip


def _next(months: Sequence[ClosedMonth], name: str) -> None:
    """Raises InputError where the months that are closed are not followed by this one."""
    if name in [closed.month for closed in months]:
        raise error(name, "this month is closed already", "it stays as it is: a closed month never changes",
                    "what is to be put right is a correction in the open month: mend the price book, or replay the "
                    "missing usage")  # fmt: skip
    following = _closed.open_month(months)
    if following is not None and name != following:
        raise error(
            name,
            f"{months[-1].month} is the last closed month",
            "months are closed in order, without a gap",
            f"close {following}" if name > following else "leave it open: later months are signed off already",
        )


def _fill(
    folder: Path, ledger: Ledger, months: Sequence[ClosedMonth], month: Period, given: PriceBook,
    apis: Mapping[str, ApiInfo], focus: FocusSettings, now_unix_s: int,
) -> Mapping[str, Any]:  # fmt: skip
    """Write a month's files into a folder; returns its manifest."""
    try:
        shutil.copyfile(given.file, folder / store.PRICES)
    except OSError as failure:
        raise error(given.file, f"can't be read: {failure.strerror}", f"{month.name} is not closed",
                    "name the price book's file") from None  # fmt: skip
    book = prices.load(folder / store.PRICES)
    say(f"reading {month.name} from {ledger.folder}")
    for kind in ("usage", "completeness"):
        ledger.prove(kind, month.start_unix_s, month.end_unix_s)
    store.write_usage(folder / store.USAGE, ledger, month.starts)
    completeness = ledger.completeness(month.start_unix_s, month.end_unix_s)
    _whole(ledger, month)
    own = FrozenUsage(path=folder / store.USAGE)
    statement = _closed.statement_of(own, month, book)
    corrected = _closed.corrections(ledger, months, book)
    _locked(statement, corrected, given, month)
    usage = {month.name: _usage_told(own, month, _closed.position(ledger, month))}
    for name, source in corrected.usage.items():
        about = period.month(name, book.time_zone)
        path = folder / store.usage_name(name, month.name)
        store.write_usage(path, source, about.starts)
        usage[name] = _usage_told(FrozenUsage(path=path), about, _closed.position(ledger, about))
    bill = Bill(statement=statement, corrections=corrected.rows, closed=True)
    say(f"writing {len(bill):,} charges")
    store.write_charges(folder / store.CHARGES, bill.pieces())
    listed = dict(corrected.models)
    if statement.book.models.models:
        listed[month.name] = statement.book.models
    segments = ledger.segments("usage", month.start_unix_s, month.end_unix_s)
    return {
        "apicost": __version__,
        "closed_at": utc_text(now_unix_s),
        "start": utc_text(month.start_unix_s), "end": utc_text(month.end_unix_s),
        "price_book": {
            "file": Path(given.file).name, "id": book.id, "version": book.version, "currency": book.currency,
            "time_zone": book.time_zone, "statement_scale": book.statement_scale,
        },
        "totals": totals(bill),
        "statement_sha256": fingerprint(statement),
        "completeness": completeness,
        "apis": _closed.apis_as_data(apis),
        "focus": {name: text for name, text in asdict(focus).items() if name != "invoice_id"},
        "models": {name: models.to_json(told) for name, told in listed.items()},
        "usage": usage,
        "ledger": {
            "segments": [
                {"name": s.name, "crc32": f"{s.crc32:08x}", "rows": s.row_count, "calls": s.calls,
                 "wire_bytes": s.wire_bytes}
                for s in sorted(segments, key=lambda s: s.name)
            ],
        },
    }  # fmt: skip


def _usage_told(source: UsageSource, month: Period, position: str) -> dict[str, Any]:
    """What a manifest says of a file of usage."""
    return {"by_day": DaySums.of(source, month.starts).as_data(), "position_sha256": position}


def _whole(ledger: Ledger, month: Period) -> None:
    if ledger.damaged:
        raise error(str(ledger.folder), "parts of the ledger can't be read:\n" + "\n".join(map(str, ledger.damaged)),
                    f"{month.name} is not closed without them", "put these files back from a backup of the ledger's "
                    "folder")  # fmt: skip


def _locked(statement: Statement, corrected: Corrected, given: PriceBook, month: Period) -> None:
    """Raises InputError for an exchange rate that may still change, with its place in the price book's own file."""
    places = {(rate.currency, rate.period): rate.place for rate in given.fx}
    for rate in (*statement.unlocked_rates, *corrected.unlocked):
        raise error(
            places.get((rate.currency, rate.period), given.file),
            f"the rate of {rate.currency} in {rate.period}, {rate.rate:f}, is not locked",
            f"{month.name} is not closed: the rate may still change", "write the final rate, with locked: true",
        )  # fmt: skip


def totals(bill: Bill) -> dict[str, Any]:
    """What a bill comes to: costs exactly, rows by what they are, calls and wire bytes of the usage."""
    statement = bill.statement
    states = np.array([line.state for line in statement.lines] or [""])[statement.line].tolist()
    fixed = {
        "list_cost": sum((x.list_cost_of(x.quantity) for x in statement.lines if x.price is not None), Fraction()),
        "contracted_cost": statement.total_exact,
    }
    exact = {
        name: cost + sum((Fraction(text) for text in bill.corrections.column(name).to_pylist() if text), Fraction())
        for name, cost in fixed.items()
    }
    wire = sum(money.exact_sum(statement.usage.sums[name]) for name in WIRE_BYTES)
    return {
        "billed_cost": bill.total,
        "billed_cost_of_corrections": money.fixed(bill.corrections_minor, statement.book.statement_scale),
        **{name: money.plain(money.exact_decimal(cost)) for name, cost in exact.items()},
        "calls": money.exact_sum(statement.usage.sums["calls"]),
        "wire_bytes": wire,
        "rows": {
            **{state: states.count(state) for state in ("priced", "unpriced", UNALLOCATED)},
            "corrections": len(bill.corrections),
        },
    }


# -- verifying -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What holding a closed month against its files found. problems: sentences; none is good."""

    month: str
    sha256: str
    total: str
    currency: str
    charges: int
    corrections: int
    problems: tuple[str, ...]

    def with_problem(self, problem: str) -> Verified:
        return replace(self, problems=(*self.problems, problem))


def verify(months: Sequence[ClosedMonth], closed: ClosedMonth) -> Verified:
    """Hold a closed month against its checksums, the chain, and its usage and price book rated again.

    months: all closed months, in order.
    """
    found = store.problems(months, closed)
    try:
        found += _rated_again(months, closed)
    except (LedgerError, InputError, OSError, pa.ArrowException, ValueError, KeyError, ArithmeticError) as failure:
        found.append(f"can't be rated again: {failure}")
    rows = closed.manifest.get("totals", {}).get("rows", {})
    return Verified(
        month=closed.month, sha256=closed.sha256, total=closed.total, currency=closed.currency,
        charges=sum(rows.values()), corrections=rows.get("corrections", 0), problems=tuple(found),
    )  # fmt: skip


def _rated_again(months: Sequence[ClosedMonth], closed: ClosedMonth) -> list[str]:
    month, book = _closed.month_of(closed), _closed.book_of(closed)
    own = closed.usage_of(closed.month)
    statement = _closed.statement_of(own, month, book)
    found = [f"{store.CHARGES}: {told}" for told in _closed.differences(statement, closed)]
    again = _corrections_again([m for m in months if m.month < closed.month], closed)
    then = _closed.booked_corrections(closed)
    have = [name for name in then.column_names if name in closed.columns()]
    found += [
        f"{store.CHARGES}: corrections: {told}" for told in _closed.unequal(again.select(have), then.select(have))
    ]
    for name in closed.about():
        if not DaySums.of(closed.usage_of(name), period.month(name, closed.time_zone).starts).equals(
            closed.sums_of(name)
        ):
            found.append(f"{store.usage_name(name, closed.month)}: its sums by day are not those of the manifest")
    told = totals(Bill(statement=statement, corrections=again))
    written = closed.manifest["totals"]
    found += [
        f"{store.MANIFEST}: {name} {written.get(name)}, and rating again gives {value}"
        for name, value in told.items() if written.get(name) != value
    ]  # fmt: skip
    if fingerprint(statement) != closed.manifest["statement_sha256"]:
        say(f"{closed.month}: this version of apicost lays the statement out otherwise")  # no difference of charges
    return found


def _corrections_again(before: Sequence[ClosedMonth], closed: ClosedMonth) -> pa.Table:
    """The corrections that a closed month bears, made again from what its folder and those before it have."""
    found = [records.empty(CHARGE)]
    for earlier in before:
        month = _closed.month_of(earlier)
        then, now = _closed.book_of(before[-1], earlier.month), _closed.book_of(closed, earlier.month)
        if earlier.month not in closed.about() and corrections.same_terms(then, now, month):
            continue
        source = store.latest_usage([*before, closed], earlier.month).usage_of(earlier.month)
        statement = _closed.statement_of(source, month, now)
        found.append(
            corrections.corrections(list(_closed.booked(before, earlier)), statement, billing_month=closed.month)
        )
    return pa.concat_tables(found).unify_dictionaries()
