"""The FOCUS linter: silent on what the export writes, and each planted defect is named by rule, row and column."""

from __future__ import annotations

import csv
import json
import re
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.commands import focus as command
from apicost.problems import InputError
from apicost.report import csvfile
from apicost.report.focus import columns, lint_files, piece, rows
from apicost.report.focus.lint import MOST, lint
from apicost.report.focus.lint_across import hashes
from apicost.report.focus.lint_cells import is_unit
from apicost.report.focus.lint_rules import RULES
from tests.report import focus_months


@pytest.fixture(scope="module")
def good():
    """Rows of a bill by version."""
    bill = focus_months.bill()
    made = {}
    for version in columns.VERSIONS:
        made[version] = [row for p in rows.pieces(bill, focus_months.APIS, version) for row in p.to_pylist()]
    return bill, made


def table(found):
    names = list(found[0])
    return pa.table([pa.array([row.get(name) for row in found], pa.string()) for name in names], names=names)


def usage(row):
    """An ordinary row: a tier's."""
    return row["SkuId"] == "call" and row["ChargeClass"] is None and row["SubAccountId"]


def dollars(row):
    return usage_of("egress")(row) and row["x_Tier"] == "tier 2"


def usage_of(sku):
    return lambda row: row["SkuId"] == sku and row["ChargeClass"] is None


def share(row):
    return row["SkuId"] == "nodes" and row["ChargeClass"] is None and row["x_State"] == "priced"


def correction(row):
    return row["SkuId"] == "call" and row["ChargeClass"] == "Correction"


def to(**values):
    """A defect that writes values."""
    return lambda row: row.update(values)


def change(name, make):
    """A defect that makes a value of the one that stands there."""
    return lambda row: row.update({name: make(row[name])})


def zeros(text, places):
    return f"{Fraction(text).numerator / Fraction(text).denominator:.{places}f}"


def as_tax(row):
    row |= {"ChargeCategory": "Tax", "ConsumedQuantity": None, "ConsumedUnit": None}


def as_purchase(**values):
    return to(ChargeCategory="Purchase", ConsumedQuantity=None, ConsumedUnit=None, **values)


def both_ways(row):
    """Twice the quantity, at the same cost."""
    row["PricingQuantity"] = str(Fraction(row["PricingQuantity"]) * 2 + Fraction(1, 2)).split("/")[0] + ".0"


