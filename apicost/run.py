"""The one place where stages are wired: what comes in becomes what the ledger keeps.

    FLOW, LINE -> correlate -> JOINED -> match -> EXCHANGE -> shapes -> SHAPE -> USAGE -> ledger

A step is the unit of exactly-once: its inputs are named, and the ledger marks them as consumed in the
transaction that adds what came of them. The daemon and `apicost replay` run the same steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from apicost import memory
from apicost.catalog import openapi, prices
from apicost.catalog.sample_checker import Row
from apicost.catalog.sample_host import sample_table
from apicost.config import Config
from apicost.core import records
from apicost.core.clock import Clock
from apicost.core.conformance import shapes
from apicost.core.join import correlate
from apicost.core.naming import match
from apicost.core.naming.operations import Operation
from apicost.core.scopes import Scopes
from apicost.ingest import replay as recording
from apicost.problems import InputError, Problem
from apicost.store import lake
from apicost.store.catalogue import CATALOGUE

NANOSECONDS = 1_000_000_000
FOREVER_NS = 1 << 60  # 36 years


@dataclass(slots=True)
class Knowledge:
    """What people wrote: documents and price book, compiled; replaced whole on reload."""

    index: match.Index
    scopes: Scopes
    problems: tuple[Problem, ...] = ()
    operations: int = 0
    named: tuple[Operation, ...] = ()  # what requests can be named by, for the ledger to remember


def load_knowledge(apis: Sequence[openapi.ApiSource], price_file: Path | None, cache: Path | None = None) -> Knowledge:
    """Compile the OpenAPI documents and read the price book's scopes.

    A bad document is among `problems` and leaves the others working.
    Raises InputError for a price book that can't be read: scopes must not silently be "unknown".
    """
    catalog = openapi.load_apis(apis, cache_dir=cache)
    scopes = Scopes()
    if price_file is not None:
        scopes = Scopes(prices.load(price_file).scopes)
    return Knowledge(catalog.index, scopes, tuple(catalog.problems), len(catalog.operations), catalog.named)


@dataclass(slots=True)
class StepCounts:
    """What one step did, for metrics and logs."""

    exchanges: int = 0
    calls_by_api: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class Pipeline:
    """Runs steps into one ledger. Not thread-safe: one step at a time.

    repairs: what was wrong with what the last run left open, a sentence each.
    """

    def __init__(self, ledger: lake.Lake, settings: correlate.Settings, *, node: str, privacy: str = "full") -> None:
        self.ledger = ledger
        self.settings = settings
        self.node = node
        self.privacy = privacy
        self.repairs: list[str] = []
        self._lost_snapshots = 0  # of a carry that can't be read; counted with the next step
        tables = ledger.carry()
        try:
            self.carry = correlate.Carry.from_tables(tables) if tables else correlate.Carry.empty()
        except correlate.CarryError as error:
            self.carry = self._salvaged(tables, str(error))

    def _salvaged(self, tables: Mapping[str, pa.Table], fact: str) -> correlate.Carry:
        """What can be used of a carry of another form: its calls. Raises InputError when they can't be read either."""
        place = f"{self.ledger.folder / CATALOGUE}: what the last run left open"
        try:
            carry = correlate.Carry.salvaged(tables)
        except correlate.CarryError as error:
            count = len(tables.get("lines", ()))
            raise InputError(
                [
                    Problem(
                        place=place,
                        fact=f"is of {fact}; {error}",
                        effect=f"apicost does not start, so that {count} acknowledged calls are not lost",
                        fix="run the version of apicost that wrote it once more and stop it: it gives them out when it "
                        "starts; to give them up instead, `sqlite3 catalogue.sqlite 'delete from carry'`",
                    )
                ]
            ) from None
        self._lost_snapshots = sum(
            len(tables.get(name, ())) for name in ("downstream_turns", "upstream_turns", "upstream_snapshots")
        )
        self.repairs.append(
            f"{place} is of {fact}; its {len(carry.lines)} calls are counted with the gateway's own bytes, and "
            f"{self._lost_snapshots} snapshots of flows as lost"
        )
        return carry

    def step(
        self,
        knowledge: Knowledge,
        flows: pa.Table,
        lines: pa.Table,
        completeness: pa.Table,
        *,
        inputs: Sequence[str],
        clock: Clock,
        now_mono_ns: int,
        final: bool = False,
    ) -> StepCounts:
        """Correlate, name, meter and commit.

        inputs: identities of what `flows`, `lines` and `completeness` hold; committed with the outcome.
        Raises OSError where the ledger can't be written: the carry stays as it was, the step can be
        repeated with the same inputs.

        What a stage no longer needs is let go of before the next: a caller that keeps no reference of its own to
        the batches saves their memory.
        """
        step = correlate.correlate(
            self.carry,
            flows,
            lines,
            clock=clock,
            now_mono_ns=now_mono_ns,
            settings=self.settings,
            final=final,
            with_parts=False,
        )
        del flows, lines
        exchanges, carry, counts = step.exchanges, step.carry, step.counts
        del step
        named = match.name_exchanges(exchanges, knowledge.index, node=self.node)
        del exchanges
        stored = self.ledger.with_privacy(named, self.privacy)
        # Grouped once, at the finest key: usage is its shapes with fewer keys.
        shape = shapes.shapes(named, knowledge.scopes, stored=stored)
        if self._lost_snapshots:
            completeness = pa.concat_tables([completeness, self._lost(clock)])
        memory.give_back()  # what the join took is not needed for writing: 10 MB at 5,000 requests/s
        self.ledger.commit(
            inputs=list(inputs),
            outputs={
                "exchanges": stored,
                "usage": shapes.usage_of(shape),
                "shapes": shape,
                "completeness": completeness,
            },
            carry=carry.to_tables(),
        )
        self.carry = carry
        self._lost_snapshots = 0
        return _counts(named, counts)

    def _lost(self, clock: Clock) -> pa.Table:
        """A row of completeness, with the spool's name for snapshots that can't be read back."""
        row = {
            "minute_unix_s": clock.unix_ns // NANOSECONDS // 60 * 60,
            "node": self.node or None,
            "metric": "flows_lost",
            "value": self._lost_snapshots,
        }
        return pa.Table.from_pylist([row], schema=records.schema(records.COMPLETENESS))

    def end_session(self, knowledge: Knowledge, clock: Clock) -> None:
        """Give out what an earlier run left open: nobody counts its flows any further.

        Their sockets may live on, but under a new probe their counters begin again: they are other flows.
        """
        nothing = [records.empty(columns) for columns in (records.FLOW, records.LINE, records.COMPLETENESS)]
        self.step(knowledge, *nothing, inputs=[], clock=clock, now_mono_ns=clock.mono_ns, final=True)
        self.carry = self.carry.without_flows()


