"""XLSX: a summary, then the rows on sheets of their own, for people who calculate on.

Rules of this file:
- A cell is a number, a date or text by its column's kind, never by its content: no text can become a formula, a link or
  markup. The only formulas are sums on the summary, and their cached values are the exact sums.
- A spreadsheet keeps 15 significant digits. A number with more is the nearest one, and all its digits are in the last
  column.
- Rows of the same value in the `split` column have a sheet of their own.
- The same rows give the same bytes: dates inside are the month's, the file names in the archive have fixed ones.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xlsxwriter
from xlsxwriter.utility import quote_sheetname, xl_col_to_name

from apicost import durable, scratch
from apicost.report.tables import sheet_names
from apicost.report.tables.rows import Column, Kind, Rows, Seen, plain

ROWS_MAX = 1_048_576  # of a sheet, its header included
OWN_SHEETS = 500  # values of the split column beyond share one sheet: each has a file open while rows are written
SIGNIFICANT = 15
LONGEST_TEXT = 32_767
SUMMARY = "Summary"
_WIDEST = 42
_MOST_PLACES = 15
_SUMS = Context(prec=400, traps=[Inexact])
_HEAD: dict[str, Any] = {"bold": True, "bg_color": "#E8EEF4", "bottom": 1}
_LEFT: dict[str, Any] = {"align": "left"}
_OPTIONS = {
    "constant_memory": True, "strings_to_numbers": False, "strings_to_formulas": False, "strings_to_urls": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number on the summary. places: decimal places shown. formula: what it is the value of, if anything."""

    value: Decimal
    places: int = 0
    formula: str | None = None


Cell = str | Number | datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A table of the summary. total: whether its last row has the sums of those above, which become formulas."""

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    total: bool = False


@dataclass(slots=True, kw_only=True)
class Part:
    """The rows of one value of the split column, as they were written.

    label: what its sheet is called, before that was made legal. ranges: where they are, one per sheet: its name, and
    the row of the last one. sums: of the columns that are added, exactly. places: the most that a value has.
    """

    value: str | None
    label: str
    rows: int = 0
    sums: dict[str, Decimal] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the workbook says beside the rows.

    dated: the date of the document, a date of its content. blocks: makes the tables of the summary from what was
    written; `sum_of(part, column)` is a cell with the sum of a column on a part's sheets, as a formula.
    none: name of the sheet for rows without a value in the split column. exact: name of the column with all digits of
    numbers that have too many.
    """

    title: str
    dated: datetime
    blocks: Callable[[list[Part], Callable[[Part, str], Number]], Sequence[Block]]
    none: str = "(none)"
    exact: str = "exact_digits"


def write(rows: Rows, path: Path, seen: Seen, about: About, *, rows_max: int = ROWS_MAX) -> int:
    """Write rows as one workbook, whole or not at all; returns their number. Raises OSError."""
    count = 0

    def fill(temporary: Path) -> None:
        nonlocal count
        with scratch.folder("workbook") as folder:
            book = _Workbook(rows, temporary, folder, about, rows_max)
            for piece in rows.selected():
                book.add(piece)
                count += len(piece)
                seen(count)
            book.close()
        _without_modes(temporary)

    durable.write_file(path, fill)
    return count


