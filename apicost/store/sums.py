"""Usage files added up by bucket of time and keys: the one question that reads a whole month.

Rules of this file:
- Files are read a piece at a time, text as dictionary codes, sums one column after the other: what is held
  is the answer and little else.
- Rows of equal keys are found by integers alone; texts are compared once per dictionary, not once per row.
- Sums are exact: a column that could leave 64 bits raises OverflowError instead of wrapping.
- Files of earlier versions may lack columns: `store/older` says what stands in for them.

Against DuckDB's grouping by text, with one thread: half the CPU time and less memory (docs/benchmarks/ledger.md).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from apicost.core import meter, prompts, records
from apicost.core.rating.money import exact_sum
from apicost.store import older

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PIECE_ROWS = 1 << 17  # read at a time: 1 MB a column,
COLUMNS = 8  # and of so many sums: one by one costs twice the CPU time, all together more memory
_MOST = (1 << 63) - 1
_PLENTY = 1 << 48  # a piece of so much can't fill 64 bits for some ten thousand pieces
_WORD_BITS = 62
_NUMBER_BITS = 31  # there are fewer groups than that: each has 250 B of sums
_DENSE_BITS = 20  # a table of 4 MB says the group of each word up to this width
# What changes slowly over the rows of a file, and what one of these decides, comes first: few distinct beginnings.
_PACKED_ORDER = (
    "llm_model", "node", "match_state", "api", "service_id", "route_id", "operation_id", "method", "path_template",
    "status_class", "upstream_scope", "scope", "consumer", "llm_prompt_class",
)  # fmt: skip
assert sorted(_PACKED_ORDER) == sorted(meter.TEXT_KEYS)


def add_up(
    paths: Sequence[Path],
    edges: Sequence[int],
    by: Sequence[str],
    where: Mapping[str, str | None],
    sums: Sequence[str] = meter.SUMS,
    most: int | None = None,
) -> pa.Table:
    """Rows of usage files in [first edge, last edge), summed by bucket and some keys.

    paths: Parquet files with columns as in `records.USAGE`, text plain or dictionary-encoded.
    edges: unix seconds, ascending; a bucket from each to the next. by: the keys. where: key -> value that rows
        must have, None for rows without one. sums: columns of `records.USAGE_SUMS`, and parts of them (`core/prompts`).
    most: TooManyRows is raised as soon as the answer has more rows than that; None is no limit.

    Returns columns as in `records.USAGE` but for the sums not asked for, then parts; sorted by key, dictionaries
    sorted and of values in use: `minute_unix_s` is the bucket's start, keys not in `by` are null.
    Raises OSError or pa.ArrowException for a file that can't be read, OverflowError where a sum may pass 2**63.
    """
    texts = {name: Texts() for name in dict.fromkeys((*by, *where))}
    chosen = [name for name in _PACKED_ORDER if name in by]
    groups = _Groups(len(chosen) + 1)
    totals = {name: _Total(name) for name in sums}
    for codes, columns_of_piece in read(paths, edges, texts, chosen, where, sums):
        group = groups.numbers(codes)
        if most is not None and len(groups) > most:
            raise TooManyRows(f"usage by {len(by)} keys has more than {most:,} rows")
        for name, values in columns_of_piece:
            totals[name].add(group, values, len(groups))
    *of_text, bucket = groups.codes()
    ranked = {name: texts[name].ranked(code) for name, code in zip(chosen, of_text, strict=True)}
    order = np.lexsort([*(ranked[name][0] for name in reversed(meter.TEXT_KEYS) if name in ranked), bucket])
    columns: dict[str, Any] = {"minute_unix_s": pa.array(np.array(edges, np.int64)[bucket[order]])}
    for name in meter.TEXT_KEYS:
        ranks, distinct = ranked.pop(name, (np.zeros(len(order), np.int32), []))
        columns[name] = records.text(ranks[order] - 1, distinct)
    for name in meter.SUMS:
        if name in totals:
            columns[name] = pa.array(totals.pop(name).values(len(order))[order])
    schema = records.schema([column for column in records.USAGE if column.name in columns])
    for name in list(totals):  # parts
        columns[name] = pa.array(totals.pop(name).values(len(order))[order])
        schema = schema.append(pa.field(name, pa.int64()))
    return pa.table(columns, schema=schema)


class TooManyRows(Exception):
    """An answer is larger than the caller can hold: it can be had in lots (store/lots.py)."""


def read(
    paths: Sequence[Path],
    edges: Sequence[int],
    texts: Mapping[str, Texts],
    chosen: Sequence[str],
    where: Mapping[str, str | None],
    sums: Sequence[str],
) -> Iterator[tuple[list[npt.NDArray[np.integer]], Iterator[tuple[str, Ints]]]]:
    """The rows that `add_up` adds up, a piece at a time: codes of the chosen keys and the bucket, and the sums.

    texts: the values of keys so far, which grow; of `chosen` and of `where`.
    """
    for file, row_groups in _pieces(paths, edges, where):
        picked, codes = _codes(file, row_groups, edges, texts, chosen, where)
        if len(codes[0]):
            yield codes, _sums(file, row_groups, sums, picked)


def _sums(
    file: pq.ParquetFile, row_groups: list[int], sums: Sequence[str], picked: Mask | None
) -> Iterator[tuple[str, Ints]]:
    have = set(file.schema_arrow.names)
    own = [name for name in sums if name in have]
    for first in range(0, len(own), COLUMNS):
        lot = own[first : first + COLUMNS]
        table = file.read_row_groups(row_groups, columns=lot, use_threads=False)
        for name in lot:
            values = _ints(table, name)
            yield name, values if picked is None else values[picked]
    for name in sums:
        if name not in have:
            values = _told(file, row_groups, name)
            yield name, values if picked is None else values[picked]


def _pieces(
    paths: Sequence[Path], edges: Sequence[int], where: Mapping[str, str | None]
) -> Iterator[tuple[pq.ParquetFile, list[int]]]:
    """Row groups to be read together; those that can't have a row of the period or of `where` are passed over."""
    for path in paths:
        footer = pq.read_metadata(path)
        texts = [name for name in meter.TEXT_KEYS if name in footer.schema.names]
        with pq.ParquetFile(path, metadata=footer, read_dictionary=texts) as file:
            piece: list[int] = []
            held = 0
            for number in range(file.num_row_groups):
                of_group = file.metadata.row_group(number)
                if not _may_hold(of_group, file.schema_arrow.names, edges, where):
                    continue
                if piece and held + of_group.num_rows > PIECE_ROWS:
                    yield file, piece
                    piece, held = [], 0
                piece.append(number)
                held += of_group.num_rows
            if piece:
                yield file, piece


