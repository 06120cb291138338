"""Single values of a price book file, each read strictly, a wrong one as a problem with its place.

Rules of this file:
- Amounts are decimal text. Quotes are good style, but an unquoted 0.09 is read as the text "0.09" too, so nothing
  ever passes through a float.
- A reader goes on after a problem, with a value of the right type: every problem of a file is found at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from apicost import yamlfile
from apicost.core.currencies import CODES
from apicost.core.naming import operations
from apicost.core.rating.pricebook import Match
from apicost.problems import Problem

EFFECT = "the price book is not used; a running daemon keeps the last good one"

# Digits before and after the point: enough for a price per token, and bounded so that sums stay exact.
_DECIMAL = re.compile(r"(\d{1,12})(?:\.(\d{1,12}))?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")

# What some columns of usage have as values: another one would match no row, so that its price or contract silently
# held for nothing.
_CLOSED: Mapping[str, Sequence[str]] = {
    "status_class": ("1xx", "2xx", "3xx", "4xx", "5xx"),
    "match_state": (
        operations.MATCHED, operations.UNDOCUMENTED_PATH, operations.UNDOCUMENTED_METHOD, operations.UNKNOWN_HOST,
        operations.UNATTRIBUTED, operations.CONTROL,
    ),
}  # fmt: skip

Path_ = tuple[str | int, ...]


class Values:
    """What every section is read with. Collects problems as it goes."""

    def __init__(self, document: yamlfile.Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.remarks: list[str] = []

    def _mapping(self, data: Any, path: Path_, known: Sequence[str] | None) -> dict[str, Any]:
        """The mapping with its known keys alone; any key where `known` is None."""
        if not isinstance(data, dict):
            what = path[-1] if path else "the file"
            self._problem(path, f"{what}: {data!r} is not a mapping", "write keys and values, indented")
            return {}
        out = {}
        for key, value in data.items():
            if known is None or key in known:
                out[key] = value
            else:
                self._problem((*path, key), f"unknown key {key!r}", nearest(key, known))
        return out

    def _entries(self, data: Any, name: str) -> list[tuple[Any, Path_]]:
        """The entries of a top-level list with their places."""
        if isinstance(data, list):
            return [(entry, (name, index)) for index, entry in enumerate(data)]
        self._problem((name,), f"{name} is not a list", "write one '- ...' for each entry")
        return []

    def _name(self, data: Mapping[str, Any], key: str, path: Path_) -> str:
        value = data.get(key)
        if isinstance(value, str) and NAME.fullmatch(value):
            return value
        self._problem((*path, key), f"{key} {value!r} is not a name", f"write {key}: NAME, without spaces")
        return str(value)

    def _choice(
        self, data: Mapping[str, Any], key: str, known: Sequence[str], path: Path_, default: str | None = None
    ) -> str | None:
        value = data.get(key, default)
        if value in known or (default is not None and value == default):
            return str(value)
        if value is None:
            self._problem(path, f"{path[-1]} has no {key!r}", f"write {key}: one of {', '.join(known)}")
        else:
            self._problem((*path, key), f"{key} {value!r} is not one of {', '.join(known)}", nearest(str(value), known))
        return None

    def _amount(self, name: str, key: str, value: Any, path: Path_, places: int = 12) -> Decimal | None:
        """A decimal number as it was written; None after a problem."""
        found = _DECIMAL.fullmatch(value) if isinstance(value, str) else None
        if found and len(found[2] or "") <= places:
            return Decimal(found[0])
        if value is None:
            self._problem(path, f"{name}: there is no {key}", 'write digits and a point, such as "0.09"')
        else:
            self._problem(
                path, f"{name}: {key} {value!r} is not a decimal number of at most 12 digits before and {places} after "
                "the point", 'write digits and a point, such as "0.09"',
            )  # fmt: skip
        return None

    def _quantity(self, name: str, value: Any, path: Path_, base: int) -> int | None:
        """A quantity in pricing units as base units, which must come out whole."""
        amount = self._amount(name, str(path[-1]), value, path)
        if amount is None:
            return None
        top, bottom = amount.as_integer_ratio()
        if top * base % bottom:
            self._problem(path, f"{name}: {value!r} units are no whole number of {base} base units", "round it")
            return None
        return top * base // bottom

    def _date(self, name: str, data: Mapping[str, Any], key: str, path: Path_) -> date | None:
        value = data.get(key)
        if value is None:
            return None
        try:
            if _DATE.fullmatch(str(value)):
                return date.fromisoformat(str(value))
        except ValueError:
            pass
        self._problem((*path, key), f"{name}: {key} {value!r} is not a date", "write YYYY-MM-DD")
        return None

    def _dates(self, name: str, data: Mapping[str, Any], path: Path_) -> tuple[date | None, date | None]:
        """from: and to: (exclusive), in this order."""
        since, until = self._date(name, data, "from", path), self._date(name, data, "to", path)
        if since and until and until <= since:
            self._problem((*path, "to"), f"{name}: to {until} is not after from {since}", "swap or mend the dates")
        return since, until

    def _months(self, name: str, what: str, data: Mapping[str, Any], path: Path_) -> tuple[date | None, date | None]:
        """from: and to: (exclusive) of something monthly."""
        since, until = self._dates(name, data, path)
        for key, day in (("from", since), ("to", until)):
            if day and day.day != 1:
                self._problem(
                    (*path, key), f"{name}: {key} {day} is not the first day of a month",
                    f"{what} are monthly: write the 1st",
                )  # fmt: skip
        return since, until

    def _month(self, name: str, key: str, data: Mapping[str, Any], path: Path_) -> str:
        value = data.get(key)
        if isinstance(value, str) and _MONTH.fullmatch(value):
            return value
        self._problem((*path, key), f"{name}: {key} {value!r} is not a month", f"write {key}: YYYY-MM")
        return ""

    def _currency(self, name: str, key: str, value: Any, path: Path_) -> str:
        if isinstance(value, str) and value in CODES:
            return value
        said = f"{name}: {key}" if name else key
        fix = f"write {value.upper()}" if isinstance(value, str) and value.upper() in CODES else "write such as EUR"
        self._problem((*path, key), f"{said} {value!r} is not an ISO 4217 code", fix)
        return str(value)

    def _match(self, name: str, data: Mapping[str, Any], path: Path_, known: Mapping[str, str]) -> Match:
        """The conditions of `match`, by column. known: what it may ask -> column."""
        here: Path_ = (*path, "match")
        if not isinstance(data.get("match"), dict) or not data["match"]:
            fix = f"write match: {{{next(iter(known))}: NAME}}"
            self._problem(here, f"{name}: it does not say what it is for", fix)
            return {}
        conditions = {}
        for key, value in self._mapping(data["match"], here, list(known)).items():
            conditions[known[key]] = self._texts(name, key, value, here)
        return conditions

    def _texts(self, name: str, key: str, value: Any, path: Path_) -> tuple[str, ...]:
        """A text, or a list of texts that any may be."""
        values = value if isinstance(value, list) else [value]
        for item in values or [None]:
            if not isinstance(item, str) or not item:
                self._problem((*path, key), f"{name}: {key} {item!r} is not a text", f"write {key}: NAME")
            elif key in _CLOSED and item not in _CLOSED[key]:
                fact = f"{name}: {key} {item!r} is not one of {', '.join(_CLOSED[key])}"
                self._problem((*path, key), fact, nearest(item, _CLOSED[key]))
            elif key == "method" and item != item.upper():
                self._problem((*path, key), f"{name}: no request has method {item!r}", f"write {item.upper()}")
        return tuple(map(str, values))

    def _problem(self, path: Path_, fact: str, fix: str) -> None:
        self.problems.append(Problem(place=self.document.place(*path), fact=fact, effect=EFFECT, fix=fix))


def nearest(value: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(value, list(known), n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else f"known: {', '.join(known)}"