# (name, rule, version, column, which row, defect)
DEFECTS = [
    # What the validators of FOCUS pass:
    ("list cost in cents", "list-product", "1.2", "ListCost", usage, change("ListCost", lambda t: zeros(t, 2))),
    ("list cost of a hair more", "list-product", "1.2", "ListCost", usage, change("ListCost", lambda t: t + "1")),
    ("contracted cost in cents", "contracted-product", "1.2", "ContractedCost", dollars,
     change("ContractedCost", lambda t: zeros(t, 2))),
    ("time with an offset", "time-format", "1.2", "ChargePeriodStart", usage,
     to(ChargePeriodStart="2026-10-01T00:00:00+02:00")),
    ("nested tags", "json-nested", "1.2", "Tags", usage, to(Tags='{"team":{"name":"shop"}}')),
    ("a list in tags", "json-nested", "1.2", "Tags", usage, to(Tags='{"team":["shop"]}')),
    # Numbers:
    ("exponent", "number-exponent", "1.2", "ListCost", usage, to(ListCost="3.5e-7")),
    ("exponent in capitals", "number-exponent", "1.2", "x_FxRate", usage, to(x_FxRate="1E0")),
    ("plus sign", "number-sign", "1.2", "BilledCost", usage, change("BilledCost", lambda t: "+" + t)),
    ("thousands separator", "number-separator", "1.2", "PricingQuantity", usage, to(PricingQuantity="1,234.5")),
    ("decimal comma", "number-separator", "1.2", "BilledCost", usage, to(BilledCost="0,02")),
    ("currency sign", "number-format", "1.2", "BilledCost", usage, to(BilledCost="EUR 0.02")),
    ("no digit before the point", "number-format", "1.2", "BilledCost", usage, to(BilledCost=".02")),
    ("not a number", "number-format", "1.2", "EffectiveCost", usage, to(EffectiveCost="NaN")),
    ("zeros in front", "number-zeros", "1.2", "PricingQuantity", usage, change("PricingQuantity", lambda t: "0" + t)),
    ("negative price", "price-negative", "1.2", "ListUnitPrice", usage, to(ListUnitPrice="-0.000015")),
    # Nulls and fixed values:
    ("no billed cost", "null", "1.2", "BilledCost", usage, to(BilledCost=None)),
    ("no provider", "null", "1.4", "ServiceProviderName", usage, to(ServiceProviderName=None)),
    ("no pricing currency", "null", "1.2", "PricingCurrency", usage, to(PricingCurrency=None)),
    ("spaces as a name", "blank", "1.2", "InvoiceIssuerName", usage, to(InvoiceIssuerName="  ")),
    ("category of its own", "choice", "1.2", "ChargeCategory", usage, to(ChargeCategory="usage")),
    ("class of its own", "choice", "1.2", "ChargeClass", usage, to(ChargeClass="Corrected")),
    ("service category of its own", "choice", "1.2", "ServiceCategory", usage, to(ServiceCategory="API")),
    ("currency of its own", "currency-code", "1.2", "BillingCurrency", usage, to(BillingCurrency="EURO")),
    ("currency without a code", "currency-code", "1.2", "PricingCurrency", dollars, to(PricingCurrency="$")),
    ("unit in words", "unit-format", "1.2", "PricingUnit", usage, to(PricingUnit="per 1000 requests")),
    ("unit of one", "unit-format", "1.2", "ConsumedUnit", usage, to(ConsumedUnit="Request")),
    ("formula", "cell-formula", "1.2", "x_Consumer", usage, to(x_Consumer="=cmd|' /C calc'!A0")),
    # JSON:
    ("tags as text", "json-invalid", "1.2", "Tags", usage, to(Tags="team=shop")),
    ("tags as a list", "json-invalid", "1.4", "Tags", usage, to(Tags='["team"]')),
    ("tag twice", "json-key-twice", "1.2", "Tags", usage, to(Tags='{"team":"a","team":"b"}')),
    ("detail without x_", "details-key", "1.2", "SkuPriceDetails", usage, to(SkuPriceDetails='{"Tier":"1"}')),
    # Periods:
    ("day that is none", "time-real", "1.2", "ChargePeriodEnd", usage, to(ChargePeriodEnd="2026-10-32T00:00:00Z")),
    ("time without seconds", "time-format", "1.2", "BillingPeriodEnd", usage,
     to(BillingPeriodEnd="2026-10-31T23:00Z")),
    ("inclusive end", "period-end", "1.2", "BillingPeriodEnd", usage, to(BillingPeriodEnd="2026-10-31T22:59:59Z")),
    ("period backwards", "period-order", "1.2", "ChargePeriodEnd", usage, to(ChargePeriodEnd="2026-09-30T22:00:00Z")),
    ("charge of another month", "charge-outside", "1.2", "ChargePeriodStart", usage,
     to(ChargePeriodStart="2026-09-29T22:00:00Z")),
    ("correction of the open month", "correction-period", "1.2", "ChargePeriodEnd", correction,
     to(ChargePeriodStart="2026-09-30T22:00:00Z", ChargePeriodEnd="2026-10-31T23:00:00Z")),
    ("correction without its class", "charge-outside", "1.2", "ChargePeriodStart", correction, to(ChargeClass=None)),
    # Costs:
    ("quantity of another row", "list-product", "1.2", "ListCost", usage, both_ways),
    ("price not converted", "pricing-currency-price", "1.2", "PricingCurrencyListUnitPrice", dollars,
     lambda row: row.update(PricingCurrencyListUnitPrice=row["ListUnitPrice"])),
    ("price of another currency", "pricing-currency-price", "1.2", "PricingCurrencyContractedUnitPrice", usage,
     to(PricingCurrencyContractedUnitPrice="0.00002")),
    ("another effective cost", "pricing-currency-cost", "1.2", "PricingCurrencyEffectiveCost", usage,
     to(PricingCurrencyEffectiveCost="7.0")),
    ("billed a cent more", "billed-far", "1.2", "BilledCost", usage,
     change("BilledCost", lambda t: zeros(str(Fraction(t) + Fraction(1, 50)), 2))),
    ("adjustment without effect", "effective-other", "1.2", "EffectiveCost", share, to(EffectiveCost="0.0")),
    ("purchase with effect", "purchase-effective", "1.2", "EffectiveCost", usage,
     as_purchase(EffectiveCost="0.01", PricingCurrencyEffectiveCost="0.01")),
    ("usage below zero", "usage-negative", "1.2", "BilledCost", correction,
     to(ChargeClass=None, BilledCost="-0.01", ChargePeriodStart="2026-09-30T22:00:00Z",
        ChargePeriodEnd="2026-10-31T23:00:00Z")),
    # What belongs together:
    ("usage without a SKU", "usage-incomplete", "1.2", "SkuId", usage, to(SkuId=None)),
    ("usage without a price", "usage-incomplete", "1.2", "ListUnitPrice", usage, to(ListUnitPrice=None)),
    ("usage without a quantity", "usage-incomplete", "1.4", "PricingQuantity", usage,
     to(PricingQuantity=None, PricingUnit=None)),
    ("usage without a pricing category", "usage-incomplete", "1.2", "PricingCategory", usage,
     to(PricingCategory=None)),
    ("tax with a SKU", "tax-priced", "1.2", "SkuId", usage, as_tax),
    ("usage that consumes nothing", "consumed-missing", "1.2", "ConsumedQuantity", usage,
     to(ConsumedQuantity=None, ConsumedUnit=None)),
    ("a purchase that consumes", "consumed-elsewhere", "1.2", "ConsumedQuantity", share,
     to(ConsumedQuantity="1.0", ConsumedUnit="Requests")),
    ("quantity without a unit", "unit-alone", "1.2", "PricingUnit", usage, to(PricingUnit=None)),
    ("unit without a quantity", "unit-alone", "1.2", "ConsumedUnit", share, to(ConsumedUnit="Requests")),
    ("usage-based purchase", "frequency-purchase", "1.2", "ChargeFrequency", usage,
     as_purchase(ChargeFrequency="Usage-Based")),
    ("details of no price", "details-alone", "1.2", "SkuPriceDetails", correction, to(SkuPriceId=None)),
    ("name of no sub account", "name-alone", "1.2", "SubAccountName", usage, to(SubAccountId=None)),
    ("type of no resource", "name-alone", "1.2", "ResourceType", usage, to(ResourceId=None, ResourceName=None)),
    ("sub account without a name", "name-missing", "1.2", "SubAccountName", usage, to(SubAccountName=None)),
    ("resource without a type", "name-missing", "1.2", "ResourceType", usage, to(ResourceType=None)),
    ("region without a name", "name-missing", "1.2", "RegionName", usage, to(RegionId="eu-1")),
    ("name that repeats the id", "name-repeats", "1.2", "ResourceName", usage,
     lambda row: row.update(ResourceName=row["ResourceId"])),
    ("used commitment of nobody", "commitment-status", "1.2", "CommitmentDiscountStatus", usage,
     to(CommitmentDiscountStatus="Used")),
    ("subcategory of another", "subcategory", "1.2", "ServiceSubcategory", usage,
     to(ServiceSubcategory="Virtual Machines")),
    ("category of another", "subcategory", "1.2", "ServiceSubcategory", usage, to(ServiceCategory="Compute")),
    ("unpriced at zero", "unpriced", "1.2", "x_State", usage, to(x_State="unpriced")),
    # Shares:
    ("share of no method", "allocated-alone", "1.4", "AllocatedResourceId", share, to(AllocatedMethodId=None)),
    ("share without a name", "name-missing", "1.4", "AllocatedResourceName", share, to(AllocatedResourceName=None)),
    ("ratio of text", "allocated-details", "1.4", "AllocatedMethodDetails", share,
     to(AllocatedMethodDetails='{"Elements":[{"AllocatedRatio":"0.1"}]}')),
    ("ratio above one", "allocated-details", "1.4", "AllocatedMethodDetails", share,
     to(AllocatedMethodDetails='{"Elements":[{"AllocatedRatio":1.1}]}')),
    ("details without elements", "allocated-details", "1.4", "AllocatedMethodDetails", share,
     to(AllocatedMethodDetails="{}")),
    ("quantity of no unit", "allocated-details", "1.4", "AllocatedMethodDetails", share,
     to(AllocatedMethodDetails='{"Elements":[{"AllocatedRatio":0.1,"UsageQuantity":1}]}')),
    ("another description", "allocated-origin", "1.4", "ChargeDescription", share, to(ChargeDescription="mine")),
    ("another sub account", "allocated-origin", "1.4", "SubAccountId", share,
     to(SubAccountId="shop", SubAccountName="Shop")),
    ("tags twice", "allocated-tags", "1.4", "AllocatedTags", share, to(Tags='{"a":"1"}', AllocatedTags='{"a":"2"}')),
    # What the eye does not see:
    ("name of no-break spaces", "blank", "1.2", "ServiceName", usage, to(ServiceName="\u00a0 \u200b")),
    ("control character", "text-control", "1.2", "ResourceName", usage, to(ResourceName="GET\x07 /a")),
    ("null that is a word", "placeholder", "1.2", "InvoiceId", usage, to(InvoiceId="NULL")),
    ("not applicable", "placeholder", "1.2", "RegionName", usage, to(RegionId="r-1", RegionName="n/a")),
    # Across rows:
    ("account in two currencies", "currency-mixed", "1.2", "BillingCurrency", usage, to(BillingCurrency="USD")),
    ("price of two SKUs", "price-parent", "1.2", "SkuId", usage, to(SkuId="other")),
    ("SKU of two meters", "meter-changes", "1.2", "SkuMeter", usage, to(SkuMeter="other")),
    ("price that changes", "price-changes", "1.2", "PricingCurrencyListUnitPrice", usage,
     to(PricingCurrencyListUnitPrice="0.000016")),
]  # fmt: skip
# Defects of a file, or a column of it: (name, rule, version, column, what is done to all rows)
FILES = [
    ("ratio lost", "allocated-ratio", "1.4", None,
     lambda found: next(r for r in found if share(r)).update(
         AllocatedMethodDetails='{"Elements":[{"AllocatedRatio":0.000000001}]}')),
    ("row twice", "charge-twice", "1.2", None, lambda found: found.insert(40, dict(found[5]))),
    ("row lost", "total", "1.2", "BilledCost", lambda found: found.remove(next(r for r in found if share(r)))),
    ("column lost", "column-missing", "1.2", "BillingAccountName",
     lambda found: [row.pop("BillingAccountName") for row in found]),
    ("column of another version", "column-unknown", "1.2", "HostProviderName",
     lambda found: [row.update(HostProviderName="acme") for row in found]),
    ("custom column without a case", "column-name", "1.2", "x_charge_id",
     lambda found: [row.update(x_charge_id="1") for row in found]),
    ("custom column amid others", "column-order", "1.2", "Tags",
     lambda found: [row.update(Tags=row.pop("Tags")) for row in found]),
    ("whole numbers without a point", "number-point", "1.2", "x_FxRate",
     lambda found: [row.update(x_FxRate="1") for row in found]),
    ("account that is a number", "text-guessed", "1.2", "BillingAccountId",
     lambda found: [row.update(BillingAccountId="4711") for row in found]),
    ("invoice that is a day", "text-guessed", "1.2", "InvoiceId",
     lambda found: [row.update(InvoiceId="2026-10-1") for row in found]),
]  # fmt: skip
# Rules of files alone: their tests are below.
ELSEWHERE = {"row-width", "column-twice", "number-binary"}


