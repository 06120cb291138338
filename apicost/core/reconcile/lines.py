"""A provider's bill as the bridge takes it: lines that are alike in all that it asks, added up.

Rules of this file:
- Amounts are exact fractions of the bill's currency, quantities exact fractions of base units.
- What a line is, comes from the first rule that fits it; what no rule fits is `UNMAPPED`, and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

# What lines are.
USAGE = "usage"
TAX = "tax"
CREDIT = "credit"
REFUND = "refund"
DISCOUNT = "discount"
ADJUSTMENT = "adjustment"
OTHER_HOSTS = "other hosts"
UNMAPPED = "unmapped"
IGNORED = "ignored"
KINDS = (USAGE, TAX, CREDIT, REFUND, DISCOUNT, ADJUSTMENT, OTHER_HOSTS, UNMAPPED, IGNORED)

# When lines were used.
IN = "in"  # within the bill's own period
LATE = "late"  # outside it: usage of another month that this bill brings
CORRECTION = "correction"  # of a charge of an earlier bill
ELSEWHERE = "elsewhere"  # on the bill of another month that the same file holds
TIMES = (IN, LATE, CORRECTION, ELSEWHERE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Lines that are alike, added up.

    kind: of KINDS; when: of TIMES. sku: None where the rule names none.
    label: the reason of what is ignored, what is billed of what is unmapped; else "".
    count: how many lines. quantity: base units, 0 where it does not count.
    cost: in the bill's currency. exact: what their quantities cost by their unit prices, where that is the cost but for
        rounding; None for others.
    unit_price: per base unit in the bill's currency, of lines with an exact cost; None where that is not known.
    pricing_currency: what the provider's price list is in, None where the bill does not say; rate: what one unit of it
        is worth in the bill's currency, by the bill itself.
    """

    kind: str
    when: str
    sku: str | None
    label: str
    count: int
    quantity: Fraction
    cost: Fraction
    exact: Fraction | None = None
    unit_price: Fraction | None = None
    pricing_currency: str | None = None
    rate: Fraction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderBill:
    """A bill of one month.

    start_unix_s, end_unix_s: the period that the bill is for, end exclusive.
    lines: in any order; equal ones may stand several times. remarks: what is legal and surprising.
    """

    currency: str
    start_unix_s: int
    end_unix_s: int
    lines: Sequence[Lines]
    remarks: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many lines the file has."""
        return sum(line.count for line in self.lines)
