"""Rows of a workbook's sheet as XML, a column at a time.

Rules of this file:
- A cell is a number, a date or text by its column's kind, never by its content. Text is an inline string: whatever it
  says, it is escaped, and no program takes it for a formula.
- What a distinct text or time becomes is made once per piece; amounts go in as they are, with all their digits.
- Characters that XML can't hold are written as the standard says, _xHHHH_.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xlsxwriter.utility import xl_col_to_name

from apicost.report.tables import sheet_names
from apicost.report.tables.rows import Column, Kind, plain

SIGNIFICANT = 15  # digits that a spreadsheet keeps of a number
LONGEST_TEXT = 32_767
MOST_PLACES = 15
WIDEST = 42
TIME_FORMAT = "yyyy-mm-dd hh:mm"

_ESCAPE_LIKE = re.compile(r"_(?=x[0-9A-Fa-f]{4}_)")
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]")

# The number of a cell format: by its number format, then its alignment.
Style = Callable[[str, dict[str, Any]], int]


@dataclass(slots=True)
class Made:
    """The rows of a piece.

    xml: one text per row. widths: letters that each column needs. places: decimal places, the most of each column.
    """

    xml: Any
    widths: list[int]
    places: list[int]


def rows(piece: pa.Table, columns: Sequence[Column], first_row: int, style: Style) -> Made:
    """The rows of a piece as XML, from a row number on (from 1), and after the columns one for exact digits."""
    count = len(piece)
    numbers: Any = pa.array(np.arange(first_row, first_row + count)).cast(pa.string())
    parts: list[Any] = ['<row r="', numbers, '">']
    exact: dict[int, list[str]] = {}
    made = Made(None, [], [])
    for position, column in enumerate(columns):
        values = plain(piece.column(column.name))
        places = 0
        if column.is_number:
            texts = values if column.kind is Kind.AMOUNT else values.cast(pa.string())
            for row in np.flatnonzero(_too_many_digits(texts)).tolist():
                exact.setdefault(row, []).append(f"{column.name}={texts[row].as_py()}")
            ends, width, places = _numbers(texts, column.places, style)
        else:
            ends, width = _texts(values, column.kind, style, aligned(columns, position))
        parts.append(_cells(xl_col_to_name(position), numbers, ends))
        made.widths.append(width)
        made.places.append(places)
    if exact:
        told = pa.array(["; ".join(exact[row]) if row in exact else None for row in range(count)], pa.string())
        parts.append(_cells(xl_col_to_name(len(columns)), numbers, _texts(told, Kind.TEXT, style, {})[0]))
    made.widths.append(WIDEST if exact else 0)
    made.xml = _join(*parts, "</row>")
    return made


def aligned(columns: Sequence[Column], position: int) -> dict[str, Any]:
    """How a column's cells are aligned: numbers to the right, with room between one and the text after it."""
    if position < len(columns) and columns[position].is_number:
        return {"align": "right"}
    return {"align": "left", "indent": 1} if position and columns[position - 1].is_number else {}


def number_format(places: int) -> str:
    """The format of numbers with so many places: thousands apart, negative ones red."""
    shown = "#,##0" + ("." + "0" * places if places else "")
    return f"{shown};[Red]-{shown}"


def is_exact(text: str) -> bool:
    """Whether a spreadsheet's number holds a plain decimal text."""
    return not _too_many_digits(pa.array([text]))[0]


def shortened(text: str) -> str:
    """A text as a cell can hold it: the beginning of one that is too long, with … at its end."""
    if len(text.encode("utf-16-le")) <= 2 * LONGEST_TEXT:
        return text
    return sheet_names.cut(text, LONGEST_TEXT - 1) + "…"


