"""Figures as a page for people, as JSON for programs, and as the day table's CSV.

Rules of this file:
- Formats, never adds up: each number on the page is one of `monthly.Figures`.
- Everything is escaped by default (Jinja2 autoescape): names come from traffic.
- No clock and no host name: the same figures give the same bytes.
"""

from __future__ import annotations

import calendar
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pyarrow as pa

from apicost.core.rating import money
from apicost.core.rating.budget import Variance
from apicost.core.rating.days import DayFigure
from apicost.core.rating.period import utc_text
from apicost.report import charts, templating
from apicost.report.conformance.page import View as Conformance
from apicost.report.monthly import Breakdown, Figures, Row, SkuRow
from apicost.report.templating import percent, size

_METRICS = {
    "batches_received": "Batches of usage lines received",
    "lines_received": "Usage lines received",
    "lines_lost": "Usage lines lost (numbered by the gateway, never received)",
    "lines_duplicate": "Usage lines received again and counted once",
    "lines_refused": "Usage lines refused as malformed",
    "lines_dropped": "Usage lines dropped by the gateway (its queue was full)",
    "ring_records": "Turn records read from the kernel's ring",
    "ring_lost": "Turn records lost by the kernel's ring (bytes are kept)",
    "overflow_in_bytes": "Bytes in of connections beyond the kernel's table",
    "overflow_out_bytes": "Bytes out of connections beyond the kernel's table",
    "kernel_in_wire_bytes": "Wire bytes into the gateway, as the kernel counted",
    "kernel_out_wire_bytes": "Wire bytes out of the gateway, as the kernel counted",
}
_METERS = {
    "calls": "Requests",
    "downstream_in_wire_bytes": "Bytes from clients",
    "downstream_out_wire_bytes": "Bytes to clients",
    "upstream_in_wire_bytes": "Bytes from backends",
    "upstream_out_wire_bytes": "Bytes to backends",
    "app_only_bytes": "Bytes known to the gateway alone",
    "llm_prompt_tokens": "Prompt tokens",
    "llm_completion_tokens": "Completion tokens",
}
_LOSSES = ("lines_lost", "lines_dropped", "lines_refused", "ring_lost", "overflow_in_bytes", "overflow_out_bytes")
CHART_ROWS = 10


def html(figures: Figures, conformance: Conformance | None = None) -> str:
    """The page: one file with its style and charts inside. conformance: None where no document is known."""
    environment = templating.environment()
    environment.filters["plain"] = plain_fraction
    view = View(figures)
    return environment.get_template("month.html.j2").render(f=figures, view=view, losses=_LOSSES, c=conformance)


def as_json(figures: Figures, conformance: Mapping[str, Any] | None = None) -> str:
    """The same figures for programs: amounts as decimal text, byte counts as integers."""
    view = View(figures)
    out = {
        "month": figures.month, "time_zone": figures.time_zone, "period_start": utc_text(figures.start_unix_s),
        "period_end": utc_text(figures.end_unix_s), "api": figures.api, "currency": figures.currency,
        "price_book_id": figures.price_book, "price_book_version": figures.price_book_version,
        "summary": view.summary, "billed_cost": view.amount(figures.total_minor),
        "list_cost": plain_fraction(figures.total_list),
        "contracted_cost": plain_fraction(figures.total_exact),
        "statement_billed_cost": view.amount(figures.whole_minor),
        "unallocated_billed_cost": view.amount(figures.unallocated_minor),
        "failing_billed_cost": view.amount(figures.failing_minor),
        "undocumented_billed_cost": view.amount(figures.undocumented_minor), "calls": figures.calls,
        "client_wire_bytes": figures.client_bytes, "backend_wire_bytes": figures.backend_bytes,
        "by_api": _rows(view, figures.by_api), "by_operation": _rows(view, figures.by_operation),
        "by_consumer": _rows(view, figures.by_consumer), "by_status": _rows(view, figures.by_status),
        "by_team": _rows(view, figures.by_team) if figures.by_team else [],
        "by_day": [
            {
                "date": str(day.day), "calls": day.calls, "wire_bytes": day.wire_bytes,
                "billed_cost": view.amount(day.billed_minor),
            }
            for day in figures.days
        ],
        "no_day_billed_cost": view.amount(figures.no_day_minor),
        "by_price": [_sku(row) for row in figures.skus],
        "unpriced": [_sku(row) for row in figures.unpriced],
        "confidence_wire_bytes": dict(figures.confidence), "app_only_bytes": figures.app_only_bytes,
        "app_only_calls": figures.app_only_calls,
        "completeness": None if figures.completeness is None else dict(figures.completeness),
        "damaged": list(figures.damaged), "charges": figures.charges,
        "budgets": [
            {
                "for": row.label, "amount": money.plain(row.amount), "billed_cost": view.amount(row.billed_minor),
                "left": money.plain(row.left), "used": percent_of(row),
            }
            for row in figures.budgets
        ],
        **({"conformance": conformance} if conformance else {}),
    }  # fmt: skip
    return json.dumps(out, ensure_ascii=False, indent=1) + "\n"


