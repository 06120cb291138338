"""Rows of equal keys together, in the order of the keys' values: what `meter` and `conformance/shapes` share.

Rules of this file:
- Groups come out sorted by time, then by each key in turn, null first, text by code points; dictionaries hold
  the values in use alone, sorted. Equal input gives equal bytes, whatever the order of rows or of dictionaries.
- What is held for each row is one integer and its place; a key's ranks live only while it is combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records

Ints = npt.NDArray[np.int64]
# A text column: each row's place in the distinct values, -1 for null.
Codes = tuple[npt.NDArray[np.int32], list[str]]

_MOST_KEYS = 1 << 62  # a combined key stays below, so that it fits int64


class Groups:
    """Rows grouped by (time, keys); at least one row.

    time: start of each row's bucket. keys: in the order that groups are sorted by.
    """

    def __init__(self, time: Ints, keys: Mapping[str, Codes]) -> None:
        self._time = time
        self._keys = {name: (codes, *_ranks(values)) for name, (codes, values) in keys.items()}
        # Keys become one integer per row whose order is that of the values; where the product of their
        # ranges would not fit, what has been combined so far is renumbered first.
        first, last = int(time.min()), int(time.max())
        combined, size = time - first, last - first + 1
        for codes, rank_of, _ in self._keys.values():
            ranks = rank_of[codes]
            low, high = int(ranks.min()), int(ranks.max())
            if low == high:
                continue
            span = high - low + 1
            if size * span > _MOST_KEYS:
                found, combined = np.unique(combined, return_inverse=True)
                combined, size = combined.astype(np.int64, copy=False), len(found)
            combined *= span
            combined += ranks
            combined -= low
            size *= span
        self._order = np.argsort(combined, kind="stable")
        ordered = combined[self._order]
        self._starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        self._heads = self._order[self._starts]  # one row of each group, for its keys

    def __len__(self) -> int:
        return len(self._starts)

    def times(self) -> pa.Array:
        """The start of each group's bucket."""
        return pa.array(self._time[self._heads])

    def key(self, name: str) -> pa.DictionaryArray:
        """A key's value in each group."""
        codes, rank_of, texts = self._keys[name]
        return text_in_use(rank_of[codes[self._heads]] - 1, texts)

    def merged(self, values: npt.NDArray[np.integer], how: np.ufunc = np.add) -> pa.Array:
        """One figure for each group: the rows' values added, or put together by another ufunc."""
        return pa.array(how.reduceat(values[self._order], self._starts))


def text_in_use(codes: npt.NDArray[np.integer], values: Sequence[str]) -> pa.DictionaryArray:
    """A TEXT column of the values in use alone, so that equal rows are equal bytes. Values are sorted; -1 is null."""
    used = np.unique(codes)
    used = used[used >= 0]
    return records.text(np.where(codes >= 0, np.searchsorted(used, codes), -1), [values[code] for code in used])


def _ranks(values: Sequence[str]) -> tuple[Ints, list[str]]:
    """For each code the place of its value in the order of values, from 1, and 0 for code -1: null; and that order."""
    texts = sorted(values)
    place = {text: rank for rank, text in enumerate(texts, 1)}
    return np.array([*(place[value] for value in values), 0], np.int64), texts
