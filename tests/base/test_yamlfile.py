"""YAML that people or strangers write: bounded, plain, with lines."""

import pytest

from apicost import yamlfile
from apicost.problems import InputError


def test_each_value_knows_its_line():
    """A problem can name file and line; a missing value falls back to what encloses it."""
    got = yamlfile.parse("a: 1\nb:\n  - x\n  - {c: y}\n", "f.yaml")
    assert got.place("b", 1, "c") == "f.yaml:4"
    assert got.place("b", 1, "gone") == "f.yaml:4"
    assert got.place("nowhere") == "f.yaml:1"


def test_exact_numbers_never_become_floats():
    """0.09 stays the text that was written; booleans stay booleans."""
    assert yamlfile.parse("p: 0.09\nn: 12\nt: true", "f", exact=True).data == {"p": "0.09", "n": "12", "t": True}


def test_dates_stay_text():
    """A price's date is read by the price book, not by YAML."""
    assert yamlfile.parse("from: 2026-01-01", "f").data == {"from": "2026-01-01"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\na: 2", "stands twice"),
        ("a: !!python/object:os.system x", "not plain data"),
        ("a: [1", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("[" * 300 + "]" * 300, "nested deeper"),
    ],
)
def test_what_is_not_plain_is_refused(text, what):
    """Doubled keys, tags, broken syntax, control characters, depth."""
    with pytest.raises(InputError, match=what):
        yamlfile.parse(text, "f.yaml")


def test_aliases_cannot_explode(monkeypatch):
    """A document that doubles itself by aliases ends at the bound on values."""
    monkeypatch.setattr(yamlfile, "MAX_NODES", 10_000)
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    with pytest.raises(InputError, match="more than 10000 values"):
        yamlfile.parse(text, "f.yaml")


def test_an_alias_inside_itself_ends():
    """A cycle of aliases is refused, not followed forever."""
    with pytest.raises(InputError):
        yamlfile.parse("a: &a [*a]", "f.yaml")


def test_a_large_file_is_refused_by_its_size(tmp_path):
    """The bound holds before anything is parsed."""
    path = tmp_path / "large.yaml"
    path.write_text("a: " + "x" * 100)
    with pytest.raises(InputError, match="larger than 50 bytes"):
        yamlfile.load(path, max_bytes=50)


def test_a_missing_file_is_an_input_error(tmp_path):
    """What cannot be read is named with the reason."""
    with pytest.raises(InputError, match="cannot be read"):
        yamlfile.load(tmp_path / "gone.yaml")


def test_a_hundred_thousand_brackets_do_not_end_the_process():
    """Nesting that would exhaust the C stack is refused before it is composed."""
    with pytest.raises(InputError, match="nested deeper than"):
        yamlfile.parse("a: " + "[" * 100_000 + "]" * 100_000, "deep.yaml")
    with pytest.raises(InputError, match="nested deeper than"):
        yamlfile.parse("- " * 100_000 + "a", "deep.yaml")
