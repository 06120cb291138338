"""Rules that need the whole window: what was never called, what is rare, what the documents say of themselves.

Rules of this file:
- Nothing is called unused before the window is as long as `orphan_days`.
- A call that the gateway answered is a call all the same: an operation behind a strict rate limit is no orphan, and
  a documented 401 that the gateway's key check gives was seen. What the
  gateway does may speak for a document, never against it.
- An operation under several base paths is one operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from apicost.core.conformance.assign import Assignment
from apicost.core.conformance.contract import Contract, Contracts
from apicost.core.conformance.finding import Coverage, Settings
from apicost.core.conformance.point import name_of, response_of
from apicost.core.conformance.traffic import Draft, Mask, Traffic, of_operation
from apicost.core.naming.paths import parse_template

# Rules that say nothing of a window shorter than `orphan_days`.
NEEDS_A_WINDOW = ("never-seen-status", "orphan-operation")
# At most one response in so many may be an anomaly; more of them are a second usual size.
ANOMALY_ONE_IN = 100
FAULT_RULES = frozenset(("cross-spec-duplicate", "spec-identical-templates"))

Identity = tuple[str, str, str]


class Seen:
    """How often each documented operation was called, and with which of its statuses it answered.

    An operation is known by its API, file and JSON pointer. A status that the operation documents as a range or as
    default counts for those.
    """

    def __init__(self, traffic: Traffic, assignment: Assignment) -> None:
        self.operations: dict[Identity, Contract] = {}
        self.documented: dict[Identity, dict[str, str]] = {}  # status -> pointer
        for contract in assignment.documented:
            key = _identity(contract)
            self.operations.setdefault(key, contract)
            statuses = self.documented.setdefault(key, {})
            for response in contract.responses:
                statuses.setdefault(response.status, response.pointer)
        self.calls: dict[Identity, int] = dict.fromkeys(self.operations, 0)
        self.statuses: dict[Identity, set[str]] = {key: set() for key in self.operations}
        for column, mask in (("contract", assignment.held), ("elsewhere", assignment.elsewhere)):
            groups = traffic.groups(mask & (traffic.calls > 0), column, "status")
            for (contract, status), calls in zip(groups.values, groups.sums(traffic.calls).tolist(), strict=True):
                key = _identity(contract)
                self.calls[key] += calls
                own = self.operations[key]
                described = response_of(own, status) if status is not None else None
                if described is not None:
                    self.statuses[key].add(described.status)

    def coverage(self, contracts: Contracts) -> tuple[Coverage, ...]:
        """How much of each API's documents was seen, by API."""
        apis = sorted({*contracts.documents, *(api for api, _, _ in self.operations)})
        of_api: dict[str, list[Identity]] = {api: [] for api in apis}
        for key in self.operations:
            of_api[key[0]].append(key)
        return tuple(
            Coverage(
                api=api,
                operations=len(keys),
                operations_seen=sum(self.calls[key] > 0 for key in keys),
                statuses=sum(len(self.documented[key]) for key in keys),
                statuses_seen=sum(len(self.statuses[key]) for key in keys),
                unseen=tuple(sorted(self.operations[key].operation_id for key in keys if not self.calls[key])),
            )
            for api, keys in of_api.items()
        )


def _identity(contract: Contract) -> Identity:
    return contract.api, contract.spec, contract.pointer


def window_rules(
    traffic: Traffic, assignment: Assignment, contracts: Contracts, settings: Settings, seen: Seen, window_days: float
) -> Iterator[Draft]:
    """All of them."""
    yield from _sizes(traffic, assignment.held & traffic.upstream, settings)
    yield from _faults(traffic, contracts)
    if window_days >= settings.orphan_days:
        yield from _orphans(seen, contracts, window_days)
        yield from _never_seen(seen, settings, window_days)


def _orphans(seen: Seen, contracts: Contracts, window_days: float) -> Iterator[Draft]:
    unseen = [contract for key, contract in seen.operations.items() if not seen.calls[key]]
    if not unseen:
        return
    # Requests that two operations fit equally count for the first: the other may well have been meant.
    called = {_requests(contract, contracts) for key, contract in seen.operations.items() if seen.calls[key]}
    for contract in unseen:
        if _requests(contract, contracts) not in called:
            fix = (
                f"take {name_of(contract)} out of {contract.spec} if nobody needs it, or mark it deprecated first; it "
                f"was not called in {window_days:g} days"
            )
            yield of_operation("orphan-operation", contract, fix=fix)


