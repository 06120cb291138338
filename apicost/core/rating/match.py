"""Which keys fulfil the conditions that a price book states."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.rating.pricebook import Match

Mask = npt.NDArray[np.bool_]


def matches(conditions: Match, keys: pa.Table) -> Mask:
    """Which rows of `keys` have an accepted value in every column asked for; null is never one."""
    picked = np.ones(len(keys), np.bool_)
    for column, accepted in conditions.items():
        codes, values = records.codes(keys, column)
        wanted = np.array([value in accepted for value in values] + [False])  # the last is for code -1: null
        picked &= wanted[codes]
    return picked
