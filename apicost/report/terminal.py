"""Tables for people at a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Text that comes from traffic must not steer the terminal, nor pretend to be another line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """The text with control and direction characters made visible."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), width: int = 60) -> str:
    """Columns aligned by spaces, each but the last at most `width` wide; `right`: columns to align right."""
    cells = [[*(_cut(plain(text), width) for text in row[:-1]), plain(row[-1])] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        texts = (
            text.rjust(widths[column]) if column in right else text.ljust(widths[column])
            for column, text in enumerate(row)
        )
        return "  ".join(texts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * width for width in widths), *map(line, cells[1:])])


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
