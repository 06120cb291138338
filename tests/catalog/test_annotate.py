"""Documents with extensions: only the operations change, and twice is the same as once."""

import json
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from apicost.catalog.annotate import DUMPED, JSON, TEXT, Location, annotated, locations
from apicost.catalog.validate import validate_documents

NAMES = ("x-apicost-calls", "x-apicost-window")
FIELDS = {"x-apicost-calls": 3, "x-apicost-window": {"start": "2026-11-01T00:00:00Z", "end": "ü: {"}}
LINES = 'x-apicost-calls: 3\n      x-apicost-window: {"start": "2026-11-01T00:00:00Z", "end": "ü: {"}\n'
BLOCK = textwrap.dedent("""\
    # A shop.
    openapi: 3.1.0
    info: {title: Shop, version: '1'}  # one line
    paths:
      /orders:
        # What was ordered.
        get:

          # The id comes first.
          operationId: list   # kept
          responses:
            '200': {description: "a  b"}
        post: {operationId: create, responses: {default: {description: d}}}
    """)
AT = ("paths", "/orders", "get")


def with_fields(text, *places, name="a.yaml", fields=FIELDS):
    return annotated(text.encode(), name, dict.fromkeys(places or [AT], fields), NAMES)


def test_yaml_keeps_everything_but_the_lines_put_in():
    """Comments, order, quotes and blank lines: taking the new lines out gives the old text."""
    found = with_fields(BLOCK)
    assert found.how == TEXT
    assert found.text.replace("      " + LINES, "") == BLOCK
    assert yaml.safe_load(found.text)["paths"]["/orders"]["get"]["x-apicost-calls"] == 3


def test_a_flow_mapping_is_written_into():
    """{...} stays on its line, with what it holds."""
    found = with_fields(BLOCK, AT, ("paths", "/orders", "post"))
    assert found.how == TEXT
    assert 'post: {"x-apicost-calls": 3, "x-apicost-window": {' in found.text
    assert with_fields(found.text, AT, ("paths", "/orders", "post")).text == found.text


def test_extensions_are_replaced_others_stay():
    """Wherever they stand, of one line or many, last or first; those of other names are not ours."""
    text = textwrap.dedent("""\
        openapi: 3.1.0
        paths:
          /a:
            get:
              operationId: a
              x-apicost-window:   # old
                start: x

                end: [1,
                  2]
              # a comment on what follows
              x-apicost-first-seen: kept
              x-apicost-calls: 1
          /b: {get: {operationId: b, x-apicost-calls: 1}}
        """)
    found = with_fields(text, ("paths", "/a", "get"), ("paths", "/b", "get"))
    data = yaml.safe_load(found.text)["paths"]
    assert data["/a"]["get"] == {"operationId": "a", "x-apicost-first-seen": "kept", **FIELDS}
    assert data["/b"]["get"] == {"operationId": "b", **FIELDS}
    assert found.how == TEXT and "# a comment on what follows" in found.text and "# old" not in found.text


def test_an_aliased_or_merged_operation_is_dumped_and_said():
    """Two operations with one text can't have two figures in it; the other is left as it was."""
    text = "openapi: 3.1.0\npaths:\n  /a: &i\n    get: {operationId: a}\n  /b: *i\n  /c:\n    <<: *i\n    put: {x: 1}\n"
    for place in (("paths", "/b", "get"), ("paths", "/c", "get")):
        found = with_fields(text, place)
        data = yaml.safe_load(found.text)["paths"]
        assert found.how == DUMPED
        assert [key for key in data if "x-apicost-calls" in data[key]["get"]] == [place[1]]


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_stays_json(indent):
    """With its indentation, its order and its escapes."""
    data = {"openapi": "3.0.0", "paths": {"/orders": {"get": {"z": "ü", "a": 1.5, "x-apicost-calls": 9}}}}
    text = json.dumps(data, indent=indent)
    found = with_fields(text, name="a.json")
    assert found.how == JSON
    data["paths"]["/orders"]["get"] = {**FIELDS, "z": "ü", "a": 1.5}
    assert found.text == json.dumps(data, indent=indent)
    assert with_fields(found.text, name="a.json").text == found.text


