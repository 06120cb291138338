"""The command line as a newcomer meets it."""

import subprocess
import sys

import pytest

from apicost import cli


def apicost(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "apicost", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_every_command():
    """`apicost --help` names all commands and the exit codes."""
    done = apicost("--help")
    assert done.returncode == 0
    for name, what in cli.COMMANDS.items():
        assert name in done.stdout and what in done.stdout
    assert "exit codes" in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name):
    """`apicost NAME --help` says how it is called, and exits with 0."""
    done = apicost(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: apicost {name}" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["report"], ["run", "-c", "/nowhere/apicost.yaml"]])
def test_wrong_use_exits_with_2(arguments):
    """No command, an unknown one, a missing option, a missing file."""
    done = apicost(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_is_quick_because_commands_load_late():
    """The help imports no command, and with it neither Arrow nor DuckDB."""
    code = "import sys, apicost.cli; apicost.cli.main(['--help']); print({'pyarrow', 'duckdb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")
