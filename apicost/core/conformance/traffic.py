"""The shapes of a window as columns that rules can group by, and what a set of rows amounts to.

Rules of this file:
- A rule looks at each distinct combination of the columns it reads once, never at rows.
- What comes out does not depend on the order of rows nor on how long their buckets are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.conformance.contract import Contract
from apicost.core.conformance.finding import Finding, Settings
from apicost.core.naming.combine import combine
from apicost.core.naming.operations import CONTROL, MATCHED, UNATTRIBUTED

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CLIENT_BITS = 63
SAMPLE_NAMES = 8  # of the query names in a sample; more are "..."
# Statuses that nginx writes into its log for requests that got no answer: the client went away, nothing was sent.
UNANSWERED = frozenset(("499", "000"))
_NEVER = np.int64(np.iinfo(np.int64).max)


class Groups:
    """Rows of a mask, by distinct combination of some columns.

    values: one tuple for each group. rows(n, ...): the rows of groups, as positions in the table.
    """

    def __init__(self, chosen: Ints, codes: npt.NDArray[np.integer], values: list[tuple[Any, ...]]) -> None:
        self.chosen, self.codes, self.values = chosen, codes, values
        self._order: Ints = chosen[np.argsort(codes, kind="stable")]
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(codes, minlength=len(values)))))

    def rows(self, *numbers: int) -> Ints:
        """The rows of some groups together."""
        parts = [self._order[self._starts[n] : self._starts[n + 1]] for n in numbers]
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.int64)

    def sums(self, figures: Ints) -> Ints:
        """One figure for each group: its rows' added up."""
        return self.merged(figures, np.add)

    def merged(self, figures: Ints, how: np.ufunc) -> Ints:
        """One figure for each group: its rows' put together by a ufunc."""
        if not self.values:
            return np.empty(0, np.int64)
        merged: Ints = how.reduceat(figures[self._order], self._starts[:-1])
        return merged

    def spread(self, of_group: Sequence[int], rows: int) -> Ints:
        """A column for the whole table from a number for each group; -1 for rows of none."""
        column = np.full(rows, -1, np.int64)
        column[self.chosen] = np.array(of_group, np.int64)[self.codes] if len(of_group) else -1
        return column


