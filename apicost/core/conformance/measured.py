"""What each documented operation was measured at: the rows of the traffic that it took, and what they amount to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from apicost.core.conformance.assign import Assignment
from apicost.core.conformance.contract import Contract, Contracts
from apicost.core.conformance.traffic import Ints, Traffic

Place = tuple[str, str]  # a file and a JSON pointer in it, as contracts have them
CLASSES = ("4xx", "5xx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of some rows.

    errors: calls by status class, those of CLASSES. consumers: distinct named ones. duration_ms: of all calls together.
    wire_bytes: on the client side, both directions; app bytes where no flow was seen. last_unix_ns: 0 for no call.
    """

    calls: int
    errors: Mapping[str, int]
    consumers: int
    duration_ms: int
    wire_bytes: int
    last_unix_ns: int


def rows_of_operations(
    traffic: Traffic, contracts: Contracts, ids: Mapping[tuple[str, str], Place | None]
) -> dict[tuple[str, Place], Ints]:
    """(API, place) -> rows of the calls that each operation took, on other hosts, too; for those with calls.

    ids: (API, operation id) -> its place, None where several have that id. It decides between variants of a path,
        which a contract does not tell apart; calls of an id that is gone are those of the contract they fit.
    """
    assignment = Assignment(traffic, contracts)
    found: dict[tuple[str, Place], list[Ints]] = {}
    for column, mask in (("contract", assignment.held), ("elsewhere", assignment.elsewhere)):
        groups = traffic.groups(mask & (traffic.calls > 0), column, "api", "operation_id")
        for number, (contract, api, operation_id) in enumerate(groups.values):
            place = ids.get((api, operation_id)) or _place(contract)
            found.setdefault((contract.api, place), []).append(groups.rows(number))
    return {key: np.sort(np.concatenate(parts)) for key, parts in found.items()}


def _place(contract: Contract) -> Place:
    return contract.spec, contract.pointer


def measure(traffic: Traffic, rows: Ints) -> Measured:
    """What some rows amount to."""
    calls = traffic.calls[rows]
    consumer, _ = traffic.column("consumer")
    return Measured(
        calls=int(calls.sum()),
        errors={name: int(calls[traffic.among("status_class", (name,))[rows]].sum()) for name in CLASSES},
        consumers=len(np.unique(consumer[rows][consumer[rows] >= 0])),
        duration_ms=int(traffic.numbers("duration_ms")[rows].sum()),
        wire_bytes=int(traffic.wire_bytes()[rows].sum()),
        last_unix_ns=int(traffic.numbers("last_unix_ns")[rows].max(initial=0)),
    )
