"""Columns of a usage batch, brought into the form that `records.LINE` promises.

Rules of this file:
- Work is done on a column's distinct values, never on its rows: a batch has few hosts and many rows.
- Absent is null. What can't be understood is contained (replaced by a value that claims nothing) and its
  rows are counted, so that the call itself is kept.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.core import records

# Client-made texts that may be long; the others are names from the gateway's configuration.
PATHS = frozenset({"path", "upstream_path", "query_names"})
ATTEMPT_COLUMNS = (
    "upstream_addr",
    "upstream_status",
    "upstream_bytes_sent",
    "upstream_bytes_received",
    "upstream_connect_time",
    "upstream_response_time",
)
MAX_QUERY_NAMES = 32
MORE_NAMES = "(more)"  # stands for the names beyond MAX_QUERY_NAMES
MAX_TRY_MS = (1 << 31) - 1  # 24 days; longer tries are shown as this
MAX_TRY_BYTES = 1 << 53
MAX_STATUS = 999

_HEX = np.zeros(256, bool)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = True

_Array = Any  # pyarrow's stubs don't tell dictionary arrays from others


def recode(array: _Array, change: Callable[[str], str | None]) -> _Array:
    """A TEXT array with `change` applied to its distinct values; None becomes null."""
    before = array.dictionary.to_pylist()
    after = [change(value) for value in before]
    if after == before:
        return array
    codes, distinct = _number(after)
    return records.text(_pick(codes, array), distinct)


def cut_long(array: _Array, limit_bytes: int, instead: str) -> tuple[_Array, int]:
    """Replace values longer than a limit; also says how many rows had one."""
    lengths = pc.binary_length(array.dictionary).to_numpy(zero_copy_only=False)
    if not len(lengths) or lengths.max() <= limit_bytes:
        return array, 0
    rows = int(_pick((lengths > limit_bytes).astype(np.int32), array, absent=0).sum())
    return recode(array, lambda text: instead if len(text.encode()) > limit_bytes else text), rows


def hosts(array: _Array, tls_version: _Array) -> _Array:
    """Host names in lower case, without :443 on TLS connections and :80 on others."""
    before = array.dictionary.to_pylist()
    if not any(text.endswith((":80", ":443")) or text != text.lower() for text in before):
        return array
    plain = [text.lower().removesuffix(":80") or None for text in before]
    tls = [text.lower().removesuffix(":443") or None for text in before]
    codes, distinct = _number(plain + tls)
    is_tls = tls_version.indices.is_valid().to_numpy(zero_copy_only=False)
    both = np.where(is_tls, _pick(codes[len(plain) :], array), _pick(codes[: len(plain)], array))
    return records.text(both, distinct)


def media_types(array: _Array) -> _Array:
    """Media types in lower case, without parameters."""
    return recode(array, lambda text: text.partition(";")[0].strip().lower() or None)


def query_names(array: _Array) -> _Array:
    """Names of query parameters: sorted, each once, comma-separated, at most MAX_QUERY_NAMES.

    A value that the gateway failed to cut out goes no further than here.
    """
    return recode(array, _names)


def _names(text: str) -> str | None:
    names = {part.partition("=")[0].replace(",", "%2C") for part in text.split("&")}
    names.discard("")
    kept = sorted(names)
    if len(kept) > MAX_QUERY_NAMES:
        kept = [*kept[:MAX_QUERY_NAMES], MORE_NAMES]
    return ",".join(kept) or None


def request_ids(array: _Array) -> tuple[_Array, int]:
    """Request ids as they are where they have 32 hex digits, else null; also how many had not."""
    rows = len(array)
    if array.null_count == 0 and array.offset == 0:
        offsets = np.frombuffer(array.buffers()[1], np.int32, rows + 1)
        if offsets[-1] == 32 * rows and (np.diff(offsets) == 32).all():
            digits = np.frombuffer(array.buffers()[2] or b"", np.uint8, 32 * rows)
            if _HEX[digits].all():
                return array, 0
    good = pc.match_substring_regex(array, "^[0-9a-f]{32}$")
    bad = int(pc.sum(pc.cast(pc.invert(good), pa.int64())).as_py() or 0)
    return (pc.if_else(good, array, pa.scalar(None, pa.string())) if bad else array), bad


def addresses(array: _Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], int]:
    """Addresses as two halves of 128 bits, IPv4 mapped; 0 where absent, `unix:` or not an address.

    The third is the number of rows that were not an address.
    """
    texts = array.dictionary.to_pylist()
    high = np.zeros(len(texts) + 1, np.uint64)  # the last slot is for absent
    low = np.zeros(len(texts) + 1, np.uint64)
    bad = np.zeros(len(texts), np.int32)
    for code, text in enumerate(texts):
        try:
            if ":" not in text:
                packed = socket.inet_pton(socket.AF_INET, text)
                low[code] = 0xFFFF_0000_0000 | int.from_bytes(packed)
            elif not text.startswith("unix:"):
                packed = socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
                high[code], low[code] = int.from_bytes(packed[:8]), int.from_bytes(packed[8:])
        except (OSError, ValueError):
            bad[code] = 1
    indices = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    bad_rows = int(_pick(bad, array, absent=0).sum()) if bad.any() else 0
    return high[indices], low[indices], bad_rows


def attempts(columns: Sequence[_Array]) -> dict[str, _Array] | None:
    """The attempt_* columns of LINE from nginx's upstream variables, in the order of ATTEMPT_COLUMNS.

    One entry per try; "-" is -1 (null for the address). None when a row's columns differ in their number of
    tries or hold something else: `careful.py` then mends the line.
    """
    lists = [_tries(column) for column in columns]
    first = lists[0][0]
    if any(not np.array_equal(first, offsets) for offsets, _ in lists[1:]):
        return None
    offsets = pa.array(first, pa.int32())
    texts = [values for _, values in lists]
    try:
        made = {
            "attempt_addr": _without_dash(texts[0]),
            "attempt_status": _counts(texts[1], MAX_STATUS).cast(pa.int16()),
            "attempt_sent_bytes": _counts(texts[2], MAX_TRY_BYTES),
            "attempt_received_bytes": _counts(texts[3], MAX_TRY_BYTES),
            "attempt_connect_ms": _milliseconds(texts[4]),
            "attempt_response_ms": _milliseconds(texts[5]),
        }
    except (pa.ArrowInvalid, ValueError):
        return None
    return {name: pa.ListArray.from_arrays(offsets, values) for name, values in made.items()}


def _tries(column: _Array) -> tuple[npt.NDArray[np.int32], _Array]:
    """Offsets and texts of the tries of each row; absent is no try."""
    if column.type != pa.string():  # no row had a value
        column = column.cast(pa.string())
    if not _has(column, b" "):
        texts = column.drop_null()
        counts = column.is_valid().to_numpy(zero_copy_only=False)
    else:
        split = pc.split_pattern(pc.replace_substring(column, " : ", ", "), ", ")
        counts = split.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        texts = split.flatten()
    offsets = np.zeros(len(column) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    return offsets, texts


def _without_dash(texts: _Array) -> _Array:
    if not _has(texts, b"-"):
        return texts
    return pc.if_else(pc.equal(texts, pa.scalar("-")), pa.scalar(None, pa.string()), texts)


def _counts(texts: _Array, most: int) -> _Array:
    """Integers, -1 for "-". Raises ArrowInvalid or ValueError for anything else."""
    known = _without_dash(texts).cast(pa.int64())
    _bounded(known, most)
    return known.fill_null(-1)


def _milliseconds(texts: _Array) -> _Array:
    """Seconds with decimals to milliseconds, -1 for "-". Raises as `_counts`."""
    known = _without_dash(texts).cast(pa.float64())
    _bounded(known, MAX_TRY_BYTES)
    seconds = known.fill_null(-1e-3).to_numpy(zero_copy_only=False)
    return pa.array(np.minimum(np.rint(seconds * 1e3), MAX_TRY_MS).astype(np.int32))


def _bounded(known: _Array, most: int) -> None:
    values = known.drop_null().to_numpy(zero_copy_only=False) if known.null_count else known.to_numpy()
    if not ((values >= 0) & (values <= most)).all():  # also catches NaN
        raise ValueError(f"a value is not between 0 and {most}")


def _has(column: _Array, byte: bytes) -> bool:
    """Whether any value of a string array has this byte; may look at a few bytes too many."""
    data = column.buffers()[2]
    return data is not None and bool((np.frombuffer(data, np.uint8) == byte[0]).any())


def _number(texts: Sequence[str | None]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Codes of texts among their distinct values, -1 for None."""
    place: dict[str, int] = {}
    codes = [-1 if text is None else place.setdefault(text, len(place)) for text in texts]
    return np.array(codes, np.int32), list(place)


def _pick(codes: npt.NDArray[np.int32], array: _Array, absent: int = -1) -> npt.NDArray[np.int32]:
    """codes[index] for each row of a TEXT array, `absent` for null."""
    table = np.append(codes, np.int32(absent))  # index -1 is the last
    picked: npt.NDArray[np.int32] = table[array.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return picked
