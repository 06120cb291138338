"""Small traffic and small contracts for the judge's tests, through the stages that make them in earnest."""

import pyarrow as pa

from apicost.core import records
from apicost.core.conformance.contract import Contract, Contracts, QueryParameter, Response, Scheme
from apicost.core.conformance.finding import Settings
from apicost.core.conformance.judge import judge
from apicost.core.conformance.shapes import shapes
from apicost.core.naming.match import name_exchanges
from apicost.core.scopes import Scopes
from tests.core.match_documents import api, index

NOON_S = 1_795_435_200
JSON = "application/json"


def get(path, **more):
    """One request, or `calls` alike, as a JOINED row says it. `client` is the last byte of its address; 0 none."""
    return {"method": "GET", "host": "shop.example", "path": path, "status": 200, "calls": 1, "client": 1, **more}


def batch(columns, rows):
    """A batch from dicts; what is left out is null or zero."""
    arrays = []
    for column in columns:
        values = [row.get(column.name) for row in rows]
        if column.type == records.TEXT:
            arrays.append(pa.array(values, pa.string()).dictionary_encode().cast(column.type))
        elif column.type == pa.string():
            arrays.append(pa.array(values, pa.string()))
        else:
            arrays.append(pa.array([value or 0 for value in values]).cast(column.type))
    return pa.table(arrays, schema=records.schema(columns))


def joined(requests):
    """JOINED rows of requests."""
    rows = []
    for request in requests:
        given = {
            "kind": records.RowKind.EXCHANGE,
            "role": records.Role.DOWNSTREAM,
            "response_source": "upstream",
            "http_version": 11,
            "peer_lo": (0xFFFF << 32 | 0xC0000200 | request["client"]) if request["client"] else 0,
            "started_unix_ns": NOON_S * 10**9,
            "ended_unix_ns": NOON_S * 10**9 + 5,
            "downstream_in_app_bytes": 100,
            "downstream_out_app_bytes": 300,
            "downstream_confidence": records.Confidence.APP_ONLY,
            **{name: value for name, value in request.items() if name not in ("calls", "client")},
        }
        rows += [given] * request["calls"]
    return batch(records.JOINED, rows)


def shape(requests, *apis, bucket_s=60):
    """SHAPE of requests under the documents that were there when they came."""
    named = name_exchanges(joined(requests), index(*apis), node="n1")
    return shapes(named, Scopes([("internet", ["0.0.0.0/0"])]), bucket_s=bucket_s)


def contract(line, *, api="shop", base="/v1", responses=("200",), query=(), **more):
    """The contract of "GET /orders/{id}", under the names that `match_documents.place` gives it.

    responses: "200" or ("200", "application/json"); query: "page", "page!" (required), "page?" (deprecated),
    "filter[" (deepObject). Hosts: those of `shop()`.
    """
    method, key = line.split(" ", 1)
    pointer = f"/paths/{key.replace('~', '~0').replace('/', '~1')}/{method.lower()}"
    described = [(one, ()) if isinstance(one, str) else (one[0], tuple(one[1:])) for one in responses]
    return Contract(
        api=api,
        operation_id=line,
        method=method,
        path_template=base + key,
        spec=f"{api}.yaml",
        pointer=pointer,
        responses=tuple(
            Response(status=status, types=types, pointer=f"{pointer}/responses/{status}") for status, types in described
        ),
        query=tuple(
            QueryParameter(
                name=name.rstrip("!?["),
                required=name.endswith("!"),
                deprecated=name.endswith("?"),
                prefix=name.endswith("["),
                pointer=f"{pointer}/parameters/{number}",
            )
            for number, name in enumerate(query)
        ),
        **{"servers": ("shop.example",), **more},
    )


def contracts(*operations, **more):
    """Contracts by their key; `former` and `faults` as they are."""
    documents = {one.api: (one.spec,) for one in operations}
    return Contracts(
        operations={(c.api, c.method, c.path_template): c for c in operations}, documents=documents, **more
    )


def api_of(*operations, id="shop", hosts=("shop.example",), base="/v1", **more):
    """What the matcher knows of contracts."""
    lines = [f"{c.method} {c.path_template.removeprefix(base)}" for c in operations if c.api == id]
    return api(id, lines, hosts=list(hosts), base=base, **more)


KEY = (Scheme(name="key", kind="apikey"),)


def judged(requests, *operations, apis=None, samples=None, window_days=1.0, settings=None, **more):
    """The judgement of some requests under some operations."""
    table = shape(requests, *(apis if apis is not None else [api_of(*operations)]))
    held = contracts(*operations, **more)
    return judge(table, held, settings or Settings(), window_days=window_days, samples=samples)


def rules(judgement):
    """(rule, method and template, detail) of all findings."""
    return [(f.rule, f"{f.method} {f.path_template}", f.detail) for f in judgement.findings]
