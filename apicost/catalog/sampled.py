"""Bodies of recorded traffic held against the documents: rows of records.SAMPLE, counts and places, never values."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

import pyarrow as pa

from apicost.catalog.bodies import Checker, Exchange
from apicost.catalog.sample_checker import Row
from apicost.catalog.sample_host import sample_table
from apicost.ingest.har import Message

_NS_PER_MINUTE = 60_000_000_000


def of_messages(checker: Checker, messages: Sequence[Message], exchanges: pa.Table) -> pa.Table:
    """The messages of an HTTP archive held against the documents: columns as in records.SAMPLE.

    exchanges: columns as in records.EXCHANGE; line number n is messages[n - 1]. Requests that no operation matches
        say nothing here.
    """
    wanted = ("line_no", "node", "ended_unix_ns", "downstream_in_app_bytes", "downstream_out_app_bytes")
    rows = []
    for row in exchanges.select(wanted).to_pylist():
        message = messages[row["line_no"] - 1]
        exchange = _exchange(message)
        operation = checker.operation(exchange)
        if operation is None:
            continue
        at_ns = row["ended_unix_ns"]
        size = max(row["downstream_in_app_bytes"], 0) + max(row["downstream_out_app_bytes"], 0)
        places = [(None, None, None), *((d.rule, d.detail, d.pointer) for d in checker.check(exchange))]
        rows += [
            Row(
                at_ns // _NS_PER_MINUTE * 60, row["node"], operation.api, operation.operation_id, operation.method,
                operation.path_template, None, None, f"{message.status:03}", *place, 1, size, at_ns, at_ns,
            )
            for place in places
        ]  # fmt: skip
    return sample_table([rows])


def _exchange(message: Message) -> Exchange:
    url = urlsplit(message.url)
    return Exchange(
        method=message.method,
        host=(url.hostname or "") + (f":{url.port}" if url.port else ""),
        path=url.path or "/",
        query=url.query,
        status=message.status,
        request_headers=message.request_headers,
        headers_complete=bool(message.request_headers),
        request_body=message.request_body,
        response_headers=message.response_headers,
        response_body=message.response_body,
    )
