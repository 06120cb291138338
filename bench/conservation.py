"""Is money conserved over many random months? Each has a price book of its own with any feature, usage at any time of a
month in a time zone from UTC-12 to UTC+14, and corrections of a closed month; tests/money_months.py draws them.

For each month: all laws of tests/money_laws.py; the differences between the statement's total and the sums of rows,
of every table, of days and of the journal; and `bean-check`, the command, on the journal. `cpu_s` is of this process,
`cpu_s_bean_check` of that command.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from beancount.core.data import Transaction
from hypothesis import HealthCheck, Phase, given, seed, settings

from apicost.core.rating.usage_rows import gather
from apicost.report.month import monthly
from tests import money_laws
from tests.money_months import months
from tests.usage_months import usage

CHECK = Path(sys.executable).with_name("bean-check")


def differences(made, bill):
    """What sums of the month miss its total by, in the book's currency."""
    unit = Decimal(1).scaleb(-bill.statement.book.statement_scale)
    rows = csv.DictReader(money_laws.charges_csv(bill).decode().splitlines(keepends=True))
    figures = monthly.figures(bill, gather(usage(made.rows), made.month), apis=money_laws.APIS)
    total, own = Decimal(bill.total), Decimal(bill.statement.total)
    entries, _ = money_laws.bean_check(money_laws.journal_text(bill))
    owed = [p.units.number for e in entries if isinstance(e, Transaction) for p in e.postings
            if p.account.startswith("Liabilities:")]  # fmt: skip
    days = sum(day.billed_minor for day in figures.days) + figures.no_day_minor
    tables = (figures.by_api, figures.by_operation, figures.by_consumer, figures.by_status, figures.by_team)
    return {
        "rows": sum((Decimal(row["billed_cost"] or 0) for row in rows), Decimal()) - total,
        **{f"by {t.id}": sum(row.billed_minor for row in t.rows) * unit - total for t in tables if t is not None},
        "by day": days * unit - own,
        "journal": -sum(owed, Decimal()) - total,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=1000, help="how many to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=20261123, help="of the months (default: %(default)s)")
    parser.add_argument("--progress", action="store_true", help="say on standard error how far it is")
    options = parser.parse_args()
    counts, features, failures, largest = Counter(), Counter(), [], {}
    with tempfile.TemporaryDirectory(prefix="apicost-bench-") as folder:
        path = Path(folder) / "month.beancount"

        @seed(options.seed)
        @settings(max_examples=options.months, deadline=None, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(months())
        def run(made):
            counts["months"] += 1
            features.update(set(made.features))
            try:
                bill = money_laws.conserved(made)
            except AssertionError as failure:
                failures.append(f"{made.features}: {failure}"[:500])
                return
            counts["charges"] += len(bill.statement)
            counts["corrections"] += len(bill.corrections)
            counts["months with corrections"] += len(bill.corrections) > 0
            counts["months without charges"] += len(bill) == 0
            for name, error in differences(made, bill).items():
                largest[name] = max(largest.get(name, Decimal()), abs(error))
            path.write_text(money_laws.journal_text(bill))
            done = subprocess.run([CHECK, "--no-cache", path], capture_output=True, text=True)
            counts["accepted by bean-check"] += (done.returncode, done.stdout, done.stderr) == (0, "", "")
            if options.progress and counts["months"] % 50 == 0:
                print(f"{counts['months']} months", file=sys.stderr)

        began = time.process_time()
        run()
    print(
        json.dumps(
            {
                "bench": "conservation", "seed": options.seed, **counts, "laws failed": len(failures),
                "failures": failures[:5],
                "largest difference": {name: f"{error:f}" for name, error in sorted(largest.items())},
                "with": dict(sorted(features.items())), "cpus": os.cpu_count(),
                "cpu_s": f"{time.process_time() - began:.1f}",
                "cpu_s_bean_check": f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:.1f}",
            },
            indent=1,
        )
    )  # fmt: skip
    return 1 if failures or counts["accepted by bean-check"] != counts["months"] else 0


if __name__ == "__main__":
    sys.exit(main())
