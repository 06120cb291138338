"""The import rule of ARCHITECTURE.md, read from the code itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "apicost"
# Left imports nothing from right.
ORDER = [
    {"problems", "yamlfile", "durable", "bulk", "resources", "memory", "scratch"},
    {"core"},
    {"ingest"},
    {"catalog"},
    {"store"},
    {"report"},
    {"web"},
    {"config"},
    {"run"},
    {"daemon"},
    {"commands", "demo", "cli", "__init__", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# The pure core: no clock, file, socket, log, environment or randomness.
CORE_MAY = {
    "__future__", "collections", "dataclasses", "decimal", "enum", "fractions", "functools", "hashlib", "heapq",
    "itertools", "ipaddress", "math", "numpy", "operator", "pyarrow", "re", "bisect", "struct", "typing",
    "apicost",
        "urllib", "abc", "datetime", "zoneinfo", "calendar", "string",
}  # fmt: skip

FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    """A stage imports nothing that comes after it."""
    own = room(path)
    assert own in RANK, f"{own}: give this package its place in ORDER"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "apicost" or len(parts) < 2 or parts[1] == "__version__":
            continue
        assert RANK.get(parts[1], 99) <= RANK[own], f"{path}: imports {name}, which comes after {own}"


@pytest.mark.parametrize("path", sorted((ROOT / "core").rglob("*.py")), ids=lambda p: p.name)
def test_core_is_pure(path):
    """core/ reads no clock, file, socket, log or environment."""
    for name in imports(path):
        assert name.split(".")[0] in CORE_MAY, f"{path}: imports {name}"
    reached = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert not reached & {"open", "print", "input"}, f"{path}: reaches outside"
