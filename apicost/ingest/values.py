"""Columns of a usage batch, brought into the form that `records.LINE` promises.

Rules of this file:
- Work is done on a column's distinct values, never on its rows: a batch has few hosts and many rows.
- Absent is null. What can't be understood is contained (replaced by a value that claims nothing) and its
  rows are counted, so that the call itself is kept.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    is_tls = _valid(tls_version.indices)
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
    quads, is_quad = _dotted_quads(array.dictionary)
    high = np.zeros(len(quads) + 1, np.uint64)  # the last slot is for absent
    low = np.append(quads, np.uint64(0))
    bad = np.zeros(len(quads), np.int32)
    for code in np.flatnonzero(~is_quad).tolist():
        text = array.dictionary[code].as_py()
        if text.startswith("unix:"):
            continue
        try:
            packed = socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
        except (OSError, ValueError):
            bad[code] = 1
            continue
        high[code], low[code] = int.from_bytes(packed[:8]), int.from_bytes(packed[8:])
    indices = plain(array.indices, -1)
    bad_rows = int(_pick(bad, array, absent=0).sum()) if bad.any() else 0
    return high[indices], low[indices], bad_rows


def _dotted_quads(texts: _Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """IPv4 addresses in mapped form, and which texts were one (as strict as inet_pton).

    All of a batch at once: its clients are as many as its lines, and one call each would cost a tenth of the
    whole reading.
    """
    _, offset_buffer, data_buffer = texts.buffers()
    count = len(texts)
    quads, good = np.zeros(count, np.uint64), np.zeros(count, bool)
    if not count:
        return quads, good
    offsets = np.frombuffer(offset_buffer, np.int32, texts.offset + count + 1)[texts.offset :].astype(np.int64)
    data = np.frombuffer(data_buffer or b"", np.uint8)[: offsets[-1]]
    digits = data - np.uint8(48)  # wraps for what is below "0"
    others = np.flatnonzero(digits > 9)
    places = np.searchsorted(others, offsets)
    likely = np.flatnonzero(np.diff(places) == 3)
    dots = others[places[likely][:, None] + np.arange(3)]
    begins = np.concatenate([offsets[likely][:, None], dots + 1], axis=1)
    lengths = np.concatenate([dots, offsets[likely + 1][:, None]], axis=1) - begins
    right = (data[dots] == 46).all(axis=1) & ((lengths >= 1) & (lengths <= 3)).all(axis=1)
    likely, begins, lengths = likely[right], begins[right], lengths[right]
    octets = np.zeros(begins.shape, np.int64)
    for place in range(3):
        inside = lengths > place
        octets = np.where(inside, octets * 10 + digits[np.where(inside, begins + place, 0)], octets)
    leading_zero = (lengths > 1) & (digits[begins] == 0)
    right = ((octets <= 255) & ~leading_zero).all(axis=1)
    likely, octets = likely[right], octets[right].astype(np.uint64)
    good[likely] = True
    shifts = np.array([24, 16, 8, 0], np.uint64)
    quads[likely] = np.uint64(0xFFFF_0000_0000) | (octets << shifts).sum(axis=1, dtype=np.uint64)
    return quads, good


def attempts(columns: Sequence[_Array]) -> dict[str, _Array] | None:
    """The attempt_* columns of LINE from nginx's upstream variables, in the order of ATTEMPT_COLUMNS.

    One entry per try; "-" is -1 (null for the address). None when a row's columns differ in their number of
    tries or hold something else: `careful.py` then mends the line.
    """
    tries = [_Tries.of(column) for column in columns]
    rows = tries[0].rows
    if any(not np.array_equal(rows, other.rows) for other in tries[1:]):
        return None
    try:
        made = {
            "attempt_addr": _names_of(tries[0]),
            "attempt_status": pa.array(_counts(tries[1], MAX_STATUS).astype(np.int16)),
            "attempt_sent_bytes": pa.array(_counts(tries[2], MAX_TRY_BYTES)),
            "attempt_received_bytes": pa.array(_counts(tries[3], MAX_TRY_BYTES)),
            "attempt_connect_ms": pa.array(_milliseconds(tries[4])),
            "attempt_response_ms": pa.array(_milliseconds(tries[5])),
        }
    except (pa.ArrowInvalid, ValueError):
        return None
    offsets: Any = pa.array(rows)
    return {name: pa.ListArray.from_arrays(offsets, values) for name, values in made.items()}


@dataclass(frozen=True, slots=True)
class _Tries:
    """A column of texts such as "502, 200", taken apart.

    rows: where each row's tries begin, and the end. starts: the same for each try's bytes in `data`.
    """

    rows: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    data: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, column: _Array, uniform: bool = False) -> _Tries:
        """Absent is no try. Works on the column's buffers: a few NumPy calls whatever the rows hold.

        uniform: every separator is ", " (nginx writes " : " between internal redirects).
        """
        _, offset_buffer, data_buffer = column.buffers()
        count = len(column)
        offsets = np.frombuffer(offset_buffer, np.int32, count + 1)
        data = np.frombuffer(data_buffer or b"", np.uint8)[: offsets[-1]]
        blanks = np.flatnonzero(data == 32)
        if not uniform and len(blanks) and (data[np.minimum(blanks + 1, len(data) - 1)] == 58).any():  # " :"
            return cls.of(pc.replace_substring(column, " : ", ", "), uniform=True)
        present = _valid(column)
        each = present.astype(np.int32)
        starts = offsets[:-1][present]
        cuts = blanks[(blanks > 0) & (data[blanks - 1] == 44)] - 1  # where ", " stands
        if len(cuts):
            keep = np.ones(len(data), bool)
            keep[cuts] = keep[cuts + 1] = False
            before = np.searchsorted(cuts, offsets)  # separators before each row
            each += np.diff(before).astype(np.int32)
            inner = cuts - 2 * np.arange(len(cuts))
            starts = np.sort(np.concatenate([(offsets - 2 * before)[:-1][present], inner]))
            data = data[keep]
        rows = np.zeros(count + 1, np.int32)
        np.cumsum(each, out=rows[1:])
        return cls(rows, np.append(starts, len(data)).astype(np.int32), data)

    @property
    def dashes(self) -> npt.NDArray[np.bool_]:
        """Which tries are "-"."""
        found: npt.NDArray[np.bool_] = np.diff(self.starts) == 1
        found[found] = self.data[self.starts[:-1][found]] == 45
        return found

    def texts(self, data: npt.NDArray[np.uint8] | None = None) -> _Array:
        """The tries as an array of strings."""
        starts: Any = self.starts
        content: Any = self.data if data is None else data
        return pa.StringArray.from_buffers(len(starts) - 1, pa.py_buffer(starts), pa.py_buffer(content))


def _names_of(tries: _Tries) -> _Array:
    dashes = tries.dashes
    if not dashes.any():
        return tries.texts()
    return pc.if_else(pa.array(dashes), pa.scalar(None, pa.string()), tries.texts())


def _numbers(tries: _Tries, kind: pa.DataType, most: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The tries as numbers, and which are "-" (their number means nothing).

    Raises ArrowInvalid or ValueError when one is neither.
    """
    dashes = tries.dashes
    data = tries.data
    if dashes.any():
        data = data.copy()
        data[tries.starts[:-1][dashes]] = 48  # a zero in their place
    values = tries.texts(data).cast(kind).to_numpy(zero_copy_only=False)
    if not ((values >= 0) & (values <= most)).all():  # also catches NaN
        raise ValueError(f"a value is not between 0 and {most}")
    return values, dashes


