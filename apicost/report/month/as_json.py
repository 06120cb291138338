"""The figures of a month as JSON for programs: amounts as decimal text, byte counts as integers.

Rules of this file:
- Every key stands in docs/reports.md. Keys stay; new ones come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from apicost.core.rating import money
from apicost.core.rating.budget import Variance
from apicost.core.rating.period import utc_text
from apicost.report.month import words
from apicost.report.month.breakdown import Breakdown, Row
from apicost.report.month.forecast import COVERAGE_PCT
from apicost.report.month.monthly import Figures, SkuRow
from apicost.report.month.movers import Mover
from apicost.report.month.overhead import KINDS
from apicost.report.month.shared import SharedFigure


def as_json(figures: Figures, conformance: Mapping[str, Any] | None = None) -> str:
    """The same figures as the page's."""
    f = figures
    out = {
        **_head(f), **_tables(f), **_comparison(f), **_costs(f), **_quality(f),
        **({"conformance": conformance} if conformance else {}),
    }  # fmt: skip
    return json.dumps(out, ensure_ascii=False, indent=1) + "\n"


def _head(f: Figures) -> dict[str, Any]:
    before = f.before
    return {
        "month": f.month, "time_zone": f.time_zone, "period_start": utc_text(f.start_unix_s),
        "period_end": utc_text(f.end_unix_s), "api": f.api, "currency": f.currency,
        "price_book_id": f.price_book, "price_book_version": f.price_book_version, "closed": f.closed,
        "summary": words.summary(f), "billed_cost": _amount(f, f.total_minor),
        "usage_billed_cost": _amount(f, f.usage_minor),
        "corrections_billed_cost": _amount(f, f.corrections.billed_minor),
        "list_cost": plain_fraction(f.total_list), "contracted_cost": plain_fraction(f.total_exact),
        "statement_billed_cost": _amount(f, f.whole_minor),
        "unallocated_billed_cost": _amount(f, f.spend.unallocated),
        "failing_billed_cost": _amount(f, f.failing_minor),
        "undocumented_billed_cost": _amount(f, f.spend.undocumented), "calls": f.calls,
        "client_wire_bytes": f.client_bytes, "backend_wire_bytes": f.backend_bytes,
        "previous": None if before is None else {
            "month": before.month, "billed_cost": _amount(f, before.total_minor),
            "corrections_billed_cost": _amount(f, before.corrections_minor),
            "contracted_cost": plain_fraction(before.total_exact), "calls": before.calls,
            "client_wire_bytes": before.client_bytes,
        },
    }  # fmt: skip


def _tables(f: Figures) -> dict[str, Any]:
    return {
        "by_api": _rows(f, f.by_api), "by_operation": _rows(f, f.by_operation),
        "by_consumer": _rows(f, f.by_consumer), "by_status": _rows(f, f.by_status),
        "by_team": _rows(f, f.by_team) if f.by_team else [],
        "by_day": [
            {
                "date": str(day.day), "calls": day.calls, "wire_bytes": day.wire_bytes,
                "billed_cost": _amount(f, day.billed_minor),
            }
            for day in f.days
        ],
        "no_day_billed_cost": _amount(f, f.no_day_minor),
        "by_price": [_sku(row) for row in f.skus],
        "unpriced": [_sku(row) for row in f.unpriced],
    }  # fmt: skip


def _comparison(f: Figures) -> dict[str, Any]:
    """What moved, and what is worth a question."""
    before = f.before.spend if f.before else None
    return {
        "movers": None if f.movers is None else {
            "main_api": f.movers.main[0].label.text if f.movers.main else None,
            "main_cause": f.movers.main[1] if f.movers.main else None,
            "by_api": _movers(f, f.movers.by_api), "by_operation": _movers(f, f.movers.by_operation),
        },
        "spend": {
            name: {
                "billed_cost": _amount(f, getattr(f.spend, name)),
                "previous_billed_cost": _amount(f, getattr(before, name)) if before else None,
            }
            for name in ("undocumented", "client_errors", "server_errors", "overhead", "unallocated")
        },
    }  # fmt: skip


