"""Months of more keys than can be held, exported as CSV: read, rated and written lot by lot.

What passes is kept beside the file that is written, where there must be room for it anyway, and gone at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from apicost import scratch
from apicost.catalog import prices
from apicost.commands import _closed, _months
from apicost.commands._terminal import Progress, say
from apicost.core.rating import rate
from apicost.core.rating.bill import BillInLots
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.usage_rows import KEYS, SUMS, UsageRows, gather
from apicost.report import export
from apicost.store.lots import KeptLots, Shelf
from apicost.store.query import Ledger

MOST_KEYS = 400_000  # held at once: a statement takes about 1 KB a key, 400 MB with these


def write_charges(ledger: Ledger, month: Period, sources: _months.Sources, path: Path, api: str | None) -> int:
    """Write the charges of an open month that has usage; returns the number of rows. Raises as `_months.bill_of`."""
    prices.require(sources.priced, month)
    book = _closed.with_models(ledger, month, sources.priced)
    with scratch.folder("export", path.parent) as folder, Shelf(folder) as shelf:
        usage = KeptLots(folder, _read(ledger, month, book, folder, rate.sums_needed(book)))
        say(f"rating {sum(len(lot.key) for lot in usage):,} usage rows of {month.name} with {book.id} {book.version}")
        statement = rate.rate_lots(usage, book, month, shelf)
        bill = BillInLots(statement=statement, corrections=_months.corrections_of(ledger, month, sources.priced))
        return _shown(path, len(bill), lambda seen: export.write_charges(bill, path, sources.apis, api, seen))


def write_usage(ledger: Ledger, month: Period, book: PriceBook | None, path: Path, api: str | None) -> int:
    """Write the usage of an open month; returns the number of rows."""
    book = book and _closed.with_models(ledger, month, book)
    with scratch.folder("export", path.parent) as folder:
        lots = _read(ledger, month, book, folder, SUMS)
        return _shown(path, None, lambda seen: export.write_usage(lots, month, path, api, seen))


def _read(
    ledger: Ledger, month: Period, book: PriceBook | None, folder: Path, sums: tuple[str, ...]
) -> Iterator[UsageRows]:
    cuts, edges = _closed.edges_of(month, book)
    progress = Progress(f"reading {month.name}")
    try:
        tables = ledger.usage_in_lots(edges, KEYS, folder, sums=sums, seen=progress.seen)
    finally:
        progress.end()
    return (gather(table, month, cuts) for table in tables)


def _shown(path: Path, count: int | None, write: Callable[[Callable[[int], None]], int]) -> int:
    progress = Progress(path.name, count)
    try:
        return write(progress.seen)
    finally:
        progress.end()
