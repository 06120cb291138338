"""Bills in every form they come in are the same bill; what is wrong in one is said with row and column."""

import decimal
import gzip
import random
from datetime import UTC as ZONE
from datetime import datetime
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apicost.catalog import bill_files, bill_rules, bills
from apicost.core.reconcile import lines as kinds
from apicost.problems import InputError
from tests.reconcile.made import OLDER, RULES, UTC, book, causes, compare, cur, focus, read, used, write_csv

DOLLARS = book(currency="USD")
AWS = """groups: {egress: [net, zone]}
rules:
  - {match: {line_item_resource_id: "i-other*"}, sku: net, unit: GB, other_hosts: true}
  - {use: aws-internet-egress, sku: net}
  - {use: aws-inter-zone, sku: zone}
  - {use: aws-http-api-requests, sku: call}
"""
REPORT = [
    cur(quantity="93.1322574615478515625"),  # 10**11 bytes in units of 2**30
    cur("DataTransfer-Regional-Bytes", "9.31322574615478515625", "0.01"),
    cur("ApiGatewayHttpRequest", "1000000", "0.000001", pricing_unit="Requests"),
    cur(quantity="2", line_item_resource_id="i-other1"),
    cur("Tax", cost="1.9", price="", line_item_line_item_type="Tax"),
    cur("BoxUsage:m5.large", "24", "0.1", line_item_product_code="AmazonEC2", pricing_unit="Hrs"),
    cur("EUC1", cost="-0.5", price="", line_item_line_item_type="EdpDiscount"),
    cur("EUC1", cost="-0.25", price="", line_item_line_item_type="Credit"),
    cur("EUC1", cost="-0.125", price="", line_item_line_item_type="Refund"),
]


def sums(bill):
    """A bill as what it says: kind, time, SKU -> lines, quantity and cost."""
    found = {}
    for line in bill.lines:
        total = found.setdefault((line.kind, line.when, line.sku, line.label, line.unit_price), [0, 0, 0])
        for place, value in enumerate((line.count, line.quantity, line.cost)):
            total[place] += value
    return bill.currency, bill.start_unix_s, bill.end_unix_s, found


def problems(folder, lines, rules=RULES, of=None):
    with pytest.raises(InputError) as caught:
        read(folder, lines, rules, of)
    return caught.value.problems


def test_a_cost_and_usage_report(tmp_path):
    """Types of lines, resources, units of 2**30 bytes: each line where it belongs."""
    _, _, _, found = sums(read(tmp_path, REPORT, AWS, DOLLARS))
    brief = {(kind, sku): tuple(values) for (kind, _, sku, _, _), values in found.items()}
    assert brief == {
        ("usage", "net"): (1, 10**11, Fraction("8.381903171539306640625")),
        ("usage", "zone"): (1, 10**10, Fraction("0.0931322574615478515625")),
        ("usage", "call"): (1, 10**6, 1), ("other hosts", "net"): (1, 2 * 10**9, Fraction("0.18")),
        ("tax", None): (1, 0, Fraction("1.9")), ("unmapped", None): (1, 0, Fraction("2.4")),
        ("discount", None): (1, 0, Fraction("-0.5")), ("credit", None): (1, 0, Fraction("-0.25")),
        ("refund", None): (1, 0, Fraction("-0.125")),
    }  # fmt: skip


def test_the_older_names_are_the_newer(tmp_path):
    """lineItem/UsageStartDate is line_item_usage_start_date: the same bill, by the same rules."""
    newer = sums(read(tmp_path, REPORT, AWS, DOLLARS))
    older = write_csv(tmp_path / "older.csv", REPORT, OLDER)
    assert "lineItem/UnblendedCost" in older.read_text()
    assert sums(bills.read([older], bill_rules.parse(AWS, DOLLARS), UTC)) == newer
    by_older_name = AWS.replace("line_item_resource_id", "lineItem/ResourceId")
    assert sums(bills.read([older], bill_rules.parse(by_older_name, DOLLARS), UTC)) == newer