def test_windows_line_ends_and_a_byte_order_mark_stay_out_of_the_way():
    """The new lines end as the others do."""
    raw = b"\xef\xbb\xbf" + BLOCK.replace("\n", "\r\n").encode()
    found = annotated(raw, "a.yaml", {AT: FIELDS}, NAMES)
    assert found.how == TEXT and "\n" not in found.text.replace("\r\n", "")


def test_an_operation_behind_a_reference_is_found_where_it_stands(tmp_path):
    """In the components, in another file; files without operations belong to the document, too."""
    write = lambda name, text: (tmp_path / name).write_text(textwrap.dedent(text))  # noqa: E731
    write("api.yaml", """\
        openapi: 3.1.0
        info: {title: x, version: '1'}
        paths:
          /a: {$ref: '#/components/pathItems/A'}
          /b: {$ref: 'more.yaml#/items/B'}
          /c: {$ref: '#/components/pathItems/A', put: {responses: {default: {description: d}}}}
        components: {pathItems: {A: {get: {responses: {default: {description: d}}}}}}
        """)  # fmt: skip
    write("more.yaml", "items: {B: {get: {responses: {default: {$ref: 'deep.yaml#/R'}}}}}\n")
    write("deep.yaml", "R: {description: d}\n")
    found, files = locations(tmp_path / "api.yaml")
    here = tmp_path.resolve()
    assert found == {
        "/paths/~1a/get": Location(here / "api.yaml", ("components", "pathItems", "A", "get")),
        "/paths/~1b/get": Location(here / "more.yaml", ("items", "B", "get")),
        "/paths/~1c/get": Location(here / "api.yaml", ("components", "pathItems", "A", "get")),
        "/paths/~1c/put": Location(here / "api.yaml", ("paths", "/c", "put")),
    }
    assert {file.name for file in files} == {"api.yaml", "more.yaml", "deep.yaml"}


@pytest.mark.parametrize("name", ["shop.yaml", "media.yaml"])
def test_the_sample_documents_stay_valid_and_keep_their_lines(name, tmp_path):
    """Each operation in turn: nothing but new lines."""
    file = Path(__file__).parents[2] / "specs" / name
    found, _ = locations(file)
    raw = file.read_bytes()
    written = annotated(raw, name, {place.tokens: FIELDS for place in found.values()}, NAMES)
    assert written.how == TEXT
    kept = [line for line in written.text.splitlines() if not line.lstrip().startswith("x-apicost-")]
    assert kept == raw.decode().splitlines()
    (tmp_path / name).write_text(written.text)
    assert validate_documents([tmp_path / name]) == []


KEYS = st.sampled_from(
    ["operationId", "summary", "x-apicost-calls", "x-apicost-window", "x-apicost-other", "parameters", "ü"]
)
VALUES = st.recursive(
    st.one_of(st.text(max_size=8), st.integers(), st.none(), st.sampled_from(["a\n b\n", "# no", "- x", "l\n\n"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=2)), max_leaves=5,
)  # fmt: skip
STYLES = st.sampled_from(
    [{}, {"default_flow_style": True}, {"default_style": '"'}, {"default_style": "|"}, {"indent": 6}]
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(KEYS, VALUES, min_size=1), VALUES, STYLES, st.booleans())
def test_any_operation_in_any_style_gets_its_fields_and_keeps_the_rest(operation, other, style, unicode):
    """What comes out reads as what went in with the fields replaced, and twice is the same as once."""
    data = {"openapi": "3.1.0", "paths": {"/orders": {"get": operation, "z": other}}, "tail": other}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=unicode, **style)
    found = with_fields(text)
    data = yaml.safe_load(text)  # a dump may change what it can't say
    operation = data["paths"]["/orders"]["get"]
    data["paths"]["/orders"]["get"] = {**FIELDS, **{k: v for k, v in operation.items() if k not in NAMES}}
    assert yaml.safe_load(found.text) == data
    assert with_fields(found.text).text == found.text
