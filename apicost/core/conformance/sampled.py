"""Rules of sampled bodies: what their validation left behind, counts by operation, rule and place in the schema.

Rules of this file:
- A finding counts samples. Its rows are all of the operation's and its `share` says which part of them is meant, so
  that bytes and cost are an estimate: what was sampled stands for what was not.
- Each sample has one row without a rule, whatever was found, and one for each place in which it fails: the rows
  without a rule are what shares are taken of.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.conformance.assign import Assignment
from apicost.core.conformance.finding import RULES
from apicost.core.conformance.point import name_of
from apicost.core.conformance.traffic import Columns, Counted, Draft, Ints, Traffic, of_operation

_OPERATION = ("api", "method", "path_template", "operation_id")

_FIXES = {
    "request-schema": "have the clients of {name} send what the schema asks for, or describe what they send",
    "response-schema": "have the backend of {name} answer as the schema says, or describe what it answers",
}


def sampled_rules(traffic: Traffic, assignment: Assignment, samples: pa.Table) -> Iterator[Draft]:
    """One draft for each operation, rule and place."""
    columns = Columns(records.check(samples, records.SAMPLE, "judge"))
    counts = columns.numbers("samples")
    totals = _totals(columns, counts)
    groups = columns.groups(~columns.among("rule", (None,)) & (counts > 0), *_OPERATION, "rule", "detail", "pointer")
    firsts, lasts = columns.numbers("first_unix_ns"), columns.numbers("last_unix_ns")
    of_contract = _rows_by_contract(traffic, assignment) if groups.values else {}
    for number, (api, method, template, operation_id, rule, detail, pointer) in enumerate(groups.values):
        if rule not in RULES:
            continue
        rows = groups.rows(number)
        count = int(counts[rows].sum())
        total = max(totals.get((api, method, template, operation_id), 0), count)
        consumers, _ = columns.column("consumer")
        named = np.unique(consumers[rows])
        counted = Counted(
            count=count,
            first_unix_ns=int(firsts[rows].min()),
            last_unix_ns=int(lasts[rows].max()),
            consumers=int((named >= 0).sum()),
        )
        contract = assignment.contract_of(api, method, template)
        name = name_of(contract) if contract else f"{method} {template}"
        fix = _FIXES.get(rule, "have the clients of {name} follow the document, or write into it what they do")
        fix = fix.format(name=name) + f" (seen in {count} of {total} samples; bytes and cost are estimated from those)"
        shown = of_contract.get(id(contract)) if contract else None
        if contract is None:
            yield Draft(
                rule=rule,
                detail=detail or "",
                api=api,
                operation_id=operation_id,
                method=method,
                path_template=template,
                counted=counted,
                pointer=pointer or "",
                fix=fix,
            )
        else:
            yield of_operation(
                rule,
                contract,
                shown,
                detail=detail or "",
                counted=counted,
                share=(count, total) if shown is not None else None,
                pointer=pointer or contract.pointer,
                fix=fix,
            )


def _totals(columns: Columns, counts: Ints) -> dict[tuple[str | None, ...], int]:
    """Samples of each operation."""
    groups = columns.groups(columns.among("rule", (None,)), *_OPERATION)
    return dict(zip(groups.values, groups.sums(counts).tolist(), strict=True))


def _rows_by_contract(traffic: Traffic, assignment: Assignment) -> dict[int, Ints]:
    groups = traffic.groups(assignment.held & traffic.upstream & (traffic.calls > 0), "contract")
    return {id(contract): groups.rows(number) for number, (contract,) in enumerate(groups.values)}
