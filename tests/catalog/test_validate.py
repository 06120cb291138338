"""Validation by openapi-spec-validator, in a process of its own."""

import subprocess
import sys
from pathlib import Path

from apicost.catalog.validate import validate_documents

SPECS = Path(__file__).parents[2] / "specs"


def test_the_sample_documents_are_valid():
    """They are what users begin with."""
    assert validate_documents([SPECS / "shop.yaml", SPECS / "media.yaml"]) == []


def test_what_is_wrong_has_its_line_and_a_reference_to_another_machine_is_not_followed(tmp_path):
    """192.0.2.1 answers nobody (RFC 5737): following it would hang."""
    path = tmp_path / "bad.yaml"
    path.write_text(
        "openapi: 3.1.0\ninfo: {title: x}\npaths:\n  /a:\n    get:\n"
        '      responses: {"200": {description: d, content: {a/b: {schema: {$ref: "http://192.0.2.1/x"}}}}}\n'
    )
    problems = validate_documents([path])
    assert any(p.place == f"{path}:2" and "'version' is a required property" in p.fact for p in problems)
    assert any("192.0.2.1" in p.fact for p in problems)


def test_what_can_not_be_read_is_a_problem(tmp_path):
    """Missing files, broken files and files without a version."""
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "other.yaml").write_text("a: 1")
    problems = validate_documents([tmp_path / "none.yaml", tmp_path / "broken.yaml", tmp_path / "other.yaml"])
    assert [p.place.partition(":")[0].rpartition("/")[2] for p in problems] == [
        "none.yaml",
        "broken.yaml",
        "other.yaml",
    ]


def test_the_catalogue_and_the_matcher_import_neither_the_validator_nor_pandas():
    """What the daemon imports stays small."""
    heavy = ("openapi_core", "openapi_spec_validator", "jsonschema", "pandas", "duckdb")
    code = (
        "import sys, apicost.catalog.openapi, apicost.core.naming.match\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
