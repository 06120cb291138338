"""The figures of a month: computed once, rendered by every format.

Rules of this file:
- Every figure is a number or text of `Figures`: a template formats, it never adds up.
- Billed costs of each table sum to the total: the tables are sums of the same charges that the CSV lists.
- What has no name is a row of its own: traffic outside the documents, bytes that no request claims, the
  gateway's own traffic, a shared cost that nobody bears.
- Only the largest rows are listed; the rest is one row that says how many it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import lcm
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import budget, days, money
from apicost.core.rating.budget import Variance
from apicost.core.rating.days import DayFigure
from apicost.core.rating.pricebook import TAGS
from apicost.core.rating.rate import WIRE_BYTES
from apicost.core.rating.statement import UNALLOCATED, Statement
from apicost.core.rating.usage_rows import UsageRows
from apicost.report.export import ApiInfo, keys_of, tags_of

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

TOP_ROWS = 30
CLIENT_BYTES = ("downstream_in_wire_bytes", "downstream_out_wire_bytes")
_STATE_NAMES = {
    "unknown-host": "(unknown host)",
    "unattributed": "(unattributed bytes)",
    "control": "(gateway's own traffic)",
    "undocumented-path": "(undocumented path)",
    "undocumented-method": "(undocumented method)",
}
NOBODY = "(unallocated)"


class Label(NamedTuple):
    """How a row is called. `named` rows stand for what has no name of its own: no text from traffic,
    such as a consumer called "(unallocated)", can be taken for one of them."""

    text: str
    note: str = ""
    named: bool = False
    last: bool = False  # stands below the others whatever it costs: no API, operation or consumer bears it


Labeller = Callable[[Mapping[str, str | None]], Label]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table. Costs in minor units (billed) and exact; None where there is no figure.

    note: a second label, such as the method and path of an operation.
    list_cost: without contracts, contracted_cost: what is paid, before rounding.
    per_1000_calls, per_gb: contracted cost per 1,000 requests and per GB of wire bytes with clients.
    named: a row for what has no name of its own, in parentheses.
    """

    label: str
    note: str = ""
    calls: int = 0
    client_bytes: int = 0
    backend_bytes: int = 0
    billed_minor: int = 0
    list_cost: Fraction = Fraction()
    contracted_cost: Fraction = Fraction()
    named: bool = False

    @property
    def per_1000_calls(self) -> Fraction | None:
        return self.contracted_cost * 1_000 / self.calls if self.calls else None

    @property
    def per_gb(self) -> Fraction | None:
        return self.contracted_cost * 10**9 / self.client_bytes if self.client_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """A table whose rows sum to the total."""

    id: str
    title: str
    rows: tuple[Row, ...]
    folded: int = 0  # how many rows the one for the rest stands for


@dataclass(frozen=True, slots=True, kw_only=True)
class SkuRow:
    """What one price of one SKU came to; price and cost are None where there is no price.

    price: what is paid per unit, in `currency`; list_price: the book's without a contract.
    list_cost, contracted_cost: in the statement's currency.
    scope: network scope, for what has no price: it is what a price book is most often silent about.
    """

    sku: str | None
    meter: str
    tier: str | None
    days: tuple[int, int]
    reason: str | None
    quantity: Fraction
    unit: str
    price: Decimal | None
    list_cost: Fraction | None
    contracted_cost: Fraction | None
    list_price: Decimal | None
    currency: str = ""
    scope: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LegFigure:
    """Bytes of one leg: on the wire, and how much of that the application asked for."""

    leg: str
    wire_bytes: int
    app_bytes: int
    payload_bytes: int
    overhead_bytes: int
    resent_bytes: int
    packets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that a month's report says."""

    month: str
    time_zone: str
    start_unix_s: int
    end_unix_s: int
    api: str | None
    currency: str
    scale: int
    price_book: str
    price_book_version: str
    total_minor: int
    total_exact: Fraction
    total_list: Fraction  # what the same would have cost without contracts
    whole_minor: int  # the statement's total, of which this report's may be one API's part
    previous: tuple[str, int] | None  # month before and its total
    calls: int
    client_bytes: int
    backend_bytes: int
    by_api: Breakdown
    by_operation: Breakdown
    by_consumer: Breakdown
    by_status: Breakdown
    by_team: Breakdown | None  # None where nobody has a team
    days: tuple[DayFigure, ...]
    no_day_minor: int
    skus: tuple[SkuRow, ...]
    unpriced: tuple[SkuRow, ...]
    unallocated_minor: int
    failing_minor: int
    undocumented_minor: int
    legs: tuple[LegFigure, ...]
    confidence: tuple[tuple[str, int], ...]
    app_only_bytes: int
    app_only_calls: int
    completeness: tuple[tuple[str, int], ...] | None
    damaged: tuple[str, ...]
    charges: int
    apis: Mapping[str, ApiInfo]
    budgets: tuple[Variance, ...] = ()