class _Workbook:
    """A workbook that is being written."""

    def __init__(self, rows: Rows, path: Path, folder: Path, about: About, rows_max: int) -> None:
        self.rows, self.about, self.rows_max = rows, about, rows_max
        self.columns = rows.in_sheets()
        self.book = xlsxwriter.Workbook(str(path), {**_OPTIONS, "tmpdir": str(folder)})
        self.book.use_zip64()
        self.book.set_properties({"title": about.title, "author": "apicost", "created": about.dated})
        self.formats: dict[tuple[Any, ...], Any] = {}
        self.names = sheet_names.SheetNames()
        self.summary = self.book.add_worksheet(self.names.new(SUMMARY))
        self.sheets: dict[str | None, _Sheet] = {}
        self.shared: _Sheet | None = None
        for value in rows.sheets:
            self._sheet(value)

    def add(self, piece: pa.Table) -> None:
        """Write rows, each run of the same split value at once."""
        if self.rows.split is None:
            self._sheet(self.about.none).add(piece)
            return
        coded = plain(piece.column(self.rows.split)).dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy()
        values = [*coded.dictionary.to_pylist(), None]
        starts = np.flatnonzero(np.diff(codes, prepend=-2))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
            self._sheet(values[codes[start]]).add(piece.slice(start, stop - start))

    def _sheet(self, value: str | None) -> _Sheet:
        if value not in self.sheets:
            if len(self.sheets) < OWN_SHEETS:
                self.sheets[value] = _Sheet(self, value, self.about.none if value is None else value)
            else:
                self.shared = self.shared or _Sheet(self, None, "(more)")
                self.sheets[value] = self.shared
        return self.sheets[value]

    def close(self) -> None:
        """Write what is known at the end, and the file."""
        sheets = list(dict.fromkeys(self.sheets.values()))
        for sheet in sheets:
            sheet.close()
        _write_summary(self, [sheet.part for sheet in sheets])
        self.book.close()

    def format(self, number: str = "General", **more: Any) -> Any:
        """A cell format, made once."""
        key = (number, *sorted(more.items()))
        if key not in self.formats:
            self.formats[key] = self.book.add_format({"num_format": number, "valign": "top", **more})
        return self.formats[key]

    def sum_of(self, part: Part, name: str) -> Number:
        """The sum of a column over a part's sheets."""
        letter = xl_col_to_name([column.name for column in self.columns].index(name))
        ranges = ",".join(f"{quote_sheetname(sheet)}!{letter}2:{letter}{max(last, 2)}" for sheet, last in part.ranges)
        column = next(column for column in self.columns if column.name == name)
        places = part.places.get(name, 0) if column.places is None else column.places
        return Number(value=part.sums.get(name, Decimal(0)), places=min(places, 6), formula=f"=SUM({ranges})")


