"""What a month bills: the charges of its usage, and the corrections of closed months that fall to it.

Rules of this file:
- Every format of a month is made from a `Bill`: one order of rows, one total.
- The statement's charges come first, corrections after them; amounts of corrections have a sign.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.statement import CHARGE, Statement, StatementInLots
from apicost.core.rating.usage_rows import KEYS

PIECE_ROWS = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A month's statement with the corrections that the month carries.

    corrections: columns as in CHARGE, `charge_class` Correction; `period_start` and `period_end` are those of the
        charge that is corrected, `billing_month` is this month. Quantities and costs are differences. Few rows, sorted.
    closed: whether the month is closed: what it says then never changes.
    """

    statement: Statement
    corrections: pa.Table = field(default_factory=lambda: records.empty(CHARGE))
    closed: bool = False

    def __len__(self) -> int:
        return len(self.statement) + len(self.corrections)

    @property
    def corrections_minor(self) -> int:
        """What the corrections come to, in minor units of the book's currency."""
        return sum(minor_of(self.corrections, self.statement.book.statement_scale))

    @property
    def total_minor(self) -> int:
        return self.statement.total_minor + self.corrections_minor

    @property
    def total(self) -> str:
        """The month's total as text, with all its places."""
        return money.fixed(self.total_minor, self.statement.book.statement_scale)

    def parts(self) -> Iterator[Bill]:
        """The bill as one part: see `BillInLots`."""
        yield self

    def pieces(self, rows: int = PIECE_ROWS) -> Iterator[pa.Table]:
        """All charges in their order, columns as in CHARGE, so many at a time."""
        for start in range(0, len(self.statement), rows):
            yield self.statement.table(start, min(start + rows, len(self.statement)))
        for start in range(0, len(self.corrections), rows):
            yield self.corrections.slice(start, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillInLots:
    """A bill too large to be held at once. corrections: as in `Bill`."""

    statement: StatementInLots
    corrections: pa.Table

    def __len__(self) -> int:
        return len(self.statement) + len(self.corrections)

    def parts(self) -> Iterator[Bill]:
        """Bills of some keys each, in order, made as they are asked for; the last has the corrections."""
        for number, statement in enumerate(self.statement.parts(), 1):
            last = number == self.statement.lots
            yield Bill(statement=statement, corrections=self.corrections if last else self.corrections.slice(0, 0))
            del statement  # before the next one is made


def fingerprint(statement: Statement) -> str:
    """What identifies a statement's charges, as hexadecimal digits, without their texts being made.

    The same for the same keys, lines, quantities and costs; another for charges that read otherwise.
    """
    digest = hashlib.sha256(f"{statement.period}\x1f{statement.total_minor}".encode())
    digest.update(repr(statement.line_table().to_pydict()).encode())
    digest.update(repr([line.unit_base for line in statement.lines]).encode())
    for name in KEYS:
        codes, values = records.codes(statement.keys, name)
        digest.update("\x1f".join(["", *values]).encode(errors="surrogatepass"))
        digest.update(codes.astype("<i4").tobytes())
    for column in (statement.key, statement.line, statement.quantity, statement.billed_minor):
        digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()


def minor_of(charges: pa.Table, scale: int) -> list[int]:
    """Billed costs of a few charges in minor units: 0 for what has no price.

    Raises ValueError where one has not `scale` places: it is of a book with another scale.
    """
    return [0 if text is None else _minor(text, scale) for text in charges.column("billed_cost").to_pylist()]


def _minor(text: str, scale: int) -> int:
    whole, _, places = text.partition(".")
    if len(places) != scale:
        raise ValueError(f"billed cost {text} has {len(places)} places, not {scale}")
    return int(whole + places)