def figures(
    statement: Statement,
    daily: UsageRows,
    *,
    apis: Mapping[str, ApiInfo] | None = None,
    completeness: Mapping[str, int] | None = None,
    damaged: Sequence[str] = (),
    previous: tuple[str, int] | None = None,
    api: str | None = None,
) -> Figures:
    """The figures of a statement, or of one API's part of it.

    daily: the same usage by day, as `days.by_day` takes it.
    completeness: sums of records.COMPLETENESS of the month; None where the ledger has none.
    damaged: what of the ledger could not be read, in words. previous: the month before and its total.
    """
    book, period = statement.book, statement.period
    tagged = tags_of(statement.keys, apis or {}, book.tags)
    part = _Part(statement, api, tagged)
    day_figures, no_day = days.by_day(statement, daily, api)
    sums = {name: money.exact_sum(values[part.rows]) for name, values in statement.usage.sums.items()}
    status = part.breakdown("status", "By response status", ("status_class",), _status_label)
    operations = part.breakdown(
        "operation", "By operation", ("api", "operation_id", "method", "path_template", "match_state"), _operation_label
    )
    skus = part.skus()
    return Figures(
        month=period.name, time_zone=period.time_zone, start_unix_s=period.start_unix_s, end_unix_s=period.end_unix_s,
        api=api, currency=book.currency, scale=book.statement_scale, price_book=book.id,
        price_book_version=book.version, total_minor=part.total_minor, total_exact=part.exact_total(),
        total_list=part.list_total(),
        whole_minor=statement.total_minor, previous=previous if api is None else None, calls=sums["calls"],
        client_bytes=sum(sums[name] for name in CLIENT_BYTES),
        backend_bytes=sum(sums[name] for name in WIRE_BYTES if name not in CLIENT_BYTES),
        by_api=part.breakdown("api", "By API", ("api", "match_state"), _api_label),
        by_operation=operations,
        by_consumer=part.breakdown("consumer", "By consumer", ("consumer", "match_state"), _consumer_label),
        by_status=status, by_team=part.breakdown("team", "By team", ("team", "match_state"), _team_label)
        if tagged.column("team").null_count < len(tagged) else None, days=day_figures, no_day_minor=no_day,
        skus=tuple(row for row in skus if row.price is not None),
        unpriced=tuple(row for row in skus if row.price is None),
        unallocated_minor=part.billed_of([line.state == UNALLOCATED for line in statement.lines]),
        failing_minor=sum(row.billed_minor for row in status.rows if row.label[:3] in ("4xx", "5xx")),
        undocumented_minor=part.billed_in("match_state", ("undocumented-path", "undocumented-method", "unknown-host")),
        legs=tuple(_leg(leg, sums) for leg in records.LEGS),
        confidence=tuple((n, sums[f"{n}_bytes"]) for n in ("exact", "aligned", "apportioned", "unattributed")),
        app_only_bytes=sums["app_only_bytes"], app_only_calls=sums["app_only_calls"],
        completeness=None if completeness is None else tuple(sorted(completeness.items())), damaged=tuple(damaged),
        charges=int(part.charges.sum()), apis=dict(apis or {}),
        budgets=() if api else budget.variance(statement, book, tagged),
    )  # fmt: skip


def _status_label(row: Mapping[str, str | None]) -> Label:
    names = {"1xx": "informational", "2xx": "success", "3xx": "redirect", "4xx": "client error", "5xx": "server error"}
    status = row["status_class"]
    return Label(status, names.get(status, "")) if status else Label("(no request)", "bytes without a line", True, True)


def _api_label(row: Mapping[str, str | None]) -> Label:
    return Label(row["api"]) if row["api"] else _state_label(row, "(no API)")


def _operation_label(row: Mapping[str, str | None]) -> Label:
    api = row["api"] or ""
    place = " ".join(filter(None, (row["method"], row["path_template"])))
    if row["operation_id"]:
        note = " · ".join(filter(None, (api, place if place != row["operation_id"] else "")))
        return Label(row["operation_id"], note)
    return _state_label(row, "(no operation)", " · ".join(filter(None, (api, place))))


