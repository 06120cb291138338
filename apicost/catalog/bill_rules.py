"""Rules that say what a provider's bill lines are: which SKU of the price book, ignored, or other hosts'.

Rules of this file:
- The first rule that fits a line decides. What no rule fits is shown as unmapped, with its cost.
- A file is read whole or not at all, with every problem at once.
- Built-in rules are named by `use:`; what a rule says itself replaces what the built-in one says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from apicost import yamlfile
from apicost.catalog.prices_values import Path_, Values, nearest
from apicost.core.rating.pricebook import COMMITMENT, UNITS, PriceBook
from apicost.core.reconcile import lines
from apicost.problems import InputError, Problem

MAX_BYTES = 4 << 20
EFFECT = "the bill is not reconciled"

# What bills call a unit -> (meter, base units in one of it).
BILL_UNITS: Mapping[str, tuple[str, int]] = {
    **UNITS,
    "Request": ("calls", 1), "Count": ("calls", 1), "Calls": ("calls", 1), "API Calls": ("calls", 1),
    **dict.fromkeys(("B", "Byte", "Bytes"), ("bytes", 1)),
    **{name: ("bytes", base) for name, base in (("KB", 10**3), ("MB", 10**6), ("TB", 10**12))},
    **{name: ("bytes", 1 << bits) for name, bits in (("KiB", 10), ("MiB", 20), ("TiB", 40))},
    "Token": ("tokens", 1), "1K tokens": ("tokens", 1_000), "1M tokens": ("tokens", 1_000_000),
}  # fmt: skip
_COUNTED = re.compile(r"(?:package of )?([1-9]\d{0,17}) (\S.*)")
NONE = "none"  # as quantity_column: the line has money alone

# AWS bills data transfer in "GB" of 2**30 bytes. The usage type stands in two places: that of a Cost and Usage Report
# and that of the FOCUS export.
_USAGE_TYPE = "line_item_usage_type|x_UsageType"


def _usage_type(name: str, unit: str) -> dict[str, Any]:
    return {"match": {_USAGE_TYPE: f"/(.*-)?{name}/"}, "unit": unit}


BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "aws-internet-egress": _usage_type("DataTransfer-Out-Bytes", "GiB"),
    "aws-internet-ingress": _usage_type("DataTransfer-In-Bytes", "GiB"),
    "aws-inter-zone": _usage_type("DataTransfer-Regional-Bytes", "GiB"),
    "aws-inter-region-egress": _usage_type("AWS-Out-Bytes", "GiB"),
    "aws-nat-gateway-bytes": _usage_type("NatGateway-Bytes", "GiB"),
    "aws-http-api-requests": _usage_type("ApiGatewayHttpRequest", "Requests"),
    "aws-rest-api-requests": _usage_type("ApiGatewayRequest", "Requests"),
    "aws-load-balancer-hours": {**_usage_type("LoadBalancerUsage", ""), "quantity_column": NONE},
    "aws-load-balancer-capacity": {**_usage_type("LCUUsage", ""), "quantity_column": NONE},
}

_TOP = ("bill", "fx", "groups", "rules")
_BILL = ("time_zone", "cost_column", "quantity_column", "unit_price_column", "identity")
_RULE = (
    "use", "match", "sku", "sku_column", "ignore", "other_hosts", "as", "unit", "quantity_column", "cost_column",
    "description",
)  # fmt: skip
_DOES = ("sku", "sku_column", "ignore", "other_hosts", "as")
_AS = (lines.USAGE, lines.TAX, lines.CREDIT, lines.REFUND, lines.DISCOUNT, lines.ADJUSTMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """columns: names of the bill's, any of which may be there; the first that is, is asked.
    values: expressions of which one must fit the whole value; None is an empty value."""

    columns: tuple[str, ...]
    values: tuple[re.Pattern[str] | None, ...]

    def fits(self, value: str | None) -> bool:
        return any(not value if x is None else value and x.fullmatch(value) is not None for x in self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What lines are that fulfil every condition.

    kind: of `lines.KINDS`; None is what the line says itself. sku_column: where the SKU's name stands in the line;
        a line whose name is no SKU of the book does not fit. label: the reason of what is ignored.
    unit: base units in one of the bill's; None is what the line's own unit says. unit_from: lines with another unit
        than this don't take `unit`.
    """

    conditions: tuple[Condition, ...]
    kind: str | None = None
    sku: str | None = None
    sku_column: str | None = None
    label: str = ""
    unit: tuple[str, int] | None = None
    unit_from: str | None = None
    quantity_column: str | None = None
    cost_column: str | None = None
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A rules file.

    time_zone: of the bill's months, where the bill does not say when they begin.
    paid: currency -> what one unit of it was paid with in the book's. identity: columns that tell lines apart.
    meters: SKU of the book -> what it meters; None for fixed amounts.
    """

    rules: tuple[Rule, ...]
    meters: Mapping[str, str | None]
    groups: tuple[tuple[str, ...], ...] = ()
    time_zone: str = "UTC"
    paid: Mapping[str, Decimal] = field(default_factory=dict)
    cost_column: str | None = None
    quantity_column: str | None = None
    unit_price_column: str | None = None
    identity: tuple[str, ...] = ()
    file: str = ""

    @property
    def named(self) -> tuple[str, ...]:
        """The SKUs that some rule can map a line to."""
        if any(rule.sku_column for rule in self.rules):
            return tuple(sorted(self.meters))
        return tuple(sorted({rule.sku for rule in self.rules if rule.sku}))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that the rules ask for by its name alone: it must be there."""
        own = (self.cost_column, self.quantity_column, self.unit_price_column, *self.identity)
        of_rules = (x for rule in self.rules for x in (rule.sku_column, rule.quantity_column, rule.cost_column))
        return tuple(dict.fromkeys(x for x in (*own, *of_rules) if x and x != NONE))