def _told(file: pq.ParquetFile, row_groups: list[int], name: str) -> Ints:
    """A sum that a file has no column of its own for: a part of one, or what stands in for one that came later."""
    have = file.schema_arrow.names
    keys = [key for key in ("llm_model", prompts.KEY) if key in have]
    part = prompts.is_part(name)
    sums = (prompts.column_of(name),) if part else older.asked_of_file(name)
    table = file.read_row_groups(row_groups, columns=[*keys, *sums], use_threads=False)
    if part:
        none: tuple[npt.NDArray[np.int32], list[str]] = (np.full(table.num_rows, -1, np.int32), [])
        classes = records.codes(table, prompts.KEY) if prompts.KEY in keys else none
        return np.where(prompts.in_part(name, classes), _ints(table, sums[0]), 0)
    has_model = records.codes(table, "llm_model")[0] >= 0
    return older.stand_in(name, table.num_rows, lambda column: _ints(table, column), has_model)


def _may_hold(group: Any, names: list[str], edges: Sequence[int], where: Mapping[str, str | None]) -> bool:
    """Whether a row group's smallest and largest values leave room for a row that is asked for."""
    wanted = {name: (value, value) for name, value in where.items() if value is not None}
    for name, (low, high) in {"minute_unix_s": (edges[0], edges[-1] - 1), **wanted}.items():
        if name not in names:  # a key that came later: no row of this file has a value
            return False
        known = group.column(names.index(name)).statistics
        if known is not None and known.has_min_max and (known.max < low or known.min > high):
            return False
    return True


