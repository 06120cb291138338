"""The daemon's counts of findings: what the child counts, and that a running sidecar shows it."""

import datetime
import subprocess
import sys
import urllib.request

from apicost import config, resources, run
from apicost.commands._conformance_metrics import count
from apicost.demo import live
from tests.live.test_daemon import folder, post, wait_for

__all__ = ["folder"]  # a fixture
SAMPLE = resources.folder("sample-run")


def test_the_months_findings_are_counted_without_ignored_ones(tmp_path):
    """Calls of the month alone; another month begins at nothing; a ledger that is none is one line."""
    settings = config.load(SAMPLE / "apicost.yaml")
    run.replay(SAMPLE, tmp_path / "ledger", settings, steps=1)
    span = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC).timestamp()
    found = count(settings, tmp_path / "ledger", span)
    assert {(c.rule, c.severity, c.api): (c.findings, c.calls) for c in found.counts}[
        ("shadow-endpoint", "error", "shop")
    ] == (1, 6)
    assert sum(seen.operations_seen for seen in found.coverage) == 15
    assert count(settings, tmp_path / "ledger", span + 5 * 86_400).counts == ()
    command = [sys.executable, "-m", "apicost.commands._conformance_metrics", "--config", str(SAMPLE / "apicost.yaml")]
    done = subprocess.run([*command, "--ledger", str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_running_sidecar_shows_its_findings(folder):
    """Some seconds after requests of an undocumented endpoint it is among the metrics."""
    file = folder / "apicost.yaml"
    file.write_text(file.read_text() + "conformance: {metrics_every_s: 0.5}\n")
    with live.Sidecar(file) as sidecar:
        assert post(sidecar, folder, first=1, count=20) == 200

        def counted():
            with urllib.request.urlopen(f"{sidecar.ready['web']}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            return [line for line in text.splitlines() if line.startswith("apicost_conformance_")]

        lines = wait_for(lambda: [line for line in counted() if "conformance_calls_total" in line])
        assert lines, counted()
        assert any("conformance_failures_total" in line and line.endswith(" 0.0") for line in counted())
