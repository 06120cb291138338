"""Usage lines -> attempts: one row for each try towards a backend."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.core import records
from apicost.core.join.upstream_columns import I32, I64, U64, Bool, Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts(Columns):
    """One row for each try of a request towards a backend. Absent times and counts are -1.

    line_id: the caller's stable number of the usage line; (line_id, try_no) is unique.
    addr_hi, addr_lo, port: the backend; 0, 0, 0 where nginx names a Unix socket or a group, not an address.
    sent_bytes, received_bytes: app bytes towards and from the backend.
    access_mono_ns, header_mono_ns, log_mono_ns: of the line, not of the try.
    tls: the backend is spoken to over TLS.
    """

    line_id: I64
    try_no: I32
    n_tries: I32
    addr_hi: U64
    addr_lo: U64
    port: I32
    sent_bytes: I64
    received_bytes: I64
    status: I32
    access_mono_ns: I64
    header_mono_ns: I64
    log_mono_ns: I64
    connect_ms: I64
    response_ms: I64
    worker_pid: I32
    tls: Bool


def attempts_of(lines: pa.Table, line_id: npt.NDArray[np.int64]) -> Attempts:
    """Each try of each line, in the order of the lines and of the tries.

    lines: columns as in `records.LINE`; only those that begin with `attempt_`, the monotonic times,
    worker_pid and upstream_scheme are read.
    line_id: one number for each line.

    A list that is shorter than the list of addresses (a field that nginx left out) gives -1 for what it lacks.
    """
    addresses = _list(lines, "attempt_addr")
    sizes = pc.list_value_length(addresses).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = addresses.flatten()
    row = np.repeat(np.arange(len(lines)), sizes)
    try_no = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    high, low, port = _parsed(flat)

    def per_try(name: str) -> npt.NDArray[np.int64]:
        return _aligned(_list(lines, name), sizes, row, try_no)

    def per_line(name: str) -> npt.NDArray[Any]:
        values = records.numbers(lines, name)
        return values if len(row) == len(values) and sizes.max(initial=0) <= 1 else values[row]

    code, schemes = records.codes(lines.select(["upstream_scheme"]), "upstream_scheme")
    secure = np.array([*(scheme in ("https", "grpcs") for scheme in schemes), False])
    return Attempts(
        line_id=np.asarray(line_id, np.int64)[row],
        try_no=try_no.astype(np.int32),
        n_tries=sizes[row].astype(np.int32),
        addr_hi=high,
        addr_lo=low,
        port=port,
        sent_bytes=per_try("attempt_sent_bytes"),
        received_bytes=per_try("attempt_received_bytes"),
        status=per_try("attempt_status").astype(np.int32),
        access_mono_ns=per_line("access_mono_ns").astype(np.int64, copy=False),
        header_mono_ns=per_line("header_mono_ns").astype(np.int64, copy=False),
        log_mono_ns=per_line("log_mono_ns").astype(np.int64, copy=False),
        connect_ms=per_try("attempt_connect_ms"),
        response_ms=per_try("attempt_response_ms"),
        worker_pid=per_line("worker_pid").astype(np.int32, copy=False),
        tls=secure[code][row] if len(row) else np.zeros(0, np.bool_),
    )


def _list(lines: pa.Table, name: str) -> Any:
    column = lines.column(name)
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if len(column)
        else (pa.array([], column.type))
    )


def _aligned(
    lists: Any, sizes: npt.NDArray[np.int64], row: npt.NDArray[np.int64], try_no: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The values of a list column, one for each try; -1 where the line's list is too short or the value null."""
    own = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    if np.array_equal(own, sizes):
        return values
    starts = np.cumsum(own) - own
    there = try_no < own[row]
    result = np.full(len(row), -1, np.int64)
    result[there] = values[(starts[row] + try_no)[there]]
    return result


def _parsed(addresses: Any) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    """ADDR:PORT texts as numbers; each distinct text is read once."""
    coded = addresses.dictionary_encode() if not isinstance(addresses, pa.DictionaryArray) else addresses
    code = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    distinct = [address_of(text) for text in coded.dictionary.to_pylist()]
    high = np.array([*(a[0] for a in distinct), 0], np.uint64)
    low = np.array([*(a[1] for a in distinct), 0], np.uint64)
    port = np.array([*(a[2] for a in distinct), 0], np.int32)
    return high[code], low[code], port[code]


def address_of(text: str | None) -> tuple[int, int, int]:
    """`10.0.0.1:80` or `[2001:db8::1]:80` as (upper half, lower half, port); IPv4 is mapped.

    Anything else, such as `unix:/run/backend.sock` or the name of a group, is (0, 0, 0).
    """
    host, _, port = (text or "").rpartition(":")
    if not port.isdecimal() or not port.isascii() or int(port) > 65_535:
        return 0, 0, 0
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return 0, 0, 0
    number = int(address) if address.version == 6 else int(address) | 0xFFFF << 32
    return number >> 64, number & 0xFFFF_FFFF_FFFF_FFFF, int(port)
