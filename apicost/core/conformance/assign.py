"""What each shape is held against: a contract of today's documents, a former operation, or nothing.

Rules of this file:
- The matcher's answer is of its time, the documents are today's: they speak about the past as well. A path that was
  undocumented and is documented now is that operation's; one that was documented and is no more is a former
  operation's, if it was called after that left the documents.
- A host that no document names and a path that one documents are a documented operation in another place.
- Where the matcher says that several operations fit as well, a request is held only against what all of them forbid.
- "Absent" means absent from the documents of all APIs for that host, not of the matched API alone.
- Paths are clients', templates of the matcher's are without the prefix that the gateway strips: both are compared with
  that prefix, and shown as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np

from apicost.core.conformance.contract import Contract, Contracts, Former
from apicost.core.conformance.templates import Fit, Templates
from apicost.core.conformance.traffic import Ints, Mask, Traffic
from apicost.core.conformance.twins import merged
from apicost.core.naming.operations import (
    AMBIGUOUS,
    MATCHED,
    PREFLIGHT,
    UNDOCUMENTED_METHOD,
    UNDOCUMENTED_PATH,
    UNKNOWN_HOST,
)
from apicost.core.naming.paths import fits, normal_host, parse_template

NOTHING, OPERATION, ELSEWHERE, FORMER, METHOD, PATH, COVERED = range(7)


class Place(NamedTuple):
    """What one kind of shape is held against.

    kind: OPERATION of a contract; ELSEWHERE: of a contract, on a host that it does not name; FORMER; METHOD: a path of
        `template` whose method no document has; PATH: no document has the path; COVERED: another API's documents
        have it, so nothing is wrong with it; NOTHING: not to be judged (preflights, bytes).
    contract, former: which one, as a position; -1 none.
    template: as clients' paths have it.
    """

    kind: int
    contract: int = -1
    former: int = -1
    template: str | None = None
    nearest: int = -1  # for METHOD: a contract of the same path


def names_host(contract: Contract, host: str | None) -> bool:
    """Whether the contract's servers name a host. Without servers any host will do; without a host none is wrong."""
    if not contract.servers or host is None:
        return True
    normal = normal_host(host)
    return any(fits(tuple(server.split("*")), normal) for server in contract.servers)


def _share_a_host(one: Contract, other: Contract) -> bool:
    return not one.servers or not other.servers or not set(one.servers).isdisjoint(other.servers)


