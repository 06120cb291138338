"""What usage files of earlier versions lack, and what stands in for it.

Rules of this file:
- A column that came later is no zero in older files: requests whose blocks nobody counted are requests without
  counted blocks, and tokens of a model that nobody reported are requests without tokens.
- The same is said twice, for NumPy and for SQL; tests hold the two to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from apicost.core import records
from apicost.store import duck

Ints = npt.NDArray[np.int64]

# Column -> what it is in a file without it, as SQL over the file's own columns. Keys that came later are null there.
_ABSENT = {
    **dict.fromkeys(records.QUANTA.values(), "cast(0 as bigint)"),
    "calls_without_quanta": "calls",
    "llm_calls_without_tokens": (
        "case when llm_model is not null and llm_prompt_tokens = 0 and llm_completion_tokens = 0 "
        "then calls else cast(0 as bigint) end"
    ),
    "llm_prompt_class": "cast(null as varchar)",
}


def asked_of_file(name: str) -> tuple[str, ...]:
    """The columns of a file without `name` that tell its stand-in; the model is asked as a text."""
    if name == "calls_without_quanta":
        return ("calls",)
    return ("calls", "llm_prompt_tokens", "llm_completion_tokens") if name == "llm_calls_without_tokens" else ()


def stand_in(name: str, rows: int, column: Callable[[str], Ints], has_model: npt.NDArray[np.bool_]) -> Ints:
    """The values of a sum in rows of a file without it.

    column: the file's own columns, of `asked_of_file`. has_model: which rows have one.
    Raises KeyError for a sum that every version wrote.
    """
    if name == "calls_without_quanta":
        return column("calls")
    if name == "llm_calls_without_tokens":
        silent = has_model & (column("llm_prompt_tokens") == 0) & (column("llm_completion_tokens") == 0)
        return np.where(silent, column("calls"), 0)
    if name not in _ABSENT:
        raise KeyError(f"{name}: this file of usage has no such column")
    return np.zeros(rows, np.int64)


def source(paths: Sequence[Path]) -> str:
    """Files of usage or shapes of any version as one table with all columns, for `from`."""
    lots: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        try:
            have = set(pq.read_schema(path).names)
        except (OSError, pa.ArrowException):  # whoever reads the table is told
            return duck.source(paths)
        lots.setdefault(tuple(name for name in _ABSENT if name not in have), []).append(path)
    if not lots or set(lots) == {()}:
        return duck.source(paths)
    parts = []
    for missing, files in lots.items():
        more = "".join(f", {_ABSENT[name]} as {name}" for name in missing)
        parts.append(f"select *{more} from {duck.source(files)} as older")
    return f"({' union all by name '.join(parts)})"