def test_gzip_and_several_files_are_the_same_bill(tmp_path):
    """CSV, CSV.gz in one member or several, and a bill cut into files."""
    plain = write_csv(tmp_path / "a.csv", REPORT)
    rules = bill_rules.parse(AWS, DOLLARS)
    expected = sums(bills.read([plain], rules, UTC))
    raw = plain.read_bytes()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "b").write_bytes(gzip.compress(raw[:700]) + gzip.compress(raw[700:]))  # no name says that it is gzip
    parts = [write_csv(tmp_path / f"part{n}.csv", REPORT[n::2]) for n in range(2)]
    for files in ([tmp_path / "a.csv.gz"], [tmp_path / "b"], parts, parts[::-1]):
        assert sums(bills.read(files, rules, UTC)) == expected, files


@pytest.mark.parametrize("form", ["text", "dictionary", "decimal", "float", "timestamp", "large"])
def test_parquet_is_the_same_bill(tmp_path, form):
    """Whatever types its columns have: text, dictionaries, decimals, binary floats, timestamps."""
    table = pa.Table.from_pylist(REPORT)
    numbers = ["line_item_usage_amount", "line_item_unblended_rate", "line_item_unblended_cost"]
    for name in table.column_names:
        values = table.column(name).to_pylist()
        column = pa.array([value or None for value in values], pa.string())
        if form == "dictionary":
            column = column.dictionary_encode()
        elif form == "large":
            column = column.cast(pa.large_string())
        elif form == "decimal" and name in numbers:
            column = pa.array([decimal.Decimal(v) if v else None for v in values], pa.decimal128(38, 24))
        elif form == "float" and name in numbers:
            column = pa.array([float(v) if v else None for v in values], pa.float64())
        elif form == "timestamp" and name.endswith("_date"):
            zone = "UTC" if "billing" in name else None
            times = [datetime.fromisoformat(v).astimezone(ZONE).replace(tzinfo=None) for v in values]
            column = pa.array(times, pa.timestamp("ns" if zone else "ms", tz=zone))
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "bill.parquet", row_group_size=2)
    found = sums(bills.read([tmp_path / "bill.parquet"], bill_rules.parse(AWS, DOLLARS), UTC))
    expected = sums(read(tmp_path, REPORT, AWS, DOLLARS))
    if form == "float":  # 17 digits: the shortest decimal that is the same float
        assert found[:3] == expected[:3] and found[3].keys() == expected[3].keys()
        for key, (count, quantity, cost) in found[3].items():
            of = expected[3][key]
            assert (
                count == of[0] and abs(quantity - of[1]) < Fraction(1, 1000) and abs(cost - of[2]) < Fraction(1, 10**14)
            )
    else:
        assert found == expected


def test_floats_are_read_as_the_decimals_that_they_show(tmp_path):
    """0.1 + 0.2 as a float is 0.30000000000000004, and 1e-07 is 0.0000001: no other digits."""
    lines = [cur(quantity="1", cost="0.1"), cur(quantity="2", cost="0.1")]
    table = pa.Table.from_pylist(lines)
    place = table.column_names.index("line_item_unblended_cost")
    table = table.set_column(place, "line_item_unblended_cost", pa.array([0.1 + 0.2, 1e-07]))
    pq.write_table(table, tmp_path / "bill.parquet")
    bill = bills.read([tmp_path / "bill.parquet"], bill_rules.parse(AWS, DOLLARS), UTC)
    assert sum(line.cost for line in bill.lines) == Fraction("0.30000000000000004") + Fraction("0.0000001")


def test_whole_numbers_of_parquet_are_numbers(tmp_path):
    """An int64 column, up to its largest value, is a quantity."""
    table = pa.Table.from_pylist([cur("ApiGatewayHttpRequest", "1", "0", pricing_unit="Requests", cost="0")])
    place = table.column_names.index("line_item_usage_amount")
    table = table.set_column(place, "line_item_usage_amount", pa.array([2**63 - 1], pa.int64()))
    pq.write_table(table, tmp_path / "bill.parquet")
    bill = bills.read([tmp_path / "bill.parquet"], bill_rules.parse(AWS, DOLLARS), UTC)
    assert [line.quantity for line in bill.lines] == [2**63 - 1]


def test_scientific_notation_is_a_number(tmp_path):
    """Cost and Usage Reports write 4.0E-10."""
    bill = read(tmp_path, [cur(cost="0") | {"line_item_unblended_cost": "4.0E-10"}], AWS, DOLLARS)
    assert [line.cost for line in bill.lines] == [Fraction(4, 10**10)]


