"""What report, export and explain have in common: which ledger, which prices, which month."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from apicost import config, durable
from apicost.catalog import prices
from apicost.core.rating import days, period, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.days import keys_needed
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.statement import Statement
from apicost.core.rating.usage_rows import KEYS, SUMS, UsageRows, gather
from apicost.problems import InputError, Problem
from apicost.report.export import ApiInfo
from apicost.store.catalogue import CATALOGUE, LedgerError
from apicost.store.query import Ledger

DEFAULT_CONFIG = Path("apicost.yaml")
_ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a month comes from. book, config: None where none is named."""

    ledger: Path
    book: PriceBook | None
    apis: Mapping[str, ApiInfo]
    config: config.Config | None = None

    @property
    def priced(self) -> PriceBook:
        """The price book. Raises InputError where none is named."""
        if self.book is None:
            raise error("--prices", "no price book is named", "no cost can be said", "add --prices FILE, or prices: "
                         "FILE to apicost.yaml")  # fmt: skip
        return self.book


def add_options(parser: argparse.ArgumentParser, *, month: bool = True) -> None:
    """The options that say which ledger, prices and month."""
    parser.add_argument("-c", "--config", type=Path, help=f"apicost.yaml (default: ./{DEFAULT_CONFIG} if it is there)")
    parser.add_argument("--ledger", type=Path, help="the ledger's folder; without a configuration this is needed")
    parser.add_argument("--prices", type=Path, help="price book; replaces the configuration's")
    parser.add_argument(
        "--month", required=month, metavar="YYYY-MM", help="calendar month of the price book's time zone"
    )


def sources(options: argparse.Namespace) -> Sources:
    """Ledger, price book and APIs as the options say. Raises InputError with every problem."""
    file = options.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() and not options.ledger else None)
    settings = config.load(file) if file else None
    folder = options.ledger or (settings.ledger_dir if settings else None)
    if folder is None:
        raise error(
            "--ledger", "no ledger is named", "there is nothing to read", "add --ledger PATH or -c apicost.yaml"
        )
    if not (folder / CATALOGUE).exists() and (folder / "ledger" / CATALOGUE).exists():
        folder = folder / "ledger"  # the daemon's state folder was named
    file = options.prices or (settings.prices if settings else None)
    apis = {
        api.id: ApiInfo(title=api.title, owner=api.owner, team=api.team, tags=dict(api.tags))
        for api in (settings.apis if settings else ())
    }
    return Sources(ledger=folder, book=prices.load(file) if file else None, apis=apis, config=settings)


def month_of(name: str, book: PriceBook | None) -> Period:
    """The month of an option. Raises InputError where it is none."""
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", name) or name < "0001-01":
        raise error("--month", f"{name!r} is not a month", "nothing is written", "write YYYY-MM, such as 2026-11")
    return period.month(name, book.time_zone if book else "UTC")


@contextlib.contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger. Raises InputError where there is none or it can't be read."""
    try:
        with Ledger.open(folder) as ledger:
            yield ledger
    except LedgerError as failure:
        raise error(
            str(folder), str(failure), "there is nothing to read", "name the ledger's folder: --ledger PATH"
        ) from None
    except OSError as failure:
        raise error(str(folder), f"can't be read or written: {failure}", "the month is not written whole",
                     "mend what the message says") from None  # fmt: skip


def read_rows(ledger: Ledger, month: Period, book: PriceBook | None, *, sums: Sequence[str] = SUMS) -> UsageRows | None:
    """The month's usage by key, cut where a price of the book changes; None where there is none.

    sums: the columns that are asked for; `rate.sums_needed` names those that charges are made from.
    """
    say(f"reading {month.name} from {ledger.folder}")
    cuts = book.price_changes(month.days) if book else (0,)
    edges = [*(month.starts[day] for day in cuts), month.end_unix_s]
    rows = gather(ledger.usage(edges, KEYS, sums=sums), month, cuts)
    return rows if len(rows.key) else None


def read_days(ledger: Ledger, month: Period, book: PriceBook) -> UsageRows:
    """The month's usage by day, with the keys and sums alone that the cost by day depends on."""
    return gather(ledger.usage(month.starts, keys_needed(book), sums=days.sums_needed(book)), month)


def total_before(ledger: Ledger, month: Period, book: PriceBook) -> tuple[str, int] | None:
    """The month before and its total with the same price book; None where the ledger has nothing of it.

    Only the keys that prices ask for are read: the total does not depend on the others, but for the last digits
    of a share where contracts or commitments make the shares of a tier differ in price.
    """
    before = period.month((month.days[0] - _ONE_DAY).strftime("%Y-%m"), book.time_zone)
    if missing := book.without_rate(before.days, before.name):
        names = ", ".join(sorted({price.currency or "" for _, price in missing}))
        print(f"apicost: not compared with {before.name}: no exchange rate of {names} in it", file=sys.stderr)
        return None
    keys = KEYS if book.contracts or book.commitments else keys_needed(book)
    cuts = book.price_changes(before.days)
    edges = [*(before.starts[day] for day in cuts), before.end_unix_s]
    rows = gather(ledger.usage(edges, keys, sums=rate.sums_needed(book)), before, cuts)
    return (before.name, rate.rate_rows(rows, book, before).total_minor) if len(rows.key) else None


def say(text: str) -> None:
    """Progress for a person at a terminal; silent otherwise."""
    if sys.stderr.isatty():
        print(f"apicost: {text}", file=sys.stderr)


def write_text(text: str, path: Path | None, effect: str) -> None:
    """Write to a file, or to standard output where none is named. effect: what it means that it can't be written.

    Raises InputError.
    """
    if path is None:
        sys.stdout.write(text)
        return
    try:
        durable.write_bytes(path, text.encode("utf-8", errors="replace"))
    except OSError as failure:
        fix = "name a file in a folder that can be written"
        raise error(str(path), f"can't be written: {failure.strerror}", effect, fix) from None


def no_data(month: str, folder: Path) -> int:
    """Says that a month has no usage; the exit code for too little data."""
    print(f"apicost: the ledger {folder} has no usage in {month}", file=sys.stderr)
    return 3


def error(place: str, fact: str, effect: str, fix: str) -> InputError:
    """One problem of an option."""
    return InputError([Problem(place=place, fact=fact, effect=effect, fix=fix)])


def statement_of(ledger: Ledger, month: Period, book: PriceBook, *, sums: Sequence[str] = SUMS) -> Statement | None:
    """The month rated; None where it has no usage. sums: as in `read_rows`.

    Raises InputError where an exchange rate is missing.
    """
    prices.require(book, month)
    rows = read_rows(ledger, month, book, sums=sums)
    if rows is None:
        return None
    say(f"rating {len(rows.key):,} usage rows with {book.id} {book.version}")
    return rate.rate_rows(rows, book, month)


def bill_of(ledger: Ledger, month: Period, sources: Sources) -> Bill | None:
    """What the month bills: its statement, and the corrections of closed months that fall to it.

    None where it has neither usage nor corrections. Raises InputError where an exchange rate is missing.
    """
    statement = statement_of(ledger, month, sources.priced)
    return None if statement is None else Bill(statement=statement)
