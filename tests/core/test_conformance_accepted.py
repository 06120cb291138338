"""Ignores end, baselines know: which findings count."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from apicost.core.conformance.accepted import IGNORED, KNOWN, NEW, Ignore, sort_out
from apicost.core.conformance.finding import Finding

TODAY = date(2026, 11, 23)


def finding(rule: str = "deprecated-in-use", api: str = "shop", path: str = "/a", count: int = 1) -> Finding:
    return Finding(
        rule=rule, severity="warning", api=api, operation_id="op", method="GET", path_template=path, detail="",
        count=count,
    )  # fmt: skip


def ignore(days: int, **more: str) -> Ignore:
    return Ignore(reason="agreed", expires=TODAY + timedelta(days), **{"rule": "deprecated-in-use", **more})


def test_an_ignore_ends_on_its_day() -> None:
    """Until then the finding does not count; from then on it counts and the ignore is named."""
    told, late = sort_out([finding()], [ignore(1)], (), TODAY)
    assert [(t.state, t.reason, t.counts) for t in told] == [(IGNORED, "agreed", False)] and not late
    told, late = sort_out([finding()], [ignore(0)], (), TODAY)
    assert [t.state for t in told] == [NEW] and late == [ignore(0)]


def test_an_expired_ignore_that_fits_nothing_is_not_named() -> None:
    """It has done its work."""
    assert sort_out([finding()], [ignore(0, path="/b")], (), TODAY)[1] == []


def test_a_baseline_knows_a_finding_whatever_its_count() -> None:
    """The fingerprint stays while traffic grows, and changes with the operation."""
    baseline = {finding(count=5).fingerprint}
    told, _ = sort_out([finding(count=9), finding(path="/b")], [], baseline, TODAY)
    assert [t.state for t in told] == [KNOWN, NEW]


@given(st.lists(st.sampled_from(["shop", "media", None]), max_size=5), st.sampled_from(["", "*", "shop"]))
def test_every_finding_is_told_once(apis: list[str | None], api: str) -> None:
    """Nothing vanishes: ignored findings are told as ignored, and an ignore for one API leaves the others."""
    found = [finding(api=name) for name in apis]  # type: ignore[arg-type]
    told, _ = sort_out(found, [ignore(1, api=api)], (), TODAY)
    assert [t.finding for t in told] == found
    assert [t.state == IGNORED for t in told] == [api in ("", "*") or name == api for name in apis]
