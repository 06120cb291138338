"""Shapes of a window held against the documents: findings, each with its figures, and coverage."""

from __future__ import annotations

import pyarrow as pa

from apicost.core.conformance.contract import Contracts
from apicost.core.conformance.finding import Judgement, Settings
from apicost.core.conformance.traffic import Traffic, finish


def judge(
    shapes: pa.Table,
    contracts: Contracts,
    settings: Settings,
    *,
    window_days: float,
    samples: pa.Table | None = None,
) -> Judgement:
    """What a window's traffic does that the documents do not say."""
    traffic = Traffic(shapes)
    return Judgement(
        requests=int(traffic.calls[traffic.requests].sum()),
        matched=int(traffic.calls[traffic.matched].sum()),
        findings=tuple(finish(traffic, [], settings)),
        coverage=(),
        gateway_calls=int(traffic.calls[traffic.gateway].sum()),
    )