def test_pieces_make_no_difference(tmp_path, monkeypatch):
    """A bill read in pieces of some lines, from small blocks, is the same bill."""
    lines = REPORT * 40
    for number, line in enumerate(lines):
        lines[number] = line | {"identity_line_item_id": str(number)}
    expected = sums(read(tmp_path, lines, AWS, DOLLARS))
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "bill.parquet")
    monkeypatch.setattr(bill_files, "_BLOCK_BYTES", 1500)
    monkeypatch.setattr(bill_files, "PIECE_ROWS", 7)
    assert sums(read(tmp_path, lines, AWS, DOLLARS)) == expected
    assert sums(bills.read([tmp_path / "bill.parquet"], bill_rules.parse(AWS, DOLLARS), UTC)) == expected


def test_missing_columns_are_named(tmp_path):
    """All of them at once, also those that rules ask for; a file that is no bill at all says what it has."""
    line = {k: v for k, v in focus(quantity="1").items() if k not in ("BilledCost", "BillingCurrency")}
    rules = "bill: {identity: [Row]}\nrules: [{match: {SkuId: OUT}, sku: net, cost_column: x_Mine}]\n"
    facts = [str(problem) for problem in problems(tmp_path, [line], rules)]
    assert [name for name in ("BilledCost", "BillingCurrency", "Row", "x_Mine") if any(name in f for f in facts)] == [
        "BilledCost", "BillingCurrency", "Row", "x_Mine"
    ]  # fmt: skip
    assert "the file has a, b" in str(problems(tmp_path, [{"a": "1", "b": "2"}])[0])


@pytest.mark.parametrize(
    ("column", "value"),
    [("BilledCost", "1,5"), ("BilledCost", ""), ("PricingQuantity", "many"), ("ContractedUnitPrice", "0,09"),
     ("ChargePeriodStart", "yesterday"), ("BillingPeriodEnd", "2026-13-01"), ("BilledCost", "NaN"),
     ("BillingCurrency", ""), ("BilledCost", "1" * 30), ("BilledCost", "0." + "1" * 40), ("BilledCost", "1_0"),
     ("ContractedUnitPrice", "1/3")],
)  # fmt: skip
def test_a_value_that_can_not_be_read_is_named_with_row_and_column(tmp_path, column, value):
    """Row 3 of the file, counted below the header."""
    lines = [focus(quantity="1"), focus(quantity="1"), focus(quantity="1") | {column: value}]
    (problem,) = problems(tmp_path, lines)
    assert f"row 3, column {column}" in problem.fact and problem.place.endswith("bill.csv")


def test_a_float_that_is_no_number_is_named(tmp_path):
    """NaN and infinity in Parquet are no amounts."""
    table = pa.Table.from_pylist([focus(quantity="1"), focus(quantity="1")])
    place = table.column_names.index("BilledCost")
    table = table.set_column(place, "BilledCost", pa.array([1.0, float("nan")]))
    pq.write_table(table, tmp_path / "bill.parquet")
    with pytest.raises(InputError, match="row 2, column BilledCost: 'nan'"):
        bills.read([tmp_path / "bill.parquet"], bill_rules.parse(RULES, book()), UTC)


def test_two_currencies_are_no_bill(tmp_path):
    """Amounts of two currencies have no sum: both rows are named."""
    (problem,) = problems(tmp_path, [focus(), focus(), focus(BillingCurrency="USD")])
    assert "row 1" in problem.fact and "row 3" in problem.fact and "'USD'" in problem.fact


def test_a_line_that_stands_twice_is_named_with_both_rows(tmp_path):
    """By the line item's identity; the same id in another hour is another line. Two names of one file count twice."""
    again = REPORT[0] | {"line_item_unblended_cost": "5.0"}
    (problem,) = problems(tmp_path, [*REPORT, again], AWS, DOLLARS)
    assert "row 10" in problem.fact and "row 1 of" in problem.fact and "line_item_id" in problem.fact
    other = again | {"identity_time_interval": "2026-11-06T00:00:00Z/2026-11-06T01:00:00Z"}
    assert read(tmp_path, [*REPORT, other], AWS, DOLLARS).count == 10
    with pytest.raises(InputError, match="stands at"):
        bills.read([tmp_path / "bill.csv"] * 2, bill_rules.parse(AWS, DOLLARS), UTC)


