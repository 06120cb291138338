"""FOCUS rows of a bill: exact, complete, and each column what the standard says it is."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from fractions import Fraction

import pyarrow as pa
import pytest

from apicost.catalog import prices
from apicost.core.rating import period, rate
from apicost.core.rating.bill import Bill
from apicost.report.export import ApiInfo
from apicost.report.focus import columns, rows
from apicost.report.focus.settings import FocusSettings
from tests.report import focus_months
from tests.usage_months import usage

VERSIONS = ("1.2", "1.4")


def made(bill, version="1.2", **more):
    """All rows as dictionaries."""
    return [row for piece in rows.pieces(bill, focus_months.APIS, version, **more) for row in piece.to_pylist()]


@pytest.fixture(scope="module")
def bill():
    return focus_months.bill()


@pytest.fixture(scope="module", params=VERSIONS)
def found(bill, request):
    return made(bill, request.param)


def test_billed_cost_sums_to_the_bill(bill, found):
    """The file's BilledCost, and its EffectiveCost, is the bill's total to the last cent."""
    for name in ("BilledCost", "EffectiveCost"):
        assert sum(Fraction(row[name]) for row in found) == Fraction(bill.total)


def test_unit_price_times_quantity_is_the_cost_exactly(found):
    """In the billing currency, corrections and converted prices included; the pricing currency has its own prices."""
    for row in found:
        quantity = Fraction(row["PricingQuantity"])
        assert quantity * Fraction(row["ListUnitPrice"]) == Fraction(row["ListCost"])
        assert quantity * Fraction(row["ContractedUnitPrice"]) == Fraction(row["ContractedCost"])
        rate_ = Fraction(row["x_FxRate"])
        assert Fraction(row["PricingCurrencyListUnitPrice"]) * rate_ == Fraction(row["ListUnitPrice"])
        assert Fraction(row["PricingCurrencyContractedUnitPrice"]) * rate_ == Fraction(row["ContractedUnitPrice"])
        if row["PricingCurrency"] == row["BillingCurrency"]:
            assert row["PricingCurrencyEffectiveCost"] == row["EffectiveCost"]
        else:
            assert Fraction(row["PricingCurrencyEffectiveCost"]) * rate_ == Fraction(row["ContractedCost"])
    assert {row["PricingCurrency"] for row in found} == {"EUR", "USD"}


def test_what_has_no_price_has_no_row(bill, found):
    """Charges without a cost are counted, and are not rows of 0."""
    without = rows.left_out(bill)
    assert sum(without.values()) == len(bill) - len(found) > 0
    assert ("downstream_in_wire_bytes", rate.NOT_SOLD) in without
    assert {row["x_State"] for row in found} == {"priced", "unallocated"}


def test_periods_are_those_of_the_books_time_zone(found):
    """October in Berlin begins in summer time and ends in winter time; charges lie within it, but for corrections."""
    edges = "2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z"
    for row in found:
        assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == edges
        if row["ChargeClass"] is None:
            assert edges[0] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= edges[1]
        else:
            assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == ("2026-08-31T22:00:00Z", edges[0])
    assert "2026-10-11T22:00:00Z" in {row["ChargePeriodStart"] for row in found}


def test_consumption_of_packages_is_what_was_used(bill, found):
    """ConsumedQuantity of a SKU's rows is the usage it counted, packages and free units included, and nothing else."""
    used, corrected = defaultdict(Fraction), set()
    for row in found:
        assert (row["ConsumedQuantity"] is None) == (row["ConsumedUnit"] is None)
        if row["ChargeCategory"] != "Usage":
            assert row["ConsumedQuantity"] is None and row["ChargeCategory"] == "Adjustment"
        elif row["ChargeClass"] is None:
            used[row["SkuId"], row["ConsumedUnit"]] += Fraction(row["ConsumedQuantity"])
        elif row["x_Tier"] == "package":
            assert row["ConsumedQuantity"] is None
        else:
            factor = 1000 if row["PricingUnit"].startswith("1000 ") else 1
            assert Fraction(row["ConsumedQuantity"]) == Fraction(row["PricingQuantity"]) * factor
            corrected.add((row["PricingUnit"], row["ConsumedUnit"]))
    assert {("1000 Requests", "Requests"), ("Requests", "Requests"), ("GB", "GB")} <= corrected
    lot = bill.statement.usage
    keys = lot.keys.take(lot.key).to_pylist()
    expected = Counter()
    for key, calls, out, up_in, up_out in zip(
        keys, *(lot.sums[f"{name}"].tolist() for name in (
            "calls", "downstream_out_wire_bytes", "upstream_in_wire_bytes", "upstream_out_wire_bytes")), strict=True,
    ):  # fmt: skip
        sku = {"shop": "call", "billing": "call-billing", "chat": "call-chat"}.get(key["api"])
        if sku:
            expected[sku, "Requests"] += calls
        if key["scope"] == "internet":
            expected["egress", "GB"] += Fraction(out, 10**9)
        if key["upstream_scope"] == "internal":
            expected["inside", "GiB"] += Fraction(up_in + up_out, 1 << 30)
    assert used == expected


