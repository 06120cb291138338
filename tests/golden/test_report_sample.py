"""The sample report in reports/sample is what the code writes today, byte for byte.

To renew it after a wanted change: .venv/bin/python tests/golden/test_report_sample.py
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

ROOT = Path(__file__).parent.parent.parent
SAMPLE = ROOT / "reports/sample"
FILES = ("report.html", "charges.csv", "usage.csv", "days.csv", "report.json", "running.html")


def write(out: Path, *, workbook: bool = False) -> None:
    """The sample: an ordinary month of three APIs, in 12-hour buckets, priced by specs/prices.yaml, beside a closed
    month of which some usage came late, when calls were dearer and the third API was not there yet."""
    from apicost.catalog import prices
    from apicost.commands import report
    from apicost.core.rating import period, rate
    from apicost.core.rating.bill import Bill
    from apicost.core.rating.corrections import corrections
    from apicost.core.rating.usage_rows import gather
    from apicost.report import export
    from apicost.report.month import before, monthly, render
    from apicost.report.month.forecast import DayQuantity
    from apicost.report.tables import charges, summary, xlsx
    from tests import usage_months

    book = prices.load(ROOT / "specs/prices.yaml")
    month, earlier = (period.month(name, book.time_zone) for name in ("2026-10", "2026-09"))
    usage = usage_months.month(month, seed=7, scale=300, step_s=43_200)
    statement = rate.rate(usage, book, month)
    then = prices.parse((ROOT / "specs/prices.yaml").read_text().replace('price: "0.0011"', 'price: "0.0012"'))
    known_then = usage_months.month(earlier, seed=6, scale=280, step_s=43_200)
    known_then = known_then.filter(pc.fill_null(pc.not_equal(known_then["api"].cast("string"), "chat"), True))  # new
    closed = rate.rate(known_then.slice(0, known_then.num_rows - 30), then, earlier)
    whole = rate.rate(pa.concat_tables([known_then, known_then.slice(0, 40)]), then, earlier)
    bill = Bill(statement=statement, corrections=corrections([closed.charges], whole, billing_month=month.name))
    counts = {
        "batches_received": 5_811, "lines_received": 2_711_540, "lines_lost": 12, "lines_duplicate": 96,
        "lines_refused": 0, "ring_records": 5_402_118, "ring_lost": 0,
    }  # fmt: skip
    apis = {
        "shop": export.ApiInfo(title="Shop", owner="Ana Example", team="commerce", tags={"tier": "gold"}),
        "billing": export.ApiInfo(title="Billing", owner="Bo Example", team="finance"),
        "chat": export.ApiInfo(title="Assistant", owner="Cy Example", team="labs"),
    }
    former = before.before_of(Bill(statement=closed, closed=True), book, apis)
    figures = monthly.figures(bill, gather(usage, month), apis=apis, completeness=counts, before=former)
    report.write(bill, figures, out, ["html", "csv", "json"])
    if workbook:
        xlsx.write(charges.charges(bill, apis), out / "charges.xlsx", lambda _: None, summary.of_bill(bill))
    # The month after it, as it stands on its 18th day.
    running = period.month("2026-11", book.time_zone)
    usage = usage_months.month(running, seed=8, scale=320, step_s=43_200)
    usage = usage.filter(pc.less(usage["minute_unix_s"], running.starts[17] + 1))
    figures = monthly.figures(
        Bill(statement=rate.rate(usage, book, running)), gather(usage, running), apis=apis, completeness=counts,
        before=before.before_of(bill, book, apis), complete_days=17,
        past=[DayQuantity(day=day.day, calls=day.calls, wire_bytes=day.wire_bytes) for day in figures.days],
    )  # fmt: skip
    (out / "running.html").write_text(render.html(figures), "utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample")
    write(out)
    return out


@pytest.mark.parametrize("name", FILES)
def test_the_sample_report_is_up_to_date(made, name):
    """Any change of a figure, a column, a word or a line of style shows here as a difference to look at."""
    assert (made / name).read_bytes() == (SAMPLE / name).read_bytes(), (
        f"reports/sample/{name} differs from what is written now; look at the difference, then renew it with "
        "`.venv/bin/python tests/golden/test_report_sample.py`"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    write(SAMPLE)
