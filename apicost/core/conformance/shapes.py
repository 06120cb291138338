"""Exchanges added up to shapes: usage, told apart further by what a document can speak about.

Rules of this file:
- Every row of the input lands in exactly one shape, bytes without a request too (their `status` is null). So
  shapes added up by the keys of usage *are* usage, byte for byte: `usage_of`.
- All columns merge without order: sums, least, most, first, last, or-ed bits. `merge` of the shapes of any
  split of a batch equals the shapes of the whole.
- Text that clients make up is bounded in length here: paths are folded, query names are at most
  `MOST_NAMES`. How many different texts there may be is bounded when a day is done (`store/daycut`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import grouping, meter, records
from apicost.core.conformance.fold import fold_all, printable
from apicost.core.grouping import Codes, Groups, Ints
from apicost.core.records import RowKind
from apicost.core.scopes import Scopes

MOST_NAMES = 16
LONGEST_NAME = 40
LONGEST_HOST = 253  # RFC 1035, section 2.3.4, without the root dot
LONGEST_TYPE = 100  # RFC 6838, section 4.2, allows 127 for each half; no registered one comes near
CLIENT_BITS = 63
OTHER = "(other)"  # in the ledger: what a finished day did not keep apart, see `store/daycut`

TEXT_KEYS = tuple(c.name for c in records.SHAPE_KEYS if c.type == records.TEXT)
MERGED = tuple(c.name for c in records.SHAPE_MERGED)
_SIZES = np.array([4**k for k in range(32)], np.uint64)
_SIZE_CLASSES = [f"{k:02}" for k in range(32)]


def shapes(exchanges: pa.Table, scopes: Scopes, *, bucket_s: int = 60, stored: pa.Table | None = None) -> pa.Table:
    """Add exchanges up to shapes, one row per bucket of time and set of keys.

    exchanges, scopes, bucket_s: as `meter.meter` has them. stored: the same rows with clients' addresses as they may
        be stored, where those are others: bits of whole addresses would narrow cut ones down.
    Returns columns as in `records.SHAPE`, sorted by key as `meter.meter` sorts.
    """
    records.check(exchanges, records.EXCHANGE, "shapes")
    if not exchanges.num_rows:
        return records.empty(records.SHAPE)
    minute, keys = meter.keys_of(exchanges, scopes, bucket_s=bucket_s)
    request = records.numbers(exchanges, "kind") == RowKind.EXCHANGE
    out_app_bytes = np.where(request, _ints(exchanges, "downstream_out_app_bytes"), -1)
    keys |= {
        "host": _bounded(exchanges, "host", lambda text: printable(text)[:LONGEST_HOST]),
        "path": _folded(exchanges, ~meter.is_value(keys["match_state"], "matched")),
        "query_names": _bounded(exchanges, "query_names", _names),
        "status": _status(_ints(exchanges, "status")),
        "response_source": records.codes(exchanges, "response_source"),
        "request_content_type": _bounded(exchanges, "request_content_type", _media_type),
        "response_content_type": _bounded(exchanges, "response_content_type", _media_type),
        "auth_kinds": records.codes(exchanges, "auth_kinds"),
        "match_flags": records.codes(exchanges, "match_flags"),
        "size_class": _size_class(out_app_bytes),
    }
    values = meter.values_of(exchanges)
    values["first_unix_ns"] = values["last_unix_ns"] = _ints(exchanges, "ended_unix_ns")
    values["least_out_app_bytes"] = values["most_out_app_bytes"] = out_app_bytes
    peers = exchanges if stored is None else stored
    bits = client_bits(records.numbers(peers, "peer_hi"), records.numbers(peers, "peer_lo"))
    values["clients"] = np.where(request, bits, 0)
    return _add_up(minute, keys, values.__getitem__)


def merge(tables: Iterable[pa.Table], *, bucket_s: int = 1) -> pa.Table:
    """Shapes put together, rows of equal key in one; in longer buckets if wanted. Sorted as `shapes` sorts."""
    checked = [records.check(table, records.SHAPE, "merge of shapes") for table in tables]
    whole = pa.concat_tables(checked) if checked else records.empty(records.SHAPE)
    if not whole.num_rows:
        return records.empty(records.SHAPE)
    minute = _ints(whole, "minute_unix_s") // bucket_s * bucket_s
    keys = {name: records.codes(whole, name) for name in TEXT_KEYS}
    return _add_up(minute, keys, lambda name: _ints(whole, name))


def usage_of(shape: pa.Table) -> pa.Table:
    """What `meter.meter` makes of the exchanges that these shapes were made of.

    shape: as `shapes` and `merge` return it: the keys of usage come first in its order, so that the rows of one
    row of usage lie together.
    """
    records.check(shape, records.SHAPE, "usage of shapes")
    if not shape.num_rows:
        return records.empty(records.USAGE)
    minute = _ints(shape, "minute_unix_s")
    keys = {name: records.codes(shape, name) for name in meter.TEXT_KEYS}
    begins = np.zeros(len(minute), np.bool_)
    begins[0] = True
    begins[1:] |= minute[1:] != minute[:-1]
    for codes, _ in keys.values():
        begins[1:] |= codes[1:] != codes[:-1]
    starts = np.flatnonzero(begins)
    columns: list[pa.Array] = [pa.array(minute[starts])]
    columns += [grouping.text_in_use(codes[starts], values) for codes, values in keys.values()]
    columns += [pa.array(np.add.reduceat(_ints(shape, name), starts)) for name in meter.SUMS]
    return pa.Table.from_arrays(columns, schema=records.schema(records.USAGE))


def client_bits(hi: npt.NDArray[np.generic], lo: npt.NDArray[np.generic]) -> Ints:
    """One of 63 bits for each address, the same in every process; 0 where the address is unknown (zeros).

    The hash is splitmix64's finaliser over both halves (Steele, Lea, Flood: "Fast splittable pseudorandom number
    generators", 2014): neighbouring addresses get unrelated bits.
    """
    upper, lower = hi.astype(np.uint64, copy=False), lo.astype(np.uint64, copy=False)
    mixed = _mix(_mix(upper) + lower)
    bits = np.left_shift(np.int64(1), (mixed % np.uint64(CLIENT_BITS)).astype(np.int64))
    return np.where((upper | lower) != 0, bits, 0)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)  # wraps around: arrays of unsigned integers do so silently
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _add_up(minute: Ints, keys: dict[str, Codes], values: Callable[[str], Ints]) -> pa.Table:
    """Group rows by (minute, keys): columns as in `records.SHAPE`, sorted by key. values: a column's name -> values."""
    groups = Groups(minute, {name: keys[name] for name in TEXT_KEYS})
    columns = [groups.times(), *(groups.key(name) for name in TEXT_KEYS)]
    columns += [groups.merged(values(name)) for name in meter.SUMS]
    # -1 stands for "no request", which is no size: unsigned it is the most of all and loses every comparison.
    least = groups.merged(values("least_out_app_bytes").view(np.uint64), np.minimum)
    merged = {
        "first_unix_ns": groups.merged(values("first_unix_ns"), np.minimum),
        "last_unix_ns": groups.merged(values("last_unix_ns"), np.maximum),
        "least_out_app_bytes": least.view(pa.int64()),
        "most_out_app_bytes": groups.merged(values("most_out_app_bytes"), np.maximum),
        "clients": groups.merged(values("clients"), np.bitwise_or),
    }
    columns += [merged[name] for name in MERGED]
    return pa.Table.from_arrays(columns, schema=records.schema(records.SHAPE))


