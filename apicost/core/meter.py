"""Exchanges added up to usage: integer sums per minute and set of dimensions.

Rules of this file:
- Sums are int64 and exact; nothing is averaged, sampled or rounded, but a request's duration to whole ms.
- Every row of the input lands in exactly one row of the output, so `merge` of the usage of any split of a
  batch equals the usage of the whole.
- Rows come out sorted by their keys' values (null first), with dictionaries sorted too: equal input gives
  equal bytes whatever the order of rows or of dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import prompts, records
from apicost.core.grouping import Codes, Groups, Ints
from apicost.core.records import LEGS, Confidence, Role, RowKind
from apicost.core.scopes import Scopes

# Methods of RFC 9110, RFC 5789 and QUERY. Whatever else a client sends is "OTHER", unless a document
# describes it: a client must not be able to make usage rows at will.
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
OTHER = "OTHER"
STATUS_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")

TEXT_KEYS = tuple(c.name for c in records.USAGE_KEYS if c.type == records.TEXT)
SUMS = tuple(c.name for c in records.USAGE_SUMS)
_COPIED_KEYS = tuple(
    k for k in TEXT_KEYS
    if k not in ("method", "path_template", "status_class", "scope", "upstream_scope", "llm_prompt_class")
)  # fmt: skip
_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


def meter(exchanges: pa.Table, scopes: Scopes, *, bucket_s: int = 60) -> pa.Table:
    """Add exchanges up to usage, one row per bucket of time and set of dimensions.

    exchanges: columns as in `records.EXCHANGE`, any order; client addresses still whole, since `scopes`
    is looked up by them.
    bucket_s: length of a bucket; buckets are counted from the epoch.

    Returns columns as in `records.USAGE`, sorted by key. `calls`, `attempts` and `duration_ms` count
    requests alone; overhead and unattributed rows bring bytes and packets. exact + aligned + apportioned +
    unattributed bytes are all wire bytes. Raises records.BatchError when the columns are others.
    """
    records.check(exchanges, records.EXCHANGE, "meter")
    if not exchanges.num_rows:
        return records.empty(records.USAGE)
    minute, keys = keys_of(exchanges, scopes, bucket_s=bucket_s)
    return _add_up(minute, keys, values_of(exchanges).__getitem__)


def keys_of(exchanges: pa.Table, scopes: Scopes, *, bucket_s: int) -> tuple[Ints, dict[str, Codes]]:
    """The start of each row's bucket, and its text keys in the order of `TEXT_KEYS`."""
    ended = _ints(exchanges, "ended_unix_ns")
    minute = ended // (bucket_s * _NS_PER_S) * bucket_s
    keys = {name: records.codes(exchanges, name) for name in _COPIED_KEYS}
    matched = is_value(keys["match_state"], "matched")
    keys["method"] = _bounded_method(records.codes(exchanges, "method"), matched)
    # Only a template of a document is bounded; a null one stays null.
    keys["path_template"] = _where(matched, records.codes(exchanges, "path_template"))
    keys["status_class"] = _status_class(_ints(exchanges, "status"))
    keys["scope"], keys["upstream_scope"] = _scopes(exchanges, scopes)
    keys["llm_prompt_class"] = prompts.classify(_ints(exchanges, "llm_prompt_tokens"))
    return minute, {name: keys[name] for name in TEXT_KEYS}


def merge(usages: Iterable[pa.Table]) -> pa.Table:
    """Add usage batches up to one, rows of equal key together; sorted as `meter` sorts.

    usages: columns as in `records.USAGE`. An empty list gives an empty batch.
    """
    tables = [records.check(usage, records.USAGE, "merge") for usage in usages]
    return coarsen(pa.concat_tables(tables) if tables else records.empty(records.USAGE), bucket_s=1)


def coarsen(usage: pa.Table, *, bucket_s: int) -> pa.Table:
    """The same usage in longer buckets: 900 makes quarter hours of minutes."""
    records.check(usage, records.USAGE, "coarsen")
    if not usage.num_rows:
        return records.empty(records.USAGE)
    minute = _ints(usage, "minute_unix_s") // bucket_s * bucket_s
    keys = {name: records.codes(usage, name) for name in TEXT_KEYS}
    return _add_up(minute, keys, lambda name: _ints(usage, name))


