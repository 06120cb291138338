"""Path templates as keys of an OpenAPI document's `paths`: below a base path, in braces that any tool reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from apicost.core.naming.paths import LITERAL, Segment, decode, fits

_PARAMETER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Part:
    """One segment of a template: text around parameters, their names, and the names before they were made fit."""

    pieces: tuple[str, ...]
    names: tuple[str, ...] = ()
    raw_names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        filled = [f"{piece}{{{name}}}" for piece, name in zip(self.pieces, self.names, strict=False)]
        return "".join(filled) + self.pieces[-1]


@dataclass(frozen=True, slots=True)
class Written:
    """A template as a key of `paths`, taken apart: braces only around names, and names that any tool reads."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, template: str) -> Written:
        raw: list[str] = []

        def aside(found: re.Match[str]) -> str:
            raw.append(found[1])
            return "{}"

        bare = _PARAMETER.sub(aside, template)
        bare = re.split(r"[?#]", bare)[0]  # a variant or a discriminator of a documented template
        names = iter(raw)
        taken: set[str] = set()
        parts = []
        for part in bare.removeprefix("/").split("/"):
            pieces = tuple(piece.replace("{", "%7B").replace("}", "%7D") for piece in part.split("{}"))
            own = tuple(next(names) for _ in pieces[1:])
            parts.append(Part(pieces, tuple(_named(name, taken) for name in own), own))
        return cls(tuple(parts))

    @property
    def text(self) -> str:
        return "/" + "/".join(part.text for part in self.parts)

    def without(self, base: Sequence[Segment]) -> Written | None:
        """What lies below a base path; None where it does not begin so."""
        if len(self.parts) < len(base) or (base and len(self.parts) == len(base)):
            return None
        if not all(_is_base(part, segment) for part, segment in zip(self.parts, base, strict=False)):
            return None
        return Written(self.parts[len(base) :])


def _is_base(part: Part, segment: Segment) -> bool:
    if part.names:
        return segment.rank != LITERAL
    return fits(segment.pieces, decode(part.text))


def _named(name: str, taken: set[str]) -> str:
    fit = re.sub(r"[^A-Za-z0-9_.+-]", "_", name) or "id"
    free, number = fit, 1
    while free in taken:
        number += 1
        free = f"{fit}{number}"
    taken.add(free)
    return free
