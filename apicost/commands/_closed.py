"""Closed months and what they make of the open one: their bills, and the corrections that fall to it.

Rules of this file:
- A closed month is shown from its folder alone: its usage and its price book, rated again and held against the
  charges that were booked. Where this version of the program comes to others, it says so and shows nothing.
- Corrections fall to the first month after the last closed one. Usage of a closed month is what the ledger has, but
  for days of which the ledger knows less than a folder: those it has forgotten, and the folder stands for them.
- What was booked is right for the usage and the prices that were known last: where neither has changed, nothing is
  rated, and there is no correction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from apicost.catalog import model_prices, prices
from apicost.commands._terminal import error, say
from apicost.core import records
from apicost.core.rating import corrections as core
from apicost.core.rating import models, period, rate
from apicost.core.rating.bill import Bill, fingerprint
from apicost.core.rating.models import NO_MODELS, ModelPrices
from apicost.core.rating.period import Period, utc_text
from apicost.core.rating.pricebook import FxRate, PriceBook
from apicost.core.rating.statement import CHARGE, CORRECTION, Statement
from apicost.core.rating.usage_rows import KEYS, SUMS, UsageRows, gather
from apicost.problems import InputError
from apicost.report.export import ApiInfo
from apicost.report.focus.settings import FocusSettings
from apicost.store import closed as store
from apicost.store.closed import ClosedMonth, DaysOf, DaySums, UsageSource
from apicost.store.query import Ledger


def book_of(closed: ClosedMonth, month: str | None = None) -> PriceBook:
    """The price book as it was when the month was closed, with the models' prices of then, of this month or another."""
    told = closed.manifest["models"].get(month or closed.month)
    book = prices.load(closed.prices)
    return replace(book, models=models.from_json(told)) if told else book


def with_models(source: UsageSource, month: Period, book: PriceBook, known: ModelPrices = NO_MODELS) -> PriceBook:
    """The book with the prices of a list outside it for the models of a month's usage, where it asks for them.

    known: what is booked: a model that had prices keeps them, whatever the list says today; one that had none may have
    got some.
    """
    if book.models.models or not model_prices.is_needed(book):
        return book
    found = source.usage((month.start_unix_s, month.end_unix_s), ("llm_model",), sums=("calls",))
    looked_up = model_prices.resolve(book, [name for name in found.column("llm_model").unique().to_pylist() if name])
    booked_models = {(model.name, model.provider): model for model in known.models if model.prices}
    kept = tuple(booked_models.get((model.name, model.provider), model) for model in looked_up.models)
    return replace(book, models=replace(looked_up, models=kept))


def apis_of(closed: ClosedMonth) -> dict[str, ApiInfo]:
    """Titles, owners, teams and tags of the APIs as the configuration had them then."""
    return {name: ApiInfo(**told) for name, told in closed.manifest["apis"].items()}


def focus_of(closed: ClosedMonth, invoice_id: str) -> FocusSettings:
    """Names in FOCUS files as the configuration had them then. invoice_id: of now, since invoices come later."""
    return FocusSettings(**closed.manifest["focus"] | {"invoice_id": invoice_id})


def apis_as_data(apis: Mapping[str, ApiInfo]) -> dict[str, object]:
    """The same for a manifest."""
    return {
        name: {"title": api.title, "owner": api.owner, "team": api.team, "tags": dict(api.tags)}
        for name, api in sorted(apis.items())
    }


def month_of(closed: ClosedMonth) -> Period:
    """The month by the clocks that it was closed by."""
    return period.month(closed.month, closed.time_zone)


def source_of(ledger: Ledger, month: Period) -> UsageSource:
    """Where a month's usage is: its folder where it is closed, else the ledger.

    Raises InputError where it was closed by other clocks than the month's.
    """
    closed = store.closed_month(ledger.folder, month.name)
    if closed is None:
        return ledger
    if closed.time_zone != month.time_zone:
        raise error(
            str(closed.folder), f"{month.name} was closed by the clocks of {closed.time_zone}",
            f"its days are none of {month.time_zone}", f"use a price book of the time zone {closed.time_zone}",
        )  # fmt: skip
    return closed.usage_of(month.name)