def values_of(exchanges: pa.Table) -> dict[str, Ints]:
    """What each row of EXCHANGE adds to each of `SUMS`."""
    kind = records.numbers(exchanges, "kind")
    request = kind == RowKind.EXCHANGE
    unattributed = kind == RowKind.UNATTRIBUTED
    values: dict[str, Ints] = {
        "calls": request.astype(np.int64),
        "attempts": np.where(request, np.maximum(_ints(exchanges, "attempts"), 0), 0),
    }
    sure: dict[str, Ints] = {}
    app_only_bytes = np.zeros(len(kind), np.int64)
    for leg in LEGS:
        for name in _leg_sums():
            column = _ints(exchanges, f"{leg}_{name}")
            # An app count that is absent is -1: it adds nothing.
            values[f"{leg}_{name}"] = np.maximum(column, 0) if name.endswith("app_bytes") else column
        wire = values[f"{leg}_in_wire_bytes"] + values[f"{leg}_out_wire_bytes"]
        confidence = records.numbers(exchanges, f"{leg}_confidence")
        # Wire bytes without a claim of their own (overhead) were shared out, so they are apportioned.
        exact = ~unattributed & (confidence == Confidence.EXACT)
        aligned = ~unattributed & (confidence == Confidence.ALIGNED)
        rest = ~(unattributed | exact | aligned)
        for name, mask in (
            ("exact", exact),
            ("aligned", aligned),
            ("apportioned", rest),
            ("unattributed", unattributed),
        ):
            part = np.where(mask, wire, 0)
            sure[name] = sure[name] + part if name in sure else part
        app_only = ~unattributed & (confidence == Confidence.APP_ONLY)
        app = values[f"{leg}_in_app_bytes"] + values[f"{leg}_out_app_bytes"]
        app_only_bytes += np.where(app_only, app, 0)
        if leg == "downstream":
            app_only_calls = (app_only & request).astype(np.int64)
            values |= _blocks(exchanges, request, app)
    for name, column in sure.items():
        values[f"{name}_bytes"] = column
    values["app_only_bytes"] = app_only_bytes
    values["app_only_calls"] = app_only_calls
    took_ns = np.maximum(_ints(exchanges, "ended_unix_ns") - _ints(exchanges, "started_unix_ns"), 0)
    values["duration_ms"] = np.where(request, (took_ns + _NS_PER_MS // 2) // _NS_PER_MS, 0)
    for name in ("llm_prompt_tokens", "llm_completion_tokens"):
        values[name] = np.maximum(_ints(exchanges, name), 0)
    # APISIX says 0 where a model's answer has not told its tokens: no prompt has none.
    untold = (values["llm_prompt_tokens"] == 0) | (_ints(exchanges, "llm_completion_tokens") < 0)
    untold &= request & (records.codes(exchanges, "llm_model")[0] >= 0)
    values["llm_calls_without_tokens"] = untold.astype(np.int64)
    return values


def _blocks(exchanges: pa.Table, request: npt.NDArray[np.bool_], app: Ints) -> dict[str, Ints]:
    """Started blocks of each request's app bytes with the client, and the requests of which they are not known."""
    known = (_ints(exchanges, "downstream_in_app_bytes") >= 0) & (_ints(exchanges, "downstream_out_app_bytes") >= 0)
    known &= request
    blocks: dict[str, Ints] = {"calls_without_quanta": (request & ~known).astype(np.int64)}
    for size, name in records.QUANTA.items():
        started = (app + (size - 1)) >> (size.bit_length() - 1)  # sizes are powers of two
        blocks[name] = np.where(known, np.maximum(started, 1), 0)
    return blocks


def _leg_sums() -> list[str]:
    prefix = f"{LEGS[0]}_"
    return [name.removeprefix(prefix) for name in SUMS if name.startswith(prefix)]


def _ints(table: pa.Table, name: str) -> Ints:
    return records.numbers(table, name).astype(np.int64, copy=False)


def is_value(column: Codes, value: str) -> npt.NDArray[np.bool_]:
    """Which rows have this value."""
    codes, values = column
    return codes == values.index(value) if value in values else np.zeros(len(codes), np.bool_)


def _where(mask: npt.NDArray[np.bool_], column: Codes) -> Codes:
    codes, values = column
    return np.where(mask, codes, np.int32(-1)), values


def _bounded_method(column: Codes, matched: npt.NDArray[np.bool_]) -> Codes:
    codes, values = column
    strange = np.array([value not in METHODS for value in values] + [False])  # the last is for code -1: null
    if not strange.any():
        return column
    other = values.index(OTHER) if OTHER in values else len(values)
    return np.where(strange[codes] & ~matched, np.int32(other), codes), [
        *values,
        *([OTHER] * (OTHER not in values)),
    ]


def _status_class(status: Ints) -> Codes:
    hundreds = status // 100
    return np.where((hundreds >= 1) & (hundreds <= 5), hundreds - 1, -1).astype(np.int32), list(STATUS_CLASSES)


def _scopes(exchanges: pa.Table, scopes: Scopes) -> tuple[Codes, Codes]:
    names = list(scopes.names)
    client = scopes.classify(records.numbers(exchanges, "peer_hi"), records.numbers(exchanges, "peer_lo"))
    hi, lo = records.numbers(exchanges, "upstream_peer_hi"), records.numbers(exchanges, "upstream_peer_lo")
    # A leg is there when anything speaks of one; its address may still be unknown (a Unix socket).
    leg = (hi != 0) | (lo != 0) | (records.numbers(exchanges, "upstream_flow") != 0)
    leg |= (_ints(exchanges, "attempts") > 0) | (records.numbers(exchanges, "role") == Role.UPSTREAM)
    return (client, names), (np.where(leg, scopes.classify(hi, lo), np.int32(-1)), names)


def _add_up(minute: Ints, keys: dict[str, Codes], values: Callable[[str], Ints]) -> pa.Table:
    """Group rows by (minute, keys) and sum: columns as in `records.USAGE`, sorted by key.

    values: a sum's name -> its values; asked one by one, so that large batches are not held twice.
    """
    groups = Groups(minute, keys)
    columns = [groups.times(), *(groups.key(name) for name in keys), *(groups.merged(values(name)) for name in SUMS)]
    return pa.Table.from_arrays(columns, schema=records.schema(records.USAGE))