def _counts(named: pa.Table, counts: Mapping[str, int]) -> StepCounts:
    """Calls by API; the empty name is what no API claims."""
    kinds = records.numbers(named, "kind")
    code, values = records.codes(named, "api")
    calls: dict[str, int] = {}
    for number, value in enumerate(["", *values], start=-1):
        count = int(((code == number) & (kinds == records.RowKind.EXCHANGE)).sum())
        if count:
            calls[value] = count
    return StepCounts(exchanges=sum(calls.values()), calls_by_api=calls, counts=dict(counts))


def keep_samples(ledger: lake.Lake, results: Sequence[tuple[str, Sequence[Row]]]) -> list[str]:
    """Commit what the sample checker found, each batch once by its identity; returns the identities committed.

    Raises OSError where the ledger can't be written: the same results can be kept later.
    """
    known = ledger.consumed([identity for identity, _ in results])
    new = {identity: rows for identity, rows in results if identity not in known}
    if new:
        ledger.commit(list(new), {"samples": sample_table(new.values())})
    return list(new)


def correlate_settings(config: Config) -> correlate.Settings:
    """The configuration's waits, in nanoseconds."""
    return correlate.Settings(
        line_wait_ns=int(config.correlate.line_wait_s * NANOSECONDS),
        flow_wait_ns=int(config.correlate.flow_wait_s * NANOSECONDS),
        gateway_ports=config.probe.gateway_ports,
        control_ports=config.probe.control_ports,
    )


def replay(folder: Path, ledger_folder: Path, config: Config, *, steps: int = 1) -> StepCounts:
    """A recorded run through the pipeline, cut by time into `steps` steps and flushed at the end.

    The same recording gives the same ledger content, whatever the number of steps. A recording that this
    ledger already holds is not counted again.
    Raises InputError where the recording can't be read.
    """
    recorded = recording.load(folder)
    knowledge = load_knowledge(config.apis, config.prices)
    total = StepCounts()
    with contextlib.closing(lake.Lake.open(ledger_folder)) as ledger:
        # By the recording's clock, as all that comes of it.
        ledger.note_operations(knowledge.named, recorded.clock.unix_ns // NANOSECONDS)
        if ledger.consumed([f"replay-{recorded.identity}-last"]):
            return total
        pipeline = Pipeline(ledger, _unhurried(config), node=config.node, privacy=config.privacy.client_addresses)
        for number, (flows, lines, now_mono_ns) in enumerate(recorded.cut(steps)):
            last = number == steps - 1
            outcome = pipeline.step(
                knowledge,
                flows,
                lines,
                recorded.completeness if last else records.empty(records.COMPLETENESS),
                inputs=[f"replay-{recorded.identity}-{'last' if last else number}"],
                clock=recorded.clock,
                now_mono_ns=now_mono_ns,
                final=last,
            )
            total.exchanges += outcome.exchanges
            for name, count in outcome.counts.items():
                total.counts[name] = total.counts.get(name, 0) + count
    return total


def seen_in(flows: pa.Table, lines: pa.Table, clock: Clock, knowledge: Knowledge, config: Config) -> pa.Table:
    """Recorded traffic as named exchanges, without a ledger: columns as in `records.EXCHANGE`."""
    step = correlate.correlate(
        correlate.Carry.empty(), flows, lines, clock=clock, now_mono_ns=clock.mono_ns, settings=_unhurried(config),
        final=True,
    )  # fmt: skip
    return match.name_exchanges(step.exchanges, knowledge.index, node=config.node)


def _unhurried(config: Config) -> correlate.Settings:
    """Nothing is late in a recording: with waits without end the outcome is the same however it is cut."""
    return dataclasses.replace(
        correlate_settings(config),
        line_wait_ns=FOREVER_NS,
        flow_wait_ns=FOREVER_NS,
        idle_wait_ns=FOREVER_NS,
        stream_wait_ns=FOREVER_NS,
        grace_ns=FOREVER_NS,
        most_lines=FOREVER_NS,
        most_turns=FOREVER_NS,
    )
