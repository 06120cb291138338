"""Closed months: LEDGER/closed/YYYY-MM, written once, and never again.

Rules of this file:
- A month's folder appears whole, by one rename, when everything in it is on the disk; a crash leaves what was being
  written under a name of its own, and the next closing removes it.
- The manifest has the checksum of every other file, of the manifest before it, and of itself: a changed file, an
  exchanged month and a removed one are found (`problems`).
- Usage is kept by day of the price book's time zone and by every key but the node: months with corrected prices,
  figures by day and explanations are made from it when the ledger has long forgotten them.
- A month's folder also has the usage of earlier closed months as it was known when the month was closed, where that
  is not what the folders before it have: its corrections were made from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from apicost import durable
from apicost.core import meter, records
from apicost.core.rating.statement import CHARGE
from apicost.store.catalogue import LedgerError, lock
from apicost.store.segments import ROW_GROUP
from apicost.store.sums import add_up

FOLDER = "closed"
MANIFEST = "manifest.json"
CHARGES = "charges.parquet"
PRICES = "prices.yaml"
USAGE = "usage.parquet"
FORM = 1
LOCK = "closing.lock"
# What usage is kept by: a node is no part of a charge.
KEYS = tuple(key for key in meter.TEXT_KEYS if key != "node")
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_SEAL = "seal_sha256"

Ints = npt.NDArray[np.int64]


class UsageSource(Protocol):
    """Whatever can be asked for usage as `Ledger.usage` is."""

    def usage(self, edges: Sequence[int], by: Sequence[str] = ..., *, sums: Sequence[str] = ...) -> pa.Table: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySums:
    """The sums of a month's usage by day, to tell whether two sources know the same.

    names: columns of records.USAGE_SUMS. days: start of a day in unix seconds -> its sums, for days that have usage.
    """

    names: tuple[str, ...]
    days: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, source: UsageSource, starts: Sequence[int]) -> DaySums:
        """Of a month whose days begin at `starts`, its end last."""
        found = source.usage(list(starts), ())
        columns = [records.numbers(found, name).tolist() for name in meter.SUMS]
        minutes = records.numbers(found, "minute_unix_s").tolist()
        return cls(names=meter.SUMS, days=dict(zip(minutes, zip(*columns, strict=True), strict=True)))

    def falls_short_of(self, other: DaySums) -> set[int]:
        """The days of which another source knows more, in any sum."""
        both = [name for name in other.names if name in self.names]
        mine, theirs = ([sums.names.index(name) for name in both] for sums in (self, other))
        none = (0,) * len(self.names)
        return {
            day
            for day, known in other.days.items()
            if any(self.days.get(day, none)[a] < known[b] for a, b in zip(mine, theirs, strict=True))
        }

    def equals(self, other: DaySums) -> bool:
        """Whether both know the same of every day."""
        return not self.falls_short_of(other) and not other.falls_short_of(self)

    def as_data(self) -> dict[str, Any]:
        return {"sums": list(self.names), "days": {str(day): list(sums) for day, sums in sorted(self.days.items())}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> DaySums:
        return cls(names=tuple(data["sums"]), days={int(day): tuple(sums) for day, sums in data["days"].items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenUsage:
    """A month's usage as a closed folder has it, by day."""

    path: Path

    def usage(self, edges: Sequence[int], by: Sequence[str] = KEYS, *, sums: Sequence[str] = meter.SUMS) -> pa.Table:
        """As `Ledger.usage`; edges are starts of days of the time zone that the month was closed in.

        Raises LedgerError where the file can't be read.
        """
        try:
            return add_up([self.path], edges, by, {}, sums)
        except (OSError, pa.ArrowException) as failure:
            raise LedgerError(f"{self.path}: this file of a closed month can't be read: {failure}; put it back from a "
                              "backup of the ledger's folder") from None  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DaysOf:
    """A month's usage of which some days come from one source, and the others from a second.

    days: starts of the days that come from `second`; starts: of all days of the month, its end last.
    """

    first: UsageSource
    second: UsageSource
    days: frozenset[int]
    starts: tuple[int, ...]

    def usage(self, edges: Sequence[int], by: Sequence[str] = KEYS, *, sums: Sequence[str] = meter.SUMS) -> pa.Table:
        """As `Ledger.usage`, of edges that are starts of days; a key and bucket may have a row of each source."""
        found = []
        wanted = [start for start in self.starts[:-1] if edges[0] <= start < edges[-1]]
        for chosen, source in ((False, self.first), (True, self.second)):
            for first, end in _runs([(day in self.days) is chosen for day in wanted]):
                last = wanted[end] if end < len(wanted) else edges[-1]
                cuts = [edge for edge in edges if wanted[first] < edge < last]
                lot = source.usage([wanted[first], *cuts, last], by, sums=sums)
                # A stretch that begins before these days is theirs all the same.
                found.append(lot)
        return pa.concat_tables(found).unify_dictionaries() if found else self.first.usage(edges, by, sums=sums)


