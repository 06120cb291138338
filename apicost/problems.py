"""What is wrong with a file that a person wrote: place, fact, effect and fix, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong in a file.

    place: FILE:LINE (or FILE, or FILE#JSON-POINTER where no line is known).
    fact: what stands there, quoting it.
    effect: what apicost will do because of it.
    fix: what to write instead.
    """

    place: str
    fact: str
    effect: str
    fix: str

    def __str__(self) -> str:
        return f"{self.place}: {self.fact}\n  effect: {self.effect}\n  fix: {self.fix}"


class InputError(Exception):
    """A file or option that can't be used as it is; carries every problem found.

    The command line prints them to standard error and exits with 2.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
