"""Charts as SVG text: columns by day, bars by name. No script, no outside font, sharp on paper.

Rules of this file:
- Floats live here and nowhere else in a report: they are lengths on paper, never amounts.
- Every text is escaped: labels come from traffic.
- Colours and letters are attributes of the drawing itself: not every renderer applies a page's style to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 760
INK, SOFT, LINE, ACCENT, PALE = "#18242f", "#5d6b78", "#dde3e8", "#17597f", "#9db8c9"
PARTS = ("#17597f", "#5b93b4", "#d9b45c", "#b65a3c")  # as .part0, .part1, ... of month.css
LETTERS = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: its label, its value, and that value as it is written."""

    label: str
    value: float
    text: str
    muted: bool = False  # drawn grey: a row that has no name of its own
    hint: str = ""


def columns(bars: Sequence[Bar], title: str, *, height: int = 210, unit: str = "") -> Markup:
    """A column per day with an axis; every fifth label, all values as hints."""
    left, bottom, top = 56, 24, 12
    step = nice_step(max((bar.value for bar in bars), default=0.0))
    most = step * max(1, -(-max((bar.value for bar in bars), default=0.0) // step))
    slot = (WIDTH - left) / max(len(bars), 1)
    high = height - top - bottom
    out = [_open(WIDTH, height, title)]
    for tick in range(int(most / step + 0.5) + 1):
        y = top + high * (1 - tick * step / most)
        out.append(f'<line stroke="{LINE}" stroke-width="1" x1="{left}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text fill="{SOFT}" x="{left - 8}" y="{y + 3.5:.1f}" text-anchor="end">{tick_text(tick * step)}</text>'
        )
    for index, bar in enumerate(bars):
        tall = high * bar.value / most
        x = left + slot * index + slot * 0.14
        out.append(
            f'<rect fill="{PALE if bar.muted else ACCENT}" x="{x:.1f}" y="{top + high - tall:.1f}" '
            f'width="{slot * 0.72:.1f}" height="{tall:.1f}"><title>{escape(bar.hint or bar.label)}: '
            f"{escape(bar.text)}</title></rect>"
        )
        if index % 5 == 0 or index == len(bars) - 1:
            middle = x + slot * 0.36
            out.append(
                f'<text fill="{SOFT}" x="{middle:.1f}" y="{height - 7}" text-anchor="middle">{escape(bar.label)}</text>'
            )
    out.append(f'<text fill="{SOFT}" x="0" y="{top + 3}">{escape(unit)}</text></svg>')
    return Markup("".join(out))


def bars(rows: Sequence[Bar], title: str) -> Markup:
    """A horizontal bar per row, label left, value right."""
    line, label_width, value_width = 24, 210, 130
    most = max((row.value for row in rows), default=0.0) or 1.0
    room = WIDTH - label_width - value_width
    out = [_open(WIDTH, line * len(rows) + 4, title)]
    for index, row in enumerate(rows):
        y = line * index + 4
        long = max(room * row.value / most, 1.0)
        out.append(
            f'<text fill="{SOFT if row.muted else INK}" x="{label_width - 10}" y="{y + 14}" text-anchor="end">'
            f"{escape(cut(row.label, 32))}<title>{escape(row.label)}</title></text>"
            f'<rect fill="{PALE if row.muted else ACCENT}" x="{label_width}" y="{y + 2}" width="{long:.1f}" '
            f'height="16" rx="1.5"/>'
            f'<text x="{label_width + long + 7:.1f}" y="{y + 14}">{escape(row.text)}</text>'
        )
    out.append("</svg>")
    return Markup("".join(out))


def span(low: Bar, point: Bar, high: Bar, marks: Sequence[Bar], title: str) -> Markup:
    """An interval on a scale from 0, its middle, and what it is held against, each mark with its label and value."""
    most = max([low.value, point.value, high.value, *(mark.value for mark in marks)], default=0.0) or 1.0
    left, room, row = 210, WIDTH - 210 - 150, 24
    lines = [*marks, point]
    out = [_open(WIDTH, row * len(lines) + 4, title)]
    for index, mark in enumerate(lines):
        y = row * index + 4
        long = max(room * mark.value / most, 1.0)
        out.append(
            f'<text fill="{SOFT if mark.muted else INK}" x="{left - 10}" y="{y + 14}" text-anchor="end">'
            f'{escape(cut(mark.label, 32))}</text><rect fill="{PALE if mark.muted else ACCENT}" x="{left}" y="{y + 2}" '
            f'width="{long:.1f}" height="16" rx="1.5"/>'
        )
        end = long
        if mark is point:
            first, last = room * low.value / most, room * high.value / most
            middle = y + 10
            out.append(
                f'<line stroke="{INK}" stroke-width="1.5" x1="{left + first:.1f}" x2="{left + last:.1f}" y1="{middle}" '
                f'y2="{middle}"/>'
            )
            for x in (first, last):
                out.append(
                    f'<line stroke="{INK}" stroke-width="1.5" x1="{left + x:.1f}" x2="{left + x:.1f}" '
                    f'y1="{middle - 5}" y2="{middle + 5}"/>'
                )
            end = max(long, last)
        out.append(f'<text x="{left + end + 7:.1f}" y="{y + 14}">{escape(mark.text)}</text>')
    out.append("</svg>")
    return Markup("".join(out))


def stacked(parts: Sequence[Bar], title: str) -> Markup:
    """One bar cut into parts: shares of a whole. The colours are PARTS."""
    whole = sum(part.value for part in parts) or 1.0
    out, x = [_open(WIDTH, 18, title)], 0.0
    for index, part in enumerate(parts):
        wide = WIDTH * part.value / whole
        out.append(
            f'<rect fill="{PARTS[index % len(PARTS)]}" x="{x:.1f}" y="0" width="{wide:.1f}" height="18">'
            f"<title>{escape(part.label)}: {escape(part.text)}</title></rect>"
        )
        x += wide
    out.append("</svg>")
    return Markup("".join(out))


def nice_step(largest: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts `largest` into two to five."""
    if largest <= 0:
        return 1.0
    power = 1.0
    while largest / power >= 10:
        power *= 10
    while largest / power < 1:
        power /= 10
    scaled = largest / power
    return power * (0.5 if scaled <= 2 else 1 if scaled <= 5 else 2)


def tick_text(value: float) -> str:
    """An axis value without needless places."""
    return f"{value:,.6f}".rstrip("0").rstrip(".") if value else "0"


def cut(text: str, most: int) -> str:
    """Text of at most so many characters; what was cut from its middle shows as an ellipsis: names often differ at
    their ends."""
    tail = most // 3
    return text if len(text) <= most else f"{text[: most - tail - 1]}…{text[-tail:]}"


def _open(width: int, height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" font-family="{LETTERS}" '
        f'font-size="11" fill="{INK}"><title>{escape(title)}</title>'
    )
