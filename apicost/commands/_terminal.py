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
