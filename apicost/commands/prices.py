"""`apicost prices check FILE`: every problem of a price book, or what it says."""

from __future__ import annotations

import argparse
import json
import sys

from apicost.catalog import prices
from apicost.core.rating import money
from apicost.core.rating.pricebook import PriceBook

DESCRIPTION = """Check a price book. Every problem is printed with file and line, what is wrong, what comes of it
and what to write instead. A book with a problem is not used by any command;
a running daemon keeps the last good one."""

EPILOG = "exit codes: 0 the book is good, 2 it has problems or can't be read"


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError with every problem of the book."""
    parser = argparse.ArgumentParser(
        prog="apicost prices", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("action", choices=("check",))
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="what the book says as JSON on standard output")
    options = parser.parse_args(argv)
    book = prices.load(options.file)
    for remark in book.remarks:
        print(f"note: {remark}", file=sys.stderr)
    if options.json:
        print(json.dumps(_as_data(book), ensure_ascii=False, indent=1))
    else:
        print(_as_text(book), file=sys.stderr)
    return 0


def _as_text(book: PriceBook) -> str:
    lines = [f"{book.file}: {book.id} {book.version}, {book.currency}, months of {book.time_zone}: no problems"]
    for sku in book.skus:
        what = " + ".join(sku.columns)
        where = "".join(f", {column} {'/'.join(values)}" for column, values in sku.where.items())
        lines.append(f"  {sku.id}: {what}{where}")
        for price in sku.prices:
            until = f" to {price.until} (exclusive)" if price.until else ""
            amounts = ", ".join(money.plain(tier.price) for tier in price.tiers)
            lines.append(f"    from {price.since}{until}: {price.mode} {amounts} {book.currency} per {sku.unit}")
    for cost in book.shared_costs:
        weights = " + ".join(f"{money.plain(w)} {name}" for name, w in cost.weights.items())
        lines.append(f"  {cost.id}: {cost.amount:f} {book.currency} a month, shared by {weights}")
    return "\n".join(lines)


def _as_data(book: PriceBook) -> dict[str, object]:
    return {
        "id": book.id, "version": book.version, "currency": book.currency, "time_zone": book.time_zone,
        "scopes": {name: list(networks) for name, networks in book.scopes},
        "skus": [
            {
                "id": sku.id, "meter": sku.meter, "unit": sku.unit, "columns": list(sku.columns),
                "where": {column: list(values) for column, values in sku.where.items()}, "free": sku.free,
                "prices": [
                    {
                        "from": str(price.since), "to": str(price.until) if price.until else None, "mode": price.mode,
                        "tiers": [{"up_to": t.up_to, "price": money.plain(t.price)} for t in price.tiers],
                    }
                    for price in sku.prices
                ],
            }
            for sku in book.skus
        ],
        "shared_costs": [{"id": cost.id, "amount": money.plain(cost.amount)} for cost in book.shared_costs],
        "remarks": list(book.remarks),
    }  # fmt: skip