def _counts(tries: _Tries, most: int) -> npt.NDArray[np.int64]:
    values, dashes = _numbers(tries, pa.int64(), most)
    return np.where(dashes, -1, values)


def _milliseconds(tries: _Tries) -> npt.NDArray[np.int32]:
    seconds, dashes = _numbers(tries, pa.float64(), MAX_TRY_BYTES)
    return np.where(dashes, -1, np.minimum(np.rint(seconds * 1e3), MAX_TRY_MS)).astype(np.int32)


def plain(array: _Array, absent: int) -> npt.NDArray[Any]:
    """A numeric column as NumPy, `absent` in place of null. Reads the buffers: a tenth of `fill_null`'s time."""
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype(), len(array) + array.offset)
    values = values[array.offset :]
    return np.where(_valid(array), values, values.dtype.type(absent)) if array.null_count else values


def _valid(array: _Array) -> npt.NDArray[np.bool_]:
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.ones(len(array), bool)
    end = array.offset + len(array)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=end, bitorder="little")
    return bits[array.offset :].view(bool)


def _number(texts: Sequence[str | None]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Codes of texts among their distinct values, -1 for None."""
    place: dict[str, int] = {}
    codes = [-1 if text is None else place.setdefault(text, len(place)) for text in texts]
    return np.array(codes, np.int32), list(place)


def _pick(codes: npt.NDArray[np.int32], array: _Array, absent: int = -1) -> npt.NDArray[np.int32]:
    """codes[index] for each row of a TEXT array, `absent` for null."""
    table = np.append(codes, np.int32(absent))  # index -1 is the last
    picked: npt.NDArray[np.int32] = table[plain(array.indices, -1)]
    return picked