def _costs(f: Figures) -> dict[str, Any]:
    """Where costs come from: the wire, shared costs, corrections; what was planned, and what is to come."""
    expected = f.forecast.budgets if f.forecast else [None] * len(f.budgets)
    return {
        "wire": [
            {
                "sku": row.sku, "wire_bytes": row.wire_bytes, "billed_cost": _amount(f, row.billed_minor),
                "overhead_billed_cost": _amount(f, row.overhead_minor),
                **{f"{kind}_billed_cost": _amount(f, part) for kind, part in zip(KINDS, row.parts, strict=True)},
            }
            for row in f.wire
        ],
        "shared_costs": [_shared(f, shared) for shared in f.shared],
        "corrections": [
            {
                "month": row.month, "label": row.label.text, "charges": row.rows,
                "billed_cost": _amount(f, row.billed_minor),
            }
            for row in f.corrections.rows
        ],
        "budgets": [
            {
                "for": row.label, "amount": money.plain(row.amount), "billed_cost": _amount(f, row.billed_minor),
                "left": money.plain(row.left), "used": percent_of(row),
                "forecast": _amount(f, coming.point_minor) if coming else None,
            }
            for row, coming in zip(f.budgets, expected, strict=True)
        ],
        "forecast": _forecast(f),
    }  # fmt: skip


def _forecast(f: Figures) -> dict[str, Any] | None:
    coming = f.forecast
    if coming is None:
        return None
    return {
        "as_of": str(coming.as_of), "days_left": coming.days_left, "days_known": coming.days_known,
        "billed_cost_so_far": _amount(f, coming.so_far_minor), "billed_cost": _amount(f, coming.point_minor),
        "low": _amount(f, coming.low_minor), "high": _amount(f, coming.high_minor), "coverage_pct": COVERAGE_PCT,
    }  # fmt: skip


def _quality(f: Figures) -> dict[str, Any]:
    return {
        "confidence_wire_bytes": dict(f.confidence), "app_only_bytes": f.app_only_bytes,
        "app_only_calls": f.app_only_calls,
        "completeness": None if f.completeness is None else dict(f.completeness), "damaged": list(f.damaged),
        "charges": f.charges, "unlocked_rates": list(f.unlocked),
    }  # fmt: skip


def _rows(f: Figures, table: Breakdown) -> list[dict[str, Any]]:
    def of(row: Row) -> dict[str, Any]:
        return {
            "label": row.label, "note": row.note, "calls": row.calls, "client_wire_bytes": row.client_bytes,
            "backend_wire_bytes": row.backend_bytes, "billed_cost": _amount(f, row.billed_minor),
            "list_cost": plain_fraction(row.list_cost), "contracted_cost": plain_fraction(row.contracted_cost),
            "previous_billed_cost": None if row.before_minor is None else _amount(f, row.before_minor),
        }  # fmt: skip

    return [of(row) for row in table.rows]


def _movers(f: Figures, rows: Sequence[Mover]) -> list[dict[str, Any]]:
    return [
        {
            "label": row.label.text, "note": row.label.note, "previous_billed_cost": _amount(f, row.before_minor),
            "billed_cost": _amount(f, row.billed_minor), "change": _amount(f, row.change_minor),
            **{cause: _amount(f, part) for cause, part in row.parts.items()},
            "cause": row.cause or None, "price_moved": row.price_moved or None,
        }
        for row in rows
    ]  # fmt: skip


def _shared(f: Figures, shared: SharedFigure) -> dict[str, Any]:
    return {
        "id": shared.id, "amount": money.plain(shared.amount), "method": shared.method,
        "weights": {name: money.plain(weight) for name, weight in shared.weights.items()},
        "keep_unallocated": money.plain(shared.keep_unallocated), "idle": plain_fraction(shared.idle),
        "billed_cost": _amount(f, shared.billed_minor),
        "borne": [
            {
                "label": row.label.text, "note": row.label.note, "cost": plain_fraction(row.cost),
                "billed_cost": _amount(f, row.billed_minor),
            }
            for row in shared.rows
        ],
    }  # fmt: skip


def _sku(row: SkuRow) -> dict[str, Any]:
    return {
        "sku": row.sku, "meter": row.meter, "tier": row.tier, "scope": row.scope, "reason": row.reason,
        "quantity": plain_fraction(row.quantity), "unit": row.unit,
        "unit_price": None if row.list_price is None else money.plain(row.list_price),
        "contracted_unit_price": None if row.price is None else money.plain(row.price),
        "pricing_currency": row.currency or None, "list_cost": plain_fraction(row.list_cost),
        "contracted_cost": plain_fraction(row.contracted_cost),
    }  # fmt: skip


def _amount(f: Figures, minor: int) -> str:
    return words.amount(minor, f.scale)


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
