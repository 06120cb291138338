"""What bytes on the wire cost, by what they are: asked for, or overhead.

Rules of this file:
- A SKU that sells wire bytes is cut by its own bytes: those of the rows, legs and directions that it meters, over the
  month. Shares are exact; in minor units they sum to what the SKU's charges were billed.
- Of each direction: the requests' own bytes are what the gateway counted for them; framing is the rest of the payload
  (TLS records, HTTP/2 frames, payload that no request claims); what is not payload is headers, payload sent again,
  handshakes and closes. The last two are known by leg: a direction has its part by what it has beside payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.rate import WIRE_BYTES, picks
from apicost.report.month.part import Part

# What wire bytes are; all but the first is overhead.
KINDS = ("own", "framing", "headers", "resent", "handshakes")


@dataclass(frozen=True, slots=True, kw_only=True)
class WireCost:
    """What one SKU of wire bytes was billed, by KINDS. Minor units; `parts` sum to `billed_minor`.

    wire_bytes: bytes of the rows that it meters. shares: of them by kind, exactly; they sum to 1.
    """

    sku: str
    wire_bytes: int
    billed_minor: int
    shares: tuple[Fraction, ...]
    parts: tuple[int, ...]

    @property
    def overhead_minor(self) -> int:
        return self.billed_minor - self.parts[0]


def sums_needed(book: PriceBook) -> tuple[str, ...]:
    """The sums of usage that the cost of the wire is cut by."""
    legs = sorted({name.split("_")[0] for sku in book.skus for name in sku.columns if name in WIRE_BYTES})
    both = ("wire", "payload", "app")
    return tuple(
        name
        for leg in legs
        for name in (
            *(f"{leg}_{way}_{kind}_bytes" for way in ("in", "out") for kind in both),
            f"{leg}_resent_bytes", f"{leg}_overhead_bytes",
        )
    )  # fmt: skip


def wire_costs(part: Part) -> tuple[WireCost, ...]:
    """The SKUs of wire bytes that a part was billed for, in the book's order."""
    statement = part.statement
    found = []
    for sku in statement.book.skus:
        columns = [name for name in sku.columns if name in WIRE_BYTES]
        if not columns or len(columns) < len(sku.columns):
            continue
        billed = part.billed_of([line.sku == sku.id and line.price is not None for line in statement.lines])
        rows = part.rows & picks(sku, statement.keys)[statement.usage.key]
        kinds = _kinds(part, rows, columns)
        whole = sum(kinds)
        if not whole:
            continue
        shares = tuple(kind / whole for kind in kinds)
        parts = money.round_by_remainder([share * billed for share in shares], billed)
        found.append(
            WireCost(sku=sku.id, wire_bytes=int(whole), billed_minor=billed, shares=shares, parts=tuple(parts))
        )
    return tuple(found)


def _kinds(part: Part, rows: np.ndarray, columns: Sequence[str]) -> list[Fraction]:
    """Bytes of some columns of some rows, by KINDS; they sum to the columns' bytes."""
    usage = part.statement.usage

    def total(name: str) -> int:
        return money.exact_sum(usage.sums[name][rows])

    found = [Fraction()] * len(KINDS)
    for leg in records.LEGS:
        if not any(name.startswith(leg) for name in columns):
            continue
        beside = {way: _beside(*(total(f"{leg}_{way}_{kind}_bytes") for kind in ("wire", "payload", "app")))
                  for way in ("in", "out")}  # fmt: skip
        rest = sum(extra for _, _, extra in beside.values())
        resent, handshakes = total(f"{leg}_resent_bytes"), total(f"{leg}_overhead_bytes")
        headers = max(rest - resent - handshakes, 0)
        weights = (headers, resent, handshakes) if headers + resent + handshakes else (1, 0, 0)
        for way, (own, framing, extra) in beside.items():
            if f"{leg}_{way}_wire_bytes" in columns:
                kinds = [Fraction(own), Fraction(framing)]
                kinds += [Fraction(extra * weight, sum(weights)) for weight in weights]
                found = [a + b for a, b in zip(found, kinds, strict=True)]
    return found


def _beside(wire: int, payload: int, app: int) -> tuple[int, int, int]:
    """Wire bytes as the requests' own, other payload, and what is not payload: never more than the wire bytes."""
    payload = min(payload, wire)
    own = min(app, payload)
    return own, payload - own, wire - payload