def _ints(table: pa.Table, name: str) -> Ints:
    return records.numbers(table, name).astype(np.int64, copy=False)


def _bounded(table: pa.Table, name: str, change: Callable[[str], str]) -> Codes:
    """A TEXT column with its values changed; as it is where nothing would change."""
    codes, values = records.codes(table, name)
    after = [change(value) for value in values]
    return (codes, values) if after == values else _renumbered(codes, after)


def _folded(table: pa.Table, where: npt.NDArray[np.bool_]) -> Codes:
    """The column `path` folded in some rows, and null in the others.

    Only values in use there are looked at: a batch may have as many paths as requests, most of them matched.
    """
    column: Any = table.column("path").unify_dictionaries().combine_chunks()
    codes: npt.NDArray[np.int32] = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    codes = np.where(where, codes, np.int32(-1))
    used = np.unique(codes)
    used = used[used >= 0]
    places, after = fold_all(column.dictionary.take(pa.array(used)))
    return _renumbered(np.append(places, np.int32(-1))[np.where(codes >= 0, np.searchsorted(used, codes), -1)], after)


def _renumbered(codes: npt.NDArray[np.integer], values: list[str]) -> Codes:
    """Codes of values that may repeat as codes of distinct values."""
    number: dict[str, int] = {}
    of_code = np.array([*(number.setdefault(value, len(number)) for value in values), -1], np.int32)
    return of_code[codes], list(number)


def _names(text: str) -> str:
    """At most `MOST_NAMES` names of `LONGEST_NAME` characters, each once."""
    text = printable(text)
    if len(text) <= LONGEST_NAME and text.count(",") < MOST_NAMES:
        return text
    names = dict.fromkeys(name[:LONGEST_NAME] for name in text.split(","))
    return ",".join(list(names)[:MOST_NAMES])


def _media_type(text: str) -> str:
    return printable(text.lower())[:LONGEST_TYPE]  # RFC 9110, section 8.3.1: case says nothing


def _status(status: Ints) -> Codes:
    found, codes = np.unique(status, return_inverse=True)
    known = found >= 0
    return (codes - int((~known).sum())).clip(-1).astype(np.int32), [f"{value:03}" for value in found[known]]


def _size_class(size: Ints) -> Codes:
    # searchsorted gives -1 for none: 0 bytes have no class, an absent count (-1) neither.
    return (np.searchsorted(_SIZES, size.clip(0).astype(np.uint64), side="right") - 1).astype(np.int32), _SIZE_CLASSES