@dataclass(frozen=True)
class ClosedMonth:
    """A closed month as its folder has it. ledger: the ledger's folder; sha256: of the manifest."""

    ledger: Path
    month: str
    manifest: Mapping[str, Any]
    sha256: str

    @property
    def folder(self) -> Path:
        return self.ledger / FOLDER / self.month

    @property
    def prices(self) -> Path:
        """The copy of the price book."""
        return self.folder / PRICES

    @property
    def time_zone(self) -> str:
        return str(self.manifest["price_book"]["time_zone"])

    @property
    def currency(self) -> str:
        return str(self.manifest["price_book"]["currency"])

    @property
    def scale(self) -> int:
        return int(self.manifest["price_book"]["statement_scale"])

    @property
    def total(self) -> str:
        """What the month billed, corrections included."""
        return str(self.manifest["totals"]["billed_cost"])

    @cached_property
    def completeness(self) -> dict[str, int]:
        return {str(name): int(value) for name, value in self.manifest["completeness"].items()}

    def about(self) -> tuple[str, ...]:
        """The months whose usage lies in this folder, its own included."""
        return tuple(sorted(self.manifest["usage"]))

    def usage_of(self, month: str) -> FrozenUsage:
        """Usage of this month, or of an earlier one of `about`."""
        return FrozenUsage(path=self.folder / usage_name(month, self.month))

    def sums_of(self, month: str) -> DaySums:
        """The sums by day of `usage_of`."""
        return DaySums.from_data(self.manifest["usage"][month]["by_day"])

    def position_of(self, month: str) -> str:
        """What identifies what the ledger had of the month: a checksum of `Ledger.control_sums`."""
        return str(self.manifest["usage"][month]["position_sha256"])

    def charges(self, columns: Sequence[str] | None = None, *, of_class: str | None = None) -> pa.Table:
        """The rows of the bill, columns as in CHARGE; those that came to CHARGE after the closing are null.

        of_class: only those with this `charge_class`. Raises LedgerError where the file can't be read.
        """
        wanted = _wanted(columns)
        texts = [field.name for field in wanted if field.type == records.TEXT]
        chosen: Any = None if of_class is None else [("charge_class", "=", of_class)]
        with self._readable():
            have = self.columns()
            found = pq.read_table(
                self.folder / CHARGES, columns=[n for n in wanted.names if n in have], read_dictionary=texts,
                filters=chosen,
            )  # fmt: skip
        return _typed(found, wanted)

    def pieces(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The same some ten thousand rows at a time, in their order."""
        wanted = _wanted(columns)
        texts = [field.name for field in wanted if field.type == records.TEXT]
        with self._readable(), pq.ParquetFile(self.folder / CHARGES, read_dictionary=texts) as file:
            have = [name for name in wanted.names if name in file.schema_arrow.names]
            for number in range(file.num_row_groups):
                yield _typed(file.read_row_group(number, columns=have), wanted)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        path = self.folder / CHARGES
        try:
            yield
        except (OSError, pa.ArrowException) as failure:
            raise LedgerError(f"{path}: this file of a closed month can't be read: {failure}; put it back from a "
                              "backup of the ledger's folder") from None  # fmt: skip

    def columns(self) -> tuple[str, ...]:
        """The columns that the frozen charges have."""
        return tuple(pq.read_schema(self.folder / CHARGES).names)


def _wanted(columns: Sequence[str] | None) -> pa.Schema:
    return records.schema([column for column in CHARGE if columns is None or column.name in columns])


def _typed(found: pa.Table, wanted: pa.Schema) -> pa.Table:
    """Charges as they are wanted: columns that were not there are null."""
    arrays = [
        found.column(field.name).cast(field.type)
        if field.name in found.column_names
        else pa.nulls(len(found), field.type)
        for field in wanted
    ]
    return pa.table(arrays, schema=wanted)


def usage_name(month: str, closed: str) -> str:
    """The file of a month's usage in the folder of a closed month."""
    return USAGE if month == closed else f"usage-{month}.parquet"


def closed_months(ledger: Path) -> tuple[ClosedMonth, ...]:
    """All closed months of a ledger, in order. Raises LedgerError for a manifest that can't be read."""
    folder = ledger / FOLDER
    names = sorted(path.name for path in folder.iterdir() if _MONTH.fullmatch(path.name)) if folder.is_dir() else []
    return tuple(_read(ledger, name) for name in names)


def closed_month(ledger: Path, month: str) -> ClosedMonth | None:
    """A closed month; None where it is not closed. Raises LedgerError for a manifest that can't be read."""
    return _read(ledger, month) if _MONTH.fullmatch(month) and (ledger / FOLDER / month).is_dir() else None


def _read(ledger: Path, month: str) -> ClosedMonth:
    path = ledger / FOLDER / month / MANIFEST
    fix = "put the folder back from a backup of the ledger's folder"
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        form = manifest["form"]
        if form != FORM:
            raise LedgerError(f"{path}: a closed month of form {form}; this apicost knows form {FORM}: use the version "
                              "of apicost that closed it, or a later one")  # fmt: skip
        found = ClosedMonth(ledger, month, manifest, hashlib.sha256(content).hexdigest())
        found.time_zone, found.scale, found.total, found.completeness, found.about()
        return found
    except OSError as failure:
        raise LedgerError(f"{path}: can't be read: {failure.strerror}; {fix}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise LedgerError(f"{path}: this manifest is damaged ({failure!r}); {fix}") from None


def latest_usage(months: Sequence[ClosedMonth], month: str) -> ClosedMonth:
    """Which of some closed months, in order, has the usage of one of them as it was known last."""
    return next(closed for closed in reversed(months) if month in closed.about())


# -- writing ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def closing(ledger: Path) -> Iterator[None]:
    """Held while a month is closed: one process at a time. Raises LedgerError while another does.

    Raises OSError where the ledger's folder can't be written.
    """
    folder = ledger / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / LOCK).touch(mode=0o644, exist_ok=True)
    with lock(folder / LOCK) as mine:
        if not mine:
            raise LedgerError(f"{folder}: another process closes a month of this ledger; try again when it has ended")
        for left in folder.glob(f"*{durable.TEMPORARY}"):  # of a closing that was killed
            shutil.rmtree(left)
        yield


def write(ledger: Path, month: str, fill: Callable[[Path], Mapping[str, Any]]) -> ClosedMonth:
    """Close a month: its folder appears whole or not at all. Only within `closing`.

    fill: writes the files into the folder that it is given, and returns the manifest but for `form`, `month`, `files`,
        `previous` and the seal.
    Raises LedgerError where the month is closed already, OSError where the folder can't be written; what `fill`
    raises passes through, and nothing of the month stays.
    """
    final = ledger / FOLDER / month
    if final.exists():
        raise LedgerError(f"{final}: {month} is closed already; a closed month never changes")
    before = closed_months(ledger)
    temporary = final.with_name(final.name + durable.TEMPORARY)
    temporary.mkdir()
    try:
        told = fill(temporary)
        files = sorted(path for path in temporary.iterdir())
        manifest: dict[str, Any] = {
            "form": FORM, "month": month, **told,
            "previous": {"month": before[-1].month, "manifest_sha256": before[-1].sha256} if before else None,
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files},
        }  # fmt: skip
        (temporary / MANIFEST).write_bytes(_sealed(manifest))
        for path in (*files, temporary / MANIFEST):
            path.chmod(0o444)  # no guard, but a reminder for whoever opens it in an editor
            _sync(path)
        durable.sync_folder(temporary)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    durable.sync_folder(final.parent)
    durable.sync_folder(ledger)
    return _read(ledger, month)


