"""What a month's report says in sentences: the month in one, why it changed, and what to know before forwarding it.

Rules of this file:
- A sentence quotes figures of `Figures`; it works out none but shares and percentages.
"""

from __future__ import annotations

import calendar

from apicost.core.rating import money
from apicost.report.month.forecast import COVERAGE_PCT
from apicost.report.month.labels import NO_API
from apicost.report.month.monthly import Figures
from apicost.report.month.movers import BOOK, CONTRACT, RATE, Mover
from apicost.report.templating import percent, size


def amount(minor: int, scale: int) -> str:
    """Plain: 1234.50"""
    return money.fixed(minor, scale)


def cost(minor: int, scale: int) -> str:
    """For people: 1,234.50"""
    whole, _, rest = money.fixed(abs(minor), scale).partition(".")
    return ("-" if minor < 0 else "") + f"{int(whole):,}" + (f".{rest}" if rest else "")


def signed(minor: int, scale: int) -> str:
    """A difference for people: +1,234.50, -0.07 or 0.00."""
    return ("+" if minor > 0 else "") + cost(minor, scale)


def signed_percent(change: int, before: int) -> str:
    """A change in percent of what was, with its sign: +2.3 %; a dash where there was nothing."""
    text = percent(abs(change), abs(before))
    return text if not before or not change else ("+" if change > 0 else "-") + text


def month_name(month: str) -> str:
    """October 2026, of 2026-10."""
    year, number = month.split("-")
    return f"{calendar.month_name[int(number)]} {year}"


def reason(row: Mover, cause: str | None = None) -> str:
    """Why a row changed, in a few words: its main cause, or another of its causes. "" where nothing changed."""
    cause = row.cause if cause is None else cause
    part = row.parts[cause] if cause else 0
    words = {
        "volume": ("more traffic", "less traffic"),
        "price": ("higher prices", "lower prices"),
        "mix": ("a dearer mix", "a cheaper mix"),
        "fixed": ("a larger share of fixed cost", "a smaller share of fixed cost"),
        "new": ("new", "new"),
        "gone": ("gone", "gone"),
        "corrections": ("corrections", "corrections"),
    }.get(cause, ("", ""))
    if cause == "fixed" and row.label.text == NO_API:  # shortfalls are no share of anything
        words = ("larger shortfalls of commitments", "smaller shortfalls of commitments")
    text = words[0 if part > 0 else 1]
    return f"{text} ({row.price_moved})" if cause == "price" and row.price_moved else text


def summary(f: Figures) -> str:
    """The month in one sentence: total, change on the month before, and why."""
    whose = f"API {f.api}" if f.api else "the gateway's APIs"
    text = f"In {month_name(f.month)} {whose} cost {cost(f.total_minor, f.scale)} {f.currency}"
    if f.forecast:
        return f"{text} so far; {_expected(f)}."
    if f.before is None:
        return f"{text} for {f.calls:,} requests."
    name, before = month_name(f.before.month), f.before.total_minor
    change = f.total_minor - before
    if not change:
        return f"{text}, as much as in {name}."
    part = f" ({percent(abs(change), abs(before))})" if before else ""
    text += f", {cost(abs(change), f.scale)}{part} {'more' if change > 0 else 'less'} than in {name}"
    return f"{text}{_why(f)}."


def _why(f: Figures) -> str:
    """The largest cause of the total's change, and of which API."""
    if f.movers is None or f.movers.main is None:
        return ""
    row, cause = f.movers.main
    name = row.label.text
    moved = f" ({signed(row.parts[cause], f.scale)} {f.currency})"
    more = row.parts[cause] > 0
    if cause == "volume":
        why = f"{name} carried {'more' if more else 'less'} traffic"
    elif cause == "price":
        what = {RATE: "the exchange rate", CONTRACT: "contracts", BOOK: "the price book"}.get(
            row.price_moved, "the tiers and free units that were reached"
        )
        why = f"{what} made {name} {'dearer' if more else 'cheaper'}"
    elif cause == "mix":
        why = f"{name}'s traffic shifted to {'dearer' if more else 'cheaper'} operations, networks or consumers"
    elif cause == "fixed":
        why = f"{name} bears {'more' if more else 'less'} of the fixed cost"
        if name == NO_API:
            why = f"usage fell {'further' if more else 'less far'} short of commitments"
    elif cause == "corrections":
        why = "closed months were corrected"
        if not f.corrections.count and f.before is not None:
            why = f"{month_name(f.before.month)} bore corrections of closed months and this month bears none"
    else:
        why = f"{name} is {'new' if cause == 'new' else 'gone'}"
    return f", mostly because {why}{moved}"


def details(f: Figures) -> list[str]:
    """What follows the first sentence: corrections, the largest API, what nobody bears, the forecast."""
    out = []
    if f.corrections.count:
        out.append(
            f"The month's own usage cost {cost(f.usage_minor, f.scale)} {f.currency}; corrections of closed months "
            f"come to {signed(f.corrections.billed_minor, f.scale)} {f.currency}."
        )
    apis = [row for row in f.by_api.rows if not row.named and row.billed_minor > 0]
    if not f.api and apis and f.total_minor > 0:
        first = apis[0]
        text = f"The largest API is {first.label} with {cost(first.billed_minor, f.scale)} {f.currency}"
        text += f" ({percent(first.billed_minor, f.total_minor)})"
        if f.spend.unallocated:
            text += f"; {cost(f.spend.unallocated, f.scale)} {f.currency} is borne by no traffic (unallocated)"
        out.append(text + ".")
    if f.forecast:
        out.append(_interval(f))
    return out


def _expected(f: Figures) -> str:
    """The forecast beside the month before."""
    assert f.forecast is not None, "no forecast"
    expected = f.forecast.point_minor
    text = f"about {cost(expected, f.scale)} is expected by its end"
    if f.before is None:
        return text
    name, before = month_name(f.before.month), f.before.total_minor
    change = expected - before
    part = f" ({percent(abs(change), abs(before))})" if before else ""
    how = f"{cost(abs(change), f.scale)}{part} {'more' if change > 0 else 'less'} than in {name}"
    return f"{text}, {how if change else f'as much as in {name}'}"


def _interval(f: Figures) -> str:
    """How sure the forecast is."""
    assert f.forecast is not None, "no forecast"
    low, high = cost(f.forecast.low_minor, f.scale), cost(f.forecast.high_minor, f.scale)
    return (
        f"From the days to {f.forecast.as_of}, the month ends between {low} and {high} {f.currency} with a chance of "
        f"{COVERAGE_PCT} %."
    )


def attention(f: Figures) -> list[str]:
    """What a reader should know before trusting or forwarding the total."""
    out = [f"Part of the ledger could not be read: {what}." for what in f.damaged]
    if f.forecast:
        out.append(f"The month has not ended: its data are complete to {f.forecast.as_of}.")
    if f.unlocked:
        rates = "rate is" if len(f.unlocked) == 1 else "rates are"
        out.append(f"The exchange {rates} not locked: {', '.join(f.unlocked)}. The total may still change.")
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
    return out
