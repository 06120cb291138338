"""`apicost prices check FILE`: every problem of a price book, or what it says. `apicost prices diff OLD NEW`: what
a change of it would cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from fractions import Fraction

from apicost.catalog import model_prices, prices
from apicost.commands import _months
from apicost.core.rating import compare, external, money
from apicost.core.rating.compare import Comparison
from apicost.core.rating.pricebook import EXTERNAL, Contract, PriceBook
from apicost.core.rating.statement import Statement
from apicost.problems import InputError

DESCRIPTION = """Check a price book, or compare two.

  check FILE                   every problem with file and line, what is wrong, what comes of it and what to write
                               instead; a book with a problem is not used by any command, and a running daemon
                               keeps the last good one; --month MONTH also asks for that month's exchange rates
  diff OLD NEW --month MONTH   what the usage of a month in the ledger costs by one book and by the other, by SKU;
                               usage that only one of them prices is listed with its quantity"""

EPILOG = """examples:
  apicost prices check prices.yaml
  apicost prices diff prices.yaml prices-2027.yaml --month 2026-11 -c apicost.yaml

exit codes: 0 the book is good, or the books are compared; 2 a book has problems or can't be read, or a wrong option;
3 the month has no usage"""


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError with every problem of the book."""
    parser = argparse.ArgumentParser(
        prog="apicost prices", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("action", choices=("check", "diff"))
    parser.add_argument("files", nargs="+", metavar="FILE", help="one price book to check; two to compare, OLD NEW")
    _months.add_options(parser, month=False)
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    options = parser.parse_args(argv)
    wanted = 1 if options.action == "check" else 2
    if len(options.files) != wanted:
        raise _months.error("FILE", f"{len(options.files)} files for {options.action}", "nothing is read",
                            f"name {'one file' if wanted == 1 else 'two: OLD NEW'}")  # fmt: skip
    return _check(options) if options.action == "check" else _diff(options)


def _check(options: argparse.Namespace) -> int:
    book = prices.load(options.files[0], model_prices.providers)
    if found := model_prices.problems(book):
        raise InputError(found)
    if options.month:
        prices.require(book, _months.month_of(options.month, book))
    for remark in (*book.remarks, *model_prices.remarks(book)):
        print(f"note: {remark}", file=sys.stderr)
    if options.json:
        print(json.dumps(_as_data(book), ensure_ascii=False, indent=1))
    else:
        print(_as_text(book), file=sys.stderr)
    return 0


def _diff(options: argparse.Namespace) -> int:
    if options.month is None:
        raise _months.error("--month", "no month is named", "there is no usage to price", "add --month YYYY-MM")
    old, new = (prices.load(file) for file in options.files)
    if old.currency != new.currency:
        raise _months.error(options.files[1], f"the books are in {old.currency} and {new.currency}",
                            "their costs can't be compared", "compare books of one currency")  # fmt: skip
    options.prices = None
    statements: list[Statement] = []
    where = _months.sources(options)
    with _months.open_ledger(where.ledger) as ledger:
        for book in (old, new):  # each by its own time zone and price changes
            statement = _months.statement_of(ledger, _months.month_of(options.month, book), book)
            if statement is None:
                return _months.no_data(options.month, where.ledger)
            statements.append(statement)
    found = compare.compare(*statements)
    if options.json:
        print(json.dumps(_diff_data(found, statements), ensure_ascii=False, indent=1))
    else:
        print(_diff_text(found, statements))
    return 0


def _diff_text(found: Comparison, statements: Sequence[Statement]) -> str:
    old, new = statements
    scale, currency = max(old.book.statement_scale, new.book.statement_scale), old.book.currency
    heads = [f"{s.book.id} {s.book.version}" for s in statements]
    rows = [["", *heads, "change", "%"]]
    rows += [
        [c.sku, _places(c.old, scale), _places(c.new, scale), _places(c.change, scale, sign=True),
         _percent(c.change, c.old)]
        for c in found.costs
    ]  # fmt: skip
    before, after = (Fraction(s.total_minor, 10**s.book.statement_scale) for s in statements)
    rows.append(["billed", *(_places(x, scale) for x in (before, after)), _places(after - before, scale, sign=True),
                 _percent(after - before, before)])  # fmt: skip
    lines = [f"{old.period.name}, {currency}: what its usage costs by each price book", *_aligned(rows)]
    if found.unpriced:
        lines += ["", "Without a price, so in no total:"]
        quantities = [[f"{u.meter}, {u.unit}", f"{int(u.old):,}", f"{int(u.new):,}"] for u in found.unpriced]
        lines += _aligned([["", *heads], *quantities])
    return "\n".join(lines)


def _diff_data(found: Comparison, statements: Sequence[Statement]) -> dict[str, object]:
    old, new = statements
    change = Fraction(new.total_minor, 10**new.book.statement_scale) - Fraction(
        old.total_minor, 10**old.book.statement_scale
    )
    return {
        "month": old.period.name, "currency": old.book.currency,
        **{name: {"id": s.book.id, "version": s.book.version, "billed_cost": s.total,
                  "contracted_cost": _exact(s.total_exact)} for name, s in (("old", old), ("new", new))},
        "billed_change": _exact(change),
        "by_sku": [{"sku": c.sku, "old": _exact(c.old), "new": _exact(c.new), "change": _exact(c.change)}
                   for c in found.costs],
        "unpriced": [{"meter": u.meter, "unit": u.unit, "old": int(u.old), "new": int(u.new)} for u in found.unpriced],
    }  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as text columns: the first to the left, the others to the right."""
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True)))
        for row in rows
    ]


def _places(amount: Fraction | None, scale: int, *, sign: bool = False) -> str:
    if amount is None:
        return "no price"
    minor = money.half_even(amount * 10**scale)
    whole, _, rest = money.fixed(abs(minor), scale).partition(".")
    before = "-" if minor < 0 else "+" if sign and minor else ""
    return f"{before}{int(whole):,}" + (f".{rest}" if rest else "")


def _percent(change: Fraction, of: Fraction | None) -> str:
    if not of:
        return ""
    tenths = money.half_even(change * 1000 / of)
    return f"{'+' if tenths > 0 else ''}{money.fixed(tenths, 1)} %"


def _exact(amount: Fraction | None) -> str | None:
    return None if amount is None else money.plain(money.exact_decimal(amount))


def _as_text(book: PriceBook) -> str:
    lines = [f"{book.file}: {book.id} {book.version}, {book.currency}, months of {book.time_zone}: no problems"]
    for sku in book.skus:
        what = " + ".join(sku.columns)
        where = "".join(f", {column} {'/'.join(values)}" for column, values in sku.where.items())
        lines.append(f"  {sku.id}: {what}{where}")
        for price in sku.prices:
            until = f" to {price.until} (exclusive)" if price.until else ""
            amounts = ", ".join(money.plain(tier.price) for tier in price.tiers)
            per = sku.unit
            if price.mode == "package":
                per = f"started {_exact(Fraction(price.size, sku.unit_base))} {sku.unit}"
            if price.mode == EXTERNAL:
                at = f" at {price.provider}" if price.provider else ""
                kept = [other.id for other in book.skus if other is not sku and external.comes_before(book, other, sku)]
                but = f", but for what {' and '.join(kept)} price{'s' * (len(kept) == 1)}" if kept else ""
                lines.append(f"    from {price.since}{until}: each model's prices{at} by {price.source}{but}")
                continue
            by = "" if price.pool == "billing_account" else f", counted by {price.pool}"
            currency = price.currency or book.currency
            lines.append(f"    from {price.since}{until}: {price.mode} {amounts} {currency} per {per}{by}")
    for cost in book.shared_costs:
        weights = " + ".join(f"{money.plain(w)} {name}" for name, w in cost.weights.items())
        lines.append(f"  {cost.id}: {cost.amount:f} {book.currency} a month, shared by {weights}")
    lines += [f"  contract for {_for(contract)}: {_agreed(contract)}" for contract in book.contracts]
    lines += [
        f"  {c.consumer} is committed to {c.minimum:f} {book.currency} a month{_dates(c.since, c.until)}"
        for c in book.commitments
    ]
    for rate in book.fx:
        state = "locked" if rate.locked else "not locked"
        lines.append(f"  1 {rate.currency} = {rate.rate:f} {book.currency} in {rate.period}, {state}")
    for budget in book.budgets:
        who = ", ".join(f"{column} {'/'.join(values)}" for column, values in budget.match.items())
        lines.append(f"  budget of {who} in {budget.month}: {budget.amount:f} {book.currency}")
    if book.tags:
        lines.append(f"  {len(book.tags)} tag rules")
    return "\n".join(lines)


def _for(contract: Contract) -> str:
    who = ", ".join(f"{column} {'/'.join(values)}" for column, values in contract.match.items())
    return f"{who}, {'/'.join(contract.skus) or 'every SKU'}{_dates(contract.since, contract.until)}"


def _agreed(contract: Contract) -> str:
    if contract.discount_pct is not None:
        return f"{contract.discount_pct:f} % off"
    return f"{contract.price:f} per unit"


def _dates(since: date | None, until: date | None) -> str:
    return (f" from {since}" if since else "") + (f" to {until} (exclusive)" if until else "")


def _as_data(book: PriceBook) -> dict[str, object]:
    return {
        "id": book.id, "version": book.version, "currency": book.currency, "time_zone": book.time_zone,
        "scopes": {name: list(networks) for name, networks in book.scopes},
        "skus": [
            {
                "id": sku.id, "meter": sku.meter, "unit": sku.unit, "columns": list(sku.columns),
                "where": {column: list(values) for column, values in sku.where.items()}, "free": sku.free,
                "quantum": sku.quantum or None,
                "prices": [
                    {
                        "from": str(price.since), "to": str(price.until) if price.until else None, "mode": price.mode,
                        "size": price.size or None, "pool": price.pool, "currency": price.currency or book.currency,
                        "source": price.source or None, "provider": price.provider or None,
                        "tiers": [{"up_to": t.up_to, "price": money.plain(t.price)} for t in price.tiers],
                    }
                    for price in sku.prices
                ],
            }
            for sku in book.skus
        ],
        "shared_costs": [{"id": cost.id, "amount": money.plain(cost.amount)} for cost in book.shared_costs],
        "contracts": [
            {
                "match": {column: list(values) for column, values in c.match.items()}, "skus": list(c.skus),
                "discount_pct": None if c.discount_pct is None else money.plain(c.discount_pct),
                "price": None if c.price is None else money.plain(c.price), "from": c.since and str(c.since),
                "to": c.until and str(c.until),
            }
            for c in book.contracts
        ],
        "commitments": [
            {
                "consumer": c.consumer, "minimum": money.plain(c.minimum), "from": c.since and str(c.since),
                "to": c.until and str(c.until),
            }
            for c in book.commitments
        ],
        "fx": [
            {"from": r.currency, "to": book.currency, "period": r.period, "rate": money.plain(r.rate),
             "locked": r.locked, "source": r.source} for r in book.fx
        ],
        "budgets": [
            {"match": {column: list(values) for column, values in b.match.items()}, "month": b.month,
             "amount": money.plain(b.amount)} for b in book.budgets
        ],
        "tags": [
            {"match": {column: list(values) for column, values in t.match.items()}, "set": dict(t.tags)}
            for t in book.tags
        ],
        "remarks": list(book.remarks),
    }  # fmt: skip
