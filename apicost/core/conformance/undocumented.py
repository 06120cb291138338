"""Rules of requests that no document describes: shadow-endpoint, undocumented-method, removed-operation-in-use.

Rules of this file:
- They read what a backend answered; what the gateway refused, nobody serves.
- The same request is told once: a former operation is removed-operation-in-use and neither of the others.
- Endpoints are told by template, so that a thousand ids are one finding; thresholds are of the template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from apicost.core.conformance import noise
from apicost.core.conformance.assign import Assignment
from apicost.core.conformance.contract import Contracts
from apicost.core.conformance.finding import Settings
from apicost.core.conformance.infer import Inference
from apicost.core.conformance.traffic import Draft, Ints, Mask, Traffic, estimated_clients

# Folded paths of one API or host -> their templates, one for each, in order.
Infer = Callable[[Sequence[str]], Sequence[str]]

OTHER_PATHS = "(other)"  # stands for the least called paths of a day, which are not kept apart


def undocumented_rules(
    traffic: Traffic, assignment: Assignment, contracts: Contracts, settings: Settings, infer: Infer | None
) -> tuple[list[Draft], int]:
    """The drafts, and the calls that were taken for a "not found" page."""
    if infer is None:
        unmatched = (assignment.method | assignment.path).any()
        infer = Inference(contract.path_template for contract in assignment.documented if unmatched)
    drafts = [*_former(traffic, assignment.former & traffic.upstream)]
    drafts += _methods(traffic, assignment.method & traffic.upstream, contracts, infer)
    unknown = assignment.path & traffic.upstream & ~traffic.among("status", noise.NO_SUCH_PATH)
    soft = noise.soft_not_found(traffic, unknown, settings.soft_404_paths)
    drafts += _shadows(traffic, unknown & ~soft, contracts, settings, infer)
    return drafts, int(traffic.calls[soft].sum())


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


def _methods(traffic: Traffic, mask: Mask, contracts: Contracts, infer: Infer) -> Iterator[Draft]:
    groups = traffic.groups(
        mask & ~traffic.among("status", noise.NO_SUCH_METHOD), "api", "method", "template", "nearest", "path"
    )
    found: dict[tuple[str | None, str, str], list[int]] = {}
    for number, (api, method, template, _, path) in enumerate(groups.values):
        found.setdefault((api, method, template or infer([path])[0]), []).append(number)
    for (api, method, template), numbers in found.items():
        nearest = groups.values[numbers[0]][3]
        yield Draft(
            rule="undocumented-method",
            api=api,
            method=method,
            path_template=template,
            rows=groups.rows(*numbers),
            document=nearest.spec if nearest else _document(contracts, api),
            pointer=nearest.pointer.rpartition("/")[0] if nearest else "",
            fix=(
                f"describe {method} under {template} in the documents of {api}, or have the gateway and the backend "
                "answer 405 to it"
            ),
        )


def _shadows(traffic: Traffic, mask: Mask, contracts: Contracts, settings: Settings, infer: Infer) -> Iterator[Draft]:
    apis, _ = traffic.column("api")
    hosts, names = traffic.column("host")
    # Where the API is known its hosts are one; else the host is all there is to go by.
    traffic.add("nameless host", np.where(apis >= 0, -1, hosts), names)
    groups = traffic.groups(mask, "api", "nameless host", "method", "path")
    paths: dict[tuple[str | None, str | None], set[str]] = {}
    for api, host, _, path in groups.values:
        paths.setdefault((api, host), set()).add(path)
    templates = {place: _inferred(sorted(found), infer) for place, found in paths.items()}
    calls, bits = groups.sums(traffic.calls), groups.merged(traffic.numbers("clients"), np.bitwise_or)
    found: dict[tuple[str | None, str | None, str, str], list[int]] = {}
    for number, (api, host, method, path) in enumerate(groups.values):
        found.setdefault((api, host, method, templates[(api, host)][path]), []).append(number)
    for (api, host, method, template), numbers in found.items():
        if _worth_telling(calls[numbers], bits[numbers], settings):
            yield Draft(
                rule="shadow-endpoint",
                detail="" if api is not None else f"host {host}" if host is not None else "no host",
                api=api,
                method=method,
                path_template=template,
                rows=groups.rows(*numbers),
                with_host=True,
                document=_document(contracts, api),
                pointer="/paths" if _document(contracts, api) else "",
                fix=_shadow_fix(api, host, method, template),
            )


def _inferred(paths: Sequence[str], infer: Infer) -> Mapping[str, str]:
    kept = [path for path in paths if path != OTHER_PATHS]
    return {OTHER_PATHS: OTHER_PATHS, **dict(zip(kept, infer(kept), strict=True))}


def _worth_telling(calls: Ints, bits: Ints, settings: Settings) -> bool:
    """At least N calls of K clients. Where no address is known (a recorded file), the calls alone decide."""
    if int(calls.sum()) < settings.shadow_min_calls:
        return False
    clients = int(np.bitwise_or.reduce(bits))
    return clients == 0 or estimated_clients(clients) >= settings.shadow_min_clients


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