class Columns:
    """A batch as columns of codes that can be grouped by."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._columns: dict[str, tuple[npt.NDArray[np.integer], Sequence[Any]]] = {}
        self.size = table.num_rows

    def numbers(self, name: str) -> Ints:
        """A column of counts or times."""
        return records.numbers(self._table, name).astype(np.int64, copy=False)

    def column(self, name: str) -> tuple[npt.NDArray[np.integer], Sequence[Any]]:
        """A column as codes (-1 null) and values."""
        if name not in self._columns:
            self._columns[name] = records.codes(self._table, name)
        return self._columns[name]

    def add(self, name: str, codes: npt.NDArray[np.integer], values: Sequence[Any]) -> None:
        """One more column to group by."""
        self._columns[name] = codes, values

    def among(self, name: str, wanted: Iterable[object]) -> Mask:
        """Rows whose value is one of some; None is null."""
        codes, values = self.column(name)
        words = set(wanted)
        found = np.array([*(value in words for value in values), None in words], np.bool_)
        mask: Mask = found[codes]
        return mask

    def groups(self, mask: Mask, *names: str) -> Groups:
        """The rows of a mask by distinct combination of columns."""
        chosen = np.flatnonzero(mask)
        if not len(chosen):
            return Groups(chosen, chosen, [])
        columns = [self.column(name) for name in names]
        found = combine([codes[chosen] for codes, _ in columns], [len(values) for _, values in columns])
        heads = chosen[found.rows]
        texts = [[values[code] if code >= 0 else None for code in codes[heads].tolist()] for codes, values in columns]
        return Groups(chosen, found.codes, list(zip(*texts, strict=True)))


class Traffic(Columns):
    """The shapes of a window.

    requests: rows that stand for requests (not bytes without one). gateway: of those, answered by the gateway
        itself: never held against a document. upstream: the others. Absent sources count as upstream: a HAR has none.
    """

    def __init__(self, shapes: pa.Table) -> None:
        super().__init__(records.check(shapes, records.SHAPE, "judge"))
        self.calls = self.numbers("calls")
        self.requests = ~self.among("match_state", (UNATTRIBUTED, CONTROL))
        by_itself = ~self.among("response_source", (None, "upstream")) | self.among("status", UNANSWERED)
        self.gateway = self.requests & by_itself
        self.upstream = self.requests & ~by_itself
        self.matched = self.requests & self.among("match_state", (MATCHED,))

    def wire_bytes(self) -> Ints:
        """For each row the bytes on the client side, both directions; app bytes for calls where no flow was seen."""
        wire = self.numbers("downstream_in_wire_bytes") + self.numbers("downstream_out_wire_bytes")
        app = self.numbers("downstream_in_app_bytes") + self.numbers("downstream_out_app_bytes")
        unseen, calls = self.numbers("app_only_calls"), np.maximum(self.calls, 1)
        # A row may hold calls of both kinds: those without a flow get their share of the row's app bytes. The
        # division is split, since bytes x calls of a month can be more than 64 bits hold.
        return wire + app // calls * unseen + app % calls * unseen // calls


def estimated_clients(bits: int) -> int:
    """How many addresses set these bits, by linear counting (Whang et al., 1990): -m ln(share of zero bits).

    All bits set say "300 or more": the estimate for half a zero bit, 305, is given then.
    """
    zeros = CLIENT_BITS - bits.bit_count()
    return round(-CLIENT_BITS * math.log(max(zeros, 0.5) / CLIENT_BITS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What samples say of a finding in place of its rows, which are all of the operation's."""

    count: int
    first_unix_ns: int
    last_unix_ns: int
    consumers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A finding before its rows are added up. with_host: the sample names the host."""

    rule: str
    detail: str = ""
    api: str | None = None
    operation_id: str | None = None
    method: str | None = None
    path_template: str | None = None
    rows: Ints | None = None
    share: tuple[int, int] | None = None
    counted: Counted | None = None
    with_host: bool = False
    document: str = ""
    pointer: str = ""
    fix: str = ""


def of_operation(rule: str, contract: Contract, rows: Ints | None = None, **more: Any) -> Draft:
    """A draft about a documented operation; it points at the operation unless told otherwise."""
    given = {"pointer": contract.pointer, **more}
    return Draft(
        rule=rule,
        api=contract.api,
        operation_id=contract.operation_id,
        method=contract.method,
        path_template=contract.path_template,
        rows=rows,
        document=contract.spec,
        **given,
    )


def finish(traffic: Traffic, drafts: Sequence[Draft], settings: Settings) -> list[Finding]:
    """Findings of drafts, all rows added up at once. A draft whose rows hold no call is none."""
    parts = [draft.rows if draft.rows is not None else np.empty(0, np.int64) for draft in drafts]
    lengths = np.array([len(part) for part in parts], np.int64)
    owner = np.repeat(np.arange(len(drafts)), lengths)
    rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
    figures = _figures(traffic, owner, rows, len(drafts))
    samples = _samples(traffic, drafts, owner, rows)
    findings = []
    for number, draft in enumerate(drafts):
        figure = {name: int(column[number]) for name, column in figures.items()}
        if draft.counted is None and len(parts[number]) and not figure["count"]:
            continue
        bits = figure.pop("bits")
        if draft.counted is not None:
            figure |= {name: getattr(draft.counted, name) for name in Counted.__slots__}
            bits = 0  # the rows' clients are all of the operation's
        if draft.share is not None:
            figure["wire_bytes"] = figure["wire_bytes"] * draft.share[0] // draft.share[1]
        findings.append(
            Finding(
                rule=draft.rule,
                severity=settings.severity_of(draft.rule),
                api=draft.api,
                operation_id=draft.operation_id,
                method=draft.method,
                path_template=draft.path_template,
                detail=draft.detail,
                clients=estimated_clients(bits),
                rows=tuple(sorted(parts[number].tolist())),
                share=draft.share,
                sample=samples.get(number, ""),
                document=draft.document,
                pointer=draft.pointer,
                fix=draft.fix,
                **figure,
            )
        )
    return findings


def _figures(traffic: Traffic, owner: Ints, rows: Ints, drafts: int) -> dict[str, Ints]:
    """The figures of each draft, from (owner, row) pairs that are sorted by owner."""
    figures = {
        name: np.zeros(drafts, np.int64)
        for name in ("count", "first_unix_ns", "last_unix_ns", "wire_bytes", "bits", "consumers")
    }
    if not len(rows):
        return figures
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    owners = owner[starts]
    first, last = traffic.numbers("first_unix_ns")[rows], traffic.numbers("last_unix_ns")[rows]
    figures["count"][owners] = np.add.reduceat(traffic.calls[rows], starts)
    earliest = np.minimum.reduceat(np.where(first > 0, first, _NEVER), starts)
    figures["first_unix_ns"][owners] = np.where(earliest == _NEVER, 0, earliest)
    figures["last_unix_ns"][owners] = np.maximum.reduceat(last, starts)
    figures["wire_bytes"][owners] = np.add.reduceat(traffic.wire_bytes()[rows], starts)
    figures["bits"][owners] = np.bitwise_or.reduceat(traffic.numbers("clients")[rows], starts)
    consumer, names = traffic.column("consumer")
    named = (consumer[rows] >= 0) & (traffic.calls[rows] > 0)
    pairs = np.unique(owner[named] * len(names) + consumer[rows][named])
    figures["consumers"] = np.bincount(pairs // max(len(names), 1), minlength=drafts)
    return figures


def _samples(traffic: Traffic, drafts: Sequence[Draft], owner: Ints, rows: Ints) -> dict[int, str]:
    """For each draft with rows the request that it shows most often; of equals the first by text."""
    if not len(rows):
        return {}
    shown = ("method", "query_names", "status", "host")
    columns = [traffic.column(name) for name in shown]
    found = combine([owner, *(codes[rows] for codes, _ in columns)], [len(drafts), *(len(v) for _, v in columns)])
    calls = np.zeros(len(found.rows), np.int64)
    np.add.at(calls, found.codes, traffic.calls[rows])
    heads = rows[found.rows]
    ranks = [_ranks(values)[codes[heads]] for codes, values in columns]
    owners = owner[found.rows]
    order = np.lexsort((*reversed(ranks), -calls, owners))
    best = order[np.flatnonzero(np.diff(owners[order], prepend=-1))]
    samples = {}
    for position in best.tolist():
        draft = drafts[owners[position]]
        head = heads[position]
        texts = [values[codes[head]] if codes[head] >= 0 else "" for codes, values in columns]
        samples[int(owners[position])] = _sample(draft, *texts)
    return samples


def _ranks(values: Sequence[str]) -> Ints:
    """For each code the place of its value in the order of values; for -1 (the last) 0."""
    ranks = np.zeros(len(values) + 1, np.int64)
    ranks[sorted(range(len(values)), key=values.__getitem__)] = np.arange(1, len(values) + 1)
    return ranks


def _sample(draft: Draft, method: str, names: str, status: str, host: str) -> str:
    """ "GET /v1/orders/{orderId}?page,status -> 418": what was asked, without a value."""
    listed = names.split(",")
    query = "?" + ",".join([*listed[:SAMPLE_NAMES], *(["..."] if len(listed) > SAMPLE_NAMES else [])]) if names else ""
    path = draft.path_template or "/"
    return f"{method} {host if draft.with_host else ''}{path}{query} -> {status or '-'}"
