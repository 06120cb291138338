"""Rules files: what they may say, and every problem of one at once, with line, effect and fix."""

import pytest

from apicost.catalog import bill_rules
from apicost.problems import InputError
from tests.reconcile.made import book, focus, read

SHARED = "shared_costs: [{id: nodes, amount: '48.00', period: monthly, method: by-weight, weights: {calls: '1'}}]\n"
BOOK = book(more=SHARED)


def parse(text):
    return bill_rules.parse(text, BOOK)


BAD = """bill: {time_zone: Mars/Olympus, cost_colum: x, identity: Row}
fx: {EUR: "1.1", USD: "0", dollar: "1", GBP: much}
groups:
  one: [net]
  two: [net, nett]
  three: [net, call]
rules:
  - {match: {SkuId: A}}
  - {match: {SkuId: A}, sku: nett}
  - {match: {SkuId: A}, sku: net, ignore: me}
  - {sku: net}
  - {match: {SkuId: "/(/"}, sku: net}
  - {match: {SkuId: A}, sku: net, unit: Hrs}
  - {match: {SkuId: A}, sku: net, unit: Requests}
  - {match: {SkuId: A}, ignore: ""}
  - {match: {SkuId: A}, other_hosts: maybe}
  - {match: {SkuId: []}, sku: net}
  - {match: {SkuId: A}, sku: net, as: rebate}
  - {use: aws-internet-egres, sku: net}
  - {match: {SkuId: A}, sky: net}
  - {match: {SkuId: A}, sku: net, cost_column: 3}
  - nothing
"""
EXPECTED = {
    1: ["Mars/Olympus", "cost_colum", "identity"], 2: ["EUR", "rate of 0", "dollar", "much"], 4: ["group 'one'"],
    5: ["nett"], 6: ["mixes", "too"], 8: ["what its lines are"], 9: ["nett"], 10: ["at once"],
    11: ["which lines"], 12: ["regular expression"], 13: ["'Hrs'"], 14: ["net meters bytes"], 15: ["no reason"],
    16: ["not true"], 17: ["no value"], 18: ["rebate"], 19: ["aws-internet-egres"], 20: ["sky"], 22: ["nothing"],
}  # fmt: skip


def test_all_problems_of_a_file_are_said_at_once():
    """Each with its line, what is wrong, what comes of it and what to write instead."""
    with pytest.raises(InputError) as caught:
        parse(BAD)
    found = {}
    for problem in caught.value.problems:
        assert problem.effect == "the bill is not reconciled" and problem.fix
        found.setdefault(int(problem.place.rsplit(":", 1)[1]), []).append(problem.fact)
    for line, words in EXPECTED.items():
        for word in words:
            assert any(word in fact for fact in found.get(line, [])), (line, word, found.get(line))


@pytest.mark.parametrize("text", ["", "[]", "rules: []", "rules: {a: 1}", "- 1", "a: b", "x"])
def test_a_file_without_rules_is_said(text):
    """Nothing, or something else: a problem, not an empty bridge."""
    with pytest.raises(InputError):
        parse(text)


@pytest.mark.parametrize("sku", ["[net]", "{a: b}", "null", "true"])
def test_a_sku_that_is_no_text_is_a_problem(sku):
    """A list of SKUs is what a group has: a rule names one."""
    with pytest.raises(InputError) as caught:
        parse(f"- {{match: {{SkuId: OUT}}, sku: {sku}}}\n")
    assert "is no SKU of" in caught.value.problems[0].fact


def test_a_unit_is_taken_from_a_text():
    """`from` is compared with what a line says: a list would never fit."""
    with pytest.raises(InputError) as caught:
        parse("- {match: {SkuId: OUT}, sku: net, unit: {from: [GB], to: GiB}}\n")
    assert caught.value.problems[0].fact == "unit is from ['GB'], which is no text"


def test_a_list_alone_is_rules():
    """The sections beside `rules` may be left out with its name."""
    rules = parse("- {match: {SkuId: OUT}, sku: net}\n")
    assert rules.named == ("net",) and rules.groups == () and rules.time_zone == "UTC"


@pytest.mark.parametrize(
    ("pattern", "fits", "not_"),
    [("OUT", ["OUT"], ["out", "OUT2", ""]), ("A*", ["A", "ABC", "A\nB"], ["BA"]), ("A?C", ["ABC"], ["AC", "ABBC"]),
     ("a.c", ["a.c"], ["abc"]), ("/a.c|x+/", ["abc", "xx"], ["abcd", "yx"]), ("[a]", ["[a]"], ["a"]),
     ("/", ["/"], ["a"]), ("*", ["x"], [""])],
)  # fmt: skip
def test_patterns(tmp_path, pattern, fits, not_):
    """Text with * and ?, or a regular expression between slashes; the whole value, case and all."""
    rules = f"rules: [{{match: {{ResourceId: '{pattern}'}}, ignore: it}}]\n"
    for value in [*fits, *not_]:
        (line,) = read(tmp_path, [focus("Q", "1", ResourceId=value)], rules).lines
        assert (line.kind == "ignored") == (value in fits), value


