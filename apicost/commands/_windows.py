"""Windows of time for commands: "7d" back from now, or days."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from apicost.commands._months import error

_SPAN = re.compile(r"(\d{1,6})(m|h|d|w)")
_UNITS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def moment(option: str, text: str, now_unix_s: float) -> int:
    """A time in unix seconds: a span back from now ("90m", "36h", "7d", "4w"), a day or an ISO time (UTC where it
    names no zone). Raises InputError."""
    found = _SPAN.fullmatch(text)
    if found:
        return int(now_unix_s) - int(found[1]) * _UNITS[found[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise error(option, f"{text!r} is no time", "no window is read", "write such as 7d, 36h, 2026-11-01 or "
                    "2026-11-01T12:00") from None  # fmt: skip
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return int(at.timestamp())


def window(since: str, until: str | None, now_unix_s: float) -> tuple[int, int]:
    """(start, end) in unix seconds, whole minutes, end exclusive: the minute now running is part of it."""
    start = moment("--since", since, now_unix_s) // 60 * 60
    end = moment("--until", until, now_unix_s) if until else int(now_unix_s // 60 * 60) + 60
    if start >= end:
        raise error("--since", f"{since!r} is not before the window's end", "no window is read",
                    "name an earlier time")  # fmt: skip
    return start, end


def months_touched(start_unix_s: int, end_unix_s: int, time_zone: str) -> list[str]:
    """Names of the calendar months of a time zone that a window lies in: YYYY-MM, ascending."""
    from zoneinfo import ZoneInfo

    zone = ZoneInfo(time_zone)
    day = datetime.fromtimestamp(start_unix_s, zone).replace(day=1)
    last = datetime.fromtimestamp(end_unix_s - 1, zone)
    names = []
    while (day.year, day.month) <= (last.year, last.month):
        names.append(f"{day:%Y-%m}")
        day = (day + timedelta(days=32)).replace(day=1)
    return names
