"""The first sheet of a workbook: a title, then tables one below the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from xlsxwriter.utility import xl_col_to_name

from apicost.report.tables.xlsx_cells import TIME_FORMAT, WIDEST, number_format

HEAD: dict[str, Any] = {"bold": True, "bg_color": "#E8EEF4", "bottom": 1}
_LEFT: dict[str, Any] = {"align": "left"}

# Makes a cell format, once for what it is asked for: a number format, then other properties.
Format = Callable[..., Any]


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


def fill(sheet: Any, title: str, blocks: Sequence[Block], format_: Format) -> None:
    """Write title and tables to a sheet."""
    sheet.write_string(0, 0, title, format_(bold=True, font_size=16))
    row = 2
    widths: list[int] = []
    for block in blocks:
        write_text(sheet, row, 0, block.title, format_(bold=True, font_size=12))
        row = _write_block(sheet, row + 1, block, widths, format_) + 1
    for position, width in enumerate(widths):
        sheet.set_column(position, position, min(width, WIDEST))
    sheet.hide_gridlines(2)
    sheet.set_landscape()
    sheet.fit_to_pages(1, 0)
    sheet.set_paper(9)  # A4


def write_text(sheet: Any, row: int, column: int, text: str, format_: Any) -> None:
    """Write a text as text."""
    if text.startswith("<r>") and text.endswith("</r>"):  # XlsxWriter would take it for markup of its own
        sheet.write_rich_string(row, column, text[0], text[1], text[2:], *([format_] if format_ else []))
    else:
        sheet.write_string(row, column, text, format_)


def _write_block(sheet: Any, row: int, block: Block, widths: list[int], format_: Format) -> int:
    """Write a table from a row on; returns the row below it. widths: letters that columns need."""
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
            write_text(sheet, row, position, title, format_(**HEAD | aligned[position]))
            widths[position] = max(widths[position], len(title) + 3)
        row += 1
    for number, cells in enumerate(block.rows):
        is_total = block.total and number == len(block.rows) - 1
        marks: dict[str, Any] = {"bold": True, "top": 1} if is_total else {}
        for position, cell in enumerate(cells):
            if isinstance(cell, Number) and block.head:
                letter = xl_col_to_name(position)
                formula = f"=SUM({letter}{row - number + 1}:{letter}{row})" if is_total and number else cell.formula
                cell = replace(cell, places=max(numbers[position]), formula=formula)
            own = marks | (aligned[position] if block.head else _LEFT)
            width = _write_cell(sheet, row, position, cell, own, format_)
            if position < columns - 1 or not isinstance(cell, str):  # a text in the last column has room beside it
                widths[position] = max(widths[position], width)
        row += 1
    return row


def _write_cell(sheet: Any, row: int, column: int, cell: Cell, marks: dict[str, Any], format_: Format) -> int:
    """Write a cell; returns the letters that it needs."""
    if cell is None:
        if "top" in marks:
            sheet.write_blank(row, column, None, format_(**marks))
        return 0
    if isinstance(cell, str):
        write_text(sheet, row, column, cell, format_(**marks))
        return len(cell) + 2
    if isinstance(cell, datetime):
        sheet.write_datetime(row, column, cell, format_(TIME_FORMAT, **marks))
        return 17
    shown = format_(number_format(cell.places), **marks)
    if cell.formula is None:
        sheet.write_number(row, column, float(cell.value), shown)
    else:
        sheet.write_formula(row, column, cell.formula, shown, float(cell.value))
    return len(f"{cell.value:,.{cell.places}f}") + 3
