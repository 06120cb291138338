"""Flows and usage lines -> exchanges.

One step takes what came in since the last, the carry of the last, and gives out what is settled now:

    FLOW, LINE, carry  ->  JOINED (one row per request, and rows for bytes of none), PART, new carry

Rules of this file:
- A line is given out once, when both of its legs are settled: `downstream` (the client's connection) and
  `upstream` (each try towards a backend). A leg that finds no flow in time is settled as app-only.
- Every byte that the kernel counted comes out in exactly one PART row (law 1).
- Nothing here depends on how the input was split over steps, as long as the waits are longer than the input is
  out of step (law 4). `line_id`, the number of a line in order of arrival, is never compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.clock import Clock
from apicost.core.join import held, joined
from apicost.core.join.downstream import TCP, DownstreamState, attribute_downstream
from apicost.core.join.downstream_state import Flows, Legs, LineParts, Lines, Turns, place_in_run
from apicost.core.join.segments import I64
from apicost.core.join.settings import Settings
from apicost.core.join.tls_offsets import record_bytes
from apicost.core.join.upstream import (
    Settled,
    UpstreamSettings,
    UpstreamState,
    attempts_of,
    attribute_upstream,
)
from apicost.core.join.upstream_columns import Bool, hash_of
from apicost.core.records import FLOW, LINE, Confidence, Role

__all__ = ["Carry", "CarryError", "Clock", "Settings", "Step", "correlate"]

CARRY_FORM = 1  # of the carry's tables; raise it when a column comes, goes or changes its meaning


class CarryError(ValueError):
    """Tables of a carry that can't be used as they are; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carry:
    """What is still open after a step. Plain tables by name, so that it can be stored as files.

    lines: lines that are not given out yet, as `held` has them. unplaced: those without a downstream leg.
    legs, parts, tries: of these, what is settled already.
    identities: what a row says of its request (and `line_id`), of requests whose flow may still get overhead.
    next_line_id: the number of the next line that comes in.
    """

    lines: pa.Table
    unplaced: Lines
    identities: pa.Table
    legs: Legs
    parts: LineParts
    tries: Settled
    downstream: DownstreamState
    upstream: UpstreamState
    next_line_id: int

    @classmethod
    def empty(cls) -> Carry:
        """Before the first step."""
        return cls(
            lines=held.SCHEMA.empty_table(),
            unplaced=Lines.empty(),
            identities=held.IDENTITY.empty_table(),
            legs=Legs.empty(),
            parts=LineParts.empty(),
            tries=Settled.empty(),
            downstream=DownstreamState.empty(),
            upstream=UpstreamState(),
            next_line_id=0,
        )

    def without_flows(self) -> Carry:
        """The carry for a probe that was loaded anew and counts from zero; lines that wait stay.

        Call it after a step with `final=True`: what the old probe had counted is given out by then.
        """
        return dataclasses.replace(self, downstream=DownstreamState.empty(), upstream=UpstreamState())

    def to_tables(self) -> dict[str, pa.Table]:
        """Plain Arrow tables by name."""
        return {
            "lines": self.lines,
            "unplaced": self.unplaced.to_table(),
            "identities": self.identities,
            "legs": self.legs.to_table(),
            "parts": self.parts.to_table(),
            "tries": self.tries.to_table(),
            "downstream_flows": self.downstream.flows.to_table(),
            "downstream_turns": self.downstream.turns.to_table(),
            "numbers": pa.table(
                {
                    "next_line_id": pa.array([self.next_line_id], pa.int64()),
                    "form": pa.array([CARRY_FORM], pa.int64()),
                }
            ),
            **self.upstream.to_tables(),
        }

    @classmethod
    def from_tables(cls, tables: Mapping[str, pa.Table]) -> Carry:
        """The inverse of `to_tables`.

        Raises CarryError when the tables are of another form: see `salvaged`.
        """
        numbers = tables.get("numbers", pa.table({}))
        form = numbers.column("form")[0].as_py() if "form" in numbers.column_names else CARRY_FORM
        if form != CARRY_FORM:
            raise CarryError(f"form {form}, this apicost knows form {CARRY_FORM}")
        try:
            return cls(
                lines=_same(tables["lines"], held.SCHEMA),
                unplaced=Lines.from_table(tables["unplaced"]),
                identities=_same(tables["identities"], held.IDENTITY),
                legs=Legs.from_table(tables["legs"]),
                parts=LineParts.from_table(tables["parts"]),
                tries=Settled.from_table(tables["tries"]),
                downstream=DownstreamState(
                    flows=Flows.from_table(tables["downstream_flows"]),
                    turns=Turns.from_table(tables["downstream_turns"]),
                ),
                upstream=UpstreamState.from_tables(tables),
                next_line_id=int(numbers.column("next_line_id")[0].as_py()),
            )
        except (KeyError, pa.ArrowException) as error:
            raise CarryError(f"another form: {error}") from None

    @classmethod
    def salvaged(cls, tables: Mapping[str, pa.Table]) -> Carry:
        """Of tables that `from_tables` refuses, the lines: settled as app-only, for the next step to give out.

        What their flows had not given out yet is lost; the caller counts it. Raises CarryError when the lines can't be
        read either.
        """
        try:
            lines = _same(tables["lines"], held.SCHEMA)
        except (KeyError, pa.ArrowException) as error:
            raise CarryError(f"its lines are of another form: {error}") from None
        ids: I64 = np.asarray(records.numbers(lines, held.LINE_ID), np.int64)
        wanted = np.asarray(records.numbers(lines, "tries"), np.int64)
        of_line = np.repeat(ids, wanted)
        nothing = np.full(len(ids), -1, np.int64)
        return dataclasses.replace(
            cls.empty(),
            lines=lines,
            legs=Legs.blank(len(ids)).replace(
                line_id=ids,
                confidence=np.full(len(ids), Confidence.APP_ONLY, np.uint8),
                started_mono_ns=nothing,
                ended_mono_ns=nothing,
                first_byte_ns=nothing,
            ),
            tries=Settled.blank(len(of_line)).replace(
                line_id=of_line,
                try_no=place_in_run(of_line).astype(np.int32),
                confidence=np.full(len(of_line), Confidence.APP_ONLY, np.uint8),
            ),
            next_line_id=int(ids.max(initial=-1)) + 1,
        )


