"""Segment files of the spool: Arrow IPC streams, one after the other.

Each block is whole by itself (schema, dictionaries, rows), so that a file is readable up to any block's end.
LZ4, as measured for 1,000 lines: 0.35 ms and 177 kB; uncompressed 0.08 ms and 374 kB; zstd 1.9 ms and 94 kB.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from apicost.core import records

LINES, FLOWS = "lines", "flows"
SCHEMAS = {LINES: records.schema(records.LINE), FLOWS: records.schema(records.FLOW)}
SUFFIX = ".arrows"
_WRITE = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ = pa.ipc.IpcReadOptions(use_threads=False)


def block_of(kind: str, tables: Sequence[pa.Table]) -> pa.Buffer:
    """Tables of one kind as one block."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMAS[kind], options=_WRITE) as writer:
        for table in tables:
            writer.write_table(table)
    return sink.getvalue()


def create(path: Path, block: pa.Buffer) -> int:
    """Make a file with a first block, durable; returns its descriptor. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        append(descriptor, block)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def append(descriptor: int, block: pa.Buffer) -> None:
    """Add a block, durable. Raises OSError; the file's end is then not to be trusted."""
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fdatasync(descriptor)


def read(path: Path, size: int, rows: int) -> pa.Table:
    """All blocks within the first `size` bytes. Raises OSError or ArrowException when they are damaged."""
    with open(path, "rb") as file:
        content = file.read(size)
    source = pa.BufferReader(content)
    tables = []
    while source.tell() < size:
        with pa.ipc.open_stream(source, options=_READ) as reader:
            tables.append(reader.read_all())
    table = pa.concat_tables(tables)
    if table.num_rows != rows:
        raise OSError(errno.EIO, f"{table.num_rows} rows, expected {rows}")
    return table