@pytest.mark.parametrize("version", columns.VERSIONS)
def test_what_the_export_writes_is_right(good, version):
    """No finding in a month with every kind of charge, in pieces of any size."""
    bill, made = good
    assert lint([table(made[version])], version, bill.total) == ()
    found = made[version]
    assert lint([table(found[i : i + 37]) for i in range(0, len(found), 37)], version, bill.total) == ()
    assert lint(rows.pieces(bill, focus_months.APIS, version), version, bill.total) == ()


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d[0])
def test_a_planted_defect_is_named(good, defect):
    """Rule, row, column, value and charge; whichever piece it is in."""
    _, rule, version, column, which, spoil = defect
    found = [dict(row) for row in good[1][version]]
    # Not the first that fits: that one is what others are compared with.
    at = [number for number, row in enumerate(found) if which(row)][3]
    spoil(found[at])
    for pieces in ([table(found)], [table(found[:at]), table(found[at:])]):
        named = {(f.rule.id, f.row, f.column): f for f in lint(pieces, version, is_csv=True)}
        finding = named.get((rule, at + 1, column))
        assert finding is not None, f"found {sorted(named, key=str)}, not {rule} in row {at + 1}"
        assert finding.value == found[at][column]
        assert finding.charge == found[at]["x_ChargeId"]
        text = str(finding)
        assert rule in text and f"row {at + 1:,}" in text and finding.rule.fix in text


