"""How many different texts of clients a day of shapes may have: the rest becomes `(other)`.

Rules of this file:
- Each API keeps its `PATHS` most called undocumented (method, host, path) of a day, the others become one; each
  operation keeps its `TEXTS` most called sets of query names, hosts and media types, each undocumented path
  its `TEXTS_OF_PATH`. Ties go by text, so that the same day gives the same rows.
- What is kept depends on the whole day alone: not on how it came in pieces, nor on the period asked for, and
  cutting a day that is cut changes nothing. A rollup is cut when it is made; minutes stay whole, and are
  cut when they are read.
- Keys of usage are never touched, so that shapes go on adding up to usage.
- Only a day that has too many pays: without them the table is used as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from apicost.core import records
from apicost.core.conformance.shapes import OTHER
from apicost.store import duck
from apicost.store.catalogue import DAY_S

PATHS = 2_000
TEXTS = 200
TEXTS_OF_PATH = 20  # with PATHS at most 40,000 for an API

_DAY = f"minute_unix_s - (minute_unix_s % {DAY_S} + {DAY_S}) % {DAY_S}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """One bound. Expressions are over the columns of a shape, and never null.

    only: the rows that it is about. within, text: of each `within` the most called `text`s are kept, so many as
    `keep` says. becomes: the columns that are `(other)` in the rest.
    """

    name: str
    only: str
    within: Mapping[str, str]
    text: Mapping[str, str]
    keep: str
    becomes: Sequence[str]


def _compared(*columns: str) -> dict[str, str]:
    """Text columns as they can be compared with "=": null is a value of its own, and another one than ""."""
    return {f"{column}_text": f"coalesce('=' || {column}, '')" for column in columns}


def _cuts() -> list[_Cut]:
    typed = ("request_content_type", "response_content_type")
    paths = _Cut(
        name="path",
        only=f"path is not null and path <> '{OTHER}'",
        within=_compared("api"),
        text=_compared("method", "host", "path"),
        keep=str(PATHS),
        becomes=("host", "path", "query_names", *typed),
    )
    # A documented operation is one whatever the host; of an undocumented path the host is part of what it is, and
    # goes with the path.
    operation = _compared("api", "method", "path_template", "path")
    operation["path_host"] = "case when path is null then '' else coalesce('=' || host, '') end"
    return [
        paths,
        *(
            _Cut(
                name=name,
                only=f"{name} is not null and {name} <> '{OTHER}'" + (" and path is null" if name == "host" else ""),
                within=operation,
                text=_compared(name) if name != "host" else {"own_host": "coalesce('=' || host, '')"},
                keep=f"case when path_text = '' then {TEXTS} else {TEXTS_OF_PATH} end",
                becomes=(name,),
            )
            for name in ("query_names", "host", *typed)
        ),
    ]


def bounded(connection: duckdb.DuckDBPyConnection, source: str) -> str:
    """A table like `source` with at most so many texts for each day, for `from`.

    source: whole days of shapes, columns as in `records.SHAPE`. What is kept of them stands in temporary tables
    of this connection, which the answer refers to: use it before the next call.
    """
    for cut in _cuts():
        keys = {**cut.within, **cut.text}
        most_called = duck.query(
            "most_called",
            day=_DAY,
            named=", ".join(f"{expression} as {name}" for name, expression in keys.items()),
            groups=", ".join(keys.values()),
            names=", ".join(keys),
            within=", ".join(cut.within),
            text=", ".join(cut.text),
            source=source,
            only=cut.only,
            keep=cut.keep,
        )
        connection.execute(f"create or replace temp table kept_{cut.name} as {most_called}")
        (exceeded,) = connection.execute(f"select count(*) from kept_{cut.name}").fetchall()[0]
        if exceeded:
            columns = [column.name for column in records.SHAPE]
            rest = f"{cut.only} and crowded.is_crowded = 1 and kept.is_kept is null"
            source = "({})".format(
                duck.query(
                    "rest_as_other",
                    columns=", ".join(f"cut_{name} as {name}" if name in cut.becomes else name for name in columns),
                    changed=", ".join(
                        f"case when {rest} then '{OTHER}' else {name} end as cut_{name}"
                        if name in cut.becomes
                        else name
                        for name in columns
                    ),
                    source=source,
                    within=", ".join(cut.within),
                    kept=f"kept_{cut.name}",
                    same_within=_equal("crowded", cut.within),
                    same=_equal("kept", keys),
                )
            )
    return source


def _equal(table: str, keys: Mapping[str, str]) -> str:
    return " and ".join(
        [f"{table}.day_unix_s = {_DAY}", *(f"{table}.{name} = {expression}" for name, expression in keys.items())]
    )