def _codes(
    file: pq.ParquetFile,
    row_groups: list[int],
    edges: Sequence[int],
    texts: Mapping[str, Texts],
    chosen: Sequence[str],
    where: Mapping[str, str | None],
) -> tuple[Mask | None, list[npt.NDArray[np.integer]]]:
    """Which rows are asked for (None: all), and their codes: those of the chosen keys, then the bucket."""
    table = file.read_row_groups(row_groups, columns=["minute_unix_s", *texts], use_threads=False)
    bucket = _buckets(_ints(table, "minute_unix_s"), edges)
    picked = (bucket >= 0) & (bucket < len(edges) - 1)
    absent = np.zeros(table.num_rows, np.int32)
    codes = {name: texts[name].codes(table.column(name)) if name in table.column_names else absent for name in texts}
    for name, value in where.items():
        picked &= codes[name] == texts[name].code(value)
    found: list[npt.NDArray[np.integer]] = [*(codes[name] for name in chosen), bucket]
    return (None, found) if picked.all() else (picked, [code[picked] for code in found])


def _buckets(times: Ints, edges: Sequence[int]) -> npt.NDArray[np.int32]:
    """The bucket of each time: -1 before the first edge, len(edges) - 1 from the last one on."""
    first = bisect.bisect_right(edges, int(times.min())) - 1
    last = bisect.bisect_right(edges, int(times.max())) - 1
    if last - first > 8:
        return (np.searchsorted(edges, times, side="right") - 1).astype(np.int32)
    bucket = np.full(len(times), first, np.int32)
    for edge in edges[first + 1 : last + 1]:  # a file holds one UTC day: a cut or two
        bucket += times >= edge
    return bucket


def _ints(table: pa.Table, name: str) -> Ints:
    return records.numbers(table, name).astype(np.int64, copy=False)


class Texts:
    """The values of one text column so far; code 0 is null."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, value: str | None) -> int:
        """-1 for a value not seen."""
        return 0 if value is None else self._codes.get(value, -1)

    def values(self) -> list[str]:
        """The values in the order of their codes, from 1 on."""
        return list(self._codes)

    def codes(self, column: Any) -> npt.NDArray[np.int32]:
        """The codes of a column's rows."""
        codes, values = records.codes(pa.table({"text": column}), "text")
        known = [self._codes.setdefault(value, len(self._codes) + 1) for value in values]
        return np.array([*known, 0], np.int32)[codes]  # the last place serves -1: null

    def ranked(self, codes: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int32], list[str]]:
        """Codes that sort as their values do, 0 for null, and the values from 1 on: those in use alone."""
        names = list(self._codes)
        used = np.flatnonzero(np.bincount(codes, minlength=len(names) + 1)[1:]).tolist()
        used.sort(key=names.__getitem__)
        rank = np.zeros(len(names) + 1, np.int32)
        rank[np.array(used, np.int64) + 1] = np.arange(1, len(used) + 1)
        return rank[codes], [names[number] for number in used]