def load(path: Path | str, book: PriceBook) -> Rules:
    """Read a rules file for a price book. Raises InputError with every problem of the file."""
    return _read(yamlfile.load(path, exact=True, max_bytes=MAX_BYTES, collect=True), book)


def parse(text: str, book: PriceBook, name: str = "rules.yaml") -> Rules:
    """The same for text at hand."""
    return _read(yamlfile.parse(text, name, exact=True, collect=True), book)


def _read(document: yamlfile.Document, book: PriceBook) -> Rules:
    reader = _Reader(document, book)
    reader.problems += document.problems
    rules = reader.rules()
    if reader.problems:
        raise InputError(reader.problems)
    return rules


def column_name(name: str) -> str:
    """A column by the name that rules and readers use: of the older Cost and Usage Report as of the newer.

    lineItem/UsageStartDate and line_item_usage_start_date are one column.
    """
    if "/" not in name:
        return name.strip()
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^0-9a-z]+", "_", snake.lower()).strip("_")


def unit_base(name: str | None) -> tuple[str, int] | None:
    """What a unit of a bill counts, and its base units; None for one that is not known. "500 GB" is a unit, too."""
    if name is None:
        return None
    known = BILL_UNITS.get(name)
    if known is None and (found := _COUNTED.fullmatch(name)) and found[2] in BILL_UNITS:
        meter, base = BILL_UNITS[found[2]]
        return meter, int(found[1]) * base
    return known


