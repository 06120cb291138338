"""Which operations the documents ever had: a call that only a former document describes is no shadow.

Rules of this file:
- One row for each (api, method, path template), whatever became of it; nothing is deleted.
- `last_unix_s` is null while the operation is in the documents, and the time at which it was missed after that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from apicost.core.conformance.contract import Former
from apicost.core.naming.operations import Operation
from apicost.store.catalogue import Catalogue

# Counters: when `note` last ran, and a digest of what it was given.
_NOTED = "documents_noted_unix_s"
_DIGEST = "documents_digest"


def note(catalogue: Catalogue, operations: Sequence[Operation], now_unix_s: int) -> None:
    """Remember the operations of the documents as they are now, in one transaction.

    operations: all of all APIs; of two with one key the first counts.
    Only what changed is written, and nothing is compared where nothing changed. Raises OSError when the catalogue
    can't be written.
    """
    digest = _digest(operations)
    counters = dict(catalogue.rows("select name, value from counter"))
    with catalogue.transaction() as change:
        change.executemany(
            "insert into counter values (?, ?) on conflict do update set value = excluded.value",
            [(_NOTED, now_unix_s), (_DIGEST, digest)],
        )
        if counters.get(_DIGEST) == digest:
            return
        change.execute(
            "create temp table if not exists present (api text, method text, path_template text, operation_id text,"
            " spec text, pointer text, primary key (api, method, path_template)) without rowid"
        )
        # Compared by SQLite: a large directory's operations a second time would weigh on the daemon's memory.
        change.executemany("insert or ignore into temp.present values (?, ?, ?, ?, ?, ?)", _rows(operations))
        change.execute(
            "update documented set last_unix_s = ? where last_unix_s is null and not exists (select 1 from temp.present"
            " as p where p.api = documented.api and p.method = documented.method"
            " and p.path_template = documented.path_template)",
            (now_unix_s,),
        )
        change.execute(
            "insert into documented (api, method, path_template, operation_id, spec, pointer, first_unix_s)"
            " select p.api, p.method, p.path_template, p.operation_id, p.spec, p.pointer, ? from temp.present as p"
            " left join documented as d using (api, method, path_template)"
            " where d.api is null or d.last_unix_s is not null"
            " or (d.operation_id, d.spec, d.pointer) <> (p.operation_id, p.spec, p.pointer)"
            " on conflict do update set operation_id = excluded.operation_id, spec = excluded.spec,"
            " pointer = excluded.pointer, last_unix_s = null",
            (now_unix_s,),
        )
        change.execute("drop table temp.present")


def _rows(operations: Iterable[Operation]) -> Iterator[tuple[str, ...]]:
    for o in operations:
        row = (o.api, o.method, o.path_template, o.operation_id, o.spec, o.pointer)
        if all(text.isascii() or _is_unicode(text) for text in row):
            yield row


def _is_unicode(text: str) -> bool:
    """Whether it can be stored: half a surrogate pair, which JSON can write, can't; no request has it either."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _digest(operations: Iterable[Operation]) -> int:
    """A number of 63 bits that changes when an operation does."""
    state = hashlib.blake2b(digest_size=8)
    for row in _rows(operations):
        state.update("\0".join(row).encode())
        state.update(b"\n")
    return int.from_bytes(state.digest()) >> 1


def former(
    catalogue: Catalogue, present: Collection[tuple[str, str, str]], unreadable: Collection[str] = ()
) -> tuple[Former, ...]:
    """The operations noted once that are not among `present`, by API, template and method.

    present: (api, method, path_template) of the documents now. unreadable: files whose operations nobody knows now;
        theirs are not taken for removed.
    """
    if not catalogue.rows("select 1 from sqlite_master where name = 'documented'"):
        return ()  # a ledger of the form before, opened for reading
    noted = catalogue.rows("select value from counter where name = ?", (_NOTED,))
    rows = catalogue.rows(
        "select api, operation_id, method, path_template, spec, pointer, coalesce(last_unix_s, ?) from documented"
        " order by api, path_template, method",
        (noted[0][0] if noted else 0,),
    )
    return tuple(
        Former(
            api=api, operation_id=operation_id, method=method, path_template=template, spec=spec, pointer=pointer,
            last_unix_s=last,
        )
        for api, operation_id, method, template, spec, pointer, last in rows
        if (api, method, template) not in present and spec not in unreadable
    )  # fmt: skip