def rows_of(
    source: UsageSource, month: Period, book: PriceBook | None, sums: Sequence[str] = SUMS, most: int | None = None
) -> UsageRows:
    """A month's usage by key, cut where a price of the book changes.

    most: TooManyRows is raised where the ledger has more rows; None, and a closed month, is no limit.
    """
    cuts, edges = edges_of(month, book)
    if most is not None and isinstance(source, Ledger):
        return gather(source.usage(edges, KEYS, sums=sums, most=most), month, cuts)
    return gather(source.usage(edges, KEYS, sums=sums), month, cuts)


def edges_of(month: Period, book: PriceBook | None) -> tuple[tuple[int, ...], list[int]]:
    """The days of a month on which a price of the book changes, and the times of these and of the month's end."""
    cuts = tuple(book.price_changes(month.days)) if book else (0,)
    return cuts, [*(month.starts[day] for day in cuts), month.end_unix_s]


def statement_of(
    source: UsageSource, month: Period, book: PriceBook, sums: Sequence[str] = SUMS, most: int | None = None
) -> Statement:
    """A month rated, also one without usage. most: as in `rows_of`.

    Raises InputError where an exchange rate is missing.
    """
    prices.require(book, month)
    book = with_models(source, month, book)
    rows = rows_of(source, month, book, tuple(dict.fromkeys((*sums, *rate.sums_needed(book)))), most)
    say(f"rating {len(rows.key):,} usage rows of {month.name} with {book.id} {book.version}")
    return rate.rate_rows(rows, book, month)


# -- closed months ---------------------------------------------------------------------------------------------


def bill_of(closed: ClosedMonth, sums: Sequence[str] = SUMS) -> Bill:
    """What a closed month billed. sums: the columns of usage that are asked for beside the charges.

    Raises InputError where this program does not come to the charges that were booked.
    """
    statement = statement_of(closed.usage_of(closed.month), month_of(closed), book_of(closed), sums)
    if fingerprint(statement) != closed.manifest["statement_sha256"] and (told := differences(statement, closed)):
        raise error(
            str(closed.folder), f"apicost {closed.manifest['apicost']} closed this month, and this version rates it "
            f"otherwise: {'; '.join(told)}", "the month is not shown: a closed month never changes",
            f"use apicost {closed.manifest['apicost']} for it, run `apicost verify {closed.month}`, or put the folder "
            "back from a backup",
        )  # fmt: skip
    return Bill(statement=statement, corrections=booked_corrections(closed), closed=True)


def booked_corrections(closed: ClosedMonth) -> pa.Table:
    """The corrections of earlier months that a closed month bears, columns as in CHARGE."""
    if not closed.manifest["totals"]["rows"]["corrections"]:
        return records.empty(CHARGE)
    return closed.charges(of_class=CORRECTION)


def differences(statement: Statement, closed: ClosedMonth) -> list[str]:
    """Where a statement's charges are not those that were booked, each as a sentence; none is good."""
    have = [name for name in records.schema(CHARGE).names if name in closed.columns()]
    found: list[str] = []
    at = 0
    for piece in closed.pieces(have):
        then = _without_class(piece)
        now = statement.table(at, min(at + len(then), len(statement))).select(have)
        found += unequal(now, then)
        at += len(then)
        if len(found) > 3:
            return [*found[:3], "and more"]
    return found if at == len(statement) else [*found, f"{len(statement)} charges, not {at}"]


def unequal(now: pa.Table, then: pa.Table) -> list[str]:
    """The first cells in which rows of charges differ, one for each column that does."""
    found = []
    if len(now) != len(then):
        return [f"{len(now)} rows, not {len(then)}"]
    for name in then.column_names:
        mine, theirs = (table.column(name).cast(pa.string()).combine_chunks() for table in (now, then))
        if not mine.equals(theirs):
            differs: Any = pc.not_equal(mine.fill_null("\0"), theirs.fill_null("\0"))
            at = int(np.flatnonzero(differs.to_numpy(zero_copy_only=False))[0])
            found.append(f"charge {then.column('charge_id')[at]}: {name} {mine[at]}, not {theirs[at]}")
    return found


