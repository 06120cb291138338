"""Rules that one shape of a documented operation is enough for.

Rules of this file:
- They read what was forwarded: requests that the gateway answered itself never reached the API.
- One finding for each operation and deviation (status, media type, name, host), so that each has its own fix.
- Names and hosts come from clients, who can make up any number: an operation gets MOST_NAMED findings for the most
  called of them, and one for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from apicost.core.conformance import noise
from apicost.core.conformance.assign import Assignment, names_host
from apicost.core.conformance.contract import AUTH_KINDS, Contract, Response, Scheme
from apicost.core.conformance.queries import Asked, Described, asked, has
from apicost.core.conformance.traffic import Draft, Groups, Mask, Traffic, of_operation
from apicost.core.naming.operations import AMBIGUOUS, FALLTHROUGH, LOOSE
from apicost.core.naming.paths import fits

MOST_NAMED = 50
# RFC 9110, sections 9.3.2, 15.3.5 and 15.4.5: no content, so a media type there says nothing.
WITHOUT_CONTENT = frozenset(("204", "304"))
# Kinds that stand in the Authorization header; "authorization" is a key in it of whatever form.
IN_AUTHORIZATION = AUTH_KINDS - {"apikey", "cookie", "mtls"} | {"authorization"}


def point_rules(traffic: Traffic, assignment: Assignment) -> Iterator[Draft]:
    """All of them, over the rows that have a contract."""
    held = assignment.held & traffic.upstream
    yield from _deprecated(traffic, held)
    yield from _statuses(traffic, held)
    yield from _request_types(traffic, held)
    yield from _response_types(traffic, held)
    yield from _queries(traffic, held)
    yield from _security(traffic, held)
    # On a host that no document names, "not found" may well be that host's own answer.
    elsewhere = assignment.elsewhere & traffic.upstream & ~traffic.among("status", noise.GONE)
    yield from _servers(traffic, held, elsewhere)
    yield from _flags(traffic, held, assignment)


def response_of(contract: Contract, status: str) -> Response | None:
    """The response that a document has for a status: the status itself, else its range, else default."""
    by_status = {response.status: response for response in contract.responses}
    return by_status.get(status) or by_status.get(f"{status[:1]}XX") or by_status.get("default")


def name_of(contract: Contract) -> str:
    """The operation as a person would say it."""
    plain = f"{contract.method} {contract.path_template}"
    return plain if contract.operation_id.startswith(f"{contract.method} ") else f"{contract.operation_id} ({plain})"


def _deprecated(traffic: Traffic, held: Mask) -> Iterator[Draft]:
    groups = traffic.groups(held, "contract")
    for number, (contract,) in enumerate(groups.values):
        if contract.deprecated:
            fix = (
                f"move the consumers of {name_of(contract)} to what replaces it, then take it out of the document "
                "and the gateway"
            )
            yield of_operation("deprecated-in-use", contract, groups.rows(number), fix=fix)


def _statuses(traffic: Traffic, held: Mask) -> Iterator[Draft]:
    groups = traffic.groups(held, "contract", "status")
    for number, (contract, status) in enumerate(groups.values):
        if status is None or not contract.responses or response_of(contract, status):
            continue
        known = ", ".join(sorted(response.status for response in contract.responses))
        fix = f"add {status} to the responses of {name_of(contract)}, or let the backend answer one of: {known}"
        pointer = f"{contract.pointer}/responses"
        detail = f"status {status}"
        yield of_operation(
            "undocumented-status", contract, groups.rows(number), detail=detail, pointer=pointer, fix=fix
        )


def _request_types(traffic: Traffic, held: Mask) -> Iterator[Draft]:
    groups = traffic.groups(held, "contract", "request_content_type")
    for number, (contract, media_type) in enumerate(groups.values):
        if media_type is None or not contract.request_types or _accepts(contract.request_types, media_type):
            continue
        fix = (
            f"add {media_type} to the content of the request body of {name_of(contract)}, or have clients send "
            f"{', '.join(contract.request_types)}"
        )
        yield of_operation(
            "undocumented-content-type",
            contract,
            groups.rows(number),
            detail=f"request {media_type}",
            fix=fix,
        )


def _response_types(traffic: Traffic, held: Mask) -> Iterator[Draft]:
    with_content = held & ~traffic.among("method", ("HEAD",)) & ~traffic.among("status", WITHOUT_CONTENT)
    groups = traffic.groups(with_content, "contract", "status", "response_content_type")
    found: dict[tuple[int, str, str], list[int]] = {}
    for number, (contract, status, media_type) in enumerate(groups.values):
        if status is None or media_type is None:
            continue
        response = response_of(contract, status)
        if response and response.types and not _accepts(response.types, media_type):
            found.setdefault((id(contract), response.status, media_type), []).append(number)
    for (_, described, media_type), numbers in found.items():
        contract = groups.values[numbers[0]][0]
        response = next(one for one in contract.responses if one.status == described)
        fix = (
            f"add {media_type} to the content of response {described} of {name_of(contract)}, or let the backend send "
            f"{', '.join(response.types)}"
        )
        yield of_operation(
            "undocumented-content-type",
            contract,
            groups.rows(*numbers),
            detail=f"response {described} {media_type}",
            pointer=response.pointer or f"{contract.pointer}/responses/{described}",
            fix=fix,
        )


def _accepts(ranges: Iterable[str], media_type: str) -> bool:
    """Whether a media type is in one of the ranges, "application/*+json" among them.

    `application/json` does not take in `application/a+json`.
    """
    return any(fits(tuple(text.partition(";")[0].strip().lower().split("*")), media_type) for text in ranges)


def _queries(traffic: Traffic, held: Mask) -> Iterator[Draft]:
    """undocumented-query-param, missing-required-param, and deprecated parameters that are in use."""
    groups = traffic.groups(held, "contract", "query_names")
    described: dict[int, Described] = {}
    texts: dict[str | None, Asked] = {}
    unknown: dict[int, dict[str, list[int]]] = {}
    missing: dict[tuple[int, str], list[int]] = {}
    deprecated: dict[tuple[int, str], list[int]] = {}
    contracts: dict[int, Contract] = {}
    for number, (contract, text) in enumerate(groups.values):
        key = id(contract)
        if key not in described:
            described[key], contracts[key] = Described.of(contract), contract
        if text not in texts:
            texts[text] = asked(text)
        query = texts[text]
        for name in query.names:
            if not described[key].knows(name):
                numbers = unknown.setdefault(key, {}).setdefault(name.shown, [])
                if numbers[-1:] != [number]:  # "a" and "%61" are one name
                    numbers.append(number)
        for parameter in contract.query:
            there = has(query.names, parameter.name, parameter.prefix)
            if there and parameter.deprecated:
                deprecated.setdefault((key, parameter.name), []).append(number)
            elif parameter.required and query.whole and not there:
                missing.setdefault((key, parameter.name), []).append(number)
    for key, strange in unknown.items():
        contract = contracts[key]
        for shown, numbers in _bounded(traffic, groups, strange):
            what = f"{shown!r}" if shown else f"further names, beyond the {MOST_NAMED} most used"
            fix = f"add query parameter {what} to {name_of(contract)}, or tell its clients that it has no effect"
            yield of_operation(
                "undocumented-query-param", contract, groups.rows(*numbers), detail=f"query {what}", fix=fix
            )
    for (key, wanted), numbers in missing.items():
        contract = contracts[key]
        fix = (
            f"make query parameter {wanted!r} of {name_of(contract)} optional where the backend does without it, or "
            "have the clients send it"
        )
        yield of_operation(
            "missing-required-param",
            contract,
            groups.rows(*numbers),
            detail=f"query {wanted!r}",
            pointer=_parameter(contract, wanted),
            fix=fix,
        )
    for (key, wanted), numbers in deprecated.items():
        contract = contracts[key]
        fix = (
            f"move the clients of {name_of(contract)} off query parameter {wanted!r}, then take it out of the document"
        )
        yield of_operation(
            "deprecated-in-use",
            contract,
            groups.rows(*numbers),
            detail=f"query {wanted!r}",
            pointer=_parameter(contract, wanted),
            fix=fix,
        )


def _parameter(contract: Contract, name: str) -> str:
    pointers = (parameter.pointer for parameter in contract.query if parameter.name == name)
    return next(pointers, "") or contract.pointer


def _bounded(traffic: Traffic, groups: Groups, found: dict[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
    """The most called of what clients made up, by name, then the rest together under ""."""
    if len(found) <= MOST_NAMED:
        yield from found.items()
        return
    sums = groups.sums(traffic.calls)
    ranked = sorted(found, key=lambda name: (-int(sums[found[name]].sum()), name))
    for name in ranked[:MOST_NAMED]:
        yield name, found[name]
    yield "", sorted({number for name in ranked[MOST_NAMED:] for number in found[name]})


def _security(traffic: Traffic, held: Mask) -> Iterator[Draft]:
    bare = held & traffic.among("status_class", ("2xx",)) & traffic.among("consumer", (None,))
    groups = traffic.groups(bare, "contract", "auth_kinds", "query_names")
    found: dict[int, list[int]] = {}
    for number, (contract, kinds, text) in enumerate(groups.values):
        words = frozenset(kinds.split(",")) if kinds else frozenset()
        if contract.security and not any(
            all(_carries(scheme, words, text) for scheme in alternative) for alternative in contract.security
        ):
            found.setdefault(id(contract), []).append(number)
    for numbers in found.values():
        contract = groups.values[numbers[0]][0]
        ways = " or ".join(" and ".join(scheme.name for scheme in alternative) for alternative in contract.security)
        fix = (
            f"put an authentication plugin in front of {name_of(contract)}, so that requests without {ways} get 401; "
            "or, if it is meant to be open, write `security: []` there"
        )
        yield of_operation("security-missing", contract, groups.rows(*numbers), detail="no credentials", fix=fix)


def _carries(scheme: Scheme, kinds: frozenset[str], query_names: str | None) -> bool:
    """Whether a request carried what a scheme asks for, as far as a usage line can tell; in doubt it did."""
    if scheme.kind in kinds:
        return True
    if scheme.query_name:
        query = asked(query_names)
        if has(query.names, scheme.query_name, False) or not query.whole:
            return True
    # Which scheme stands in the Authorization header decides nothing here: the rule is about requests without any.
    if scheme.kind in IN_AUTHORIZATION:
        return bool(kinds & IN_AUTHORIZATION)
    return scheme.kind == "" and not scheme.query_name


def _servers(traffic: Traffic, held: Mask, elsewhere: Mask) -> Iterator[Draft]:
    """server-mismatch: bound by route or service on a host that is not named, or an unknown host that has the path."""
    here, there = traffic.groups(held, "contract", "host"), traffic.groups(elsewhere, "elsewhere", "host")
    hosts: dict[int, dict[str, list[tuple[Groups, int]]]] = {}
    contracts: dict[int, Contract] = {}
    for groups, sure in ((here, False), (there, True)):
        for number, (contract, host) in enumerate(groups.values):
            if host is not None and (sure or not names_host(contract, host)):
                contracts[id(contract)] = contract
                hosts.setdefault(id(contract), {}).setdefault(host, []).append((groups, number))
    for key, found in hosts.items():
        contract = contracts[key]
        ranked = sorted(
            found, key=lambda host: (-sum(int(traffic.calls[g.rows(n)].sum()) for g, n in found[host]), host)
        )
        named = ranked if len(ranked) <= MOST_NAMED else ranked[:MOST_NAMED]
        for host in named:
            yield _on_host(contract, host, found[host])
        if len(ranked) > MOST_NAMED:
            yield _on_host(contract, "", [pair for host in ranked[MOST_NAMED:] for pair in found[host]])


def _on_host(contract: Contract, host: str, places: Sequence[tuple[Groups, int]]) -> Draft:
    what = host or f"further hosts, beyond the {MOST_NAMED} most called"
    named = ", ".join(contract.servers) or "none"
    fix = (
        f"add {what} to the servers of {contract.spec} (or to `hosts` of API {contract.api}), or send the clients to a "
        f"host that the document names: {named}"
    )
    rows = np.concatenate([groups.rows(number) for groups, number in places])
    return of_operation("server-mismatch", contract, rows, detail=f"host {what}", with_host=True, fix=fix)


def _flags(traffic: Traffic, held: Mask, assignment: Assignment) -> Iterator[Draft]:
    """What the matcher had to say of its own answer."""
    groups = traffic.groups(held & ~traffic.among("match_flags", (None,)), "contract", "match_flags")
    found: dict[tuple[int, str], list[int]] = {}
    for number, (contract, flags) in enumerate(groups.values):
        for flag in dict.fromkeys(flags.split(",")):
            if flag in (AMBIGUOUS, LOOSE, FALLTHROUGH):
                found.setdefault((id(contract), flag), []).append(number)
    for (_, flag), numbers in found.items():
        contract = groups.values[numbers[0]][0]
        if flag == LOOSE:
            fix = (
                f"have clients call {contract.path_template} as it is written: without double or other trailing slashes"
            )
        elif flag == FALLTHROUGH:
            fix = (
                f"a more specific template fits these requests and lacks {contract.method}: add the method there if it "
                f"was meant, or have clients call a path that only {contract.path_template} fits"
            )
        else:
            rivals = [f"{name_of(one)} of {one.api}" for one in assignment.twins.get(id(contract), ())]
            others = f" ({', '.join(sorted(rivals))})" if rivals else ""
            fix = f"give {name_of(contract)} and what else fits{others} paths, hosts or priorities that differ"
        yield of_operation(flag, contract, groups.rows(*numbers), fix=fix)