def _same(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The table's columns as wanted; raises KeyError when one is missing."""
    table = table.select(wanted.names)
    return table if table.schema.equals(wanted) else table.cast(wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step gave out.

    exchanges: columns as in `records.JOINED`. parts: as in `records.PART`.
    counts: what was met, by name, for metrics and completeness.
    """

    exchanges: pa.Table
    parts: pa.Table
    carry: Carry
    counts: dict[str, int]


def correlate(
    carry: Carry,
    flows: pa.Table,
    lines: pa.Table,
    *,
    clock: Clock,
    now_mono_ns: int,
    settings: Settings,
    final: bool = False,
    with_parts: bool = True,
) -> Step:
    """One step of the join.

    flows: columns as in `records.FLOW`; lines: as in `records.LINE`; any order, repeated snapshots allowed,
    lines each once.
    now_mono_ns: up to when the input is complete, apart from what is late; waits are measured against it.
    final: give out everything now; of open flows only the counters stay in the carry.
    with_parts: make `Step.parts`, which proves conservation and which nobody keeps; else it has no rows.

    The carry that comes in isn't changed: a step can be repeated.
    """
    records.check(flows, FLOW, "correlate: flows")
    records.check(lines, LINE, "correlate: lines")
    own_flows, upstream_flows = _sides(carry, flows, settings)

    new_ids = np.arange(carry.next_line_id, carry.next_line_id + len(lines), dtype=np.int64)
    waiting = pa.concat_tables([carry.lines, held.held_of(lines, new_ids)])
    unplaced = Lines.concat([carry.unplaced, lines_of(lines, new_ids)])
    down = attribute_downstream(
        carry.downstream,
        own_flows,
        unplaced,
        now_mono_ns=now_mono_ns,
        settings=settings,
        final=final,
    )
    up = attribute_upstream(
        carry.upstream,
        upstream_flows,
        attempts_of(lines, new_ids),
        now_mono_ns=now_mono_ns,
        settings=UpstreamSettings(
            line_wait_ns=settings.line_wait_ns,
            flow_wait_ns=settings.flow_wait_ns,
            linger_ns=settings.grace_ns,
            most_attempts=settings.most_lines,
            most_turns=settings.most_turns,
        ),
        final=final,
    )
    del own_flows, upstream_flows
    legs = Legs.concat([carry.legs, down.legs])
    parts = LineParts.concat([carry.parts, down.parts])
    tries = Settled.concat([carry.tries, up.settled])

    ids: I64 = np.asarray(records.numbers(waiting, held.LINE_ID), np.int64)
    ready = _ready(waiting, ids, legs, tries)
    # Of those that come in now only few will be needed again; they are looked up where they are.
    named = np.unique(
        np.concatenate([down.state.flows.last_line, up.state.flows.last_line, down.loose.line_id, up.parts.line_id])
    )
    known: I64 = np.asarray(records.numbers(carry.identities, held.LINE_ID), np.int64)
    identities = pa.concat_tables(
        [
            held.identities_of(carry.identities, np.isin(known, named)),
            held.identities_of(waiting, np.isin(ids, named)),
        ]
    )
    identity_ids: I64 = np.asarray(records.numbers(identities, held.LINE_ID), np.int64)
    given_out, kept = held.split(waiting, ready)
    out = joined.rows(
        lines=given_out,
        legs=legs,
        parts=parts,
        tries=tries,
        loose=down.loose,
        upstream_loose=up.parts,
        identities=identities,
        identity_ids=identity_ids,
        clock=clock,
        with_parts=with_parts,
    )
    gone = ids[ready]
    still_named = np.union1d(down.state.flows.last_line, up.state.flows.last_line)
    new_carry = Carry(
        lines=kept,
        unplaced=unplaced.take(~np.isin(unplaced.line_id, down.legs.line_id)),
        identities=held.compact(identities.take(np.flatnonzero(np.isin(identity_ids, still_named)))),
        legs=legs.take(~np.isin(legs.line_id, gone)),
        parts=parts.take(~np.isin(parts.line_id, gone)),
        tries=tries.take(~np.isin(tries.line_id, gone)),
        downstream=down.state,
        upstream=up.state,
        next_line_id=carry.next_line_id + len(lines),
    )
    counts = {
        **down.counts,
        "exchanges": int(ready.sum()),
        "lines_waiting": int((~ready).sum()),
        "tries_crowded_out": up.crowded_attempts,
        "upstream_turns_crowded_out": up.crowded_turns,
        "tries_without_flow": int((up.settled.confidence == Confidence.APP_ONLY).sum()),
        "rows_overhead": out.overhead_rows,
        "rows_unattributed": out.unattributed_rows,
    }
    return Step(exchanges=out.exchanges, parts=out.parts, carry=new_carry, counts=counts)


def lines_of(table: pa.Table, ids: I64) -> Lines:
    """The numbers of usage lines that the downstream leg needs."""

    def column(name: str) -> Any:
        return records.numbers(table, name)

    requested, length = column("request_bytes"), column("content_length")
    # nginx's request_length leaves out a body that it discarded.
    discarded = np.where(requested < length, length, 0)
    place = hash_of(column("peer_hi"), column("peer_lo"), column("peer_port"), column("local_port"))
    access, header, log = column("access_mono_ns"), column("header_mono_ns"), column("log_mono_ns")
    there = np.where(access >= 0, access, np.where(header >= 0, header, log))
    tls_code, _ = records.codes(table.select(["tls_version"]), "tls_version")
    cipher_code, ciphers = records.codes(table.select(["tls_cipher"]), "tls_cipher")
    added = np.array([*(record_bytes(cipher) for cipher in ciphers), 0], np.int64)
    long_hash = np.array([*("SHA384" in cipher for cipher in ciphers), False])
    return Lines(
        line_id=ids,
        connection=hash_of(place, column("worker_pid"), column("worker_started_unix_ms"), column("connection")),
        place=place,
        request=column("connection_requests"),
        http=column("http_version"),
        tls=tls_code >= 0,
        status=column("status").astype(np.int32),
        in_bytes=requested + discarded,
        out_bytes=column("response_bytes"),
        in_offset=column("tls_read_bytes"),
        out_offset=column("tls_written_bytes"),
        body_bytes=length,
        unread=requested < length,
        record_bytes=added[cipher_code],
        sha384=long_hash[cipher_code],
        started_mono_ns=np.minimum(there, log),
        header_mono_ns=header,
        log_mono_ns=log,
    )


def _sides(carry: Carry, flows: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """The snapshots of upstream flows, and all others with their role made sure of.

    The probe knows the role of a flow whose beginning it saw. An older one is told by its ports.
    """
    if len(flows) == 0:
        return flows, flows
    role = np.asarray(records.numbers(flows, "role"), np.uint8).copy()
    local, peer = records.numbers(flows, "local_port"), records.numbers(flows, "peer_port")
    protocol = records.numbers(flows, "protocol")
    unknown = role == Role.UNKNOWN
    ours = np.isin(local, np.asarray(settings.gateway_ports, np.uint16))
    control = np.isin(peer, np.asarray(settings.control_ports, np.uint16))
    role[unknown & ours & (protocol == TCP)] = Role.DOWNSTREAM
    role[((role == Role.UPSTREAM) | unknown) & control] = Role.CONTROL
    upstream: Bool = (role == Role.UPSTREAM) & (protocol == TCP)
    if upstream.any() and len(carry.downstream.flows):
        # A flow that was taken up here as unknown stays here: it is counted in one place only.
        upstream &= ~np.isin(records.numbers(flows, "flow"), carry.downstream.flows.flow)
    place = flows.schema.get_field_index("role")
    sure = flows.set_column(place, flows.schema.field(place), pa.array(role))
    return sure.filter(pa.array(~upstream)), sure.filter(pa.array(upstream))


def _ready(waiting: pa.Table, ids: I64, legs: Legs, tries: Settled) -> Bool:
    """Which waiting lines have both legs settled."""
    wanted = np.asarray(records.numbers(waiting, "tries"), np.int64)
    settled = np.zeros(len(ids), np.int64)
    at = np.searchsorted(ids, tries.line_id)
    np.add.at(settled, at, 1)
    ready = settled >= wanted
    ready &= np.isin(ids, legs.line_id)
    return ready
