"""Recorded traffic in whatever form it comes: a recorded run, usage lines, or an HTTP archive.

Told apart by content, never by the file's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from apicost.core import records
from apicost.core.clock import Clock
from apicost.ingest import har, replay
from apicost.ingest.exit_spool import batches_of
from apicost.ingest.lines import BatchRefused, Limits, parse_batch
from apicost.problems import InputError, Problem

_LIMITS = Limits(max_lines=1 << 24, max_path_bytes=2_048)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """flows, lines: columns as in records.FLOW and records.LINE. kind: for people.

    messages: requests and responses with bodies, where the form has them; line number n is messages[n - 1].
    notes: what the reader must know of it.
    """

    flows: pa.Table
    lines: pa.Table
    clock: Clock
    kind: str
    messages: Sequence[har.Message] = ()
    notes: Sequence[str] = ()


def load(path: Path, *, api_key_headers: Sequence[str] = har.API_KEY_HEADERS) -> Recorded:
    """Read a file or a recorded run's folder. Raises InputError."""
    if path.is_dir():
        run = replay.load(path)
        return Recorded(flows=run.flows, lines=run.lines, clock=run.clock, kind="recorded run")
    try:
        with open(path, "rb") as stream:
            head = stream.read(8_192)
    except OSError as error:
        raise _error(path, f"can't be read: {error.strerror}", "name a readable file") from None
    return _archive(path, api_key_headers) if har.looks_like(head) else _usage(path)


def _archive(path: Path, api_key_headers: Sequence[str]) -> Recorded:
    archive = har.read(path, api_key_headers)
    batch = parse_batch(archive.body, _LIMITS)
    notes = []
    if archive.left_out:
        notes.append(f"{path}: {archive.left_out} entries without a response or an HTTP address are left out")
    if archive.bare:
        notes.append(
            f"{path}: no request shows any credentials. Recorders leave them out on demand: then security-missing "
            "says nothing"
        )
    notes += _refusals(path, len(batch.refused))
    clock = Clock(mono_ns=archive.last_unix_ns, unix_ns=archive.last_unix_ns)
    return Recorded(
        flows=records.empty(records.FLOW), lines=batch.table, clock=clock, kind="HTTP archive",
        messages=archive.messages, notes=notes,
    )  # fmt: skip


def _usage(path: Path) -> Recorded:
    clock, tables, refused = None, [records.empty(records.LINE)], 0
    for body in batches_of(path.read_bytes()):
        try:
            batch = parse_batch(body, _LIMITS)
        except BatchRefused as error:
            fix = "name a HAR 1.2 file, a file of usage lines or the folder of a recorded run"
            raise _error(path, f"is not a usage batch: {error.reason}", fix) from None
        refused += len(batch.refused)
        tables.append(batch.table)
        clock = clock or Clock(mono_ns=batch.header.base_mono_ns, unix_ns=batch.header.base_unix_ns)
    if clock is None:
        raise _error(path, "is empty", "name a HAR 1.2 file, a file of usage lines or the folder of a recorded run")
    lines = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return Recorded(
        flows=records.empty(records.FLOW), lines=replay.once(lines), clock=clock, kind="usage lines",
        notes=_refusals(path, refused),
    )  # fmt: skip


def _refusals(path: Path, refused: int) -> list[str]:
    return [f"{path}: {refused} malformed lines are left out"] if refused else []


def _error(path: Path, fact: str, fix: str) -> InputError:
    return InputError([Problem(place=str(path), fact=fact, effect="its traffic is not judged", fix=fix)])
