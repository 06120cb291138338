"""Reading a report back: the page's tables and text, and a PDF's text."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

# A figure with places or thousands: what page numbers, years and days of a month are not.
FIGURE = re.compile(r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+)(?![\w.,]*\d)")
_SILENT = frozenset(("style", "title", "head"))
_VOID = frozenset(("meta", "br", "i", "rect", "line", "img", "link"))


@dataclass
class Cell:
    """One cell: its text without notes, its notes, its classes and its title."""

    classes: tuple[str, ...] = ()
    title: str = ""
    text: str = ""
    note: str = ""


@dataclass
class Table:
    """A table's rows, those of its head left out; `foot` has the totals."""

    rows: list[list[Cell]] = field(default_factory=list)
    foot: list[list[Cell]] = field(default_factory=list)


class Page(HTMLParser):
    """tables: by id. text: everything that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, Table] = {}
        self.by_id: dict[str, str] = {}
        self.text = ""
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        if tag not in _VOID or tag == "i":
            self._open.append((tag, given))
        if tag == "table":
            self._table = self.tables.setdefault(given.get("id", f"table {len(self.tables)}"), Table())
        if tag == "tr" and not self._within("thead"):
            (self._table.foot if self._within("tfoot") else self._table.rows).append([])
        if tag in ("td", "th") and not self._within("thead"):
            rows = self._table.foot if self._within("tfoot") else self._table.rows
            rows[-1].append(Cell(tuple(given.get("class", "").split()), given.get("title", "")))
        if tag in ("td", "th", "li", "p", "text", "div"):
            self.text += "\n"

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if any(name in _SILENT for name, _ in self._open):
            return
        self.text += data
        if self._open and "id" in self._open[-1][1]:
            key = self._open[-1][1]["id"]
            self.by_id[key] = self.by_id.get(key, "") + data
        if self._within("table") and not self._within("thead") and (self._within("td") or self._within("th")):
            rows = self._table.foot if self._within("tfoot") else self._table.rows
            if any(given.get("class") == "note" for _, given in self._open):
                rows[-1][-1].note += data
            else:
                rows[-1][-1].text += data.strip()

    def _within(self, tag: str) -> bool:
        return any(name == tag for name, _ in self._open)


def cell(row: list[Cell], kind: str) -> Cell:
    """The one cell of a row that has a class."""
    (found,) = (c for c in row if kind in c.classes)
    return found


def figures(text: str) -> Counter[str]:
    """The figures in a text, with how often each stands there."""
    return Counter(FIGURE.findall(text))


def pdf_text(file: Path) -> str:
    """The text of a PDF as a reader's program finds it."""
    return subprocess.run(["pdftotext", "-raw", file, "-"], check=True, capture_output=True, text=True).stdout