def _without_class(charges: pa.Table) -> pa.Table:
    """The charges that are no corrections."""
    return charges.filter(pc.is_null(charges.column("charge_class").cast(pa.string())))


# -- corrections -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What closed months say now.

    rows: corrections of all of them, month by month. usage: months of which more is known than the folders have, and
    what is known. models: months -> the models' prices that they say it with. forgotten: months -> days of which the
    ledger knows less than a folder. unlocked: exchange rates in the statements of now that may still change.
    """

    rows: pa.Table
    usage: Mapping[str, UsageSource] = field(default_factory=dict)
    models: Mapping[str, ModelPrices] = field(default_factory=dict)
    forgotten: Mapping[str, int] = field(default_factory=dict)
    unlocked: tuple[FxRate, ...] = ()


def open_month(months: Sequence[ClosedMonth]) -> str | None:
    """The month that bears corrections: the first after the last closed one; None where none is closed."""
    if not months:
        return None
    year, month = map(int, months[-1].month.split("-"))
    return f"{year + month // 12:04}-{month % 12 + 1:02}"


def corrections(ledger: Ledger, months: Sequence[ClosedMonth], book: PriceBook) -> Corrected:
    """What the present ledger and price book correct of closed months, for the month after the last of them.

    months: all closed months, in order. Raises InputError where the book can't be held against them.
    """
    billing_month = open_month(months)
    if billing_month is None:
        return Corrected(rows=records.empty(CHARGE))
    comparable(months, book)
    listed: dict[str, ModelPrices] = {}
    found = [records.empty(CHARGE)]
    usage: dict[str, UsageSource] = {}
    forgotten: dict[str, int] = {}
    unlocked: list[FxRate] = []
    for closed in months:
        month = month_of(closed)
        known = store.latest_usage(months, closed.month)
        source: UsageSource = known.usage_of(closed.month)
        if position(ledger, month) != known.position_of(closed.month):
            present, short = present_usage(ledger, month, known)
            if short:
                forgotten[closed.month] = short
            if present is not None:
                source = usage[closed.month] = present
        then = book_of(months[-1], closed.month)
        now = with_models(source, month, book, then.models)
        if now.models.models:
            listed[closed.month] = now.models
        if closed.month not in usage and core.same_terms(then, now, month):
            continue
        keeps_prices(then, now, month)
        statement = statement_of(source, month, now)
        unlocked += statement.unlocked_rates
        found.append(core.corrections(list(booked(months, closed)), statement, billing_month=billing_month))
    rows = pa.concat_tables(found).unify_dictionaries()
    return Corrected(
        rows=rows, usage=usage, models=listed, forgotten=forgotten, unlocked=tuple(dict.fromkeys(unlocked))
    )


def present_usage(ledger: Ledger, month: Period, known: ClosedMonth) -> tuple[UsageSource | None, int]:
    """What is known of a closed month beyond a folder (None: nothing), and how many days the ledger has forgotten."""
    frozen, sums = known.usage_of(month.name), known.sums_of(month.name)
    have = DaySums.of(ledger, month.starts)
    short = have.falls_short_of(sums)
    if not short:
        return (None if have.equals(sums) else ledger), 0
    mixed = DaysOf(first=ledger, second=frozen, days=frozenset(short), starts=month.starts)
    return (None if DaySums.of(mixed, month.starts).equals(sums) else mixed), len(short)


def booked(months: Sequence[ClosedMonth], closed: ClosedMonth) -> Iterator[pa.Table]:
    """What was booked of a closed month: its own charges, and corrections of it in later closed months."""
    needed = (*core.NEEDED, "charge_class")
    yield _without_class(closed.charges(needed))
    for later in months:
        if later.month > closed.month and later.manifest["totals"]["rows"]["corrections"]:
            yield about(later.charges(needed, of_class=CORRECTION), month_of(closed))


def charges_about(closed: ClosedMonth, corrected: ClosedMonth) -> pa.Table:
    """What a closed month billed of another or of itself, columns as in CHARGE."""
    if closed.month == corrected.month:
        return _without_class(closed.charges())
    return about(closed.charges(of_class=CORRECTION), month_of(corrected))


def corrected_from(
    ledger: Ledger, months: Sequence[ClosedMonth], corrected: ClosedMonth, billing: Statement
) -> tuple[Statement, Statement]:
    """A closed month's statements that a bill's corrections of it lie between: as it was known before, and then.

    billing: the statement of the bill: of a closed month, or of the open one.
    """
    month, name = month_of(corrected), corrected.month
    before = [closed for closed in months if closed.month < billing.period.name]
    then = statement_of(store.latest_usage(before, name).usage_of(name), month, book_of(before[-1], name))
    own = [closed for closed in months if closed.month == billing.period.name]
    if own:
        source: UsageSource = store.latest_usage([*before, *own], name).usage_of(name)
        return then, statement_of(source, month, book_of(own[0], name))
    known = store.latest_usage(before, name)
    present, _ = present_usage(ledger, month, known)
    source = known.usage_of(name) if present is None else present
    book = replace(billing.book, models=NO_MODELS)  # those of the open month are of its own usage
    return then, statement_of(source, month, with_models(source, month, book, then.book.models))


def about(charges: pa.Table, month: Period) -> pa.Table:
    """The charges whose charge period lies in a month."""
    since = charges.column("period_start").cast(pa.string())
    start, end = pa.scalar(utc_text(month.start_unix_s)), pa.scalar(utc_text(month.end_unix_s))
    return charges.filter(pc.and_(pc.greater_equal(since, start), pc.less(since, end)))


def comparable(months: Sequence[ClosedMonth], book: PriceBook) -> None:
    """Raises InputError where a price book is in another currency, scale or time zone than the closed months."""
    last = months[-1]
    for what, theirs, mine in (
        ("currency", last.currency, book.currency),
        ("rounding: statement_scale", str(last.scale), str(book.statement_scale)),
        ("calendar: time_zone", last.time_zone, book.time_zone),
    ):
        if theirs != mine:
            raise error(
                book.file, f"{what} {mine}, and {last.month} was closed with {theirs}",
                "what was booked can't be compared with what it would be now, so no open month is billed",
                f"write {theirs}, or begin a new ledger",
            )  # fmt: skip


def keeps_prices(before: PriceBook, book: PriceBook, month: Period) -> None:
    """Raises InputError where a book is silent about what a closed month was charged for.

    A book for the months to come alone would take back every cost of the closed ones.
    """
    first = month.days[0]
    skus = {sku.id: sku for sku in book.skus}
    costs = {cost.id for cost in book.shared_costs if cost.is_due(first)}
    committed = {commitment.consumer for commitment in book.commitments if commitment.is_due(first)}
    for sku in before.skus:
        now = skus.get(sku.id)
        for day in month.days:
            if sku.price_on(day) is not None and (now is None or now.price_on(day) is None):
                raise _taken_back(now.place if now else book.file, sku.id, f"price on {day}", sku.place, month, "price")
    for cost in before.shared_costs:
        if cost.is_due(first) and cost.id not in costs:
            raise _taken_back(book.file, cost.id, f"amount in {month.name}", cost.place, month, "amount")
    for commitment in before.commitments:
        if commitment.is_due(first) and commitment.consumer not in committed:
            who = f"the commitment of {commitment.consumer}"
            raise _taken_back(book.file, who, f"minimum in {month.name}", commitment.place, month, "minimum")


def _taken_back(place: str, name: str, what: str, then: str, month: Period, key: str) -> InputError:
    return error(
        place, f"{name} has no {what}, and {month.name} was closed with one ({then})",
        "corrections would take back all that it cost, so no open month is billed",
        f"keep the prices and terms of closed months in the book, each with its from and to; what is to cost nothing "
        f"after all has the {key} \"0\"",
    )  # fmt: skip


def position(ledger: Ledger, month: Period) -> str:
    """What identifies the usage that the ledger has of a month's UTC days: the same compacted or not."""
    sums = ledger.control_sums(month.start_unix_s, month.end_unix_s)
    return hashlib.sha256(repr(sums).encode()).hexdigest()
