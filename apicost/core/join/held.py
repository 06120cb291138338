"""Usage lines that wait for their legs: of each only what its row of JOINED will carry.

Rules of this file:
- A table of held lines has the columns of `SCHEMA`, ascending by line_id, in chunks: about one for each step
  that brought lines. Chunks that stay are not copied, and several hundred bytes a line that no row carries
  (the connection's identity, offsets, addresses and times of tries) are not kept.
- What the legs need of a line is taken out when it comes (`downstream_state.Lines`, `Attempts`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.join import joined
from apicost.core.join.segments import I64
from apicost.core.join.upstream_columns import Bool
from apicost.core.records import LINE

LINE_ID = "line_id"
CHUNK_ROWS = 2_048  # chunks that are smaller on average are made one: each costs some 0.2 ms a step
_I64, _I32 = pa.int64(), pa.int32()
_OF_LINE = [*joined.SAME, "started_unix_ns", "log_unix_ns", "header_mono_ns", "request_bytes", "response_bytes"]
_LINE_SCHEMA = records.schema(LINE)
# tries: towards the upstream. attempts_*: app bytes of all of them, what nginx doesn't tell left out.
SCHEMA = pa.schema(
    [
        *(_LINE_SCHEMA.field(name) for name in _OF_LINE),
        pa.field("tries", _I32),
        pa.field("attempts_sent_bytes", _I64),
        pa.field("attempts_received_bytes", _I64),
        pa.field(LINE_ID, _I64),
    ]
)
# Of a line that was given out: whose the overhead is that its flow may still get.
IDENTITY = pa.schema([*(_LINE_SCHEMA.field(name) for name in joined.SAME), pa.field(LINE_ID, _I64)])


def held_of(lines: pa.Table, ids: I64) -> pa.Table:
    """Usage lines, columns as in `records.LINE`, as held lines. ids: one number for each, ascending."""
    return pa.Table.from_arrays(
        [
            *(lines.column(name) for name in _OF_LINE),
            pa.array(_lengths(_lists(lines, "attempt_addr")), _I32),
            pa.array(_sums(_lists(lines, "attempt_sent_bytes"))),
            pa.array(_sums(_lists(lines, "attempt_received_bytes"))),
            pa.array(ids, _I64),
        ],
        schema=SCHEMA,
    )


def split(held: pa.Table, chosen: Bool) -> tuple[pa.Table, pa.Table]:
    """Held lines as (those chosen, in one chunk; the others)."""
    out, rest = [SCHEMA.empty_table()], [SCHEMA.empty_table()]
    end = 0
    for batch in held.to_batches():
        start, end = end, end + batch.num_rows
        table, mask = pa.Table.from_batches([batch]), chosen[start:end]
        if not mask.any():
            rest.append(table)
        elif mask.all():
            out.append(table)
        else:
            out.append(table.filter(pa.array(mask)))
            rest.append(compact(table.filter(pa.array(~mask))))
    kept = pa.concat_tables(rest)
    if len(kept) < CHUNK_ROWS * (len(rest) - 1):
        kept = one_chunk(kept)
    return one_chunk(pa.concat_tables(out)), kept


def identities_of(held: pa.Table, chosen: Bool) -> pa.Table:
    """The identities of the lines chosen."""
    found = [IDENTITY.empty_table()]
    end = 0
    for batch in held.select(IDENTITY.names).to_batches():
        start, end = end, end + batch.num_rows
        if chosen[start:end].any():
            found.append(pa.Table.from_batches([batch]).filter(pa.array(chosen[start:end])))
    return pa.concat_tables(found)


def one_chunk(table: pa.Table) -> pa.Table:
    """The same rows in one chunk, with one dictionary a column."""
    return table.unify_dictionaries().combine_chunks()


def compact(table: pa.Table) -> pa.Table:
    """The same rows with dictionaries that hold only what they use: a carry lives for weeks."""
    if len(table) == 0:
        return table.schema.empty_table()
    table = one_chunk(table)
    for position, field in enumerate(table.schema):
        if not pa.types.is_dictionary(field.type):
            continue
        known: Any = table.column(position).chunk(0)
        if len(known.dictionary) > 1_000 + len(table) // 4:
            plain = table.column(position).cast(field.type.value_type)
            table = table.set_column(position, field, plain.dictionary_encode().cast(field.type))
    return one_chunk(table)


def _lists(lines: pa.Table, name: str) -> Any:
    lists: Any = lines.column(name).combine_chunks()
    return pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) and lists.num_chunks else lists


def _lengths(lists: Any) -> I64:
    if len(lists) == 0:
        return np.zeros(0, np.int64)
    lengths: I64 = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _sums(lists: Any) -> I64:
    """Sum of each list, absent values left out."""
    if len(lists) == 0:
        return np.zeros(0, np.int64)
    values = lists.flatten().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    running = np.concatenate(([0], np.cumsum(np.maximum(values, 0))))
    lengths = _lengths(lists)
    ends = np.cumsum(lengths)
    sums: I64 = running[ends] - running[ends - lengths]
    return sums
