"""Contracts of operations that requests can't tell apart, as one: it forbids what all of them forbid."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TypeVar

from apicost.core.conformance.contract import Contract, QueryParameter, Response

_T = TypeVar("_T")


def merged(first: Contract, other: Contract) -> Contract:
    """A contract that forbids only what both do. Name, file and pointer are the first one's, as the matcher's are."""
    if (first.spec, first.pointer) == (other.spec, other.pointer):
        return first
    bodies = [contract.request_types for contract in (first, other) if contract.request_types is not None]
    return replace(
        first,
        deprecated=first.deprecated and other.deprecated,
        query=_both(first.query, other.query),
        query_open=first.query_open or other.query_open,
        request_types=tuple(dict.fromkeys(itertools.chain.from_iterable(bodies))) if bodies else None,
        request_required=first.request_required and other.request_required,
        responses=_either(first.responses, other.responses),
        security=_united(first.security, other.security),
        servers=_united(first.servers, other.servers),
    )


def _united(first: tuple[_T, ...], other: tuple[_T, ...]) -> tuple[_T, ...]:
    """What either names; () is anything, and so is anything with something."""
    return tuple(dict.fromkeys((*first, *other))) if first and other else ()


def _both(first: tuple[QueryParameter, ...], other: tuple[QueryParameter, ...]) -> tuple[QueryParameter, ...]:
    """Query parameters of either, required and deprecated where both say so."""
    ours, theirs = ({(one.name, one.prefix): one for one in side} for side in (first, other))
    common = ours.keys() & theirs.keys()
    return tuple(
        replace(
            one,
            required=key in common and one.required and theirs[key].required,
            deprecated=key in common and one.deprecated and theirs[key].deprecated,
        )
        for key, one in (theirs | ours).items()
    )


def _either(first: tuple[Response, ...], other: tuple[Response, ...]) -> tuple[Response, ...]:
    """Statuses of either; a response that one of them describes without content may have any."""
    if not first or not other:
        return ()
    found = {one.status: one for one in first}
    for one in other:
        mine = found.get(one.status)
        found[one.status] = one if mine is None else replace(mine, types=_united(mine.types, one.types))
    return tuple(found.values())