@pytest.mark.parametrize("defect", FILES, ids=lambda d: d[0])
def test_a_defect_of_the_file_is_named(good, defect):
    """What no single row shows: by rule and column."""
    _, rule, version, column, spoil = defect
    bill, made = good
    found = [dict(row) for row in made[version]]
    spoil(found)
    assert (rule, column) in {(f.rule.id, f.column) for f in lint([table(found)], version, bill.total)}


def test_every_rule_has_its_defect():
    """No rule that has never fired."""
    fired = {defect[1] for defect in (*DEFECTS, *FILES)} | ELSEWHERE
    assert fired == set(RULES)
    assert len(DEFECTS) + len(FILES) >= 26


def test_the_first_are_told_and_all_are_counted(good):
    """A fault in every row is not told for every row."""
    found = [row | {"BillingCurrency": "EURO"} for row in good[1]["1.2"]]
    told = [f for f in lint([table(found[:100]), table(found[100:])], "1.2") if f.rule.id == "currency-code"]
    assert [f.row for f in told] == list(range(1, MOST + 1))
    assert [f.count for f in told] == [len(found)] + [0] * (MOST - 1)
    assert f"the same in {len(found) - 1:,} more rows" in str(told[0])


def written(path, names, cells):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([names, *cells])
    return path