def test_columns_are_the_versions_own(bill):
    """Each version has its columns in alphabetical order, custom ones last; providers are named as it names them."""
    for version in VERSIONS:
        names = rows.columns(version)
        own = [name for name in names if name.startswith("x_")]
        assert list(names) == sorted(name for name in names if name not in own) + sorted(own)
        for piece in rows.pieces(bill, {}, version, rows=100):
            assert tuple(piece.column_names) == names
    assert {"ProviderName", "PublisherName"} <= set(rows.columns("1.2")) - set(rows.columns("1.4"))
    assert {"ServiceProviderName", "HostProviderName"} <= set(rows.columns("1.4")) - set(rows.columns("1.2"))
    with pytest.raises(ValueError, match=r"1\.3"):
        rows.columns("1.3")


@pytest.mark.parametrize("size", [17, 361])
def test_pieces_of_any_size_are_the_same_rows(bill, found, size):
    """How many charges are made at a time changes nothing."""
    version = "1.4" if "HostProviderName" in found[0] else "1.2"
    assert made(bill, version, rows=size) == found


def test_shares_of_a_shared_cost_are_one_origin_charge(bill):
    """1.4: rows of a shared cost agree in every column that is not Allocated, a cost, a quantity or our own; ratios
    sum to 1, costs and quantities to the amount; what is idle is allocated to nobody."""
    mine = [row for row in made(bill, "1.4") if row["SkuId"] == "nodes" and row["ChargeClass"] is None]
    may_differ = ("Allocated", "Billed", "Effective", "List", "Contracted", "PricingQ", "PricingCurrencyE", "x_")
    fixed = [{n: v for n, v in row.items() if not n.startswith(may_differ)} for row in mine]
    assert all(row == fixed[0] for row in fixed)
    assert sum(Fraction(row["ListCost"]) for row in mine) == Fraction("812.40")
    assert sum(Fraction(row["PricingQuantity"]) for row in mine) == Fraction("812.40")
    ratio = Fraction()
    for row in mine:
        (element,) = json.loads(row["AllocatedMethodDetails"], parse_float=Fraction, parse_int=Fraction)["Elements"]
        ratio += element["AllocatedRatio"]
        assert abs(element["AllocatedRatio"] - Fraction(row["ListCost"]) / Fraction("812.40")) <= Fraction(1, 10**15)
        assert (row["AllocatedResourceId"] is None) == (row["x_State"] == "unallocated")
        assert (row["AllocatedResourceId"] is None) == (row["AllocatedResourceName"] is None)
    assert ratio == 1
    assert {row["AllocatedMethodId"] for row in made(bill, "1.4") if row["SkuId"] != "nodes"} == {None}
    shop = next(row for row in mine if row["AllocatedResourceId"] == "shop/getOrder" and row["x_Consumer"] == "acme")
    assert json.loads(shop["AllocatedTags"])["team"] == "shop" and shop["Tags"] is None


def test_tags_are_flat_and_keep_every_character(bill, found):
    """Owner, team and cost centre by the book's rules, before those of the API; any text survives."""
    tags = {(row["x_Api"], row["x_Consumer"]): row["Tags"] for row in found if row["ChargeCategory"] == "Usage"}
    assert json.loads(tags["shop", "acme"]) == {
        "env": "prod", "owner": "ann@acme.example", "team": "shop", "tier": "gold, 1",
    }  # fmt: skip
    assert json.loads(tags["shop", "partner-x"])["team"] == "partners"
    apis = {"chat": ApiInfo(team="labs", tags={"team": "nobody", "cost_center": "1"})}
    by_consumer = {row["x_Consumer"]: row["Tags"] for piece in rows.pieces(bill, apis) for row in piece.to_pylist()
                   if row["x_Api"] == "chat"}  # fmt: skip
    assert json.loads(by_consumer["acme"]) == {"cost_center": "1", "team": "labs"}
    assert json.loads(by_consumer["partner-x"]) == {"cost_center": "4711", "team": "partners"}
    assert json.loads(tags["billing", "acme"]) == {'say "hi"': "ja\tso", "team": "finance"}
    assert tags["chat", "acme"] is None


