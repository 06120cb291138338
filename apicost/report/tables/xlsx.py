"""XLSX: a summary, then the rows on sheets of their own, for people who calculate on.

Rules of this file:
- XlsxWriter makes the workbook: its parts, the summary, and of each sheet the header, filter, widths and printing. The
  rows themselves are XML of `xlsx_cells`, kept in a file until their sheet is put together: a month of any size fits.
- The only formulas are sums on the summary, and their cached values are the exact sums.
- A spreadsheet keeps 15 significant digits. A number with more is the nearest one there, and all its digits are text in
  the last column.
- Rows of the same value in the `split` column have a sheet of their own.
- The same rows give the same bytes: dates inside are the month's, members of the archive have fixed ones.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal, Inexact
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xlsxwriter
from xlsxwriter.exceptions import FileCreateError
from xlsxwriter.utility import quote_sheetname, xl_col_to_name

from apicost import durable, scratch
from apicost.report.tables import sheet_names, xlsx_cells, xlsx_summary
from apicost.report.tables.rows import Column, Rows, Seen, plain
from apicost.report.tables.xlsx_summary import HEAD, Block, Number

ROWS_MAX = 1_048_576  # of a sheet, its header included
SUMMARY = "Summary"
FRAME = "frame.xlsx"
_AT_ONCE = 1 << 13  # rows; about 20 MB of XML
_SUMS = Context(prec=400, traps=[Inexact])
_OPTIONS = {"strings_to_numbers": False, "strings_to_formulas": False, "strings_to_urls": False}
_SHEET = re.compile(r"xl/worksheets/sheet(\d+)\.xml")
_END_OF_ROWS = b"</sheetData>"
_DIMENSION = re.compile(rb'<dimension ref="[^"]*"/>')


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
            book = _Workbook(rows, folder, about, rows_max)
            for piece in rows.selected():
                for start in range(0, len(piece), _AT_ONCE):
                    book.add(piece.slice(start, _AT_ONCE))
                count += len(piece)
                seen(count)
            book.save(temporary)

    durable.write_file(path, fill)
    return count


class _Workbook:
    """A workbook that is being written, in a folder of its own."""

    def __init__(self, rows: Rows, folder: Path, about: About, rows_max: int) -> None:
        self.rows, self.folder, self.about, self.rows_max = rows, folder, about, rows_max
        self.columns = rows.in_sheets()
        self.book = xlsxwriter.Workbook(str(folder / FRAME), {**_OPTIONS, "tmpdir": str(folder)})
        self.book.set_properties({"title": about.title, "author": "apicost", "created": about.dated})
        self.formats: dict[tuple[Any, ...], Any] = {}
        self.rows_files: dict[int, tuple[Path, int]] = {}  # of sheets that have rows: file, number of the last one
        self.names = sheet_names.SheetNames()
        self.summary = self.book.add_worksheet(self.names.new(SUMMARY))
        self.sheets: dict[str | None, _Sheet] = {}
        for value in rows.sheets:
            self._sheet(value)

    def add(self, piece: pa.Table) -> None:
        """Write rows, each run of the same split value at once."""
        if self.rows.split is None:
            self._sheet(None).add(piece)
            return
        coded = plain(piece.column(self.rows.split)).dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy()
        values = [*coded.dictionary.to_pylist(), None]
        starts = np.flatnonzero(np.diff(codes, prepend=-2))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
            self._sheet(values[codes[start]]).add(piece.slice(start, stop - start))

    def save(self, path: Path) -> None:
        """Write what is known at the end, and put the workbook together."""
        for sheet in self.sheets.values():
            sheet.end()
        blocks = self.about.blocks([sheet.part for sheet in self.sheets.values()], self.sum_of)
        xlsx_summary.fill(self.summary, self.about.title, blocks, self.format)
        try:
            self.book.close()
        except FileCreateError as failure:  # it hides what the system said, such as a full disk
            raise OSError(*failure.args[0].args) from None
        _put_together(self, path)

    def format(self, number: str = "General", **more: Any) -> Any:
        """A cell format, made once."""
        key = (number, *sorted(more.items()))
        if key not in self.formats:
            self.formats[key] = self.book.add_format({"num_format": number, "valign": "top", **more})
        return self.formats[key]

    def style(self, number: str, more: dict[str, Any]) -> int:
        """The number by which cells name a format; XlsxWriter gives it out when a cell is written."""
        return int(self.format(number, **more)._get_xf_index())

    def sum_of(self, part: Part, name: str) -> Number:
        """The sum of a column over a part's sheets."""
        letter = xl_col_to_name([column.name for column in self.columns].index(name))
        ranges = ",".join(f"{quote_sheetname(sheet)}!{letter}2:{letter}{max(last, 2)}" for sheet, last in part.ranges)
        column = next(column for column in self.columns if column.name == name)
        places = part.places.get(name, 0) if column.places is None else column.places
        return Number(value=part.sums.get(name, Decimal(0)), places=min(places, 6), formula=f"=SUM({ranges})")

    def _sheet(self, value: str | None) -> _Sheet:
        if value not in self.sheets:
            self.sheets[value] = _Sheet(self, value, self.about.none if value is None else value)
        return self.sheets[value]