@pytest.mark.parametrize("version", columns.VERSIONS)
def test_the_files_that_are_written_are_right(good, version, tmp_path, capsys):
    """CSV as the export writes it, Parquet of text and Parquet with types: no findings, and the command says so."""
    bill, made = good
    names = rows.columns(version)
    file = tmp_path / "focus.csv"
    csvfile.write(file, names, rows.pieces(bill, focus_months.APIS, version))
    assert lint_files.version_of(file) == version
    whole = table(made[version])
    pq.write_table(whole, tmp_path / "text.parquet")
    typed = whole.set_column(0, names[0], whole.column(0)) if version == "1.4" else whole.set_column(
        0, "BilledCost", whole.column("BilledCost").cast(pa.decimal128(20, 2)))  # fmt: skip
    place = names.index("ChargePeriodStart")
    moments = pa.array([t.removesuffix("Z") for t in whole.column(place).to_pylist()]).cast(pa.timestamp("s"))
    typed = typed.set_column(place, "ChargePeriodStart", moments.cast(pa.timestamp("us", "UTC")))
    pq.write_table(typed, tmp_path / "typed.parquet")
    for path in (file, tmp_path / "text.parquet", tmp_path / "typed.parquet"):
        assert lint_files.lint_file(path, version, bill.total) == ((), len(made[version]))
        assert command.main(["lint", str(path), "--total", bill.total]) == 0
    assert f"FOCUS {version}: 0 errors, 0 warnings" in capsys.readouterr().err