def test_names_are_the_books_or_those_of_the_settings(bill):
    """Without settings the price book names account, issuer and provider; with them they do."""
    plain = made(bill)[0]
    names = ("BillingAccountId", "BillingAccountName", "InvoiceIssuerName", "ProviderName", "PublisherName")
    assert {plain[name] for name in names} == {"acme"}
    assert plain["InvoiceId"] is None and plain["RegionId"] is None and plain["ServiceName"] == "API Gateway"
    settings = FocusSettings(
        billing_account_id="4711", invoice_issuer_name="Acme IT", provider_name="Platform", region_id="eu-1",
        invoice_id="2026-10-1",
    )  # fmt: skip
    row = made(bill, "1.4", settings=settings)[0]
    assert [row[n] for n in ("BillingAccountId", "InvoiceIssuerName", "ServiceProviderName", "HostProviderName")] == [
        "4711", "Acme IT", "Platform", "Platform",
    ]  # fmt: skip
    assert (row["RegionId"], row["RegionName"], row["InvoiceId"]) == ("eu-1", "eu-1", "2026-10-1")


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("Requests", "Requests"), ("1000 Requests", "1000 Requests"), ("GB", "GB"), ("Month", "Months"),
        ("package of 1000000 Requests", "1000000 Requests"), ("package of 5 1000 Requests", "5000 Requests"),
        ("package of 10 GB", "10 GB"), ("package of 0.5 GB", "500000000 B"), ("package of 0.25 GiB", "268435456 B"),
        ("package of 2 1000000 Tokens", "2000000 Tokens"),
    ],
)  # fmt: skip
def test_units_are_a_whole_number_and_a_plural(unit, text):
    """A package's price is per so many units, and never per a part of one."""
    assert rows.unit_text(unit) == text


def test_packages_of_several_stretches_have_each_their_usage():
    """A price that changes within the month: each package row has the usage of its own days."""
    march = period.month("2026-03", "UTC")
    book = prices.parse(
        "pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: UTC}}\n"
        "skus: {call: {meter: calls, unit: Requests, free: {quantity: '3', share: pro_rata}, prices: ["
        "{from: 2026-01-01, to: 2026-03-11, mode: package, size: '10', price: '5'},"
        "{from: 2026-03-11, mode: package, size: '10', price: '6'}]}}"
    )
    lot = [{"minute_unix_s": march.starts[day], "consumer": c, "calls": n} for day, c, n in
           [(0, "p", 8), (0, "q", 12), (20, "p", 31), (20, "q", 1)]]  # fmt: skip
    bill = Bill(statement=rate.rate(usage(lot), book, march))
    by_part = defaultdict(Fraction)
    for row in made(bill):
        by_part[row["x_Consumer"], row["ChargePeriodStart"][:10]] += Fraction(row["ConsumedQuantity"])
    assert by_part == {
        ("p", "2026-03-01"): 8, ("q", "2026-03-01"): 12, ("p", "2026-03-11"): 31, ("q", "2026-03-11"): 1,
    }  # fmt: skip


def test_an_empty_bill_has_columns_and_no_rows():
    """A month without usage, and without shared costs, is a header."""
    book = prices.parse("pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: UTC}}\nskus: {}")
    when = period.month("2026-03", "UTC")
    bill = Bill(statement=rate.rate(usage([]), book, when))
    for version in VERSIONS:
        assert sum(len(piece) for piece in rows.pieces(bill, {}, version)) == 0


def test_numbers_are_plain_and_have_a_point(found):
    """A whole number ends in .0, so that no reader takes its column for integers; none has an exponent or a plus."""
    for row in found:
        for column in columns.WRITTEN:
            if column.is_decimal and row.get(column.name) is not None:
                assert re.fullmatch(r"-?(0|[1-9][0-9]*)[.][0-9]+", row[column.name]), column


def test_texts_are_strings_in_arrow(bill):
    """Every column is text, so that every format writes the same characters."""
    for piece in rows.pieces(bill, focus_months.APIS, "1.4"):
        for column in piece.columns:
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            assert pa.types.is_string(kind)


def test_resources_are_what_bears_a_charge():
    """An operation where one is known, else the API, the route or service, else the gateway; names don't repeat ids."""
    march = period.month("2026-03", "UTC")
    book = prices.parse(
        "pricebook: {id: t, version: '1', currency: EUR, calendar: {time_zone: UTC}}\n"
        "skus: {call: {meter: calls, unit: Requests, prices: [{from: 2026-01-01, mode: flat, price: '5'}]}}"
    )
    keys = [
        {"api": "shop", "operation_id": "getOrder", "method": "GET", "path_template": "/o/{id}"},
        {"api": "shop", "operation_id": "GET /things", "method": "GET", "path_template": "/things"},
        {"api": "shop", "match_state": "undocumented-path", "method": "GET"},
        {"route_id": "r1", "service_id": "s1", "match_state": "unknown-host"},
        {"service_id": "s1"},
        {"match_state": "unknown-host"},
        {"operation_id": "getOrder"},
        {},
    ]
    lot = [{"minute_unix_s": march.start_unix_s, "calls": 1} | key for key in keys]
    bill = Bill(statement=rate.rate(usage(lot), book, march))
    names = ("ResourceId", "ResourceName", "ResourceType", "SubAccountId", "SubAccountName")
    assert {tuple(row[name] for name in names) for row in made(bill)} == {
        ("shop/getOrder", "GET /o/{id}", "API Operation", "shop", "Shop"),
        ("shop/GET /things", None, "API Operation", "shop", "Shop"),
        ("shop/undocumented-path", None, "API", "shop", "Shop"),
        ("route/r1", None, "Gateway Route", None, None),
        ("service/s1", None, "Gateway Route", None, None),
        ("gateway/unknown-host", None, "Gateway", None, None),
        ("getOrder", None, "API Operation", None, None),
        (None, None, None, None, None),
    }  # fmt: skip
