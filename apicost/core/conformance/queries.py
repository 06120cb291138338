"""Names of query parameters, as usage lines carry them and as documents write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from apicost.core.conformance.contract import Contract
from apicost.core.conformance.shapes import LONGEST_NAME, MOST_NAMES
from apicost.core.naming.paths import decode_query, parse_template

# A word without "=", names beyond those that a line holds, and sets of names that a finished day did not keep.
UNKNOWN_NAMES = frozenset(("*", "(more)", "(other)"))


class Name(NamedTuple):
    """One name: as it was meant, and as findings show it. cut: it may have been longer."""

    meant: str
    shown: str
    cut: bool


class Asked(NamedTuple):
    """The names of a query. whole: False where some are unknown, so that nothing can be said to be missing."""

    names: tuple[Name, ...]
    whole: bool


def asked(text: str | None) -> Asked:
    """The `query_names` of a shape.

    A full list may have been longer, a name of full length too.
    """
    listed = text.split(",") if text else []
    names, whole = [], len(listed) < MOST_NAMES
    for raw in listed:
        if raw in UNKNOWN_NAMES:
            whole = False
            continue
        cut = len(raw) >= LONGEST_NAME
        meant = decode_query(_without_broken_escape(raw) if cut else raw)
        names.append(Name(meant, meant if _plain(meant) else quote(meant, errors="surrogateescape"), cut))
        whole = whole and not cut
    return Asked(tuple(names), whole)


def _without_broken_escape(raw: str) -> str:
    """A cut may have split a "%XX"."""
    return raw[: raw.rindex("%")] if "%" in raw[-2:] else raw


def _plain(name: str) -> bool:
    return name.isprintable() and "," not in name


@dataclass(frozen=True, slots=True)
class Described:
    """The query names that an operation knows: parameters, keys in the query, and those of its template's own query."""

    exact: frozenset[str]
    prefixes: tuple[str, ...]
    is_open: bool

    @classmethod
    def of(cls, contract: Contract) -> Described:
        """What a contract says of its query."""
        names = {parameter.name for parameter in contract.query}
        names |= {scheme.query_name for alternative in contract.security for scheme in alternative}
        names |= {name for name, _ in parse_template(contract.path_template).discriminators}
        prefixes = tuple(f"{parameter.name}[" for parameter in contract.query if parameter.prefix)
        return cls(frozenset(names - {""}), prefixes, contract.query_open)

    def knows(self, name: Name) -> bool:
        """Whether the document has this name; of a cut name, whether it could be one."""
        if self.is_open or name.meant in self.exact or (self.prefixes and name.meant.startswith(self.prefixes)):
            return True
        return name.cut and any(known.startswith(name.meant) for known in (*self.exact, *self.prefixes))


def has(names: Sequence[Name], wanted: str, prefix: bool) -> bool:
    """Whether a query has a parameter."""
    return any(name.meant == wanted or (prefix and name.meant.startswith(f"{wanted}[")) for name in names)