class _Total:
    """One column's sums by group."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sums = np.zeros(0, np.int64)
        self._bound = 0  # no sum of some of the values so far is further from 0

    def add(self, group: npt.NDArray[np.integer], values: Ints, groups: int) -> None:
        if groups > len(self._sums):
            grown = np.zeros(max(groups, len(self._sums) * 3 // 2), np.int64)
            grown[: len(self._sums)] = self._sums
            self._sums = grown
        largest = max(int(values.max()), -int(values.min()))
        if not largest:
            return
        whole = largest * len(values)
        self._bound += whole if whole < _PLENTY or largest > _MOST // 2 else exact_sum(np.abs(values))
        if self._bound > _MOST:
            raise OverflowError(f"the sum of {self._name} may pass 2**63: its counters are broken")
        np.add.at(self._sums, group, values)

    def values(self, groups: int) -> Ints:
        return self._sums[:groups]


@dataclass(slots=True)
class _Stage:
    """Some columns packed into one word, below the number of what the stages before it hold."""

    columns: list[tuple[int, int, int]]  # (position, shift, mask)
    bits: int
    words: _Words


class _Groups:
    """Distinct rows of codes, numbered from 0 in the order in which they came."""

    def __init__(self, columns: int) -> None:
        self._count = 0
        self._widths = [1] * columns
        self._stages: list[_Stage] = []
        self._lay_out()

    def __len__(self) -> int:
        return len(self._stages[-1].words)

    def numbers(self, codes: Sequence[npt.NDArray[np.integer]]) -> Ints:
        """The number of each row's group. Codes are not negative."""
        wide = [int(code.max()).bit_length() for code in codes]
        if any(a > b for a, b in zip(wide, self._widths, strict=True)):
            before = self.codes()
            # One bit to spare: each widening packs all groups anew.
            self._widths = [b if a <= b else a + 1 for a, b in zip(wide, self._widths, strict=True)]
            self._lay_out()
            self._pack(before, fill=True)
        return self._pack(codes)

    def codes(self) -> list[npt.NDArray[np.int32]]:
        """The codes of each group, by number."""
        found = [np.zeros(0, np.int32)] * len(self._widths)
        chosen: Any = slice(None)
        for stage in reversed(self._stages):
            words = stage.words.by_number()[chosen]
            for position, shift, mask in stage.columns:
                found[position] = ((words >> shift) & mask).astype(np.int32)
            chosen = words >> stage.bits
        return found

    def _lay_out(self) -> None:
        """Empty stages for the present widths: as many columns to each as its word holds."""
        self._stages = []
        columns: list[tuple[int, int, int]] = []
        bits, room = 0, _WORD_BITS
        for position, width in enumerate(self._widths):
            if bits + width > room:
                self._stages.append(_Stage(columns, bits, _Words(bits if not self._stages else _WORD_BITS)))
                columns, bits, room = [], 0, _WORD_BITS - _NUMBER_BITS
            columns = [(at, shift + width, mask) for at, shift, mask in columns]  # the first column is highest
            columns.append((position, 0, (1 << width) - 1))
            bits += width
        self._stages.append(_Stage(columns, bits, _Words(bits if not self._stages else _WORD_BITS)))

    def _pack(self, codes: Sequence[npt.NDArray[np.integer]], *, fill: bool = False) -> Ints:
        """Each row's number; `fill` numbers distinct rows as they stand."""
        number: Ints | None = None
        for stage in self._stages:
            word = np.zeros(len(codes[0]), np.int64) if number is None else number << stage.bits
            for position, shift, _ in stage.columns:
                word |= codes[position].astype(np.int64) << shift
            if fill and stage is self._stages[-1]:
                stage.words.fill(word)
            else:
                number = stage.words.numbers(word)
        return np.zeros(0, np.int64) if number is None else number


class _Words:
    """Distinct words, numbered from 0 in the order in which they came. `bits`: the width of all of them."""

    def __init__(self, bits: int) -> None:
        self._sorted = np.zeros(0, np.int64)
        self._number = np.zeros(0, np.int64)  # of each in `_sorted`
        self._table = np.full(1 << bits, -1, np.int32) if bits <= _DENSE_BITS else None

    def __len__(self) -> int:
        return len(self._sorted)

    def numbers(self, words: Ints) -> Ints:
        """The number of each word; new ones are taken in."""
        found = self._find(words)
        new = found < 0
        if new.any():
            fresh = np.unique(words[new])
            self._take_in(fresh, np.arange(len(self), len(self) + len(fresh)))
            found[new] = self._find(words[new])
        return found

    def fill(self, words: Ints) -> None:
        """Take in distinct words, each numbered by its place."""
        order = np.argsort(words)
        self._take_in(words[order], order)

    def by_number(self) -> Ints:
        """All words in the order of their numbers."""
        words = np.empty(len(self), np.int64)
        words[self._number] = self._sorted
        return words

    def _find(self, words: Ints) -> Ints:
        """The number of each word, -1 for those not known."""
        if self._table is not None:
            return self._table[words].astype(np.int64)
        if not len(self):
            return np.full(len(words), -1, np.int64)
        at = np.searchsorted(self._sorted, words)
        at[at == len(self)] = 0
        return np.where(self._sorted[at] == words, self._number[at], -1)

    def _take_in(self, words: Ints, numbers: Ints) -> None:
        """`words` sorted and not known."""
        if self._table is not None:
            self._table[words] = numbers
        at = np.searchsorted(self._sorted, words)
        self._sorted = np.insert(self._sorted, at, words)
        self._number = np.insert(self._number, at, numbers)