def escaped(text: str) -> str:
    """Text for XML, with what it can't hold as _xHHHH_, and what looks like that told apart from it."""
    text = _ESCAPE_LIKE.sub("_x005F_", text)
    text = _UNWRITABLE.sub(lambda found: f"_x{ord(found[0]):04X}_", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def serial(time: str) -> float:
    """UTC text as a spreadsheet's date: days since 1899-12-30."""
    passed = datetime.fromisoformat(time) - datetime(1899, 12, 30, tzinfo=UTC)
    return passed.days + passed.seconds / 86_400


def shown_places(texts: Any, fixed: int | None) -> npt.NDArray[np.int64]:
    """Places that a person sees of plain decimal texts; null as 0.

    As many as each has, or the fixed number; more where what is not 0 would look like it.
    """
    if fixed is None:
        return np.minimum(_places(texts), MOST_PLACES)
    shown = np.full(len(texts), fixed)
    tiny: Any = pc.match_substring_regex(texts, rf"^-?0*\.0{{{fixed}}}0*[1-9]" if fixed else r"^-?0*\.0*[1-9]")
    for row in np.flatnonzero(tiny.fill_null(False).to_numpy(zero_copy_only=False)).tolist():
        after = texts[row].as_py().partition(".")[2]
        shown[row] = min(len(after) - len(after.lstrip("0")) + 1, MOST_PLACES)
    return shown


def _numbers(texts: Any, fixed: int | None, style: Style) -> tuple[Any, int, int]:
    """Ends of cells of amounts; the letters that they need; the places that they have."""
    shown = shown_places(texts, fixed)
    used = np.unique(shown)
    opening = np.full(int(used.max(initial=0)) + 1, "", object)
    for places in used.tolist():
        opening[places] = f' s="{style(number_format(places), {})}"><v>'
    length = pc.binary_length(texts).fill_null(0).to_numpy()
    width = int((length - _places(texts) + shown).max(initial=0)) * 5 // 4 + 2
    return _join(pa.array(opening[shown], pa.string()), texts, "</v></c>"), width, int(_places(texts).max(initial=0))


def _texts(values: Any, kind: Kind, style: Style, aligned: dict[str, Any]) -> tuple[Any, int]:
    """Ends of cells of texts or times, and the letters that they need."""
    coded = values.dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    if kind is Kind.TIME:
        number = style(TIME_FORMAT, {"align": "left"}) if distinct else 0
        ends = [f' s="{number}"><v>{serial(text):.16G}</v></c>' for text in distinct]
        return pa.array(ends, pa.string()).take(coded.indices), 17
    number = style("General", aligned) if aligned else 0
    before = f' s="{number}" t="inlineStr"><is><t' if aligned else ' t="inlineStr"><is><t'
    ends = [f"{before}{_kept(text)}>{escaped(shortened(text))}</t></is></c>" for text in distinct]
    return pa.array(ends, pa.string()).take(coded.indices), max((len(text) for text in distinct), default=0) + 2


def _kept(text: str) -> str:
    """What keeps white space at the ends of a text."""
    return ' xml:space="preserve"' if text != text.strip() else ""


def _cells(letter: str, numbers: Any, ends: Any) -> Any:
    """Cells of a column; nothing where there is no value."""
    return _join(f'<c r="{letter}', numbers, '"', ends).fill_null("")


def _places(texts: Any) -> npt.NDArray[np.int64]:
    """Decimal places of plain decimal texts without their last zeros; null as 0."""
    point = pc.find_substring(texts, ".").fill_null(-1).to_numpy()
    length = pc.binary_length(pc.utf8_rtrim(texts, "0")).fill_null(0).to_numpy()
    return np.where(point < 0, 0, length - point - 1).astype(np.int64)


def _too_many_digits(texts: Any) -> npt.NDArray[np.bool_]:
    """Which plain decimal texts have more digits than a spreadsheet keeps; null as False."""
    if int(pc.max(pc.binary_length(texts)).as_py() or 0) <= SIGNIFICANT:
        return np.zeros(len(texts), np.bool_)
    digits: Any = pc.utf8_trim(pc.replace_substring_regex(texts, "[-.]", ""), "0")
    return np.asarray(pc.binary_length(digits).fill_null(0).to_numpy() > SIGNIFICANT)


def _join(*parts: Any) -> Any:
    """Arrays and texts joined to one array, row by row; null where one of them is."""
    join: Any = pc.binary_join_element_wise  # its stubs know no mix of arrays and texts
    return join(*parts, "")