class Assignment:
    """The places of all shapes, in columns that rules group by.

    The columns "contract" and "elsewhere" (Contract), "former" (Former), "template" and "nearest" (of METHOD rows: the
    template, and a contract of the same path) are added to the traffic; null where a row has none.

    held, elsewhere, former, method, path: rows of these kinds. contracts: what rows are held against; documented:
    the same, in the same order, as the documents have them. twins: by id() of a contract of `contracts`, the
    operations that its requests fit as well.
    """

    def __init__(self, traffic: Traffic, contracts: Contracts) -> None:
        self._traffic = traffic
        self._written = contracts.client_template
        self._prefixes = contracts.prefixes
        self.documented = tuple(contracts.operations.values())
        self.contracts = list(self.documented)
        self.formers = list(contracts.former)
        self._numbers = {key: number for number, key in enumerate(contracts.operations)}
        self._place_of = {id(contract): number for number, contract in enumerate(self.documented)}
        self._former_place_of = {id(former): number for number, former in enumerate(self.formers)}
        matched = traffic.among("match_state", (MATCHED,)) & ~traffic.among("operation_id", (PREFLIGHT,))
        others = traffic.among("match_state", (UNDOCUMENTED_PATH, UNDOCUMENTED_METHOD, UNKNOWN_HOST))
        # An undocumented OPTIONS is a preflight of another call, and that call is judged.
        others &= ~traffic.among("method", ("OPTIONS",))
        columns = ("match_state", "api", "host", "method", "path", "path_template")
        kinds, contract, former, nearest = (np.full(traffic.size, -1, np.int64) for _ in range(4))
        template_codes = np.full(traffic.size, -1, np.int64)
        templates: dict[str, int] = {}
        for mask, names, place_of in (
            (matched, ("api", "method", "path_template"), self._documented),
            (others, columns, self._undocumented),
        ):
            groups = traffic.groups(mask, *names)
            places = [place_of(*values) for values in groups.values]
            for column, of_place in (
                (kinds, [place.kind for place in places]),
                (contract, [place.contract for place in places]),
                (former, [place.former for place in places]),
                (nearest, [place.nearest for place in places]),
                (
                    template_codes,
                    [-1 if p.template is None else templates.setdefault(p.template, len(templates)) for p in places],
                ),
            ):
                column[groups.chosen] = groups.spread(of_place, traffic.size)[groups.chosen]
        gone = kinds == FORMER
        if gone.any():
            # A call from before the operation left the documents was documented then. Rows that no document had at
            # their own time need no such look.
            left_s = np.array([one.last_unix_s for one in self.formers], np.int64)[former]
            before = gone & matched & (traffic.numbers("first_unix_ns") < left_s * 1_000_000_000)
            former[before], kinds[before] = -1, NOTHING
        here = kinds == OPERATION
        self.twins: dict[int, tuple[Contract, ...]] = {}
        self._hold_against_twins(traffic, np.where(here, contract, -1))
        traffic.add("contract", np.where(here, contract, -1), self.contracts)
        traffic.add("elsewhere", np.where(kinds == ELSEWHERE, contract, -1), self.contracts)
        traffic.add("former", former, self.formers)
        traffic.add("template", template_codes, list(templates))
        traffic.add("nearest", nearest, self.contracts)
        self.held: Mask = here
        self.elsewhere: Mask = kinds == ELSEWHERE
        self.former: Mask = kinds == FORMER
        self.method: Mask = kinds == METHOD
        self.path: Mask = kinds == PATH

    def contract_of(self, api: str | None, method: str | None, template: str | None) -> Contract | None:
        """Today's contract of an operation that the matcher named."""
        place = self._documented(api, method, template)
        return self.contracts[place.contract] if place.kind == OPERATION else None

    def _hold_against_twins(self, traffic: Traffic, contract: Ints) -> None:
        """Give operations that have ambiguous requests a contract that forbids only what all that fit as well do."""
        ambiguous = [flags for flags in traffic.column("match_flags")[1] if AMBIGUOUS in flags.split(",")]
        numbers = np.unique(contract[traffic.among("match_flags", ambiguous) & (contract >= 0)])
        if not len(numbers):
            return
        alike: dict[tuple[object, ...], list[Contract]] = {}
        for one in self.documented:
            alike.setdefault(self._pattern(one), []).append(one)
        for number in numbers.tolist():
            one = self.documented[number]
            twins = tuple(t for t in alike[self._pattern(one)] if t is not one and _share_a_host(one, t))
            self.contracts[number] = lenient = reduce(merged, twins, one)
            self.twins[id(lenient)] = twins

    def _pattern(self, contract: Contract) -> tuple[object, ...]:
        return contract.method, parse_template(self._written(contract)).segments

    @cached_property
    def _present(self) -> Templates[Contract]:
        return Templates(self.documented, self._written)

    @cached_property
    def _past(self) -> Templates[Former]:
        return Templates(self.formers, self._written)

    def _documented(self, api: str | None, method: str | None, template: str | None) -> Place:
        """Of a request that the matcher found an operation for."""
        if api is None or method is None or template is None:
            return Place(NOTHING)
        for wanted in _methods(method):
            number = self._numbers.get((api, wanted, template))
            if number is not None:
                return Place(OPERATION, contract=number)
        # The operation is called otherwise now: a parameter has another name. Or it is gone.
        whole = self._prefixes.get(api, "") + template
        found = self._fitting(whole, method, lambda contract: contract.api == api)
        if found:
            return Place(OPERATION, contract=self._place_of[id(found[0].operation)])
        former = self._fitting_former(whole, method, api)
        return Place(FORMER, former=former) if former >= 0 else Place(NOTHING)

    def _undocumented(
        self,
        state: str,
        api: str | None,
        host: str | None,
        method: str | None,
        path: str | None,
        template: str | None,
    ) -> Place:
        """Of a request that the matcher found no operation for."""
        if path is None or method is None:
            return Place(NOTHING)
        found = self._fitting(path, method, lambda _: True)
        own = [fit for fit in found if api is None or fit.operation.api == api]
        # "Any host" was true of an unknown host already when it was matched, and yet it was unknown: then that API is
        # bound to routes, and this was another.
        sure = state != UNKNOWN_HOST
        for fit in own:
            if names_host(fit.operation, host) and (sure or fit.operation.servers):
                return Place(OPERATION, contract=self._place_of[id(fit.operation)])
        if any(fit.operation.api != api and fit.operation.servers and names_host(fit.operation, host) for fit in found):
            return Place(COVERED)
        # A former operation of this very API is nearer than an operation of another host.
        former = self._fitting_former(path, method, api) if api is not None else -1
        if former >= 0:
            return Place(FORMER, former=former)
        for fit in own:
            if fit.said and host is not None:
                return Place(ELSEWHERE, contract=self._place_of[id(fit.operation)])
        former = self._fitting_former(path, method, None) if api is None else -1
        if former >= 0:
            return Place(FORMER, former=former)
        if state != UNDOCUMENTED_METHOD:
            return Place(PATH)
        whole = None if template is None else self._prefixes.get(api or "", "") + template
        near = self._present.fitting(whole or path, lambda contract: contract.api == api)
        if near:
            best = near[0].operation
            return Place(METHOD, template=self._written(best), nearest=self._place_of[id(best)])
        return Place(METHOD, template=whole)

    def _fitting(self, path: str, method: str, wanted: Callable[[Contract], bool]) -> list[Fit[Contract]]:
        for one in _methods(method):
            found = self._present.fitting(path, lambda c, one=one: c.method == one and wanted(c))  # type: ignore[misc]
            if found:
                return found
        return []

    def _fitting_former(self, path: str, method: str, api: str | None) -> int:
        """The former operation that fits; of an unknown API only where its template says something."""
        if not self.formers:
            return -1
        found = self._past.fitting(path, lambda former: former.method == method and api in (None, former.api))
        for fit in found:
            if api is not None or fit.said:
                return self._former_place_of[id(fit.operation)]
        return -1


def _methods(method: str) -> tuple[str, ...]:
    """HEAD that no document has is looked up as GET, as the matcher does."""
    return ("HEAD", "GET") if method == "HEAD" else (method,)