class _Reader(Values):
    """Turns a YAML document into rules, collecting problems as it goes."""

    def __init__(self, document: yamlfile.Document, book: PriceBook) -> None:
        super().__init__(document)
        self.book = book
        fixed = [*(cost.id for cost in book.shared_costs), COMMITMENT]
        self.meters: dict[str, str | None] = {**dict.fromkeys(fixed), **{sku.id: sku.meter for sku in book.skus}}

    def rules(self) -> Rules:
        data = self.document.data
        root: Path_ = ("rules",)
        if isinstance(data, list):
            data, root = {"rules": data}, ()
        data = self._mapping(data, (), _TOP)
        bill = self._mapping(data.get("bill", {}), ("bill",), _BILL)
        zone = bill.get("time_zone", "UTC")
        try:
            ZoneInfo(str(zone))
        except (OSError, ValueError, KeyError):
            self._problem(("bill", "time_zone"), f"time zone {zone!r} is not known", "write an IANA name such as UTC")
        found: list[Rule] = []
        entries = data.get("rules")
        if not isinstance(entries, list) or not entries:
            self._problem(root, "there is no list of rules", "write rules: [{match: {COLUMN: VALUE}, sku: NAME}]")
            entries = []
        for index, entry in enumerate(entries):
            rule = self._rule(entry, (*root, index))
            if rule is not None:
                found.append(rule)
        identity = bill.get("identity", [])
        if not isinstance(identity, list) or not all(isinstance(x, str) and x for x in identity):
            self._problem(("bill", "identity"), f"identity {identity!r} is no list of columns", "write [COLUMN, ...]")
            identity = []
        columns = {key: self._column(bill, key, ("bill",)) for key in _BILL if key.endswith("_column")}
        return Rules(
            rules=tuple(found), meters=self.meters, groups=self._groups(data.get("groups", {})), time_zone=str(zone),
            paid=self._paid(data.get("fx", {})), identity=tuple(map(column_name, identity)), file=self.document.file,
            **columns,
        )  # fmt: skip

    def _rule(self, data: Any, path: Path_) -> Rule | None:
        before = len(self.problems)
        data = self._mapping(data, path, _RULE)
        if "use" in data:
            name = data["use"]
            if not isinstance(name, str) or name not in BUILT_IN:
                self._problem((*path, "use"), f"no built-in rule {name!r}", nearest(str(name), list(BUILT_IN)))
                return None
            data = {**{k: v for k, v in BUILT_IN[name].items() if v}, **data}
        does = [key for key in _DOES if key in data and key != "as"]
        if not does and "as" not in data:
            if len(self.problems) == before:
                self._problem(path, "the rule does not say what its lines are",
                              "write sku: NAME, sku_column: COLUMN, ignore: REASON or other_hosts: true")  # fmt: skip
            return None
        clash = set(does) - {"sku", "other_hosts"} if len(does) > 1 else set()
        if clash or ("as" in data and {"ignore", "other_hosts"} & set(does)):
            self._problem(path, f"the rule says {' and '.join(key for key in _DOES if key in data)} at once",
                          "keep one; other_hosts may have a sku, and sku an as")  # fmt: skip
        unit, unit_from = self._unit(data, path)
        rule = Rule(
            conditions=self._conditions(data.get("match"), path), kind=self._kind(data, path),
            sku=self._sku(data, path), sku_column=self._column(data, "sku_column", path),
            label=self._reason(data, path), unit=unit, unit_from=unit_from,
            quantity_column=self._column(data, "quantity_column", path),
            cost_column=self._column(data, "cost_column", path), place=self.document.place(*path),
        )  # fmt: skip
        meter = self.meters.get(rule.sku or "")
        if unit and meter and unit[0] != meter:
            self._problem((*path, "unit"), f"{rule.sku} meters {meter}, and this unit counts {unit[0]}",
                          nearest("", [name for name, (of, _) in BILL_UNITS.items() if of == meter]))  # fmt: skip
        return rule if len(self.problems) == before else None

    def _kind(self, data: Mapping[str, Any], path: Path_) -> str | None:
        if "ignore" in data:
            return lines.IGNORED
        if "other_hosts" in data:
            if data["other_hosts"] is not True:
                self._problem((*path, "other_hosts"), f"other_hosts {data['other_hosts']!r} is not true",
                              "write other_hosts: true, or remove it")  # fmt: skip
            return lines.OTHER_HOSTS
        return self._choice(data, "as", _AS, path) if "as" in data else None

    def _reason(self, data: Mapping[str, Any], path: Path_) -> str:
        if "ignore" not in data:
            return ""
        if not isinstance(data["ignore"], str) or not data["ignore"].strip():
            self._problem((*path, "ignore"), f"ignore {data['ignore']!r} is no reason", "write ignore: WHY")
        return str(data["ignore"])

    def _sku(self, data: Mapping[str, Any], path: Path_) -> str | None:
        if "sku" not in data:
            return None
        if not isinstance(data["sku"], str) or data["sku"] not in self.meters:
            self._problem((*path, "sku"), f"{data['sku']!r} is no SKU of {self.book.id}",
                          nearest(str(data["sku"]), sorted(self.meters)))  # fmt: skip
        return str(data["sku"])

    def _column(self, data: Mapping[str, Any], key: str, path: Path_) -> str | None:
        value = data.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            self._problem((*path, key), f"{key} {value!r} is not a column's name", "write it as the bill has it")
        return column_name(str(value))

    def _unit(self, data: Mapping[str, Any], path: Path_) -> tuple[tuple[str, int] | None, str | None]:
        value, here = data.get("unit"), (*path, "unit")
        if value is None:
            return None, None
        of = None
        if isinstance(value, dict):
            value = self._mapping(value, here, ("from", "to"))
            of, value = value.get("from"), value.get("to")
            if of is not None and not isinstance(of, str):
                self._problem(here, f"unit is from {of!r}, which is no text", "write the unit that lines say: GB")
        if not isinstance(value, str) or value not in BILL_UNITS:
            self._problem(here, f"unit {value!r} is none that counts requests, bytes or tokens",
                          nearest(str(value), list(BILL_UNITS)))  # fmt: skip
            return None, None
        return BILL_UNITS[value], None if of is None else str(of)

    def _conditions(self, data: Any, path: Path_) -> tuple[Condition, ...]:
        here = (*path, "match")
        if not isinstance(data, dict) or not data:
            self._problem(here, "the rule does not say which lines it is for",
                          'write match: {COLUMN: VALUE}; "*" fits every value')  # fmt: skip
            return ()
        found = []
        for name, value in data.items():
            values = value if isinstance(value, list) else [value]
            if not values:
                self._problem((*here, name), f"{name}: there is no value", "write one, or null for an empty one")
            patterns = [self._pattern(item, (*here, name)) for item in values]
            columns = tuple(column_name(part) for part in name.split("|"))
            found.append(Condition(columns=columns, values=tuple(patterns)))
        return tuple(found)

    def _pattern(self, value: Any, path: Path_) -> re.Pattern[str] | None:
        """A value as an expression: /regular/, or text in which * is any characters and ? is one."""
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            self._problem(path, f"{value!r} is no text", "write a value in quotes")
            return None
        if len(value) > 1 and value[0] == value[-1] == "/":
            try:
                return re.compile(value[1:-1], re.DOTALL)
            except (re.error, RecursionError, OverflowError) as error:
                self._problem(path, f"{value!r} is no regular expression: {error}", "mend it, or write * and ?")
                return None
        wild = {"*": ".*", "?": "."}
        return re.compile("".join(wild.get(c) or re.escape(c) for c in value), re.DOTALL)

    def _groups(self, data: Any) -> tuple[tuple[str, ...], ...]:
        found = []
        seen: dict[str, str] = {}
        for name, skus in self._mapping(data, ("groups",), None).items():
            path: Path_ = ("groups", name)
            if not isinstance(skus, list) or len(skus) < 2:
                self._problem(path, f"group {name!r} is no list of two or more SKUs", "write [SKU, SKU]")
                continue
            for index, sku in enumerate(skus):
                if self.meters.get(str(sku)) is None:
                    known = [x for x, meter in self.meters.items() if meter]
                    self._problem((*path, index), f"{sku!r} is no SKU of usage", nearest(str(sku), known))
                elif sku in seen:
                    self._problem((*path, index), f"{sku!r} is in group {seen[sku]!r}, too", "keep one of them")
                seen[str(sku)] = name
            meters = {self.meters.get(str(sku)) for sku in skus} - {None}
            if len(meters) > 1:
                self._problem(path, f"group {name!r} mixes {' and '.join(sorted(map(str, meters)))}",
                              "group SKUs that count the same")  # fmt: skip
            found.append(tuple(map(str, skus)))
        return tuple(found)

    def _paid(self, data: Any) -> dict[str, Decimal]:
        found = {}
        for name, value in self._mapping(data, ("fx",), None).items():
            path: Path_ = ("fx", name)
            currency = self._currency("fx", "currency", name, path)
            if currency == self.book.currency:
                self._problem(path, f"fx: {currency} is the book's own currency", "remove it")
            amount = self._amount("fx", "rate", value, path)
            if amount is not None and not amount:
                self._problem(path, "fx: a rate of 0 makes every cost 0", "write what one unit was paid with")
            elif amount is not None:
                found[currency] = amount
        return found

    def _problem(self, path: Path_, fact: str, fix: str) -> None:
        self.problems.append(Problem(place=self.document.place(*path), fact=fact, effect=EFFECT, fix=fix))
