"""The built wheel carries what it needs: it works outside the checkout."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "genai_prices": "genai-prices",
    "openapi_spec_validator": "openapi-spec-validator",
    "prometheus_client": "prometheus-client",
    "jsonschema_path": "jsonschema-path",
    "openapi_core": "openapi-core",
    "openapi_schema_validator": "openapi-schema-validator",
}
# The loader runs in the interpreter that has bcc; h2 is for the demo's HTTP/2 and does without.
OPTIONAL = {"bcc", "h2"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of what git tracks or would track."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel; the dependencies are lent by the one that runs the tests.

    Editable installs are found through .pth files, which PYTHONPATH does not read: the checkout stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    target = next(folder.glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run([*install, "--disable-pip-version-check"], check=True)
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin/python"), "-P", "-m", "apicost", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    where = subprocess.run(
        [str(folder / "bin/python"), "-P", "-c", "import apicost; print(apicost.__file__)"],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(folder)), f"the checkout leaked in: {where}"
    run.folder = folder
    run.data = target / "apicost" / "data"
    return run


def test_the_wheel_carries_probe_plugin_and_documents(wheel):
    """Probe source, plugin, host, templates, sample documents and the recorded run."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "apicost/data/bpf/flow_probe.c",
        "apicost/data/bpf/flow_events.h",
        "apicost/data/apisix/plugins/apicost-logger.lua",
        "apicost/data/apisix/host/host.lua",
        "apicost/data/specs/shop.yaml",
        "apicost/data/specs/prices.yaml",
        "apicost/data/specs/prices-llm.yaml",
        "apicost/data/specs/sample-run/flows.parquet",
        "apicost/store/catalogue.sql",
    ):
        assert name in names, name
    assert any(name.startswith("apicost/report/templates/") for name in names)


def test_replay_and_report_run_from_the_wheel(installed):
    """The recorded run becomes a ledger, and the ledger a report, without the checkout."""
    recorded = installed.data / "specs/sample-run"
    done = installed("replay", str(recorded), "--ledger", "ledger")
    assert done.returncode == 0, done.stderr
    done = installed(
        "report", "--month", "2026-11", "--ledger", "ledger", "--prices", str(installed.data / "specs/prices.yaml"),
        "--out", "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "<html" in (installed.folder / "report/report.html").read_text()
    assert (installed.folder / "report/charges.csv").read_text().count("\n") > 10


def test_the_demo_replays_from_the_wheel(installed):
    """Without the right to load eBPF the demo says so and shows the recorded run."""
    done = installed("demo", "--replay", "--out", "demo")
    assert done.returncode == 0, done.stderr
    assert "Not live" in done.stderr
    assert "Cost of 2026-11 by API" in done.stdout


def test_every_import_is_a_declared_dependency():
    """What the package imports, pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=!~\[; ]", text)[0].lower() for text in project["dependencies"]}
    for path in (ROOT / "apicost").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module.split(".")[0]}
            else:
                continue
            for name in names - set(sys.stdlib_module_names) - OPTIONAL - {"apicost"}:
                assert DISTRIBUTIONS.get(name, name) in declared, f"{path}: {name} is not declared"


def test_every_dependency_is_pinned():
    """The lock file has an exact version for each declared dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        assert re.split(r"[<>=!~\[; ]", text)[0].lower() in locked, text