class _Sheet:
    """The sheets of one split value: one, or more where its rows are too many."""

    def __init__(self, book: _Workbook, value: str | None, wished: str) -> None:
        self.book, self.wished = book, wished
        self.part = Part(value=value, label=wished)
        self.widths = [len(column.name) + 4 for column in book.columns]
        self.exact_width = len(book.about.exact) + 2
        self._open()

    def _open(self) -> None:
        name = self.book.names.new(self.wished)
        self.sheet = self.book.book.add_worksheet(name)
        self.row = 1
        self.part.ranges.append((name, 1))
        for position, column in enumerate([*self.book.columns, Column(name=self.book.about.exact)]):
            self.sheet.write_string(0, position, column.name, self.book.format(**_HEAD | self._aligned(position)))

    def _aligned(self, position: int) -> dict[str, Any]:
        """Numbers to the right; room between a number and the text after it."""
        columns = self.book.columns
        if position < len(columns) and columns[position].is_number:
            return {"align": "right"}
        return {"align": "left", "indent": 1} if position and columns[position - 1].is_number else {}

    def add(self, piece: pa.Table) -> None:
        """Write rows below those that are there."""
        while len(piece):
            if self.row == self.book.rows_max:
                self.close()
                self._open()
            fitting = piece.slice(0, self.book.rows_max - self.row)
            self._write(fitting)
            piece = piece.slice(len(fitting))

    def _write(self, piece: pa.Table) -> None:
        exact: list[list[str]] = [[] for _ in range(len(piece))]
        columns = []
        for position, column in enumerate(self.book.columns):
            values = plain(piece.column(column.name))
            if column.kind is Kind.AMOUNT:
                texts = values.to_pylist()
                self._sum(column, texts)
                cells = self._amounts(column, texts, exact)
            elif column.kind is Kind.COUNT:
                counts = values.to_pylist()
                self._sum(column, counts)
                cells = self._amounts(column, [None if n is None else str(n) for n in counts], exact)
            else:
                aligned = self._aligned(position) if column.kind is Kind.TEXT else {}
                cells = self._by_value(column, values, self.book.format(**aligned) if aligned else None)
            self.widths[position] = max(self.widths[position], *(cell[2] for cell in cells if cell), 0, 0)
            put = self.sheet.write_number if column.kind is not Kind.TEXT else self._text
            columns.append((position, put, cells))
        last = len(self.book.columns)
        for offset in range(len(piece)):
            row = self.row + offset
            for position, put, cells in columns:
                cell = cells[offset]
                if cell is not None:
                    put(row, position, cell[0], cell[1])
            if exact[offset]:
                self._text(row, last, "; ".join(exact[offset]), None)
                self.exact_width = _WIDEST
        self.row += len(piece)
        self.part.rows += len(piece)
        self.part.ranges[-1] = (self.part.ranges[-1][0], self.row)

    def _sum(self, column: Column, values: Sequence[str | int | None]) -> None:
        if column.added:
            total = self.part.sums.get(column.name, Decimal(0))
            for value in values:
                if value is not None:
                    total = _SUMS.add(total, Decimal(value))
            self.part.sums[column.name] = total

    def _amounts(self, column: Column, texts: list[str | None], exact: list[list[str]]) -> list[Any]:
        cells: list[Any] = []
        known: dict[str, Any] = {}
        most = self.part.places.get(column.name, 0)
        for offset, text in enumerate(texts):
            if text is None:
                cells.append(None)
                continue
            cell = known.get(text)
            if cell is None:
                shown, places = places_of(text, column.places)
                most = max(most, places)
                width = len(text.partition(".")[0]) * 4 // 3 + shown + 2
                cell = known[text] = (float(text), self.book.format(number_format(shown)), width, is_exact(text))
            if not cell[3]:
                exact[offset].append(f"{column.name}={text}")
            cells.append(cell)
        self.part.places[column.name] = most
        return cells

    def _by_value(self, column: Column, values: Any, format_: Any) -> list[Any]:
        """Cells of texts and times: each distinct one is made once. format_: of texts."""
        coded = values.dictionary_encode()
        made: list[Any] = []
        for text in coded.dictionary.to_pylist():
            if column.kind is Kind.TIME:
                made.append((serial(text), self.book.format("yyyy-mm-dd hh:mm"), 17))
            else:
                made.append((shortened(text), format_, min(len(text) + 2, _WIDEST)))
        made.append(None)
        return [made[code] for code in coded.indices.fill_null(-1).to_pylist()]

    def _text(self, row: int, column: int, text: str, format_: Any) -> None:
        _write_text(self.sheet, row, column, text, format_)

    def close(self) -> None:
        """Header, filter, widths and printing of the sheet that is open."""
        last = len(self.book.columns)
        for position, width in enumerate([*self.widths, self.exact_width]):
            self.sheet.set_column(position, position, min(width, _WIDEST + 2))
        self.sheet.freeze_panes(1, 0)
        self.sheet.autofilter(0, 0, self.row - 1, last)
        self.sheet.ignore_errors({"number_stored_as_text": f"A1:{xl_col_to_name(last)}{self.row}"})
        self.sheet.print_area(0, 0, self.row - 1, (len(self.book.rows.first) or last) - 1)
        self.sheet.repeat_rows(0)
        self.sheet.set_landscape()
        self.sheet.fit_to_pages(1, 0)
        self.sheet.set_paper(9)  # A4


def _write_summary(book: _Workbook, parts: list[Part]) -> None:
    sheet = book.summary
    sheet.write_string(0, 0, book.about.title, book.format(bold=True, font_size=16))
    row = 2
    widths: list[int] = []
    for block in book.about.blocks(parts, book.sum_of):
        _write_text(sheet, row, 0, block.title, book.format(bold=True, font_size=12))
        row = _write_block(book, row + 1, block, widths) + 1
    for position, width in enumerate(widths):
        sheet.set_column(position, position, min(width, _WIDEST))
    sheet.hide_gridlines(2)
    sheet.set_landscape()
    sheet.fit_to_pages(1, 0)
    sheet.set_paper(9)


