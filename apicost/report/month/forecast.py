"""What a month will cost when it ends, from its complete days and those of the month before. An estimate.

Rules of this file:
- What is estimated are requests and wire bytes of each day to come; what they cost is rated by the price book, with its
  tiers, free units, contracts, commitments and shared costs, on top of what was measured.
- A day is expected to have the level of the days before it, times an index of its weekday. The level is smoothed
  exponentially; index and smoothing are found in the days that are known.
- The interval is the prediction interval of that model (exponential smoothing in state space form: in the error of a
  sum of days to come, that of each day weighs 1 + a(h - i)), widened for what few days say of a weekday, with
  Student's t.
- No clock: what is complete is an argument. Decimal arithmetic, so that the same days give the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np

from apicost.core.rating import money, rate
from apicost.core.rating.budget import Variance
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.statement import USAGE, Statement
from apicost.core.rating.usage_rows import UsageRows
from apicost.report.export import keys_of

COVERAGE_PCT = 80
FEWEST_DAYS = 7  # of both months: fewer say nothing of a weekday
TREND_DAYS = 28  # fewer say nothing of a trend
_SMOOTHINGS = tuple(Decimal(text) for text in ("0.02", "0.05", "0.1", "0.2", "0.3", "0.5"))
# Few days can't show that a level stays: at least so much of a day's error is taken to last.
_LEAST_CARRIED = Decimal("0.15")
# Student's t, 90 % quantile in thousandths, by degrees of freedom from 1; beyond them that of 60.
_T90 = (
    3078, 1886, 1638, 1533, 1476, 1440, 1415, 1397, 1383, 1372, 1363, 1356, 1350, 1345, 1341, 1337, 1333, 1330, 1328,
    1325, 1323, 1321, 1319, 1318, 1316, 1315, 1314, 1313, 1311, 1310,
)  # fmt: skip
_T90_60 = 1296
_STEPS = 10**9  # growth factors have nine places


@dataclass(frozen=True, slots=True, kw_only=True)
class DayQuantity:
    """What a day had."""

    day: date
    calls: int
    wire_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Days to come of one quantity. expected: by day; error: half of the prediction interval of their sum."""

    expected: tuple[Decimal, ...]
    error: Decimal

    def scaled(self, direction: int) -> tuple[Decimal, ...]:
        """The days at the lower end (-1), as expected (0) or at the upper end (1) of the interval."""
        whole = sum(self.expected, Decimal())
        if not whole:
            return self.expected
        factor = max(1 + direction * self.error / whole, Decimal())
        return tuple(day * factor for day in self.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetForecast:
    """A budget, and what it is expected to be held against when the month ends. Minor units."""

    label: str
    amount: Decimal
    billed_minor: int
    point_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The month's total when it ends. Minor units; corrections are in all of them.

    as_of: the last complete day with data. days_left: days after it. days_known: those that the estimate is from.
    so_far_minor: what is billed for the month as it stands. low, high: ends of the prediction interval.
    """

    as_of: date
    days_left: int
    days_known: int
    so_far_minor: int
    point_minor: int
    low_minor: int
    high_minor: int
    budgets: tuple[BudgetForecast, ...] = ()


def forecast(
    statement: Statement, daily: UsageRows, days: Sequence[DayQuantity], past: Sequence[DayQuantity], complete: int,
    *, extra_minor: int = 0, api: str | None = None, budgets: Sequence[Variance] = (),
) -> Forecast | None:  # fmt: skip
    """The total at the month's end; None where too few days are known, or there was nothing on them.

    daily: the usage by day, with the keys and sums that prices need. days: what each of its days had, past: those of
    the month before. complete: so many days of the month are. extra_minor: corrections.
    """
    known = [*past, *days[:complete]]
    coming = statement.period.days[complete:]
    here = days[:complete]
    if len(known) < FEWEST_DAYS or not coming or not any(day.calls or day.wire_bytes for day in here):
        return None
    calls = outlook([(day.day, day.calls) for day in known], coming)
    wire = outlook([(day.day, day.wire_bytes) for day in known], coming)
    whole = sum(day.calls for day in here), sum(day.wire_bytes for day in here)
    low, point, high = (
        _rated(
            statement, daily, complete, _growth(calls.scaled(way), whole[0]), _growth(wire.scaled(way), whole[1]), api
        )
        for way in (-1, 0, 1)
    )  # fmt: skip
    billed, usage = _billed(statement, api)
    ends = sorted((low[0], point[0], high[0]))  # volume prices may make more cost less
    return Forecast(
        as_of=statement.period.days[complete - 1], days_left=len(coming), days_known=len(known),
        so_far_minor=billed + extra_minor, point_minor=point[0] + extra_minor, low_minor=ends[0] + extra_minor,
        high_minor=ends[2] + extra_minor,
        budgets=tuple(
            BudgetForecast(
                label=row.label, amount=row.amount, billed_minor=row.billed_minor,
                point_minor=row.billed_minor + _more(row.usage_minor, point[1] - usage, usage),
            )
            for row in budgets
        ),
    )  # fmt: skip


def outlook(known: Sequence[tuple[date, int]], coming: Sequence[date]) -> Outlook:
    """Days to come of one quantity. known: days with their amounts, ascending, the last the day before the first of
    `coming`; days that are missing in between are skipped."""
    index = weekday_index(known)
    adjusted = [
        (Decimal(amount) / index[day.weekday()], day.weekday()) for day, amount in known if index[day.weekday()]
    ]
    weights = [index[day.weekday()] for day in coming]
    if not adjusted:
        return Outlook(expected=tuple(Decimal() for _ in coming), error=Decimal())
    values = [value for value, _ in adjusted]
    smoothing, level, errors = min((_smooth(values, a) for a in _SMOOTHINGS), key=lambda found: _squares(found[2]))
    free = max(len(errors) - (7 if any(weight != 1 for weight in index) else 1), 1)
    variance = _squares(errors) / free
    carried = max(smoothing, _LEAST_CARRIED)
    of_sum = sum(
        ((weight + carried * sum(weights[at + 1 :], Decimal())) ** 2 for at, weight in enumerate(weights)), Decimal()
    )
    for weekday in range(7):  # what is not known of a weekday's index repeats on each of its days
        seen = sum(1 for _, other in adjusted if other == weekday)
        again = sum(1 for day in coming if day.weekday() == weekday)
        of_sum += Decimal(again * again) / max(seen, 1)
    trend = _trend(values[-TREND_DAYS:]) / 2  # whether it goes on is not known: half of it is expected
    expected = [max((level + trend * ahead) * weight, Decimal()) for ahead, weight in enumerate(weights, 1)]
    drift = sum((trend * ahead * weight for ahead, weight in enumerate(weights, 1)), Decimal())
    quantile = Decimal(_T90[free - 1] if free <= len(_T90) else _T90_60) / 1000
    return Outlook(expected=tuple(expected), error=quantile * (variance * of_sum + drift * drift).sqrt())


def _trend(values: Sequence[Decimal]) -> Decimal:
    """Growth a day: the slope of the line of least squares."""
    count = len(values)
    if count < TREND_DAYS:
        return Decimal()
    middle, mean = Decimal(count - 1) / 2, sum(values, Decimal()) / count
    spread = sum(((at - middle) ** 2 for at in range(count)), Decimal())
    return sum(((at - middle) * (value - mean) for at, value in enumerate(values)), Decimal()) / spread


def weekday_index(known: Sequence[tuple[date, int]]) -> list[Decimal]:
    """How much a weekday has beside the average one, Monday first: the median of its days beside the week around
    them. All are 1 where two whole weeks are not known."""
    amounts = dict(known)
    ratios: list[list[Decimal]] = [[] for _ in range(7)]
    for day, amount in known:
        week = (amounts.get(day + timedelta(days=offset)) for offset in range(-3, 4))
        found = [each for each in week if each is not None]
        around: int = sum(found)
        if len(found) == 7 and around:
            ratios[day.weekday()].append(Decimal(7 * amount) / around)
    if not all(ratios):
        return [Decimal(1)] * 7
    middle = [_median(of_weekday) for of_weekday in ratios]
    whole = sum(middle, Decimal())
    return [value * 7 / whole for value in middle] if whole else [Decimal(1)] * 7


def _median(values: Sequence[Decimal]) -> Decimal:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _smooth(values: Sequence[Decimal], smoothing: Decimal) -> tuple[Decimal, Decimal, list[Decimal]]:
    """Exponential smoothing, begun at the mean of the first week: smoothing, last level, errors of one day ahead."""
    first = values[:7]
    level = sum(first, Decimal()) / len(first)
    errors = []
    for value in values:
        errors.append(value - level)
        level += smoothing * (value - level)
    return smoothing, level, errors


def _squares(errors: Sequence[Decimal]) -> Decimal:
    return sum((error * error for error in errors), Decimal())


def _growth(expected: Sequence[Decimal], whole: int) -> list[int]:
    """Each day to come as part of what the complete days had, in 1/_STEPS; nothing grows from nothing."""
    return [round(day * _STEPS / whole) if whole else 0 for day in expected]


def _rated(
    statement: Statement, daily: UsageRows, complete: int, calls: Sequence[int], wire: Sequence[int], api: str | None
) -> tuple[int, int]:
    """What a month of the complete days and the days to come is billed: all, and for usage alone."""
    book, period = statement.book, statement.period
    rows = scenario(daily, book, len(period.days), complete, calls, wire, book.price_changes(period.days))
    return _billed(rate.rate_rows(rows, book, period), api)


def scenario(
    daily: UsageRows, book: PriceBook, days: int, complete: int, calls: Sequence[int], wire: Sequence[int],
    cuts: Sequence[int],
) -> UsageRows:  # fmt: skip
    """A whole month's usage by key and stretch: the complete days as they were, and for each day to come its part
    (of `calls` or `wire`, in 1/_STEPS) of what each key had on the complete ones."""
    keys, starts = len(daily.keys), np.array(cuts, np.int64)
    known = daily.day < complete
    cell = daily.key[known] * len(cuts) + np.searchsorted(starts, daily.day[known], side="right") - 1
    ends = [*cuts[1:], days]
    sums = {}
    for name in rate.sums_needed(book):
        if name not in daily.sums:  # no price asks for it
            sums[name] = np.zeros(keys * len(cuts), np.int64)
            continue
        values = daily.sums[name][known]
        found = money.add_by(cell, values, keys * len(cuts)).reshape(keys, len(cuts))
        so_far = money.add_by(daily.key[known], values, keys)
        growth = wire if name.endswith("_bytes") else calls
        for at, (first, end) in enumerate(zip(cuts, ends, strict=True)):
            coming = range(max(first, complete), end)
            grown = sum(growth[day - complete] for day in coming)
            if grown:
                units, rest = money.product(so_far, grown, _STEPS)
                found[:, at] += units + (rest * 2 >= _STEPS)
        sums[name] = found.reshape(-1)
    return UsageRows(
        cuts=tuple(cuts), keys=daily.keys, key=np.repeat(np.arange(keys, dtype=np.int64), len(cuts)),
        day=np.tile(starts, keys), sums=sums,
    )  # fmt: skip


def _billed(statement: Statement, api: str | None) -> tuple[int, int]:
    """What a statement, or one API's part of it, is billed: all, and for usage alone."""
    minor = statement.billed_minor
    of_usage = np.array([line.category == USAGE for line in statement.lines], np.bool_)[statement.line]
    if api is not None:
        mine = keys_of(statement.keys, api)[statement.key]
        minor, of_usage = minor[mine], of_usage[mine]
    return int(minor.sum()), int(minor[of_usage].sum())


def _more(usage_minor: int, more: int, usage: int) -> int:
    """A budget's part of what usage is still expected to cost: as much of it as of usage so far."""
    return money.half_even(Fraction(usage_minor * more, usage)) if usage else 0