def day_table(figures: Figures) -> pa.Table:
    """The days of the month as a table for days.csv; the last row is what belongs to no day."""
    view = View(figures)
    rows: list[Mapping[str, Any]] = [
        {
            "date": str(day.day), "period_start": utc_text(day.start_unix_s), "period_end": utc_text(day.end_unix_s),
            "calls": day.calls, "wire_bytes": day.wire_bytes, "billed_cost": view.amount(day.billed_minor),
            "currency": figures.currency,
        }
        for day in figures.days
    ]  # fmt: skip
    if figures.no_day_minor:
        nothing = {"date": None, "calls": 0, "wire_bytes": 0, "currency": figures.currency}
        times = {"period_start": utc_text(figures.start_unix_s), "period_end": utc_text(figures.end_unix_s)}
        rows.append(nothing | times | {"billed_cost": view.amount(figures.no_day_minor)})
    names = ("date", "period_start", "period_end", "calls", "wire_bytes", "billed_cost", "currency")
    kinds = {"calls": pa.int64(), "wire_bytes": pa.int64()}
    return pa.table({name: pa.array([row[name] for row in rows], kinds.get(name, pa.string())) for name in names})


class View:
    """What the template asks of the figures beyond their fields: words and charts."""

    def __init__(self, figures: Figures) -> None:
        self.f = figures
        year, month = figures.month.split("-")
        self.month_name = f"{calendar.month_name[int(month)]} {year}"

    def amount(self, minor: int) -> str:
        """Plain: 1234.50"""
        return money.fixed(minor, self.f.scale)

    def cost(self, minor: int) -> str:
        """For people: 1,234.50"""
        whole, _, rest = money.fixed(minor, self.f.scale).partition(".")
        return f"{int(whole):,}" + (f".{rest}" if rest else "")

    def share(self, minor: int) -> str:
        """Part of the total."""
        return percent(minor, self.f.total_minor)

    def title_of(self, api: str) -> str:
        info = self.f.apis.get(api)
        return info.title if info else ""

    def owner_of(self, api: str) -> str:
        info = self.f.apis.get(api)
        return " · ".join(filter(None, (info.team, info.owner))) if info else ""

    @property
    def summary(self) -> str:
        """The month in a sentence or two."""
        f = self.f
        whose = f"API {f.api}" if f.api else "the gateway's APIs"
        text = f"In {self.month_name} {whose} cost {self.cost(f.total_minor)} {f.currency} for {f.calls:,} requests"
        text += self._change() + "."
        apis = [row for row in f.by_api.rows if not row.named]
        if not f.api and apis and f.total_minor:
            first = apis[0]
            text += (
                f" {first.label} is the largest with {self.cost(first.billed_minor)} {f.currency}"
                f" ({self.share(first.billed_minor)})"
            )
            if f.unallocated_minor:
                text += f"; {self.cost(f.unallocated_minor)} {f.currency} is borne by no traffic (unallocated)"
            text += "."
        return text

    def _change(self) -> str:
        if self.f.previous is None:
            return ""
        name, before = self.f.previous
        change = self.f.total_minor - before
        if not change:
            return f", as much as in {name}"
        part = f" ({percent(abs(change), before)})" if before else ""
        return f", {self.cost(abs(change))}{part} {'more' if change > 0 else 'less'} than in {name}"

    @property
    def attention(self) -> list[str]:
        """What a reader should know before trusting or forwarding the total."""
        f, out = self.f, []
        out += [f"Part of the ledger could not be read: {what}." for what in f.damaged]
        known = dict(f.completeness or ())
        lost = known.get("lines_lost", 0)
        if lost:
            sent = lost + known.get("lines_received", 0)
            out.append(f"{lost:,} usage lines were lost ({percent(lost, sent)} of those numbered): their requests are "
                       "missing here; their bytes are in the unattributed row.")  # fmt: skip
        if f.completeness is None:
            out.append("The ledger holds no completeness figures for this month.")
        if f.app_only_calls:
            out.append(
                f"{f.app_only_calls:,} requests ({percent(f.app_only_calls, f.calls)}) had no kernel flow: "
                f"their {size(f.app_only_bytes)} are the gateway's own counts and are not priced as wire bytes."
            )
        if f.unpriced:
            kinds = "kind" if len(f.unpriced) == 1 else "kinds"
            out.append(
                f"Not in the total: {len(f.unpriced)} {kinds} of usage without a price in this price book, "
                "listed below with their quantities."
            )
        if f.undocumented_minor:
            out.append(
                f"Traffic that no OpenAPI document describes cost {self.cost(f.undocumented_minor)} {f.currency} "
                f"({self.share(f.undocumented_minor)})."
            )
        if f.failing_minor:
            out.append(
                f"Failing requests (4xx, 5xx) cost {self.cost(f.failing_minor)} {f.currency} "
                f"({self.share(f.failing_minor)})."
            )
        return out

    @property
    def days_chart(self) -> Any:
        bars = [
            charts.Bar(
                label=str(d.day.day), value=float(d.billed_minor) / 10**self.f.scale, muted=d.day.weekday() >= 5,
                text=f"{self.cost(d.billed_minor)} {self.f.currency}, {d.calls:,} requests", hint=f"{d.day:%a} {d.day}",
            )
            for d in self.f.days
        ]  # fmt: skip
        return charts.columns(bars, "Cost by day", unit=self.f.currency)

    def chart(self, table: Breakdown) -> Any:
        """Bars of a table's largest rows."""
        rows = [
            charts.Bar(
                label=row.label, value=float(row.billed_minor), muted=row.named,
                text=f"{self.cost(row.billed_minor)}  ({self.share(row.billed_minor)})",
            )
            for row in sorted(table.rows, key=lambda r: -r.billed_minor)[:CHART_ROWS]
            if row.billed_minor
        ]  # fmt: skip
        return charts.bars(rows, table.title) if rows else ""

    @property
    def confidence_chart(self) -> Any:
        parts = [charts.Bar(label=name, value=float(n), text=size(n)) for name, n in self.f.confidence]
        return charts.stacked(parts, "Wire bytes by confidence")

    @property
    def contract_words(self) -> str:
        """What contracts made of the list prices; empty without contracts."""
        saved = self.f.total_list - self.f.total_exact
        if not saved:
            return ""
        cents = money.half_even(abs(saved) * 10**self.f.scale)
        listed = money.half_even(self.f.total_list * 10**self.f.scale)
        how = "less" if saved > 0 else "more"
        return (f"Contracts make this {self.cost(cents)} {self.f.currency} {how} than the "
                f"{self.cost(listed)} {self.f.currency} of list prices.")  # fmt: skip

    def price_words(self, row: SkuRow) -> str:
        """A price with what it was without a contract, and its currency where that is not the statement's."""
        assert row.price is not None, f"{row.sku} has no price"
        text = money.plain(row.price)
        if row.currency != self.f.currency:
            text += f" {row.currency}"
        return text if row.list_price in (None, row.price) else f"{text} (list {money.plain(row.list_price or 0)})"

    def used(self, row: Variance) -> str:
        """How much of a budget is used."""
        part = percent_of(row)
        return "–" if part is None else f"{part} %"

    def left(self, row: Variance) -> str:
        """What a budget has left, with the sign of what it lacks."""
        places = money.half_even(Fraction(row.left) * 10**self.f.scale)
        return ("-" if places < 0 else "") + self.cost(abs(places))

    @property
    def wire_bytes(self) -> int:
        return self.f.client_bytes + self.f.backend_bytes

    @property
    def kernel_bytes(self) -> int | None:
        """What the kernel counted, both directions; None where the probe counted nothing."""
        known = dict(self.f.completeness or ())
        counted = known.get("kernel_in_wire_bytes", 0) + known.get("kernel_out_wire_bytes", 0)
        return counted or None

    @property
    def busy_days(self) -> list[DayFigure]:
        """Days on which anything was."""
        return [day for day in self.f.days if day.calls or day.wire_bytes or day.billed_minor]

    @property
    def metrics(self) -> list[tuple[str, str, int]]:
        """Completeness in reading order: (metric, words, value); unknown metrics last, by name."""
        order = list(_METRICS)
        known = sorted(self.f.completeness or (), key=lambda m: (order.index(m[0]) if m[0] in order else 99, m[0]))
        return [(name, _METRICS.get(name, name), value) for name, value in known]

    def meter_words(self, meter: str) -> str:
        """A measure in words."""
        return _METERS.get(meter, meter)

    def dates(self, row: SkuRow) -> str:
        """The days of a price, where they are not the whole month."""
        first, end = row.days
        return "" if end - first == len(self.f.days) else f"{first + 1} to {end}"


