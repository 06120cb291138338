"""What contracts, pools by consumer, exchange rates and tags add to `apicost export charges`: CPU time and memory of
the process, with the plain book of report_month.py and with those terms, over the same ledger.

The ledger is that of month_report_usage.py: of 10,000 sets of dimensions, made where missing, or with
`--ledger` the one of 450,000 sets and 3,000 consumers that `month_report_usage.py --wide --ledger LEDGER` made.
The other book counts tiers of calls by consumer, has two contracts, one from a day within the month, a commitment,
two tag rules and a locked rate.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import report_month

TERMS = """
fx: [{from: USD, to: EUR, period: 2026-11, rate: "0.8642", locked: true}]
overrides:
  - {match: {consumer: [consumer-1, consumer-2]}, kind: contracted, discount_pct: "20"}
  - {match: {api: api-1}, sku: call, kind: contracted, price: "0.0005", from: 2026-11-10}
  - {match: {consumer: consumer-1}, kind: commitment, minimum: "500.00"}
tags: [{match: {api: api-1}, set: {team: a}}, {match: {consumer: consumer-3}, set: {team: b}}]
"""


def books():
    """The two books: name -> text."""
    plain = report_month.BOOK.format(zone="UTC")
    tiers = 'mode: graduated\n        tiers: [{up_to: "300000"'
    assert plain.count(tiers) == 1, "the plain book has other tiers"
    by_consumer = 'mode: graduated\n        pool: consumer\n        currency: USD\n        tiers: [{up_to: "10"'
    return {"plain": plain, "with terms": plain.replace(tiers, by_consumer) + TERMS}


def measure(ledger, text):
    """One export; its figures."""
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        book = Path(scratch) / "prices.yaml"
        book.write_text(text)
        output = Path(scratch) / "out" / "charges.csv"
        arguments = ["export", "charges", "--month", "2026-11", "--ledger", str(ledger), "--prices", str(book)]
        return report_month.run([*arguments, "-o", str(output)], scratch)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ledger", type=Path, help="use this ledger, made by an earlier run; made where missing")
    parser.add_argument("--runs", type=int, default=1, help="of each book, by turns (default: %(default)s)")
    options = parser.parse_args()
    figures = {"bench": "rate_terms", "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as scratch:
        folder = options.ledger or Path(scratch) / "ledger"
        if not folder.exists():
            import month_report_usage

            figures |= month_report_usage.generate(folder)
        for _ in range(options.runs):
            for name, text in books().items():
                figures.setdefault(name, []).append(measure(folder, text))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
