"""OpenAPI documents judged by themselves: what in them makes the naming of requests unsafe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from apicost.catalog import documents
from apicost.catalog.contracts import read_documents
from apicost.catalog.extract import extract
from apicost.catalog.faults import faults_of
from apicost.catalog.given import sources_of
from apicost.core.conformance.contract import DocumentFault
from apicost.problems import InputError, Problem

# Finding lines costs about 0.5 s/MB; what is over this is given by JSON pointer.
LINES_UP_TO_BYTES = 16 << 20


def lint(files: Sequence[Path]) -> tuple[list[DocumentFault], list[Problem]]:
    """Faults of documents, by file and place, and problems: what of them can't be read or understood.

    Each file is an API of its own, named by `sources_of`. Duplicates are looked for within files and across them.
    Nothing is raised.
    """
    sources = sources_of(files)
    read = read_documents(sources)
    problems = [
        problem for document in read for problem in (*document.extraction.problems, *document.promises.problems)
    ]
    usable = {document.source.id for document in read}
    for source in sources:
        if source.id not in usable:
            problems.extend(extract(source.documents[0]).problems)
    return _placed(list(faults_of(read))), problems


def _placed(faults: list[DocumentFault]) -> list[DocumentFault]:
    """The faults with their lines, in the order of files and lines."""
    by_file: dict[str, list[int]] = {}
    for number, fault in enumerate(faults):
        by_file.setdefault(fault.document, []).append(number)
    left = LINES_UP_TO_BYTES
    placed = []
    for file, numbers in by_file.items():
        pointers = [_tokens(faults[number].pointer) for number in numbers]
        try:
            raw = documents.read_bytes(Path(file)) if left > 0 else b""
        except InputError:
            raw = b""
        if 0 < len(raw) <= left:
            left -= len(raw)
            places = documents.places(Path(file), raw, pointers)
        else:
            places = [f"{file}#{faults[number].pointer}" for number in numbers]
        own = [replace(faults[number], place=place) for number, place in zip(numbers, places, strict=True)]
        placed.extend(sorted(own, key=_line))
    return placed


def _line(fault: DocumentFault) -> int:
    line = fault.place.rpartition(":")[2]
    return int(line) if line.isdecimal() else 0


def _tokens(pointer: str) -> tuple[str | int, ...]:
    """A JSON pointer taken apart; indexes become numbers."""
    parts = (part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
    return tuple(int(part) if part.isdecimal() and part == str(int(part)) else part for part in parts)
