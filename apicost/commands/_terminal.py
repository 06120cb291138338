"""How commands speak to a person: progress, and what must be mended."""

from __future__ import annotations

import sys

from apicost.problems import InputError, Problem


def say(text: str) -> None:
    """Progress for a person at a terminal; silent otherwise."""
    if sys.stderr.isatty():
        print(f"apicost: {text}", file=sys.stderr)


def error(place: str, fact: str, effect: str, fix: str) -> InputError:
    """One problem of an option or a file."""
    return InputError([Problem(place=place, fact=fact, effect=effect, fix=fix)])


class Progress:
    """How far a file is, on one line of a person's terminal; silent otherwise.

    count: how many rows there will be; None: unknown.
    """

    def __init__(self, name: str, count: int | None = None) -> None:
        self._name, self._of = name, "" if count is None else f" of {count:,}"
        self._shown = False

    def seen(self, rows: int) -> None:
        """So many rows are written."""
        if sys.stderr.isatty():
            print(f"\rapicost: {self._name}: {rows:,}{self._of} rows", end="", file=sys.stderr, flush=True)
            self._shown = True

    def end(self) -> None:
        """Leave the line to what is said next."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