def plain_fraction(amount: Fraction | None) -> str | None:
    """Exact plain decimal text of a fraction whose denominator divides a power of ten."""
    if amount is None:
        return None
    power = 1
    scale = 0
    while power % amount.denominator:
        power, scale = power * 10, scale + 1
    text = money.fixed(amount.numerator * (power // amount.denominator), scale)
    return text.rstrip("0").rstrip(".") if scale else text


def percent_of(row: Variance) -> str | None:
    """How much of a budget is used, in percent with one place; None of a budget of nothing."""
    return None if row.used is None else money.fixed(money.half_even(row.used * 1000), 1)


def _rows(view: View, table: Breakdown) -> list[dict[str, Any]]:
    def of(row: Row) -> dict[str, Any]:
        return {
            "label": row.label, "note": row.note, "calls": row.calls, "client_wire_bytes": row.client_bytes,
            "backend_wire_bytes": row.backend_bytes, "billed_cost": view.amount(row.billed_minor),
            "list_cost": plain_fraction(row.list_cost), "contracted_cost": plain_fraction(row.contracted_cost),
        }  # fmt: skip

    return [of(row) for row in table.rows]


def _sku(row: SkuRow) -> dict[str, Any]:
    return {
        "sku": row.sku, "meter": row.meter, "tier": row.tier, "scope": row.scope, "reason": row.reason,
        "quantity": plain_fraction(row.quantity), "unit": row.unit,
        "unit_price": None if row.list_price is None else money.plain(row.list_price),
        "contracted_unit_price": None if row.price is None else money.plain(row.price),
        "pricing_currency": row.currency or None, "list_cost": plain_fraction(row.list_cost),
        "contracted_cost": plain_fraction(row.contracted_cost),
    }  # fmt: skip