def test_the_command_tells_findings(good, tmp_path, capsys):
    """As text with effect and fix, as JSON with every field; exit 1 for errors, 0 for warnings alone."""
    found = [dict(row) for row in good[1]["1.2"]]
    found[8]["ListCost"] = "3.5e-7"
    file = written(tmp_path / "f.csv", list(found[0]), [list(row.values()) for row in found])
    assert command.main(["lint", str(file)]) == 1
    said = capsys.readouterr()
    assert "row 9, ListCost '3.5e-7'" in said.out and "fix: write it in full" in said.out
    assert command.main(["lint", str(file), "--json", "--total", "1"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["focus_version"], told["errors"]) == (len(found), "1.2", 2)
    assert {(f["rule"], f["row"], f["column"], f["value"], f["level"]) for f in told["findings"]} == {
        ("number-exponent", 9, "ListCost", "3.5e-7", "error"), ("total", None, "BilledCost", None, "error"),
    }  # fmt: skip
    warned = [row | {"BillingAccountId": "4711"} for row in good[1]["1.2"]]
    file = written(tmp_path / "w.csv", list(found[0]), [list(row.values()) for row in warned])
    assert command.main(["lint", str(file)]) == 0
    assert "warning: BillingAccountId" in capsys.readouterr().out


def test_rows_of_another_width_are_named(good, tmp_path):
    """A row with a cell too many is told with its number, and the rows after it are still looked at."""
    found = [dict(row) for row in good[1]["1.2"]]
    cells = [list(row.values()) for row in found]
    cells[4].append("more")
    findings, count = lint_files.lint_file(written(tmp_path / "f.csv", list(found[0]), cells), "1.2")
    assert ("row-width", 5) in {(f.rule.id, f.row) for f in findings}
    assert count == len(found) - 1


def test_a_column_that_stands_twice_is_named(good, tmp_path):
    """Both would be read as one."""
    found = good[1]["1.2"]
    cells = [[*row.values(), "a"] for row in found]
    findings, _ = lint_files.lint_file(written(tmp_path / "f.csv", [*found[0], "Tags"], cells), "1.2")
    assert ("column-twice", "Tags") in {(f.rule.id, f.column) for f in findings}


def test_binary_fractions_in_parquet_are_named(good, tmp_path):
    """A cost as a double is no exact cost, whatever digits it shows."""
    whole = table(good[1]["1.2"])
    place = whole.column_names.index("ListCost")
    whole = whole.set_column(place, "ListCost", whole.column("ListCost").cast(pa.float64()))
    pq.write_table(whole, tmp_path / "f.parquet")
    findings, _ = lint_files.lint_file(tmp_path / "f.parquet", "1.2")
    assert any(f.rule.id == "number-binary" and "ListCost" in f.detail for f in findings)


def test_files_that_are_none_are_refused(tmp_path):
    """No file, text in another encoding, a total that is no amount: each with what to do."""
    (tmp_path / "latin.csv").write_bytes("BilledCost,ServiceName\n0.01,Büro\n".encode("latin-1"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "good.csv").write_text("BilledCost\n0.01\n")
    for arguments in (["none.csv"], ["latin.csv"], ["bad.parquet"], ["good.csv", "--total", "much"]):
        with pytest.raises(InputError, match="fix:"):
            command.main(["lint", str(tmp_path / arguments[0]), *arguments[1:]])


def test_a_header_alone_is_a_month_without_charges(tmp_path):
    """No row, nothing wrong but what the header lacks."""
    file = tmp_path / "f.csv"
    file.write_text(",".join(rows.columns("1.2")) + "\n")
    assert lint_files.lint_file(file, "1.2", "0.00") == ((), 0)
    file.write_text("")
    findings, _ = lint_files.lint_file(file, "1.2")
    assert {f.rule.id for f in findings} == {"column-missing"}


numbers = st.decimals(min_value=-(10**15), max_value=10**15, allow_nan=False, places=9).map(lambda d: format(d, "f"))
long_numbers = st.integers(-(10**40), 10**40).map(lambda n: f"{n}.{'7' * 35}")


@given(st.lists(st.tuples(numbers | long_numbers, numbers | long_numbers, st.sampled_from([0, 1, -1])), min_size=1))
@settings(deadline=None)
def test_products_are_compared_to_the_last_digit(factors):
    """Right ones pass and ones that are off by their last digit do not, however long the numbers are."""
    lines = []
    for left, right, off in factors:
        exact = Fraction(left) * Fraction(right)
        whole = exact * 10**80
        assert whole.denominator == 1
        digits = str(abs(int(whole) + off)).rjust(81, "0")
        text = f"{'-' if whole + off < 0 else ''}{digits[:-80]}.{digits[-80:]}"
        text = text if off else text.rstrip("0").rstrip(".")
        lines.append((left, right, text))
    columns_ = [pa.array(column) for column in zip(*lines, strict=True)]
    looked = piece.Piece(pa.table(columns_, names=["a", "b", "c"]))
    plain = [not text.startswith(("-0", "0")) or text[:2] in ("0.", "0") or text[:3] in ("-0.", "-0")
             for left, right, text in lines]  # fmt: skip
    assert all(plain)
    assert looked.no_product("a", "b", "c").tolist() == [off != 0 for _, _, off in factors]


@given(st.lists(st.text(max_size=9), unique=True, max_size=40))
@settings(deadline=None)
def test_hashes_tell_texts_apart(texts):
    """Equal texts have equal hashes wherever they stand, different ones different."""
    found = hashes(pa.array([*texts, *texts], pa.string()))
    assert (found[: len(texts)] == found[len(texts) :]).all()
    assert len(set(found.tolist())) == len(texts)


@pytest.mark.parametrize(
    ("unit", "good_"),
    [
        ("GB", True), ("GiB", True), ("1000 Requests", True), ("Requests", True), ("Months", True), ("EUR", True),
        ("GB-Hours", True), ("Units/3 Months", True), ("GB/Hour", True), ("500000000 B", True), ("gigabytes", False),
        ("Request", False), ("1.5 GB", False), ("per Request", False), ("requests", False), ("0 GB", False),
        ("1,000 Requests", False), ("", False), ("7", False),
    ],
)  # fmt: skip
def test_units_have_focus_form(unit, good_):
    """Sizes as abbreviations, counts and times as plurals, whole numbers before them."""
    assert is_unit(unit) == good_


def test_the_docs_list_every_rule_and_every_column():
    """docs/focus.md has the rules with their level, and the columns of both versions, in their order."""
    text = (Path(__file__).parents[2] / "docs/focus.md").read_text()
    listed = re.findall(r"^\| `([a-z-]+)` \| (error|warning) \| (.*) \|$", text, re.MULTILINE)
    assert listed == [(r.id, "error" if r.is_error else "warning", r.meaning) for r in RULES.values()]
    named = re.findall(r"^\| `((?:x_)?[A-Z]\w+)` \|", text, re.MULTILINE)
    assert named == [column.name for column in columns.WRITTEN]