def test_an_empty_value_is_null(tmp_path):
    """null and "" fit lines without a value, and nothing else."""
    for value in ("null", '""'):
        rules = f"rules: [{{match: {{ResourceId: {value}}}, ignore: it}}]\n"
        kinds = [line.kind for r in ("", "x") for line in read(tmp_path, [focus(ResourceId=r)], rules).lines]
        assert kinds == ["ignored", "unmapped"]


def test_every_condition_must_hold(tmp_path):
    """Two columns: both; a list of values: any."""
    rules = "rules: [{match: {SkuId: [OUT, IN], ResourceId: 'gw-*'}, sku: net}]\n"
    for sku, resource, mapped in (
        ("OUT", "gw-1", True),
        ("IN", "gw-2", True),
        ("OUT", "x", False),
        ("Q", "gw-1", False),
    ):
        (line,) = read(tmp_path, [focus(sku, "1", ResourceId=resource)], rules).lines
        assert (line.sku == "net") == mapped


def test_a_sku_by_column_is_a_sku_of_the_book(tmp_path):
    """A line whose column names no SKU does not fit, and the next rule is asked."""
    rules = "rules:\n  - {match: {SkuId: '*'}, sku_column: SkuId}\n  - {match: {SkuId: OUT}, sku: net}\n"
    for sku, expected in (("zone", "zone"), ("OUT", "net"), ("else", None)):
        (line,) = read(tmp_path, [focus(sku, "1")], rules).lines
        assert line.sku == expected
    assert set(parse(rules).named) == {"net", "zone", "call", "nodes", "commitment"}


@pytest.mark.parametrize(
    ("name", "usage_type", "unit"),
    [("aws-internet-egress", "EUC1-DataTransfer-Out-Bytes", 1 << 30),
     ("aws-inter-zone", "DataTransfer-Regional-Bytes", 1 << 30),
     ("aws-internet-ingress", "USE1-DataTransfer-In-Bytes", 1 << 30)],
)  # fmt: skip
def test_built_in_rules_know_usage_types(tmp_path, name, usage_type, unit):
    """With and without a region before them, here in a FOCUS export; their "GB" are 2**30 bytes."""
    rules = f"rules: [{{use: {name}, sku: net}}]\n"
    for value, fits in ((usage_type, True), (f"X{usage_type}2", False)):
        (line,) = read(tmp_path, [focus("Q", "1", x_UsageType=value)], rules).lines
        assert (line.sku, line.quantity) == (("net", unit) if fits else (None, 0))


def test_built_in_rules_are_rules():
    """Each can be used as it is."""
    meters = {"aws-http-api-requests": "call", "aws-rest-api-requests": "call", "aws-load-balancer-hours": "nodes",
              "aws-load-balancer-capacity": "nodes"}  # fmt: skip
    for name in bill_rules.BUILT_IN:
        assert parse(f"rules: [{{use: {name}, sku: {meters.get(name, 'net')}}}]\n").rules[0].conditions


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("GB", ("bytes", 10**9)), ("GiB", ("bytes", 1 << 30)), ("Bytes", ("bytes", 1)), ("1000 Requests", ("calls", 1000)),
     ("500 GB", ("bytes", 500 * 10**9)), ("package of 7 1000 Requests", ("calls", 7000)), ("Hrs", None), ("", None),
     ("0 GB", None), ("GB-Mo", None), ("1M tokens", ("tokens", 10**6)), (None, None)],
)  # fmt: skip
def test_units(unit, expected):
    """What bills call units, also with a number before them."""
    assert bill_rules.unit_base(unit) == expected


@pytest.mark.parametrize(
    ("older", "newer"),
    [("lineItem/UsageStartDate", "line_item_usage_start_date"), ("identity/LineItemId", "identity_line_item_id"),
     ("bill/BillingPeriodStartDate", "bill_billing_period_start_date"), ("pricing/unit", "pricing_unit"),
     ("lineItem/LineItemType", "line_item_line_item_type"), ("resourceTags/user:Team", "resource_tags_user_team"),
     ("BilledCost", "BilledCost"), ("line_item_usage_amount", "line_item_usage_amount")],
)  # fmt: skip
def test_column_names(older, newer):
    """Those of the older Cost and Usage Report become those of the newer; others stay."""
    assert bill_rules.column_name(older) == newer
