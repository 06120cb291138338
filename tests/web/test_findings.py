"""Findings for /metrics: a child counts them where something changed, and its failures are told."""

import json
import subprocess
import sys
import time

import pytest

from apicost.web import findings
from apicost.web.app import Status
from apicost.web.findings import Count, Findings, Seen, Tally
from tests.web.test_app import fetch

GOOD = {"counts": [{"rule": "r", "severity": "error", "api": "shop", "findings": 1, "calls": 7}], "judged_unix_s": 5.0}


@pytest.fixture
def child(monkeypatch, tmp_path):
    """In the child's place a process that prints a file, which may be missing."""
    monkeypatch.setattr(findings, "MODULE", "json.tool")
    file = tmp_path / "found.json"
    file.write_text(json.dumps(GOOD))
    return file


def settled(tally, now_s):
    """Wait for the child and take in what it did; whether there was one."""
    running = tally._child
    if running is not None:
        running.process.wait(30)
    tally.tick(0, [], None, now_s=now_s)
    return running is not None


def test_the_first_count_comes_after_an_interval_the_next_where_something_changed(child):
    """Not at the start, where the daemon has much to do; never where the interval is 0."""
    tally = Tally(now_s=0)
    tally.tick(0, [str(child)], 1, now_s=1_000)
    assert not settled(tally, 1_000)
    tally = Tally(now_s=0)
    tally.tick(10, [str(child)], 1, now_s=9)
    assert not settled(tally, 9)
    tally.tick(10, [str(child)], 1, now_s=10)
    assert settled(tally, 11)
    assert tally.last == Findings(counts=(Count("r", "error", "shop", 1, 7),), judged_unix_s=5.0)
    tally.tick(10, [str(child)], 2, now_s=19)
    assert not settled(tally, 19)
    tally.tick(10, [str(child)], 1, now_s=20)
    assert not settled(tally, 20)
    tally.tick(10, [str(child)], 2, now_s=30)
    assert settled(tally, 31)


def test_a_new_month_is_counted_without_new_calls(child, monkeypatch):
    """The figures are of the month: they begin anew with it."""
    tally = Tally(now_s=0)
    tally.tick(10, [str(child)], 1, now_s=10)
    settled(tally, 11)
    monkeypatch.setattr(findings.time, "gmtime", lambda: time.struct_time((2031, 1, 1, 0, 0, 0, 0, 1, 0)))
    tally.tick(10, [str(child)], 1, now_s=20)
    assert settled(tally, 21)


def test_a_failure_is_one_line_and_one_more_and_leaves_the_last_figures(child, caplog):
    """Told what the child said last; tried again without any change."""
    tally = Tally(now_s=0)
    tally.tick(10, [str(child)], 1, now_s=10)
    settled(tally, 11)
    tally.tick(10, ["/nowhere.json"], 2, now_s=20)
    settled(tally, 21)
    assert tally.failures == 1 and tally.last.counts[0].calls == 7
    assert len(caplog.records) == 1 and "nowhere.json" in caplog.text
    tally.tick(10, [str(child)], 2, now_s=30)
    assert settled(tally, 31) and tally.failures == 1


def test_a_child_without_end_is_ended(child, monkeypatch, tmp_path):
    """One at a time, and none longer than its bound; closing ends it, too."""
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(300)")
    monkeypatch.setattr(findings, "MODULE", "sleeps")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tally = Tally(now_s=0)
    tally.tick(10, [], 1, now_s=10)
    first = tally._child.process
    tally.tick(10, [], 2, now_s=20)
    assert tally._child.process is first and first.poll() is None
    tally.tick(10, [], 2, now_s=11 + findings.CHILD_SECONDS)
    assert first.poll() is not None and tally.failures == 1
    second = tally._child.process  # the failed one is tried again at its turn
    tally.close()
    assert second.poll() is not None


def test_metrics_have_findings_by_rule_severity_and_api_with_escaped_labels():
    """An API's id is the configuration's text: quotes, backslashes and line ends stay inside of the label."""
    counted = Findings(
        counts=(Count("shadow-endpoint", "error", 'a"b\\c\nd', 2, 40),), coverage=(Seen("shop", 9, 4),),
        judged_unix_s=5.0,
    )  # fmt: skip
    _, text = fetch(Status(node="n", findings=counted, counters={"conformance_failures": 1}), "/metrics")
    labels = '{api="a\\"b\\\\c\\nd",node="n",rule="shadow-endpoint",severity="error"}'
    assert f"apicost_conformance_findings{labels} 2.0" in text
    assert f"apicost_conformance_calls_total{labels} 40.0" in text
    assert 'apicost_conformance_operations{api="shop",node="n"} 9.0' in text
    assert 'apicost_conformance_operations_seen{api="shop",node="n"} 4.0' in text
    assert 'apicost_conformance_failures_total{node="n"} 1.0' in text
    _, before = fetch(Status(node="n"), "/metrics")
    assert "apicost_conformance_findings" not in before


def test_the_daemon_imports_nothing_of_the_judge():
    """Judging belongs to the child: DuckDB and the judge would cost the daemon its memory."""
    heavy = ("duckdb", "pandas", "apicost.core.conformance.judge", "apicost.commands._conformance")
    code = f"import sys, apicost.daemon\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
