"""Recorded runs: a folder of flow snapshots and usage lines that goes through the pipeline like a live run.

A recording is a folder (docs/usage-lines.md describes it for people):

    clock.json            {"mono_ns": N, "unix_ns": N}: both clocks of the node, read together
    flows.parquet         columns as in records.FLOW; or several such files in flows/
    lines.parquet         columns as in records.LINE; or several such files in lines/
    lines/*.usage         bodies as gateways post them, besides or instead
    completeness.parquet  columns as in records.COMPLETENESS; or several such files in completeness/; optional
    apicost.yaml, ...     what else the run needs; not read here

Rules of this file:
- How a recording is cut into files, and the order of rows in them, changes nothing: rows come out in one
  canonical order, and `Recorded.identity` is computed from them.
- A line counts once by its number in its worker, a flow snapshot once by all its columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apicost import durable
from apicost.core import records
from apicost.core.clock import Clock
from apicost.ingest import numbering
from apicost.ingest.exit_spool import batches_of
from apicost.ingest.lines import BatchRefused, Limits, parse_batch
from apicost.ingest.plan import minute_of
from apicost.problems import InputError, Problem

PARTS = {"flows": records.FLOW, "lines": records.LINE, "completeness": records.COMPLETENESS}
_LINE_ORDER = ("worker_started_unix_ms", "worker_pid", "line_no")
_FLOW_ORDER = ("last_mono_ns", "flow", "turn", "kind", "seq")
_LIMITS = Limits(max_lines=1 << 24, max_path_bytes=2_048)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A recording in memory: batches in canonical order.

    identity: the same for the same flows and lines, however they were cut into files.
    """

    flows: pa.Table
    lines: pa.Table
    completeness: pa.Table
    clock: Clock
    identity: str

    def cut(self, steps: int) -> Iterator[tuple[pa.Table, pa.Table, int]]:
        """The recording as `steps` pieces of equal time: (FLOW, LINE, now_mono_ns at the piece's end).

        A snapshot comes with the piece that its last packet falls into, a line with that of its log phase.
        """
        flow_ns = records.numbers(self.flows, "last_mono_ns").astype(np.int64)
        line_ns = records.numbers(self.lines, "log_mono_ns").astype(np.int64)
        both = np.concatenate([flow_ns, line_ns])
        first, last = (int(both.min()), int(both.max())) if len(both) else (0, 0)
        start = first - 1
        for step in range(1, steps + 1):
            end = first + (last - first) * step // steps
            flow_in = (flow_ns > start) & (flow_ns <= end)
            line_in = (line_ns > start) & (line_ns <= end)
            yield self.flows.filter(pa.array(flow_in)), self.lines.filter(pa.array(line_in)), end
            start = end


def record(folder: Path, flows: pa.Table, lines: pa.Table, clock: Clock, completeness: pa.Table | None = None) -> None:
    """Add batches to a recording; made where missing. The first call's clock is kept.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "clock.json").exists():
        text = json.dumps({"mono_ns": clock.mono_ns, "unix_ns": clock.unix_ns})
        durable.write_bytes(folder / "clock.json", text.encode() + b"\n")
    for name, table in (("flows", flows), ("lines", lines), ("completeness", completeness)):
        if table is None or not table.num_rows:
            continue
        records.check(table, PARTS[name], "record")
        parts = folder / name
        parts.mkdir(exist_ok=True)
        number = 1 + max((int(p.stem) for p in parts.glob("*.parquet") if p.stem.isdigit()), default=0)
        _write(parts / f"{number:06d}.parquet", table)


def save(folder: Path, recorded: Recorded) -> None:
    """Write a recording anew with one file per kind, as small as it gets. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"mono_ns": recorded.clock.mono_ns, "unix_ns": recorded.clock.unix_ns})
    durable.write_bytes(folder / "clock.json", text.encode() + b"\n")
    for name in PARTS:
        _write(folder / f"{name}.parquet", getattr(recorded, name))


def load(folder: Path) -> Recorded:
    """Read a recording.

    Without a recorded completeness, what the lines themselves tell stands in for it: lines received,
    repeated, refused and missing between others.

    Raises InputError with every problem found.
    """
    problems: list[Problem] = []
    clock = _clock(folder / "clock.json", problems)
    tables = {name: _parts(folder, name, problems) for name in PARTS}
    bodies, refused = _bodies(folder / "lines", problems)
    if not problems and not any(t.num_rows for t in (tables["flows"], tables["lines"], *bodies)):
        problems.append(_problem(folder, "holds no flows and no lines", "name a folder that `record` made"))
    if problems:
        raise InputError(problems)
    all_lines = pa.concat_tables([tables["lines"], *bodies]).unify_dictionaries().combine_chunks()
    lines = once(all_lines)
    flows = _distinct_flows(tables["flows"])
    completeness = _sorted(tables["completeness"], ("minute_unix_s", "metric", "value"))
    if not completeness.num_rows:
        completeness = _completeness(lines, all_lines.num_rows - lines.num_rows, refused, clock)
    digest = hashlib.sha256()
    for table in (flows, lines):
        _digest(digest, table)
    return Recorded(flows=flows, lines=lines, completeness=completeness, clock=clock, identity=digest.hexdigest()[:16])


def _write(path: Path, table: pa.Table) -> None:
    durable.write_file(
        path, lambda temporary: pq.write_table(table, temporary, compression="zstd", compression_level=9)
    )


