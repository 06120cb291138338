"""Batches of sampled bodies as the gateway plugin posts them, for tests and benchmarks."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

GOOD_ORDER = {"lines": [{"sku": "A-1", "count": 2}], "note": "by noon"}
GOOD_ANSWER = {"id": "o1", "status": "open", "lines": [], "total": "1.00"}


def sample(line_no: int = 1, sent: Any = GOOD_ORDER, got: Any = GOOD_ANSWER, **changes: Any) -> dict[str, Any]:
    """POST /v1/orders of specs/shop.yaml. sent, got: bodies, bytes as they are; None leaves one out."""
    made = {
        "line_no": line_no, "unix_ms": time.time_ns() // 1_000_000, "method": "POST", "host": "shop.example",
        "path": "/v1/orders", "status": 201, "request_bytes": 400, "response_bytes": 300,
        "request_content_type": "application/json", "response_content_type": "application/json",
        "route_id": "orders", "service_id": "shop", "consumer": "acme", "response_source": "upstream",
    }  # fmt: skip
    for name, body in (("request_body", sent), ("response_body", got)):
        if body is not None:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            made[name] = base64.b64encode(raw).decode()
    return made | changes


def body(samples: Sequence[Any], **changes: Any) -> bytes:
    """What is posted; samples that are bytes stand as they are. changes: of the header."""
    header = {
        "apicost": 1, "node": "gw-1", "worker": {"pid": 4242, "started_unix_ms": 1_795_435_200_000}, "batch": 1,
        "count": len(samples), "dropped": 0,
    }  # fmt: skip
    lines = [json.dumps(header | changes).encode()]
    lines += [one if isinstance(one, bytes) else json.dumps(one).encode() for one in samples]
    return b"\n".join(lines) + b"\n"