def _requests(contract: Contract, contracts: Contracts) -> tuple[object, ...]:
    """What two operations have in common that the same requests fit."""
    segments = parse_template(contracts.client_template(contract)).segments
    return contract.method, segments, frozenset(contract.servers)


def _never_seen(seen: Seen, settings: Settings, window_days: float) -> Iterator[Draft]:
    for key, contract in seen.operations.items():
        if seen.calls[key] < max(settings.status_min_calls, 1):
            continue
        for status, pointer in seen.documented[key].items():
            # "default" is for what nobody has thought of: that it did not come says nothing.
            if status != "default" and status not in seen.statuses[key]:
                fix = (
                    f"check that {name_of(contract)} can answer {status} at all: none of {seen.calls[key]} calls in "
                    f"{window_days:g} days did; if it can't, take it out of the responses"
                )
                pointer = pointer or f"{contract.pointer}/responses/{status}"
                yield of_operation("never-seen-status", contract, detail=f"status {status}", pointer=pointer, fix=fix)


def _sizes(traffic: Traffic, held: Mask, settings: Settings) -> Iterator[Draft]:
    """response-size-anomaly: size classes far above the class of the middle call."""
    if settings.anomaly_factor < 2:
        return
    steps = max(math.ceil(math.log(settings.anomaly_factor, 4) - 1e-9), 1)
    answered = held & traffic.among("status_class", ("2xx",)) & ~traffic.among("method", ("HEAD",))
    groups = traffic.groups(
        answered & ~traffic.among("size_class", (None,)) & (traffic.calls > 0), "contract", "size_class"
    )
    sums = groups.sums(traffic.calls).tolist()
    sizes: dict[int, list[tuple[int, int, int]]] = {}
    for number, (contract, size_class) in enumerate(groups.values):
        sizes.setdefault(id(contract), []).append((int(size_class), sums[number], number))
    for classes in sizes.values():
        total = sum(calls for _, calls, _ in classes)
        classes.sort()
        # The class of the middle call, the lower of two: half of all calls lie in it or below.
        below = np.cumsum([calls for _, calls, _ in classes])
        usual = classes[int(np.searchsorted(below * 2, total))][0]
        far = [(calls, number) for size, calls, number in classes if size >= usual + steps]
        if total < settings.anomaly_min_calls or not far or sum(c for c, _ in far) * ANOMALY_ONE_IN > total:
            continue
        contract = groups.values[far[0][1]][0]
        fix = (
            f"see what these responses of {name_of(contract)} hold (a page size without a limit, a whole table, an "
            f"error page): the usual ones are below {_size(4 ** (usual + 1))}"
        )
        yield of_operation(
            "response-size-anomaly",
            contract,
            groups.rows(*(number for _, number in far)),
            detail="responses far above the usual size",
            pointer=f"{contract.pointer}/responses" if contract.responses else contract.pointer,
            fix=fix,
        )


def _size(size_bytes: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} B"


def _faults(traffic: Traffic, contracts: Contracts) -> Iterator[Draft]:
    """What the documents say of themselves, with the traffic of the operations concerned."""
    faults = [fault for fault in contracts.faults if fault.rule in FAULT_RULES]
    if not faults:
        return
    groups = traffic.groups(traffic.matched, "api", "operation_id")
    numbers = {values: number for number, values in enumerate(groups.values)}
    for fault in faults:
        own = [operation for api, operation in fault.operations if api == fault.api]
        yield Draft(
            rule=fault.rule,
            detail=fault.detail,
            api=fault.api,
            operation_id=own[0] if own else None,
            method=fault.method,
            path_template=fault.path_template,
            rows=groups.rows(*sorted({numbers[o] for o in fault.operations if o in numbers})),
            document=fault.document,
            pointer=fault.pointer,
            fix=fault.fix,
        )
