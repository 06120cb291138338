"""Tables whose rows sum to the month's total: by API, operation, consumer, team and response status.

Rules of this file:
- Billed costs of a table, and those of the month before beside them, sum to the totals of the two months.
- A row that has only the month before is listed too: with a cost of 0 and what went away.
- Only the largest rows are listed; the rest is one row that says how many it stands for.
- Corrections of closed months are one row: a row's unit costs are those of the month's own usage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from apicost.core.rating import money
from apicost.core.rating.rate import WIRE_BYTES
from apicost.report.month.corrections import Corrections
from apicost.report.month.labels import CORRECTIONS, Grouping, Label
from apicost.report.month.part import Part

TOP_ROWS = 30
CLIENT_BYTES = ("downstream_in_wire_bytes", "downstream_out_wire_bytes")
BACKEND_BYTES = tuple(name for name in WIRE_BYTES if name not in CLIENT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table. Costs in minor units (billed) and exact; None where there is no figure.

    note: a second label, such as the method and path of an operation.
    list_cost: without contracts, contracted_cost: what is paid, before rounding.
    per_1000_calls, per_gb: contracted cost per 1,000 requests and per GB of wire bytes with clients.
    named: a row for what has no name of its own, in parentheses.
    before_minor: the same row's billed cost in the month before; None where there is no such month.
    """

    label: str
    note: str = ""
    calls: int = 0
    client_bytes: int = 0
    backend_bytes: int = 0
    billed_minor: int = 0
    list_cost: Fraction = Fraction()
    contracted_cost: Fraction = Fraction()
    named: bool = False
    before_minor: int | None = None

    @property
    def per_1000_calls(self) -> Fraction | None:
        return self.contracted_cost * 1_000 / self.calls if self.calls else None

    @property
    def per_gb(self) -> Fraction | None:
        return self.contracted_cost * 10**9 / self.client_bytes if self.client_bytes else None

    @property
    def change_minor(self) -> int | None:
        """Billed cost less that of the month before."""
        return None if self.before_minor is None else self.billed_minor - self.before_minor


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """A table whose rows sum to the total."""

    id: str
    title: str
    rows: tuple[Row, ...]
    folded: int = 0  # how many rows the one for the rest stands for


def billed_by(part: Part, by: Grouping, corrections_minor: int = 0) -> dict[Label, int]:
    """Billed cost by label: what the next month's table holds its own against."""
    labels, group = part.groups(by)
    billed = part.billed(group, len(labels)).tolist()
    found = {label: int(amount) for label, amount in zip(labels, billed, strict=True) if amount}
    return found | ({CORRECTIONS: corrections_minor} if corrections_minor else {})


def breakdown(
    part: Part, by: Grouping, corrected: Corrections | None = None, before: Mapping[Label, int] | None = None
) -> Breakdown:
    """A table of a part's charges. before: the same of the month before, as `billed_by` gives it; None without."""
    corrected = corrected or Corrections()
    labels, group = part.groups(by)
    count = len(labels)
    statement = part.statement
    billed = part.billed(group, count)
    exact = part.exact(group, count, part.contracted)
    listed = exact if part.listed == part.contracted else part.exact(group, count, part.listed)
    of_usage = group[statement.usage.key[part.rows]]
    calls, client, backend = (
        money.add_by(of_usage, statement.usage.of(names)[part.rows], count)
        for names in (("calls",), CLIENT_BYTES, BACKEND_BYTES)
    )
    seen = np.zeros(count, np.bool_)
    seen[group[statement.key[part.charges]]] = True
    seen[of_usage] = True
    left = dict(before or {})

    def was(label: Label) -> int | None:
        return None if before is None else left.pop(label, 0)

    found = [
        (
            labels[i].last,
            Row(
                label=labels[i].text, note=labels[i].note, calls=int(calls[i]), client_bytes=int(client[i]),
                backend_bytes=int(backend[i]), billed_minor=int(billed[i]), list_cost=listed[i],
                contracted_cost=exact[i], named=labels[i].named, before_minor=was(labels[i]),
            ),
        )
        for i in np.flatnonzero(seen).tolist()
    ]  # fmt: skip
    corrected_before = was(CORRECTIONS)
    found += [
        (label.last, Row(label=label.text, note=label.note, named=label.named, before_minor=amount))
        for label, amount in left.items()
    ]
    found.sort(
        key=lambda pair: (
            pair[0], -pair[1].contracted_cost, -pair[1].calls, -(pair[1].before_minor or 0), pair[1].label, pair[1].note
        )
    )  # fmt: skip
    rows = [row for _, row in found]
    if corrected.count or corrected_before:
        rows.append(
            Row(
                label=CORRECTIONS.text, note=CORRECTIONS.note, named=True, billed_minor=corrected.billed_minor,
                list_cost=corrected.list_cost, contracted_cost=corrected.contracted_cost,
                before_minor=corrected_before,
            )
        )  # fmt: skip
    return _folded(by, rows)


def _folded(by: Grouping, rows: list[Row]) -> Breakdown:
    """The largest rows, the named ones, and one for the rest."""
    plain = [row for row in rows if not row.named]
    if len(plain) <= TOP_ROWS + 1:
        return Breakdown(id=by.id, title=by.title, rows=tuple(rows))
    rest = plain[TOP_ROWS:]
    hidden = {id(row) for row in rest}
    folded = together(f"({len(rest)} others)", rest)
    kept = [row for row in rows if id(row) not in hidden]
    return Breakdown(id=by.id, title=by.title, rows=(*kept, folded), folded=len(rest))


def together(label: str, rest: Sequence[Row]) -> Row:
    """One row for several."""
    compared = any(row.before_minor is not None for row in rest)
    return Row(
        label=label, calls=sum(r.calls for r in rest), named=True,
        client_bytes=sum(r.client_bytes for r in rest), backend_bytes=sum(r.backend_bytes for r in rest),
        billed_minor=sum(r.billed_minor for r in rest), list_cost=sum((r.list_cost for r in rest), Fraction()),
        contracted_cost=sum((r.contracted_cost for r in rest), Fraction()),
        before_minor=sum(r.before_minor or 0 for r in rest) if compared else None,
    )  # fmt: skip
