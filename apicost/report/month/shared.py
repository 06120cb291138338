"""Shared costs explained: the amount, how it was split, who bears what of it, and what stayed idle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np

from apicost.core.rating import money
from apicost.core.rating.statement import UNALLOCATED
from apicost.report.month.labels import BY_API, NOBODY, Label
from apicost.report.month.part import Part

TOP_BEARERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """What an API bears of a shared cost, or what nobody does.

    weights: measure -> the API's part of the weight, exactly; empty where nothing is split by weight.
    cost: exact; billed_minor: its charges, rounded.
    """

    label: Label
    weights: Mapping[str, Fraction]
    cost: Fraction
    billed_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFigure:
    """One shared cost of the month. The exact costs of `rows` sum to `amount` in a report of all APIs.

    weights: measure -> its part in the rule; keep_unallocated: the part that stays idle by rule.
    rows: APIs by what they bear; then what stayed idle by rule, and what no weight could carry.
    """

    id: str
    amount: Decimal
    method: str
    weights: Mapping[str, Decimal]
    keep_unallocated: Decimal
    rows: tuple[Bearer, ...]
    idle: Fraction
    billed_minor: int

    @property
    def allocated(self) -> Fraction:
        return sum((row.cost for row in self.rows), Fraction()) - self.idle


def shared_figures(part: Part) -> tuple[SharedFigure, ...]:
    """The shared costs that the month bears, in the book's order."""
    statement = part.statement
    labels, group = part.groups(BY_API)
    count = len(labels)
    found = []
    for shared in statement.book.shared_costs:
        if not shared.is_due(statement.period.days[0]):
            continue
        cost: dict[Label, Fraction] = {}
        billed: dict[Label, int] = {}
        weights: dict[Label, dict[str, Fraction]] = {}
        idle = Fraction()
        for line, charges in zip(statement.lines, part.of_line, strict=True):
            if line.sku != shared.id or not len(charges):
                continue
            of_key = group[statement.key[charges]]
            quantities = money.add_by(of_key, statement.quantity[charges], count)
            minor = money.add_by(of_key, statement.billed_minor[charges], count)
            for number in np.flatnonzero(quantities).tolist():
                label = labels[number]
                if line.state == UNALLOCATED:
                    label = label._replace(note=line.reason or "")
                    idle += line.cost_of(int(quantities[number]))
                else:
                    weights.setdefault(label, {})[line.meter] = Fraction(int(quantities[number]), line.quantity)
                cost[label] = cost.get(label, Fraction()) + line.cost_of(int(quantities[number]))
                billed[label] = billed.get(label, 0) + int(minor[number])
        rows = [
            Bearer(label=label, weights=weights.get(label, {}), cost=amount, billed_minor=billed[label])
            for label, amount in sorted(
                cost.items(), key=lambda item: (item[0].last, item[0].text == NOBODY.text, -item[1], item[0])
            )
        ]
        found.append(
            SharedFigure(
                id=shared.id, amount=shared.amount, method=shared.method, weights=shared.weights,
                keep_unallocated=shared.keep_unallocated, rows=_folded(rows), idle=idle,
                billed_minor=sum(billed.values()),
            )
        )  # fmt: skip
    return tuple(found)


def _order(item: tuple[Label, Fraction]) -> tuple[bool, bool, Fraction, Label]:
    """APIs by what they bear, then what no API bears, last what stayed idle."""
    label, cost = item
    return label.last, label.text == NOBODY.text, -cost, label


def _folded(rows: list[Bearer]) -> tuple[Bearer, ...]:
    """The largest bearers, one row for the others, and what nobody bears."""
    plain = [row for row in rows if not row.label.last]
    if len(plain) <= TOP_BEARERS + 1:
        return tuple(rows)
    rest = plain[TOP_BEARERS:]
    measures = sorted({measure for row in rest for measure in row.weights})
    others = Bearer(
        label=Label(f"({len(rest)} others)", "", True), cost=sum((row.cost for row in rest), Fraction()),
        billed_minor=sum(row.billed_minor for row in rest),
        weights={m: sum((row.weights.get(m, Fraction()) for row in rest), Fraction()) for m in measures},
    )  # fmt: skip
    return (*plain[:TOP_BEARERS], others, *(row for row in rows if row.label.last))
