"""Kernel tests run for real or not at all; where they must run, a skip is a failure."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from apicost.ingest import cgroups
from tests.kernel import lab

REQUIRED = os.environ.get("APICOST_KERNEL_TESTS") == "require"


@cache
def missing() -> str:
    """What this machine lacks for loading the probe; "" nothing."""
    if os.geteuid():
        return "root"
    try:
        cgroups.mount()
    except cgroups.ProbeError as error:
        return error.reason
    if subprocess.run(["/usr/bin/python3", "-Ic", "import bcc; bcc.BPF"], capture_output=True).returncode:
        return "bcc (Debian's python3-bpfcc)"
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return "" if release >= (5, 19) else "Linux 5.19"


def pytest_runtest_setup(item):
    if item.get_closest_marker("kernel") and missing():
        pytest.skip(f"needs {missing()}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if REQUIRED and report.skipped and item.get_closest_marker("kernel"):
        report.outcome = "failed"
        report.longrepr = f"skipped where kernel tests are required: {report.longrepr[-1]}"


@pytest.fixture
def folder():
    """A cgroup of its own."""
    with lab.cgroup() as made:
        yield made


@pytest.fixture
def tools():
    """A function that skips the test where a program is missing."""

    def need(*programs: str) -> None:
        lacking = [program for program in programs if not shutil.which(program) and not Path(program).exists()]
        if lacking:
            pytest.skip(f"needs {', '.join(lacking)}")

    return need