def test_lines_without_an_identity_are_each_a_line(tmp_path):
    """FOCUS has no identity of its own: equal lines are two, unless rules name columns that tell them apart."""
    assert read(tmp_path, [focus(quantity="1")] * 2).count == 2
    named = "bill: {identity: [ResourceId, ChargePeriodStart]}\n" + RULES
    assert "stands at" in problems(tmp_path, [focus(quantity="1")] * 2, named)[0].fact


def test_a_unit_that_is_not_known_is_a_problem_of_the_rule(tmp_path):
    """Hours are no bytes: the first row and the rule's line are named. A unit by rule mends it; so does none."""
    line = focus(quantity="3", PricingUnit="Hrs")
    (problem,) = problems(tmp_path, [focus(quantity="1"), line])
    assert "row 2" in problem.fact and "'Hrs'" in problem.fact and "rules.yaml:4" in problem.fix
    mended = RULES.replace('SkuId: "OUT"}, sku: net', 'SkuId: "OUT"}, sku: net, unit: {from: Hrs, to: GiB}')
    found = read(tmp_path, [line, focus(quantity="1")], mended)
    assert sorted(line.quantity for line in found.lines) == [10**9, 3 << 30]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b\x08\x00broken", b"PAR1 and nothing", b"a,b\n1\n", b"\xff\xfe\x00a", b'BilledCost\n"never closed'],
)
def test_a_broken_file_is_said(tmp_path, content):
    """Empty, cut off, not what it seems: exit 2 with a fix, never a crash."""
    (tmp_path / "bill").write_bytes(content)
    with pytest.raises(InputError) as caught:
        bills.read([tmp_path / "bill"], bill_rules.parse(RULES, book()), UTC)
    assert all(problem.fix for problem in caught.value.problems)


