"""Figures as a page for people, and as the day table's CSV.

Rules of this file:
- Formats, never adds up: each number on the page is one of `monthly.Figures`.
- Everything is escaped by default (Jinja2 autoescape): names come from traffic.
- No clock and no host name: the same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pyarrow as pa

from apicost.core import prompts, records
from apicost.core.rating import money
from apicost.core.rating.budget import Variance
from apicost.core.rating.days import DayFigure
from apicost.core.rating.period import utc_text
from apicost.core.rating.statement import CORRECTION
from apicost.report import charts, templating
from apicost.report.conformance.page import View as Conformance
from apicost.report.month import words
from apicost.report.month.as_json import as_json, percent_of, plain_fraction
from apicost.report.month.forecast import COVERAGE_PCT, BudgetForecast
from apicost.report.month.monthly import Breakdown, Figures, SkuRow
from apicost.report.month.movers import CAUSES, Mover
from apicost.report.month.overhead import KINDS
from apicost.report.month.shared import Bearer, SharedFigure
from apicost.report.templating import part_text, percent, size

__all__ = ["View", "as_json", "day_table", "html", "plain_fraction"]

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
    **{name: f"Started blocks of {size >> 10} KiB" for size, name in records.QUANTA.items()},
    "calls_without_quanta": "Requests whose blocks were not counted",
    "llm_calls_without_tokens": "Requests to a model without token counts",
    "llm_prompt_tokens": "Prompt tokens",
    "llm_completion_tokens": "Completion tokens",
}
_LOSSES = ("lines_lost", "lines_dropped", "lines_refused", "ring_lost", "overflow_in_bytes", "overflow_out_bytes")
_CAUSES = {
    "volume": "Volume", "price": "Price", "mix": "Mix", "fixed": "Fixed cost", "new": "New", "gone": "Gone",
    "corrections": "Corrections",
}  # fmt: skip
_SPEND = (
    ("undocumented", "Traffic that no OpenAPI document describes", "undocumented paths and methods, unknown hosts"),
    ("client_errors", "Requests answered with 4xx", "client errors"),
    ("server_errors", "Requests answered with 5xx", "server errors"),
    ("overhead", "Overhead on the wire", "TLS and framing, headers, retransmissions, handshakes and closes"),
    ("unallocated", "Shared cost that no traffic bears", "unallocated"),
)
WIRE_KINDS = {
    "own": "Requests' own bytes", "framing": "TLS, framing", "headers": "IP and TCP headers", "resent": "Sent again",
    "handshakes": "Handshakes, closes",
}  # fmt: skip
CHART_ROWS = 10


def html(figures: Figures, conformance: Conformance | None = None) -> str:
    """The page: one file with its style and charts inside. conformance: None where no document is known."""
    environment = templating.environment()
    environment.filters["plain"] = plain_fraction
    view = View(figures)
    return environment.get_template("month.html.j2").render(
        f=figures, view=view, losses=_LOSSES, c=conformance, wire_kinds=[WIRE_KINDS[kind] for kind in KINDS]
    )  # fmt: skip


def day_table(figures: Figures) -> pa.Table:
    """The days of the month as a table for days.csv; after them what belongs to no day, and corrections."""
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
    if figures.corrections.count:
        nothing = {"date": None, "calls": 0, "wire_bytes": 0, "currency": figures.currency, "charge_class": CORRECTION}
        rows.append(nothing | {"billed_cost": view.amount(figures.corrections.billed_minor)})
    names = ("date", "period_start", "period_end", "calls", "wire_bytes", "billed_cost", "currency", "charge_class")
    kinds = {"calls": pa.int64(), "wire_bytes": pa.int64()}
    return pa.table({name: pa.array([row.get(name) for row in rows], kinds.get(name, pa.string())) for name in names})


class View:
    """What the template asks of the figures beyond their fields: words and charts."""

    def __init__(self, figures: Figures) -> None:
        self.f = figures
        self.month_name = words.month_name(figures.month)
        self.before_name = words.month_name(figures.before.month) if figures.before else ""
        self.summary = words.summary(figures)
        self.details = words.details(figures)
        self.attention = words.attention(figures)
        self.reason = words.reason

    def amount(self, minor: int) -> str:
        """Plain: 1234.50"""
        return words.amount(minor, self.f.scale)

    def cost(self, minor: int) -> str:
        """For people: 1,234.50"""
        return words.cost(minor, self.f.scale)

    def signed(self, minor: int | None) -> str:
        """A difference: +1,234.50; a dash where there is none to tell."""
        return "–" if minor is None else words.signed(minor, self.f.scale)

    def share(self, minor: int) -> str:
        """Part of the total."""
        return percent(minor, self.f.total_minor)

    def moved(self, billed: int, before: int | None) -> str:
        """A change in percent of what was."""
        return "–" if before is None else words.signed_percent(billed - before, before)

    def title_of(self, api: str) -> str:
        info = self.f.apis.get(api)
        return info.title if info else ""

    def owner_of(self, api: str) -> str:
        info = self.f.apis.get(api)
        return " · ".join(filter(None, (info.team, info.owner))) if info else ""

    @property
    def change_minor(self) -> int | None:
        """The total less that of the month before."""
        return None if self.f.before is None else self.f.total_minor - self.f.before.total_minor

    @property
    def causes(self) -> list[tuple[str, str]]:
        """The columns of what moved: causes that moved anything, volume, price and mix always."""
        rows = [*self.f.movers.by_api, *self.f.movers.by_operation] if self.f.movers else []
        always = ("volume", "price", "mix")
        return [(c, _CAUSES[c]) for c in CAUSES if c in always or any(row.parts[c] for row in rows)]

    @property
    def has_fixed(self) -> bool:
        return any(cause == "fixed" for cause, _ in self.causes)

    def part(self, rows: Sequence[Mover], cause: str) -> int:
        """A cause's part of the whole change."""
        return sum(row.parts[cause] for row in rows)

    @property
    def spend(self) -> list[tuple[str, str, str, int, int | None]]:
        """What is worth a question: (id, words, note, cost, that of the month before)."""
        now, before = self.f.spend, self.f.before.spend if self.f.before else None
        return [
            (name, text, note, getattr(now, name), getattr(before, name) if before else None)
            for name, text, note in _SPEND
        ]

    @property
    def wire_parts(self) -> list[int]:
        """What all SKUs of wire bytes were billed, by kind."""
        return [sum(parts) for parts in zip(*(row.parts for row in self.f.wire), strict=True)]

    @property
    def wire_billed(self) -> int:
        return sum(row.billed_minor for row in self.f.wire)

    def shared_words(self, shared: SharedFigure) -> str:
        """How a shared cost was split."""
        weights = " and ".join(f"{part_text(Fraction(w))} by {name}" for name, w in shared.weights.items())
        text = f"{money.plain(shared.amount)} {self.f.currency} a month, split by {shared.method}: {weights}"
        if shared.keep_unallocated:
            text += f"; {part_text(Fraction(shared.keep_unallocated))} of it is kept unallocated as idle"
        return text + "."

    def weight(self, row: Bearer, measure: str) -> str:
        """An API's part of a weight."""
        return part_text(row.weights[measure]) if measure in row.weights else "–"

    def part_of(self, cost: Fraction, amount: Decimal) -> str:
        """A cost as part of an amount."""
        return part_text(cost / Fraction(amount)) if amount else "–"

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

    @property
    def forecast_chart(self) -> Any:
        """The forecast beside what is billed so far and what the month before was."""
        coming = self.f.forecast
        assert coming is not None, "no forecast, no chart"

        def bar(label: str, minor: int, *, muted: bool = False) -> charts.Bar:
            value = max(float(minor) / 10**self.f.scale, 0.0)
            return charts.Bar(label=label, value=value, text=self.cost(minor), muted=muted)

        marks = [bar(f"billed so far, {coming.days_left} days left", coming.so_far_minor)]
        if self.f.before:
            marks.insert(0, bar(self.before_name, self.f.before.total_minor, muted=True))
        low, high = bar("low", coming.low_minor), bar("high", coming.high_minor)
        return charts.span(low, bar("expected at the month's end", coming.point_minor), high, marks, "Forecast")

    @property
    def coverage_pct(self) -> int:
        return COVERAGE_PCT

    def expected(self, number: int) -> BudgetForecast | None:
        """What a budget is expected to be held against."""
        return self.f.forecast.budgets[number] if self.f.forecast else None

    def expected_left(self, row: BudgetForecast) -> str:
        """What a budget is expected to have left."""
        return self.cost(money.half_even(Fraction(row.amount) * 10**self.f.scale) - row.point_minor)

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

    def planned(self, row: Variance) -> str:
        """A budget's amount."""
        return self.cost(money.half_even(Fraction(row.amount) * 10**self.f.scale))

    def used(self, row: Variance) -> str:
        """How much of a budget is used."""
        part = percent_of(row)
        return "–" if part is None else f"{part} %"

    def left(self, row: Variance) -> str:
        """What a budget has left, with the sign of what it lacks."""
        return self.cost(money.half_even(Fraction(row.left) * 10**self.f.scale))

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
        return _METERS.get(prompts.column_of(meter), meter)

    def dates(self, row: SkuRow) -> str:
        """The days of a price, where they are not the whole month."""
        first, end = row.days
        return "" if end - first == len(self.f.days) else f"{first + 1} to {end}"