def _consumer_label(row: Mapping[str, str | None]) -> Label:
    if row["consumer"]:
        return Label(row["consumer"])
    bare = row["match_state"] in ("unattributed", "control")
    return _state_label(row, "") if bare else Label("(no consumer)", "", True)


def _team_label(row: Mapping[str, str | None]) -> Label:
    if row["team"]:
        return Label(row["team"])
    bare = row["match_state"] in ("unattributed", "control")
    return _state_label(row, "") if bare else Label("(no team)", "", True)


def _state_label(row: Mapping[str, str | None], other: str, note: str = "") -> Label:
    return Label(_STATE_NAMES.get(row["match_state"] or "", other), note, True, not row.get("api"))


def _leg(leg: str, sums: Mapping[str, int]) -> LegFigure:
    def both(kind: str) -> int:
        return sums[f"{leg}_in_{kind}"] + sums[f"{leg}_out_{kind}"]

    return LegFigure(
        leg=leg, wire_bytes=both("wire_bytes"), app_bytes=both("app_bytes"), payload_bytes=both("payload_bytes"),
        overhead_bytes=sums[f"{leg}_overhead_bytes"], resent_bytes=sums[f"{leg}_resent_bytes"],
        packets=both("packets"),
    )  # fmt: skip


class _Part:
    """The charges and usage that a report is about: all, or one API's."""

    def __init__(self, statement: Statement, api: str | None, tagged: pa.Table) -> None:
        self.statement = statement
        self.tagged = tagged
        everything = np.ones(len(statement.keys), np.bool_)
        self.chosen: Mask = everything if api is None else keys_of(statement.keys, api)
        self.charges: Mask = self.chosen[statement.key]
        self.rows: Mask = self.chosen[statement.usage.key]
        self.total_minor = int(statement.billed_minor[self.charges].sum())
        self.contracted = [line.cost_ratio() if line.price is not None else (0, 1) for line in statement.lines]
        self.listed = [line.list_ratio() if line.price is not None else (0, 1) for line in statement.lines]

    def exact_total(self) -> Fraction:
        return self._exact(np.zeros(len(self.statement.keys), np.int64), 1, self.contracted)[0]

    def list_total(self) -> Fraction:
        return self._exact(np.zeros(len(self.statement.keys), np.int64), 1, self.listed)[0]

    def billed_of(self, lines: Sequence[bool]) -> int:
        """Billed cost of the charges of some lines."""
        picked = self.charges & np.array([*lines, False], np.bool_)[self.statement.line]
        return int(self.statement.billed_minor[picked].sum())

    def billed_in(self, column: str, values: Sequence[str]) -> int:
        """Billed cost of the charges whose key has one of some values."""
        codes, texts = records.codes(self.statement.keys, column)
        wanted = np.array([text in values for text in texts] + [False])[codes]
        picked = self.charges & wanted[self.statement.key]
        return int(self.statement.billed_minor[picked].sum())

    def breakdown(
        self,
        name: str,
        title: str,
        columns: Sequence[str],
        label: Labeller,
    ) -> Breakdown:
        """A table by some key columns; keys with the same label are one row."""
        labels, group = self._groups(columns, label)
        count = len(labels)
        statement = self.statement
        billed = money.add_by(group[statement.key[self.charges]], statement.billed_minor[self.charges], count)
        exact = self._exact(group, count, self.contracted)
        listed = exact if self.listed == self.contracted else self._exact(group, count, self.listed)
        of_usage = group[statement.usage.key[self.rows]]
        calls, client, backend = (
            money.add_by(of_usage, statement.usage.of(names)[self.rows], count)
            for names in (("calls",), CLIENT_BYTES, tuple(n for n in WIRE_BYTES if n not in CLIENT_BYTES))
        )
        seen = np.zeros(count, np.bool_)
        seen[group[statement.key[self.charges]]] = True
        seen[of_usage] = True
        found = [
            (
                labels[i].last,
                Row(
                    label=labels[i].text, note=labels[i].note, calls=int(calls[i]), client_bytes=int(client[i]),
                    backend_bytes=int(backend[i]), billed_minor=int(billed[i]), list_cost=listed[i],
                    contracted_cost=exact[i], named=labels[i].named,
                ),
            )
            for i in np.flatnonzero(seen).tolist()
        ]  # fmt: skip
        found.sort(key=lambda pair: (pair[0], -pair[1].contracted_cost, -pair[1].calls, pair[1].label, pair[1].note))
        rows = [row for _, row in found]
        return _folded(name, title, rows)

    def _groups(self, columns: Sequence[str], label: Labeller) -> tuple[list[Label], Ints]:
        """Labels, and for each key the position of its own. The last key is what nobody bears."""
        keys = self.statement.keys
        coded = {name: records.codes(self.tagged if name in TAGS else keys, name) for name in columns}
        combined, size = np.zeros(len(keys), np.int64), 1
        for codes, values in coded.values():
            if size * (len(values) + 1) >= 1 << 62:
                combined = np.unique(combined, return_inverse=True)[1]
                size = len(keys)
            combined, size = combined * (len(values) + 1) + codes + 1, size * (len(values) + 1)
        _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
        distinct = np.stack([codes[first] for codes, _ in coded.values()], axis=1)
        numbers: dict[Label, int] = {}
        of_distinct = []
        for row in distinct.tolist():
            texts = {name: None if code < 0 else coded[name][1][code] for name, code in zip(columns, row, strict=True)}
            of_distinct.append(numbers.setdefault(label(texts), len(numbers)))
        group = np.array(of_distinct, np.int64)[inverse.reshape(-1)]
        group[-1] = numbers.setdefault(Label(NOBODY, "", True, True), len(numbers))
        return list(numbers), group

    def _exact(self, group: Ints, count: int, ratios: Sequence[tuple[int, int]]) -> list[Fraction]:
        """Exact cost by group of keys, each line's quantity by its ratio."""
        divisor = lcm(1, *(bottom for _, bottom in ratios))
        statement = self.statement
        total = np.zeros(count, object)
        for number, (top, bottom) in enumerate(ratios):
            factor = top * (divisor // bottom)
            picked = self.charges & (statement.line == number)
            if factor and picked.any():
                sums = money.add_by(group[statement.key[picked]], statement.quantity[picked], count)
                total = total + sums.astype(object) * factor
        return [Fraction(value, divisor) for value in total.tolist()]

    def skus(self) -> list[SkuRow]:
        """What each line of the statement came to; lines without a price by scope."""
        statement = self.statement
        rows = []
        for number, line in enumerate(statement.lines):
            picked = np.flatnonzero(self.charges & (statement.line == number))
            quantity = statement.quantity[picked]
            parts: list[tuple[str | None, int]] = [(None, money.exact_sum(quantity))]
            if line.price is None:
                side = "upstream_scope" if line.meter.startswith("upstream") else "scope"
                codes, texts = records.codes(statement.keys, side)
                sums = money.add_by(codes[statement.key[picked]] + 1, quantity, len(texts) + 1)
                parts = [(text, int(sums[i])) for i, text in enumerate([None, *texts])]
            rows += [
                SkuRow(
                    sku=line.sku, meter=line.meter, tier=line.tier, days=(line.first_day, line.end_day),
                    reason=line.reason, quantity=Fraction(amount, line.unit_base), unit=line.unit,
                    price=line.contracted_price, list_price=line.price, currency=line.currency,
                    list_cost=None if line.price is None else line.list_cost_of(amount),
                    contracted_cost=None if line.price is None else line.cost_of(amount), scope=scope,
                )
                for scope, amount in parts
                if amount
            ]  # fmt: skip
        return rows


def _folded(name: str, title: str, rows: list[Row]) -> Breakdown:
    """The largest rows, the named ones, and one for the rest."""
    plain = [row for row in rows if not row.named]
    if len(plain) <= TOP_ROWS + 1:
        return Breakdown(id=name, title=title, rows=tuple(rows))
    rest = plain[TOP_ROWS:]
    hidden = {id(row) for row in rest}
    folded = Row(
        label=f"({len(rest)} others)", calls=sum(r.calls for r in rest), named=True,
        client_bytes=sum(r.client_bytes for r in rest), backend_bytes=sum(r.backend_bytes for r in rest),
        billed_minor=sum(r.billed_minor for r in rest), list_cost=sum((r.list_cost for r in rest), Fraction()),
        contracted_cost=sum((r.contracted_cost for r in rest), Fraction()),
    )  # fmt: skip
    kept = [row for row in rows if id(row) not in hidden]
    return Breakdown(id=name, title=title, rows=(*kept, folded), folded=len(rest))
