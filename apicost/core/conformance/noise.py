"""What is not worth telling: answers that say "there is nothing here", in a status or as a page.

Rules of this file:
- 404, 405 and 410 (and 501 for methods) say that the backend knows no such thing: nothing is hidden there.
- A "soft 404" is a page that says so with a 2xx status: many different paths of a host are answered with the same
  media type and nearly the same size. Single-page applications and catch-all routes do that.
"""

from __future__ import annotations

import numpy as np

from apicost.core.conformance.traffic import Ints, Mask, Traffic

NO_SUCH_PATH = ("404", "405", "410")
NO_SUCH_METHOD = ("404", "405", "501")
GONE = ("404", "405", "410", "501")
SPREAD_BYTES = 128  # sizes within 64 B of a middle: a page may show the path that was asked for


def soft_not_found(traffic: Traffic, mask: Mask, least_paths: int) -> Mask:
    """Of undocumented requests those that got a "not found" page.

    Looked for among 2xx answers of one host and media type: `least_paths` distinct folded paths whose responses all
    lie within SPREAD_BYTES of each other. Paths whose responses differ among themselves are none of them.
    """
    found = np.zeros(traffic.size, np.bool_)
    groups = traffic.groups(
        mask & traffic.among("status_class", ("2xx",)) & (traffic.calls > 0), "host", "response_content_type", "path"
    )
    if len(groups.values) < least_paths:
        return found
    least, most = _sizes(traffic, groups.chosen, groups.codes, len(groups.values))
    pages: dict[tuple[str | None, str | None], list[int]] = {}
    for number, (host, media_type, _) in enumerate(groups.values):
        pages.setdefault((host, media_type), []).append(number)
    soft = np.zeros(len(groups.values), np.bool_)
    for members in pages.values():
        if len(members) >= least_paths:
            numbers = np.array(members)
            soft[numbers] = _alike(least[numbers], most[numbers], least_paths)
    found[groups.chosen] = soft[groups.codes]
    return found


def _sizes(traffic: Traffic, chosen: Ints, codes: np.ndarray, groups: int) -> tuple[Ints, Ints]:
    """The smallest and the largest response of each group of rows."""
    least = np.full(groups, np.iinfo(np.int64).max, np.int64)
    most = np.full(groups, -1, np.int64)
    np.minimum.at(least, codes, traffic.numbers("least_out_app_bytes")[chosen])
    np.maximum.at(most, codes, traffic.numbers("most_out_app_bytes")[chosen])
    return least, most


def _alike(least: Ints, most: Ints, wanted: int) -> Mask:
    """Which of the intervals [least, most] lie with at least `wanted` of them inside one span of SPREAD_BYTES."""
    narrow = (most - least <= SPREAD_BYTES) & (least >= 0)
    begins, ends = np.sort(least[narrow]), np.sort(most[narrow])
    # Spans begin where an interval does. Inside the span from b are those that end by b + SPREAD_BYTES, without those
    # that began before b (which, being narrow, all end by then).
    inside = np.searchsorted(ends, begins + SPREAD_BYTES, "right") - np.searchsorted(begins, begins, "left")
    full = np.concatenate(([0], np.cumsum(inside >= wanted)))
    # An interval is alike when a full span begins between (its end - SPREAD_BYTES) and its own beginning.
    before = full[np.searchsorted(begins, most - SPREAD_BYTES, "left")]
    alike: Mask = narrow & (full[np.searchsorted(begins, least, "right")] > before)
    return alike
