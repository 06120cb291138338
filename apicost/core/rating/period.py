"""A billing month in a time zone: where it and its days begin, in unix seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A calendar month.

    starts: unix seconds at which each day begins, then the end of the month: one more than `days`.
    A day of a clock change has 23 or 25 hours; the days are the month's partition all the same.
    """

    name: str  # YYYY-MM
    time_zone: str
    days: tuple[date, ...]
    starts: tuple[int, ...]

    @property
    def start_unix_s(self) -> int:
        return self.starts[0]

    @property
    def end_unix_s(self) -> int:
        """Exclusive."""
        return self.starts[-1]


def month(name: str, time_zone: str) -> Period:
    """The month YYYY-MM as the clocks of `time_zone` (IANA name) show it.

    Raises ValueError for anything but YYYY-MM, zoneinfo.ZoneInfoNotFoundError for an unknown zone.
    """
    found = re.fullmatch(r"(\d{4})-(0[1-9]|1[0-2])", name)
    if not found or found[1] == "0000":
        raise ValueError(f"month {name!r} is not YYYY-MM")
    first = date(int(found[1]), int(found[2]), 1)
    days = [first]
    while (following := days[-1] + timedelta(days=1)).month == first.month:
        days.append(following)
    zone = ZoneInfo(time_zone)
    starts = tuple(_midnight(day, zone) for day in [*days, following])
    return Period(name=name, time_zone=time_zone, days=tuple(days), starts=starts)


def utc_text(unix_s: int) -> str:
    """2026-11-01T00:00:00Z, the form of every time in an export."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _midnight(day: date, zone: ZoneInfo) -> int:
    # fold=0: where clocks skip midnight this is the instant of the change, where they
    # repeat it the first of the two.
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
