"""The ledger's catalogue (SQLite): its segments, what it has counted, what is still open.

Rules of this file:
- What is in the ledger is what the catalogue lists; a file that it does not list is no part of it.
- One process at a time commits steps (`WRITER_LOCK`), one compacts (`COMPACT_LOCK`), any number reads.
- A reader holds `READERS_LOCK` shared while it uses files of a listing; files that compaction or
  retention took out of the list go only while nobody holds it.
- The ledger lies on a local file system: flock and WAL do not work over most network ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

CATALOGUE = "catalogue.sqlite"
WRITER_LOCK = "writer.lock"
COMPACT_LOCK = "compact.lock"
READERS_LOCK = "readers.lock"
FORM = 2  # user_version of the tables in catalogue.sql
# Forms before that only lack tables: they are read as they are, and get the tables when they are opened for writing.
# 1 had neither shapes nor the operations of documents.
UPGRADED_FORMS = (1,)

DAY_S = 86_400
MINUTE_S = 60
QUARTER_S = 900


class LedgerError(Exception):
    """The ledger can't be used as asked; the message says what stands where and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One Parquet file of the ledger. All its rows lie in one UTC day.

    grain_s: 0 rows as they came, else the length of a usage row's bucket.
    calls, wire_bytes: sums over the rows, to prove a rewrite by.
    rolled: its sums also stand in the rollups of its day.
    """

    kind: str
    grain_s: int
    day_unix_s: int
    name: str
    row_count: int
    bytes: int
    crc32: int
    calls: int = 0
    wire_bytes: int = 0
    rolled: bool = False
    id: int = 0  # given by the catalogue


_COLUMNS = "kind, grain_s, day_unix_s, name, row_count, bytes, crc32, calls, wire_bytes, rolled"


class Catalogue:
    """A connection to one ledger's catalogue. Usable from several threads, one at a time each.

    Raises LedgerError when it can't be opened or its content is damaged, OSError when the disk is full
    or fails (nothing of the transaction stands then).
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, folder: Path, *, wait_s: float = 30.0) -> Catalogue:
        """For writing; creates the ledger where there is none.

        wait_s: how long to wait for another process's transaction.
        """
        path = folder / CATALOGUE
        with _as_os_error(path):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "segments").mkdir(exist_ok=True)
            for lock in (WRITER_LOCK, COMPACT_LOCK, READERS_LOCK):
                (folder / lock).touch(mode=0o644, exist_ok=True)
            connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
            # WAL lets readers go on while a step is written; FULL makes a commit durable when it returns.
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute("pragma cache_size = -256")  # kB: what is read often is small
            connection.execute(f"pragma journal_size_limit = {64 << 20}")
            catalogue = cls(folder, connection)
            catalogue._prepare()
            return catalogue

    @classmethod
    def read(cls, folder: Path) -> Catalogue:
        """For reading alone; needs no right to write, and works while others write.

        Raises LedgerError where there is no ledger.
        """
        path = folder / CATALOGUE
        if not path.is_file():
            raise LedgerError(f"no ledger here ({CATALOGUE} is missing); name the folder that "
                              "`apicost run` or `apicost replay` writes to")  # fmt: skip
        with _as_os_error(path):
            address = f"file:{quote(str(path.resolve()))}?mode=ro"
            try:
                connection = sqlite3.connect(address, uri=True, timeout=30, isolation_level=None)
                connection.execute("select 1 from counter").fetchone()
            except sqlite3.OperationalError:
                # A reader that may not write here can't make the shared-memory file of the WAL. Where no
                # WAL is left, nobody is writing and the file can be read as it stands.
                if path.with_name(path.name + "-wal").exists():
                    raise
                connection = sqlite3.connect(address + "&immutable=1", uri=True, isolation_level=None)
            catalogue = cls(folder, connection)
            catalogue._check_form((*UPGRADED_FORMS, FORM))
            return catalogue

    def _prepare(self) -> None:
        damage = self._connection.execute("pragma quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise LedgerError(_damaged(self.folder / CATALOGUE, damage))
        if self._version() in (0, *UPGRADED_FORMS):
            # Every statement of it leaves alone what is there.
            script = Path(__file__).with_name("catalogue.sql").read_text()
            self._connection.executescript(f"begin immediate;\n{script}\npragma user_version = {FORM};\ncommit;")
        self._check_form((FORM,))

    def _version(self) -> int:
        return int(self._connection.execute("pragma user_version").fetchone()[0])

    def _check_form(self, known: Sequence[int]) -> None:
        form = self._version()
        if form not in known:
            raise LedgerError(
                f"{self.folder / CATALOGUE}: this is form {form} of the ledger, this apicost knows form {FORM}; "
                "use the version of apicost that wrote it, or another folder"
            )

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable when it ends; the only way to change the catalogue."""
        with self._lock, _as_os_error(self.folder / CATALOGUE):
            self._connection.execute("begin immediate")
            try:
                yield self._connection
                self._connection.execute("commit")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has rolled back by itself
                    self._connection.execute("rollback")
                raise

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of one query: one consistent state."""
        with self._lock, _as_os_error(self.folder / CATALOGUE):
            return self._connection.execute(sql, values).fetchall()

    def segments(
        self, kind: str | None = None, *, start_unix_s: int | None = None, end_unix_s: int | None = None
    ) -> list[Segment]:
        """Live segments, oldest first: of one kind, of the days that touch [start, end)."""
        where = ["removed_unix_s is null"]
        values: list[object] = []
        if kind is not None:
            where.append("kind = ?")
            values.append(kind)
        if start_unix_s is not None:
            where.append(f"day_unix_s + {DAY_S} > ?")
            values.append(start_unix_s)
        if end_unix_s is not None:
            where.append("day_unix_s < ?")
            values.append(end_unix_s)
        sql = f"select {_COLUMNS}, id from segment where {' and '.join(where)} order by id"
        return [_segment(row) for row in self.rows(sql, values)]


def add(connection: sqlite3.Connection, segments: Iterable[Segment], now_unix_s: int) -> None:
    """Put segments into the list; inside a transaction."""
    rows = [
        (s.kind, s.grain_s, s.day_unix_s, s.name, s.row_count, s.bytes, s.crc32, s.calls, s.wire_bytes,
         int(s.rolled), now_unix_s)
        for s in segments
    ]  # fmt: skip
    connection.executemany(
        f"insert into segment ({_COLUMNS}, added_unix_s) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
    )


def remove(connection: sqlite3.Connection, segments: Iterable[Segment], now_unix_s: int) -> int:
    """Take segments out of the list; inside a transaction. Returns how many of them were still in it."""
    sql = "update segment set removed_unix_s = ? where id = ? and removed_unix_s is null"
    return connection.executemany(sql, [(now_unix_s, s.id) for s in segments]).rowcount


def _segment(row: tuple[Any, ...]) -> Segment:
    kind, grain_s, day, name, row_count, size, crc, calls, wire_bytes, rolled, number = row
    return Segment(
        kind=kind, grain_s=grain_s, day_unix_s=day, name=name, row_count=row_count, bytes=size, crc32=crc,
        calls=calls, wire_bytes=wire_bytes, rolled=bool(rolled), id=number,
    )  # fmt: skip


@contextlib.contextmanager
def lock(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file; gives whether it was got. It ends with the process, however that ends.

    shared: with others that also share it. wait: until it is free, then always True.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """SQLite's errors as those that callers can act on."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        number = errno.ENOSPC if "full" in text else errno.EROFS if "readonly" in text else errno.EIO
        raise OSError(number, f"the ledger's catalogue can't be used: {text}", str(path)) from error
    except sqlite3.DatabaseError as error:
        raise LedgerError(_damaged(path, str(error))) from error


def _damaged(path: Path, fact: str) -> str:
    return (
        f"{path}: the catalogue is damaged ({fact}); the ledger is not used, and nothing is written to it. "
        "Put the ledger's folder back from a backup, or start a new one with another state_dir"
    )