class _Sheet:
    """The sheets of one split value: one, or more where its rows are too many."""

    def __init__(self, book: _Workbook, value: str | None, wished: str) -> None:
        self.book, self.wished = book, wished
        self.part = Part(value=value, label=wished)
        self.widths = [len(name) + 4 for name in self._names()]
        self._begin()

    def _names(self) -> list[str]:
        return [*(column.name for column in self.book.columns), self.book.about.exact]

    def _begin(self) -> None:
        name = self.book.names.new(self.wished)
        self.sheet = self.book.book.add_worksheet(name)
        self.last_row = 1
        self.part.ranges.append((name, 1))
        for position, title in enumerate(self._names()):
            aligned = xlsx_cells.aligned(self.book.columns, position)
            self.sheet.write_string(0, position, title, self.book.format(**HEAD | aligned))

    def add(self, piece: pa.Table) -> None:
        """Write rows below those that are there."""
        while len(piece):
            if self.last_row == self.book.rows_max:
                self.end()
                self._begin()
            fitting = piece.slice(0, self.book.rows_max - self.last_row)
            self._write(fitting)
            piece = piece.slice(len(fitting))

    def _write(self, piece: pa.Table) -> None:
        columns = self.book.columns
        made = xlsx_cells.rows(piece, columns, self.last_row + 1, self.book.style)
        whole: Any = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(piece)], pa.int32()), made.xml), "")
        number = self.sheet.index + 1
        rows_file = self.book.folder / f"rows-{number}"
        with open(rows_file, "ab") as stream:
            stream.write(whole[0].as_buffer())
        self.widths = [max(pair) for pair in zip(self.widths, made.widths, strict=True)]
        for column, places in zip(columns, made.places, strict=True):
            if column.added:
                self._sum(column, plain(piece.column(column.name)).to_pylist(), places)
        self.last_row += len(piece)
        self.book.rows_files[number] = (rows_file, self.last_row)
        self.part.rows += len(piece)
        self.part.ranges[-1] = (self.part.ranges[-1][0], self.last_row)

    def _sum(self, column: Column, values: Sequence[str | int | None], places: int) -> None:
        total = self.part.sums.get(column.name, Decimal(0))
        for value in values:
            if value is not None:
                total = _SUMS.add(total, Decimal(value))
        self.part.sums[column.name] = total
        self.part.places[column.name] = max(self.part.places.get(column.name, 0), places)

    def end(self) -> None:
        """Filter, widths and printing of the sheet that is open."""
        last = len(self.book.columns)
        for position, width in enumerate(self.widths):
            self.sheet.set_column(position, position, min(width, xlsx_cells.WIDEST + 2))
        self.sheet.freeze_panes(1, 0)
        self.sheet.autofilter(0, 0, self.last_row - 1, last)
        self.sheet.ignore_errors({"number_stored_as_text": f"A1:{xl_col_to_name(last)}{self.last_row}"})
        self.sheet.print_area(0, 0, self.last_row - 1, (len(self.book.rows.first) or last) - 1)
        self.sheet.repeat_rows(0)
        self.sheet.set_landscape()
        self.sheet.fit_to_pages(1, 0)
        self.sheet.set_paper(9)  # A4


def _put_together(book: _Workbook, path: Path) -> None:
    """The frame that XlsxWriter made, with the rows in their sheets and nothing of the run in the archive."""
    with zipfile.ZipFile(book.folder / FRAME) as frame, zipfile.ZipFile(path, "w") as archive:
        for name in frame.namelist():
            content = frame.read(name)
            found = _SHEET.fullmatch(name)
            rows = book.rows_files.get(int(found[1])) if found else None
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system, info.external_attr = 3, 0o600 << 16
            info.file_size = len(content) + (rows[0].stat().st_size if rows else 0)
            with archive.open(info, "w") as member:
                if rows is None:
                    member.write(content)
                    continue
                before, end, after = content.partition(_END_OF_ROWS)
                used = f"A1:{xl_col_to_name(len(book.columns))}{rows[1]}"
                member.write(_DIMENSION.sub(f'<dimension ref="{used}"/>'.encode(), before, count=1))
                with open(rows[0], "rb") as stream:
                    shutil.copyfileobj(stream, member, 1 << 20)
                member.write(end + after)
                rows[0].unlink()