def write_usage(path: Path, source: UsageSource, starts: Sequence[int]) -> int:
    """Write a month's usage by day, one day after the other; returns the number of rows."""
    rows = 0
    with pq.ParquetWriter(path, records.schema(records.USAGE), compression="zstd", compression_level=1) as writer:
        for first, end in itertools.pairwise(starts):
            day = source.usage((first, end), KEYS)
            rows += len(day)
            if len(day):
                writer.write_table(day, row_group_size=ROW_GROUP)
    return rows


def write_charges(path: Path, pieces: Iterable[pa.Table]) -> int:
    """Write the rows of a bill; returns their number."""
    rows = 0
    with pq.ParquetWriter(path, records.schema(CHARGE), compression="zstd", compression_level=1) as writer:
        for piece in pieces:
            rows += len(piece)
            writer.write_table(piece)
    return rows


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """A manifest's bytes with the checksum of its content in it."""
    seal = hashlib.sha256(_bytes(manifest)).hexdigest()
    return _bytes({**manifest, _SEAL: seal})


def _bytes(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- checking --------------------------------------------------------------------------------------------------


def problems(months: Sequence[ClosedMonth], closed: ClosedMonth) -> list[str]:
    """What of a closed month's folder is not as it was written, each as a sentence; none is good.

    months: all closed months of the ledger, in order.
    """
    found = []
    content = (closed.folder / MANIFEST).read_bytes()
    bare = {name: value for name, value in closed.manifest.items() if name != _SEAL}
    if content != _sealed(bare):
        found.append(f"{MANIFEST}: is not what was written (its seal is of another content)")
    if closed.manifest.get("month") != closed.month:
        found.append(f"{MANIFEST}: is of {closed.manifest.get('month')}, in the folder of {closed.month}")
    files = closed.manifest.get("files", {})
    for name in sorted({*files, *(path.name for path in closed.folder.iterdir())} - {MANIFEST}):
        path, written = closed.folder / name, files.get(name)
        if written is None:
            found.append(f"{name}: was not there when the month was closed")
        elif not path.is_file():
            found.append(f"{name}: is missing")
        elif sha256(path) != written["sha256"]:
            found.append(f"{name}: is not what was written (SHA-256 {sha256(path)}, not {written['sha256']})")
    at = [month.month for month in months].index(closed.month)
    before = months[at - 1] if at else None
    named = closed.manifest.get("previous")
    if before is None:
        if named is not None:
            found.append(f"chain: follows {named['month']}, and no month before {closed.month} is there")
    elif named is None:
        found.append(f"chain: was the first closed month, and {before.month} is before it")
    elif (named["month"], named["manifest_sha256"]) != (before.month, before.sha256):
        found.append(f"chain: follows {named['month']} with manifest {named['manifest_sha256']}, and there is "
                     f"{before.month} with {before.sha256}")  # fmt: skip
    return found


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Where consecutive true values lie: (first, end)."""
    edges = np.flatnonzero(np.diff(np.array([0, *flags, 0], np.int8)))
    return [(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]