def _clock(path: Path, problems: list[Problem]) -> Clock:
    try:
        content = json.loads(path.read_bytes())
        return Clock(mono_ns=int(content["mono_ns"]), unix_ns=int(content["unix_ns"]))
    except OSError as error:
        problems.append(_problem(path, f"cannot be read: {error.strerror}", "a recording needs its clock.json"))
    except (ValueError, KeyError, TypeError):
        problems.append(_problem(path, "is not a pair of clocks", 'write {"mono_ns": N, "unix_ns": N}'))
    return Clock(mono_ns=0, unix_ns=0)


def _parts(folder: Path, name: str, problems: list[Problem]) -> pa.Table:
    """All Parquet files of one kind as one table with the columns it should have."""
    wanted = records.schema(PARTS[name])
    tables = [wanted.empty_table()]
    for path in [folder / f"{name}.parquet", *sorted((folder / name).glob("*.parquet"))]:
        if not path.exists():
            continue
        try:
            table = pq.ParquetFile(path).read(use_threads=False)
            tables.append(table.select(wanted.names).cast(wanted))
        except (OSError, pa.ArrowException, KeyError) as error:
            what = str(error).splitlines()[0]
            problems.append(_problem(path, f"is not a table of {name}: {what}", "record the run again"))
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _bodies(folder: Path, problems: list[Problem]) -> tuple[list[pa.Table], int]:
    """Usage bodies as gateways post them: their good lines, and how many were refused."""
    tables: list[pa.Table] = []
    refused = 0
    for path in sorted(folder.glob("*.usage")):
        try:
            content = path.read_bytes()
        except OSError as error:
            problems.append(_problem(path, f"cannot be read: {error.strerror}", "make it readable or remove it"))
            continue
        for body in batches_of(content):
            try:
                batch = parse_batch(body, _LIMITS)
            except BatchRefused as error:
                problems.append(_problem(path, f"is not a usage batch: {error.reason}", "remove the file"))
                continue
            tables.append(batch.table)
            refused += len(batch.refused)
    return tables, refused


def once(lines: pa.Table) -> pa.Table:
    """Usage lines in the order of their workers and numbers, each once."""
    keys = _LINE_ORDER
    table = _sorted(lines, keys)
    if table.num_rows < 2:
        return table
    same = np.ones(table.num_rows - 1, bool)
    for key in keys:
        same &= np.diff(records.numbers(table, key).astype(np.int64)) == 0
    return table.filter(pa.array(np.concatenate([[True], ~same]))) if same.any() else table


def _distinct_flows(table: pa.Table) -> pa.Table:
    names = table.column_names
    rest = [name for name in names if name not in _FLOW_ORDER]
    table = _sorted(table, (*_FLOW_ORDER, *rest))
    if table.num_rows < 2:
        return table
    same = np.ones(table.num_rows - 1, bool)
    for name in names:
        values = records.numbers(table, name)
        same &= values[1:] == values[:-1]
    return table.filter(pa.array(np.concatenate([[True], ~same]))) if same.any() else table


def _sorted(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Rows in the order of their keys; text is compared as text, whatever its codes."""
    if table.num_rows < 2:
        return table
    columns = {}
    for key in keys:
        column = table.column(key)
        columns[key] = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    order = pc.sort_indices(pa.table(columns), sort_keys=[(key, "ascending") for key in keys])
    return table.take(order).combine_chunks()


def _completeness(lines: pa.Table, repeated: int, refused: int, clock: Clock) -> pa.Table:
    """Counts that the lines tell: missing numbers are booked to the minute of the line after them."""
    total: dict[tuple[int, str], int] = {}

    def count(minute_unix_s: int, metric: str, value: int) -> None:
        if value:
            total[minute_unix_s, metric] = total.get((minute_unix_s, metric), 0) + value

    logged_s = records.numbers(lines, "log_unix_ns").astype(np.int64) // 60_000_000_000 * 60
    minutes, counts = np.unique(logged_s, return_counts=True)
    for minute, number in zip(minutes.tolist(), counts.tolist(), strict=True):
        count(minute, "lines_received", number)
    if lines.num_rows > 1:
        step = np.diff(records.numbers(lines, "line_no").astype(np.int64))
        same = np.ones(len(step), bool)
        for key in _LINE_ORDER[:-1]:
            same &= np.diff(records.numbers(lines, key).astype(np.int64)) == 0
        for row in np.flatnonzero(same & (step > 1) & (step <= numbering.MAX_LEAP)).tolist():
            count(int(logged_s[row + 1]), "lines_lost", int(step[row]) - 1)
    at = int(minutes[-1]) if len(minutes) else minute_of(clock.unix_ns)
    count(at, "lines_duplicate", repeated)
    count(at, "lines_refused", refused)
    keys = sorted(total)
    schema = records.schema(records.COMPLETENESS)
    return pa.table(
        [
            pa.array([minute for minute, _ in keys], pa.int64()),
            pa.array([None] * len(keys), pa.string()).dictionary_encode(),
            pa.array([metric for _, metric in keys], pa.string()).dictionary_encode(),
            pa.array([total[key] for key in keys], pa.int64()),
        ],
        schema=schema,
    )


def _digest(digest: hashlib._Hash, table: pa.Table) -> None:
    """Add a table's content; equal content gives equal bytes, whatever its dictionaries' order."""
    plain = pa.schema(
        [pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, plain) as writer:
        writer.write_table(table.cast(plain).combine_chunks())
    digest.update(sink.getvalue())


def _problem(place: Path, fact: str, fix: str) -> Problem:
    return Problem(place=str(place), fact=fact, effect="the recording is not replayed", fix=fix)
