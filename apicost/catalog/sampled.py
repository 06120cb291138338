"""What validating sampled bodies found, as rows of records.SAMPLE: counts and places, never values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from apicost.catalog.bodies import Checker, Deviation, Exchange
from apicost.core import records
from apicost.core.naming.operations import Operation
from apicost.ingest.har import Message

_NS_PER_MINUTE = 60_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One sample and what was found. ended_unix_ns: of the request. app_bytes: both directions."""

    node: str
    operation: Operation
    deviations: Sequence[Deviation]
    ended_unix_ns: int
    app_bytes: int
    status: int
    route_id: str | None = None
    consumer: str | None = None


def to_table(checked: Iterable[Checked]) -> pa.Table:
    """Rows of records.SAMPLE, equal keys added up, sorted by key.

    A sample without a deviation gives one row whose rule is null; with some, one row for each.
    """
    rows: dict[tuple[Any, ...], list[int]] = {}
    for sample in checked:
        operation = sample.operation
        for deviation in sample.deviations or (None,):
            key = (
                sample.ended_unix_ns // _NS_PER_MINUTE * 60, sample.node, operation.api, operation.operation_id,
                operation.method, operation.path_template, sample.route_id, sample.consumer, f"{sample.status:03d}",
                *((deviation.rule, deviation.detail, deviation.pointer) if deviation else (None, None, None)),
            )  # fmt: skip
            figures = rows.setdefault(key, [0, 0, sample.ended_unix_ns, sample.ended_unix_ns])
            figures[0] += 1
            figures[1] += sample.app_bytes
            figures[2] = min(figures[2], sample.ended_unix_ns)
            figures[3] = max(figures[3], sample.ended_unix_ns)
    ordered = sorted(rows, key=lambda key: tuple((value is not None, value) for value in key))
    columns = list(zip(*((*key, *rows[key]) for key in ordered), strict=True)) or [()] * len(records.SAMPLE)
    schema = records.schema(records.SAMPLE)
    arrays = []
    for values, field in zip(columns, schema, strict=True):
        text = field.type == records.TEXT
        array = pa.array(values, pa.string() if text else field.type)
        arrays.append(array.dictionary_encode() if text else array)
    return pa.table(arrays, schema=schema)


def of_messages(checker: Checker, messages: Sequence[Message], exchanges: pa.Table) -> pa.Table:
    """The messages of an HTTP archive held against the documents: columns as in records.SAMPLE.

    exchanges: columns as in records.EXCHANGE; line number n is messages[n - 1]. Requests that no operation matches
        say nothing here.
    """
    wanted = ("line_no", "node", "ended_unix_ns", "downstream_in_app_bytes", "downstream_out_app_bytes")
    checked = []
    for row in exchanges.select(wanted).to_pylist():
        message = messages[row["line_no"] - 1]
        url = urlsplit(message.url)
        exchange = Exchange(
            method=message.method, host=(url.hostname or "") + (f":{url.port}" if url.port else ""),
            path=url.path or "/", query=url.query, status=message.status, request_headers=message.request_headers,
            headers_complete=bool(message.request_headers),
            request_body=message.request_body, response_headers=message.response_headers,
            response_body=message.response_body,
        )  # fmt: skip
        operation = checker.operation(exchange)
        if operation is not None:
            checked.append(
                Checked(
                    node=row["node"],
                    operation=operation,
                    deviations=checker.check(exchange),
                    ended_unix_ns=row["ended_unix_ns"],
                    app_bytes=max(row["downstream_in_app_bytes"], 0) + max(row["downstream_out_app_bytes"], 0),
                    status=message.status,
                )
            )
    return to_table(checked)
