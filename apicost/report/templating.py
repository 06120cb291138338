"""What all pages share: the template environment and how numbers are written for people."""

from __future__ import annotations

from fractions import Fraction
from importlib import resources

import jinja2

from apicost.core.rating import money

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def environment() -> jinja2.Environment:
    """The templates of this package: everything is escaped, and what is not defined is an error."""
    folder = resources.files("apicost.report") / "templates"
    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"count": lambda n: f"{n:,}", "size": size, "short": short, "percent": percent}
    return found


def size(count: int) -> str:
    """Bytes for people, decimal units: 1.50 GB."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{_rounded(Fraction(count, unit), 2)} {name}"
    return f"{count:,} B"


def short(amount: Fraction | None) -> str:
    """A unit cost or an exact cost for people: four places, or three digits where that would show none."""
    if amount is None:
        return "–"
    places = 4
    while amount and places < 18 and abs(amount) * 10**places < 100 and abs(amount) < 1:
        places += 1
    whole, _, rest = _rounded(abs(amount), places).partition(".")
    return ("-" if amount < 0 else "") + f"{int(whole):,}.{rest}"


def part_text(part: Fraction) -> str:
    """A part of a whole in percent with one place: 12.3 %."""
    return f"{_rounded(part * 100, 1)} %"


def percent(part: int, whole: int) -> str:
    """12.3 %, or a dash where there is no whole."""
    return f"{_rounded(Fraction(100 * part, whole), 1)} %" if whole else "–"


def _rounded(amount: Fraction, places: int) -> str:
    return money.fixed(money.half_even(amount * 10**places), places)
