"""Rules of requests that no document describes: shadow-endpoint, undocumented-method, removed-operation-in-use.

Rules of this file:
- They read what a backend answered; what the gateway refused, nobody serves.
- The same request is told once: a former operation is removed-operation-in-use and neither of the others.
- Endpoints are told by template, so that a thousand ids are one finding; thresholds are of the template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from apicost.core.conformance import noise
from apicost.core.conformance.assign import Assignment
from apicost.core.conformance.contract import Contract, Contracts, Former
from apicost.core.conformance.finding import Settings
from apicost.core.conformance.infer import Inference
from apicost.core.conformance.traffic import Draft, Ints, Mask, Traffic, estimated_clients

# Folded paths of one API or host, and the calls of each -> their templates, one for each path, in order.
Infer = Callable[[Sequence[str], Sequence[int]], Sequence[str]]

OTHER_PATHS = "(other)"  # stands for the least called paths of a day, which are not kept apart


class Sieve(NamedTuple):
    """Rows that no document describes and that a backend answered: to be told by path or by method, and those that
    got a "not found" page with a 2xx status."""

    paths: Mask
    methods: Mask
    soft: Mask


class Unknown(NamedTuple):
    """Requests of one method and template, as clients' paths have it: a prefix that the gateway strips is part of it.

    api None: of `host`. nearest: a contract of the same path.
    """

    api: str | None
    host: str | None
    method: str
    template: str
    rows: Ints
    nearest: Contract | None = None


def in_light_of(contracts: Contracts) -> Inference:
    """The inference for traffic that these documents do not describe: operations gone lend their names, too."""
    operations: tuple[Contract | Former, ...] = (*contracts.operations.values(), *contracts.former)
    return Inference(contracts.client_template(operation) for operation in operations)


def undocumented_rules(
    traffic: Traffic, assignment: Assignment, contracts: Contracts, settings: Settings, infer: Infer | None
) -> tuple[list[Draft], int]:
    """The drafts, and the calls that were taken for a "not found" page."""
    sieve = sifted(traffic, assignment, settings)
    if infer is None:
        infer = in_light_of(contracts) if (sieve.paths | sieve.methods).any() else Inference()
    drafts = [*_former(traffic, assignment.former & traffic.upstream)]
    drafts += [_method(one, contracts) for one in unknown_methods(traffic, sieve.methods, infer)]
    shadows = unknown_paths(traffic, sieve.paths, infer)
    drafts += [_shadow(one, contracts) for one in shadows if worth_telling(traffic, one.rows, settings)]
    return drafts, int(traffic.calls[sieve.soft].sum())


def sifted(traffic: Traffic, assignment: Assignment, settings: Settings) -> Sieve:
    """Undocumented rows without the noise."""
    unknown = assignment.path & traffic.upstream & ~traffic.among("status", noise.NO_SUCH_PATH)
    soft = noise.soft_not_found(traffic, unknown, settings.soft_404_paths)
    methods = assignment.method & traffic.upstream & ~traffic.among("status", noise.NO_SUCH_METHOD)
    return Sieve(unknown & ~soft, methods, soft)


def unknown_methods(traffic: Traffic, mask: Mask, infer: Infer) -> list[Unknown]:
    """Rows of documented paths by method and template, in the order of the rows."""
    groups = traffic.groups(mask, "api", "method", "template", "nearest", "path")
    found: dict[tuple[str | None, str, str], list[int]] = {}
    for number, (api, method, template, _, path) in enumerate(groups.values):
        found.setdefault((api, method, template or infer([path], [1])[0]), []).append(number)
    return [
        Unknown(api, None, method, template, groups.rows(*numbers), groups.values[numbers[0]][3])
        for (api, method, template), numbers in found.items()
    ]


def unknown_paths(traffic: Traffic, mask: Mask, infer: Infer) -> list[Unknown]:
    """Rows of undocumented paths by method and inferred template; of a host where the API is not known."""
    apis, _ = traffic.column("api")
    hosts, names = traffic.column("host")
    # Where the API is known its hosts are one; else the host is all there is to go by.
    traffic.add("nameless host", np.where(apis >= 0, -1, hosts), names)
    groups = traffic.groups(mask, "api", "nameless host", "method", "path")
    paths: dict[tuple[str | None, str | None], dict[str, int]] = {}
    for (api, host, _, path), calls in zip(groups.values, groups.sums(traffic.calls).tolist(), strict=True):
        called = paths.setdefault((api, host), {})
        called[path] = called.get(path, 0) + calls
    templates = {place: _inferred(called, infer) for place, called in paths.items()}
    found: dict[tuple[str | None, str | None, str, str], list[int]] = {}
    for number, (api, host, method, path) in enumerate(groups.values):
        found.setdefault((api, host, method, templates[(api, host)][path]), []).append(number)
    return [
        Unknown(api, host, method, template, groups.rows(*numbers))
        for (api, host, method, template), numbers in found.items()
    ]


def worth_telling(traffic: Traffic, rows: Ints, settings: Settings, least_calls: int | None = None) -> bool:
    """At least N calls of K clients. Where no address is known (a recorded file), the calls alone decide."""
    least = settings.shadow_min_calls if least_calls is None else least_calls
    if int(traffic.calls[rows].sum()) < least:
        return False
    clients = int(np.bitwise_or.reduce(traffic.numbers("clients")[rows]))
    return clients == 0 or estimated_clients(clients) >= settings.shadow_min_clients


def _former(traffic: Traffic, mask: Mask) -> Iterator[Draft]:
    groups = traffic.groups(mask & ~traffic.among("status", noise.GONE), "former")
    for number, (former,) in enumerate(groups.values):
        yield Draft(
            rule="removed-operation-in-use",
            api=former.api,
            operation_id=former.operation_id,
            method=former.method,
            path_template=former.path_template,
            rows=groups.rows(number),
            document=former.spec,
            pointer=former.pointer,
            fix=(
                f"put {former.method} {former.path_template} back into {former.spec or 'the document'} as deprecated "
                "until nobody calls it, or let the gateway answer 410"
            ),
        )


def _method(one: Unknown, contracts: Contracts) -> Draft:
    return Draft(
        rule="undocumented-method",
        api=one.api,
        method=one.method,
        path_template=one.template,
        rows=one.rows,
        document=one.nearest.spec if one.nearest else _document(contracts, one.api),
        pointer=one.nearest.pointer.rpartition("/")[0] if one.nearest else "",
        fix=(
            f"describe {one.method} under {one.template} in the documents of {one.api}, or have the gateway and the "
            "backend answer 405 to it"
        ),
    )


def _shadow(one: Unknown, contracts: Contracts) -> Draft:
    document = _document(contracts, one.api)
    return Draft(
        rule="shadow-endpoint",
        detail="" if one.api is not None else f"host {one.host}" if one.host is not None else "no host",
        api=one.api,
        method=one.method,
        path_template=one.template,
        rows=one.rows,
        with_host=True,
        document=document,
        pointer="/paths" if document else "",
        fix=_shadow_fix(one.api, one.host, one.method, one.template),
    )


def _inferred(called: Mapping[str, int], infer: Infer) -> Mapping[str, str]:
    """Templates by path; calls: by path."""
    paths = sorted(path for path in called if path != OTHER_PATHS)
    return {OTHER_PATHS: OTHER_PATHS, **dict(zip(paths, infer(paths, [called[p] for p in paths]), strict=True))}


def _shadow_fix(api: str | None, host: str | None, method: str, template: str) -> str:
    if template == OTHER_PATHS:
        return "look at the most called undocumented paths first; these are the rest of days that had too many to keep"
    if api is None:
        where = f"host {host}" if host is not None else "requests without a host"
        return (
            f"describe {method} {template} in a document whose servers name {where}, or take its route off the gateway"
        )
    return (
        f"describe {method} {template} in the documents of {api} (`apicost spec draft --api {api}` writes it), or take "
        "its route off the gateway"
    )


def _document(contracts: Contracts, api: str | None) -> str:
    """The file that a missing operation would be written into: the API's first."""
    files = contracts.documents.get(api, ()) if api is not None else ()
    return files[0] if files else ""
