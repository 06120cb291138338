"""How long prompts are: what prices of models ask beside how many tokens there were.

Rules of this file:
- Some models cost more per token where a request's prompt is longer than a bound. Usage keeps requests of
  different length apart by the class of their prompt (`llm_prompt_class`), so that what lies on either side of a
  bound can be added up later. Only requests with prompt tokens have one: other traffic pays nothing for it.
- A class is named by its upper bound in tokens, which it holds; the last one has no end.
- Usage that was metered without classes has none: which side of a bound it lies on is not known, and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records

Ints = npt.NDArray[np.int64]

# Every bound in the price data of genai-prices 0.2.3.
BOUNDS = (32_000, 100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000, 524_288)
LONGER = "longer"
CLASSES = (*map(str, BOUNDS), LONGER)
KEY = "llm_prompt_class"

_TOKENS = ("llm_prompt_tokens", "llm_completion_tokens")
_UNCLASSED = "_unclassed"
_NAME = re.compile(rf"({'|'.join(_TOKENS)})(?:(?P<none>{_UNCLASSED})|(?:_over_(?P<over>\d+))?(?:_upto_(?P<upto>\d+))?)")


def classify(prompt_tokens: Ints) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The class of each prompt as codes of CLASSES; -1 where its tokens are not known: no prompt has 0 of them."""
    if not len(prompt_tokens) or int(prompt_tokens.max()) <= 0:
        return np.full(len(prompt_tokens), -1, np.int32), list(CLASSES)
    codes = np.searchsorted(np.array(BOUNDS, np.int64), prompt_tokens, side="left")
    return np.where(prompt_tokens <= 0, -1, codes).astype(np.int32), list(CLASSES)


def part(column: str, over: int | None, upto: int | None) -> str:
    """The name of a column's part in requests whose prompt has more than `over` and at most `upto` tokens."""
    return column + (f"_over_{over}" if over is not None else "") + (f"_upto_{upto}" if upto is not None else "")


def unclassed(column: str) -> str:
    """The same for requests of which the prompt's length is not known."""
    return f"{column}{_UNCLASSED}"


def column_of(name: str) -> str:
    """The column that a part is of; a column itself otherwise."""
    found = _NAME.fullmatch(name)
    return found[1] if found else name


def is_part(name: str) -> bool:
    """Whether a name is that of a part that can be told."""
    found = _NAME.fullmatch(name)
    if found is None or found[0] == found[1]:
        return False
    return all(bound is None or int(bound) in BOUNDS for bound in (found["over"], found["upto"]))


def in_part(name: str, classes: tuple[npt.NDArray[np.integer], list[str]]) -> npt.NDArray[np.bool_]:
    """Which rows belong to a part. classes: the rows' KEY as (codes, values), -1 is null."""
    codes, values = classes
    found = _NAME.fullmatch(name)
    assert found is not None and is_part(name), f"{name} is no part of a column that can be told"
    if found["none"]:
        return codes < 0
    over, upto = int(found["over"] or -1), int(found["upto"] or BOUNDS[-1] + 1)
    most = [BOUNDS[-1] + 1 if value == LONGER else int(value) for value in values]
    return np.array([*(over < tokens <= upto for tokens in most), False], np.bool_)[codes]  # the last serves -1: null


def with_parts(usage: pa.Table, names: Iterable[str]) -> pa.Table:
    """Usage with the parts among `names` that it does not have yet as columns of their own."""
    for name in names:
        if is_part(name) and name not in usage.column_names:
            values = records.numbers(usage, column_of(name)).astype(np.int64, copy=False)
            usage = usage.append_column(name, pa.array(np.where(in_part(name, records.codes(usage, KEY)), values, 0)))
    return usage