def _write_block(book: _Workbook, row: int, block: Block, widths: list[int]) -> int:
    """Write a table of the summary from a row on; returns the row below it. widths: letters that columns need."""
    columns = max([len(block.head), *map(len, block.rows)], default=0)
    widths += [12] * (columns - len(widths))
    by_column = [[cells[position] for cells in block.rows if position < len(cells)] for position in range(columns)]
    # The numbers of a table's column have their points below each other.
    numbers = [[cell.places for cell in cells if isinstance(cell, Number)] for cells in by_column]
    aligned: list[dict[str, Any]] = [
        {"align": "right"} if own else {"align": "left", "indent": 1} if before else {}
        for own, before in zip(numbers, [[], *numbers], strict=False)
    ]
    if block.head:
        for position, title in enumerate(block.head):
            _write_text(book.summary, row, position, title, book.format(**_HEAD | aligned[position]))
            widths[position] = max(widths[position], len(title) + 3)
        row += 1
    for number, cells in enumerate(block.rows):
        is_total = block.total and number == len(block.rows) - 1
        marks: dict[str, Any] = {"bold": True, "top": 1} if is_total else {}
        for position, cell in enumerate(cells):
            if isinstance(cell, Number) and block.head:
                letter = xl_col_to_name(position)
                formula = f"=SUM({letter}{row - number + 1}:{letter}{row})" if is_total else cell.formula
                cell = replace(cell, places=max(numbers[position]), formula=formula)
            width = _write_cell(book, row, position, cell, marks | (aligned[position] if block.head else _LEFT))
            if position < columns - 1 or isinstance(cell, Number):  # a text in the last column has room beside it
                widths[position] = max(widths[position], width)
        row += 1
    return row


def _write_cell(book: _Workbook, row: int, column: int, cell: Cell, marks: dict[str, Any]) -> int:
    """Write a cell of the summary; returns the letters that it needs."""
    sheet = book.summary
    if cell is None:
        if "top" in marks:
            sheet.write_blank(row, column, None, book.format(**marks))
        return 0
    if isinstance(cell, str):
        _write_text(sheet, row, column, cell, book.format(**marks))
        return len(cell) + 2
    if isinstance(cell, datetime):
        sheet.write_datetime(row, column, cell, book.format("yyyy-mm-dd hh:mm", **marks))
        return 17
    format_ = book.format(number_format(cell.places), **marks)
    if cell.formula is None:
        sheet.write_number(row, column, float(cell.value), format_)
    else:
        sheet.write_formula(row, column, cell.formula, format_, float(cell.value))
    return len(f"{cell.value:,.{cell.places}f}") + 3


def _write_text(sheet: Any, row: int, column: int, text: str, format_: Any) -> None:
    """Write a text as text."""
    if text.startswith("<r>") and text.endswith("</r>"):  # XlsxWriter would take it for markup of its own
        sheet.write_rich_string(row, column, text[0], text[1], text[2:], *([format_] if format_ else []))
    else:
        sheet.write_string(row, column, text, format_)


def number_format(places: int) -> str:
    """The format of numbers with so many places: thousands apart, negative ones red."""
    shown = "#,##0" + ("." + "0" * places if places else "")
    return f"{shown};[Red]-{shown}"


def is_exact(text: str) -> bool:
    """Whether a spreadsheet's number holds a plain decimal text."""
    digits = text.lstrip("-").replace(".", "").lstrip("0")
    return len(digits) <= SIGNIFICANT or len(digits.rstrip("0")) <= SIGNIFICANT


def shortened(text: str) -> str:
    """A text as a cell can hold it: the beginning of one that is too long, with … at its end."""
    if len(text.encode("utf-16-le")) <= 2 * LONGEST_TEXT:
        return text
    return sheet_names.cut(text, LONGEST_TEXT - 1) + "…"


def serial(time: str) -> float:
    """UTC text as a spreadsheet's date: days since 1899-12-30."""
    passed = datetime.fromisoformat(time) - datetime(1899, 12, 30, tzinfo=UTC)
    return passed.days + passed.seconds / 86_400


def places_of(text: str, fixed: int | None) -> tuple[int, int]:
    """Places that a person sees of an amount, and places that it has.

    As many as it has, or the fixed number; more where what is not 0 would look like it.
    """
    before, _, after = text.partition(".")
    has = len(after)
    if fixed is None:
        return min(len(after.rstrip("0")), _MOST_PLACES), has
    looks_like_zero = not before.strip("-0") and not after[:fixed].strip("0") and after.strip("0")
    return (min(has - len(after.lstrip("0")) + 1, _MOST_PLACES) if looks_like_zero else fixed), has


def _without_modes(path: Path) -> None:
    """Clear the permissions that an archive notes of its members: they are those of the temporary files."""
    with zipfile.ZipFile(path) as archive:
        place, members = archive.start_dir, len(archive.infolist())
    with open(path, "r+b") as stream:
        for _ in range(members):
            stream.seek(place)
            header = stream.read(46)
            stream.seek(place + 38)
            stream.write(struct.pack("<L", 0o600 << 16))
            place += 46 + sum(struct.unpack("<HHH", header[28:34]))
