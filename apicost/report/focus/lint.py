"""The project's own linter of FOCUS cost-and-usage files: rule, row, column, effect and fix of what is wrong.

Rules of this file:
- Rows come in pieces, as they are written or read, and none is kept: what holds across rows is remembered per SKU,
  price and shared cost, and charge ids as 64-bit hashes.
- Of each rule and column the first findings are told, and how many there are in all.
- Row 1 is the first below the header.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.report.focus import columns as focus_columns
from apicost.report.focus import lint_cells, lint_rows
from apicost.report.focus.lint_across import Across
from apicost.report.focus.lint_rules import RULES, Rule
from apicost.report.focus.piece import Piece

MOST = 5  # findings told of each rule and column


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing wrong.

    row: from 1 below the header; None: the file, or a column of it. column: None: none.
    value: what stands there; detail: what should, where it is known. charge: the row's x_ChargeId.
    count: rows with the same fault in the same column; told in the first finding of them, 0 in the others.
    """

    rule: Rule
    column: str | None
    row: int | None = None
    value: str | None = None
    detail: str = ""
    charge: str | None = None
    count: int = 1

    def __str__(self) -> str:
        place = [f"row {self.row:,}"] if self.row is not None else []
        place += [self.column] if self.column else []
        of = f" (charge {self.charge})" if self.charge else ""
        said = "" if self.row is None else f" {'is empty' if self.value is None else repr(self.value)}"
        text = f"{', '.join(place) or 'file'}{said}{of}: {self.rule.meaning} [{self.rule.id}]"
        text += f"\n  here: {self.detail}" if self.detail else ""
        text += f"\n  effect: {self.rule.effect}\n  fix: {self.rule.fix}"
        return text + (f"\n  the same in {self.count - 1:,} more rows" if self.count > 1 else "")


class Linter:
    """Looks at one file.

    total: what BilledCost must sum to, where it is known.
    is_csv: whether cells are as a CSV file has them; before they are written, texts may still begin as formulas do.
    Raises ValueError for a version that is not known.
    """

    def __init__(self, version: str, total: str | None = None, *, is_csv: bool = True) -> None:
        self.known = focus_columns.known(version)
        self.is_csv = is_csv
        self.expected = None if total is None else Fraction(total)
        self.total = Fraction()
        self.rows = 0
        self.names: tuple[str, ...] | None = None
        self.across = Across()
        self.found: dict[tuple[str, str | None], list[Finding]] = {}
        self.pointed: dict[str, bool] = {}
        self.guessed: dict[str, bool] = {}

    def header(self, names: Sequence[str]) -> None:
        """Look at the names of the columns; `feed` does it where this was not called."""
        self.names = tuple(names)
        for rule, column, detail in lint_cells.of_header(self.names, self.known):
            self._add(Finding(rule=RULES[rule], column=column, detail=detail))

    def feed(self, table: pa.Table) -> None:
        """Look at the next rows: columns of text, as in the header."""
        if self.names is None:
            self.header(table.column_names)
        if not len(table):
            return
        piece = Piece(table)
        for rule, column, wrong in lint_cells.of_cells(piece, self.known):
            if self.is_csv or rule != "cell-formula":
                self._note(piece, rule, column, wrong)
        for rule, column, wrong in lint_rows.of_rows(piece):
            self._note(piece, rule, column, wrong)
        for rule, column, row, detail in self.across.of_piece(piece):
            value = piece.value(column, row) if column else None
            self._add(self._at(piece, rule, column, row, value, detail))
        self._guess(piece)
        self.total += piece.total("BilledCost")
        self.rows += len(table)

    def fail(self, rule: str, row: int | None, detail: str) -> None:
        """Note what whoever reads the file saw; row: from 1."""
        self._add(Finding(rule=RULES[rule], column=None, row=row, detail=detail))

    def finish(self) -> tuple[Finding, ...]:
        """All findings, errors first, then by row."""
        for rule, detail in self.across.at_end():
            self._add(Finding(rule=RULES[rule], column=None, detail=detail))
        for name, has_point in self.pointed.items():
            if not has_point:
                self._add(Finding(rule=RULES["number-point"], column=name))
        for name, is_guessed in self.guessed.items():
            if is_guessed:
                self._add(Finding(rule=RULES["text-guessed"], column=name))
        if self.expected is not None and self.total != self.expected:
            detail = f"{_plain(self.total)}, not {_plain(self.expected)}"
            self._add(Finding(rule=RULES["total"], column="BilledCost", detail=detail))
        found = [finding for findings in self.found.values() for finding in findings]
        return tuple(sorted(found, key=lambda f: (not f.rule.is_error, f.row or 0, f.column or "", f.rule.id)))

    def _guess(self, piece: Piece) -> None:
        """Remember which columns readers that guess types would take for something else."""
        for name, column in self.known.items():
            if not piece.has(name):
                continue
            filled = piece.filled(name)
            if not filled.any():
                continue
            if column.is_decimal:
                self.pointed[name] = self.pointed.get(name, False) or bool(piece.matches(name, r"[.]").any())
            elif column.kind == focus_columns.TEXT and not column.choices and not column.is_ours:
                plain = piece.matches(name, lint_cells.GUESSED)
                self.guessed[name] = self.guessed.get(name, True) and bool((plain == filled).all())

    def _note(self, piece: Piece, rule: str, column: str, wrong: npt.NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(wrong)
        if not len(rows):
            return
        findings = self.found.setdefault((rule, column), [])
        for row in rows[: max(MOST - len(findings), 0)].tolist():
            findings.append(self._at(piece, rule, column, row, piece.value(column, row), "", count=0))
        findings[0] = replace(findings[0], count=findings[0].count + len(rows))

    def _at(
        self, piece: Piece, rule: str, column: str | None, row: int, value: str | None, detail: str, count: int = 1
    ) -> Finding:
        charge = piece.value("x_ChargeId", row)
        return Finding(
            rule=RULES[rule], column=column, row=self.rows + row + 1, value=value, detail=detail, charge=charge,
            count=count,
        )  # fmt: skip

    def _add(self, finding: Finding) -> None:
        findings = self.found.setdefault((finding.rule.id, finding.column), [])
        if len(findings) < MOST:
            findings.append(finding if not findings else replace(finding, count=0))
        if len(findings) > 1 or findings[0] is not finding:
            findings[0] = replace(findings[0], count=findings[0].count + 1)


def lint(
    pieces: Iterable[pa.Table], version: str, total: str | None = None, *, is_csv: bool = False
) -> tuple[Finding, ...]:
    """All findings in some rows."""
    linter = Linter(version, total, is_csv=is_csv)
    for piece in pieces:
        linter.feed(piece)
    return linter.finish()


def _plain(amount: Fraction) -> str:
    places = 10**12
    whole = round(amount * places)
    sign, whole = ("-" if whole < 0 else ""), abs(whole)
    return f"{sign}{whole // places}.{whole % places:012d}".rstrip("0").rstrip(".")