def test_a_row_of_another_length_is_said(tmp_path):
    """A file that was cut off within a row is no bill, plain or gzipped."""
    raw = write_csv(tmp_path / "bill.csv", [focus(quantity=str(n)) for n in range(50)]).read_bytes()
    (tmp_path / "bill.csv").write_bytes(raw[: -len(raw) // 3].rsplit(b",", 5)[0])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(raw)[:-40])
    for name in ("bill.csv", "cut.gz"):
        with pytest.raises(InputError, match="can't be read"):
            bills.read([tmp_path / name], bill_rules.parse(RULES, book()), UTC)


def test_files_of_two_kinds_are_said(tmp_path):
    """FOCUS and a Cost and Usage Report are not one bill."""
    files = [write_csv(tmp_path / "a.csv", [focus()]), write_csv(tmp_path / "b.csv", REPORT)]
    with pytest.raises(InputError, match="several kinds"):
        bills.read(files, bill_rules.parse(RULES, book()), UTC)


def test_columns_that_stand_twice_are_said(tmp_path):
    """Of two columns with one name nobody knows which is meant; the older and newer names are one."""
    (tmp_path / "bill.csv").write_text("lineItem/UnblendedCost,line_item_unblended_cost\n1,2\n")
    with pytest.raises(InputError, match="stand twice"):
        bills.read([tmp_path / "bill.csv"], bill_rules.parse(RULES, book()), UTC)


HOSTILE = ['=cmd|"/c calc"!A1', "a\nb,c", "\x1b[31mred", "x\x00y", "'); drop", "ünï☃", "‮evil", "\x1f\x1f", "+1", '"']


def test_hostile_text_stays_text(tmp_path):
    """Formulas, line ends, quotes and terminal codes in names: lines keep them, and steer no output."""
    from apicost.report import bridge as output

    lines = [focus(text, "1", "1", ServiceName=text) for text in HOSTILE]
    found = compare(tmp_path, used(10**9), [focus(quantity="1"), *lines])
    assert causes(found) == {"unmapped": len(HOSTILE)}
    judged = output.Judged(
        bridge=found, what="difference", tolerance=Fraction(0), price_book="t 1", bill_files=("\x1b[2Jbill",),
        bill_currency="EUR", bill_lines=11,
    )  # fmt: skip
    text = output.text(judged)
    assert all(c.isprintable() or c == "\n" for c in text) and "‮" not in text
    cells = [cell for line in output.as_csv(judged).splitlines() for cell in line.split(",")]
    assert not [cell for cell in cells if cell.lstrip('"').startswith(("=", "@", "\t"))]


def test_the_order_of_lines_changes_nothing(tmp_path):
    """Any order, any cut into files: the same sums."""
    lines = REPORT + [focus_like | {"identity_line_item_id": f"x{n}"} for n, focus_like in enumerate(REPORT)]
    expected = sums(read(tmp_path, lines, AWS, DOLLARS))
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        assert sums(read(tmp_path, lines, AWS, DOLLARS)) == expected


def test_the_first_rule_that_fits_decides(tmp_path):
    """A line that two rules fit is the first one's, whatever the second says."""
    ignored = "rules:\n  - {match: {SkuId: [OUT, X]}, ignore: first}\n  - {match: {SkuId: OUT}, sku: net}\n"
    mapped = "rules:\n  - {match: {SkuId: OUT}, sku: net}\n  - {match: {SkuId: [OUT, X]}, ignore: first}\n"
    assert {line.kind for line in read(tmp_path, [focus(quantity="1")], ignored).lines} == {kinds.IGNORED}
    assert {line.kind for line in read(tmp_path, [focus(quantity="1")], mapped).lines} == {kinds.USAGE}


def test_a_rule_that_can_fit_no_line_is_remarked(tmp_path):
    """The bill has no such column: said, as a rule that never fits looks like one that is not needed."""
    rules = RULES + "  - {match: {Tenant: x}, ignore: nothing}\n"
    (remark,) = read(tmp_path, [focus(quantity="1")], rules).remarks
    assert "Tenant" in remark and "rules.yaml:8" in remark


def test_other_columns_for_cost_and_quantity(tmp_path):
    """By rule, or for the whole bill."""
    line = focus(quantity="10", EffectiveCost="0.7", Bytes="7000000000")
    rules = RULES.replace('"OUT"}, sku: net', '"OUT"}, sku: net, cost_column: EffectiveCost, quantity_column: Bytes, '
                          "unit: Byte")  # fmt: skip
    (found,) = read(tmp_path, [line], rules).lines
    assert (found.cost, found.quantity) == (Fraction("0.7"), 7 * 10**9)
    (found,) = read(tmp_path, [line], "bill: {cost_column: EffectiveCost}\n" + RULES).lines
    assert (found.cost, found.quantity) == (Fraction("0.7"), 10**10)


def test_times_in_other_forms(tmp_path):
    """With an offset, without one, with a space: the same instant; offsets are not ignored."""
    for text, when in (
        ("2026-11-30 23:59:59", kinds.IN), ("2026-12-01T00:30:00+01:00", kinds.IN), ("2026-11-01", kinds.IN),
        ("2026-11-01T00:30:00+01:00", kinds.LATE), ("2026-12-01T00:00:00Z", kinds.LATE),
    ):  # fmt: skip
        (line,) = read(tmp_path, [focus(quantity="1", ChargePeriodStart=text)]).lines
        assert line.when == when, text


def test_a_bill_without_billing_periods_is_of_its_own_calendar(tmp_path):
    """The month in UTC, or in the zone that the rules name."""
    line = {k: v for k, v in focus(quantity="1").items() if not k.startswith("BillingPeriod")}
    assert read(tmp_path, [line]).start_unix_s == UTC.start_unix_s
    zoned = "bill: {time_zone: America/New_York}\n" + RULES
    assert read(tmp_path, [line], zoned).start_unix_s == UTC.start_unix_s + 4 * 3600  # clocks change on the first


@pytest.mark.parametrize("coding", ["utf-16", "latin-1"])
def test_text_of_another_coding_is_to_be_saved_as_utf_8(tmp_path, coding):
    """A spreadsheet's "Unicode text": the fix says what to do, not that a CSV is wanted."""
    path = tmp_path / "bill.csv"
    path.write_bytes("BilledCost,Caf\u00e9\n1,2\n".encode(coding))
    with pytest.raises(InputError) as caught:
        bill_files.inspect(path)
    assert caught.value.problems[0].fix == "save it as CSV in UTF-8"
