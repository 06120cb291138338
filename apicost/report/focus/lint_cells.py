"""What a FOCUS file's header and single cells must look like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from apicost.core.currencies import CODES
from apicost.report.focus.columns import CURRENCY, DETAILS, OBJECT, PRICE, TAGS, TEXT, TIME, UNIT, Column
from apicost.report.focus.piece import NUMBER, Mask, Piece

TIME_FORM = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
# What readers that guess types take for a number, a date or a truth.
GUESSED = r"^([+-]?[0-9]+([.][0-9]*)?|[0-9]{1,4}[-/][0-9]{1,2}[-/][0-9]{1,4}([T ][0-9:.]+Z?)?|(?i)true|false)$"
# Spaces of every script, and what has no width.
_BLANK = r"^[\s\p{Z}\x{200b}\x{2060}\x{feff}]+$"
# All but the tab and line breaks, which a quoted cell may have.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_PLACEHOLDER = r"^(?i)(null|nan|none|n/a|#n/a|not applicable|nil|undefined)$"
_FORMULA = r"^[=+\-@\t\r\n]"
_SIZES = {"b", "B", *(f"{p}{i}{b}" for p in "KMGTPE" for i in ("", "i") for b in "bB")}
_TIMES = {"Year", "Month", "Day", "Hour", "Minute", "Second"}
_UNIT = re.compile(r"(?:[1-9][0-9]* )?([A-Za-z]+)(?:-([A-Za-z]+)|/(?:[1-9][0-9]* )?([A-Za-z]+))?")
_DETAILS = frozenset((
    "CoreCount", "DiskMaxIops", "DiskSpace", "DiskType", "GpuCount", "InstanceType", "InstanceSeries", "MemorySize",
    "NetworkMaxIops", "NetworkMaxThroughput", "OperatingSystem", "Redundancy", "StorageClass",
))  # fmt: skip


def of_header(names: Sequence[str], known: Mapping[str, Column]) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the names of the columns: rule, column and detail."""
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "column-twice", name, f"it stands {names.count(name)} times"
    for name, column in known.items():
        if column.needed and name not in names:
            yield "column-missing", name, ""
    after_ours = False
    for name in names:
        ours = name.startswith("x_")
        if not ours and name not in known:
            yield "column-unknown", name, ""
        if ours and not re.fullmatch(r"x_([A-Z][a-z0-9]*)+", name):
            yield "column-name", name, ""
        if after_ours and not ours:
            yield "column-order", name, "it stands after a custom column"
        after_ours |= ours


def of_cells(piece: Piece, known: Mapping[str, Column]) -> Iterator[tuple[str, str, Mask]]:
    """What is wrong with cells by themselves: rule, column and rows."""
    for name in piece.columns:
        column = known.get(name, Column(name=name))
        if not column.nullable:
            yield "null", name, piece.null(name)
        if column.is_decimal:
            yield from _number(piece, column)
        elif column.kind == TIME:
            formed = piece.matches(name, TIME_FORM)
            yield "time-format", name, piece.filled(name) & ~formed
            yield "time-real", name, formed & ~piece.test_each(name, _is_time)
        elif column.kind == CURRENCY:
            yield "currency-code", name, piece.filled(name) & ~piece.equal(name, *CODES)
        elif column.kind == UNIT:
            yield "unit-format", name, piece.filled(name) & ~piece.test_each(name, is_unit)
        elif column.kind in (TAGS, DETAILS, OBJECT):
            yield from _json(piece, column)
        elif column.choices:
            yield "choice", name, piece.filled(name) & ~piece.equal(name, *column.choices)
        else:
            if not column.is_ours:
                yield "blank", name, piece.matches(name, _BLANK)
                yield "placeholder", name, piece.matches(name, _PLACEHOLDER)
            if column.kind == TEXT:
                yield "text-control", name, piece.matches(name, _CONTROL)
                yield "cell-formula", name, piece.matches(name, _FORMULA)


def _number(piece: Piece, column: Column) -> Iterator[tuple[str, str, Mask]]:
    name = column.name
    wrong = piece.filled(name) & ~piece.matches(name, NUMBER)
    if wrong.any():
        reasons = (
            ("number-exponent", r"^[+-]?[0-9.]+[eE][+-]?[0-9]+$"),
            ("number-sign", r"^\+[0-9]"),
            ("number-separator", r"^-?[0-9]{1,3}([,' ][0-9]{3})+([.,][0-9]+)?$|^-?[0-9]+,[0-9]+$"),
            ("number-zeros", r"^-?0[0-9]+([.][0-9]+)?$"),
        )
        for rule, pattern in reasons:
            of_rule = wrong & piece.matches(name, pattern)
            yield rule, name, of_rule
            wrong = wrong & ~of_rule
        yield "number-format", name, wrong
    if column.kind == PRICE:
        yield "price-negative", name, piece.matches(name, r"^-[0-9.]*[1-9]")


def _json(piece: Piece, column: Column) -> Iterator[tuple[str, str, Mask]]:
    name = column.name
    # Each text is read once, however many faults are looked for.
    faults: dict[str, str] = {}

    def fault(text: str) -> str:
        if text not in faults:
            faults[text] = json_fault(text, column.kind)
        return faults[text]

    for rule in ("json-invalid", "json-nested", "json-key-twice", "details-key"):
        yield rule, name, piece.test_each(name, partial(_is, rule, fault))


def _is(rule: str, fault: Callable[[str], str], text: str) -> bool:
    return fault(text) == rule


def json_fault(text: str, kind: str) -> str:
    """The rule that a JSON text breaks; "" none."""
    try:
        content = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_number)
    except _TwiceError:
        return "json-key-twice"
    except ValueError:
        return "json-invalid"
    if not isinstance(content, dict):
        return "json-invalid"
    if kind == OBJECT:
        return ""
    if any(isinstance(value, dict | list) for value in content.values()):
        return "json-nested"
    if kind == DETAILS and any(key not in _DETAILS and not key.startswith("x_") for key in content):
        return "details-key"
    return ""


def is_unit(text: str) -> bool:
    """Whether a unit has FOCUS's form: a size, or a plural count or time, with a whole number before it or none."""
    found = _UNIT.fullmatch(text)
    if not found:
        return False
    first, times, per = found.groups()
    if times and not (times.removesuffix("s") in _TIMES and times.endswith("s")):
        return False
    if per and per.removesuffix("s") not in _TIMES:
        return False
    if first in _SIZES or re.fullmatch(r"[A-Z]{3}", first):  # a currency, where what is split is money
        return True
    # FOCUS's own words for sizes are abbreviations, all else begins with a capital and is a plural but before a dash.
    return first[0].isupper() and (first.endswith("s") or bool(times))


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


class _TwiceError(ValueError):
    """A key stands twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise _TwiceError
    return content


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
