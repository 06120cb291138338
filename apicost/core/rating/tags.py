"""Whose a charge is: owner, team and cost centre of each key, by the book's rules.

Rules of this file:
- Each tag is decided by itself: of the rules that match a key and set the tag, the finest gives it. A rule that
  names an operation is finer than one that names a route, then service, API, consumer; a rule that names
  more than another beside the same is finer than it. Of two equally fine ones the first in the file gives it.
- What no rule tags has the tags that its API has by default; without those, none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.rating.match import matches
from apicost.core.rating.pricebook import TAG_MATCH, TAGS, WHERE_COLUMNS, TagRule

_RANK = {WHERE_COLUMNS[name]: rank for rank, name in enumerate(TAG_MATCH)}


def of_keys(
    keys: pa.Table, rules: Sequence[TagRule], defaults: Mapping[str, Mapping[str, str]] | None = None
) -> pa.Table:
    """The tags of each key: columns of TAGS, all TEXT, null where there is none.

    keys: any table with the columns that rules ask for, and `api`. defaults: API -> tag -> value; "" is none.
    """
    coarse_first = sorted(range(len(rules)), key=lambda n: (_fineness(rules[n]), n), reverse=True)
    masks = {number: matches(rules[number].match, keys) for number in coarse_first}
    columns = {}
    for tag in TAGS:
        by_api = {api: given[tag] for api, given in (defaults or {}).items() if given.get(tag)}
        values = sorted({*by_api.values(), *(rule.tags[tag] for rule in rules if tag in rule.tags)})
        code = np.full(len(keys), -1, np.int32)
        if by_api:
            apis, names = records.codes(keys, "api")
            code = np.array([values.index(by_api[n]) if n in by_api else -1 for n in names] + [-1], np.int32)[apis]
        for number in coarse_first:
            if tag in rules[number].tags:
                code[masks[number]] = values.index(rules[number].tags[tag])
        columns[tag] = records.text(code, values)
    return pa.table(columns)


def _fineness(rule: TagRule) -> tuple[int, ...]:
    """Sorts the finest rule first: ranks of what it names, then a rank beyond all, so that naming more is finer."""
    return (*sorted(_RANK[column] for column in rule.match), len(_RANK))
