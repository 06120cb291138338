"""Names that a workbook's sheets may have.

Rules of this file (Excel's, which LibreOffice takes too):
- 1 to 31 UTF-16 units, none of []:*?/\\, no control character, no apostrophe at either end.
- No two names differ by case alone; "History" is Excel's own.
"""

from __future__ import annotations

import re

LONGEST = 31
_FORBIDDEN = re.compile(r"[\[\]:*?/\\\x00-\x1f\x7f\ufffe\uffff]")
_RESERVED = "history"


class SheetNames:
    """Gives each sheet a legal name of its own, near to the one that is wished for."""

    def __init__(self) -> None:
        self._taken = {_RESERVED}

    def new(self, wished: str) -> str:
        """A name that no sheet has yet: the wished one where it is legal and free, else with " (2)" and so on."""
        base = _FORBIDDEN.sub("_", wished).strip() or "_"
        base = "_" + base[1:] if base.startswith("'") else base
        number, ending = 1, ""
        while True:
            name = cut(base, LONGEST - len(ending))
            name = name[:-1] + "_" if name.endswith("'") else name
            if _key(name + ending) not in self._taken:
                self._taken.add(_key(name + ending))
                return name + ending
            number += 1
            ending = f" ({number})"


def cut(text: str, units: int) -> str:
    """The beginning of a text that has at most so many UTF-16 units, as a spreadsheet counts letters."""
    return text.encode("utf-16-le")[: 2 * units].decode("utf-16-le", errors="ignore")


def _key(name: str) -> str:
    return name.casefold().lower()
