"""How rows of a report are called: by their name, or by the state of what has none.

Rules of this file:
- What has no name is a row of its own, in parentheses: traffic outside the documents, bytes that no request
  claims, the gateway's own traffic, a shared cost that nobody bears, corrections of closed months.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

_STATE_NAMES = {
    "unknown-host": "(unknown host)",
    "unattributed": "(unattributed bytes)",
    "control": "(gateway's own traffic)",
    "undocumented-path": "(undocumented path)",
    "undocumented-method": "(undocumented method)",
}
UNDOCUMENTED_STATES = ("undocumented-path", "undocumented-method", "unknown-host")


class Label(NamedTuple):
    """How a row is called. `named` rows stand for what has no name of its own: no text from traffic,
    such as a consumer called "(unallocated)", can be taken for one of them."""

    text: str
    note: str = ""
    named: bool = False
    last: bool = False  # stands below the others whatever it costs: no API, operation or consumer bears it


Labeller = Callable[[Mapping[str, str | None]], Label]

NO_API = "(no API)"  # charges of a consumer alone: what falls short of its commitment
NOBODY = Label("(unallocated)", "", True, True)
CORRECTIONS = Label("(corrections)", "of closed months", True, True)


def status_label(row: Mapping[str, str | None]) -> Label:
    names = {"1xx": "informational", "2xx": "success", "3xx": "redirect", "4xx": "client error", "5xx": "server error"}
    status = row["status_class"]
    return Label(status, names.get(status, "")) if status else Label("(no request)", "bytes without a line", True, True)


def api_label(row: Mapping[str, str | None]) -> Label:
    return Label(row["api"]) if row["api"] else _state_label(row, NO_API)


def operation_label(row: Mapping[str, str | None]) -> Label:
    api = row["api"] or ""
    place = " ".join(filter(None, (row["method"], row["path_template"])))
    if row["operation_id"]:
        note = " · ".join(filter(None, (api, place if place != row["operation_id"] else "")))
        return Label(row["operation_id"], note)
    return _state_label(row, "(no operation)", " · ".join(filter(None, (api, place))))


def consumer_label(row: Mapping[str, str | None]) -> Label:
    return _of_bearer(row, "consumer", "(no consumer)")


def team_label(row: Mapping[str, str | None]) -> Label:
    return _of_bearer(row, "team", "(no team)")


def _of_bearer(row: Mapping[str, str | None], column: str, none: str) -> Label:
    if name := row[column]:
        return Label(name)
    bare = row["match_state"] in ("unattributed", "control")
    return _state_label(row, "") if bare else Label(none, "", True)


def _state_label(row: Mapping[str, str | None], other: str, note: str = "") -> Label:
    return Label(_STATE_NAMES.get(row["match_state"] or "", other), note, True, not row.get("api"))


class Grouping(NamedTuple):
    """One way to group charges into the rows of a table."""

    id: str
    title: str
    columns: tuple[str, ...]
    label: Labeller


OPERATION_COLUMNS = ("api", "operation_id", "method", "path_template", "match_state")
BY_API = Grouping("api", "By API", ("api", "match_state"), api_label)
BY_OPERATION = Grouping("operation", "By operation", OPERATION_COLUMNS, operation_label)
BY_CONSUMER = Grouping("consumer", "By consumer", ("consumer", "match_state"), consumer_label)
BY_TEAM = Grouping("team", "By team", ("team", "match_state"), team_label)
BY_STATUS = Grouping("status", "By response status", ("status_class",), status_label)
GROUPINGS = (BY_API, BY_OPERATION, BY_CONSUMER, BY_TEAM, BY_STATUS)
