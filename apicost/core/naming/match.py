"""The stage that names exchanges: JOINED rows in, EXCHANGE rows out, each distinct request matched once.

The rules of matching stand in `core/naming/index.py` and, with examples, in docs/matching.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.naming.index import Index
from apicost.core.naming.operations import CONTROL, UNATTRIBUTED, Api, Claim, HostPattern, Match, Operation, Place


def name_exchanges(joined: pa.Table, index: Index, *, node: str) -> pa.Table:
    """Name each request by its operation.

    joined: columns as in `records.JOINED`, any order of rows. node: the gateway node they come from.

    Returns columns as in `records.EXCHANGE`, rows in the same order. Rows of kind UNATTRIBUTED carry bytes without
    a request: their state is "unattributed", or "control" where the flow is the gateway's own traffic.
    Paths that match no operation leave nothing behind in the index, however many there are.
    """
    records.check(joined, records.JOINED, "match")
    found = index.find_batch(
        joined["method"],
        joined["host"],
        joined["path"],
        upstream_paths=joined["upstream_path"],
        route_ids=joined["route_id"],
        service_ids=joined["service_id"],
        query_names=joined["query_names"],
    )
    matches = [*found.matches, Match(state=UNATTRIBUTED), Match(state=CONTROL)]
    codes = found.codes
    without = records.numbers(joined, "kind") == records.RowKind.UNATTRIBUTED
    if without.any():
        control = records.numbers(joined, "role") == records.Role.CONTROL
        codes = np.where(without, np.where(control, len(matches) - 1, len(matches) - 2), codes)
    naming: dict[str, list[str | None]] = {
        "api": [match.api for match in matches],
        "operation_id": [match.operation.operation_id if match.operation else None for match in matches],
        "path_template": [match.path_template for match in matches],
        "match_state": [match.state for match in matches],
        "match_flags": [",".join(match.flags) or None for match in matches],
    }
    columns = {
        "node": records.text(np.zeros(len(joined), np.int32), [node]),
        **{name: joined[name] for name in joined.column_names},
        **{name: _spread(texts, codes) for name, texts in naming.items()},
    }
    return pa.table(columns, schema=records.schema(records.EXCHANGE))


def _spread(texts: Sequence[str | None], codes: npt.NDArray[np.integer]) -> pa.Array:
    """A TEXT column from the texts of the answers and each row's answer."""
    encoded: Any = pa.array(texts, pa.string()).dictionary_encode()
    of_answer = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return records.text(of_answer[codes], encoded.dictionary.to_pylist())


__all__ = ["Api", "Claim", "HostPattern", "Index", "Match", "Operation", "Place", "name_exchanges"]
