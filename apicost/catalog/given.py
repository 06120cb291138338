"""Documents that are given by hand, each an API of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from apicost.catalog.openapi import Source


def sources_of(files: Sequence[Path], taken: Iterable[str] = ()) -> list[Source]:
    """An API for each file, called as the file without suffix: two files openapi.yaml are openapi and openapi-2.

    taken: ids that others have.
    """
    used = set(taken)
    sources = []
    for file in files:
        name, number = file.stem, 1
        while name in used:
            number += 1
            name = f"{file.stem}-{number}"
        used.add(name)
        sources.append(Source(id=name, documents=(file,)))
    return sources
