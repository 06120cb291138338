"""How commands speak to a person: progress, and what must be mended."""

from __future__ import annotations

import sys
import time

from apicost.problems import InputError, Problem

_SHOWN_EVERY_S = 0.25


def say(text: str) -> None:
    """Progress for a person at a terminal; silent otherwise."""
    if sys.stderr.isatty():
        print(f"apicost: {text}", file=sys.stderr)


def error(place: str, fact: str, effect: str, fix: str) -> InputError:
    """One problem of an option or a file."""
    return InputError([Problem(place=place, fact=fact, effect=effect, fix=fix)])


class Progress:
    """How far a file is, on one line of a person's terminal; silent otherwise.

    name: what is done, such as the file's name. count: how many rows there will be; None: unknown.
    """

    def __init__(self, name: str, count: int | None = None) -> None:
        self._name, self._count = name, count
        self._began = self._told = time.monotonic()
        self._shown = False

    def seen(self, rows: int) -> None:
        """So many rows are done. Shown a few times a second, and when all are."""
        now = time.monotonic()
        if (now - self._told < _SHOWN_EVERY_S and rows != self._count) or not sys.stderr.isatty():
            return
        share = (
            f" of {self._count:,} rows ({100 * rows // max(self._count, 1)} %)" if self._count is not None else " rows"
        )
        each_s = int(rows / max(now - self._began, 1e-3))
        text = f"apicost: {self._name}: {rows:,}{share}, {each_s:,} rows/s"
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        self._told, self._shown = now, True

    def end(self) -> None:
        """Leave the line to what is said next."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
